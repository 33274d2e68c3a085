//! Runs a program under callgrind and reads what it wrote: instructions, lines of code and cache misses between two marks, thread by thread.
//!
//! Marks are functions of the program: entering one clears the counts, entering the other writes them into a file. That needs no stack to be
//! followed, which guests on their own fibers would make impossible, and no request to valgrind from within the program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Functions of the program, as callgrind's patterns: whatever the compiler adds to a name.
pub const MARKS: [&str; 2] = ["*counted_from_here*", "*counted_until_here*"];
/// The same simulated caches on every machine: as large as those of a usual server core. Bytes, ways, bytes of a line. The one for data is a single
/// set, so that it counts how much is touched and not where it lies: with eight ways, addresses that differ by the build's folder and from run to run
/// made a Fork, which touches about as much as the cache holds, miss 124 to 210 lines.
const CACHES: [&str; 3] = ["--I1=32768,8,64", "--D1=32768,512,64", "--LL=8388608,16,64"];
/// As in the caches.
const CODE_LINE_BYTES: u64 = 64;
const OUTPUT: &str = "out";

#[derive(Debug, thiserror::Error)]
pub enum CallgrindError {
    #[error("valgrind is not here: `cargo xtask setup` installs it (Debian: apt-get install valgrind)")]
    Missing(#[source] std::io::Error),
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the program ended with {status} under valgrind:\n{stderr}")]
    Failed { status: String, stderr: String },
    #[error("callgrind's output is not as expected in {}: {what}", path.display())]
    Output { path: PathBuf, what: String },
    #[error("{program} wrote {counted} parts and told of {told}")]
    Parts { program: String, counted: usize, told: usize },
}

/// What callgrind counted of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub instructions: u64,
    /// Different lines of code that were run, of `CODE_LINE_BYTES`.
    pub code_lines: u64,
    /// Of the first-level cache, and of the last one for code and data.
    pub data_misses: u64,
    pub last_level_misses: u64,
}

/// One thread between one pair of marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Counted from 1, pair by pair.
    pub number: u32,
    /// Counted from 1 in the order in which they were started.
    pub thread: u32,
    pub counted: Counted,
}

/// Runs `program` with `arguments` and `variables`, and no other variable, in `folder`, where callgrind's files stay for `callgrind_annotate`.
/// Output: what it printed, and the parts by number and thread.
pub fn run(
    program: &Path,
    arguments: &[String],
    variables: &[(&str, &Path)],
    folder: &Path,
) -> Result<(String, Vec<Part>), CallgrindError> {
    let mut command = Command::new("valgrind");
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).envs(variables.iter().copied()).current_dir(folder).stdin(Stdio::null());
    command
        .args(["--tool=callgrind", "--quiet", "--cache-sim=yes", "--separate-threads=yes", "--dump-instr=yes", "--compress-pos=no"])
        .args(CACHES);
    command.arg(format!("--callgrind-out-file={}", folder.join(OUTPUT).display()));
    command.arg(format!("--zero-before={}", MARKS[0])).arg(format!("--dump-before={}", MARKS[1]));
    let output = command.arg(program).args(arguments).output().map_err(start_error)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(CallgrindError::Failed { status: output.status.to_string(), stderr });
    }
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), parts_in(folder)?))
}

fn start_error(source: std::io::Error) -> CallgrindError {
    match source.kind() {
        std::io::ErrorKind::NotFound => CallgrindError::Missing(source),
        _ => CallgrindError::Io { operation: "start valgrind", source },
    }
}

fn parts_in(folder: &Path) -> Result<Vec<Part>, CallgrindError> {
    let mut parts = Vec::new();
    let list = |source| CallgrindError::Io { operation: "list callgrind's files", source };
    for entry in std::fs::read_dir(folder).map_err(list)? {
        let path = entry.map_err(list)?.path();
        // The last file is of what came after the last mark, and has no number.
        let is_part = path.extension().is_some_and(|end| end.to_string_lossy().contains('-')) && path.file_stem() == Some(OUTPUT.as_ref());
        if !is_part {
            continue;
        }
        let text = std::fs::read(&path).map_err(|source| CallgrindError::Io { operation: "read callgrind's file", source })?;
        let part = parse(&String::from_utf8_lossy(&text)).map_err(|what| CallgrindError::Output { path, what })?;
        parts.extend(part);
    }
    parts.sort_by_key(|part| (part.number, part.thread));
    Ok(parts)
}

/// Reads one file's head and totals. `None`: it was written at the program's end. Errors: what is not as it should be.
fn parse(text: &str) -> Result<Option<Part>, String> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let needed = |name: &str| field(name).ok_or_else(|| format!("no line `{name}`"));
    if needed("desc: Trigger:")?.starts_with("Program termination") {
        return Ok(None);
    }
    let number = |name: &str| needed(name)?.parse().map_err(|_| format!("`{name}` is no number"));
    let (part, thread) = (number("part:")?, number("thread:")?);
    let events: Vec<&str> = needed("events:")?.split_ascii_whitespace().collect();
    let totals: Vec<&str> = needed("totals:")?.split_ascii_whitespace().collect();
    // What is zero at the end of the line is left out.
    if totals.len() > events.len() {
        return Err(format!("{} totals for {} events", totals.len(), events.len()));
    }
    let total = |event: &str| -> Result<u64, String> {
        let at = events.iter().position(|name| *name == event).ok_or_else(|| format!("no event {event}"))?;
        totals.get(at).map_or(Ok(0), |total| total.parse().map_err(|_| format!("the total {total:?} is no number")))
    };
    let sum = |names: &[&str]| names.iter().map(|name| total(name)).sum::<Result<u64, String>>();
    let counted = Counted {
        instructions: total("Ir")?,
        code_lines: code_lines(text)?,
        data_misses: sum(&["D1mr", "D1mw"])?,
        last_level_misses: sum(&["ILmr", "DLmr", "DLmw"])?,
    };
    Ok(Some(Part { number: part, thread, counted }))
}

/// How many lines of code the instructions lie in. Each has a line of the file that begins with its address; the one below `calls=` begins with that of
/// the call, which has its own as well.
fn code_lines(text: &str) -> Result<u64, String> {
    let addresses = text.lines().filter_map(|line| line.strip_prefix("0x")).map(|line| line.split(' ').next().unwrap_or(line));
    let lines = addresses.map(|address| u64::from_str_radix(address, 16).map(|address| address / CODE_LINE_BYTES));
    let lines: BTreeSet<u64> = lines.collect::<Result<_, _>>().map_err(|_| "a line begins with no address".to_owned())?;
    match lines.len() as u64 {
        0 => Err("no line begins with an instruction's address".to_owned()),
        lines => Ok(lines),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# callgrind format\nversion: 1\ncreator: callgrind-3.19.0\npid: 7\ncmd:  ./counts --under-callgrind\npart: 2\nthread: 3\n\n\
        desc: I1 cache: 32768 B, 64 B, 8-way associative\n\ndesc: Timerange: Basic block 0 - 9\n\
        desc: Trigger: --dump-before=bench::counted_until_here\n\npositions: instr line\nevents: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw\n\
        summary: 9 9 9\n\nfn=(1) main\n0x103f 7 60 1\n0x1040 7 20\ncalls=2 0x2000 1\n0x1040 7 20\nfn=(2)\n0x10c0 0 0 4\n\ntotals: 100 20 10 1 2 3 4 5 6\n";

    #[test]
    fn a_part_is_read() {
        let counted = Counted { instructions: 100, code_lines: 3, data_misses: 5, last_level_misses: 15 };
        assert_eq!(parse(FILE), Ok(Some(Part { number: 2, thread: 3, counted })));
    }

    #[test]
    fn totals_that_end_with_zeros_are_shorter() {
        let part = parse(&FILE.replace("totals: 100 20 10 1 2 3 4 5 6", "totals: 100 20 10 1")).unwrap().unwrap();
        assert_eq!(part.counted, Counted { instructions: 100, code_lines: 3, ..Counted::default() });
    }

    #[test]
    fn the_rest_at_the_end_is_no_part() {
        let text = FILE.replace("--dump-before=bench::counted_until_here", "Program termination");
        assert_eq!(parse(&text), Ok(None));
    }

    #[test]
    fn what_is_not_callgrinds_is_told() {
        for (from, to, what) in [
            ("totals: 100", "total: 100", "totals:"),
            ("totals: 100", "totals: many", "many"),
            ("part: 2", "part: two", "part:"),
            ("thread: 3\n", "", "thread:"),
            ("events: Ir", "events: Cy", "Ir"),
            ("5 6\n", "5 6 7\n", "10 totals for 9 events"),
            ("desc: Trigger", "desc: Reason", "Trigger"),
            ("0x1040 7 20\ncalls", "0xmain 7 20\ncalls", "no address"),
            ("0x", "+", "no line"),
        ] {
            let error = parse(&FILE.replace(from, to)).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        assert!(parse("").is_err());
    }

    #[test]
    fn a_machine_without_valgrind_is_told_what_to_do() {
        let error = start_error(std::io::Error::from(std::io::ErrorKind::NotFound));
        assert!(error.to_string().contains("cargo xtask setup"), "{error}");
    }
}
