//! Where the core's time goes under load, of the whole run and while the slowest requests were under way: `perf record` beside `xfaas trace`, with the guest's
//! functions by name, drawn as flame graphs. Called by the binary `profile`.

mod samples;

pub use self::samples::{Sample, by_part, joined, part_of, samples, within};

use crate::load::{BodyRule, Expect, HttpLoad, Interrupt, LoadError, LoadPlan, LoadReport, run_http};
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
/// How often a wait for the trace looks whether it is interrupted.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("the server")]
    Server(#[from] ServerError),
    #[error("the load failed")]
    Load(#[from] LoadError),
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
    /// Name of the guest whose function is called: one of the sample functions that count.
    pub guest: &'a str,
    pub connections: usize,
    pub sessions: usize,
    pub seconds: u32,
    /// Where the pictures are put.
    pub folder: &'a Path,
    pub interrupt: &'a Interrupt,
}

/// What came of it.
pub struct Profile {
    pub load: LoadReport,
    pub trace: TraceReply,
    /// Samples of the shard by part of the system: of the whole run, and of the windows of the slowest requests.
    pub whole: Vec<(&'static str, usize)>,
    pub slow: Vec<(&'static str, usize)>,
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
    let data = bench.folder.join("perf.data");
    let (admin, seconds) = (place.admin().to_string(), bench.seconds);
    let recorded = std::thread::scope(|scope| {
        let beside = scope.spawn(|| -> Result<TraceReply, ProfileError> {
            std::thread::sleep(MARGIN);
            let recording = Recording::start(server.pid(), bench.seconds, &data)?;
            let trace = trace(admin, seconds, bench.interrupt);
            if bench.interrupt.is_set() {
                recording.stop();
                return trace;
            }
            recording.end()?;
            trace
        });
        let load = run_load(bench, server.address());
        (load, beside.join().unwrap_or(Err(ProfileError::Panicked)))
    });
    let (load, trace) = (recorded.0?, recorded.1?);
    let text = script(&data)?;
    let all = samples(&text);
    let shards: Vec<Sample<'_>> = all.into_iter().filter(|sample| sample.thread.starts_with("xfaas-shard")).collect();
    if shards.is_empty() {
        return Err(ProfileError::NoSamples);
    }
    let slow = within(&shards, &windows(&trace));
    let whole_svg = bench.folder.join("run.svg");
    draw(&shards, &format!("{}: the whole run", bench.guest), &whole_svg)?;
    let slow_svg = bench.folder.join("slow.svg");
    if !slow.is_empty() {
        draw(&slow, &format!("{}: while the slowest hundredth was under way", bench.guest), &slow_svg)?;
    }
    let slow_svg = (!slow.is_empty()).then_some(slow_svg);
    Ok(Profile { load, whole: by_part(&shards), slow: by_part(&slow), trace, whole_svg, slow_svg })
}

fn run_load(bench: &ProfileBench<'_>, target: SocketAddr) -> Result<LoadReport, LoadError> {
    let sessions: Vec<(Vec<u8>, Vec<u8>)> = (0..bench.sessions)
        .map(|number| {
            let session = format!("profile-{number:08}");
            let request = format!("GET /f/{} HTTP/1.1\r\nhost: {target}\r\nx-session-id: {session}\r\n\r\n", bench.guest);
            (session.into_bytes(), request.into_bytes())
        })
        .collect();
    let expect = Expect { body: BodyRule::Number, names_session: true };
    let load = HttpLoad { target, sessions: &sessions, connections: bench.connections, expect };
    let measured = Duration::from_secs(bench.seconds.into()) + 2 * MARGIN;
    run_http(&load, &LoadPlan { warm_up: MARGIN, measured, requests_max: u64::MAX, interrupt: bench.interrupt })
}

/// Traces the node whose admin API is there. Errors: of that, and `Interrupted` at once, however long the trace would last.
fn trace(admin: String, seconds: u32, interrupt: &Interrupt) -> Result<TraceReply, ProfileError> {
    let (answer, answered) = channel();
    // Nobody waits for this thread: it ends with its request, which ends with the node.
    std::thread::spawn(move || answer.send(AdminClient::new(&admin).trace(seconds)).ok());
    loop {
        match answered.recv_timeout(LOOK_EVERY) {
            Ok(trace) => return Ok(trace?),
            Err(RecvTimeoutError::Timeout) if interrupt.is_set() => return Err(LoadError::Interrupted.into()),
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

/// `perf record` of one process.
struct Recording(Child);

impl Recording {
    fn start(pid: u32, seconds: u32, data: &Path) -> Result<Recording, ProfileError> {
        let mut perf = Command::new("perf");
        perf.args(["record", "-q", "-e", "cpu-clock", "-k", "CLOCK_MONOTONIC", "-F", &FREQUENCY_HZ.to_string()]);
        perf.args(["--call-graph", &format!("dwarf,{STACK_BYTES}"), "-p", &pid.to_string(), "-o"]).arg(data);
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

/// The samples as text. Without inlined frames, which take minutes to find.
fn script(data: &Path) -> Result<String, ProfileError> {
    let mut perf = Command::new("perf");
    perf.args(["script", "--no-inline", "-F", "comm,tid,time,event,ip,sym,dso", "-i"]).arg(data).stdin(Stdio::null());
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

/// The shares as a table, the whole run beside the slow requests' windows.
pub fn profile_table(profile: &Profile) -> String {
    let total = |parts: &[(&str, usize)]| parts.iter().map(|(_, count)| count).sum::<usize>().max(1) as f64;
    let (whole, slow) = (total(&profile.whole), total(&profile.slow));
    let mut text = format!("{:<10} {:>12} {:>16}\n", "part", "whole run %", "slow requests %");
    for (part, count) in &profile.whole {
        let of_slow = profile.slow.iter().find(|(other, _)| other == part).map_or(0, |(_, count)| *count);
        text.push_str(&format!("{part:<10} {:>12.1} {:>16.1}\n", *count as f64 / whole * 100.0, of_slow as f64 / slow * 100.0));
    }
    text
}
