//! The figures as JSON lines and as text. Formats only.

use super::PARTS;
use crate::generator::LoadOutcome;
use serde::Serialize;
use std::fmt::Write as _;

/// What one load came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadPoint {
    pub requests_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

impl LoadPoint {
    pub(super) fn of(outcome: &LoadOutcome) -> LoadPoint {
        let latency = outcome.latency;
        LoadPoint {
            requests_per_second: outcome.requests_per_second,
            p50_us: latency.p50_us,
            p99_us: latency.p99_us,
            p999_us: latency.p999_us,
        }
    }
}

/// One peer.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerRow {
    pub name: &'static str,
    /// At saturation: a closed loop.
    pub top: LoadPoint,
    /// Of all the peer's processes, at saturation.
    pub cpu_us_per_request: f64,
    pub rss_bytes: u64,
    /// At parts of its own saturation.
    pub parts: [LoadPoint; 2],
    /// At the rate that all are measured at.
    pub common: LoadPoint,
}

/// The JSON object: the fields' names and order.
#[derive(Serialize)]
struct AtSaturation {
    name: &'static str,
    requests_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    cpu_us_per_request: f64,
    rss_bytes: u64,
}

impl PeerRow {
    /// The row at saturation as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        let LoadPoint { requests_per_second, p50_us, p99_us, p999_us } = self.top;
        let cpu_us_per_request = (self.cpu_us_per_request * 1_000.0).round() / 1_000.0;
        let (name, rss_bytes) = (self.name, self.rss_bytes);
        let object = AtSaturation { name, requests_per_second, p50_us, p99_us, p999_us, cpu_us_per_request, rss_bytes };
        serde_json::to_string(&object).expect("numbers and names are always JSON")
    }

    pub(super) fn progress(&self) -> String {
        let LoadPoint { requests_per_second, p50_us, p99_us, .. } = self.top;
        format!("{}: {requests_per_second:.0}/s, p50 {p50_us:.0} us, p99 {p99_us:.0} us", self.name)
    }
}

/// Three tables: at saturation with what it costs, at parts of it, at the common rate.
pub fn peers_table(rows: &[PeerRow], common_per_second: f64) -> String {
    let mut text = String::new();
    let mut add = |line: String| writeln!(text, "{}", line.trim_end()).expect("a String takes all");
    let times = |point: &LoadPoint| format!("{:>12.1}{:>12.1}{:>12.1}", point.p50_us, point.p99_us, point.p999_us);
    let heads = format!("{:>12}{:>12}{:>12}", "p50 us", "p99 us", "p99.9 us");
    add(format!("{:<18}{:>12}{heads}{:>12}{:>10}", "at saturation", "requests/s", "us CPU/req", "RSS MiB"));
    for row in rows {
        let mib = row.rss_bytes as f64 / f64::from(1 << 20);
        let (top, cpu) = (&row.top, row.cpu_us_per_request);
        add(format!("{:<18}{:>12.0}{}{cpu:>12.2}{mib:>10.1}", row.name, top.requests_per_second, times(top)));
    }
    let percents = PARTS.map(|part| format!("at {:.0}% of its own", part * 100.0));
    for (part, title) in percents.iter().enumerate() {
        add(String::new());
        add(format!("{title:<18}{:>12}{heads}", "requests/s"));
        for row in rows {
            let point = &row.parts[part];
            add(format!("{:<18}{:>12.0}{}", row.name, point.requests_per_second, times(point)));
        }
    }
    add(String::new());
    add(format!("{:<18}{:>12}{heads}", format!("at {common_per_second:.0}/s"), "requests/s"));
    for row in rows {
        add(format!("{:<18}{:>12.0}{}", row.name, row.common.requests_per_second, times(&row.common)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_objects_have_exactly_the_promised_keys_in_order_and_the_table_all_loads() {
        let point = |rate| LoadPoint { requests_per_second: rate, p50_us: 100.5, p99_us: 900.0, p999_us: 1_500.0 };
        let row = PeerRow {
            name: "workerd_rmw",
            top: point(4_400.0),
            cpu_us_per_request: 220.125_4,
            rss_bytes: 52_428_800,
            parts: [point(2_200.0), point(3_080.0)],
            common: point(500.0),
        };
        assert_eq!(
            row.to_json(),
            r#"{"name":"workerd_rmw","requests_per_second":4400.0,"p50_us":100.5,"p99_us":900.0,"p999_us":1500.0,"cpu_us_per_request":220.125,"rss_bytes":52428800}"#
        );
        let text = peers_table(&[row.clone(), row], 500.0);
        assert_eq!(text.lines().count(), 15, "{text}");
        assert!(
            text.contains("at 50% of its own") && text.contains("at 70% of its own") && text.contains("at 500/s") && text.contains("50.0")
        );
    }
}
