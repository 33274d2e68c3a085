//! Installing packages: Debian's by apt-get, programs by `cargo install`, toolchain parts by rustup. Used by `setup` only.
//! Never starts a service: a package that brings one (nginx, redis) is installed for its program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{cargo, run_quiet, say, step, succeeds};
use crate::toolchain::BPF_LINKER_VERSION;
use crate::{paths, rights};

/// Asked by Debian's package scripts before they start a service; exit code 101 forbids it. Source: invoke-rc.d(8).
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";
const SERVICE_POLICY_TEXT: &str = "#!/bin/sh\n# left by `cargo xtask setup` of xfaas: safe to remove\nexit 101\n";
/// Packages that bring a service, and its name.
const SERVICES: [(&str, &str); 2] = [("nginx-light", "nginx"), ("redis-server", "redis-server")];
/// The S3-compatible server that tests of checkpoints start.
const S3_SERVER: &str = "moto[server]==5.2.5";
/// How long apt-get waits for another one that holds its lock.
const APT_LOCK_WAIT_S: u32 = 120;
/// Major versions of LLVM that this bpf-linker can be built with.
const LINKER_LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;

/// Whether this machine installs packages by apt-get.
pub fn has_apt() -> bool {
    paths::find_program("apt-get").is_some()
}

/// The command that a user without root's rights is told.
pub fn apt_command_line(packages: &[String]) -> String {
    format!("sudo apt-get update && sudo apt-get install -y --no-install-recommends {}", packages.join(" "))
}

/// Installs the packages that the machine's lists have, and says which ones it has not. Errors: not root, or apt-get fails.
pub fn apt_install(packages: &[String]) -> Result<()> {
    anyhow::ensure!(rights::is_root(), "packages are missing, and installing them needs root:\n  {}", apt_command_line(packages));
    let mut known = packages_known(packages);
    if known.len() < packages.len() {
        step("apt-get update", || run_quiet(apt_get().arg("update")))?;
        known = packages_known(packages);
    }
    for package in packages.iter().filter(|package| !known.contains(package)) {
        say(&format!("the package {package} is not in this machine's lists"));
    }
    if known.is_empty() {
        return Ok(());
    }
    let _policy = ServicePolicy::forbid_starts()?;
    step(&format!("apt-get install {}", known.join(" ")), || {
        // Old lists name files that the mirror no longer has: one update, one more try.
        install_known(&known).or_else(|_| {
            run_quiet(apt_get().arg("update"))?;
            install_known(&known)
        })
    })?;
    let has_systemd = paths::find_program("systemctl").is_some();
    for (_, service) in SERVICES.iter().filter(|(package, _)| has_systemd && known.iter().any(|known| known == package)) {
        if !succeeds(Command::new("systemctl").args(["disable", service])) {
            say(&format!("{service} could not be disabled: it may start at the next boot (`systemctl disable {service}`)"));
        }
    }
    Ok(())
}

fn install_known(packages: &[String]) -> Result<String> {
    run_quiet(apt_get().args(["install", "-y", "--no-install-recommends"]).args(packages))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env_remove("RUSTFLAGS");
    command.args(["-q", "-o", &format!("DPkg::Lock::Timeout={APT_LOCK_WAIT_S}")]);
    command
}

fn packages_known(packages: &[String]) -> Vec<String> {
    let is_known = |package: &&String| succeeds(Command::new("apt-cache").args(["show", "--no-all-versions", package]));
    packages.iter().filter(is_known).cloned().collect()
}

/// While it lives, installed packages start no service. Leaves a policy of the machine's own alone.
struct ServicePolicy {
    ours: bool,
}

impl ServicePolicy {
    fn forbid_starts() -> Result<Self> {
        let ours = !Path::new(SERVICE_POLICY).exists();
        if ours {
            fs::write(SERVICE_POLICY, SERVICE_POLICY_TEXT).with_context(|| format!("write {SERVICE_POLICY}"))?;
            fs::set_permissions(SERVICE_POLICY, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("make {SERVICE_POLICY} executable"))?;
        }
        Ok(ServicePolicy { ours })
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(SERVICE_POLICY).is_err() {
            say(&format!("could not remove {SERVICE_POLICY}: services will not start until you do"));
        }
    }
}

/// Removes what a set-up that was killed while it installed packages left: else no service could be started any more.
pub fn remove_stale_policy() -> Result<()> {
    if !rights::is_root() || !fs::read_to_string(SERVICE_POLICY).is_ok_and(|text| text == SERVICE_POLICY_TEXT) {
        return Ok(());
    }
    fs::remove_file(SERVICE_POLICY).with_context(|| format!("remove {SERVICE_POLICY}, left by a set-up that was killed"))
}

/// Debian's prefix of an LLVM version.
fn debian_llvm_prefix(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

/// Whether bpf-linker can be linked with that version of LLVM here.
pub fn has_llvm(major: u32) -> bool {
    debian_llvm_prefix(major).join("include").is_dir() || paths::find_program(&format!("llvm-config-{major}")).is_some()
}

/// The command that installs bpf-linker, with its variables, for that version of LLVM.
fn bpf_linker_command(major: u32) -> Command {
    let prefix = debian_llvm_prefix(major);
    let mut command = cargo(Path::new("/"));
    command.args(["install", "bpf-linker", "--version", &format!("~{BPF_LINKER_VERSION}"), "--locked", "--force"]);
    command.args(["--no-default-features", "--features", &format!("llvm-{major}")]);
    // For this command only: nothing else is linked with LLVM. Its build folder is its own too.
    for name in ["CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER"] {
        command.env_remove(name);
    }
    if prefix.is_dir() {
        command.env("LLVM_PREFIX", &prefix).env("RUSTFLAGS", format!("-L {}", prefix.join("lib").display()));
    } else {
        command.env_remove("RUSTFLAGS");
    }
    command
}

/// Builds and installs bpf-linker with that version of LLVM into cargo's home.
pub fn install_bpf_linker(major: u32) -> Result<()> {
    anyhow::ensure!(
        LINKER_LLVM_MAJORS.contains(&major),
        "bpf-linker {BPF_LINKER_VERSION} knows LLVM {LINKER_LLVM_MAJORS:?}, the compiler emits {major}"
    );
    step("cargo install bpf-linker (a minute or two)", || run_quiet(&mut bpf_linker_command(major))).map(drop)
}

/// Installs cargo-fuzz into cargo's home.
pub fn install_cargo_fuzz() -> Result<()> {
    let mut command = cargo(Path::new("/"));
    // It only starts cargo: not worth minutes of optimisation.
    command.env_remove("CARGO_TARGET_DIR").args(["install", "cargo-fuzz", "--locked", "--debug"]);
    step("cargo install cargo-fuzz (a minute)", || run_quiet(&mut command)).map(drop)
}

/// Where the S3-compatible server of tests lies: an environment of its own.
pub fn s3_server() -> PathBuf {
    paths::root().join("target/s3-server")
}

/// Installs the S3-compatible server that tests start, moto, from Python's registry.
pub fn install_s3_server() -> Result<()> {
    let folder = s3_server();
    let make = || run_quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder)).map(drop);
    if make().is_err() && has_apt() {
        apt_install(&["python3-venv".to_owned()])?; // Debian's python3 comes without
    }
    step("python3 -m venv target/s3-server", make)?;
    let mut command = Command::new(folder.join("bin/pip"));
    command.args(["install", "--quiet", "--disable-pip-version-check", S3_SERVER]);
    step("pip install moto (a minute)", || run_quiet(&mut command)).map(drop)
}

/// Adds the guests' target to the toolchain in use.
pub fn rustup_add_wasm_target() -> Result<()> {
    let mut command = Command::new("rustup");
    command.current_dir(paths::root()).args(["target", "add", "wasm32-unknown-unknown"]);
    step("rustup target add wasm32-unknown-unknown", || run_quiet(&mut command)).map(drop)
}

/// Installs a nightly with the library sources, which builds the kernel programs.
pub fn rustup_install_nightly() -> Result<()> {
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
    step("rustup toolchain install nightly with rust-src", || run_quiet(&mut command)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_flags_are_set_on_its_own_command_only() {
        let command = bpf_linker_command(22);
        let set: Vec<_> =
            command.get_envs().filter(|(_, value)| value.is_some()).map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        let has_prefix = debian_llvm_prefix(22).is_dir();
        assert_eq!(set.contains(&"RUSTFLAGS".to_owned()), has_prefix);
        assert!(std::env::var_os("LLVM_PREFIX").is_none());
    }
}
