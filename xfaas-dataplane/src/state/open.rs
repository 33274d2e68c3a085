//! Opening a region's file: making a new one, or checking that an old one is what was asked for. The content is checked by `scan`.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::sys::shm::{SharedFile, SharedMemory};

use super::error::RegionError;
use super::hash::Secret;
use super::layout::{self, HEADER, Header, RegionOptions, WORD_FRESH, WORD_PAGES, WORD_RECLAIM, WORD_RETYPE};
use super::space::Space;
use super::words::{Words, release_fence};

/// The mapped file, its header, and the pages it may use.
pub(super) fn open_or_create(path: &Path, options: &RegionOptions<'_>) -> Result<(Space, Header, u32), RegionError> {
    let pages = options.pages()?;
    match SharedFile::open(path) {
        Ok(file) => open(path, file, options, pages),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, options, pages),
        Err(error) => Err(io_error("open region", path, error)),
    }
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> RegionError {
    match source.kind() {
        io::ErrorKind::WouldBlock => RegionError::InUse { path: path.to_owned() },
        _ => RegionError::Io { operation, path: path.to_owned(), source },
    }
}

/// A new region gets its name only when it is complete, so a crash in between leaves no half of one under that name.
fn create(path: &Path, options: &RegionOptions<'_>, pages: u32) -> Result<(Space, Header, u32), RegionError> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = Path::new(&draft);
    let failed = |source| io_error("create region", draft, source);
    let file = SharedFile::create(draft, layout::file_bytes(pages)).map_err(failed)?;
    file.commit(0, layout::page_entry_offset(0).0).map_err(failed)?;
    let space = Space { memory: Arc::new(file.map().map_err(failed)?), file };
    layout::write_header(space.words(), options, pages, Secret::random());
    let header = layout::read_header(space.words(), layout::file_bytes(pages))?;
    std::fs::rename(draft, path).map_err(|source| io_error("name region", path, source))?;
    Ok((space, header, pages))
}

fn open(path: &Path, file: SharedFile, options: &RegionOptions<'_>, pages_asked: u32) -> Result<(Space, Header, u32), RegionError> {
    let failed = |source| io_error("map region", path, source);
    let bytes = file.bytes().map_err(failed)?;
    if bytes < layout::file_bytes(0) {
        return Err(RegionError::NotARegion { bytes });
    }
    let memory = file.map().map_err(failed)?;
    let words = Words::new(memory.words());
    let header = layout::read_header(words, bytes)?;
    check_owner(&header, options)?;
    let pages_made = words.load(HEADER, WORD_PAGES);
    let pages_made = u32::try_from(pages_made)
        .ok()
        .filter(|pages| *pages <= layout::PAGES_MAX)
        .ok_or(RegionError::Corrupt { offset: (WORD_PAGES * 8) as u64, what: "the number of pages is larger than a region can have" })?;
    if bytes < layout::file_bytes(pages_made) {
        return Err(RegionError::Truncated { bytes, needed: layout::file_bytes(pages_made) });
    }
    if pages_asked <= pages_made {
        return Ok((Space { memory: Arc::new(memory), file }, header, pages_asked));
    }
    // The file first, then the word: a crash in between leaves a file that is longer than needed.
    file.grow(layout::file_bytes(pages_asked)).map_err(failed)?;
    let space = Space { memory: Arc::new(file.map().map_err(failed)?), file };
    space.words().publish(HEADER, WORD_PAGES, u64::from(pages_asked));
    Ok((space, header, pages_asked))
}

fn check_owner(header: &Header, options: &RegionOptions<'_>) -> Result<(), RegionError> {
    if header.app != options.app || header.shard != u64::from(options.shard) {
        return Err(RegionError::Foreign {
            found_app: header.app.clone(),
            found_shard: header.shard,
            app: options.app.to_owned(),
            shard: options.shard,
        });
    }
    if header.hash_tag != options.hash_tag {
        return Err(RegionError::OtherHashKeys { found: header.hash_tag, expected: options.hash_tag });
    }
    Ok(())
}

/// Before the owner touches anything: readers of other processes, which may still be reading what the last owner left, are told to look
/// again, since blocks it had just unlinked will be reused. Output: pages that were ever taken.
pub(super) fn begin(words: Words<'_>) -> Result<u32, RegionError> {
    words.bump(HEADER, WORD_RETYPE);
    words.bump(HEADER, WORD_RECLAIM);
    release_fence();
    let fresh = words.load(HEADER, WORD_FRESH);
    let (offset, what) = ((WORD_FRESH * 8) as u64, "more pages were taken than the region has");
    let fresh = u32::try_from(fresh).ok().filter(|fresh| u64::from(*fresh) <= words.load(HEADER, WORD_PAGES));
    fresh.ok_or(RegionError::Corrupt { offset, what })
}

/// A read-only mapping for another process than the owner's, header checked, content not: a reader trusts no word of it.
pub(super) fn map_read_only(path: &Path) -> Result<(SharedMemory, Header), RegionError> {
    let memory = SharedMemory::open_read_only(path).map_err(|source| io_error("map region to read", path, source))?;
    read_only(memory)
}

/// The same of a descriptor that another process gave; errors name it as `path`.
pub(super) fn map_file_read_only(file: &File, path: &Path) -> Result<(SharedMemory, Header), RegionError> {
    let memory = SharedMemory::read_only(file).map_err(|source| io_error("map region to read", path, source))?;
    read_only(memory)
}

/// The same of a descriptor that must be that of one region and no other.
pub(super) fn map_given(file: &File, app: &str, shard: u16, hash_tag: u64) -> Result<(SharedMemory, Header), RegionError> {
    let (memory, header) = map_file_read_only(file, Path::new(app))?;
    check_owner(&header, &RegionOptions { app, shard, bytes_max: 0, hash_tag })?;
    Ok((memory, header))
}

fn read_only(memory: SharedMemory) -> Result<(SharedMemory, Header), RegionError> {
    let words = memory.words();
    let header = layout::read_header(Words::new(words), (words.len() * 8) as u64)?;
    Ok((memory, header))
}
