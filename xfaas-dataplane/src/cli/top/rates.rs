//! What a node did between two answers of `GET /v1/stats`, as rates. Called by `top.rs`; only computes.
//!
//! A counter that fell, or an answer of another process than the one before, gives no rates instead of wrong ones.

use crate::cli::show::{merge, quantile_bound};
use crate::control::{
    DROPS_TOTAL, Histogram, MetricSample, REQUEST_DURATION_SECONDS, REQUESTS_TOTAL, SHARD_BUSY_SECONDS_TOTAL, StatsReply,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How far a node's clock and ours may drift apart between two answers before they are taken for those of two processes.
const DRIFT_MAX: Duration = Duration::from_millis(100);
/// The outcome that is no error.
const OK: &str = "ok";

/// One answer, and when it was asked for and came.
pub(super) struct Sample {
    pub reply: StatsReply,
    pub asked_at: Instant,
    pub answered_at: Instant,
}

impl Sample {
    /// Finer than `StatsReply::uptime_s`, and read right after the counters.
    fn uptime_s(&self) -> f64 {
        let exact = self.reply.metrics.iter().find(|sample| sample.name == "xfaas_uptime_seconds");
        exact.and_then(|sample| sample.value).unwrap_or(self.reply.uptime_s as f64)
    }

    /// Seconds from `before` to this on the node's own clock. None: another process answered, since for none and the same start both
    /// came when they did.
    fn seconds_since(&self, before: &Sample) -> Option<f64> {
        let seconds = self.uptime_s() - before.uptime_s();
        let least = self.asked_at.saturating_duration_since(before.answered_at).saturating_sub(DRIFT_MAX).as_secs_f64();
        let most = (self.answered_at.saturating_duration_since(before.asked_at) + DRIFT_MAX).as_secs_f64();
        (seconds > 0.0 && (least..=most).contains(&seconds)).then_some(seconds)
    }
}

/// A node in one interval. Rates are `None` (`null`) where there is nothing to compare with: in the first answer, and after a restart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Frame {
    pub address: String,
    pub interval_s: Option<f64>,
    /// Another process answers than the interval before.
    pub restarted: bool,
    pub uptime_s: f64,
    /// What is missing before the node serves, or that it drains.
    pub not_ready: Option<String>,
    pub steering: String,
    pub functions_running: usize,
    pub sessions: u64,
    pub sessions_asleep: u64,
    pub workers: u64,
    pub workers_idle: u64,
    pub workers_parked: u64,
    pub connections: u64,
    pub queued: u64,
    pub guest_memory_bytes: u64,
    pub guest_memory_limit_bytes: u64,
    pub state_bytes: u64,
    /// Of all functions, whatever came of them.
    pub requests_per_s: Option<f64>,
    pub errors_per_s: Option<f64>,
    /// HTTP requests that came to no function.
    pub refused_per_s: Option<f64>,
    pub shed_per_s: Option<f64>,
    pub forwarded_per_s: Option<f64>,
    /// Datagrams that got no answer, in the kernel and in user space.
    pub dropped_per_s: Option<f64>,
    /// By core.
    pub shards: Vec<ShardRates>,
    /// Those that were ever asked for, the most asked first.
    pub functions: Vec<FunctionRates>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ShardRates {
    pub core: u16,
    pub requests_per_s: Option<f64>,
    /// Part of the time that its thread was on the CPU or waited for it; `None` also where the kernel does not say.
    pub busy: Option<f64>,
    pub turns_per_s: Option<f64>,
    pub sessions: u64,
    pub workers: u64,
    pub connections: u64,
    pub queued: u64,
    pub shed_per_s: Option<f64>,
    pub forwarded_per_s: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct FunctionRates {
    pub name: String,
    /// Since the node started.
    pub requests_total: u64,
    pub requests_per_s: Option<f64>,
    pub errors_per_s: Option<f64>,
    /// Those above zero, by outcome.
    pub errors: BTreeMap<String, f64>,
    /// Of the interval's requests; `None` without one.
    pub mean_us: Option<f64>,
    /// Bounds of the buckets that the quantiles lie in; `None` also above the last bound, which is `over_us`.
    pub p50_us_max: Option<f64>,
    pub p99_us_max: Option<f64>,
    /// Where quantiles are `None` though there were requests, they are above this.
    pub over_us: Option<f64>,
}

impl Frame {
    pub fn new(address: &str, before: Option<&Sample>, now: &Sample) -> Frame {
        let interval_s = before.and_then(|before| now.seconds_since(before));
        let then = before.filter(|_| interval_s.is_some()).map(|before| Totals::of(&before.reply));
        let totals = Totals::of(&now.reply);
        let rates = Rates { then: then.as_ref(), interval_s: interval_s.unwrap_or(1.0) };
        let gauge = |name: &str| totals.node.get(name).map_or(0, |value| *value as u64);
        let functions = rates.functions(&totals);
        let sum = |rate: fn(&FunctionRates) -> Option<f64>| interval_s.map(|_| total(functions.iter().filter_map(rate)));
        Frame {
            address: address.to_owned(),
            interval_s,
            restarted: before.is_some() && interval_s.is_none(),
            uptime_s: now.uptime_s(),
            not_ready: now.reply.not_ready.clone(),
            steering: now.reply.steering.clone(),
            functions_running: now.reply.functions,
            sessions: gauge("xfaas_sessions"),
            sessions_asleep: gauge("xfaas_sessions_asleep"),
            workers: gauge("xfaas_workers"),
            workers_idle: gauge("xfaas_workers_idle"),
            workers_parked: gauge("xfaas_workers_parked"),
            connections: gauge("xfaas_connections"),
            queued: gauge("xfaas_calls_queued"),
            guest_memory_bytes: gauge("xfaas_guest_memory_bytes"),
            guest_memory_limit_bytes: gauge("xfaas_guest_memory_limit_bytes"),
            state_bytes: gauge("xfaas_state_bytes"),
            requests_per_s: sum(|function| function.requests_per_s),
            errors_per_s: sum(|function| function.errors_per_s),
            refused_per_s: rates.of_node(&totals, &["xfaas_http_refused_total"]),
            shed_per_s: rates.of_node(&totals, &["xfaas_shed_total"]),
            forwarded_per_s: rates.of_node(&totals, &["xfaas_forwarded_total"]),
            dropped_per_s: rates.of_node(&totals, &[DROPS_TOTAL, "xfaas_datagrams_dropped_total"]),
            shards: totals.shards.iter().map(|(core, shard)| rates.shard(*core, shard)).collect(),
            functions,
        }
    }
}

/// What one answer says, by what it says it of.
#[derive(Default)]
struct Totals {
    /// Numbers without a function, summed up over shards and other labels.
    node: BTreeMap<String, f64>,
    shards: BTreeMap<u16, BTreeMap<String, f64>>,
    functions: BTreeMap<String, FunctionTotals>,
}

#[derive(Default)]
struct FunctionTotals {
    outcomes: BTreeMap<String, f64>,
    durations: Histogram,
}

impl Totals {
    fn of(reply: &StatsReply) -> Totals {
        let mut totals = Totals::default();
        reply.metrics.iter().for_each(|sample| totals.add(sample));
        totals
    }

    fn add(&mut self, sample: &MetricSample) {
        let label = |key: &str| sample.labels.get(key).cloned().unwrap_or_default();
        if let Some(histogram) = &sample.histogram {
            if sample.name == REQUEST_DURATION_SECONDS {
                merge(&mut self.functions.entry(label("function")).or_default().durations, histogram);
            }
            return;
        }
        let value = sample.value.unwrap_or(0.0);
        if sample.name == REQUESTS_TOTAL {
            *self.functions.entry(label("function")).or_default().outcomes.entry(label("outcome")).or_default() += value;
        } else {
            *self.node.entry(sample.name.clone()).or_default() += value;
        }
        if let Ok(core) = label("shard").parse() {
            *self.shards.entry(core).or_default().entry(sample.name.clone()).or_default() += value;
        }
    }
}

/// Differences of totals, each by the second.
struct Rates<'a> {
    then: Option<&'a Totals>,
    interval_s: f64,
}

impl Rates<'_> {
    /// A counter that is new has nothing to be compared with: the index of a function that is gone, and its counts, may have got another name.
    fn per_s(&self, now: Option<&f64>, then: Option<&f64>) -> Option<f64> {
        Some((now? - then?).max(0.0) / self.interval_s)
    }

    fn of_node(&self, totals: &Totals, names: &[&str]) -> Option<f64> {
        let then = self.then?;
        Some(total(names.iter().filter_map(|name| self.per_s(totals.node.get(*name), then.node.get(*name)))))
    }

    fn shard(&self, core: u16, now: &BTreeMap<String, f64>) -> ShardRates {
        let then = self.then.and_then(|then| then.shards.get(&core));
        let rate = |name: &str| self.per_s(now.get(name), then.and_then(|then| then.get(name)));
        let gauge = |name: &str| now.get(name).map_or(0, |value| *value as u64);
        ShardRates {
            core,
            // A shard that has no function yet counts none.
            requests_per_s: rate(REQUESTS_TOTAL).or(then.map(|_| 0.0)),
            // Both clocks are read one after the other, so a thread that never waits may seem to have run a little longer.
            busy: rate(SHARD_BUSY_SECONDS_TOTAL).map(|busy| busy.min(1.0)),
            turns_per_s: rate("xfaas_turns_total"),
            sessions: gauge("xfaas_sessions"),
            workers: gauge("xfaas_workers"),
            connections: gauge("xfaas_connections"),
            queued: gauge("xfaas_calls_queued"),
            shed_per_s: rate("xfaas_shed_total"),
            forwarded_per_s: rate("xfaas_forwarded_total"),
        }
    }

    fn functions(&self, totals: &Totals) -> Vec<FunctionRates> {
        let asked = totals.functions.iter().filter(|(_, now)| now.outcomes.values().sum::<f64>() > 0.0);
        let mut functions: Vec<FunctionRates> = asked.map(|(name, now)| self.function(name, now)).collect();
        functions.sort_by(|a, b| {
            let rate = |function: &FunctionRates| function.requests_per_s.unwrap_or(0.0);
            rate(b).total_cmp(&rate(a)).then(b.requests_total.cmp(&a.requests_total)).then_with(|| a.name.cmp(&b.name))
        });
        functions
    }

    fn function(&self, name: &str, now: &FunctionTotals) -> FunctionRates {
        let then = self.then.and_then(|then| then.functions.get(name));
        let rate = |outcome: &str| self.per_s(now.outcomes.get(outcome), then.and_then(|then| then.outcomes.get(outcome)));
        let rates: Vec<(&String, f64)> = now.outcomes.keys().filter_map(|outcome| Some((outcome, rate(outcome)?))).collect();
        let errors: BTreeMap<String, f64> = rates
            .iter()
            .filter(|(outcome, rate)| *outcome != OK && *rate > 0.0)
            .map(|(outcome, rate)| ((*outcome).clone(), *rate))
            .collect();
        let durations = then.and_then(|then| since(&now.durations, &then.durations)).filter(|all| all.count > 0);
        let quantile_us = |fraction: f64| durations.as_ref().and_then(|all| quantile_bound(all, fraction)).map(|bound_s| bound_s * 1e6);
        FunctionRates {
            name: name.to_owned(),
            requests_total: now.outcomes.values().sum::<f64>() as u64,
            requests_per_s: then.map(|_| total(rates.iter().map(|(_, rate)| *rate))),
            errors_per_s: then.map(|_| total(errors.values().copied())),
            errors,
            mean_us: durations.as_ref().map(|all| all.sum_seconds / all.count as f64 * 1e6),
            p50_us_max: quantile_us(0.5),
            p99_us_max: quantile_us(0.99),
            over_us: durations.as_ref().and_then(|all| all.buckets.last()).map(|(bound_s, _)| bound_s * 1e6),
        }
    }
}

/// `Iterator::sum` of no floats is -0.0, and would be shown so.
fn total(rates: impl Iterator<Item = f64>) -> f64 {
    rates.fold(0.0, |sum, rate| sum + rate)
}

/// What came to a histogram. None: it fell, or has other buckets.
fn since(now: &Histogram, then: &Histogram) -> Option<Histogram> {
    let bounds = |histogram: &Histogram| histogram.buckets.iter().map(|(bound, _)| *bound).collect::<Vec<_>>();
    if bounds(now) != bounds(then) {
        return None;
    }
    let came = |(now, then): (&(f64, u64), &(f64, u64))| Some((now.0, now.1.checked_sub(then.1)?));
    let count = now.count.checked_sub(then.count)?;
    let buckets = now.buckets.iter().zip(&then.buckets).map(came).collect::<Option<_>>()?;
    Some(Histogram { count, sum_seconds: (now.sum_seconds - then.sum_seconds).max(0.0), buckets })
}
