//! Shared memory as 64-bit words: loads, stores and byte copies at offsets. All of `state/` touches the region through this file.
//!
//! Nothing here is `unsafe`: the mapping is a slice of atomics. Two families of loads: `get*` for racing readers, which may hold a stale
//! offset and get `OutOfRange` for it, and `load` for the owner, whose offsets were checked when the region was opened: there an offset
//! out of range is a bug of ours and stops the thread.
//!
//! The atomics themselves come from `memory`, where a model checker puts its own in; orderings and fences are all here.

use super::memory::{AtomicU64, Memory, Ordering, Span, fence, prefetch, span, word};

pub(super) const WORD_BYTES: usize = 8;

/// A place in the region: bytes from the start of the file, a multiple of 8. Never a pointer, so any process can use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset(pub u64);

impl Offset {
    pub const fn plus(self, bytes: u64) -> Offset {
        Offset(self.0 + bytes)
    }
}

/// A reader followed a word that had been reused meanwhile: it must look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfRange;

#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    memory: &'a Memory,
}

/// Orders everything this thread loaded before with everything it loads after.
#[inline(always)]
pub(super) fn acquire_fence() {
    fence(Ordering::Acquire);
}

/// Orders everything this thread stored before with everything it stores after. Each mutation of a region begins with one: whoever sees a
/// store into reused memory then also sees the version that rose when that memory was freed.
#[inline(always)]
pub(super) fn release_fence() {
    fence(Ordering::Release);
}

impl<'a> Words<'a> {
    #[inline(always)]
    pub fn new(memory: &'a Memory) -> Words<'a> {
        Words { memory }
    }

    #[inline(always)]
    fn at(self, at: Offset, word: usize) -> Option<&'a AtomicU64> {
        self::word(self.memory, at.0 as usize / WORD_BYTES + word)
    }

    #[inline(always)]
    fn owned(self, at: Offset, word: usize) -> &'a AtomicU64 {
        self.at(at, word).expect("the owner's offsets lie inside the region")
    }

    #[inline(always)]
    pub fn get(self, at: Offset, word: usize) -> Result<u64, OutOfRange> {
        before_load();
        Ok(self.at(at, word).ok_or(OutOfRange)?.load(Ordering::Relaxed))
    }

    /// A load whose value leads to more loads: what was published with it is visible after it. Relaxed plus fence, because the mapping
    /// may be read-only.
    #[inline(always)]
    pub fn get_acquire(self, at: Offset, word: usize) -> Result<u64, OutOfRange> {
        let value = self.get(at, word)?;
        acquire_fence();
        Ok(value)
    }

    #[inline(always)]
    pub fn load(self, at: Offset, word: usize) -> u64 {
        self.owned(at, word).load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub fn store(self, at: Offset, word: usize, value: u64) {
        before_store();
        self.owned(at, word).store(value, Ordering::Relaxed);
    }

    /// A store that makes everything stored before it reachable, for readers and for whoever maps the region after a crash.
    #[inline(always)]
    pub fn publish(self, at: Offset, word: usize, value: u64) {
        before_store();
        self.owned(at, word).store(value, Ordering::Release);
    }

    /// Adds one; the owner is the only writer, so a load and a store do.
    #[inline(always)]
    pub fn bump(self, at: Offset, word: usize) {
        self.publish(at, word, self.load(at, word).wrapping_add(1));
    }

    #[inline(always)]
    fn span(self, at: Offset, bytes: usize) -> Option<Span<'a>> {
        let start = at.0 as usize / WORD_BYTES;
        span(self.memory, start..start + bytes.div_ceil(WORD_BYTES))
    }

    /// Begins to bring `bytes` bytes from `at` on into the caches. Nothing happens where that is no place of the region.
    #[inline(always)]
    pub fn prefetch(self, at: Offset, bytes: usize) {
        if let Some(word) = self.at(at, 0) {
            self::prefetch(word, bytes);
        }
    }

    /// Stores `bytes` from `at` on, the last word padded with zeros.
    pub fn copy_in(self, at: Offset, bytes: &[u8]) {
        let span = self.span(at, bytes.len()).expect("a block lies inside the region");
        for (word, value) in span.iter().zip(le_words(bytes)) {
            before_store();
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Stores at `to` what the owner's `bytes` at `from` hold, rounded up to whole words.
    pub fn copy_between(self, from: Offset, to: Offset, bytes: usize) {
        let source = self.span(from, bytes).expect("a block lies inside the region");
        let span = self.span(to, bytes).expect("a block lies inside the region");
        for (word, source) in span.iter().zip(source) {
            before_store();
            word.store(source.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Fills `out` from `at` on. What is copied while the owner reuses the block is a mixture: the caller checks the version afterwards.
    pub fn copy_out(self, at: Offset, out: &mut [u8]) -> Result<(), OutOfRange> {
        let span = self.span(at, out.len()).ok_or(OutOfRange)?;
        let mut chunks = out.chunks_exact_mut(WORD_BYTES);
        for (chunk, word) in chunks.by_ref().zip(span.iter()) {
            before_load();
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        let tail = chunks.into_remainder();
        if let (false, Some(word)) = (tail.is_empty(), span.last()) {
            before_load();
            put_part(tail, word.load(Ordering::Relaxed));
        }
        Ok(())
    }

    /// True when the block at `at` starts with `bytes`, padded with zeros to whole words.
    #[inline]
    pub fn starts_with(self, at: Offset, bytes: &[u8]) -> Result<bool, OutOfRange> {
        let span = self.span(at, bytes.len()).ok_or(OutOfRange)?;
        Ok(span.iter().zip(le_words(bytes)).all(|(word, value)| {
            before_load();
            word.load(Ordering::Relaxed) == value
        }))
    }
}

/// Where a test can stop the owner as a kill would: between any two stores.
#[inline(always)]
fn before_store() {
    #[cfg(test)]
    super::test_points::pass_store();
}

/// Where a test can let the owner work in the middle of a read: between any two loads.
#[inline(always)]
fn before_load() {
    #[cfg(test)]
    super::test_points::pass_load();
}

/// `bytes` as little-endian words, the last one padded with zeros.
#[inline(always)]
pub(super) fn le_words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (whole, tail) = bytes.as_chunks::<WORD_BYTES>();
    let last = (!tail.is_empty()).then(|| part_word(tail));
    whole.iter().map(|chunk| u64::from_le_bytes(*chunk)).chain(last)
}

/// The word that `part`, less than a whole one, begins. Most keys and counters end with one: no loop, no call.
#[inline(always)]
fn part_word(part: &[u8]) -> u64 {
    if let (Some(first), Some(last)) = (part.first_chunk::<4>(), part.last_chunk::<4>()) {
        return u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << (8 * (part.len() - 4));
    }
    match *part {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c] => u64::from(u32::from_le_bytes([a, b, c, 0])),
        _ => 0,
    }
}

/// Fills `part`, less than a whole word, with what `word` begins with.
#[inline(always)]
fn put_part(part: &mut [u8], word: u64) {
    let after_first = part.len().saturating_sub(4);
    if let Some(first) = part.first_chunk_mut::<4>() {
        *first = (word as u32).to_le_bytes();
        if let Some(last) = part.last_chunk_mut::<4>() {
            *last = ((word >> (8 * after_first)) as u32).to_le_bytes();
        }
        return;
    }
    for (byte, value) in part.iter_mut().zip(word.to_le_bytes()) {
        *byte = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_every_length_come_back_and_stale_offsets_are_refused() {
        let memory: Vec<AtomicU64> = (0..40).map(|_| AtomicU64::new(u64::MAX)).collect();
        let words = Words::new(&memory);
        for length in 0..=255usize {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
            words.copy_in(Offset(16), &bytes);
            let mut out = vec![0xEE; length];
            words.copy_out(Offset(16), &mut out).unwrap();
            assert_eq!(out, bytes);
            assert!(words.starts_with(Offset(16), &bytes).unwrap());
            if length > 0 {
                let mut other = bytes.clone();
                other[length - 1] ^= 1;
                assert!(!words.starts_with(Offset(16), &other).unwrap());
            }
        }
        assert_eq!(words.get(Offset(40 * 8), 0), Err(OutOfRange));
        assert_eq!(words.get(Offset(1 << 47), 3), Err(OutOfRange));
        assert_eq!(words.copy_out(Offset(39 * 8), &mut [0; 9]), Err(OutOfRange));
    }
}
