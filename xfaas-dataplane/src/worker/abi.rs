//! Links the host functions into guests: the import table, and the way from a wasm call to `host_calls`.
//! Host functions are synchronous, or each call would box a future. One that must wait returns `PARK` and makes the guest's next epoch
//! check fire; the shim that `rewrite` put around it pauses there and calls again.

use super::fiber::{Progress, WorkerData};
use super::host_calls::{self, NEEDS_OWNER, PARK};
use super::lend;
use super::read_session;
use super::snapshot;
use super::timers;
use wasmtime::{AsContextMut, Caller, Linker, StoreContextMut, UpdateDeadline};
use xfaas_common::guest_abi::{
    CANCEL_TIMER, IMPORT_MODULE, MODE_STRONG, READ_INPUT, READ_SESSION, READ_STATE, SET_OUTPUT, SET_TIMER, SNAPSHOT_READ, WRITE_STATE,
};

/// The import module of what `rewrite` adds to a guest; a guest's own imports from it are refused.
pub(super) const HOST_MODULE: &str = "xfaas:host";
/// `done(code: i32)`: an invocation is over.
pub(super) const HOST_DONE: &str = "done";

/// A function that guests may import from `xfaas`: all parameters are `i32` but perhaps one, and so is the one result.
pub(super) struct HostFunction {
    pub(super) name: &'static str,
    pub(super) parameters: usize,
    /// The parameter that is an `i64`.
    pub(super) wide: Option<usize>,
    /// It may return `PARK`, so calls go through a shim.
    pub(super) may_park: bool,
}

impl HostFunction {
    /// For each parameter whether it is an `i64`.
    pub(super) fn are_wide(&self) -> impl Iterator<Item = bool> + use<> {
        let wide = self.wide;
        (0..self.parameters).map(move |index| wide == Some(index))
    }
}

pub(super) const HOST_FUNCTIONS: [HostFunction; 8] = [
    HostFunction { name: READ_INPUT, parameters: 3, wide: None, may_park: false },
    HostFunction { name: SET_OUTPUT, parameters: 2, wide: None, may_park: false },
    HostFunction { name: READ_STATE, parameters: 4, wide: None, may_park: true },
    HostFunction { name: WRITE_STATE, parameters: 4, wide: None, may_park: true },
    HostFunction { name: SNAPSHOT_READ, parameters: 4, wide: None, may_park: true },
    HostFunction { name: READ_SESSION, parameters: 4, wide: None, may_park: true },
    HostFunction { name: SET_TIMER, parameters: 4, wide: Some(1), may_park: true },
    HostFunction { name: CANCEL_TIMER, parameters: 1, wide: None, may_park: true },
];

/// The ticks a guest may run before its slice is over.
pub(super) const SLICE_TICKS: u64 = 1;

/// The guest ran out of time.
#[derive(Debug, thiserror::Error)]
#[error("the deadline has passed")]
pub(super) struct DeadlinePassed;

/// A call that runs beside its session's owner asked for what only the owner can do.
#[derive(Debug, thiserror::Error)]
#[error("only the session's owner can go on")]
pub(super) struct NeedsOwner {
    pub(super) for_lock: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("the guest's memory is not known yet")]
struct NoMemory;

pub(super) fn link(linker: &mut Linker<WorkerData>) -> wasmtime::Result<()> {
    linker.func_wrap(IMPORT_MODULE, READ_INPUT, |mut caller: Caller<'_, WorkerData>, arg_index: i32, buf: i32, buf_len: i32| {
        let memory = memory(&mut caller)?;
        Ok(lend::borrow(|lent, _| host_calls::read_input(lent, memory, arg_index, buf, buf_len))?)
    })?;
    linker.func_wrap(IMPORT_MODULE, SET_OUTPUT, |mut caller: Caller<'_, WorkerData>, buf: i32, buf_len: i32| {
        let memory = memory(&mut caller)?;
        Ok(lend::borrow(|lent, _| host_calls::set_output(lent, memory, buf, buf_len))?)
    })?;
    linker.func_wrap(IMPORT_MODULE, READ_STATE, |mut caller: Caller<'_, WorkerData>, key: i32, buf: i32, buf_len: i32, mode: i32| {
        let memory = memory(&mut caller)?;
        let result = lend::borrow(|lent, _| host_calls::read_state(lent, memory, key, buf, buf_len, mode))?;
        if result == NEEDS_OWNER {
            return Err(NeedsOwner { for_lock: mode == MODE_STRONG }.into());
        }
        park_if_told(&mut caller, result)
    })?;
    linker.func_wrap(IMPORT_MODULE, WRITE_STATE, |mut caller: Caller<'_, WorkerData>, key: i32, buf: i32, buf_len: i32, mode: i32| {
        let memory = memory(&mut caller)?;
        let result = lend::borrow(|lent, _| host_calls::write_state(lent, memory, key, buf, buf_len, mode))?;
        park_if_told(&mut caller, result)
    })?;
    linker.func_wrap(
        IMPORT_MODULE,
        SNAPSHOT_READ,
        |mut caller: Caller<'_, WorkerData>, keys: i32, keys_len: i32, buf: i32, buf_len: i32| {
            let memory = memory(&mut caller)?;
            let result = lend::borrow(|lent, _| snapshot::snapshot_read(lent, memory, keys, keys_len, buf, buf_len))?;
            park_or_leave(&mut caller, result)
        },
    )?;
    linker.func_wrap(
        IMPORT_MODULE,
        READ_SESSION,
        |mut caller: Caller<'_, WorkerData>, session: i32, key: i32, buf: i32, buf_len: i32| {
            let memory = memory(&mut caller)?;
            let result = lend::borrow(|lent, _| read_session::read_session(lent, memory, session, key, buf, buf_len))?;
            park_or_leave(&mut caller, result)
        },
    )?;
    linker.func_wrap(
        IMPORT_MODULE,
        SET_TIMER,
        |mut caller: Caller<'_, WorkerData>, name: i32, at_ms: i64, payload: i32, payload_len: i32| {
            let memory = memory(&mut caller)?;
            let result = lend::borrow(|lent, _| timers::set_timer(lent, memory, name, at_ms, payload, payload_len))?;
            park_if_told(&mut caller, result)
        },
    )?;
    linker.func_wrap(IMPORT_MODULE, CANCEL_TIMER, |mut caller: Caller<'_, WorkerData>, name: i32| {
        let memory = memory(&mut caller)?;
        let result = lend::borrow(|lent, _| timers::cancel_timer(lent, memory, name))?;
        park_if_told(&mut caller, result)
    })?;
    linker
        .func_wrap(HOST_MODULE, HOST_DONE, |mut caller: Caller<'_, WorkerData>, code: i32| pause(&mut caller, Progress::Finished(code)))?;
    Ok(())
}

fn memory<'a>(caller: &'a mut Caller<'_, WorkerData>) -> Result<&'a mut [u8], NoMemory> {
    let memory = caller.data().memory.ok_or(NoMemory)?;
    Ok(memory.data_mut(caller))
}

/// As `park_if_told`, of a read that may turn out not to be possible beside its session's owner. Errors: the call is to be run anew there.
fn park_or_leave(caller: &mut Caller<'_, WorkerData>, result: i32) -> wasmtime::Result<i32> {
    if result == NEEDS_OWNER {
        return Err(NeedsOwner { for_lock: false }.into());
    }
    park_if_told(caller, result)
}

fn park_if_told(caller: &mut Caller<'_, WorkerData>, result: i32) -> wasmtime::Result<i32> {
    if result == PARK {
        let asked = lend::borrow(|lent, _| lent.call.remote.is_asked())?;
        pause(caller, if asked { Progress::Asking } else { Progress::Waiting })?;
    }
    Ok(result)
}

/// Makes the guest's next epoch check fire, and says why.
fn pause(caller: &mut Caller<'_, WorkerData>, reason: Progress) -> wasmtime::Result<()> {
    lend::borrow(|_, progress| *progress = Some(reason))?;
    caller.as_context_mut().set_epoch_deadline(0);
    Ok(())
}

/// Runs when a guest's epoch check fires: it paused, or a tick has passed. Suspends the fiber, or stops the guest if it is out of time.
pub(super) fn on_epoch(_store: StoreContextMut<'_, WorkerData>) -> wasmtime::Result<UpdateDeadline> {
    lend::borrow(|lent, progress| {
        if matches!(progress, Some(Progress::Finished(_))) {
            return Ok(UpdateDeadline::Yield(SLICE_TICKS));
        }
        // Also when it parks: a guest that waits again and again never runs a whole slice.
        if lent.call.is_over_deadline(crate::sys::clock::monotonic_ns()) {
            return Err(DeadlinePassed.into());
        }
        progress.get_or_insert(Progress::SliceOver);
        Ok(UpdateDeadline::Yield(SLICE_TICKS))
    })?
}
