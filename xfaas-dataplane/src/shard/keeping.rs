//! How long sessions of one app stay in memory when they rest: the app's keep-alive policy, fed with what the shard sees of its sessions.
//! Called by `lifecycle` and `checkpoints`; reads no clock. The history is that of all sessions of the app on this shard: one session is asked for
//! too seldom to have one, and a function is not what rests.

use crate::session::{Alarms, KeepAlive, KeepAlivePolicy, Windows};
use crate::sys::clock::SECOND_NS;
use crate::worker::{AppRules, KeepAliveRule};
use xfaas_common::limits::KEEP_ALIVE_S_DEFAULT;

/// Times of sessions are kept in tenths of a second: in 32 bits that is 13 years.
pub(super) const TENTH_NS: u64 = SECOND_NS / 10;
const TENTH_MS: u64 = 100;
/// A bucket of the histogram is this part of the fallback time, and a minute at most: its range is 24 times the fallback time, or four hours.
const BUCKET_PART: u64 = 10;
const BUCKET_MS_MAX: u64 = 60_000;
/// A session leaves memory for the time up to the pre-warm window if that is at least so many buckets.
const DOZE_BUCKETS: u64 = 3;
/// A session that is idle is found within this part of its `keep_alive_s` more, and these times.
const IDLE_PART: u64 = 4;
const IDLE_NS_MIN: u64 = SECOND_NS / 4;
const IDLE_NS_MAX: u64 = 30 * SECOND_NS;
/// The same where sessions stay until memory is short: they are only got to know, and not before it may become so.
const LEARN_NS: u64 = SECOND_NS;

pub(super) fn tenths(now_ns: u64) -> u32 {
    (now_ns / TENTH_NS) as u32
}

/// What is to become of a session at rest now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Stays,
    Sleeps,
    /// It sleeps until so long after its last use.
    Dozes {
        pre_warm_ms: u64,
    },
}

pub(super) struct Keeping {
    policy: KeepAlivePolicy,
    history: KeepAlive,
    /// As of the last pass.
    windows: Windows,
    bucket_ms: u64,
    /// Rests of this length and more are noted.
    pub(super) noted_tenths: u32,
    /// Sessions that doze.
    pub(super) pre_warms: Alarms,
}

fn policy_of(rules: &AppRules) -> Option<KeepAlivePolicy> {
    let wanted_ms = rules.keep_alive_s.map(|keep_alive_s| u64::from(keep_alive_s) * 1_000);
    match rules.keep_alive {
        KeepAliveRule::Fixed => wanted_ms.map(|keep_alive_ms| KeepAlivePolicy::Fixed { keep_alive_ms }),
        KeepAliveRule::Hybrid => {
            Some(KeepAlivePolicy::Hybrid { fallback_ms: wanted_ms.unwrap_or(u64::from(KEEP_ALIVE_S_DEFAULT) * 1_000) })
        }
        KeepAliveRule::Unbounded => Some(KeepAlivePolicy::Unbounded),
    }
}

impl Keeping {
    fn new(policy: KeepAlivePolicy) -> Keeping {
        let (bucket_ms, noted_tenths) = match policy {
            KeepAlivePolicy::Hybrid { fallback_ms } => {
                let bucket_ms = (fallback_ms / BUCKET_PART).clamp(TENTH_MS, BUCKET_MS_MAX);
                (bucket_ms, bucket_ms.div_ceil(TENTH_MS) as u32)
            }
            _ => (BUCKET_MS_MAX, u32::MAX),
        };
        let history = KeepAlive::with_buckets(policy, bucket_ms);
        Keeping { policy, windows: history.windows(), history, bucket_ms, noted_tenths, pre_warms: Alarms::default() }
    }

    /// The app has these rules from now on; what was learned stays where they are the same. `None`: its sessions stay in memory.
    pub(super) fn renew(old: Option<Keeping>, rules: &AppRules) -> Option<Keeping> {
        let policy = policy_of(rules)?;
        Some(old.filter(|old| old.policy == policy).unwrap_or_else(|| Keeping::new(policy)))
    }

    /// A session is asked for after a rest of at least `noted_tenths`.
    pub(super) fn on_rest(&mut self, idle_tenths: u32) {
        self.history.on_rest(u64::from(idle_tenths) * TENTH_MS);
    }

    /// Takes what was learned into use.
    pub(super) fn refresh(&mut self) {
        self.windows = self.history.windows();
    }

    /// The time between two looks at all sessions.
    pub(super) fn pass_every_ns(&self, is_half_full: bool) -> u64 {
        let part_of = |keep_ms: u64| (keep_ms * 1_000_000 / IDLE_PART).clamp(IDLE_NS_MIN, IDLE_NS_MAX);
        match self.policy {
            KeepAlivePolicy::Fixed { keep_alive_ms } => part_of(keep_alive_ms),
            KeepAlivePolicy::Hybrid { fallback_ms } => part_of(fallback_ms),
            KeepAlivePolicy::Unbounded => {
                if is_half_full {
                    LEARN_NS
                } else {
                    IDLE_NS_MAX
                }
            }
        }
    }

    /// What is to become of a session that was last used so long ago. A tenth of a second that is not over counts for nothing.
    pub(super) fn at_rest(&self, idle_tenths: u32) -> Rest {
        let Windows { pre_warm_ms, keep_alive_ms } = self.windows;
        let idle_ms = u64::from(idle_tenths) * TENTH_MS;
        if idle_ms > pre_warm_ms.saturating_add(keep_alive_ms) {
            return Rest::Sleeps;
        }
        // It stays for a bucket, since shorter rests are not in the history, and is not put away for less than one.
        let is_worth_it =
            pre_warm_ms >= DOZE_BUCKETS * self.bucket_ms && idle_ms > self.bucket_ms && idle_ms + self.bucket_ms <= pre_warm_ms;
        if is_worth_it { Rest::Dozes { pre_warm_ms } } else { Rest::Stays }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeping(keep_alive: KeepAliveRule, keep_alive_s: Option<u32>) -> Option<Keeping> {
        Keeping::renew(None, &AppRules { keep_alive, keep_alive_s, ..AppRules::default() })
    }

    #[test]
    fn a_fixed_time_is_kept_to_the_tenth_and_none_keeps_all() {
        let fixed = keeping(KeepAliveRule::Fixed, Some(2)).unwrap();
        assert_eq!((fixed.at_rest(20), fixed.at_rest(21)), (Rest::Stays, Rest::Sleeps));
        assert!(keeping(KeepAliveRule::Fixed, None).is_none());
        let unbounded = keeping(KeepAliveRule::Unbounded, Some(2)).unwrap();
        assert_eq!(unbounded.at_rest(u32::MAX), Rest::Stays);
        assert_eq!((unbounded.pass_every_ns(false), unbounded.pass_every_ns(true)), (IDLE_NS_MAX, LEARN_NS));
    }

    #[test]
    fn a_learned_period_is_slept_through_up_to_its_end() {
        let mut hybrid = keeping(KeepAliveRule::Hybrid, Some(1)).unwrap();
        assert_eq!((hybrid.noted_tenths, hybrid.at_rest(10), hybrid.at_rest(11)), (1, Rest::Stays, Rest::Sleeps));
        (0..8).for_each(|_| hybrid.on_rest(20));
        assert_eq!(hybrid.at_rest(11), Rest::Sleeps, "what is learned counts from the next pass on");
        hybrid.refresh();
        let dozes = Rest::Dozes { pre_warm_ms: 1_800 };
        assert_eq!(
            [1, 2, 17, 18, 23, 24].map(|idle| hybrid.at_rest(idle)),
            [Rest::Stays, dozes, dozes, Rest::Stays, Rest::Stays, Rest::Sleeps]
        );
        let rules = AppRules { keep_alive: KeepAliveRule::Hybrid, keep_alive_s: Some(1), ..AppRules::default() };
        let again = Keeping::renew(Some(hybrid), &rules).unwrap();
        assert_eq!(again.at_rest(2), dozes, "a new function of the app changes nothing");
        let anew = Keeping::renew(Some(again), &AppRules { keep_alive_s: Some(3), ..rules }).unwrap();
        assert_eq!((anew.at_rest(30), anew.at_rest(31)), (Rest::Stays, Rest::Sleeps));
    }

    #[test]
    fn short_periods_keep_sessions_in_memory() {
        let mut hybrid = keeping(KeepAliveRule::Hybrid, None).unwrap();
        assert_eq!(hybrid.noted_tenths, 600);
        (0..9).for_each(|_| hybrid.on_rest(2 * 600));
        hybrid.refresh();
        assert_eq!([2 * 600, 3 * 660, 3 * 660 + 1].map(|idle| hybrid.at_rest(idle)), [Rest::Stays, Rest::Stays, Rest::Sleeps]);
    }
}
