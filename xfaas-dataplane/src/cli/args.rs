//! The flags, as clap reads them.

use crate::config::{self, ContainerOptions, Overrides};
use crate::control::{DeployFlags, SESSIONS_LIMIT_MAX, TOKEN_TTL_S_MAX, TRACE_SECONDS_MAX};
use crate::steering::SteeringMode;
use crate::worker::{CpuShare, Durability, Hint, KeepAliveRule};
use clap::{Args, Parser, Subcommand};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use ureq::http::HeaderName;
use xfaas_common::ids::{SessionId, is_name};
use xfaas_common::map_layout::SESSION_HEADER_DEFAULT;

/// A stateful serverless dataplane: wasm functions that run beside their sessions' state.
#[derive(Debug, Parser)]
#[command(name = "xfaas", version, propagate_version = true)]
pub(super) struct Arguments {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// The admin API: where `run` listens and the other commands connect [default: 127.0.0.1:9070]; `container`: a loopback port that the log names
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub admin: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a node until SIGTERM or Ctrl-C
    Run {
        #[command(flatten)]
        settings: ConfigArguments,
        /// Only check the configuration
        #[arg(long)]
        check: bool,
        /// Grant every lock at once, so that a test can see its checker notice
        #[cfg(debug_assertions)]
        #[arg(long, hide = true)]
        test_broken_lock: bool,
    },
    /// Run a container until SIGTERM or Ctrl-C: functions of a primary node run here, their sessions' state stays with it
    Container(ContainerArguments),
    /// Deploy a wasm module as a function, or swap the one of that name
    Deploy(DeployArguments),
    /// Take a function away; its app's session state stays
    Undeploy {
        /// The function's name
        #[arg(value_parser = name)]
        name: String,
    },
    /// List functions
    Functions,
    /// List sessions with state, move one, or change what names of sessions mean
    Sessions(SessionsArguments),
    /// Make a token that lets its bearer speak for a session of an app that wants tokens
    Token(TokenArguments),
    /// Call a function, over HTTP or with a datagram
    Invoke(InvokeArguments),
    /// Show counters and latencies
    Stats,
    /// Watch what a node does: requests, errors and times of the last interval, by core and function
    ///
    /// On a terminal the figures are drawn in place until Ctrl-C. Elsewhere a table an interval is printed, and with --json a document an interval, on
    /// one line. `xfaas stats` has the sums since the start.
    Top(TopArguments),
    /// Say where the time of requests goes: of the median one, and of the slowest
    Trace {
        /// Explain the slowest requests (the only kind of trace there is, and the default)
        #[arg(long)]
        tail: bool,
        /// For how long to look
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=i64::from(TRACE_SECONDS_MAX)))]
        seconds: u32,
    },
    /// Name what this machine lacks to run the configuration
    Doctor {
        #[command(flatten)]
        settings: ConfigArguments,
    },
}

/// The configuration file, and what overrides it.
#[derive(Debug, Args)]
pub(super) struct ConfigArguments {
    /// The configuration file [default: ./xfaas.toml if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to serve HTTP [default: 0.0.0.0:8080]
    #[arg(long, value_name = "IP:PORT", value_parser = address_to_listen)]
    http: Option<SocketAddr>,
    /// Where to serve datagrams [default: as HTTP]
    #[arg(long, value_name = "IP:PORT", value_parser = address_to_listen)]
    udp: Option<SocketAddr>,
    /// CPUs, one shard each, such as 0,2-3 [default: all]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// How packets find their core: auto, xdp, reuseport, tc or off [default: auto]
    #[arg(long, value_name = "MODE", value_parser = steering)]
    steering: Option<SteeringMode>,
    /// The network interface that packets arrive on
    #[arg(long, value_name = "DEV")]
    iface: Option<String>,
    /// Where deployments, secrets, aliases, the log and local checkpoints are kept [default: /var/lib/xfaas as root, else ~/.local/state/xfaas]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Run shards in the real-time class, so that no ordinary thread delays them: for CPUs that are xfaas' own. Needs CAP_SYS_NICE
    #[arg(long)]
    realtime: bool,
    /// Tell perf the names of wasm functions, in /tmp/perf-PID.map
    #[arg(long)]
    perf_map: bool,
}

impl ConfigArguments {
    pub fn into_overrides(self, admin: Option<SocketAddr>) -> (Option<PathBuf>, Overrides) {
        let overrides = Overrides {
            http: self.http,
            udp: self.udp,
            admin,
            cpus: self.cpus.map(|list| list.0),
            steering_mode: self.steering,
            steering_iface: self.iface,
            state_dir: self.state_dir,
            perf_map: self.perf_map,
            realtime: self.realtime,
        };
        (self.config, overrides)
    }
}

/// Functions and their limits come from the primary; a container has no configuration file. Its admin API listens where --admin says, or on a
/// loopback port that the kernel chooses and the log names.
#[derive(Debug, Args)]
pub(super) struct ContainerArguments {
    /// The primary: where its `[listen] rpc` is. Tried again until it is there
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    join: String,
    /// Where to serve HTTP and datagrams
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8081", value_parser = address_to_listen)]
    listen: SocketAddr,
    /// CPUs, one shard each, such as 0,2-3 [default: all]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// Read by RPC, also where the primary runs on this machine and its regions could be mapped
    #[arg(long)]
    no_map: bool,
    /// Where to ask for the primary's regions [default: where the primary says]
    #[arg(long, value_name = "PATH", conflicts_with = "no_map")]
    region_socket: Option<PathBuf>,
    /// Where compiled code is kept; nothing else is [default: the folder `container` in a node's default]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl ContainerArguments {
    pub fn into_options(self, admin: Option<SocketAddr>) -> ContainerOptions {
        let ContainerArguments { join, listen, cpus, no_map, region_socket, state_dir } = self;
        ContainerOptions { join, listen, admin, cpus: cpus.map(|list| list.0), no_map, region_socket, state_dir }
    }
}

/// `HOST:PORT`, `1.2.3.4:PORT` or `[::1]:PORT`; names are looked up when it is connected to.
pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
    if !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return Err(format!("{port:?} is not a port"));
    }
    let is_v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).is_some_and(|host| host.parse::<Ipv6Addr>().is_ok());
    let is_name = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if is_v6 || is_name { Ok(text.to_owned()) } else { Err(format!("{host:?} is not a host's name or address")) }
}

/// The shards share one port, so it must be named.
fn address_to_listen(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) => Err("the port is 0: the shards share one port, so name it".to_owned()),
        Err(_) => Err("give IP:PORT".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(super) struct DeployArguments {
    /// The function's name: 1 to 64 of A-Z a-z 0-9 _ . -
    #[arg(value_parser = name)]
    pub name: String,
    /// The wasm module
    pub file: PathBuf,
    /// The app whose session state the function shares [default: the function's name]
    #[arg(long, value_parser = name)]
    app: Option<String>,
    /// The function never writes state: it may run on any core
    #[arg(long)]
    read_only: bool,
    /// A failed invocation leaves none of its writes
    #[arg(long)]
    atomic: bool,
    /// A datagram seen again within 60 s gets its first answer again
    #[arg(long)]
    idempotent: bool,
    /// A new worker for every invocation
    #[arg(long)]
    fresh: bool,
    /// It may read other sessions of its app, by `read_session`
    #[arg(long)]
    read_sessions: bool,
    /// A longer invocation is stopped [default: 1000]
    #[arg(long, value_name = "N")]
    deadline_ms: Option<u32>,
    /// Linear memory of a worker [default: 128]
    #[arg(long, value_name = "N")]
    memory_mib: Option<u32>,
    /// Workers that run at once in one container of a namespace [default: 10]
    #[arg(long, value_name = "N")]
    workers_max: Option<u16>,
    /// Containers of one namespace, each on a core of its own: when all workers of the first are busy, others run beside it [default: 1]
    #[arg(long, value_name = "N")]
    containers_max: Option<u16>,
    /// State of one session [default: 64]
    #[arg(long, value_name = "N")]
    state_mib: Option<u32>,
    /// What the app's state outlives: memory (the process), checkpoint (the machine, as of the last checkpoint) or sync (the machine) [default: memory]
    #[arg(long, value_name = "MODE", value_parser = Durability::parse)]
    durability: Option<Durability>,
    /// How HTTP requests of the app name their session: header:NAME, cookie:NAME, path:N, query:NAME or hook (the module exports it, or --hook brings it) [default: the session header]
    #[arg(long, value_name = "HINT")]
    hint: Option<Hint>,
    /// A wasm module whose `hook() -> i32` says which session an HTTP request is of: the hint is `hook` then
    #[arg(long, value_name = "FILE")]
    pub hook: Option<PathBuf>,
    /// A longer run of the app's hook is stopped [default: 10]
    #[arg(long, value_name = "N")]
    hook_deadline_ms: Option<u32>,
    /// Requests of the app must carry a token for their session: see `xfaas token`
    #[arg(long)]
    tokens: bool,
    /// Requests of one session in a second, more are answered 429 [default: no limit]
    #[arg(long, value_name = "N")]
    requests_per_s: Option<u32>,
    /// Part of a core that one session may use while others want it, 0.01 to 1.0 [default: no limit]
    #[arg(long, value_name = "SHARE")]
    cpu_share: Option<CpuShare>,
    /// When sessions at rest leave memory: fixed (after --keep-alive-s), hybrid (as the app's idle times say) or unbounded (when memory is short) [default: fixed]
    #[arg(long, value_name = "POLICY", value_parser = KeepAliveRule::parse)]
    keep_alive: Option<KeepAliveRule>,
    /// A session that was not used for so long is written to the store of checkpoints and leaves memory [default: it stays; with hybrid 600]
    #[arg(long, value_name = "N")]
    keep_alive_s: Option<u32>,
    /// With durability checkpoint: how old a session's checkpoint may be [default: 10]
    #[arg(long, value_name = "N")]
    checkpoint_every_s: Option<u32>,
}

impl DeployArguments {
    pub fn into_flags(self) -> DeployFlags {
        DeployFlags {
            app: self.app,
            read_only: self.read_only,
            atomic: self.atomic,
            idempotent: self.idempotent,
            fresh: self.fresh,
            read_sessions: self.read_sessions,
            deadline_ms: self.deadline_ms,
            memory_mib: self.memory_mib,
            workers_max: self.workers_max,
            containers_max: self.containers_max,
            state_mib: self.state_mib,
            durability: self.durability,
            hint: self.hint,
            hook_deadline_ms: self.hook_deadline_ms,
            tokens: self.tokens,
            requests_per_s: self.requests_per_s,
            cpu_share: self.cpu_share,
            keep_alive: self.keep_alive,
            keep_alive_s: self.keep_alive_s,
            checkpoint_every_s: self.checkpoint_every_s,
        }
    }
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct SessionsArguments {
    #[command(subcommand)]
    pub command: Option<SessionCommand>,
    /// Only of this app
    #[arg(long)]
    pub app: Option<String>,
    /// Only IDs that begin so
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<String>,
    /// At most so many, 1 to 10000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=SESSIONS_LIMIT_MAX as i64))]
    pub limit: u16,
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    /// Let KEY mean SESSION from the next request on, on every shard
    Map {
        /// What requests name
        #[arg(value_parser = session)]
        key: SessionId,
        /// The session that they are to run in
        #[arg(value_parser = session)]
        session: SessionId,
        /// Only in this app
        #[arg(long, value_parser = name)]
        app: Option<String>,
    },
    /// Let KEY mean itself again
    Unmap {
        /// What requests name
        #[arg(value_parser = session)]
        key: SessionId,
        /// The alias of this app
        #[arg(long, value_parser = name)]
        app: Option<String>,
    },
    /// List aliases
    Aliases,
    /// Let a session move to another core while it is in use
    Move {
        /// The session's app
        #[arg(value_parser = name)]
        app: String,
        /// The session's ID
        #[arg(value_parser = session)]
        session: SessionId,
        /// Index of the core that is to own it, as under CORE of `xfaas sessions`
        #[arg(long, value_name = "N")]
        core: u16,
    },
}

#[derive(Debug, Args)]
pub(super) struct TokenArguments {
    /// The app
    #[arg(long, value_parser = name)]
    pub app: String,
    /// The session's ID
    #[arg(long, value_name = "ID", value_parser = session)]
    pub session: SessionId,
    /// Seconds for which it is good
    #[arg(long, value_name = "N", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=TOKEN_TTL_S_MAX))]
    pub ttl_s: u64,
}

#[derive(Debug, Args)]
pub(super) struct InvokeArguments {
    /// The function's name
    #[arg(value_parser = name)]
    pub name: String,
    /// The session's ID [default: a fresh one]
    #[arg(long, value_name = "ID", value_parser = session)]
    pub session: Option<SessionId>,
    /// The header that carries the session's ID
    #[arg(long, value_name = "NAME", default_value = SESSION_HEADER_DEFAULT, conflicts_with = "udp", value_parser = header_name)]
    pub session_header: String,
    /// The body: a text, @FILE, or - for stdin [default: empty]
    #[arg(long, value_name = "DATA", allow_hyphen_values = true)]
    pub data: Option<String>,
    /// The HTTP method
    #[arg(long, default_value = "POST", conflicts_with = "udp")]
    pub method: String,
    /// What follows the function's name in the path, such as /items/7
    #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true, conflicts_with = "udp")]
    pub path: String,
    /// The query, without the question mark
    #[arg(long, conflicts_with = "udp", value_parser = query)]
    pub query: Option<String>,
    /// Send a datagram instead of an HTTP request
    #[arg(long)]
    pub udp: bool,
    /// Where the node serves
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080", value_parser = host_and_port)]
    pub addr: String,
    /// How long to wait for each answer
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=600_000))]
    pub timeout_ms: u32,
    /// Call so many times, one after the other
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
}

#[derive(Debug, Args)]
pub(super) struct TopArguments {
    /// How long an interval is, 100 to 60000
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(100..=60_000))]
    pub interval_ms: u32,
    /// End after so many intervals [default: no end on a terminal, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
}

/// A list of CPUs that clap takes as one value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CpuList(Vec<u16>);

fn cpu_list(text: &str) -> Result<CpuList, String> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{part:?} is not a CPU number or a range such as 2-3"));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("{part:?} is not a range: the first number is the greater one"));
        }
        cpus.extend(first..=last);
    }
    let mut sorted = cpus.clone();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("CPU {} is named twice: each shard needs its own", twice[0]));
    }
    Ok(CpuList(cpus))
}

fn steering(text: &str) -> Result<SteeringMode, String> {
    config::steering_mode(text).ok_or_else(|| "choose auto, xdp, reuseport, tc or off".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    if is_name(text.as_bytes()) { Ok(text.to_owned()) } else { Err("a name has 1 to 64 of A-Z a-z 0-9 _ . -".to_owned()) }
}

fn header_name(text: &str) -> Result<String, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| "a header's name has letters, digits and -, no space")?;
    Ok(name.as_str().to_owned())
}

/// RFC 3986 section 3.4, but for what clients and servers let pass beyond it.
fn query(text: &str) -> Result<String, String> {
    let is_good = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    match text.chars().find(|char| !u8::try_from(*char).is_ok_and(is_good)) {
        Some(bad) => Err(format!("a query cannot carry {bad:?}: write each of its bytes as %XX")),
        None => Ok(text.to_owned()),
    }
}

fn session(text: &str) -> Result<SessionId, String> {
    SessionId::new(text.as_bytes()).ok_or_else(|| "a session ID has 1 to 64 visible ASCII characters, no space".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_numbers_and_ranges() {
        assert_eq!(cpu_list("0,2-4").unwrap(), CpuList(vec![0, 2, 3, 4]));
        for bad in ["", "a", "3-2", "1,,2", "-1", "70000", "0,0", "1-3,2"] {
            cpu_list(bad).unwrap_err();
        }
    }

    #[test]
    fn a_primary_is_named_by_host_and_port() {
        for good in ["127.0.0.1:9071", "[::1]:9071", "node-1.example:1"] {
            assert_eq!(host_and_port(good).unwrap(), good);
        }
        for bad in ["", "127.0.0.1", "::1", "[::1]", "[::g]:1", ":9071", "host:", "host:0", "host:70000", "http://host:80", "a b:1"] {
            host_and_port(bad).unwrap_err();
        }
        address_to_listen("127.0.0.1:0").unwrap_err();
        address_to_listen("localhost:80").unwrap_err();
    }

    #[test]
    fn the_definition_of_the_flags_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn deploy_flags_are_those_of_the_contract() {
        let line = "xfaas deploy f m.wasm --app a --read-only --atomic --idempotent --fresh --read-sessions --deadline-ms 1 --memory-mib 2 --workers-max 3 --containers-max 2 --state-mib 4 --hint path:0 --hook h.wasm --hook-deadline-ms 6 --tokens --requests-per-s 5 --cpu-share 0.5 --durability sync --keep-alive hybrid --keep-alive-s 7 --checkpoint-every-s 8";
        let Command::Deploy(deploy) = Arguments::try_parse_from(line.split(' ')).unwrap().command else { panic!("deploy") };
        let expected = DeployFlags {
            app: Some("a".to_owned()),
            read_only: true,
            atomic: true,
            idempotent: true,
            fresh: true,
            read_sessions: true,
            deadline_ms: Some(1),
            memory_mib: Some(2),
            workers_max: Some(3),
            containers_max: Some(2),
            state_mib: Some(4),
            durability: Some(Durability::Sync),
            hint: Some(Hint::Path(0)),
            hook_deadline_ms: Some(6),
            tokens: true,
            requests_per_s: Some(5),
            cpu_share: Some("0.5".parse().unwrap()),
            keep_alive: Some(KeepAliveRule::Hybrid),
            keep_alive_s: Some(7),
            checkpoint_every_s: Some(8),
        };
        assert_eq!(deploy.hook.as_deref(), Some(std::path::Path::new("h.wasm")));
        assert_eq!(deploy.into_flags(), expected);
    }
}
