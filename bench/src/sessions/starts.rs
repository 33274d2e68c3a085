//! First requests of sessions that nobody has seen before, beside warm ones and ones that get a new worker: as a client sees them, one at a time,
//! and where the time goes by the node's own counters.

use super::probe::Metrics;
use super::{SessionsBench, SessionsError, request};
use crate::load::Client;
use crate::servers::{NodeFunction, NodePlace, Server};
use hdrhistogram::Histogram;
use std::net::SocketAddr;
use xfaas_dataplane::sys::clock::monotonic_ns;

/// Blocks of each kind, in turns.
const BLOCKS: u32 = 10;
/// Requests of each kind that are not counted.
const WARM_UP_REQUESTS: u32 = 100;
const FUNCTIONS: [NodeFunction<'static>; 2] = [
    NodeFunction { name: "count", guest: "counter-rmw", keys: "" },
    NodeFunction { name: "count-fork", guest: "counter-rmw", keys: "fresh = true\n" },
];

/// From the request's first byte sent to the reply's last byte received, in us.
#[derive(Clone, Copy, Debug)]
pub struct Quantiles {
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Means, in us. They sum up to what the client saw.
#[derive(Clone, Copy, Debug)]
pub struct StartPhases {
    /// Loopback, both ways, and the client.
    pub network_us: f64,
    /// On the way to the shard of a secondary container. The others wait in no queue: the shard had nothing else to do.
    pub queue_us: f64,
    /// Making the worker.
    pub instance_us: f64,
    /// The rest of the node's time: decoding, the session's state, the guest, the reply.
    pub state_and_reply_us: f64,
}

/// One kind of request.
#[derive(Clone, Copy, Debug)]
pub struct StartFigures {
    pub name: &'static str,
    pub quantiles: Quantiles,
    pub phases: StartPhases,
}

struct Kind {
    name: &'static str,
    function: &'static str,
    /// Every request is for another session.
    is_new_session: bool,
    times: Times,
}

/// What requests of one kind took, as the client saw it and by the node's counters.
pub(super) struct Times {
    times_ns: Histogram<u64>,
    sum_ns: u64,
    server_s: f64,
    queue_s: f64,
    fork_s: f64,
}

impl Default for Times {
    fn default() -> Times {
        let times_ns = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds in order");
        Times { times_ns, sum_ns: 0, server_s: 0.0, queue_s: 0.0, fork_s: 0.0 }
    }
}

impl Times {
    pub(super) fn record(&mut self, time_ns: u64) {
        self.times_ns.saturating_record(time_ns);
        self.sum_ns += time_ns;
    }

    /// Adds what the node counted between two looks at it.
    pub(super) fn add_server(&mut self, before: &Metrics, after: &Metrics) -> Result<(), SessionsError> {
        let grown = |name| Ok::<f64, SessionsError>(after.sum(name)? - before.sum(name)?);
        self.server_s += grown("xfaas_request_duration_seconds_sum")?;
        self.queue_s += grown("xfaas_secondary_wait_seconds_total")?;
        self.fork_s += grown("xfaas_fork_seconds_total")?;
        Ok(())
    }

    pub(super) fn figures(&self, name: &'static str) -> StartFigures {
        let count = self.times_ns.len().max(1) as f64;
        let quantile_us = |quantile| self.times_ns.value_at_quantile(quantile) as f64 / 1_000.0;
        let mean_us = self.sum_ns as f64 / 1_000.0 / count;
        let [server_us, queue_us, instance_us] = [self.server_s, self.queue_s, self.fork_s].map(|sum_s| sum_s * 1e6 / count);
        StartFigures {
            name,
            quantiles: Quantiles { p50_us: quantile_us(0.50), p99_us: quantile_us(0.99) },
            phases: StartPhases {
                network_us: mean_us - server_us,
                queue_us,
                instance_us,
                state_and_reply_us: server_us - queue_us - instance_us,
            },
        }
    }
}

/// Measures on the calling thread, which is on the load's CPU already. `requests`: of each kind.
pub fn measure_starts(
    bench: &SessionsBench<'_>,
    place: &NodePlace,
    server: &Server,
    requests: u32,
) -> Result<Vec<StartFigures>, SessionsError> {
    let kind = |name, function, is_new_session| Kind { name, function, is_new_session, times: Times::default() };
    let mut kinds =
        [kind("cold_session_empty", "count", true), kind("warm_request", "count", false), kind("fork_request", "count-fork", false)];
    let mut client = Client::connect(server.address())?;
    let mut sessions = 0;
    for block in 0..=BLOCKS {
        bench.check_interrupt()?;
        for kind in &mut kinds {
            let count = if block == 0 { WARM_UP_REQUESTS } else { requests.div_ceil(BLOCKS) };
            kind.run(&mut client, place.admin(), count, &mut sessions, block > 0)?;
        }
    }
    Ok(kinds.iter().map(|kind| kind.times.figures(kind.name)).collect())
}

/// The node that `measure_starts` asks, running. Not from a thread on the load's CPU: it could not leave it.
pub fn start_for_starts(bench: &SessionsBench<'_>) -> Result<(NodePlace, Server), SessionsError> {
    let place = NodePlace::new(bench.xfaas, bench.server_cpu, "", &FUNCTIONS)?;
    let server = place.start(bench.interrupt)?;
    Ok((place, server))
}

impl Kind {
    fn run(
        &mut self,
        client: &mut Client,
        admin: SocketAddr,
        count: u32,
        sessions: &mut u64,
        is_counted: bool,
    ) -> Result<(), SessionsError> {
        let before = Metrics::read(admin)?;
        for _ in 0..count {
            *sessions += u64::from(self.is_new_session);
            let session = if self.is_new_session { format!("new-{:012}", *sessions) } else { "always-the-same-".to_owned() };
            let request = request(self.function, &session, b"");
            let started_ns = monotonic_ns();
            let reply = client.ask(&request)?;
            let time_ns = monotonic_ns() - started_ns;
            if reply.status != 200 || (self.is_new_session && reply.body != b"1") {
                let body = String::from_utf8_lossy(&reply.body).into_owned();
                return Err(SessionsError::Answer { request: self.name, status: reply.status, body });
            }
            if is_counted {
                self.times.record(time_ns);
            }
        }
        if is_counted {
            self.times.add_server(&before, &Metrics::read(admin)?)?;
        }
        Ok(())
    }
}
