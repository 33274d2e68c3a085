//! `xfaas-load`: the load generator as a program. Results go to stdout, progress and errors to stderr.
//! Exit codes: 0 a good run, 1 a failed one (a wrong, lost or doubled answer or update, a server that fails, or nothing measured), 2 wrong usage.

use clap::{CommandFactory, Parser, ValueEnum};
use std::error::Error;
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;
use xfaas_bench::generator::{
    Arrivals, HttpShape, IN_FLIGHT_MAX, LoadSpec, MixFunction, Popularity, Progress, SESSION_PREFIX_BYTES_MAX, SESSIONS_MAX, SOCKETS_MAX,
    THREADS_MAX, Transport, Wait, check_target, fault_of_mix, run_load,
};
use xfaas_bench::load::Interrupt;
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::seconds;
use xfaas_dataplane::sys::affinity::allowed_cpus;
use xfaas_dataplane::sys::clock::unix_ms;

const WARM_UP_S: f64 = 1.0;
const PAYLOAD_BYTES_MAX: u32 = 1 << 20;
/// A datagram's payload beside header and session.
const DATAGRAM_PAYLOAD_BYTES_MAX: u32 = 1_400;

/// Loads a server of stateful functions, checks every answer, and in the end the counters.
///
/// Without --rate it is a closed loop: each connection sends its next request when it has the answer to the last one. With --rate it is an
/// open loop: requests are due at times that no answer changes, and latency is counted from when a request was due, so that a server that
/// hangs is seen to hang (no coordinated omission). Requests that never left, and those that are given up without an answer, are in the times
/// with what they had waited until then, which is the least that they take; those whose connection was cut are failures and have no time.
/// The times of a closed loop are those of all requests that were under way in the measured time, also of those that left before it.
/// Where the generator itself does not get its CPU, arrivals pause: the run tells how many a second were due beside what was asked for.
///
/// Every answer must have its status, name its session, and hold what its function answers. Functions that are checked as a `counter` must
/// never answer the same number twice, and in the end each session must have counted exactly the acknowledged requests: lost or doubled
/// updates end the run with exit code 1. A `read` must answer no less than was acknowledged when it left and, where all that adds to the
/// counter is known, no more than was asked for by then. Datagrams that are not answered are counted apart as unsure: they may have run. 503 and 429 are
/// counted as refused and do not fail the run.
///
/// Examples:
///   xfaas-load http://127.0.0.1:8080                                         closed loop, counter-rmw-linear
///   xfaas-load http://127.0.0.1:8080 --rate 50000 --function counter-read:9 --function counter-rmw-linear:1
///   xfaas-load udp://127.0.0.1:8080 --rate 100000 --arrivals bursts --burst-requests 64 --in-flight 4096
#[derive(Parser)]
#[command(name = "xfaas-load", version, verbatim_doc_comment, after_help = "Exit codes: 0 a good run, 1 a failed one, 2 wrong usage.")]
struct Arguments {
    /// Whom to ask: http://HOST:PORT, udp://HOST:PORT, or redis://HOST:PORT with the functions set, get and incr. Loopback, or whatever a network namespace of its own reaches.
    #[arg(value_name = "TARGET", value_parser = target)]
    target: (Transport, SocketAddr),
    /// A function, how often it is asked for beside the others, and what it must answer: any, echo, number, counter or read. May be
    /// given again. The sample functions know their check.
    #[arg(long = "function", value_name = "NAME[:WEIGHT[:CHECK]]", default_value = "counter-rmw-linear")]
    functions: Vec<MixFunction>,
    /// Requests a second, of all threads together: an open loop.
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// How the requests of an open loop arrive.
    #[arg(long, value_enum, default_value_t = ArrivalKind::Poisson, requires = "rate")]
    arrivals: ArrivalKind,
    /// Requests at the same moment, with --arrivals bursts.
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    burst_requests: u32,
    /// Connections, or sockets of datagrams, of all threads together [default: 32; 256 with --rate over HTTP; no more than --in-flight].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT_MAX as i64))]
    connections: Option<u32>,
    /// Requests under way at once, at least as many as connections; over HTTP more are pipelined [default: as many as connections; datagrams with --rate 4096].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT_MAX as i64))]
    in_flight: Option<u32>,
    /// Sessions that requests are spread over.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=SESSIONS_MAX as i64))]
    sessions: u32,
    /// How requests spread over the sessions.
    #[arg(long, value_enum, default_value_t = PopularityKind::Uniform)]
    popularity: PopularityKind,
    /// Session k is asked for with a probability proportional to k to the power of minus this.
    #[arg(long, default_value_t = 1.0, value_parser = exponent)]
    zipf_exponent: f64,
    /// Share of the requests that the one hot session gets.
    #[arg(long, default_value_t = 0.9, value_parser = share)]
    hot_share: f64,
    /// Session IDs are this and 8 digits. Their counters are read first, since they may have been used before [default: a new one].
    #[arg(long, value_name = "TEXT", value_parser = session_prefix)]
    session_prefix: Option<String>,
    /// The function that reads the counters, or `none`: then only the answers are held against each other [default: counter-read; redis get].
    #[arg(long, value_name = "NAME")]
    reader: Option<String>,
    /// Seconds that are measured, 0.1 to 600.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// Seconds before, in which answers are checked and not measured, 0 to 600 [default: 1; 0 with --requests].
    #[arg(long, value_parser = seconds_or_none)]
    warm_up_s: Option<f64>,
    /// Ends the run after so many requests, warm-up included, of which there is none then unless it is asked for.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// Bytes of each request's body or payload. With some, the HTTP method is POST.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=i64::from(PAYLOAD_BYTES_MAX)))]
    payload_bytes: u32,
    /// Threads that share the load.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=THREADS_MAX as i64))]
    threads: u16,
    /// CPUs of the threads, in turn, such as 1 or 2,3 [default: anywhere].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cpus: Vec<u16>,
    /// What a thread does while nothing is due: spin sees answers at once and keeps a core busy, sleep leaves the core to others.
    #[arg(long, value_enum, default_value_t = WaitKind::Spin)]
    wait: WaitKind,
    /// Counts answers as late that are late since other programs had the generator's CPU; without, arrivals pause meanwhile, and
    /// answers that came meanwhile are counted, and not timed if that was more than an eighth of their time.
    #[arg(long)]
    count_own_stalls: bool,
    /// Milliseconds after which a datagram is given up, and HTTP requests after the end [default: 1000; HTTP 5000].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    answer_timeout_ms: Option<u32>,
    /// Repeats the same arrivals and choices.
    #[arg(long, default_value_t = 0x5EED)]
    seed: u64,
    /// Path of HTTP requests, for servers other than xfaas; {function} and {session} stand for themselves.
    #[arg(long, value_name = "TEMPLATE", default_value = "/f/{function}", value_parser = path)]
    path: String,
    /// Method of HTTP requests [default: GET, or POST with a payload].
    #[arg(long, value_parser = method)]
    method: Option<String>,
    /// Header that names the session in HTTP requests, or `none`.
    #[arg(long, value_name = "NAME", default_value = "x-session-id", value_parser = header_name)]
    session_header: String,
    /// Does not ask HTTP replies to name their session: for servers other than xfaas.
    #[arg(long)]
    no_session_echo: bool,
    /// One JSON document instead of the table.
    #[arg(long)]
    json: bool,
    /// A line of progress a second, also where stderr is no terminal.
    #[arg(long)]
    progress: bool,
    /// Allows a target that is neither loopback nor reached from a network namespace of its own.
    #[arg(long)]
    i_own_this_target: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArrivalKind {
    /// One request after another, evenly spaced.
    Fixed,
    /// Independent users.
    Poisson,
    /// Many at the same moment, then none.
    Bursts,
}

#[derive(Clone, Copy, ValueEnum)]
enum PopularityKind {
    /// All alike.
    Uniform,
    /// Few get most.
    Zipf,
    /// One gets most, the others share the rest.
    OneHot,
}

#[derive(Clone, Copy, ValueEnum)]
enum WaitKind {
    Spin,
    Sleep,
}

fn target(text: &str) -> Result<(Transport, SocketAddr), String> {
    let (transport, rest) = match text.split_once("://") {
        Some(("http", rest)) => (Transport::Http, rest),
        Some(("udp", rest)) => (Transport::Datagram, rest),
        Some(("redis", rest)) => (Transport::Redis, rest),
        _ => return Err("give http://HOST:PORT, udp://HOST:PORT or redis://HOST:PORT".to_owned()),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('/') {
        return Err("give HOST:PORT alone, and what follows it with --path".to_owned());
    }
    let mut addresses = rest.to_socket_addrs().map_err(|error| format!("{rest:?} is no HOST:PORT: {error}"))?;
    addresses.next().map(|address| (transport, address)).ok_or_else(|| format!("{rest:?} has no address"))
}

fn number_in(text: &str, least: f64, most: f64, what: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("give {what} in {least}..={most}")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    number_in(text, 0.1, 10_000_000.0, "a number of requests a second")
}

fn exponent(text: &str) -> Result<f64, String> {
    number_in(text, 0.01, 10.0, "an exponent")
}

fn share(text: &str) -> Result<f64, String> {
    number_in(text, 0.0, 1.0, "a share")
}

fn seconds_or_none(text: &str) -> Result<f64, String> {
    number_in(text, 0.0, 600.0, "a number of seconds")
}

fn session_prefix(text: &str) -> Result<String, String> {
    let is_good = !text.is_empty() && text.len() <= SESSION_PREFIX_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_good.then(|| text.to_owned()).ok_or_else(|| format!("give 1 to {SESSION_PREFIX_BYTES_MAX} bytes of visible ASCII"))
}

fn path(text: &str) -> Result<String, String> {
    let is_good = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_good.then(|| text.to_owned()).ok_or_else(|| "give a path that begins with / and is visible ASCII".to_owned())
}

fn method(text: &str) -> Result<String, String> {
    let is_good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase());
    is_good.then(|| text.to_owned()).ok_or_else(|| "give a method such as PUT".to_owned())
}

fn header_name(text: &str) -> Result<String, String> {
    let is_good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    is_good.then(|| text.to_owned()).ok_or_else(|| "give a header's name, or none".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match spec_of(&arguments) {
        Ok(spec) => run(&arguments, &spec).unwrap_or_else(|error| exit_code(Err(error))),
        Err(fault) => Arguments::command().error(clap::error::ErrorKind::ValueValidation, fault).exit(),
    }
}

fn shape_of(arguments: &Arguments) -> HttpShape {
    let headers = match arguments.session_header.as_str() {
        "none" => Vec::new(),
        name => vec![format!("{name}: {{session}}")],
    };
    HttpShape { method: arguments.method.clone(), path: arguments.path.clone(), headers, names_session: !arguments.no_session_echo }
}

fn reader_of(arguments: &Arguments) -> Option<String> {
    let usual = if arguments.target.0 == Transport::Redis { "get" } else { "counter-read" };
    Some(arguments.reader.clone().unwrap_or_else(|| usual.to_owned())).filter(|reader| reader != "none")
}

/// What redis is asked for beside its own commands. `None`: nothing.
fn foreign_to_redis(arguments: &Arguments) -> Option<&str> {
    let mut names = arguments.functions.iter().map(|function| function.name.as_str());
    names.find(|name| arguments.target.0 == Transport::Redis && !["set", "get", "incr"].contains(name))
}

/// Connections, or sockets, and requests under way at once. Errors: they do not go together.
fn sizes_of(arguments: &Arguments) -> Result<(usize, usize), String> {
    // Whatever goes over connections.
    let (is_http, is_open) = (arguments.target.0 != Transport::Datagram, arguments.rate.is_some());
    let usual = if is_http && is_open { 256 } else { 32 };
    let connections = arguments.connections.unwrap_or(arguments.in_flight.map_or(usual, |in_flight| in_flight.min(usual))) as usize;
    let in_flight = match arguments.in_flight {
        None if !is_http && is_open => 4_096,
        None => connections,
        Some(in_flight) => in_flight as usize,
    };
    if !is_http && connections > SOCKETS_MAX {
        return Err(format!("--connections: datagrams use at most {SOCKETS_MAX} sockets"));
    }
    let threads = usize::from(arguments.threads);
    if connections.min(in_flight) < threads {
        return Err(format!(
            "{threads} threads need as many connections and requests under way, and there are {connections} and {in_flight}"
        ));
    }
    if in_flight < connections {
        return Err(format!(
            "--in-flight {in_flight} would leave some of {connections} connections unused for ever: give as many at least"
        ));
    }
    Ok((connections, in_flight))
}

/// Errors: arguments that are good by themselves and do not go together.
fn spec_of(arguments: &Arguments) -> Result<LoadSpec, String> {
    let (transport, target) = arguments.target;
    let (connections, in_flight) = sizes_of(arguments)?;
    let is_http = transport != Transport::Datagram;
    if !is_http && arguments.payload_bytes > DATAGRAM_PAYLOAD_BYTES_MAX {
        return Err(format!("--payload-bytes: a datagram carries at most {DATAGRAM_PAYLOAD_BYTES_MAX}"));
    }
    if let Some(cpu) = arguments.cpus.iter().find(|cpu| !allowed_cpus().contains(cpu)) {
        return Err(format!("--cpus: CPU {cpu} does not exist or is not allowed; choose from {:?}", allowed_cpus()));
    }
    if let Some(name) = foreign_to_redis(arguments) {
        return Err(format!("--function: redis is asked for set, get or incr (as incr:1:counter), not for {name}"));
    }
    if let Some(fault) = fault_of_mix(&arguments.functions) {
        return Err(format!("--function: {fault}"));
    }
    let arrivals = match (arguments.rate, arguments.arrivals) {
        (None, _) => Arrivals::Closed,
        (Some(per_second), ArrivalKind::Fixed) => Arrivals::Fixed { per_second },
        (Some(per_second), ArrivalKind::Poisson) => Arrivals::Poisson { per_second },
        (Some(per_second), ArrivalKind::Bursts) => Arrivals::Bursts { per_second, size: arguments.burst_requests },
    };
    let prefix = arguments.session_prefix.clone();
    let timeout_ms = arguments.answer_timeout_ms.unwrap_or(if is_http { 5_000 } else { 1_000 });
    let warm_up_s = arguments.warm_up_s.unwrap_or(if arguments.requests.is_some() { 0.0 } else { WARM_UP_S });
    let fresh = || format!("load-{:x}-{:x}-", unix_ms(), std::process::id());
    Ok(LoadSpec {
        shape: shape_of(arguments),
        functions: arguments.functions.clone(),
        payload: (0..arguments.payload_bytes).map(|i| b'a' + (i % 26) as u8).collect(),
        arrivals,
        connections,
        in_flight,
        sessions: arguments.sessions as usize,
        popularity: match arguments.popularity {
            PopularityKind::Uniform => Popularity::Uniform,
            PopularityKind::Zipf => Popularity::Zipf { exponent: arguments.zipf_exponent },
            PopularityKind::OneHot => Popularity::OneHot { share: arguments.hot_share },
        },
        is_fresh: prefix.is_none(),
        reader: reader_of(arguments),
        warm_up: Duration::from_secs_f64(warm_up_s),
        measured: Duration::from_secs_f64(arguments.seconds),
        requests_max: arguments.requests.unwrap_or(u64::MAX),
        threads: usize::from(arguments.threads),
        cpus: arguments.cpus.clone(),
        counts_own_stalls: arguments.count_own_stalls,
        wait: match arguments.wait {
            WaitKind::Spin => Wait::Spin,
            WaitKind::Sleep => Wait::Sleep,
        },
        answer_timeout: Duration::from_millis(timeout_ms.into()),
        seed: arguments.seed,
        ..LoadSpec::new(target, transport, prefix.unwrap_or_else(fresh))
    })
}

/// Errors: a run that could not be made, or failed; its results are printed all the same.
fn run(arguments: &Arguments, spec: &LoadSpec) -> Result<ExitCode, Box<dyn Error>> {
    if !arguments.i_own_this_target {
        check_target(spec.target.ip())?;
    }
    let interrupt = Interrupt::on_signals()?;
    let progress = if arguments.progress { Progress::Lines } else { Progress::Terminal };
    let outcome = run_load(spec, &interrupt, progress)?;
    let text = if arguments.json { outcome.to_json() + "\n" } else { outcome.to_text() };
    let mut stdout = std::io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    if let Some(fault) = outcome.fault().or_else(|| outcome.nothing_measured()) {
        return Err(fault.into());
    }
    match printed {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Who reads has gone, and wants to be told nothing: but it has not all results.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::FAILURE),
        Err(error) => Err(format!("the results cannot be written: {error}").into()),
    }
}
