//! Counts and times of one run, and the figures that are made of them.

use super::plan::LoadPlan;
use hdrhistogram::Histogram;

/// Range of the latency histogram: finer or coarser times are recorded as its ends.
const LATENCY_NS_MIN: u64 = 1;
const LATENCY_NS_MAX: u64 = 60_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// What a run saw.
#[derive(Debug)]
pub struct LoadReport {
    /// Latencies in ns of the good replies of the measured time.
    pub latency_ns: Histogram<u64>,
    /// Length of the measured time; less than planned when the run ended by its count.
    pub measured_ns: u64,
    /// Good replies to each session, warm-up and the last ones included: what a counter must have grown by.
    pub acknowledged: Vec<u64>,
    /// Replies that broke a rule, in the whole run.
    pub wrong: u64,
    pub first_wrong: Option<String>,
    /// Datagrams that were not answered in time and given up.
    pub lost: u64,
}

/// The figures of a run: rate in 1/s, times in us.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub requests_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

impl LoadReport {
    pub fn summary(&self) -> Summary {
        let quantile_us = |quantile| self.latency_ns.value_at_quantile(quantile) as f64 / 1_000.0;
        Summary {
            requests_per_second: rate_per_second(self.latency_ns.len(), self.measured_ns),
            p50_us: quantile_us(0.50),
            p99_us: quantile_us(0.99),
            p999_us: quantile_us(0.999),
        }
    }

    /// Good replies in all.
    pub fn acknowledged_sum(&self) -> u64 {
        self.acknowledged.iter().sum()
    }
}

/// Events a second; 0 for no time at all.
fn rate_per_second(count: u64, elapsed_ns: u64) -> f64 {
    if elapsed_ns == 0 { 0.0 } else { count as f64 * 1e9 / elapsed_ns as f64 }
}

/// Records while a run goes on. Times are those of `clock::monotonic_ns`.
pub(super) struct Recorder {
    report: LoadReport,
    measure_from_ns: u64,
    measure_to_ns: u64,
    sent: u64,
    sent_max: u64,
    last_reply_ns: u64,
}

impl Recorder {
    pub(super) fn new(plan: &LoadPlan<'_>, sessions: usize, now_ns: u64) -> Recorder {
        let latency_ns = Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, SIGNIFICANT_DIGITS).expect("constant bounds in order");
        let measure_from_ns = now_ns + plan.warm_up.as_nanos() as u64;
        Recorder {
            report: LoadReport { latency_ns, measured_ns: 0, acknowledged: vec![0; sessions], wrong: 0, first_wrong: None, lost: 0 },
            measure_from_ns,
            measure_to_ns: measure_from_ns + plan.measured.as_nanos() as u64,
            sent: 0,
            sent_max: plan.requests_max,
            last_reply_ns: now_ns,
        }
    }

    /// True while there is time and count left for one more request, which is then counted as sent.
    pub(super) fn may_send(&mut self, now_ns: u64) -> bool {
        let may = now_ns < self.measure_to_ns && self.sent < self.sent_max;
        self.sent += u64::from(may);
        may
    }

    pub(super) fn good(&mut self, session: usize, sent_ns: u64, now_ns: u64) {
        self.report.acknowledged[session] += 1;
        self.last_reply_ns = now_ns;
        if now_ns >= self.measure_from_ns && now_ns < self.measure_to_ns {
            self.report.latency_ns.saturating_record(now_ns - sent_ns);
        }
    }

    pub(super) fn wrong(&mut self, now_ns: u64, describe: impl FnOnce() -> String) {
        self.last_reply_ns = now_ns;
        self.report.wrong += 1;
        self.report.first_wrong.get_or_insert_with(describe);
    }

    pub(super) fn lost(&mut self) {
        self.report.lost += 1;
    }

    /// When the last reply came, or the run began.
    pub(super) fn last_reply_ns(&self) -> u64 {
        self.last_reply_ns
    }

    pub(super) fn replies(&self) -> u64 {
        self.report.acknowledged_sum() + self.report.wrong
    }

    pub(super) fn finish(mut self) -> LoadReport {
        let end_ns = if self.sent == self.sent_max { self.last_reply_ns.min(self.measure_to_ns) } else { self.measure_to_ns };
        self.report.measured_ns = end_ns.saturating_sub(self.measure_from_ns);
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Interrupt;
    use std::time::Duration;

    fn plan(interrupt: &Interrupt, requests_max: u64) -> LoadPlan<'_> {
        LoadPlan { warm_up: Duration::from_micros(10), measured: Duration::from_micros(100), requests_max, interrupt }
    }

    #[test]
    fn only_the_measured_time_counts_for_the_rate() {
        let interrupt = Interrupt::default();
        let mut recorder = Recorder::new(&plan(&interrupt, u64::MAX), 2, 0);
        recorder.good(0, 0, 9_999); // warm-up
        recorder.good(0, 9_999, 10_999);
        recorder.good(1, 10_000, 13_000);
        recorder.good(1, 109_000, 110_000); // after the end
        assert!(recorder.may_send(109_999));
        assert!(!recorder.may_send(110_000));
        let report = recorder.finish();
        assert_eq!(report.acknowledged, [2, 2]);
        let summary = report.summary();
        assert!((summary.requests_per_second - 20_000.0).abs() < 1e-6, "{summary:?}"); // 2 in 100 us
        assert!((summary.p50_us - 1.0).abs() < 0.01 && (summary.p999_us - 3.0).abs() < 0.01, "{summary:?}");
    }

    #[test]
    fn a_run_that_ends_by_its_count_is_shorter() {
        let interrupt = Interrupt::default();
        let mut recorder = Recorder::new(&plan(&interrupt, 1), 1, 0);
        assert!(recorder.may_send(0));
        assert!(!recorder.may_send(1));
        recorder.good(0, 10_000, 60_000);
        let report = recorder.finish();
        assert_eq!(report.measured_ns, 50_000);
        assert!((report.summary().requests_per_second - 20_000.0).abs() < 1e-6);
    }

    #[test]
    fn no_time_is_no_rate() {
        assert_eq!(rate_per_second(5, 0), 0.0);
    }

    #[test]
    fn the_first_wrong_reply_is_kept() {
        let interrupt = Interrupt::default();
        let mut recorder = Recorder::new(&plan(&interrupt, 9), 1, 0);
        recorder.wrong(1, || "first".to_owned());
        recorder.wrong(2, || "second".to_owned());
        let report = recorder.finish();
        assert_eq!((report.wrong, report.first_wrong.as_deref()), (2, Some("first")));
    }
}
