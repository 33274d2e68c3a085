//! `cargo xtask bench NAME`: builds everything with optimisations, then becomes the benchmark program, so that its output is the only
//! one on stdout. `state` and `curves` get a lab of two network namespaces, where rights allow.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{run_quiet, say, step};
use crate::run::{Lab, SERVER_ADDRESS, Stop, remove_leftovers};
use crate::{build, paths, peers, pgo, rights, setup};

/// Builds with optimisations and runs one of the benchmark programs.
#[derive(clap::Args)]
pub struct Arguments {
    /// The program: `steer` (nanoseconds a packet in the kernel), `quick` (xfaas beside a bare echo and nginx), `sync` (durability sync beside redis), `state` (reads and writes of session
    /// state), `soak` (its fragmentation), `sessions` (their starts, memory and durability), `bursts` (many requests at once on one session),
    /// `policies` (keep-alive policies on a trace), `curves` (latency against offered load), `counts` (instructions, system calls and allocations a request, held
    /// against a committed table), `stamps` (what the stamps of stages cost of the throughput), `load` (the load generator beside wrk), `xfaas-load` (the load generator itself),
    /// `peers` (other servers side by side, installed by this command), `paper` (the paper's evaluation, with a report in target/paper), or
    /// another one of bench/src/bin. Then its arguments: --json, so that stdout carries only its JSON, or --help, which lists them.
    // One list, because an argument of ours beside it would take the program's --help for its own.
    #[arg(value_name = "NAME [ARGUMENTS]", trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    line: Vec<OsString>,
}

/// Builds with optimisations and records a node under load with perf.
#[derive(clap::Args)]
pub struct ProfileArguments {
    /// Arguments of the program, such as --seconds 10; --help lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn profile(arguments: ProfileArguments) -> Result<ExitCode> {
    run_program("profile", &arguments.arguments)
}

/// The programs whose servers and clients are in a lab.
const WITH_LAB: [&str; 2] = ["state", "curves"];
/// The programs that hold xfaas against servers which are installed for them.
const WITH_PEERS: [&str; 2] = ["peers", PAPER[0]];
/// The program of the paper's figures, and their baseline, which it starts from beside itself.
const PAPER: [&str; 2] = ["paper", "baseline"];
/// The bare io_uring echo, which several others hold what they measure against, and start from beside themselves.
const BESIDE: &str = "limit";
/// The program that counts, the one that it counts, and the node; all built as bench/counts.toml says.
const COUNTS: [&str; 3] = ["counts", "counted", "xfaas"];
/// `counted` of another build, whose requests carry no stamps.
const UNSTAMPED: &str = "counted-unstamped";
const UNSTAMPED_FEATURE: [&str; 2] = ["--features", "xfaas-dataplane/unstamped"];
/// The program that compares two nodes, and the one of them that has no stamps.
const STAMPS: [&str; 2] = ["stamps", "xfaas-unstamped"];
/// The same feature as a flag: with the feature itself every function of the dataplane has another name, and the record of a node's ways
/// (`pgo`) would guide the build of one node only.
const UNSTAMPED_FLAG: &str = "--cfg=feature=\"unstamped\"";
const POLL: Duration = Duration::from_millis(20);

/// Builds and runs `counts`, which needs no optimised build of everything: it may run in CI.
fn counts(arguments: &[OsString]) -> Result<ExitCode> {
    step("build what is counted (some minutes the first time)", || run_quiet(&mut build::counted_build(&COUNTS)))?;
    let program = paths::host_program(COUNTS[0], false);
    let listed = run_quiet(Command::new(&program).args(arguments).arg("--list-programs"));
    // Wrong usage is told by the program itself.
    if listed.is_ok_and(|listed| listed.lines().any(|program| program == UNSTAMPED)) {
        step("build the same without the stamps of stages", || run_quiet(build::counted_build(&COUNTS[1..2]).args(UNSTAMPED_FEATURE)))?;
        std::fs::copy(paths::host_program(COUNTS[1], false), paths::host_program(UNSTAMPED, false)).context("keep that build")?;
        run_quiet(&mut build::counted_build(&COUNTS))?;
    }
    let mut run = Command::new(program);
    run.args(arguments).env("XFAAS_GUESTS", paths::guests()).env("XFAAS_BIN", paths::host_program("xfaas", false));
    Err(run.exec()).context("start the benchmark counts")
}

/// Builds the node without stamps as it is built for use, and keeps it under its own name.
fn unstamped_node() -> Result<()> {
    let mut command = build::unguided_build(true, "xfaas");
    pgo::guide_with(&mut command, &[UNSTAMPED_FLAG.to_owned()]);
    step("build the dataplane without the stamps of stages (optimised, with all that it uses; minutes the first time)", || {
        run_quiet(&mut command)
    })?;
    std::fs::copy(paths::host_program("xfaas", true), paths::host_program(STAMPS[1], true)).context("keep that build")?;
    Ok(())
}

pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    let (name, arguments) = arguments.line.split_first().context("name a program")?;
    run_program(name.to_str().context("the program's name is no text")?, arguments)
}

fn run_program(name: &str, arguments: &[OsString]) -> Result<ExitCode> {
    let tools = setup::ensure()?;
    let asks_for_help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    if name == COUNTS[0] {
        build::ebpf_and_guests(&tools)?;
        return counts(arguments);
    }
    if asks_for_help {
        step(&format!("build the benchmark {name}"), || run_quiet(&mut build::host_build(true, name)))?;
        return Err(Command::new(paths::host_program(name, true)).args(arguments).exec())
            .with_context(|| format!("start the benchmark {name}"));
    }
    build::ebpf_and_guests(&tools)?;
    if name == STAMPS[0] {
        unstamped_node()?; // first: the build that follows takes its place
    }
    let binary = build::dataplane(true)?;
    let beside = if name == PAPER[0] { PAPER[1] } else { BESIDE };
    for program in [name, beside] {
        step(&format!("build the benchmark {program}"), || run_quiet(&mut build::host_build(true, program)))?;
    }

    let mut run = Command::new(paths::host_program(name, true));
    run.args(arguments);
    run.env("XFAAS_EBPF_OBJECT", paths::ebpf_object()).env("XFAAS_GUESTS", paths::guests()).env("XFAAS_BIN", binary);
    if WITH_PEERS.contains(&name) {
        let listed = run_quiet(Command::new(paths::host_program(name, true)).args(arguments).arg("--list-packages"));
        // Wrong usage is told by the program itself.
        peers::install(&listed.as_deref().unwrap_or_default().lines().collect::<Vec<_>>());
        run.env("XFAAS_PEERS", peers::folder());
    }
    if WITH_LAB.contains(&name) {
        let missing = rights::missing_capabilities()?;
        if missing.is_empty() {
            return run_in_lab(&mut run);
        }
        say(&format!("no lab: missing {}", missing.join(", ")));
    }
    Err(run.exec()).with_context(|| format!("start the benchmark {name}"))
}

/// Runs the program to its end, with a lab of its own. It is told of a wish to end, and the lab is removed after it.
fn run_in_lab(run: &mut Command) -> Result<ExitCode> {
    remove_leftovers()?;
    let stop = Stop::listen()?;
    let lab = Lab::new()?;
    let [server, client] = lab.namespaces();
    run.args(["--server-namespace", server, "--client-namespace", client, "--server-ip", SERVER_ADDRESS]);
    let mut program = run.spawn().context("start the benchmark")?;
    loop {
        if let Some(status) = program.try_wait().context("look at the benchmark")? {
            return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        if stop.wait(POLL) {
            // It may have ended by itself meanwhile.
            kill_process(Pid::from_child(&program), Signal::TERM).ok();
        }
    }
}
