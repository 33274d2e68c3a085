//! `profile`: perf and flame graphs of a node under load. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use xfaas_bench::load::Interrupt;
use xfaas_bench::profile::{ProfileBench, measure_profile, profile_table, start_for_profile};
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{Cpus, on_cpu, xfaas_files};

/// Records a node under load with perf, the guest's functions by name, and writes two flame graphs: of the whole run, and of the moments at which the
/// slowest hundredth of the requests was under way. One table says which part of the system the time went to in both, another who else had the CPU.
///
/// `XFAAS_BIN` and `XFAAS_GUESTS` say where the parts are, if not in `target/`.
#[derive(Parser)]
struct Arguments {
    /// What is called: counter-rmw, counter-rmw-linear or counter-read.
    #[arg(long, default_value = "counter-rmw-linear", value_parser = ["counter-rmw", "counter-rmw-linear", "counter-read"])]
    function: String,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// An open loop at so many percent of what a closed one gets, which is measured first; a closed loop, if not given.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=150))]
    load: Option<u32>,
    /// Requests under way at once, each on a connection of its own: 32 of the closed loop, at most 256 of the open one, if not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: Option<u32>,
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
    /// Where the flame graphs and perf's data are written.
    #[arg(long, value_name = "DIR", default_value = "target/profile")]
    folder: PathBuf,
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
    let bench = ProfileBench {
        xfaas: &xfaas,
        server_cpu,
        load_cpu,
        guest: &arguments.function,
        percent: arguments.load,
        connections: arguments.connections.map(|connections| connections as usize),
        sessions: arguments.sessions as usize,
        seconds: arguments.seconds,
        folder: &arguments.folder,
        interrupt: &interrupt,
    };
    let (place, server) = start_for_profile(&bench)?;
    eprintln!("recording {} for {} s", arguments.function, arguments.seconds);
    let profile = on_cpu(load_cpu, || Ok(measure_profile(&bench, &place, &server)?))?;
    print!("{}", profile_table(&profile));
    match &profile.others {
        Ok(table) => print!("who else had CPU {server_cpu}:\n{table}"),
        Err(error) => println!("who else had CPU {server_cpu} is not known: {error}"),
    }
    println!("the whole run: {}", profile.whole_svg.display());
    match &profile.slow_svg {
        Some(path) => println!("the slowest requests: {}", path.display()),
        None => println!("no sample fell into a slow request: trace for longer"),
    }
    Ok(())
}
