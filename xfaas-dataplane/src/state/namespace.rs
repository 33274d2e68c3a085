//! The record of a session namespace: who it is, and its keys. Up to four keys are linked from the record itself, more from a table.
//!
//! ```text
//! word 0      incarnation: unique in the region's life while the record is in use, 0 when free
//! word 1      sequence: rises before and after each change of what the session holds, so it is odd in between; for snapshots
//! words 2-3   bytes of keys and values; keys (for the owner's limits; counted anew at open)
//! word 4      0, or the root node of the key table: then words 7-10 mean nothing any more
//! word 5      bytes of the session ID; in the upper half the node's hash of it
//! word 6      commit: the number of the last transaction whose writes are in force
//! words 7-10  links to cells
//! words 11..  the session ID, padded with zeros
//! ```

use xfaas_common::ids::SessionId;
use xfaas_common::limits::SESSION_ID_BYTES_MAX;

use super::alloc::Allocator;
use super::cell;
use super::hash::Secret;
use super::space::Space;
use super::table::{Leaves, Link, NoRoom, Table, new_node};
use super::words::{Offset, OutOfRange, WORD_BYTES, Words, acquire_fence};

const WORD_INCARNATION: usize = 0;
const WORD_SEQUENCE: usize = 1;
const WORD_BYTES_USED: usize = 2;
const WORD_KEYS: usize = 3;
const WORD_TABLE: usize = 4;
const WORD_ID: usize = 5;
const WORD_COMMIT: usize = 6;
const WORD_LINKS: usize = 7;
const LINKS: usize = 4;
const ID_AT_BYTES: u64 = ((WORD_LINKS + LINKS) * WORD_BYTES) as u64;

/// A namespace in a region, as `find` gives it. It stays right until the namespace is removed, or moved by `Region::compact_some`; after that
/// every use of it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceRef {
    pub(super) record: Offset,
    pub(super) incarnation: u64,
}

/// Bytes of a record for a session ID of `id_bytes`.
pub(super) const fn record_bytes(id_bytes: usize) -> usize {
    ID_AT_BYTES as usize + id_bytes.next_multiple_of(WORD_BYTES)
}

/// Fills a fresh record that nothing leads to yet.
pub(super) fn create(words: Words<'_>, record: Offset, session: &SessionId, table_hash: u32, incarnation: u64) {
    words.store(record, WORD_SEQUENCE, 0);
    words.store(record, WORD_BYTES_USED, 0);
    words.store(record, WORD_KEYS, 0);
    words.store(record, WORD_TABLE, 0);
    words.store(record, WORD_ID, u64::from(session.length()) | u64::from(table_hash) << 32);
    words.store(record, WORD_COMMIT, 0);
    for slot in 0..LINKS {
        words.store(record, WORD_LINKS + slot, Link::EMPTY.0);
    }
    words.copy_in(record.plus(ID_AT_BYTES), session.as_bytes());
    words.publish(record, WORD_INCARNATION, incarnation);
}

/// Bytes of the record at `record`. For the owner.
pub(super) fn bytes_of(words: Words<'_>, record: Offset) -> usize {
    record_bytes(words.load(record, WORD_ID) as u32 as usize)
}

/// Fills a fresh record that nothing leads to yet with what another one holds.
pub(super) fn copy(words: Words<'_>, record: Offset, to: Offset) {
    let rest = (WORD_SEQUENCE * WORD_BYTES) as u64;
    words.copy_between(record.plus(rest), to.plus(rest), bytes_of(words, record) - rest as usize);
    words.publish(to, WORD_INCARNATION, words.load(record, WORD_INCARNATION));
}

/// Marks a record as free, before its block is.
pub(super) fn retire(words: Words<'_>, record: Offset) {
    words.publish(record, WORD_INCARNATION, 0);
}

/// The incarnation in force; 0 in a free record. For owner and readers.
#[inline(always)]
pub(super) fn incarnation(words: Words<'_>, record: Offset) -> Result<u64, OutOfRange> {
    words.get_acquire(record, WORD_INCARNATION)
}

/// True when the record is that session's. For owner and readers.
pub(super) fn is_of(words: Words<'_>, record: Offset, session: &SessionId) -> Result<bool, OutOfRange> {
    let id_bytes = words.get(record, WORD_ID)? as u32;
    Ok(id_bytes == u32::from(session.length()) && words.starts_with(record.plus(ID_AT_BYTES), session.as_bytes())?)
}

/// The session's ID and its node's hash. `None` when the bytes are no session ID: only in a corrupted region.
pub(super) fn session(words: Words<'_>, record: Offset) -> Option<(SessionId, u32)> {
    let id = words.get(record, WORD_ID).ok()?;
    let mut bytes = [0; SESSION_ID_BYTES_MAX];
    let bytes = bytes.get_mut(..id as u32 as usize)?;
    words.copy_out(record.plus(ID_AT_BYTES), bytes).ok()?;
    Some((SessionId::new(bytes)?, (id >> 32) as u32))
}

/// The session's hash in the session table. For the owner.
pub(super) fn hash(words: Words<'_>, record: Offset, secret: Secret) -> u64 {
    let (session, table_hash) = session(words, record).expect("the record was checked when the region was opened");
    secret.session_hash(&session, table_hash)
}

/// Bytes of keys and values, and keys.
pub(super) fn size(words: Words<'_>, record: Offset) -> (u64, u64) {
    (words.load(record, WORD_BYTES_USED), words.load(record, WORD_KEYS))
}

/// Of no consequence for a crash: counted anew at open.
pub(super) fn set_size(words: Words<'_>, record: Offset, bytes: u64, keys: u64) {
    words.store(record, WORD_BYTES_USED, bytes);
    words.store(record, WORD_KEYS, keys);
}

/// Makes a change of what the session holds; `publish` is the one store that does it, a release store. Whoever sees the change also sees
/// that the sequence rose, and whoever sees the sequence even again also sees the change.
#[inline(always)]
pub(super) fn change(words: Words<'_>, record: Offset, publish: impl FnOnce()) {
    let before = words.load(record, WORD_SEQUENCE);
    words.store(record, WORD_SEQUENCE, before.wrapping_add(1));
    publish();
    words.publish(record, WORD_SEQUENCE, before.wrapping_add(2));
}

/// Ends a change in whose middle the last owner was killed.
pub(super) fn settle_sequence(words: Words<'_>, record: Offset) {
    if words.load(record, WORD_SEQUENCE) & 1 == 1 {
        words.bump(record, WORD_SEQUENCE);
    }
}

/// The sequence, for a reader: everything changed before it rose to this is visible afterwards. `None` in the middle of a change.
pub(super) fn sequence(words: Words<'_>, record: Offset) -> Result<Option<u64>, OutOfRange> {
    let sequence = words.get_acquire(record, WORD_SEQUENCE)?;
    Ok((sequence & 1 == 0).then_some(sequence))
}

/// True when nothing loaded from the session so far was changed after `sequence`. Whether the record is still the session's is the
/// caller's to check, after this.
pub(super) fn is_sequence_still(words: Words<'_>, record: Offset, sequence: u64) -> bool {
    acquire_fence();
    words.get_acquire(record, WORD_SEQUENCE) == Ok(sequence)
}

/// The number of the last transaction whose writes are in force. For owner and readers: what it brought is visible after this.
#[inline(always)]
pub(super) fn committed(words: Words<'_>, record: Offset) -> Result<u64, OutOfRange> {
    words.get_acquire(record, WORD_COMMIT)
}

/// The one store that puts the pending writes of transaction `number` in force.
pub(super) fn commit(words: Words<'_>, record: Offset, number: u64) {
    change(words, record, || words.publish(record, WORD_COMMIT, number));
}

/// The root node of the key table, or `None` while the record's own links serve. For owner and readers.
#[inline(always)]
pub(super) fn table(words: Words<'_>, record: Offset) -> Result<Option<Table>, OutOfRange> {
    let root = words.get_acquire(record, WORD_TABLE)?;
    Ok((root != 0).then_some(Table::of_node(Offset(root))))
}

/// The place of the link to the root node of the key table.
pub(super) const fn table_word(record: Offset) -> Offset {
    record.plus((WORD_TABLE * WORD_BYTES) as u64)
}

/// The place of the record's own links, for the scan at open and for compaction.
pub(super) fn own_links(record: Offset) -> impl Iterator<Item = Offset> {
    (0..LINKS).map(move |slot| record.plus(((WORD_LINKS + slot) * WORD_BYTES) as u64))
}

/// The cell of a key. For owner and readers; only a racing reader can see `OutOfRange`.
#[inline]
pub(super) fn find_key(words: Words<'_>, record: Offset, hash: u64, key: &[u8]) -> Result<Option<Offset>, OutOfRange> {
    if let Some(table) = table(words, record)? {
        return table.find(words, hash, |cell| cell::has_key(words, cell, key));
    }
    for slot in 0..LINKS {
        let link = Link(words.get_acquire(record, WORD_LINKS + slot)?);
        if link.may_be(hash) && cell::has_key(words, link.offset(), key)? {
            return Ok(Some(link.offset()));
        }
    }
    Ok(None)
}

/// Links a cell whose key the session does not hold yet. Errors: `NoRoom`, no key added.
pub(super) fn insert_key(
    space: &Space,
    alloc: &mut Allocator,
    secret: Secret,
    record: Offset,
    hash: u64,
    cell: Offset,
) -> Result<(), NoRoom> {
    let words = space.words();
    let hash_of = |cell| key_hash(words, secret, cell);
    let table = match table(words, record).expect("a record lies inside the region") {
        Some(table) => table,
        None => {
            let free = (0..LINKS).find(|slot| words.load(record, WORD_LINKS + slot) == Link::EMPTY.0);
            if let Some(slot) = free {
                change(words, record, || words.publish(record, WORD_LINKS + slot, Link::leaf(cell, hash).0));
                return Ok(());
            }
            move_to_table(space, alloc, secret, record)?
        }
    };
    let place = table.place(space, alloc, hash, cell, hash_of)?;
    change(words, record, || place.link(words));
    Ok(())
}

/// The record's own links become a table, visible by one store.
fn move_to_table(space: &Space, alloc: &mut Allocator, secret: Secret, record: Offset) -> Result<Table, NoRoom> {
    let words = space.words();
    let table = Table::of_node(new_node(space, alloc)?);
    for slot in 0..LINKS {
        let cell = Link(words.load(record, WORD_LINKS + slot)).offset();
        let hash_of = |cell| key_hash(words, secret, cell);
        if let Err(full) = table.insert(space, alloc, hash_of(cell), cell, hash_of) {
            table.free_nodes(words, alloc); // never linked, so no reader can be in it
            return Err(full);
        }
    }
    words.publish(record, WORD_TABLE, table.root.0);
    Ok(table)
}

/// Takes a cell out of the session; the caller retires and frees it.
pub(super) fn remove_key(words: Words<'_>, alloc: &mut Allocator, record: Offset, hash: u64, cell: Offset) {
    if let Some(table) = table(words, record).expect("a record lies inside the region") {
        // The nodes that collapse with it are no change; that they do while the sequence is odd is the price of one call for both.
        change(words, record, || assert!(table.remove(words, alloc, hash, cell), "the cell was found a moment ago"));
        return;
    }
    let slot =
        (0..LINKS).find(|slot| Link(words.load(record, WORD_LINKS + slot)).offset() == cell).expect("the cell was found a moment ago");
    change(words, record, || words.publish(record, WORD_LINKS + slot, Link::EMPTY.0));
}

/// All cells of the session, for the owner.
pub(super) fn cells(words: Words<'_>, record: Offset) -> Leaves<'_> {
    match table(words, record).expect("a record lies inside the region") {
        Some(table) => table.leaves(words),
        None => Leaves::new(words, record.plus((WORD_LINKS * WORD_BYTES) as u64), LINKS),
    }
}

/// Hash of a cell's key, for the owner.
pub(super) fn key_hash(words: Words<'_>, secret: Secret, cell: Offset) -> u64 {
    with_key(words, cell, |key| secret.hash(key))
}

/// True when the bytes behind a cell's key are zero, as look-ups expect. For the owner.
pub(super) fn is_key_padded(words: Words<'_>, cell: Offset) -> bool {
    with_key(words, cell, |key| cell::has_key(words, cell, key) == Ok(true))
}

fn with_key<R>(words: Words<'_>, cell: Offset, work: impl FnOnce(&[u8]) -> R) -> R {
    let mut bytes = [0; xfaas_common::limits::KEY_BYTES_MAX];
    let bytes = &mut bytes[..cell::key_bytes(words, cell)];
    cell::copy_key(words, cell, bytes);
    work(bytes)
}
