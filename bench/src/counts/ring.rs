//! System calls a request: a real node serves a fixed number of requests, and says how often it entered the ring.

use crate::load::{Interrupt, LoadPlan};
use crate::servers::{NodeFunction, NodePlace, ServerError, XfaasFiles};
use crate::sessions::{Metrics, SessionsError};
use crate::settings::on_cpu;
use crate::suite::{Case, CaseError};
use std::error::Error;
use std::time::Duration;

use super::table::{Row, Unit};

/// Requests of a run; the first run of each is not counted.
const REQUESTS: u64 = 20_000;
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
        let mut rows = Vec::new();
        for (round, (case, under_way, row)) in RUNS.into_iter().enumerate().filter(|(_, run)| is_wanted(run.2)) {
            let mut previous = [0.0; COUNTERS.len()];
            for requests in [WARM_UP_REQUESTS, REQUESTS] {
                let plan = LoadPlan { warm_up: Duration::ZERO, measured: TIME_MAX, requests_max: requests, interrupt };
                previous = read(&place)?;
                case.run(&server, &plan, under_way, SESSIONS, round).map_err(|source| RingCountError::Load { row, source })?;
            }
            let now = read(&place)?;
            for (at, (_, unit)) in COUNTERS.into_iter().enumerate() {
                rows.push(Row::new(row, unit, (now[at] - previous[at]) / REQUESTS as f64));
            }
        }
        Ok(rows)
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
