//! A `Frame` as lines of text, for a terminal of a given size or for a pipe. Called by `top.rs`; only computes.

use super::rates::{Frame, FunctionRates, ShardRates};

/// Of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub columns: usize,
    pub rows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    /// The names of a table's columns.
    Names,
    Alarm,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub text: String,
    pub style: Style,
}

/// Between two figures of the head, and between two columns.
const GAP: &str = "  ";
/// Columns go before a function's name is cut shorter than this.
const NAME_CHARS_KEPT: usize = 16;
/// The last column of a table goes before it is cut shorter than this.
const OPEN_CHARS_KEPT: usize = 24;
/// Numbers keep their place while they are shorter than this.
const NUMBER_CHARS: usize = 6;
/// A blank line and the names of the columns.
const TABLE_LINES: usize = 2;
/// The head gets so many lines at least, and more where they are less than a third of all.
const HEAD_LINES_KEPT: usize = 3;

/// `alarm`: why `frame` is an old one. `size`: None is a pipe, where everything is shown.
pub(super) fn lines(frame: &Frame, alarm: Option<&str>, size: Option<Size>) -> Vec<Line> {
    let columns = size.map_or(usize::MAX, |size| size.columns);
    let mut lines = head(frame, alarm, columns);
    lines.truncate(size.map_or(usize::MAX, |size| HEAD_LINES_KEPT.max(size.rows / 3)));
    let room = size.map_or(usize::MAX, |size| size.rows.saturating_sub(lines.len() + 2 * TABLE_LINES));
    let (shards, functions) = shares(room, frame.shards.len(), frame.functions.len().max(1));
    lines.push(plain(String::new()));
    lines.extend(limited(shards_table(frame, shards, columns), frame.shards.len(), shards, "cores", columns));
    lines.push(plain(String::new()));
    if frame.functions.is_empty() {
        lines.push(plain(cut("no function was asked for yet", columns)));
    } else {
        lines.extend(limited(functions_table(frame, functions, columns), frame.functions.len(), functions, "functions", columns));
    }
    lines.truncate(size.map_or(usize::MAX, |size| size.rows));
    lines
}

fn plain(text: String) -> Line {
    Line { text, style: Style::Plain }
}

/// How many lines each of two tables gets: half of the room each, and what one does not need is the other's.
fn shares(room: usize, shards: usize, functions: usize) -> (usize, usize) {
    let first = shards.min((room / 2).max(room.saturating_sub(functions)));
    (first, functions.min(room - first))
}

/// A table of `all` rows in `room` lines: the last one tells how many are left out, if there is another.
fn limited(mut table: Vec<Line>, all: usize, room: usize, what: &str, columns: usize) -> Vec<Line> {
    if all > room && room > 1 {
        table.truncate(room); // with the names of the columns
        table.push(plain(cut(&format!("and {} more {what}", all - (room - 1)), columns)));
    }
    table
}

fn head(frame: &Frame, alarm: Option<&str>, columns: usize) -> Vec<Line> {
    let Frame { address, workers, workers_idle, workers_parked, sessions, sessions_asleep, .. } = frame;
    let mut node = vec![format!("xfaas {address}"), format!("up {}", uptime(frame.uptime_s)), format!("steering {}", frame.steering)];
    node.extend((alarm.is_none() && frame.not_ready.is_none()).then(|| "ready".to_owned()));
    node.extend(frame.interval_s.map(|seconds| format!("interval {} s", trimmed(seconds))));
    let rates = vec![
        format!("per s: requests {}", rate(frame.requests_per_s)),
        format!("errors {}", rate(frame.errors_per_s)),
        format!("refused {}", rate(frame.refused_per_s)),
        format!("shed {}", rate(frame.shed_per_s)),
        format!("forwarded {}", rate(frame.forwarded_per_s)),
        format!("dropped {}", rate(frame.dropped_per_s)),
    ];
    let asleep = if *sessions_asleep > 0 { format!(" + {sessions_asleep} asleep") } else { String::new() };
    let gauges = vec![
        format!("sessions {sessions}{asleep}"),
        format!("workers {workers} ({workers_idle} idle, {workers_parked} parked)"),
        format!("connections {}", frame.connections),
        format!("queued {}", frame.queued),
        format!("functions {}", frame.functions_running),
        format!("guest memory {} of {}", bytes(frame.guest_memory_bytes), bytes(frame.guest_memory_limit_bytes)),
        format!("state {}", bytes(frame.state_bytes)),
    ];
    let mut lines: Vec<Line> = flow(&node, GAP, columns).into_iter().map(plain).collect();
    let restarted = frame.restarted.then(|| "RESTARTED: another process answers than before, rates follow".to_owned());
    let not_ready = frame.not_ready.as_ref().map(|missing| format!("NOT READY: {missing}"));
    for alarm in alarm.map(str::to_owned).into_iter().chain(restarted).chain(not_ready) {
        let words: Vec<String> = alarm.split_whitespace().map(str::to_owned).collect();
        lines.extend(flow(&words, " ", columns).into_iter().map(|text| Line { text, style: Style::Alarm }));
    }
    lines.extend([rates, gauges].iter().flat_map(|items| flow(items, GAP, columns)).map(plain));
    lines
}

/// As many items in a line as there is room for.
fn flow(items: &[String], gap: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        let item = cut(item, columns);
        match lines.last_mut() {
            Some(line) if line.chars().count() + gap.len() + item.chars().count() <= columns => {
                line.push_str(gap);
                line.push_str(&item);
            }
            _ => lines.push(item),
        }
    }
    lines
}

/// One column of a table.
struct Column {
    name: &'static str,
    kind: Kind,
    /// The greatest goes first when there is no room; 0 stays.
    goes: u8,
    cells: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    /// May be cut, but not below `NAME_CHARS_KEPT` while other columns can go.
    Name,
    /// The last one, which gets what is left.
    Open,
}

fn shards_table(frame: &Frame, room: usize, columns: usize) -> Vec<Line> {
    let mut shards: Vec<&ShardRates> = frame.shards.iter().collect();
    if shards.len() > room {
        let load = |shard: &ShardRates| (shard.busy.unwrap_or(0.0), shard.requests_per_s.unwrap_or(0.0));
        shards.sort_by(|a, b| load(b).0.total_cmp(&load(a).0).then(load(b).1.total_cmp(&load(a).1)));
        shards.truncate(room);
    }
    let column = |name, goes, cell: &dyn Fn(&ShardRates) -> String| Column {
        name,
        kind: Kind::Number,
        goes,
        cells: shards.iter().map(|shard| cell(shard)).collect(),
    };
    let table = vec![
        column("CORE", 0, &|shard| shard.core.to_string()),
        column("BUSY", 0, &|shard| shard.busy.map_or_else(|| "-".to_owned(), |part| format!("{:.0}%", part * 100.0))),
        column("REQUESTS/S", 0, &|shard| rate(shard.requests_per_s)),
        column("TURNS/S", 7, &|shard| rate(shard.turns_per_s)),
        column("SESSIONS", 6, &|shard| shard.sessions.to_string()),
        column("WORKERS", 3, &|shard| shard.workers.to_string()),
        column("CONNECTIONS", 5, &|shard| shard.connections.to_string()),
        column("QUEUED", 2, &|shard| shard.queued.to_string()),
        column("SHED/S", 1, &|shard| rate(shard.shed_per_s)),
        column("FORWARDED/S", 4, &|shard| rate(shard.forwarded_per_s)),
    ];
    fitted(table, columns)
}

fn functions_table(frame: &Frame, room: usize, columns: usize) -> Vec<Line> {
    let column = |name, kind, goes, cell: &dyn Fn(&FunctionRates) -> String| Column {
        name,
        kind,
        goes,
        cells: frame.functions.iter().take(room).map(cell).collect(),
    };
    let at_most = |function: &FunctionRates, bound_us: Option<f64>| match (bound_us, function.over_us) {
        (Some(bound_us), _) => format!("<={}", time(bound_us)),
        (None, Some(over_us)) => format!(">{}", time(over_us)),
        (None, None) => "-".to_owned(),
    };
    let table = vec![
        column("FUNCTION", Kind::Name, 0, &|function| function.name.clone()),
        column("REQUESTS/S", Kind::Number, 0, &|function| rate(function.requests_per_s)),
        column("ERRORS/S", Kind::Number, 1, &|function| rate(function.errors_per_s)),
        column("MEAN", Kind::Number, 4, &|function| function.mean_us.map_or_else(|| "-".to_owned(), time)),
        column("P50", Kind::Number, 5, &|function| at_most(function, function.p50_us_max)),
        column("P99", Kind::Number, 2, &|function| at_most(function, function.p99_us_max)),
        column("ERRORS/S BY KIND", Kind::Open, 3, &by_kind),
    ];
    fitted(table, columns)
}

fn by_kind(function: &FunctionRates) -> String {
    let mut errors: Vec<(&String, &f64)> = function.errors.iter().collect();
    errors.sort_by(|a, b| b.1.total_cmp(a.1));
    errors.iter().map(|(kind, per_s)| format!("{kind} {}", rate(Some(**per_s)))).collect::<Vec<_>>().join(", ")
}

/// The columns that there is room for, under their names.
fn fitted(mut table: Vec<Column>, columns: usize) -> Vec<Line> {
    let natural = |column: &Column| {
        let least = if column.kind == Kind::Number { NUMBER_CHARS } else { 0 };
        column.cells.iter().map(|cell| cell.chars().count()).chain([column.name.len(), least]).max().unwrap_or(0)
    };
    let kept = |column: &Column| match column.kind {
        Kind::Number => natural(column),
        Kind::Name => natural(column).min(NAME_CHARS_KEPT),
        Kind::Open => natural(column).min(OPEN_CHARS_KEPT),
    };
    // Nothing is lost with a column that is empty.
    if table.iter().map(natural).sum::<usize>() + GAP.len() * table.len() > columns {
        table.retain(|column| column.kind != Kind::Open || column.cells.iter().any(|cell| !cell.is_empty()));
    }
    let gaps = |table: &[Column]| GAP.len() * table.len().saturating_sub(1);
    let least = |table: &[Column]| table.iter().map(kept).sum::<usize>() + gaps(table);
    while least(&table) > columns {
        let Some(first) = (0..table.len()).filter(|at| table[*at].goes > 0).max_by_key(|at| table[*at].goes) else { break };
        table.remove(first);
    }
    // What the others leave is the name's, then the open column's, which is cut with its line.
    let spare = columns.saturating_sub(least(&table));
    let width = |column: &Column| match column.kind {
        Kind::Name => natural(column).min(kept(column).saturating_add(spare)),
        _ => natural(column),
    };
    let widths: Vec<usize> = table.iter().map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = table.iter().zip(&widths).zip(cells).map(|((column, width), cell)| match column.kind {
            Kind::Number => format!("{cell:>width$}"),
            _ => format!("{:<width$}", cut(cell, *width)),
        });
        cut(padded.collect::<Vec<_>>().join(GAP).trim_end(), columns)
    };
    let names = Line { text: line(&mut table.iter().map(|column| column.name)), style: Style::Names };
    let rows = table.first().map_or(0, |column| column.cells.len());
    let row = |at: usize| plain(line(&mut table.iter().map(|column| column.cells[at].as_str())));
    std::iter::once(names).chain((0..rows).map(row)).collect()
}

/// At most so many characters, none of which a terminal obeys. What is cut off shows as `+`, as top(1) does it.
fn cut(text: &str, columns: usize) -> String {
    let text = text.chars().map(|char| if char.is_control() { '?' } else { char });
    if text.clone().count() <= columns {
        return text.collect();
    }
    text.take(columns.saturating_sub(1)).chain((columns > 0).then_some('+')).collect()
}

fn rate(per_s: Option<f64>) -> String {
    match per_s {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(rate) if rate < 1.0 => format!("{rate:.2}"),
        Some(rate) if rate < 10.0 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.0}"),
    }
}

fn time(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 999.5 => (us, "us"),
        us if us < 999_500.0 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    format!("{} {unit}", if value < 99.95 { trimmed(value) } else { format!("{value:.0}") })
}

/// One decimal, where it is none of zero.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    for unit in &units[..units.len() - 1] {
        if value < 1024.0 {
            return format!("{} {unit}", trimmed(value));
        }
        value /= 1024.0;
    }
    format!("{} {}", trimmed(value), units[units.len() - 1])
}

fn uptime(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (days, hours, minutes, seconds) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    let clock = format!("{hours:02}:{minutes:02}:{seconds:02}");
    if days > 0 { format!("{days}d {clock}") } else { clock }
}
