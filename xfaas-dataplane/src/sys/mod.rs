//! The door to the machine: io_uring, shared memory, CPU pinning and scheduling, clocks, sockets. The only folder with `unsafe`.

pub mod affinity;
mod buffers;
pub mod clock;
pub mod folders;
mod in_flight;
pub mod memory;
pub mod open_files;
mod peer;
mod prefetch;
pub mod realtime;
mod ring;
#[cfg(test)]
mod ring_tests;
pub mod shm;
pub mod socket;
mod wake;

pub use self::buffers::{GroupOptions, ReceivedBuffer};
pub use self::peer::{LocalAddress, Peer};
pub use self::prefetch::{LINE_BYTES, core_cache_bytes, prefetch_span};
pub use self::ring::{Completion, DATAGRAM_PREFIX_BYTES, FixedFile, Ring, RingError, RingOptions, Tag};
pub use self::wake::Waker;
