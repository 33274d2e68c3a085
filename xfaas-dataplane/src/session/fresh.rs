//! What stands in for a missing session hint: a fresh ID that nobody can guess and that the receiving shard owns itself.

use super::placement::Placement;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xfaas_common::hash::SessionHash;
use xfaas_common::ids::{CoreIndex, SessionId};

/// 22 characters of a 64-letter alphabet: 132 random bits.
const FRESH_ID_CHARACTERS: usize = 22;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Tries before the ID is taken whoever owns it; with 64 shards 1,000 tries miss once in ten million.
const TRIES_MAX: usize = 1_000;

/// Source of fresh session IDs and invocation IDs of one shard; a cryptographic generator seeded by the operating system.
pub struct FreshIds {
    random: StdRng,
    invocation_prefix: u128,
    invocations: u64,
}

impl Default for FreshIds {
    fn default() -> FreshIds {
        let mut random = StdRng::from_os_rng();
        let invocation_prefix = u128::from(random.random::<u64>()) << 64;
        FreshIds { random, invocation_prefix, invocations: 0 }
    }
}

impl FreshIds {
    /// A session ID whose slot `core` owns, and its hash.
    pub fn session(&mut self, placement: &dyn Placement, core: CoreIndex) -> (SessionId, SessionHash) {
        let mut tries = 0;
        loop {
            let bytes: [u8; FRESH_ID_CHARACTERS] = std::array::from_fn(|_| ALPHABET[self.random.random_range(0..ALPHABET.len())]);
            let session = SessionId::new(&bytes).expect("the alphabet is visible ASCII");
            let hash = placement.hash(&session);
            tries += 1;
            if placement.owner(hash.slot()) == core || tries == TRIES_MAX {
                return (session, hash);
            }
        }
    }

    /// Unique in this process and, but for a 64-bit chance, anywhere.
    pub fn invocation(&mut self) -> u128 {
        self.invocations += 1;
        self.invocation_prefix | u128::from(self.invocations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::LocalPlacement;

    #[test]
    fn fresh_ids_belong_to_the_shard_that_made_them_and_differ() {
        let placement = LocalPlacement::new(4);
        let mut ids = FreshIds::default();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..200 {
            let (session, hash) = ids.session(&placement, CoreIndex(3));
            assert_eq!(placement.owner(hash.slot()), CoreIndex(3));
            assert!(seen.insert(session));
        }
    }
}
