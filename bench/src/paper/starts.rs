//! Table 2: starts with their phases: Fork, CopySession, ColdSession, and a traditional container.

use super::axes::three_digits;
use super::figure::{Axis, BarChart, BarSeries, Chart, Comparison, Figure, Table};
use super::{PaperError, PaperSetup, count_of};
use crate::fork::{ForkReport, measure_fork};
use crate::servers::{ContainedStart, NodeFunction, NodePlace, start_contained_baseline, start_redis_with_socket};
use crate::sessions::{
    SessionsBench, StartFigures, measure_cold, measure_copies, measure_starts, start_for_cold, start_for_copies, start_for_starts,
};

const FORKS: u32 = 20_000;
const REQUESTS: u32 = 5_000;
const COPIES: u32 = 500;
const COLD_ROUNDS: u32 = 3;
const CONTAINERS: u32 = 20;
const GUEST: &str = "counter-rmw";
const METHOD: &str = "Fork: a new worker from a function's image with its first call and its end, without a node. The others as a client on loopback sees them, one \
     request at a time, from the request's first byte to the reply's last: a known session that gets a new worker (fork_request), a second container for a session whose \
     first is full (copy_session), a session that nobody has seen (cold_session_empty), a session whose 1 MiB of state is on the disk alone (cold_session_1mib). The \
     traditional container is a new process in new namespaces of processes, mounts, network, IPC and host name, made with unshare: the baseline's host with the same guest and \
     its state in a redis that runs, until it has answered its first request; no image is fetched or mounted. process_of_a_node is the same with a whole node of xfaas. Phases \
     are means by the node's own counters.";

/// Our name, the paper's, and what the paper says in ms.
const PAPER_MS: [(&str, &str, f64); 4] = [
    ("fork", "Fork", 1.98),
    ("copy_session", "CopySession", 263.0),
    ("cold_session_1mib", "ColdSession (ours: with 1 MiB)", 268.0),
    ("traditional_container", "start of a traditional container", 262.0),
];

/// A start, in us. Phases: on the network, in a queue, making the place it runs in, the rest.
struct Start {
    name: &'static str,
    p50_us: f64,
    p99_us: f64,
    phases_us: [f64; 4],
}

impl From<&StartFigures> for Start {
    fn from(figures: &StartFigures) -> Start {
        let (quantiles, phases) = (figures.quantiles, figures.phases);
        let phases_us = [phases.network_us, phases.queue_us, phases.instance_us, phases.state_and_reply_us];
        Start { name: figures.name, p50_us: quantiles.p50_us, p99_us: quantiles.p99_us, phases_us }
    }
}

impl From<&ForkReport> for Start {
    fn from(fork: &ForkReport) -> Start {
        let phases_us = [0.0, 0.0, fork.instance_us, fork.first_call_us + fork.end_us];
        Start { name: "fork", p50_us: fork.p50_us, p99_us: fork.p99_us, phases_us }
    }
}

pub(super) fn table2(setup: &PaperSetup<'_>) -> Result<Figure, PaperError> {
    let bench =
        &SessionsBench { xfaas: setup.xfaas, server_cpu: setup.server_cpu, second_cpu: setup.second_cpu, interrupt: setup.interrupt };
    eprintln!("table2: fork");
    let module = setup.xfaas.guest("echo")?;
    let fork = setup.at_servers(|| Ok(measure_fork(&module, count_of(setup, FORKS, 100), setup.interrupt)?))?;
    let mut starts = vec![Start::from(&fork.ok_or(PaperError::Interrupted)?)];
    eprintln!("table2: requests that start");
    let (place, server) = start_for_starts(bench)?;
    let figures = setup.at_load(|| Ok(measure_starts(bench, &place, &server, count_of(setup, REQUESTS, 100))?))?;
    drop(server);
    starts.extend(figures.iter().map(Start::from));
    eprintln!("table2: copy_session");
    let (place, server) = start_for_copies(bench)?;
    starts.push((&setup.at_load(|| Ok(measure_copies(bench, &place, &server, count_of(setup, COPIES, 20))?))?).into());
    drop(server);
    eprintln!("table2: cold_session_1mib");
    let (place, server) = start_for_cold(bench)?;
    let rounds = count_of(setup, COLD_ROUNDS, 1);
    starts.push((&setup.at_load(|| Ok(measure_cold(bench, &place, &server, rounds)?))?).into());
    drop(server);
    eprintln!("table2: processes in namespaces");
    let [hosts, nodes] = processes(setup)?;
    starts.push(process_start("process_of_a_node", &nodes));
    Ok(figure_of(&starts, &hosts))
}

/// One at a time. Output: the baseline's host, and a node.
fn processes(setup: &PaperSetup<'_>) -> Result<[Vec<ContainedStart>; 2], PaperError> {
    let (cpu, interrupt) = (setup.server_cpu, setup.interrupt);
    let (_redis, socket) = start_redis_with_socket(cpu, interrupt)?;
    let count = count_of(setup, CONTAINERS, 3);
    let (mut hosts, mut nodes) = (Vec::new(), Vec::new());
    for _ in 0..count {
        setup.check_interrupt()?;
        hosts.push(setup.at_load(|| Ok(start_contained_baseline(setup.xfaas, &socket, GUEST, cpu, interrupt)?.start_times()))?);
        let place = NodePlace::new(setup.xfaas, cpu, "", &[NodeFunction { name: "count", guest: GUEST, keys: "" }])?;
        nodes.push(setup.at_load(|| Ok(place.start_contained(cpu, interrupt)?.start_times()))?);
    }
    Ok([hosts, nodes])
}

fn process_start(name: &'static str, times: &[ContainedStart]) -> Start {
    let mut all: Vec<f64> = times.iter().map(|start| start.answered_ns as f64 / 1_000.0).collect();
    all.sort_by(f64::total_cmp);
    let at = |quantile: f64| all[((all.len() as f64 * quantile).ceil() as usize).clamp(1, all.len()) - 1];
    let mean = |of: fn(&ContainedStart) -> u64| times.iter().map(|start| of(start) as f64).sum::<f64>() / 1_000.0 / times.len() as f64;
    let (listening_us, answered_us) = (mean(|start| start.listening_ns), mean(|start| start.answered_ns));
    Start { name, p50_us: at(0.5), p99_us: at(0.99), phases_us: [0.0, 0.0, listening_us, answered_us - listening_us] }
}

/// `containers`: at least one.
fn figure_of(starts: &[Start], containers: &[ContainedStart]) -> Figure {
    let container = process_start("traditional_container", containers);
    let all: Vec<&Start> = starts.iter().chain([&container]).collect();
    let mut figure = Figure::new("table2", "Table 2: starts", METHOD);
    let ms = |us: f64| three_digits(us / 1_000.0);
    figure.table = Table::new(["start", "p50 ms", "p99 ms", "network us", "queue us", "making its place us", "state, guest, reply us"]);
    for start in &all {
        let phases = start.phases_us.map(|us| if us == 0.0 { String::new() } else { format!("{us:.1}") });
        figure.table.push([vec![start.name.to_owned(), ms(start.p50_us), ms(start.p99_us)], phases.to_vec()].concat());
    }
    let paper_ms = |name: &str| PAPER_MS.iter().find(|(ours, ..)| *ours == name).map(|(.., ms)| *ms);
    for (name, paper_name, paper_ms) in PAPER_MS {
        let ours = all.iter().find(|start| start.name == name).map_or(String::new(), |start| format!("{} ms (p50)", ms(start.p50_us)));
        figure.comparisons.push(Comparison::new(paper_name, format!("{paper_ms} ms"), ours));
    }
    let compared: Vec<&&Start> = all.iter().filter(|start| paper_ms(start.name).is_some()).collect();
    let names = |starts: &[&&Start]| starts.iter().map(|start| start.name.replace('_', " ")).collect::<Vec<String>>();
    figure.charts.push(Chart::Bars(BarChart {
        title: "Starts, p50, beside the paper's".to_owned(),
        y: Axis::log("ms"),
        groups: names(&compared),
        series: vec![
            BarSeries::new("the paper", compared.iter().map(|start| paper_ms(start.name)).collect()),
            // The container is the baseline's: not all of them are of xfaas.
            BarSeries::new("measured here", compared.iter().map(|start| Some(start.p50_us / 1_000.0)).collect()),
        ],
    }));
    let every: Vec<&&Start> = all.iter().collect();
    let phases = ["network", "queue", "place: worker, container or process", "state, guest, reply"];
    let series = |(phase, name): (usize, &str)| {
        let of = |start: &&&Start| Some(start.phases_us[phase]).filter(|us| *us > 0.0);
        BarSeries::new(name, every.iter().map(of).collect())
    };
    figure.charts.push(Chart::Bars(BarChart {
        title: "Phases, mean".to_owned(),
        y: Axis::log("us"),
        groups: names(&every),
        series: phases.into_iter().enumerate().map(series).collect(),
    }));
    let running = containers.iter().map(|start| start.running_ns as f64).sum::<f64>() / 1e6 / containers.len() as f64;
    let before = format!(
        "Of the traditional container's place, {} ms pass until its namespaces are made and its program begins",
        three_digits(running)
    );
    figure
        .notes
        .push(format!("{before}; the rest is the program until it listens. {} were started, so p99 is the slowest.", containers.len()));
    figure.notes.push(
        "The 262 ms of the paper include a container runtime and an image, which are not measured here: ours is what a container needs at least.".to_owned(),
    );
    figure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_starts_stand_beside_the_papers() {
        let fork = ForkReport { p50_us: 9.0, p99_us: 20.0, instance_us: 5.0, first_call_us: 2.0, end_us: 2.0 };
        let times = |ms: u64| ContainedStart { running_ns: ms * 250_000, listening_ns: ms * 750_000, answered_ns: ms * 1_000_000 };
        let figure = figure_of(&[Start::from(&fork)], &[times(20), times(10), times(30)]);
        assert_eq!(figure.table.rows[0], ["fork", "0.009", "0.02", "", "", "5.0", "4.0"]);
        assert_eq!(figure.table.rows[1], ["traditional_container", "20", "30", "", "", "15000.0", "5000.0"]);
        assert_eq!(figure.comparisons[0], Comparison::new("Fork", "1.98 ms", "0.009 ms (p50)"));
        assert_eq!(figure.comparisons[1].ours, "", "not measured");
        assert!(figure.notes[0].contains("5 ms pass"), "{:?}", figure.notes);
        let Chart::Bars(chart) = &figure.charts[0] else { panic!("bars") };
        assert_eq!(chart.groups, ["fork", "traditional container"]);
        let series: Vec<(&str, Option<f64>)> = chart.series.iter().map(|series| (series.name.as_str(), series.values[1])).collect();
        assert_eq!(series, [("the paper", Some(262.0)), ("measured here", Some(20.0))], "the container is none of xfaas");
    }
}
