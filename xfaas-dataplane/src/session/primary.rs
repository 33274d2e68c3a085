//! What a container knows of its primary: how sessions are hashed there, and which of the primary's shards owns a slot.
//! Made from a welcome, shared by the container's shards. In a container itself no shard owns anything.

use super::placement::{Placement, fingerprint};
use std::sync::Arc;
use xfaas_common::hash::{HashKeys, SessionHash, session_hash};
use xfaas_common::ids::{CoreIndex, SessionId, SlotIndex};
use xfaas_common::limits::{CORES_MAX, SLOTS};

/// A primary as its welcome describes it.
pub struct Primary {
    keys: HashKeys,
    shards: u16,
    slot_to_shard: Box<[u16]>,
    /// Name of the header that holds the session ID, in lower case.
    pub session_header: Vec<u8>,
    /// How long the primary lets a request wait for a lock, nanoseconds.
    pub lock_wait_ns: u64,
}

impl Primary {
    /// Input: 1..=64 shards, and the owner of every slot; `None` when these do not fit together.
    pub fn new(keys: HashKeys, shards: u16, slot_to_shard: Box<[u16]>, session_header: Vec<u8>, lock_wait_ns: u64) -> Option<Primary> {
        let fits = (1..=CORES_MAX).contains(&usize::from(shards)) && slot_to_shard.len() == SLOTS;
        let known = slot_to_shard.iter().all(|shard| *shard < shards);
        (fits && known).then_some(Primary { keys, shards, slot_to_shard, session_header, lock_wait_ns })
    }

    pub fn shards(&self) -> u16 {
        self.shards
    }

    pub fn keys(&self) -> &HashKeys {
        &self.keys
    }

    /// The number that the primary's regions carry: they were written under its keys.
    pub fn fingerprint(&self) -> u64 {
        fingerprint(&self.keys)
    }

    /// The shard that owns a session, by `SessionHash::table_hash`, whose upper bits are the slot.
    pub fn shard_of(&self, table_hash: u32) -> u16 {
        self.slot_to_shard[SessionHash(u64::from(table_hash) << 32).slot().index()]
    }

    /// True when sessions are found at the same places as with `other`.
    pub fn places_as(&self, other: &Primary) -> bool {
        self.keys.keys == other.keys.keys && self.slot_to_shard == other.slot_to_shard
    }
}

/// Placement of one shard of a container: whatever came to it is served by it.
pub struct ContainerPlacement {
    primary: Option<Arc<Primary>>,
    core: CoreIndex,
}

impl ContainerPlacement {
    /// `None`: no primary is known yet, so nothing can be run either.
    pub fn new(primary: Option<Arc<Primary>>, core: CoreIndex) -> ContainerPlacement {
        ContainerPlacement { primary, core }
    }
}

impl Placement for ContainerPlacement {
    fn hash(&self, session: &SessionId) -> SessionHash {
        match &self.primary {
            Some(primary) => session_hash(&primary.keys, session.padded(), session.length()),
            None => SessionHash(0),
        }
    }

    fn owner(&self, _slot: SlotIndex) -> CoreIndex {
        self.core
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::LocalPlacement;

    #[test]
    fn a_container_finds_the_shard_that_the_primary_would() {
        let local = LocalPlacement::new(3);
        let slots: Box<[u16]> = local.slot_to_core().into();
        let keys = *local.keys();
        assert!(Primary::new(keys, 2, slots.clone(), Vec::new(), 0).is_none(), "there is no third shard");
        assert!(Primary::new(keys, 3, slots[1..].into(), Vec::new(), 0).is_none());
        let primary = Arc::new(Primary::new(keys, 3, slots, Vec::new(), 0).unwrap());
        let placement = ContainerPlacement::new(Some(Arc::clone(&primary)), CoreIndex(1));
        for i in 0..100 {
            let session = SessionId::new(format!("user-{i}").as_bytes()).unwrap();
            let hash = placement.hash(&session);
            assert_eq!(hash, local.hash(&session));
            assert_eq!(primary.shard_of(hash.table_hash()), local.owner(hash.slot()).0);
            assert_eq!(placement.owner(hash.slot()), CoreIndex(1));
        }
        assert_eq!(primary.fingerprint(), local.fingerprint());
    }
}
