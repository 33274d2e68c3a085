//! A case: one operation, done in batches. `measure` times the cases in rounds, each round all of them in turn, because a shared machine is
//! slower at one time than at another.
//!
//! Operations of some tens of nanoseconds are shorter than a look at the clock, so the clock is read once before and once after a batch of
//! operations, and each batch counts as one sample: its time divided by its operations. Nothing is subtracted. The quantiles are those of
//! such means: a hiccup within a batch shows 64 times smaller.

use crate::guest::GuestError;
use crate::load::Interrupt;
use crate::network::NetworkError;
use crate::report::Row;
use crate::servers::ServerError;
use hdrhistogram::Histogram;
use std::time::Duration;
use xfaas_dataplane::state::{ReadRefused, RegionError, StateError};
use xfaas_dataplane::sys::affinity::AffinityError;
use xfaas_dataplane::sys::clock::monotonic_ns;

/// Share of a case's time in each round that is not recorded.
const WARM_UP_SHARE: f64 = 0.1;
/// The histogram's unit: a part of a nanosecond, as operations of 20 ns are told apart to three digits.
const PARTS_A_NS: u64 = 1_000;
const SAMPLE_NS_MAX: u64 = 10_000_000_000;

#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    #[error("no region for the state")]
    Region(#[from] RegionError),
    #[error("the state cannot be written")]
    Write(#[from] StateError),
    #[error("the state cannot be read")]
    Read(#[from] ReadRefused),
    #[error("the guest failed")]
    Guest(#[from] GuestError),
    #[error("the server cannot be used")]
    Server(#[from] ServerError),
    #[error("the network cannot be used")]
    Network(#[from] NetworkError),
    #[error("no directory for the state")]
    Directory(#[source] std::io::Error),
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("a thread cannot be pinned")]
    Pin(#[from] AffinityError),
    #[error("a wrong answer: {0}")]
    Answer(String),
    #[error("interrupted")]
    Interrupted,
}

/// One operation under measurement.
pub trait Case {
    /// As in the JSON.
    fn name(&self) -> &'static str;

    /// Operations of a batch.
    fn operations(&self) -> u32;

    /// Called before the batches of a round.
    fn begin(&mut self) -> Result<(), CaseError> {
        Ok(())
    }

    fn batch(&mut self) -> Result<(), CaseError>;

    /// Called after the batches of a round: nothing may go on that would disturb other cases.
    fn end(&mut self) {}
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Time of a case, all rounds together.
    pub time_a_case: Duration,
    pub rounds: u32,
    pub interrupt: &'a Interrupt,
}

/// Runs the cases on the calling thread. Output: a row for each, in their order. Errors: the first that a case meets.
pub fn measure(cases: &mut [Box<dyn Case>], plan: &Plan<'_>) -> Result<Vec<Row>, CaseError> {
    let new = || Histogram::new_with_bounds(1, SAMPLE_NS_MAX * PARTS_A_NS, 3).expect("constant bounds in order");
    let mut samples: Vec<Histogram<u64>> = cases.iter().map(|_| new()).collect();
    let time_a_round = plan.time_a_case / plan.rounds.max(1);
    for round in 0..plan.rounds.max(1) {
        eprintln!("round {}/{}: {}", round + 1, plan.rounds.max(1), cases.iter().map(|case| case.name()).collect::<Vec<_>>().join(" "));
        for (case, samples) in cases.iter_mut().zip(&mut samples) {
            case.begin()?;
            let measured = run(case.as_mut(), time_a_round, plan.interrupt, samples);
            case.end();
            measured?;
        }
    }
    let rows = cases.iter().zip(&samples).map(|(case, samples)| {
        let quantile_ns = |quantile| samples.value_at_quantile(quantile) as f64 / PARTS_A_NS as f64;
        Row::state(case.name(), quantile_ns(0.50), quantile_ns(0.99))
    });
    Ok(rows.collect())
}

/// Batches for `time`, of which the first ones are not recorded; at least one is.
fn run(case: &mut dyn Case, time: Duration, interrupt: &Interrupt, samples: &mut Histogram<u64>) -> Result<(), CaseError> {
    let begun_ns = monotonic_ns();
    let record_from_ns = begun_ns + time.mul_f64(WARM_UP_SHARE).as_nanos() as u64;
    let end_ns = begun_ns + time.as_nanos() as u64;
    loop {
        let started_ns = monotonic_ns();
        case.batch()?;
        let ended_ns = monotonic_ns();
        if started_ns >= record_from_ns {
            samples.saturating_record(((ended_ns - started_ns) * PARTS_A_NS / u64::from(case.operations())).max(1));
            if ended_ns >= end_ns {
                return Ok(());
            }
        }
        if interrupt.is_set() {
            return Err(CaseError::Interrupted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    /// Sleeps a millisecond for ten operations.
    struct Sleeper {
        state: &'static str,
    }

    impl Case for Sleeper {
        fn name(&self) -> &'static str {
            "sleeper"
        }

        fn operations(&self) -> u32 {
            10
        }

        fn begin(&mut self) -> Result<(), CaseError> {
            assert_eq!(std::mem::replace(&mut self.state, "begun"), "ended");
            Ok(())
        }

        fn batch(&mut self) -> Result<(), CaseError> {
            assert_eq!(self.state, "begun");
            sleep(Duration::from_millis(1));
            Ok(())
        }

        fn end(&mut self) {
            self.state = "ended";
        }
    }

    #[test]
    fn a_sample_is_the_mean_of_its_batch() {
        let interrupt = Interrupt::default();
        let plan = Plan { time_a_case: Duration::from_millis(40), rounds: 2, interrupt: &interrupt };
        let mut cases: Vec<Box<dyn Case>> = vec![Box::new(Sleeper { state: "ended" })];
        let rows = measure(&mut cases, &plan).unwrap();
        let Some(Row::State { name: "sleeper", p50_ns, p99_ns }) = rows.first() else { panic!("{rows:?}") };
        // A sleep is never shorter; how much longer is the machine's business.
        assert!(*p50_ns >= 99_000.0 && p99_ns >= p50_ns, "{rows:?}");
    }

    #[test]
    fn an_interrupt_ends_the_run() {
        let interrupt = Interrupt::default();
        interrupt.set();
        let plan = Plan { time_a_case: Duration::from_secs(600), rounds: 1, interrupt: &interrupt };
        let mut cases: Vec<Box<dyn Case>> = vec![Box::new(Sleeper { state: "ended" })];
        assert!(matches!(measure(&mut cases, &plan), Err(CaseError::Interrupted)));
    }
}
