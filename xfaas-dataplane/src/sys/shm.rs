//! Shared memory: a sparse file (meant for tmpfs) mapped once, seen as 64-bit atomic words.
//! Called by `state/` only. Knows nothing of what the words mean.
//!
//! Every access goes through an atomic, so threads and processes that race are defined behaviour; `&mut` to mapped memory never exists.
//! The file must not be truncated while it is mapped: the kernel answers a touch beyond the end with SIGBUS. Files are made with mode
//! 0600, and this module never shrinks one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};

const WORD_BYTES: usize = size_of::<u64>();

/// The writer's hold on a file. It carries an exclusive `flock`, which the kernel drops when the process dies, however it dies.
#[derive(Debug)]
pub struct SharedFile {
    file: File,
}

impl SharedFile {
    /// A new, empty file of `bytes` (a hole: no memory is used yet) in place of whatever was at `path`, locked.
    /// Errors: as the system gives them; `WouldBlock` when another process holds the file.
    pub fn create(path: &Path, bytes: u64) -> io::Result<SharedFile> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        lock(&file)?; // before anything is cut off: the file may be a living writer's
        file.set_len(0)?;
        file.set_len(bytes)?;
        Ok(SharedFile { file })
    }

    /// The file at `path`, locked. Errors: as `create`, and `NotFound`.
    pub fn open(path: &Path) -> io::Result<SharedFile> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        lock(&file)?;
        Ok(SharedFile { file })
    }

    /// Length of the file in bytes, holes included.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Makes the file at least `bytes` long; what is added is a hole.
    pub fn grow(&self, bytes: u64) -> io::Result<()> {
        if self.bytes()? < bytes { self.file.set_len(bytes) } else { Ok(()) }
    }

    /// Has the file system set memory aside for a range, so that a full tmpfs is an error here and not a SIGBUS at the first store.
    /// A file system that cannot do it is taken as it is.
    pub fn commit(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), offset, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Maps the whole file for reading and writing.
    pub fn map(&self) -> io::Result<SharedMemory> {
        Ok(SharedMemory { map: with_huge_pages(MmapOptions::new().no_reserve_swap().map_raw(&self.file)?) })
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        // Closing would not do: a mapping that lives on keeps the open file, and so the lock. Failing to unlock only delays the next writer.
        self.file.unlock().ok();
    }
}

/// Asks for huge pages, which tmpfs gives where /sys/kernel/mm/transparent_hugepage/shmem_enabled says `advise` (or `within_size`, `always`):
/// fewer misses of the TLB for regions of many MiB. Elsewhere the advice is void, and a kernel without huge pages refuses it.
fn with_huge_pages(map: MmapRaw) -> MmapRaw {
    #[cfg(target_os = "linux")]
    map.advise(memmap2::Advice::HugePage).ok();
    map
}

fn lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A mapped file. Shared between the writer and the readers of one process through an `Arc`, and unmapped with the last of them.
#[derive(Debug)]
pub struct SharedMemory {
    map: MmapRaw,
}

impl SharedMemory {
    /// Maps the file at `path` for reading only, without a lock: for another process than the writer's. Storing through `words()` of such
    /// a mapping is a fault (SIGSEGV), so its holder must not.
    pub fn open_read_only(path: &Path) -> io::Result<SharedMemory> {
        SharedMemory::read_only(&File::open(path)?)
    }

    /// The same of a file that is open already, for reading at least.
    pub fn read_only(file: &File) -> io::Result<SharedMemory> {
        Ok(SharedMemory { map: with_huge_pages(MmapOptions::new().map_raw_read_only(file)?) })
    }

    /// Maps `bytes` of what has no length of its own, such as a map of the kernel's, for reading only.
    pub fn read_only_bytes(file: &File, bytes: usize) -> io::Result<SharedMemory> {
        Ok(SharedMemory { map: MmapOptions::new().len(bytes).map_raw_read_only(file)? })
    }

    /// The same for reading and writing.
    pub fn of_bytes(file: &File, bytes: usize) -> io::Result<SharedMemory> {
        Ok(SharedMemory { map: MmapOptions::new().len(bytes).map_raw(file)? })
    }

    /// The mapping as words; a tail of fewer than 8 bytes is left out.
    ///
    /// On a read-only mapping only `Relaxed` loads are defined (std, `sync::atomic`, "Atomic accesses to read-only memory"); readers order
    /// them with fences.
    #[inline(always)]
    pub fn words(&self) -> &[AtomicU64] {
        let words = self.map.len() / WORD_BYTES;
        let start = self.map.as_ptr().cast::<AtomicU64>();
        // SAFETY:
        // - in bounds and one object: `words * 8 <= map.len()`, the length `mmap` was asked for;
        // - alive: `self` owns the mapping, and it is unmapped only when `self` is dropped, which the borrow forbids;
        // - aligned: `mmap` returns whole pages, and an `AtomicU64` asks for 8 bytes;
        // - initialised: a file's bytes always are, holes read as zero, and every bit pattern is a `u64`;
        // - not aliased by plain accesses: this crate reaches mapped memory through this function only, other processes through theirs.
        unsafe { std::slice::from_raw_parts(start, words) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn words_are_seen_by_a_second_mapping_and_the_file_has_one_writer() {
        let path = Path::new("/dev/shm").join(format!("xfaas-shm-test-{}", std::process::id()));
        let file = SharedFile::create(&path, 1 << 20).unwrap();
        file.commit(0, 4096).unwrap();
        let writer = file.map().unwrap();
        writer.words()[7].store(42, Ordering::Relaxed);
        let reader = SharedMemory::open_read_only(&path).unwrap();
        assert_eq!(reader.words().len(), (1 << 20) / 8);
        assert_eq!(reader.words()[7].load(Ordering::Relaxed), 42);
        assert_eq!(SharedFile::open(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(file);
        assert_eq!(SharedFile::open(&path).unwrap().bytes().unwrap(), 1 << 20);
        std::fs::remove_file(&path).unwrap();
    }
}
