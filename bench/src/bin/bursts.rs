//! `bursts`: many requests at once on one session. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use xfaas_bench::bursts::{BurstBench, bursts_table, measure_bursts, plot, start_for_bursts};
use xfaas_bench::load::Interrupt;
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{Cpus, on_cpu, second_cpu, xfaas_files};

/// Requests at once on one session of a real node, as in Fig. 11 of the paper: each adds 1 to a number, and works for a while between
/// reading and writing it, weakly (rmw) or in a critical section (rmw_linear), with workers_max 1, 2, 4 and 8, and on two cores with
/// containers_max 2 and workers_max 1 and 4.
///
/// Shown is by when how many were answered, as a table and as a picture. The workers of one container share its core: more of them
/// change which answer comes when, not when the last one comes. A second container has a core of its own (the load's, where there are only two, which the
/// load needs little of). `updates` is how far the number came: rmw may lose some as soon as a request is sliced,
/// rmw_linear never does; if it did, that would be an error.
///
/// `XFAAS_BIN` and `XFAAS_GUESTS` say where the parts are, if not in `target/`.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// Requests at once.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=250))]
    requests: u32,
    /// What each request works for, in us.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    work_us: u64,
    /// The curves are medians over so many bursts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Where the picture is written.
    #[arg(long, value_name = "FILE", default_value = "target/bursts.svg")]
    svg: PathBuf,
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
    let bench = BurstBench {
        xfaas: &xfaas,
        server_cpu,
        second_cpu: second_cpu(server_cpu, load_cpu),
        requests: arguments.requests,
        work: Duration::from_micros(arguments.work_us),
        rounds: arguments.rounds,
        interrupt: &interrupt,
    };
    let nodes = start_for_bursts(&bench)?;
    let rows = on_cpu(load_cpu, || Ok(measure_bursts(&bench, &nodes)?))?;
    if arguments.json {
        rows.iter().for_each(|row| println!("{}", row.to_json()));
    } else {
        print!("{}", bursts_table(&rows));
    }
    plot(&rows, &arguments.svg)?;
    eprintln!("the curves are in {}", arguments.svg.display());
    Ok(())
}
