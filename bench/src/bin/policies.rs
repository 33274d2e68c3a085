//! `policies`: what keep-alive policies cost in memory-time and save in cold starts. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::ExitCode;
use xfaas_bench::policies::{CompareOptions, GeneratorOptions, compare, generate, policy_table, read_csv, write_csv};
use xfaas_bench::servers::exit_code;

/// Replays a trace under each keep-alive policy and memory limit, with the dataplane's own code of the policies.
///
/// The trace is made up unless a file is given: functions whose rates are log-normal over nine decades (45% are asked for once an hour or
/// less), at random, by timers and in bursts. `fixed_N` keeps a container for N minutes, `hybrid` learns when to drop and to load it from the
/// function's idle times, `greedy_dual` keeps all until memory is short; short of memory the others let the least recently used go,
/// `hybrid_greedy_dual` the one with the lowest frequency x cost / size. `p75`: three of four functions have at most that share of cold starts. The last row is the fixed time that costs as much memory as `hybrid`.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// A trace to replay instead: CSV with the columns time_ms,function,duration_ms and, if known, memory_mib,cold_ms.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Writes the trace that is replayed.
    #[arg(long, value_name = "FILE")]
    write_trace: Option<PathBuf>,
    /// The same seed makes the same trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    functions: u32,
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=720))]
    hours: u32,
    /// Fixed times that are tried, in minutes.
    #[arg(long, value_delimiter = ',', default_value = "1,5,10,20,60,240", value_parser = clap::value_parser!(u64).range(0..=10_080))]
    fixed_minutes: Vec<u64>,
    /// What `hybrid` does while it knows too little, in minutes.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=10_080))]
    fallback_minutes: u64,
    /// Memory limits that are tried besides none, in MiB.
    #[arg(long, value_delimiter = ',', default_value = "32768,16384", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    memory_mib: Vec<u64>,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let trace = match &arguments.trace {
        Some(path) => {
            let file = File::open(path).map_err(|error| format!("open {}: {error}", path.display()))?;
            read_csv(BufReader::new(file))?
        }
        None => generate(&GeneratorOptions { seed: arguments.seed, functions: arguments.functions, hours: arguments.hours }),
    };
    if let Some(path) = &arguments.write_trace {
        std::fs::write(path, write_csv(&trace)).map_err(|error| format!("write {}: {error}", path.display()))?;
    }
    let hours = trace.end_ms as f64 / 3_600_000.0;
    eprintln!("{} requests of {} functions in {hours:.1} hours", trace.invocations.len(), trace.functions.len());
    let outcome = compare(
        &trace,
        &CompareOptions {
            fixed_minutes: arguments.fixed_minutes.clone(),
            fallback_minutes: arguments.fallback_minutes,
            memory_mib: arguments.memory_mib.clone(),
        },
    );
    if arguments.json {
        for row in &outcome.rows {
            println!("{}", serde_json::to_string(row)?);
        }
    } else {
        print!("{}", policy_table(&outcome));
    }
    Ok(())
}
