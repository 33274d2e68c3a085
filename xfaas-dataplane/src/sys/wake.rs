//! Wakes a shard from a thread that has no ring: an eventfd on which the shard's ring polls.

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub struct Waker {
    event: OwnedFd,
}

impl Waker {
    pub fn new() -> std::io::Result<Waker> {
        Ok(Waker { event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Makes the shard's multishot poll complete. Never blocks.
    pub fn wake(&self) {
        // Fails only when 2^64-2 wakes are pending, and then the shard is awake.
        rustix::io::write(&self.event, &1u64.to_ne_bytes()).ok();
    }

    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
