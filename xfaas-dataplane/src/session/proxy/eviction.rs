//! Workers that go: to make room for new ones, after their time, or because their function was replaced.

use super::{Phase, Proxy};
use crate::session::namespace::NamespaceId;
use crate::worker::{Engine, ForkError, Program, Worker};

/// How long a worker stays idle on a node that is short of memory for guests.
const SHORT_OF_MEMORY_NS: u64 = 1_000_000_000;

impl Proxy {
    /// A new worker. For the good of the namespace `keep` idle ones go, the oldest first, until there is room for it: one for its place, but as many as it
    /// takes for its memory. Errors: `PoolFull` if all the others are busy.
    pub(super) fn fork_with_room(&mut self, program: &Program, keep: NamespaceId) -> Result<Worker, ForkError> {
        // While it runs it is too late: nobody can go then.
        while !program.has_room_to_grow() && self.evict_oldest(keep) {}
        loop {
            match Worker::fork(program) {
                Err(ForkError::PoolFull) if self.evict_oldest(keep) => {}
                forked => return forked,
            }
        }
    }

    /// Drops the longest idle worker of the shard, for the good of `keep`, which stays even if empty. False: none is idle.
    pub(super) fn evict_oldest(&mut self, keep: NamespaceId) -> bool {
        let Some(id) = self.idle.oldest() else { return false };
        let namespace = self.workers[id as usize].namespace;
        self.drop_idle(id);
        if namespace != keep {
            self.namespaces.remove_if_empty(namespace);
        }
        self.stats.evictions += 1;
        true
    }

    pub(super) fn drop_idle(&mut self, id: u32) {
        self.idle.remove(id);
        let slot = self.workers.remove(id as usize);
        self.namespaces.get_mut(slot.namespace).idle.remove(id);
    }

    pub(super) fn drop_stale(&mut self) {
        let mut next = self.idle.oldest();
        while let Some(id) = next {
            let slot = &self.workers[id as usize];
            next = self.idle.newer(id);
            let current = self.functions[usize::from(slot.function)].as_ref();
            if current.is_none_or(|current| current.generation != slot.generation) {
                let namespace = slot.namespace;
                self.drop_idle(id);
                self.namespaces.remove_if_empty(namespace);
            }
        }
    }

    /// Drops workers that were idle for too long, which is sooner when guests' memory runs short.
    pub(super) fn drop_long_idle(&mut self, now_ns: u64) {
        let keep_warm_ns = self.options.keep_warm_ns;
        // All functions are of one engine.
        let engine = self.functions.iter().flatten().next().map(|function| function.program.engine().clone());
        while let Some(id) = self.idle.oldest() {
            let is_short = engine.as_ref().is_some_and(Engine::is_short_of_memory);
            let keep_ns = if is_short { keep_warm_ns.min(SHORT_OF_MEMORY_NS) } else { keep_warm_ns };
            let slot = &self.workers[id as usize];
            let Phase::Idle { since_ns } = slot.phase else { unreachable!("the idle list holds idle workers") };
            if now_ns.saturating_sub(since_ns) < keep_ns {
                break;
            }
            let namespace = slot.namespace;
            self.drop_idle(id);
            self.namespaces.remove_if_empty(namespace);
        }
    }
}
