//! What can go wrong with a region: at opening (`RegionError`), at a write (`StateError`), at a read beside the owner (`ReadRefused`).

use std::path::PathBuf;

use xfaas_common::limits::{SESSION_KEYS_MAX, VALUE_BYTES_MAX};

/// Why a region could not be opened or made. Nothing was changed, unless `Io` says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    #[error("app name {app:?} is not of the form [A-Za-z0-9_.-]{{1,64}}")]
    BadAppName { app: String },
    #[error("a region of {bytes_max} bytes: give 1 MiB to 64 GiB")]
    BadSize { bytes_max: u64 },
    #[error("{operation} {path}", path = .path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is in use by another process", path = .path.display())]
    InUse { path: PathBuf },
    #[error("file of {bytes} bytes is not a region: too short, or the magic number is missing")]
    NotARegion { bytes: u64 },
    #[error("layout version {found:#x}, this build knows {expected:#x}")]
    LayoutVersion { found: u64, expected: u64 },
    #[error("header checksum is {stored:#018x}, its content gives {computed:#018x}")]
    HeaderChecksum { stored: u64, computed: u64 },
    #[error("region belongs to app {found_app:?}, shard {found_shard}; expected app {app:?}, shard {shard}")]
    Foreign { found_app: String, found_shard: u64, app: String, shard: u16 },
    #[error("region was made under other hash keys (tag {found:#x}, now {expected:#x}): its sessions would not be found")]
    OtherHashKeys { found: u64, expected: u64 },
    #[error("file of {bytes} bytes was cut short: {needed} bytes expected")]
    Truncated { bytes: u64, needed: u64 },
    #[error("corrupt at offset {offset:#x}: {what}")]
    Corrupt { offset: u64, what: &'static str },
}

impl RegionError {
    /// True when the file itself is at fault, so that setting it aside and starting with a new one makes sense.
    pub const fn is_about_content(&self) -> bool {
        !matches!(self, RegionError::BadAppName { .. } | RegionError::BadSize { .. } | RegionError::Io { .. } | RegionError::InUse { .. })
    }
}

/// Why a write was refused; nothing was changed. CONTRACT.md section 3: -3 to the guest, but for `BadKey` and `NoNamespace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("key of {bytes} bytes: 1 to 255 are allowed")]
    BadKey { bytes: usize },
    #[error("value of {bytes} bytes: {VALUE_BYTES_MAX} at most")]
    ValueTooLarge { bytes: usize },
    #[error("session would hold {bytes} bytes of keys and values: {bytes_max} at most")]
    SessionFull { bytes: usize, bytes_max: usize },
    #[error("session holds {SESSION_KEYS_MAX} keys already")]
    TooManyKeys,
    #[error("the session or the shard has as many timers as it may have")]
    TooManyTimers,
    /// Of an atomic invocation's write, before it is committed.
    #[error("the memories of all guests together have no room for another write")]
    NoGuestMemory,
    /// No page is left, the file system has no memory left, or two different names have the same 64-bit hash.
    #[error("region is full")]
    RegionFull,
    /// The namespace was removed after the caller found it.
    #[error("namespace does not exist any more")]
    NoNamespace,
}

/// Why a read beside the owner gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadRefused {
    /// The owner changed what was being read at every try: ask the owner.
    #[error("the owner kept writing during every try")]
    Busy,
    /// The namespace was removed: find it again.
    #[error("namespace does not exist any more")]
    Gone,
    /// `Readers` has none for that app and shard: ask the owner.
    #[error("the owner's region is not mapped here")]
    Missing,
}
