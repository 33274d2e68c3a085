//! What the binaries print: rows of figures as JSON lines or as a table.

use crate::load::Summary;
use crate::read_scaling::ReadScaling;
use serde::Serialize;
use std::fmt::Write as _;

/// One case of a benchmark. The fields' names and order are the JSON object's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Row {
    Load { name: &'static str, requests_per_second: f64, p50_us: f64, p99_us: f64, p999_us: f64, ratio_to_limit: f64 },
    Fork { name: &'static str, p50_us: f64, p99_us: f64 },
    Steer { name: &'static str, ns_per_packet: f64 },
    State { name: &'static str, p50_ns: f64, p99_ns: f64 },
    Scaling { name: &'static str, p50_ns: f64, p99_ns: f64, reads_per_second: f64 },
}

impl Row {
    /// `ratio_to_limit`: its rate in parts of the bare echo's.
    pub fn load(name: &'static str, summary: &Summary, ratio_to_limit: f64) -> Row {
        Row::Load {
            name,
            requests_per_second: rounded(summary.requests_per_second, 10.0),
            p50_us: rounded(summary.p50_us, 100.0),
            p99_us: rounded(summary.p99_us, 100.0),
            p999_us: rounded(summary.p999_us, 100.0),
            ratio_to_limit: rounded(ratio_to_limit, 10_000.0),
        }
    }

    pub fn fork(p50_us: f64, p99_us: f64) -> Row {
        Row::Fork { name: "fork", p50_us: rounded(p50_us, 1_000.0), p99_us: rounded(p99_us, 1_000.0) }
    }

    pub fn steer(name: &'static str, ns_per_packet: f64) -> Row {
        Row::Steer { name, ns_per_packet: rounded(ns_per_packet, 10.0) }
    }

    pub fn state(name: &'static str, p50_ns: f64, p99_ns: f64) -> Row {
        Row::State { name, p50_ns: rounded(p50_ns, 10.0), p99_ns: rounded(p99_ns, 10.0) }
    }

    pub fn scaling(case: &ReadScaling) -> Row {
        let ReadScaling { name, p50_ns, p99_ns, reads_per_s, .. } = *case;
        Row::Scaling { name, p50_ns: rounded(p50_ns, 10.0), p99_ns: rounded(p99_ns, 10.0), reads_per_second: rounded(reads_per_s, 10.0) }
    }

    /// The row as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

/// All rows as text with aligned columns; a column that a row has no figure for stays empty.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!("{:<18}{:>12}{:>11}{:>11}{:>11}{:>10}\n", "name", "requests/s", "p50 us", "p99 us", "p99.9 us", "of limit");
    let mut add = |name: &str, cells: [String; 5]| {
        let [rate, p50, p99, p999, ratio] = cells;
        let line = format!("{name:<18}{rate:>12}{p50:>11}{p99:>11}{p999:>11}{ratio:>10}");
        writeln!(text, "{}", line.trim_end()).expect("a String takes all");
    };
    for row in rows {
        match row {
            Row::Load { name, requests_per_second, p50_us, p99_us, p999_us, ratio_to_limit } => add(
                name,
                [
                    format!("{requests_per_second:.0}"),
                    format!("{p50_us:.1}"),
                    format!("{p99_us:.1}"),
                    format!("{p999_us:.1}"),
                    format!("{ratio_to_limit:.3}"),
                ],
            ),
            Row::Fork { name, p50_us, p99_us } => {
                add(name, [String::new(), format!("{p50_us:.2}"), format!("{p99_us:.2}"), String::new(), String::new()]);
            }
            Row::Steer { .. } | Row::State { .. } | Row::Scaling { .. } => {}
        }
    }
    text + &table_of_steering(rows)
}

/// The steering rows alone.
pub fn table_of_steering(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        if let Row::Steer { name, ns_per_packet } = row {
            writeln!(text, "{name:<24}{ns_per_packet:>9.1} ns a packet").expect("a String takes all");
        }
    }
    text
}

/// The middle value, or the mean of the two in the middle; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The median of each figure by itself; `None` of nothing.
pub fn median_summary(runs: &[Summary]) -> Option<Summary> {
    let of = |figure: fn(&Summary) -> f64| median(&runs.iter().map(figure).collect::<Vec<_>>());
    Some(Summary {
        requests_per_second: of(|run| run.requests_per_second)?,
        p50_us: of(|run| run.p50_us)?,
        p99_us: of(|run| run.p99_us)?,
        p999_us: of(|run| run.p999_us)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Summary = Summary { requests_per_second: 100_000.04, p50_us: 150.0, p99_us: 400.123, p999_us: 900.5 };

    #[test]
    fn json_objects_have_exactly_the_promised_keys_in_order() {
        assert_eq!(
            Row::load("http_rmw", &RUN, 0.8).to_json(),
            r#"{"name":"http_rmw","requests_per_second":100000.0,"p50_us":150.0,"p99_us":400.12,"p999_us":900.5,"ratio_to_limit":0.8}"#
        );
        assert_eq!(Row::fork(9.5, 14.25).to_json(), r#"{"name":"fork","p50_us":9.5,"p99_us":14.25}"#);
        assert_eq!(Row::steer("steer_udp", 61.04).to_json(), r#"{"name":"steer_udp","ns_per_packet":61.0}"#);
        assert_eq!(Row::state("rpc/read", 9_120.04, 15_000.0).to_json(), r#"{"name":"rpc/read","p50_ns":9120.0,"p99_ns":15000.0}"#);
    }

    #[test]
    fn the_table_has_a_line_for_each_row() {
        let text = table(&[Row::load("nginx", &RUN, 1.0), Row::fork(9.5, 14.25), Row::steer("steer_udp", 61.0)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("nginx") && lines[1].ends_with("1.000"), "{text}");
        assert!(lines[3].ends_with("61.0 ns a packet"), "{text}");
    }

    #[test]
    fn medians_are_taken_figure_by_figure() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let slow = Summary { requests_per_second: 1.0, p50_us: 900.0, ..RUN };
        let median = median_summary(&[RUN, slow, RUN]).unwrap();
        assert_eq!((median.requests_per_second, median.p50_us), (RUN.requests_per_second, RUN.p50_us));
    }
}
