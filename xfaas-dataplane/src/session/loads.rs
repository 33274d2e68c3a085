//! How busy each shard of the process is, as far as the choice of a place for a new container goes. Each shard writes its own number once a turn; any
//! may read all of them. A number may be a turn old: it decides where work goes, never whether it is right.

use std::sync::atomic::{AtomicU64, Ordering};

/// One shard's number, on cache lines of its own.
#[repr(align(128))] // the prefetcher fetches 64-byte lines in pairs
#[derive(Debug, Default)]
struct Load(AtomicU64);

/// The loads of all shards of a process.
#[derive(Debug)]
pub struct ShardLoads(Box<[Load]>);

impl ShardLoads {
    pub fn new(shards: usize) -> ShardLoads {
        ShardLoads((0..shards).map(|_| Load::default()).collect())
    }

    /// Says how busy a shard is. `calls`: that run or wait. `workers`: alive, idle ones too; they count only between shards with as many calls.
    pub fn publish(&self, shard: u16, calls: u32, workers: u32) {
        self.0[usize::from(shard)].0.store(u64::from(calls) << 32 | u64::from(workers), Ordering::Relaxed);
    }

    /// The least busy of the shards that `may_be` is true for; among equals the first behind `from`, so that they do not all go to one.
    pub fn least(&self, from: u16, may_be: impl Fn(u16) -> bool) -> Option<u16> {
        let shards = self.0.len();
        let in_turn = (1..=shards).map(|step| ((usize::from(from) + step) % shards) as u16);
        in_turn.filter(|shard| may_be(*shard)).min_by_key(|shard| self.0[usize::from(*shard)].0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_busy_shard_is_found_and_equals_take_turns() {
        let loads = ShardLoads::new(4);
        assert_eq!(loads.least(1, |_| true), Some(2));
        assert_eq!(loads.least(3, |_| true), Some(0));
        for (shard, calls, workers) in [(0, 5, 0), (1, 2, 9), (2, 2, 3), (3, 7, 0)] {
            loads.publish(shard, calls, workers);
        }
        assert_eq!(loads.least(0, |_| true), Some(2), "as many calls, fewer workers");
        assert_eq!(loads.least(0, |shard| shard != 2), Some(1));
        assert_eq!(loads.least(0, |_| false), None);
        assert_eq!(ShardLoads::new(0).least(0, |_| true), None);
    }
}
