//! What a shard knows of the sessions of one app beside their state: their checkpoints, and when they were used. Some 100 bytes a session.
//! Called by the shard's `lifecycle`. Finding allocates nothing.

use hashbrown::HashTable;
use xfaas_common::ids::SessionId;

/// No order is under way for the session.
pub const NO_TICKET: u32 = u32::MAX;
/// Tables that grow one by one, so that no request waits for all sessions to be put into a larger one.
const TABLES: usize = 64;

/// One session.
#[derive(Clone, Debug)]
pub struct KnownSession {
    pub session: SessionId,
    table_hash: u32,
    /// When it was used last, seconds of the monotonic clock.
    pub used_s: u32,
    /// The sequence that its state in memory had in the latest checkpoint; `None`: that is not known, or it has none.
    pub sequence: Option<u64>,
    /// Its latest checkpoint and the one before; 0: there is none.
    pub latest: u32,
    pub previous: u32,
    /// The highest number that was given to a checkpoint of it.
    pub attempted: u32,
    /// Of the order that is under way for it.
    pub ticket: u32,
    /// Its state was seen in the region and was not dropped since.
    pub is_in_memory: bool,
}

/// The sessions of one app on one shard.
#[derive(Debug)]
pub struct KnownSessions {
    tables: Vec<HashTable<KnownSession>>,
    length: usize,
}

impl Default for KnownSessions {
    fn default() -> KnownSessions {
        KnownSessions { tables: (0..TABLES).map(|_| HashTable::new()).collect(), length: 0 }
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
    pub fn find_or_insert(&mut self, session: &SessionId, table_hash: u32, now_s: u32) -> &mut KnownSession {
        let (hash, table) = place(table_hash);
        let KnownSessions { tables, length } = self;
        let entry = tables[table].entry(hash, |known| known.session == *session, |known| place(known.table_hash).0);
        let fresh = || {
            *length += 1;
            KnownSession {
                session: *session,
                table_hash,
                used_s: now_s,
                sequence: None,
                latest: 0,
                previous: 0,
                attempted: 0,
                ticket: NO_TICKET,
                is_in_memory: false,
            }
        };
        entry.or_insert_with(fresh).into_mut()
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
            assert_eq!(known.find_or_insert(&session(i), i / 2, 0).used_s, i);
        }
        assert!(known.find_mut(&session(5_000), 2_500).is_none());
        let longest = known.tables.iter().map(HashTable::len).max().unwrap();
        assert!(longest < 5_000 / TABLES * 3, "{longest}");
    }
}
