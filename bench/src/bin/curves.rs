//! `curves`: latency and throughput against offered load. Results go to stdout, progress and errors to stderr.

use clap::Parser;
use std::error::Error;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use xfaas_bench::curves::{Asked, CurveBench, CurvesPicture, Steering, curves_table};
use xfaas_bench::generator::IN_FLIGHT_MAX;
use xfaas_bench::load::Interrupt;
use xfaas_bench::network::Network;
use xfaas_bench::picture::save;
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{seconds, xfaas_files};
use xfaas_dataplane::sys::affinity::allowed_cpus;

/// Read-modify-writes over HTTP and by datagrams, offered at 0.1 to 2 times what a closed loop of as many gets, on each way of steering and on 1 and 2
/// cores: what is answered, refused and late. Says whether throughput past saturation stays within 10 % of the top and that errors are 503s,
/// and fails where it does not and the load had cores of its own.
///
/// Over a veth pair between two namespaces, which `cargo xtask bench curves` makes as root; without, on loopback with steering off. The load
/// has the CPUs that the server does not use; where there are none it shares them, which the table marks.
///
/// `XFAAS_BIN` and `XFAAS_GUESTS` say where the parts are, if not in `target/`.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// Seconds of each run; a curve has 10 points and takes some thirty runs.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Numbers of cores that the server runs on.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u16).range(1..=64))]
    cores: Vec<u16>,
    /// HTTP connections of every loop, closed or open.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=8_192))]
    connections: u32,
    /// Datagrams that a loop may have under way, closed or open.
    #[arg(long, default_value_t = 32_768, value_parser = clap::value_parser!(u32).range(32..=IN_FLIGHT_MAX as i64))]
    in_flight: u32,
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sessions: u32,
    /// A way of steering (xdp, reuseport, tc, off), or of asking (http_rmw, udp_rmw), to leave out; may be given again.
    #[arg(long = "skip", value_name = "NAME", value_parser = names())]
    skipped: Vec<String>,
    /// Where the picture is written; beside it the same as PNG.
    #[arg(long, value_name = "FILE", default_value = "target/curves.svg")]
    svg: PathBuf,
    /// Network namespace of the servers; with the two that follow.
    #[arg(long, value_name = "NAME", requires_all = ["client_namespace", "server_ip"])]
    server_namespace: Option<String>,
    /// Network namespace of the clients.
    #[arg(long, value_name = "NAME", requires = "server_namespace")]
    client_namespace: Option<String>,
    /// The servers' address, as the clients see it.
    #[arg(long, value_name = "IP", requires = "server_namespace")]
    server_ip: Option<IpAddr>,
}

fn names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(Steering::ALL.map(Steering::name).into_iter().chain(Asked::ALL.map(Asked::name)))
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let interrupt = Interrupt::on_signals()?;
    let (xfaas, network, cpus) = (xfaas_files(), arguments.network(), allowed_cpus());
    let is_wanted = |name: &str| !arguments.skipped.iter().any(|skipped| skipped == name);
    let asked: Vec<Asked> = Asked::ALL.into_iter().filter(|asked| is_wanted(asked.name())).collect();
    let can_steer = |steering: &Steering| network.is_veth() || *steering == Steering::Off;
    if !network.is_veth() {
        eprintln!("no network namespaces are given: steering off on loopback only");
    }
    let steering: Vec<Steering> = Steering::ALL.into_iter().filter(|steering| is_wanted(steering.name()) && can_steer(steering)).collect();
    let cores: Vec<usize> = arguments.cores.iter().map(|cores| usize::from(*cores)).filter(|cores| *cores <= cpus.len()).collect();
    if asked.is_empty() || steering.is_empty() || cores.is_empty() {
        return Err(format!("nothing is left to measure on the CPUs {cpus:?}").into());
    }
    let bench = CurveBench {
        xfaas: &xfaas,
        network: &network,
        cpus: &cpus,
        asked: &asked,
        steering: &steering,
        cores: &cores,
        seconds: arguments.seconds,
        connections: arguments.connections as usize,
        in_flight: arguments.in_flight as usize,
        sessions: arguments.sessions as usize,
        interrupt: &interrupt,
    };
    let (points, verdicts) = bench.measure()?;
    if arguments.json {
        points.iter().for_each(|point| println!("{}", point.to_json()));
        verdicts.iter().for_each(|verdict| println!("{}", verdict.to_json()));
    } else {
        print!("{}", curves_table(&points, &verdicts));
    }
    let png = save(&CurvesPicture::new(&points), &arguments.svg)?;
    eprintln!("the curves are in {} and {}", arguments.svg.display(), png.display());
    if interrupt.is_set() {
        return Err("interrupted: these are the results so far".into());
    }
    // A load that shares the server's cores takes from it what it offers past the top: such a curve says nothing about the server.
    let broken = verdicts.iter().filter(|verdict| !verdict.holds && !verdict.load_shares_cores).count();
    let unjudged = asked.len() * steering.len() * cores.len() - verdicts.len();
    match (broken, unjudged) {
        (0, 0) => Ok(()),
        _ => Err(format!("{broken} curves break past their top, and {unjudged} were never loaded past it").into()),
    }
}

impl Arguments {
    fn network(&self) -> Network {
        match (&self.server_namespace, &self.client_namespace, self.server_ip) {
            (Some(server), Some(client), Some(ip)) => Network::veth(server.clone(), client.clone(), ip),
            _ => Network::loopback(),
        }
    }
}
