//! Writes checkpoints of sessions that changed, and drops from memory those that nobody used for long, once the store has their checkpoint.
//! A stage of the loop, in timed work: it looks at some sessions of a region at a time, hands copies to the checkpoints' thread and goes on.

use super::lifecycle::{AppSessions, Lifecycle, Ordered, SECOND_NS, Ticket};
use super::turn::Shard;
use crate::durable::{CheckpointOrder, CheckpointWork};
use crate::session::{LastUse, NO_TICKET};
use crate::state::{NamespaceRef, SESSION_BUCKETS, record_session};
use crate::sys::clock;
use std::sync::Arc;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{
    CHECKPOINT_ORDERS_BYTES_MAX, CHECKPOINT_ORDERS_MAX, COLD_SESSIONS_MAX, KNOWN_SESSIONS_MAX, STOP_CHECKPOINTS_MS_MAX,
};

/// Work on passes at a time; at the end of the process nobody else wants the core.
const STEP_NS_MAX: u64 = 200_000;
const LAST_STEP_NS_MAX: u64 = 5_000_000;
/// Of `checkpoint_every_s`, the time between two passes: what is left of it is for the pass itself and for the store.
const EVERY_PART: u64 = 2;
/// A session that is idle is found within this part of its `keep_alive_s` more, and these times.
const IDLE_PART: u64 = 4;
const IDLE_NS_MIN: u64 = SECOND_NS / 4;
const IDLE_NS_MAX: u64 = 30 * SECOND_NS;
/// How soon a store that failed is given something to write again.
const RETRY_NS_MIN: u64 = SECOND_NS / 2;
const RETRY_NS_MAX: u64 = 10 * SECOND_NS;

/// A look at all sessions of an app in memory.
#[derive(Default)]
pub(super) struct Pass {
    /// The part of the region that comes next.
    bucket: Option<usize>,
    next_ns: u64,
    checkpoint_next_ns: u64,
    /// What changed is written, also of sessions in use.
    is_checkpoint: bool,
}

impl Pass {
    /// Begins if it is time. Output: the part that comes next.
    fn begin(&mut self, checkpoint_every_ns: Option<u64>, keep_alive_s: Option<u32>, now_ns: u64) -> Option<usize> {
        if self.bucket.is_none() && now_ns >= self.next_ns {
            let every_ns = checkpoint_every_ns.map(|every_ns| every_ns / EVERY_PART);
            let idle_ns = keep_alive_s.map(|keep_s| (u64::from(keep_s) * SECOND_NS / IDLE_PART).clamp(IDLE_NS_MIN, IDLE_NS_MAX));
            self.next_ns = now_ns + every_ns.into_iter().chain(idle_ns).min()?;
            self.is_checkpoint = every_ns.is_some() && now_ns >= self.checkpoint_next_ns;
            if self.is_checkpoint {
                self.checkpoint_next_ns = now_ns + every_ns.unwrap_or_default();
            }
            self.bucket = Some(0);
        }
        self.bucket
    }
}

/// What is being written, and how that goes.
#[derive(Default)]
pub(super) struct Writing {
    bytes: usize,
    writes: usize,
    /// A pass is under way.
    pub(super) is_looking: bool,
    /// Nothing is tried before.
    retry_at_ns: u64,
    retry_ns: u64,
    last: LastPass,
}

/// At an orderly stop everything that changed is written.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum LastPass {
    #[default]
    NotBegun,
    At {
        slot: usize,
        bucket: usize,
        since_ns: u64,
    },
    Done,
}

/// No further copy can be handed over now.
struct NoRoom;

impl Lifecycle {
    fn has_room(&self) -> bool {
        let Lifecycle { writing, .. } = self;
        writing.writes < CHECKPOINT_ORDERS_MAX - COLD_SESSIONS_MAX && writing.bytes < CHECKPOINT_ORDERS_BYTES_MAX
    }

    /// True when all that is to be written at the end is.
    pub(super) fn is_saved(&self) -> bool {
        self.door.is_none() || self.writing.last == LastPass::Done
    }
}

impl Shard {
    /// Looks at some sessions, if it is time.
    pub(super) fn sweep_lifecycle(&mut self) {
        self.sweep_loads();
        if self.lifecycle.door.is_none() || self.lifecycle.is_listing || self.now_ns < self.lifecycle.writing.retry_at_ns {
            return;
        }
        let until_ns = clock::monotonic_ns() + STEP_NS_MAX;
        let mut is_looking = false;
        for slot in 0..self.lifecycle.apps.len() {
            let AppSessions { checkpoint_every_ns, keep_alive_s, pass, .. } = &mut self.lifecycle.apps[slot];
            let Some(mut bucket) = pass.begin(*checkpoint_every_ns, *keep_alive_s, self.now_ns) else { continue };
            let is_checkpoint = pass.is_checkpoint;
            while bucket < SESSION_BUCKETS && clock::monotonic_ns() < until_ns && self.look_at_all(slot, bucket, is_checkpoint).is_ok() {
                bucket += 1;
            }
            self.lifecycle.apps[slot].pass.bucket = (bucket < SESSION_BUCKETS).then_some(bucket);
            is_looking |= bucket < SESSION_BUCKETS;
        }
        self.lifecycle.writing.is_looking = is_looking;
    }

    /// Looks at a part of an app's sessions. Errors: not all could be handed over; what was is not looked at again.
    fn look_at_all(&mut self, slot: usize, bucket: usize, is_checkpoint: bool) -> Result<(), NoRoom> {
        let Some(app) = self.lifecycle.apps[slot].app else { return Ok(()) };
        let Some(region) = self.proxy.state().region(app) else { return Ok(()) };
        let sessions: Vec<(SessionId, NamespaceRef)> = region.sessions_of(bucket).collect();
        for (session, namespace) in sessions {
            let table_hash = self.placement.hash(&session).table_hash();
            self.look_at(slot, app, &session, table_hash, namespace, is_checkpoint)?;
        }
        Ok(())
    }

    /// Writes a session's checkpoint or drops it from memory, if that is due.
    fn look_at(
        &mut self,
        slot: usize,
        app: u16,
        session: &SessionId,
        table_hash: u32,
        namespace: NamespaceRef,
        is_checkpoint: bool,
    ) -> Result<(), NoRoom> {
        let now_s = (self.now_ns / SECOND_NS) as u32;
        let Shard { lifecycle, proxy, .. } = self;
        let Some(sequence) = proxy.state().region(app).and_then(|region| region.namespace_sequence(namespace)) else { return Ok(()) };
        let AppSessions { sessions, keep_alive_s, .. } = &mut lifecycle.apps[slot];
        if sessions.len() >= KNOWN_SESSIONS_MAX && sessions.find_mut(session, table_hash).is_none() {
            return Ok(()); // it stays in memory
        }
        let known = sessions.find_or_insert(session, table_hash, now_s);
        if !std::mem::replace(&mut known.is_in_memory, true) && known.latest != 0 {
            lifecycle.asleep -= 1;
        }
        if known.ticket != NO_TICKET {
            return Ok(());
        }
        // One that is to wake by itself stays awake.
        let has_timers = proxy.state().timers.has_any(app, session);
        let is_idle = !has_timers
            && keep_alive_s.is_some_and(|keep_alive_s| {
                match proxy.last_use(app, session, table_hash) {
                    LastUse::Now => known.used_s = now_s,
                    LastUse::SinceNs(since_ns) => known.used_s = known.used_s.max((since_ns / SECOND_NS) as u32),
                    LastUse::Forgotten => {}
                }
                // The second in which it was used last is not over everywhere.
                now_s.saturating_sub(known.used_s) > keep_alive_s
            });
        let is_stored = known.sequence == Some(sequence);
        if is_stored && is_idle {
            self.drop_from_memory(slot, app, session, table_hash, namespace);
        } else if !is_stored && (is_idle || is_checkpoint) {
            return self.write_checkpoint(slot, app, session, table_hash, namespace, sequence);
        }
        Ok(())
    }

    fn write_checkpoint(
        &mut self,
        slot: usize,
        app: u16,
        session: &SessionId,
        table_hash: u32,
        namespace: NamespaceRef,
        sequence: u64,
    ) -> Result<(), NoRoom> {
        if !self.lifecycle.has_room() {
            return Err(NoRoom);
        }
        let Shard { lifecycle, proxy, .. } = self;
        let Lifecycle { door: Some(door), apps, tickets, writing, .. } = lifecycle else { return Err(NoRoom) };
        let AppSessions { name, sessions, .. } = &mut apps[slot];
        let (Some(region), Some(known)) = (proxy.state().region(app), sessions.find_mut(session, table_hash)) else { return Ok(()) };
        let mut record = Vec::new();
        record_session(&mut record, name, region, session, namespace);
        known.attempted += 1;
        let (number, bytes) = (known.attempted, record.len());
        let order = Ordered::Write { number, sequence, bytes };
        let ticket = tickets.insert(Ticket { slot, session: *session, table_hash, order }) as u32;
        let work = CheckpointWork::Write { number, latest: known.latest, previous: known.previous, record };
        if !door.send(CheckpointOrder { ticket, app: Arc::clone(name), session: *session, work }) {
            tickets.remove(ticket as usize);
            return Err(NoRoom);
        }
        known.ticket = ticket;
        writing.bytes += bytes;
        writing.writes += 1;
        Ok(())
    }

    pub(super) fn on_written(&mut self, ticket: u32, is_stored: bool) {
        let Shard { lifecycle, proxy, now_ns, .. } = self;
        let Ticket { slot, session, table_hash, order } = lifecycle.tickets.remove(ticket as usize);
        let Ordered::Write { number, sequence, bytes } = order else { unreachable!("a write is answered as a write") };
        lifecycle.writing.bytes -= bytes;
        lifecycle.writing.writes -= 1;
        let AppSessions { app, sessions, .. } = &mut lifecycle.apps[slot];
        let Some(known) = sessions.find_mut(&session, table_hash) else { return };
        known.ticket = NO_TICKET;
        if !is_stored {
            let writing = &mut lifecycle.writing;
            writing.retry_ns = (writing.retry_ns * 2).clamp(RETRY_NS_MIN, RETRY_NS_MAX);
            writing.retry_at_ns = *now_ns + writing.retry_ns;
            if self.draining_since_ns.is_some() {
                self.end_last_pass("the store failed");
            }
            return;
        }
        lifecycle.writing.retry_ns = 0;
        (known.previous, known.latest, known.sequence) = (known.latest, number, Some(sequence));
        let Some(app) = *app else { return };
        let namespace = proxy.state().region(app).and_then(|region| region.find(&session, table_hash));
        // An idle session goes at once. No write can be due: so there is room.
        if let Some(namespace) = namespace {
            self.look_at(slot, app, &session, table_hash, namespace, false).ok();
        }
    }

    /// The store has all that the session holds.
    fn drop_from_memory(&mut self, slot: usize, app: u16, session: &SessionId, table_hash: u32, namespace: NamespaceRef) {
        // A snapshot of the log that is being made may have had the session or not: writes that are behind its beginning must not be all that is
        // left of a session.
        if self.logging.has_snapshot() && self.proxy.state().journal.logs(app) {
            return;
        }
        if self.draining_since_ns.is_some() || !self.proxy.let_go(app, session, table_hash) {
            return;
        }
        self.proxy.with_state(|state, _| {
            if let Some(region) = state.region_mut(app) {
                region.remove(namespace);
            }
        });
        let lifecycle = &mut self.lifecycle;
        if let Some(known) = lifecycle.apps[slot].sessions.find_mut(session, table_hash) {
            known.is_in_memory = false;
            lifecycle.asleep += 1;
            self.view.counters.sessions_reclaimed.add(1);
        }
    }

    /// Writes all that changed of apps with durability `checkpoint`, when the process is to end and nothing runs any more.
    pub(super) fn step_last_pass(&mut self) {
        if self.lifecycle.is_saved() || !self.has_finished() {
            return;
        }
        let now_ns = clock::monotonic_ns();
        let (mut slot, mut bucket, since_ns) = match self.lifecycle.writing.last {
            LastPass::At { slot, bucket, since_ns } => (slot, bucket, since_ns),
            _ => (0, 0, now_ns),
        };
        if self.lifecycle.is_listing {
            return self.end_last_pass("it was not listed");
        }
        if now_ns.saturating_sub(since_ns) > STOP_CHECKPOINTS_MS_MAX * 1_000_000 {
            return self.end_last_pass("the store is too slow");
        }
        while slot < self.lifecycle.apps.len() && clock::monotonic_ns() - now_ns < LAST_STEP_NS_MAX {
            let is_due = self.lifecycle.apps[slot].checkpoint_every_ns.is_some();
            if is_due && self.look_at_all(slot, bucket, true).is_err() {
                break;
            }
            bucket += 1;
            if !is_due || bucket == SESSION_BUCKETS {
                (slot, bucket) = (slot + 1, 0);
            }
        }
        let is_over = slot == self.lifecycle.apps.len() && self.lifecycle.writing.writes == 0;
        self.lifecycle.writing.last = if is_over { LastPass::Done } else { LastPass::At { slot, bucket, since_ns } };
    }

    fn end_last_pass(&mut self, why: &str) {
        let is_needed = self.lifecycle.apps.iter().any(|app| app.checkpoint_every_ns.is_some());
        if is_needed && self.lifecycle.writing.last != LastPass::Done {
            tracing::error!(shard = self.core.0, "not all sessions were written to the store of checkpoints at the end: {why}");
        }
        self.lifecycle.writing.last = LastPass::Done;
    }
}
