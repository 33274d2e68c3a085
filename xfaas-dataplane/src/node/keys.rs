//! The secret keys of the session hash, kept in the state folder: a session's slot must be the same after a restart, because its state
//! lies in the region of the shard that owned the slot.

use rand::{Rng, SeedableRng};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use xfaas_common::hash::{HASH_KEYS, HashKeys};

const FILE_NAME: &str = "hash-keys";

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("cannot {operation} the session hash keys at {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{} does not hold {HASH_KEYS} keys of 8 bytes but {bytes} bytes: restore it, or remove it and the session state, which belongs to it",
        path.display()
    )]
    Size { path: PathBuf, bytes: usize },
}

/// The keys of this node, made at its first start. The file is readable by its owner only: who knows the keys can aim sessions at one core.
pub fn load_or_create(state_dir: &Path) -> Result<HashKeys, KeysError> {
    let path = state_dir.join(FILE_NAME);
    match std::fs::read(&path) {
        Ok(bytes) => parse(&bytes).ok_or(KeysError::Size { path, bytes: bytes.len() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => create(&path),
        Err(source) => Err(KeysError::Io { operation: "read", path, source }),
    }
}

fn parse(bytes: &[u8]) -> Option<HashKeys> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let keys: Vec<u64> = chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect();
    let keys = keys.try_into().ok()?;
    rest.is_empty().then_some(HashKeys { keys })
}

fn create(path: &Path) -> Result<HashKeys, KeysError> {
    let mut random = rand::rngs::StdRng::from_os_rng();
    let keys: [u64; HASH_KEYS] = std::array::from_fn(|_| random.random());
    let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
    // Written whole under another name first: a crash in between must not leave half a file.
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|source| KeysError::Io { operation: "write", path: path.to_owned(), source })?;
    Ok(HashKeys { keys })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_stay_the_same_and_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = load_or_create(folder.path()).unwrap();
        assert_eq!(load_or_create(folder.path()).unwrap().keys, first.keys);
        assert!(first.keys.iter().all(|key| *key != 0));
        let mode = std::fs::metadata(folder.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }

    #[test]
    fn a_cut_key_file_is_refused_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), [1; 17]).unwrap();
        assert!(matches!(load_or_create(folder.path()), Err(KeysError::Size { bytes: 17, .. })));
    }
}
