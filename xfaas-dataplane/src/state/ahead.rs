//! Looks at what the scan at open is about to read, many places at once: each alone would be a cache miss that everything waits for.
//! Called by `scan`. Checks nothing and believes nothing: what it meets may be corrupt, the scan says so.
//!
//! A table's entries lie all over the region. The scan follows one link after another, so each step costs the way to memory and back. Here
//! all nodes of a level below one link of the root are touched in one loop, then all leaves, then what those lead to: loads that do not
//! depend on each other overlap in the processor, some ten at a time.

use std::hint::black_box;

use super::alloc::Allocator;
use super::namespace;
use super::table::{LEVELS_MAX, Link, NODE_BYTES, NODE_LINKS};
use super::words::{Offset, Words};

const LINE_BYTES: usize = 64;
/// Bytes of a record or cell that the scan reads, mostly.
const LEAF_BYTES: usize = 2 * LINE_BYTES;
/// Nodes or leaves touched at once: more would push each other out of the cache before the scan comes to them.
const BATCH_MAX: usize = 1_024;

/// What the leaves below a node are, or that they have been looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ahead {
    Sessions,
    Keys,
    Done,
}

impl Ahead {
    /// Before the scan of what `links` lead to. Output: what to call this on for the links below: `Done`, if they were not too many.
    pub fn look(self, words: Words<'_>, alloc: &Allocator, links: impl Iterator<Item = Link>) -> Ahead {
        if self == Ahead::Done {
            return self;
        }
        let mut batch = Batch::default();
        links.for_each(|link| batch.add(link));
        for _ in 0..LEVELS_MAX {
            let nodes = std::mem::take(&mut batch.nodes);
            touch(words, &nodes, NODE_BYTES);
            for at in nodes {
                (0..NODE_LINKS).for_each(|slot| batch.add(Link(words.get(at, slot).unwrap_or(0))));
            }
            if batch.nodes.len().max(batch.leaves.len()) > BATCH_MAX {
                return self;
            }
        }
        look_at_leaves(words, alloc, &batch.leaves);
        if self == Ahead::Sessions {
            let own_links = batch.leaves.iter().flat_map(|record| namespace::own_links(*record));
            let cells = own_links.map(|place| Link(words.get(place, 0).unwrap_or(0))).filter(|link| link.is_leaf()).map(Link::offset);
            look_at_leaves(words, alloc, &cells.collect::<Vec<_>>());
        }
        Ahead::Done
    }

    /// The same for all links of the node at `node`.
    pub fn look_at_node(self, words: Words<'_>, alloc: &Allocator, node: Offset) -> Ahead {
        self.look(words, alloc, (0..NODE_LINKS).map(|slot| Link(words.get(node, slot).unwrap_or(0))))
    }
}

/// Loads something from each cache line of `bytes` bytes at each place.
fn touch(words: Words<'_>, places: &[Offset], bytes: usize) {
    let mut sum = 0u64;
    for place in places {
        for line in (0..bytes).step_by(LINE_BYTES) {
            sum = sum.wrapping_add(words.get(place.plus(line as u64), 0).unwrap_or(0));
        }
    }
    black_box(sum);
}

fn look_at_leaves(words: Words<'_>, alloc: &Allocator, leaves: &[Offset]) {
    touch(words, leaves, LEAF_BYTES);
    leaves.iter().for_each(|leaf| alloc.touch(*leaf));
}

/// Places to be touched.
#[derive(Default)]
struct Batch {
    nodes: Vec<Offset>,
    leaves: Vec<Offset>,
}

impl Batch {
    fn add(&mut self, link: Link) {
        if !link.is_empty() {
            let places = if link.is_leaf() { &mut self.leaves } else { &mut self.nodes };
            places.push(link.offset());
        }
    }
}
