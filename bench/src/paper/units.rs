//! Fig. 5: what one more isolation unit takes of memory: a session, a worker, a container of the same node, and a container that is a process.

use super::axes::three_digits;
use super::figure::{Axis, BarChart, BarSeries, Chart, Figure, Table};
use super::{PaperError, PaperSetup, count_of};
use crate::servers::{Contained, NodeFunction, NodePlace, start_contained_baseline, start_redis_with_socket};
use crate::sessions::{
    Resident, SessionsBench, SessionsError, measure_copy_growth, measure_density, measure_image, measure_workers, start_for_copies,
};

const SESSIONS: u32 = 100_000;
const WORKERS: u32 = 200;
const IMAGE_WORKERS: u32 = 100;
const COPIES: u32 = 100;
const PROCESSES: u32 = 8;
const GUEST: &str = "counter-rmw";
const METHOD: &str = "How much memory of the node grows (/proc/PID/smaps_rollup) by many of a kind, for each: workers by Fork of a small guest and of one whose image \
     is 64 MiB, each with its session; secondary containers (CopySession) of sessions that have their primary, with the one worker in it; sessions at rest with 100 bytes \
     of state, beside which the figure is. Beside them processes in new namespaces (processes, mounts, network, IPC, host name) that host the same small guest, after their \
     first request, several at once: a whole node of xfaas, and the traditional container, which is the baseline's host with its state in redis. Shared: pages that several \
     have mapped are divided by how many (PSS). Own: anonymous pages of the node, and of a process what its end would give back (USS).";

/// Of one more, in bytes.
struct Unit {
    name: &'static str,
    shared: f64,
    own: f64,
    count: u32,
}

pub(super) fn fig5(setup: &PaperSetup<'_>) -> Result<Figure, PaperError> {
    let bench =
        &SessionsBench { xfaas: setup.xfaas, server_cpu: setup.server_cpu, second_cpu: setup.second_cpu, interrupt: setup.interrupt };
    let mut units = Vec::new();
    eprintln!("fig5: sessions at rest");
    let density = measure_density(bench, count_of(setup, SESSIONS, 1_000))?;
    let own = density.anonymous_bytes as f64 / density.sessions.max(1) as f64;
    units.push(Unit { name: "session at rest", shared: density.beside_state(), own, count: density.sessions as u32 });
    for (name, guest, count) in [("worker (Fork)", GUEST, WORKERS), ("worker, image of 64 MiB", "table-64mib", IMAGE_WORKERS)] {
        eprintln!("fig5: {name}");
        setup.check_interrupt()?;
        let count = count_of(setup, count, 10);
        let growth = if guest == GUEST { measure_workers(bench, guest, count)? } else { measure_image(bench, count)? };
        units.push(Unit { name, shared: growth.proportional_bytes, own: growth.anonymous_bytes, count: growth.forks as u32 });
    }
    eprintln!("fig5: secondary containers");
    let (place, server) = start_for_copies(bench)?;
    let copies = setup.at_load(|| Ok(measure_copy_growth(bench, &place, &server, count_of(setup, COPIES, 10))?))?;
    drop(server);
    units.push(Unit {
        name: "secondary container (CopySession)",
        shared: copies.proportional_bytes,
        own: copies.anonymous_bytes,
        count: copies.copies,
    });
    eprintln!("fig5: container processes");
    units.push(processes(setup, "process that is a node", || {
        let place = NodePlace::new(setup.xfaas, setup.server_cpu, "", &[NodeFunction { name: "count", guest: GUEST, keys: "" }])?;
        let container = setup.at_load(|| Ok(place.start_contained(setup.server_cpu, setup.interrupt)?))?;
        Ok((container, Some(place)))
    })?);
    let (_redis, socket) = start_redis_with_socket(setup.server_cpu, setup.interrupt)?;
    units.push(processes(setup, "traditional container", || {
        let start = || start_contained_baseline(setup.xfaas, &socket, GUEST, setup.server_cpu, setup.interrupt);
        Ok((setup.at_load(|| Ok(start()?))?, None))
    })?);
    Ok(figure_of(&units))
}

/// A process, and its files if it has any.
type Host = (Contained, Option<NodePlace>);

/// Hosts in namespaces of their own, started one after the other and all left running until they are measured.
fn processes(setup: &PaperSetup<'_>, name: &'static str, start: impl Fn() -> Result<Host, PaperError>) -> Result<Unit, PaperError> {
    let count = count_of(setup, PROCESSES, 3);
    let mut running: Vec<Host> = Vec::new();
    for _ in 0..count {
        setup.check_interrupt()?;
        running.push(start()?);
    }
    let of_all = running.iter().map(|(container, _)| Resident::of(container.pid())).collect::<Result<Vec<Resident>, SessionsError>>()?;
    let own = of_all.iter().map(|one| one.unique).sum::<u64>() as f64 / f64::from(count);
    let shared = of_all.iter().map(|one| one.proportional).sum::<u64>() as f64 / f64::from(count);
    Ok(Unit { name, shared, own, count })
}

fn figure_of(units: &[Unit]) -> Figure {
    let mut figure = Figure::new("fig5", "Fig. 5: memory of one more isolation unit", METHOD);
    figure.table = Table::new(["one more", "KiB, shared divided", "KiB, its own", "measured over", "as many as a container"]);
    let process = units.last().map_or(0.0, |unit| unit.shared);
    for unit in units {
        let kib = |bytes: f64| three_digits(bytes / 1_024.0);
        let fit = if unit.shared > 0.0 { three_digits(process / unit.shared) } else { String::new() };
        figure.table.push(vec![unit.name.to_owned(), kib(unit.shared), kib(unit.own), unit.count.to_string(), fit]);
    }
    let series = |name: &str, of: fn(&Unit) -> f64| BarSeries::new(name, units.iter().map(|unit| Some(of(unit) / 1_024.0)).collect());
    figure.charts = vec![Chart::Bars(BarChart {
        title: "Memory of one more".to_owned(),
        y: Axis::log("KiB"),
        groups: units.iter().map(|unit| unit.name.to_owned()).collect(),
        series: vec![series("shared pages divided", |unit| unit.shared), series("its own", |unit| unit.own)],
    })];
    figure.notes.push(
        "The process is a traditional container at its least: no runtime beside it, no image of its own, no pages of a language's runtime: with those it takes 20 MB and more. Redis is not counted."
            .to_owned(),
    );
    figure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_stand_beside_the_process() {
        let unit = |name, shared| Unit { name, shared, own: shared / 2.0, count: 10 };
        let figure = figure_of(&[unit("worker (Fork)", 20_480.0), unit("traditional container", 10_240_000.0)]);
        assert_eq!(figure.table.rows[0], ["worker (Fork)", "20", "10", "10", "500"]);
        let Chart::Bars(chart) = &figure.charts[0] else { panic!("bars") };
        assert_eq!((chart.groups.len(), chart.series[1].values[1]), (2, Some(5_000.0)));
    }
}
