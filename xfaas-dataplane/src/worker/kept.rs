//! What the engine keeps on disk by content, so that a start neither compiles modules again nor runs their `init`: native code, and modules after `init`.
//! What cannot be read or written only costs time.

use super::engine::Engine;
use super::program::{Function, Program};
use crate::sys::{KeptError, KeptFiles, KeptName, NativeCode};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use wasmtime::Module;

const NATIVE_DIRECTORY: &str = "native";
const PREPARED_DIRECTORY: &str = "after-init";
/// Of earlier builds, whose files nothing removes any more: wasmtime's cache, which had no checksums, and modules after `init` in another form.
const FORMER_DIRECTORIES: [&str; 2] = ["code", "prepared"];
/// Counts up when the same input would be prepared differently.
const PREPARED_VERSION: u8 = 1;

pub(super) struct Kept {
    native: NativeCode,
    prepared: KeptFiles,
}

/// Under which names a program's parts are kept.
#[derive(Clone, Copy, Default)]
pub(super) struct KeptParts {
    native: Option<KeptName>,
    prepared: Option<KeptName>,
}

impl Kept {
    /// Errors: the folders cannot be made, or are not for this user alone.
    pub(super) fn open(directory: &Path, engine: &wasmtime::Engine) -> Result<Kept, KeptError> {
        for former in FORMER_DIRECTORIES {
            match fs::remove_dir_all(directory.join(former)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!("code that an earlier build kept in {} cannot be removed: {error}", directory.join(former).display());
                }
                _ => {}
            }
        }
        let native = NativeCode::open(directory.join(NATIVE_DIRECTORY), engine)?;
        Ok(Kept { native, prepared: KeptFiles::open(directory.join(PREPARED_DIRECTORY))? })
    }

    fn keep_only(&self, parts: &[KeptParts]) -> Result<(), KeptError> {
        self.native.keep_only(parts.iter().filter_map(|parts| parts.native).collect())?;
        self.prepared.keep_only(parts.iter().filter_map(|parts| parts.prepared).collect())
    }
}

/// The memory limit is part of the name: `init` can see it.
fn prepared_name(wasm: &[u8], memory_bytes_max: usize) -> KeptName {
    let hasher = Sha256::new().chain_update([PREPARED_VERSION]).chain_update((memory_bytes_max as u64).to_le_bytes());
    hasher.chain_update(wasm).finalize().into()
}

/// Of an error and its causes, in one line.
fn chain(error: impl Into<wasmtime::Error>) -> String {
    format!("{:#}", error.into())
}

impl Engine {
    /// Of all that is kept only what these functions need, and a little of what was used last. To be called once all that are stored are loaded, since before
    /// nobody knows, and whenever they are others. What is kept later is bounded by it too.
    pub fn keep_only<'a>(&self, functions: impl Iterator<Item = &'a Function>) {
        let Some(kept) = self.kept() else { return };
        let programs = functions.flat_map(|function| std::iter::once(&function.program).chain(&function.hook));
        let parts: Vec<KeptParts> = programs.map(|Program { kept, .. }| *kept).collect();
        if let Err(error) = kept.keep_only(&parts) {
            tracing::warn!("compiled code that nothing uses stays on the disk: {}", chain(error));
        }
    }

    /// The module after `init`, which `prepare` runs: from disk, if it was prepared before.
    pub(super) fn prepared<E>(
        &self,
        wasm: &[u8],
        memory_bytes_max: usize,
        parts: &mut KeptParts,
        prepare: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let Some(Kept { prepared: files, .. }) = self.kept() else { return prepare() };
        let name = prepared_name(wasm, memory_bytes_max);
        parts.prepared = Some(name);
        match files.read(&name) {
            Ok(Some(prepared)) => return Ok(prepared),
            Ok(None) => {}
            Err(error) => tracing::warn!("a module after its init() is made anew, what was kept of it is of no use: {}", chain(error)),
        }
        let prepared = prepare()?;
        if let Err(error) = files.write(&name, &prepared) {
            tracing::warn!("a module after its init() is not kept, so the next start runs init() again: {}", chain(error));
        }
        Ok(prepared)
    }

    /// The module, compiled: from disk, if it was compiled before. Errors: it does not compile.
    pub(super) fn compiled(&self, wasm: &[u8], parts: &mut KeptParts) -> Result<Module, wasmtime::Error> {
        let Some(Kept { native, .. }) = self.kept() else { return Module::new(self.wasmtime(), wasm) };
        let name = native.name_of(wasm);
        parts.native = Some(name);
        match native.load(&name) {
            Ok(Some(module)) => return Ok(module),
            Ok(None) => {}
            Err(error) => tracing::warn!("a module is compiled anew, the code that was kept of it is of no use: {}", chain(error)),
        }
        let module = Module::new(self.wasmtime(), wasm)?;
        if let Err(error) = native.keep(&name, &module) {
            tracing::warn!("a module's code is not kept, so the next start compiles it again: {}", chain(error));
        }
        Ok(module)
    }
}
