//! `sync`: read-modify-writes a second that are on the disk before they are answered. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;
use xfaas_bench::load::Interrupt;
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{Cpus, on_cpu, seconds, xfaas_files};
use xfaas_bench::sync::{SyncBench, SyncServers, measure_sync};

/// xfaas with durability sync, beside the disk's bare rate of 4 KiB writes with `fdatasync` and redis with `appendfsync always`.
/// Their files are in the directory for temporary files: `TMPDIR` chooses the disk. `XFAAS_BIN` and `XFAAS_GUESTS` as for `quick`.
#[derive(Parser)]
struct Arguments {
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Measured seconds of each of the three, all rounds together, 0.1 to 600.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds that the measured time is split into.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: u16,
    #[command(flatten)]
    cpus: Cpus,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let interrupt = Interrupt::on_signals()?;
    let (server_cpu, load_cpu) = arguments.cpus.choose()?;
    let xfaas = xfaas_files();
    let bench = SyncBench {
        xfaas: &xfaas,
        server_cpu,
        connections: usize::from(arguments.connections),
        seconds: arguments.seconds,
        rounds: usize::from(arguments.rounds),
        interrupt: &interrupt,
    };
    let servers = SyncServers::start(&bench)?;
    let figures = on_cpu(load_cpu, || Ok(measure_sync(&bench, &servers)?))?;
    if arguments.json {
        println!("{}", figures.to_json());
        return Ok(());
    }
    println!("disk, bare    {:>9.0} syncs/s of 4 KiB", figures.fsyncs_per_second);
    println!("redis always  {:>9.0} INCR/s", figures.redis_per_second);
    println!("xfaas sync    {:>9.0} RMW/s", figures.requests_per_second);
    println!("xfaas / disk  {:>9.2}\nxfaas / redis {:>9.2}", figures.ratio_to_fsync, figures.ratio_to_redis_always);
    Ok(())
}
