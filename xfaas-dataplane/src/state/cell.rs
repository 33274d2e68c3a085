//! A cell: one key and its value, swapped as a whole by one store.
//!
//! ```text
//! word 0      version: rises by one with every value, and when the cell is freed; its lowest bit names the slot in force
//! word 1      bytes of the key
//! words 2-4   slot 0: bytes of the value, then two words: the value itself (up to 16 bytes), or the offset of its block
//! words 5-7   slot 1, the same
//! words 8..   the key, padded with zeros
//! ```
//! A write fills the slot that is not in force (and a fresh block, if the value is longer), then raises the version: the new value is
//! visible whole from that store on, and was not at all before it. There is no state in between, neither for a reader nor for whoever
//! maps the region after a kill, and a counter of 8 bytes is rewritten without touching the allocator.
//!
//! A reader loads the version `v`, copies slot `v & 1` and what it leads to, and loads the version again. If it is still `v`, then no
//! store that could have disturbed the copy was visible to it: the slot in force is only written again under `v + 1`, the block only freed
//! after `v + 1` was stored, and the owner passes a release fence between that store and any later use of slot or block. (If a copied
//! load returned such a later store, the reader's acquire fence and that release fence synchronise, and it must see `v + 1`: Boehm, "Can
//! seqlocks get along with programming language memory models?", MSPC 2012.) Cells lie in pages of their own, so word 0 stays a version
//! when the cell is freed and used for another key, and goes on rising; a page that becomes something else raises the retype word, which
//! the reader compares too.

use super::layout::Kind;
use super::value::ValueHead;
use super::words::{Offset, OutOfRange, WORD_BYTES, Words, acquire_fence, release_fence};

const WORD_VERSION: usize = 0;
const WORD_KEY_BYTES: usize = 1;
const WORD_SLOTS: usize = 2;
const SLOT_WORDS: usize = 3;
const KEY_AT_BYTES: u64 = 64;

/// The kind of page a cell lies in.
pub(super) const KIND: Kind = Kind::Cell;

/// Bytes of a cell for a key of `key_bytes`.
pub(super) const fn cell_bytes(key_bytes: usize) -> usize {
    KEY_AT_BYTES as usize + key_bytes.next_multiple_of(WORD_BYTES)
}

const fn slot_word(version: u64) -> usize {
    WORD_SLOTS + SLOT_WORDS * (version & 1) as usize
}

/// Makes a fresh cell that nothing leads to yet: the value in force is `head`.
pub(super) fn create(words: Words<'_>, cell: Offset, key: &[u8], head: ValueHead) {
    // The version goes on from where the block's last user left it; the first fence keeps the rest behind what freed the block.
    release_fence();
    words.store(cell, WORD_KEY_BYTES, key.len() as u64);
    words.copy_in(cell.plus(KEY_AT_BYTES), key);
    swap(words, cell, head);
}

/// The owner's swap: `head` becomes the value in force. The caller frees what the old one held.
#[inline]
pub(super) fn swap(words: Words<'_>, cell: Offset, head: ValueHead) {
    let version = words.load(cell, WORD_VERSION).wrapping_add(1);
    let slot = slot_word(version);
    words.store(cell, slot, head.bytes as u64);
    words.store(cell, slot + 1, head.payload[0]);
    words.store(cell, slot + 2, head.payload[1]);
    words.publish(cell, WORD_VERSION, version);
}

/// Tells readers of a cell that was taken out of its table: what they copied from it may be anything from now on.
pub(super) fn retire(words: Words<'_>, cell: Offset) {
    words.bump(cell, WORD_VERSION);
}

/// The value in force, for the owner.
#[inline]
pub(super) fn value(words: Words<'_>, cell: Offset) -> ValueHead {
    let slot = slot_word(words.load(cell, WORD_VERSION));
    ValueHead { bytes: words.load(cell, slot) as usize, payload: [words.load(cell, slot + 1), words.load(cell, slot + 2)] }
}

/// The version now in force, for a reader: everything written under it is visible after this.
pub(super) fn version(words: Words<'_>, cell: Offset) -> Result<u64, OutOfRange> {
    words.get_acquire(cell, WORD_VERSION)
}

/// The value under `version`, for a reader; means nothing until `is_still` said so.
pub(super) fn value_under(words: Words<'_>, cell: Offset, version: u64) -> Result<ValueHead, OutOfRange> {
    let slot = slot_word(version);
    let bytes = words.get(cell, slot)? as usize;
    Ok(ValueHead { bytes, payload: [words.get(cell, slot + 1)?, words.get(cell, slot + 2)?] })
}

/// True when everything loaded from the cell and its blocks so far belongs to `version`.
pub(super) fn is_still(words: Words<'_>, cell: Offset, version: u64) -> bool {
    acquire_fence();
    words.get(cell, WORD_VERSION) == Ok(version)
}

#[inline]
pub(super) fn key_bytes(words: Words<'_>, cell: Offset) -> usize {
    words.load(cell, WORD_KEY_BYTES) as usize
}

/// Copies the key of a cell of the owner's; `out` is as long as the key.
pub(super) fn copy_key(words: Words<'_>, cell: Offset, out: &mut [u8]) {
    words.copy_out(cell.plus(KEY_AT_BYTES), out).expect("a cell lies inside the region");
}

/// True when the cell's key is `key`. For owner and readers.
#[inline]
pub(super) fn has_key(words: Words<'_>, cell: Offset, key: &[u8]) -> Result<bool, OutOfRange> {
    Ok(words.get(cell, WORD_KEY_BYTES)? == key.len() as u64 && words.starts_with(cell.plus(KEY_AT_BYTES), key)?)
}
