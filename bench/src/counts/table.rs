//! The committed table of counts, and how it is held against what was counted.

use std::fmt::Write as _;

/// First line of the table's file.
const HEAD: &str =
    "# Counts that must not grow: `cargo xtask bench counts` compares, `cargo xtask bench counts --update` writes this file.";

/// What is counted. Each has a tolerance of its own, because they do not shake alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    Instructions,
    /// Different lines of code that all operations together run through, 64 bytes each; the first-level cache holds 512.
    CodeLines,
    /// Misses of the first-level cache.
    DataMisses,
    /// `io_uring_enter` calls: all that a warm shard makes.
    Enters,
    /// Operations handed to the ring, and taken from it.
    Submissions,
    Completions,
    Allocations,
    AllocatedBytes,
    /// Of what the same case does without.
    Percent,
}

const UNITS: [(Unit, &str); 9] = [
    (Unit::Instructions, "instructions"),
    (Unit::CodeLines, "code_lines"),
    (Unit::DataMisses, "d1_misses"),
    (Unit::Enters, "enters"),
    (Unit::Submissions, "submissions"),
    (Unit::Completions, "completions"),
    (Unit::Allocations, "allocations"),
    (Unit::AllocatedBytes, "allocated_bytes"),
    (Unit::Percent, "percent"),
];

impl Unit {
    pub fn name(self) -> &'static str {
        UNITS.iter().find(|(unit, _)| *unit == self).expect("all units are listed").1
    }

    fn named(name: &str) -> Option<Unit> {
        UNITS.iter().find(|(_, known)| *known == name).map(|(unit, _)| *unit)
    }

    /// How much a count may differ from the table: a part of it, and so much however small it is. Reasons: docs/PERFORMANCE.md.
    fn tolerance(self) -> (f64, f64) {
        match self {
            Unit::Instructions => (0.05, 2.0),
            // Lines, and not their misses: where the linker puts functions decides which of them share a set of the cache, and the same source
            // in another folder, not one instruction more on the way, missed 84 lines more.
            Unit::CodeLines => (0.1, 8.0),
            // What is touched may begin anywhere in a line: a Fork misses 245 to 267 by folder and run, and one more page would be 64.
            Unit::DataMisses => (0.2, 20.0),
            // How many requests a turn gathers depends on what else the machine does: with 32 connections 0.04 entries on one that is idle, 0.056
            // where others build all the time.
            Unit::Enters | Unit::Submissions | Unit::Completions => (0.05, 0.02),
            // A difference of two large counts.
            Unit::Percent => (0.1, 0.5),
            Unit::Allocations | Unit::AllocatedBytes => (0.05, 0.0),
        }
    }
}

/// One count, a request or an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: String,
    pub unit: Unit,
    pub count: f64,
}

impl Row {
    pub fn new(name: impl Into<String>, unit: Unit, count: f64) -> Row {
        Row { name: name.into(), unit, count: rounded(count) }
    }
}

/// As it is written in the table.
fn rounded(count: f64) -> f64 {
    (count * 1_000.0).round() / 1_000.0
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TableError {
    #[error("the table does not begin with `{HEAD}`")]
    Head,
    #[error("line {line} of the table is not `name unit count`: {text:?}")]
    Line { line: usize, text: String },
    #[error("line {line} of the table counts {name} again")]
    Twice { line: usize, name: String },
}

/// The table's text.
pub fn to_text(rows: &[Row]) -> String {
    let mut text = format!("{HEAD}\n");
    for Row { name, unit, count } in rows {
        writeln!(text, "{name} {} {count}", unit.name()).expect("a String takes all");
    }
    text
}

/// Reads a table. Errors: the first line that is none.
pub fn from_text(text: &str) -> Result<Vec<Row>, TableError> {
    let mut lines = text.lines().enumerate();
    if lines.next().map(|(_, line)| line) != Some(HEAD) {
        return Err(TableError::Head);
    }
    let mut rows: Vec<Row> = Vec::new();
    for (index, text) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let line = index + 1;
        let row = parse(text).ok_or_else(|| TableError::Line { line, text: text.to_owned() })?;
        if rows.iter().any(|other| other.name == row.name && other.unit == row.unit) {
            return Err(TableError::Twice { line, name: row.name });
        }
        rows.push(row);
    }
    Ok(rows)
}

fn parse(line: &str) -> Option<Row> {
    let mut words = line.split_ascii_whitespace();
    let (name, unit, count) = (words.next()?, Unit::named(words.next()?)?, words.next()?.parse::<f64>().ok()?);
    (words.next().is_none() && count.is_finite() && count >= 0.0).then(|| Row { name: name.to_owned(), unit, count })
}

/// The rows of `table`, those that were counted again in their new form and place, and the new ones behind them.
pub fn updated(table: &[Row], counted: &[Row]) -> Vec<Row> {
    let same = |a: &Row, b: &Row| a.name == b.name && a.unit == b.unit;
    let mut rows: Vec<Row> = table.iter().map(|row| counted.iter().find(|other| same(row, other)).unwrap_or(row)).cloned().collect();
    rows.extend(counted.iter().filter(|row| !table.iter().any(|other| same(row, other))).cloned());
    rows
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    /// More than the tolerance above the table: the command fails.
    Worse,
    /// More than the tolerance below: the table should be written anew, or the gain can be lost unseen.
    Better,
    /// Counted, and not in the table: the command fails, or it would never be compared.
    New,
    /// In the table, and not counted though it was asked for: the command fails.
    Missing,
}

/// A row of either side, or of both.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    pub name: String,
    pub unit: Unit,
    pub counted: Option<f64>,
    pub committed: Option<f64>,
    pub verdict: Verdict,
}

impl Compared {
    pub fn fails(&self) -> bool {
        matches!(self.verdict, Verdict::Worse | Verdict::New | Verdict::Missing)
    }
}

/// Holds what was counted against the table. `is_asked` says which of the table's rows should have been counted.
pub fn compare(counted: &[Row], table: &[Row], is_asked: impl Fn(&Row) -> bool) -> Vec<Compared> {
    let find = |rows: &[Row], row: &Row| rows.iter().find(|other| other.name == row.name && other.unit == row.unit).map(|row| row.count);
    let mut compared: Vec<Compared> = counted
        .iter()
        .map(|row| {
            let committed = find(table, row);
            let verdict = committed.map_or(Verdict::New, |committed| judge(row, committed));
            Compared { name: row.name.clone(), unit: row.unit, counted: Some(row.count), committed, verdict }
        })
        .collect();
    let missing = table.iter().filter(|row| is_asked(row) && find(counted, row).is_none());
    compared.extend(missing.map(|row| Compared {
        name: row.name.clone(),
        unit: row.unit,
        counted: None,
        committed: Some(row.count),
        verdict: Verdict::Missing,
    }));
    compared
}

fn judge(row: &Row, committed: f64) -> Verdict {
    let (part, least) = row.unit.tolerance();
    let counted = row.count;
    let tolerated = (committed * part).max(least);
    if counted > committed + tolerated {
        Verdict::Worse
    } else if counted < committed - tolerated {
        Verdict::Better
    } else {
        Verdict::Same
    }
}

/// Both sides with aligned columns, and the difference.
pub fn shown(rows: &[Compared]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0) + 2;
    let mut text = format!("{:<width$}{:<16}{:>12}{:>12}{:>9}\n", "name", "unit", "counted", "committed", "diff");
    let number = |count: Option<f64>| {
        count.map_or("-".to_owned(), |count| format!("{count:.3}").trim_end_matches('0').trim_end_matches('.').to_owned())
    };
    for row in rows {
        let difference = match (row.counted, row.committed) {
            (Some(counted), Some(committed)) if committed > 0.0 => format!("{:+.1}%", 100.0 * (counted - committed) / committed),
            _ => String::new(),
        };
        let note = match row.verdict {
            Verdict::Same => "",
            Verdict::Worse => "  WORSE",
            Verdict::Better => "  better: --update",
            Verdict::New => "  NOT IN THE TABLE: --update",
            Verdict::Missing => "  NOT COUNTED",
        };
        let (counted, committed) = (number(row.counted), number(row.committed));
        writeln!(text, "{:<width$}{:<16}{counted:>12}{committed:>12}{difference:>9}{note}", row.name, row.unit.name())
            .expect("a String takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, count: f64) -> Row {
        Row::new(name, Unit::Instructions, count)
    }

    fn verdict(counted: &[Row], table: &[Row]) -> Vec<(String, Verdict)> {
        compare(counted, table, |_| true).into_iter().map(|row| (row.name, row.verdict)).collect()
    }

    #[test]
    fn more_than_a_twentieth_above_fails_and_below_is_told() {
        let table = [row("a", 1_000.0)];
        for (count, expected) in [
            (1_000.0, Verdict::Same),
            (1_050.0, Verdict::Same),
            (1_051.0, Verdict::Worse),
            (950.0, Verdict::Same),
            (949.0, Verdict::Better),
        ] {
            assert_eq!(verdict(&[row("a", count)], &table), [("a".to_owned(), expected)], "{count}");
        }
        assert!(compare(&[row("a", 2_000.0)], &table, |_| true)[0].fails());
        assert!(!compare(&[row("a", 2.0)], &table, |_| true)[0].fails());
    }

    #[test]
    fn system_calls_that_grew_by_half_are_seen_where_there_are_few() {
        let enters = |count| Row::new("ring/http_rmw/32", Unit::Enters, count);
        for (count, expected) in [(0.056, Verdict::Same), (0.061, Verdict::Worse), (0.14, Verdict::Worse)] {
            assert_eq!(verdict(&[enters(count)], &[enters(0.04)])[0].1, expected, "{count}");
        }
        assert_eq!(verdict(&[enters(1.06)], &[enters(1.009)])[0].1, Verdict::Worse);
        let submissions = |count| Row::new("ring/udp_rmw/32", Unit::Submissions, count);
        assert_eq!(verdict(&[submissions(0.12)], &[submissions(0.092)])[0].1, Verdict::Worse);
    }

    #[test]
    fn an_allocation_where_there_was_none_fails() {
        let allocations = |count| Row::new("a", Unit::Allocations, count);
        assert_eq!(verdict(&[allocations(0.001)], &[allocations(0.0)])[0].1, Verdict::Worse);
        assert_eq!(verdict(&[allocations(0.0)], &[allocations(0.0)])[0].1, Verdict::Same);
    }

    #[test]
    fn one_more_page_that_a_fork_touches_fails() {
        let misses = |count| Row::new("guest/fork", Unit::DataMisses, count);
        for (count, expected) in [(267.0, Verdict::Same), (245.0 + 64.0, Verdict::Worse), (186.0, Verdict::Better)] {
            assert_eq!(verdict(&[misses(count)], &[misses(245.0)])[0].1, expected, "{count}");
        }
    }

    #[test]
    fn rows_of_one_side_only_fail_unless_they_were_left_out() {
        let (counted, table) = ([row("new", 1.0), row("both", 1.0)], [row("both", 1.0), row("old", 1.0)]);
        let expected = [("new", Verdict::New), ("both", Verdict::Same), ("old", Verdict::Missing)];
        assert_eq!(verdict(&counted, &table), expected.map(|(name, verdict)| (name.to_owned(), verdict)));
        assert_eq!(compare(&counted, &table, |row| row.name != "old").len(), 2);
        // The same name in another unit is another row.
        assert_eq!(verdict(&[Row::new("both", Unit::Enters, 1.0)], &table)[0].1, Verdict::New);
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let rows = [row("guest/echo", 1_234.567), Row::new("http/1", Unit::Enters, 2.0), Row::new("x", Unit::Allocations, 0.0)];
        assert_eq!(from_text(&to_text(&rows)), Ok(rows.to_vec()));
        assert_eq!(from_text(&to_text(&[])), Ok(vec![]));
    }

    #[test]
    fn garbage_is_no_table() {
        assert_eq!(from_text(""), Err(TableError::Head));
        assert_eq!(from_text("a instructions 1\n"), Err(TableError::Head));
        for line in
            ["a", "a instructions", "a apples 1", "a instructions one", "a instructions NaN", "a instructions -1", "a instructions 1 2"]
        {
            assert_eq!(from_text(&format!("{HEAD}\n\n{line}\n")), Err(TableError::Line { line: 3, text: line.to_owned() }));
        }
        assert_eq!(from_text(&format!("{HEAD}\na enters 1\na enters 1\n")), Err(TableError::Twice { line: 3, name: "a".to_owned() }));
    }

    #[test]
    fn an_update_keeps_what_was_not_counted() {
        let table = [row("a", 1.0), row("b", 2.0)];
        assert_eq!(updated(&table, &[row("c", 9.0), row("b", 3.0)]), [row("a", 1.0), row("b", 3.0), row("c", 9.0)]);
    }

    #[test]
    fn what_is_worse_is_named() {
        let text = shown(&compare(&[row("guest/echo", 120.0)], &[row("guest/echo", 100.0), row("gone", 1.0)], |_| true));
        assert!(text.contains("+20.0%  WORSE") && text.contains("NOT COUNTED"), "{text}");
    }
}
