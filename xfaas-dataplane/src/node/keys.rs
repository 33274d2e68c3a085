//! The secrets of a node, kept in its state folder: the key of session tokens, and the keys of the session hash. A session's slot must be the same after a restart, because its state
//! lies in the region of the shard that owned the slot.

use crate::session::{TOKEN_SECRET_BYTES, TokenKey};
use crate::sys::folders::sync_folder;
use rand::{Rng, SeedableRng};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use xfaas_common::hash::{HASH_KEYS, HashKeys};

const FILE_NAME: &str = "hash-keys";
const TOKEN_FILE_NAME: &str = "token-secret";

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("cannot {operation} the secret at {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} does not hold {TOKEN_SECRET_BYTES} bytes but {bytes}: restore it, or remove it and make all tokens anew", path.display())]
    TokenSize { path: PathBuf, bytes: usize },
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
    write_private(path, &bytes)?;
    Ok(HashKeys { keys })
}

/// The secret that tokens are made with, made at the node's first start.
pub fn load_or_create_token_key(state_dir: &Path) -> Result<TokenKey, KeysError> {
    let path = state_dir.join(TOKEN_FILE_NAME);
    let secret = match std::fs::read(&path) {
        Ok(bytes) => bytes.as_slice().try_into().map_err(|_| KeysError::TokenSize { path, bytes: bytes.len() })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret: [u8; TOKEN_SECRET_BYTES] = rand::rngs::StdRng::from_os_rng().random();
            write_private(&path, &secret)?;
            secret
        }
        Err(source) => return Err(KeysError::Io { operation: "read", path, source }),
    };
    Ok(TokenKey::new(&secret))
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), KeysError> {
    // Written whole under another name first: a crash in between must not leave half a file.
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        // Else a power cut takes the name back, and with other keys all sessions would be elsewhere.
        path.parent().map_or(Ok(()), sync_folder)
    };
    write().map_err(|source| KeysError::Io { operation: "write", path: path.to_owned(), source })
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
    fn the_token_secret_stays_the_same_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let session = xfaas_common::ids::SessionId::new(b"alice").unwrap();
        let token = load_or_create_token_key(folder.path()).unwrap().issue("shop", &session, 10);
        assert_eq!(load_or_create_token_key(folder.path()).unwrap().issue("shop", &session, 10), token);
        let path = folder.path().join(TOKEN_FILE_NAME);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
        std::fs::write(path, [1; 31]).unwrap();
        assert!(matches!(load_or_create_token_key(folder.path()), Err(KeysError::TokenSize { bytes: 31, .. })));
    }

    #[test]
    fn a_cut_key_file_is_refused_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), [1; 17]).unwrap();
        assert!(matches!(load_or_create(folder.path()), Err(KeysError::Size { bytes: 17, .. })));
    }
}
