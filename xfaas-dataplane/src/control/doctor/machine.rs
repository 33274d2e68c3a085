//! What the doctor reads from the machine.

use super::parse;
use crate::sys::capabilities::{self, Capabilities, Capability};
use rustix::fs::{Access, access, statfs};
use std::fs::read_to_string;
use std::path::Path;
use std::process::Command;

/// `TMPFS_MAGIC` of include/uapi/linux/magic.h.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// What does not depend on the configuration. A file that cannot be read counts as nothing granted and no limit known.
pub(super) struct Machine {
    pub kernel_release: String,
    pub capabilities: Capabilities,
    /// `kernel.io_uring_disabled`; `None` before Linux 6.6.
    pub io_uring_disabled: Option<String>,
    /// Soft limit; `None` is no limit.
    pub memlock_bytes: Option<u64>,
    /// Hard limit, which a process may raise its soft one to; `None` is no limit.
    pub open_files: Option<u64>,
}

impl Machine {
    pub fn read() -> Machine {
        let text = |path| read_to_string(path).map(|text| text.trim().to_owned());
        let limits = text("/proc/self/limits").unwrap_or_default();
        Machine {
            kernel_release: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
            capabilities: capabilities::effective(),
            io_uring_disabled: text("/proc/sys/kernel/io_uring_disabled").ok(),
            memlock_bytes: parse::limit(&limits, "Max locked memory").and_then(|(soft, _)| soft),
            open_files: parse::limit(&limits, "Max open files").and_then(|(_, hard)| hard),
        }
    }

    pub fn has(&self, capability: Capability) -> bool {
        self.capabilities.has(capability)
    }
}

/// The file system under a path.
pub(super) struct Place {
    pub is_tmpfs: bool,
    pub free_bytes: u64,
}

/// The file system of `path`, or of what exists above it.
pub(super) fn place(path: &Path) -> Option<Place> {
    let answer = statfs(existing(path)?).ok()?;
    let block_bytes = u64::try_from(answer.f_bsize).ok()?;
    Some(Place { is_tmpfs: answer.f_type == TMPFS_MAGIC, free_bytes: answer.f_bavail * block_bytes })
}

/// True if this user may write to `path`, or make it.
pub(super) fn is_writable(path: &Path) -> bool {
    existing(path).is_some_and(|path| path.is_dir() && access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok())
}

fn existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

/// Errors: why ethtool could not tell, in words.
pub(super) fn is_veth_with_tx_checksum(iface: &str) -> Result<bool, String> {
    let info = ethtool("-i", iface)?;
    if parse::driver(&info) != Some("veth") {
        return Ok(false);
    }
    Ok(parse::is_tx_checksumming(&ethtool("-k", iface)?))
}

fn ethtool(flag: &str, iface: &str) -> Result<String, String> {
    if iface.starts_with('-') {
        return Err("ethtool would take the name for a flag".to_owned());
    }
    let output = Command::new("ethtool").args([flag, iface]).output().map_err(|error| format!("ethtool does not run ({error})"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
