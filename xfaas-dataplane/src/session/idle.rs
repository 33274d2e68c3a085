//! Idle workers of a shard, oldest first: a doubly linked list whose links lie in the workers' slots, so that a warm request that takes
//! a worker out and puts it back allocates nothing.

/// No neighbour.
const NONE: u32 = u32::MAX;

/// A slot's place in the list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    older: u32,
    newer: u32,
}

impl Default for Links {
    fn default() -> Links {
        Links { older: NONE, newer: NONE }
    }
}

/// Ends of the list and its length. `links(id)` gives the slot's links.
#[derive(Debug)]
pub(super) struct IdleList {
    oldest: u32,
    newest: u32,
    length: usize,
}

impl IdleList {
    pub(super) fn new() -> IdleList {
        IdleList { oldest: NONE, newest: NONE, length: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// The worker that became idle right after `id`.
    pub(super) fn newer(links: &Links) -> Option<u32> {
        (links.newer != NONE).then_some(links.newer)
    }

    pub(super) fn push<S: LinkStore>(&mut self, store: &mut S, id: u32) {
        *store.links(id) = Links { older: self.newest, newer: NONE };
        match self.newest {
            NONE => self.oldest = id,
            newest => store.links(newest).newer = id,
        }
        self.newest = id;
        self.length += 1;
    }

    pub(super) fn remove<S: LinkStore>(&mut self, store: &mut S, id: u32) {
        let Links { older, newer } = std::mem::take(store.links(id));
        match older {
            NONE => self.oldest = newer,
            older => store.links(older).newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => store.links(newer).older = older,
        }
        self.length -= 1;
    }
}

/// Where the links lie.
pub(super) trait LinkStore {
    fn links(&mut self, id: u32) -> &mut Links;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl LinkStore for Vec<Links> {
        fn links(&mut self, id: u32) -> &mut Links {
            &mut self[id as usize]
        }
    }

    proptest! {
        #[test]
        fn idle_list_matches_a_vector(ops in prop::collection::vec(0u32..16, 0..256)) {
            let (mut list, mut store, mut model) = (IdleList::new(), vec![Links::default(); 16], Vec::new());
            for id in ops {
                if let Some(at) = model.iter().position(|other| *other == id) {
                    list.remove(&mut store, id);
                    model.remove(at);
                } else {
                    list.push(&mut store, id);
                    model.push(id);
                }
                prop_assert_eq!(list.len(), model.len());
                let mut walked = Vec::new();
                let mut next = list.oldest();
                while let Some(id) = next {
                    walked.push(id);
                    next = IdleList::newer(&store[id as usize]);
                }
                prop_assert_eq!(&walked, &model);
            }
        }
    }
}
