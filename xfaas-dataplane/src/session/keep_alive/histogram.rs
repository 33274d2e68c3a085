//! The idle times of one function as a histogram, and the two windows read off it. Called by `KeepAlive` alone; no clock, no I/O.
//!
//! Source: Shahrad et al., "Serverless in the Wild", USENIX ATC 2020, section 4.2, without its time series for idle times over the range.

use super::Windows;

/// Range of the histogram: idle times of four hours and more are out of bounds, where a bucket is a minute.
const BUCKETS: usize = 240;
/// The width of a bucket where nothing else is asked for.
pub(super) const MINUTE_MS: u64 = 60_000;
/// Idle times seen before the histogram is asked at all.
const SAMPLES_MIN: u32 = 8;
/// Part of the idle times that may be out of bounds, in 1/100: of more, most of what is to come lies there too.
const OUT_OF_BOUNDS_PERCENT_MAX: u32 = 50;
/// Square of the coefficient of variation of the buckets' counts from which on they say something: the paper's CV of 2.
const VARIATION_SQUARED_MIN: u64 = 4;
const HEAD_PERCENT: u64 = 5;
const TAIL_PERCENT: u64 = 99;
/// By how much the windows are wider than the percentiles, in 1/100.
const MARGIN_PERCENT: u64 = 10;

/// 500 bytes a function, whatever it is asked for and however long.
#[derive(Clone, Debug)]
pub(super) struct IdleHistogram {
    bucket_ms: u64,
    counts: [u16; BUCKETS],
    /// Idle times in range, as `counts` has them.
    sum: u32,
    /// Sum of the counts' squares: the variation without a walk over the buckets.
    sum_of_squares: u64,
    out_of_bounds: u32,
}

impl IdleHistogram {
    /// `bucket_ms`: the width of a bucket, 1 or more.
    pub(super) fn new(bucket_ms: u64) -> IdleHistogram {
        IdleHistogram { bucket_ms, counts: [0; BUCKETS], sum: 0, sum_of_squares: 0, out_of_bounds: 0 }
    }

    /// Cost: a few operations; a walk over all buckets once in 65,535 times of one bucket.
    pub(super) fn record(&mut self, idle_ms: u64) {
        let bucket = (idle_ms / self.bucket_ms) as usize;
        if bucket >= BUCKETS {
            if self.out_of_bounds == u32::from(u16::MAX) {
                self.halve();
            }
            self.out_of_bounds += 1;
            return;
        }
        if self.counts[bucket] == u16::MAX {
            self.halve();
        }
        let count = u64::from(self.counts[bucket]);
        self.counts[bucket] += 1;
        self.sum += 1;
        self.sum_of_squares += 2 * count + 1;
    }

    /// Old times count half from now on, so that no count overflows and a change of habit is seen.
    fn halve(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2);
        self.sum = self.counts.iter().map(|count| u32::from(*count)).sum();
        self.sum_of_squares = self.counts.iter().map(|count| u64::from(*count) * u64::from(*count)).sum();
        self.out_of_bounds /= 2;
    }

    /// What the percentiles say; `None` while the histogram is not representative: too few times, too many out of bounds, or spread so
    /// evenly that no window is better than another.
    pub(super) fn windows(&self) -> Option<Windows> {
        if !self.is_representative() {
            return None;
        }
        // The head is rounded down and the tail up: a window that is too wide costs memory, one that is too narrow a cold start.
        let head_ms = self.bucket_at(HEAD_PERCENT) * self.bucket_ms;
        let tail_ms = (self.bucket_at(TAIL_PERCENT) + 1) * self.bucket_ms;
        let pre_warm_ms = head_ms * (100 - MARGIN_PERCENT) / 100;
        let end_ms = tail_ms * (100 + MARGIN_PERCENT) / 100;
        Some(Windows { pre_warm_ms, keep_alive_ms: end_ms - pre_warm_ms })
    }

    fn is_representative(&self) -> bool {
        let all = self.sum + self.out_of_bounds;
        if all < SAMPLES_MIN || self.out_of_bounds * 100 > all * OUT_OF_BOUNDS_PERCENT_MAX {
            return false;
        }
        // CV^2 = variance / mean^2 = buckets * sum of squares / sum^2 - 1.
        let (sum, buckets) = (u64::from(self.sum), BUCKETS as u64);
        buckets * self.sum_of_squares >= (VARIATION_SQUARED_MIN + 1) * sum * sum
    }

    /// The bucket in which `percent` of the times in range are reached.
    fn bucket_at(&self, percent: u64) -> u64 {
        let wanted = (u64::from(self.sum) * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return bucket as u64;
            }
        }
        BUCKETS as u64 - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUCKET_MS: u64 = MINUTE_MS;

    fn of(idle_minutes: impl IntoIterator<Item = u64>) -> IdleHistogram {
        let mut histogram = IdleHistogram::new(MINUTE_MS);
        idle_minutes.into_iter().for_each(|minutes| histogram.record(minutes * MINUTE_MS));
        histogram
    }

    #[test]
    fn a_timer_is_loaded_shortly_before_it_fires() {
        let windows = of([30; 20]).windows().unwrap();
        assert_eq!(windows, Windows { pre_warm_ms: 27 * MINUTE_MS, keep_alive_ms: 31 * 66_000 - 27 * MINUTE_MS });
    }

    #[test]
    fn what_comes_again_within_a_minute_stays_loaded() {
        assert_eq!(of([0; 20]).windows(), Some(Windows { pre_warm_ms: 0, keep_alive_ms: 66_000 }));
    }

    #[test]
    fn percentiles_leave_out_the_rare_ends() {
        // 4 of 100 at 1 minute and 1 at 200: below the 5th and over the 99th.
        let windows = of([1; 4].into_iter().chain([10; 95]).chain([200])).windows().unwrap();
        assert_eq!(windows, Windows { pre_warm_ms: 9 * MINUTE_MS, keep_alive_ms: 11 * 66_000 - 9 * MINUTE_MS });
    }

    #[test]
    fn few_even_or_far_times_say_nothing() {
        assert_eq!(of([30; 7]).windows(), None);
        assert_eq!(of((0..240).chain(0..240)).windows(), None, "spread evenly");
        assert_eq!(of([30; 10].into_iter().chain([240; 11])).windows(), None, "mostly out of bounds");
        assert!(of([30; 10].into_iter().chain([240; 10])).windows().is_some());
        assert_eq!(of([u64::MAX / MINUTE_MS; 100]).windows(), None);
    }

    #[test]
    fn counts_never_overflow_and_new_habits_win() {
        let mut histogram = of(std::iter::repeat_n(5, 200_000));
        assert!(histogram.sum <= u32::from(u16::MAX));
        std::iter::repeat_n(60, 10_000_000).for_each(|minutes| histogram.record(minutes * MINUTE_MS));
        assert_eq!(histogram.windows().unwrap().pre_warm_ms, 54 * MINUTE_MS);
        std::iter::repeat_n(u64::MAX, 1_000_000).for_each(|idle_ms| histogram.record(idle_ms));
        assert!(histogram.out_of_bounds <= u32::from(u16::MAX));
        assert_eq!(histogram.windows(), None);
    }

    proptest! {
        #[test]
        fn sums_and_windows_match_a_plain_list(times in prop::collection::vec(0_u64..300 * MINUTE_MS, 0..400)) {
            let mut histogram = IdleHistogram::new(MINUTE_MS);
            times.iter().for_each(|idle_ms| histogram.record(*idle_ms));
            let mut buckets: Vec<u64> = times.iter().map(|idle_ms| idle_ms / BUCKET_MS).filter(|bucket| *bucket < BUCKETS as u64).collect();
            buckets.sort_unstable();
            prop_assert_eq!(histogram.sum as usize, buckets.len());
            prop_assert_eq!(histogram.out_of_bounds as usize, times.len() - buckets.len());
            let mut counts = [0.0_f64; BUCKETS];
            buckets.iter().for_each(|bucket| counts[*bucket as usize] += 1.0);
            let mean = buckets.len() as f64 / BUCKETS as f64;
            let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / BUCKETS as f64;
            if let Some(windows) = histogram.windows() {
                prop_assert!(variance.sqrt() / mean > 2.0 - 1e-6);
                let nearest_rank = |percent: usize| buckets[(buckets.len() * percent).div_ceil(100).max(1) - 1];
                prop_assert_eq!(windows.pre_warm_ms, nearest_rank(5) * BUCKET_MS * 9 / 10);
                prop_assert_eq!(windows.pre_warm_ms + windows.keep_alive_ms, (nearest_rank(99) + 1) * BUCKET_MS * 11 / 10);
            } else {
                prop_assert!(times.len() < 8 || 2 * buckets.len() < times.len() || variance.sqrt() / mean < 2.0 + 1e-6);
            }
        }
    }
}
