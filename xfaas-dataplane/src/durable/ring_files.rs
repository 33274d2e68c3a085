//! Objects as local files, by tokio-uring: every open, read, write, sync and rename is an operation of the io_uring of the checkpoints' thread.
//! Called by `store` inside a tokio-uring runtime; nothing here is on a request's path, and nothing blocks.
//!
//! A file gets its name when it is whole and on the disk: it is written as a draft, with a `#` in its name, which no object has.

use super::store::StoreFault;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::{DirBuilder, File, OpenOptions};
use xfaas_common::limits::{CHECKPOINT_BYTES_MAX, STORE_FILES_MAX};

/// More than any checkpoint has. Of a longer file only so much is read: it is no checkpoint, and is found out by its length.
const OBJECT_BYTES_MAX: usize = CHECKPOINT_BYTES_MAX + (1 << 10);

/// A folder with objects.
#[derive(Clone, Debug)]
pub(super) struct RingFiles {
    root: Arc<Path>,
    /// Each operation has one until it is really over, also when nobody waits for it any more: a disk that hangs gathers no more than these.
    permits: Arc<Semaphore>,
    drafts: Arc<AtomicU64>,
}

/// Read first: most checkpoints are not longer. After it each piece is as long as all before it.
const FIRST_BYTES: usize = (1 << 20) + (64 << 10);

/// A file that is being read.
pub(super) struct OpenObject {
    file: File,
    path: PathBuf,
    read: Vec<u8>,
}

/// How far it is read.
pub(super) enum Piece {
    Whole(Vec<u8>),
    More(OpenObject),
}

impl OpenObject {
    /// Makes room for the next piece. Output: its bytes.
    pub fn make_room(&mut self) -> u64 {
        let bytes = self.read.len().max(FIRST_BYTES).min(OBJECT_BYTES_MAX - self.read.len());
        self.read.reserve_exact(bytes);
        bytes as u64
    }
}

impl RingFiles {
    pub fn new(root: &Path) -> RingFiles {
        RingFiles { root: root.into(), permits: Arc::new(Semaphore::new(STORE_FILES_MAX)), drafts: Arc::default() }
    }

    /// Writes an object in place of one that is there. When it returns, the object and its name are on the disk.
    pub async fn write(&self, object: &str, bytes: Vec<u8>) -> Result<(), StoreFault> {
        let (root, path) = (Arc::clone(&self.root), self.root.join(object));
        let mut draft = path.clone().into_os_string();
        draft.push(format!("#{}", self.drafts.fetch_add(1, Ordering::Relaxed)));
        let draft = PathBuf::from(draft);
        self.run("write", path.clone(), async move {
            let file = create(&draft, &root).await?;
            let named = async {
                file.write_all_at(bytes, 0).await.0?;
                file.sync_all().await?;
                file.close().await?;
                tokio_uring::fs::rename(&draft, &path).await
            };
            if let Err(error) = named.await {
                // A full disk is the fuller for it. What cannot be removed now is removed at the next start.
                tokio_uring::fs::remove_file(&draft).await.ok();
                return Err(error);
            }
            sync_folder(path.parent().unwrap_or(&root)).await
        })
        .await
    }

    pub async fn open(&self, object: &str) -> Result<OpenObject, StoreFault> {
        let path = self.root.join(object);
        self.run("read", path.clone(), async move { Ok(OpenObject { file: File::open(&path).await?, path, read: Vec::new() }) }).await
    }

    /// Reads until the room is full or the file at its end. Its length is not asked for: io_uring has a thread do that, which takes longer than to read.
    pub async fn read(&self, object: OpenObject) -> Result<Piece, StoreFault> {
        let OpenObject { file, path, mut read } = object;
        self.run("read", path.clone(), async move {
            loop {
                let at = read.len();
                if at >= OBJECT_BYTES_MAX {
                    break;
                }
                if at == read.capacity() {
                    return Ok(Piece::More(OpenObject { file, path, read }));
                }
                let (done, part) = file.read_at(read.slice(at..), at as u64).await;
                read = part.into_inner();
                if done? == 0 {
                    break;
                }
            }
            file.close().await?;
            Ok(Piece::Whole(read))
        })
        .await
    }

    /// Deletes an object. One that is not there is no error.
    pub async fn delete(&self, object: &str) -> Result<(), StoreFault> {
        let path = self.root.join(object);
        self.run("delete", path.clone(), async move {
            match tokio_uring::fs::remove_file(&path).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                done => done,
            }
        })
        .await
    }

    /// Does work in a task of its own, which goes on to its end when the caller gives up.
    async fn run<T: 'static>(
        &self,
        operation: &'static str,
        path: PathBuf,
        work: impl Future<Output = io::Result<T>> + 'static,
    ) -> Result<T, StoreFault> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let task = tokio_uring::spawn(async move {
            let done = work.await;
            drop(permit);
            done
        });
        let done = task.await.unwrap_or_else(|error| Err(error.into()));
        done.map_err(|source| StoreFault::File { operation, path, source })
    }
}

/// Makes a draft, and its folders where they are not there.
async fn create(draft: &Path, root: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    match options.open(draft).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        done => return done,
    }
    let folder = draft.parent().unwrap_or(root);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).await?;
    // Which of them are new is not known; that of the store itself may be among them.
    let last = root.parent().unwrap_or(root);
    for parent in folder.ancestors().skip(1).take_while(|parent| parent.starts_with(last)) {
        sync_folder(parent).await?;
    }
    options.open(draft).await
}

/// Names in the folder are on the disk after this.
async fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = File::open(folder).await?;
    folder.sync_all().await?;
    folder.close().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    async fn read(files: &RingFiles, object: &str) -> Result<Vec<u8>, StoreFault> {
        let mut open = files.open(object).await?;
        loop {
            open.make_room();
            open = match files.read(open).await? {
                Piece::Whole(bytes) => return Ok(bytes),
                Piece::More(open) => open,
            };
        }
    }

    fn kind(fault: &StoreFault) -> io::ErrorKind {
        assert!(fault.is_of_the_store(), "{fault}");
        let StoreFault::File { source, .. } = fault else { panic!("{fault:?}") };
        source.kind()
    }

    #[test]
    fn an_object_of_any_length_comes_back_and_the_next_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let files = RingFiles::new(&folder.path().join("made/later"));
        tokio_uring::start(async {
            for bytes in [0, 1, 4_096, FIRST_BYTES, 3 * FIRST_BYTES + 1] {
                let content: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
                files.write("app/0a1/s.1", content.clone()).await.unwrap();
                assert_eq!(read(&files, "app/0a1/s.1").await.unwrap(), content);
            }
            files.delete("app/0a1/s.1").await.unwrap();
            files.delete("app/0a1/s.1").await.unwrap();
            assert_eq!(kind(&read(&files, "app/0a1/s.1").await.unwrap_err()), io::ErrorKind::NotFound);
        });
        let left = std::fs::read_dir(folder.path().join("made/later/app/0a1")).unwrap().count();
        assert_eq!(left, 0, "drafts are left");
    }

    #[test]
    fn a_file_that_is_far_too_long_is_not_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::File::create(folder.path().join("long")).unwrap().set_len(1 << 40).unwrap();
        let files = RingFiles::new(folder.path());
        let bytes = tokio_uring::start(read(&files, "long")).unwrap();
        assert!(bytes.len() >= OBJECT_BYTES_MAX && bytes.len() < 2 * OBJECT_BYTES_MAX);
    }

    #[test]
    fn a_folder_that_goes_away_is_made_anew_and_one_that_cannot_be_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let files = RingFiles::new(&root);
        tokio_uring::start(async {
            files.write("app/000/s.1", vec![1]).await.unwrap();
            std::fs::remove_dir_all(&root).unwrap();
            files.write("app/000/s.2", vec![2]).await.unwrap();
            assert_eq!(read(&files, "app/000/s.2").await.unwrap(), [2]);
            std::fs::remove_dir_all(&root).unwrap();
            std::fs::write(&root, b"in the way").unwrap();
            for fault in [files.write("app/000/s.3", vec![3]).await.unwrap_err(), read(&files, "app/000/s.2").await.unwrap_err()] {
                assert_eq!(kind(&fault), io::ErrorKind::NotADirectory);
            }
            std::fs::remove_file(&root).unwrap();
            std::fs::create_dir_all(root.join("app/000/s.4")).unwrap();
            assert_eq!(kind(&files.write("app/000/s.4", vec![4]).await.unwrap_err()), io::ErrorKind::IsADirectory);
            assert_eq!(kind(&read(&files, "app/000/s.4").await.unwrap_err()), io::ErrorKind::IsADirectory);
        });
        let left: Vec<_> = std::fs::read_dir(root.join("app/000")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["s.4"], "the draft is removed when the object cannot get its name");
    }

    #[test]
    fn work_that_nobody_waits_for_any_more_ends_and_gives_its_permit_back() {
        let folder = tempfile::tempdir().unwrap();
        let files = RingFiles::new(folder.path());
        tokio_uring::start(async {
            for number in 0..STORE_FILES_MAX {
                let object = format!("app/000/s.{number}");
                assert!(files.write(&object, vec![7; 10_000]).now_or_never().is_none(), "it is given up at once");
            }
            // Those that had begun are done before anybody else gets their permit.
            let all = files.permits.acquire_many(STORE_FILES_MAX as u32).await.unwrap();
            drop(all);
            let mut found: Vec<_> =
                std::fs::read_dir(folder.path().join("app/000")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            found.sort();
            assert_eq!(found.len(), STORE_FILES_MAX);
            assert!(found.iter().all(|name| !name.to_string_lossy().contains('#')), "{found:?}");
            for name in found {
                assert_eq!(read(&files, &format!("app/000/{}", name.to_string_lossy())).await.unwrap(), [7; 10_000]);
            }
        });
    }
}
