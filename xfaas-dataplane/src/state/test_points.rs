//! Points between the loads and stores of `words` at which a test takes over: to kill the owner, or to let it work in the middle of a read.
//! By thread, so that tests do not disturb each other.

use std::cell::{Cell, RefCell};
use std::thread::LocalKey;

type Work = Box<dyn FnOnce()>;

thread_local! {
    static STORES_LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    static FILE_OPERATIONS_LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    static LOADS_LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    static WORK: RefCell<Option<Work>> = const { RefCell::new(None) };
}

/// What the unwinding carries, so that a test tells a kill from a failed assertion.
pub(super) struct Killed;

/// This thread is stopped before its store number `stores` from now; `None` takes that back. Output: how many were left until then.
pub(super) fn kill_at_store(stores: Option<u64>) -> Option<u64> {
    STORES_LEFT.replace(stores)
}

/// What is left of `kill_at_store`.
pub(super) fn stores_left() -> Option<u64> {
    STORES_LEFT.get()
}

/// `work` runs once on this thread, before its load number `loads` from now.
pub(super) fn work_at_load(loads: u64, work: Work) {
    WORK.set(Some(work));
    LOADS_LEFT.set(Some(loads));
}

/// Takes `work_at_load` back. True when the work had not begun.
pub(super) fn no_more_work() -> bool {
    LOADS_LEFT.set(None);
    WORK.take().is_some()
}

/// This thread is stopped before its change of files number `operations` from now; `None` takes that back.
pub(super) fn kill_at_file_operation(operations: Option<u64>) {
    FILE_OPERATIONS_LEFT.set(operations);
}

pub(super) fn pass_store() {
    count_down(&STORES_LEFT);
}

pub(super) fn pass_file_operation() {
    count_down(&FILE_OPERATIONS_LEFT);
}

fn count_down(left: &'static LocalKey<Cell<Option<u64>>>) {
    match left.get() {
        None => {}
        Some(0) => {
            left.set(None);
            std::panic::resume_unwind(Box::new(Killed));
        }
        Some(more) => left.set(Some(more - 1)),
    }
}

pub(super) fn pass_load() {
    match LOADS_LEFT.get() {
        None => {}
        Some(0) => {
            LOADS_LEFT.set(None); // the work loads too
            if let Some(work) = WORK.take() {
                work();
            }
        }
        Some(left) => LOADS_LEFT.set(Some(left - 1)),
    }
}
