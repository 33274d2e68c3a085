//! `train`: loads of every kind on a node that records which ways requests take. Progress and errors go to stderr.

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;
use xfaas_bench::load::Interrupt;
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{Cpus, seconds, xfaas_files};
use xfaas_bench::train::Training;

/// Loads a node of its own in every way that requests can take, for `cargo xtask pgo`. Measures nothing. `XFAAS_BIN` and `XFAAS_GUESTS` as
/// for `quick`.
#[derive(Parser)]
struct Arguments {
    /// Seconds of each kind of load, 0.1 to 600.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
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
    let training = Training { xfaas: &xfaas, server_cpu, load_cpu, seconds: arguments.seconds, interrupt: &interrupt };
    let loads = training.run()?;
    if interrupt.is_set() {
        return Err("interrupted: some ways were never taken".into());
    }
    eprintln!("{loads} kinds of load were run");
    Ok(())
}
