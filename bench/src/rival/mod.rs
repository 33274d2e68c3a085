//! The load generator beside wrk: the same connections, the same server, the same core. What is asked is how many requests a second one core
//! of each could make, since a server on one core is the slower end of both: so the CPU time that each spends on a request is held side by
//! side, and the rates as well.

mod report;
mod wrk;

pub use self::report::{RivalRow, Verdict, rival_table};
pub use self::wrk::{WrkError, WrkRun, run_wrk};

use crate::generator::{Arrivals, GeneratorError, LoadOutcome, LoadSpec, Progress, Transport, run_load};
use crate::load::Interrupt;
use crate::servers::{Server, ServerError, start_limit, start_nginx};
use crate::settings::on_thread;
use std::time::Duration;
use xfaas_dataplane::sys::affinity::pin_to;

/// Requests under way on each connection where they are pipelined.
const PIPELINED: usize = 8;
/// Runs of a round.
const ROWS: usize = 4;
const WARM_UP: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum RivalError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("wrk")]
    Wrk(#[from] WrkError),
    #[error("the load generator")]
    Load(#[from] GeneratorError),
    #[error("the load generator's run failed: {0}")]
    Run(String),
    #[error("a thread cannot be pinned, or failed: {0}")]
    Thread(String),
    #[error("nothing was measured")]
    Nothing,
}

/// What to measure.
pub struct RivalBench<'a> {
    pub server_cpu: u16,
    pub load_cpu: u16,
    pub connections: u16,
    /// Of each run; each round has four runs on each server.
    pub seconds: f64,
    pub rounds: u32,
    pub interrupt: &'a Interrupt,
}

/// A server that wrk and we ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RivalServer {
    /// The bare io_uring echo.
    Limit,
    /// nginx `return 200`.
    Nginx,
}

impl RivalServer {
    pub const ALL: [RivalServer; 2] = [RivalServer::Limit, RivalServer::Nginx];

    pub const fn name(self) -> &'static str {
        match self {
            RivalServer::Limit => "limit",
            RivalServer::Nginx => "nginx",
        }
    }

    fn start(self, bench: &RivalBench<'_>) -> Result<Server, ServerError> {
        match self {
            RivalServer::Limit => start_limit(bench.server_cpu, bench.interrupt),
            RivalServer::Nginx => start_nginx(bench.server_cpu, bench.interrupt),
        }
    }
}

impl RivalBench<'_> {
    /// Output: four rows, wrk, ours as wrk, ours at wrk's rate, ours with requests pipelined, each of its best round: what else the machine does only slows.
    pub fn measure(&self, which: RivalServer) -> Result<Vec<RivalRow>, RivalError> {
        let server = which.start(self)?;
        let mut rows: Vec<Vec<RivalRow>> = Vec::new();
        for round in 0..self.rounds {
            let wrk = self.on_load_cpu(|| Ok(run_wrk(server.address(), self.connections, self.seconds)?))?;
            let closed = self.ours(&server, Arrivals::Closed, 1)?;
            let paced = self.ours(&server, Arrivals::Fixed { per_second: wrk.requests_per_second.max(1.0) }, 1)?;
            let pipelined = self.ours(&server, Arrivals::Closed, PIPELINED)?;
            eprintln!(
                "{} round {}/{}: wrk {:.0}/s {:.2} us CPU, ours {:.0}/s {:.2} us, at wrk's rate {:.2} us, pipelined {:.0}/s {:.2} us",
                which.name(),
                round + 1,
                self.rounds,
                wrk.requests_per_second,
                wrk.cpu_us_per_request,
                closed.requests_per_second,
                closed.busy_us_per_request,
                paced.busy_us_per_request,
                pipelined.requests_per_second,
                pipelined.busy_us_per_request
            );
            rows.push(vec![
                RivalRow::new(which.name(), "wrk", wrk.requests_per_second, wrk.cpu_us_per_request),
                // It spins: its CPU time is the whole of it, and the part with something to do is what requests cost.
                RivalRow::new(which.name(), "xfaas_load", closed.requests_per_second, closed.busy_us_per_request),
                RivalRow::new(which.name(), "xfaas_load_at_wrks_rate", paced.requests_per_second, paced.busy_us_per_request),
                RivalRow::new(which.name(), "xfaas_load_pipelined", pipelined.requests_per_second, pipelined.busy_us_per_request),
            ]);
            if self.interrupt.is_set() {
                break;
            }
        }
        let best = |i: usize| rows.iter().map(|round| &round[i]).min_by(|a, b| a.cpu_us_per_request.total_cmp(&b.cpu_us_per_request));
        let fastest = |i: usize| rows.iter().map(|round| round[i].requests_per_second).fold(0.0, f64::max);
        (0..ROWS)
            .map(|i| Some(RivalRow { requests_per_second: fastest(i), ..best(i)?.clone() }))
            .collect::<Option<Vec<RivalRow>>>()
            .ok_or(RivalError::Nothing)
    }

    fn ours(&self, server: &Server, arrivals: Arrivals, depth: usize) -> Result<LoadOutcome, RivalError> {
        let connections = usize::from(self.connections);
        let mut spec = LoadSpec::new(server.address(), Transport::Http, "session-".to_owned());
        spec.functions = vec!["counter-rmw:1:number".parse().map_err(RivalError::Run)?];
        spec.shape.names_session = false; // neither server names it
        spec.arrivals = arrivals;
        (spec.connections, spec.in_flight, spec.cpus) = (connections, connections * depth, vec![self.load_cpu]);
        (spec.warm_up, spec.measured) = (WARM_UP, Duration::from_secs_f64(self.seconds));
        let outcome = run_load(&spec, self.interrupt, Progress::Off)?;
        match outcome.fault() {
            Some(fault) => Err(RivalError::Run(fault)),
            None => Ok(outcome),
        }
    }

    /// Programs that are started by `work` stay on that CPU.
    fn on_load_cpu<T: Send>(&self, work: impl FnOnce() -> Result<T, RivalError> + Send) -> Result<T, RivalError> {
        let pinned = on_thread(|| {
            pin_to(self.load_cpu)?;
            Ok(work())
        });
        pinned.map_err(|error| RivalError::Thread(error.to_string()))?
    }
}
