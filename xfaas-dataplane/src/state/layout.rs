//! Where things lie in a region's file, and the header that says whose it is. Format and arithmetic only.
//!
//! ```text
//!        0  constant words: magic, version, shard, hash tag, secret, app, checksum   written once, before the file gets its name
//!      512  growing words: pages, fresh, incarnations                                only ever rise
//!      640  versions readers compare: reclaim, retype                                a cache line pair of their own
//!     4096  root of the session table, 1024 links
//!    16384  page table, one word a page: kind and size class
//! DATA      pages of 64 KiB, each cut into blocks of one kind and one size class
//! ```
//! All words are little-endian `u64`. An address is a byte offset from the start of the file.

use xfaas_common::ids::is_name;
use xfaas_common::limits::NAME_BYTES_MAX;

use super::class::{Class, PAGE_BYTES};
use super::error::RegionError;
use super::hash::Secret;
use super::words::{Offset, WORD_BYTES, Words};

const MAGIC: u64 = u64::from_le_bytes(*b"XFAASREG");
const LAYOUT_VERSION: u64 = 2;

pub(super) const HEADER: Offset = Offset(0);
const WORD_MAGIC: usize = 0;
const WORD_VERSION: usize = 1;
const WORD_SHARD: usize = 2;
const WORD_HASH_TAG: usize = 3;
const WORD_SECRET: usize = 4;
const WORD_APP_BYTES: usize = 6;
const WORD_APP: usize = 7;
const WORD_CHECKSUM: usize = WORD_APP + NAME_BYTES_MAX / WORD_BYTES;
/// The constant words with their checksum.
pub(super) const CONSTANT_BYTES: usize = (WORD_CHECKSUM + 1) * WORD_BYTES;

/// Pages the file has room for.
pub(super) const WORD_PAGES: usize = 64;
/// Pages ever taken: those at and after it were never touched.
pub(super) const WORD_FRESH: usize = 65;
/// Namespaces ever made; the next one's incarnation is one more.
pub(super) const WORD_INCARNATIONS: usize = 66;
/// Rises whenever a cell, a table node or a namespace record is freed, before its memory is used again.
pub(super) const WORD_RECLAIM: usize = 80;
/// Rises before a page of such records may hold anything else.
pub(super) const WORD_RETYPE: usize = 81;

pub(super) const ROOT: Offset = Offset(4096);
/// Links in the session table's root, as bits of the hash.
pub(super) const ROOT_BITS: u32 = 10;

const PAGE_TABLE: Offset = Offset(16 << 10);
/// Pages a region can have at most, 64 GiB; the table for them is a hole in the file until used.
pub(super) const PAGES_MAX: u32 = 1 << 20;
pub(super) const DATA: Offset = Offset((PAGE_TABLE.0 + PAGES_MAX as u64 * WORD_BYTES as u64).next_multiple_of(PAGE_BYTES as u64));

const _: () = assert!(WORD_CHECKSUM < WORD_PAGES);
const _: () = assert!(WORD_RETYPE < ROOT.0 as usize / WORD_BYTES);
const _: () = assert!(ROOT.0 + (1 << ROOT_BITS) * WORD_BYTES as u64 <= PAGE_TABLE.0);
const _: () = assert!(NAME_BYTES_MAX.is_multiple_of(WORD_BYTES));

/// Bytes of a file whose data area holds `pages`.
pub(super) const fn file_bytes(pages: u32) -> u64 {
    DATA.0 + pages as u64 * PAGE_BYTES as u64
}

/// What the blocks of a page are. Records and table nodes are never mixed with values, so the words that readers compare are always
/// such words, whatever a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Value = 1,
    Cell = 2,
    Node = 3,
    Namespace = 4,
}

impl Kind {
    pub const COUNT: usize = 4;

    pub const fn index(self) -> usize {
        self as usize - 1
    }
}

/// One word of the page table: 0 for a free page, else kind and class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageEntry {
    pub kind: Kind,
    pub class: Class,
}

impl PageEntry {
    const fn to_word(self) -> u64 {
        self.kind as u64 | (self.class.index() as u64) << 8
    }

    /// `Ok(None)` for a free page, `Err` for a word no version of ours wrote.
    pub fn from_word(word: u64) -> Result<Option<PageEntry>, u64> {
        let kind = match word & 0xFF {
            0 if word == 0 => return Ok(None),
            1 => Kind::Value,
            2 => Kind::Cell,
            3 => Kind::Node,
            4 => Kind::Namespace,
            _ => return Err(word),
        };
        let class = u8::try_from(word >> 8).ok().and_then(Class::from_index).ok_or(word)?;
        Ok(Some(PageEntry { kind, class }))
    }
}

pub(super) fn store_page_entry(words: Words<'_>, page: u32, entry: Option<PageEntry>) {
    words.publish(PAGE_TABLE, page as usize, entry.map_or(0, PageEntry::to_word));
}

/// Where the page table's word for `page` lies, for an error message or a reader.
pub(super) const fn page_entry_offset(page: u32) -> Offset {
    PAGE_TABLE.plus(page as u64 * WORD_BYTES as u64)
}

/// The page that holds `at`, if it lies in the data area at all.
#[inline(always)]
pub(super) const fn page_of(at: Offset) -> Option<u32> {
    if at.0 < DATA.0 {
        return None;
    }
    let page = (at.0 - DATA.0) / PAGE_BYTES as u64;
    if page < PAGES_MAX as u64 { Some(page as u32) } else { None }
}

pub(super) const fn page_start(page: u32) -> Offset {
    DATA.plus(page as u64 * PAGE_BYTES as u64)
}

/// Whose region to open, and how large it may become.
#[derive(Clone, Copy, Debug)]
pub struct RegionOptions<'a> {
    /// The app's name, `[A-Za-z0-9_.-]{1,64}`.
    pub app: &'a str,
    /// The owning shard's `CoreIndex`.
    pub shard: u16,
    /// Bytes of pages the region may take, 1 MiB..=64 GiB, rounded down to 64 KiB. A region that exists grows to it, and never shrinks
    /// below what it already took.
    pub bytes_max: u64,
    /// Anything that identifies the node's hash keys: a region made under other keys would find none of its sessions, so it is refused.
    pub hash_tag: u64,
}

pub const REGION_BYTES_MIN: u64 = 1 << 20;

impl RegionOptions<'_> {
    /// The number of pages asked for, when the options make sense.
    pub(super) fn pages(&self) -> Result<u32, RegionError> {
        if !is_name(self.app.as_bytes()) {
            return Err(RegionError::BadAppName { app: self.app.to_owned() });
        }
        let pages = self.bytes_max / PAGE_BYTES as u64;
        match u32::try_from(pages) {
            Ok(pages) if self.bytes_max >= REGION_BYTES_MIN && pages <= PAGES_MAX => Ok(pages),
            _ => Err(RegionError::BadSize { bytes_max: self.bytes_max }),
        }
    }
}

/// Writes the constant part of a new region. The file has no name yet, so its order does not matter.
pub(super) fn write_header(words: Words<'_>, options: &RegionOptions<'_>, pages: u32, secret: Secret) {
    words.store(HEADER, WORD_MAGIC, MAGIC);
    words.store(HEADER, WORD_VERSION, LAYOUT_VERSION | (PAGE_BYTES as u64) << 32);
    words.store(HEADER, WORD_SHARD, u64::from(options.shard));
    words.store(HEADER, WORD_HASH_TAG, options.hash_tag);
    words.store(HEADER, WORD_SECRET, secret.0[0]);
    words.store(HEADER, WORD_SECRET + 1, secret.0[1]);
    words.store(HEADER, WORD_APP_BYTES, options.app.len() as u64);
    words.copy_in(HEADER.plus((WORD_APP * WORD_BYTES) as u64), options.app.as_bytes());
    words.store(HEADER, WORD_PAGES, u64::from(pages));
    words.publish(HEADER, WORD_CHECKSUM, checksum(words));
}

fn checksum(words: Words<'_>) -> u64 {
    let mut bytes = [0; WORD_CHECKSUM * WORD_BYTES];
    words.copy_out(HEADER, &mut bytes).expect("the caller checked that the header is there");
    checksum_of(&bytes)
}

fn checksum_of(constants: &[u8]) -> u64 {
    Secret([0x243F_6A88_85A3_08D3, 0x1319_8A2E_0370_7345]).hash(constants) // digits of pi: any constants do
}

/// Puts `to` in the place of the hash tag `from`. Output: false, and nothing is changed, where these are not the constant words of a region
/// of this layout with that tag.
pub(super) fn retag_constants(constants: &mut [u8; CONSTANT_BYTES], from: u64, to: u64) -> bool {
    let (words, _) = constants.as_chunks_mut::<WORD_BYTES>();
    let is = |word: usize, value: u64| u64::from_le_bytes(words[word]) == value;
    if !is(WORD_MAGIC, MAGIC) || !is(WORD_VERSION, LAYOUT_VERSION | (PAGE_BYTES as u64) << 32) || !is(WORD_HASH_TAG, from) {
        return false;
    }
    if !is(WORD_CHECKSUM, checksum_of(words[..WORD_CHECKSUM].as_flattened())) {
        return false;
    }
    words[WORD_HASH_TAG] = to.to_le_bytes();
    words[WORD_CHECKSUM] = checksum_of(words[..WORD_CHECKSUM].as_flattened()).to_le_bytes();
    true
}

/// What a valid header says.
pub(super) struct Header {
    pub app: String,
    pub shard: u64,
    pub hash_tag: u64,
    pub secret: Secret,
}

/// Reads and checks the constant part. Errors: `NotARegion`, `LayoutVersion`, `HeaderChecksum`; no trust in anything before the checksum.
pub(super) fn read_header(words: Words<'_>, bytes: u64) -> Result<Header, RegionError> {
    if bytes < DATA.0 || words.get(HEADER, WORD_MAGIC) != Ok(MAGIC) {
        return Err(RegionError::NotARegion { bytes });
    }
    let version = words.load(HEADER, WORD_VERSION);
    if version != LAYOUT_VERSION | (PAGE_BYTES as u64) << 32 {
        return Err(RegionError::LayoutVersion { found: version, expected: LAYOUT_VERSION | (PAGE_BYTES as u64) << 32 });
    }
    let (stored, computed) = (words.load(HEADER, WORD_CHECKSUM), checksum(words));
    let app_bytes = words.load(HEADER, WORD_APP_BYTES) as usize;
    if stored != computed || app_bytes > NAME_BYTES_MAX {
        return Err(RegionError::HeaderChecksum { stored, computed });
    }
    let mut name = vec![0; app_bytes];
    words.copy_out(HEADER.plus((WORD_APP * WORD_BYTES) as u64), &mut name).expect("the header is there");
    Ok(Header {
        app: String::from_utf8_lossy(&name).into_owned(),
        shard: words.load(HEADER, WORD_SHARD),
        hash_tag: words.load(HEADER, WORD_HASH_TAG),
        secret: Secret([words.load(HEADER, WORD_SECRET), words.load(HEADER, WORD_SECRET + 1)]),
    })
}
