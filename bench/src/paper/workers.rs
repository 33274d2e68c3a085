//! Fig. 2 and Fig. 11: many requests at once on one session, with more and more workers. What they measure is in `bursts`.

use super::figure::{Axis, Chart, Figure, Line, LineChart, Table};
use super::{PaperError, PaperSetup, count_of};
use crate::bursts::{BurstBench, BurstRow, Mode, measure_bursts, start_for_bursts};
use std::time::Duration;

/// What each request works for.
const WORK: Duration = Duration::from_micros(3_000);
/// Requests at once: some, and as many as in the burst of Fig. 11.
const FEW: u32 = 10;
const MANY: u32 = 100;
const METHOD: &str = "requests at once on one session of a node, each of which reads a number, works for 3 ms and writes the number plus 1: weakly (RMW) or \
     in a critical section (RMW_Linear). workers_max is 1, 2, 4 and 8 in one container on one core, and 1 and 4 in each of two containers on two cores. \
     Medians over the rounds, request by request. RMW_Linear must count every request, or the run fails.";

fn rows(setup: &PaperSetup<'_>, requests: u32) -> Result<Vec<BurstRow>, PaperError> {
    let PaperSetup { xfaas, server_cpu, second_cpu, rounds, interrupt, .. } = *setup;
    let bench = BurstBench { xfaas, server_cpu, second_cpu, requests, work: WORK, rounds, interrupt };
    let nodes = start_for_bursts(&bench)?;
    setup.at_load(|| Ok(measure_bursts(&bench, &nodes)?))
}

fn room(row: &BurstRow) -> String {
    match (row.containers_max, row.workers_max) {
        (1, 1) => "1 worker".to_owned(),
        (1, workers) => format!("{workers} workers"),
        (containers, workers) => format!("{containers} containers of {workers}"),
    }
}

fn mean_ms(row: &BurstRow) -> f64 {
    row.cumulative_ms / row.requests.max(1) as f64
}

/// What a session's workers change: mean delay, and the time until all are answered.
pub(super) fn fig2(setup: &PaperSetup<'_>) -> Result<Figure, PaperError> {
    Ok(fig2_of(&rows(setup, FEW)?))
}

fn fig2_of(rows: &[BurstRow]) -> Figure {
    let mut figure = Figure::new("fig2", "Fig. 2: workers in one session", &format!("{FEW} {METHOD}"));
    figure.table = Table::new(["access, room", "mean ms", "p50 ms", "last ms", "updates"]);
    for row in rows {
        let cells = [mean_ms(row), row.p50_ms, row.last_ms].map(|ms| format!("{ms:.2}"));
        let name = format!("{}, {}", row.function, room(row));
        figure.table.push([vec![name], cells.to_vec(), vec![format!("{:.0} of {}", row.updates, row.requests)]].concat());
    }
    let lines = |of: fn(&BurstRow) -> f64| {
        let containers = [(1, "one container"), (2, "two containers")];
        let cases = Mode::ALL.into_iter().flat_map(|mode| containers.map(|(count, name)| (mode, count, name)));
        let line = |(mode, count, name): (Mode, u32, &str)| {
            let of_case = rows.iter().filter(|row| row.function == mode.name() && row.containers_max == count);
            Line::marked(format!("{}, {name}", mode.name()), of_case.map(|row| (f64::from(row.workers_max), of(row))).collect())
        };
        cases.map(line).collect::<Vec<Line>>()
    };
    let chart = |title: &str, of| {
        let (x, y) = (Axis::log("workers of each container"), Axis::linear("ms"));
        Chart::Lines(LineChart { title: title.to_owned(), x, y, lines: lines(of) })
    };
    figure.charts = vec![chart("Mean delay of a request", mean_ms), chart("Until the last of them is answered", |row| row.last_ms)];
    figure.notes.push(
        "Workers of one container share its core, so they do not make the whole faster. They take turns, so a weak request waits less before it begins \
         and longer until its answer; only a second core makes the last answer come sooner, and a critical section is one at a time wherever it runs."
            .to_owned(),
    );
    figure
}

/// By when how many of a burst are answered.
pub(super) fn fig11(setup: &PaperSetup<'_>) -> Result<Figure, PaperError> {
    Ok(fig11_of(&rows(setup, count_of(setup, MANY, FEW))?))
}

fn fig11_of(rows: &[BurstRow]) -> Figure {
    let requests = rows.first().map_or(0, |row| row.requests);
    let mut figure = Figure::new("fig11", "Fig. 11: a burst on one session", &format!("{requests} {METHOD}"));
    figure.table = Table::new(["access, room", "25% ms", "50% ms", "75% ms", "last ms", "sum of delays s", "updates"]);
    for row in rows {
        let at = |percent: usize| row.delays_ms[(row.delays_ms.len() * percent).div_ceil(100).max(1) - 1];
        let cells = [25, 50, 75, 100].map(|percent| format!("{:.1}", at(percent)));
        let rest = vec![format!("{:.3}", row.cumulative_ms / 1_000.0), format!("{:.0} of {}", row.updates, row.requests)];
        figure.table.push([vec![format!("{}, {}", row.function, room(row))], cells.to_vec(), rest].concat());
    }
    figure.charts = Mode::ALL
        .into_iter()
        .map(|mode| {
            let of_mode = rows.iter().filter(|row| row.function == mode.name());
            let line = |row: &BurstRow| {
                let steps = row.delays_ms.iter().enumerate().flat_map(|(done, ms)| [(*ms, done as f64), (*ms, done as f64 + 1.0)]);
                Line::curve(room(row), std::iter::once((0.0, 0.0)).chain(steps).collect())
            };
            let (x, y) = (Axis::linear("ms since the burst began"), Axis::linear("requests answered"));
            Chart::Lines(LineChart { title: format!("{}: {requests} at once", mode.name()), x, y, lines: of_mode.map(line).collect() })
        })
        .collect();
    figure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bursts::Room;

    #[test]
    fn every_case_has_a_row_and_a_place_in_the_charts() {
        let row = |mode, workers_max, containers_max| {
            BurstRow::new(mode, Room { workers_max, containers_max }, WORK, (1..=4).map(f64::from).collect(), 4.0)
        };
        let rows: Vec<BurstRow> = Mode::ALL
            .into_iter()
            .flat_map(|mode| [(1, 1), (2, 1), (4, 2)].map(|(workers, containers)| row(mode, workers, containers)))
            .collect();
        let few = fig2_of(&rows);
        assert_eq!(few.table.rows.len(), 6);
        assert_eq!(few.table.rows[5], ["rmw_linear, 2 containers of 4", "2.50", "2.00", "4.00", "4 of 4"]);
        let Chart::Lines(chart) = &few.charts[0] else { panic!("lines") };
        assert_eq!(chart.lines.iter().map(|line| line.points.len()).collect::<Vec<_>>(), [2, 1, 2, 1]);
        let many = fig11_of(&rows);
        assert_eq!((many.table.rows.len(), many.charts.len()), (6, 2));
        let Chart::Lines(chart) = &many.charts[1] else { panic!("lines") };
        assert_eq!((chart.lines.len(), chart.lines[0].points.last()), (3, Some(&(4.0, 4.0))));
    }
}
