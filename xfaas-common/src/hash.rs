//! The keyed hash that turns a session ID into a slot; the same function runs in the kernel, in the shard and in tests.
//!
//! Multilinear hashing over 32-bit words with secret 64-bit keys: fixed work, so the verifier sees no loop bound by input, and strongly
//! universal in the upper 32 bits, so nobody without the keys can aim sessions at one core. The sum is linear in the ID, though: under
//! one key in some twenty, IDs that count up (`user-1`, `user-2`, ..) would all fall on the same half of the slots. A fixed mixer at the
//! end breaks that; it is a bijection, so it adds no collision.
//! Sources: Lemire & Kaser, "Strongly universal string hashing is fast", The Computer Journal 57(11), 2014, section 3; the mixer is
//! `fmix64` of MurmurHash3 (Appleby, public domain).

use crate::ids::SlotIndex;
use crate::limits::{SESSION_ID_BYTES_MAX, SLOT_BITS};

/// 32-bit words of a padded session ID.
pub const SESSION_WORDS: usize = SESSION_ID_BYTES_MAX / 4;
/// One key for the constant term, one a word, one for the length.
pub const HASH_KEYS: usize = SESSION_WORDS + 2;

/// The secret keys, random per node, shared with the kernel programs through the map `KEYS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HashKeys {
    pub keys: [u64; HASH_KEYS],
}
const _: () = assert!(size_of::<HashKeys>() == 8 * HASH_KEYS);
const _: () = assert!(align_of::<HashKeys>() == 8);

/// Hash of one session ID. The upper 14 bits are the slot; the upper 32 are good for a hash table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionHash(pub u64);

impl SessionHash {
    pub const fn slot(self) -> SlotIndex {
        SlotIndex((self.0 >> (64 - SLOT_BITS)) as u16)
    }

    /// The well-mixed half, for hash tables in user space.
    pub const fn table_hash(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Input: the ID zero-padded to 64 bytes and its length 1..=64. Output: 64 bits. Errors: none.
/// Cost: 19 multiplications, no branch, no loop the compiler does not unroll.
#[inline(always)]
pub const fn session_hash(keys: &HashKeys, padded: &[u8; SESSION_ID_BYTES_MAX], length: u8) -> SessionHash {
    let mut words = [0u64; SESSION_ID_BYTES_MAX / 8];
    let mut i = 0;
    while i < words.len() {
        let at = i * 8;
        words[i] = u64::from_le_bytes([
            padded[at],
            padded[at + 1],
            padded[at + 2],
            padded[at + 3],
            padded[at + 4],
            padded[at + 5],
            padded[at + 6],
            padded[at + 7],
        ]);
        i += 1;
    }
    session_hash_words(keys, &words, length)
}

/// `session_hash` of an ID already read as eight little-endian words: the form in which the kernel program holds it.
#[inline(always)]
pub const fn session_hash_words(keys: &HashKeys, words: &[u64; SESSION_ID_BYTES_MAX / 8], length: u8) -> SessionHash {
    let mut sum = keys.keys[0].wrapping_add(keys.keys[1].wrapping_mul(length as u64));
    let mut i = 0;
    while i < words.len() {
        sum = sum.wrapping_add(keys.keys[2 + 2 * i].wrapping_mul(words[i] & 0xFFFF_FFFF));
        sum = sum.wrapping_add(keys.keys[3 + 2 * i].wrapping_mul(words[i] >> 32));
        i += 1;
    }
    SessionHash(mix(sum))
}

/// Spreads every bit over all others.
#[inline(always)]
const fn mix(sum: u64) -> u64 {
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    sum ^ (sum >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;
    use crate::limits::SLOTS;
    use proptest::prelude::*;

    fn keys(seed: u64) -> HashKeys {
        let mut state = seed;
        let keys = core::array::from_fn(|_| {
            // SplitMix64, Steele et al. 2014: only to have fixed, well-mixed keys in a test.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        });
        HashKeys { keys }
    }

    /// How many of `user-0` .. `user-<ids - 1>` fall on even slots, and on the lower half.
    fn shares(seed: u64, ids: usize) -> (usize, usize) {
        let keys = keys(seed);
        let slot = |i: usize| {
            let id = SessionId::new(format!("user-{i}").as_bytes()).unwrap();
            session_hash(&keys, id.padded(), id.length()).slot().index()
        };
        ((0..ids).filter(|i| slot(*i).is_multiple_of(2)).count(), (0..ids).filter(|i| slot(*i) < SLOTS / 2).count())
    }

    #[test]
    fn sequential_ids_spread_evenly_under_every_key() {
        for seed in 0..500 {
            let (even, low) = shares(seed, 24);
            assert!((1..24).contains(&even) && (1..24).contains(&low), "seed {seed}: {even} even, {low} low of 24");
        }
        for seed in 0..20 {
            let (even, low) = shares(seed, 10_000);
            assert!((4_700..=5_300).contains(&even) && (4_700..=5_300).contains(&low), "seed {seed}: {even} even, {low} low of 10000");
        }
    }

    proptest! {
        #[test]
        fn slot_is_in_range_and_words_agree_with_bytes(text in "[!-~]{1,64}", seed: u64) {
            let id = SessionId::new(text.as_bytes()).unwrap();
            let keys = keys(seed);
            let hash = session_hash(&keys, id.padded(), id.length());
            prop_assert!(hash.slot().index() < SLOTS);
            // The definition, written the slow way.
            let mut sum = keys.keys[0].wrapping_add(keys.keys[1].wrapping_mul(text.len() as u64));
            for (i, word) in id.padded().chunks(4).enumerate() {
                let word = u32::from_le_bytes(word.try_into().unwrap());
                sum = sum.wrapping_add(keys.keys[2 + i].wrapping_mul(u64::from(word)));
            }
            prop_assert_eq!(hash, SessionHash(mix(sum)));
        }
    }
}
