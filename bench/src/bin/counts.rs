//! Counts what a request costs in instructions, cache misses, system calls and allocations, and compares with the committed table. Ends with
//! code 1 when a count has grown. `cargo xtask bench counts` builds and runs it.

use clap::Parser;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xfaas_bench::counts::{
    Compared, PROGRAM, Row, UNSTAMPED_PROGRAM, case_beginnings, compare, count_allocations, count_instructions, count_ring, count_stamps,
    from_text, shown, to_text, updated,
};
use xfaas_bench::load::Interrupt;
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{Cpus, xfaas_files};

/// Counts what a request costs, and compares with the committed table.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a row instead of the table.
    #[arg(long)]
    json: bool,
    /// Writes the table with what was counted.
    #[arg(long)]
    update: bool,
    /// Only rows whose name begins so; may be given again. `ring/` starts a node, `stamps/` needs a build of its own, `allocations/` counts by itself, all else is counted under callgrind.
    #[arg(long = "only", value_name = "NAME", value_parser = beginning)]
    only: Vec<String>,
    /// Leave out rows whose name begins so; may be given again.
    #[arg(long = "skip", value_name = "NAME", value_parser = beginning)]
    skipped: Vec<String>,
    /// Tells which of the programs that are counted must be built, and ends.
    #[arg(long)]
    list_programs: bool,
    /// The committed table.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/counts.txt"))]
    table: PathBuf,
    /// Operations counted of each case, at least; 10 to 100000.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    batches: u32,
    /// Keeps callgrind's files in this folder, for callgrind_annotate: `out.N-01` is of the Nth case.
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    cpus: Cpus,
}

/// `text` may be longer than what it is held against: then it is seen what it is when all is counted.
fn beginning(text: &str) -> Result<String, String> {
    let known = || case_beginnings().chain(PARTS);
    if !text.is_empty() && known().any(|known| known.starts_with(text) || text.starts_with(known)) {
        return Ok(text.to_owned());
    }
    Err(format!("no row's name begins so; names begin with {}", known().collect::<Vec<_>>().join(", ")))
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    if arguments.list_programs {
        let unstamped = arguments.has_part("stamps/").then_some(UNSTAMPED_PROGRAM);
        [PROGRAM].into_iter().chain(unstamped).for_each(|program| println!("{program}"));
        return Ok(());
    }
    let table = match std::fs::read_to_string(&arguments.table) {
        Ok(text) => from_text(&text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && arguments.update => Vec::new(),
        Err(error) => return Err(format!("cannot read {}: {error}", arguments.table.display()).into()),
    };
    let counted = arguments.count()?;
    if let Some(nothing) = arguments.counted_nothing(&counted) {
        let mut names: Vec<&str> = table.iter().map(|row| row.name.as_str()).collect();
        names.dedup();
        return Err(format!("--only {nothing}: nothing was counted whose name begins so; there are {}", names.join(", ")).into());
    }
    let compared = compare(&counted, &table, |row| arguments.wants(&row.name));
    if arguments.json {
        compared.iter().for_each(|row| println!("{}", to_json(row)));
    } else {
        print!("{}", shown(&compared));
    }
    if arguments.update {
        std::fs::write(&arguments.table, to_text(&updated(&table, &counted)))?;
        eprintln!("wrote {}", arguments.table.display());
        return Ok(());
    }
    let failed: Vec<&str> = compared.iter().filter(|row| row.fails()).map(|row| row.name.as_str()).collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("not as in {}: {}", arguments.table.display(), failed.join(", ")).into()) }
}

/// How names begin that are not counted case by case under callgrind.
const PARTS: [&str; 3] = ["stamps/", "ring/", "allocations/"];

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        let begins = |begin: &String| name.starts_with(begin.as_str());
        (self.only.is_empty() || self.only.iter().any(begins)) && !self.skipped.iter().any(begins)
    }

    /// What was asked for and is not there.
    fn counted_nothing(&self, counted: &[Row]) -> Option<&str> {
        self.only.iter().find(|begin| !counted.iter().any(|row| row.name.starts_with(begin.as_str()))).map(String::as_str)
    }

    /// Whether some of the part's rows may be wanted.
    fn has_part(&self, part: &str) -> bool {
        let meets = |begin: &String| part.starts_with(begin.as_str()) || begin.starts_with(part);
        (self.only.is_empty() || self.only.iter().any(meets)) && !self.skipped.iter().any(|begin| part.starts_with(begin.as_str()))
    }

    fn count(&self) -> Result<Vec<Row>, Box<dyn Error>> {
        let (interrupt, files) = (Interrupt::on_signals()?, xfaas_files());
        let mut rows = Vec::new();
        rows.extend(self.count_under_callgrind(&std::path::absolute(&files.guests)?)?);
        if interrupt.is_set() {
            return Err("interrupted".into());
        }
        if self.has_part("allocations/") {
            eprintln!("allocations");
            let count = |work: &mut dyn FnMut()| {
                let info = allocation_counter::measure(work);
                (info.count_total, info.bytes_total)
            };
            rows.extend(count_allocations(&files, count, |name| self.wants(name))?);
        }
        if self.has_part("ring/") {
            eprintln!("system calls");
            rows.extend(count_ring(&files, self.cpus.choose()?, &interrupt, |name| self.wants(name))?);
        }
        Ok(rows)
    }

    fn count_under_callgrind(&self, guests: &Path) -> Result<Vec<Row>, Box<dyn Error>> {
        let (scratch, without) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let folder = self.keep.as_deref().unwrap_or(scratch.path());
        std::fs::create_dir_all(folder)?;
        let folder = std::path::absolute(folder)?;
        let has_stamps = self.has_part("stamps/");
        let is_case = |name: &&String| !PARTS.iter().any(|part| name.starts_with(part.trim_end_matches('/')));
        let mut only: Vec<String> = self.only.iter().filter(is_case).cloned().collect();
        if !self.only.is_empty() && has_stamps {
            only.push("proxy/".to_owned());
        }
        if !self.only.is_empty() && only.is_empty() {
            return Ok(Vec::new());
        }
        eprintln!("instructions, under callgrind");
        let mut rows = count_instructions(&beside(PROGRAM)?, guests, &only, self.batches, &folder)?;
        if has_stamps {
            eprintln!("stamps, under callgrind");
            rows.extend(count_stamps(&rows, &beside(UNSTAMPED_PROGRAM)?, guests, self.batches, without.path())?);
        }
        rows.retain(|row| self.wants(&row.name));
        Ok(rows)
    }
}

/// A program that was built with this one.
fn beside(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let program = own.parent().unwrap_or(Path::new("")).join(name);
    if program.is_file() { Ok(program) } else { Err(format!("{} is missing: build it too", program.display()).into()) }
}

fn to_json(row: &Compared) -> serde_json::Value {
    serde_json::json!({
        "name": row.name,
        "unit": row.unit.name(),
        "counted": row.counted,
        "committed": row.committed,
        "verdict": format!("{:?}", row.verdict).to_lowercase(),
    })
}
