//! RPC: containers in other processes read and write the state of this shard's sessions over TCP. docs/PROTOCOL.md, "RPC".
//! Part of the shard's loop: called by `turn.rs`, works on the proxy's state. Bytes are hostile here.
//!
//! ```text
//! stage     accept, receive, send, close: bytes of a connection      frames   what a frame asks: hello, module, ping, state
//! held      answers that wait for the log                         neighbours  secondary containers on other shards of the process, by mailbox
//! moving    a connection goes to the shard that its hello names      access   state and locks of one request, and the answers to waits
//! ```

mod access;
mod commit;
mod connection;
mod counters;
mod frames;
mod held;
mod invocations;
mod moving;
mod neighbours;
mod offer;
mod stage;
mod timers;

pub use self::counters::{EXPORTED_RPC, REQUEST_KINDS, RpcCounters};
pub use self::offer::ContainerOffer;

pub(super) use self::connection::MovedRpc;
pub(super) use self::neighbours::{Answered, StateQuestion};

use self::connection::RpcConnection;
use self::invocations::Invocations;
use super::connection::Arrivals;
use slab::Slab;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What a shard holds for RPC.
pub(super) struct Rpc {
    pub(super) listener: Option<OwnedFd>,
    pub(super) accept_armed: bool,
    connections: Slab<RpcConnection>,
    /// Generation of the next connection.
    generation: u16,
    arrivals: Arrivals<MovedRpc>,
    /// Remote invocations that hold or wait for a lock.
    invocations: Invocations,
    /// Connections whose answers wait for the log.
    held: Vec<u32>,
    /// The value of an answer to a neighbour, while it is put together.
    neighbours_answer: Vec<u8>,
    offer: Arc<ContainerOffer>,
}

impl Rpc {
    pub(super) fn new(listener: Option<OwnedFd>) -> Rpc {
        Rpc {
            listener,
            accept_armed: false,
            connections: Slab::new(),
            generation: 0,
            arrivals: Arrivals::default(),
            invocations: Invocations::default(),
            held: Vec::new(),
            neighbours_answer: Vec::new(),
            offer: Arc::default(),
        }
    }

    pub(super) fn has_connections(&self) -> bool {
        !self.connections.is_empty()
    }

    /// Connections of containers that were let in.
    pub(super) fn greeted(&self) -> usize {
        self.connections.iter().filter(|(_, connection)| connection.greeted).count()
    }

    pub(super) fn has_waiting(&self) -> bool {
        self.invocations.waiting() > 0
    }

    pub(super) fn publish(&self, counters: &RpcCounters) {
        counters.connections.set(self.connections.len() as u64);
        counters.invocations.set(self.invocations.in_containers() as u64);
    }

    /// True while a remote invocation holds a lock, or an answer is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.invocations.len() > 0 || self.connections.iter().any(|(_, connection)| connection.is_answering())
    }
}
