//! Blocks in the region: pages are given to a kind and a size class, and cut into blocks of it. Called by the owner only.
//!
//! What the file holds of this is one word a page. Which blocks are free is private memory of the owner, a bitmap a page: it is rebuilt at
//! open from what is reachable, so there is nothing to keep consistent over a crash, nothing for another process to see or spoil, and a
//! block that no longer belongs to anything is simply free again. Marking is by bitmap and not by links through the blocks, because the
//! first word of a freed record is its version, which must survive.
//!
//! A page whose last block is freed goes back to all classes, if its class has another page with room. Allocation prefers the page that
//! filled up last: pages with few blocks left are not topped up and so run empty. Where that is not enough, because sizes have changed, a
//! page is *evacuated*: nothing is allocated there any more, `compact` moves its blocks elsewhere, and it goes back when it is empty.

use std::hint::black_box;
use std::ops::Range;

use super::class::{CLASSES, Class, PAGE_BLOCKS_MAX, PAGE_BYTES};
use super::layout::{self, HEADER, Kind, PageEntry, WORD_FRESH, WORD_RECLAIM, WORD_RETYPE};
use super::namespace;
use super::space::Space;
use super::words::{Offset, Words};

const BITMAP_WORDS: usize = PAGE_BLOCKS_MAX / 64;
const NONE: u32 = u32::MAX;
/// Pages whose memory is asked of the file system at once.
const COMMIT_PAGES: u32 = 4;
/// Pages kept for overwrites (a page a class may be needed, and a MiB of pieces), so that a full region can still be overwritten.
const RESERVE_PAGES_MAX: u32 = 32;

/// Pages evacuated at once; the rest of them waits for the next round.
const EVACUATED_PAGES_MAX: usize = 1_024;
/// A region is wasteful when this part of its pages' bytes lies in free blocks: 1 / 32.
const WASTE_PART: u64 = 32;
/// Moving blocks must promise this part of the pages taken, or it is not begun: 1 / 64.
const GAIN_PART: u32 = 64;

/// One list a kind and class.
pub(super) const LISTS: usize = Kind::COUNT * CLASSES;

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
    /// Evacuated: in no list, and given back as soon as it is empty.
    is_evacuated: bool,
    previous: u32,
    next: u32,
}

const EMPTY: PageState = PageState { entry: None, used: 0, first_word: 0, is_evacuated: false, previous: NONE, next: NONE };

/// How full a page is.
#[derive(Clone, Copy)]
pub(super) struct PageFill {
    pub list: usize,
    pub used: u16,
    pub blocks: u16,
}

pub(super) struct Allocator {
    /// One entry a page of the region.
    pages: Vec<PageState>,
    /// `BITMAP_WORDS` a page, bit set = free. Zeroed memory the system provides on first touch, so a large region costs nothing at start.
    free_bits: Vec<u64>,
    /// First page with a free block, by kind and class.
    lists: [u32; LISTS],
    /// Free blocks of the pages that are not evacuated, by kind and class.
    free_blocks: [u32; LISTS],
    /// Blocks in use on evacuated pages, by kind and class: so many will be asked of the others.
    evacuated_blocks: [u32; LISTS],
    /// Pages evacuated since the round began; some may have been given back since.
    evacuated: Vec<u32>,
    /// Evacuated pages that became empty, ever.
    emptied: u64,
    /// Pages given back, all below `fresh`.
    free_pages: Vec<u32>,
    fresh: u32,
    committed: u32,
    was_refused_memory: bool,
    pages_used: u32,
    block_bytes_used: u64,
    /// Of it, blocks of cells, nodes and namespaces.
    record_bytes_used: u64,
    /// Bytes of the values that lie in blocks, counted by `value`.
    value_bytes: u64,
}

impl Allocator {
    /// For a region of `pages` pages, of which none is known yet.
    pub fn new(pages: u32) -> Allocator {
        Allocator {
            pages: vec![EMPTY; pages as usize],
            free_bits: vec![0; pages as usize * BITMAP_WORDS],
            lists: [NONE; LISTS],
            free_blocks: [0; LISTS],
            evacuated_blocks: [0; LISTS],
            emptied: 0,
            evacuated: Vec::with_capacity(EVACUATED_PAGES_MAX.min(pages as usize)),
            free_pages: Vec::with_capacity(pages as usize),
            fresh: 0,
            committed: 0,
            was_refused_memory: false,
            pages_used: 0,
            block_bytes_used: 0,
            record_bytes_used: 0,
            value_bytes: 0,
        }
    }

    pub fn pages_max(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Bytes of pages that belong to a class.
    pub fn page_bytes_used(&self) -> u64 {
        u64::from(self.pages_used) * PAGE_BYTES as u64
    }

    /// True when the file system had no memory the last time it was asked for some.
    pub fn was_refused_memory(&self) -> bool {
        self.was_refused_memory
    }

    /// Bytes of blocks in use.
    pub fn block_bytes_used(&self) -> u64 {
        self.block_bytes_used
    }

    /// Bytes of blocks in use that are not values'.
    pub fn record_bytes_used(&self) -> u64 {
        self.record_bytes_used
    }

    /// Bytes of the values that lie in blocks.
    pub fn value_bytes(&self) -> u64 {
        self.value_bytes
    }

    /// A value of so many bytes has got its blocks.
    pub fn count_value(&mut self, bytes: usize) {
        self.value_bytes += bytes as u64;
    }

    /// A value of so many bytes gives its blocks back.
    pub fn discount_value(&mut self, bytes: usize) {
        self.value_bytes -= bytes as u64;
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
            NONE => self.find_page(space, wanted, purpose)?,
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
        self.free_blocks[list_of(entry)] -= 1;
        self.count_block(entry);
        Some(layout::page_start(page).plus((block * entry.class.block_bytes()) as u64))
    }

    /// Gives a block back. The caller has made it unreachable and has raised the version its readers compare.
    pub fn free(&mut self, words: Words<'_>, at: Offset) {
        let page = layout::page_of(at).expect("the block was allocated here");
        let state = &mut self.pages[page as usize];
        let entry = state.entry.expect("the block's page is in use");
        let (block, _) = entry.class.block_at((at.0 - layout::page_start(page).0) as u32);
        let bit = 1 << (block % 64);
        let bits = &mut self.free_bits[page as usize * BITMAP_WORDS + block / 64];
        assert!(*bits & bit == 0, "block {:#x} freed twice", at.0);
        *bits |= bit;
        let was_full = usize::from(state.used) == entry.class.page_blocks();
        state.used -= 1;
        state.first_word = state.first_word.min((block / 64) as u16);
        let (is_empty, list) = (state.used == 0, list_of(entry));
        self.block_bytes_used -= entry.class.block_bytes() as u64;
        if entry.kind != Kind::Value {
            self.record_bytes_used -= entry.class.block_bytes() as u64;
        }
        if state.is_evacuated {
            self.evacuated_blocks[list] -= 1;
            if is_empty {
                self.give_back_page(words, page, entry);
                self.emptied += 1;
            }
            return;
        }
        self.free_blocks[list] += 1;
        if was_full {
            self.enlist(page, list);
        }
        let state = &self.pages[page as usize];
        if is_empty && (state.previous != NONE || state.next != NONE) {
            self.unlist(page, list);
            self.give_back_page(words, page, entry);
        }
    }

    fn count_block(&mut self, entry: PageEntry) {
        self.block_bytes_used += entry.class.block_bytes() as u64;
        if entry.kind != Kind::Value {
            self.record_bytes_used += entry.class.block_bytes() as u64;
        }
    }

    fn find_page(&mut self, space: &Space, wanted: PageEntry, purpose: Purpose) -> Option<u32> {
        loop {
            if let Some(page) = self.take_page(space, wanted, purpose).or_else(|| self.page_of_larger(wanted)) {
                return Some(page);
            }
            if self.evacuated.is_empty() {
                return None;
            }
            // A region that full cannot spare the room on evacuated pages.
            self.end_evacuation(0..LISTS);
            if self.lists[list_of(wanted)] != NONE {
                return Some(self.lists[list_of(wanted)]);
            }
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
            let committed = space
                .file
                .commit(entry.0, u64::from(pages) * 8)
                .and_then(|()| space.file.commit(layout::page_start(page).0, u64::from(pages) * PAGE_BYTES as u64));
            self.was_refused_memory = committed.is_err();
            committed.ok()?;
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
        self.free_blocks[list_of(entry)] += blocks as u32;
    }

    fn give_back_page(&mut self, words: Words<'_>, page: u32, entry: PageEntry) {
        if entry.kind != Kind::Value {
            // Readers must stop trusting words of this page before anything else may be written there.
            words.bump(HEADER, WORD_RETYPE);
            words.bump(HEADER, WORD_RECLAIM);
        }
        layout::store_page_entry(words, page, None);
        if !self.pages[page as usize].is_evacuated {
            self.free_blocks[list_of(entry)] -= entry.class.page_blocks() as u32;
        }
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

    /// Loads what a claim of the block at `at`, which may be anything, will ask for.
    pub fn touch(&self, at: Offset) {
        let Some(page) = layout::page_of(at) else { return };
        let Some(entry) = self.pages.get(page as usize).and_then(|state| state.entry) else { return };
        let (block, _) = entry.class.block_at((at.0 - layout::page_start(page).0) as u32);
        black_box(self.free_bits.get(page as usize * BITMAP_WORDS + block / 64));
    }

    /// Second step: a block that something refers to. Errors: why no such block can be there.
    pub fn claim(&mut self, at: Offset, kind: Kind, bytes: usize) -> Result<(), &'static str> {
        let page = layout::page_of(at).filter(|page| *page < self.fresh).ok_or("the reference leads outside the pages in use")?;
        let state = &mut self.pages[page as usize];
        let entry = state.entry.ok_or("the reference leads into a free page")?;
        let within = at.0 - layout::page_start(page).0;
        let (block, rest) = entry.class.block_at(within as u32);
        if entry.kind != kind {
            return Err("the reference leads into a page of another kind");
        }
        if rest != 0 || block >= entry.class.page_blocks() {
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
        self.free_blocks[list_of(entry)] -= 1;
        self.count_block(entry);
        Ok(())
    }

    /// Last step: what nothing claimed is free, pages included.
    pub fn finish_claims(&mut self, words: Words<'_>) {
        for page in (0..self.fresh).rev() {
            let PageState { entry, used, .. } = self.pages[page as usize];
            if entry.is_some_and(|entry| entry.kind == Kind::Namespace) {
                self.retire_free_records(words, page);
            }
            match entry {
                None => self.free_pages.push(page),
                Some(entry) if used == 0 => self.give_back_page(words, page, entry),
                Some(entry) if usize::from(used) < entry.class.page_blocks() => self.enlist(page, list_of(entry)),
                Some(_) => {}
            }
        }
    }
}

impl Allocator {
    /// A record that a kill left unlinked still has its incarnation: references to it would be taken for good ones.
    fn retire_free_records(&self, words: Words<'_>, page: u32) {
        let Some(entry) = self.pages[page as usize].entry else { return };
        for block in 0..entry.class.page_blocks() {
            let is_free = self.free_bits[page as usize * BITMAP_WORDS + block / 64] >> (block % 64) & 1 == 1;
            let at = layout::page_start(page).plus((block * entry.class.block_bytes()) as u64);
            if is_free && namespace::incarnation(words, at) != Ok(0) {
                namespace::retire(words, at);
            }
        }
    }
}

/// Evacuation, for `compact`.
impl Allocator {
    /// True when so much lies in free blocks that it is worth asking what moving would gain.
    #[inline(always)]
    pub fn is_wasteful(&self) -> bool {
        let used = self.page_bytes_used();
        (used - self.block_bytes_used) * WASTE_PART > used
    }

    /// Free blocks' part of the bytes of pages taken, in 1/256.
    pub fn waste_256ths(&self) -> u64 {
        let used = self.page_bytes_used();
        ((used - self.block_bytes_used) * 256).checked_div(used).unwrap_or(0)
    }

    /// Pages of a list that its other pages have room for.
    pub fn spare_pages(&self, list: usize) -> u32 {
        let free = self.free_blocks[list].saturating_sub(self.evacuated_blocks[list]);
        if free == 0 {
            return 0; // as in most lists
        }
        let blocks = Class::from_index((list % CLASSES) as u8).expect("a list belongs to a class").page_blocks();
        free / blocks as u32
    }

    /// True when moving the blocks of these lists would set enough pages free. Cost: a division a list.
    pub fn would_gain(&self, lists: Range<usize>) -> bool {
        let gain: u32 = lists.map(|list| self.spare_pages(list)).sum();
        gain > self.pages_used / GAIN_PART
    }

    /// Pages that evacuation has given back so far.
    pub fn pages_emptied(&self) -> u64 {
        self.emptied
    }

    /// Pages ever taken: the numbers of pages are below it.
    pub fn pages_fresh(&self) -> u32 {
        self.fresh
    }

    /// How full `page` is; `None` for one that is free, evacuated or full.
    pub fn fill_of(&self, page: u32) -> Option<PageFill> {
        let state = self.pages.get(page as usize)?;
        let entry = state.entry?;
        let (list, blocks) = (list_of(entry), entry.class.page_blocks() as u16);
        (!state.is_evacuated && state.used < blocks).then_some(PageFill { list, used: state.used, blocks })
    }

    /// Begins to evacuate a page that `fill_of` told of, unless too many are.
    pub fn evacuate(&mut self, words: Words<'_>, page: u32, fill: PageFill) {
        if self.evacuated.len() == self.evacuated.capacity() {
            return;
        }
        let entry = self.pages[page as usize].entry.expect("a page with a fill is in use");
        self.unlist(page, fill.list);
        if fill.used == 0 {
            self.give_back_page(words, page, entry);
            self.emptied += 1;
            return;
        }
        self.free_blocks[fill.list] -= u32::from(fill.blocks - fill.used);
        self.evacuated_blocks[fill.list] += u32::from(fill.used);
        self.pages[page as usize].is_evacuated = true;
        self.evacuated.push(page);
    }

    /// True when the block at `at` should move.
    #[inline]
    pub fn is_evacuated(&self, at: Offset) -> bool {
        layout::page_of(at).and_then(|page| self.pages.get(page as usize)).is_some_and(|page| page.is_evacuated)
    }

    /// True while a page of these lists waits to become empty.
    pub fn is_evacuating(&self, lists: Range<usize>) -> bool {
        self.evacuated_blocks[lists].iter().any(|blocks| *blocks > 0)
    }

    /// The round is over: pages of these lists that did not become empty serve again.
    pub fn end_evacuation(&mut self, lists: Range<usize>) {
        for at in (0..self.evacuated.len()).rev() {
            let page = self.evacuated[at];
            let state = &mut self.pages[page as usize];
            // One that became empty may have been taken by another class since.
            let (true, Some(entry)) = (state.is_evacuated, state.entry) else {
                self.evacuated.swap_remove(at);
                continue;
            };
            let list = list_of(entry);
            if !lists.contains(&list) {
                continue;
            }
            state.is_evacuated = false;
            self.evacuated.swap_remove(at);
            let (used, blocks) = (u32::from(state.used), entry.class.page_blocks() as u32);
            self.evacuated_blocks[list] -= used;
            self.free_blocks[list] += blocks - used;
            if used < blocks {
                self.enlist(page, list);
            }
        }
    }
}

/// The lists of namespaces' records, and those of everything else.
pub(super) const RECORD_LISTS: Range<usize> = Kind::Namespace.index() * CLASSES..LISTS;
pub(super) const CONTENT_LISTS: Range<usize> = 0..RECORD_LISTS.start;

const _: () = assert!(Kind::Namespace.index() == Kind::COUNT - 1, "the lists of records are the last ones");

fn list_of(entry: PageEntry) -> usize {
    entry.kind.index() * CLASSES + entry.class.index()
}
