//! Lock-free reads of a region beside its owner, from any thread or process that maps it. No lock, no system call, no store.
//!
//! Why a reader never returns a torn or foreign value:
//! 1. It loads the reclaim word, walks from the record (or the root) to the cell, loads the cell's version, and loads the reclaim word
//!    again. Before the owner reuses any record, node or cell, it has raised the reclaim word and passed a release fence. So if the walk
//!    saw a store into reused memory, the second load differs and the walk is void. If it does not differ, the walk saw what was linked at
//!    one time: the right cell, or rightly none. The kind in the page table and the incarnation make sure that the walk starts in the
//!    namespace meant, even if the reference is old.
//! 2. The copy is then guarded by the version alone (see `cell`), so that a long copy is not disturbed by what others free. Its word
//!    stays a version of cells as long as the retype word, loaded before the walk, has not risen.
//! 3. Offsets from a void walk may be anything: each load is checked against the mapping.
//!
//! Writes of one transaction are seen together because a cell with a pending mark is looked at through its session's commit word (`cell`).
//! The record of that word is the session's as long as the cell's version holds: a removal raises it before the record is freed.
//!
//! A snapshot reads its keys one by one like that, between two loads of the session's sequence. If the sequence was even and did not
//! rise, nothing was changed in between: a change that one of the reads saw would have raised it before. That the second load was of the
//! same session's record is seen by incarnation and retype word, loaded after it.
//!
//! Each read is a moment between its call and its return, so reads and writes of a key are linearizable: the version did not change
//! while it was copied, and a version is acknowledged only after it is visible.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xfaas_common::ids::SessionId;
use xfaas_common::limits::VALUE_BYTES_MAX;

use crate::sys::shm::SharedMemory;

use super::cell;
use super::error::{ReadRefused, RegionError};
use super::hash::Secret;
use super::layout::{self, HEADER, Kind, PageEntry, WORD_RECLAIM, WORD_RETYPE};
use super::memory::spin_loop;
use super::namespace::{self, NamespaceRef};
use super::open;
use super::region::SESSIONS;
use super::snapshot::{KeyList, SnapshotSink};
use super::value::ValueHead;
use super::words::{Offset, OutOfRange, Words, acquire_fence};

/// Tries before `Busy`. A try of a long value counts for more: one more for each of these bytes.
const TRIES_MAX: usize = 64;
const TRY_BYTES: usize = 16 << 10;

/// A shared handle for reading. Clones are cheap; any number of threads may use one.
#[derive(Clone, Debug)]
pub struct RegionReader {
    memory: Arc<SharedMemory>,
    secret: Secret,
    /// Tries in vain, of this reader and its clones.
    retries: Arc<AtomicU64>,
}

/// The versions a read is held against, loaded at its start.
#[derive(Clone, Copy)]
struct Versions {
    reclaim: u64,
    retype: u64,
}

impl Versions {
    #[inline(always)]
    fn load(words: Words<'_>) -> Result<Versions, OutOfRange> {
        // Reclaim rises after retype, so the older one is loaded first.
        let reclaim = words.get_acquire(HEADER, WORD_RECLAIM)?;
        Ok(Versions { reclaim, retype: words.get_acquire(HEADER, WORD_RETYPE)? })
    }

    /// True when nothing that was loaded since lay in memory that had been freed.
    #[inline(always)]
    fn walk_is_valid(self, words: Words<'_>) -> bool {
        acquire_fence();
        words.get(HEADER, WORD_RECLAIM) == Ok(self.reclaim)
    }

    /// True when every page of cells still is one. To be asked after the fence of `cell::is_still`.
    #[inline(always)]
    fn pages_are_valid(self, words: Words<'_>) -> bool {
        words.get(HEADER, WORD_RETYPE) == Ok(self.retype)
    }
}

/// What a try ended with.
enum Try<T> {
    Done(Result<T, ReadRefused>),
    /// The owner changed what was being read; bytes copied in vain.
    Again(usize),
}

impl RegionReader {
    pub(super) fn new(memory: Arc<SharedMemory>, secret: Secret) -> RegionReader {
        RegionReader { memory, secret, retries: Arc::default() }
    }

    /// Maps the region at `path` read-only, for another process than the owner's. When the owner opened the file with a larger
    /// `bytes_max` since, what lies beyond this mapping reads as `Busy`: map it again.
    /// Errors: `Io`, `NotARegion`, `LayoutVersion`, `HeaderChecksum`.
    pub fn open(path: &Path) -> Result<RegionReader, RegionError> {
        let (memory, header) = open::map_read_only(path)?;
        Ok(RegionReader::new(Arc::new(memory), header.secret))
    }

    /// The same of a region's descriptor, as the owner's process gives it to another. Errors: as `open`.
    pub fn from_file(file: &File) -> Result<RegionReader, RegionError> {
        let (memory, header) = open::map_file_read_only(file, Path::new("(a region's descriptor)"))?;
        Ok(RegionReader::new(Arc::new(memory), header.secret))
    }

    /// The same, of one region and no other. Errors: as `open`, and `Foreign` or `OtherHashKeys` when it is another region.
    pub fn of_file(file: &File, app: &str, shard: u16, hash_tag: u64) -> Result<RegionReader, RegionError> {
        let (memory, header) = open::map_given(file, app, shard, hash_tag)?;
        Ok(RegionReader::new(Arc::new(memory), header.secret))
    }

    #[inline(always)]
    fn words(&self) -> Words<'_> {
        Words::new(self.memory.words())
    }

    /// The namespace of a session, `Ok(None)` when it has none. Errors: `Busy`.
    pub fn find(&self, session: &SessionId, table_hash: u32) -> Result<Option<NamespaceRef>, ReadRefused> {
        let words = self.words();
        let hash = self.secret.session_hash(session, table_hash);
        self.until_done(|| {
            let Ok(versions) = Versions::load(words) else { return Try::Done(Err(ReadRefused::Busy)) };
            let found = SESSIONS.find(words, hash, |record| namespace::is_of(words, record, session));
            let found = found.and_then(|found| found.map(|record| reference(words, record)).transpose());
            match found {
                Ok(found) if versions.walk_is_valid(words) => Try::Done(Ok(found)),
                _ => Try::Again(0),
            }
        })
    }

    /// Copies the value of `key` into `buf`, as much as fits; its full length in bytes, or `Ok(None)` when there is no such key.
    /// After an error `buf` holds bytes that mean nothing.
    ///
    /// Errors: `Busy` when the owner changed the value during each of up to 64 tries (three for 1 MiB), `Gone` when the namespace was
    /// removed.
    pub fn read(&self, ns: NamespaceRef, key: &[u8], buf: &mut [u8]) -> Result<Option<usize>, ReadRefused> {
        let words = self.words();
        let hash = self.secret.hash(key);
        self.until_done(|| {
            let outcome = try_read(words, ns, hash, key, buf).unwrap_or(Try::Again(0));
            if let Try::Again(copied) = outcome {
                buf[..copied].fill(0); // it may be another session's, and none of it may stay behind the end of a shorter value
            }
            outcome
        })
    }

    /// Copies the values of all `keys` into `sink`, as they were at one moment between call and return. Errors: as `read`, where any change
    /// of the session counts. After an error the sink holds bytes that mean nothing.
    pub fn snapshot(&self, ns: NamespaceRef, keys: KeyList<'_>, sink: &mut impl SnapshotSink) -> Result<(), ReadRefused> {
        let words = self.words();
        let outcome = self.until_done(|| {
            sink.begin();
            try_snapshot(words, self.secret, ns, keys, sink).unwrap_or(Try::Again(0))
        });
        if outcome.is_err() {
            sink.begin();
        }
        outcome
    }

    /// Tries of this reader and its clones that the owner disturbed, since the first of them was made.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn until_done<T>(&self, mut attempt: impl FnMut() -> Try<T>) -> Result<T, ReadRefused> {
        let mut tries = 0;
        while tries < TRIES_MAX {
            match attempt() {
                Try::Done(outcome) => return outcome,
                Try::Again(bytes) => tries += 1 + bytes / TRY_BYTES,
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            spin_loop();
        }
        Err(ReadRefused::Busy)
    }
}

fn reference(words: Words<'_>, record: Offset) -> Result<NamespaceRef, OutOfRange> {
    let incarnation = namespace::incarnation(words, record)?;
    // One that is being removed or moved: a reference without an incarnation would fit every free record.
    if incarnation == 0 { Err(OutOfRange) } else { Ok(NamespaceRef { record, incarnation }) }
}

/// True when a block of a page of namespace records begins at `at`, so that its first word is an incarnation and not a guest's bytes, nor
/// the middle of a record of another size: a reference may be older than what the page is used for.
fn is_record(words: Words<'_>, at: Offset) -> Result<bool, OutOfRange> {
    let Some(page) = layout::page_of(at) else { return Ok(false) };
    let entry = PageEntry::from_word(words.get_acquire(layout::page_entry_offset(page), 0)?);
    let begins_block = |entry: PageEntry| entry.class.block_at((at.0 - layout::page_start(page).0) as u32).1 == 0;
    Ok(matches!(entry, Ok(Some(entry)) if entry.kind == Kind::Namespace && begins_block(entry)))
}

/// What a walk found, all of one moment.
enum Found {
    Value {
        cell: Offset,
        version: u64,
        head: ValueHead,
    },
    Missing,
    Gone,
    /// The walk is void.
    Void,
}

#[inline(always)]
fn locate(words: Words<'_>, versions: Versions, ns: NamespaceRef, hash: u64, key: &[u8]) -> Result<Found, OutOfRange> {
    if !is_record(words, ns.record)? || namespace::incarnation(words, ns.record)? != ns.incarnation {
        // An incarnation is given out once, so a record that lost it never gets it back: no need to look again.
        return Ok(Found::Gone);
    }
    let found = namespace::find_key(words, ns.record, hash, key)?;
    let Some(cell) = found else {
        return Ok(if versions.walk_is_valid(words) { Found::Missing } else { Found::Void });
    };
    let version = cell::version(words, cell)?;
    if !versions.walk_is_valid(words) {
        return Ok(Found::Void);
    }
    let head = cell::value_under(words, cell, version, || namespace::committed(words, ns.record))?;
    if head.is_absent() {
        let is_missing = cell::is_still(words, cell, version) && versions.pages_are_valid(words);
        return Ok(if is_missing { Found::Missing } else { Found::Void });
    }
    Ok(Found::Value { cell, version, head })
}

fn try_read(words: Words<'_>, ns: NamespaceRef, hash: u64, key: &[u8], buf: &mut [u8]) -> Result<Try<Option<usize>>, OutOfRange> {
    let versions = Versions::load(words)?;
    let (cell, version, head) = match locate(words, versions, ns, hash, key)? {
        Found::Value { cell, version, head } => (cell, version, head),
        Found::Missing => return Ok(Try::Done(Ok(None))),
        Found::Gone => return Ok(Try::Done(Err(ReadRefused::Gone))),
        Found::Void => return Ok(Try::Again(0)),
    };
    let copied = head.bytes.min(buf.len());
    let copy = head.copy_out(words, &mut buf[..copied]);
    if copy.is_ok() && cell::is_still(words, cell, version) && versions.pages_are_valid(words) {
        return Ok(Try::Done(Ok(Some(head.bytes))));
    }
    Ok(Try::Again(copied))
}

fn try_snapshot(
    words: Words<'_>,
    secret: Secret,
    ns: NamespaceRef,
    keys: KeyList<'_>,
    sink: &mut impl SnapshotSink,
) -> Result<Try<()>, OutOfRange> {
    let first = Versions::load(words)?;
    if !is_record(words, ns.record)? || namespace::incarnation(words, ns.record)? != ns.incarnation {
        return Ok(Try::Done(Err(ReadRefused::Gone)));
    }
    let Some(sequence) = namespace::sequence(words, ns.record)? else { return Ok(Try::Again(0)) };
    let mut copied = 0;
    for key in keys.iter() {
        if sink.has_own(key) {
            continue;
        }
        // The reclaim word of this walk alone: what other sessions freed meanwhile is no reason to begin again.
        let versions = Versions::load(words)?;
        match locate(words, versions, ns, secret.hash(key), key)? {
            Found::Gone => return Ok(Try::Done(Err(ReadRefused::Gone))),
            Found::Void => return Ok(Try::Again(copied)),
            Found::Missing => sink.missing(),
            Found::Value { cell, version, head } => {
                if head.bytes > VALUE_BYTES_MAX {
                    return Ok(Try::Again(copied)); // void; a length that no value has would upset the sink's sums
                }
                let room = sink.value(head.bytes);
                copied += room.len();
                if head.copy_out(words, room).is_err() || !cell::is_still(words, cell, version) {
                    return Ok(Try::Again(copied));
                }
            }
        }
    }
    let is_same = namespace::is_sequence_still(words, ns.record, sequence)
        && namespace::incarnation(words, ns.record)? == ns.incarnation
        && first.pages_are_valid(words);
    Ok(if is_same { Try::Done(Ok(())) } else { Try::Again(copied) })
}

#[cfg(test)]
mod tests {
    use super::super::region_tests::{Scratch, open};
    use super::*;

    #[test]
    fn a_reference_into_the_middle_of_a_record_is_gone_whatever_lies_there() {
        let scratch = Scratch::new();
        let mut region = open(&scratch, 4).unwrap();
        let session = SessionId::new(&[b'x'; 64]).unwrap();
        let namespace = region.find_or_create(&session, 7).unwrap();
        region.write(namespace, b"key", b"value", 100).unwrap();
        let (reader, mut buf) = (region.reader(), [0; 8]);
        assert_eq!(reader.read(namespace, b"key", &mut buf).unwrap(), Some(5));
        for at in (8..namespace::record_bytes(64) as u64).step_by(8) {
            let record = namespace.record.plus(at);
            let incarnation = reader.words().get(record, 0).unwrap();
            let read = reader.read(NamespaceRef { record, incarnation }, b"key", &mut buf);
            assert!(matches!(read, Err(ReadRefused::Gone)), "at {at}: {read:?}");
        }
    }
}
