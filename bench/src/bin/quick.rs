//! `quick`: xfaas, nginx and the bare io_uring echo side by side in one run. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;
use xfaas_bench::fork::measure_fork;
use xfaas_bench::load::Interrupt;
use xfaas_bench::report::{Row, table};
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{Cpus, chain, ebpf_object, on_cpu, seconds, xfaas_files};
use xfaas_bench::steer::measure_steering;
use xfaas_bench::suite::{Case, Suite};

const FORK: &str = "fork";
const STEER: &str = "steer_udp";

/// Measures xfaas on one core against a bare io_uring echo and nginx, with the load on another core.
/// `XFAAS_BIN`, `XFAAS_GUESTS` and `XFAAS_EBPF_OBJECT` say where the parts are, if not in `target/`.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// Measured seconds of each case, all rounds together, 0.1 to 600.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds that the measured time is split into.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Connections; four times as many datagrams are under way at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: u16,
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sessions: u32,
    /// Forks that are timed.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    forks: u32,
    #[command(flatten)]
    cpus: Cpus,
    /// A case to leave out, by its name in the table; may be given again.
    #[arg(long = "skip", value_name = "NAME", value_parser = case_names())]
    skipped: Vec<String>,
}

fn case_names() -> clap::builder::PossibleValuesParser {
    let limit = Case::LimitHttp; // always run: all else is held against it
    let cases = Case::ALL.iter().filter(|case| **case != limit).map(|case| case.name());
    clap::builder::PossibleValuesParser::new(cases.chain([FORK, STEER]))
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let interrupt = Interrupt::on_signals()?;
    let (xfaas, object) = (xfaas_files(), ebpf_object());
    let (server_cpu, load_cpu) = arguments.cpus.choose()?;
    let is_wanted = |name: &str| !arguments.skipped.iter().any(|skipped| skipped == name);
    let cases: Vec<Case> = Case::ALL.into_iter().filter(|case| is_wanted(case.name()) && (case.is_in_json() || !arguments.json)).collect();
    let suite = Suite {
        xfaas: &xfaas,
        cases: &cases,
        server_cpu,
        load_cpu,
        connections: usize::from(arguments.connections),
        sessions: arguments.sessions as usize,
        seconds_a_case: arguments.seconds,
        rounds: usize::from(arguments.rounds),
        interrupt: &interrupt,
    };
    let mut rows = suite.run()?;
    if is_wanted(FORK) {
        eprintln!("forking {} workers", arguments.forks);
        let module = xfaas.guest("echo")?;
        let report = on_cpu(server_cpu, || Ok(measure_fork(&module, arguments.forks, &interrupt)?))?.ok_or("interrupted")?;
        rows.push(Row::fork(report.p50_us, report.p99_us));
    }
    let steered = if is_wanted(STEER) {
        eprintln!("running the steering program");
        on_cpu(server_cpu, || Ok(measure_steering(&object, &[server_cpu, load_cpu], true)?))
    } else {
        Ok(Vec::new())
    };
    if let Ok(figures) = &steered {
        rows.extend(figures.iter().map(|(name, ns)| Row::steer(name, *ns)));
    }
    print(&rows, arguments.json);
    // What could be measured is printed before what could not is told.
    match steered {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{STEER} was not measured (leave it out with `--skip {STEER}`): {}", chain(error.as_ref())).into()),
    }
}

fn print(rows: &[Row], is_json: bool) {
    if is_json {
        rows.iter().for_each(|row| println!("{}", row.to_json()));
    } else {
        print!("{}", table(rows));
    }
}
