//! The `xfaas` binary: the command line, and the node that `xfaas run` starts.

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tracing::level_filters::LevelFilter;
use xfaas_dataplane::cli::{self, Hooks};
use xfaas_dataplane::config::Config;
use xfaas_dataplane::control::describe;
use xfaas_dataplane::ebpf_object::ebpf_object;
use xfaas_dataplane::node::Node;

/// How often the main thread looks for a signal, a failed shard, and log lines of the kernel programs.
const WATCH_MS: u64 = 50;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_max_level(LevelFilter::INFO).init();
    cli::run(std::env::args_os(), Hooks { serve, probe: |_: &Config| Vec::new() })
}

/// Runs a node until SIGINT or SIGTERM; a second signal ends it without draining.
fn serve(config: Config) -> anyhow::Result<()> {
    let started_at = Instant::now();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen for signals")?;
    let node = Node::start(&config, ebpf_object()).map_err(|error| anyhow::anyhow!(describe(&error)))?;
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
    tracing::info!("stopping: new requests are refused, running ones finish");
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            std::process::exit(130);
        }
    });
    node.stop().map_err(|error| anyhow::anyhow!(describe(&error)))
}
