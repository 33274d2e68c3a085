//! The figures as JSON lines and as text. Formats only.

use serde::Serialize;
use std::fmt::Write as _;

/// How much more a core of ours must make than one of wrk's.
const RATIO_MIN: f64 = 1.5;

/// One generator against one server. The fields' names and order are the JSON object's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RivalRow {
    pub server: &'static str,
    pub name: &'static str,
    /// Seen, with the server's core as the slower end where it is.
    pub requests_per_second: f64,
    /// Of the generator.
    pub cpu_us_per_request: f64,
    /// What a core that does nothing else could make.
    pub requests_per_second_a_core: f64,
}

impl RivalRow {
    pub fn new(server: &'static str, name: &'static str, requests_per_second: f64, cpu_us_per_request: f64) -> RivalRow {
        let rounded = |value: f64, parts: f64| (value * parts).round() / parts;
        RivalRow {
            server,
            name,
            requests_per_second: rounded(requests_per_second, 10.0),
            cpu_us_per_request: rounded(cpu_us_per_request, 1_000.0),
            requests_per_second_a_core: rounded(if cpu_us_per_request > 0.0 { 1e6 / cpu_us_per_request } else { 0.0 }, 10.0),
        }
    }

    /// The row as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }
}

/// What a core of ours makes beside one of wrk's, on the first server: the one that stands for what xfaas could be at best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub name: &'static str,
    /// One request on each connection, as wrk does it.
    pub ratio_a_core: f64,
    /// The same, at wrk's rate.
    pub ratio_at_wrks_rate: f64,
    /// With requests pipelined.
    pub ratio_pipelined: f64,
    pub ratio_min: f64,
    /// One of them reaches it, pipelining included.
    pub holds: bool,
    /// It is reached with one request on each connection.
    pub holds_unpipelined: bool,
}

impl Verdict {
    /// `rows`: the four of a server.
    pub fn of(rows: &[RivalRow]) -> Verdict {
        let ratio = |i: usize| {
            let ratio = rows[i].requests_per_second_a_core / rows[0].requests_per_second_a_core;
            (ratio * 1_000.0).round() / 1_000.0
        };
        let [ratio_a_core, ratio_at_wrks_rate, ratio_pipelined] = [1, 2, 3].map(ratio);
        Verdict {
            name: "verdict",
            ratio_a_core,
            ratio_at_wrks_rate,
            ratio_pipelined,
            ratio_min: RATIO_MIN,
            holds: ratio_a_core.max(ratio_pipelined) >= RATIO_MIN,
            holds_unpipelined: ratio_a_core >= RATIO_MIN,
        }
    }

    /// The verdict as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }
}

/// All rows and the verdict as text.
pub fn rival_table(servers: &[Vec<RivalRow>], verdict: &Verdict) -> String {
    let mut text = format!(
        "{:<8}{:<26}{:>12}{:>16}{:>20}{:>10}\n",
        "server", "generator", "requests/s", "us CPU/request", "requests/s a core", "of wrk"
    );
    for rows in servers {
        for row in rows {
            let ratio = row.requests_per_second_a_core / rows[0].requests_per_second_a_core;
            let RivalRow { server, name, requests_per_second, cpu_us_per_request, requests_per_second_a_core } = row;
            writeln!(
                text,
                "{server:<8}{name:<26}{requests_per_second:>12.0}{cpu_us_per_request:>16.2}{requests_per_second_a_core:>20.0}{ratio:>10.2}"
            )
            .expect("a String takes all");
        }
    }
    let Verdict { ratio_a_core, ratio_at_wrks_rate, ratio_pipelined, ratio_min, holds, holds_unpipelined, .. } = verdict;
    let said = |holds: bool| if holds { "holds" } else { "DOES NOT HOLD" };
    writeln!(
        text,
        "a core of xfaas-load makes {ratio_a_core:.2} of what one of wrk makes, {ratio_at_wrks_rate:.2} at wrk's rate, \
         {ratio_pipelined:.2} with requests pipelined\n{ratio_min} {} with one request on each connection, {} with pipelining allowed",
        said(*holds_unpipelined),
        said(*holds)
    )
    .expect("a String takes all");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_of_the_first_server() {
        let server = |name, wrk: f64, ours: f64, pipelined: f64| {
            let rows = [("wrk", wrk), ("xfaas_load", ours), ("xfaas_load_at_wrks_rate", wrk), ("xfaas_load_pipelined", pipelined)];
            rows.map(|(generator, cpu_us)| RivalRow::new(name, generator, 90_000.0, cpu_us)).to_vec()
        };
        let servers = [server("limit", 6.0, 3.0, 1.0), server("nginx", 6.0, 4.0, 2.0)];
        let verdict = Verdict::of(&servers[0]);
        assert_eq!((verdict.ratio_a_core, verdict.ratio_at_wrks_rate, verdict.ratio_pipelined), (2.0, 1.0, 6.0));
        assert!(verdict.holds && verdict.holds_unpipelined);
        let verdicts = [5.0, 2.0].map(|pipelined| Verdict::of(&server("nginx", 6.0, 5.0, pipelined)));
        assert_eq!(verdicts.map(|verdict| (verdict.holds, verdict.holds_unpipelined)), [(false, false), (true, false)]);
        let text = rival_table(&servers, &verdict);
        assert_eq!(text.lines().count(), 11);
        assert!(text.contains("2.00") && text.ends_with("holds with pipelining allowed\n"), "{text}");
        assert!(servers[0][1].to_json().starts_with(r#"{"server":"limit","name":"xfaas_load","requests_per_second":90000.0,"#));
    }
}
