//! What a run came to, as one JSON document and as text. Formats only.

use super::spec::{GeneratorError, LoadSpec, Transport};
use super::tally::{FunctionTally, Tally};
use super::truth::CounterVerdict;
use crate::settings::chain;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Less of the arrivals that were asked for than this came: the run is of another load.
const ARRIVED_PART_MIN: f64 = 0.95;
/// Arrivals that differ by less are not told.
const ARRIVED_DIFFERENCE_TOLD: f64 = 0.01;

/// Times in us from when each request was due to its good answer, or to when it was given up or the run ended, which is the least that it
/// takes: of an open loop's requests that were due in the measured time, of a closed loop's that were under way in it. Null without any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    pub mean_us: Option<f64>,
    pub p50_us: Option<f64>,
    pub p90_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    pub max_us: Option<f64>,
}

/// Of one function.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FunctionOutcome {
    pub name: String,
    pub weight: u32,
    pub good: u64,
    pub refused: u64,
    pub failed: u64,
    pub wrong: u64,
    pub unsure: u64,
    #[serde(flatten)]
    pub latency: Latency,
}

/// A whole run. The fields' names and order are the JSON object's. Counts are of the whole run, rates and times of the measured time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadOutcome {
    pub target: String,
    pub transport: &'static str,
    pub arrivals: &'static str,
    /// Asked for; null in a closed loop.
    pub offered_per_second: Option<f64>,
    /// What was due in the measured time, sent or not: less than asked for where arrivals paused since the generator did not get its CPU, and
    /// more or less by chance. Null in a closed loop, and without a measured time.
    pub arrived_per_second: Option<f64>,
    /// They paused for more than a twentieth of the measured time.
    pub arrivals_short: bool,
    pub connections: usize,
    pub threads: usize,
    pub sessions: usize,
    pub popularity: &'static str,
    pub measured_s: f64,
    /// Good answers a second.
    pub requests_per_second: f64,
    pub refused_per_second: f64,
    #[serde(flatten)]
    pub latency: Latency,
    pub sent: u64,
    pub good: u64,
    /// 503 and 429.
    pub refused: u64,
    /// Other statuses than those and 2xx.
    pub failed: u64,
    /// Answers that break a rule.
    pub wrong: u64,
    /// Requests without an answer: in the times with what they had waited when they were given up.
    pub unsure: u64,
    /// Of those: the connection ended. They are not in the times.
    pub cut: u64,
    /// Due and never sent, since all connections were taken; in the times with what they had waited in the end.
    pub unsent: u64,
    pub late_answers: u64,
    pub strays: u64,
    pub reconnects: u64,
    pub statuses: BTreeMap<u16, u64>,
    /// From when a request was due to when it left; null in a closed loop, and if none was due in the measured time.
    pub send_delay_p99_us: Option<f64>,
    /// Good answers that are not in the times: the generator's thread was off its CPU for more than an eighth of theirs before it found them.
    pub disturbed: u64,
    /// They are, since they are more than the others: the generator had too little CPU to measure with.
    pub times_have_disturbed: bool,
    /// ms that the generator's threads waited for their CPUs, and the longest of them.
    pub off_cpu_ms: f64,
    pub off_cpu_max_ms: f64,
    /// Of the generator's threads: CPU time for each answer, and the part of it in which there was something to do.
    pub cpu_us_per_request: f64,
    pub busy_us_per_request: f64,
    pub functions: Vec<FunctionOutcome>,
    pub counters: Option<CounterVerdict>,
    pub interrupted: bool,
    pub first_fault: Option<String>,
    /// Why the run ended early.
    pub error: Option<String>,
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

/// A time of a table.
pub(crate) fn us_or_dash(us: Option<f64>, digits: usize) -> String {
    us.map_or("-".to_owned(), |us| format!("{us:.digits$}"))
}

/// Of requests a second: whole ones, and of few also what is behind the point.
fn per_second(rate: f64) -> String {
    if rate < 10.0 { format!("{}", rounded(rate, 1_000.0)) } else { format!("{rate:.0}") }
}

fn ratio(value: f64, by: f64) -> f64 {
    if by > 0.0 { value / by } else { 0.0 }
}

/// Without the answers that came while the generator was off its CPU, unless those are more than the others: then too little would be left to tell.
fn latency(of: &FunctionTally) -> Latency {
    let mut histogram = of.latency_ns.clone();
    if of.disturbed_ns.len() > of.latency_ns.len() {
        histogram.add(&of.disturbed_ns).expect("the same bounds");
    }
    if histogram.is_empty() {
        return Latency::default();
    }
    let us = |ns: f64| Some(rounded(ns / 1_000.0, 100.0));
    let at = |quantile| us(histogram.value_at_quantile(quantile) as f64);
    Latency {
        mean_us: us(histogram.mean()),
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: us(histogram.max() as f64),
    }
}

impl LoadOutcome {
    pub(super) fn new(
        spec: &LoadSpec,
        tally: Tally,
        counters: Option<CounterVerdict>,
        interrupted: bool,
        ended: Option<GeneratorError>,
    ) -> LoadOutcome {
        let whole = tally.whole();
        let (offered, arriving_ns) = (spec.arrivals.per_second(), tally.arriving_ns as f64);
        let (seconds, answers) = (tally.measured_ns as f64 / 1e9, whole.answers() as f64);
        let functions = spec.functions.iter().zip(&tally.functions).map(|(function, tally)| FunctionOutcome {
            name: function.name.clone(),
            weight: function.weight,
            good: tally.good,
            refused: tally.refused,
            failed: tally.failed,
            wrong: tally.wrong,
            unsure: tally.unsure,
            latency: latency(tally),
        });
        LoadOutcome {
            target: spec.target.to_string(),
            transport: match spec.transport {
                Transport::Http => "http",
                Transport::Redis => "redis",
                Transport::Datagram => "udp",
            },
            arrivals: spec.arrivals.name(),
            offered_per_second: offered,
            arrived_per_second: offered
                .filter(|_| tally.arriving_ns > 0)
                .map(|_| rounded(tally.arrived as f64 / (arriving_ns / 1e9), 10.0)),
            // By the pauses and not by the count, which chance changes as much in a short run.
            arrivals_short: offered.is_some() && ratio(tally.paused_ns as f64, arriving_ns * spec.threads as f64) > 1.0 - ARRIVED_PART_MIN,
            connections: spec.connections,
            threads: spec.threads,
            sessions: spec.sessions,
            popularity: spec.popularity.name(),
            measured_s: rounded(seconds, 1_000.0),
            requests_per_second: rounded(ratio(tally.good_in_time as f64, seconds), 10.0),
            refused_per_second: rounded(ratio(tally.refused_in_time as f64, seconds), 10.0),
            latency: latency(&whole),
            sent: tally.sent,
            good: whole.good,
            refused: whole.refused,
            failed: whole.failed,
            wrong: whole.wrong,
            unsure: whole.unsure,
            cut: tally.cut,
            unsent: tally.unsent,
            late_answers: tally.late_answers,
            strays: tally.strays,
            reconnects: tally.reconnects,
            statuses: tally.statuses,
            send_delay_p99_us: offered
                .filter(|_| !tally.send_delay_ns.is_empty())
                .map(|_| rounded(tally.send_delay_ns.value_at_quantile(0.99) as f64 / 1_000.0, 100.0)),
            disturbed: whole.disturbed_ns.len(),
            times_have_disturbed: whole.disturbed_ns.len() > whole.latency_ns.len(),
            off_cpu_ms: rounded(tally.off_cpu_ns as f64 / 1e6, 1_000.0),
            off_cpu_max_ms: rounded(tally.off_cpu_ns_max as f64 / 1e6, 1_000.0),
            cpu_us_per_request: rounded(ratio(tally.cpu_ns as f64 / 1_000.0, answers), 1_000.0),
            busy_us_per_request: rounded(ratio(tally.busy_ns as f64 / 1_000.0, answers), 1_000.0),
            functions: functions.collect(),
            counters,
            interrupted,
            first_fault: tally.first_fault,
            error: ended.map(|error| chain(&error)),
        }
    }

    /// What makes the run a failure; `None` of a good one. Refusals are answers, and datagrams may be lost.
    pub fn fault(&self) -> Option<String> {
        let first = self.first_fault.as_deref().map_or(String::new(), |first| format!("; the first: {first}"));
        let counters = self.counters.clone().unwrap_or_default();
        if let Some(error) = &self.error {
            return Some(format!("{error}{first}"));
        }
        if counters.lost_updates + counters.doubled_updates > 0 {
            let CounterVerdict { lost_updates, doubled_updates, first_fault, .. } = counters;
            let session = first_fault.unwrap_or_default();
            return Some(format!("{lost_updates} updates were lost and {doubled_updates} doubled; {session}"));
        }
        if self.failed + self.wrong + self.strays > 0 {
            let (failed, wrong, strays) = (self.failed, self.wrong, self.strays);
            return Some(format!("{failed} requests failed, {wrong} answers were wrong and {strays} answered nothing{first}"));
        }
        if self.cut > 0 || (self.transport != "udp" && self.unsure > 0) {
            return Some(format!("{} requests got no answer, {} of them because the connection ended", self.unsure, self.cut));
        }
        (self.good == 0 && !self.interrupted).then(|| format!("nothing was answered well{first}"))
    }

    /// Why there are no times, if there are none. An interrupted run says that by itself.
    pub fn nothing_measured(&self) -> Option<String> {
        if self.latency.p50_us.is_some() || self.interrupted {
            return None;
        }
        let why = if self.measured_s > 0.0 {
            "no request that was due after the warm-up was answered well"
        } else {
            "the run ended within its warm-up"
        };
        Some(format!("nothing was measured: {why}"))
    }

    /// One document, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }

    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text += &line;
            text.push('\n');
        };
        let offered = self
            .offered_per_second
            .map_or("closed loop".to_owned(), |rate| format!("{} arrivals, {} offered/s", self.arrivals, per_second(rate)));
        line(format!(
            "{}://{}  {offered}, {} connections, {} sessions ({}), {} threads, {:.1} s measured",
            self.transport, self.target, self.connections, self.sessions, self.popularity, self.threads, self.measured_s
        ));
        line(format!(
            "{:<24}{:>10}{:>9}{:>8}{:>8}{:>8}{:>11}{:>11}{:>11}{:>11}{:>11}",
            "function", "good", "refused", "failed", "wrong", "unsure", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us"
        ));
        let whole = FunctionOutcome {
            name: "all".to_owned(),
            weight: 0,
            good: self.good,
            refused: self.refused,
            failed: self.failed,
            wrong: self.wrong,
            unsure: self.unsure,
            latency: self.latency,
        };
        let rows = if self.functions.len() > 1 { [&self.functions[..], &[whole]].concat() } else { self.functions.clone() };
        for row in &rows {
            let Latency { p50_us, p90_us, p99_us, p999_us, max_us, .. } = row.latency;
            let counts = format!("{:<24}{:>10}{:>9}{:>8}{:>8}{:>8}", row.name, row.good, row.refused, row.failed, row.wrong, row.unsure);
            let times = [p50_us, p90_us, p99_us, p999_us, max_us].map(|us| format!("{:>11}", us_or_dash(us, 1)));
            line(counts + &times.concat());
        }
        match self.nothing_measured() {
            Some(why) => line(why),
            None => line(format!("{} good/s, {} refused/s", per_second(self.requests_per_second), per_second(self.refused_per_second))),
        }
        self.notes(&mut text);
        text
    }

    fn notes(&self, text: &mut String) {
        let mut line = |line: String| writeln!(text, "{line}").expect("a String takes all");
        if let (Some(offered), Some(arrived)) = (self.offered_per_second, self.arrived_per_second) {
            if (arrived / offered - 1.0).abs() > ARRIVED_DIFFERENCE_TOLD {
                line(format!("{} requests/s were due, and {}/s asked for", per_second(arrived), per_second(offered)));
            }
            if self.arrivals_short {
                line("WARNING: the generator did not get its CPU and offered too little: give it a CPU of its own".to_owned());
            }
        }
        if let Some(delay_us) = self.send_delay_p99_us {
            line(format!("requests left p99 {delay_us:.1} us after they were due; {} never left", self.unsent));
        }
        if let Some(counters) = &self.counters {
            let how = if counters.was_read { "read in the end" } else { "by their answers" };
            line(format!(
                "counters ({how}): {} sessions, {} acknowledged, {} unsure, {} lost, {} doubled",
                counters.sessions, counters.acknowledged, counters.unsure, counters.lost_updates, counters.doubled_updates
            ));
        }
        if !self.statuses.is_empty() {
            let statuses: Vec<String> = self.statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
            line(format!("statuses besides 2xx: {}", statuses.join(", ")));
        }
        if self.reconnects + self.late_answers + self.cut > 0 {
            line(format!("{} reconnects, {} requests cut, {} late answers", self.reconnects, self.cut, self.late_answers));
        }
        line(format!(
            "the generator: {:.2} us CPU a request, {:.2} us of it with something to do",
            self.cpu_us_per_request, self.busy_us_per_request
        ));
        if self.off_cpu_ms > 0.0 {
            line(format!(
                "the generator stood still for {:.1} ms, at most {:.1} ms at once; {} answers of then are {}",
                self.off_cpu_ms,
                self.off_cpu_max_ms,
                self.disturbed,
                if self.times_have_disturbed {
                    "most of all, so the times have them: give it a CPU of its own"
                } else {
                    "not in the times"
                }
            ));
        }
        if self.interrupted {
            line("interrupted: these are the results so far".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arrivals::Arrivals;
    use super::*;
    use std::time::Duration;

    /// Of two threads that were asked for 1,000 requests a second together and measured for 1 s.
    fn outcome(fill: impl FnOnce(&mut Tally)) -> LoadOutcome {
        let mut spec = LoadSpec::new(([127, 0, 0, 1], 1).into(), Transport::Http, "p".to_owned());
        spec.functions.push("x".parse().unwrap());
        (spec.arrivals, spec.threads, spec.measured) = (Arrivals::Poisson { per_second: 1_000.0 }, 2, Duration::from_secs(1));
        let mut tally = Tally::new(1);
        (tally.measured_ns, tally.arriving_ns, tally.arrived, tally.functions[0].good) = (1_000_000_000, 1_000_000_000, 1_000, 5);
        tally.functions[0].latency_ns.record(2_000_000).unwrap();
        fill(&mut tally);
        LoadOutcome::new(&spec, tally, None, false, None)
    }

    #[test]
    fn what_arrived_is_told_beside_what_was_asked_for() {
        let usual = outcome(|tally| tally.arrived = 995);
        assert_eq!((usual.offered_per_second, usual.arrived_per_second, usual.arrivals_short), (Some(1_000.0), Some(995.0), false));
        assert!(!usual.to_text().contains("were due") && !usual.to_text().contains("WARNING"), "{}", usual.to_text());
        // By chance, and since the threads stood still.
        let fewer = outcome(|tally| (tally.arrived, tally.paused_ns) = (930, 90_000_000));
        assert!(fewer.to_text().contains("930 requests/s were due, and 1000/s asked for") && !fewer.arrivals_short);
        let short = outcome(|tally| (tally.arrived, tally.paused_ns) = (600, 800_000_000));
        assert!(short.arrivals_short && short.to_text().contains("WARNING: the generator did not get its CPU"), "{}", short.to_text());
        let json: serde_json::Value = serde_json::from_str(&short.to_json()).unwrap();
        assert_eq!((json["arrived_per_second"].as_f64(), json["arrivals_short"].as_bool()), (Some(600.0), Some(true)));
    }

    #[test]
    fn a_low_rate_is_no_rate_of_0() {
        assert_eq!([0.1, 0.25, 0.0, 9.5, 50_000.4].map(per_second), ["0.1", "0.25", "0", "9.5", "50000"]);
    }

    #[test]
    fn without_a_measured_request_there_are_no_times_and_it_is_told() {
        assert_eq!(outcome(|_| ()).nothing_measured(), None);
        let nothing = outcome(|tally| {
            (tally.measured_ns, tally.arriving_ns, tally.arrived) = (0, 0, 0);
            tally.functions[0].latency_ns.reset();
        });
        assert!(nothing.nothing_measured().unwrap().contains("within its warm-up"));
        assert_eq!(nothing.fault(), None);
        let json: serde_json::Value = serde_json::from_str(&nothing.to_json()).unwrap();
        for field in ["mean_us", "p50_us", "p90_us", "p99_us", "p999_us", "max_us", "send_delay_p99_us", "arrived_per_second"] {
            assert!(json.get(field).is_some_and(serde_json::Value::is_null), "{field} of {json}");
        }
        assert!(json["functions"][0]["p99_us"].is_null(), "{json}");
        let text = nothing.to_text();
        assert!(text.contains("          -          -\n") && text.contains("nothing was measured") && !text.contains("good/s"), "{text}");
        let late = outcome(|tally| tally.functions[0].latency_ns.reset());
        assert!(late.nothing_measured().unwrap().contains("due after the warm-up"));
    }
}
