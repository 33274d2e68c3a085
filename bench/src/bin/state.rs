//! `state`: what a read and a write of session state cost, from the region itself to the RPC port. Results go to stdout, progress and
//! errors to stderr.

use clap::Parser;
use std::error::Error;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;
use xfaas_bench::load::Interrupt;
use xfaas_bench::network::Network;
use xfaas_bench::read_scaling::{ScalingOptions, measure_read_scaling};
use xfaas_bench::report::Row;
use xfaas_bench::servers::{exit_code, start_redis, start_xfaas_in};
use xfaas_bench::settings::{Cpus, chain, on_cpu, on_thread, seconds, xfaas_files};
use xfaas_bench::state::{Case, CaseError, Plan, echo_case, guest_cases, measure, memory_cases, redis_cases, rpc_cases, state_table};
use xfaas_dataplane::sys::affinity::pin_to;

/// The cases of several cores that read one session.
const SCALING: &str = "state/read_scaling";
/// Strong read-modify-writes of its owner meanwhile.
const HOT_WRITES_PER_S: u64 = 10_000;

/// Reads and writes of session state: in the region, from another core, from a guest, and over the primary's RPC port beside a bare TCP
/// ping-pong of the same bytes and redis.
///
/// A sample is the mean of a batch between two looks at the clock, with nothing subtracted: 64 operations (8 of 64 KiB), in `guest/*`
/// one invocation that does 64; one round trip in all others (two in rpc/rmw_strong). While state/read_remote_core reads, the owner writes the
/// value 100,000 times a second. In state/read_scaling/* a sample is one whole guest call with one weak read, on each of the cores, of a session
/// that its owner writes 10,000 times a second; `reads_per_second` is what the cores make together. The state's cases run on the server's CPU, round trips from the load's CPU to the server's; those of rpc/*
/// and tcp_ping_pong go over a veth pair if namespaces are given, which `cargo xtask bench state` does as root. Criterion benches
/// of the same names: `cargo bench -p xfaas-bench --bench state`.
///
/// `XFAAS_BIN` and `XFAAS_GUESTS` say where the parts are, if not in `target/`.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// Seconds of each case, all rounds together, 0.1 to 600.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds that the time is split into.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    cpus: Cpus,
    /// Network namespace of the servers; with the two that follow.
    #[arg(long, value_name = "NAME", requires_all = ["client_namespace", "server_ip"])]
    server_namespace: Option<String>,
    /// Network namespace of the clients.
    #[arg(long, value_name = "NAME", requires = "server_namespace")]
    client_namespace: Option<String>,
    /// The servers' address, as the clients see it.
    #[arg(long, value_name = "IP", requires = "server_namespace")]
    server_ip: Option<IpAddr>,
    /// A case, or the cases that begin so, to leave out, such as `redis` or `state/write`; may be given again.
    #[arg(long = "skip", value_name = "NAME")]
    skipped: Vec<String>,
}

/// What the names of some cases begin with, and those cases, if they are wanted and can be made.
type Group = (&'static str, Option<Result<Vec<Box<dyn Case>>, CaseError>>);

/// What was measured, and what could not be, with the reason.
#[derive(Default)]
struct Figures {
    rows: Vec<Row>,
    failures: Vec<String>,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let interrupt = Interrupt::on_signals()?;
    let (server_cpu, load_cpu) = arguments.cpus.choose()?;
    let (network, files) = (arguments.network(), xfaas_files());
    eprintln!("rpc/* and tcp_ping_pong go over {}", if network.is_veth() { "a veth pair between two namespaces" } else { "loopback" });
    // Started before anything is pinned: a process has the CPUs of the thread that starts it.
    let xfaas = arguments.is_wanted("rpc").then(|| start_xfaas_in(&network, &files, server_cpu, &interrupt));
    let redis = arguments.is_wanted("redis").then(|| start_redis(server_cpu, &interrupt));
    // The other core's owner is on the load's CPU, so that the measured thread stays where a shard would be.
    let mut figures = on_thread(|| {
        // The engine's ticker would interrupt every hundredth batch if it had to run on the same CPU.
        let guest = arguments.is_wanted("guest").then(|| guest_cases(&files.guest("state-loop")?));
        pin_to(server_cpu)?;
        let memory = arguments.is_wanted("state").then(|| memory_cases(load_cpu));
        Ok(arguments.measure([("state", memory), ("guest", guest)], &interrupt))
    })?;
    let round_trips = on_cpu(load_cpu, || {
        let rpc = xfaas.map(|xfaas| rpc_cases(&network, xfaas?));
        let echo = arguments.is_wanted("tcp_ping_pong").then(|| Ok(vec![echo_case(&network, server_cpu)?]));
        let redis = redis.map(|redis| redis_cases(redis?));
        Ok(arguments.measure([("rpc", rpc), ("tcp_ping_pong", echo), ("redis", redis)], &interrupt))
    })?;
    figures.rows.extend(round_trips.rows);
    figures.failures.extend(round_trips.failures);
    if arguments.is_wanted(SCALING) && !interrupt.is_set() {
        eprintln!("{SCALING}: {} rounds", arguments.rounds);
        let cpus = [server_cpu, load_cpu];
        let round = Duration::from_secs_f64(arguments.seconds / f64::from(arguments.rounds));
        let options =
            ScalingOptions { guests: &files.guests, cpus: &cpus, writes_per_s: HOT_WRITES_PER_S, rounds: arguments.rounds, round };
        match measure_read_scaling(&options) {
            Ok(cases) => figures.rows.extend(cases.iter().map(Row::scaling)),
            Err(error) => figures.failures.push(not_measured(SCALING, &error)),
        }
    }
    if arguments.json {
        figures.rows.iter().for_each(|row| println!("{}", row.to_json()));
    } else {
        print!("{}", state_table(&figures.rows));
    }
    // What could be measured is printed before what could not is told.
    if figures.failures.is_empty() { Ok(()) } else { Err(figures.failures.join("\n").into()) }
}

fn not_measured(name: &str, error: &dyn Error) -> String {
    format!("{name} was not measured (leave it out with `--skip {name}`): {}", chain(error))
}

impl Arguments {
    fn network(&self) -> Network {
        match (&self.server_namespace, &self.client_namespace, self.server_ip) {
            (Some(server), Some(client), Some(ip)) => Network::veth(server.clone(), client.clone(), ip),
            _ => Network::loopback(),
        }
    }

    fn is_wanted(&self, name: &str) -> bool {
        !self.skipped.iter().any(|skipped| name.starts_with(skipped.as_str()))
    }

    /// Measures on the calling thread.
    fn measure(&self, groups: impl IntoIterator<Item = Group>, interrupt: &Interrupt) -> Figures {
        let (mut figures, mut cases) = (Figures::default(), Vec::new());
        for (name, made) in groups {
            match made.unwrap_or(Ok(Vec::new())) {
                Ok(made) => cases.extend(made.into_iter().filter(|case| self.is_wanted(case.name()))),
                Err(error) => figures.failures.push(not_measured(name, &error)),
            }
        }
        if cases.is_empty() {
            return figures;
        }
        let plan = Plan { time_a_case: Duration::from_secs_f64(self.seconds), rounds: self.rounds, interrupt };
        match measure(&mut cases, &plan) {
            Ok(rows) => figures.rows = rows,
            Err(error) => figures.failures.push(chain(&error)),
        }
        figures
    }
}
