//! The figures as JSON lines and as text. Formats only.

use super::{Mode, Room};
use serde::Serialize;
use std::fmt::Write as _;
use std::time::Duration;

/// Parts of the requests at which the table has the delay, in percent.
const PERCENTS: [usize; 6] = [10, 25, 50, 75, 90, 100];

/// One burst. The fields' names and order are the JSON object's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BurstRow {
    pub name: &'static str,
    pub function: &'static str,
    pub workers_max: u32,
    pub containers_max: u32,
    pub requests: usize,
    pub work_us: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub last_ms: f64,
    /// Sum of all delays.
    pub cumulative_ms: f64,
    /// How far the counter came; less than `requests` means lost updates.
    pub updates: f64,
    /// From the burst's begin to each reply, shortest first: the curve.
    pub delays_ms: Vec<f64>,
}

impl BurstRow {
    /// `delays_ms`: shortest first, at least one.
    pub fn new(mode: Mode, room: Room, work: Duration, delays_ms: Vec<f64>, updates: f64) -> BurstRow {
        let rounded = |value: f64| (value * 1_000.0).round() / 1_000.0;
        let delays_ms: Vec<f64> = delays_ms.into_iter().map(rounded).collect();
        BurstRow {
            name: "burst",
            function: mode.name(),
            workers_max: room.workers_max,
            containers_max: room.containers_max,
            requests: delays_ms.len(),
            work_us: work.as_micros() as u64,
            p50_ms: at_percent(&delays_ms, 50),
            p99_ms: at_percent(&delays_ms, 99),
            last_ms: at_percent(&delays_ms, 100),
            cumulative_ms: rounded(delays_ms.iter().sum()),
            updates,
            delays_ms,
        }
    }

    /// The row as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }
}

/// By nearest rank.
fn at_percent(delays_ms: &[f64], percent: usize) -> f64 {
    delays_ms[(delays_ms.len() * percent).div_ceil(100).max(1) - 1]
}

/// A line a burst: by when which part of the requests was answered.
pub fn bursts_table(rows: &[BurstRow]) -> String {
    let mut text = String::new();
    if let Some(first) = rows.first() {
        writeln!(
            text,
            "{} requests at once on one session, {} us of work each; ms until so many were answered",
            first.requests, first.work_us
        )
        .expect("a String takes all");
    }
    write!(text, "{:<12}{:>8}{:>11}", "function", "workers", "containers").expect("a String takes all");
    PERCENTS.iter().for_each(|percent| write!(text, "{:>9}", format!("{percent}%")).expect("a String takes all"));
    writeln!(text, "{:>12}{:>9}", "sum, s", "updates").expect("a String takes all");
    for row in rows {
        write!(text, "{:<12}{:>8}{:>11}", row.function, row.workers_max, row.containers_max).expect("a String takes all");
        for percent in PERCENTS {
            write!(text, "{:>9.1}", at_percent(&row.delays_ms, percent)).expect("a String takes all");
        }
        writeln!(text, "{:>12.3}{:>9}", row.cumulative_ms / 1_000.0, row.updates).expect("a String takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_curve_and_its_points() {
        let row = BurstRow::new(
            Mode::RmwLinear,
            Room { workers_max: 2, containers_max: 1 },
            Duration::from_micros(500),
            (1..=100).map(f64::from).collect(),
            100.0,
        );
        assert_eq!((row.p50_ms, row.p99_ms, row.last_ms, row.cumulative_ms), (50.0, 99.0, 100.0, 5_050.0));
        assert!(
            row.to_json()
                .starts_with(r#"{"name":"burst","function":"rmw_linear","workers_max":2,"containers_max":1,"requests":100,"work_us":500,"#)
        );
        let text = bursts_table(&[row]);
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().last().unwrap().ends_with("5.050      100"), "{text}");
    }
}
