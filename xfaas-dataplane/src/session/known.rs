//! What a shard knows of the sessions of one app beside their state: their checkpoints, and when they were used. Some 100 bytes a session.
//! Called by the shard's `lifecycle`. Finding allocates nothing.

use crate::durable::CheckpointNumber;
use hashbrown::HashTable;
use std::collections::HashMap;
use xfaas_common::ids::SessionId;

/// No order is under way for the session.
pub const NO_TICKET: u32 = u32::MAX;
/// No sequence of a session's state.
pub const NOT_STORED: u64 = u64::MAX;
/// Tables that grow one by one, so that no request waits for all sessions to be put into a larger one.
const TABLES: usize = 64;

/// One session.
#[derive(Clone, Debug)]
pub struct KnownSession {
    pub session: SessionId,
    table_hash: u32,
    /// When it was used last, tenths of a second of the monotonic clock.
    pub used_tenths: u32,
    /// The sequence that its state in memory had in the latest checkpoint; `NOT_STORED`: that is not known, or it has none.
    pub sequence: u64,
    /// Of the app's `Evictor` when it was used last.
    pub clock: f64,
    /// Its latest checkpoint and the one before; 0: there is none.
    pub latest: u32,
    pub previous: u32,
    /// The highest number that was given to a checkpoint of it.
    pub attempted: u32,
    /// Of the order that is under way for it.
    pub ticket: u32,
    /// It was used since the start of the process, so that `used_tenths` is right.
    pub was_used: bool,
    /// Requests since it was loaded, 65,535 at most.
    pub frequency: u16,
    /// Its state was seen in the region and was not dropped since.
    pub is_in_memory: bool,
    /// It was loaded ahead of a request that has not come yet.
    pub is_pre_warmed: bool,
    /// The log was told that it is not to give the session back (`Journal::end_session`).
    pub is_out_of_log: bool,
}

/// The sessions of one app on one shard.
#[derive(Debug)]
pub struct KnownSessions {
    tables: Vec<HashTable<KnownSession>>,
    length: usize,
    /// When timers in the latest checkpoint and in the one before are due, of those that have any. Clients choose the names, so the table's
    /// hash has a secret.
    dues_s: HashMap<SessionId, [u32; 2]>,
}

impl Default for KnownSessions {
    fn default() -> KnownSessions {
        KnownSessions { tables: (0..TABLES).map(|_| HashTable::new()).collect(), length: 0, dues_s: HashMap::new() }
    }
}

impl KnownSessions {
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn find_mut(&mut self, session: &SessionId, table_hash: u32) -> Option<&mut KnownSession> {
        let (hash, table) = place(table_hash);
        self.tables[table].find_mut(hash, |known| known.session == *session)
    }

    /// The session; new ones were never checkpointed. `table_hash`: `SessionHash::table_hash` of it.
    pub fn find_or_insert(&mut self, session: &SessionId, table_hash: u32, now_tenths: u32) -> &mut KnownSession {
        let (hash, table) = place(table_hash);
        let KnownSessions { tables, length, .. } = self;
        let entry = tables[table].entry(hash, |known| known.session == *session, |known| place(known.table_hash).0);
        let fresh = || {
            *length += 1;
            KnownSession {
                session: *session,
                table_hash,
                used_tenths: now_tenths,
                sequence: NOT_STORED,
                clock: 0.0,
                latest: 0,
                previous: 0,
                attempted: 0,
                ticket: NO_TICKET,
                was_used: false,
                frequency: 0,
                is_in_memory: false,
                is_pre_warmed: false,
                is_out_of_log: false,
            }
        };
        entry.or_insert_with(fresh).into_mut()
    }

    /// The log may have something of every session from now on. Cost: a look at each.
    pub fn put_into_log(&mut self) {
        self.tables.iter_mut().flatten().for_each(|known| known.is_out_of_log = false);
    }

    /// Forgets the session.
    pub fn remove(&mut self, session: &SessionId, table_hash: u32) -> Option<KnownSession> {
        let (hash, table) = place(table_hash);
        let (known, _) = self.tables[table].find_entry(hash, |known| known.session == *session).ok()?.remove();
        self.length -= 1;
        self.dues_s.remove(session);
        Some(known)
    }

    /// The session's latest checkpoint and the one before, as the store names them.
    pub fn checkpoints(&mut self, session: &SessionId, table_hash: u32) -> [CheckpointNumber; 2] {
        let [latest_s, previous_s] = if self.dues_s.is_empty() { [0; 2] } else { self.dues_s.get(session).copied().unwrap_or_default() };
        let counts = self.find_mut(session, table_hash).map_or([0; 2], |known| [known.latest, known.previous]);
        [CheckpointNumber::new(counts[0], latest_s), CheckpointNumber::new(counts[1], previous_s)]
    }

    /// The session has these checkpoints from now on, the latest one first.
    pub fn set_checkpoints(&mut self, session: &SessionId, table_hash: u32, checkpoints: [CheckpointNumber; 2]) {
        let Some(known) = self.find_mut(session, table_hash) else { return };
        [known.latest, known.previous] = checkpoints.map(CheckpointNumber::count);
        match checkpoints.map(CheckpointNumber::due_s) {
            [0, 0] if self.dues_s.is_empty() => {}
            [0, 0] => drop(self.dues_s.remove(session)),
            dues_s => drop(self.dues_s.insert(*session, dues_s)),
        }
    }
}

/// The bits that choose the table are none of those that choose the place in it.
fn place(table_hash: u32) -> (u64, usize) {
    let hash = u64::from(table_hash).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (hash, (hash >> 50) as usize % TABLES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_found_again_and_stay_small() {
        assert!(size_of::<KnownSession>() <= 112, "{}", size_of::<KnownSession>());
        let mut known = KnownSessions::default();
        let session = |i: u32| SessionId::new(format!("s{i}").as_bytes()).unwrap();
        for i in 0..5_000_u32 {
            known.find_or_insert(&session(i), i / 2, i).latest = i + 1;
        }
        assert_eq!(known.len(), 5_000);
        for i in 0..5_000_u32 {
            assert_eq!(known.find_mut(&session(i), i / 2).unwrap().latest, i + 1);
            assert_eq!(known.find_or_insert(&session(i), i / 2, 0).used_tenths, i);
        }
        assert!(known.find_mut(&session(5_000), 2_500).is_none());
        let longest = known.tables.iter().map(HashTable::len).max().unwrap();
        assert!(longest < 5_000 / TABLES * 3, "{longest}");
    }

    #[test]
    fn checkpoints_are_known_with_the_times_of_their_timers() {
        let (mut known, session) = (KnownSessions::default(), SessionId::new(b"s").unwrap());
        let number = CheckpointNumber::new;
        known.set_checkpoints(&session, 7, [number(1, 1), number(0, 0)]);
        assert_eq!((known.checkpoints(&session, 7), known.dues_s.len()), ([number(0, 0); 2], 0), "an unknown session has none");
        known.find_or_insert(&session, 7, 0);
        for pair in [[number(1, 9), number(0, 0)], [number(2, 0), number(1, 9)], [number(3, 0), number(2, 0)]] {
            known.set_checkpoints(&session, 7, pair);
            assert_eq!(known.checkpoints(&session, 7), pair);
        }
        assert!(known.dues_s.is_empty());
        known.set_checkpoints(&session, 7, [number(4, 9), number(3, 0)]);
        assert_eq!((known.remove(&session, 7).unwrap().latest, known.len(), known.dues_s.len()), (4, 0, 0));
        assert!(known.remove(&session, 7).is_none() && known.find_mut(&session, 7).is_none());
    }
}
