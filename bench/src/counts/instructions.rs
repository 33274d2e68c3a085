//! Instructions, lines of code and cache misses of each case: starts the program `counted` under callgrind and puts names to what it wrote.

use super::callgrind::{self, CallgrindError, Counted, Part};
use super::table::{Row, Unit};
use std::path::Path;

/// The program that runs the cases, beside this one.
pub const PROGRAM: &str = "counted";
/// The thread of the cases: a program's first.
const THREAD: u32 = 1;
/// Fewer misses an operation than this say nothing.
const MISSES_TOLD: f64 = 0.5;

/// Rows of each case whose name begins with one of `only`. `folder` keeps callgrind's files.
pub fn count_instructions(program: &Path, guests: &Path, only: &[String], batches: u32, folder: &Path) -> Result<Vec<Row>, CallgrindError> {
    let mut arguments = vec![batches.to_string()];
    arguments.extend(only.iter().cloned());
    let (told, parts) = callgrind::run(program, &arguments, &[("XFAAS_GUESTS", guests)], folder)?;
    let parts: Vec<&Part> = parts.iter().filter(|part| part.thread == THREAD).collect();
    let told: Vec<(&str, f64)> = told.lines().filter_map(told_case).collect();
    if told.len() != parts.len() {
        return Err(CallgrindError::Parts { program: PROGRAM.to_owned(), counted: parts.len(), told: told.len() });
    }
    Ok(told.iter().zip(parts).flat_map(|(case, part)| rows(*case, &part.counted)).collect())
}

/// A line of the program: a case and its operations.
fn told_case(line: &str) -> Option<(&str, f64)> {
    let (name, operations) = line.split_once(' ')?;
    Some((name, operations.parse().ok()?))
}

fn rows((name, operations): (&str, f64), counted: &Counted) -> Vec<Row> {
    let misses = counted.data_misses as f64 / operations;
    vec![
        Row::new(name, Unit::Instructions, counted.instructions as f64 / operations),
        Row::new(name, Unit::CodeLines, counted.code_lines as f64),
        Row::new(name, Unit::DataMisses, if misses < MISSES_TOLD { 0.0 } else { misses }),
    ]
}
