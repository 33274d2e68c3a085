//! Idle workers of a shard, oldest first: a doubly linked list that allocates nothing when a warm request takes a worker out and puts it back.
//! The links lie side by side, eight bytes a worker, and not in the workers' slots: a worker that leaves or comes changes its neighbours' links,
//! and those are workers of other sessions, whose slots the caches do not have.

use crate::sys::prefetch_span;

/// No neighbour.
const NONE: u32 = u32::MAX;

/// A worker's place in the list.
#[derive(Clone, Copy, Debug)]
struct Links {
    older: u32,
    newer: u32,
}

const UNLINKED: Links = Links { older: NONE, newer: NONE };

/// Ends of the list, its length, and the links by the workers' numbers, which are small because slots are used again.
#[derive(Debug)]
pub(super) struct IdleList {
    oldest: u32,
    newest: u32,
    length: usize,
    links: Vec<Links>,
}

impl IdleList {
    /// An empty list. Numbers below `room` allocate nothing later.
    pub(super) fn new(room: usize) -> IdleList {
        IdleList { oldest: NONE, newest: NONE, length: 0, links: Vec::with_capacity(room) }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// The worker that became idle right after `id`, which is in the list.
    pub(super) fn newer(&self, id: u32) -> Option<u32> {
        let newer = self.links[id as usize].newer;
        (newer != NONE).then_some(newer)
    }

    pub(super) fn push(&mut self, id: u32) {
        if self.links.len() <= id as usize {
            self.links.resize(id as usize + 1, UNLINKED);
        }
        self.links[id as usize] = Links { older: self.newest, newer: NONE };
        match self.newest {
            NONE => self.oldest = id,
            newest => self.links[newest as usize].newer = id,
        }
        self.newest = id;
        self.length += 1;
    }

    /// Begins to bring what taking the worker out and putting it back will touch into the caches.
    pub(super) fn prefetch(&self, id: u32) {
        let Some(links) = self.links.get(id as usize) else { return };
        for neighbour in [links.older, links.newer] {
            if let Some(links) = self.links.get(neighbour as usize) {
                prefetch_span((&raw const *links).addr(), size_of::<Links>());
            }
        }
    }

    /// Takes out a worker that is in the list.
    pub(super) fn remove(&mut self, id: u32) {
        let Links { older, newer } = self.links[id as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        self.length -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn idle_list_matches_a_vector(ops in prop::collection::vec(0u32..16, 0..256)) {
            let (mut list, mut model) = (IdleList::new(4), Vec::new());
            for id in ops {
                if let Some(at) = model.iter().position(|other| *other == id) {
                    list.remove(id);
                    model.remove(at);
                } else {
                    list.push(id);
                    model.push(id);
                }
                prop_assert_eq!(list.len(), model.len());
                let mut walked = Vec::new();
                let mut next = list.oldest();
                while let Some(id) = next {
                    walked.push(id);
                    next = list.newer(id);
                }
                prop_assert_eq!(&walked, &model);
            }
        }
    }
}
