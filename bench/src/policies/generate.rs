//! Traces that are made up: many functions that are hardly ever asked for, and few that get most of the requests.
//!
//! The shape follows what Shahrad et al., "Serverless in the Wild", USENIX ATC 2020, section 3, tell of Azure Functions: 45% of all are asked
//! for once an hour or less, 81% once a minute or less. A log-normal rate through these two points has its median at 40 requests a day and a
//! sigma of 4.1; it is cut off at one request in 30 s, since what comes more often is always loaded, whatever the policy. Running times are
//! log-normal, as in section 3.4. Memory and cold starts are log-normal too, around 128 MiB and 250 ms. A function is asked for
//! in one of three ways:
//!
//! - at random (half of them): exponential gaps;
//! - by a timer (three in ten): a fixed period from one minute to a day, the one nearest to its rate, give or take two seconds;
//! - in bursts (two in ten): 1 to 100 requests (Pareto, shape 1.2) a second apart on average, at random times.

use super::trace::{Invocation, Trace, TracedFunction};
use crate::load::Random;

const DAY_MS: f64 = 86_400_000.0;
const RATE_PER_DAY_MEDIAN: f64 = 40.0;
const RATE_SIGMA: f64 = 4.1;
const RATE_PER_DAY_MAX: f64 = 2_880.0;
const DURATION_MS_MEDIAN: f64 = 680.0;
const DURATION_SIGMA_OF_FUNCTIONS: f64 = 1.9;
const DURATION_SIGMA_OF_REQUESTS: f64 = 0.5;
const DURATION_MS_MAX: f64 = 300_000.0;
const TIMER_SHARE: f64 = 0.3;
const BURST_SHARE: f64 = 0.2;
const TIMER_MINUTES: [f64; 9] = [1.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 720.0, 1_440.0];
const TIMER_JITTER_MS: f64 = 2_000.0;
const BURST_SHAPE: f64 = 1.2;
const BURST_MAX: f64 = 100.0;
const BURST_GAP_MS: f64 = 1_000.0;

/// How much to make up.
#[derive(Clone, Copy, Debug)]
pub struct GeneratorOptions {
    /// The same seed makes the same trace.
    pub seed: u64,
    pub functions: u32,
    pub hours: u32,
}

/// Makes a trace. Cost: at most one request a function and 30 s, and sorting them.
pub fn generate(options: &GeneratorOptions) -> Trace {
    let mut random = Random::new(options.seed);
    let end_ms = u64::from(options.hours) * 3_600_000;
    let mut trace = Trace { end_ms, ..Trace::default() };
    for index in 0..options.functions {
        trace.functions.push(TracedFunction {
            name: format!("f{index}"),
            memory_mib: log_normal(&mut random, 128.0, 0.7).clamp(16.0, 2_048.0) as u32,
            cold_ms: log_normal(&mut random, 250.0, 0.7).clamp(10.0, 10_000.0) as u32,
        });
        add_requests(&mut trace, index, &mut random);
    }
    trace.invocations.sort_by_key(|invocation| (invocation.at_ms, invocation.function));
    trace
}

fn add_requests(trace: &mut Trace, function: u32, random: &mut Random) {
    let rate_per_day = log_normal(random, RATE_PER_DAY_MEDIAN, RATE_SIGMA).min(RATE_PER_DAY_MAX);
    let gap_ms = DAY_MS / rate_per_day;
    let duration_ms = log_normal(random, DURATION_MS_MEDIAN, DURATION_SIGMA_OF_FUNCTIONS);
    let end_ms = trace.end_ms as f64;
    let mut add = |at_ms: f64, random: &mut Random| {
        let duration_ms = log_normal(random, duration_ms, DURATION_SIGMA_OF_REQUESTS).clamp(1.0, DURATION_MS_MAX) as u32;
        if at_ms < end_ms {
            trace.invocations.push(Invocation { at_ms: at_ms as u64, function, duration_ms });
        }
    };
    let way = random.unit();
    if way < TIMER_SHARE {
        let near = |minutes: &f64| (minutes * 60_000.0 / gap_ms).ln().abs();
        let minutes = TIMER_MINUTES.into_iter().min_by(|one, other| near(one).total_cmp(&near(other))).expect("not empty");
        let period_ms = minutes * 60_000.0;
        let mut at_ms = random.unit() * period_ms;
        while at_ms < end_ms {
            add(at_ms + random.unit() * TIMER_JITTER_MS, random);
            at_ms += period_ms;
        }
        return;
    }
    let is_bursty = way < TIMER_SHARE + BURST_SHARE;
    // So that a function's rate is about what was drawn, however its requests come: the mean of the Pareto distribution, cut off.
    let burst_mean = if is_bursty { (BURST_SHAPE - BURST_MAX.powf(1.0 - BURST_SHAPE)) / (BURST_SHAPE - 1.0) } else { 1.0 };
    let mut at_ms = exponential(random, gap_ms * burst_mean);
    while at_ms < end_ms {
        let count = if is_bursty { (1.0 - random.unit()).powf(-1.0 / BURST_SHAPE).min(BURST_MAX) as u32 } else { 1 };
        let mut within_ms = at_ms;
        for _ in 0..count {
            add(within_ms, random);
            within_ms += exponential(random, BURST_GAP_MS);
        }
        at_ms += exponential(random, gap_ms * burst_mean);
    }
}

fn exponential(random: &mut Random, mean: f64) -> f64 {
    -(1.0 - random.unit()).ln() * mean
}

/// By Box and Muller; the second value that it would give is not kept.
fn log_normal(random: &mut Random, median: f64, sigma: f64) -> f64 {
    let radius = (-2.0 * (1.0 - random.unit()).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * random.unit()).cos();
    median * (sigma * normal).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: GeneratorOptions = GeneratorOptions { seed: 1, functions: 400, hours: 24 };

    #[test]
    fn a_seed_makes_one_trace() {
        let trace = generate(&OPTIONS);
        assert_eq!(trace, generate(&OPTIONS));
        assert_ne!(trace, generate(&GeneratorOptions { seed: 2, ..OPTIONS }));
        assert!(trace.invocations.is_sorted_by_key(|invocation| invocation.at_ms));
        assert!(trace.invocations.iter().all(|invocation| invocation.at_ms < trace.end_ms && invocation.duration_ms > 0));
    }

    #[test]
    fn few_functions_get_most_of_the_requests() {
        let trace = generate(&OPTIONS);
        let mut counts = vec![0_usize; trace.functions.len()];
        trace.invocations.iter().for_each(|invocation| counts[invocation.function as usize] += 1);
        counts.sort_unstable();
        let rare = counts.iter().filter(|count| **count <= 24).count();
        assert!((120..240).contains(&rare), "{rare} of 400 are asked for once an hour or less");
        let most: usize = counts[320..].iter().sum();
        assert!(most * 10 > trace.invocations.len() * 7, "a fifth of the functions has {most} of {} requests", trace.invocations.len());
    }

    #[test]
    fn a_log_normal_has_its_median() {
        let mut random = Random::new(7);
        let below = (0..10_000).filter(|_| log_normal(&mut random, 40.0, 4.1) < 40.0).count();
        assert!((4_800..5_200).contains(&below), "{below}");
    }
}
