//! A lock that does not lock, to prove that the history checker would notice. `xfaas run --test-broken-lock` turns it on; neither the flag
//! nor this file is part of a release build. One switch for the process, so that no set-up code has to carry it.

use std::sync::atomic::{AtomicBool, Ordering};

static BROKEN: AtomicBool = AtomicBool::new(false);

/// From now on every strong read and write of this process is granted at once, whoever holds the key.
pub fn break_locks() {
    BROKEN.store(true, Ordering::Relaxed);
}

pub(super) fn is_broken() -> bool {
    BROKEN.load(Ordering::Relaxed)
}
