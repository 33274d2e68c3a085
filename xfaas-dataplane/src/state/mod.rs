//! Session state in shared memory, the locks of strong sections, and what one shard owns of both.
//! The owner shard is the only writer of a region; readers on other threads and processes take no lock.
//!
//! ```text
//! region   the owner's handle: sessions, keys, values, limits        reader   lock-free reads from elsewhere
//!    |  namespace   a session's record and its keys                     |
//!    |  table       hash tries of sessions and of keys                  |
//!    |  cell        one key and its value, swapped by one store         |
//!    |  value       where a value's bytes are                           |
//!    |  transaction several writes made visible by one store            |  snapshot   several keys of one moment
//!    |  alloc       blocks of size classes, in pages                    |   open, scan, ahead   creating, checking, re-mapping
//!    |  compact     empties sparse pages (walk, sparse)                 |
//!    +- layout, words, memory, space: offsets and atomic words over `sys::shm` -+
//! journal  the writes that the shard's log is to get
//! lock     FIFO locks per key with deadlock detection                readers   the neighbours' regions of one shard
//! limit    what a guest's call can hit, counted
//! places   the shard that has a session                              timers   what sessions want done later (session_timers)
//! reshard  moves sessions when the number of shards has changed        shard_state   a region an app, and the locks
//! ```
//!
//! What holds after a kill at any store: the stores of the owner reach the file in program order (they are not buffered anywhere but in
//! memory, and release stores keep the compiler from moving them), each change is made visible by one 8-byte store after all it leads
//! to, and memory is reused only after the store that unlinked it. So a re-mapped region holds every finished write, an unfinished one
//! whole or not at all, and at most some leaked blocks, which the scan at open makes free again. The same holds for a transaction.

mod ahead;
mod alloc;
#[cfg(debug_assertions)]
mod broken_lock;
mod cell;
mod class;
mod compact;
mod error;
mod hash;
mod journal;
mod layout;
mod limit;
mod lock;
mod memory;
mod namespace;
mod open;
mod places;
mod reader;
mod readers;
mod region;
mod reshard;
mod reshard_files;
mod retag;
mod scan;
mod section;
mod session_timers;
mod shard_state;
mod snapshot;
mod space;
mod sparse;
mod table;
mod timers;
mod transaction;
mod value;
mod walk;
mod warm;
mod words;

#[cfg(test)]
mod compact_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod interleave_tests;
#[cfg(test)]
mod lock_tests;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod region_tests;
#[cfg(test)]
mod reshard_tests;
#[cfg(test)]
mod test_points;
#[cfg(test)]
mod transaction_tests;

#[cfg(debug_assertions)]
pub use self::broken_lock::break_locks;
pub use self::error::{ReadRefused, RegionError, StateError};
pub use self::journal::{BATCH_HEAD_BYTES, BadRecord, Journal, Record, record_session};
pub use self::layout::{REGION_BYTES_MIN, RegionOptions};
pub use self::limit::{Limit, LimitCounts};
pub use self::lock::{Acquire, CallToken, LockKey, LockTable};
pub use self::namespace::NamespaceRef;
pub use self::places::{SessionPlace, SessionPlaces};
pub use self::reader::RegionReader;
pub use self::readers::Readers;
pub use self::region::{OwnedValue, Region, RegionStats, SESSION_BUCKETS, StateKey, fragmentation};
pub use self::reshard::{ReshardError, ReshardOptions, ReshardReport, reshard};
pub use self::retag::retag;
pub use self::section::SessionKey;
pub use self::shard_state::{ShardState, ShardStateStats, set_aside};
pub use self::snapshot::{BadKeyList, KEY_LIST_BYTES_MAX, KeyList, SnapshotSink, SnapshotWriter, snapshot_of_nothing};
pub use self::timers::{DueTimer, TimerKey, TimerOutlook, TimerQueue, TimerRecord, timer_name};
