//! How a shard lends its state to the guest that runs: through a thread-local, so that neither lock nor reference count is needed.
//! `Worker::poll` puts it there and takes it back; host functions borrow it in between. A thread runs one guest at a time.

use super::call::Call;
use super::fiber::Progress;
use crate::state::ShardState;
use std::cell::RefCell;

/// What a guest may touch while it runs.
pub struct Lent {
    pub call: Box<Call>,
    pub state: Box<ShardState>,
}

impl Lent {
    /// Ends an invocation, however it ended: its buffered writes are dropped, its locks handed on, a wait cancelled.
    /// Calls that got a lock are in `call.granted`.
    pub(super) fn end_invocation(&mut self) {
        let Lent { call, state } = self;
        call.overlay.clear();
        call.parked_in_write = false;
        state.locks.release_all(call.token, &mut call.granted);
    }
}

#[derive(Default)]
struct Desk {
    lent: Option<Lent>,
    /// Why the guest yields, set by whoever makes it do so.
    progress: Option<Progress>,
}

thread_local! {
    static DESK: RefCell<Desk> = const { RefCell::new(Desk { lent: None, progress: None }) };
}

/// A host function ran outside `Worker::poll`.
#[derive(Debug, thiserror::Error)]
#[error("no invocation is running")]
pub(super) struct NothingLent;

pub(super) fn put(lent: Lent) {
    DESK.with_borrow_mut(|desk| {
        assert!(desk.lent.is_none(), "a thread runs one guest at a time");
        desk.lent = Some(lent);
        desk.progress = None;
    });
}

pub(super) fn take() -> (Lent, Option<Progress>) {
    DESK.with_borrow_mut(|desk| {
        let lent = desk.lent.take().expect("put there before the guest was polled, taken nowhere else");
        (lent, desk.progress.take())
    })
}

/// Runs `work` on what is lent. Errors: nothing is lent, as when a worker is dropped in the middle of a call.
pub(super) fn borrow<R>(work: impl FnOnce(&mut Lent, &mut Option<Progress>) -> R) -> Result<R, NothingLent> {
    let borrowed = DESK.try_with(|desk| {
        let mut desk = desk.borrow_mut();
        let Desk { lent, progress } = &mut *desk;
        lent.as_mut().map(|lent| work(lent, progress))
    });
    // The thread-local is gone only while its thread ends: nothing is lent then either.
    borrowed.ok().flatten().ok_or(NothingLent)
}
