//! Fig. 9 and 10: requests from end to end, and how many of them one CPU serves, with state in the session, in redis and in an object store.

use super::places::{Access, Asked, Place, Started, at_each_place, us_order, us_text};
use super::{Axis, BarChart, BarSeries, Chart, Comparison, Figure, PaperError, PaperSetup, Table};
use crate::generator::{Arrivals, LoadOutcome, us_or_dash};

const SESSIONS: usize = 80;
/// Of the closed loop that finds how much is served at most.
const CONNECTIONS: usize = 32;
/// Of the open loop: as many requests can be under way.
const OPEN_CONNECTIONS: usize = 256;
/// Of what the slowest place serves at most.
const LOAD_PART: f64 = 0.5;
/// The paper's throughput over redis, by access.
const PAPER_RATIOS: [&str; 3] = ["1.3x", "1.52x", "2.3x"];
const METHOD_9: &str = "Requests of independent users (Poisson arrivals, open loop) for 80 sessions, at one rate for all places: half of what the slowest of them \
                        serves at most of that access. Latency is counted from when a request was due.";
const METHOD_10: &str = "32 connections, each with its next request when it has its answer, over 80 sessions. All of a place is on one CPU: xfaas alone, or the \
                         baseline's host and its store.";

type Outcomes = Vec<(Access, LoadOutcome)>;
/// What is drawn of an outcome.
type Pick = fn(&LoadOutcome) -> Option<f64>;

/// Fig. 9.
pub fn fig9(setup: &PaperSetup<'_>) -> Result<Figure, PaperError> {
    let mut figure = Figure::new("fig9", "Fig. 9: latency from end to end", METHOD_9);
    let tops = at_each_place(setup, &mut figure, |started| outcomes(setup, started, |_| Arrivals::Closed, 1))?;
    let rate_of = |access: Access| {
        let tops = tops.iter().flat_map(|outcomes: &(Place, Outcomes)| &outcomes.1).filter(|(of, _)| *of == access);
        let slowest = tops.map(|(_, outcome)| outcome.requests_per_second).fold(f64::INFINITY, f64::min);
        (slowest * LOAD_PART).max(1.0).round()
    };
    // What was left out before is left out again, and told once.
    let open = |access| Arrivals::Poisson { per_second: rate_of(access) };
    let measured = at_each_place(setup, &mut Figure::default(), |started| outcomes(setup, started, open, setup.rounds))?;
    figure.table = Table::new(["access and place", "offered/s", "mean us", "p50 us", "p99 us"]);
    for (i, access) in Access::ALL.into_iter().enumerate() {
        for (place, outcomes) in &measured {
            let latency = outcomes[i].1.latency;
            let times = [latency.mean_us, latency.p50_us, latency.p99_us].map(us_text);
            let name = format!("{}, {}", access.name(), place.name());
            figure.table.push([vec![name, format!("{:.0}", rate_of(access))], times.to_vec()].concat());
            if outcomes[i].1.arrivals_short {
                let arrived = outcomes[i].1.arrived_per_second.unwrap_or_default();
                figure.notes.push(format!(
                    "{}, {}: the load generator did not get its CPU, and only {arrived:.0}/s were offered.",
                    access.name(),
                    place.name()
                ));
            }
        }
    }
    let charts: [(&str, Pick); 3] =
        [("mean", |outcome| outcome.latency.mean_us), ("p50", |outcome| outcome.latency.p50_us), ("p99", |outcome| outcome.latency.p99_us)];
    figure.charts = charts.map(|(title, pick)| bars(title, Axis::log("request, us"), &measured, pick)).to_vec();
    Ok(figure)
}

/// Fig. 10.
pub fn fig10(setup: &PaperSetup<'_>) -> Result<Figure, PaperError> {
    let mut figure = Figure::new("fig10", "Fig. 10: throughput at saturation", METHOD_10);
    let measured = at_each_place(setup, &mut figure, |started| outcomes(setup, started, |_| Arrivals::Closed, setup.rounds))?;
    let rate = |outcome: &LoadOutcome| outcome.requests_per_second;
    figure.charts = vec![bars("one CPU", Axis::log("requests/s"), &measured, |outcome| Some(rate(outcome)).filter(|rate| *rate > 0.0))];
    figure.table = Table::new(["access and place", "requests/s", "over redis", "p50 us", "p99 us"]);
    for (i, access) in Access::ALL.into_iter().enumerate() {
        let redis = measured.iter().find(|(place, _)| *place == Place::Redis).map_or(0.0, |(_, outcomes)| rate(&outcomes[i].1));
        for (place, outcomes) in &measured {
            let outcome = &outcomes[i].1;
            let over_redis = if redis > 0.0 { format!("{:.2}x", rate(outcome) / redis) } else { String::new() };
            if *place == Place::Session {
                let what = format!("throughput of {} over redis", access.name());
                figure.comparisons.push(Comparison::new(what, PAPER_RATIOS[i], over_redis.clone()));
            }
            let times = [outcome.latency.p50_us, outcome.latency.p99_us].map(us_text);
            let name = format!("{}, {}", access.name(), place.name());
            figure.table.push([vec![name, format!("{:.0}", rate(outcome)), over_redis], times.to_vec()].concat());
        }
    }
    Ok(figure)
}

/// One outcome for each access, in their order: of several rounds the one in the middle.
fn outcomes(
    setup: &PaperSetup<'_>,
    started: &Started,
    arrivals: impl Fn(Access) -> Arrivals,
    rounds: u32,
) -> Result<(Place, Outcomes), PaperError> {
    let mut all = Vec::new();
    for access in Access::ALL {
        let arrivals = arrivals(access);
        let is_closed = arrivals == Arrivals::Closed;
        let connections = if is_closed { CONNECTIONS } else { OPEN_CONNECTIONS };
        let asked = Asked { access, connections, sessions: SESSIONS, arrivals };
        let mut found = Vec::new();
        for _ in 0..rounds.max(1) {
            setup.check_interrupt()?;
            found.push(started.load(setup, &asked)?);
        }
        let by = |outcome: &LoadOutcome| if is_closed { outcome.requests_per_second } else { us_order(outcome.latency.p99_us) };
        found.sort_by(|a, b| by(a).total_cmp(&by(b)));
        let outcome = found.swap_remove((found.len() - 1) / 2);
        let (place, rate) = (started.place().name(), outcome.requests_per_second);
        eprintln!(
            "{}: {place}, {}: {rate:.0} requests/s, p50 {} us",
            if is_closed { "saturation" } else { "fig9" },
            access.name(),
            us_or_dash(outcome.latency.p50_us, 0)
        );
        all.push((access, outcome));
    }
    Ok((started.place(), all))
}

fn bars(title: &str, y: Axis, measured: &[(Place, Outcomes)], pick: impl Fn(&LoadOutcome) -> Option<f64>) -> Chart {
    let series = measured.iter().map(|(place, outcomes)| {
        let values = outcomes.iter().map(|(_, outcome)| pick(outcome));
        BarSeries::new(place.name(), values.collect())
    });
    let groups = Access::ALL.map(|access| access.name().to_owned()).to_vec();
    Chart::Bars(BarChart { title: title.to_owned(), y, groups, series: series.collect() })
}
