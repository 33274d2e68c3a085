//! All policies on one trace: at each memory limit, and the fixed time that costs as much memory as the hybrid policy.

use super::simulate::{Figures, SimulatedPolicy, simulate};
use super::trace::Trace;
use serde::Serialize;
use std::fmt::Write as _;
use xfaas_dataplane::session::{EvictionOrder, KeepAlivePolicy};

const MINUTE_MS: u64 = 60_000;
/// Where the fixed time that costs as much as the hybrid policy is looked for, and how near it must come.
const FIXED_MS_MAX: u64 = 24 * 60 * MINUTE_MS;
const FIXED_MS_STEP: u64 = 1_000;

/// What is compared.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// Of the fixed policy.
    pub fixed_minutes: Vec<u64>,
    /// What the hybrid policy has while a function's histogram says too little.
    pub fallback_minutes: u64,
    /// Each policy is replayed with each of them, and without a limit.
    pub memory_mib: Vec<u64>,
}

/// One policy with one limit. The fields' names and order are the JSON object's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyRow {
    pub name: &'static str,
    pub policy: String,
    /// `None`: no limit.
    pub memory_mib: Option<u64>,
    pub cold_starts: u64,
    pub cold_share: f64,
    pub cold_share_p75: f64,
    pub memory_gib_s: f64,
    pub idle_gib_s: f64,
    pub evictions: u64,
    pub pre_warms: u64,
    pub refused: u64,
}

/// All rows, and the comparison that the table ends with.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub rows: Vec<PolicyRow>,
    pub hybrid: Figures,
    /// The fixed time whose memory-time is nearest to the hybrid policy's, in ms, and what it gives.
    pub equal: (u64, Figures),
}

/// Replays `trace` under every policy and limit.
pub fn compare(trace: &Trace, options: &CompareOptions) -> Outcome {
    let hybrid = KeepAlivePolicy::Hybrid { fallback_ms: options.fallback_minutes * MINUTE_MS };
    let mut rows = Vec::new();
    let limits = std::iter::once(None).chain(options.memory_mib.iter().copied().map(Some));
    for limit in limits {
        let mut add = |policy: String, keep_alive, order| {
            rows.push(row(policy, limit, &simulate(trace, SimulatedPolicy { keep_alive, order }, limit)));
        };
        for minutes in &options.fixed_minutes {
            let keep_alive = KeepAlivePolicy::Fixed { keep_alive_ms: minutes * MINUTE_MS };
            add(format!("fixed_{minutes}min"), keep_alive, EvictionOrder::LeastRecentlyUsed);
        }
        add("hybrid".to_owned(), hybrid, EvictionOrder::LeastRecentlyUsed);
        if limit.is_some() {
            add("greedy_dual".to_owned(), KeepAlivePolicy::Unbounded, EvictionOrder::GreedyDual);
            add("hybrid_greedy_dual".to_owned(), hybrid, EvictionOrder::GreedyDual);
        }
    }
    let hybrid = simulate(trace, SimulatedPolicy { keep_alive: hybrid, order: EvictionOrder::LeastRecentlyUsed }, None);
    let equal = fixed_at_memory_time(trace, hybrid.memory_gib_s);
    rows.push(row(format!("fixed_{:.1}min", equal.0 as f64 / MINUTE_MS as f64), None, &equal.1));
    Outcome { rows, hybrid, equal }
}

/// The longest fixed time, in steps of a second and up to a day, whose memory-time is at most `memory_gib_s` without a limit, and its figures.
/// Cost: 17 replays.
pub fn fixed_at_memory_time(trace: &Trace, memory_gib_s: f64) -> (u64, Figures) {
    let with = |keep_alive_ms| {
        let keep_alive = KeepAlivePolicy::Fixed { keep_alive_ms };
        simulate(trace, SimulatedPolicy { keep_alive, order: EvictionOrder::LeastRecentlyUsed }, None)
    };
    let (mut fits, mut too_long) = (0, FIXED_MS_MAX / FIXED_MS_STEP + 1);
    while too_long - fits > 1 {
        let middle = (fits + too_long) / 2;
        if with(middle * FIXED_MS_STEP).memory_gib_s <= memory_gib_s {
            fits = middle;
        } else {
            too_long = middle;
        }
    }
    (fits * FIXED_MS_STEP, with(fits * FIXED_MS_STEP))
}

fn row(policy: String, memory_mib: Option<u64>, figures: &Figures) -> PolicyRow {
    let Figures { cold_starts, memory_gib_s, idle_gib_s, evictions, pre_warms, refused, .. } = *figures;
    let rounded = |value: f64| (value * 10.0).round() / 10.0;
    PolicyRow {
        name: "policy",
        policy,
        memory_mib,
        cold_starts,
        cold_share: (figures.cold_share() * 1e6).round() / 1e6,
        cold_share_p75: (figures.cold_share_p75 * 1e6).round() / 1e6,
        memory_gib_s: rounded(memory_gib_s),
        idle_gib_s: rounded(idle_gib_s),
        evictions,
        pre_warms,
        refused,
    }
}

/// The rows as text with aligned columns, and the comparison under them.
pub fn policy_table(outcome: &Outcome) -> String {
    let mut text = format!(
        "{:<22}{:>12}{:>13}{:>9}{:>9}{:>15}{:>15}{:>11}{:>11}{:>9}\n",
        "policy", "memory MiB", "cold starts", "share", "p75", "memory GiB s", "of it idle", "evictions", "pre-warms", "refused"
    );
    for row in &outcome.rows {
        let limit = row.memory_mib.map_or("no limit".to_owned(), |mib| mib.to_string());
        let line = format!(
            "{:<22}{limit:>12}{:>13}{:>8.3}%{:>8.2}%{:>15.0}{:>15.0}{:>11}{:>11}{:>9}",
            row.policy,
            row.cold_starts,
            row.cold_share * 100.0,
            row.cold_share_p75 * 100.0,
            row.memory_gib_s,
            row.idle_gib_s,
            row.evictions,
            row.pre_warms,
            row.refused
        );
        writeln!(text, "{line}").expect("a String takes all");
    }
    let (fixed_ms, fixed) = &outcome.equal;
    let saved = 100.0 * (1.0 - outcome.hybrid.cold_starts as f64 / fixed.cold_starts.max(1) as f64);
    let minutes = *fixed_ms as f64 / MINUTE_MS as f64;
    writeln!(
        text,
        "with the memory-time of the hybrid policy a fixed time of {minutes:.1} minutes has {} cold starts, the hybrid policy {}: {saved:.1}% fewer",
        fixed.cold_starts, outcome.hybrid.cold_starts
    )
    .expect("a String takes all");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policies::{GeneratorOptions, generate};

    #[test]
    fn a_trace_gives_the_same_figures_every_time() {
        let trace = generate(&GeneratorOptions { seed: 1, functions: 20, hours: 6 });
        let options = CompareOptions { fixed_minutes: vec![10], fallback_minutes: 10, memory_mib: vec![1_024] };
        let outcome = compare(&trace, &options);
        assert_eq!(outcome.rows, compare(&trace, &options).rows);
        let policies: Vec<&str> = outcome.rows[..6].iter().map(|row| row.policy.as_str()).collect();
        assert_eq!(policies, ["fixed_10min", "hybrid", "fixed_10min", "hybrid", "greedy_dual", "hybrid_greedy_dual"]);
        assert_eq!(policy_table(&outcome).lines().count(), outcome.rows.len() + 2);
    }

    /// A quarter of the default trace: a replay of all of it takes a minute without optimisations.
    #[test]
    fn hybrid_has_fewer_cold_starts_than_a_fixed_time_that_costs_as_much_memory() {
        let trace = generate(&GeneratorOptions { seed: 1, functions: 200, hours: 24 });
        let keep_alive = KeepAlivePolicy::Hybrid { fallback_ms: 10 * MINUTE_MS };
        let hybrid = simulate(&trace, SimulatedPolicy { keep_alive, order: EvictionOrder::LeastRecentlyUsed }, None);
        let (_, fixed) = fixed_at_memory_time(&trace, hybrid.memory_gib_s);
        assert!(fixed.memory_gib_s > 0.98 * hybrid.memory_gib_s, "{hybrid:?} {fixed:?}");
        assert!(hybrid.cold_starts < fixed.cold_starts && hybrid.cold_share_p75 <= fixed.cold_share_p75, "{hybrid:?} {fixed:?}");
    }
}
