//! One run: threads that connect, begin together and end together, the counters before and after, and what came of it.

use super::asker::Patience;
use super::counters::read_counters;
use super::live::{INTERVAL, LiveThread, Progress, ProgressLine};
use super::mix::Check;
use super::report::LoadOutcome;
use super::spec::{GeneratorError, LoadSpec};
use super::tally::Tally;
use super::thread::{Shared, run_thread};
use super::truth::{CounterVerdict, Truth};
use crate::load::{Interrupt, LoadError};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::sys::clock::monotonic_ns;
use xfaas_dataplane::sys::open_files::raise_limit;

/// From when the last thread has connected to the first request.
const START_DELAY_NS: u64 = 1_000_000;

/// Reading the counters in the end goes on for so long after an interrupt: a run of hours that is ended by hand is worth a look at them, and one whose
/// server is slow is not to be waited for.
const INTERRUPTED_READ_MAX: Duration = Duration::from_secs(1);

/// Open files beside one for each connection.
const OTHER_FILES: u64 = 64;

/// Runs `spec` to its end, or until `interrupt`. Output: what was seen, also when the server failed in the middle.
/// Errors: what cannot be run, a server that cannot be reached, a counter that cannot be read before the run. One that cannot be read in the end
/// is the outcome's error.
pub fn run_load(spec: &LoadSpec, interrupt: &Interrupt, progress: Progress) -> Result<LoadOutcome, GeneratorError> {
    run_load_marked(spec, interrupt, progress, || ())
}

/// The same. `measuring` is called once, on this thread, when the warm-up is over; never if the run ends before.
pub fn run_load_marked(
    spec: &LoadSpec,
    interrupt: &Interrupt,
    progress: Progress,
    measuring: impl FnOnce(),
) -> Result<LoadOutcome, GeneratorError> {
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
        match read_counters(spec, reader, &sessions, &all, &Patience::new(interrupt, Duration::ZERO)) {
            Ok(bases) => bases.into_iter().enumerate().for_each(|(session, base)| truth.set_base(session, base)),
            Err(GeneratorError::Load(LoadError::Interrupted)) => {}
            Err(error) => return Err(error),
        }
    }
    if interrupt.is_set() {
        return Ok(LoadOutcome::new(spec, Tally::new(spec.functions.len()), None, true, None));
    }
    let (tally, mut ended) = run_threads(spec, &sessions, &truth, interrupt, progress, measuring)?;
    let mut counters = None;
    if counts {
        // A server that failed cannot be asked; what its answers said stands.
        let reader = spec.reader.as_deref().filter(|_| ended.is_none());
        let (verdict, unread) = judge_counters(spec, reader, &sessions, &truth, interrupt);
        (counters, ended) = (Some(verdict), ended.or(unread));
    }
    Ok(LoadOutcome::new(spec, tally, counters, interrupt.is_set(), ended))
}

/// Runs of one load point at most: a machine that takes its CPU from the generator that often does so all the time.
const TRIES: usize = 3;

/// Calls `run`, with the number of the try from 0 on, until it is not `short` of arrivals: the generator had its CPU then. Output: the last.
pub(crate) fn repeat_while_short<T, E>(mut run: impl FnMut(usize) -> Result<T, E>, short: impl Fn(&T) -> bool) -> Result<T, E> {
    let mut ran = run(0)?;
    for tried in 1..TRIES {
        if !short(&ran) {
            break;
        }
        eprintln!("the generator did not get its CPU and offered too little: once more");
        ran = run(tried)?;
    }
    Ok(ran)
}

type Ended = Result<(Tally, Option<GeneratorError>), GeneratorError>;

fn run_threads(
    spec: &LoadSpec,
    sessions: &[SessionId],
    truth: &Truth,
    interrupt: &Interrupt,
    progress: Progress,
    measuring: impl FnOnce(),
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
        let mut mark = None;
        // One message from each thread, or its end of the channel dropped where it could not connect.
        if is_ready.iter().take(spec.threads).count() == spec.threads {
            let start_ns = monotonic_ns() + START_DELAY_NS;
            mark = Some((start_ns + spec.warm_up.as_nanos() as u64, measuring));
            starts.iter().for_each(|start| start.send(start_ns).unwrap_or_default());
        }
        drop(starts);
        let mut line = ProgressLine::new(progress, &live);
        loop {
            let to_mark = mark.as_ref().map(|(at_ns, _)| Duration::from_nanos(at_ns.saturating_sub(monotonic_ns())));
            let wait = to_mark.map_or(INTERVAL, |to_mark| to_mark.min(INTERVAL));
            if is_done.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            line.tick();
            if let Some((_, measuring)) = mark.take_if(|(at_ns, _)| monotonic_ns() >= *at_ns) {
                measuring();
            }
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

/// Without `reader`, or where it fails or is interrupted, the counters are judged by what they answered. Output: also why it failed.
fn judge_counters(
    spec: &LoadSpec,
    reader: Option<&str>,
    sessions: &[SessionId],
    truth: &Truth,
    interrupt: &Interrupt,
) -> (CounterVerdict, Option<GeneratorError>) {
    let asked: Vec<usize> = (0..spec.sessions).filter(|session| truth.was_asked(*session)).collect();
    let patience = Patience::new(interrupt, INTERRUPTED_READ_MAX);
    let (numbers, unread) = match reader.map(|reader| read_counters(spec, reader, sessions, &asked, &patience)).transpose() {
        Ok(numbers) => (numbers, None),
        Err(GeneratorError::Load(LoadError::Interrupted)) => (None, None),
        Err(error) => (None, Some(error)),
    };
    let mut verdict = CounterVerdict { was_read: numbers.is_some(), ..CounterVerdict::default() };
    for (i, session) in asked.into_iter().enumerate() {
        let number = numbers.as_ref().map(|numbers| numbers[i]);
        truth.judge(&mut verdict, session, &sessions[session].to_string(), number);
    }
    (verdict, unread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_short_of_arrivals_is_repeated_and_not_for_ever() {
        for (short_runs, tries) in [(0, 1), (1, 2), (2, 3), (9, 3)] {
            let mut tried = Vec::new();
            let last = repeat_while_short(
                |number| {
                    tried.push(number);
                    Ok::<usize, ()>(number)
                },
                |number| *number < short_runs,
            );
            assert_eq!((last, tried), (Ok(tries - 1), (0..tries).collect::<Vec<_>>()));
        }
        assert_eq!(repeat_while_short(|_| Err::<(), &str>("down"), |()| true), Err("down"));
    }
}
