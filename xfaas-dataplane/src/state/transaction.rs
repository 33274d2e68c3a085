//! Several writes of one session that take effect together: the owner's `Region::write_many`. Called where an `--atomic` invocation ends.
//!
//! 1. Prepare: every cell gets its new value beside the one in force, marked with the transaction's number; new keys are linked with no
//!    value in force. All memory is allocated here, so what is refused is refused here, and given up with nothing ever visible.
//! 2. Commit: one store of the number into the session's commit word. From then on every reader, and whoever maps the region after a kill,
//!    takes the new values.
//! 3. Roll forward: each cell is made to say the same by itself, what it held is freed, deleted keys are unlinked.
//!
//! A kill in 1 leaves marks of a number that was not committed, in 3 of one that was: the scan at open drops or finishes them.

use xfaas_common::limits::SESSION_KEYS_MAX;

use super::alloc::Purpose;
use super::cell;
use super::error::StateError;
use super::layout::{HEADER, WORD_RECLAIM};
use super::namespace::{self, NamespaceRef};
use super::region::{Region, check_sizes, free_cell};
use super::scan::AbsentCell;
use super::value::ValueHead;
use super::words::{Offset, release_fence};

/// Places for touched cells whose memory is kept between transactions.
const TOUCHED_KEPT_MAX: usize = 4_096;

/// A transaction under way.
struct Transaction {
    record: Offset,
    number: u64,
    /// What the session will hold: bytes of keys and values, and keys.
    bytes: u64,
    keys: u64,
}

impl Region {
    /// Applies all writes, visible at once by a single store, or none. A key with `None` is deleted, a missing one is left so; of several
    /// writes to one key the last counts.
    ///
    /// Keys, values and `session_bytes_max` are as for `write`; what counts is what the session would hold with all writes done.
    /// Errors: all of `StateError`, nothing changed. Cost: about two single writes each; the memory of all old and new values at once.
    pub fn write_many<'w>(
        &mut self,
        ns: NamespaceRef,
        writes: impl IntoIterator<Item = (&'w [u8], Option<&'w [u8]>)>,
        session_bytes_max: usize,
    ) -> Result<(), StateError> {
        let record = self.record(ns).ok_or(StateError::NoNamespace)?;
        let words = self.space.words();
        release_fence();
        let (bytes_before, keys_before) = namespace::size(words, record);
        let committed = namespace::committed(words, record).expect("a record lies inside the region");
        let mut transaction = Transaction { record, number: committed + 1, bytes: bytes_before, keys: keys_before };
        let prepared = writes.into_iter().try_for_each(|(key, value)| self.prepare(&mut transaction, key, value));
        let Transaction { number, bytes, keys, .. } = transaction;
        let is_too_large = bytes > bytes_before && bytes > session_bytes_max as u64;
        let result = match prepared {
            Ok(()) if is_too_large => Err(StateError::SessionFull { bytes: bytes as usize, bytes_max: session_bytes_max }),
            Ok(()) if keys > keys_before && keys > SESSION_KEYS_MAX as u64 => Err(StateError::TooManyKeys),
            prepared => prepared,
        };
        match result {
            Ok(()) => {
                if !self.touched.is_empty() {
                    namespace::commit(self.space.words(), record, number);
                }
                self.roll_forward(record);
                namespace::set_size(self.space.words(), record, bytes, keys);
                self.totals.bytes = self.totals.bytes - bytes_before + bytes;
                self.totals.keys = self.totals.keys - keys_before + keys;
            }
            Err(_) => self.give_up(record),
        }
        self.touched.clear();
        self.touched.shrink_to(TOUCHED_KEPT_MAX);
        self.compact_after_change();
        self.note_refusal(result.as_ref().err());
        result
    }

    /// Step 1 for one write.
    fn prepare(&mut self, transaction: &mut Transaction, key: &[u8], value: Option<&[u8]>) -> Result<(), StateError> {
        check_sizes(key, value.unwrap_or_default())?;
        let words = self.space.words();
        let hash = self.secret.hash(key);
        let found = namespace::find_key(words, transaction.record, hash, key).expect("the owner's tables lead into the region");
        let before = match found {
            Some(cell) => self.prepare_cell(transaction.number, cell, value)?,
            None => {
                let Some(value) = value else { return Ok(()) };
                self.prepare_new(transaction, hash, key, value)?;
                ValueHead::ABSENT
            }
        };
        // The sums never fall below zero: what is taken off was counted when it came.
        if !before.is_absent() {
            transaction.bytes -= (key.len() + before.bytes) as u64;
            transaction.keys -= 1;
        }
        if let Some(value) = value {
            transaction.bytes += (key.len() + value.len()) as u64;
            transaction.keys += 1;
        }
        Ok(())
    }

    /// Output: what the key held so far, counting this transaction's own earlier write.
    fn prepare_cell(&mut self, number: u64, cell: Offset, value: Option<&[u8]>) -> Result<ValueHead, StateError> {
        let Region { space, alloc, touched, .. } = self;
        let words = space.words();
        let (earlier, in_force) = (cell::pending_value(words, cell), cell::value(words, cell));
        let head = match value {
            None => ValueHead::ABSENT,
            Some(value) => {
                // The reserve is repaid when this is rolled forward, by a value of the same blocks.
                let purpose = if value.len() == in_force.bytes && earlier.is_none() { Purpose::Overwrite } else { Purpose::Growth };
                ValueHead::create(space, alloc, value, purpose).ok_or(StateError::RegionFull)?
            }
        };
        cell::prepare(words, cell, number, head);
        match earlier {
            Some(earlier) => earlier.free(words, alloc), // no reader ever followed it
            None => touched.push(cell),
        }
        Ok(earlier.unwrap_or(in_force))
    }

    /// A cell for a key that the session does not have, linked with no value in force.
    fn prepare_new(&mut self, transaction: &Transaction, hash: u64, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        let Region { space, alloc, secret, touched, .. } = self;
        let words = space.words();
        let cell = alloc.allocate(space, cell::KIND, cell::cell_bytes(key.len()), Purpose::Growth).ok_or(StateError::RegionFull)?;
        let Some(head) = ValueHead::create(space, alloc, value, Purpose::Growth) else {
            alloc.free(words, cell);
            return Err(StateError::RegionFull);
        };
        cell::create(words, cell, key, ValueHead::ABSENT);
        cell::prepare(words, cell, transaction.number, head);
        if namespace::insert_key(space, alloc, *secret, transaction.record, hash, cell).is_err() {
            head.free(words, alloc); // the cell was never linked, so no reader can have it
            alloc.free(words, cell);
            return Err(StateError::RegionFull);
        }
        touched.push(cell);
        Ok(())
    }

    /// Step 3.
    fn roll_forward(&mut self, record: Offset) {
        for index in 0..self.touched.len() {
            let cell = self.touched[index];
            let words = self.space.words();
            let old = cell::roll_forward(words, cell);
            old.free(words, &mut self.alloc);
            if cell::value(words, cell).is_absent() {
                self.remove_cell(record, cell);
            }
        }
    }

    /// Undoes step 1.
    fn give_up(&mut self, record: Offset) {
        for index in 0..self.touched.len() {
            let cell = self.touched[index];
            let words = self.space.words();
            let head = cell::pending_value(words, cell).expect("a touched cell has a pending write");
            cell::give_up(words, cell);
            head.free(words, &mut self.alloc);
            if cell::value(words, cell).is_absent() {
                self.remove_cell(record, cell);
            }
        }
    }

    /// Takes out the cells without a value that a kill left, before the region is used.
    pub(super) fn remove_absent(&mut self, absent: &[AbsentCell]) {
        release_fence();
        for AbsentCell { record, cell } in absent {
            self.remove_cell(*record, *cell);
        }
    }

    /// Unlinks a cell that holds no value, and frees it.
    fn remove_cell(&mut self, record: Offset, cell: Offset) {
        let Region { space, alloc, secret, .. } = self;
        let words = space.words();
        namespace::remove_key(words, alloc, record, namespace::key_hash(words, *secret, cell), cell);
        words.bump(HEADER, WORD_RECLAIM);
        free_cell(words, alloc, cell);
    }
}
