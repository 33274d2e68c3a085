//! Where xfaas keeps things when nobody says: from the user and the environment.

use super::ConfigError;
use std::path::{Path, PathBuf};

const ROOT_STATE_DIR: &str = "/var/lib/xfaas";
const SHARED_MEMORY_ROOT: &str = "/dev/shm";

/// What the defaults depend on.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Effective user ID.
    pub user_id: u32,
    pub xdg_state_home: Option<PathBuf>,
    pub home: Option<PathBuf>,
    pub aws: AwsEnvironment,
}

/// What S3 clients take from the environment.
#[derive(Clone, Default)]
pub struct AwsEnvironment {
    pub region: Option<String>,
    pub endpoint_url: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    pub session_token: Option<String>,
}

impl std::fmt::Debug for AwsEnvironment {
    /// Without what is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AwsEnvironment").field("region", &self.region).field("endpoint_url", &self.endpoint_url).finish_non_exhaustive()
    }
}

impl AwsEnvironment {
    fn read() -> AwsEnvironment {
        let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        AwsEnvironment {
            region: text("AWS_REGION"),
            endpoint_url: text("AWS_ENDPOINT_URL"),
            access_key_id: text("AWS_ACCESS_KEY_ID"),
            secret_access_key: text("AWS_SECRET_ACCESS_KEY"),
            session_token: text("AWS_SESSION_TOKEN"),
        }
    }
}

impl Environment {
    /// Reads the process's user and environment.
    pub fn read() -> Environment {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Environment {
            user_id: rustix::process::geteuid().as_raw(),
            xdg_state_home: absolute("XDG_STATE_HOME"),
            home: absolute("HOME"),
            aws: AwsEnvironment::read(),
        }
    }

    /// Default of `state_dir`. Source: XDG Base Directory Specification 0.8; a relative path there is ignored.
    pub(super) fn state_dir(&self) -> Option<PathBuf> {
        if self.user_id == 0 {
            return Some(PathBuf::from(ROOT_STATE_DIR));
        }
        let base = self.xdg_state_home.clone().or_else(|| self.home.as_ref().map(|home| home.join(".local/state")))?;
        Some(resolve_existing(&base.join("xfaas")))
    }

    /// Default of `shared_memory_dir`: one for each state directory, so that two nodes of one user never map each other's sessions.
    pub(super) fn shared_memory_dir(&self, state_dir: &Path) -> PathBuf {
        let key = fnv_1a_64(state_dir.as_os_str().as_encoded_bytes());
        Path::new(SHARED_MEMORY_ROOT).join(format!("xfaas-{}-{key:016x}", self.user_id))
    }
}

/// What the configuration file in `base` says under `key`. Errors: nothing, or what cannot be made absolute.
pub(super) fn of_file(key: &'static str, base: &Path, path: PathBuf) -> Result<PathBuf, ConfigError> {
    // Joined, an empty path would be the file's own folder.
    if path.as_os_str().is_empty() { Err(ConfigError::EmptyPath { key }) } else { absolute(key, base.join(path)) }
}

/// `path` made absolute, with the symbolic links of the part that exists resolved, so that one directory has one name.
pub(super) fn absolute(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    match std::path::absolute(&path) {
        Ok(absolute) => Ok(resolve_existing(&absolute)),
        Err(source) => Err(ConfigError::BadPath { key, path, source }),
    }
}

fn resolve_existing(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

/// Source: draft-eastlake-fnv-21, section 6.1.
fn fnv_1a_64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3))
}
