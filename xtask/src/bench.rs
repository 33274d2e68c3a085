//! `cargo xtask bench NAME`: builds everything with optimisations, then becomes the benchmark program, so that its output is the only
//! one on stdout.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::process::{run_quiet, step};
use crate::{build, paths, setup};

/// Builds with optimisations and runs one of the benchmark programs.
#[derive(clap::Args)]
pub struct Arguments {
    /// The program: `steer` (nanoseconds a packet in the kernel), `quick` (the table of the README), `soak`
    /// (fragmentation of session memory), or another one of bench/src/bin.
    name: String,
    /// Arguments of the program, such as --json: then stdout carries only its JSON.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    let tools = setup::ensure()?;
    build::ebpf_and_guests(&tools)?;
    let binary = build::dataplane(true)?;
    step(&format!("build the benchmark {}", arguments.name), || run_quiet(&mut build::host_build(true, &arguments.name)))?;

    let mut run = Command::new(paths::host_program(&arguments.name, true));
    run.args(&arguments.arguments);
    run.env("XFAAS_EBPF_OBJECT", paths::ebpf_object()).env("XFAAS_GUESTS", paths::guests()).env("XFAAS_BIN", binary);
    Err(run.exec()).with_context(|| format!("start the benchmark {}", arguments.name))
}
