//! The figures of `bench state` as a table, each beside what was promised for it, if anything.

use crate::report::Row;
use std::fmt::Write as _;

/// What a median is held against.
enum Promise {
    /// At most so many nanoseconds.
    Ns(f64),
    /// At most so many times another case's median.
    Times(f64, &'static str),
    /// Shown only: so many times another case's median, which is what it is made of.
    MadeOf(f64, &'static str),
}

/// What the state's speed is held to. A strong read-modify-write over RPC is two round trips.
const PROMISES: [(&str, Promise); 5] = [
    ("state/read_remote_core", Promise::Times(2.0, "state/read/16B")),
    ("guest/read_state", Promise::Ns(150.0)),
    ("guest/rmw_strong", Promise::Ns(500.0)),
    ("rpc/read", Promise::Times(1.5, "tcp_ping_pong")),
    ("rpc/rmw_strong", Promise::MadeOf(2.0, "tcp_ping_pong")),
];

/// All state rows with aligned columns. A promise about a case that was not run stays empty.
pub fn state_table(rows: &[Row]) -> String {
    let mut text = format!("{:<26}{:>12}{:>12}   promised\n", "name", "p50 ns", "p99 ns");
    let median_of = |wanted: &str| {
        rows.iter().find_map(|row| match row {
            Row::State { name, p50_ns, .. } if *name == wanted => Some(*p50_ns),
            _ => None,
        })
    };
    let mut one_core = None;
    for row in rows {
        let (name, p50_ns, p99_ns, remark) = match row {
            Row::State { name, p50_ns, p99_ns } => {
                let promise = PROMISES.iter().find(|(promised, _)| promised == name).map(|(_, promise)| promise);
                (name, p50_ns, p99_ns, promise.and_then(|promise| verdict(*p50_ns, promise, median_of)))
            }
            Row::Scaling { name, p50_ns, p99_ns, reads_per_second } => {
                let times = reads_per_second / *one_core.get_or_insert(*reads_per_second);
                (name, p50_ns, p99_ns, Some(format!("{reads_per_second:.0} reads/s in all, {times:.2} x of one core")))
            }
            _ => continue,
        };
        let line = format!("{name:<26}{p50_ns:>12.1}{p99_ns:>12.1}   {}", remark.unwrap_or_default());
        writeln!(text, "{}", line.trim_end()).expect("a String takes all");
    }
    text
}

fn verdict(p50_ns: f64, promise: &Promise, median_of: impl Fn(&str) -> Option<f64>) -> Option<String> {
    let kept = |is_kept| if is_kept { "kept" } else { "MISSED" };
    match promise {
        Promise::Ns(ns_max) => Some(format!("at most {ns_max} ns: {}", kept(p50_ns <= *ns_max))),
        Promise::Times(times_max, other) => {
            let times = p50_ns / median_of(other).filter(|median| *median > 0.0)?;
            Some(format!("at most {times_max} x {other}: {times:.2} x, {}", kept(times <= *times_max)))
        }
        Promise::MadeOf(parts, other) => {
            let times = p50_ns / (parts * median_of(other).filter(|median| *median > 0.0)?);
            Some(format!("{times:.2} x of {parts} {other}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_promise_is_held_against_its_figure() {
        let rows = [
            Row::state("state/read/16B", 20.0, 30.0),
            Row::state("state/read_remote_core", 50.0, 60.0),
            Row::state("guest/read_state", 149.0, 200.0),
            Row::state("rpc/rmw_strong", 30_000.0, 40_000.0),
            Row::state("tcp_ping_pong", 10_000.0, 20_000.0),
        ];
        let text = state_table(&rows);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("state/read_remote_core").ends_with("2.50 x, MISSED"), "{text}");
        assert!(line("guest/read_state").ends_with("at most 150 ns: kept"), "{text}");
        assert!(line("rpc/rmw_strong").ends_with("1.50 x of 2 tcp_ping_pong"), "{text}");
        assert!(line("state/read/16B").ends_with("30.0"), "{text}");
    }

    #[test]
    fn reads_of_more_cores_are_held_against_those_of_one() {
        let row = |name, reads_per_second| Row::Scaling { name, p50_ns: 400.0, p99_ns: 500.0, reads_per_second };
        let text = state_table(&[row("state/read_scaling/1core", 2e6), row("state/read_scaling/2core", 3.8e6)]);
        assert!(text.lines().nth(2).is_some_and(|line| line.ends_with("3800000 reads/s in all, 1.90 x of one core")), "{text}");
    }

    #[test]
    fn a_promise_about_what_was_not_run_stays_empty() {
        let text = state_table(&[Row::state("rpc/read", 9_000.0, 9_999.0)]);
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with("9999.0")), "{text}");
    }
}
