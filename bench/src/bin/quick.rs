//! `quick`: xfaas, nginx and the bare io_uring echo side by side in one run. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use xfaas_bench::fork::measure_fork;
use xfaas_bench::load::Interrupt;
use xfaas_bench::report::{Row, table};
use xfaas_bench::servers::{XfaasFiles, print_error};
use xfaas_bench::steer::measure_steering;
use xfaas_bench::suite::{Case, Suite};
use xfaas_dataplane::sys::affinity::{allowed_cpus, pin_to};

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
    /// Connections, and datagrams under way at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: u16,
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sessions: u32,
    /// Forks that are timed.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    forks: u32,
    /// CPU of the servers; the first one this process may use, if not given.
    #[arg(long)]
    server_cpu: Option<u16>,
    /// CPU of the load generator; the last one this process may use, if not given.
    #[arg(long)]
    load_cpu: Option<u16>,
    /// A case to leave out, by its name in the table; may be given again.
    #[arg(long = "skip", value_name = "NAME", value_parser = case_names())]
    skipped: Vec<String>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give a number of seconds in 0.1..=600".to_owned()),
    }
}

fn case_names() -> clap::builder::PossibleValuesParser {
    let limit = Case::LimitHttp; // always run: all else is held against it
    let cases = Case::ALL.iter().filter(|case| **case != limit).map(|case| case.name());
    clap::builder::PossibleValuesParser::new(cases.chain([FORK, STEER]))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let interrupt = Interrupt::on_signals()?;
    let path = |variable: &str, default: &str| std::env::var_os(variable).map_or_else(|| default.into(), PathBuf::from);
    let xfaas = XfaasFiles { binary: path("XFAAS_BIN", "target/release/xfaas"), guests: path("XFAAS_GUESTS", "target/guests") };
    let object = path("XFAAS_EBPF_OBJECT", "target/ebpf/xfaas-ebpf.o");
    let (server_cpu, load_cpu) = cpus(arguments)?;
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

fn cpus(arguments: &Arguments) -> Result<(u16, u16), Box<dyn Error>> {
    let allowed = allowed_cpus();
    let server = arguments.server_cpu.or(allowed.first().copied()).ok_or("no CPU to run on")?;
    let load = arguments.load_cpu.or(allowed.last().copied()).ok_or("no CPU to run on")?;
    if server == load {
        return Err(format!("the server and the load need a CPU each, and both got {server} of {allowed:?}").into());
    }
    Ok((server, load))
}

/// Runs `work` on a thread that is pinned to `cpu`. It may fail only with errors that are shown.
fn on_cpu<T: Send>(cpu: u16, work: impl FnOnce() -> Result<T, Box<dyn Error>> + Send) -> Result<T, Box<dyn Error>> {
    let run = || {
        pin_to(cpu).map_err(|error| error.to_string())?;
        work().map_err(|error| chain(error.as_ref()))
    };
    match std::thread::scope(|scope| scope.spawn(run).join()) {
        Ok(result) => Ok(result?),
        Err(_) => Err("the measuring thread panicked".into()),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn print(rows: &[Row], is_json: bool) {
    if is_json {
        rows.iter().for_each(|row| println!("{}", row.to_json()));
    } else {
        print!("{}", table(rows));
    }
}
