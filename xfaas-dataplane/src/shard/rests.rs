//! A shard in the real-time class leaves its CPU for a moment again and again while it is busy without a pause. Otherwise the kernel, which keeps
//! a part of each second for ordinary threads, takes it away for all of that part at once: 50 ms by default. Called by the loop each turn.

use crate::sys::clock;
use crate::sys::realtime::Bound;
use std::time::Duration;

/// How often the CPU time is asked: a system call.
const LOOK_NS: u64 = 2_000_000;
/// What is left to the kernel's own bound, parts of 1,000: other real-time threads are counted there as well.
const MARGIN: u64 = 10;
/// So much may be owed before a rest, or a short burst would be interrupted: less than the margin is in the kernel's period of a second.
const OWED_NS_MAX: u64 = 5_000_000;
/// A longer rest would be seen. What is still owed is rested later.
const REST_NS_MAX: u64 = 1_000_000;

/// What one shard's thread may use of its CPU.
#[derive(Debug)]
pub(super) struct Rests {
    /// Parts of 1,000 of the time.
    share: u64,
    looked_ns: u64,
    used_ns: u64,
    /// CPU time used beyond what was allowed so far; what was not used is not kept for later.
    owed_ns: u64,
}

impl Rests {
    /// Of the calling thread. `None`: the kernel sets no bound.
    pub(super) fn new(bound: Option<Bound>, now_ns: u64) -> Option<Rests> {
        let share = bound?.share().saturating_sub(MARGIN).max(MARGIN);
        Some(Rests { share, looked_ns: now_ns, used_ns: clock::thread_cpu_ns(), owed_ns: 0 })
    }

    /// How long to rest now, if at all. To be called by the thread that `new` was called by.
    pub(super) fn due(&mut self, now_ns: u64) -> Option<Duration> {
        (now_ns.saturating_sub(self.looked_ns) >= LOOK_NS).then(|| self.account(now_ns, clock::thread_cpu_ns()))?
    }

    fn account(&mut self, now_ns: u64, used_ns: u64) -> Option<Duration> {
        let allowed_ns = now_ns.saturating_sub(self.looked_ns).saturating_mul(self.share) / 1_000;
        self.owed_ns = self.owed_ns.saturating_add(used_ns.saturating_sub(self.used_ns)).saturating_sub(allowed_ns);
        (self.looked_ns, self.used_ns) = (now_ns, used_ns);
        let owed_ns = self.owed_ns.checked_sub(OWED_NS_MAX).filter(|owed_ns| *owed_ns > 0)?;
        Some(Duration::from_nanos((owed_ns.saturating_mul(1_000) / self.share).min(REST_NS_MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const MS: u64 = 1_000_000;

    fn rests() -> Rests {
        Rests { share: 940, looked_ns: 0, used_ns: 0, owed_ns: 0 }
    }

    #[test]
    fn who_is_never_idle_rests_little_and_often_and_stays_within_the_share() {
        let mut rests = rests();
        let (mut now_ns, mut used_ns, mut rested_ns_max) = (0, 0, 0);
        while now_ns < 1_000 * MS {
            (now_ns, used_ns) = (now_ns + 2 * MS, used_ns + 2 * MS);
            if let Some(rest) = rests.account(now_ns, used_ns) {
                now_ns += rest.as_nanos() as u64;
                rested_ns_max = rested_ns_max.max(rest.as_nanos() as u64);
            }
        }
        assert!((935 * MS..=950 * MS).contains(&used_ns), "{used_ns} ns of a second");
        assert!(rested_ns_max < MS / 4, "{rested_ns_max} ns at once");
    }

    #[test]
    fn who_is_idle_at_times_never_rests() {
        let mut rests = rests();
        for i in 1..=1_000 {
            assert_eq!(rests.account(i * 10 * MS, i * 9 * MS), None);
        }
    }

    #[test]
    fn what_is_owed_after_a_long_turn_is_rested_in_pieces() {
        let mut rests = rests();
        let first = rests.account(500 * MS, 500 * MS).unwrap();
        assert_eq!(first, Duration::from_nanos(REST_NS_MAX));
        assert!(rests.account(502 * MS, 501 * MS).is_some());
        assert_eq!(rests.account(2_000 * MS, 501 * MS), None); // long idle: nothing is owed any more
        assert_eq!(rests.account(2_002 * MS, 503 * MS), None);
    }

    #[test]
    fn a_kernel_without_a_bound_wants_no_rests_and_a_small_share_is_no_panic() {
        assert!(Rests::new(None, 0).is_none());
        assert!(Rests::new(Some(Bound { runtime_us: 0, period_us: 1_000_000 }), 0).unwrap().account(10 * MS, u64::MAX).is_some());
    }

    #[test]
    fn a_thread_that_spins_keeps_to_its_share_by_the_kernels_own_count() {
        let Some(mut rests) = Rests::new(Some(Bound { runtime_us: 500_000, period_us: 1_000_000 }), clock::monotonic_ns()) else {
            panic!("there is a bound")
        };
        let (began, began_cpu_ns) = (Instant::now(), clock::thread_cpu_ns());
        while began.elapsed() < Duration::from_millis(300) {
            if let Some(rest) = rests.due(clock::monotonic_ns()) {
                std::thread::sleep(rest);
            }
        }
        let (passed, used_ns) = (began.elapsed(), clock::thread_cpu_ns() - began_cpu_ns);
        assert!(used_ns * 100 < passed.as_nanos() as u64 * 53, "{used_ns} ns of {passed:?}");
    }
}
