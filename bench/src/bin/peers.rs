//! `peers`: xfaas beside other servers of state and of answers, all in one run. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use xfaas_bench::load::Interrupt;
use xfaas_bench::peers::{CASES, Package, PeerCase, PeerError, PeersBench, case_named, peers_table};
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{Cpus, chain, seconds, xfaas_files};

/// Measures xfaas, workerd's Durable Objects, Restate's virtual objects, redis, nginx, `wasmtime serve` and a bare io_uring echo in turn: each alone
/// on one CPU, all its threads and processes, and the load generator on another. docs/PERFORMANCE.md tells how each is set up.
///
/// First what each takes at most in a closed loop, then its times in an open loop at 50% and 70% of that, and at one rate for all. Counters are
/// read in the end of each run: lost or doubled updates are an error. A peer that is not installed is left out, and stderr says why.
/// `XFAAS_BIN`, `XFAAS_GUESTS` and `XFAAS_PEERS` say where the parts are, if not in `target/`.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the tables.
    #[arg(long)]
    json: bool,
    /// Seconds of each run, 0.1 to 600.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Runs at each load point; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// A row to leave out, or all whose names begin so, such as `restate`; may be given again.
    #[arg(long = "skip", value_name = "NAME", value_parser = beginning)]
    skipped: Vec<String>,
    /// Only this row, or all whose names begin so; may be given again.
    #[arg(long = "only", value_name = "NAME", value_parser = beginning)]
    only: Vec<String>,
    /// Only what each takes at most.
    #[arg(long)]
    saturation_only: bool,
    /// Requests a second of the rate that is the same for all [default: half of what the slowest takes].
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    common_rate: Option<u32>,
    /// Fails if a row is left out because its server is not there.
    #[arg(long)]
    require_all: bool,
    /// Connections of the closed loop.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: u16,
    /// Connections of the open loop.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    open_connections: u16,
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sessions: u32,
    /// Puts xfaas, the bare echo, nginx and redis into the real-time class (SCHED_FIFO), so that nothing else has their CPU when they want it. Not the servers whose threads
    /// share the CPU and need each other.
    #[arg(long)]
    realtime: bool,
    #[command(flatten)]
    cpus: Cpus,
    /// Names what must be installed for these rows, one a line, and ends.
    #[arg(long, hide = true)]
    list_packages: bool,
}

fn beginning(text: &str) -> Result<String, String> {
    if !text.is_empty() && CASES.iter().any(|case| case.name.starts_with(text)) {
        return Ok(text.to_owned());
    }
    Err(format!("no row's name begins so; there are {}", CASES.map(|case| case.name).join(", ")))
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

/// The rows that are asked for, in the order of the table.
fn chosen(arguments: &Arguments) -> Result<Vec<&'static PeerCase>, String> {
    let is_in = |names: &[String], case: &PeerCase| names.iter().any(|name| case.name.starts_with(name.as_str()));
    let is_wanted = |case: &&PeerCase| (arguments.only.is_empty() || is_in(&arguments.only, case)) && !is_in(&arguments.skipped, case);
    let cases: Vec<_> = CASES.iter().filter(is_wanted).filter_map(|case| case_named(case.name)).collect();
    if cases.is_empty() { Err("--skip and --only leave no row".to_owned()) } else { Ok(cases) }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let cases = chosen(arguments)?;
    if arguments.list_packages {
        let wanted = Package::ALL.iter().filter(|package| cases.iter().any(|case| case.package() == Some(**package)));
        wanted.for_each(|package| println!("{}", package.name()));
        return Ok(());
    }
    let interrupt = Interrupt::on_signals()?;
    let (server_cpu, load_cpu) = arguments.cpus.choose()?;
    let packages = std::env::var_os("XFAAS_PEERS").map_or_else(|| "target/peers".into(), PathBuf::from);
    let bench = PeersBench {
        xfaas: &xfaas_files(),
        packages: &packages,
        server_cpu,
        load_cpu,
        connections: usize::from(arguments.connections),
        open_connections: usize::from(arguments.open_connections),
        sessions: arguments.sessions as usize,
        seconds: arguments.seconds,
        rounds: arguments.rounds,
        realtime: arguments.realtime,
        common_rate: arguments.common_rate.map(f64::from),
        interrupt: &interrupt,
    };
    let (results, common_rate) = bench.measure(&cases, !arguments.saturation_only);
    let (mut rows, mut missing, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for result in results {
        match result.outcome {
            Ok(measured) => rows.extend(measured),
            // It is told once, in the end.
            Err(PeerError::Nothing) if interrupt.is_set() => {}
            Err(error) => {
                eprintln!("{} is left out: {}", result.case.name, chain(&error));
                if error.is_missing() && !result.case.is_ours() { &mut missing } else { &mut failed }.push(result.case.name);
            }
        }
    }
    if arguments.json {
        rows.iter().for_each(|row| println!("{}", row.to_json()));
    } else {
        print!("{}", peers_table(&rows));
        if let Some(rate) = common_rate {
            println!("the same rate for all: {rate} requests/s; servers on CPU {server_cpu}, the load on CPU {load_cpu}");
        }
    }
    if interrupt.is_set() {
        return Err("interrupted: these are the results so far".into());
    }
    for row in rows.iter().filter(|row| row.arrivals_short) {
        eprintln!("{}: the generator did not get its CPU, and less was offered than asked for", row.name);
    }
    if !failed.is_empty() {
        return Err(format!("failed: {}", failed.join(", ")).into());
    }
    if arguments.require_all && !missing.is_empty() {
        return Err(format!("not there: {}", missing.join(", ")).into());
    }
    if rows.is_empty() { Err("none of the rows could be measured".into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen_by(words: &[&str]) -> Result<Vec<&'static str>, String> {
        let arguments = Arguments::try_parse_from([&["peers"], words].concat()).map_err(|error| error.to_string())?;
        Ok(chosen(&arguments)?.iter().map(|case| case.name).collect())
    }

    #[test]
    fn rows_are_left_out_by_name() {
        assert_eq!(chosen_by(&[]).unwrap().len(), CASES.len());
        let fewer = chosen_by(&["--skip", "restate"]).unwrap();
        assert!(fewer.len() == CASES.len() - 2 && !fewer.contains(&"restate_rmw"));
        assert_eq!(chosen_by(&["--only", "limit", "--only", "nginx"]).unwrap(), ["nginx", "limit_http"]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        assert!(chosen_by(&["--skip", "apache"]).unwrap_err().contains("redis_set"));
        assert!(chosen_by(&["--only", "nginx", "--skip", "nginx"]).unwrap_err().contains("no row"));
        for words in [["--seconds", "0"], ["--rounds", "0"], ["--common-rate", "0"], ["--connections", "1001"]] {
            assert!(chosen_by(&words).is_err(), "{words:?}");
        }
    }
}
