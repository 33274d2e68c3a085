//! `cargo xtask test`: every test, in the order of what they need: the host's, the kernel's, the guests', fuzz targets, benches once.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::process::{cargo, run_quiet, run_shown, say, step};
use crate::{build, paths, rights, setup, toolchain};

/// Seconds each fuzz target runs.
const FUZZ_S: u32 = 10;

/// Runs every test; with root's rights the kernel tests too.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains this text.
    filter: Option<String>,
    /// Leave out the fuzz targets and the benches.
    #[arg(long)]
    short: bool,
}

pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    let tools = setup::ensure()?;
    setup::install_for_tests();
    build::ebpf_and_guests(&tools)?;
    let filter = arguments.filter.as_deref();
    let mut failures = Failures::default();

    say("tests that need no rights");
    failures.note("host tests", run_shown(cargo_test(&paths::root()).arg("--workspace").args(filter)));
    kernel_tests(filter, &mut failures)?;

    say("tests of the guest SDK and the samples, on the host");
    let mut guests = cargo_test(&paths::root().join("guests"));
    failures.note("guest tests", run_shown(guests.env("CARGO_TARGET_DIR", paths::target("guests-host")).args(filter)));

    if !arguments.short && filter.is_none() {
        fuzz_targets(&mut failures)?;
        benches(&mut failures);
    }
    failures.finish()
}

/// What failed so far: all parts run, then the command fails.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn note(&mut self, what: &str, result: Result<()>) {
        if let Err(error) = result {
            say(&format!("{what} FAILED: {error:#}"));
            self.0.push(what.to_owned());
        }
    }

    fn finish(self) -> Result<ExitCode> {
        if self.0.is_empty() {
            say("all tests passed");
            return Ok(ExitCode::SUCCESS);
        }
        bail!("failed: {}", self.0.join(", "));
    }
}

fn cargo_test(folder: &Path) -> Command {
    let mut command = cargo(folder);
    command.args(["test", "--no-fail-fast"]).env("XFAAS_EBPF_OBJECT", paths::ebpf_object()).env("XFAAS_GUESTS", paths::guests());
    command
}

/// The ignored tests of all host crates: they need rights. One at a time, because they make namespaces and pin threads.
fn kernel_tests(filter: Option<&str>, failures: &mut Failures) -> Result<()> {
    let missing = rights::missing_capabilities()?;
    let mut command = cargo_test(&paths::root());
    command.args(["--workspace", "--tests"]).args(filter).args(["--", "--ignored"]);
    if missing.is_empty() {
        say("kernel tests");
        failures.note("kernel tests", run_shown(command.arg("--test-threads=1")));
        return Ok(());
    }
    let listed = step("count the kernel tests", || run_quiet(command.arg("--list")))?;
    let count = count_tests(&listed);
    say(&format!("{count} KERNEL TESTS NOT RUN: missing {}. Run `cargo xtask test` as root", missing.join(", ")));
    if count > 0 && std::env::var_os("CI").is_some() {
        failures.note("kernel tests", Err(anyhow::anyhow!("not run, and CI must run them")));
    }
    Ok(())
}

/// Tests in the answer to `--list`.
fn count_tests(listed: &str) -> usize {
    listed.lines().filter(|line| line.ends_with(": test")).count()
}

fn fuzz_targets(failures: &mut Failures) -> Result<()> {
    if !paths::root().join("fuzz/Cargo.toml").is_file() {
        return Ok(());
    }
    let is_missing = |program| paths::find_program(program).is_none();
    if is_missing("cargo-fuzz") || is_missing("c++") || toolchain::nightly_root().is_none() {
        say("FUZZ TARGETS NOT RUN: they need a rustup nightly, cargo-fuzz and a C++ compiler (`cargo xtask setup` names how to get them)");
        return Ok(());
    }
    let listed = run_quiet(fuzz().arg("list")).context("list the fuzz targets")?;
    for target in listed.lines() {
        let mut build = fuzz();
        let built = step(&format!("build the fuzz target {target}"), || run_quiet(build.args(["build", target])));
        let run = built.and_then(|_| {
            let mut run = fuzz();
            run.args(["run", target, "--", &format!("-max_total_time={FUZZ_S}")]);
            step(&format!("fuzz {target} for {FUZZ_S} s"), || run_quiet(&mut run))
        });
        failures.note(&format!("fuzz target {target}"), run.map(drop));
    }
    Ok(())
}

fn fuzz() -> Command {
    let mut command = Command::new("rustup");
    command.current_dir(paths::root()).env_remove("RUSTC").env_remove("CARGO_TARGET_DIR");
    command.env("XFAAS_EBPF_OBJECT", paths::ebpf_object()).args(["run", "nightly", "cargo", "fuzz"]);
    command
}

/// Every criterion bench once with tiny input, so that benches cannot rot. Not optimised: only that they run is checked.
fn benches(failures: &mut Failures) {
    if paths::root().join("bench/Cargo.toml").is_file() {
        say("benches, each once");
        failures.note("benches", run_shown(cargo_test(&paths::root()).args(["--workspace", "--bench", "*"])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_tests_are_counted_and_nothing_else() {
        let listed = "a::b: test\nc: test\n\n2 tests, 0 benchmarks\nd: benchmark\n0 tests, 0 benchmarks\n";
        assert_eq!(count_tests(listed), 2);
        assert_eq!(count_tests(""), 0);
    }

    #[test]
    fn one_failure_fails_the_whole() {
        let mut failures = Failures::default();
        failures.note("this", Ok(()));
        failures.note("that", Err(anyhow::anyhow!("broken")));
        assert!(failures.finish().expect_err("one failed").to_string().contains("that"));
        assert!(Failures::default().finish().is_ok());
    }
}
