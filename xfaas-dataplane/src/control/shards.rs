//! The door to the shards: everything the control thread may ask of them, and what they answer.

use super::api::SessionInfo;
use super::moving::{HotSession, MoveError, MoveReply, MoveRequest};
use crate::session::AliasChange;
use crate::shard::ShardView;
use crate::worker::Function;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;
use xfaas_common::ids::SessionId;

/// Sessions one answer of `/v1/sessions` may list.
pub const SESSIONS_LIMIT_MAX: usize = 10_000;

/// A function in service, and the module it was made of, which containers of other processes ask for.
#[derive(Clone)]
pub struct Running {
    pub function: Arc<Function>,
    pub wasm: Arc<[u8]>,
    /// Of the module, in lower-case hex.
    pub sha256: String,
}

impl Running {
    pub fn new(function: Arc<Function>, wasm: &[u8]) -> Running {
        let sha256 = Sha256::digest(wasm).iter().map(|byte| format!("{byte:02x}")).collect();
        Running { function, wasm: wasm.into(), sha256 }
    }
}

/// Implemented over the shards' bounded command queues and their counters. Every call may block, each for a bounded time.
pub trait Shards: Send + Sync + 'static {
    /// Shards of this process, 1..=64.
    fn count(&self) -> usize;

    /// Gives every shard `function`, in place of the one with the same index if there is one; opens the region of its app.
    /// Returns when all shards have it. Requests that run or wait keep the function they began with.
    /// Errors: one shard did not take it; some may have it then, and the caller installs the former one again.
    fn install(&self, function: Arc<Function>) -> Result<(), ShardsError>;

    /// Takes the function with this index from every shard. Returns when no shard starts it any more.
    fn remove(&self, index: u16) -> Result<(), ShardsError>;

    /// Tells the containers of other processes which functions there are, all of them. Returns when every shard knows.
    fn offer(&self, functions: &[Running]) -> Result<(), ShardsError>;

    /// Adds and takes away aliases; returns when every shard follows them. `pins`: what keys mean now, so that the kernel brings their
    /// packets to the right core; `None`: nothing. A pin that cannot be set is logged: shards find the core themselves.
    fn alias(&self, changes: &[AliasChange], pins: &[(SessionId, Option<SessionId>)]) -> Result<(), ShardsError>;

    /// Sessions with state, at most `query.limit`.
    fn sessions(&self, query: &SessionsQuery) -> Result<Vec<SessionInfo>, ShardsError>;

    /// True when an app has checkpoints: not all of its sessions may be in memory.
    fn has_checkpoints(&self, _app: &str) -> bool {
        false
    }

    /// Lets a session move to another shard; returns when it is there and packets go there, or why it stays.
    fn move_session(&self, request: &MoveRequest) -> Result<MoveReply, MoveError>;

    /// The moves that would bring all sessions to the shards that own their slots.
    fn away_from_home(&self) -> Vec<MoveRequest>;

    /// True when a container was turned away because of sessions elsewhere; asking forgets it.
    fn take_wanted_home(&self) -> bool;

    /// The sessions that ran most on a shard since this was asked last, the hottest first.
    fn hottest(&self, shard: u16) -> Result<Vec<HotSession>, ShardsError>;

    /// Nanoseconds that each shard's thread was on its CPU or waited for it; empty where that is not to be had.
    fn busy_ns(&self) -> Vec<u64>;

    /// What each shard shows to the outside, in their order.
    fn views(&self) -> Vec<Arc<ShardView>>;

    /// Somebody traces from now on, or nobody does: where the kernel steers, its programs note when they see packets. Best effort.
    fn set_traced(&self, is_traced: bool);

    /// Names by index, also of functions that were removed.
    fn function_names(&self) -> HashMap<u16, String>;

    /// Counters and gauges of all shards as they are now; never reset by reading.
    fn counters(&self) -> Vec<CounterSample>;

    /// Histograms of all shards as they are now.
    fn histograms(&self) -> Vec<HistogramSample>;

    /// True from the moment on from which the shards only finish what they have: they take no functions any more.
    fn is_stopping(&self) -> bool {
        false
    }

    /// Errors: what is missing before every shard serves, or that they are stopping, in words.
    fn ready(&self) -> Result<(), String>;
}

/// Which sessions are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionsQuery {
    /// Only of this app.
    pub app: Option<String>,
    /// Only IDs that begin so.
    pub prefix: Option<String>,
    /// 1..=SESSIONS_LIMIT_MAX, or one more to see whether there are more.
    pub limit: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    #[error("shard {shard} did not take the command within {waited_ms} ms: try again when it is less busy")]
    Busy { shard: u16, waited_ms: u64 },
    #[error("the shards are stopping: try again after the restart")]
    Stopping,
    #[error("{reason}")]
    Log { reason: String },
    #[error("shard {shard} refused: {reason}")]
    Refused { shard: u16, reason: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// May fall.
    Gauge,
}

/// One number of one label set. Samples of one `name` share `help` and `kind`, and need not be adjacent.
#[derive(Clone, Debug)]
pub struct CounterSample {
    /// Exported name with its unit, `xfaas_...`.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricKind,
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

/// One distribution of one label set.
#[derive(Clone, Debug)]
pub struct HistogramSample {
    /// Exported name, ending in `_seconds`.
    pub name: &'static str,
    pub help: &'static str,
    pub labels: Vec<(&'static str, String)>,
    /// Upper bounds, ascending, without the infinite one.
    pub bounds_seconds: &'static [f64],
    /// Cumulative: entry `i` counts observations up to `bounds_seconds[i]`; as long as `bounds_seconds`.
    pub counts: Vec<u64>,
    pub sum_seconds: f64,
    /// All observations, beyond the last bound included.
    pub count: u64,
}

/// What the kernel programs did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SteeringReport {
    /// Mode and interface in words, such as `xdp (native) on veth0`.
    pub mode: String,
    /// Sums over the CPUs, by `Verdict::name`.
    pub verdicts: Vec<(&'static str, u64)>,
    /// Sums over the CPUs, by `DropReason::name`.
    pub drops: Vec<(&'static str, u64)>,
}

/// Reads the steering counters. Errors: why they cannot be read, in words.
pub type SteeringStats = Arc<dyn Fn() -> Result<SteeringReport, String> + Send + Sync>;
