//! Hashes inside a region: keyed by a secret in its header, so that neither clients nor guests can choose colliding names.
//! Even if one could, a table is at most 16 levels deep, so a lookup stays bounded.
//!
//! Folded multiplication as in wyhash (Wang Yi, "wyhash", 2019, final version 4): good mixing for a few nanoseconds, not cryptography.

use xfaas_common::ids::SessionId;

use super::words::le_words;

/// Two random words, made when the region is.
#[derive(Clone, Copy)]
pub(super) struct Secret(pub [u64; 2]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl Secret {
    /// Fresh randomness from the standard library's seeds, which the system gives.
    pub fn random() -> Secret {
        use std::hash::{BuildHasher, RandomState};
        let word = || RandomState::new().hash_one(0u64);
        Secret([word(), word() | 1])
    }

    /// Hash of any bytes, all 64 bits usable.
    #[inline]
    pub fn hash(self, bytes: &[u8]) -> u64 {
        let [seed, factor] = self.0;
        let mixed = le_words(bytes).fold(seed ^ (bytes.len() as u64), |mixed, word| fold(mixed ^ word, factor));
        fold(mixed ^ factor.rotate_left(32), seed | 1)
    }

    /// Hash of a session: the node's keyed hash in the lower half, so its bits are used first, ours above for the rare full collision.
    #[inline]
    pub fn session_hash(self, session: &SessionId, table_hash: u32) -> u64 {
        u64::from(table_hash) | self.hash(session.as_bytes()) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn short_keys_spread_over_low_and_high_bits() {
        let secret = Secret([0x9E37_79B9_7F4A_7C15, 0xD6E8_FEB8_6659_FD93]);
        let hashes: Vec<u64> = (0..4096).map(|i| secret.hash(format!("k{i}").as_bytes())).collect();
        assert_eq!(hashes.iter().collect::<HashSet<_>>().len(), 4096);
        // 4096 keys into 4096 buckets leave about 1/e of them empty.
        for shift in [0, 52] {
            let used = hashes.iter().map(|hash| hash >> shift & 4095).collect::<HashSet<_>>().len();
            assert!((2480..=2700).contains(&used), "{used} of 4096 buckets at bit {shift}");
        }
        assert_ne!(secret.hash(b"a"), secret.hash(b"a\x01"));
        assert_ne!(secret.hash(b""), secret.hash(&[1]));
    }
}
