//! Where the core's time goes under load, of the whole run and while the slowest requests were under way: `perf record` beside `xfaas trace`, with the guest's
//! functions by name, drawn as flame graphs, and who else had the core's CPU. Called by the binary `profile`.

mod samples;
mod switches;

pub use self::samples::{Sample, by_part, joined, part_of, samples, within};
pub use self::switches::{Share, covered, shares};

use crate::generator::{Arrivals, GeneratorError, LoadOutcome, LoadSpec, MixFunction, Progress, Transport, run_load, us_or_dash};
use crate::load::{Interrupt, LoadError};
use crate::servers::{NodeFunction, NodePlace, Server, ServerError, XfaasFiles};
use inferno::collapse::Collapse;
use inferno::collapse::perf::Folder;
use inferno::flamegraph;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use xfaas_dataplane::control::{AdminClient, ClientError, TraceReply};

/// Samples a second: not a divisor of any timer's rate.
const FREQUENCY_HZ: u32 = 1_999;
/// Bytes of stack that a sample holds: enough for a shard's, which is shallow.
const STACK_BYTES: u32 = 8_192;
/// The load runs so long before anything is recorded, and beyond it.
const MARGIN: Duration = Duration::from_millis(700);
/// How long the closed loop looks for what the node takes at most.
const LOOK: Duration = Duration::from_secs(2);
/// Connections where none are asked for, as in `peers`.
const CONNECTIONS_CLOSED: usize = 32;
const CONNECTIONS_OPEN: usize = 256;
/// How the names of the shards' threads begin.
const SHARD_THREADS: &str = "xfaas-shard";
/// Rows of the table of other threads: what has the CPU for less is no cause.
const OTHERS_SHOWN: usize = 8;
/// How often a wait for the trace looks whether it is interrupted.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("the server")]
    Server(#[from] ServerError),
    #[error("the load failed")]
    Load(#[from] GeneratorError),
    #[error("the load failed: {0}")]
    Answers(String),
    #[error(transparent)]
    Interrupted(LoadError),
    #[error("the trace")]
    Trace(#[from] ClientError),
    #[error("cannot run perf: install it (Debian: linux-perf), and be root or set kernel.perf_event_paranoid to -1")]
    Start(#[source] std::io::Error),
    #[error("perf {what} failed: {log}")]
    Perf { what: &'static str, log: String },
    #[error("{operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("draw a flame graph: {0}")]
    Draw(String),
    #[error("perf took no sample of a shard")]
    NoSamples,
    #[error("a helper thread panicked")]
    Panicked,
}

/// What to profile.
#[derive(Clone, Copy, Debug)]
pub struct ProfileBench<'a> {
    pub xfaas: &'a XfaasFiles,
    pub server_cpu: u16,
    pub load_cpu: u16,
    /// Name of the guest whose function is called: one of the sample functions that count.
    pub guest: &'a str,
    /// Of an open loop, in percent of what a closed one gets before; a closed loop, if not given.
    pub percent: Option<u32>,
    /// Requests under way at once, at most; `None`: as many as suit the loop.
    pub connections: Option<usize>,
    pub sessions: usize,
    pub seconds: u32,
    /// Where the pictures are put.
    pub folder: &'a Path,
    pub interrupt: &'a Interrupt,
}

/// What came of it.
pub struct Profile {
    pub load: LoadOutcome,
    pub trace: TraceReply,
    /// Samples of the shard by part of the system: of the whole run, and of the windows of the slowest requests.
    pub whole: Vec<(&'static str, usize)>,
    pub slow: Vec<(&'static str, usize)>,
    /// Who else had the shard's CPU, as a table; or why that is not known.
    pub others: Result<String, ProfileError>,
    /// The flame graphs: the whole run, and the windows, where a sample fell into one.
    pub whole_svg: PathBuf,
    pub slow_svg: Option<PathBuf>,
}

/// Starts the node to be profiled. Not on a pinned thread, whose CPU it would inherit.
pub fn start_for_profile(bench: &ProfileBench<'_>) -> Result<(NodePlace, Server), ServerError> {
    let function = NodeFunction { name: bench.guest, guest: bench.guest, keys: "" };
    let place = NodePlace::new(bench.xfaas, bench.server_cpu, "", &[function])?;
    let server = place.start_with(bench.interrupt, &["--perf-map"])?;
    Ok((place, server))
}

/// Loads the node from the calling thread, records and traces it, and draws.
pub fn measure_profile(bench: &ProfileBench<'_>, place: &NodePlace, server: &Server) -> Result<Profile, ProfileError> {
    std::fs::create_dir_all(bench.folder).map_err(|source| ProfileError::File {
        operation: "make the folder",
        path: bench.folder.into(),
        source,
    })?;
    let (data, switches) = (bench.folder.join("perf.data"), bench.folder.join("switches.data"));
    let (admin, seconds) = (place.admin().to_string(), bench.seconds);
    let arrivals = arrivals(bench, server.address())?;
    let recorded = std::thread::scope(|scope| {
        let beside = scope.spawn(|| -> Result<_, ProfileError> {
            std::thread::sleep(MARGIN);
            let recording = Recording::of_stacks(server.pid(), bench.seconds, &data)?;
            let of_switches = Recording::of_switches(bench.server_cpu, bench.seconds, &switches);
            let trace = trace(admin, seconds, bench.interrupt);
            if bench.interrupt.is_set() {
                recording.stop();
                of_switches.into_iter().for_each(Recording::stop);
                return trace.map(|trace| (trace, Ok(())));
            }
            let switched = of_switches.and_then(Recording::end);
            recording.end()?;
            Ok((trace?, switched))
        });
        let load = load(bench, server.address(), arrivals, Duration::from_secs(bench.seconds.into()) + 2 * MARGIN);
        (load, beside.join().unwrap_or(Err(ProfileError::Panicked)))
    });
    let (load, (trace, switched)) = (recorded.0?, recorded.1?);
    let windows = windows(&trace);
    let others = switched
        .and_then(|()| Ok(others_table(&shares(&script(&switches, "comm,tid,time,event")?, SHARD_THREADS, &windows), covered(&windows))));
    let text = script(&data, "comm,tid,time,event,ip,sym,dso")?;
    let all = samples(&text);
    let shards: Vec<Sample<'_>> = all.into_iter().filter(|sample| sample.thread.starts_with(SHARD_THREADS)).collect();
    if shards.is_empty() {
        return Err(ProfileError::NoSamples);
    }
    let slow = within(&shards, &windows);
    let whole_svg = bench.folder.join("run.svg");
    draw(&shards, &format!("{}: the whole run", bench.guest), &whole_svg)?;
    let slow_svg = bench.folder.join("slow.svg");
    if !slow.is_empty() {
        draw(&slow, &format!("{}: while the slowest hundredth was under way", bench.guest), &slow_svg)?;
    }
    let slow_svg = (!slow.is_empty()).then_some(slow_svg);
    Ok(Profile { load, whole: by_part(&shards), slow: by_part(&slow), others, trace, whole_svg, slow_svg })
}

/// The loop that was asked for, after a look at what the node takes at most where it is a part of that.
fn arrivals(bench: &ProfileBench<'_>, target: SocketAddr) -> Result<Arrivals, ProfileError> {
    let Some(percent) = bench.percent else { return Ok(Arrivals::Closed) };
    let most = load(bench, target, Arrivals::Closed, LOOK)?.requests_per_second;
    Ok(Arrivals::Poisson { per_second: (most * f64::from(percent) / 100.0).max(1.0) })
}

/// Loads the node. Errors: it cannot be loaded, or answers other than it must.
fn load(bench: &ProfileBench<'_>, target: SocketAddr, arrivals: Arrivals, measured: Duration) -> Result<LoadOutcome, ProfileError> {
    // No other run on this node has sessions of that name.
    let mut spec = LoadSpec::new(target, Transport::Http, format!("profile-{}-", measured.as_millis()));
    let function: MixFunction = bench.guest.parse().map_err(ProfileError::Answers)?;
    (spec.functions, spec.arrivals, spec.sessions, spec.reader) = (vec![function], arrivals, bench.sessions, None);
    let connections = bench.connections.unwrap_or(if arrivals == Arrivals::Closed { CONNECTIONS_CLOSED } else { CONNECTIONS_OPEN });
    (spec.connections, spec.in_flight, spec.cpus) = (connections, connections, vec![bench.load_cpu]);
    (spec.warm_up, spec.measured) = (MARGIN, measured);
    let outcome = run_load(&spec, bench.interrupt, Progress::Off)?;
    match outcome.fault().or_else(|| outcome.nothing_measured()) {
        _ if bench.interrupt.is_set() => Err(ProfileError::Interrupted(LoadError::Interrupted)),
        Some(fault) => Err(ProfileError::Answers(fault)),
        None => Ok(outcome),
    }
}

/// Traces the node whose admin API is there. Errors: of that, and `Interrupted` at once, however long the trace would last.
fn trace(admin: String, seconds: u32, interrupt: &Interrupt) -> Result<TraceReply, ProfileError> {
    let (answer, answered) = channel();
    // Nobody waits for this thread: it ends with its request, which ends with the node.
    std::thread::spawn(move || answer.send(AdminClient::new(&admin).trace(seconds)).ok());
    loop {
        match answered.recv_timeout(LOOK_EVERY) {
            Ok(trace) => return Ok(trace?),
            Err(RecvTimeoutError::Timeout) if interrupt.is_set() => return Err(ProfileError::Interrupted(LoadError::Interrupted)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(ProfileError::Panicked),
        }
    }
}

/// When the slowest requests were under way, on the monotonic clock.
fn windows(trace: &TraceReply) -> Vec<(u64, u64)> {
    let slow = trace.shards.iter().flat_map(|shard| &shard.slow);
    slow.map(|request| {
        let (from_ms, to_ms) = request.under_way_ms();
        (trace.began_ns.saturating_add_signed((from_ms * 1e6) as i64), trace.began_ns.saturating_add_signed((to_ms * 1e6) as i64))
    })
    .collect()
}

/// `perf record`, on the clock of the trace.
struct Recording(Child);

impl Recording {
    /// Where one process's time goes.
    fn of_stacks(pid: u32, seconds: u32, data: &Path) -> Result<Recording, ProfileError> {
        let (frequency, stacks, pid) = (FREQUENCY_HZ.to_string(), format!("dwarf,{STACK_BYTES}"), pid.to_string());
        Recording::start(&["-e", "cpu-clock", "-F", &frequency, "--call-graph", &stacks, "-p", &pid], seconds, data)
    }

    /// Which threads one CPU has had.
    fn of_switches(cpu: u16, seconds: u32, data: &Path) -> Result<Recording, ProfileError> {
        Recording::start(&["-e", "sched:sched_switch", "-C", &cpu.to_string()], seconds, data)
    }

    fn start(what: &[&str], seconds: u32, data: &Path) -> Result<Recording, ProfileError> {
        let mut perf = Command::new("perf");
        perf.args(["record", "-q", "-k", "CLOCK_MONOTONIC"]).args(what).arg("-o").arg(data);
        perf.args(["--", "sleep", &seconds.to_string()]);
        perf.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(Recording(perf.spawn().map_err(ProfileError::Start)?))
    }

    /// Ends perf before its time. What it wrote is of no use then.
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).ok();
        self.0.wait().ok();
    }

    fn end(self) -> Result<(), ProfileError> {
        let output = self.0.wait_with_output().map_err(ProfileError::Start)?;
        succeeded("record", &output)
    }
}

fn succeeded(what: &'static str, output: &Output) -> Result<(), ProfileError> {
    if output.status.success() {
        return Ok(());
    }
    Err(ProfileError::Perf { what, log: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

/// What was recorded as text, with these fields. Without inlined frames, which take minutes to find.
fn script(data: &Path, fields: &str) -> Result<String, ProfileError> {
    let mut perf = Command::new("perf");
    perf.args(["script", "--no-inline", "-F", fields, "-i"]).arg(data).stdin(Stdio::null());
    let output = perf.output().map_err(ProfileError::Start)?;
    succeeded("script", &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn draw(samples: &[Sample<'_>], title: &str, path: &Path) -> Result<(), ProfileError> {
    let (text, mut folded) = (joined(samples), Vec::new());
    let failed = |error: &dyn std::fmt::Display| ProfileError::Draw(error.to_string());
    Folder::default().collapse(BufReader::new(text.as_bytes()), &mut folded).map_err(|error| failed(&error))?;
    // Where a thread begins has no name. A worker's fiber begins in compiled wasm: what called the guest is on another stack.
    let folded = String::from_utf8_lossy(&folded).replace(";[unknown];", ";");
    let mut options = flamegraph::Options::default();
    options.title = title.to_owned();
    options.count_name = "samples".to_owned();
    let file = File::create(path).map_err(|source| ProfileError::File { operation: "create", path: path.into(), source })?;
    flamegraph::from_reader(&mut options, folded.as_bytes(), file).map_err(|error| failed(&error))
}

/// What the load saw, and the shares as a table, the whole run beside the slow requests' windows.
pub fn profile_table(profile: &Profile) -> String {
    let total = |parts: &[(&str, usize)]| parts.iter().map(|(_, count)| count).sum::<usize>().max(1) as f64;
    let (whole, slow) = (total(&profile.whole), total(&profile.slow));
    let [p50, p99] = [profile.load.latency.p50_us, profile.load.latency.p99_us].map(|us| us_or_dash(us, 1));
    let mut text = format!("{:.0} requests/s, p50 {p50} us, p99 {p99} us while perf looked on\n", profile.load.requests_per_second);
    text.push_str(&format!("{:<10} {:>12} {:>16}\n", "part", "whole run %", "slow requests %"));
    for (part, count) in &profile.whole {
        let of_slow = profile.slow.iter().find(|(other, _)| other == part).map_or(0, |(_, count)| *count);
        text.push_str(&format!("{part:<10} {:>12.1} {:>16.1}\n", *count as f64 / whole * 100.0, of_slow as f64 / slow * 100.0));
    }
    text
}

/// Who else had the shard's CPU, the longest first. Input: how long the slowest requests were under way.
fn others_table(shares: &[Share<'_>], slow: Duration) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut text = format!("{:<16} {:>8} {:>10} {:>11} {:>16}\n", "thread", "turns", "in all ms", "longest ms", "while slow ms");
    for Share { thread, turns, in_all, longest, while_slow } in shares.iter().take(OTHERS_SHOWN) {
        text.push_str(&format!("{thread:<16} {turns:>8} {:>10.2} {:>11.3} {:>16.2}\n", ms(*in_all), ms(*longest), ms(*while_slow)));
    }
    text + &format!("while slow: one of the slowest requests was under way, for {:.1} ms in all\n", ms(slow))
}
