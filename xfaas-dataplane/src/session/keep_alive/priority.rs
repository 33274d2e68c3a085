//! Who goes first when memory is short. Called by whoever owns the memory: a shard, the simulator in `bench`. No clock, no I/O.

use std::cmp::Ordering;

/// How sessions are ordered for eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictionOrder {
    LeastRecentlyUsed,
    /// Greedy-dual-size-frequency, as in FaasCache. Source: Fuerst and Sharma, "FaasCache", ASPLOS 2021, section 4.
    GreedyDual,
}

/// The lowest goes first. Never NaN, so the order is total.
#[derive(Clone, Copy, Debug)]
pub struct Priority(f64);

impl PartialEq for Priority {
    fn eq(&self, other: &Priority) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Priority {}

impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Priority) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Priority {
    fn cmp(&self, other: &Priority) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What is known of a session, or of a container of a function, when it was last used.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub at_ms: u64,
    /// Requests since it was last loaded anew: `KeepAlive::frequency`.
    pub frequency: u32,
    /// What a cold start takes longer than a warm one.
    pub cold_us: u64,
    /// Memory that its eviction would free; 0 counts as 1.
    pub size_bytes: u64,
}

/// Gives priorities to all that share one memory limit. The clock makes what was not used for long go some time, however often it was used
/// before.
#[derive(Clone, Debug)]
pub struct Evictor {
    order: EvictionOrder,
    clock: f64,
}

impl Evictor {
    pub fn new(order: EvictionOrder) -> Evictor {
        Evictor { order, clock: 0.0 }
    }

    /// What `priority_since` wants to know of the time of a use.
    pub fn clock(&self) -> f64 {
        self.clock
    }

    /// The priority until it is used again. Output: with greedy-dual, clock + frequency x cost / size, in microseconds a MiB.
    pub fn priority(&self, last: &Use) -> Priority {
        self.priority_since(self.clock, last)
    }

    /// The same for something that was used when the clock was `clock`, for whoever does not know frequency and size at each use.
    pub fn priority_since(&self, clock: f64, last: &Use) -> Priority {
        Priority(match self.order {
            EvictionOrder::LeastRecentlyUsed => last.at_ms as f64,
            EvictionOrder::GreedyDual => {
                let size_mib = last.size_bytes.max(1) as f64 / (1_u64 << 20) as f64;
                clock + f64::from(last.frequency) * last.cold_us as f64 / size_mib
            }
        })
    }

    /// To be told of each eviction for want of memory, not of those for time.
    pub fn on_eviction(&mut self, evicted: Priority) {
        self.clock = self.clock.max(evicted.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn used(frequency: u32, cold_us: u64, size_bytes: u64) -> Use {
        Use { at_ms: 0, frequency, cold_us, size_bytes }
    }

    #[test]
    fn what_is_asked_for_often_is_dear_to_start_or_is_small_stays() {
        let evictor = Evictor::new(EvictionOrder::GreedyDual);
        let plain = evictor.priority(&used(2, 1_000, 4 * MIB));
        assert_eq!(plain, Priority(500.0));
        assert!(evictor.priority(&used(3, 1_000, 4 * MIB)) > plain);
        assert!(evictor.priority(&used(2, 2_000, 4 * MIB)) > plain);
        assert!(evictor.priority(&used(2, 1_000, MIB)) > plain);
    }

    #[test]
    fn the_clock_lets_the_newly_used_overtake_the_once_popular() {
        let mut evictor = Evictor::new(EvictionOrder::GreedyDual);
        let popular = evictor.priority(&used(10, 1_000, MIB));
        let rare = evictor.priority(&used(1, 1_000, MIB));
        assert!(rare < popular);
        evictor.on_eviction(evictor.priority(&used(9, 1_100, MIB)));
        assert!(evictor.priority(&used(1, 1_000, MIB)) > popular);
    }

    #[test]
    fn a_priority_can_be_asked_for_later() {
        let mut evictor = Evictor::new(EvictionOrder::GreedyDual);
        let (last, used_at) = (used(3, 1_000, MIB), evictor.clock());
        let then = evictor.priority(&last);
        evictor.on_eviction(evictor.priority(&used(9, 1_100, MIB)));
        assert_eq!(evictor.priority_since(used_at, &last), then);
        assert!(evictor.priority_since(evictor.clock(), &last) > then);
    }

    #[test]
    fn least_recently_used_looks_at_the_time_alone() {
        let evictor = Evictor::new(EvictionOrder::LeastRecentlyUsed);
        let early = Use { at_ms: 1, ..used(100, 100, 1) };
        assert!(evictor.priority(&early) < evictor.priority(&Use { at_ms: 2, ..used(1, 1, 1) }));
    }

    proptest! {
        /// The clock only goes forward, and nobody who is used after an eviction ranks below the evicted.
        #[test]
        fn whoever_is_used_later_outranks_the_evicted(uses in prop::collection::vec((0_u32..=u32::MAX, any::<u64>(), any::<u64>()), 1..64)) {
            let mut evictor = Evictor::new(EvictionOrder::GreedyDual);
            let mut evicted = Priority(0.0);
            for (frequency, cold_us, size_bytes) in uses {
                let priority = evictor.priority(&used(frequency, cold_us, size_bytes));
                prop_assert!(priority >= evicted);
                evicted = priority;
                evictor.on_eviction(evicted);
            }
        }
    }
}
