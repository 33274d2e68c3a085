//! Who owns a slot. `Placement` is the one trait that knows; today slots belong to the cores of this machine.

use rand::{Rng, SeedableRng};
use xfaas_common::hash::{HASH_KEYS, HashKeys, SessionHash, session_hash};
use xfaas_common::ids::{CoreIndex, SessionId, SlotIndex};
use xfaas_common::limits::{CORES_MAX, SESSION_ID_BYTES_MAX, SLOTS};

/// Knows the owner of every slot. Asked once a request: must neither block nor allocate.
pub trait Placement: Send + Sync {
    fn hash(&self, session: &SessionId) -> SessionHash;
    fn owner(&self, slot: SlotIndex) -> CoreIndex;
}

/// Slots dealt to the shards of this process in turn, under keys that nobody outside knows.
pub struct LocalPlacement {
    keys: HashKeys,
    shards: u16,
    slot_to_core: Box<[u16]>,
}

impl LocalPlacement {
    /// Random keys from the operating system; `cores` 1..=CORES_MAX.
    pub fn new(cores: usize) -> LocalPlacement {
        let mut random = rand::rngs::StdRng::from_os_rng();
        LocalPlacement::with_keys(cores, HashKeys { keys: std::array::from_fn::<u64, HASH_KEYS, _>(|_| random.random()) })
    }

    pub fn with_keys(cores: usize, keys: HashKeys) -> LocalPlacement {
        assert!((1..=CORES_MAX).contains(&cores), "the configuration's CPU list is checked before");
        LocalPlacement { keys, shards: cores as u16, slot_to_core: (0..SLOTS).map(|slot| (slot % cores) as u16).collect() }
    }

    /// Entry `slot` is the `CoreIndex` of its owner: the contents of the map `SLOT_TO_CORE`.
    pub fn slot_to_core(&self) -> &[u16] {
        &self.slot_to_core
    }

    /// Shards that slots are dealt to.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    pub fn keys(&self) -> &HashKeys {
        &self.keys
    }

    /// A number that tells these keys from others, to be written beside what was stored under them.
    pub fn fingerprint(&self) -> u64 {
        fingerprint(&self.keys)
    }

    /// What regions of earlier builds carry instead: it depends on five of the keys only.
    pub fn former_fingerprint(&self) -> u64 {
        hash_of(&self.keys, b"fingerprint")
    }
}

/// A number that tells hash keys from others. Every key enters it: the name is as long as a session ID can be, so no word of it is zero,
/// and each word is odd, so that no bit of a key is lost in the product.
pub(super) fn fingerprint(keys: &HashKeys) -> u64 {
    hash_of(keys, &[b'k'; SESSION_ID_BYTES_MAX - 1])
}

fn hash_of(keys: &HashKeys, name: &[u8]) -> u64 {
    let name = SessionId::new(name).expect("visible ASCII, and not too long");
    session_hash(keys, name.padded(), name.length()).0
}

impl Placement for LocalPlacement {
    fn hash(&self, session: &SessionId) -> SessionHash {
        session_hash(&self.keys, session.padded(), session.length())
    }

    fn owner(&self, slot: SlotIndex) -> CoreIndex {
        CoreIndex(self.slot_to_core[slot.index()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_an_owner_and_the_shares_are_even() {
        let placement = LocalPlacement::new(3);
        let mut owned = [0usize; 3];
        for slot in 0..SLOTS {
            owned[placement.owner(SlotIndex(slot as u16)).index()] += 1;
        }
        assert!(owned.iter().all(|count| count.abs_diff(SLOTS / 3) <= 1), "{owned:?}");
    }

    #[test]
    fn every_bit_of_every_key_enters_the_fingerprint() {
        let keys = *LocalPlacement::new(1).keys();
        for bit in 0..64 * HASH_KEYS {
            let mut other = keys;
            other.keys[bit / 64] ^= 1 << (bit % 64);
            assert_ne!(fingerprint(&other), fingerprint(&keys), "bit {bit}");
        }
    }

    #[test]
    fn two_nodes_hash_the_same_session_differently() {
        let session = SessionId::new(b"alice").unwrap();
        let (one, other) = (LocalPlacement::new(2), LocalPlacement::new(2));
        assert_ne!(one.hash(&session), other.hash(&session));
        assert_eq!(one.hash(&session), one.hash(&session));
    }
}
