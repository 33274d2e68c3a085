//! `steer`: nanoseconds a packet costs the XDP program. Needs CAP_BPF and CAP_NET_ADMIN.

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;
use xfaas_bench::report::{Row, table_of_steering};
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::ebpf_object;
use xfaas_bench::steer::measure_steering;
use xfaas_dataplane::sys::affinity::{allowed_cpus, pin_to};

/// Runs the XDP program on frames of each kind, attached to nothing: UDP with a 16-byte session ID, a known TCP flow, and a connection's
/// first segment with the session header near (70 bytes in) and far (350).
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let cpus: Vec<u16> = allowed_cpus().into_iter().take(2).collect();
    pin_to(*cpus.first().ok_or("no CPU to run on")?)?;
    let figures = measure_steering(&ebpf_object(), &cpus, false)?;
    let rows: Vec<Row> = figures.iter().map(|(name, ns)| Row::steer(name, *ns)).collect();
    if arguments.json {
        rows.iter().for_each(|row| println!("{}", row.to_json()));
    } else {
        print!("{}", table_of_steering(&rows));
    }
    Ok(())
}
