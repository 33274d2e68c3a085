//! Latency and throughput against offered load, up to saturation and past it: for HTTP and datagrams, each way of steering, one core and two.
//! A closed loop looks for the top; then an open loop over as many connections, with as many datagrams under way, offers parts and multiples of
//! it: with fewer, a server that has less to look after would be faster and the open loop look broken. The top is what either gets at most.
//! Before and after each point at the top and past it the closed loop runs again: a machine that is slower for a while must not look like a
//! server that breaks.

mod plot;
mod report;

pub use self::plot::CurvesPicture;
pub use self::report::{CurvePoint, CurveVerdict, curves_table};

use crate::generator::{Arrivals, GeneratorError, LoadOutcome, LoadSpec, Progress, Transport, Wait, repeat_while_short, run_load};
use crate::load::Interrupt;
use crate::network::Network;
use crate::servers::{Server, ServerError, Steered, XfaasFiles, start_xfaas_steered};
use std::net::SocketAddr;
use std::time::Duration;
use xfaas_dataplane::sys::clock::unix_ms;

/// What is offered, in parts of what the first closed loop got.
pub const PARTS: [f64; 10] = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0];
const WARM_UP: Duration = Duration::from_millis(200);
/// Of a point at the top or past it: rounds in which the machine kept its speed.
const ROUNDS_PAST_TOP: usize = 5;
/// Where the closed loop after a round got so much more or less than the one before, the machine changed its speed meanwhile, and one more round is made.
const SPEED_CHANGE_MAX: f64 = 0.1;
/// Rounds of a point at most, however unsteady the machine.
const ROUNDS_MADE_MAX: usize = 9;
/// Past the top lost datagrams keep their places for this long.
const DATAGRAM_TIMEOUT: Duration = Duration::from_millis(250);
const DATAGRAM_SOCKETS: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum CurveError {
    #[error("{steering} on {cores} cores: the server cannot be used")]
    Server {
        steering: &'static str,
        cores: usize,
        #[source]
        source: ServerError,
    },
    #[error("{name}, {steering} on {cores} cores: the load")]
    Load {
        name: &'static str,
        steering: &'static str,
        cores: usize,
        #[source]
        source: GeneratorError,
    },
    #[error("{name}, {steering} on {cores} cores: {fault}")]
    Run { name: &'static str, steering: &'static str, cores: usize, fault: String },
}

/// How packets find their shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    Xdp,
    Reuseport,
    Tc,
    Off,
}

impl Steering {
    pub const ALL: [Steering; 4] = [Steering::Xdp, Steering::Reuseport, Steering::Tc, Steering::Off];

    pub const fn name(self) -> &'static str {
        match self {
            Steering::Xdp => "xdp",
            Steering::Reuseport => "reuseport",
            Steering::Tc => "tc",
            Steering::Off => "off",
        }
    }
}

/// What is asked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    HttpRmw,
    UdpRmw,
}

impl Asked {
    pub const ALL: [Asked; 2] = [Asked::HttpRmw, Asked::UdpRmw];

    pub const fn name(self) -> &'static str {
        match self {
            Asked::HttpRmw => "http_rmw",
            Asked::UdpRmw => "udp_rmw",
        }
    }

    const fn transport(self) -> Transport {
        match self {
            Asked::HttpRmw => Transport::Http,
            Asked::UdpRmw => Transport::Datagram,
        }
    }
}

/// What to measure and where.
pub struct CurveBench<'a> {
    pub xfaas: &'a XfaasFiles,
    pub network: &'a Network,
    /// CPUs that may be used, the servers' first.
    pub cpus: &'a [u16],
    pub asked: &'a [Asked],
    /// Without a veth pair only `Off`.
    pub steering: &'a [Steering],
    /// Numbers of cores, each one of which the machine has.
    pub cores: &'a [usize],
    /// Of each point.
    pub seconds: f64,
    /// HTTP connections, and datagrams under way, that a loop may have, closed or open.
    pub connections: usize,
    pub in_flight: usize,
    pub sessions: usize,
    pub interrupt: &'a Interrupt,
}

/// One server of the bench.
#[derive(Clone, Copy)]
struct Setting {
    steering: Steering,
    cores: usize,
}

impl CurveBench<'_> {
    /// All curves, in order. Progress goes to stderr. Ends early, with what there is, when interrupted.
    /// Errors: a server that does not start, an answer that is neither good nor a refusal.
    pub fn measure(&self) -> Result<(Vec<CurvePoint>, Vec<CurveVerdict>), CurveError> {
        let (mut points, mut verdicts) = (Vec::new(), Vec::new());
        for &cores in self.cores {
            for &steering in self.steering {
                let setting = Setting { steering, cores };
                let steered = Steered { cpus: &self.cpus[..cores], mode: steering.name() };
                let (server, _) = start_xfaas_steered(self.network, self.xfaas, &steered, self.interrupt)
                    .map_err(|source| CurveError::Server { steering: steering.name(), cores, source })?;
                for &asked in self.asked {
                    let curve = self.curve(asked, setting, &server)?;
                    verdicts.extend(CurveVerdict::of(&curve));
                    points.extend(curve);
                    if self.interrupt.is_set() {
                        return Ok((points, verdicts));
                    }
                }
            }
        }
        Ok((points, verdicts))
    }

    fn curve(&self, asked: Asked, setting: Setting, server: &Server) -> Result<Vec<CurvePoint>, CurveError> {
        let mut curve = vec![self.point(asked, setting, server, None)?];
        let closed = curve[0].requests_per_second;
        for part in PARTS {
            if self.interrupt.is_set() {
                break;
            }
            let per_second = closed * part;
            curve.push(if part < 1.0 {
                self.point(asked, setting, server, Some(per_second))?
            } else {
                self.past_top(asked, setting, server, per_second)?
            });
        }
        report::set_parts_of_top(&mut curve);
        Ok(curve)
    }

    /// The median of some rounds, each between two closed loops: a single second says more about the machine than about the server.
    /// It has the errors of all of them.
    fn past_top(&self, asked: Asked, setting: Setting, server: &Server, per_second: f64) -> Result<CurvePoint, CurveError> {
        let closed = || self.point(asked, setting, server, None);
        let mut loops = vec![closed()?];
        let (mut rounds, mut steady) = (Vec::new(), 0);
        while steady < ROUNDS_PAST_TOP && rounds.len() < ROUNDS_MADE_MAX {
            let point = self.point(asked, setting, server, Some(per_second))?;
            let (before, after) = (loops[loops.len() - 1].requests_per_second, closed()?);
            rounds.push(CurvePoint { closed_per_second: Some(f64::midpoint(before, after.requests_per_second)), ..point });
            // Where the load has no core of its own closed loops never agree.
            let is_steady = self.is_shared(setting.cores) || (after.requests_per_second - before).abs() <= SPEED_CHANGE_MAX * before;
            steady += usize::from(is_steady);
            loops.push(after);
            if self.interrupt.is_set() {
                break;
            }
        }
        // All count: a machine that changed its speed made about as many rounds look better as worse, and those that it changed twice look steady.
        rounds.sort_by(|a, b| a.part_of_closed().total_cmp(&b.part_of_closed()));
        let mut median = rounds.swap_remove((rounds.len() - 1) / 2);
        rounds.iter().chain(&loops).for_each(|other| median.add_errors(other));
        Ok(median)
    }

    /// Again where the generator had a core of its own and was short of arrivals all the same.
    /// `offered`: requests a second; `None` for a closed loop.
    fn point(&self, asked: Asked, setting: Setting, server: &Server, offered: Option<f64>) -> Result<CurvePoint, CurveError> {
        let is_short = |point: &CurvePoint| point.arrivals_short && !point.load_shares_cores && !self.interrupt.is_set();
        repeat_while_short(|_| self.point_once(asked, setting, server, offered), is_short)
    }

    fn point_once(&self, asked: Asked, setting: Setting, server: &Server, offered: Option<f64>) -> Result<CurvePoint, CurveError> {
        let (name, Setting { steering, cores }) = (asked.name(), setting);
        let spec = self.spec(asked, cores, server.address(), offered);
        let outcome = run_load(&spec, self.interrupt, Progress::Off).map_err(|source| CurveError::Load {
            name,
            steering: steering.name(),
            cores,
            source,
        })?;
        // Requests that no answer came to in time are what a point shows, not what it fails by.
        if outcome.error.is_some() || outcome.wrong + outcome.strays > 0 {
            let fault = outcome.fault().unwrap_or_default();
            return Err(CurveError::Run { name, steering: steering.name(), cores, fault });
        }
        let point = CurvePoint::new(name, steering.name(), cores, self.is_shared(cores), offered, &outcome);
        eprintln!("{}", point.progress());
        Ok(point)
    }

    /// The load has no core of its own.
    fn is_shared(&self, cores: usize) -> bool {
        self.cpus.len() <= cores
    }

    fn spec(&self, asked: Asked, cores: usize, target: SocketAddr, per_second: Option<f64>) -> LoadSpec {
        // New sessions for each point, so that none is warmer than another.
        let mut spec = LoadSpec::new(target, asked.transport(), format!("{:x}-", unix_ms()));
        let own = if self.is_shared(cores) { Vec::new() } else { self.cpus[cores..].to_vec() };
        spec.threads = own.len().clamp(1, cores);
        spec.wait = if own.is_empty() { Wait::Sleep } else { Wait::Spin };
        spec.cpus = own;
        spec.functions = "counter-rmw:1:number".parse().into_iter().collect();
        spec.network = self.network.clone();
        spec.sessions = self.sessions;
        (spec.warm_up, spec.measured) = (WARM_UP, Duration::from_secs_f64(self.seconds));
        let is_http = asked.transport() == Transport::Http;
        if !is_http {
            spec.answer_timeout = DATAGRAM_TIMEOUT;
        }
        let datagrams = (DATAGRAM_SOCKETS, self.in_flight);
        (spec.connections, spec.in_flight) = if is_http { (self.connections, self.connections) } else { datagrams };
        if let Some(per_second) = per_second {
            spec.arrivals = Arrivals::Poisson { per_second: per_second.max(1.0) };
        }
        spec
    }
}

/// What a point says of a run.
impl CurvePoint {
    fn new(
        name: &'static str,
        steering: &'static str,
        cores: usize,
        shares_cores: bool,
        offered: Option<f64>,
        outcome: &LoadOutcome,
    ) -> CurvePoint {
        let other: u64 = outcome.statuses.iter().filter(|(status, _)| **status != 503).map(|(_, count)| count).sum();
        CurvePoint {
            name,
            steering,
            cores,
            load_shares_cores: shares_cores,
            part_of_top: None,
            offered_per_second: offered.map(f64::round),
            requests_per_second: outcome.requests_per_second,
            refused_per_second: outcome.refused_per_second,
            arrived_per_second: outcome.arrived_per_second,
            arrivals_short: outcome.arrivals_short,
            unanswered: outcome.unsure,
            cut: outcome.cut,
            unsent: outcome.unsent,
            other_statuses: other,
            refusals: outcome.statuses.get(&503).copied().unwrap_or(0),
            p50_us: outcome.latency.p50_us,
            p99_us: outcome.latency.p99_us,
            p999_us: outcome.latency.p999_us,
            closed_per_second: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn open_and_closed_loops_have_the_same_number_under_way() {
        let files = XfaasFiles { binary: Path::new("xfaas").into(), guests: Path::new("guests").into() };
        let bench = CurveBench {
            xfaas: &files,
            network: &Network::loopback(),
            cpus: &[0, 1],
            asked: &Asked::ALL,
            steering: &[Steering::Off],
            cores: &[1],
            seconds: 1.0,
            connections: 500,
            in_flight: 4_000,
            sessions: 80,
            interrupt: &Interrupt::default(),
        };
        for (asked, under_way) in [(Asked::HttpRmw, (500, 500)), (Asked::UdpRmw, (DATAGRAM_SOCKETS, 4_000))] {
            for per_second in [None, Some(9e5)] {
                let spec = bench.spec(asked, 1, SocketAddr::from(([127, 0, 0, 1], 1)), per_second);
                assert_eq!((spec.connections, spec.in_flight), under_way, "{asked:?} {per_second:?}");
                assert_eq!(spec.arrivals == Arrivals::Closed, per_second.is_none());
            }
        }
    }
}
