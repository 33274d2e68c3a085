//! The region and the locks, called as a shard calls them: all on the calling thread, but for the writes behind `state/read_remote_core`.

use super::case::{Case, CaseError};
use crate::servers::scratch_directory;
use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use tempfile::TempDir;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::state::{Acquire, CallToken, LockKey, LockTable, NamespaceRef, Region, RegionOptions, RegionReader};
use xfaas_dataplane::sys::affinity::pin_to;
use xfaas_dataplane::sys::clock::monotonic_ns;

const REGION_BYTES: u64 = 64 << 20;
const SESSION_BYTES_MAX: usize = 64 << 20;
const TABLE_HASH: u32 = 0x5EED_1234;
const KEY: &[u8] = b"n";
const CALL: CallToken = CallToken(1);
const SMALL_BYTES: usize = 16;
/// Bytes of a value, names of its cases, and operations of a batch.
const SIZES: [(usize, &str, &str, u32); 3] = [
    (SMALL_BYTES, "state/read/16B", "state/write/16B", 64),
    (1 << 10, "state/read/1KiB", "state/write/1KiB", 64),
    (64 << 10, "state/read/64KiB", "state/write/64KiB", 8),
];
const BATCH: u32 = 64;
/// The owner's time from one write to the next while another core reads: 100,000 writes a second to the one value.
const OWNER_WRITE_NS: u64 = 10_000;

/// Reads and writes of each size, the strong read-modify-write, and the read from another core than the owner's, which is `owner_cpu`.
pub fn memory_cases(owner_cpu: u16) -> Result<Vec<Box<dyn Case>>, CaseError> {
    let mut cases = local_cases()?;
    cases.push(Box::new(RemoteRead::new(owner_cpu)?));
    Ok(cases)
}

/// Those of them that need one thread only.
pub fn local_cases() -> Result<Vec<Box<dyn Case>>, CaseError> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for (bytes, read, write, operations) in SIZES {
        cases.push(Box::new(Read { name: read, operations, owned: Owned::new(bytes)?, buffer: vec![0; bytes] }));
        cases.push(Box::new(Write { name: write, operations, owned: Owned::new(bytes)?, value: vec![b'w'; bytes] }));
    }
    cases.push(Box::new(StrongRmw { owned: Owned::new(SMALL_BYTES)?, locks: LockTable::new(), granted: Vec::with_capacity(1) }));
    Ok(cases)
}

fn session() -> SessionId {
    SessionId::new(b"session-of-16-by").expect("16 visible bytes")
}

/// A region with one session and one value.
struct Owned {
    region: Region,
    namespace: NamespaceRef,
    _directory: TempDir,
}

impl Owned {
    fn new(value_bytes: usize) -> Result<Owned, CaseError> {
        let directory = scratch_directory("state").map_err(CaseError::Directory)?;
        let options = RegionOptions { app: "bench", shard: 0, bytes_max: REGION_BYTES, hash_tag: 0 };
        let mut region = Region::open_or_create(&directory.path().join("bench.region"), &options)?;
        let namespace = region.find_or_create(&session(), TABLE_HASH)?;
        region.write(namespace, KEY, &vec![b'v'; value_bytes], SESSION_BYTES_MAX)?;
        Ok(Owned { region, namespace, _directory: directory })
    }

    fn read(&self, buffer: &mut [u8]) -> Result<(), CaseError> {
        match self.region.read(self.namespace, black_box(KEY), buffer) {
            Some(bytes) if bytes == buffer.len() => Ok(()),
            read => Err(CaseError::Answer(format!("a read of {} bytes returned {read:?}", buffer.len()))),
        }
    }

    fn write(&mut self, value: &[u8]) -> Result<(), CaseError> {
        Ok(self.region.write(self.namespace, black_box(KEY), value, SESSION_BYTES_MAX)?)
    }
}

struct Read {
    name: &'static str,
    operations: u32,
    owned: Owned,
    buffer: Vec<u8>,
}

impl Case for Read {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operations(&self) -> u32 {
        self.operations
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        (0..self.operations).try_for_each(|_| self.owned.read(black_box(&mut self.buffer)))
    }
}

struct Write {
    name: &'static str,
    operations: u32,
    owned: Owned,
    value: Vec<u8>,
}

impl Case for Write {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operations(&self) -> u32 {
        self.operations
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        (0..self.operations).try_for_each(|_| self.owned.write(black_box(&self.value)))
    }
}

/// Lock, read, write, unlock; nobody else wants the key.
struct StrongRmw {
    owned: Owned,
    locks: LockTable,
    granted: Vec<CallToken>,
}

impl Case for StrongRmw {
    fn name(&self) -> &'static str {
        "state/rmw_strong"
    }

    fn operations(&self) -> u32 {
        BATCH
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        let session = session();
        let key = LockKey { app: 0, session: &session, key: KEY };
        let mut value = [0; SMALL_BYTES];
        for _ in 0..BATCH {
            if self.locks.acquire(black_box(&key), CALL) != Acquire::Granted {
                return Err(CaseError::Answer("a lock that nobody holds was not granted".to_owned()));
            }
            self.owned.read(&mut value)?;
            value[0] = value[0].wrapping_add(1);
            self.owned.write(&value)?;
            self.locks.release(&key, CALL, &mut self.granted);
        }
        Ok(())
    }
}

/// A lock-free read by the calling thread of a value whose owner, on another core, goes on writing it.
struct RemoteRead {
    reader: RegionReader,
    namespace: NamespaceRef,
    is_running: Arc<AtomicBool>,
    /// Dropped first: the owner ends when nobody can wake it any more.
    wake: Option<Sender<()>>,
    owner: Option<JoinHandle<()>>,
}

impl RemoteRead {
    fn new(owner_cpu: u16) -> Result<RemoteRead, CaseError> {
        let is_running = Arc::new(AtomicBool::new(false));
        let (wake, is_woken) = channel();
        let (made, is_made) = channel();
        let owners = is_running.clone();
        let owner = std::thread::spawn(move || {
            let mut owned = match pin_to(owner_cpu).map_err(CaseError::from).and_then(|()| Owned::new(SMALL_BYTES)) {
                Ok(owned) => owned,
                // Whoever asked waits for it; had they gone, nobody would be left to tell.
                Err(error) => return drop(made.send(Err(error))),
            };
            if made.send(Ok((owned.region.reader(), owned.namespace))).is_ok() {
                while is_woken.recv().is_ok() {
                    write_until_stopped(&mut owned, &owners);
                }
            }
        });
        let (reader, namespace) = is_made.recv().map_err(|_| CaseError::Answer("the owner's thread panicked".to_owned()))??;
        Ok(RemoteRead { reader, namespace, is_running, wake: Some(wake), owner: Some(owner) })
    }
}

fn write_until_stopped(owned: &mut Owned, is_running: &AtomicBool) {
    let (mut next_ns, mut value) = (0, [0_u8; SMALL_BYTES]);
    while is_running.load(Ordering::Acquire) {
        if monotonic_ns() < next_ns {
            spin_loop();
            continue;
        }
        next_ns = monotonic_ns() + OWNER_WRITE_NS;
        value[0] = value[0].wrapping_add(1);
        owned.write(&value).expect("a value of the same size takes the place of the last one");
    }
}

impl Case for RemoteRead {
    fn name(&self) -> &'static str {
        "state/read_remote_core"
    }

    fn operations(&self) -> u32 {
        BATCH
    }

    fn begin(&mut self) -> Result<(), CaseError> {
        self.is_running.store(true, Ordering::Release);
        let woken = self.wake.as_ref().is_some_and(|wake| wake.send(()).is_ok());
        if woken { Ok(()) } else { Err(CaseError::Answer("the owner's thread panicked".to_owned())) }
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        let mut buffer = [0; SMALL_BYTES];
        for _ in 0..BATCH {
            if self.reader.read(self.namespace, black_box(KEY), black_box(&mut buffer))? != Some(SMALL_BYTES) {
                return Err(CaseError::Answer("the value is gone".to_owned()));
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        self.is_running.store(false, Ordering::Release);
    }
}

impl Drop for RemoteRead {
    fn drop(&mut self) {
        self.end();
        self.wake = None;
        if let Some(owner) = self.owner.take()
            && owner.join().is_err()
        {
            eprintln!("the owner's thread of state/read_remote_core panicked");
        }
    }
}
