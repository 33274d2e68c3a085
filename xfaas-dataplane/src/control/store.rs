//! Deployments on disk: what `xfaas deploy` promised survives a restart, and a crash at any point leaves the former or the new one.
//!
//! `<state_dir>/functions/<name>.toml` is the manifest; renaming it into place is the commit. The module lies beside it as
//! `<name>@<generation>.wasm` (no name holds an `@`), written and synced before; one that no manifest names is left from a crash and removed at start.
//! `<state_dir>/lock` is locked while the process lives. Called by `deploy.rs`, on the control thread's helpers only: it blocks on the disk.

use crate::sys::folders::{make_folder, sync_folder};
use crate::worker::FunctionManifest;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xfaas_common::ids::is_name;

const MANIFEST_SUFFIX: &str = ".toml";
const WASM_SUFFIX: &str = ".wasm";
const TEMPORARY_SUFFIX: &str = ".tmp";
/// Of manifests that end with a checksum.
const MANIFEST_FORMAT: u32 = 2;
/// Begins the last line of a manifest: a comment, to TOML.
const CHECKSUM_PREFIX: &str = "# crc32c ";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the state directory {} is used by another xfaas process{owner}: stop that one, or choose another with --state-dir", path.display())]
    Locked { path: PathBuf, owner: String },
    #[error("cannot {operation} {}: check that the disk has room and that this user may write there", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} belongs to user {owner}, or others may write to it (mode {mode:o}): make it ours with mode 700, or choose another directory", path.display())]
    NotPrivate { path: PathBuf, owner: u32, mode: u32 },
    #[error("{} holds the line {line:?}, which is none of ours, or not as it was written: correct it, or remove the file and map the aliases anew", path.display())]
    BadLine { path: PathBuf, line: String },
    #[error("{} is no text at byte {at}, so it is damaged or none of ours: correct it, or remove the file and map the aliases anew", path.display())]
    NotText { path: PathBuf, at: usize },
    #[error("cannot write the manifest of {name:?}")]
    Encode {
        name: String,
        #[source]
        source: toml::ser::Error,
    },
}

/// `<name>.toml`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredManifest {
    /// First, so that a file that was cut short still says that it has a checksum.
    format: Option<u32>,
    generation: u64,
    wasm_bytes: u64,
    /// Of the module, in hexadecimal digits. Manifests of earlier builds have none.
    wasm_sha256: Option<String>,
    function: FunctionManifest,
}

/// Ends the text of a manifest with the checksum of all before.
fn seal_manifest(text: String) -> String {
    let checksum = crc32c::crc32c(text.as_bytes());
    format!("{text}{CHECKSUM_PREFIX}{checksum:08x}\n")
}

/// Nearly every key has a default, so a manifest that lost its end would still be one: of a function without tokens, say.
/// Those of earlier builds have neither `format` nor checksum.
fn check_manifest_seal(text: &str, format: Option<u32>) -> Result<(), &'static str> {
    match (text.rfind(CHECKSUM_PREFIX), format) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err("its end is missing; deploy the function again"),
        (Some(end), Some(MANIFEST_FORMAT)) if seal_manifest(text[..end].to_owned()) == text => Ok(()),
        (_, Some(format)) if format > MANIFEST_FORMAT => {
            Err("it is of a later version of xfaas; start that one, or deploy the function again")
        }
        (Some(_), _) => Err("its checksum is not that of its content; deploy the function again"),
    }
}

/// A stored function, its module not yet read.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub manifest: FunctionManifest,
    pub generation: u64,
    pub wasm_bytes: u64,
    wasm_sha256: Option<String>,
    path: PathBuf,
}

impl Stored {
    /// The module's bytes. Errors: unreadable, or not what the manifest says: a module with a bit flipped may be one still, of other code.
    pub fn read_wasm(&self) -> Result<Vec<u8>, String> {
        let wasm = fs::read(&self.path).map_err(|error| format!("cannot read {}: {error}", self.path.display()))?;
        if wasm.len() as u64 != self.wasm_bytes {
            return Err(format!("{} has {} bytes instead of {}", self.path.display(), wasm.len(), self.wasm_bytes));
        }
        if self.wasm_sha256.as_ref().is_some_and(|stored| *stored != sha256_of(&wasm)) {
            let path = self.path.display();
            return Err(format!("{path} is damaged: its checksum is not the one in its manifest; deploy the function again"));
        }
        Ok(wasm)
    }
}

/// What lies under one name: a deployment, or why its manifest cannot be read.
pub(super) type Listed = (String, Result<Stored, String>);

/// The state directory, locked by this process.
pub struct Store {
    functions: PathBuf,
    /// Holds the lock until it is dropped.
    lock: Option<File>,
    generation_last: u64,
}

impl Store {
    /// Makes the directory if it is not there, locks it, and clears away what a crash left behind.
    pub fn open(state_dir: &Path) -> Result<Store, StoreError> {
        private_directory(state_dir)?;
        let lock = lock(&state_dir.join("lock"))?;
        let functions = state_dir.join("functions");
        private_directory(&functions)?;
        let mut store = Store { functions, lock: Some(lock), generation_last: 0 };
        store.sweep()?;
        Ok(store)
    }

    /// No place at all, for a container: it counts generations and keeps nothing.
    pub(super) fn nowhere() -> Store {
        Store { functions: PathBuf::new(), lock: None, generation_last: 0 }
    }

    pub(super) fn is_nowhere(&self) -> bool {
        self.lock.is_none()
    }

    /// A generation that no deployment of this directory has had.
    pub(super) fn next_generation(&mut self) -> u64 {
        self.generation_last += 1;
        self.generation_last
    }

    /// All deployments, by name.
    pub(super) fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let mut listed = Vec::new();
        for file in self.file_names()? {
            let Some(name) = file.strip_suffix(MANIFEST_SUFFIX).filter(|name| is_name(name.as_bytes())) else { continue };
            listed.push((name.to_owned(), self.read_manifest(name)));
        }
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(listed)
    }

    /// Writes module and manifest so that only a rename is left to do. Dropping the result undoes it.
    pub(super) fn prepare(&self, manifest: &FunctionManifest, wasm: &[u8], generation: u64) -> Result<Prepared, StoreError> {
        let name = &manifest.name;
        let wasm_bytes = wasm.len() as u64;
        let (format, wasm_sha256) = (Some(MANIFEST_FORMAT), Some(sha256_of(wasm)));
        let content = StoredManifest { format, generation, wasm_bytes, wasm_sha256, function: manifest.clone() };
        let text = toml::to_string(&content).map_err(|source| StoreError::Encode { name: name.clone(), source })?;
        let text = seal_manifest(text);
        let module = self.wasm_path(name, generation);
        // Made first, so that a failure below removes what is there already.
        let prepared = Prepared {
            functions: self.functions.clone(),
            temporary: self.functions.join(format!("{name}@{generation}{MANIFEST_SUFFIX}{TEMPORARY_SUFFIX}")),
            target: self.manifest_path(name),
            former: self.read_manifest(name).ok().map(|stored| stored.path),
            module,
            committed: false,
        };
        write_synced(&prepared.module, wasm)?;
        write_synced(&prepared.temporary, text.as_bytes())?;
        sync_directory(&self.functions)?;
        Ok(prepared)
    }

    /// True if a manifest lies under this name, readable or not.
    pub(super) fn contains(&self, name: &str) -> bool {
        is_name(name.as_bytes()) && self.manifest_path(name).exists()
    }

    /// Takes a deployment away; none of that name is fine. Errors: it is still there.
    pub(super) fn remove(&self, name: &str) -> Result<Lasting, StoreError> {
        let module = self.read_manifest(name).ok().map(|stored| stored.path);
        remove_file(&self.manifest_path(name))?;
        Ok(settle(&self.functions, module.as_deref()))
    }

    fn manifest_path(&self, name: &str) -> PathBuf {
        self.functions.join(format!("{name}{MANIFEST_SUFFIX}"))
    }

    fn wasm_path(&self, name: &str, generation: u64) -> PathBuf {
        self.functions.join(format!("{name}@{generation}{WASM_SUFFIX}"))
    }

    fn read_manifest(&self, name: &str) -> Result<Stored, String> {
        let path = self.manifest_path(name);
        let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let damaged = |error: String| format!("{} is damaged: {error}", path.display());
        let stored: StoredManifest = toml::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        check_manifest_seal(&text, stored.format).map_err(|error| damaged(error.to_owned()))?;
        if stored.function.name != name {
            return Err(format!("{} is the manifest of {:?}", path.display(), stored.function.name));
        }
        let path = self.wasm_path(name, stored.generation);
        let StoredManifest { generation, wasm_bytes, wasm_sha256, function: manifest, .. } = stored;
        Ok(Stored { manifest, generation, wasm_bytes, wasm_sha256, path })
    }

    /// Removes temporary files and modules that no manifest names. A module whose manifest is damaged stays: someone may mend it.
    fn sweep(&mut self) -> Result<(), StoreError> {
        for file in self.file_names()? {
            let path = self.functions.join(&file);
            if file.ends_with(TEMPORARY_SUFFIX) {
                remove_file(&path)?;
                continue;
            }
            let Some((name, generation)) = parse_wasm_name(&file) else { continue };
            self.generation_last = self.generation_last.max(generation);
            let manifest = self.manifest_path(name);
            let is_named = self.read_manifest(name).map_or(manifest.exists(), |stored| stored.generation == generation);
            if !is_named {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn file_names(&self) -> Result<Vec<String>, StoreError> {
        let entries = fs::read_dir(&self.functions).map_err(io_error("list", &self.functions))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("list", &self.functions))?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }
}

/// A deployment on disk that does not count yet.
#[must_use = "without a commit the deployment is undone"]
pub(super) struct Prepared {
    functions: PathBuf,
    temporary: PathBuf,
    target: PathBuf,
    module: PathBuf,
    former: Option<PathBuf>,
    committed: bool,
}

impl Prepared {
    /// From here on a restart finds this deployment instead of the former one. Errors: it still finds the former one.
    pub fn commit(mut self) -> Result<Lasting, StoreError> {
        fs::rename(&self.temporary, &self.target).map_err(io_error("rename", &self.temporary))?;
        self.committed = true;
        Ok(settle(&self.functions, self.former.as_deref()))
    }
}

/// Whether a change of the store, which is done, outlives a power cut.
#[derive(Debug)]
#[must_use = "the operator is to be told when it does not"]
pub(super) enum Lasting {
    Yes,
    /// The folder could not be synced.
    Unknown(StoreError),
}

/// After a change of the names: has it last, and removes the module that is not needed any more.
fn settle(functions: &Path, needless: Option<&Path>) -> Lasting {
    if let Err(error) = sync_directory(functions) {
        return Lasting::Unknown(error); // a power cut may bring back the manifest that names the module: it stays
    }
    if let Some(Err(error)) = needless.map(remove_file) {
        tracing::warn!(error = super::describe(&error), "a former module stays until the next start");
    }
    Lasting::Yes
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        for path in [&self.temporary, &self.module] {
            if let Err(error) = remove_file(path) {
                tracing::warn!(error = super::describe(&error), "a file of a refused deployment stays until the next start");
            }
        }
    }
}

/// Makes `path` (and what lies above it) with mode 700 if it is not there.
/// Errors: it cannot be made, or someone else owns it or may write to it: then its files could be swapped under us.
pub fn private_directory(path: &Path) -> Result<(), StoreError> {
    make_folder(path).map_err(io_error("make the directory", path))?;
    check_private(path)
}

/// Errors: someone else owns it or may write to it.
pub(super) fn check_private(path: &Path) -> Result<(), StoreError> {
    let metadata = fs::metadata(path).map_err(io_error("look at", path))?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != rustix::process::geteuid().as_raw() || mode & 0o022 != 0 {
        return Err(StoreError::NotPrivate { path: path.to_owned(), owner, mode });
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open.map_err(io_error("open", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(locked(path, &mut file)),
        Err(TryLockError::Error(source)) => return Err(StoreError::Io { operation: "lock", path: path.to_owned(), source }),
    }
    // Only for the text of that error, and so no reason not to start: whose lock it is decides the kernel. Over what is there, which a full disk allows.
    let line = format!("{}\n", std::process::id());
    if let Err(error) = file.rewind().and_then(|()| file.write_all(line.as_bytes())).and_then(|()| file.set_len(line.len() as u64)) {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot write this process's number to {}", path.display());
    }
    Ok(file)
}

fn locked(path: &Path, file: &mut File) -> StoreError {
    let mut pid = String::new();
    let known = file.read_to_string(&mut pid).is_ok() && pid.trim().parse::<u32>().is_ok();
    let owner = if known { format!(" (process {})", pid.trim()) } else { String::new() };
    StoreError::Locked { path: path.parent().unwrap_or(path).to_owned(), owner }
}

/// What `Store::open` would refuse of a directory that is there, but for a disk that fails. Changes nothing.
pub(super) fn examine_directory(state_dir: &Path) -> Result<(), StoreError> {
    for folder in [state_dir, &state_dir.join("functions")] {
        if folder.exists() {
            check_private(folder)?;
        }
    }
    let path = state_dir.join("lock");
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(io_error("open", &path))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(locked(&path, &mut file)),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
    }
}

fn sha256_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_wasm_name(file: &str) -> Option<(&str, u64)> {
    let (name, generation) = file.strip_suffix(WASM_SUFFIX)?.rsplit_once('@')?;
    let generation = generation.parse().ok()?;
    is_name(name.as_bytes()).then_some((name, generation))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(io_error("write", path))
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    sync_folder(path).map_err(io_error("sync", path))
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", path)(source)),
        _ => Ok(()),
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    move |source| StoreError::Io { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
