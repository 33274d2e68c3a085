//! A shard: one pinned thread, one io_uring, the slots it owns. `turn.rs` drives; every other file is a stage it calls.

mod admission;
mod answers;
mod buffers;
mod cancel;
mod checkpoints;
mod commands;
mod connection;
mod counters;
mod datagram;
mod draining;
mod hook;
mod http;
mod inflow;
mod keeping;
mod lifecycle;
mod line;
mod listing;
mod logging;
mod mailbox;
mod moving;
mod moving_session;
mod moving_sleepers;
mod pressure;
mod primary;
mod read_only;
mod replay;
mod rests;
mod rpc;
mod secondaries;
mod session_reads;
mod start;
mod sweep;
mod tag;
mod tail;
mod timers;
mod turn;
mod tx;
mod waking;

pub use self::counters::{
    Count, DURATION_BOUNDS_S, EXPORTED, Exported, FunctionCounters, FunctionCounts, OUTCOMES, ShardCounters, ShardView,
};
pub use self::mailbox::{CommandDoor, Mailboxes, SessionRow, SessionsQuery, ShardCommand};
pub use self::moving_session::{MoveOrder, MoveRefusal, MovedSession};
pub use self::primary::{NewLink, OnLost, PrimaryCommand};
pub use self::rpc::{ContainerOffer, EXPORTED_RPC, REQUEST_KINDS, RpcCounters};
pub use self::start::{FILES_SPARE, RunningShards, ShardError, ShardOptions, ShardPlan, Timeouts, start};
pub use self::tail::{SAMPLED_ONE_IN, TailEntry, TailRing, TailView};
pub use self::turn::Shard;
