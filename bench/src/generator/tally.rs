//! What one thread saw: counts, and histograms of the measured time. Made before the run, so that recording allocates nothing.

use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Range of the histograms: what is outside counts as its ends.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// Of one function.
#[derive(Debug)]
pub(super) struct FunctionTally {
    /// From when a request was due (in a closed loop: left) to its good answer, ns, or to when it was given up; of requests due in the measured
    /// time (in a closed loop: under way in it).
    pub(super) latency_ns: Histogram<u64>,
    /// The same of answers that the thread found after it had been off its CPU for a good part of that time.
    pub(super) disturbed_ns: Histogram<u64>,
    pub(super) good: u64,
    /// 503 and 429: not run, as promised.
    pub(super) refused: u64,
    /// Any other status that is not 2xx.
    pub(super) failed: u64,
    /// Answers that break a rule.
    pub(super) wrong: u64,
    /// Requests without an answer.
    pub(super) unsure: u64,
}

#[derive(Debug)]
pub(super) struct Tally {
    pub(super) functions: Vec<FunctionTally>,
    /// From when a request was due to when it left, ns; of requests due in the measured time. Open loop only.
    pub(super) send_delay_ns: Histogram<u64>,
    /// How often each status other than 2xx came.
    pub(super) statuses: BTreeMap<u16, u64>,
    pub(super) sent: u64,
    /// Due in the measured time, sent or not, and for how long they were due there. Open loop only.
    pub(super) arrived: u64,
    pub(super) arriving_ns: u64,
    /// For how much of the measured time arrivals paused, of all threads together.
    pub(super) paused_ns: u64,
    /// Due and never sent: all places were taken until the end.
    pub(super) unsent: u64,
    /// Good and refused answers that came in the measured time.
    pub(super) good_in_time: u64,
    pub(super) refused_in_time: u64,
    /// Answers to datagrams that had been given up.
    pub(super) late_answers: u64,
    /// Datagrams, or bytes on a connection, that answer nothing that was asked.
    pub(super) strays: u64,
    /// Requests whose connection ended before their answer.
    pub(super) cut: u64,
    pub(super) reconnects: u64,
    /// Of the thread in the measured time: how often others had its CPU, how long in all, and the longest.
    pub(super) off_cpu: u64,
    pub(super) off_cpu_ns: u64,
    pub(super) off_cpu_ns_max: u64,
    pub(super) first_fault: Option<String>,
    pub(super) measured_ns: u64,
    /// Of the thread: its CPU time, and the part of it in which there was something to do.
    pub(super) cpu_ns: u64,
    pub(super) busy_ns: u64,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, SIGNIFICANT_DIGITS).expect("constant bounds in order")
}

impl FunctionTally {
    fn new() -> FunctionTally {
        FunctionTally { latency_ns: histogram(), disturbed_ns: histogram(), good: 0, refused: 0, failed: 0, wrong: 0, unsure: 0 }
    }

    pub(super) fn answers(&self) -> u64 {
        self.good + self.refused + self.failed + self.wrong
    }

    pub(super) fn add(&mut self, other: &FunctionTally) {
        self.latency_ns.add(&other.latency_ns).expect("the same bounds");
        self.disturbed_ns.add(&other.disturbed_ns).expect("the same bounds");
        self.good += other.good;
        self.refused += other.refused;
        self.failed += other.failed;
        self.wrong += other.wrong;
        self.unsure += other.unsure;
    }
}

impl Tally {
    pub(super) fn new(functions: usize) -> Tally {
        Tally {
            functions: (0..functions).map(|_| FunctionTally::new()).collect(),
            send_delay_ns: histogram(),
            statuses: BTreeMap::new(),
            sent: 0,
            arrived: 0,
            arriving_ns: 0,
            paused_ns: 0,
            unsent: 0,
            good_in_time: 0,
            refused_in_time: 0,
            late_answers: 0,
            strays: 0,
            cut: 0,
            reconnects: 0,
            off_cpu: 0,
            off_cpu_ns: 0,
            off_cpu_ns_max: 0,
            first_fault: None,
            measured_ns: 0,
            busy_ns: 0,
            cpu_ns: 0,
        }
    }

    /// Takes in another thread's.
    pub(super) fn add(&mut self, other: Tally) {
        for (own, other) in self.functions.iter_mut().zip(&other.functions) {
            own.add(other);
        }
        self.send_delay_ns.add(&other.send_delay_ns).expect("the same bounds");
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.sent += other.sent;
        self.arrived += other.arrived;
        self.arriving_ns = self.arriving_ns.max(other.arriving_ns);
        self.paused_ns += other.paused_ns;
        self.unsent += other.unsent;
        self.good_in_time += other.good_in_time;
        self.refused_in_time += other.refused_in_time;
        self.late_answers += other.late_answers;
        self.strays += other.strays;
        self.cut += other.cut;
        self.reconnects += other.reconnects;
        self.off_cpu += other.off_cpu;
        self.off_cpu_ns += other.off_cpu_ns;
        self.off_cpu_ns_max = self.off_cpu_ns_max.max(other.off_cpu_ns_max);
        self.first_fault = self.first_fault.take().or(other.first_fault);
        self.measured_ns = self.measured_ns.max(other.measured_ns);
        self.busy_ns += other.busy_ns;
        self.cpu_ns += other.cpu_ns;
    }

    /// All functions together.
    pub(super) fn whole(&self) -> FunctionTally {
        let mut whole = FunctionTally::new();
        self.functions.iter().for_each(|function| whole.add(function));
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        let mut all = Tally::new(2);
        for thread in 0..3_u64 {
            let mut tally = Tally::new(2);
            tally.functions[1].latency_ns.record(1_000 * (thread + 1)).unwrap();
            tally.functions[1].good = 1;
            tally.functions[0].unsure = 2;
            tally.statuses.insert(503, thread);
            tally.measured_ns = 10 + thread;
            tally.first_fault = (thread > 0).then(|| format!("of {thread}"));
            all.add(tally);
        }
        assert_eq!((all.functions[1].good, all.functions[0].unsure, all.measured_ns), (3, 6, 12));
        assert_eq!((all.statuses[&503], all.first_fault.as_deref()), (3, Some("of 1")));
        let whole = all.whole();
        assert_eq!((whole.answers(), whole.unsure, whole.latency_ns.len()), (3, 6, 3));
        assert_eq!(whole.latency_ns.value_at_quantile(1.0) / 10, 300);
    }
}
