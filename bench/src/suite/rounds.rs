//! Runs the cases of a suite in rounds and makes the rows.

use super::case::{Case, CaseError};
use crate::load::{Interrupt, LoadPlan, LoadReport, Summary};
use crate::report::{Row, median_summary};
use crate::servers::{Server, ServerError, XfaasFiles, start_limit, start_nginx, start_xfaas};
use std::time::Duration;
use xfaas_dataplane::sys::affinity::{AffinityError, pin_to};

const WARM_UP_MAX: Duration = Duration::from_millis(500);
/// More than any server here answers in the time of a run: the bound in count.
const REQUESTS_PER_SECOND_MAX: f64 = 5e6;

#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    #[error("{case}: the server cannot be used")]
    Server {
        case: &'static str,
        #[source]
        source: ServerError,
    },
    #[error("{case} failed")]
    Case {
        case: &'static str,
        #[source]
        source: CaseError,
    },
    #[error("the load generator cannot be pinned")]
    Pin(#[from] AffinityError),
    #[error("the load generator's thread panicked")]
    Panicked,
}

/// The median over the rounds of a case's rate in parts of the bare echo's of the same round: a machine that is slower for a while is so for both.
fn ratio_to_limit(case: Case, rounds: &[Vec<(Case, Summary)>]) -> f64 {
    let mean_of = |runs: &[(Case, Summary)], case: Case| {
        let rates: Vec<f64> = runs.iter().filter(|(ran, _)| *ran == case).map(|(_, summary)| summary.requests_per_second).collect();
        rates.iter().sum::<f64>() / rates.len().max(1) as f64
    };
    let ratio = |runs: &Vec<(Case, Summary)>| mean_of(runs, case) / mean_of(runs, Case::LimitHttp).max(1.0);
    let mut ratios: Vec<f64> = rounds.iter().map(ratio).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let (lower, upper) = (ratios.get(ratios.len().saturating_sub(1) / 2), ratios.get(ratios.len() / 2));
    (lower.unwrap_or(&0.0) + upper.unwrap_or(&0.0)) / 2.0
}

/// What to run and where.
pub struct Suite<'a> {
    pub xfaas: &'a XfaasFiles,
    pub cases: &'a [Case],
    pub server_cpu: u16,
    pub load_cpu: u16,
    /// Requests under way at once, over HTTP one a connection.
    pub connections: usize,
    pub sessions: usize,
    /// Measured time of a case, all rounds together.
    pub seconds_a_case: f64,
    pub rounds: usize,
    pub interrupt: &'a Interrupt,
}

impl Suite<'_> {
    /// Runs all rounds. Progress goes to stderr. Output: a row for each case, in the order of `Case::ALL`.
    /// Errors: the first thing that goes wrong; every process is ended then.
    pub fn run(&self) -> Result<Vec<Row>, SuiteError> {
        // What is missing is told now rather than after the first minute.
        if let Some(case) = self.cases.iter().find(|case| case.is_xfaas()) {
            self.xfaas.check().map_err(|source| SuiteError::Server { case: case.name(), source })?;
        }
        let mut rounds: Vec<Vec<(Case, Summary)>> = Vec::new();
        for round in 0..self.rounds {
            let mut runs = Vec::new();
            self.round(round, &mut runs)?;
            rounds.push(runs);
        }
        let row = |case: &Case| {
            let of_case: Vec<Summary> = rounds.iter().flatten().filter(|(ran, _)| ran == case).map(|(_, summary)| *summary).collect();
            Some(Row::load(case.name(), &median_summary(&of_case)?, ratio_to_limit(*case, &rounds)))
        };
        Ok(Case::ALL.iter().filter_map(row).collect())
    }

    fn round(&self, round: usize, runs: &mut Vec<(Case, Summary)>) -> Result<(), SuiteError> {
        let limit = Case::LimitHttp;
        // The limit at both ends, half the time each.
        let started =
            |server: Result<Server, ServerError>, case: Case| server.map_err(|source| SuiteError::Server { case: case.name(), source });
        runs.push((limit, self.one(limit, &started(start_limit(self.server_cpu, self.interrupt), limit)?, round, 0.5)?));
        if self.cases.contains(&Case::Nginx) {
            let server = started(start_nginx(self.server_cpu, self.interrupt), Case::Nginx)?;
            runs.push((Case::Nginx, self.one(Case::Nginx, &server, round, 1.0)?));
        }
        runs.extend(self.xfaas_round(round)?);
        runs.push((limit, self.one(limit, &started(start_limit(self.server_cpu, self.interrupt), limit)?, round, 0.5)?));
        Ok(())
    }

    /// The cases of xfaas in one round, all on one new server. `round`: 0 to `rounds` - 1. The same errors as `run`.
    pub fn xfaas_round(&self, round: usize) -> Result<Vec<(Case, Summary)>, SuiteError> {
        let mut cases: Vec<Case> = self.cases.iter().copied().filter(|case| case.is_xfaas()).collect();
        let Some(first) = cases.first() else { return Ok(Vec::new()) };
        let server = start_xfaas(self.xfaas, self.server_cpu, self.interrupt);
        let server = server.map_err(|source| SuiteError::Server { case: first.name(), source })?;
        // Another order each time, so that none always follows the same one.
        let turn = round * cases.len() / self.rounds;
        cases.rotate_left(turn);
        cases.into_iter().map(|case| Ok((case, self.one(case, &server, round, 1.0)?))).collect()
    }

    /// One run of a case, on a thread of its own that is pinned to the load's CPU.
    fn one(&self, case: Case, server: &Server, round: usize, share: f64) -> Result<Summary, SuiteError> {
        let measured = Duration::from_secs_f64(self.seconds_a_case / self.rounds as f64 * share);
        let warm_up = WARM_UP_MAX.min(measured);
        let requests_max = ((measured + warm_up).as_secs_f64() * REQUESTS_PER_SECOND_MAX) as u64;
        let plan = LoadPlan { warm_up, measured, requests_max, interrupt: self.interrupt };
        let run = || -> Result<LoadReport, SuiteError> {
            pin_to(self.load_cpu)?;
            let result = case.run(server, &plan, case.under_way(self.connections), self.sessions, round);
            result.map_err(|source| SuiteError::Case { case: case.name(), source })
        };
        let report = std::thread::scope(|scope| scope.spawn(run).join()).map_err(|_| SuiteError::Panicked)??;
        let summary = report.summary();
        let (rate, p50_us, p99_us) = (summary.requests_per_second, summary.p50_us, summary.p99_us);
        let lost = if report.lost > 0 { format!(", {} lost", report.lost) } else { String::new() };
        eprintln!("round {}/{}: {:<16}{rate:>9.0}/s  p50 {p50_us:.0} us  p99 {p99_us:.0} us{lost}", round + 1, self.rounds, case.name());
        Ok(summary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_held_against_its_own_limit() {
        let run = |requests_per_second| Summary { requests_per_second, p50_us: 1.0, p99_us: 1.0, p999_us: 1.0 };
        let round = |limit: f64, rmw: f64| {
            vec![(Case::LimitHttp, run(limit - 10.0)), (Case::HttpRmw, run(rmw)), (Case::LimitHttp, run(limit + 10.0))]
        };
        let rounds = [round(200.0, 180.0), round(100.0, 90.0), round(100.0, 50.0)];
        assert_eq!(ratio_to_limit(Case::HttpRmw, &rounds), 0.9);
        assert!((ratio_to_limit(Case::HttpRmw, &rounds[1..]) - 0.7).abs() < 1e-9);
        assert_eq!(ratio_to_limit(Case::LimitHttp, &rounds), 1.0);
        assert_eq!(ratio_to_limit(Case::LimitHttp, &[]), 0.0);
    }
}
