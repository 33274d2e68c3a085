//! Replies of the admin API as text for people.

use crate::control::{
    AliasInfo, AliasesReply, Check, FunctionInfo, FunctionSource, FunctionsReply, Histogram, MetricSample, REQUEST_DURATION_SECONDS,
    REQUESTS_TOTAL, SessionsReply, StatsReply, Verdict,
};
use crate::worker::{Durability, FunctionManifest, KeepAliveRule};
use std::collections::BTreeMap;
use std::fmt::Write;
use xfaas_common::limits::CONTAINERS_MAX_DEFAULT;

/// Columns under their names: numbers flush right, text flush left.
pub(super) fn table(names: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).chain([names[column].len()]).max().unwrap_or(0);
    let is_number = |column: usize| rows.iter().all(|row| row[column].starts_with(|c: char| c.is_ascii_digit()));
    let columns: Vec<(usize, bool)> = (0..names.len()).map(|column| (width(column), is_number(column))).collect();
    let mut text = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for ((width, is_number), cell) in columns.iter().zip(cells) {
            let cell = if *is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            line.push_str(&cell);
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    push(&mut names.iter().copied());
    for row in rows {
        push(&mut row.iter().map(String::as_str));
    }
    text
}

pub(super) fn aliases(reply: &AliasesReply) -> String {
    if reply.aliases.is_empty() {
        return "no aliases: add one with `xfaas sessions map KEY SESSION`\n".to_owned();
    }
    let row = |alias: &AliasInfo| vec![alias.app.clone().unwrap_or_else(|| "(every)".to_owned()), alias.key.clone(), alias.session.clone()];
    table(&["APP", "KEY", "SESSION"], &reply.aliases.iter().map(row).collect::<Vec<_>>())
}

pub(super) fn functions(reply: &FunctionsReply) -> String {
    if reply.functions.is_empty() {
        return "no functions: deploy one with `xfaas deploy NAME FILE`\n".to_owned();
    }
    let row = |info: &FunctionInfo| {
        let manifest = &info.manifest;
        let flags = flags(manifest);
        let source = match info.source {
            FunctionSource::Configuration => "configuration",
            FunctionSource::Deployment => "deployment",
            FunctionSource::Primary => "primary",
        };
        vec![
            manifest.name.clone(),
            manifest.app.clone(),
            info.generation.to_string(),
            source.to_owned(),
            manifest.deadline_ms.to_string(),
            manifest.memory_mib.to_string(),
            manifest.workers_max.to_string(),
            manifest.state_mib.to_string(),
            if flags.is_empty() { "-".to_owned() } else { flags.join(",") },
            info.fault.clone().unwrap_or_else(|| "runs".to_owned()),
        ]
    };
    let names = ["NAME", "APP", "GENERATION", "FROM", "DEADLINE_MS", "MEMORY_MIB", "WORKERS_MAX", "STATE_MIB", "FLAGS", "STATUS"];
    table(&names, &reply.functions.iter().map(row).collect::<Vec<_>>())
}

/// What a function was deployed with that has no column of its own: only what is not the default.
fn flags(manifest: &FunctionManifest) -> Vec<String> {
    let rules = &manifest.rules;
    let switches = [
        ("read-only", manifest.read_only),
        ("atomic", manifest.atomic),
        ("idempotent", manifest.idempotent),
        ("fresh", manifest.fresh),
        ("read-sessions", manifest.read_sessions),
        ("tokens", rules.tokens),
    ];
    let containers_max = (manifest.containers_max != CONTAINERS_MAX_DEFAULT).then(|| manifest.containers_max.to_string());
    let keep_alive = (rules.keep_alive != KeepAliveRule::default()).then(|| rules.keep_alive.name().to_owned());
    let values = [
        ("containers-max", containers_max),
        ("hook-deadline-ms", rules.hook_deadline_ms.map(|ms| ms.to_string())),
        ("requests-per-s", rules.requests_per_s.map(|requests| requests.to_string())),
        ("cpu-share", rules.cpu_share.map(|share| f64::from(share).to_string())),
        ("keep-alive", keep_alive),
        ("keep-alive-s", rules.keep_alive_s.map(|seconds| seconds.to_string())),
        ("checkpoint-every-s", rules.checkpoint_every_s.map(|seconds| seconds.to_string())),
    ];
    let mut flags: Vec<String> = switches.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).to_owned()).collect();
    flags.extend((!rules.hint.is_default()).then(|| rules.hint.to_string()));
    flags.extend((manifest.durability != Durability::Memory).then(|| manifest.durability.name().to_owned()));
    flags.extend(values.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))));
    flags
}

pub(super) fn sessions(reply: &SessionsReply) -> String {
    if reply.sessions.is_empty() {
        return "no sessions with state\n".to_owned();
    }
    let rows: Vec<Vec<String>> = reply
        .sessions
        .iter()
        .map(|session| {
            let numbers =
                [u64::from(session.shard), session.state_bytes, session.keys.into(), session.workers.into(), session.containers.into()];
            [session.app.clone(), session.session.clone()].into_iter().chain(numbers.map(|number| number.to_string())).collect()
        })
        .collect();
    let mut text = table(&["APP", "SESSION", "CORE", "STATE_BYTES", "KEYS", "WORKERS", "CONTAINERS"], &rows);
    if reply.truncated {
        text.push_str("there may be more: raise --limit, or narrow with --app or --prefix\n");
    }
    text
}

pub(super) fn checks(checks: &[Check]) -> String {
    let rows: Vec<Vec<String>> = checks
        .iter()
        .map(|check| {
            let verdict = match check.verdict {
                Verdict::Good => "good",
                Verdict::Warning => "WARNING",
                Verdict::Missing => "MISSING",
            };
            vec![verdict.to_owned(), check.name.clone(), check.found.clone()]
        })
        .collect();
    let mut text = table(&["", "CHECK", "FOUND"], &rows);
    for check in checks.iter().filter(|check| check.verdict != Verdict::Good) {
        writeln!(text, "\n{}: {}", check.name, check.advice).expect("a String takes all text");
    }
    text
}

/// Shards are summed up, but for ratios, of which the largest is shown; `--json` and `/metrics` have each one.
pub(super) fn stats(reply: &StatsReply) -> String {
    let mut text =
        format!("up {} s, {} shards, {} functions, steering {}\n", reply.uptime_s, reply.shards, reply.functions, reply.steering);
    if let Some(missing) = &reply.not_ready {
        writeln!(text, "NOT READY: {missing}").expect("a String takes all text");
    }
    let mut requests: BTreeMap<(String, String), f64> = BTreeMap::new();
    let mut durations: BTreeMap<String, Histogram> = BTreeMap::new();
    let mut others: BTreeMap<String, (Unit, f64)> = BTreeMap::new();
    for sample in &reply.metrics {
        let label = |key: &str| sample.labels.get(key).cloned().unwrap_or_default();
        match (&sample.histogram, sample.value) {
            (Some(histogram), _) if sample.name == REQUEST_DURATION_SECONDS => {
                merge(durations.entry(label("function")).or_default(), histogram)
            }
            (None, Some(value)) if sample.name == REQUESTS_TOTAL => {
                *requests.entry((label("function"), label("outcome"))).or_default() += value
            }
            (None, Some(value)) if !sample.name.ends_with("_info") => {
                let sum = others.entry(title(sample)).or_insert((Unit::of(&sample.name), 0.0));
                sum.1 = if sum.0 == Unit::Ratio { sum.1.max(value) } else { sum.1 + value };
            }
            _ => {}
        }
    }
    let rows: Vec<_> = requests
        .into_iter()
        .filter(|(_, count)| *count > 0.0)
        .map(|((function, outcome), count)| vec![function, outcome, count.to_string()])
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(&["FUNCTION", "OUTCOME", "REQUESTS"], &rows));
    }
    let rows: Vec<_> = durations
        .into_iter()
        .filter(|(_, histogram)| histogram.count > 0)
        .map(|(function, histogram)| vec![function, quantile(&histogram, 0.5), quantile(&histogram, 0.99), quantile(&histogram, 0.999)])
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(&["FUNCTION", "P50", "P99", "P99.9"], &rows));
    }
    let rows: Vec<_> = others.into_iter().map(|(name, (unit, value))| vec![name, unit.show(value)]).collect();
    text.push('\n');
    text.push_str(&table(&["METRIC", "VALUE"], &rows));
    text
}

/// What a metric's values are, as its name ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Number,
    Ratio,
    Seconds,
}

impl Unit {
    fn of(name: &str) -> Unit {
        match name.strip_suffix("_total").unwrap_or(name) {
            name if name.ends_with("_ratio") => Unit::Ratio,
            name if name.ends_with("_seconds") => Unit::Seconds,
            _ => Unit::Number,
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Unit::Number => format!("{value:.0}"),
            Unit::Ratio => format!("{value:.3}"),
            Unit::Seconds => format!("{value:.6}"),
        }
    }
}

/// A sample's name with its labels, without the shard.
fn title(sample: &MetricSample) -> String {
    let labels: Vec<String> =
        sample.labels.iter().filter(|(key, _)| *key != "shard").map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { sample.name.clone() } else { format!("{} {}", sample.name, labels.join(" ")) }
}

/// Adds one more shard's to what `merged` has of the others.
pub(super) fn merge(merged: &mut Histogram, histogram: &Histogram) {
    merged.count += histogram.count;
    merged.sum_seconds += histogram.sum_seconds;
    merged.buckets.resize(histogram.buckets.len(), (0.0, 0));
    for (sum, (bound, count)) in merged.buckets.iter_mut().zip(&histogram.buckets) {
        *sum = (*bound, sum.1 + count);
    }
}

/// The bound of the bucket that the quantile lies in. None: it is above the last.
pub(super) fn quantile_bound(histogram: &Histogram, fraction: f64) -> Option<f64> {
    let rank = (histogram.count as f64 * fraction).ceil() as u64;
    histogram.buckets.iter().find(|(_, count)| *count >= rank).map(|(bound, _)| *bound)
}

fn quantile(histogram: &Histogram, fraction: f64) -> String {
    let seconds = |bound: f64| if bound < 0.001 { format!("{:.0} us", bound * 1e6) } else { format!("{} ms", bound * 1e3) };
    match quantile_bound(histogram, fraction) {
        Some(bound) => format!("<= {}", seconds(bound)),
        None => histogram.buckets.last().map_or_else(|| "-".to_owned(), |(bound, _)| format!("> {}", seconds(*bound))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, labels: &[(&str, &str)], value: f64) -> MetricSample {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        MetricSample { name: name.to_owned(), labels, value: Some(value), histogram: None }
    }

    #[test]
    fn stats_sum_up_shards() {
        let histogram = |counts: [u64; 2]| MetricSample {
            value: None,
            histogram: Some(Histogram { count: 10, sum_seconds: 1.0, buckets: vec![(0.000_1, counts[0]), (0.005, counts[1])] }),
            ..sample(REQUEST_DURATION_SECONDS, &[("function", "echo")], 0.0)
        };
        let reply = StatsReply {
            uptime_s: 3,
            shards: 2,
            functions: 1,
            not_ready: Some("draining".to_owned()),
            steering: "off".to_owned(),
            metrics: vec![
                sample(REQUESTS_TOTAL, &[("function", "echo"), ("outcome", "ok"), ("shard", "0")], 3.0),
                sample(REQUESTS_TOTAL, &[("function", "echo"), ("outcome", "ok"), ("shard", "1")], 4.0),
                histogram([9, 10]),
                histogram([9, 9]),
                sample(REQUESTS_TOTAL, &[("function", "echo"), ("outcome", "deadline"), ("shard", "0")], 0.0),
                sample("xfaas_drops_total", &[("place", "kernel"), ("reason", "bad_magic")], 2.0),
                sample("xfaas_build_info", &[], 1.0),
            ],
        };
        let expected = "up 3 s, 2 shards, 1 functions, steering off\n\
            NOT READY: draining\n\
            \n\
            FUNCTION  OUTCOME  REQUESTS\n\
            echo      ok              7\n\
            \n\
            FUNCTION  P50        P99     P99.9\n\
            echo      <= 100 us  > 5 ms  > 5 ms\n\
            \n\
            METRIC                                           VALUE\n\
            xfaas_drops_total place=kernel reason=bad_magic      2\n";
        assert_eq!(stats(&reply), expected);
    }

    #[test]
    fn ratios_are_not_added_and_times_not_rounded_to_seconds() {
        let shard = |name: &str, shard: &str, value: f64| sample(name, &[("shard", shard)], value);
        let metrics = vec![
            shard("xfaas_state_fragmentation_ratio", "0", 0.25),
            shard("xfaas_state_fragmentation_ratio", "1", 0.125),
            shard("xfaas_fork_seconds_total", "0", 0.000_5),
            shard("xfaas_fork_seconds_total", "1", 0.000_23),
            shard("xfaas_forks_total", "0", 7.0),
            shard("xfaas_forks_total", "1", 5.0),
        ];
        let text = stats(&StatsReply { uptime_s: 3, shards: 2, functions: 0, not_ready: None, steering: "off".to_owned(), metrics });
        let values: Vec<Vec<&str>> = text.lines().skip(3).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            values,
            [["xfaas_fork_seconds_total", "0.000730"], ["xfaas_forks_total", "12"], ["xfaas_state_fragmentation_ratio", "0.250"]]
        );
    }

    #[test]
    fn flags_say_what_a_function_was_deployed_with() {
        let plain = FunctionManifest::named("f");
        assert_eq!(flags(&plain), [""; 0]);
        let mut full = FunctionManifest { atomic: true, containers_max: 2, durability: Durability::Checkpoint, ..plain };
        full.rules.tokens = true;
        full.rules.requests_per_s = Some(100);
        full.rules.cpu_share = Some("0.5".parse().unwrap());
        full.rules.keep_alive = KeepAliveRule::Hybrid;
        let expected = "atomic,tokens,checkpoint,containers-max=2,requests-per-s=100,cpu-share=0.5,keep-alive=hybrid";
        assert_eq!(flags(&full).join(","), expected);
    }

    #[test]
    fn findings_come_with_advice() {
        let text = checks(&[Check::good("kernel", "6.18"), Check::bad("BTF", Verdict::Missing, "not there", "use another kernel")]);
        assert_eq!(text, "         CHECK   FOUND\ngood     kernel  6.18\nMISSING  BTF     not there\n\nBTF: use another kernel\n");
    }
}
