//! What a shard's connections hold of memory together: bodies on their way in, requests that wait, replies that nobody reads. Each connection has its own
//! limits, but thousands of them may come close to theirs at once, and the machine's memory is state that was acknowledged. Called by `sweep.rs`.

use super::connection::{Closing, Connection};
use super::turn::Shard;
use crate::net::{ErrorCode, Phase};

/// Those that hold less are left alone: a warm connection's usual buffers.
const LEFT_ALONE_BYTES: u64 = 4 << 10;

/// Over the limit, so much of it is left to what comes next.
const ROOM_SHIFT: u32 = 3;

/// What may go to make room: not the requests that run or wait for a worker, which end by themselves. Output: since when it has made no progress.
fn may_go(connection: &Connection) -> Option<u64> {
    let is_asking = !connection.busy && connection.phase == Phase::Body && connection.closing == Closing::No;
    match connection.closing {
        Closing::Shut => None,
        _ if connection.sending => Some(connection.send_since_ns),
        _ if is_asking && connection.call.is_some() => Some(connection.progress_ns),
        _ => None,
    }
}

impl Shard {
    /// Ends requests that are still being read (503 `overloaded`) and connections that take nothing of their replies, those that made no progress for
    /// longest first, until what is left leaves room.
    pub(super) fn bound_buffers(&mut self) {
        let mut held: u64 = self.connections.iter().map(|(_, connection)| connection.held_bytes()).sum();
        let limit = self.options.buffer_bytes_max;
        if held > limit {
            let mut those: Vec<(u64, u32, u64)> = self
                .connections
                .iter()
                .filter_map(|(id, connection)| {
                    let bytes = connection.held_bytes();
                    may_go(connection).filter(|_| bytes > LEFT_ALONE_BYTES).map(|since_ns| (since_ns, id as u32, bytes))
                })
                .collect();
            those.sort_unstable();
            for (_, id, bytes) in those {
                if held <= limit - (limit >> ROOM_SHIFT) {
                    break;
                }
                self.make_room(id);
                held -= bytes;
            }
        }
        self.view.counters.http_buffer_bytes.set(held);
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
