//! Blocks in the region: pages are given to a kind and a size class, and cut into blocks of it. Called by the owner only.
//!
//! What the file holds of this is one word a page. Which blocks are free is private memory of the owner, a bitmap a page: it is rebuilt at
//! open from what is reachable, so there is nothing to keep consistent over a crash, nothing for another process to see or spoil, and a
//! block that no longer belongs to anything is simply free again. Marking is by bitmap and not by links through the blocks, because the
//! first word of a freed record is its version, which must survive.
//!
//! A page whose last block is freed goes back to all classes, if its class has another page with room. Allocation prefers the page that
//! filled up last: pages with few blocks left are not topped up and so run empty.

use super::class::{CLASSES, Class, PAGE_BLOCKS_MAX, PAGE_BYTES};
use super::layout::{self, HEADER, Kind, PageEntry, WORD_FRESH, WORD_RECLAIM, WORD_RETYPE};
use super::space::Space;
use super::words::{Offset, Words};

const BITMAP_WORDS: usize = PAGE_BLOCKS_MAX / 64;
const NONE: u32 = u32::MAX;
/// Pages whose memory is asked of the file system at once.
const COMMIT_PAGES: u32 = 4;
/// Pages kept for overwrites (a page a class may be needed, and a MiB of pieces), so that a full region can still be overwritten.
const RESERVE_PAGES_MAX: u32 = 32;

/// Size classes that cover a doubling.
const LENDING_CLASSES: usize = 6;

/// What the block is for. An overwrite by a value of the same size may use the reserve: it frees as much right afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Growth,
    Overwrite,
}

#[derive(Clone, Copy)]
struct PageState {
    entry: Option<PageEntry>,
    /// Blocks in use.
    used: u16,
    /// No free block lies before this word of the page's bitmap.
    first_word: u16,
    previous: u32,
    next: u32,
}

const EMPTY: PageState = PageState { entry: None, used: 0, first_word: 0, previous: NONE, next: NONE };

pub(super) struct Allocator {
    /// One entry a page of the region.
    pages: Vec<PageState>,
    /// `BITMAP_WORDS` a page, bit set = free. Zeroed memory the system provides on first touch, so a large region costs nothing at start.
    free_bits: Vec<u64>,
    /// First page with a free block, by kind and class.
    lists: [u32; Kind::COUNT * CLASSES],
    /// Pages given back, all below `fresh`.
    free_pages: Vec<u32>,
    fresh: u32,
    committed: u32,
    pages_used: u32,
    block_bytes_used: u64,
}

impl Allocator {
    /// For a region of `pages` pages, of which none is known yet.
    pub fn new(pages: u32) -> Allocator {
        Allocator {
            pages: vec![EMPTY; pages as usize],
            free_bits: vec![0; pages as usize * BITMAP_WORDS],
            lists: [NONE; Kind::COUNT * CLASSES],
            free_pages: Vec::with_capacity(pages as usize),
            fresh: 0,
            committed: 0,
            pages_used: 0,
            block_bytes_used: 0,
        }
    }

    pub fn pages_max(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Bytes of pages that belong to a class.
    pub fn page_bytes_used(&self) -> u64 {
        u64::from(self.pages_used) * PAGE_BYTES as u64
    }

    /// Bytes of blocks in use.
    pub fn block_bytes_used(&self) -> u64 {
        self.block_bytes_used
    }

    /// The kind of the block at `at`, as far as its page tells.
    #[inline(always)]
    pub fn kind_of(&self, at: Offset) -> Option<Kind> {
        Some(self.pages.get(layout::page_of(at)? as usize)?.entry?.kind)
    }

    /// Bytes of the block at `at`, which is in use.
    pub fn block_bytes(&self, at: Offset) -> usize {
        let page = layout::page_of(at).expect("the block was allocated here");
        self.pages[page as usize].entry.expect("the block's page is in use").class.block_bytes()
    }

    /// A block of at least `bytes` (at most `BLOCK_BYTES_MAX`), its content unspecified. `None`: the region or the file system is full.
    /// Cost: a few words of a bitmap; a system call for one fresh page in four.
    pub fn allocate(&mut self, space: &Space, kind: Kind, bytes: usize, purpose: Purpose) -> Option<Offset> {
        let wanted = PageEntry { kind, class: Class::of(bytes) };
        let page = match self.lists[list_of(wanted)] {
            NONE => self.take_page(space, wanted, purpose).or_else(|| self.page_of_larger(wanted))?,
            page => page,
        };
        let state = &mut self.pages[page as usize];
        let entry = state.entry.expect("a listed page is in use");
        let bits = &mut self.free_bits[page as usize * BITMAP_WORDS..][..BITMAP_WORDS];
        let mut word = usize::from(state.first_word);
        while bits[word] == 0 {
            word += 1; // a listed page has a free block, so this ends
        }
        state.first_word = word as u16;
        let block = word * 64 + bits[word].trailing_zeros() as usize;
        bits[word] &= bits[word] - 1;
        state.used += 1;
        if usize::from(state.used) == entry.class.page_blocks() {
            self.unlist(page, list_of(entry));
        }
        self.block_bytes_used += entry.class.block_bytes() as u64;
        Some(layout::page_start(page).plus((block * entry.class.block_bytes()) as u64))
    }

    /// Gives a block back. The caller has made it unreachable and has raised the version its readers compare.
    pub fn free(&mut self, words: Words<'_>, at: Offset) {
        let page = layout::page_of(at).expect("the block was allocated here");
        let state = &mut self.pages[page as usize];
        let entry = state.entry.expect("the block's page is in use");
        let block = (at.0 - layout::page_start(page).0) as usize / entry.class.block_bytes();
        let bit = 1 << (block % 64);
        let bits = &mut self.free_bits[page as usize * BITMAP_WORDS + block / 64];
        assert!(*bits & bit == 0, "block {:#x} freed twice", at.0);
        *bits |= bit;
        let was_full = usize::from(state.used) == entry.class.page_blocks();
        state.used -= 1;
        state.first_word = state.first_word.min((block / 64) as u16);
        let (is_empty, list) = (state.used == 0, list_of(entry));
        self.block_bytes_used -= entry.class.block_bytes() as u64;
        if was_full {
            self.enlist(page, list);
        }
        let state = &self.pages[page as usize];
        if is_empty && (state.previous != NONE || state.next != NONE) {
            self.unlist(page, list);
            self.give_back_page(words, page, entry);
        }
    }

    fn reserve_pages(&self) -> u32 {
        RESERVE_PAGES_MAX.min(self.pages_max() / 16)
    }

    fn take_page(&mut self, space: &Space, entry: PageEntry, purpose: Purpose) -> Option<u32> {
        let left = self.pages_max().saturating_sub(self.fresh) + self.free_pages.len() as u32;
        if left == 0 || purpose == Purpose::Growth && left <= self.reserve_pages() {
            return None;
        }
        let page = match self.free_pages.pop() {
            Some(page) => page,
            None => self.take_fresh_page(space)?,
        };
        layout::store_page_entry(space.words(), page, Some(entry));
        self.open_page(page, entry);
        self.enlist(page, list_of(entry));
        Some(page)
    }

    /// When no page is left: one with room whose blocks are larger than asked for, but less than twice.
    fn page_of_larger(&self, wanted: PageEntry) -> Option<u32> {
        let first = list_of(wanted);
        let classes = (wanted.class.index()..CLASSES).take(LENDING_CLASSES);
        classes.map(|class| self.lists[first + class - wanted.class.index()]).find(|page| *page != NONE)
    }

    fn take_fresh_page(&mut self, space: &Space) -> Option<u32> {
        let page = self.fresh;
        if page >= self.committed {
            let pages = COMMIT_PAGES.min(self.pages_max() - page);
            let entry = layout::page_entry_offset(page);
            space.file.commit(entry.0, u64::from(pages) * 8).ok()?;
            space.file.commit(layout::page_start(page).0, u64::from(pages) * PAGE_BYTES as u64).ok()?;
            self.committed = page + pages;
        }
        self.fresh = page + 1;
        // Before the page table's word: an open reads the table up to here, so it never misses a page in use.
        space.words().publish(HEADER, WORD_FRESH, u64::from(self.fresh));
        Some(page)
    }

    /// All blocks of `page` become free blocks of `entry`.
    fn open_page(&mut self, page: u32, entry: PageEntry) {
        self.pages[page as usize] = PageState { entry: Some(entry), ..EMPTY };
        let bits = &mut self.free_bits[page as usize * BITMAP_WORDS..][..BITMAP_WORDS];
        let blocks = entry.class.page_blocks();
        for (word, bits) in bits.iter_mut().enumerate() {
            *bits = match blocks.saturating_sub(word * 64) {
                64.. => u64::MAX,
                rest => (1 << rest) - 1,
            };
        }
        self.pages_used += 1;
    }

    fn give_back_page(&mut self, words: Words<'_>, page: u32, entry: PageEntry) {
        if entry.kind != Kind::Value {
            // Readers must stop trusting words of this page before anything else may be written there.
            words.bump(HEADER, WORD_RETYPE);
            words.bump(HEADER, WORD_RECLAIM);
        }
        layout::store_page_entry(words, page, None);
        self.pages[page as usize] = EMPTY;
        self.pages_used -= 1;
        self.free_pages.push(page);
    }

    fn enlist(&mut self, page: u32, list: usize) {
        let next = self.lists[list];
        self.pages[page as usize].next = next;
        self.pages[page as usize].previous = NONE;
        if next != NONE {
            self.pages[next as usize].previous = page;
        }
        self.lists[list] = page;
    }

    fn unlist(&mut self, page: u32, list: usize) {
        let PageState { previous, next, .. } = self.pages[page as usize];
        match previous {
            NONE => self.lists[list] = next,
            previous => self.pages[previous as usize].next = next,
        }
        if next != NONE {
            self.pages[next as usize].previous = previous;
        }
        self.pages[page as usize].previous = NONE;
        self.pages[page as usize].next = NONE;
    }

    /// First step of an open: the page table becomes the state of the pages, all blocks free. Errors: the place of a bad word.
    pub fn load_page_table(&mut self, words: Words<'_>, fresh: u32) -> Result<(), (Offset, &'static str)> {
        assert!(fresh <= self.pages_max());
        for page in 0..fresh {
            let at = layout::page_entry_offset(page);
            let word = words.get(at, 0).map_err(|_| (at, "the page table lies outside the file"))?;
            if let Some(entry) = PageEntry::from_word(word).map_err(|_| (at, "the page has an unknown kind or size class"))? {
                self.open_page(page, entry);
            }
        }
        self.fresh = fresh;
        self.committed = fresh;
        Ok(())
    }

    /// Second step: a block that something refers to. Errors: why no such block can be there.
    pub fn claim(&mut self, at: Offset, kind: Kind, bytes: usize) -> Result<(), &'static str> {
        let page = layout::page_of(at).filter(|page| *page < self.fresh).ok_or("the reference leads outside the pages in use")?;
        let state = &mut self.pages[page as usize];
        let entry = state.entry.ok_or("the reference leads into a free page")?;
        let within = (at.0 - layout::page_start(page).0) as usize;
        let block = within / entry.class.block_bytes();
        if entry.kind != kind {
            return Err("the reference leads into a page of another kind");
        }
        if !within.is_multiple_of(entry.class.block_bytes()) || block >= entry.class.page_blocks() {
            return Err("the reference does not lead to the start of a block");
        }
        if bytes > entry.class.block_bytes() {
            return Err("the block is too small for what it should hold");
        }
        let bits = &mut self.free_bits[page as usize * BITMAP_WORDS + block / 64];
        if *bits & 1 << (block % 64) == 0 {
            return Err("the block is referred to twice");
        }
        *bits &= !(1 << (block % 64));
        state.used += 1;
        self.block_bytes_used += entry.class.block_bytes() as u64;
        Ok(())
    }

    /// Last step: what nothing claimed is free, pages included.
    pub fn finish_claims(&mut self, words: Words<'_>) {
        for page in (0..self.fresh).rev() {
            let PageState { entry, used, .. } = self.pages[page as usize];
            match entry {
                None => self.free_pages.push(page),
                Some(entry) if used == 0 => self.give_back_page(words, page, entry),
                Some(entry) if usize::from(used) < entry.class.page_blocks() => self.enlist(page, list_of(entry)),
                Some(_) => {}
            }
        }
    }
}

fn list_of(entry: PageEntry) -> usize {
    entry.kind.index() * CLASSES + entry.class.index()
}
