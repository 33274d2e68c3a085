//! Measures cases: first what each takes at most, each round on a server of its own, then its tail below that and at a rate that is the same for
//! all. The server has one CPU for all its threads, the generator another. Prints progress to stderr.

use super::case::{PeerCase, Running};
use super::report::{PeerRow, Point};
use super::usage::UsageError;
use super::window::used_while_measured;
use crate::generator::{Arrivals, GeneratorError, Latency, LoadOutcome, LoadSpec, Progress, repeat_while_short, run_load, run_load_marked};
use crate::load::Interrupt;
use crate::servers::{ServerError, XfaasFiles};
use std::path::Path;
use std::time::Duration;
use xfaas_dataplane::sys::affinity::{AffinityError, pin_to};
use xfaas_dataplane::sys::realtime::{self, Children, PRIORITY_SHARD, RealtimeError};

/// Unmeasured time before each run, in which JITs compile and caches fill.
const WARM_UP_S_MAX: f64 = 1.0;
/// Requests a session that prepare what is read: at 16 a session, one in a million sessions is left out.
const PRIMING_REQUESTS: usize = 16;
const PRIMING_S: u64 = 120;
/// A server that is behind answers late, not never.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Before the points below saturation a closed loop looks for so long, or as long as all runs last, what the server takes now: machines change
/// their speed.
const SATURATION: Asked = Asked { point: Point::Saturation, arrivals: Arrivals::Closed, seconds: 2.0 };
/// The rate that is the same for all, as a share of what the slowest takes.
const COMMON_SHARE: f64 = 0.5;

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("the load generator")]
    Load(#[from] GeneratorError),
    #[error("its CPU time and memory cannot be read")]
    Usage(#[from] UsageError),
    #[error("the run failed: {fault}; the server's log ends with:\n{log}")]
    Run { fault: String, log: String },
    #[error("the measuring thread cannot be pinned")]
    Pin(#[from] AffinityError),
    #[error(transparent)]
    Realtime(#[from] RealtimeError),
    #[error("interrupted before anything was measured")]
    Nothing,
}

impl PeerError {
    /// It is not installed, or cannot be started here at all.
    pub fn is_missing(&self) -> bool {
        matches!(self, PeerError::Server(ServerError::Missing { .. } | ServerError::Start { .. }))
    }
}

/// How everything is measured.
pub struct PeersBench<'a> {
    pub xfaas: &'a XfaasFiles,
    /// Where peers are installed.
    pub packages: &'a Path,
    pub server_cpu: u16,
    pub load_cpu: u16,
    /// Of the closed loop.
    pub connections: usize,
    /// Of the open loop: as many requests can be under way.
    pub open_connections: usize,
    pub sessions: usize,
    /// Of each run.
    pub seconds: f64,
    /// Runs at each load point; the median counts.
    pub rounds: u32,
    /// Servers whose work one thread does are in the real-time class.
    pub realtime: bool,
    /// Requests a second; half of what the slowest takes, if not given.
    pub common_rate: Option<f64>,
    pub interrupt: &'a Interrupt,
}

/// One run.
#[derive(Clone, Copy)]
struct Asked {
    point: Point,
    arrivals: Arrivals,
    seconds: f64,
}

/// What came of a case: its rows so far, or why there are none.
pub struct CaseResult {
    pub case: &'static PeerCase,
    pub outcome: Result<Vec<PeerRow>, PeerError>,
}

impl PeersBench<'_> {
    /// All cases, in that order. With `points` also below saturation and at a common rate. Output: also that rate, once it is known.
    pub fn measure(&self, cases: &[&'static PeerCase], points: bool) -> (Vec<CaseResult>, Option<f64>) {
        let mut rounds: Vec<Vec<PeerRow>> = cases.iter().map(|_| Vec::new()).collect();
        let mut errors: Vec<Option<PeerError>> = cases.iter().map(|_| None).collect();
        // Round by round, so that what else the machine does falls on all alike.
        for round in 0..self.rounds {
            for (i, case) in cases.iter().enumerate() {
                if errors[i].is_some() || self.interrupt.is_set() {
                    continue;
                }
                match self.saturate(case, round) {
                    _ if self.interrupt.is_set() => {}
                    Ok(row) => rounds[i].push(row),
                    Err(error) => errors[i] = Some(error),
                }
            }
        }
        let mut results: Vec<CaseResult> = cases
            .iter()
            .zip(rounds.into_iter().zip(errors))
            .map(|(case, (rows, error))| {
                let outcome = match error {
                    Some(error) => Err(error),
                    None => median(rows, |row| row.requests_per_second).map(|row| vec![row]).ok_or(PeerError::Nothing),
                };
                CaseResult { case, outcome }
            })
            .collect();
        let saturations = results.iter().filter_map(|result| result.outcome.as_ref().ok()).map(|rows| rows[0].requests_per_second);
        let slowest = saturations.fold(f64::INFINITY, f64::min);
        if !points || !slowest.is_finite() {
            return (results, None);
        }
        let common_rate = self.common_rate.unwrap_or_else(|| two_digits(slowest * COMMON_SHARE));
        eprintln!("the rate that is the same for all: {common_rate} requests/s");
        for result in &mut results {
            self.add_points(result, common_rate);
        }
        (results, Some(common_rate))
    }

    fn saturate(&self, case: &PeerCase, round: u32) -> Result<PeerRow, PeerError> {
        let running = self.start(case)?;
        let row = self.run(case, &running, Asked { seconds: self.seconds, ..SATURATION }, 0)?;
        eprintln!(
            "{} round {}/{}: {:.0} requests/s, p99 {:.0} us, {:.2} us CPU a request",
            case.name,
            round + 1,
            self.rounds,
            row.requests_per_second,
            row.p99_us,
            row.cpu_us_per_request
        );
        Ok(row)
    }

    /// A server that fails below its saturation is an error of the case.
    fn add_points(&self, result: &mut CaseResult, common_rate: f64) {
        let Ok(rows) = &mut result.outcome else { return };
        let saturation = rows[0].requests_per_second;
        match self.points(result.case, saturation, common_rate) {
            Ok(more) => rows.extend(more),
            Err(_) if self.interrupt.is_set() => {} // what is there stays
            Err(error) => result.outcome = Err(error),
        }
    }

    fn points(&self, case: &PeerCase, saturation: f64, common_rate: f64) -> Result<Vec<PeerRow>, PeerError> {
        let asked = [Point::Half, Point::SeventyPercent, Point::Common];
        // A server that takes less than the common rate is not asked for it.
        let asked = &asked[..if common_rate <= saturation { 3 } else { 2 }];
        let mut found: Vec<Vec<PeerRow>> = asked.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.rounds {
            if self.interrupt.is_set() {
                break;
            }
            let running = self.start(case)?;
            let now =
                self.run(case, &running, Asked { seconds: self.seconds.min(SATURATION.seconds), ..SATURATION }, 0)?.requests_per_second;
            for (i, point) in asked.iter().enumerate() {
                let per_second = match point {
                    Point::Half => now * 0.5,
                    Point::SeventyPercent => now * 0.7,
                    Point::Saturation | Point::Common => common_rate,
                };
                let arrivals = Arrivals::Poisson { per_second: per_second.max(1.0) };
                let row = self.run(case, &running, Asked { point: *point, arrivals, seconds: self.seconds }, i + 1)?;
                if !self.interrupt.is_set() {
                    eprintln!(
                        "{}: {:.0} requests/s, p50 {:.0} us, p99 {:.0} us",
                        row.name, row.requests_per_second, row.p50_us, row.p99_us
                    );
                    found[i].push(row);
                }
            }
        }
        Ok(found.into_iter().filter_map(|rows| median(offered_or_all(rows), |row| row.p99_us)).collect())
    }

    /// Starts the server with everything of it on its CPU: what a process starts inherits where it may run. This thread goes there to start it,
    /// and leaves: it must not end, since a server may end with the thread that started it.
    fn start(&self, case: &PeerCase) -> Result<Running, PeerError> {
        pin_to(self.server_cpu)?;
        let realtime = self.realtime && case.is_one_thread();
        if realtime {
            realtime::enter(PRIORITY_SHARD, Children::Alike)?;
        }
        let started = case.start(self.xfaas, self.packages, self.server_cpu, self.interrupt);
        if realtime {
            realtime::leave()?;
        }
        pin_to(self.load_cpu)?;
        Ok(started?)
    }

    /// Again where the generator was short of arrivals. `run`: no other run on this server has that number.
    fn run(&self, case: &PeerCase, running: &Running, asked: Asked, run: usize) -> Result<PeerRow, PeerError> {
        let once = |tried| self.run_once(case, running, asked, &format!("peer-{run}-{tried}-"));
        repeat_while_short(once, |row| row.arrivals_short && !self.interrupt.is_set())
    }

    /// `prefix`: of no other run on this server, so that its sessions are new.
    fn run_once(&self, case: &PeerCase, running: &Running, asked: Asked, prefix: &str) -> Result<PeerRow, PeerError> {
        let Asked { point, arrivals, seconds } = asked;
        let mut spec = LoadSpec::new(running.address(), case.transport(), prefix.to_owned());
        spec.shape = case.shape();
        (spec.sessions, spec.cpus, spec.reader) = (self.sessions, vec![self.load_cpu], case.reader());
        (spec.answer_timeout, spec.connections, spec.in_flight) = (ANSWER_TIMEOUT, self.connections, self.connections);
        if let Some(primer) = case.primer() {
            let requests_max = (self.sessions * PRIMING_REQUESTS) as u64;
            let (warm_up, measured) = (Duration::ZERO, Duration::from_secs(PRIMING_S));
            let spec = LoadSpec { functions: vec![primer], requests_max, warm_up, measured, ..spec.clone() };
            good(run_load(&spec, self.interrupt, Progress::Off)?, running)?;
        }
        spec.functions = vec![case.function()];
        spec.arrivals = arrivals;
        if arrivals != Arrivals::Closed {
            (spec.connections, spec.in_flight) = (self.open_connections, self.open_connections);
        }
        (spec.warm_up, spec.measured) = (Duration::from_secs_f64(WARM_UP_S_MAX.min(seconds / 2.0)), Duration::from_secs_f64(seconds));
        let load = |measuring: &mut dyn FnMut()| run_load_marked(&spec, self.interrupt, Progress::Off, measuring);
        let (outcome, window) = used_while_measured(&running.pids(), spec.measured, load)?;
        let outcome = good(outcome?, running)?;
        let Latency { p50_us: Some(p50_us), p99_us: Some(p99_us), p999_us: Some(p999_us), .. } = outcome.latency else {
            let run = |fault| PeerError::Run { fault, log: running.log_excerpt() };
            return Err(outcome.nothing_measured().map_or(PeerError::Nothing, run));
        };
        let window = window.ok_or(PeerError::Nothing)?;
        let row = PeerRow {
            name: String::new(),
            requests_per_second: outcome.requests_per_second,
            p50_us,
            p99_us,
            p999_us,
            cpu_us_per_request: window.cpu_us_per_answer(outcome.requests_per_second),
            rss_bytes: window.rss_bytes,
            arrivals_short: outcome.arrivals_short,
            point,
        };
        Ok(row.named(case.name))
    }
}

/// Errors: wrong, lost or doubled answers or updates.
fn good(outcome: LoadOutcome, running: &Running) -> Result<LoadOutcome, PeerError> {
    match outcome.fault() {
        Some(fault) => Err(PeerError::Run { fault, log: running.log_excerpt() }),
        None => Ok(outcome),
    }
}

/// Rounds with less load than asked for count only where there are no others.
fn offered_or_all(rows: Vec<PeerRow>) -> Vec<PeerRow> {
    if rows.iter().all(|row| row.arrivals_short) { rows } else { rows.into_iter().filter(|row| !row.arrivals_short).collect() }
}

/// The row in the middle; of an even number the lower one.
fn median(mut rows: Vec<PeerRow>, by: impl Fn(&PeerRow) -> f64) -> Option<PeerRow> {
    rows.sort_by(|a, b| by(a).total_cmp(&by(b)));
    let middle = rows.len().checked_sub(1)? / 2;
    Some(rows.swap_remove(middle))
}

/// Rounded down to two digits, so that it can be named.
fn two_digits(rate: f64) -> f64 {
    let unit = 10_f64.powf((rate.max(1.0).log10().floor() - 1.0).max(0.0));
    (rate / unit).floor().max(1.0) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_rate_has_two_digits() {
        for (rate, rounded) in [(0.2, 1.0), (7.9, 7.0), (84.3, 84.0), (576.0, 570.0), (12_999.0, 12_000.0)] {
            assert!((two_digits(rate) - rounded).abs() < 1e-6, "{rate}: {}", two_digits(rate));
        }
    }

    fn row(requests_per_second: f64) -> PeerRow {
        PeerRow {
            name: "x".to_owned(),
            requests_per_second,
            p50_us: 0.0,
            p99_us: 0.0,
            p999_us: 0.0,
            cpu_us_per_request: 0.0,
            rss_bytes: 0,
            arrivals_short: false,
            point: Point::Saturation,
        }
    }

    #[test]
    fn a_round_with_too_little_load_counts_only_where_all_are_such() {
        let short = |rate| PeerRow { arrivals_short: true, ..row(rate) };
        assert_eq!(offered_or_all(vec![short(1.0), row(2.0), short(3.0)]), [row(2.0)]);
        assert_eq!(offered_or_all(vec![short(1.0), short(3.0)]).len(), 2);
    }

    #[test]
    fn the_median_is_a_row_that_was_measured() {
        let rows = [5.0, 1.0, 3.0].map(row);
        let of = |rows: &[PeerRow]| median(rows.to_vec(), |row| row.requests_per_second).map(|row| row.requests_per_second);
        assert_eq!((of(&rows), of(&rows[..2]), of(&[])), (Some(3.0), Some(1.0), None));
    }
}
