//! Where things are in the repository. Every path is absolute, so that commands work from any folder.

use std::path::{Path, PathBuf};

/// The repository's root folder.
pub fn root() -> PathBuf {
    // The crate sits one folder below the root, and `cargo run` builds it where it runs.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository").to_path_buf()
}

/// The dataplane's target folder, which may have been moved with `CARGO_TARGET_DIR`.
fn host_target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// Target folders of the other builds, each its own, so that they don't rebuild each other.
pub fn target(name: &str) -> PathBuf {
    root().join("target").join(name)
}

/// The compiled kernel programs; `XFAAS_EBPF_OBJECT` names it to the dataplane's build script.
pub fn ebpf_object() -> PathBuf {
    target("ebpf").join("xfaas-ebpf.o")
}

/// The folder with one `<name>.wasm` for each guest; `XFAAS_GUESTS` names it to tests and benches.
pub fn guests() -> PathBuf {
    target("guests")
}

/// A built program of the host's crates.
pub fn host_program(name: &str, release: bool) -> PathBuf {
    host_target().join(if release { "release" } else { "debug" }).join(name)
}

/// The first file of that name in the folders of `PATH` and in those that root's programs are in on Debian.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Cargo's home, where `cargo install` puts programs.
pub fn cargo_home() -> Option<PathBuf> {
    std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}
