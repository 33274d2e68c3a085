//! `soak`: fragmentation of session memory under a long run of random writes of mixed and drifting sizes at 70% fill. Exit code 1 when it
//! reaches 20%.

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;
use xfaas_bench::servers::{print_error, scratch_directory};
use xfaas_bench::soak::{SoakOptions, SoakReport, curve, json_lines, soak};

/// Writes, overwrites and deletes values of 16 B to 64 KiB in one region, with sizes, keys a session and sessions that change by phases, and
/// shows how much of the memory taken holds nothing.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the curve: the points, then the summary.
    #[arg(long)]
    json: bool,
    /// The longest time to run.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Size of the region, MiB.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(16..=65_536))]
    region_mib: u64,
    /// Ends when the content of the region has been replaced so many times, if that is earlier.
    #[arg(long, default_value_t = 200)]
    turnovers: u32,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(report) if report.has_passed() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            print_error(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<SoakReport, Box<dyn Error>> {
    let directory = scratch_directory("soak")?;
    let report = soak(&SoakOptions {
        directory: directory.path(),
        region_mib: arguments.region_mib,
        time_max: Duration::from_secs(arguments.seconds),
        turnovers_max: f64::from(arguments.turnovers),
    })?;
    print!("{}", if arguments.json { json_lines(&report) } else { curve(&report) });
    Ok(report)
}
