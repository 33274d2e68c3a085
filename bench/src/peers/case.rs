//! What is asked of whom. A case's name is its row's.

use crate::generator::{Check, HttpShape, MixFunction, Transport};
use crate::load::Interrupt;
use crate::servers::{
    Server, ServerError, XfaasFiles, start_limit, start_nginx, start_redis, start_restate, start_wasmtime, start_workerd, start_xfaas,
};
use std::net::SocketAddr;
use std::path::Path;

/// Requests that one instance of `wasmtime serve` may take where instances are kept.
const REUSE_COUNT: u32 = 1_000_000;

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Xfaas,
    Limit,
    Nginx,
    Redis,
    Workerd,
    Restate,
    /// With so many requests an instance.
    Wasmtime(u32),
}

/// What `cargo xtask bench peers` installs into the folder of peers; the rest is Debian's or ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    Workerd,
    Restate,
    Wasmtime,
}

impl Package {
    pub const ALL: [Package; 3] = [Package::Workerd, Package::Restate, Package::Wasmtime];

    pub const fn name(self) -> &'static str {
        match self {
            Package::Workerd => "workerd",
            Package::Restate => "restate",
            Package::Wasmtime => "wasmtime",
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct PeerCase {
    pub name: &'static str,
    who: Who,
    function: &'static str,
    check: Check,
    /// Reads a counter in the end.
    reader: Option<&'static str>,
    /// Writes what the function reads, before.
    primer: Option<&'static str>,
}

const fn case(name: &'static str, who: Who, function: &'static str, check: Check) -> PeerCase {
    PeerCase { name, who, function, check, reader: None, primer: None }
}

const fn counter(name: &'static str, who: Who, function: &'static str, reader: &'static str) -> PeerCase {
    PeerCase { name, who, function, check: Check::Counter, reader: Some(reader), primer: None }
}

const fn read(name: &'static str, who: Who, function: &'static str, primer: &'static str) -> PeerCase {
    PeerCase { name, who, function, check: Check::Number, reader: None, primer: Some(primer) }
}

/// All rows, in the order of the table.
pub const CASES: [PeerCase; 15] = [
    // The weak one promises no count.
    case("xfaas_rmw", Who::Xfaas, "counter-rmw", Check::Number),
    read("xfaas_read", Who::Xfaas, "counter-read", "counter-rmw-linear"),
    counter("xfaas_rmw_linear", Who::Xfaas, "counter-rmw-linear", "counter-read"),
    counter("workerd_rmw", Who::Workerd, "rmw", "read"),
    read("workerd_read", Who::Workerd, "read", "rmw"),
    counter("workerd_field", Who::Workerd, "field", "field-read"),
    counter("restate_rmw", Who::Restate, "rmw", "read"),
    read("restate_read", Who::Restate, "read", "rmw"),
    case("redis_set", Who::Redis, "set", Check::Anything),
    read("redis_get", Who::Redis, "get", "set"),
    counter("redis_incr", Who::Redis, "incr", "get"),
    case("nginx", Who::Nginx, "return", Check::Number),
    case("wasmtime", Who::Wasmtime(1), "hello", Check::Number),
    case("wasmtime_reuse", Who::Wasmtime(REUSE_COUNT), "hello", Check::Number),
    case("limit_http", Who::Limit, "echo", Check::Number),
];

/// The case of that name.
pub fn case_named(name: &str) -> Option<&'static PeerCase> {
    CASES.iter().find(|case| case.name == name)
}

/// A server and what it cannot do without.
pub(super) struct Running {
    servers: Vec<Server>,
}

impl Running {
    pub(super) fn address(&self) -> SocketAddr {
        self.servers[0].address()
    }

    /// The processes that were started; their children are theirs.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Server::pid).collect()
    }

    pub(super) fn log_excerpt(&self) -> String {
        self.servers.iter().map(Server::log_excerpt).collect()
    }
}

impl PeerCase {
    /// What must be installed for it, besides Debian's packages.
    pub fn package(&self) -> Option<Package> {
        match self.who {
            Who::Workerd => Some(Package::Workerd),
            Who::Restate => Some(Package::Restate),
            Who::Wasmtime(_) => Some(Package::Wasmtime),
            Who::Xfaas | Who::Limit | Who::Nginx | Who::Redis => None,
        }
    }

    /// One thread does the work. Only such a server gains from the real-time class: threads that share a CPU and need each other would wait for whichever spins
    /// (node beside restate-server does so for ever).
    pub(super) const fn is_one_thread(&self) -> bool {
        matches!(self.who, Who::Xfaas | Who::Limit | Who::Nginx | Who::Redis)
    }

    /// It is built with the benchmark: that it is not there is a mistake.
    pub fn is_ours(&self) -> bool {
        matches!(self.who, Who::Xfaas | Who::Limit)
    }

    pub(super) fn transport(&self) -> Transport {
        if self.who == Who::Redis { Transport::Redis } else { Transport::Http }
    }

    pub(super) fn function(&self) -> MixFunction {
        MixFunction { name: self.function.to_owned(), weight: 1, check: self.check }
    }

    pub(super) fn reader(&self) -> Option<String> {
        self.reader.map(str::to_owned)
    }

    /// What writes the sessions that this case reads.
    pub(super) fn primer(&self) -> Option<MixFunction> {
        self.primer.map(|name| MixFunction { name: name.to_owned(), weight: 1, check: Check::Anything })
    }

    /// How the server wants to be asked. Only xfaas names the session in its answers.
    pub(super) fn shape(&self) -> HttpShape {
        let header = "x-session-id: {session}".to_owned();
        match self.who {
            Who::Xfaas => HttpShape::default(),
            Who::Workerd => HttpShape {
                method: None,
                path: "/".to_owned(),
                headers: vec![header, "x-function: {function}".to_owned()],
                names_session: false,
            },
            Who::Restate => HttpShape {
                method: Some("POST".to_owned()),
                path: "/counter/{session}/{function}".to_owned(),
                headers: Vec::new(),
                names_session: false,
            },
            Who::Limit | Who::Nginx | Who::Redis | Who::Wasmtime(_) => HttpShape { names_session: false, ..HttpShape::default() },
        }
    }

    /// Starts the server from the calling thread, which is pinned to `cpu`.
    pub(super) fn start(&self, xfaas: &XfaasFiles, packages: &Path, cpu: u16, interrupt: &Interrupt) -> Result<Running, ServerError> {
        let servers = match self.who {
            Who::Xfaas => vec![start_xfaas(xfaas, cpu, interrupt)?],
            Who::Limit => vec![start_limit(cpu, interrupt)?],
            Who::Nginx => vec![start_nginx(cpu, interrupt)?],
            Who::Redis => vec![start_redis(cpu, interrupt)?],
            Who::Workerd => vec![start_workerd(packages, interrupt)?],
            Who::Restate => {
                let (server, service) = start_restate(packages, interrupt)?;
                vec![server, service]
            }
            Who::Wasmtime(requests) => vec![start_wasmtime(packages, requests, interrupt)?],
        };
        Ok(Running { servers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_that_are_promised_are_there_once() {
        for name in [
            "xfaas_rmw",
            "xfaas_read",
            "xfaas_rmw_linear",
            "workerd_rmw",
            "workerd_read",
            "restate_rmw",
            "nginx",
            "redis_set",
            "limit_http",
        ] {
            assert_eq!(CASES.iter().filter(|case| case.name == name).count(), 1, "{name}");
        }
        assert!(case_named("nginx").is_some() && case_named("apache").is_none());
    }

    #[test]
    fn every_strong_writer_has_its_counters_read_in_the_end() {
        for case in CASES.iter().filter(|case| case.check == Check::Counter) {
            assert!(case.reader.is_some(), "{}", case.name);
        }
        let checked = |name: &str| case_named(name).is_some_and(|case| case.check == Check::Counter);
        assert!(["xfaas_rmw_linear", "workerd_rmw", "workerd_field", "restate_rmw", "redis_incr"].into_iter().all(checked));
    }
}
