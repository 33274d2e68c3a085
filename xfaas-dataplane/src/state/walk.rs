//! A walk over a table that can rest and go on after the table has changed: its position is a hash, not a place. Called by `compact`.
//!
//! The walk goes in the order of the hashes, as the table uses their bits, so what was passed stays passed however nodes come and go. It
//! passes a leaf again when it rises or falls in the table while the walk rests there: to look twice does no harm.

use super::table::{LEVELS_MAX, Link, NODE_LINKS, NoRoom};
use super::words::{Offset, WORD_BYTES, Words};

/// A position between two leaves: the links chosen on each level. As new: before the first leaf.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor {
    slots: [u16; LEVELS_MAX],
    depth: usize,
}

/// A link, and where it lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub at: Offset,
    pub link: Link,
}

impl Place {
    pub fn load(words: Words<'_>, at: Offset) -> Place {
        Place { at, link: Link(words.load(at, 0)) }
    }
}

impl Cursor {
    /// The leaf at or after the position, in the table whose first `links` links lie at `at`; `None` at the end. `enter` sees each node on
    /// the way with the place of the link to it, may move it, and says where it is. Errors: of `enter`.
    pub fn leaf(
        &mut self,
        words: Words<'_>,
        at: Offset,
        links: usize,
        mut enter: impl FnMut(Place) -> Result<Offset, NoRoom>,
    ) -> Result<Option<Place>, NoRoom> {
        let mut nodes = [(at, links); LEVELS_MAX];
        self.depth = 0;
        loop {
            let (node, links) = nodes[self.depth];
            let slot = usize::from(self.slots[self.depth]);
            if slot >= links {
                if self.depth == 0 {
                    return Ok(None);
                }
                self.depth -= 1;
                self.pass();
                continue;
            }
            let place = Place::load(words, node.plus((slot * WORD_BYTES) as u64));
            if place.link.is_leaf() {
                return Ok(Some(place));
            }
            if place.link.is_empty() {
                self.pass();
                continue;
            }
            nodes[self.depth + 1] = (enter(place)?, NODE_LINKS); // no node lies below the last level
            self.depth += 1;
        }
    }

    /// Goes on behind what `leaf` returned last.
    pub fn pass(&mut self) {
        self.slots[self.depth] += 1;
        self.slots[self.depth + 1..].fill(0);
    }
}
