//! Hash tries: the session table of a region and the key table of a session with many keys. Lock-free to read, grown a node at a time.
//!
//! A node is 16 links, chosen by 4 bits of a 64-bit hash a level, lowest bits first; the root may be wider. A link is empty, leads to a
//! node, or to a leaf (a namespace record or a cell). Why a trie and not a hash table: it grows and shrinks by nodes of 128 bytes, so no
//! entry is ever copied to a larger table while others wait; each change becomes visible by one store, so neither a reader nor a crash
//! sees half of it; and it is at most 16 levels deep whatever the hashes are.
//!
//! Readers: a link is read with acquire, a leaf is compared by its full name. A reader may walk through a node that is freed under it: it
//! notices by the reclaim word, which its caller compares before and after the walk.

use super::alloc::{Allocator, Purpose};
use super::layout::Kind;
use super::space::Space;
use super::words::{Offset, OutOfRange, WORD_BYTES, Words, release_fence};

const NODE_BITS: u32 = 4;
pub(super) const NODE_LINKS: usize = 1 << NODE_BITS;
pub(super) const NODE_BYTES: usize = NODE_LINKS * WORD_BYTES;
const HASH_BITS: u32 = 64;
/// Root, and a level for each further 4 bits.
pub(super) const LEVELS_MAX: usize = (HASH_BITS / NODE_BITS) as usize;

/// One word of a table: 0 = empty; else bit 0 = leaf, bits 4..48 = offset, and in a leaf bits 48..64 = the upper bits of its hash, so that
/// most strangers are told apart without being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link(pub u64);

const LINK_LEAF: u64 = 1;
const LINK_TAG_SHIFT: u32 = 48;
const LINK_OFFSET: u64 = (1 << LINK_TAG_SHIFT) - 16;

impl Link {
    pub const EMPTY: Link = Link(0);

    pub const fn leaf(at: Offset, hash: u64) -> Link {
        Link(at.0 | LINK_LEAF | hash >> LINK_TAG_SHIFT << LINK_TAG_SHIFT)
    }

    pub const fn node(at: Offset) -> Link {
        Link(at.0)
    }

    /// The same link to what was moved to `at`.
    pub const fn moved(self, at: Offset) -> Link {
        Link(at.0 | self.0 & !LINK_OFFSET)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn is_leaf(self) -> bool {
        self.0 & LINK_LEAF != 0
    }

    pub const fn offset(self) -> Offset {
        Offset(self.0 & LINK_OFFSET)
    }

    /// False for certain when this is not a leaf of that hash; true says little.
    pub const fn may_be(self, hash: u64) -> bool {
        self.is_leaf() && self.0 >> LINK_TAG_SHIFT == hash >> LINK_TAG_SHIFT
    }

    /// True when every bit is one that this code writes.
    pub const fn is_well_formed(self) -> bool {
        self.is_leaf() || self.0 & !LINK_OFFSET == 0
    }
}

const _: () = assert!(super::layout::file_bytes(super::layout::PAGES_MAX) < 1 << LINK_TAG_SHIFT);

/// No block left for a node, or two names with the same hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

#[derive(Clone, Copy)]
pub(super) struct Table {
    pub root: Offset,
    /// The root has `1 << root_bits` links.
    pub root_bits: u32,
}

/// One step of a walk: the node, how far its hash bits lie up, how many it takes.
#[derive(Clone, Copy)]
struct Step {
    node: Offset,
    shift: u32,
    bits: u32,
}

impl Step {
    #[inline(always)]
    fn slot(self, hash: u64) -> usize {
        (hash >> self.shift & ((1 << self.bits) - 1)) as usize
    }

    /// The step below, `None` at the end of the hash.
    #[inline(always)]
    fn down(self, node: Offset) -> Option<Step> {
        let shift = self.shift + self.bits;
        (shift < HASH_BITS).then_some(Step { node, shift, bits: NODE_BITS })
    }
}

/// A link that is ready to be stored: with that store its leaf is in the table.
pub(super) struct Place {
    node: Offset,
    slot: usize,
    link: Link,
}

impl Place {
    pub fn link(self, words: Words<'_>) {
        words.publish(self.node, self.slot, self.link.0);
    }
}

impl Table {
    /// The key table of a session, with its root node at `root`.
    pub const fn of_node(root: Offset) -> Table {
        Table { root, root_bits: NODE_BITS }
    }

    #[inline(always)]
    fn top(self) -> Step {
        Step { node: self.root, shift: 0, bits: self.root_bits }
    }

    /// The leaf with this hash for which `is_it` holds. For owner and readers; only a racing reader can see `OutOfRange`.
    #[inline(always)]
    pub fn find(
        self,
        words: Words<'_>,
        hash: u64,
        is_it: impl Fn(Offset) -> Result<bool, OutOfRange>,
    ) -> Result<Option<Offset>, OutOfRange> {
        let mut step = self.top();
        loop {
            let link = Link(words.get_acquire(step.node, step.slot(hash))?);
            if link.is_empty() {
                return Ok(None);
            }
            if link.is_leaf() {
                let found = link.may_be(hash) && is_it(link.offset())?;
                return Ok(found.then(|| link.offset()));
            }
            step = step.down(link.offset()).ok_or(OutOfRange)?;
        }
    }

    /// Adds a leaf that is not in the table. Visible at once by a single store, or not at all. Errors: `NoRoom`, nothing changed.
    pub fn insert(
        self,
        space: &Space,
        alloc: &mut Allocator,
        hash: u64,
        leaf: Offset,
        hash_of: impl Fn(Offset) -> u64,
    ) -> Result<(), NoRoom> {
        self.place(space, alloc, hash, leaf, hash_of)?.link(space.words());
        Ok(())
    }

    /// Makes everything that adding a leaf takes, but for the store that links it. Errors: `NoRoom`, nothing changed.
    pub fn place(
        self,
        space: &Space,
        alloc: &mut Allocator,
        hash: u64,
        leaf: Offset,
        hash_of: impl Fn(Offset) -> u64,
    ) -> Result<Place, NoRoom> {
        let words = space.words();
        let mut step = self.top();
        loop {
            let slot = step.slot(hash);
            let link = Link(words.load(step.node, slot));
            if link.is_empty() {
                return Ok(Place { node: step.node, slot, link: Link::leaf(leaf, hash) });
            }
            if link.is_leaf() {
                let other_hash = hash_of(link.offset());
                let top = branch(space, alloc, step, (hash, Link::leaf(leaf, hash)), (other_hash, link))?;
                return Ok(Place { node: step.node, slot, link: Link::node(top) });
            }
            step = step.down(link.offset()).expect("no node lies below the last bits of the hash");
        }
    }

    /// Takes a leaf out. Nodes left empty, or with a single leaf, are taken out with it, so the table is never larger than its content
    /// asks for. True when it was there. The caller raises the reclaim word before anything is allocated again, and frees the leaf.
    pub fn remove(self, words: Words<'_>, alloc: &mut Allocator, hash: u64, leaf: Offset) -> bool {
        let mut path = [self.top(); LEVELS_MAX];
        let mut depth = 0;
        loop {
            let step = path[depth];
            let link = Link(words.load(step.node, step.slot(hash)));
            if link.is_leaf() && link.offset() == leaf {
                break;
            }
            if link.is_empty() || link.is_leaf() {
                return false;
            }
            depth += 1;
            path[depth] = step.down(link.offset()).expect("no node lies below the last bits of the hash");
        }
        words.publish(path[depth].node, path[depth].slot(hash), Link::EMPTY.0);
        while depth > 0 {
            let Some(rest) = sole_leaf(words, path[depth].node) else { break };
            words.publish(path[depth - 1].node, path[depth - 1].slot(hash), rest.0);
            alloc.free(words, path[depth].node);
            depth -= 1;
        }
        true
    }

    /// Frees the root node and all below it; the leaves are the caller's. For tables that nothing leads to any more.
    pub fn free_nodes(self, words: Words<'_>, alloc: &mut Allocator) {
        for slot in 0..NODE_LINKS {
            let link = Link(words.load(self.root, slot));
            if !link.is_empty() && !link.is_leaf() {
                Table::of_node(link.offset()).free_nodes(words, alloc); // at most 16 deep, like every table
            }
        }
        alloc.free(words, self.root);
    }

    /// All leaves, in no order that means anything. For the owner: the table must not change meanwhile.
    pub fn leaves(self, words: Words<'_>) -> Leaves<'_> {
        Leaves::new(words, self.root, 1 << self.root_bits)
    }
}

/// `Some(link)` when a node holds nothing (`EMPTY`) or a single leaf: then the link can stand in its place.
fn sole_leaf(words: Words<'_>, node: Offset) -> Option<Link> {
    let mut rest = Link::EMPTY;
    for slot in 0..NODE_LINKS {
        let link = Link(words.load(node, slot));
        if !link.is_empty() {
            if !rest.is_empty() || !link.is_leaf() {
                return None;
            }
            rest = link;
        }
    }
    Some(rest)
}

/// Nodes below `above` down to the one where the two hashes part, which holds both leaves. Not yet linked. On failure nothing is kept.
fn branch(space: &Space, alloc: &mut Allocator, above: Step, new: (u64, Link), old: (u64, Link)) -> Result<Offset, NoRoom> {
    let words = space.words();
    let step = above.down(Offset(0)).ok_or(NoRoom)?;
    let node = new_node(space, alloc)?;
    let (new_slot, old_slot) = (step.slot(new.0), step.slot(old.0));
    if new_slot != old_slot {
        words.store(node, new_slot, new.1.0);
        words.store(node, old_slot, old.1.0);
        return Ok(node);
    }
    match branch(space, alloc, step, new, old) {
        Ok(below) => {
            words.store(node, new_slot, Link::node(below).0);
            Ok(node)
        }
        Err(full) => {
            alloc.free(words, node); // never linked, so no reader can be in it
            Err(full)
        }
    }
}

/// An empty node that nothing leads to yet.
pub(super) fn new_node(space: &Space, alloc: &mut Allocator) -> Result<Offset, NoRoom> {
    let node = alloc.allocate(space, Kind::Node, NODE_BYTES, Purpose::Growth).ok_or(NoRoom)?;
    release_fence(); // the block may have been freed since the mutation began
    for slot in 0..NODE_LINKS {
        space.words().store(node, slot, Link::EMPTY.0);
    }
    Ok(node)
}

/// Iterator over leaves; its stack is a fixed array, so it allocates nothing.
pub(super) struct Leaves<'a> {
    words: Words<'a>,
    stack: [(Offset, usize, usize); LEVELS_MAX],
    depth: usize,
}

impl<'a> Leaves<'a> {
    /// Over an array of `links` links at `at` and all below it.
    pub fn new(words: Words<'a>, at: Offset, links: usize) -> Leaves<'a> {
        Leaves { words, stack: [(at, 0, links); LEVELS_MAX], depth: 1 }
    }
}

impl Iterator for Leaves<'_> {
    type Item = Offset;

    fn next(&mut self) -> Option<Offset> {
        while self.depth > 0 {
            let (node, slot, links) = self.stack[self.depth - 1];
            if slot == links {
                self.depth -= 1;
                continue;
            }
            self.stack[self.depth - 1].1 += 1;
            let link = Link(self.words.load(node, slot));
            if link.is_leaf() {
                return Some(link.offset());
            }
            if !link.is_empty() {
                self.stack[self.depth] = (link.offset(), 0, NODE_LINKS);
                self.depth += 1;
            }
        }
        None
    }
}
