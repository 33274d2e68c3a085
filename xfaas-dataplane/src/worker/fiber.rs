//! One worker: a wasm instance whose fiber never ends between calls, so a warm call neither makes a fiber nor allocates.
//! Run by the session proxy, on one thread at a time.

use super::abi::{self, DeadlinePassed, NeedsOwner};
use super::engine::WorkerSlot;
use super::host_calls::over;
use super::lend::{self, Lent};
use super::memory_budget::{BudgetSpent, GuestMemory, MemoryBudget};
use super::program::Program;
use super::trap::TrapKind;
use crate::sys::{LINE_BYTES, prefetch_span};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use wasmtime::{Memory, PoolConcurrencyLimitError, Store};

/// A fiber's stack ends at a page's end, and a guest that calls a host function uses about so much of it.
const STACK_BYTES_WARM: usize = 1_536;
const PAGE_BYTES: usize = 4_096;

/// Where calls look at a store, seen from our data in it, and at an instance, seen from its function: read off the addresses that a call touches, with this
/// version of wasmtime. Wrong ones do no harm but the time that they would save.
const STORE_WARM: [isize; 6] = [0x40, -0xa0, -0xe0, -0x120, -0x290, -0x2b8];
/// The compiler orders a store's parts by the size of our data in it: with another size the offsets are to be read off anew.
const _: () = assert!(size_of::<WorkerData>() == 64);
const INSTANCE_BYTES_BEFORE: usize = 0x218;
const INSTANCE_BYTES_WARM: usize = 0x180;

/// For ever.
const TICKS_OF_INSTANTIATION: u64 = 1 << 60;

/// Why a poll came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// `handle` returned this code. The invocation is over: locks are handed on, an atomic function's writes took effect if it is 0.
    Finished(i32),
    /// Parked for a lock; poll again once it was granted.
    Waiting,
    /// Parked for an answer of the primary: `call.remote` says what is asked. Poll again once it is answered.
    Asking,
    /// `handle` returned 0, and the primary is to be asked for the commit that `call.remote` holds. Not polled again: its answer ends the invocation.
    Committing,
    /// The guest has used up its slice; poll again when others have had theirs.
    SliceOver,
    /// The invocation is over and the worker must be dropped.
    Trapped(TrapKind),
    /// The invocation is over and the worker must be dropped.
    DeadlinePassed,
    /// The call ran beside its session's owner and cannot go on here: it is to be run anew on the owner's shard. It changed nothing, since
    /// only read-only functions run so. The worker must be dropped.
    NeedsOwner {
        /// It asked for a lock, and will again.
        for_lock: bool,
    },
}

/// Why there is no new worker.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    #[error("all places for live workers, or all memory for guests, are taken")]
    PoolFull,
    #[error("make an instance of the program")]
    Instantiate(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a guest's store holds.
pub(super) struct WorkerData {
    /// The guest's memory, known once the instance is there.
    pub(super) memory: Option<Memory>,
    limits: GuestMemory,
    /// Makes the size what `STORE_WARM` was read off with.
    _rest: usize,
}

/// Where the last host call of a worker found its stack and the guest's buffer: addresses that are never looked at, only named to the processor.
/// The next invocation of most guests uses both in the same places.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trail {
    pub(super) stack: usize,
    pub(super) memory: usize,
}

/// Where a worker's parts lie: addresses that are never looked at, only named to the processor.
#[derive(Clone, Copy, Debug)]
struct Places {
    /// Inside its store.
    store: usize,
    /// Inside its instance.
    instance: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    InCall,
    /// The guest trapped or was stopped: only dropping is left.
    Dead,
}

/// One instance on its fiber. Dropping it is safe at any time, in the middle of a call too; its locks are then the caller's to release.
pub struct Worker {
    /// Ends only with an error. Before `slot`: the instance must be gone when its place is free again.
    guest: Pin<Box<dyn Future<Output = wasmtime::Error> + Send>>,
    phase: Phase,
    trail: Trail,
    places: Places,
    /// What the guest's memory is of; so are the writes that its calls keep.
    budget: Arc<MemoryBudget>,
    _slot: WorkerSlot,
}

impl Worker {
    /// Makes a worker from the program's image. Runs no guest code.
    /// Errors: `PoolFull` when `workers_live_max` workers are alive, or its memory does not fit beside theirs.
    pub fn fork(program: &Program) -> Result<Worker, ForkError> {
        let slot = program.engine.claim_worker().ok_or(ForkError::PoolFull)?;
        Worker::fork_into(program, slot, program.engine.guest_memory(program.memory_bytes_max))
    }

    pub(super) fn fork_into(program: &Program, slot: WorkerSlot, limits: GuestMemory) -> Result<Worker, ForkError> {
        let budget = Arc::clone(limits.budget());
        let data = WorkerData { memory: None, limits, _rest: 0 };
        let mut store = Store::new(program.engine.wasmtime(), data);
        store.limiter(|data| &mut data.limits);
        store.epoch_deadline_callback(abi::on_epoch);
        // Instantiation runs compiled code too, which checks the epoch; it is bounded by the module's size and has nothing lent to it.
        store.set_epoch_deadline(TICKS_OF_INSTANTIATION);
        let instance = program.image.instantiate(&mut store).map_err(fork_error)?;
        let memory = instance.get_module_export(&mut store, &program.memory).and_then(wasmtime::Extern::into_memory);
        store.data_mut().memory = memory;
        store.data_mut().limits.set_running();
        let run = instance.get_module_export(&mut store, &program.run).and_then(wasmtime::Extern::into_func);
        let run = run.expect("load added and looked up this function");
        let run_address = run.to_raw(&mut store).addr();
        let run = run.typed::<(), ()>(&store).map_err(fork_error)?;
        let places = Places { store: (&raw const *store.data()).addr(), instance: run_address };
        let guest = Box::pin(async move {
            store.set_epoch_deadline(abi::SLICE_TICKS);
            match run.call_async(&mut store, ()).await {
                Ok(()) => unreachable!("the loop that load added has no exit"),
                Err(error) => error,
            }
        });
        Ok(Worker { guest, phase: Phase::Idle, trail: Trail::default(), places, budget, _slot: slot })
    }

    /// Begins to bring what a poll will touch into the caches: the store, the instance, and what the fiber is resumed with. To be called as early as it is
    /// known that the worker will run.
    #[inline]
    pub fn warm_instance(&self) {
        let Places { store, instance } = self.places;
        let guest = (&raw const *self.guest).addr();
        // One line of each page first: where the processor has to look for the pages too, it looks for several at once.
        for place in [self.trail.memory, self.trail.stack, guest, store, instance] {
            if place != 0 {
                prefetch_span(place, 1); // 0: no invocation has left a trail yet
            }
        }
        prefetch_span(guest, size_of_val(&*self.guest));
        for at in STORE_WARM {
            prefetch_span(store.wrapping_add_signed(at), 1);
        }
        prefetch_span(instance.wrapping_sub(INSTANCE_BYTES_BEFORE), INSTANCE_BYTES_WARM);
    }

    /// The same for the fiber's stack and the guest's memory.
    #[inline]
    pub fn warm_stack(&self) {
        if self.trail.stack == 0 {
            return; // no invocation told yet
        }
        let stack_end = self.trail.stack.next_multiple_of(PAGE_BYTES);
        prefetch_span(stack_end.wrapping_sub(STACK_BYTES_WARM), STACK_BYTES_WARM);
        prefetch_span(self.trail.memory.wrapping_sub(LINE_BYTES), 2 * LINE_BYTES);
    }

    /// The next poll begins a new invocation.
    pub fn start(&mut self) {
        assert_eq!(self.phase, Phase::Idle, "a worker runs one invocation at a time");
        self.phase = Phase::InCall;
    }

    /// Runs the guest until it finishes, waits, or has used up its slice. `lent.call.token` must be the same in all polls of an invocation.
    pub fn poll(&mut self, mut lent: Lent) -> (Lent, Progress) {
        assert_eq!(self.phase, Phase::InCall, "only a started and living worker is polled");
        lent.call.trail = self.trail;
        if lent.call.atomic {
            lent.call.overlay.set_budget(&self.budget);
        }
        lend::put(lent);
        let polled = self.guest.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let (mut lent, reason) = lend::take();
        self.trail = lent.call.trail;
        let progress = match polled {
            Poll::Pending => reason.expect("whoever makes a guest yield says why"),
            Poll::Ready(error) if error.is::<DeadlinePassed>() => Progress::DeadlinePassed,
            Poll::Ready(error) => match error.downcast_ref::<NeedsOwner>() {
                Some(needs) => Progress::NeedsOwner { for_lock: needs.for_lock },
                None => Progress::Trapped(TrapKind::of(&error)),
            },
        };
        let progress = match progress {
            Progress::Waiting | Progress::Asking | Progress::SliceOver => progress,
            Progress::Finished(code) => {
                self.phase = Phase::Idle;
                finish(&mut lent, code)
            }
            Progress::Committing => unreachable!("only `finish` says so"),
            Progress::Trapped(_) | Progress::DeadlinePassed | Progress::NeedsOwner { .. } => {
                self.phase = Phase::Dead;
                lent.end_invocation();
                progress
            }
        };
        (lent, progress)
    }
}

/// Commits an atomic function's writes, or asks the primary to, then ends the invocation. Output: its code; -3 where a write turned out to
/// be over a limit.
fn finish(lent: &mut Lent, code: i32) -> Progress {
    if lent.call.state_at.asks_primary() {
        let asked = code == 0 && lent.ask_commit();
        lent.end_invocation();
        return if asked { Progress::Committing } else { Progress::Finished(code) };
    }
    let committed = if code == 0 { lent.call.commit(&mut lent.state) } else { Ok(()) };
    lent.end_invocation();
    Progress::Finished(match committed {
        Ok(()) => code,
        Err(error) => over(&mut lent.state, error.limit()),
    })
}

fn fork_error(error: wasmtime::Error) -> ForkError {
    if error.is::<PoolConcurrencyLimitError>() || error.is::<BudgetSpent>() {
        ForkError::PoolFull
    } else {
        ForkError::Instantiate(error.into())
    }
}
