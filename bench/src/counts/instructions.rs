//! Instructions and cache misses of each case: starts the program `counted` under callgrind and puts names to what it wrote.

use super::callgrind::{self, CallgrindError, Counted, Part};
use super::table::{Row, Unit};
use std::path::Path;

/// The program that runs the cases, beside this one.
pub const PROGRAM: &str = "counted";
/// The thread of the cases: a program's first. Those of a whole shard are what all other threads did, of which only the shard's does much.
const OWN_THREAD: u32 = 1;
const SHARD_CASES: &str = "shard/";
/// Fewer misses an operation than this say nothing.
const MISSES_TOLD: f64 = 0.5;

/// Rows of each case whose name begins with one of `only`. `folder` keeps callgrind's files.
pub fn count_instructions(program: &Path, guests: &Path, only: &[String], batches: u32, folder: &Path) -> Result<Vec<Row>, CallgrindError> {
    let mut arguments = vec![batches.to_string()];
    arguments.extend(only.iter().cloned());
    let (told, parts) = callgrind::run(program, &arguments, &[("XFAAS_GUESTS", guests)], folder)?;
    let told: Vec<(&str, f64)> = told.lines().filter_map(told_case).collect();
    let pairs = parts.iter().map(|part| part.number).max().unwrap_or(0) as usize;
    if told.len() != pairs {
        return Err(CallgrindError::Parts { program: PROGRAM.to_owned(), counted: pairs, told: told.len() });
    }
    Ok((1..).zip(&told).flat_map(|(number, case)| rows(*case, &counted_of(case.0, number, &parts))).collect())
}

/// A line of the program: a case and its operations.
fn told_case(line: &str) -> Option<(&str, f64)> {
    let (name, operations) = line.split_once(' ')?;
    Some((name, operations.parse().ok()?))
}

/// What one pair of marks says of a case.
fn counted_of(name: &str, number: u32, parts: &[Part]) -> Counted {
    let is_of_shard = name.starts_with(SHARD_CASES);
    let is_counted = |part: &&Part| part.number == number && is_of_shard == (part.thread != OWN_THREAD);
    parts.iter().filter(is_counted).map(|part| part.counted).sum()
}

fn rows((name, operations): (&str, f64), counted: &Counted) -> Vec<Row> {
    let mut rows = vec![Row::new(name, Unit::Instructions, counted.instructions as f64 / operations)];
    for (unit, misses) in [(Unit::CodeMisses, counted.code_misses), (Unit::DataMisses, counted.data_misses)] {
        let misses = misses as f64 / operations;
        rows.push(Row::new(name, unit, if misses < MISSES_TOLD { 0.0 } else { misses }));
    }
    rows
}
