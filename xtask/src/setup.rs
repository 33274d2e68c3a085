//! `cargo xtask setup`: finds or installs what xfaas is built and tested with. Called by the other commands too, then silent when
//! nothing is missing. Two ways, mixed as needed: Debian's packages, or rustup.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::packages;
use crate::paths;
use crate::process::say;
use crate::toolchain::{self, GuestToolchain, KernelToolchain, Toolchains};

/// The LLVM that Debian's compiler for the kernel programs emits.
const DEBIAN_LLVM_MAJOR: u32 = 22;

/// Finds or installs what xfaas is built and tested with, and ends with a check. Does nothing the second time.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only check: install nothing.
    #[arg(long)]
    check: bool,
}

/// The programs that builds start, all found.
pub struct Tools {
    pub kernel: KernelToolchain,
    pub guest: GuestToolchain,
    pub bpf_linker: PathBuf,
    pub clang: PathBuf,
    pub wasm_linker: PathBuf,
}

/// Debian's package for a program that is only started, what for, and whether xfaas cannot do without.
const PROGRAMS: [(&str, &str, &str, bool); 12] = [
    ("ip", "iproute2", "network namespaces of the demo and the kernel tests", true),
    ("ethtool", "ethtool", "offload settings of the demo and the kernel tests", true),
    ("setpriv", "util-linux", "ends the demo's server when the demo is killed", true),
    ("curl", "curl", "the demo's requests", true),
    ("strace", "strace", "counts system calls in a test", false),
    ("wrk", "wrk", "load of `bench load`", false),
    ("nginx", "nginx-light", "peer of `bench quick`, `load` and `peers`", false),
    ("redis-server", "redis-server", "peer of `bench state`, `sync`, `peers` and `paper`", false),
    ("valgrind", "valgrind", "`bench counts`", false),
    ("perf", "linux-perf", "`profile`", false),
    ("c++", "g++", "fuzz targets", false),
    ("bpftool", "bpftool", "a look at loaded programs", false),
];

/// One line of the closing check.
struct Line {
    what: &'static str,
    found: Option<String>,
    hint: String,
    required: bool,
}

pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    if !arguments.check {
        install_missing()?;
        install_for_tests();
    }
    let found = toolchain::find();
    let lines = check(&found);
    eprint!("{}", shown(&lines));
    let missing = lines.iter().filter(|line| line.required && line.found.is_none()).count();
    if missing > 0 {
        say(&format!("{missing} needed part(s) missing: see above"));
        return Ok(ExitCode::FAILURE);
    }
    say("everything that is needed is there");
    Ok(ExitCode::SUCCESS)
}

/// What builds need, installed if it was missing. Errors: something is missing still; each missing part with how to get it.
pub fn ensure() -> Result<Tools> {
    install_missing()?;
    let found = toolchain::find();
    let lines = check(&found);
    match found {
        Toolchains {
            kernel: Some(kernel),
            guest: Some(guest),
            bpf_linker: Some(bpf_linker),
            clang: Some(clang),
            wasm_linker: Some(wasm_linker),
        } => Ok(Tools { kernel, guest, bpf_linker, clang, wasm_linker }),
        _ => bail!("parts are missing, get them and try again (`cargo xtask setup` tells more):\n{}", shown(&lines)),
    }
}

/// Installs step by step; a step that fails says so and the rest goes on, because the closing check names what is missing.
fn install_missing() -> Result<()> {
    packages::remove_stale_policy()?;
    let found = toolchain::find();
    // A rustup machine that has the nightly with sources gets the other half from rustup too.
    if found.kernel == Some(KernelToolchain::Nightly) && found.guest.is_none() {
        report(packages::rustup_add_wasm_target());
    }
    let packages = missing_packages(&toolchain::find());
    if !packages.is_empty() && packages::has_apt() {
        report(packages::apt_install(&packages));
    }
    let found = toolchain::find();
    if paths::find_program("rustup").is_some() {
        if found.guest.is_none() {
            report(packages::rustup_add_wasm_target());
        }
        if found.kernel.is_none() {
            report(packages::rustup_install_nightly());
        }
    }
    let found = toolchain::find();
    if let (Some(kernel), None) = (&found.kernel, &found.bpf_linker) {
        report(packages::install_bpf_linker(toolchain::llvm_major(kernel).unwrap_or(DEBIAN_LLVM_MAJOR)));
    }
    // Fuzz targets run where they can: with a nightly.
    if paths::find_program("cargo-fuzz").is_none() && toolchain::nightly_root().is_some() {
        report(packages::install_cargo_fuzz());
    }
    Ok(())
}

/// Installs what only tests need, if it is missing. A failure is told: the tests that need it then say so too.
pub fn install_for_tests() {
    if !has_s3_server() {
        report(packages::install_s3_server());
    }
}

fn has_s3_server() -> bool {
    packages::s3_server().join("bin/moto_server").exists()
}

fn report(result: Result<()>) {
    if let Err(error) = result {
        say(&format!("{error:#}"));
    }
}

/// Debian's packages for all that is not there.
fn missing_packages(found: &Toolchains) -> Vec<String> {
    let mut packages = Vec::new();
    if found.kernel.is_none() {
        packages.extend(["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-src"].map(String::from));
    }
    // Debian's compiler also needs the linker, which then is missing itself.
    if found.guest.is_none() {
        packages.extend(["rustc-web", "rust-web-src"].map(String::from));
    }
    if found.clang.is_none() {
        packages.push("clang-22".into());
    }
    if found.wasm_linker.is_none() {
        packages.push("lld-22".into());
    }
    if found.bpf_linker.is_none() {
        let major = found.kernel.as_ref().and_then(toolchain::llvm_major).unwrap_or(DEBIAN_LLVM_MAJOR);
        if !packages::has_llvm(major) {
            packages.push(format!("llvm-{major}-dev"));
        }
    }
    packages.extend(PROGRAMS.iter().filter(|program| paths::find_program(program.0).is_none()).map(|program| program.1.to_owned()));
    packages.sort();
    packages.dedup();
    packages
}

fn check(found: &Toolchains) -> Vec<Line> {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let apt = |packages: &str| format!("apt-get install {packages}");
    let mut lines = vec![
        Line {
            what: "compiler of the kernel programs",
            found: found.kernel.as_ref().map(|kernel| match kernel {
                KernelToolchain::Debian { rustc } => rustc.display().to_string(),
                KernelToolchain::Nightly => "rustup's nightly with rust-src".into(),
            }),
            hint: "Debian: apt-get install rustc-web libstd-rust-web-dev-bpf rust-web-src; rustup: rustup toolchain install nightly -c rust-src".into(),
            required: true,
        },
        Line {
            what: "bpf-linker 0.13",
            found: path(&found.bpf_linker),
            hint: "cargo install bpf-linker, as `cargo xtask setup` does it once there are a compiler of the kernel programs and its LLVM".into(),
            required: true,
        },
        Line {
            what: "compiler of the Rust guests",
            found: found.guest.as_ref().map(|guest| match guest {
                GuestToolchain::Debian { rustc, .. } => rustc.display().to_string(),
                GuestToolchain::Rustup => "rustup's wasm32-unknown-unknown".into(),
            }),
            hint: "Debian: apt-get install rustc-web rust-web-src lld-22; rustup: rustup target add wasm32-unknown-unknown".into(),
            required: true,
        },
        Line { what: "clang, for the C guests", found: path(&found.clang), hint: apt("clang-22"), required: true },
        Line { what: "wasm-ld, for the guests", found: path(&found.wasm_linker), hint: apt("lld-22"), required: true },
    ];
    lines.extend(PROGRAMS.map(|(program, package, purpose, required)| Line {
        what: program,
        found: path(&paths::find_program(program)),
        hint: format!("{}: {purpose}", apt(package)),
        required,
    }));
    lines.push(Line {
        what: "moto, an S3-compatible server",
        found: has_s3_server().then(|| packages::s3_server().display().to_string()),
        hint: "python3 with venv (Debian: apt-get install python3-venv), then `cargo xtask setup`: tests of checkpoints in a bucket".into(),
        required: false,
    });
    lines.push(Line {
        what: "cargo-fuzz with a nightly",
        found: path(&paths::find_program("cargo-fuzz").filter(|_| toolchain::nightly_root().is_some())),
        hint: "rustup toolchain install nightly && cargo install cargo-fuzz: fuzz targets, else left out of `cargo xtask test`".into(),
        required: false,
    });
    lines
}

fn shown(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        let state = match (&line.found, line.required) {
            (Some(found), _) => found.clone(),
            (None, true) => format!("MISSING. {}", line.hint),
            (None, false) => format!("not there, optional. {}", line.hint),
        };
        writeln!(text, "  {:<32} {state}", line.what).expect("a String takes any text");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Toolchains = Toolchains { kernel: None, guest: None, bpf_linker: None, clang: None, wasm_linker: None };

    #[test]
    fn packages_are_named_once_and_for_each_missing_part() {
        let packages = missing_packages(&NOTHING);
        for package in ["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-src", "clang-22", "lld-22"] {
            assert_eq!(packages.iter().filter(|name| *name == package).count(), 1, "{package} in {packages:?}");
        }
    }

    #[test]
    fn nothing_is_installed_for_a_toolchain_that_is_there() {
        let found = Toolchains {
            kernel: Some(KernelToolchain::Nightly),
            guest: Some(GuestToolchain::Rustup),
            bpf_linker: Some("l".into()),
            clang: Some("c".into()),
            wasm_linker: Some("w".into()),
        };
        assert!(missing_packages(&found).iter().all(|package| PROGRAMS.iter().any(|program| program.1 == package)));
    }

    #[test]
    fn the_check_tells_missing_from_optional() {
        let lines = check(&NOTHING);
        let text = shown(&lines);
        assert!(text.contains("compiler of the kernel programs  MISSING. Debian: apt-get install rustc-web"), "{text}");
        assert!(lines.iter().filter(|line| line.required && line.found.is_none()).count() >= 5);
    }
}
