//! `stamps`: the node and one built without the stamps of stages, in turns in one run. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;
use xfaas_bench::load::Interrupt;
use xfaas_bench::servers::{XfaasFiles, exit_code};
use xfaas_bench::settings::{Cpus, seconds, xfaas_files};
use xfaas_bench::stamps::{CASES, COST_PERCENT_MAX, measure_stamps, stamps_table};
use xfaas_bench::suite::Suite;

/// Measures what the stamps of stages cost of the throughput, as `quick` measures it: read-modify-writes over HTTP and by datagrams in a closed
/// loop, on one core, with the load on another. The node and one that was built without the stamps take turns; a round is a run of both.
///
/// Ends with code 1 if the stamps cost more than 2% and by more than the rounds differ.
/// `XFAAS_BIN` and `XFAAS_GUESTS` say where the parts are, if not in `target/`; the other node is `xfaas-unstamped` beside the first.
/// `cargo xtask bench stamps` builds both.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// Measured seconds of each case on each node, all rounds together, 0.1 to 600.
    #[arg(long, default_value_t = 8.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds that the measured time is split into.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Connections; four times as many datagrams are under way at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: u16,
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sessions: u32,
    #[command(flatten)]
    cpus: Cpus,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let interrupt = Interrupt::on_signals()?;
    let stamped = xfaas_files();
    let unstamped = XfaasFiles { binary: stamped.binary.with_file_name("xfaas-unstamped"), guests: stamped.guests.clone() };
    let (server_cpu, load_cpu) = arguments.cpus.choose()?;
    let suite = Suite {
        xfaas: &stamped,
        cases: &CASES,
        server_cpu,
        load_cpu,
        connections: usize::from(arguments.connections),
        sessions: arguments.sessions as usize,
        seconds_a_case: arguments.seconds,
        rounds: usize::from(arguments.rounds),
        interrupt: &interrupt,
    };
    let rows = measure_stamps(&suite, &unstamped)?;
    if arguments.json {
        rows.iter().for_each(|row| println!("{}", row.to_json()));
    } else {
        print!("{}", stamps_table(&rows));
    }
    let over: Vec<&str> = rows.iter().filter(|row| !row.holds).map(|row| row.name).collect();
    if over.is_empty() { Ok(()) } else { Err(format!("the stamps cost more than {COST_PERCENT_MAX}% of {}", over.join(" and ")).into()) }
}
