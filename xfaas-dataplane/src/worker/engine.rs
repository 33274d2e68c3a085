//! What all programs of a process share: the compiler, the pool of instances, memories and stacks, the epoch ticker, what is kept on disk.
//! Made once at start, by the control thread, before the shards.

use super::abi;
use super::fiber::WorkerData;
use super::kept::Kept;
use super::memory_budget::{GuestMemory, MemoryBudget};
use super::ticker::{Ticker, TickerError};
use crate::sys::KeptError;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wasmtime::{Config, Enabled, Inlining, Linker, PoolingAllocationConfig, ProfilingStrategy};
use xfaas_common::limits::MEMORY_MIB_DEFAULT;

/// Workers beyond `workers_live_max` that the pool has room for: the ones a load needs, one load at a time.
const LOAD_WORKERS: u32 = 2;
/// Wasm frames of one call. A guest that recurses deeper traps.
const GUEST_STACK_BYTES: usize = 512 << 10;
/// A fiber's stack: the guest's frames, and the host function on top of them.
const FIBER_STACK_BYTES: usize = 1 << 20;
const TABLES_PER_MODULE_MAX: u32 = 4;
/// Instance and table entries of one module: a large program has some ten thousand functions.
const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Behind each memory's 4 GiB. With an odd number of pages the memories lie an odd number of pages apart: their first pages, which all workers use,
/// fall into different sets of the processor's address translation caches (TLBs), which the lowest bits of a page's number choose. A power of two
/// would put all of them into the same one or two sets, and each call would wait for its page to be looked up.
const MEMORY_GUARD_BYTES: u64 = (32 << 20) + (4 << 10);
/// Bytes of a worker's memory, from its start, that are cleared by hand when it is dropped, rather than given back to the kernel: page
/// faults at the next fork cost more than clearing. It is also what an unused place may keep.
const MEMORY_BYTES_KEPT: usize = 256 << 10;
const TABLE_BYTES_KEPT: usize = 16 << 10;

/// How large the pool is and where compiled code is kept.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Made if it is not there, and for this user alone. `None`: nothing is kept.
    pub cache_directory: Option<PathBuf>,
    /// Workers alive at once in the process, 1..=10_000. Each reserves 4 GiB of address space.
    pub workers_live_max: u32,
    /// The largest `memory_mib` of a manifest, 1..=4096.
    pub memory_mib_max: u32,
    /// What the memories of all workers may take together, MiB, from 1.
    pub guest_memory_mib: u32,
    /// Time slice of a guest while others wait, and how exactly its deadline is kept; both four times as long for the first guest that runs for long in a
    /// second. Microseconds, 100..=100_000.
    pub tick_us: u64,
    /// Compiled functions are told to perf, in `/tmp/perf-<pid>.map`.
    pub perf_map: bool,
    /// Guests run on threads of the real-time class: so must what counts their time.
    pub realtime: bool,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            cache_directory: None,
            workers_live_max: 4_000,
            memory_mib_max: MEMORY_MIB_DEFAULT,
            guest_memory_mib: 4_096,
            tick_us: 1_000,
            perf_map: false,
            realtime: false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{name} is {value}: it must be in {low}..={high}")]
    OutOfRange { name: &'static str, value: u64, low: u64, high: u64 },
    #[error("keep compiled code in {directory:?}")]
    Cache {
        directory: PathBuf,
        #[source]
        source: KeptError,
    },
    #[error("make the engine for {workers_live_max} workers of up to {memory_mib_max} MiB")]
    Make {
        workers_live_max: u32,
        memory_mib_max: u32,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Ticker(#[from] TickerError),
}

/// The engine, shared by all threads. The ticker stops with the last clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    wasmtime: wasmtime::Engine,
    kept: Option<Kept>,
    linker: Linker<WorkerData>,
    options: EngineOptions,
    workers_live: Arc<AtomicU32>,
    guest_memory: Arc<MemoryBudget>,
    load: Mutex<()>,
    ticker: Ticker,
}

/// The right to one worker of the pool.
pub(super) struct WorkerSlot {
    workers_live: Option<Arc<AtomicU32>>,
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        if let Some(workers_live) = &self.workers_live {
            workers_live.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// One load at a time: it holds the pool's spare places.
pub(super) struct LoadGuard<'a> {
    _only: MutexGuard<'a, ()>,
}

impl LoadGuard<'_> {
    pub(super) fn worker_slot(&self) -> WorkerSlot {
        WorkerSlot { workers_live: None }
    }

    /// Beside the budget of all: a function can be deployed on a node whose guests' memory is at its limit.
    pub(super) fn guest_memory(&self, bytes_max: usize) -> GuestMemory {
        GuestMemory::new(Arc::new(MemoryBudget::new(u64::MAX)), bytes_max)
    }
}

impl Engine {
    /// Errors: an option out of range, no address space for the pool, a cache directory that cannot be made or is not ours alone.
    pub fn new(options: &EngineOptions) -> Result<Engine, EngineError> {
        let EngineOptions { workers_live_max, memory_mib_max, tick_us, .. } = *options;
        check("workers_live_max", u64::from(workers_live_max), 1, 10_000)?;
        check("memory_mib_max", u64::from(memory_mib_max), 1, 4_096)?;
        check("guest_memory_mib", u64::from(options.guest_memory_mib), 1, u64::from(u32::MAX))?;
        check("tick_us", tick_us, 100, 100_000)?;
        let make = |source: wasmtime::Error| EngineError::Make { workers_live_max, memory_mib_max, source: source.into() };
        let wasmtime = wasmtime::Engine::new(&config(options)).map_err(make)?;
        let keep = |directory: &PathBuf| {
            Kept::open(directory, &wasmtime).map_err(|source| EngineError::Cache { directory: directory.clone(), source })
        };
        let kept = options.cache_directory.as_ref().map(keep).transpose()?;
        let mut linker = Linker::new(&wasmtime);
        abi::link(&mut linker).map_err(make)?;
        let ticking = wasmtime.clone();
        let ticker = Ticker::start(Duration::from_micros(tick_us), options.realtime, move || ticking.increment_epoch())?;
        let options = options.clone();
        let guest_memory = Arc::new(MemoryBudget::new(u64::from(options.guest_memory_mib) << 20));
        let inner = Inner { wasmtime, kept, linker, options, workers_live: Arc::default(), guest_memory, load: Mutex::new(()), ticker };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// Workers alive now, in the whole process.
    pub fn workers_live(&self) -> u32 {
        self.inner.workers_live.load(Ordering::Relaxed)
    }

    /// Sizes of all live workers' memories, and their limit. Bytes.
    pub fn guest_memory_bytes(&self) -> (u64, u64) {
        (self.inner.guest_memory.taken(), self.inner.guest_memory.bytes_max())
    }

    /// True while workers that nobody needs at the moment should go.
    pub fn is_short_of_memory(&self) -> bool {
        self.inner.guest_memory.is_short()
    }

    pub(super) fn guest_memory_has_room(&self, bytes: usize) -> bool {
        self.inner.guest_memory.has_room(bytes as u64)
    }

    pub(super) fn guest_memory(&self, bytes_max: usize) -> GuestMemory {
        GuestMemory::new(Arc::clone(&self.inner.guest_memory), bytes_max)
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner.wasmtime
    }

    pub(super) fn kept(&self) -> Option<&Kept> {
        self.inner.kept.as_ref()
    }

    pub(super) fn linker(&self) -> &Linker<WorkerData> {
        &self.inner.linker
    }

    pub(super) fn options(&self) -> &EngineOptions {
        &self.inner.options
    }

    /// An invocation's slice is over that began `taken` ago. To be called each time: it is what chooses how finely time is counted.
    pub fn note_slice(&self, taken: Duration) {
        self.inner.ticker.note_slice(taken);
    }

    #[cfg(test)]
    pub(crate) fn ticks_coarsely(&self) -> bool {
        self.inner.ticker.is_coarse()
    }

    /// `None`: `workers_live_max` workers are alive.
    pub(super) fn claim_worker(&self) -> Option<WorkerSlot> {
        let Inner { workers_live, options, .. } = &*self.inner;
        let more = |live| (live < options.workers_live_max).then_some(live + 1);
        workers_live.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).ok()?;
        Some(WorkerSlot { workers_live: Some(Arc::clone(workers_live)) })
    }

    pub(super) fn begin_load(&self) -> LoadGuard<'_> {
        // It guards places in the pool, not data: a load that panicked has given its own back.
        LoadGuard { _only: self.inner.load.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

fn check(name: &'static str, value: u64, low: u64, high: u64) -> Result<(), EngineError> {
    if (low..=high).contains(&value) { Ok(()) } else { Err(EngineError::OutOfRange { name, value, low, high }) }
}

fn config(options: &EngineOptions) -> Config {
    let workers = options.workers_live_max + LOAD_WORKERS;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(workers)
        .total_memories(workers)
        .total_tables(workers * TABLES_PER_MODULE_MAX)
        .total_stacks(workers)
        .max_memories_per_module(1)
        .max_tables_per_module(TABLES_PER_MODULE_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size((options.memory_mib_max as usize) << 20)
        .max_unused_warm_slots(workers)
        .linear_memory_keep_resident(MEMORY_BYTES_KEPT)
        .table_keep_resident(TABLE_BYTES_KEPT)
        // Linux 6.7 tells which pages were written, so that only these are cleared.
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config
        .allocation_strategy(pool)
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK_BYTES)
        .async_stack_size(FIBER_STACK_BYTES)
        // A guest cannot read its stack: what an earlier one left there needs no clearing.
        .async_stack_zeroing(false)
        // 4 GiB of address space and a guard behind it: no access needs a bounds check.
        .memory_reservation(4 << 30)
        .memory_guard_size(MEMORY_GUARD_BYTES)
        .memory_may_move(false)
        .compiler_inlining(Inlining::No)
        .wasm_backtrace_max_frames(None)
        .wasm_multi_memory(false)
        .wasm_memory64(false);
    if options.perf_map {
        config.profiler(ProfilingStrategy::PerfMap);
    }
    config
}
