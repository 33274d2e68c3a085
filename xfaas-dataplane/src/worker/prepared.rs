//! Modules after their `init`, kept on disk by content beside the compiled code, so that a restart does not run `init` again.
//! A file that cannot be read or written only costs time: its module is prepared again.

use sha2::{Digest, Sha256};
use std::fs::{self, File, FileTimes};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use xfaas_common::limits::FUNCTIONS_MAX;

const DIRECTORY: &str = "prepared";
/// Counts up when the same input would be prepared differently.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 32;

/// Where one module's prepared form is kept.
pub(super) struct PreparedFile {
    directory: PathBuf,
    path: PathBuf,
}

impl PreparedFile {
    /// The memory limit is part of the name: `init` can see it.
    pub(super) fn new(cache_directory: &Path, wasm: &[u8], memory_bytes_max: usize) -> PreparedFile {
        let mut hasher = Sha256::new();
        hasher.update([VERSION]);
        hasher.update((memory_bytes_max as u64).to_le_bytes());
        hasher.update(wasm);
        let name: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let directory = cache_directory.join(DIRECTORY);
        PreparedFile { path: directory.join(name), directory }
    }

    /// The module, if it is there and whole. Marks it as used.
    pub(super) fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = fs::read(&self.path).ok()?;
        let module_bytes = bytes.len().checked_sub(CHECKSUM_BYTES)?;
        let checksum = bytes.split_off(module_bytes);
        if Sha256::digest(&bytes).as_slice() != checksum {
            return None;
        }
        // Only the order of removal depends on it.
        if let Ok(file) = File::options().append(true).open(&self.path) {
            file.set_times(FileTimes::new().set_modified(SystemTime::now())).ok();
        }
        Some(bytes)
    }

    pub(super) fn write(&self, module: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let unfinished = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let mut file = File::create(&unfinished)?;
        file.write_all(module)?;
        file.write_all(&Sha256::digest(module))?;
        fs::rename(&unfinished, &self.path)?;
        self.remove_oldest()
    }

    /// Keeps as many files as a node can have functions.
    fn remove_oldest(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        files.sort();
        let excess = files.len().saturating_sub(FUNCTIONS_MAX);
        files.iter().take(excess).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_back_unless_its_file_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let file = PreparedFile::new(directory.path(), b"in", 1);
        assert!(file.read().is_none());
        file.write(b"out").unwrap();
        assert_eq!(file.read().unwrap(), b"out");
        assert!(PreparedFile::new(directory.path(), b"in", 2).read().is_none());
        let mut bytes = fs::read(&file.path).unwrap();
        bytes[0] ^= 1;
        fs::write(&file.path, bytes).unwrap();
        assert!(file.read().is_none());
    }
}
