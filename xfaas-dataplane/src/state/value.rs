//! Values: up to 16 bytes inside the cell's slot, up to 8 KiB in one block, longer ones in pieces of 8 KiB with a list of them.
//! A value never changes once its cell names it.

use xfaas_common::limits::VALUE_BYTES_MAX;

use super::alloc::{Allocator, Purpose};
use super::class::BLOCK_BYTES_MAX;
use super::layout::Kind;
use super::space::Space;
use super::table::NoRoom;
use super::words::{Offset, OutOfRange, WORD_BYTES, Words};

pub(super) const INLINE_BYTES_MAX: usize = 16;
const PIECE_BYTES: usize = BLOCK_BYTES_MAX;

const _: () = assert!(VALUE_BYTES_MAX.div_ceil(PIECE_BYTES) * WORD_BYTES <= BLOCK_BYTES_MAX, "the list of pieces is one block");

/// What a cell's slot says of a value: its length, and the value itself or where it is. The length decides which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ValueHead {
    pub bytes: usize,
    pub payload: [u64; 2],
}

/// Stands for the length of a value that is not there: a key that a transaction is about to add, or has taken out.
const ABSENT_BYTES: usize = usize::MAX;

const fn list_bytes(bytes: usize) -> usize {
    bytes.div_ceil(PIECE_BYTES) * WORD_BYTES
}

/// Length of piece `piece` of a value of `bytes`.
const fn piece_bytes(bytes: usize, piece: usize) -> usize {
    let rest = bytes - piece * PIECE_BYTES;
    if rest < PIECE_BYTES { rest } else { PIECE_BYTES }
}

impl ValueHead {
    /// No value: for a reader the key is missing.
    pub const ABSENT: ValueHead = ValueHead { bytes: ABSENT_BYTES, payload: [0; 2] };

    #[inline(always)]
    pub const fn is_absent(self) -> bool {
        self.bytes == ABSENT_BYTES
    }

    /// Bytes of the value's first block, 0 for one that lies in its slot.
    const fn block_bytes(self) -> usize {
        if self.bytes <= INLINE_BYTES_MAX || self.is_absent() {
            0
        } else if self.bytes <= PIECE_BYTES {
            self.bytes
        } else {
            list_bytes(self.bytes)
        }
    }

    const fn block(self) -> Offset {
        Offset(self.payload[0])
    }

    /// Pieces of 8 KiB it is cut into, 0 for one that is not.
    pub const fn pieces(self) -> usize {
        if self.bytes > PIECE_BYTES { self.bytes.div_ceil(PIECE_BYTES) } else { 0 }
    }

    /// Stores a value, at most `VALUE_BYTES_MAX`, in blocks of its own. The caller has passed a release fence since the last free.
    /// `None`: no room, nothing kept.
    pub fn create(space: &Space, alloc: &mut Allocator, value: &[u8], purpose: Purpose) -> Option<ValueHead> {
        let mut head = ValueHead { bytes: value.len(), payload: [0; 2] };
        if value.len() <= INLINE_BYTES_MAX {
            for (word, content) in head.payload.iter_mut().zip(super::words::le_words(value)) {
                *word = content;
            }
            return Some(head);
        }
        let words = space.words();
        let block = alloc.allocate(space, Kind::Value, head.block_bytes(), purpose)?;
        head.payload[0] = block.0;
        if head.pieces() == 0 {
            words.copy_in(block, value);
            alloc.count_value(head.bytes);
            return Some(head);
        }
        for (index, piece) in value.chunks(PIECE_BYTES).enumerate() {
            let Some(at) = alloc.allocate(space, Kind::Value, piece.len(), purpose) else {
                (0..index).for_each(|done| alloc.free(words, Offset(words.load(block, done))));
                alloc.free(words, block);
                return None;
            };
            words.store(block, index, at.0);
            words.copy_in(at, piece);
        }
        alloc.count_value(head.bytes);
        Some(head)
    }

    /// Copies what lies on evacuated pages elsewhere: one piece at least, and more while `bytes_left`, from which the copied bytes are
    /// taken, lasts. The caller has passed a release fence since the last free.
    /// Output: the same value, to be swapped in; the caller then calls `free_replaced` of the old one. `Ok(None)`: nothing of it lies there.
    /// Errors: `NoRoom`, nothing kept.
    pub fn relocate(self, space: &Space, alloc: &mut Allocator, bytes_left: &mut usize) -> Result<Option<ValueHead>, NoRoom> {
        let words = space.words();
        let is_due = |alloc: &Allocator, index| alloc.is_evacuated(Offset(words.load(self.block(), index)));
        if self.block_bytes() == 0 {
            return Ok(None);
        }
        let pieces_due = (0..self.pieces()).any(|index| is_due(alloc, index));
        if !pieces_due && !alloc.is_evacuated(self.block()) {
            return Ok(None);
        }
        let block = alloc.allocate(space, Kind::Value, self.block_bytes(), Purpose::Growth).ok_or(NoRoom)?;
        words.copy_between(self.block(), block, self.block_bytes());
        *bytes_left = bytes_left.saturating_sub(self.block_bytes());
        let mut is_first = true;
        for index in 0..self.pieces() {
            let bytes = piece_bytes(self.bytes, index);
            if !is_due(alloc, index) || !is_first && bytes > *bytes_left {
                continue;
            }
            // What was copied is complete at any time, so without room for a piece the rest may as well be used.
            let Some(piece) = alloc.allocate(space, Kind::Value, bytes, Purpose::Growth) else { break };
            words.copy_between(Offset(words.load(block, index)), piece, bytes);
            words.store(block, index, piece.0);
            *bytes_left = bytes_left.saturating_sub(bytes);
            is_first = false;
        }
        Ok(Some(ValueHead { bytes: self.bytes, payload: [block.0, self.payload[1]] }))
    }

    /// Gives back the blocks of a value that its copy does not share; the cell has been swapped to the copy before.
    pub fn free_replaced(self, copy: ValueHead, words: Words<'_>, alloc: &mut Allocator) {
        for index in 0..self.pieces() {
            let piece = words.load(self.block(), index);
            if piece != words.load(copy.block(), index) {
                alloc.free(words, Offset(piece));
            }
        }
        alloc.free(words, self.block());
    }

    /// Gives the blocks back; the cell has been swapped or retired before.
    pub fn free(self, words: Words<'_>, alloc: &mut Allocator) {
        if self.block_bytes() == 0 {
            return;
        }
        alloc.discount_value(self.bytes);
        for index in 0..self.pieces() {
            alloc.free(words, Offset(words.load(self.block(), index)));
        }
        alloc.free(words, self.block());
    }

    /// Copies the first `out.len()` bytes, at most the value's length. For owner and readers; a reader checks the version afterwards.
    #[inline]
    pub fn copy_out(self, words: Words<'_>, out: &mut [u8]) -> Result<(), OutOfRange> {
        if self.bytes <= INLINE_BYTES_MAX {
            let mut bytes = [0; INLINE_BYTES_MAX];
            bytes[..8].copy_from_slice(&self.payload[0].to_le_bytes());
            bytes[8..].copy_from_slice(&self.payload[1].to_le_bytes());
            out.copy_from_slice(bytes.get(..out.len()).ok_or(OutOfRange)?);
            return Ok(());
        }
        if self.bytes <= PIECE_BYTES {
            return words.copy_out(self.block(), out);
        }
        for (index, piece) in out.chunks_mut(PIECE_BYTES).enumerate() {
            // The list was published before the version, and this thread has seen the version: no acquire is needed here.
            words.copy_out(Offset(words.get(self.block(), index)?), piece)?;
        }
        Ok(())
    }

    /// Claims the blocks when a region is opened. Errors: the place, and why it cannot be.
    pub fn claim(self, words: Words<'_>, alloc: &mut Allocator, cell: Offset) -> Result<(), (Offset, &'static str)> {
        if self.is_absent() {
            return Ok(());
        }
        if self.bytes > VALUE_BYTES_MAX {
            return Err((cell, "the value is longer than a value can be"));
        }
        if self.block_bytes() == 0 {
            return Ok(());
        }
        alloc.claim(self.block(), Kind::Value, self.block_bytes()).map_err(|what| (cell, what))?;
        alloc.count_value(self.bytes);
        for index in 0..self.pieces() {
            let place = self.block().plus((index * WORD_BYTES) as u64);
            let piece = words.get(self.block(), index).map_err(|_| (place, "the list of pieces lies outside the file"))?;
            alloc.claim(Offset(piece), Kind::Value, piece_bytes(self.bytes, index)).map_err(|what| (place, what))?;
        }
        Ok(())
    }
}
