//! A region: the state of one app on one shard, in shared memory. This is the owner's handle, the only writer.
//! Called by the shard's thread. Reads and writes allocate nothing on the heap; a write asks the system for memory once in 256 KiB.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use xfaas_common::ids::SessionId;
use xfaas_common::limits::{KEY_BYTES_MAX, SESSION_KEYS_MAX, VALUE_BYTES_MAX};

use super::alloc::{Allocator, Purpose};
use super::class::PAGE_BYTES;
use super::compact::{Budget, Compactor, Scope};
use super::error::{RegionError, StateError};
use super::hash::Secret;
use super::layout::{self, HEADER, Kind, RegionOptions, WORD_INCARNATIONS, WORD_RECLAIM};
use super::namespace::{self, NamespaceRef};
use super::open;
use super::reader::RegionReader;
use super::snapshot::{KeyList, SnapshotSink};
use super::space::Space;
use super::table::{Leaves, Table};
use super::value::ValueHead;
use super::words::{Offset, WORD_BYTES, Words, release_fence};
use super::{cell, scan};

/// Parts of a region that `Region::sessions_of` gives one at a time.
pub const SESSION_BUCKETS: usize = 1 << layout::ROOT_BITS;

pub(super) const SESSIONS: Table = Table { root: layout::ROOT, root_bits: layout::ROOT_BITS };

/// Of the work of `Region::compact_some`, the part for records of sessions.
const RECORD_PART: usize = 2;

/// Figures of a region, all of this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionStats {
    /// Bytes of pages the region may take.
    pub bytes_max: u64,
    /// Bytes of pages taken by a size class: what is not left for others.
    pub bytes_used: u64,
    /// Bytes of blocks in use, records and tables included.
    pub bytes_blocks: u64,
    /// Of `bytes_blocks`, what the blocks hold: values to the byte, records and tables as they are.
    pub bytes_held: u64,
    /// Bytes of keys and values, as the sessions' limits count them.
    pub bytes_live: u64,
    pub sessions: u64,
    pub keys: u64,
}

/// The part of the pages taken that holds nothing: free blocks, and what values leave of theirs. 0..=1; 0 when no page is taken.
/// Input: `RegionStats::bytes_held` and `bytes_used`, or sums of them.
pub fn fragmentation(bytes_held: u64, bytes_used: u64) -> f64 {
    if bytes_used == 0 { 0.0 } else { 1.0 - bytes_held as f64 / bytes_used as f64 }
}

impl RegionStats {
    /// See `fragmentation`.
    pub fn fragmentation(&self) -> f64 {
        fragmentation(self.bytes_held, self.bytes_used)
    }
}

/// A value of the owner's region: nothing is written while it is borrowed.
#[derive(Clone, Copy)]
pub struct OwnedValue<'a> {
    words: Words<'a>,
    head: ValueHead,
}

impl OwnedValue<'_> {
    /// Copies as much as fits into `buf`. Output: the value's full length in bytes.
    #[inline]
    pub fn copy_out(self, buf: &mut [u8]) -> usize {
        let copied = self.head.bytes.min(buf.len());
        self.head.copy_out(self.words, &mut buf[..copied]).expect("the owner's values lie inside the region");
        self.head.bytes
    }
}

/// A key as `Region::keys` gives it.
#[derive(Clone, Copy)]
pub struct StateKey {
    length: u8,
    bytes: [u8; KEY_BYTES_MAX],
    value_bytes: usize,
}

impl StateKey {
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Length of the key's value.
    pub const fn value_bytes(&self) -> usize {
        self.value_bytes
    }
}

/// The owner's handle of a region. One writer: the file is locked as long as this lives.
pub struct Region {
    pub(super) space: Space,
    pub(super) alloc: Allocator,
    pub(super) secret: Secret,
    path: PathBuf,
    pub(super) totals: scan::Totals,
    /// Cells with a pending write, while a transaction is made; kept for its memory.
    pub(super) touched: Vec<Offset>,
    pub(super) compactor: Compactor,
    pub(super) record_compactor: Compactor,
    refusals: u64,
}

impl Region {
    /// Maps the region at `path`, checking all of it, or makes an empty one when there is no such file.
    ///
    /// Cost: about 0.3 us a session or key. Errors: all of `RegionError`; a file that is refused stays where it is, its sessions untouched.
    pub fn open_or_create(path: &Path, options: &RegionOptions<'_>) -> Result<Region, RegionError> {
        let (space, header, pages) = open::open_or_create(path, options)?;
        let words = space.words();
        let fresh = open::begin(words)?;
        let mut alloc = Allocator::new(pages.max(fresh));
        let (totals, absent) = scan::scan(words, &mut alloc, fresh, header.secret)?;
        let (compactor, record_compactor) = (Compactor::new(Scope::Contents), Compactor::new(Scope::Records));
        let (secret, path, touched) = (header.secret, path.to_owned(), Vec::new());
        let refusals = 0;
        let mut region = Region { secret, space, alloc, path, totals, touched, compactor, record_compactor, refusals };
        region.remove_absent(&absent);
        Ok(region)
    }

    /// A handle for lock-free reads from other threads of this process.
    pub fn reader(&self) -> RegionReader {
        RegionReader::new(Arc::clone(&self.space.memory), self.secret)
    }

    /// Names this region among all that ever were: a region made anew in its place has another one.
    pub fn identity(&self) -> u64 {
        self.secret.hash(b"the identity of a region")
    }

    /// The region's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The namespace of a session, if it has one. `table_hash`: `SessionHash::table_hash` of it, always under the same keys.
    pub fn find(&self, session: &SessionId, table_hash: u32) -> Option<NamespaceRef> {
        let words = self.space.words();
        let hash = self.secret.session_hash(session, table_hash);
        let found = SESSIONS.find(words, hash, |record| namespace::is_of(words, record, session));
        let record = found.expect("the owner's tables lead into the region")?;
        let incarnation = namespace::incarnation(words, record).expect("a record lies inside the region");
        Some(NamespaceRef { record, incarnation })
    }

    /// The namespace of a session, made empty if it has none. Errors: `RegionFull`.
    pub fn find_or_create(&mut self, session: &SessionId, table_hash: u32) -> Result<NamespaceRef, StateError> {
        self.find(session, table_hash).map_or_else(|| self.create(session, table_hash), Ok)
    }

    /// The namespace of a session that has none, empty. Errors: `RegionFull`.
    pub(super) fn create(&mut self, session: &SessionId, table_hash: u32) -> Result<NamespaceRef, StateError> {
        let begun = self.begin(session, table_hash)?;
        self.link(begun).map(|()| begun)
    }

    /// A namespace to which nothing leads yet: no reader finds it, nor does whoever maps the region after a kill. `link` makes it the session's,
    /// `abandon` frees it. Errors: `RegionFull`.
    pub(super) fn begin(&mut self, session: &SessionId, table_hash: u32) -> Result<NamespaceRef, StateError> {
        release_fence();
        let Region { space, alloc, .. } = self;
        let bytes = namespace::record_bytes(usize::from(session.length()));
        let Some(record) = alloc.allocate(space, Kind::Namespace, bytes, Purpose::Growth) else {
            self.note_refusal(Some(&StateError::RegionFull));
            return Err(StateError::RegionFull);
        };
        let words = space.words();
        words.bump(HEADER, WORD_INCARNATIONS); // before use: a crash may waste a number, never give it out twice
        let incarnation = words.load(HEADER, WORD_INCARNATIONS);
        namespace::create(words, record, session, table_hash, incarnation);
        Ok(NamespaceRef { record, incarnation })
    }

    /// Makes a namespace that was begun its session's, with all that it holds by now, by one store. Errors: `RegionFull`; then it is gone.
    pub(super) fn link(&mut self, begun: NamespaceRef) -> Result<(), StateError> {
        release_fence();
        let Region { space, alloc, secret, .. } = self;
        let hash = namespace::hash(space.words(), begun.record, *secret);
        let inserted = SESSIONS.insert(space, alloc, hash, begun.record, |record| namespace::hash(space.words(), record, *secret));
        if inserted.is_err() {
            self.abandon(begun);
            self.note_refusal(Some(&StateError::RegionFull));
            return Err(StateError::RegionFull);
        }
        self.totals.sessions += 1;
        Ok(())
    }

    /// Frees a namespace that was begun and not linked, with all that it holds.
    pub(super) fn abandon(&mut self, begun: NamespaceRef) {
        release_fence();
        self.free_namespace(begun.record);
    }

    /// The record behind a reference, unless the namespace was removed since.
    #[inline(always)]
    pub(super) fn record(&self, ns: NamespaceRef) -> Option<Offset> {
        let is_record = self.alloc.kind_of(ns.record) == Some(Kind::Namespace);
        (is_record && namespace::incarnation(self.space.words(), ns.record) == Ok(ns.incarnation)).then_some(ns.record)
    }

    #[inline(always)]
    fn find_cell(&self, ns: NamespaceRef, key: &[u8]) -> Option<Offset> {
        let record = self.record(ns)?;
        namespace::find_key(self.space.words(), record, self.secret.hash(key), key).expect("the owner's tables lead into the region")
    }

    /// Copies the value of `key` into `buf`, as much as fits, and returns its full length in bytes. `None`: no such key, or no such
    /// namespace any more. Never blocks, never allocates.
    #[inline]
    pub fn read(&self, ns: NamespaceRef, key: &[u8], buf: &mut [u8]) -> Option<usize> {
        self.value(ns, key).map(|value| value.copy_out(buf))
    }

    /// The value of `key`, still to be copied. `None` as in `read`.
    #[inline]
    pub fn value(&self, ns: NamespaceRef, key: &[u8]) -> Option<OwnedValue<'_>> {
        let words = self.space.words();
        let head = cell::value(words, self.find_cell(ns, key)?);
        Some(OwnedValue { words, head })
    }

    /// Copies the values of `keys` into `sink`; all are missing when the namespace is gone. For readers elsewhere: `RegionReader::snapshot`.
    pub fn snapshot(&self, ns: NamespaceRef, keys: KeyList<'_>, sink: &mut impl SnapshotSink) {
        let words = self.space.words();
        sink.begin();
        for key in keys.iter() {
            if sink.has_own(key) {
                continue;
            }
            let Some(value) = self.find_cell(ns, key).map(|cell| cell::value(words, cell)) else {
                sink.missing();
                continue;
            };
            value.copy_out(words, sink.value(value.bytes)).expect("the owner's values lie inside the region");
        }
    }

    /// Length in bytes of the value of `key`.
    pub fn value_bytes(&self, ns: NamespaceRef, key: &[u8]) -> Option<usize> {
        Some(cell::value(self.space.words(), self.find_cell(ns, key)?).bytes)
    }

    /// Sets `key` to `value`: visible at once and whole, or refused with nothing changed.
    ///
    /// `key`: 1..=255 bytes; `value`: 0..=1 MiB; `session_bytes_max`: bytes of keys and values the session may hold. A session that is
    /// over it (the limit may have been lowered) can still be overwritten with values that are not longer.
    /// Errors: all of `StateError`. Cost: no allocation on the heap; a system call when 256 KiB of fresh memory are begun.
    pub fn write(&mut self, ns: NamespaceRef, key: &[u8], value: &[u8], session_bytes_max: usize) -> Result<(), StateError> {
        check_sizes(key, value)?;
        let record = self.record(ns).ok_or(StateError::NoNamespace)?;
        let hash = self.secret.hash(key);
        let found = namespace::find_key(self.space.words(), record, hash, key).expect("the owner's tables lead into the region");
        release_fence();
        let written = match found {
            Some(cell) => self.overwrite(record, cell, value, session_bytes_max),
            None => self.insert(record, hash, key, value, session_bytes_max),
        };
        self.compact_after_change();
        self.note_refusal(written.as_ref().err());
        written
    }

    #[inline(always)]
    pub(super) fn note_refusal(&mut self, error: Option<&StateError>) {
        if let Some(StateError::RegionFull) = error {
            self.refusals += 1;
        }
    }

    /// How often something was refused for want of memory, since the region was opened.
    pub fn refusals(&self) -> u64 {
        self.refusals
    }

    /// A little compaction goes with each change of a region that needs it, so that it keeps up however busy the shard is.
    #[inline(always)]
    pub(super) fn compact_after_change(&mut self) {
        if self.alloc.is_wasteful() || !self.compactor.is_resting() {
            self.compactor.step(&self.space, &mut self.alloc);
        }
    }

    /// Compaction at regular times: moves up to `bytes_max` bytes and a block, and looks at a key for each 32 of them. Sessions may be
    /// moved, and references to them are gone then, but for those of which `is_held` (session, table hash) says that they are needed.
    /// True when there is more to do. Cost: with 64 KiB some 0.2 ms while there is something to do, else nothing.
    pub fn compact_some(&mut self, bytes_max: usize, is_held: &mut dyn FnMut(&SessionId, u32) -> bool) -> bool {
        let Region { space, alloc, compactor, record_compactor, .. } = self;
        let has_more = compactor.work(space, alloc, Budget::of_bytes(bytes_max), is_held);
        record_compactor.work(space, alloc, Budget::of_bytes(bytes_max / RECORD_PART), is_held) || has_more
    }

    #[inline(always)]
    fn overwrite(&mut self, record: Offset, cell: Offset, value: &[u8], session_bytes_max: usize) -> Result<(), StateError> {
        let Region { space, alloc, totals, .. } = self;
        let words = space.words();
        let old = cell::value(words, cell);
        let (bytes, keys) = namespace::size(words, record);
        let bytes_after = bytes - old.bytes as u64 + value.len() as u64;
        if bytes_after > bytes && bytes_after > session_bytes_max as u64 {
            return Err(StateError::SessionFull { bytes: bytes_after as usize, bytes_max: session_bytes_max });
        }
        // The reserve is repaid below only by a value of the same blocks.
        let purpose = if value.len() == old.bytes { Purpose::Overwrite } else { Purpose::Growth };
        let head = ValueHead::create(space, alloc, value, purpose).ok_or(StateError::RegionFull)?;
        namespace::change(words, record, || cell::swap(words, cell, head));
        old.free(words, alloc);
        namespace::set_size(words, record, bytes_after, keys);
        totals.bytes = totals.bytes - bytes + bytes_after;
        Ok(())
    }

    fn insert(&mut self, record: Offset, hash: u64, key: &[u8], value: &[u8], session_bytes_max: usize) -> Result<(), StateError> {
        let Region { space, alloc, totals, secret, .. } = self;
        let words = space.words();
        let (bytes, keys) = namespace::size(words, record);
        let bytes_after = bytes + (key.len() + value.len()) as u64;
        if keys >= SESSION_KEYS_MAX as u64 {
            return Err(StateError::TooManyKeys);
        }
        if bytes_after > session_bytes_max as u64 {
            return Err(StateError::SessionFull { bytes: bytes_after as usize, bytes_max: session_bytes_max });
        }
        let cell = alloc.allocate(space, cell::KIND, cell::cell_bytes(key.len()), Purpose::Growth).ok_or(StateError::RegionFull)?;
        let Some(head) = ValueHead::create(space, alloc, value, Purpose::Growth) else {
            alloc.free(words, cell);
            return Err(StateError::RegionFull);
        };
        cell::create(words, cell, key, head);
        if namespace::insert_key(space, alloc, *secret, record, hash, cell).is_err() {
            head.free(words, alloc); // the cell was never linked, so no reader can have it
            alloc.free(words, cell);
            return Err(StateError::RegionFull);
        }
        namespace::set_size(words, record, bytes_after, keys + 1);
        totals.bytes += bytes_after - bytes;
        totals.keys += 1;
        Ok(())
    }

    /// Removes a key. False: there was none.
    pub fn delete(&mut self, ns: NamespaceRef, key: &[u8]) -> bool {
        let (Some(record), Some(cell)) = (self.record(ns), self.find_cell(ns, key)) else { return false };
        release_fence();
        let Region { space, alloc, totals, secret, .. } = self;
        let words = space.words();
        namespace::remove_key(words, alloc, record, secret.hash(key), cell);
        words.bump(HEADER, WORD_RECLAIM);
        let freed_bytes = live_bytes(words, cell);
        free_cell(words, alloc, cell);
        let (bytes, keys) = namespace::size(words, record);
        namespace::set_size(words, record, bytes - freed_bytes, keys - 1);
        totals.bytes -= freed_bytes;
        totals.keys -= 1;
        self.compact_after_change();
        true
    }

    /// Removes a namespace with all its keys; a reference to one that is gone already is taken as done.
    /// Cost: about 0.1 us a key, 65,536 of them at most.
    pub fn remove(&mut self, ns: NamespaceRef) {
        let Some(record) = self.record(ns) else { return };
        release_fence();
        let Region { space, alloc, secret, .. } = self;
        let words = space.words();
        let removed = SESSIONS.remove(words, alloc, namespace::hash(words, record, *secret), record);
        assert!(removed, "a record in use is in the session table");
        self.free_namespace(record);
        self.totals.sessions -= 1;
        self.compact_after_change();
    }

    /// Frees a record to which nothing leads any more, and all below it.
    fn free_namespace(&mut self, record: Offset) {
        let Region { space, alloc, totals, .. } = self;
        let words = space.words();
        namespace::retire(words, record);
        // Before any cell's version: a reader that still got to one of them must see that its walk is void.
        words.bump(HEADER, WORD_RECLAIM);
        for cell in namespace::cells(words, record) {
            totals.bytes -= live_bytes(words, cell);
            free_cell(words, alloc, cell);
            totals.keys -= 1;
        }
        if let Some(table) = namespace::table(words, record).expect("a record lies inside the region") {
            table.free_nodes(words, alloc);
        }
        alloc.free(words, record);
    }

    /// The keys of a namespace with the lengths of their values, in no particular order; none when it is gone.
    pub fn keys(&self, ns: NamespaceRef) -> impl Iterator<Item = StateKey> {
        let words = self.space.words();
        self.record(ns).into_iter().flat_map(move |record| namespace::cells(words, record)).map(move |cell| {
            let length = cell::key_bytes(words, cell);
            let mut key = StateKey { length: length as u8, bytes: [0; KEY_BYTES_MAX], value_bytes: cell::value(words, cell).bytes };
            cell::copy_key(words, cell, &mut key.bytes[..length]);
            key
        })
    }

    /// Bytes of keys and values of a namespace, and its keys.
    pub fn namespace_size(&self, ns: NamespaceRef) -> Option<(u64, u64)> {
        Some(namespace::size(self.space.words(), self.record(ns)?))
    }

    /// Rises with each change of what a namespace holds, and when compaction moves a part of it.
    pub fn namespace_sequence(&self, ns: NamespaceRef) -> Option<u64> {
        let sequence = namespace::sequence(self.space.words(), self.record(ns)?);
        sequence.expect("a record lies inside the region")
    }

    /// All sessions with their bytes of keys and values and their keys, in no particular order.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, u64, u64)> {
        let words = self.space.words();
        SESSIONS.leaves(words).map(move |record| {
            let (session, _) = namespace::session(words, record).expect("the record was checked when the region was opened");
            let (bytes, keys) = namespace::size(words, record);
            (session, bytes, keys)
        })
    }

    /// The sessions of one of `SESSION_BUCKETS` parts of the region, which together are all of it.
    pub fn sessions_of(&self, bucket: usize) -> impl Iterator<Item = (SessionId, NamespaceRef)> {
        let words = self.space.words();
        assert!(bucket < SESSION_BUCKETS, "a bucket is a link of the session table's root");
        Leaves::new(words, layout::ROOT.plus((bucket * WORD_BYTES) as u64), 1).map(move |record| {
            let (session, _) = namespace::session(words, record).expect("the record was checked when the region was opened");
            let incarnation = namespace::incarnation(words, record).expect("a record lies inside the region");
            (session, NamespaceRef { record, incarnation })
        })
    }

    pub fn stats(&self) -> RegionStats {
        RegionStats {
            bytes_max: u64::from(self.alloc.pages_max()) * PAGE_BYTES as u64,
            bytes_used: self.alloc.page_bytes_used(),
            bytes_blocks: self.alloc.block_bytes_used(),
            bytes_held: self.alloc.value_bytes() + self.alloc.record_bytes_used(),
            bytes_live: self.totals.bytes,
            sessions: self.totals.sessions,
            keys: self.totals.keys,
        }
    }
}

const _: fn() = || {
    fn moves_to_another_thread<T: Send>() {}
    fn is_shared_between_threads<T: Send + Sync + Clone>() {}
    moves_to_another_thread::<Region>();
    is_shared_between_threads::<RegionReader>();
};

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("path", &self.path).field("stats", &self.stats()).finish()
    }
}

/// Errors: `BadKey`, `ValueTooLarge`.
#[inline(always)]
pub(super) fn check_sizes(key: &[u8], value: &[u8]) -> Result<(), StateError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(StateError::BadKey { bytes: key.len() });
    }
    if value.len() > VALUE_BYTES_MAX {
        return Err(StateError::ValueTooLarge { bytes: value.len() });
    }
    Ok(())
}

/// Retires and frees a cell that nothing leads to any more, with its value. The caller has raised the reclaim word since.
pub(super) fn free_cell(words: Words<'_>, alloc: &mut Allocator, cell: Offset) {
    let value = cell::value(words, cell);
    cell::retire(words, cell);
    value.free(words, alloc);
    alloc.free(words, cell);
}

/// Bytes of a cell's key and value.
fn live_bytes(words: Words<'_>, cell: Offset) -> u64 {
    (cell::key_bytes(words, cell) + cell::value(words, cell).bytes) as u64
}
