//! A trace as a text file, so that a real one can be replayed. Bytes of the file are not to be trusted.

use super::trace::{Invocation, Trace, TracedFunction};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::BufRead;

const HEADER: &str = "time_ms,function,duration_ms,memory_mib,cold_ms";
/// Where the columns that may be left out have nothing to say.
const MEMORY_MIB_DEFAULT: u32 = 128;
const COLD_MS_DEFAULT: u32 = 250;
/// Bounds of what a file may ask the simulator to hold.
const INVOCATIONS_MAX: usize = 50_000_000;
const FUNCTIONS_MAX: usize = 1_000_000;
const NAME_BYTES_MAX: usize = 256;
const LINE_BYTES_MAX: usize = 1_024;

#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    #[error("read line {line}")]
    Read {
        line: usize,
        #[source]
        source: std::io::Error,
    },
    #[error("the first line is {found:?}; it must be {HEADER:?}, of which the last two may be left out together")]
    Header { found: String },
    #[error("line {line}: {fault}")]
    Line { line: usize, fault: &'static str },
    #[error("line {line}: over {maximum} {what}")]
    TooMany { line: usize, what: &'static str, maximum: usize },
    #[error("the file holds no request")]
    Empty,
}

/// Reads a trace. Lines may be in any order; of a function's memory and cold start its first line counts.
/// Errors: the first line that is not as it should be, by its number from 1.
pub fn read_csv(input: impl BufRead) -> Result<Trace, CsvError> {
    let (mut trace, mut indexes) = (Trace::default(), HashMap::new());
    let mut columns = None;
    for (at, text) in input.split(b'\n').enumerate() {
        let line = at + 1;
        let text = text.map_err(|source| CsvError::Read { line, source })?;
        if text.len() > LINE_BYTES_MAX {
            return Err(CsvError::TooMany { line, what: "bytes", maximum: LINE_BYTES_MAX });
        }
        let text = std::str::from_utf8(&text).map_err(|_| CsvError::Line { line, fault: "not UTF-8" })?.trim_end();
        match columns {
            None => columns = Some(header_columns(text)?),
            Some(_) if text.is_empty() => {}
            Some(columns) => add_line(&mut trace, &mut indexes, text, columns, line)?,
        }
    }
    if trace.invocations.is_empty() {
        return Err(CsvError::Empty);
    }
    trace.invocations.sort_by_key(|invocation| invocation.at_ms);
    trace.end_ms = trace.invocations.iter().map(|invocation| invocation.at_ms + u64::from(invocation.duration_ms)).max().unwrap_or(0);
    Ok(trace)
}

fn header_columns(text: &str) -> Result<usize, CsvError> {
    match text {
        HEADER => Ok(5),
        "time_ms,function,duration_ms" => Ok(3),
        _ => Err(CsvError::Header { found: text.chars().take(100).collect() }),
    }
}

fn add_line(trace: &mut Trace, indexes: &mut HashMap<String, u32>, text: &str, columns: usize, line: usize) -> Result<(), CsvError> {
    let fault = |fault| CsvError::Line { line, fault };
    let cells: Vec<&str> = text.split(',').collect();
    if cells.len() != columns {
        return Err(fault("it has not as many columns as the first one"));
    }
    // A century in milliseconds: sums of such times cannot overflow.
    let at_ms = cells[0].parse().ok().filter(|at_ms| *at_ms < 1 << 42).ok_or_else(|| fault("time_ms is no number below 2^42"))?;
    let duration_ms = cells[2].parse().map_err(|_| fault("duration_ms is no number below 2^32"))?;
    let name = cells[1];
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(fault("a function's name has 1 to 256 bytes"));
    }
    let index = match indexes.get(name) {
        Some(index) => *index,
        None => {
            let or_default = |cell: Option<&&str>, default| cell.map_or(Ok(default), |text| text.parse::<u32>());
            let memory_mib = or_default(cells.get(3), MEMORY_MIB_DEFAULT).ok().filter(|mib| *mib > 0);
            let memory_mib = memory_mib.ok_or_else(|| fault("memory_mib is no number from 1 to 2^32 - 1"))?;
            let cold_ms = or_default(cells.get(4), COLD_MS_DEFAULT).map_err(|_| fault("cold_ms is no number below 2^32"))?;
            if trace.functions.len() == FUNCTIONS_MAX {
                return Err(CsvError::TooMany { line, what: "functions", maximum: FUNCTIONS_MAX });
            }
            trace.functions.push(TracedFunction { name: name.to_owned(), memory_mib, cold_ms });
            let index = trace.functions.len() as u32 - 1;
            indexes.insert(name.to_owned(), index);
            index
        }
    };
    if trace.invocations.len() == INVOCATIONS_MAX {
        return Err(CsvError::TooMany { line, what: "requests", maximum: INVOCATIONS_MAX });
    }
    trace.invocations.push(Invocation { at_ms, function: index, duration_ms });
    Ok(())
}

/// The text that `read_csv` makes the same trace of, if its end is that of its last request.
pub fn write_csv(trace: &Trace) -> String {
    let mut text = format!("{HEADER}\n");
    for invocation in &trace.invocations {
        let TracedFunction { name, memory_mib, cold_ms } = &trace.functions[invocation.function as usize];
        let Invocation { at_ms, duration_ms, .. } = invocation;
        writeln!(text, "{at_ms},{name},{duration_ms},{memory_mib},{cold_ms}").expect("a String takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_in_any_order() {
        let trace =
            read_csv("time_ms,function,duration_ms,memory_mib,cold_ms\n500,b,10,64,9\r\n20,a,1,32,8\n\n700,b,1,1,1\n".as_bytes()).unwrap();
        let function = |name: &str, memory_mib, cold_ms| TracedFunction { name: name.to_owned(), memory_mib, cold_ms };
        assert_eq!(trace.functions, [function("b", 64, 9), function("a", 32, 8)]);
        let requests: Vec<_> = trace.invocations.iter().map(|request| (request.at_ms, request.function, request.duration_ms)).collect();
        assert_eq!(requests, [(20, 1, 1), (500, 0, 10), (700, 0, 1)]);
        assert_eq!(trace.end_ms, 701);
        assert_eq!(read_csv(write_csv(&trace).as_bytes()).unwrap().invocations.len(), 3);
    }

    #[test]
    fn the_last_columns_have_defaults() {
        let trace = read_csv("time_ms,function,duration_ms\n0,a,5\n".as_bytes()).unwrap();
        assert_eq!((trace.functions[0].memory_mib, trace.functions[0].cold_ms), (128, 250));
    }

    #[test]
    fn a_bad_line_is_named() {
        let with = |line: &str| read_csv(format!("{HEADER}\n0,a,1,1,1\n{line}\n").as_bytes()).unwrap_err().to_string();
        for line in ["x,a,1,1,1", "-1,a,1,1,1", "0,a,1", "0,,1,1,1", "0,a,1.5,1,1", "0,b,1,0,1", "0,b,1,1,x", "99999999999999,a,1,1,1"] {
            assert!(with(line).starts_with("line 3: "), "{line}: {}", with(line));
        }
        assert!(with(&"x".repeat(2_000)).contains("bytes"));
        assert!(matches!(read_csv("a,b\n".as_bytes()), Err(CsvError::Header { .. })));
        assert!(matches!(read_csv(format!("{HEADER}\n").as_bytes()), Err(CsvError::Empty)));
        assert!(matches!(read_csv("".as_bytes()), Err(CsvError::Empty)));
        assert!(read_csv(&[0xFF, b'\n'][..]).is_err());
    }
}
