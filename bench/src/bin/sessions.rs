//! `sessions`: what sessions cost to start, at rest and through kills. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;
use xfaas_bench::fork::measure_fork;
use xfaas_bench::load::Interrupt;
use xfaas_bench::servers::exit_code;
use xfaas_bench::sessions::{
    SessionRow, SessionsBench, measure_cold, measure_copies, measure_density, measure_image, measure_kills, measure_starts, sessions_table,
    start_for_cold, start_for_copies, start_for_starts,
};
use xfaas_bench::settings::{Cpus, chain, on_cpu, second_cpu, seconds, xfaas_files};
use xfaas_bench::sync::{SyncBench, SyncServers, measure_sync};

/// What sessions cost, on a real node: starts with their phases, memory of sessions at rest, sync durability, and increments through kill -9.
///
/// `fork` is a new worker, its first call and its end, without a node. The others are seen by a client on loopback, one request at a time:
/// `cold_session_empty` is the first request of a session that nobody has seen, which writes its first key; `fork_request` one of a known
/// session that gets a new worker; `warm_request` one that does not. `idle_session` is what a session at rest takes beside its 100 bytes of
/// state. `cold_session_1mib` is the first request of a session whose 1 MiB of state is in a checkpoint on the local disk alone. Every second
/// time `kills` removes the node's shared memory too, so that only its log is left.
/// `copy_session` is a request of a session whose one worker waits for a lock: it makes a secondary container on a second core, which is the load's where
/// there are only two.
///
/// `XFAAS_BIN` and `XFAAS_GUESTS` say where the parts are, if not in `target/`; `TMPDIR` chooses the disk of the log.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// Forks that are timed.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    forks: u32,
    /// Requests of each kind on the node.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    requests: u32,
    /// Sessions at rest. A million take half a GiB of memory.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    sessions: u32,
    /// How often a node is killed.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Forks of the image of 64 MiB.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=900))]
    image_forks: u32,
    /// Measured seconds of each of the three of `sync_rmw`, 0.1 to 600.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    #[command(flatten)]
    cpus: Cpus,
    /// A part to leave out; may be given again.
    #[arg(long = "skip", value_name = "PART", value_parser = PARTS)]
    skipped: Vec<String>,
}

/// How often each of the sessions with 1 MiB is woken.
const COLD_ROUNDS: u32 = 5;
/// Copies of sessions, as a part of the requests of each kind: each takes some milliseconds of looking at the node.
const COPIES_PART: u32 = 5;
const PARTS: [&str; 8] =
    ["fork", "starts", "copy_session", "cold_session_1mib", "idle_session", "fork_64mib_rss_bytes", "sync_rmw", "kills"];

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let interrupt = Interrupt::on_signals()?;
    let (server_cpu, load_cpu) = arguments.cpus.choose()?;
    let xfaas = xfaas_files();
    let bench = SessionsBench { xfaas: &xfaas, server_cpu, second_cpu: second_cpu(server_cpu, load_cpu), interrupt: &interrupt };
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for part in PARTS {
        if arguments.skipped.iter().any(|skipped| skipped == part) || interrupt.is_set() {
            continue;
        }
        eprintln!("{part}");
        match arguments.measure(part, &bench, load_cpu) {
            Ok(measured) => rows.extend(measured),
            Err(error) => {
                failures.push(format!("{part} was not measured (leave it out with `--skip {part}`): {}", chain(error.as_ref())));
            }
        }
    }
    if arguments.json {
        rows.iter().for_each(|row| println!("{}", row.to_json()));
    } else {
        print!("{}", sessions_table(&rows));
    }
    // What could be measured is printed before what could not is told.
    if interrupt.is_set() {
        return Err("interrupted".into());
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
}

impl Arguments {
    fn measure(&self, part: &str, bench: &SessionsBench<'_>, load_cpu: u16) -> Result<Vec<SessionRow>, Box<dyn Error>> {
        let SessionsBench { xfaas, server_cpu, interrupt, .. } = *bench;
        Ok(match part {
            "fork" => {
                let module = xfaas.guest("echo")?;
                let report = on_cpu(server_cpu, || Ok(measure_fork(&module, self.forks, interrupt)?))?.ok_or("interrupted")?;
                SessionRow::fork(&report).to_vec()
            }
            "starts" => {
                // A process has the CPUs of the thread that starts it: only then is the load pinned.
                let (place, server) = start_for_starts(bench)?;
                let figures = on_cpu(load_cpu, || Ok(measure_starts(bench, &place, &server, self.requests)?))?;
                figures.iter().flat_map(SessionRow::start).collect()
            }
            "copy_session" => {
                let (place, server) = start_for_copies(bench)?;
                let copies = self.requests.div_ceil(COPIES_PART);
                SessionRow::start(&on_cpu(load_cpu, || Ok(measure_copies(bench, &place, &server, copies)?))?).to_vec()
            }
            "cold_session_1mib" => {
                let (place, server) = start_for_cold(bench)?;
                SessionRow::start(&on_cpu(load_cpu, || Ok(measure_cold(bench, &place, &server, COLD_ROUNDS)?))?).to_vec()
            }
            "idle_session" => vec![SessionRow::idle(&measure_density(bench, self.sessions)?)],
            "fork_64mib_rss_bytes" => vec![SessionRow::image(&measure_image(bench, self.image_forks)?)],
            "sync_rmw" => {
                let rounds = if self.seconds < 1.0 { 1 } else { 5 };
                let sync = SyncBench { xfaas, server_cpu, connections: 32, seconds: self.seconds, rounds, interrupt };
                let servers = SyncServers::start(&sync)?;
                vec![SessionRow::sync(&on_cpu(load_cpu, || Ok(measure_sync(&sync, &servers)?))?)]
            }
            _ => vec![SessionRow::kills(&measure_kills(bench, self.kills)?)],
        })
    }
}
