//! What a run asks for, and how it can fail.

use super::arrivals::Arrivals;
use super::mix::{Check, MixFunction};
use super::popularity::Popularity;
use crate::load::{FetchError, LoadError};
use crate::network::{Network, NetworkError};
use std::net::SocketAddr;
use std::time::Duration;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::sys::affinity::AffinityError;

/// Requests under way at once, over all threads.
pub const IN_FLIGHT_MAX: usize = 65_536;
pub const THREADS_MAX: usize = 64;
/// Sockets of datagrams, of all threads together.
pub const SOCKETS_MAX: usize = 1_024;
pub const SESSIONS_MAX: usize = 4_000_000;
/// A session's number behind the prefix.
const NUMBER_DIGITS: usize = 8;
/// Bytes of a session prefix: what is left of 64 beside the number.
pub const SESSION_PREFIX_BYTES_MAX: usize = 64 - NUMBER_DIGITS;

/// The way to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/1.1, one request at a time on a connection, or pipelined.
    Http,
    /// RESP2: the functions `set`, `get` and `incr` of the session as key; otherwise as HTTP.
    Redis,
    /// docs/PROTOCOL.md, any number under way on a socket.
    Datagram,
}

/// What a thread does while nothing is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Looks again: replies are seen at once, requests leave in time, and a core is busy all the time.
    Spin,
    /// Sleeps in the kernel: for a generator that shares its core.
    Sleep,
}

/// Shape of the HTTP requests. `{function}` and `{session}` stand for themselves in path and header lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpShape {
    /// `None`: GET without a payload, POST with one.
    pub method: Option<String>,
    pub path: String,
    /// Whole header lines without their ends, besides host and content-length.
    pub headers: Vec<String>,
    /// The reply must name the session in `x-session-id`.
    pub names_session: bool,
}

impl Default for HttpShape {
    /// As xfaas wants them.
    fn default() -> HttpShape {
        HttpShape {
            method: None,
            path: "/f/{function}".to_owned(),
            headers: vec!["x-session-id: {session}".to_owned()],
            names_session: true,
        }
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    pub target: SocketAddr,
    pub transport: Transport,
    pub shape: HttpShape,
    pub functions: Vec<MixFunction>,
    pub payload: Vec<u8>,
    pub arrivals: Arrivals,
    /// Connections over HTTP, sockets for datagrams; of all threads together.
    pub connections: usize,
    /// Requests under way at once, at least one for each connection; more than that over HTTP are pipelined.
    pub in_flight: usize,
    pub sessions: usize,
    pub popularity: Popularity,
    /// Session IDs are this and a number of 8 digits.
    pub session_prefix: String,
    /// No session of that prefix was used before: counters begin at 0.
    pub is_fresh: bool,
    /// The function that reads the counters before and after; without, only the answers are held against each other.
    pub reader: Option<String>,
    pub warm_up: Duration,
    pub measured: Duration,
    /// Requests in all, warm-up included.
    pub requests_max: u64,
    pub threads: usize,
    /// Thread `i` runs on `cpus[i % length]`; anywhere if empty.
    pub cpus: Vec<u16>,
    pub wait: Wait,
    /// Counts as the server's what is late since the generator's own thread was off its CPU; else arrivals pause meanwhile, and answers
    /// that came meanwhile are counted but not timed.
    pub counts_own_stalls: bool,
    /// A datagram without an answer for so long is given up, and so is an HTTP request so long after the end.
    pub answer_timeout: Duration,
    pub seed: u64,
    /// Sockets are made where its clients are.
    pub network: Network,
}

impl LoadSpec {
    /// A closed loop of `counter-rmw-linear` over 32 connections and 80 sessions for 10 s after 1 s of warm-up, on one thread.
    pub fn new(target: SocketAddr, transport: Transport, session_prefix: String) -> LoadSpec {
        LoadSpec {
            target,
            transport,
            shape: HttpShape::default(),
            functions: Vec::new(),
            payload: Vec::new(),
            arrivals: Arrivals::Closed,
            connections: 32,
            in_flight: 32,
            sessions: 80,
            popularity: Popularity::Uniform,
            session_prefix,
            is_fresh: true,
            reader: Some("counter-read".to_owned()),
            warm_up: Duration::from_secs(1),
            measured: Duration::from_secs(10),
            requests_max: u64::MAX,
            threads: 1,
            cpus: Vec::new(),
            wait: Wait::Spin,
            counts_own_stalls: false,
            answer_timeout: Duration::from_secs(1),
            seed: 0x5EED,
            network: Network::loopback(),
        }
    }

    /// IDs of the sessions. Errors: the prefix is too long or holds other bytes than visible ASCII.
    pub(super) fn session_ids(&self) -> Result<Vec<SessionId>, SpecError> {
        let id = |i| SessionId::new(format!("{}{i:0NUMBER_DIGITS$}", self.session_prefix).as_bytes());
        (0..self.sessions).map(|i| id(i).ok_or(SpecError::SessionPrefix)).collect()
    }

    /// Bytes of each session's ID.
    pub(super) fn session_bytes(&self) -> usize {
        self.session_prefix.len() + NUMBER_DIGITS
    }

    /// Whether it is known how far a session's counter can have come: what it was before the run is, and nothing but what is checked as a
    /// counter adds to it.
    pub(super) fn bounds_reads(&self) -> bool {
        let has_check = |check| self.functions.iter().any(|function| function.check == check);
        let names_session = self.transport != Transport::Http
            || self.shape.headers.iter().chain([&self.shape.path]).any(|text| text.contains(super::template::SESSION));
        if has_check(Check::Counter) {
            return has_check(Check::Read) && (self.is_fresh || self.reader.is_some());
        }
        let only_reads = self.functions.iter().all(|function| matches!(function.check, Check::Read | Check::Echo));
        has_check(Check::Read) && only_reads && self.is_fresh && names_session
    }

    /// Share of thread `thread` of `total`, such that all shares together are `total`.
    pub(super) fn share(&self, total: usize, thread: usize) -> usize {
        total / self.threads + usize::from(thread < total % self.threads)
    }

    /// Errors: what cannot be run at all. Everything else that is asked for has its bounds checked where it is read.
    pub(super) fn check(&self) -> Result<(), SpecError> {
        if let Some(fault) = super::mix::fault_of_mix(&self.functions) {
            return Err(SpecError::Mix(fault));
        }
        let least = self.connections.min(self.in_flight);
        let is_bounded = (1..=THREADS_MAX).contains(&self.threads)
            && (1..=SESSIONS_MAX).contains(&self.sessions)
            && self.connections <= IN_FLIGHT_MAX
            && self.in_flight <= IN_FLIGHT_MAX;
        if !is_bounded || least < self.threads {
            return Err(SpecError::Sizes { threads: self.threads, connections: self.connections, in_flight: self.in_flight });
        }
        if self.in_flight < self.connections {
            return Err(SpecError::Idle { connections: self.connections, in_flight: self.in_flight });
        }
        if self.transport == Transport::Datagram && self.connections > SOCKETS_MAX {
            return Err(SpecError::Sockets);
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("{0}")]
    Mix(String),
    #[error("a session prefix has at most {SESSION_PREFIX_BYTES_MAX} bytes of visible ASCII")]
    SessionPrefix,
    #[error(
        "{threads} threads, {connections} connections and {in_flight} requests under way do not fit: each thread needs one, and at most \
         {IN_FLIGHT_MAX} requests are under way"
    )]
    Sizes { threads: usize, connections: usize, in_flight: usize },
    #[error("with {in_flight} requests under way, some of {connections} connections would never be used")]
    Idle { connections: usize, in_flight: usize },
    #[error("datagrams use at most {SOCKETS_MAX} sockets")]
    Sockets,
}

#[derive(Debug, thiserror::Error)]
pub enum GeneratorError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("a thread of the load cannot be pinned")]
    Pin(#[from] AffinityError),
    #[error("the network cannot be used")]
    Network(#[from] NetworkError),
    #[error("{needed} open files are needed and the limit is {limit}: raise it with `ulimit -Hn`, or use fewer connections")]
    OpenFiles { needed: u64, limit: u64 },
    #[error("a thread of the load panicked")]
    Panicked,
    #[error("{count} connections to {target} ended one after another, and no request was answered well meanwhile")]
    Reconnects { target: SocketAddr, count: u64 },
    #[error("a counter cannot be read from {target}: {fault}: {excerpt}")]
    Answer { target: SocketAddr, fault: &'static str, excerpt: String },
    #[error("a counter cannot be read")]
    Reader(#[from] FetchError),
    #[error(
        "{function} answered {status} {body:?} where a counter's number was expected: name the function that reads with --reader, or none with --reader none"
    )]
    Number { function: String, status: u16, body: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> LoadSpec {
        let mut spec = LoadSpec::new(([127, 0, 0, 1], 1).into(), Transport::Http, "p-".to_owned());
        spec.functions.push("echo".parse().unwrap());
        spec
    }

    #[test]
    fn shares_of_threads_are_the_whole() {
        let spec = LoadSpec { threads: 3, ..spec() };
        assert_eq!([0, 1, 2].map(|thread| spec.share(32, thread)), [11, 11, 10]);
    }

    #[test]
    fn sessions_are_the_prefix_and_a_number() {
        let ids = LoadSpec { sessions: 3, ..spec() }.session_ids().unwrap();
        assert_eq!(ids[2].as_bytes(), b"p-00000002");
        for prefix in ["a b".to_owned(), "x".repeat(SESSION_PREFIX_BYTES_MAX + 1)] {
            assert!(LoadSpec { session_prefix: prefix, ..spec() }.session_ids().is_err());
        }
    }

    #[test]
    fn reads_are_bounded_where_all_increments_are_known() {
        let bounds = |functions: &[&str], change: fn(&mut LoadSpec)| {
            let mut spec = LoadSpec { functions: functions.iter().map(|text| text.parse().unwrap()).collect(), ..spec() };
            change(&mut spec);
            spec.bounds_reads()
        };
        let (reads, mixed) = (["counter-read"], ["counter-read", "counter-rmw-linear"]);
        assert!(bounds(&reads, |_| ()) && bounds(&mixed, |_| ()) && bounds(&mixed, |spec| spec.is_fresh = false));
        assert!(!bounds(&mixed, |spec| (spec.is_fresh, spec.reader) = (false, None)), "nobody read what was there");
        assert!(!bounds(&reads, |spec| spec.is_fresh = false) && !bounds(&reads, |spec| spec.shape.headers.clear()));
        assert!(!bounds(&["counter-read", "counter-rmw"], |_| ()) && !bounds(&["counter-rmw-linear"], |_| ()));
    }

    #[test]
    fn what_cannot_run_is_refused() {
        assert!(spec().check().is_ok());
        assert!(matches!(LoadSpec { functions: Vec::new(), ..spec() }.check(), Err(SpecError::Mix(_))));
        assert!(matches!(LoadSpec { threads: 33, ..spec() }.check(), Err(SpecError::Sizes { .. })));
        assert!(matches!(LoadSpec { connections: IN_FLIGHT_MAX + 1, ..spec() }.check(), Err(SpecError::Sizes { .. })));
        let datagrams = LoadSpec { transport: Transport::Datagram, ..spec() };
        assert!(matches!(LoadSpec { in_flight: 1, threads: 2, ..datagrams.clone() }.check(), Err(SpecError::Sizes { .. })));
        assert!(matches!(LoadSpec { in_flight: 31, ..datagrams.clone() }.check(), Err(SpecError::Idle { .. })));
        assert!(LoadSpec { connections: 31, in_flight: 31, ..datagrams.clone() }.check().is_ok());
        assert!(matches!(
            LoadSpec { connections: SOCKETS_MAX + 1, in_flight: SOCKETS_MAX + 1, ..datagrams }.check(),
            Err(SpecError::Sockets)
        ));
    }
}
