//! xfaas beside what its users have now, in one run: every server on the same core with sensible production settings, all driven by the same
//! generator from another core over as many connections and sessions, at saturation, at parts of each one's own saturation, and at one rate
//! that all can serve.

mod install;
mod report;
mod usage;

pub use self::install::{InstallError, install_peers};
pub use self::report::{LoadPoint, PeerRow, peers_table};
pub use self::usage::{Usage, UsageError, usage_of};

use crate::generator::{Arrivals, GeneratorError, HttpShape, LoadOutcome, LoadSpec, Progress, Transport, run_load};
use crate::load::Interrupt;
use crate::servers::{Server, XfaasFiles, start_limit, start_nginx, start_redis, start_restate, start_workerd, start_xfaas};
use crate::settings::{chain, on_cpu};
use std::error::Error;
use std::path::Path;
use std::time::Duration;

/// Parts of its own saturation at which each is measured again.
pub const PARTS: [f64; 2] = [0.5, 0.7];
const WARM_UP_MAX: Duration = Duration::from_millis(500);
/// An open loop may use as many connections.
const OPEN_CONNECTIONS: usize = 256;
/// Slow peers answer late when they are saturated.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("{name}: cannot be started: {fault}")]
    Start { name: &'static str, fault: String },
    #[error("{name}: the load")]
    Load {
        name: &'static str,
        #[source]
        source: GeneratorError,
    },
    #[error("{name}: {fault}")]
    Run { name: &'static str, fault: String },
    #[error("{name}")]
    Usage {
        name: &'static str,
        #[source]
        source: UsageError,
    },
}

/// What is compared, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    LimitHttp,
    XfaasRmw,
    XfaasRead,
    XfaasRmwLinear,
    Nginx,
    RedisSet,
    RedisGet,
    WorkerdField,
    WorkerdRead,
    WorkerdRmw,
    RestateRead,
    RestateRmw,
}

/// The programs that serve them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Limit,
    Xfaas,
    Nginx,
    Redis,
    Workerd,
    Restate,
}

/// How one is asked.
struct Way {
    kind: Kind,
    name: &'static str,
    /// `NAME:WEIGHT:CHECK`, as `xfaas-load` takes it.
    function: &'static str,
    is_in_json: bool,
}

impl Peer {
    pub const ALL: [Peer; 12] = [
        Peer::LimitHttp,
        Peer::XfaasRmw,
        Peer::XfaasRead,
        Peer::XfaasRmwLinear,
        Peer::Nginx,
        Peer::RedisSet,
        Peer::RedisGet,
        Peer::WorkerdField,
        Peer::WorkerdRead,
        Peer::WorkerdRmw,
        Peer::RestateRead,
        Peer::RestateRmw,
    ];

    fn way(self) -> Way {
        let way = |kind, name, function, is_in_json| Way { kind, name, function, is_in_json };
        match self {
            Peer::LimitHttp => way(Kind::Limit, "limit_http", "counter-rmw:1:number", true),
            Peer::XfaasRmw => way(Kind::Xfaas, "xfaas_rmw", "counter-rmw:1:number", true),
            Peer::XfaasRead => way(Kind::Xfaas, "xfaas_read", "counter-read:1:number", true),
            Peer::XfaasRmwLinear => way(Kind::Xfaas, "xfaas_rmw_linear", "counter-rmw-linear:1:counter", true),
            Peer::Nginx => way(Kind::Nginx, "nginx", "counter-rmw:1:number", true),
            Peer::RedisSet => way(Kind::Redis, "redis_set", "set:1:any", true),
            Peer::RedisGet => way(Kind::Redis, "redis_get", "get:1:any", false),
            Peer::WorkerdField => way(Kind::Workerd, "workerd_field", "field:1:number", false),
            Peer::WorkerdRead => way(Kind::Workerd, "workerd_read", "read:1:number", true),
            Peer::WorkerdRmw => way(Kind::Workerd, "workerd_rmw", "rmw:1:counter", true),
            Peer::RestateRead => way(Kind::Restate, "restate_read", "read:1:number", false),
            Peer::RestateRmw => way(Kind::Restate, "restate_rmw", "rmw:1:counter", true),
        }
    }

    /// The `name` of its row.
    pub fn name(self) -> &'static str {
        self.way().name
    }

    /// False for the rows that only the table has.
    pub fn is_in_json(self) -> bool {
        self.way().is_in_json
    }
}

/// What to measure and where.
pub struct PeerBench<'a> {
    pub xfaas: &'a XfaasFiles,
    /// Where npm packages are, or are installed.
    pub packages: &'a Path,
    pub peers: &'a [Peer],
    pub server_cpu: u16,
    pub load_cpu: u16,
    pub connections: usize,
    pub sessions: usize,
    /// Of each of the four loads on each peer.
    pub seconds: f64,
    /// That all can serve, requests a second.
    pub common_per_second: f64,
    pub interrupt: &'a Interrupt,
}

/// A peer's processes, ended with their guard.
struct Running {
    server: Server,
    /// Of whatever it needs beside itself.
    beside: Option<Server>,
}

impl Running {
    fn usage(&self) -> Result<Usage, UsageError> {
        let roots: Vec<u32> = [Some(&self.server), self.beside.as_ref()].into_iter().flatten().map(Server::pid).collect();
        usage_of(&roots)
    }
}

impl PeerBench<'_> {
    /// Measures one after another, each with processes of its own. Progress goes to stderr; ends early when interrupted.
    /// Output: the rows, and why the other peers have none.
    pub fn measure(&self) -> (Vec<PeerRow>, Vec<PeerError>) {
        let (mut rows, mut failures) = (Vec::new(), Vec::new());
        for peer in self.peers {
            if self.interrupt.is_set() {
                break;
            }
            match self.one(*peer) {
                Ok(row) => rows.push(row),
                Err(error) => failures.push(error),
            }
        }
        (rows, failures)
    }

    fn one(&self, peer: Peer) -> Result<PeerRow, PeerError> {
        let way = peer.way();
        let running = self.start(&way)?;
        let usage = |source| PeerError::Usage { name: way.name, source };
        let before = running.usage().map_err(usage)?;
        let top = self.load(&way, &running.server, Arrivals::Closed)?;
        let after = running.usage().map_err(usage)?;
        let answers = (top.good + top.refused).max(1) as f64;
        let open = |per_second: f64| -> Result<LoadPoint, PeerError> {
            let arrivals = Arrivals::Poisson { per_second: per_second.max(1.0) };
            Ok(LoadPoint::of(&self.load(&way, &running.server, arrivals)?))
        };
        let parts = [open(top.requests_per_second * PARTS[0])?, open(top.requests_per_second * PARTS[1])?];
        let row = PeerRow {
            name: way.name,
            top: LoadPoint::of(&top),
            cpu_us_per_request: (after.cpu_us - before.cpu_us) / answers,
            rss_bytes: after.rss_bytes,
            parts,
            common: open(self.common_per_second)?,
        };
        eprintln!("{}", row.progress());
        Ok(row)
    }

    /// On the servers' CPU, and all that it starts.
    fn start(&self, way: &Way) -> Result<Running, PeerError> {
        let started = match way.kind {
            // It ends with the thread that started it, and puts itself on its CPU.
            Kind::Limit => self.start_kind(way.kind),
            kind => on_cpu(self.server_cpu, || self.start_kind(kind)),
        };
        started.map_err(|error| PeerError::Start { name: way.name, fault: chain(error.as_ref()) })
    }

    fn start_kind(&self, kind: Kind) -> Result<Running, Box<dyn Error>> {
        let server = match kind {
            Kind::Limit => start_limit(self.server_cpu, self.interrupt)?,
            Kind::Xfaas => start_xfaas(self.xfaas, self.server_cpu, self.interrupt)?,
            Kind::Nginx => start_nginx(self.server_cpu, self.interrupt)?,
            Kind::Redis => start_redis(self.server_cpu, self.interrupt)?,
            Kind::Workerd => {
                let binary = install_peers(self.packages)?.join("@cloudflare/workerd-linux-64/bin/workerd");
                start_workerd(&binary, self.interrupt)?
            }
            Kind::Restate => {
                let restate = start_restate(&install_peers(self.packages)?, self.interrupt)?;
                return Ok(Running { server: restate.server, beside: Some(restate.service) });
            }
        };
        Ok(Running { server, beside: None })
    }

    fn load(&self, way: &Way, server: &Server, arrivals: Arrivals) -> Result<LoadOutcome, PeerError> {
        let name = way.name;
        let failed = |fault| PeerError::Run { name, fault };
        let spec = self.spec(way, server, arrivals).map_err(failed)?;
        let outcome = run_load(&spec, self.interrupt, Progress::Off).map_err(|source| PeerError::Load { name, source })?;
        outcome.fault().map_or(Ok(outcome), |fault| Err(failed(fault)))
    }

    fn spec(&self, way: &Way, server: &Server, arrivals: Arrivals) -> Result<LoadSpec, String> {
        let transport = if way.kind == Kind::Redis { Transport::Redis } else { Transport::Http };
        let mut spec = LoadSpec::new(server.address(), transport, "session-".to_owned());
        // The loads of a peer follow each other on the same sessions.
        (spec.is_fresh, spec.sessions) = (false, self.sessions);
        spec.functions = vec![way.function.parse()?];
        match way.kind {
            Kind::Limit | Kind::Nginx => spec.shape.names_session = false,
            Kind::Workerd => spec.reader = Some("read".to_owned()),
            Kind::Restate => {
                spec.shape = HttpShape {
                    method: Some("POST".to_owned()),
                    path: "/Counter/{session}/{function}".to_owned(),
                    headers: Vec::new(),
                    names_session: false,
                };
                spec.reader = Some("read".to_owned());
            }
            Kind::Xfaas | Kind::Redis => {}
        }
        let measured = Duration::from_secs_f64(self.seconds);
        let connections = if arrivals == Arrivals::Closed { self.connections } else { OPEN_CONNECTIONS };
        (spec.arrivals, spec.connections, spec.in_flight) = (arrivals, connections, connections);
        (spec.warm_up, spec.measured, spec.answer_timeout) = (WARM_UP_MAX.min(measured), measured, ANSWER_TIMEOUT);
        spec.cpus = vec![self.load_cpu];
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::MixFunction;

    #[test]
    fn every_peer_is_asked_for_a_function_that_can_be_checked() {
        for peer in Peer::ALL {
            assert!(peer.way().function.parse::<MixFunction>().is_ok(), "{}", peer.name());
        }
    }

    #[test]
    fn the_promised_rows_are_in_the_json() {
        let mut names: Vec<&str> = Peer::ALL.iter().filter(|peer| peer.is_in_json()).map(|peer| peer.name()).collect();
        names.sort_unstable();
        let promised = [
            "limit_http",
            "nginx",
            "redis_set",
            "restate_rmw",
            "workerd_read",
            "workerd_rmw",
            "xfaas_read",
            "xfaas_rmw",
            "xfaas_rmw_linear",
        ];
        assert_eq!(names, promised);
    }
}
