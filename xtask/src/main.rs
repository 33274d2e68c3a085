//! `cargo xtask`: sets up, builds, runs, tests, measures and checks xfaas. Imports none of its crates: it starts cargo and the built
//! programs as other processes. Progress goes to stderr; stdout carries only what a started program prints.

mod bench;
mod build;
mod packages;
mod paths;
mod peers;
mod pgo;
mod process;
mod rights;
mod run;
mod setup;
mod test;
mod tidy;
mod toolchain;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Sets up, builds, runs, tests, measures and checks xfaas.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Finds or installs what xfaas is built and tested with, and ends with a check. Does nothing the second time.
    Setup(setup::Arguments),
    /// Builds the kernel programs, the guests and the dataplane, or the parts that are named.
    Build(build::Arguments),
    /// Builds everything and starts the demo: a client and a server in network namespaces, with the sample functions deployed.
    Run(run::Arguments),
    /// Runs every test; with root's rights the kernel tests too.
    Test(test::Arguments),
    /// Builds with optimisations and runs one of the benchmark programs.
    Bench(bench::Arguments),
    /// Builds with optimisations and records a node under load with perf: flame graphs of the run and of its slowest requests.
    // `--help` is the program's, as after `bench profile`.
    #[command(disable_help_flag = true)]
    Profile(bench::ProfileArguments),
    /// Records which ways requests take, for optimised builds: after changes to the path of a request. Minutes.
    Pgo(pgo::Arguments),
    /// Checks the house rules that a program can check, and lists every finding as file:line.
    Tidy(tidy::Arguments),
    /// Waits until the admin port answers that xfaas is ready. Started by `run` inside the server's namespace.
    #[command(hide = true)]
    AwaitReady(run::AwaitReadyArguments),
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup(arguments) => setup::command(&arguments),
        Command::Build(arguments) => build::command(&arguments),
        Command::Run(arguments) => run::command(&arguments),
        Command::Test(arguments) => test::command(&arguments),
        Command::Bench(arguments) => bench::command(&arguments),
        Command::Profile(arguments) => bench::profile(arguments),
        Command::Pgo(arguments) => pgo::command(&arguments),
        Command::Tidy(arguments) => tidy::command(&arguments),
        Command::AwaitReady(arguments) => run::await_ready(&arguments),
    }
}
