//! The `xfaas` binary: the command line, and the node that `xfaas run`, or the container that `xfaas container` starts.

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tracing::level_filters::LevelFilter;
use xfaas_dataplane::cli::{self, Hooks, Role};
use xfaas_dataplane::config::{Config, ContainerConfig};
use xfaas_dataplane::control::describe;
use xfaas_dataplane::ebpf_object::ebpf_object;
use xfaas_dataplane::node::Node;
use xfaas_dataplane::node::container::Container;
use xfaas_dataplane::sys::heap;

/// How often the main thread looks for a signal, a failed shard, and log lines of the kernel programs.
const WATCH_MS: u64 = 50;

fn main() -> ExitCode {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // A line that cannot be written is let go: to say so on stderr, which is gone too, would panic.
    log.log_internal_errors(false).with_target(false).with_max_level(LevelFilter::INFO).init();
    if !heap::give_back_large_blocks() {
        tracing::warn!("the C library's heap could not be set up: memory of long replies may stay with this process");
    }
    cli::run(std::env::args_os(), Hooks { serve, probe: |_: &Config| Vec::new() })
}

/// Runs a node or a container until SIGINT, SIGTERM or, unless it began with that ignored, SIGHUP; a second signal ends it without draining.
fn serve(role: Role) -> anyhow::Result<()> {
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    let signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup)).context("cannot listen for signals")?;
    match role {
        Role::Node(config) => serve_node(&config, signals),
        Role::Container(config) => serve_container(&config, signals),
    }
}

/// As `nohup` leaves it. Where the system does not tell, it is not.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

fn serve_node(config: &Config, mut signals: Signals) -> anyhow::Result<()> {
    let started_at = Instant::now();
    let node = Node::start(config, ebpf_object()).map_err(|error| anyhow::anyhow!(describe(&error)))?;
    tracing::info!(
        "serving http on {}, datagrams on {} and containers on {}, {} shards on CPUs {:?}, {} functions, admin on http://{}, ready after {} ms",
        config.http,
        config.udp,
        config.rpc,
        config.cpus.len(),
        config.cpus,
        node.start_report().loaded.len(),
        node.admin_address(),
        started_at.elapsed().as_millis(),
    );
    while signals.pending().next().is_none() && !node.has_failed() {
        node.flush_kernel_logs();
        std::thread::sleep(Duration::from_millis(WATCH_MS));
    }
    announce_stop(signals);
    node.stop().map_err(|error| anyhow::anyhow!(describe(&error)))
}

fn serve_container(config: &ContainerConfig, mut signals: Signals) -> anyhow::Result<()> {
    let container = Container::start(config).map_err(|error| anyhow::anyhow!(describe(&error)))?;
    tracing::info!(
        "serving http and datagrams on {}, {} shards on CPUs {:?}, admin on http://{}; joining the primary at {}",
        config.listen,
        config.cpus.len(),
        config.cpus,
        container.admin_address(),
        config.join,
    );
    while signals.pending().next().is_none() && !container.has_failed() && container.failure().is_none() {
        std::thread::sleep(Duration::from_millis(WATCH_MS));
    }
    let failure = container.failure();
    announce_stop(signals);
    container.stop().map_err(|error| anyhow::anyhow!(describe(&error)))?;
    failure.map_or(Ok(()), |failure| Err(anyhow::anyhow!(failure)))
}

/// A second signal ends the process at once; not SIGHUP, of which a terminal that goes may send several.
fn announce_stop(mut signals: Signals) {
    tracing::info!("stopping: new requests are refused, running ones finish");
    std::thread::spawn(move || {
        if signals.forever().any(|signal| signal != SIGHUP) {
            std::process::exit(130);
        }
    });
}
