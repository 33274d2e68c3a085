//! The model checker's `memory`: what `words` is made of.

use std::ops::Range;

pub(super) use crate::checked::{AtomicU64, Memory, Ordering, fence, spin_loop};

/// Words one after another.
pub(super) type Span<'a> = Vec<&'a AtomicU64>;

pub(super) fn word(memory: &Memory, index: usize) -> Option<&AtomicU64> {
    memory.word(index)
}

/// Of no consequence for what is read.
pub(super) fn prefetch(_word: &AtomicU64, _bytes: usize) {}

pub(super) fn span(memory: &Memory, range: Range<usize>) -> Option<Span<'_>> {
    range.map(|index| memory.word(index)).collect()
}
