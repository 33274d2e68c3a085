//! `load`: the load generator beside wrk. Results go to stdout, progress and errors to stderr. Fails if a core of ours does not make 1.5
//! times what one of wrk makes.

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;
use xfaas_bench::load::Interrupt;
use xfaas_bench::rival::{RivalBench, RivalServer, Verdict, rival_table};
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{Cpus, seconds};

/// Asks the bare io_uring echo and nginx, each on one core, from another core by wrk and by xfaas-load in turn, over as many connections.
///
/// With one core each, the server is the slower end. So beside the rates stands what a request costs the generator in CPU time: of wrk user
/// and system time, of xfaas-load the part of both in which it had something to do (it spins): as fast as it can, at exactly wrk's rate, and with
/// 8 requests pipelined on each connection. xfaas-load checks every answer meanwhile and spreads requests over 80 sessions, wrk repeats one
/// request and looks for its reply's end.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// Seconds of each run.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds of four runs for each server; the best of each counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Connections of either, with one request under way on each.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: u16,
    /// Leaves nginx out, which is only shown: the verdict is the echo's.
    #[arg(long)]
    skip_nginx: bool,
    #[command(flatten)]
    cpus: Cpus,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let interrupt = Interrupt::on_signals()?;
    let (server_cpu, load_cpu) = arguments.cpus.choose()?;
    let bench = RivalBench {
        server_cpu,
        load_cpu,
        connections: arguments.connections,
        seconds: arguments.seconds,
        rounds: arguments.rounds,
        interrupt: &interrupt,
    };
    let wanted = RivalServer::ALL.into_iter().filter(|server| *server == RivalServer::Limit || !arguments.skip_nginx);
    let servers = wanted.map(|server| bench.measure(server)).collect::<Result<Vec<_>, _>>()?;
    let verdict = Verdict::of(&servers[0]);
    if arguments.json {
        servers.iter().flatten().for_each(|row| println!("{}", row.to_json()));
        println!("{}", verdict.to_json());
    } else {
        print!("{}", rival_table(&servers, &verdict));
    }
    if interrupt.is_set() {
        return Err("interrupted: these are the results so far".into());
    }
    let Verdict { ratio_a_core, ratio_pipelined, ratio_min, .. } = verdict;
    if verdict.holds {
        return Ok(());
    }
    Err(format!("a core of xfaas-load makes {ratio_a_core} of wrk's, {ratio_pipelined} with requests pipelined, less than {ratio_min}")
        .into())
}
