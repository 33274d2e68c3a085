//! Puts the compiled kernel programs beside the code, where `ebpf_object.rs` embeds them.
//!
//! The object is made by `cargo xtask build`, with a toolchain of its own. It is looked for at `XFAAS_EBPF_OBJECT`, else at
//! `<workspace>/target/ebpf/xfaas-ebpf.o`; without one the binary gets an empty object and runs with steering off.

use std::path::{Path, PathBuf};
use std::{env, fs};

const OBJECT_FILE: &str = "xfaas-ebpf.o";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=XFAAS_EBPF_OBJECT");
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join(OBJECT_FILE);
    let bytes = match env::var_os("XFAAS_EBPF_OBJECT") {
        Some(path) => named_object(Path::new(&path)),
        None => built_object(),
    };
    fs::write(&target, bytes).unwrap_or_else(|error| panic!("write {}: {error}", target.display()));
}

/// The object the environment names: a missing file is a mistake of the caller.
fn named_object(path: &Path) -> Vec<u8> {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read(path).unwrap_or_else(|error| panic!("XFAAS_EBPF_OBJECT names {}, which cannot be read: {error}", path.display()))
}

/// The object `cargo xtask build` left behind, or none.
fn built_object() -> Vec<u8> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let directory = manifest.parent().expect("the crate lies in the workspace").join("target/ebpf");
    let path = directory.join(OBJECT_FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            println!("cargo::rerun-if-changed={}", path.display());
            bytes
        }
        Err(_) => {
            // A watched path that does not exist would rebuild the crate every time; a directory is looked at again when a file appears in it.
            if fs::create_dir_all(&directory).is_ok() {
                println!("cargo::rerun-if-changed={}", directory.display());
            }
            Vec::new()
        }
    }
}
