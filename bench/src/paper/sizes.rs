//! Fig. 1: what one access to state takes from inside a guest, by the value's size, in the session, in redis, and in an object store. No HTTP: the
//! guest makes many accesses in one invocation, and the clock is outside.

use super::places::{Place, PlaceError, left_out};
use super::{Axis, Chart, Comparison, Figure, Line, LineChart, PaperError, PaperSetup, Table};
use crate::baseline::{BaselineHost, Ended, ObjectPlace, ObjectState, OutsideState, RedisState};
use crate::guest::Guest;
use crate::servers::{BUCKET, start_objects, start_redis};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::worker::Worker;

const GUEST: &str = "state-size";
/// 1 KiB to 1 MiB.
const SIZES: [u32; 6] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
const METHOD: &str = "One guest reads or writes a value with mode 0 many times in an invocation; an access is the invocation's time divided by their number, \
                      the median of all invocations of a case. The guest runs on the servers' CPU, and so does the store: redis-server keeps nothing on disk, \
                      SeaweedFS writes to the local disk without syncing.";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Read = 0,
    Write = 1,
}

/// The guest with its state somewhere.
enum Seat {
    Session { guest: Box<Guest>, worker: Worker },
    Outside { runtime: Runtime, host: Box<BaselineHost> },
}

impl Seat {
    /// Accesses in one invocation: fewer where one takes longer.
    fn accesses(&self, bytes: u32) -> u32 {
        match self {
            Seat::Session { .. } => ((1 << 20) / bytes).clamp(4, 64),
            Seat::Outside { .. } => ((64 << 10) / bytes).clamp(1, 8),
        }
    }

    fn invoke(&mut self, action: Action, count: u32, bytes: u32) -> Result<(), PlaceError> {
        let body = [(action as u32).to_le_bytes(), count.to_le_bytes(), bytes.to_le_bytes()].concat();
        match self {
            Seat::Session { guest, worker } => {
                guest.set_body(&body);
                Ok(guest.call(worker).map(drop)?)
            }
            Seat::Outside { runtime, host } => {
                let ended = runtime.block_on(host.call(GUEST, session(), &body));
                match ended {
                    Some((Ended::Replied, _)) => Ok(()),
                    other => Err(PlaceError::Run {
                        place: "baseline",
                        what: format!("{bytes} bytes"),
                        fault: format!("{other:?}"),
                        log: String::new(),
                    }),
                }
            }
        }
    }

    /// The median of one access, in nanoseconds.
    fn measure(&mut self, action: Action, bytes: u32, setup: &PaperSetup<'_>) -> Result<f64, PaperError> {
        let count = self.accesses(bytes);
        self.invoke(Action::Write, 1, bytes)?;
        self.invoke(action, count, bytes)?;
        let (begun, time) = (Instant::now(), Duration::from_secs_f64(setup.seconds));
        let mut samples_ns = Vec::new();
        while begun.elapsed() < time || samples_ns.is_empty() {
            setup.check_interrupt()?;
            let started = Instant::now();
            self.invoke(action, count, bytes)?;
            samples_ns.push(started.elapsed().as_nanos() as f64 / f64::from(count));
        }
        Ok(crate::report::median(&samples_ns).expect("there is a sample"))
    }
}

fn session() -> SessionId {
    SessionId::new(b"session-of-16-by").expect("visible ASCII, 16 bytes")
}

/// Nanoseconds of reads and of writes, by size.
struct Measured {
    place: Place,
    read_ns: Vec<f64>,
    write_ns: Vec<f64>,
}

/// Fig. 1. A store that cannot be had is left out, with a note.
pub fn fig1(setup: &PaperSetup<'_>) -> Result<Figure, PaperError> {
    let mut figure = Figure::new("fig1", "Fig. 1: access to state by size", METHOD);
    let mut all = Vec::new();
    for place in Place::ALL {
        match measure_place(place, setup) {
            Ok(measured) => all.push(measured),
            Err(PaperError::Place(error)) if place == Place::Objects && error.is_missing() => figure.notes.push(left_out(&error)),
            Err(error) => return Err(error),
        }
    }
    figure.charts = ["read", "write"].map(|action| chart(action, &all)).to_vec();
    figure.table = table(&all);
    let of = |place, pick: fn(&Measured) -> f64| {
        all.iter().find(|measured| measured.place == place).map_or(String::new(), |measured| time_text(pick(measured)))
    };
    figure.comparisons.push(Comparison::new("read of 1 KiB in memory", "~3000 ns", of(Place::Session, |measured| measured.read_ns[0])));
    figure.comparisons.push(Comparison::new("read of 1 KiB in redis", "", of(Place::Redis, |measured| measured.read_ns[0])));
    let objects = of(Place::Objects, |measured| measured.read_ns[0]);
    figure.comparisons.push(Comparison::new("read of 1 KiB in the object store", "> 10 ms", objects));
    Ok(figure)
}

fn measure_place(place: Place, setup: &PaperSetup<'_>) -> Result<Measured, PaperError> {
    let module = setup.xfaas.guest(GUEST)?;
    // The ticker's thread must not have to share the guest's CPU.
    let loaded = match place {
        Place::Session => Some(Guest::load(&module).map_err(PlaceError::from)?),
        Place::Redis | Place::Objects => None,
    };
    setup.at_servers(|| {
        let redis = match place {
            Place::Redis => Some(start_redis(setup.server_cpu, setup.interrupt)?),
            Place::Session | Place::Objects => None,
        };
        let objects = match place {
            Place::Objects => Some(start_objects(setup.packages, setup.interrupt).map_err(PlaceError::from)?),
            Place::Session | Place::Redis => None,
        };
        let mut seat = match loaded {
            Some(guest) => {
                let worker = guest.fork().map_err(PlaceError::from)?;
                Seat::Session { guest: Box::new(guest), worker }
            }
            None => outside_seat(setup, redis.as_ref().map(|redis| redis.address()), objects.as_ref().map(|objects| objects.address()))?,
        };
        let mut measured = Measured { place, read_ns: Vec::new(), write_ns: Vec::new() };
        for bytes in SIZES {
            measured.read_ns.push(seat.measure(Action::Read, bytes, setup)?);
            measured.write_ns.push(seat.measure(Action::Write, bytes, setup)?);
            let last = |values: &[f64]| values.last().copied().map_or(String::new(), time_text);
            let [read, write] = [last(&measured.read_ns), last(&measured.write_ns)];
            eprintln!("fig1: {} of {}: read {read}, write {write}", place.name(), size_text(bytes));
        }
        Ok(measured)
    })
}

fn outside_seat(
    setup: &PaperSetup<'_>,
    redis: Option<std::net::SocketAddr>,
    objects: Option<std::net::SocketAddr>,
) -> Result<Seat, PlaceError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(PlaceError::Runtime)?;
    let outside = runtime.block_on(async {
        match (redis, objects) {
            (Some(address), _) => RedisState::connect(&format!("redis://{address}")).await.map(OutsideState::Redis),
            (None, address) => {
                let endpoint = address.map_or(String::new(), |address| format!("http://{address}"));
                ObjectState::connect(&ObjectPlace { bucket: BUCKET.to_owned(), endpoint, credentials: None })
                    .await
                    .map(OutsideState::Objects)
            }
        }
    });
    let outside = outside.map_err(crate::baseline::BaselineError::from)?;
    let host = Box::new(BaselineHost::load(outside, &setup.xfaas.guests, &[GUEST])?);
    Ok(Seat::Outside { runtime, host })
}

fn chart(action: &str, all: &[Measured]) -> Chart {
    let line = |measured: &Measured| {
        let times = if action == "read" { &measured.read_ns } else { &measured.write_ns };
        let points = SIZES.iter().zip(times).map(|(bytes, ns)| (f64::from(*bytes) / 1024.0, ns / 1e3));
        Line::marked(measured.place.name(), points.collect())
    };
    let (x, y) = (Axis::log("value, KiB"), Axis::log("one access, us"));
    Chart::Lines(LineChart { title: action.to_owned(), x, y, lines: all.iter().map(line).collect() })
}

fn table(all: &[Measured]) -> Table {
    let mut columns = vec!["value".to_owned()];
    columns.extend(all.iter().flat_map(|measured| ["read", "write"].map(|action| format!("{action}, {}", measured.place.name()))));
    let rows = SIZES.iter().enumerate().map(|(i, bytes)| {
        let mut row = vec![size_text(*bytes)];
        row.extend(all.iter().flat_map(|measured| [time_text(measured.read_ns[i]), time_text(measured.write_ns[i])]));
        row
    });
    Table { rows: rows.collect(), columns }
}

fn size_text(bytes: u32) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

/// Nanoseconds with a unit that suits them.
fn time_text(ns: f64) -> String {
    match ns {
        _ if ns < 1e4 => format!("{ns:.0} ns"),
        _ if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        _ => format!("{:.2} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_for_each_size_and_a_column_for_each_access() {
        let of = |place, ns| Measured { place, read_ns: vec![ns; SIZES.len()], write_ns: vec![2.0 * ns; SIZES.len()] };
        let table = table(&[of(Place::Session, 150.0), of(Place::Objects, 1_500_000.0)]);
        assert_eq!(table.columns, ["value", "read, session", "write, session", "read, object store", "write, object store"]);
        assert_eq!(table.rows[5], ["1 MiB", "150 ns", "300 ns", "1.50 ms", "3.00 ms"]);
        assert!(table.rows.iter().all(|row| row.len() == 5));
    }

    #[test]
    fn times_have_a_unit_that_suits_them() {
        assert_eq!([time_text(149.6), time_text(26_040.0), time_text(12_345_678.0)], ["150 ns", "26.0 us", "12.35 ms"]);
    }
}
