//! Counters and histograms as text for Prometheus, and as JSON for `xfaas stats`. Called by `admin.rs`; only encodes, reads nothing itself.
//!
//! Written by hand: the samples are fields of the shards, not handles of a registry, and the well-kept encoders write OpenMetrics 1.0 only, where
//! a plain-text reader takes every counter for untyped. Source: Prometheus exposition formats, text format 0.0.4.

use super::api::{Histogram, MetricSample};
use super::shards::{CounterSample, HistogramSample, MetricKind, SteeringReport};
use std::collections::BTreeMap;
use std::fmt::Write;

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Requests answered, by `function` and `outcome`; from the shards.
pub const REQUESTS_TOTAL: &str = "xfaas_requests_total";
/// From the request's arrival to its reply, by `function`; from the shards.
pub const REQUEST_DURATION_SECONDS: &str = "xfaas_request_duration_seconds";
/// Datagrams that the kernel programs dropped without an answer, by `reason`; those of user space are `xfaas_datagrams_dropped_total`.
pub const DROPS_TOTAL: &str = "xfaas_drops_total";
/// How long each shard's thread was on its CPU or waited for it, by `shard`; absent where the kernel does not say.
pub const SHARD_BUSY_SECONDS_TOTAL: &str = "xfaas_shard_busy_seconds_total";
/// What the kernel programs decided, by `verdict`.
pub const STEERING_VERDICTS_TOTAL: &str = "xfaas_steering_verdicts_total";

const DROPS_HELP: &str =
    "Datagrams dropped by the kernel programs without an answer, by reason; those of user space: xfaas_datagrams_dropped_total";

/// Everything one answer of `/metrics` or `/v1/stats` is made of.
pub(super) struct Samples {
    pub counters: Vec<CounterSample>,
    pub histograms: Vec<HistogramSample>,
}

impl Samples {
    /// Adds what the kernel programs counted. `xfaas_steering_up` is 0 when that cannot be read.
    pub fn add_steering(&mut self, report: &Result<SteeringReport, String>) {
        let up = if report.is_ok() { 1.0 } else { 0.0 };
        self.gauge("xfaas_steering_up", "1 if the steering counters can be read", vec![], up);
        let Ok(report) = report else { return };
        self.gauge("xfaas_steering_info", "The steering mode, as a label", vec![("mode", report.mode.clone())], 1.0);
        for (verdict, count) in &report.verdicts {
            self.counters.push(CounterSample {
                name: STEERING_VERDICTS_TOTAL,
                help: "Packets by what the kernel programs decided",
                kind: MetricKind::Counter,
                labels: vec![("verdict", (*verdict).to_owned())],
                value: *count as f64,
            });
        }
        for (reason, count) in &report.drops {
            self.counters.push(CounterSample {
                name: DROPS_TOTAL,
                help: DROPS_HELP,
                kind: MetricKind::Counter,
                labels: vec![("place", "kernel".to_owned()), ("reason", (*reason).to_owned())],
                value: *count as f64,
            });
        }
    }

    /// Adds what `Shards::busy_ns` says.
    pub fn add_busy(&mut self, busy_ns: &[u64]) {
        let sample = |(shard, busy_ns): (usize, &u64)| CounterSample {
            name: SHARD_BUSY_SECONDS_TOTAL,
            help: "Time for which the shard's thread was on its CPU or waited for it",
            kind: MetricKind::Counter,
            labels: vec![("shard", shard.to_string())],
            value: *busy_ns as f64 / 1e9,
        };
        self.counters.extend(busy_ns.iter().enumerate().map(sample));
    }

    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: Vec<(&'static str, String)>, value: f64) {
        self.counters.push(CounterSample { name, help, kind: MetricKind::Gauge, labels, value });
    }

    /// The text of `/metrics`: families by name, each with one HELP and one TYPE line.
    pub fn to_text(&self) -> String {
        let mut counters: BTreeMap<&str, Vec<&CounterSample>> = BTreeMap::new();
        for sample in &self.counters {
            counters.entry(sample.name).or_default().push(sample);
        }
        let mut histograms: BTreeMap<&str, Vec<&HistogramSample>> = BTreeMap::new();
        for sample in &self.histograms {
            histograms.entry(sample.name).or_default().push(sample);
        }
        let mut text = String::with_capacity(128 * (self.counters.len() + 16 * self.histograms.len()));
        for (name, samples) in counters {
            let kind = match samples[0].kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
            };
            head(&mut text, name, samples[0].help, kind);
            for sample in samples {
                line(&mut text, name, "", &sample.labels, None, sample.value);
            }
        }
        for (name, samples) in histograms {
            head(&mut text, name, samples[0].help, "histogram");
            for sample in samples {
                histogram_lines(&mut text, sample);
            }
        }
        text
    }

    /// The same for `/v1/stats`.
    pub fn to_json(&self) -> Vec<MetricSample> {
        let owned = |labels: &[(&'static str, String)]| labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let counters = self.counters.iter().map(|sample| MetricSample {
            name: sample.name.to_owned(),
            labels: owned(&sample.labels),
            value: Some(sample.value),
            histogram: None,
        });
        let histograms = self.histograms.iter().map(|sample| MetricSample {
            name: sample.name.to_owned(),
            labels: owned(&sample.labels),
            value: None,
            histogram: Some(Histogram {
                count: sample.count,
                sum_seconds: sample.sum_seconds,
                buckets: sample.bounds_seconds.iter().copied().zip(sample.counts.iter().copied()).collect(),
            }),
        });
        counters.chain(histograms).collect()
    }
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    let help = help.replace('\\', "\\\\").replace('\n', "\\n");
    write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n").expect("a String takes all text");
}

fn histogram_lines(text: &mut String, sample: &HistogramSample) {
    assert_eq!(sample.bounds_seconds.len(), sample.counts.len(), "one cumulative count a bound");
    for (bound, count) in sample.bounds_seconds.iter().zip(&sample.counts) {
        line(text, sample.name, "_bucket", &sample.labels, Some(&bound.to_string()), *count as f64);
    }
    line(text, sample.name, "_bucket", &sample.labels, Some("+Inf"), sample.count as f64);
    line(text, sample.name, "_sum", &sample.labels, None, sample.sum_seconds);
    line(text, sample.name, "_count", &sample.labels, None, sample.count as f64);
}

fn line(text: &mut String, name: &str, suffix: &str, labels: &[(&'static str, String)], le: Option<&str>, value: f64) {
    text.push_str(name);
    text.push_str(suffix);
    let all = labels.iter().map(|(key, value)| (*key, value.as_str())).chain(le.map(|bound| ("le", bound)));
    let mut separator = '{';
    for (key, value) in all {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        write!(text, "{separator}{key}=\"{value}\"").expect("a String takes all text");
        separator = ',';
    }
    if separator == ',' {
        text.push('}');
    }
    writeln!(text, " {value}").expect("a String takes all text");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Shards;
    use crate::control::testing::FakeShards;

    fn samples() -> Samples {
        let shards = FakeShards::default();
        Samples { counters: shards.counters(), histograms: shards.histograms() }
    }

    #[test]
    fn families_are_together_with_one_head_each() {
        let mut samples = samples();
        samples.add_steering(&Ok(SteeringReport {
            mode: "xdp (native) on veth0".to_owned(),
            verdicts: vec![("udp_local", 12)],
            drops: vec![("bad_magic", 1)],
        }));
        let expected = r#"# HELP xfaas_drops_total Datagrams dropped by the kernel programs without an answer, by reason; those of user space: xfaas_datagrams_dropped_total
# TYPE xfaas_drops_total counter
xfaas_drops_total{place="kernel",reason="bad_magic"} 1
# HELP xfaas_requests_total Requests answered
# TYPE xfaas_requests_total counter
xfaas_requests_total{function="echo",outcome="ok",shard="0"} 3
xfaas_requests_total{function="echo",outcome="ok",shard="1"} 4
# HELP xfaas_sessions Sessions with state
# TYPE xfaas_sessions gauge
xfaas_sessions{shard="0"} 5
# HELP xfaas_steering_info The steering mode, as a label
# TYPE xfaas_steering_info gauge
xfaas_steering_info{mode="xdp (native) on veth0"} 1
# HELP xfaas_steering_up 1 if the steering counters can be read
# TYPE xfaas_steering_up gauge
xfaas_steering_up 1
# HELP xfaas_steering_verdicts_total Packets by what the kernel programs decided
# TYPE xfaas_steering_verdicts_total counter
xfaas_steering_verdicts_total{verdict="udp_local"} 12
# HELP xfaas_request_duration_seconds From the request's last byte to its reply
# TYPE xfaas_request_duration_seconds histogram
xfaas_request_duration_seconds_bucket{function="echo",le="0.0001"} 5
xfaas_request_duration_seconds_bucket{function="echo",le="0.001"} 7
xfaas_request_duration_seconds_bucket{function="echo",le="+Inf"} 7
xfaas_request_duration_seconds_sum{function="echo"} 0.25
xfaas_request_duration_seconds_count{function="echo"} 7
"#;
        assert_eq!(samples.to_text(), expected);
    }

    #[test]
    fn labels_are_escaped_and_a_sample_may_have_none() {
        let mut samples = Samples { counters: vec![], histograms: vec![] };
        samples.gauge("xfaas_a", "two\nlines", vec![("x", "a\"b\\c\nd".to_owned())], 0.5);
        samples.gauge("xfaas_b", "", vec![], 3e9);
        let text = samples.to_text();
        assert!(text.contains("# HELP xfaas_a two\\nlines\n"), "{text}");
        assert!(text.contains(r#"xfaas_a{x="a\"b\\c\nd"} 0.5"#), "{text}");
        assert!(text.contains("xfaas_b 3000000000\n"), "{text}");
    }

    #[test]
    fn busy_shards_are_counted_where_the_kernel_says() {
        let mut samples = Samples { counters: vec![], histograms: vec![] };
        samples.add_busy(&[]);
        assert_eq!(samples.to_text(), "");
        samples.add_busy(&[1_500_000_000, 0]);
        let text = samples.to_text();
        assert!(text.contains("# TYPE xfaas_shard_busy_seconds_total counter\n"), "{text}");
        assert!(text.contains("xfaas_shard_busy_seconds_total{shard=\"0\"} 1.5\n"), "{text}");
    }

    #[test]
    fn unreadable_steering_is_a_metric_and_not_an_error() {
        let mut samples = Samples { counters: vec![], histograms: vec![] };
        samples.add_steering(&Err("no map".to_owned()));
        assert!(samples.to_text().contains("xfaas_steering_up 0\n"));
    }

    #[test]
    fn json_carries_every_sample() {
        let json = samples().to_json();
        assert_eq!(json.len(), 4);
        assert_eq!(json[0].labels["function"], "echo");
        assert_eq!(json[3].histogram.as_ref().unwrap().buckets, [(0.000_1, 5), (0.001, 7)]);
    }
}
