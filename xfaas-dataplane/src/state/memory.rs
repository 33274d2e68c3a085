//! What `words` is made of: the machine's atomics and a mapping as a slice of them. A file of its own, so that the model checker puts its
//! own atomics in (`xfaas-dataplane/loom`) and runs all the rest of `state/` as it is.

use crate::sys::prefetch_span;
use std::ops::Range;

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A mapped region.
pub(super) type Memory = [AtomicU64];
/// Words one after another.
pub(super) type Span<'a> = &'a [AtomicU64];

#[inline(always)]
pub(super) fn word(memory: &Memory, index: usize) -> Option<&AtomicU64> {
    memory.get(index)
}

/// Begins to bring `bytes` bytes from a word on into the caches.
#[inline(always)]
pub(super) fn prefetch(word: &AtomicU64, bytes: usize) {
    prefetch_span((&raw const *word).addr(), bytes);
}

#[inline(always)]
pub(super) fn span(memory: &Memory, range: Range<usize>) -> Option<Span<'_>> {
    memory.get(range)
}
