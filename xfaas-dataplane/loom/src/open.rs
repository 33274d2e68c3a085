//! The model checker's `open`: a region without a file, always new, with the same secret every time, because runs must not differ.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::error::RegionError;
use super::hash::Secret;
use super::layout::{self, HEADER, Header, RegionOptions, WORD_FRESH};
use super::space::Space;
use super::words::Words;
use crate::sys::shm::{SharedFile, SharedMemory};

const SECRET: Secret = Secret([0x9E37_79B9_7F4A_7C15, 0xD6E8_FEB8_6659_FD93]);

pub(super) fn open_or_create(_path: &Path, options: &RegionOptions<'_>) -> Result<(Space, Header, u32), RegionError> {
    let pages = options.pages()?;
    let space = Space { memory: Arc::new(SharedMemory::new()), file: SharedFile };
    layout::write_header(space.words(), options, pages, SECRET);
    let header = layout::read_header(space.words(), layout::file_bytes(pages))?;
    Ok((space, header, pages))
}

pub(super) fn begin(words: Words<'_>) -> Result<u32, RegionError> {
    Ok(words.load(HEADER, WORD_FRESH) as u32)
}

pub(super) fn map_read_only(_path: &Path) -> Result<(SharedMemory, Header), RegionError> {
    Err(RegionError::NotARegion { bytes: 0 })
}

pub(super) fn map_file_read_only(_file: &File, path: &Path) -> Result<(SharedMemory, Header), RegionError> {
    map_read_only(path)
}

pub(super) fn map_given(_file: &File, _app: &str, _shard: u16, _hash_tag: u64) -> Result<(SharedMemory, Header), RegionError> {
    Err(RegionError::NotARegion { bytes: 0 })
}
