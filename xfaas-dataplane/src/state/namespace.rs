//! The record of a session namespace: who it is, and its keys. Up to four keys are linked from the record itself, more from a table.
//!
//! ```text
//! word 0      incarnation: unique in the region's life while the record is in use, 0 when free
//! word 1      sequence: rises by two before each change of the session, for readers that want several keys of one moment
//! words 2-3   bytes of keys and values; keys (for the owner's limits; counted anew at open)
//! word 4      0, or the root node of the key table: then words 6-9 mean nothing any more
//! word 5      bytes of the session ID; in the upper half the node's hash of it
//! words 6-9   links to cells
//! words 10..  the session ID, padded with zeros
//! ```

use xfaas_common::ids::SessionId;
use xfaas_common::limits::SESSION_ID_BYTES_MAX;

use super::alloc::Allocator;
use super::cell;
use super::hash::Secret;
use super::space::Space;
use super::table::{Leaves, Link, NoRoom, Table, new_node};
use super::words::{Offset, OutOfRange, WORD_BYTES, Words, release_fence};

const WORD_INCARNATION: usize = 0;
const WORD_SEQUENCE: usize = 1;
const WORD_BYTES_USED: usize = 2;
const WORD_KEYS: usize = 3;
const WORD_TABLE: usize = 4;
const WORD_ID: usize = 5;
const WORD_LINKS: usize = 6;
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

/// To be called before each store that changes what the session holds: whoever sees the change also sees that the sequence rose.
#[inline(always)]
pub(super) fn announce_change(words: Words<'_>, record: Offset) {
    words.store(record, WORD_SEQUENCE, words.load(record, WORD_SEQUENCE).wrapping_add(2));
    release_fence();
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
                announce_change(words, record);
                words.publish(record, WORD_LINKS + slot, Link::leaf(cell, hash).0);
                return Ok(());
            }
            move_to_table(space, alloc, secret, record)?
        }
    };
    announce_change(words, record);
    table.insert(space, alloc, hash, cell, hash_of)
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
    announce_change(words, record);
    if let Some(table) = table(words, record).expect("a record lies inside the region") {
        assert!(table.remove(words, alloc, hash, cell), "the cell was found a moment ago");
        return;
    }
    let slot =
        (0..LINKS).find(|slot| Link(words.load(record, WORD_LINKS + slot)).offset() == cell).expect("the cell was found a moment ago");
    words.publish(record, WORD_LINKS + slot, Link::EMPTY.0);
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
    let mut bytes = [0; xfaas_common::limits::KEY_BYTES_MAX];
    let bytes = &mut bytes[..cell::key_bytes(words, cell)];
    cell::copy_key(words, cell, bytes);
    secret.hash(bytes)
}
