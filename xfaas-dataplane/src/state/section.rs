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
        let is_new = region.find(key.session, key.table_hash).is_none();
        let namespace = region.find_or_create(key.session, key.table_hash)?;
        let mut look = writes.clone();
        let written = match (look.next(), look.next()) {
            (Some((state_key, Some(value))), None) => region.write(namespace, state_key, value, session_bytes_max),
            _ => region.write_many(namespace, writes.clone(), session_bytes_max),
        };
        if is_new && written.is_err() {
            region.remove(namespace);
        } else {
            *known = Some(namespace);
        }
        written?;
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
    let is_new = known.is_none();
    let namespace = known.map_or_else(|| region.create(key.session, key.table_hash), Ok)?;
    let written = region.write(namespace, state_key, value, session_bytes_max);
    if is_new && written.is_err() {
        region.remove(namespace); // or requests that are refused would fill the region with sessions that hold nothing
    } else {
        *known = Some(namespace);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::super::region_tests::Scratch;
    use super::*;

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
}
