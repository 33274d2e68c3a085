//! How much of something a namespace may use in a time: requests, or time of the core. A bucket that drains at a fixed rate, kept as the one
//! moment at which it will be empty (GCRA, ITU-T I.371), so a namespace has eight bytes and no timer for it.

/// Empty at first. Times are of the monotonic clock, nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    /// When all that was taken is paid off; in the past: the bucket is empty.
    empty_at_ns: u64,
}

impl Budget {
    /// Takes `cost_ns` if the bucket holds at most `window_ns` with it. False: it does not fit, and nothing was taken.
    pub(super) fn take(&mut self, cost_ns: u64, window_ns: u64, now_ns: u64) -> bool {
        let empty_at_ns = self.empty_at_ns.max(now_ns) + cost_ns;
        let fits = empty_at_ns <= now_ns + window_ns;
        if fits {
            self.empty_at_ns = empty_at_ns;
        }
        fits
    }

    /// Takes `cost_ns` whether it fits or not, but never more than makes the bucket hold `most_ns`.
    pub(super) fn charge(&mut self, cost_ns: u64, most_ns: u64, now_ns: u64) {
        self.empty_at_ns = self.empty_at_ns.max(now_ns).saturating_add(cost_ns).min(now_ns + most_ns);
    }

    /// When the bucket is empty again, unless more is taken.
    pub(super) fn empty_at_ns(&self) -> u64 {
        self.empty_at_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::SECOND_NS;
    use proptest::prelude::*;

    #[test]
    fn a_burst_of_one_second_passes_and_then_one_at_a_time() {
        let mut budget = Budget::default();
        let cost_ns = SECOND_NS / 5;
        let taken = (0..9).filter(|_| budget.take(cost_ns, SECOND_NS, 77)).count();
        assert_eq!(taken, 5);
        assert!(!budget.take(cost_ns, SECOND_NS, 77 + cost_ns - 1));
        assert!(budget.take(cost_ns, SECOND_NS, 77 + cost_ns));
        assert!(!budget.take(cost_ns, SECOND_NS, 77 + cost_ns));
    }

    proptest! {
        #[test]
        fn no_second_sees_more_than_twice_the_rate(rate in 1_u64..1_000, gaps in prop::collection::vec(0_u64..20_000_000, 1..2_000)) {
            let mut budget = Budget::default();
            let (mut now_ns, mut taken) = (0, Vec::new());
            for gap_ns in gaps {
                now_ns += gap_ns;
                if budget.take(SECOND_NS / rate, SECOND_NS, now_ns) {
                    taken.push(now_ns);
                }
            }
            for (i, from_ns) in taken.iter().enumerate() {
                let within = taken[i..].iter().take_while(|at_ns| **at_ns < from_ns + SECOND_NS).count() as u64;
                prop_assert!(within <= 2 * rate, "{} at a rate of {}", within, rate);
            }
        }
    }
}
