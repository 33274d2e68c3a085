//! Fig. 7 and 8: what accesses take while 1 to 30 clients ask for one session at once, with state in the session, in redis and in an object store.

use super::places::{Access, Asked, Place, Started, at_each_place, us_order, us_text};
use super::{Axis, Chart, Figure, Line, LineChart, PaperError, PaperSetup, Table};
use crate::baseline::GuestTimes;
use crate::generator::{Arrivals, LoadOutcome, us_or_dash};

const CLIENTS: [usize; 5] = [1, 5, 10, 20, 30];
const METHOD: &str = "So many clients ask for one session over HTTP, each for its next request when it has its answer. `access` is the time from the guest's first \
                      instruction to its last: one read (RO), a read and a write with mode 0 (RMW), or a section with mode 1 (RMW_Linear) with the wait for its \
                      lock. xfaas tells it of one request in 128 (the stamps of `xfaas trace`), the baseline's host of each. `request` is what the client \
                      sees. Both are of the measured time, without the warm-up. 503: the lock was not free within 5 s.";

/// One case.
struct Point {
    place: Place,
    access: Access,
    clients: usize,
    guest: Option<GuestTimes>,
    outcome: LoadOutcome,
}

/// Fig. 7 and 8 in one.
pub fn fig7(setup: &PaperSetup<'_>) -> Result<Figure, PaperError> {
    let mut figure = Figure::new("fig7", "Fig. 7 and 8: access latency by clients of one session", METHOD);
    let measured = at_each_place(setup, &mut figure, |started| points(setup, started))?;
    let points: Vec<Point> = measured.into_iter().flatten().collect();
    figure.charts = Access::ALL.map(|access| chart(access, &points)).to_vec();
    figure.table = table(&points);
    for point in points.iter().filter(|point| point.outcome.refused > 0) {
        let (place, access, clients, refused) = (point.place.name(), point.access.name(), point.clients, point.outcome.refused);
        let good = point.outcome.good;
        figure.notes.push(format!(
            "{place}, {access}, {clients} clients: {refused} requests waited 5 s for the lock in vain, {good} were answered."
        ));
    }
    Ok(figure)
}

fn points(setup: &PaperSetup<'_>, started: &Started) -> Result<Vec<Point>, PaperError> {
    let (place, mut points) = (started.place(), Vec::new());
    for access in Access::ALL {
        for clients in CLIENTS {
            let asked = Asked { access, connections: clients, sessions: 1, arrivals: Arrivals::Closed };
            let mut rounds = Vec::new();
            for _ in 0..setup.rounds.max(1) {
                setup.check_interrupt()?;
                let (outcome, guest) = started.load_and_time(setup, &asked)?;
                rounds.push(Point { place, access, clients, guest, outcome });
            }
            rounds.sort_by(|a, b| us_order(a.outcome.latency.p50_us).total_cmp(&us_order(b.outcome.latency.p50_us)));
            let point = rounds.swap_remove((rounds.len() - 1) / 2);
            let request_us = us_or_dash(point.outcome.latency.p50_us, 0);
            eprintln!("fig7: {}, {} from {clients} clients: request p50 {request_us} us", place.name(), access.name());
            points.push(point);
        }
    }
    Ok(points)
}

fn chart(access: Access, points: &[Point]) -> Chart {
    let line = |place: Place| {
        let of_line = points.iter().filter(|point| point.place == place && point.access == access);
        let points: Vec<_> = of_line.filter_map(|point| Some((point.clients as f64, point.guest?.mean_us))).collect();
        (!points.is_empty()).then(|| Line::marked(place.name(), points))
    };
    let lines = Place::ALL.into_iter().filter_map(line).collect();
    let (x, y) = (Axis::linear("clients"), Axis::log("mean access, us"));
    Chart::Lines(LineChart { title: access.name().to_owned(), x, y, lines })
}

fn table(points: &[Point]) -> Table {
    let mut table = Table::new([
        "access and place",
        "clients",
        "access mean us",
        "access p50 us",
        "access p99 us",
        "request mean us",
        "request p50 us",
        "request p99 us",
        "requests/s",
        "refused",
    ]);
    for access in Access::ALL {
        for point in points.iter().filter(|point| point.access == access) {
            let guest = |pick: fn(&GuestTimes) -> f64| point.guest.as_ref().map_or(String::new(), |times| format!("{:.1}", pick(times)));
            let latency = point.outcome.latency;
            table.push(vec![
                format!("{}, {}", access.name(), point.place.name()),
                point.clients.to_string(),
                guest(|times| times.mean_us),
                guest(|times| times.p50_us),
                guest(|times| times.p99_us),
                us_text(latency.mean_us),
                us_text(latency.p50_us),
                us_text(latency.p99_us),
                format!("{:.0}", point.outcome.requests_per_second),
                point.outcome.refused.to_string(),
            ]);
        }
    }
    table
}
