//! What was measured, as one JSON object a line and as tables. Formats only.

use serde::Serialize;
use std::fmt::Write as _;

/// How much was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A closed loop: as much as it takes.
    Saturation,
    /// An open loop at half of its own saturation.
    Half,
    /// At 70% of it.
    SeventyPercent,
    /// At a rate that is the same for all.
    Common,
}

impl Point {
    pub const ALL: [Point; 4] = [Point::Saturation, Point::Half, Point::SeventyPercent, Point::Common];

    /// What follows the case's name in a row's.
    const fn suffix(self) -> &'static str {
        match self {
            Point::Saturation => "",
            Point::Half => "_at_50_percent",
            Point::SeventyPercent => "_at_70_percent",
            Point::Common => "_at_common_rate",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Point::Saturation => "at saturation (closed loop)",
            Point::Half => "at 50% of its own saturation (open loop)",
            Point::SeventyPercent => "at 70% of its own saturation (open loop)",
            Point::Common => "at the same rate for all (open loop)",
        }
    }
}

/// One case at one load point. The fields' names and order are the JSON object's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerRow {
    pub name: String,
    pub requests_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// CPU time of the server's processes for each good answer, of the measured time alone.
    pub cpu_us_per_request: f64,
    pub rss_bytes: u64,
    /// The generator did not get its CPU, in three tries: less was offered than asked for, and the times are of less load.
    #[serde(skip)]
    pub arrivals_short: bool,
    #[serde(skip)]
    pub point: Point,
}

impl PeerRow {
    /// `name`: the case's.
    pub(super) fn named(mut self, name: &str) -> PeerRow {
        self.name = format!("{name}{}", self.point.suffix());
        self
    }

    /// One object, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }
}

/// A table for each load point that something was measured at.
pub fn peers_table(rows: &[PeerRow]) -> String {
    let mut text = String::new();
    for point in Point::ALL {
        let mut rows = rows.iter().filter(|row| row.point == point).peekable();
        if rows.peek().is_none() {
            continue;
        }
        writeln!(
            text,
            "{}\n{:<18}{:>12}{:>11}{:>11}{:>11}{:>16}{:>10}",
            point.title(),
            "name",
            "requests/s",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "us CPU/request",
            "RSS MiB"
        )
        .expect("a String takes all");
        for row in rows {
            let mark = if row.arrivals_short { "!" } else { "" };
            let name = format!("{}{mark}", row.name.strip_suffix(point.suffix()).unwrap_or(&row.name));
            let PeerRow { requests_per_second, p50_us, p99_us, p999_us, cpu_us_per_request, .. } = row;
            let rss_mib = row.rss_bytes as f64 / f64::from(1 << 20);
            writeln!(
                text,
                "{name:<18}{requests_per_second:>12.0}{p50_us:>11.0}{p99_us:>11.0}{p999_us:>11.0}{cpu_us_per_request:>16.2}{rss_mib:>10.1}"
            )
            .expect("a String takes all");
        }
        text.push('\n');
    }
    if rows.iter().any(|row| row.arrivals_short) {
        text += "! the generator did not get its CPU and offered less than was asked for: these times are of less load\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(point: Point) -> PeerRow {
        let row = PeerRow {
            name: String::new(),
            requests_per_second: 4_400.5,
            p50_us: 6_200.0,
            p99_us: 113_000.0,
            p999_us: 120_000.0,
            cpu_us_per_request: 227.0,
            rss_bytes: 100 << 20,
            arrivals_short: false,
            point,
        };
        row.named("workerd_rmw")
    }

    #[test]
    fn a_row_is_the_object_that_is_promised() {
        let json = row(Point::Saturation).to_json();
        assert_eq!(
            json,
            r#"{"name":"workerd_rmw","requests_per_second":4400.5,"p50_us":6200.0,"p99_us":113000.0,"p999_us":120000.0,"cpu_us_per_request":227.0,"rss_bytes":104857600}"#
        );
        assert!(row(Point::Half).to_json().starts_with(r#"{"name":"workerd_rmw_at_50_percent","#));
    }

    #[test]
    fn there_is_a_table_for_each_point_that_was_measured() {
        let text = peers_table(&[row(Point::Saturation), row(Point::Common)]);
        assert_eq!(text.lines().count(), 8);
        assert!(text.contains("workerd_rmw               4400       6200     113000     120000          227.00     100.0\n"), "{text}");
        assert!(!text.contains("50%") && !text.contains('!'));
        let text = peers_table(&[row(Point::Saturation), PeerRow { arrivals_short: true, ..row(Point::Common) }]);
        assert!(text.contains("workerd_rmw!              4400") && text.ends_with("these times are of less load\n"), "{text}");
    }
}
