//! A cell: one key and its value, swapped as a whole by one store.
//!
//! ```text
//! word 0      version: rises with every value, and when the cell is freed; its lowest bit names the slot in force
//! word 1      bytes of the key (bits 0..8); the slot (bit 8) and the number (bits 9..) of a pending write, all 0 when there is none
//! words 2-4   slot 0: bytes of the value, then two words: the value itself (up to 16 bytes), or the offset of its block
//! words 5-7   slot 1, the same
//! words 8..   the key, padded with zeros
//! ```
//! A write fills the slot that is not in force (and a fresh block, if the value is longer), then raises the version: the new value is
//! visible whole from that store on, and was not at all before it. There is no state in between, neither for a reader nor for whoever
//! maps the region after a kill, and a counter of 8 bytes is rewritten without touching the allocator.
//!
//! Several cells of a session change together like this (`transaction`): each gets its new value into the slot that is not in force and a
//! pending mark with the transaction's number; then the session's commit word is raised to that number, which is the one store that makes
//! all of them visible; then each is rolled forward: the version rises, the mark goes. Whoever finds a mark asks the commit word which slot
//! is in force. The mark names its slot, so it means the same before and after the version rose. Under one version a mark comes at most once
//! and goes only with the next version; a write given up takes its mark back and then raises the version by two, so that its number can
//! be used again.
//!
//! A reader loads the version `v`, finds the slot, copies it and what it leads to, and loads the version again. If it is still `v`, then no
//! store that could have disturbed the copy was visible to it: the slot in force is only written again under a later version, its block only
//! freed after a later one was stored, and the owner passes a release fence between that store and any later use of slot or block. (If a
//! copied load returned such a later store, the reader's acquire fence and that release fence synchronise, and it must see the later
//! version: Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012.) Cells lie in pages of their own, so word 0
//! stays a version when the cell is freed and used for another key, and goes on rising; a page that becomes something else raises the
//! retype word, which the reader compares too.

use xfaas_common::limits::KEY_BYTES_MAX;

use super::layout::Kind;
use super::value::ValueHead;
use super::words::{Offset, OutOfRange, WORD_BYTES, Words, acquire_fence, release_fence};

const WORD_VERSION: usize = 0;
const WORD_KEY: usize = 1;
const WORD_SLOTS: usize = 2;
const SLOT_WORDS: usize = 3;
const KEY_AT_BYTES: u64 = 64;

const KEY_BYTES_MASK: u64 = 0xFF;
const PENDING_SLOT_SHIFT: u32 = 8;
const PENDING_NUMBER_SHIFT: u32 = 9;
/// Numbers that a mark has room for; no owner lives to use them up.
pub(super) const TRANSACTIONS_MAX: u64 = (1 << (u64::BITS - PENDING_NUMBER_SHIFT)) - 1;

const _: () = assert!(KEY_BYTES_MAX as u64 <= KEY_BYTES_MASK);

/// The kind of page a cell lies in.
pub(super) const KIND: Kind = Kind::Cell;

/// Bytes of a cell for a key of `key_bytes`.
pub(super) const fn cell_bytes(key_bytes: usize) -> usize {
    KEY_AT_BYTES as usize + key_bytes.next_multiple_of(WORD_BYTES)
}

/// Which of a cell's two slots, 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot(u64);

impl Slot {
    #[inline(always)]
    const fn of_version(version: u64) -> Slot {
        Slot(version & 1)
    }

    #[inline(always)]
    const fn word(self) -> usize {
        WORD_SLOTS + SLOT_WORDS * self.0 as usize
    }

    fn fill(self, words: Words<'_>, cell: Offset, head: ValueHead) {
        words.store(cell, self.word(), head.bytes as u64);
        words.store(cell, self.word() + 1, head.payload[0]);
        words.store(cell, self.word() + 2, head.payload[1]);
    }

    #[inline(always)]
    fn load(self, words: Words<'_>, cell: Offset) -> Result<ValueHead, OutOfRange> {
        let bytes = words.get(cell, self.word())? as usize;
        Ok(ValueHead { bytes, payload: [words.get(cell, self.word() + 1)?, words.get(cell, self.word() + 2)?] })
    }
}

/// A mark on a cell: the slot that is in force once the session's commit word has reached the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    slot: Slot,
    pub number: u64,
}

impl Pending {
    #[inline(always)]
    fn of(key_word: u64) -> Option<Pending> {
        let slot = Slot(key_word >> PENDING_SLOT_SHIFT & 1);
        (key_word > KEY_BYTES_MASK).then_some(Pending { slot, number: key_word >> PENDING_NUMBER_SHIFT })
    }

    const fn to_bits(self) -> u64 {
        self.number << PENDING_NUMBER_SHIFT | self.slot.0 << PENDING_SLOT_SHIFT
    }
}

/// Makes a fresh cell that nothing leads to yet: the value in force is `head`.
pub(super) fn create(words: Words<'_>, cell: Offset, key: &[u8], head: ValueHead) {
    // The version goes on from where the block's last user left it; the first fence keeps the rest behind what freed the block.
    release_fence();
    words.store(cell, WORD_KEY, key.len() as u64);
    words.copy_in(cell.plus(KEY_AT_BYTES), key);
    swap(words, cell, head);
}

/// The owner's swap: `head` becomes the value in force. The caller frees what the old one held. Not for a cell with a pending write.
#[inline]
pub(super) fn swap(words: Words<'_>, cell: Offset, head: ValueHead) {
    let version = words.load(cell, WORD_VERSION).wrapping_add(1);
    Slot::of_version(version).fill(words, cell, head);
    words.publish(cell, WORD_VERSION, version);
}

/// Puts `head` beside the value in force, to take its place when the session's commit word reaches `number`. Again under the same
/// number: `head` takes the place of the pending one, whose blocks the caller frees. The caller has passed a release fence since the
/// version last rose.
pub(super) fn prepare(words: Words<'_>, cell: Offset, number: u64, head: ValueHead) {
    let slot = Slot::of_version(words.load(cell, WORD_VERSION).wrapping_add(1));
    slot.fill(words, cell, head);
    let mark = Pending { slot, number };
    words.publish(cell, WORD_KEY, key_bytes(words, cell) as u64 | mark.to_bits());
}

/// The mark of a pending write, for the owner.
pub(super) fn pending(words: Words<'_>, cell: Offset) -> Option<Pending> {
    Pending::of(words.load(cell, WORD_KEY))
}

/// The value that a pending write would bring, for the owner.
pub(super) fn pending_value(words: Words<'_>, cell: Offset) -> Option<ValueHead> {
    let slot = pending(words, cell)?.slot;
    Some(slot.load(words, cell).expect("a cell lies inside the region"))
}

/// Makes the pending value, which readers take for the value already, the one that the version names, and ends the mark. May have been
/// begun before: a kill between its two stores is made good by a second call. Output: the value before it, for the caller to free.
pub(super) fn roll_forward(words: Words<'_>, cell: Offset) -> ValueHead {
    let slot = pending(words, cell).expect("only a cell with a pending write is rolled forward").slot;
    let version = words.load(cell, WORD_VERSION);
    if Slot::of_version(version) != slot {
        words.publish(cell, WORD_VERSION, version.wrapping_add(1));
    }
    words.publish(cell, WORD_KEY, key_bytes(words, cell) as u64);
    Slot(slot.0 ^ 1).load(words, cell).expect("a cell lies inside the region")
}

/// Takes a pending write back; the caller has taken note of its value, to free it.
pub(super) fn give_up(words: Words<'_>, cell: Offset) {
    words.publish(cell, WORD_KEY, key_bytes(words, cell) as u64);
    // The mark goes first: a reader that finds it under the old version sees the version rise before the number can be committed anew.
    words.publish(cell, WORD_VERSION, words.load(cell, WORD_VERSION).wrapping_add(2));
}

/// Tells readers of a cell that was taken out of its table: what they copied from it may be anything from now on.
pub(super) fn retire(words: Words<'_>, cell: Offset) {
    words.bump(cell, WORD_VERSION);
}

/// The value in force, for the owner; a cell has no pending write but inside a transaction.
#[inline]
pub(super) fn value(words: Words<'_>, cell: Offset) -> ValueHead {
    let slot = Slot::of_version(words.load(cell, WORD_VERSION));
    slot.load(words, cell).expect("a cell lies inside the region")
}

/// The version now in force, for a reader: everything written under it is visible after this.
#[inline(always)]
pub(super) fn version(words: Words<'_>, cell: Offset) -> Result<u64, OutOfRange> {
    words.get_acquire(cell, WORD_VERSION)
}

/// The value under `version`, for a reader; means nothing until `is_still` said so. `committed` loads the session's commit word.
#[inline(always)]
pub(super) fn value_under(
    words: Words<'_>,
    cell: Offset,
    version: u64,
    committed: impl FnOnce() -> Result<u64, OutOfRange>,
) -> Result<ValueHead, OutOfRange> {
    // A mark that comes after this load is of a write that this read goes before.
    let slot = match Pending::of(words.get(cell, WORD_KEY)?) {
        Some(pending) if committed()? >= pending.number => pending.slot,
        _ => Slot::of_version(version),
    };
    slot.load(words, cell)
}

/// True when everything loaded from the cell and its blocks so far belongs to `version`.
#[inline(always)]
pub(super) fn is_still(words: Words<'_>, cell: Offset, version: u64) -> bool {
    acquire_fence();
    words.get(cell, WORD_VERSION) == Ok(version)
}

#[inline]
pub(super) fn key_bytes(words: Words<'_>, cell: Offset) -> usize {
    (words.load(cell, WORD_KEY) & KEY_BYTES_MASK) as usize
}

/// Copies the key of a cell of the owner's; `out` is as long as the key.
pub(super) fn copy_key(words: Words<'_>, cell: Offset, out: &mut [u8]) {
    words.copy_out(cell.plus(KEY_AT_BYTES), out).expect("a cell lies inside the region");
}

/// True when the cell's key is `key`. For owner and readers.
#[inline]
pub(super) fn has_key(words: Words<'_>, cell: Offset, key: &[u8]) -> Result<bool, OutOfRange> {
    Ok(words.get(cell, WORD_KEY)? & KEY_BYTES_MASK == key.len() as u64 && words.starts_with(cell.plus(KEY_AT_BYTES), key)?)
}
