//! `cargo xtask run`: builds everything and starts the demo. Without `--iface` it is a lab of two network namespaces; without rights
//! and with `--steering off`, plain loopback. Ctrl-C or SIGTERM ends it and leaves nothing behind; what a killed run left (its
//! namespaces and folders; its server dies with it) is removed by the next run.

mod config;
mod lab;
mod leftovers;
mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{run_quiet, say, shown};
use crate::{build, paths, rights, setup};

pub use self::lab::{Lab, SERVER_ADDRESS};
pub use self::leftovers::remove as remove_leftovers;
pub use self::server::{AwaitReadyArguments, Stop, await_ready};

use self::config::Config;
use self::server::Server;

/// The port of HTTP and datagrams.
const PORT: u16 = 8080;
/// The function that the shown commands call: a counter that loses no update.
const SHOWN_FUNCTION: &str = "counter-rmw-linear";

/// Builds everything and starts the demo: a client and a server in network namespaces, with the sample functions deployed.
#[derive(clap::Args)]
pub struct Arguments {
    /// Serve on this interface of the machine instead of in a lab.
    #[arg(long, value_name = "DEV")]
    iface: Option<String>,
    /// CPUs to run on, one shard each, such as 0,1 or 0-3; all that this process may use if not given.
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// How packets find their core. `off` needs no rights: it works on loopback, only slower.
    #[arg(long, value_enum, default_value_t = Steering::Auto)]
    steering: Steering,
    /// Build the dataplane with optimisations.
    #[arg(long)]
    release: bool,
    /// Run the three shown commands, check their answers, and end.
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Steering {
    /// The best that the machine and the interface can do.
    Auto,
    /// XDP: packets move to their session's CPU as soon as they arrive.
    Xdp,
    /// The kernel chooses the session's socket; packets stay on their CPU.
    Reuseport,
    /// A TC program drops what is malformed, for devices without XDP; the kernel chooses the session's socket.
    Tc,
    /// No kernel programs, no rights.
    Off,
}

impl Steering {
    fn name(self) -> &'static str {
        match self {
            Steering::Auto => "auto",
            Steering::Xdp => "xdp",
            Steering::Reuseport => "reuseport",
            Steering::Tc => "tc",
            Steering::Off => "off",
        }
    }
}

/// Where the server runs.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Two namespaces with a veth pair.
    Lab,
    /// 127.0.0.1 of this machine.
    Loopback,
    /// This interface of this machine.
    Interface(String),
}

pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    let place = choose_place(arguments, &rights::missing_capabilities()?)?;
    let cpus = choose_cpus(arguments.cores.as_deref(), &rights::allowed_cpus()?)?;
    let tools = setup::ensure()?;
    build::ebpf_and_guests(&tools)?;
    let binary = build::dataplane(arguments.release)?;
    leftovers::remove()?;

    let stop = Stop::listen()?;
    let folders = leftovers::RunFolders::new()?;
    let lab = if place == Place::Lab { Some(Lab::new()?) } else { None };
    let config_path = folders.state().join("xfaas.toml");
    let config = Config {
        listen: listen_address(&place, lab.as_ref()),
        state: folders.state().join("state"),
        shared_memory: folders.shared_memory(),
        cpus: &cpus,
        steering: arguments.steering.name(),
        iface: match &place {
            _ if arguments.steering == Steering::Off => None,
            Place::Lab => Some(lab::DEVICE),
            Place::Loopback => None,
            Place::Interface(name) => Some(name),
        },
        guests: paths::guests(),
    };
    std::fs::write(&config_path, config.to_toml()).with_context(|| format!("write {}", config_path.display()))?;

    let mut server = Server::start(&binary, &config_path, lab.as_ref())?;
    if !server.wait_until_ready(lab.as_ref(), &stop)? {
        return server.stop().map(|()| ExitCode::SUCCESS);
    }
    let commands = DemoCommands::new(&place, lab.as_ref(), &binary);
    if arguments.check {
        commands.check()?;
    } else {
        commands.show(cpus.len());
        server.wait_until_stopped(&stop)?;
    }
    server.stop()?;
    drop(lab);
    drop(folders);
    say("ended, nothing is left behind");
    Ok(ExitCode::SUCCESS)
}

/// Errors: rights are missing for what is asked, or the interface does not exist.
fn choose_place(arguments: &Arguments, missing: &[String]) -> Result<Place> {
    if !missing.is_empty() && arguments.steering != Steering::Off {
        bail!(
            "missing {}: run as root (`sudo -E env PATH=\"$PATH\" cargo xtask run`), or use `cargo xtask run --steering off`, which works on loopback without them",
            missing.join(", ")
        );
    }
    match &arguments.iface {
        Some(name) => {
            ensure!(Path::new("/sys/class/net").join(name).exists(), "there is no interface {name:?}: `ip link` lists them");
            Ok(Place::Interface(name.clone()))
        }
        None if missing.is_empty() => Ok(Place::Lab),
        None => Ok(Place::Loopback),
    }
}

/// The CPUs that are asked for, each one that this process may use; all of those if none is asked for.
fn choose_cpus(list: Option<&str>, allowed: &[u16]) -> Result<Vec<u16>> {
    let Some(list) = list else { return Ok(allowed.to_vec()) };
    let cpus = rights::parse_cpu_list(list).with_context(|| format!("--cores {list}: give CPU numbers such as 0,1 or 0-3"))?;
    if let Some(cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        bail!("--cores {list}: CPU {cpu} does not exist or is not allowed; choose from {allowed:?}");
    }
    Ok(cpus)
}

fn listen_address(place: &Place, lab: Option<&Lab>) -> String {
    let has_ipv6 = match (place, lab) {
        (Place::Loopback, _) => return format!("127.0.0.1:{PORT}"),
        (_, Some(lab)) => lab.has_ipv6(),
        (_, None) => Path::new("/proc/net/if_inet6").exists(),
    };
    if has_ipv6 { format!("[::]:{PORT}") } else { format!("0.0.0.0:{PORT}") }
}

/// The three commands to try.
struct DemoCommands {
    http: Command,
    datagram: Command,
    metrics: Command,
}

impl DemoCommands {
    fn new(place: &Place, lab: Option<&Lab>, binary: &Path) -> Self {
        let client = |program: &Path| lab.map_or_else(|| Command::new(program), |lab| lab.in_client(program));
        let server = |program: &Path| lab.map_or_else(|| Command::new(program), |lab| lab.in_server(program));
        let address = if *place == Place::Lab { lab::SERVER_ADDRESS } else { "127.0.0.1" };
        let curl = PathBuf::from("curl");
        let mut http = client(&curl);
        http.args(["-sS", "--fail", "-H", "x-session-id: alice"]).arg(format!("http://{address}:{PORT}/f/{SHOWN_FUNCTION}"));
        let mut datagram = client(binary);
        datagram.args(["invoke", "--udp", "--addr", &format!("{address}:{PORT}"), "--session", "alice", SHOWN_FUNCTION]);
        let mut metrics = server(&curl);
        metrics.args(["-sS", "--fail"]).arg(format!("http://{}/metrics", config::ADMIN_ADDRESS));
        DemoCommands { http, datagram, metrics }
    }

    fn show(&self, shards: usize) {
        say(&format!("xfaas is ready with {shards} shard(s). Try from another terminal:"));
        for (what, command) in [
            ("add 1 to alice's counter over HTTP", &self.http),
            ("the same counter by a datagram", &self.datagram),
            ("the metrics page", &self.metrics),
        ] {
            eprintln!("\n  # {what}\n  {}", shown(command));
        }
        eprintln!();
        say("Ctrl-C ends it");
    }

    /// Errors: a command fails, or its answer is not the counter's next value or a metrics page.
    fn check(mut self) -> Result<()> {
        for (what, command, wanted) in [("HTTP", &mut self.http, "1"), ("datagram", &mut self.datagram, "2")] {
            let answer = run_quiet(command).with_context(|| format!("the {what} command"))?;
            ensure!(answer.trim() == wanted, "the {what} command answered {answer:?} instead of {wanted:?}");
        }
        let page = run_quiet(&mut self.metrics).context("the metrics command")?;
        ensure!(page.lines().any(|line| line.starts_with("xfaas_")), "the metrics page has no metric of ours:\n{page}");
        say("all three commands answered as they must");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(iface: Option<&str>, steering: Steering) -> Arguments {
        Arguments { iface: iface.map(str::to_owned), cores: None, steering, release: false, check: false }
    }

    #[test]
    fn without_rights_only_loopback_without_steering_is_left() {
        let missing = ["CAP_BPF (load programs and maps)".to_owned()];
        for steering in [Steering::Auto, Steering::Xdp, Steering::Reuseport, Steering::Tc] {
            let text = choose_place(&arguments(None, steering), &missing).expect_err("rights are missing").to_string();
            assert!(text.contains("CAP_BPF") && text.contains("--steering off"), "{text}");
        }
        assert_eq!(choose_place(&arguments(None, Steering::Off), &missing).expect("allowed"), Place::Loopback);
    }

    #[test]
    fn with_rights_the_lab_is_made_unless_an_interface_is_named() {
        assert_eq!(choose_place(&arguments(None, Steering::Auto), &[]).expect("allowed"), Place::Lab);
        assert_eq!(choose_place(&arguments(Some("lo"), Steering::Xdp), &[]).expect("allowed"), Place::Interface("lo".into()));
        assert!(choose_place(&arguments(Some("no-such-dev"), Steering::Xdp), &[]).is_err());
    }

    #[test]
    fn cores_are_those_asked_for_or_all_that_are_allowed() {
        assert_eq!(choose_cpus(None, &[0, 2]).expect("all"), [0, 2]);
        assert_eq!(choose_cpus(Some("2"), &[0, 2]).expect("one"), [2]);
        assert!(choose_cpus(Some("1"), &[0, 2]).is_err());
        assert!(choose_cpus(Some("x"), &[0, 2]).is_err());
    }
}
