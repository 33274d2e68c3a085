//! How long what rests stays in memory, and when it is to be back: policies as plain values. Asked by shards (`shard/keeping.rs`) and by the
//! simulator in `bench` (`policies`), which replays a trace with this very code. Reads no clock and does nothing itself: times come in, windows go out.

mod histogram;
mod priority;

pub use self::priority::{EvictionOrder, Evictor, Priority, Use};

use self::histogram::{IdleHistogram, MINUTE_MS};

/// What a manifest can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlivePolicy {
    /// It stays for so long after each request.
    Fixed { keep_alive_ms: u64 },
    /// The windows come from the function's own idle times; the fixed time holds while they say too little.
    Hybrid { fallback_ms: u64 },
    /// It stays until memory is short.
    Unbounded,
}

/// What is to happen to something at rest, counted from the end of its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// 0: it stays loaded. Else it may go at once and should be loaded again after this time.
    pub pre_warm_ms: u64,
    /// How long it then stays loaded without a request.
    pub keep_alive_ms: u64,
}

/// The history of one function, or of an app's sessions. Bounded memory: 500 bytes with the hybrid policy, else 40.
#[derive(Clone, Debug)]
pub struct KeepAlive {
    policy: KeepAlivePolicy,
    histogram: Option<Box<IdleHistogram>>,
    /// When the last request ended, or began while none has ended since; `None` before the first one.
    last_ms: Option<u64>,
    frequency: u32,
}

impl KeepAlive {
    /// With idle times of up to four hours, by the minute.
    pub fn new(policy: KeepAlivePolicy) -> KeepAlive {
        KeepAlive::with_buckets(policy, MINUTE_MS)
    }

    /// With idle times of up to 240 times `bucket_ms`, which is 1 or more.
    pub fn with_buckets(policy: KeepAlivePolicy, bucket_ms: u64) -> KeepAlive {
        let histogram = matches!(policy, KeepAlivePolicy::Hybrid { .. }).then(|| Box::new(IdleHistogram::new(bucket_ms)));
        KeepAlive { policy, histogram, last_ms: None, frequency: 0 }
    }

    /// A request begins. Times never go back; one that does counts as no time. Cost: a few operations, no allocation.
    pub fn on_request(&mut self, now_ms: u64) {
        if let (Some(histogram), Some(last_ms)) = (&mut self.histogram, self.last_ms) {
            histogram.record(now_ms.saturating_sub(last_ms));
        }
        self.last_ms = Some(now_ms);
        self.frequency = self.frequency.saturating_add(1);
    }

    /// A request ended: idle time counts from here.
    pub fn on_end(&mut self, now_ms: u64) {
        self.last_ms = self.last_ms.max(Some(now_ms));
    }

    /// Something that shares this history was asked for again after so long a rest. Cost: a few operations, no allocation.
    pub fn on_rest(&mut self, idle_ms: u64) {
        if let Some(histogram) = &mut self.histogram {
            histogram.record(idle_ms);
        }
    }

    /// What the policy says now. Cost: with the hybrid policy at most two walks over 240 counts.
    pub fn windows(&self) -> Windows {
        let keep_for = |keep_alive_ms| Windows { pre_warm_ms: 0, keep_alive_ms };
        match self.policy {
            KeepAlivePolicy::Fixed { keep_alive_ms } => keep_for(keep_alive_ms),
            KeepAlivePolicy::Hybrid { fallback_ms } => {
                self.histogram.as_ref().and_then(|histogram| histogram.windows()).unwrap_or(keep_for(fallback_ms))
            }
            KeepAlivePolicy::Unbounded => keep_for(u64::MAX),
        }
    }

    /// Requests since the last `forget_frequency`.
    pub fn frequency(&self) -> u32 {
        self.frequency
    }

    /// Nothing of the function is in memory any more: greedy-dual counts anew, the idle times stay known.
    pub fn forget_frequency(&mut self) {
        self.frequency = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_time_is_the_same_whatever_comes() {
        let mut history = KeepAlive::new(KeepAlivePolicy::Fixed { keep_alive_ms: 7 });
        (0..100).for_each(|minute| history.on_request(minute * MINUTE_MS));
        assert_eq!(history.windows(), Windows { pre_warm_ms: 0, keep_alive_ms: 7 });
        assert_eq!(KeepAlive::new(KeepAlivePolicy::Unbounded).windows().keep_alive_ms, u64::MAX);
    }

    #[test]
    fn the_hybrid_policy_has_the_fixed_time_until_it_knows_better() {
        let mut history = KeepAlive::new(KeepAlivePolicy::Hybrid { fallback_ms: 10 * MINUTE_MS });
        for hour in 0..8 {
            assert_eq!(history.windows(), Windows { pre_warm_ms: 0, keep_alive_ms: 10 * MINUTE_MS });
            history.on_request(hour * 60 * MINUTE_MS);
        }
        history.on_request(8 * 60 * MINUTE_MS);
        assert_eq!(history.windows().pre_warm_ms, 54 * MINUTE_MS);
    }

    #[test]
    fn idle_time_is_from_the_end_of_a_request_to_the_next() {
        let mut history = KeepAlive::new(KeepAlivePolicy::Hybrid { fallback_ms: 0 });
        for hour in 0..9 {
            history.on_request(hour * 60 * MINUTE_MS);
            history.on_end((hour * 60 + 20) * MINUTE_MS);
        }
        assert_eq!(history.windows().pre_warm_ms, 36 * MINUTE_MS);
    }

    #[test]
    fn time_that_goes_back_is_no_idle_time() {
        let mut history = KeepAlive::new(KeepAlivePolicy::Hybrid { fallback_ms: 0 });
        (0..20).for_each(|step| history.on_request(1_000_000 - step));
        history.on_end(5);
        assert_eq!(history.windows(), Windows { pre_warm_ms: 0, keep_alive_ms: 66_000 });
    }

    #[test]
    fn rests_of_many_sessions_make_one_history_in_the_wanted_measure() {
        let mut history = KeepAlive::with_buckets(KeepAlivePolicy::Hybrid { fallback_ms: 1_000 }, 100);
        for session in 0..20 {
            assert_eq!(history.windows().pre_warm_ms, if session < 8 { 0 } else { 1_800 });
            history.on_rest(2_000 + session);
        }
        assert_eq!(history.windows(), Windows { pre_warm_ms: 1_800, keep_alive_ms: 2_310 - 1_800 });
        let mut fixed = KeepAlive::new(KeepAlivePolicy::Fixed { keep_alive_ms: 7 });
        fixed.on_rest(5);
        assert_eq!(fixed.windows().keep_alive_ms, 7);
    }

    #[test]
    fn frequency_is_forgotten_and_idle_times_are_not() {
        let mut history = KeepAlive::new(KeepAlivePolicy::Hybrid { fallback_ms: 0 });
        (0..20).for_each(|hour| history.on_request(hour * 60 * MINUTE_MS));
        assert_eq!(history.frequency(), 20);
        history.forget_frequency();
        assert_eq!((history.frequency(), history.windows().pre_warm_ms), (0, 54 * MINUTE_MS));
    }
}
