//! Installs the peers that come as npm packages, by name, into a folder of their own. Those of Debian are `cargo xtask setup`'s.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is installed: the versions that the figures of the README are of.
const PACKAGES: [&str; 3] =
    ["@cloudflare/workerd-linux-64@1.20261117.1", "@restatedev/restate-server-linux-x64@1.7.12", "@restatedev/restate-sdk@1.17.2"];

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("cannot start npm: install node and npm, or leave the peers workerd and restate out with --skip")]
    Start(#[source] std::io::Error),
    #[error("npm could not install {}: {said}", PACKAGES.join(" "))]
    Failed { said: String },
    #[error("cannot make the folder {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// `node_modules` under `folder`, with everything in it. Does nothing where that is so already.
pub fn install_peers(folder: &Path) -> Result<PathBuf, InstallError> {
    std::fs::create_dir_all(folder).map_err(|source| InstallError::Folder { path: folder.to_owned(), source })?;
    let folder = std::path::absolute(folder).map_err(|source| InstallError::Folder { path: folder.to_owned(), source })?;
    let modules = folder.join("node_modules");
    let is_there = |package: &str| modules.join(name_of(package)).join("package.json").is_file();
    if PACKAGES.iter().all(|package| is_there(package)) {
        return Ok(modules);
    }
    eprintln!("npm install {} into {}", PACKAGES.join(" "), folder.display());
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--no-save", "--prefix"]).arg(&folder).args(PACKAGES);
    let output = npm.stdin(Stdio::null()).output().map_err(InstallError::Start)?;
    if output.status.success() && PACKAGES.iter().all(|package| is_there(package)) {
        return Ok(modules);
    }
    Err(InstallError::Failed { said: String::from_utf8_lossy(&output.stderr).into_owned() })
}

/// A package's name without its version.
fn name_of(package: &str) -> &str {
    package.rsplit_once('@').map_or(package, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_a_name_and_a_version() {
        assert_eq!(name_of(PACKAGES[0]), "@cloudflare/workerd-linux-64");
        assert!(PACKAGES.iter().all(|package| name_of(package).starts_with('@') && name_of(package).len() < package.len()));
    }
}
