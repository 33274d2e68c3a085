//! `peers`: xfaas beside what its users have now, in one run. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use xfaas_bench::load::Interrupt;
use xfaas_bench::peers::{Peer, PeerBench, peers_table};
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{Cpus, chain, seconds, xfaas_files};

/// xfaas, a bare io_uring echo, nginx, redis, workerd's Durable Objects and Restate's virtual objects: each alone on the same CPU with all its
/// processes, driven from another one over as many connections and sessions.
///
/// At saturation (a closed loop), at 50 % and 70 % of each one's own saturation, and at one rate that all can serve (open loops, Poisson
/// arrivals, latency from when a request was due). Every answer is checked; *_rmw_linear, workerd_rmw and restate_rmw must count exactly what
/// they acknowledged. Settings: one shard without steering (xfaas); one worker, no access log (nginx); no persistence (redis); storage in
/// memory (workerd); production profile on local disk, its SDK on node (restate: the only one that is durable here).
///
/// workerd and restate are npm packages, installed into --packages the first time. `XFAAS_BIN` and `XFAAS_GUESTS` say where the parts are, if
/// not in `target/`.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line, at saturation, instead of the table.
    #[arg(long)]
    json: bool,
    /// Seconds of each load; each peer has four.
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: u16,
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sessions: u32,
    /// Requests a second of the load that is the same for all.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    common_rate: u32,
    /// A peer to leave out, or all whose names begin so, such as `restate`; may be given again.
    #[arg(long = "skip", value_name = "NAME")]
    skipped: Vec<String>,
    /// Where npm packages are installed.
    #[arg(long, value_name = "FOLDER", default_value = "target/peers")]
    packages: PathBuf,
    #[command(flatten)]
    cpus: Cpus,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let interrupt = Interrupt::on_signals()?;
    let (server_cpu, load_cpu) = arguments.cpus.choose()?;
    let is_wanted = |peer: &Peer| !arguments.skipped.iter().any(|skipped| peer.name().starts_with(skipped.as_str()));
    let peers: Vec<Peer> = Peer::ALL.into_iter().filter(|peer| is_wanted(peer) && (peer.is_in_json() || !arguments.json)).collect();
    let xfaas = xfaas_files();
    let bench = PeerBench {
        xfaas: &xfaas,
        packages: &arguments.packages,
        peers: &peers,
        server_cpu,
        load_cpu,
        connections: usize::from(arguments.connections),
        sessions: arguments.sessions as usize,
        seconds: arguments.seconds,
        common_per_second: f64::from(arguments.common_rate),
        interrupt: &interrupt,
    };
    let (rows, failures) = bench.measure();
    if arguments.json {
        rows.iter().for_each(|row| println!("{}", row.to_json()));
    } else {
        print!("{}", peers_table(&rows, bench.common_per_second));
    }
    // What could be measured is printed before what could not is told.
    let mut faults: Vec<String> = failures.iter().map(|failure| chain(failure)).collect();
    if interrupt.is_set() {
        faults.push("interrupted: these are the results so far".to_owned());
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}
