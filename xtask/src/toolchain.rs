//! Finds the compilers and linkers of the kernel programs and the guests: Debian's packages, or a rustup nightly with `rust-src`.
//! Only looks at files and asks programs for their version: quick, changes nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::paths;

/// Debian's rustc, with the core library for the kernel target and the library sources.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_BPF_LIBRARY: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const DEBIAN_RUST_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/core";
/// The versions of bpf-linker that the kernel programs were built with.
pub const BPF_LINKER_VERSION: &str = "0.13";
/// Versions of clang and wasm-ld that are looked for, the tested one first.
const CLANG_VERSIONS: [&str; 6] = ["-22", "-23", "-21", "-20", "-19", ""];
const PROFILE_MERGER: &str = "llvm-profdata";

/// The compiler of the kernel programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelToolchain {
    /// Debian's rustc, which brings `core` for the target.
    Debian { rustc: PathBuf },
    /// A rustup nightly that builds `core` from `rust-src`.
    Nightly,
}

/// The compiler of the Rust guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestToolchain {
    /// Debian's rustc builds `core` from its sources.
    Debian { rustc: PathBuf, linker: PathBuf },
    /// The toolchain in use has the target installed.
    Rustup,
}

/// What was found; `None` is missing.
#[derive(Debug)]
pub struct Toolchains {
    pub kernel: Option<KernelToolchain>,
    pub guest: Option<GuestToolchain>,
    pub bpf_linker: Option<PathBuf>,
    pub clang: Option<PathBuf>,
    pub wasm_linker: Option<PathBuf>,
}

/// Looks at the machine.
pub fn find() -> Toolchains {
    let wasm_linker = find_versioned("wasm-ld");
    let debian = debian_rustc();
    let kernel = if nightly_has_sources() {
        Some(KernelToolchain::Nightly)
    } else {
        debian.clone().filter(|_| Path::new(DEBIAN_BPF_LIBRARY).is_dir()).map(|rustc| KernelToolchain::Debian { rustc })
    };
    let guest = if target_is_installed("wasm32-unknown-unknown") {
        Some(GuestToolchain::Rustup)
    } else {
        debian.zip(wasm_linker.clone()).map(|(rustc, linker)| GuestToolchain::Debian { rustc, linker })
    };
    Toolchains { kernel, guest, bpf_linker: bpf_linker(), clang: find_versioned("clang"), wasm_linker }
}

/// Debian's rustc, if it and the library sources are there and it is no rustup proxy.
fn debian_rustc() -> Option<PathBuf> {
    let rustc = Path::new(DEBIAN_RUSTC);
    let is_proxy = std::fs::read_link(rustc).is_ok_and(|target| target.ends_with("rustup"));
    (rustc.is_file() && !is_proxy && Path::new(DEBIAN_RUST_SOURCE).is_dir()).then(|| rustc.to_path_buf())
}

fn find_versioned(name: &str) -> Option<PathBuf> {
    CLANG_VERSIONS.iter().find_map(|version| paths::find_program(&format!("{name}{version}")))
}

/// The rustup nightly's system root, if there is one.
pub fn nightly_root() -> Option<PathBuf> {
    paths::find_program("rustup")?;
    // Without the variable a newer rustup would download a missing nightly just because we ask.
    let mut command = Command::new("rustup");
    command.env("RUSTUP_AUTO_INSTALL", "0").args(["run", "nightly", "rustc", "--print", "sysroot"]);
    stdout_of(&mut command).map(PathBuf::from)
}

fn nightly_has_sources() -> bool {
    nightly_root().is_some_and(|root| root.join("lib/rustlib/src/rust/library/Cargo.lock").is_file())
}

/// Whether the toolchain that builds the dataplane has this target's library.
fn target_is_installed(target: &str) -> bool {
    target_folders().iter().any(|folder| folder.ends_with(target) && folder.join("lib").is_dir())
}

/// The folders of all targets that the toolchain that builds the dataplane has.
fn target_folders() -> Vec<PathBuf> {
    let root = stdout_of(Command::new("rustc").current_dir(paths::root()).env_remove("RUSTC").args(["--print", "sysroot"]));
    let entries = root.and_then(|root| std::fs::read_dir(Path::new(&root).join("lib/rustlib")).ok());
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The compiler of the dataplane, as it names itself.
pub fn host_compiler() -> Option<String> {
    stdout_of(Command::new("rustc").current_dir(paths::root()).env_remove("RUSTC").arg("-V"))
}

/// The program that merges what programs recorded for `pgo`: the toolchain's own, else one of an LLVM that reads its records.
pub fn profile_merger() -> Option<PathBuf> {
    let own = target_folders().into_iter().map(|folder| folder.join("bin").join(PROFILE_MERGER)).find(|program| program.is_file());
    let versioned = || CLANG_VERSIONS.iter().filter(|version| !version.is_empty()).map(|version| format!("{PROFILE_MERGER}{version}"));
    own.or_else(|| versioned().find_map(|name| paths::find_program(&name)))
}

/// The major version of the LLVM that this compiler emits bitcode for: bpf-linker must be built with the same.
pub fn llvm_major(toolchain: &KernelToolchain) -> Option<u32> {
    let mut command = match toolchain {
        KernelToolchain::Debian { rustc } => Command::new(rustc),
        KernelToolchain::Nightly => Command::new("rustup"),
    };
    if *toolchain == KernelToolchain::Nightly {
        command.args(["run", "nightly", "rustc"]);
    }
    parse_llvm_major(&stdout_of(command.arg("-vV"))?)
}

fn parse_llvm_major(verbose_version: &str) -> Option<u32> {
    let version = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// A bpf-linker of a version that is known to work, wherever it is.
fn bpf_linker() -> Option<PathBuf> {
    let installed = paths::cargo_home().map(|home| home.join("bin/bpf-linker")).filter(|file| file.is_file());
    let file = installed.or_else(|| paths::find_program("bpf-linker"))?;
    stdout_of(Command::new(&file).arg("--version")).filter(|text| is_known_linker(text)).map(|_| file)
}

fn is_known_linker(version_line: &str) -> bool {
    version_line
        .strip_prefix("bpf-linker ")
        .and_then(|rest| rest.strip_prefix(BPF_LINKER_VERSION))
        .is_some_and(|rest| rest.starts_with('.'))
}

/// The trimmed output of a program that succeeded.
fn stdout_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_versions_of_the_linker_are_taken() {
        assert!(is_known_linker("bpf-linker 0.13.0"));
        assert!(is_known_linker("bpf-linker 0.13.4 (LLVM 22)"));
        for other in ["bpf-linker 0.14.0", "bpf-linker 0.130.0", "bpf-linker 0.13", "something 0.13.0", ""] {
            assert!(!is_known_linker(other), "{other:?}");
        }
    }

    #[test]
    fn the_llvm_version_is_read_from_the_compilers_answer() {
        assert_eq!(parse_llvm_major("rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(parse_llvm_major("rustc 1.96.0\n"), None);
    }
}
