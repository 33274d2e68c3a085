//! One run: threads that connect, begin together and end together, the counters before and after, and what came of it.

use super::counters::read_counters;
use super::live::{LiveThread, Progress, ProgressLine};
use super::mix::Check;
use super::report::LoadOutcome;
use super::spec::{GeneratorError, LoadSpec};
use super::tally::Tally;
use super::thread::{Shared, run_thread};
use super::truth::{CounterVerdict, Truth};
use crate::load::Interrupt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::sys::clock::monotonic_ns;
use xfaas_dataplane::sys::open_files::raise_limit;

const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// From when the last thread has connected to the first request.
const START_DELAY_NS: u64 = 1_000_000;

/// Open files beside one for each connection.
const OTHER_FILES: u64 = 64;

/// Runs `spec` to its end, or until `interrupt`. Output: what was seen, also when the server failed in the middle.
/// Errors: what cannot be run, a server that cannot be reached, a counter that cannot be read.
pub fn run_load(spec: &LoadSpec, interrupt: &Interrupt, progress: Progress) -> Result<LoadOutcome, GeneratorError> {
    spec.check()?;
    let (needed, limit) = (spec.connections as u64 + OTHER_FILES, raise_limit());
    if needed > limit {
        return Err(GeneratorError::OpenFiles { needed, limit });
    }
    let sessions = spec.session_ids()?;
    let truth = Truth::new(spec.sessions);
    let counts = spec.functions.iter().any(|function| function.check == Check::Counter);
    if let Some(reader) = spec.reader.as_deref().filter(|_| counts && !spec.is_fresh) {
        let all: Vec<usize> = (0..spec.sessions).collect();
        let bases = read_counters(spec, reader, &sessions, &all)?;
        bases.into_iter().enumerate().for_each(|(session, base)| truth.set_base(session, base));
    }
    let (tally, ended) = run_threads(spec, &sessions, &truth, interrupt, progress)?;
    // A server that failed cannot be asked; what its answers said stands.
    let reader = spec.reader.as_deref().filter(|_| ended.is_none());
    let counters = if counts { Some(judge_counters(spec, reader, &sessions, &truth)?) } else { None };
    Ok(LoadOutcome::new(spec, tally, counters, interrupt.is_set(), ended))
}

type Ended = Result<(Tally, Option<GeneratorError>), GeneratorError>;

fn run_threads(
    spec: &LoadSpec,
    sessions: &[SessionId],
    truth: &Truth,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<(Tally, Option<GeneratorError>), GeneratorError> {
    let stop = Interrupt::default();
    let shared = Shared { spec, sessions, truth, interrupt, stop: &stop };
    let live: Vec<LiveThread> = (0..spec.threads).map(|_| LiveThread::default()).collect();
    let ended: Vec<Ended> = std::thread::scope(|scope| {
        let (ready, is_ready) = channel();
        let (done, is_done) = channel::<()>();
        let mut threads = Vec::with_capacity(spec.threads);
        let mut starts = Vec::with_capacity(spec.threads);
        for (thread, live) in live.iter().enumerate() {
            let (start, starts_at) = channel();
            let (shared, ready, done) = (&shared, ready.clone(), done.clone());
            starts.push(start);
            threads.push(scope.spawn(move || {
                let ended = run_thread(shared, thread, live, ready, &starts_at);
                drop(done);
                ended
            }));
        }
        drop((ready, done));
        // One message from each thread, or its end of the channel dropped where it could not connect.
        if is_ready.iter().take(spec.threads).count() == spec.threads {
            let start_ns = monotonic_ns() + START_DELAY_NS;
            starts.iter().for_each(|start| start.send(start_ns).unwrap_or_default());
        }
        drop(starts);
        let mut line = ProgressLine::new(progress, &live);
        while is_done.recv_timeout(PROGRESS_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            line.tick();
        }
        line.end();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(GeneratorError::Panicked))).collect()
    });
    let mut whole = Tally::new(spec.functions.len());
    let mut first = None;
    for ended in ended {
        let (tally, error) = ended?;
        whole.add(tally);
        first = first.or(error);
    }
    Ok((whole, first))
}

fn judge_counters(spec: &LoadSpec, reader: Option<&str>, sessions: &[SessionId], truth: &Truth) -> Result<CounterVerdict, GeneratorError> {
    let asked: Vec<usize> = (0..spec.sessions).filter(|session| truth.was_asked(*session)).collect();
    let mut verdict = CounterVerdict { was_read: reader.is_some(), ..CounterVerdict::default() };
    let numbers = reader.map(|reader| read_counters(spec, reader, sessions, &asked)).transpose()?;
    for (i, session) in asked.into_iter().enumerate() {
        let number = numbers.as_ref().map(|numbers| numbers[i]);
        truth.judge(&mut verdict, session, &sessions[session].to_string(), number);
    }
    Ok(verdict)
}
