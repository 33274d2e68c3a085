//! Reads and writes of one session as an invocation makes them, wherever it runs: by a guest of this shard, or by RPC for one elsewhere.
//! Called by the host functions and by the shard's RPC stage, so that both mean the same by each operation.

use xfaas_common::ids::SessionId;

use super::error::StateError;
use super::namespace::NamespaceRef;
use super::region::Region;
use super::shard_state::ShardState;

/// The session of an invocation.
#[derive(Clone, Copy, Debug)]
pub struct SessionKey<'a> {
    /// The app's index.
    pub app: u16,
    pub session: &'a SessionId,
    /// `SessionHash::table_hash` of the session.
    pub table_hash: u32,
}

impl ShardState {
    /// The session's place in the region, if it has one by now: another call of the session may have made it a moment ago.
    #[inline(always)]
    pub fn find_namespace(&self, key: &SessionKey<'_>, known: &mut Option<NamespaceRef>) -> Option<NamespaceRef> {
        if known.is_none() {
            *known = self.region(key.app)?.find(key.session, key.table_hash);
        }
        *known
    }

    /// Sets `state_key` to `value` at once, and makes the session if it has no state yet. Errors: those of `Region::write`.
    #[inline(always)]
    pub fn store(
        &mut self,
        key: &SessionKey<'_>,
        known: &mut Option<NamespaceRef>,
        state_key: &[u8],
        value: &[u8],
        session_bytes_max: usize,
    ) -> Result<(), StateError> {
        let region = self.region_mut(key.app).ok_or(StateError::RegionFull)?;
        write_or_begin(region, key, known, state_key, value, session_bytes_max)?;
        if self.journal.logs(key.app) {
            self.journal.record(key.app, key.session, std::iter::once((state_key, Some(value))));
        }
        Ok(())
    }

    /// Does all `writes`, visible at once, or none; a key with `None` is deleted. Makes the session if it has no state yet, but not for
    /// writes that are refused. Errors: those of `Region::write_many`.
    pub fn store_many<'w, W>(
        &mut self,
        key: &SessionKey<'_>,
        known: &mut Option<NamespaceRef>,
        writes: W,
        session_bytes_max: usize,
    ) -> Result<(), StateError>
    where
        W: Iterator<Item = (&'w [u8], Option<&'w [u8]>)> + Clone,
    {
        let region = self.region_mut(key.app).ok_or(StateError::RegionFull)?;
        let write = |region: &mut Region, namespace| {
            let mut look = writes.clone();
            match (look.next(), look.next()) {
                (Some((state_key, Some(value))), None) => region.write(namespace, state_key, value, session_bytes_max),
                _ => region.write_many(namespace, writes.clone(), session_bytes_max),
            }
        };
        *known = region.find(key.session, key.table_hash);
        match *known {
            Some(namespace) => write(region, namespace)?,
            None => *known = Some(begin_with(region, key, write)?),
        }
        if self.journal.logs(key.app) {
            self.journal.record(key.app, key.session, writes);
        }
        Ok(())
    }
}

#[inline(always)]
fn write_or_begin(
    region: &mut Region,
    key: &SessionKey<'_>,
    known: &mut Option<NamespaceRef>,
    state_key: &[u8],
    value: &[u8],
    session_bytes_max: usize,
) -> Result<(), StateError> {
    if let Some(namespace) = *known {
        match region.write(namespace, state_key, value, session_bytes_max) {
            // The session was removed meanwhile: this write begins it anew.
            Err(StateError::NoNamespace) => {}
            written => return written,
        }
    }
    *known = region.find(key.session, key.table_hash);
    let write = |region: &mut Region, namespace| region.write(namespace, state_key, value, session_bytes_max);
    match *known {
        Some(namespace) => write(region, namespace)?,
        None => *known = Some(begin_with(region, key, write)?),
    }
    Ok(())
}

/// Makes the session with what `write` puts into it: found by nobody before that is whole, not even after a kill. One that sleeps would begin empty
/// then, because what is in memory counts and not its checkpoint. A refused write leaves no session, or requests that are refused would fill the
/// region with sessions that hold nothing.
fn begin_with(
    region: &mut Region,
    key: &SessionKey<'_>,
    write: impl FnOnce(&mut Region, NamespaceRef) -> Result<(), StateError>,
) -> Result<NamespaceRef, StateError> {
    let begun = region.begin(key.session, key.table_hash)?;
    if let Err(error) = write(region, begun) {
        region.abandon(begun);
        return Err(error);
    }
    region.link(begun).map(|()| begun)
}

#[cfg(test)]
mod tests {
    use super::super::region_tests::Scratch;
    use super::super::test_points;
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_refused_first_write_leaves_no_session_behind() {
        let scratch = Scratch::new();
        let mut state = ShardState::new(scratch.path().join("state"), 0, 4 << 20);
        state.open_app(0, "a").unwrap();
        let session = |number: u32| SessionId::new(format!("s{number}").as_bytes()).unwrap();
        for number in 0..1_000 {
            let (session, mut known) = (session(number), None);
            let key = SessionKey { app: 0, session: &session, table_hash: number };
            let refused = state.store(&key, &mut known, b"key", &[0; 100], 50).unwrap_err();
            assert!(matches!(refused, StateError::SessionFull { .. }) && known.is_none(), "{refused}");
        }
        assert_eq!(state.stats().total.sessions, 0);
        let (session, mut known) = (session(0), None);
        let key = SessionKey { app: 0, session: &session, table_hash: 0 };
        state.store(&key, &mut known, b"key", b"value", 50).unwrap();
        let namespace = known;
        state.store(&key, &mut known, b"key", &[0; 100], 50).unwrap_err();
        state.store(&key, &mut None, b"other", &[0; 100], 50).unwrap_err();
        assert_eq!((state.stats().total.sessions, known), (1, namespace), "one that was there before stays");
    }

    /// Output: keys of the session afterwards, `None` if there is none; and whether it was killed before its end.
    fn begin_until_store(stores: u64, writes: &[(&[u8], Option<&[u8]>)]) -> (Option<u64>, bool) {
        let scratch = Scratch::new();
        let open = || {
            let mut state = ShardState::new(scratch.path().join("state"), 0, 4 << 20);
            state.open_app(0, "a").unwrap();
            state
        };
        let session = SessionId::new(b"asleep").unwrap();
        let key = SessionKey { app: 0, session: &session, table_hash: 7 };
        let mut state = open();
        test_points::kill_at_store(Some(stores));
        let stored = catch_unwind(AssertUnwindSafe(|| state.store_many(&key, &mut None, writes.iter().copied(), 1 << 20).unwrap()));
        test_points::kill_at_store(None);
        drop(state);
        let mut state = open();
        let region = state.region(0).unwrap();
        let keys = region.find(&session, 7).map(|namespace| region.keys(namespace).count() as u64);
        // Nothing is in the way of the next load.
        state.store_many(&key, &mut None, writes.iter().copied(), 1 << 20).unwrap();
        (keys, stored.is_err())
    }

    #[test]
    fn a_session_that_is_loaded_when_the_server_is_killed_is_whole_or_not_there() {
        let value = [b'v'; 3_000];
        let one: [(&[u8], Option<&[u8]>); 1] = [(b"key", Some(&value))];
        let three: [(&[u8], Option<&[u8]>); 3] = [(b"one", Some(&value)), (b"two", Some(b"2")), (b"three", Some(&value))];
        for writes in [&one[..], &three[..]] {
            let mut was_absent = false;
            for stores in (0..).step_by(7) {
                let (keys, was_killed) = begin_until_store(stores, writes);
                assert!(keys.is_none_or(|keys| keys == writes.len() as u64), "{keys:?} before store {stores}");
                was_absent |= keys.is_none();
                if !was_killed {
                    assert!(keys.is_some() && was_absent);
                    break;
                }
            }
        }
    }
}
