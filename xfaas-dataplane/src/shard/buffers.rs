//! What a shard's connections hold of memory together: bodies on their way in, requests that wait, replies that nobody reads. Each connection has its own
//! limits, but thousands of them may come close to theirs at once, and the machine's memory is state that was acknowledged. Called by `sweep.rs`, by a
//! turn that began with too much, and for each long reply by `tx.rs`: a single turn can write more of those than the machine has memory.

use super::connection::{Closing, Connection};
use super::mailbox::Message;
use super::turn::Shard;
use crate::net::{ErrorCode, Phase};
use crate::session::{Finished, Outcome};
use crate::worker::Call;

/// Those that hold less are left alone: a warm connection's usual buffers.
const LEFT_ALONE_BYTES: u64 = 4 << 10;

/// Over the limit, so much of it is left to what comes next.
const ROOM_SHIFT: u32 = 3;

/// Replies up to this length are not counted when they are written and when they are sent, but only when all is: buffers of that size are kept anyway.
pub(super) const UNCOUNTED_BYTES_MAX: usize = 64 << 10;

/// Long replies may go over the limit by this part of it: as many as a turn writes while those that make room for them are still with the kernel.
const BEYOND_SHIFT: u32 = 1;

/// A client that took a piece of its reply so shortly before the turn, or whose reply was not with the kernel before, does not make room: a long reply is
/// cut for nobody while it is read. There are never more of these than have room beyond the limit.
const TAKING_NS: u64 = 10_000_000;

/// How often it is looked who makes room while more is held than may be: it costs a look at each connection.
const BOUND_NS: u64 = 1_000_000;

/// Bytes of a long reply's body, else 0.
pub(super) fn long_reply_bytes(call: &Call, outcome: &Outcome) -> usize {
    let bytes = call.output.len();
    if bytes > UNCOUNTED_BYTES_MAX && matches!(outcome, Outcome::Replied) { bytes } else { 0 }
}

/// What may go to make room: not the requests that run or wait for a worker, which end by themselves. Output: since when it has made no progress.
fn may_go(connection: &Connection, turn_ns: u64) -> Option<u64> {
    let is_asking = !connection.busy && connection.phase == Phase::Body && connection.closing == Closing::No;
    match connection.closing {
        Closing::Shut => None,
        _ if connection.sending => Some(connection.send_since_ns).filter(|since_ns| since_ns + TAKING_NS < turn_ns),
        _ if is_asking && connection.call.is_some() => Some(connection.progress_ns),
        _ => None,
    }
}

impl Shard {
    /// Ends requests that are still being read (503 `overloaded`) and connections that take nothing of their replies, those that made no progress for
    /// longest first, until what is left leaves room.
    pub(super) fn bound_buffers(&mut self) {
        self.bounded_ns = self.now_ns;
        let (held, leaving) = self.held_bytes();
        self.view.counters.http_buffer_bytes.set(held);
        let limit = self.options.buffer_bytes_max;
        let mut staying = held - leaving;
        if staying <= limit {
            return;
        }
        let turn_ns = self.tail.turn_ns;
        let mut those: Vec<(u64, u32, u64)> = self
            .connections
            .iter()
            .filter_map(|(id, connection)| {
                let bytes = connection.held_bytes();
                may_go(connection, turn_ns).filter(|_| bytes > LEFT_ALONE_BYTES).map(|since_ns| (since_ns, id as u32, bytes))
            })
            .collect();
        those.sort_unstable();
        for (_, id, bytes) in those {
            if staying <= limit - (limit >> ROOM_SHIFT) {
                break;
            }
            self.make_room(id);
            staying -= bytes;
        }
    }

    /// Bytes of all connections, and those of them that are given up and held only until the kernel lets go.
    fn held_bytes(&self) -> (u64, u64) {
        self.connections.iter().fold((0, 0), |(held, leaving), (_, connection)| {
            let bytes = connection.held_bytes();
            (held + bytes, leaving + if connection.closing == Closing::Shut { bytes } else { 0 })
        })
    }

    fn reply_bytes_max(&self) -> u64 {
        self.options.buffer_bytes_max + (self.options.buffer_bytes_max >> BEYOND_SHIFT)
    }

    /// Counts a long reply that is about to be written. Output: false, and nothing counted, when there is no room for it.
    #[cold]
    pub(super) fn finds_room(&mut self, bytes: usize) -> bool {
        let most = self.reply_bytes_max();
        let mut held = self.view.counters.http_buffer_bytes.get();
        if held + bytes as u64 > most {
            (held, _) = self.held_bytes(); // bodies that were read into their calls are counted still
        }
        let has_room = held + bytes as u64 <= most;
        let counters = &self.view.counters;
        counters.http_buffer_bytes.set(if has_room { held + bytes as u64 } else { held });
        counters.crowded_out.add(u64::from(!has_room));
        has_room
    }

    /// A long reply has left.
    #[cold]
    pub(super) fn count_off(&mut self, bytes: usize) {
        let held = &self.view.counters.http_buffer_bytes;
        held.set(held.get().saturating_sub(bytes as u64));
    }

    /// Brings a call that is over to the shard of its connection. That one may have its hands full, so long replies have a limit on this way too.
    pub(super) fn send_home(&mut self, shard: usize, mut finished: Finished) {
        let (bytes, most) = (long_reply_bytes(&finished.call, &finished.outcome), self.reply_bytes_max());
        let mut is_much = false;
        if bytes > 0 {
            match self.post.count_reply(bytes as u64, most) {
                Some(all) => is_much = all > most / 2,
                None => {
                    self.view.counters.crowded_out.add(1);
                    finished.call.output = Vec::new();
                    finished.outcome = Outcome::Cancelled;
                }
            }
        }
        self.post.send(shard, Message::Done(finished));
        if is_much {
            self.wake_now(); // it can take them while others run here
        }
    }

    /// A call that another shard ran is over. It was held there, if at all.
    pub(super) fn on_done(&mut self, finished: Finished) {
        let bytes = long_reply_bytes(&finished.call, &finished.outcome);
        if bytes > 0 {
            self.post.count_reply_off(bytes as u64);
        }
        self.deliver_now(finished);
    }

    /// True when more is held than may be, and time to look who makes room: before the next sweep, which many long replies would not wait for.
    pub(super) fn is_overfull(&self) -> bool {
        self.view.counters.http_buffer_bytes.get() > self.options.buffer_bytes_max
            && self.now_ns.saturating_sub(self.bounded_ns) >= BOUND_NS
    }

    /// Time to look more often.
    pub(super) fn is_getting_crowded(&self) -> bool {
        self.view.counters.http_buffer_bytes.get() > self.options.buffer_bytes_max / 2
    }

    #[cold]
    fn make_room(&mut self, id: u32) {
        self.view.counters.crowded_out.add(1);
        let connection = &mut self.connections[id as usize];
        let generation = connection.generation;
        match connection.call.take() {
            Some(call) if !connection.sending => {
                self.refuse_and_close(
                    id,
                    call,
                    ErrorCode::Overloaded,
                    "requests and replies take all the memory that they may (limits.http_memory_mib)",
                );
                self.flush(id);
                self.settle(id, generation);
            }
            call => {
                connection.call = call;
                self.shut(id);
            }
        }
    }
}
