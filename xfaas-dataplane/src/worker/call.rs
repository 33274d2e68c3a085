//! One invocation: what goes in, what comes out, and what it owns while it runs. Pooled and boxed by the shard, travels between shards.

use super::fiber::Trail;
use super::manifest::FunctionManifest;
use super::overlay::Overlay;
use super::program::Function;
use super::remote::RemoteAccess;
use super::stages::Stages;
use crate::net::Request;
use crate::state::{CallToken, NamespaceRef, SessionKey, ShardState, StateError};
use crate::sys::Peer;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::limits::{HOOK_APP, HOOK_DEADLINE_MS_DEFAULT, SESSION_STATE_BYTES_MAX};

/// Bytes of output above which the buffer is given back between invocations.
const OUTPUT_BYTES_KEPT_MAX: usize = 64 << 10;

/// Who asked, and so where the reply goes. Set and read by the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    #[default]
    None,
    /// A connection of `shard`; `generation` tells it from a later one with the same number.
    Http {
        connection: u32,
        generation: u32,
        shard: u16,
    },
    Datagram {
        shard: u16,
        peer: Peer,
        request_id: u64,
    },
    /// A timer of the session; nobody waits.
    Timer {
        number: u64,
    },
}

/// Where the state of a call's session is, seen from the shard that runs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateAt {
    /// In this shard's own region.
    #[default]
    Here,
    /// In the region of another shard of this process, which owns the session: read through a `RegionReader`.
    Shard(u16),
    /// With a primary in another process.
    Primary,
    /// With the primary container, which is on that shard of this process; this shard runs a secondary one.
    PrimaryShard(u16),
}

impl StateAt {
    /// True where the primary is asked for what cannot be read in its region, and for all writes.
    pub const fn asks_primary(self) -> bool {
        matches!(self, StateAt::Primary | StateAt::PrimaryShard(_))
    }
}

/// One invocation. Reused: `reset` makes it as new and keeps the buffers.
pub struct Call {
    pub request: Request,
    pub origin: Origin,
    pub invocation_id: u128,
    pub app: u16,
    /// The function's index on this node.
    pub function: u16,
    /// The function's name as a datagram gives it, set with its index: repeated in its answer, said to a primary, and kept with timers.
    pub function_hash: FunctionHash,
    pub session: SessionId,
    /// The well-mixed half of the session's keyed hash.
    pub table_hash: u32,
    /// Who this invocation is to the shard's lock table.
    pub token: CallToken,
    pub state_at: StateAt,
    /// Where the session's state lies in this shard's region, once known.
    pub namespace: Option<NamespaceRef>,
    /// It was held against its app's `requests_per_s`: not again when it goes on elsewhere.
    pub is_admitted: bool,
    /// What it will touch was asked for before its turn came.
    pub is_near: bool,
    /// What was known of moved sessions when it was decided where it runs, where that is beside its session's owner.
    pub pins_seen: u64,
    /// A secondary container had no room for it: it runs in the primary, or not at all.
    pub stays: bool,
    /// When it was sent to a secondary container, on the monotonic clock.
    pub offered_ns: u64,
    pub read_only: bool,
    pub atomic: bool,
    /// It may read other sessions of its app.
    pub reads_sessions: bool,
    /// Its session was made for it and has no state anywhere.
    pub is_fresh: bool,
    /// Sessions of its app may be in a checkpoint and not in memory: that one is not found does not mean that it has no state.
    pub others_may_sleep: bool,
    /// Bytes of keys and values that the session may hold.
    pub session_bytes_max: usize,
    /// The reply's body: the last `set_output`.
    pub output: Vec<u8>,
    /// The `CoreIndex` of the shard that ran it.
    pub served_by: u16,
    /// When the request's last byte was read, on the monotonic clock.
    pub received_ns: u64,
    /// When the invocation began, on the monotonic clock.
    pub started_ns: u64,
    /// Time the invocation took on another shard before it was given up there: it counts as taken here.
    pub spent_ns: u64,
    /// Time spent waiting for locks so far; kept by whoever parks and resumes the worker.
    pub waited_ns: u64,
    /// The invocation is stopped when it has taken longer than this, not counting `waited_ns`.
    pub deadline_ns: u64,
    /// Calls that got a lock from this one: their workers must be polled again.
    pub granted: Vec<CallToken>,
    /// A strong write went to wait for its lock and has not been repeated yet: the lock is its own and goes back after it.
    pub(super) parked_in_write: bool,
    pub(super) overlay: Overlay,
    /// Of the worker that runs it.
    pub(super) trail: Trail,
    /// What is asked of the primary, where `state_at` says so.
    pub remote: RemoteAccess,
    pub stages: Stages,
}

impl Default for Call {
    fn default() -> Call {
        Call {
            request: Request::default(),
            origin: Origin::None,
            invocation_id: 0,
            app: 0,
            function: 0,
            function_hash: FunctionHash(0),
            session: SessionId::PLACEHOLDER,
            table_hash: 0,
            token: CallToken(0),
            state_at: StateAt::Here,
            namespace: None,
            is_admitted: false,
            is_near: false,
            pins_seen: 0,
            stays: false,
            offered_ns: 0,
            read_only: false,
            atomic: false,
            reads_sessions: false,
            is_fresh: false,
            others_may_sleep: false,
            session_bytes_max: SESSION_STATE_BYTES_MAX,
            output: Vec::new(),
            served_by: 0,
            received_ns: 0,
            started_ns: 0,
            spent_ns: 0,
            waited_ns: 0,
            deadline_ns: 0,
            granted: Vec::new(),
            parked_in_write: false,
            overlay: Overlay::default(),
            trail: Trail::default(),
            remote: RemoteAccess::default(),
            stages: Stages::default(),
        }
    }
}

impl Call {
    /// Makes the call ready for another invocation. Small buffers are kept, large ones given back.
    pub fn reset(&mut self) {
        self.request.clear();
        self.origin = Origin::None;
        self.invocation_id = 0;
        self.app = 0;
        self.session = SessionId::PLACEHOLDER;
        self.table_hash = 0;
        self.token = CallToken(0);
        self.state_at = StateAt::Here;
        self.namespace = None;
        self.is_admitted = false;
        self.is_near = false;
        self.stays = false;
        self.is_fresh = false;
        self.output.clear();
        if self.output.capacity() > OUTPUT_BYTES_KEPT_MAX {
            self.output = Vec::new(); // as the request's body
        }
        self.started_ns = 0;
        self.spent_ns = 0;
        self.waited_ns = 0;
        self.granted.clear();
        self.parked_in_write = false;
        self.overlay.clear();
        self.remote.reset();
        self.stages = Stages::default();
    }

    /// Takes over the limits of the function that is to run.
    pub fn set_function(&mut self, manifest: &FunctionManifest) {
        self.read_only = manifest.read_only;
        self.atomic = manifest.atomic;
        self.reads_sessions = manifest.read_sessions;
        self.session_bytes_max = manifest.state_mib as usize * (1 << 20);
        self.deadline_ns = u64::from(manifest.deadline_ms) * 1_000_000;
    }

    /// True when it is for this function. Where it waited, another one may have its place meanwhile: names move between apps, places between names.
    /// Cost: two comparisons of what the caller reads anyway.
    #[inline]
    pub fn is_for(&self, function: &Function) -> bool {
        self.app & !HOOK_APP == function.app && self.function_hash == function.hash
    }

    /// True when an invocation of it has begun, whatever became of it.
    pub fn has_begun(&self) -> bool {
        self.started_ns != 0
    }

    /// Takes over the limits of a hook: it has no session yet, so it touches no state.
    pub fn set_hook(&mut self, manifest: &FunctionManifest) {
        self.read_only = true;
        self.atomic = false;
        self.deadline_ns = u64::from(manifest.rules.hook_deadline_ms.unwrap_or(HOOK_DEADLINE_MS_DEFAULT)) * 1_000_000;
    }

    /// The hook has named the session: what it did is no part of the invocation.
    pub fn end_hook(&mut self) {
        self.output.clear();
        self.namespace = None;
        self.is_admitted = false;
        (self.started_ns, self.waited_ns, self.spent_ns) = (0, 0, 0);
    }

    /// True while it is the app's hook that runs, and not the function.
    pub fn is_hook(&self) -> bool {
        self.app & HOOK_APP != 0
    }

    /// True when the invocation has run longer than it may.
    pub fn is_over_deadline(&self, now_ns: u64) -> bool {
        self.taken_ns(now_ns) > self.deadline_ns
    }

    /// Time the invocation has taken, without its waiting for locks.
    pub fn taken_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.started_ns).saturating_sub(self.waited_ns).saturating_add(self.spent_ns)
    }

    /// Makes the call ready to be run anew, as if it had not run; only the time it took is kept.
    pub fn give_up(&mut self, now_ns: u64) {
        self.spent_ns = self.taken_ns(now_ns);
        self.started_ns = 0;
        self.waited_ns = 0;
        self.output.clear();
        self.namespace = None;
        self.is_admitted = false;
    }

    /// Applies the buffered writes of an atomic function, all or none; the worker does so when `handle` has returned 0.
    /// Errors: a write was over a limit; then no write took effect, and a session that did not exist still does not.
    pub fn commit(&mut self, state: &mut ShardState) -> Result<(), StateError> {
        if self.overlay.is_empty() {
            return Ok(());
        }
        let session = SessionKey { app: self.app, session: &self.session, table_hash: self.table_hash };
        let committed = state.commit(&session, &mut self.namespace, self.overlay.writes(), self.session_bytes_max);
        self.overlay.clear();
        committed
    }
}
