//! The door to the machine: io_uring, shared memory, CPU pinning and scheduling, clocks, sockets, native code on disk. The only folder with `unsafe`.

pub mod affinity;
mod buffers;
pub mod capabilities;
pub mod clock;
pub mod folders;
pub mod heap;
mod in_flight;
pub mod interface;
mod kept;
pub mod memory;
mod native_code;
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
pub use self::kept::{KeptError, KeptFiles, KeptName};
pub use self::native_code::NativeCode;
pub use self::peer::{LocalAddress, Peer};
pub use self::prefetch::{LINE_BYTES, core_cache_bytes, prefetch_span};
pub use self::ring::{Completion, DATAGRAM_PREFIX_BYTES, FixedFile, Ring, RingError, RingOptions, Tag};
pub use self::wake::Waker;
