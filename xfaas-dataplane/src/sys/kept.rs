//! Files that only save time: what was worked out before, under a name that says from what. A file that is not as it was written counts as not there, so
//! a failing disk costs time and nothing else. Used by `native_code.rs` and by `worker/`, at start and at deployments: it blocks on the disk.

use super::folders::{keep_others_out, make_folder};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;
use xfaas_common::limits::{KEPT_UNUSED_BYTES_MAX, KEPT_UNUSED_FILES_MAX, KEPT_UNUSED_FILES_MIN};

const CHECKSUM_BYTES: usize = 32;
const DRAFT_SUFFIX: &str = "tmp";

/// A SHA-256 over all that the content follows from.
pub type KeptName = [u8; 32];

#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} belongs to user {owner}, or others may write to it (mode {mode:o}): remove it, it is made anew", path.display())]
    NotPrivate { path: PathBuf, owner: u32, mode: u32 },
    #[error("{} is damaged: its checksum is not that of its content", path.display())]
    Damaged { path: PathBuf },
}

/// A folder of such files. Shared by all threads.
pub struct KeptFiles {
    folder: PathBuf,
    /// `None`: not known yet, so nothing is removed.
    in_use: Mutex<Option<HashSet<KeptName>>>,
    drafts: AtomicU64,
}

impl KeptFiles {
    /// Makes the folder if it is not there. Errors: it cannot be made, or others may write to it: then its files may not be ours.
    pub fn open(folder: PathBuf) -> Result<KeptFiles, KeptError> {
        make_folder(&folder).map_err(io_error("make the directory", &folder))?;
        if let Some(above) = folder.parent() {
            // Earlier builds left the mode of this one to the umask.
            keep_others_out(above).map_err(io_error("take from others the right to write to", above))?;
            check_private(above)?;
        }
        check_private(&folder)?;
        Ok(KeptFiles { folder, in_use: Mutex::default(), drafts: AtomicU64::new(0) })
    }

    /// The content, exactly as it was written under that name, and marked as used. `None`: there is none.
    pub fn read(&self, name: &KeptName) -> Result<Option<Vec<u8>>, KeptError> {
        let path = self.path(name);
        let mut bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(io_error("read", &path))?,
        };
        let content_bytes = bytes.len().saturating_sub(CHECKSUM_BYTES);
        let checksum = bytes.split_off(content_bytes);
        if checksum_of(name, &bytes).as_slice() != checksum {
            return Err(KeptError::Damaged { path });
        }
        // Only the order of removal depends on it.
        if let Ok(file) = File::options().append(true).open(&path) {
            file.set_times(FileTimes::new().set_modified(SystemTime::now())).ok();
        }
        Ok(Some(bytes))
    }

    /// Keeps `content`, in place of what was kept under that name.
    pub fn write(&self, name: &KeptName, content: &[u8]) -> Result<(), KeptError> {
        let path = self.path(name);
        // The same module may be deployed twice at once: each has a draft of its own.
        let number = self.drafts.fetch_add(1, Ordering::Relaxed);
        let draft = self.folder.join(format!("{}-{number}.{DRAFT_SUFFIX}", std::process::id()));
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(content)?;
            file.write_all(&checksum_of(name, content))?;
            file.sync_all()?; // or a power cut would leave a name and no content
            fs::rename(&draft, &path)
        };
        write().map_err(|source| {
            fs::remove_file(&draft).ok(); // of no use, and one day the oldest
            io_error("write", &path)(source)
        })?;
        self.remove_unused()
    }

    /// From now on only these are in use: of the others some stay, see `KEPT_UNUSED_FILES_MAX`, the ones used last.
    pub fn keep_only(&self, in_use: HashSet<KeptName>) -> Result<(), KeptError> {
        *self.in_use.lock().unwrap_or_else(PoisonError::into_inner) = Some(in_use);
        self.remove_unused()
    }

    fn remove_unused(&self) -> Result<(), KeptError> {
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(in_use) = &*in_use else { return Ok(()) };
        let list = || -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
            let mut unused = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                if name_of(&entry.file_name()).is_some_and(|name| in_use.contains(&name)) {
                    continue;
                }
                // One that is gone meanwhile was another thread's draft.
                let Ok(metadata) = entry.metadata() else { continue };
                unused.push((metadata.modified()?, metadata.len(), entry.path()));
            }
            Ok(unused)
        };
        let mut unused = list().map_err(io_error("list", &self.folder))?;
        unused.sort_by(|a, b| b.cmp(a));
        let mut bytes = 0;
        for (index, (_, length, path)) in unused.iter().enumerate() {
            bytes += length;
            let is_too_much = index >= KEPT_UNUSED_FILES_MAX || bytes > KEPT_UNUSED_BYTES_MAX;
            if index >= KEPT_UNUSED_FILES_MIN && is_too_much {
                match fs::remove_file(path) {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    removed => removed.map_err(io_error("remove", path))?,
                }
            }
        }
        Ok(())
    }

    fn path(&self, name: &KeptName) -> PathBuf {
        self.folder.join(name.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

/// The name is in it: a whole file under another's name is none of that one.
fn checksum_of(name: &KeptName, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    Sha256::new().chain_update(name).chain_update(content).finalize().into()
}

fn name_of(file: &OsStr) -> Option<KeptName> {
    let text = file.to_str().filter(|text| text.len() == 2 * size_of::<KeptName>() && text.is_ascii())?;
    let mut name = KeptName::default();
    for (byte, at) in name.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(name)
}

fn check_private(path: &Path) -> Result<(), KeptError> {
    let metadata = fs::metadata(path).map_err(io_error("look at", path))?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != rustix::process::geteuid().as_raw() || mode & 0o022 != 0 {
        return Err(KeptError::NotPrivate { path: path.to_owned(), owner, mode });
    }
    Ok(())
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeptError {
    move |source| KeptError::Io { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn kept() -> (tempfile::TempDir, KeptFiles) {
        let directory = tempfile::tempdir().unwrap();
        let kept = KeptFiles::open(directory.path().join("kept")).unwrap();
        (directory, kept)
    }

    fn name(number: u8) -> KeptName {
        [number; 32]
    }

    fn files(kept: &KeptFiles) -> usize {
        fs::read_dir(&kept.folder).unwrap().count()
    }

    #[test]
    fn what_was_kept_comes_back_unless_a_bit_of_it_is_another() {
        let (_directory, kept) = kept();
        assert!(kept.read(&name(1)).unwrap().is_none());
        kept.write(&name(1), b"old").unwrap();
        kept.write(&name(1), b"content").unwrap();
        assert_eq!(kept.read(&name(1)).unwrap().unwrap(), b"content");
        let path = kept.path(&name(1));
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, damaged).unwrap();
            assert!(matches!(kept.read(&name(1)), Err(KeptError::Damaged { .. })), "bit {bit}");
        }
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(kept.read(&name(1)).is_err(), "cut short to {length}");
        }
        fs::write(kept.path(&name(2)), &whole).unwrap();
        assert!(kept.read(&name(2)).is_err(), "another's content");
        kept.write(&name(1), b"content").unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn of_what_nothing_uses_the_last_used_stay_and_nothing_goes_before_that_is_known() {
        let (_directory, kept) = kept();
        let surplus = 5;
        let count = (KEPT_UNUSED_FILES_MAX + 1 + surplus) as u8;
        for number in 0..count {
            kept.write(&name(number), b"content").unwrap();
            let file = File::options().append(true).open(kept.path(&name(number))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number.into())).unwrap();
        }
        assert_eq!(files(&kept), usize::from(count));
        assert!(kept.read(&name(2)).unwrap().is_some()); // and so it is the one used last
        kept.keep_only(HashSet::from([name(0)])).unwrap();
        assert_eq!(files(&kept), 1 + KEPT_UNUSED_FILES_MAX);
        let is_there = |number| kept.read(&name(number)).unwrap().is_some();
        assert!(is_there(0) && !is_there(1) && is_there(2) && !is_there(3) && is_there(count - 1));
        kept.write(&name(count), b"content").unwrap();
        assert_eq!(files(&kept), 1 + KEPT_UNUSED_FILES_MAX, "from then on each write makes room");
    }

    #[test]
    fn the_bytes_of_what_nothing_uses_are_bounded_and_a_few_stay_whatever_they_have() {
        let (_directory, kept) = kept();
        for number in 0..8 {
            let file = File::create(kept.path(&name(number))).unwrap();
            file.set_len(KEPT_UNUSED_BYTES_MAX + 1).unwrap(); // with no blocks on the disk
        }
        kept.keep_only(HashSet::new()).unwrap();
        assert_eq!(files(&kept), KEPT_UNUSED_FILES_MIN);
    }

    #[test]
    fn a_folder_to_which_others_may_write_is_not_used() {
        let (directory, kept) = kept();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(&kept.folder, 0o770);
        assert!(matches!(KeptFiles::open(kept.folder.clone()), Err(KeptError::NotPrivate { mode: 0o770, .. })));
        set(&kept.folder, 0o755);
        set(directory.path(), 0o775);
        KeptFiles::open(kept.folder.clone()).unwrap();
        assert_eq!(fs::metadata(directory.path()).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn threads_that_keep_the_same_do_not_disturb_each_other() {
        let (_directory, kept) = kept();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20).for_each(|_| kept.write(&name(1), &[7; 10_000]).unwrap()));
            }
        });
        assert_eq!((kept.read(&name(1)).unwrap().unwrap().len(), files(&kept)), (10_000, 1));
    }
}
