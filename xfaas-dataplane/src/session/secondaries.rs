//! The secondary containers that one namespace has on other shards of the process, as its primary knows them: how many of their workers are busy, and
//! which one gets the next call. ARCHITECTURE.md "Secondary containers". Knows neither calls nor messages.

use super::loads::ShardLoads;

struct Secondary {
    shard: u16,
    /// Calls that it was given and has not given back.
    running: u16,
    /// Meant while it has none: its workers are dropped some time after that.
    idle_since_ns: u64,
}

impl Secondary {
    fn is_there(&self, keep_warm_ns: u64, now_ns: u64) -> bool {
        self.running > 0 || now_ns.saturating_sub(self.idle_since_ns) < keep_warm_ns
    }
}

/// Empty for nearly all namespaces: then it owns no memory.
#[derive(Default)]
pub(super) struct Secondaries(Vec<Secondary>);

/// What decides about a place for a call.
pub(super) struct PlaceRules<'a> {
    pub(super) workers_max: u16,
    /// The primary included.
    pub(super) containers_max: u16,
    /// Idle workers are dropped after this time, and a secondary is gone with its last worker. Nanoseconds.
    pub(super) keep_warm_ns: u64,
    /// The shard of the primary.
    pub(super) core: u16,
    pub(super) loads: &'a ShardLoads,
}

impl Secondaries {
    /// True while one of them has a call.
    pub(super) fn is_busy(&self) -> bool {
        self.0.iter().any(|secondary| secondary.running > 0)
    }

    /// How many there are, as far as is known here.
    pub(super) fn count(&self, keep_warm_ns: u64, now_ns: u64) -> usize {
        self.0.iter().filter(|secondary| secondary.is_there(keep_warm_ns, now_ns)).count()
    }

    /// The shard that gets the next call: of the fullest secondary with room, else a new one on the least busy shard. `None`: there is no room.
    pub(super) fn place(&mut self, rules: &PlaceRules<'_>, now_ns: u64) -> Option<u16> {
        self.0.retain(|secondary| secondary.is_there(rules.keep_warm_ns, now_ns));
        let with_room = self.0.iter_mut().filter(|secondary| secondary.running < rules.workers_max);
        if let Some(fullest) = with_room.max_by_key(|secondary| secondary.running) {
            fullest.running += 1;
            return Some(fullest.shard);
        }
        if self.0.len() + 1 >= usize::from(rules.containers_max) {
            return None;
        }
        let is_free = |shard: u16| shard != rules.core && self.0.iter().all(|secondary| secondary.shard != shard);
        let shard = rules.loads.least(rules.core, is_free)?;
        self.0.push(Secondary { shard, running: 1, idle_since_ns: 0 });
        Some(shard)
    }

    /// A call that was placed on `shard` is over, or did not get there.
    pub(super) fn end(&mut self, shard: u16, now_ns: u64) {
        if let Some(secondary) = self.0.iter_mut().find(|secondary| secondary.shard == shard) {
            debug_assert!(secondary.running > 0, "a call ends once");
            secondary.running = secondary.running.saturating_sub(1);
            secondary.idle_since_ns = now_ns;
        }
    }

    /// Forgets idle ones.
    pub(super) fn clear(&mut self) {
        debug_assert!(!self.is_busy(), "its calls still run");
        self.0 = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_go_to_the_fullest_with_room_then_to_a_new_one_and_then_nowhere() {
        let loads = ShardLoads::new(4);
        loads.publish(1, 3, 0);
        let rules = PlaceRules { workers_max: 2, containers_max: 3, keep_warm_ns: 100, core: 0, loads: &loads };
        let mut secondaries = Secondaries::default();
        let places: Vec<Option<u16>> = (0..5).map(|_| secondaries.place(&rules, 0)).collect();
        assert_eq!(places, [Some(2), Some(2), Some(3), Some(3), None], "the busy shard is nobody's choice");
        secondaries.end(3, 10);
        secondaries.end(3, 20);
        secondaries.end(2, 30);
        assert_eq!(secondaries.place(&rules, 40), Some(2), "the fullest with room");
        assert_eq!(secondaries.place(&rules, 50), Some(3), "its workers are still warm");
        secondaries.end(3, 60);
        secondaries.end(2, 60);
        loads.publish(1, 0, 0);
        assert_eq!(secondaries.place(&rules, 60), Some(2));
        assert_eq!(secondaries.place(&rules, 160), Some(1), "the one on shard 3 is gone by now");
        assert!(secondaries.is_busy());
        assert_eq!((secondaries.count(100, 160), secondaries.count(100, 0)), (2, 2));
        secondaries.end(2, 165);
        secondaries.end(2, 170);
        assert_eq!((secondaries.count(100, 269), secondaries.count(100, 270)), (2, 1));
    }

    #[test]
    fn one_container_or_one_shard_leave_no_place() {
        let loads = ShardLoads::new(1);
        let rules = PlaceRules { workers_max: 9, containers_max: 9, keep_warm_ns: 100, core: 0, loads: &loads };
        assert_eq!(Secondaries::default().place(&rules, 0), None);
        let loads = ShardLoads::new(2);
        assert_eq!(Secondaries::default().place(&PlaceRules { containers_max: 1, loads: &loads, ..rules }, 0), None);
    }
}
