//! Bursts, as in Fig. 11 of the paper: many requests at once on one session, each of which works for a while between reading and writing one
//! key, with more and more workers.
//!
//! The workers of one container share the core of its shard. More of them begin more requests at once but make none of them faster: what they change is
//! the order of the answers, and with weak reads and writes how many updates are lost. A secondary container has a core of its own: with two of them
//! weak requests are done in about half the time, if that core is free; a critical section is one at a time wherever it runs.

mod plot;
mod report;

pub use self::plot::{PlotError, plot};
pub use self::report::{BurstRow, bursts_table};

use crate::load::{BurstReply, Client, FetchError, Interrupt, LoadError, LoadPlan, run_burst};
use crate::report::median;
use crate::servers::{NodeFunction, NodePlace, Server, ServerError, XfaasFiles};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What a session has: workers a container, and containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub workers_max: u32,
    pub containers_max: u32,
}

/// One container, on a node with one shard; and two, on a node with two.
pub const ONE_CONTAINER: [Room; 4] = [room(1, 1), room(2, 1), room(4, 1), room(8, 1)];
pub const TWO_CONTAINERS: [Room; 2] = [room(1, 2), room(4, 2)];
/// Turns of the guest's loop in the calls that the work is calibrated with.
const CALIBRATION_TURNS: u32 = 2_000_000;
const CALIBRATION_CALLS: usize = 9;
const FUNCTIONS: [NodeFunction<'static>; 4] = [
    NodeFunction { name: "burst-1", guest: "slow-counter", keys: "workers_max = 1\ndeadline_ms = 60000\n" },
    NodeFunction { name: "burst-2", guest: "slow-counter", keys: "workers_max = 2\ndeadline_ms = 60000\n" },
    NodeFunction { name: "burst-4", guest: "slow-counter", keys: "workers_max = 4\ndeadline_ms = 60000\n" },
    NodeFunction { name: "burst-8", guest: "slow-counter", keys: "workers_max = 8\ndeadline_ms = 60000\n" },
];
const PACKED_FUNCTIONS: [NodeFunction<'static>; 2] = [
    NodeFunction { name: "burst-1", guest: "slow-counter", keys: "workers_max = 1\ncontainers_max = 2\ndeadline_ms = 60000\n" },
    NodeFunction { name: "burst-4", guest: "slow-counter", keys: "workers_max = 4\ncontainers_max = 2\ndeadline_ms = 60000\n" },
];

const fn room(workers_max: u32, containers_max: u32) -> Room {
    Room { workers_max, containers_max }
}

#[derive(Debug, thiserror::Error)]
pub enum BurstError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("the burst")]
    Load(#[from] LoadError),
    #[error("the work of a request cannot be calibrated")]
    Fetch(#[from] FetchError),
    #[error("a request was answered with {status} and {body:?}")]
    Answer { status: u16, body: String },
    #[error("RMW_Linear with {workers_max} workers counted {counted} of {requests} requests: updates were lost or doubled")]
    Lost { workers_max: u32, counted: usize, requests: usize },
    #[error("nothing was measured")]
    Nothing,
}

/// How a request reads and writes its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Rmw,
    RmwLinear,
}

impl Mode {
    pub const ALL: [Mode; 2] = [Mode::Rmw, Mode::RmwLinear];

    pub const fn name(self) -> &'static str {
        match self {
            Mode::Rmw => "rmw",
            Mode::RmwLinear => "rmw_linear",
        }
    }
}

/// How much to measure.
pub struct BurstBench<'a> {
    pub xfaas: &'a XfaasFiles,
    pub server_cpu: u16,
    /// Of the second shard, where there are two: the load's, if this machine has no third one.
    pub second_cpu: u16,
    /// At once, 1..=250: as many as may wait in a namespace.
    pub requests: u32,
    /// What each works for.
    pub work: Duration,
    pub rounds: u32,
    pub interrupt: &'a Interrupt,
}

/// The nodes that a benchmark asks, running.
pub struct BurstNodes {
    one: (NodePlace, Server),
    two: (NodePlace, Server),
}

impl BurstNodes {
    fn with(&self, room: Room) -> SocketAddr {
        if room.containers_max == 1 { self.one.1.address() } else { self.two.1.address() }
    }
}

/// Nodes with the functions, running: one with a shard, one with two. Not started from a thread on the load's CPU: they could not leave it.
pub fn start_for_bursts(bench: &BurstBench<'_>) -> Result<BurstNodes, BurstError> {
    let start = |cpus: &[u16], functions: &[NodeFunction<'_>]| -> Result<(NodePlace, Server), BurstError> {
        let place = NodePlace::on_cpus(bench.xfaas, cpus, "", functions)?;
        let server = place.start(bench.interrupt)?;
        Ok((place, server))
    };
    let one = start(&[bench.server_cpu], &FUNCTIONS)?;
    Ok(BurstNodes { one, two: start(&[bench.server_cpu, bench.second_cpu], &PACKED_FUNCTIONS)? })
}

/// Measures on the calling thread, which is on the load's CPU already. The curves are medians, request by request, over the rounds.
pub fn measure_bursts(bench: &BurstBench<'_>, nodes: &BurstNodes) -> Result<Vec<BurstRow>, BurstError> {
    let turns = turns_for(nodes.with(ONE_CONTAINER[0]), bench.work)?;
    let rooms = || ONE_CONTAINER.into_iter().chain(TWO_CONTAINERS);
    let cases: Vec<(Mode, Room)> = Mode::ALL.into_iter().flat_map(|mode| rooms().map(move |room| (mode, room))).collect();
    let mut rounds: Vec<Vec<Curve>> = cases.iter().map(|_| Vec::new()).collect();
    for round in 0..bench.rounds {
        eprintln!("round {} of {}", round + 1, bench.rounds);
        for (&(mode, room), curves) in cases.iter().zip(&mut rounds) {
            let request = request(room.workers_max, &format!("{}-{round}", mode.name()), mode, turns);
            let plan = LoadPlan {
                warm_up: Duration::ZERO,
                measured: Duration::ZERO,
                requests_max: bench.requests.into(),
                interrupt: bench.interrupt,
            };
            curves.push(curve(&run_burst(nodes.with(room), &request, &plan)?, mode, room.workers_max)?);
        }
    }
    let rows = cases.iter().zip(&rounds).map(|(&(mode, room), curves)| row(mode, room, bench, curves));
    rows.collect::<Option<Vec<BurstRow>>>().ok_or(BurstError::Nothing)
}

/// The delays of one burst in ms, shortest first, and how far the counter came.
struct Curve {
    delays_ms: Vec<f64>,
    updates: u64,
}

fn curve(replies: &[BurstReply], mode: Mode, workers_max: u32) -> Result<Curve, BurstError> {
    let mut counts = BTreeSet::new();
    for reply in replies {
        counts.insert(number_of(reply.status, &reply.body)?);
    }
    let updates = counts.last().copied().unwrap_or(0);
    if mode == Mode::RmwLinear && (counts.len() != replies.len() || updates != replies.len() as u64) {
        return Err(BurstError::Lost { workers_max, counted: counts.len(), requests: replies.len() });
    }
    Ok(Curve { delays_ms: replies.iter().map(|reply| reply.delay_ns as f64 / 1e6).collect(), updates })
}

fn row(mode: Mode, room: Room, bench: &BurstBench<'_>, curves: &[Curve]) -> Option<BurstRow> {
    let at = |rank: usize| median(&curves.iter().map(|curve| curve.delays_ms[rank]).collect::<Vec<f64>>());
    let delays_ms = (0..bench.requests as usize).map(at).collect::<Option<Vec<f64>>>()?;
    let updates = median(&curves.iter().map(|curve| curve.updates as f64).collect::<Vec<f64>>())?;
    Some(BurstRow::new(mode, room, bench.work, delays_ms, updates))
}

/// How many turns of the guest's loop take `work`: by calls with many and with none, of which the shortest count.
fn turns_for(target: SocketAddr, work: Duration) -> Result<u32, BurstError> {
    let mut client = Client::connect(target)?;
    let mut seconds_with = |turns| {
        let request = request(1, "calibration", Mode::Rmw, turns);
        let mut shortest = f64::INFINITY;
        for _ in 0..CALIBRATION_CALLS {
            let started = Instant::now();
            let reply = client.ask(&request)?;
            shortest = shortest.min(started.elapsed().as_secs_f64());
            number_of(reply.status, &reply.body)?;
        }
        Ok::<f64, BurstError>(shortest)
    };
    let (none, many) = (seconds_with(0)?, seconds_with(CALIBRATION_TURNS)?);
    let turn = (many - none).max(1e-6) / f64::from(CALIBRATION_TURNS);
    Ok((work.as_secs_f64() / turn) as u32)
}

fn request(workers_max: u32, session: &str, mode: Mode, turns: u32) -> Vec<u8> {
    let head = format!("POST /f/burst-{workers_max} HTTP/1.1\r\nhost: node\r\nx-session-id: {session}\r\ncontent-length: 8\r\n\r\n");
    let mode = u32::from(mode == Mode::RmwLinear);
    [head.as_bytes(), &mode.to_le_bytes(), &turns.to_le_bytes()].concat()
}

fn number_of(status: u16, body: &[u8]) -> Result<u64, BurstError> {
    match body.try_into() {
        Ok(number) if status == 200 => Ok(u64::from_le_bytes(number)),
        _ => Err(BurstError::Answer { status, body: String::from_utf8_lossy(body).into_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(count: u64, delay_ns: u64) -> BurstReply {
        BurstReply { status: 200, body: count.to_le_bytes().to_vec(), delay_ns }
    }

    #[test]
    fn a_linear_burst_that_lost_an_update_is_an_error() {
        let kept = [reply(1, 1_000_000), reply(2, 2_500_000)];
        let known = curve(&kept, Mode::RmwLinear, 4).unwrap();
        assert_eq!((known.delays_ms, known.updates), (vec![1.0, 2.5], 2));
        let lost = [reply(1, 1), reply(1, 2)];
        assert!(matches!(curve(&lost, Mode::RmwLinear, 4), Err(BurstError::Lost { counted: 1, requests: 2, .. })));
        assert_eq!(curve(&lost, Mode::Rmw, 4).unwrap().updates, 1);
    }

    #[test]
    fn a_refused_request_is_an_error() {
        let refused = BurstReply { status: 503, body: b"{}".to_vec(), delay_ns: 1 };
        assert!(matches!(curve(&[refused], Mode::Rmw, 1), Err(BurstError::Answer { status: 503, .. })));
    }
}
