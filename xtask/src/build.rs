//! `cargo xtask build`: the kernel programs, the guests, then the dataplane, each for its own target and in its own target folder.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

use crate::process::{cargo, cross_cargo, run_quiet, say, step};
use crate::setup::{self, Tools};
use crate::toolchain::{GuestToolchain, KernelToolchain};
use crate::{paths, pgo};

/// Bytes of a guest's stack: small, so that a fork touches few pages. The linker's default is 1 MiB. Not whole pages of 4 KiB: the stack grows down
/// from here and the data begins here, so most guests use both within one page.
const GUEST_STACK_BYTES: u32 = 16_384 + 2_048;
const GUEST_TARGET: &str = "wasm32-unknown-unknown";
const KERNEL_TARGET: &str = "bpfel-unknown-none";
/// Folders of C guests, one guest a file.
const C_GUEST_FOLDERS: [&str; 3] = ["guests/c", "guests/hostile", "guests/bench"];

/// Builds the kernel programs, the guests and the dataplane, or the parts that are named.
#[derive(clap::Args)]
pub struct Arguments {
    /// Parts to build; all of them if none is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Build the dataplane with optimisations. The kernel programs and the guests always are.
    #[arg(long)]
    release: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// target/ebpf/xfaas-ebpf.o
    Ebpf,
    /// target/guests/<name>.wasm
    Guests,
    /// The `xfaas` program.
    Dataplane,
}

pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    let tools = setup::ensure()?;
    let wants = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    if wants(Part::Ebpf) {
        say(&format!("kernel programs: {}", ebpf(&tools)?.display()));
    }
    if wants(Part::Guests) {
        say(&format!("guests: {} in {}", guests(&tools)?, paths::guests().display()));
    }
    if wants(Part::Dataplane) {
        say(&format!("dataplane: {}", dataplane(arguments.release)?.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// The kernel programs and the guests: what the dataplane, its tests and the benches take as given.
pub fn ebpf_and_guests(tools: &Tools) -> Result<()> {
    ebpf(tools)?;
    guests(tools).map(drop)
}

/// Builds the kernel programs. Output: the object's path.
fn ebpf(tools: &Tools) -> Result<PathBuf> {
    let folder = paths::root().join("xfaas-ebpf");
    let mut flags = OsString::from("-C linker=");
    flags.push(&tools.bpf_linker);
    flags.push(" -C link-arg=--btf -C debuginfo=2");
    let mut command = match &tools.kernel {
        KernelToolchain::Debian { rustc } => {
            let mut command = cross_cargo(&folder, &paths::target("ebpf"));
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").arg("build");
            command
        }
        KernelToolchain::Nightly => {
            let mut command = Command::new("rustup");
            command.current_dir(&folder).env_remove("RUSTC").env("CARGO_TARGET_DIR", paths::target("ebpf"));
            command.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]);
            command
        }
    };
    command.env("RUSTFLAGS", flags).env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.args(["--release", "--bin", "xfaas-ebpf", "--features", "programs", "--target", KERNEL_TARGET]);
    step("build the kernel programs", || run_quiet(&mut command))?;
    let built = paths::target("ebpf").join(KERNEL_TARGET).join("release/xfaas-ebpf");
    replace_if_changed(&built, &paths::ebpf_object())?;
    Ok(paths::ebpf_object())
}

/// Builds the Rust and C guests. Output: how many there are.
fn guests(tools: &Tools) -> Result<usize> {
    let names = rust_guests()?;
    fs::create_dir_all(paths::guests()).context("make the guests' folder")?;
    let mut command = guest_cargo(&tools.guest);
    step("build the Rust guests", || run_quiet(&mut command))?;
    for name in &names {
        let built = paths::target("guests-rust").join(GUEST_TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_")));
        replace_if_changed(&built, &paths::guests().join(format!("{name}.wasm")))?;
    }
    let sources = c_guests()?;
    let newest = newest_input()?;
    step("build the C guests", || sources.iter().try_for_each(|source| build_c_guest(tools, source, newest)))?;
    Ok(names.len() + sources.len())
}

fn guest_cargo(toolchain: &GuestToolchain) -> Command {
    let mut command = cross_cargo(&paths::root().join("guests"), &paths::target("guests-rust"));
    let stack = format!("-C link-arg=-zstack-size={GUEST_STACK_BYTES}");
    command.args(["build", "--release", "--target", GUEST_TARGET]);
    match toolchain {
        GuestToolchain::Debian { rustc, linker } => {
            let linker = linker.display();
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=core");
            command.env("RUSTFLAGS", format!("-C linker={linker} -C linker-flavor=wasm-ld {stack}"));
        }
        GuestToolchain::Rustup => {
            command.env("RUSTFLAGS", stack);
        }
    }
    command
}

/// Names of the guests' workspace members that become wasm modules: not the SDK, nor what guests share.
fn rust_guests() -> Result<Vec<String>> {
    let path = paths::root().join("guests/Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let manifest: toml::Table = text.parse().with_context(|| format!("parse {}", path.display()))?;
    let members = manifest.get("workspace").and_then(|workspace| workspace.get("members")).and_then(toml::Value::as_array);
    let names = members.context("guests/Cargo.toml has no workspace members")?.iter().filter_map(toml::Value::as_str);
    let mut functions = Vec::new();
    for name in names {
        let path = paths::root().join("guests").join(name).join("Cargo.toml");
        let manifest = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if manifest.contains("\"cdylib\"") {
            functions.push(name.to_owned());
        }
    }
    Ok(functions)
}

fn c_guests() -> Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for folder in C_GUEST_FOLDERS {
        let folder = paths::root().join(folder);
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "c") {
                sources.push(path);
            }
        }
    }
    sources.sort();
    Ok(sources)
}

/// When a C guest's source or header was last changed, or this program, which knows the compiler's flags.
fn newest_input() -> Result<SystemTime> {
    let mut newest = modified(&std::env::current_exe().context("find our own program")?)?;
    for folder in C_GUEST_FOLDERS {
        for entry in fs::read_dir(paths::root().join(folder)).with_context(|| format!("list {folder}"))? {
            newest = newest.max(modified(&entry.with_context(|| format!("list {folder}"))?.path())?);
        }
    }
    Ok(newest)
}

fn modified(path: &Path) -> Result<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).with_context(|| format!("look at {}", path.display()))
}

fn build_c_guest(tools: &Tools, source: &Path, newest_input: SystemTime) -> Result<()> {
    let name = source.file_stem().context("a source file has a name")?.to_string_lossy();
    let output = paths::guests().join(format!("{name}.wasm"));
    if output.is_file() && modified(&output)? > newest_input {
        return Ok(());
    }
    let mut command = Command::new(&tools.clang);
    command.args(["--target=wasm32", "-std=c17", "-O2", "-ffreestanding", "-nostdlib"]);
    // `recurse` exists to recurse.
    command.args(["-Wall", "-Wextra", "-Werror", "-Wno-infinite-recursion"]);
    command.arg(format!("-fuse-ld={}", tools.wasm_linker.display()));
    command.args(["-Wl,--no-entry", "-Wl,--stack-first", "-Wl,--strip-all"]).arg(format!("-Wl,-z,stack-size={GUEST_STACK_BYTES}"));
    command.arg("-o").arg(&output).arg(source);
    run_quiet(&mut command).map(drop)
}

/// Builds the dataplane with the kernel programs inside. Output: the program's path.
pub fn dataplane(release: bool) -> Result<PathBuf> {
    let mut command = host_build(release, "xfaas");
    let kind = if release { "optimised" } else { "debug" };
    step(&format!("build the dataplane ({kind}; minutes the first time)"), || run_quiet(&mut command))?;
    let binary = paths::host_program("xfaas", release);
    ensure!(binary.is_file(), "the build left no program at {}", binary.display());
    Ok(binary)
}

/// Builds one program of the host's crates. For the whole workspace, so that dependencies get the same features in every build and are
/// compiled once.
pub fn host_build(release: bool, program: &str) -> Command {
    let mut command = unguided_build(release, program);
    if release {
        pgo::guide(&mut command);
    }
    command
}

/// The same as if no record of a node's ways was there.
pub fn unguided_build(release: bool, program: &str) -> Command {
    let mut command = cargo(&paths::root());
    command.args(["build", "--workspace", "--bin", program]).env("XFAAS_EBPF_OBJECT", paths::ebpf_object());
    if release {
        command.arg("--release");
    }
    command
}

/// Builds programs for `bench counts`: optimised where it counts, and with no flag of the user's, so that everybody counts the same.
pub fn counted_build(programs: &[&str]) -> Command {
    let mut command = cargo(&paths::root());
    command.args(["--config", "bench/counts.toml", "build", "--workspace"]).env("XFAAS_EBPF_OBJECT", paths::ebpf_object());
    for program in programs {
        command.args(["--bin", program]);
    }
    command.env("CARGO_INCREMENTAL", "0").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

/// Copies a built file where others expect it, unless it is there already: an unchanged file must not make others build again.
fn replace_if_changed(built: &Path, place: &Path) -> Result<()> {
    let new = fs::read(built).with_context(|| format!("read {}", built.display()))?;
    if fs::read(place).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(place, new).with_context(|| format!("write {}", place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_of_the_contract_is_built() {
        let names = rust_guests().expect("the manifest is there");
        for sample in ["echo", "counter-read", "counter-rmw", "counter-rmw-linear", "cart"] {
            assert!(names.iter().any(|name| name == sample), "{sample}");
        }
        assert!(!names.iter().any(|name| name == "sdk" || name == "counter"));
    }

    #[test]
    fn guests_of_both_languages_never_share_a_name() {
        let mut names = rust_guests().expect("the manifest is there");
        names.extend(
            c_guests().expect("the folders are there").iter().map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()),
        );
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_unchanged_file_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("xtask-build-test-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("make a folder");
        let (built, place) = (folder.join("built"), folder.join("place"));
        fs::write(&built, "one").expect("write");
        replace_if_changed(&built, &place).expect("copied");
        let written = fs::metadata(&place).expect("there").modified().expect("a time");
        replace_if_changed(&built, &place).expect("nothing to do");
        assert_eq!(fs::metadata(&place).expect("there").modified().expect("a time"), written);
        fs::write(&built, "two").expect("write");
        replace_if_changed(&built, &place).expect("copied");
        assert_eq!(fs::read(&place).expect("there"), b"two");
        fs::remove_dir_all(&folder).expect("remove the folder");
    }
}
