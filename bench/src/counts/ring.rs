//! System calls a request: a real node serves a fixed number of requests, and says how often it entered the ring. Several times, and the median counts:
//! a machine that takes the CPU from the client or the node for a while makes turns gather more or fewer requests.

use crate::load::{Interrupt, LoadPlan};
use crate::report::median;
use crate::servers::{NodeFunction, NodePlace, ServerError, XfaasFiles};
use crate::sessions::{Metrics, SessionsError};
use crate::settings::on_cpu;
use crate::suite::{Case, CaseError};
use std::error::Error;
use std::time::Duration;

use super::table::{Row, Unit};

/// Requests of a run.
const REQUESTS: u64 = 20_000;
/// Runs of each row, in turn with those of the others. An odd number, so that one is in the middle.
const ROUNDS: usize = 5;
/// Of a run that is disturbed, at most.
const TRIES: u32 = 5;
/// Before each run, not counted.
const WARM_UP_REQUESTS: u64 = 2_000;
const SESSIONS: usize = 80;
/// A run ends by its count.
const TIME_MAX: Duration = Duration::from_secs(60);
/// What the node says, and the unit of the row.
const COUNTERS: [(&str, Unit); 3] = [
    ("xfaas_ring_enters_total", Unit::Enters),
    ("xfaas_ring_submissions_total", Unit::Submissions),
    ("xfaas_ring_completions_total", Unit::Completions),
];
/// Requests under way at once, and the rows' names.
const RUNS: [(Case, usize, &str); 4] = [
    (Case::HttpRmw, 1, "ring/http_rmw/1"),
    (Case::HttpRmw, 32, "ring/http_rmw/32"),
    (Case::UdpRmw, 1, "ring/udp_rmw/1"),
    (Case::UdpRmw, 32, "ring/udp_rmw/32"),
];

#[derive(Debug, thiserror::Error)]
pub enum RingCountError {
    #[error("the node cannot be used")]
    Server(#[from] ServerError),
    #[error("the node's counters cannot be read")]
    Metrics(#[from] SessionsError),
    #[error("{row}")]
    Load {
        row: &'static str,
        #[source]
        source: CaseError,
    },
}

/// Rows of every run whose name is wanted. The node runs on one CPU, the load on another.
pub fn count_ring(
    files: &XfaasFiles,
    (server_cpu, load_cpu): (u16, u16),
    interrupt: &Interrupt,
    is_wanted: impl Fn(&str) -> bool + Sync,
) -> Result<Vec<Row>, Box<dyn Error>> {
    if !RUNS.iter().any(|(.., row)| is_wanted(row)) {
        return Ok(Vec::new());
    }
    let functions = [NodeFunction { name: "counter-rmw", guest: "counter-rmw", keys: "app = \"counters\"\n" }];
    // A process has the CPUs of the thread that starts it, so it is started before the load is pinned.
    let place = NodePlace::new(files, server_cpu, "", &functions)?;
    let server = place.start(interrupt)?;
    on_cpu(load_cpu, || {
        let wanted: Vec<_> = RUNS.into_iter().filter(|run| is_wanted(run.2)).collect();
        let mut counted: Vec<Vec<[f64; COUNTERS.len()]>> = vec![Vec::new(); wanted.len()];
        for round in 0..ROUNDS {
            for (at, (case, under_way, row)) in wanted.iter().enumerate() {
                // Sessions of its own, also beside another row of the same case.
                let sessions = round * RUNS.len() + at;
                let run = |requests| {
                    let plan = LoadPlan { warm_up: Duration::ZERO, measured: TIME_MAX, requests_max: requests, interrupt };
                    let once = || case.run(&server, &plan, *under_way, SESSIONS, sessions).map(drop);
                    again_where_disturbed(row, once, || read(&place))
                };
                run(WARM_UP_REQUESTS)?;
                let (before, after) = run(REQUESTS)?;
                counted[at].push(std::array::from_fn(|counter| (after[counter] - before[counter]) / REQUESTS as f64));
            }
        }
        Ok(wanted.iter().zip(&counted).flat_map(|((.., row), rounds)| rows_of(row, rounds)).collect())
    })
}

/// Counts before and after `run`; again, some times, where datagrams had no answer in time: others had the node's CPU or the client's for so long.
fn again_where_disturbed<T>(
    row: &'static str,
    mut run: impl FnMut() -> Result<(), CaseError>,
    read: impl Fn() -> Result<T, RingCountError>,
) -> Result<(T, T), RingCountError> {
    let mut tries = 1;
    loop {
        let before = read()?;
        match run() {
            Ok(()) => return Ok((before, read()?)),
            Err(error @ CaseError::Lost { .. }) if tries < TRIES => eprintln!("{error}: once more"),
            Err(source) => return Err(RingCountError::Load { row, source }),
        }
        tries += 1;
    }
}

/// The median of each counter by itself. `rounds`: at least one.
fn rows_of(name: &str, rounds: &[[f64; COUNTERS.len()]]) -> [Row; COUNTERS.len()] {
    std::array::from_fn(|counter| {
        let counts: Vec<f64> = rounds.iter().map(|round| round[counter]).collect();
        Row::new(name, COUNTERS[counter].1, median(&counts).unwrap_or_default())
    })
}

fn read(place: &NodePlace) -> Result<[f64; COUNTERS.len()], RingCountError> {
    let metrics = Metrics::read(place.admin())?;
    let mut values = [0.0; COUNTERS.len()];
    for (value, (name, _)) in values.iter_mut().zip(COUNTERS) {
        *value = metrics.sum(name)?;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_on_a_machine_that_is_busy_does_not_count() {
        let rows = rows_of("ring/x", &[[0.04, 1.0, 2.0], [0.041, 1.0, 2.002], [0.2, 1.4, 2.9], [0.04, 1.002, 2.0], [0.01, 1.0, 2.0]]);
        assert_eq!(rows.each_ref().map(|row| row.count), [0.04, 1.0, 2.0]);
        assert_eq!(rows.map(|row| row.unit), [Unit::Enters, Unit::Submissions, Unit::Completions]);
    }

    #[test]
    fn a_run_that_lost_datagrams_is_made_again_and_not_for_ever() {
        let mut tries = 0;
        let reads = std::cell::Cell::new(0);
        let mut after = |lost_runs: u32| {
            tries = 0;
            let run = || {
                tries += 1;
                if tries <= lost_runs { Err(CaseError::Lost { lost: 32, sent: 20_000 }) } else { Ok(()) }
            };
            let read = || {
                reads.set(reads.get() + 1);
                Ok(reads.get())
            };
            (again_where_disturbed("ring/x", run, read), tries)
        };
        assert!(matches!(after(0), (Ok((1, 2)), 1)));
        // The counts before are those before the run that counts.
        assert!(matches!(after(2), (Ok((5, 6)), 3)));
        assert!(matches!(after(9), (Err(RingCountError::Load { row: "ring/x", .. }), TRIES)));
        assert!(matches!(again_where_disturbed("ring/x", || Err(CaseError::Nothing), || Ok(0)), Err(RingCountError::Load { .. })));
    }
}
