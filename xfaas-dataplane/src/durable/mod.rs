//! The write-ahead log of apps whose durability is `sync`. docs/ARCHITECTURE.md, "The log"; formats: docs/PROTOCOL.md, "The log".
//! Knows regions and files, not shards: a shard's loop does what `Log` says, on its own ring.
//!
//! ```text
//! format   batches and heads as bytes                     log      decides what is written where, and what is safe by then; no I/O
//! files    segments: made, listed, renamed, deleted       keeper   a thread that makes segments and snapshots
//! segment  what one segment's file holds                  recover  at start: the log's writes into the regions
//! begin    at start: a fresh log of what the regions have
//! whole    which regions of another number of shards have all that the log has
//!
//! checkpoint       a session as bytes, checked and compressed      store   where checkpoints are kept: a folder or a bucket
//! ring_files       objects as local files, on an io_uring              drafts  what kills leave of them
//! checkpoint_mail  what shards and the checkpoints' thread tell each other
//! ```

mod begin;
mod checkpoint;
mod checkpoint_mail;
mod drafts;
mod files;
mod format;
mod keeper;
mod log;
mod recover;
mod ring_files;
mod segment;
mod store;
mod whole;

#[cfg(test)]
mod power_cut_tests;

pub use self::begin::Replayed;
pub use self::checkpoint::{CheckpointName, CheckpointNumber, Damage, decode_checkpoint, encode_checkpoint};
pub use self::checkpoint_mail::{CheckpointAnswer, CheckpointDoor, CheckpointOrder, CheckpointWork, KnownCheckpoint, checkpoint_mail};
pub use self::files::{LogDirectory, LogError};
pub use self::keeper::{Keeper, KeeperAnswer};
pub use self::log::{Log, RetiredSegment, SegmentWanted, Write};
pub use self::recover::{FIRST_SEQUENCE, RecoverError, RecoverOptions, Recovered, SessionPlace, replay};
pub use self::store::{CheckpointStore, ListedCheckpoint, S3Place, StoreFault, StorePlace};
pub use self::whole::whole_apps;
