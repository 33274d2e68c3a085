//! The places in which a session's state can be, as the paper compares them: the session itself (xfaas), redis, and an object store. Each is started
//! with all that belongs to it on the servers' CPU, and asked by the same generator for the same functions.

use super::{Figure, PaperError, PaperSetup};
use crate::baseline::{BaselineError, GUEST_TIMES, GuestTimes};
use crate::generator::{
    Arrivals, Check, GeneratorError, LoadOutcome, LoadSpec, MixFunction, Progress, Transport, run_load, run_load_marked,
};
use crate::load::{FetchError, fetch};
use crate::servers::{
    BUCKET, BaselineStore, NodeFunction, NodePlace, ObjectServer, Server, ServerError, start_baseline, start_objects, start_redis,
};
use crate::settings::chain;
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::time::Duration;
use xfaas_dataplane::control::{AdminClient, ClientError, TRACE_SECONDS_MAX, TracedRequest};
use xfaas_dataplane::sys::affinity::{AffinityError, pin_to};
use xfaas_dataplane::sys::clock::unix_ms;

const WARM_UP_S_MAX: f64 = 0.5;
/// A store that is behind answers late, not never.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests a session that write what is read: at 16 a session, one in a million sessions is left out.
const PRIMING_REQUESTS: usize = 16;
const PRIMING_S: u64 = 120;
/// All of one app, so that each counter can be read. With a deadline that none meets, as the baseline has none.
const FUNCTIONS: [NodeFunction<'static>; 3] = [
    NodeFunction { name: "counter-rmw", guest: "counter-rmw", keys: "app = \"counters\"\ndeadline_ms = 60000\n" },
    NodeFunction { name: "counter-rmw-linear", guest: "counter-rmw-linear", keys: "app = \"counters\"\ndeadline_ms = 60000\n" },
    NodeFunction { name: "counter-read", guest: "counter-read", keys: "app = \"counters\"\nread_only = true\ndeadline_ms = 60000\n" },
];

#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("the load generator")]
    Load(#[from] GeneratorError),
    #[error("the measuring thread")]
    Pin(#[from] AffinityError),
    #[error("the times of xfaas' guests")]
    Trace(#[from] ClientError),
    #[error("the times of the baseline's guests")]
    Fetch(#[from] FetchError),
    #[error("the baseline")]
    Baseline(#[from] BaselineError),
    #[error("no runtime for the baseline")]
    Runtime(#[source] std::io::Error),
    #[error("the guest in the session")]
    Guest(#[from] crate::guest::GuestError),
    #[error("{place}, {what}: {fault}; the server's log ends with:\n{log}")]
    Run { place: &'static str, what: String, fault: String, log: String },
    #[error("the tracing thread panicked")]
    Panicked,
}

impl PlaceError {
    /// A server is not installed.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, PlaceError::Server(error) if error.is_missing())
    }
}

/// Where state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Session,
    Redis,
    Objects,
}

impl Place {
    pub const ALL: [Place; 3] = [Place::Session, Place::Redis, Place::Objects];

    pub const fn name(self) -> &'static str {
        match self {
            Place::Session => "session",
            Place::Redis => "redis",
            Place::Objects => "object store",
        }
    }

    /// Started from the calling thread, which is on the servers' CPU while that lasts: it must not end before what is started.
    pub(super) fn start(self, setup: &PaperSetup<'_>) -> Result<Started, PlaceError> {
        pin_to(setup.server_cpu)?;
        let started = self.start_here(setup);
        pin_to(setup.load_cpu)?;
        started
    }

    fn start_here(self, setup: &PaperSetup<'_>) -> Result<Started, PlaceError> {
        let (cpu, interrupt) = (setup.server_cpu, setup.interrupt);
        let baseline = |store| start_baseline(setup.xfaas, store, cpu, interrupt);
        let (server, admin, store) = match self {
            Place::Session => {
                let node = NodePlace::new(setup.xfaas, cpu, "", &FUNCTIONS)?;
                (node.start(interrupt)?, Some(node.admin()), Store::Node { _place: node })
            }
            Place::Redis => {
                let redis = start_redis(cpu, interrupt)?;
                (baseline(BaselineStore::Redis(redis.address()))?, None, Store::Redis { _server: redis })
            }
            Place::Objects => {
                let objects = start_objects(setup.packages, interrupt)?;
                (baseline(BaselineStore::Objects(objects.address(), BUCKET))?, None, Store::Objects { _server: objects })
            }
        };
        Ok(Started { place: self, server, admin, _store: store })
    }
}

/// The paper's three kinds of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Rmw,
    RmwLinear,
}

impl Access {
    pub const ALL: [Access; 3] = [Access::Read, Access::Rmw, Access::RmwLinear];

    pub const fn name(self) -> &'static str {
        match self {
            Access::Read => "RO",
            Access::Rmw => "RMW",
            Access::RmwLinear => "RMW_Linear",
        }
    }

    const fn function(self) -> &'static str {
        match self {
            Access::Read => "counter-read",
            Access::Rmw => "counter-rmw",
            Access::RmwLinear => "counter-rmw-linear",
        }
    }

    /// Only the strong one promises that no update is lost.
    const fn check(self) -> Check {
        match self {
            Access::RmwLinear => Check::Counter,
            Access::Read | Access::Rmw => Check::Number,
        }
    }
}

enum Store {
    Node { _place: NodePlace },
    Redis { _server: Server },
    Objects { _server: ObjectServer },
}

/// A place that serves. What it stores to ends after it.
pub(super) struct Started {
    place: Place,
    server: Server,
    admin: Option<SocketAddr>,
    _store: Store,
}

/// What is asked of a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) access: Access,
    pub(super) connections: usize,
    pub(super) sessions: usize,
    pub(super) arrivals: Arrivals,
}

impl Started {
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Errors: wrong answers, lost or doubled updates.
    pub(super) fn load(&self, setup: &PaperSetup<'_>, asked: &Asked) -> Result<LoadOutcome, PlaceError> {
        self.load_marked(setup, asked, || ())
    }

    /// The same; calls `measuring` when the warm-up is over.
    fn load_marked(&self, setup: &PaperSetup<'_>, asked: &Asked, measuring: impl FnOnce()) -> Result<LoadOutcome, PlaceError> {
        let Asked { access, connections, sessions, arrivals } = *asked;
        // New sessions for each run.
        let prefix = format!("{:x}-{connections}-", unix_ms());
        let mut spec = LoadSpec::new(self.server.address(), Transport::Http, prefix);
        (spec.connections, spec.in_flight, spec.sessions, spec.arrivals) = (connections, connections, sessions, arrivals);
        (spec.cpus, spec.answer_timeout) = (vec![setup.load_cpu], ANSWER_TIMEOUT);
        spec.functions = vec![MixFunction { name: access.function().to_owned(), weight: 1, check: access.check() }];
        if access == Access::Read {
            let functions = vec![MixFunction { name: Access::Rmw.function().to_owned(), weight: 1, check: Check::Number }];
            let (requests_max, measured) = ((sessions * PRIMING_REQUESTS) as u64, Duration::from_secs(PRIMING_S));
            let arrivals = Arrivals::Closed;
            let primer = LoadSpec { functions, requests_max, measured, arrivals, warm_up: Duration::ZERO, ..spec.clone() };
            self.good(run_load(&primer, setup.interrupt, Progress::Off)?, asked)?;
        }
        spec.warm_up = Duration::from_secs_f64(WARM_UP_S_MAX.min(setup.seconds / 2.0));
        spec.measured = Duration::from_secs_f64(setup.seconds);
        self.good(run_load_marked(&spec, setup.interrupt, Progress::Off, measuring)?, asked)
    }

    fn good(&self, outcome: LoadOutcome, asked: &Asked) -> Result<LoadOutcome, PlaceError> {
        let Some(fault) = outcome.fault() else { return Ok(outcome) };
        let what = format!("{} from {} clients", asked.access.name(), asked.connections);
        Err(PlaceError::Run { place: self.place.name(), what, fault, log: self.server.log_excerpt() })
    }

    /// The same, and what the guests took in the measured time; of xfaas a sample, `None` if that is empty.
    pub(super) fn load_and_time(&self, setup: &PaperSetup<'_>, asked: &Asked) -> Result<(LoadOutcome, Option<GuestTimes>), PlaceError> {
        let Some(admin) = self.admin else {
            // Looking takes them: those of the warm-up go.
            let mut warm_up = Ok(None);
            let outcome = self.load_marked(setup, asked, || warm_up = self.guest_times(asked.access))?;
            warm_up?;
            return Ok((outcome, self.guest_times(asked.access)?));
        };
        let seconds = (setup.seconds.ceil() as u32).clamp(1, TRACE_SECONDS_MAX);
        std::thread::scope(|scope| {
            let (begin, has_begun) = channel();
            // A run that ends in its warm-up drops the sender, and nothing is traced.
            let trace =
                scope.spawn(move || has_begun.recv().ok().map(|()| AdminClient::new(&admin.to_string()).trace(seconds)).transpose());
            let outcome = self.load_marked(setup, asked, move || begin.send(()).unwrap_or_default())?;
            let Some(trace) = trace.join().map_err(|_| PlaceError::Panicked)?? else { return Ok((outcome, None)) };
            let of_function = |request: &&TracedRequest| request.function == asked.access.function() && request.is_ok;
            let sample = trace.shards.iter().flat_map(|shard| &shard.sample).filter(of_function);
            Ok((outcome, guest_times_of(sample.map(|request| request.guest_us + request.parked_us).collect())))
        })
    }

    /// What the baseline's guests took since the last look; `None` of xfaas, and if there were none.
    fn guest_times(&self, access: Access) -> Result<Option<GuestTimes>, PlaceError> {
        if self.admin.is_some() {
            return Ok(None);
        }
        let (address, function) = (self.server.address(), access.function());
        let request = format!("GET /f/{GUEST_TIMES}/{function} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        let times: Option<GuestTimes> = serde_json::from_slice(&fetch(address, request.as_bytes())?.body).ok();
        Ok(times.filter(|times| times.invocations > 0))
    }
}

/// Does `work` with one place after another. An object store that is not installed is left out, with a note in `figure`.
pub(super) fn at_each_place<T: Send>(
    setup: &PaperSetup<'_>,
    figure: &mut Figure,
    work: impl Fn(&Started) -> Result<T, PaperError> + Sync,
) -> Result<Vec<T>, PaperError> {
    let mut all = Vec::new();
    for place in Place::ALL {
        // The thread lives as long as what it starts, which would end with it.
        match setup.at_load(|| work(&place.start(setup)?)) {
            Ok(done) => all.push(done),
            Err(PaperError::Place(error)) if place == Place::Objects && error.is_missing() => figure.notes.push(left_out(&error)),
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Microseconds of a table; nothing where no request was measured, as happens in short runs.
pub(super) fn us_text(us: Option<f64>) -> String {
    us.map_or(String::new(), |us| format!("{us:.0}"))
}

/// Of two times the longer one last, and none after all.
pub(super) fn us_order(us: Option<f64>) -> f64 {
    us.unwrap_or(f64::INFINITY)
}

/// What a figure says of the object store where it could not be had.
pub(super) fn left_out(error: &PlaceError) -> String {
    format!("The object store was left out: {}.", chain(error))
}

fn guest_times_of(mut sample_us: Vec<f64>) -> Option<GuestTimes> {
    sample_us.sort_by(f64::total_cmp);
    let count = sample_us.len();
    let at = |part: f64| sample_us.get((count as f64 * part) as usize).or(sample_us.last()).copied();
    let mean_us = sample_us.iter().sum::<f64>() / count.max(1) as f64;
    Some(GuestTimes { invocations: count as u64, mean_us, p50_us: at(0.5)?, p99_us: at(0.99)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_mean_and_quantiles() {
        let times = guest_times_of((1..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((times.invocations, times.mean_us, times.p50_us, times.p99_us), (100, 50.5, 51.0, 100.0));
        assert_eq!(guest_times_of(vec![]), None);
    }

    #[test]
    fn only_the_strong_access_promises_a_count() {
        let counted: Vec<_> = Access::ALL.into_iter().filter(|access| access.check() == Check::Counter).collect();
        assert_eq!(counted, [Access::RmwLinear]);
    }
}
