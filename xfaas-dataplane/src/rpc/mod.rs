//! A container's side of RPC, without I/O: what is asked of the primary, what it answers, and when it is given up. docs/PROTOCOL.md, "RPC".
//! Called by `shard/primary.rs`, which owns the sockets, and by `node/container`, which makes connections. Knows no worker and no ring.

mod backoff;
mod link;

pub use self::backoff::Backoff;
pub use self::link::{Event, Health, Link, LinkFault};
