//! What the stamps of stages cost: the node and one that was built without them, in turns, in the closed loop of `quick`. Used by the program
//! `stamps`; callgrind's side of it is `counts/stamps.rs`.

use crate::load::Summary;
use crate::report::median;
use crate::servers::XfaasFiles;
use crate::suite::{Case, Suite, SuiteError};
use serde::Serialize;
use std::fmt::Write as _;

/// What is asked for.
pub const CASES: [Case; 2] = [Case::HttpRmw, Case::UdpRmw];
/// Of the throughput, at most.
pub const COST_PERCENT_MAX: f64 = 2.0;
/// How sure the bounds of a cost are, at the least; with fewer than five rounds they are all that was seen.
const SURE: f64 = 0.9;

/// One case. The fields' names and order are the JSON object's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StampsRow {
    pub name: &'static str,
    /// Medians of the rounds.
    pub stamped_per_second: f64,
    pub unstamped_per_second: f64,
    /// What is lost of the throughput, in percent: the median of the rounds, in each of which both nodes ran one after the other. Below 0 where
    /// the node with stamps was the faster one.
    pub cost_percent: f64,
    /// The true median lies between these with nine parts in ten, whatever shakes the rounds.
    pub least_percent: f64,
    pub most_percent: f64,
    pub rounds: usize,
    /// It is not more than `COST_PERCENT_MAX` by more than the rounds differ.
    pub holds: bool,
}

/// Runs `suite` and the same with `unstamped` in turns: A B B A A B B A. `suite.xfaas`: the ordinary node. Progress goes to stderr.
/// Output: a row for each of its cases that ran. Errors: the first thing that goes wrong; every process is ended then.
pub fn measure_stamps(suite: &Suite<'_>, unstamped: &XfaasFiles) -> Result<Vec<StampsRow>, SuiteError> {
    // What is missing is told now rather than after the first minute.
    for files in [suite.xfaas, unstamped] {
        files.check().map_err(|source| SuiteError::Server { case: CASES[0].name(), source })?;
    }
    let without = Suite { xfaas: unstamped, ..*suite };
    let mut rounds = Vec::new();
    for round in 0..suite.rounds {
        let stamped = || {
            eprintln!("with stamps");
            suite.xfaas_round(round)
        };
        let unstamped = || {
            eprintln!("without stamps");
            without.xfaas_round(round)
        };
        rounds.push(if round % 2 == 0 {
            let first = stamped()?;
            (first, unstamped()?)
        } else {
            let first = unstamped()?;
            (stamped()?, first)
        });
    }
    Ok(suite.cases.iter().filter_map(|case| row_of(*case, &rounds)).collect())
}

/// The runs of a round: of the node with stamps, and of the one without.
type Round = (Vec<(Case, Summary)>, Vec<(Case, Summary)>);

fn row_of(case: Case, rounds: &[Round]) -> Option<StampsRow> {
    let rate = |runs: &[(Case, Summary)]| runs.iter().find(|(ran, _)| *ran == case).map(|(_, summary)| summary.requests_per_second);
    let pairs: Vec<(f64, f64)> = rounds.iter().filter_map(|(with, without)| Some((rate(with)?, rate(without)?))).collect();
    let mut costs: Vec<f64> = pairs.iter().map(|(with, without)| 100.0 * (1.0 - with / without.max(f64::MIN_POSITIVE))).collect();
    costs.sort_by(f64::total_cmp);
    let left_out = left_out(costs.len());
    let (least, most) = (*costs.get(left_out)?, *costs.get(costs.len() - 1 - left_out)?);
    let rounded = |value: f64, parts: f64| (value * parts).round() / parts;
    let rates = |of: fn(&(f64, f64)) -> f64| median(&pairs.iter().map(of).collect::<Vec<_>>()).map(|rate| rounded(rate, 10.0));
    Some(StampsRow {
        name: case.name(),
        stamped_per_second: rates(|pair| pair.0)?,
        unstamped_per_second: rates(|pair| pair.1)?,
        cost_percent: rounded(median(&costs)?, 100.0),
        least_percent: rounded(least, 100.0),
        most_percent: rounded(most, 100.0),
        rounds: costs.len(),
        holds: least <= COST_PERCENT_MAX,
    })
}

/// How many of `count` sorted values to leave out at each end, so that the median of what they were drawn from lies between the others with `SURE`:
/// each value is above it or below like the toss of a coin (the sign test). 0 where there are too few.
fn left_out(count: usize) -> usize {
    let mut tosses = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut outside = 0.0;
    for heads in 0..count / 2 {
        outside += 2.0 * tosses;
        if 1.0 - outside < SURE {
            return heads.saturating_sub(1);
        }
        tosses *= (count - heads) as f64 / (heads + 1) as f64;
    }
    (count / 2).saturating_sub(1)
}

impl StampsRow {
    /// One object, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }
}

/// All rows as text.
pub fn stamps_table(rows: &[StampsRow]) -> String {
    let mut text =
        format!("{:<12}{:>14}{:>14}{:>9}{:>9}{:>9}{:>9}\n", "name", "stamped/s", "unstamped/s", "ratio", "cost %", "least %", "most %");
    for row in rows {
        let StampsRow { name, stamped_per_second, unstamped_per_second, cost_percent, least_percent, most_percent, .. } = row;
        let (ratio, note) = (1.0 - cost_percent / 100.0, if row.holds { "" } else { "  TOO MUCH" });
        writeln!(
            text,
            "{name:<12}{stamped_per_second:>14.0}{unstamped_per_second:>14.0}{ratio:>9.4}{cost_percent:>9.2}{least_percent:>9.2}{most_percent:>9.2}{note}"
        )
        .expect("a String takes all");
    }
    text += "ratio and cost: the median of rounds in which both ran one after the other, and the bounds that it lies between with nine parts in ten\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(with: f64, without: f64) -> Round {
        let runs = |rate: f64| {
            let summary = |requests_per_second| Summary { requests_per_second, p50_us: 1.0, p99_us: 1.0, p999_us: 1.0 };
            vec![(Case::UdpRmw, summary(rate * 2.0)), (Case::HttpRmw, summary(rate))]
        };
        (runs(with), runs(without))
    }

    #[test]
    fn bounds_leave_out_as_many_rounds_as_the_sign_test_allows() {
        // 8: 1 - 2 * 9/256 = 0.93, and 1 - 2 * 37/256 = 0.71.
        for (count, expected) in [(0, 0), (1, 0), (2, 0), (4, 0), (5, 0), (7, 0), (8, 1), (10, 1), (11, 2), (20, 5), (100, 41)] {
            assert_eq!(left_out(count), expected, "{count}");
        }
    }

    #[test]
    fn a_cost_is_of_rounds_in_which_both_ran() {
        // The machine is half as fast for a while: for both.
        let rounds = [(99.0, 100.0), (49.0, 50.0), (98.5, 100.0), (50.5, 50.0), (90.0, 100.0)].map(|(with, without)| round(with, without));
        let row = row_of(Case::HttpRmw, &rounds).unwrap();
        assert_eq!((row.name, row.stamped_per_second, row.unstamped_per_second), ("http_rmw", 90.0, 100.0));
        assert_eq!((row.cost_percent, row.least_percent, row.most_percent, row.rounds), (1.5, -1.0, 10.0, 5));
        assert!(row.holds);
        assert_eq!(row_of(Case::UdpRmw, &rounds).unwrap().stamped_per_second, 180.0);
        assert_eq!((row_of(Case::HttpEcho, &rounds), row_of(Case::HttpRmw, &[])), (None, None));
    }

    #[test]
    fn too_much_is_what_the_rounds_agree_on() {
        let of = |costs: [f64; 8]| row_of(Case::HttpRmw, &costs.map(|cost| round(100.0 - cost, 100.0))).unwrap();
        let more = of([3.0, 3.1, 2.9, 2.5, 3.3, 2.8, 1.0, 3.0]);
        assert!(!more.holds && more.cost_percent > 2.9 && (more.least_percent, more.most_percent) == (2.5, 3.1), "{more:?}");
        let shaken = of([3.0, 3.1, 2.9, 1.5, 3.3, 2.8, 1.0, 3.0]);
        assert!(shaken.holds && shaken.cost_percent > 2.0, "{shaken:?}");
        let text = stamps_table(&[more, shaken]);
        assert_eq!((text.lines().count(), text.matches("TOO MUCH").count()), (4, 1), "{text}");
    }

    #[test]
    fn a_row_is_the_object_that_is_promised() {
        let row = row_of(Case::HttpRmw, &[round(99.0, 100.0)]).unwrap();
        assert_eq!(
            row.to_json(),
            r#"{"name":"http_rmw","stamped_per_second":99.0,"unstamped_per_second":100.0,"cost_percent":1.0,"least_percent":1.0,"most_percent":1.0,"rounds":1,"holds":true}"#
        );
    }
}
