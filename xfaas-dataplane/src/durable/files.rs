//! The folder of the log: `current` says which log is in force, `<shard>-<number>.log` are its segments. Blocking I/O, on the keeper's thread and
//! at start; what gets a name here is whole and on the disk first.

use super::format::{BatchKind, Head, PAGE_BYTES, Place, SegmentKind, seal};
use super::log::{RetiredSegment, SEGMENT_BYTES};
use super::segment::SegmentReader;
use crate::state::{BATCH_HEAD_BYTES, Region, SESSION_BUCKETS, record_session};
use crate::sys::folders::make_folder;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of records that a snapshot gathers before it writes them.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
pub(super) const CURRENT: &str = "current";

/// A file of the log that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the log: cannot {operation} {}", path.display())]
pub struct LogError {
    pub operation: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Which log is in force: segments of other epochs are left-overs of a start that was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Current {
    pub epoch: u64,
    pub shards: u16,
}

impl Current {
    fn to_text(self) -> String {
        let says = format!("xfaas-log 2 {} {}", self.epoch, self.shards);
        let sum = crc32c::crc32c(says.as_bytes());
        format!("{says} {sum:08x}\n")
    }

    /// `None`: these are not the words of this format, or a bit is wrong. Those of the former format have no checksum.
    fn of_text(text: &str) -> Option<Current> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let (epoch, shards) = match words[..] {
            ["xfaas-log", "1", epoch, shards] | ["xfaas-log", "2", epoch, shards, _] => (epoch, shards),
            _ => return None,
        };
        let current = Current { epoch: epoch.parse().ok()?, shards: shards.parse().ok()? };
        (words.len() == 4 || current.to_text() == text).then_some(current)
    }
}

/// A segment by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentFile {
    pub number: u64,
    pub shard: u16,
    pub path: PathBuf,
}

impl SegmentFile {
    /// True when a snapshot of `apps` makes it needless. One whose head does not hold stays.
    pub fn is_covered_by(&self, epoch: u64, apps: &[String]) -> Result<bool, LogError> {
        let head = SegmentReader::open(self, epoch)?.head()?;
        Ok(head.is_some_and(|(head, of)| {
            of == epoch && (head.kind == SegmentKind::Writes || head.apps.iter().all(|app| apps.contains(&app.name)))
        }))
    }
}

/// The log's folder, open: its names can be synced.
#[derive(Debug)]
pub struct LogDirectory {
    path: PathBuf,
    directory: File,
}

impl LogDirectory {
    /// Makes it if it is not there; then its name is on the disk. Errors: as the system gives them.
    pub fn open(path: &Path) -> Result<LogDirectory, LogError> {
        let failed = |source| LogError { operation: "open", path: path.to_owned(), source };
        make_folder(path).map_err(failed)?;
        Ok(LogDirectory { path: path.to_owned(), directory: File::open(path).map_err(failed)? })
    }

    pub fn try_clone(&self) -> Result<LogDirectory, LogError> {
        let failed = |source| LogError { operation: "open", path: self.path.clone(), source };
        Ok(LogDirectory { path: self.path.clone(), directory: self.directory.try_clone().map_err(failed)? })
    }

    pub(super) fn segment_path(&self, shard: u16, number: u64) -> PathBuf {
        self.path.join(format!("{shard}-{number}.log"))
    }

    /// `None`: there is no log yet. Errors: it cannot be read, or says nothing that we know.
    pub(super) fn current(&self) -> Result<Option<Current>, LogError> {
        let path = self.path.join(CURRENT);
        let failed = |source| LogError { operation: "read", path: path.clone(), source };
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(failed)?,
        };
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "it does not say `xfaas-log 2 <epoch> <shards> <crc32c>`");
        Current::of_text(&text).ok_or_else(|| failed(bad())).map(Some)
    }

    pub(super) fn set_current(&self, current: Current) -> Result<(), LogError> {
        let draft = self.path.join("current.new");
        let written = private(&draft).and_then(|mut file| file.write_all(current.to_text().as_bytes()).and_then(|()| file.sync_all()));
        if let Err(source) = written {
            self.remove(&draft)?;
            return Err(LogError { operation: "write", path: draft, source });
        }
        self.rename(&draft, &self.path.join(CURRENT))
    }

    fn rename(&self, draft: &Path, path: &Path) -> Result<(), LogError> {
        let failed = |source| LogError { operation: "name", path: path.to_owned(), source };
        std::fs::rename(draft, path).map_err(failed)?;
        self.directory.sync_all().map_err(failed)
    }

    /// Removes what a kill left half made. At start only.
    pub(super) fn remove_drafts(&self) -> Result<(), LogError> {
        let failed = |source| LogError { operation: "list", path: self.path.clone(), source };
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                self.remove(&path)?;
            }
        }
        Ok(())
    }

    /// The segments of one shard by number.
    pub(super) fn segments_of(&self, shard: u16) -> Result<Vec<SegmentFile>, LogError> {
        let mut segments = self.segments()?;
        segments.retain(|segment| segment.shard == shard);
        Ok(segments)
    }

    /// All segments by number.
    pub(super) fn segments(&self) -> Result<Vec<SegmentFile>, LogError> {
        let failed = |source| LogError { operation: "list", path: self.path.clone(), source };
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let numbers = name.strip_suffix(".log").and_then(|stem| stem.split_once('-'));
            if let Some((shard, number)) = numbers.and_then(|(shard, number)| shard.parse().ok().zip(number.parse().ok())) {
                segments.push(SegmentFile { number, shard, path });
            }
        }
        segments.sort();
        Ok(segments)
    }

    pub(super) fn remove(&self, path: &Path) -> Result<(), LogError> {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LogError { operation: "remove", path: path.to_owned(), source }),
            _ => Ok(()),
        }
    }

    /// Makes a segment for writes: its room set aside, its head on the disk. Output: the file, and bytes of the head.
    pub(super) fn create_segment(&self, place: &Place, head: &Head) -> Result<(File, u64), LogError> {
        let path = self.segment_path(place.shard, place.segment);
        let draft = path.with_added_extension("new");
        let failed = |source| LogError { operation: "make", path: draft.clone(), source };
        let head = head.encode(place);
        let made = private(&draft).and_then(|mut file| {
            // Later syncs then have no new length to write down. A file system that cannot do it is taken as it is.
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SEGMENT_BYTES) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
            file.write_all(&head)?;
            file.sync_all()?;
            Ok(file)
        });
        match made.map_err(failed).and_then(|file| self.rename(&draft, &path).map(|()| file)) {
            Ok(file) => Ok((file, head.len() as u64)),
            Err(error) => {
                self.remove(&draft)?; // a full disk is the fuller for it
                Err(error)
            }
        }
    }

    /// Gives back what was set aside for a segment and is not used. Not synced: with its former length it reads the same.
    pub(super) fn cut(&self, shard: u16, retired: &RetiredSegment<Arc<File>>) -> Result<(), LogError> {
        let path = self.segment_path(shard, retired.number);
        match retired.used_bytes {
            Some(bytes) => retired.file.set_len(bytes).map_err(|source| LogError { operation: "cut", path, source }),
            None => self.remove(&path),
        }
    }

    pub(super) fn begin_snapshot(&self, place: Place, head: &Head) -> Result<SnapshotFile, LogError> {
        debug_assert!(head.kind == SegmentKind::Snapshot);
        let path = self.segment_path(place.shard, place.segment);
        let draft = path.with_added_extension("new");
        let failed = |source| LogError { operation: "make", path: draft.clone(), source };
        let file = private(&draft).map_err(failed)?;
        let mut snapshot = SnapshotFile { file, draft: draft.clone(), path, place };
        snapshot.file.write_all(&head.encode(&place)).map_err(failed)?;
        Ok(snapshot)
    }
}

fn private(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// A snapshot that is being written. It has no name in the log before `finish`, and is removed when it is dropped without.
pub(super) struct SnapshotFile {
    file: File,
    draft: PathBuf,
    path: PathBuf,
    place: Place,
}

impl SnapshotFile {
    /// Writes records, which begin after `BATCH_HEAD_BYTES` free bytes.
    pub fn append(&mut self, mut batch: Vec<u8>, kind: BatchKind) -> Result<(), LogError> {
        self.place.sequence += 1;
        seal(&mut batch, kind, &self.place);
        debug_assert!(batch.len().is_multiple_of(PAGE_BYTES));
        self.file.write_all(&batch).map_err(|source| LogError { operation: "write", path: self.draft.clone(), source })
    }

    /// All of it is on the disk and has its name after this.
    pub fn finish(mut self, directory: &LogDirectory) -> Result<(), LogError> {
        self.append(vec![0; BATCH_HEAD_BYTES], BatchKind::End)?;
        self.file.sync_all().map_err(|source| LogError { operation: "sync", path: self.draft.clone(), source })?;
        directory.rename(&self.draft, &self.path)
    }

    /// Writes all that a region holds.
    pub fn append_region(&mut self, app: &str, region: &Region) -> Result<(), LogError> {
        let mut batch = vec![0; BATCH_HEAD_BYTES];
        for bucket in 0..SESSION_BUCKETS {
            for (session, namespace) in region.sessions_of(bucket) {
                record_session(&mut batch, app, region, &session, namespace);
                if batch.len() > CHUNK_BYTES {
                    self.append(std::mem::replace(&mut batch, vec![0; BATCH_HEAD_BYTES]), BatchKind::Records)?;
                }
            }
        }
        match batch.len() {
            BATCH_HEAD_BYTES => Ok(()),
            _ => self.append(batch, BatchKind::Records),
        }
    }
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        // A full disk is the fuller for it. After `finish` nothing has this name; what cannot be removed now is removed at the next start.
        std::fs::remove_file(&self.draft).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(folder: &Path) -> Vec<PathBuf> {
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "new")).collect()
    }

    #[test]
    fn a_flipped_bit_in_what_says_which_log_counts_is_seen() {
        let current = Current { epoch: 12, shards: 2 };
        let text = current.to_text();
        assert_eq!(Current::of_text(&text), Some(current));
        assert_eq!(Current::of_text("xfaas-log 1 12 2\n"), Some(current), "the former format");
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(String::from_utf8(bytes).ok().and_then(|text| Current::of_text(&text)), None, "bit {bit}");
        }
    }

    #[test]
    fn a_segment_that_is_left_takes_no_more_than_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let directory = LogDirectory::open(folder.path()).unwrap();
        for (number, used_bytes) in [(1, Some(8_192)), (2, None)] {
            let place = Place { shard: 3, epoch: 1, segment: number, sequence: 0 };
            let head = Head { shards: 4, kind: SegmentKind::Writes, goes_on_at: 0, apps: Vec::new() };
            let (file, _) = directory.create_segment(&place, &head).unwrap();
            assert_eq!(file.metadata().unwrap().len(), SEGMENT_BYTES);
            let retired = RetiredSegment { number, file: Arc::new(file), used_bytes };
            directory.cut(3, &retired).unwrap();
            directory.cut(3, &retired).unwrap();
        }
        let left = directory.segments().unwrap();
        assert_eq!(left.iter().map(|segment| segment.number).collect::<Vec<_>>(), [1]);
        assert_eq!(std::fs::metadata(&left[0].path).unwrap().len(), 8_192);
        let mut reader = SegmentReader::open(&left[0], 1).unwrap();
        assert!(reader.head().unwrap().is_some() && reader.next().unwrap().is_none() && reader.is_zero_from_here().unwrap());
    }

    #[test]
    fn what_could_not_be_made_leaves_no_draft_on_a_disk_that_may_be_full() {
        let folder = tempfile::tempdir().unwrap();
        let directory = LogDirectory::open(&folder.path().join("state/log")).unwrap();
        let folder = folder.path().join("state/log");
        let head = |kind| Head { shards: 1, kind, goes_on_at: 0, apps: Vec::new() };
        let place = |segment| Place { shard: 0, epoch: 1, segment, sequence: 0 };
        let mut given_up = directory.begin_snapshot(place(1), &head(SegmentKind::Snapshot)).unwrap();
        given_up.append(vec![0; BATCH_HEAD_BYTES], BatchKind::Records).unwrap();
        assert_eq!(drafts(&folder).len(), 1);
        drop(given_up);
        assert_eq!(drafts(&folder).len(), 0);
        for segment in [2, 3] {
            std::fs::create_dir(folder.join(format!("0-{segment}.log"))).unwrap(); // in the way of the name
        }
        let nameless = directory.begin_snapshot(place(2), &head(SegmentKind::Snapshot)).unwrap();
        assert_eq!(nameless.finish(&directory).unwrap_err().operation, "name");
        assert_eq!(directory.create_segment(&place(3), &head(SegmentKind::Writes)).unwrap_err().operation, "name");
        assert_eq!(drafts(&folder).len(), 0);
        directory.begin_snapshot(place(4), &head(SegmentKind::Snapshot)).unwrap().finish(&directory).unwrap();
        assert!(folder.join("0-4.log").is_file());
    }
}
