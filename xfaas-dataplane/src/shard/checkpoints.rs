//! Writes checkpoints of sessions that changed, and drops from memory those that nobody used for long, once the store has their checkpoint.
//! A stage of the loop, in timed work: it looks at some sessions of a region at a time, hands copies to the checkpoints' thread and goes on.

use super::keeping::{Rest, TENTH_NS, tenths};
use super::lifecycle::{AppSessions, Lifecycle, Ordered, Ticket};
use super::turn::Shard;
use super::waking::WAKE_AHEAD_MS;
use crate::durable::{CheckpointNumber, CheckpointOrder, CheckpointWork};
use crate::session::{KnownSession, LastUse, NO_TICKET, Priority};
use crate::state::{NamespaceRef, SESSION_BUCKETS, SessionKey, TimerOutlook, record_session};
use crate::sys::clock::{self, SECOND_NS};
use std::sync::Arc;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{
    CHECKPOINT_ORDERS_BYTES_MAX, CHECKPOINT_ORDERS_MAX, COLD_SESSIONS_MAX, KNOWN_SESSIONS_MAX, PRE_WARMS_MAX, STOP_CHECKPOINTS_MS_MAX,
};

/// Work on passes at a time; at the end of the process nobody else wants the core.
const STEP_NS_MAX: u64 = 200_000;
const LAST_STEP_NS_MAX: u64 = 5_000_000;
/// Of `checkpoint_every_s`, the time between two passes: what is left of it is for the pass itself and for the store.
const EVERY_PART: u64 = 2;
/// A session with timers sleeps only if the first of them is due later than this.
const TIMER_REST_MS_MIN: i64 = 5_000;
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
    fn begin(&mut self, checkpoint_every_ns: Option<u64>, idle_ns: Option<u64>, now_ns: u64) -> Option<usize> {
        if self.bucket.is_none() && now_ns >= self.next_ns {
            let every_ns = checkpoint_every_ns.map(|every_ns| every_ns / EVERY_PART);
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
    /// A region is to get emptier.
    pub(super) is_pressed: bool,
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
pub(super) struct NoRoom;

/// A session that is written to leave memory for want of it.
#[derive(Clone, Copy)]
pub(super) struct Evicting {
    pub(super) priority: Priority,
    pub(super) bytes: u64,
    /// When it was used last: it stays if that changes.
    pub(super) used_tenths: u32,
}

/// Why a session leaves memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaves {
    AtRest(Rest),
    ForRoom,
}

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
        if self.lifecycle.door.is_none() || self.lifecycle.is_listing {
            return;
        }
        self.wake_what_is_due();
        if self.now_ns < self.lifecycle.writing.retry_at_ns {
            return;
        }
        let until_ns = clock::monotonic_ns() + STEP_NS_MAX;
        let (mut is_looking, mut is_pressed) = (false, false);
        for slot in 0..self.lifecycle.apps.len() {
            is_pressed |= self.ease_pressure(slot, until_ns);
            let Some(mut bucket) = self.begin_pass(slot) else { continue };
            let is_checkpoint = self.lifecycle.apps[slot].pass.is_checkpoint;
            while bucket < SESSION_BUCKETS && clock::monotonic_ns() < until_ns && self.look_at_all(slot, bucket, is_checkpoint).is_ok() {
                bucket += 1;
            }
            self.lifecycle.apps[slot].pass.bucket = (bucket < SESSION_BUCKETS).then_some(bucket);
            is_looking |= bucket < SESSION_BUCKETS;
        }
        (self.lifecycle.writing.is_looking, self.lifecycle.writing.is_pressed) = (is_looking, is_pressed);
    }

    /// The part of an app's region that is to be looked at next, if it is time.
    fn begin_pass(&mut self, slot: usize) -> Option<usize> {
        let AppSessions { app, checkpoint_every_ns, keeping, pass, .. } = &mut self.lifecycle.apps[slot];
        if keeping.is_none() && checkpoint_every_ns.is_none() {
            return None;
        }
        let stats = self.proxy.state().region((*app)?)?.stats();
        let is_half_full = stats.bytes_used > stats.bytes_max / 2;
        let bucket = pass.begin(*checkpoint_every_ns, keeping.as_ref().map(|keeping| keeping.pass_every_ns(is_half_full)), self.now_ns);
        if let (Some(keeping), Some(0)) = (keeping, bucket) {
            keeping.refresh();
        }
        bucket
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
        let Some(sequence) = self.proxy.state().region(app).and_then(|region| region.namespace_sequence(namespace)) else { return Ok(()) };
        let Some(known) = self.meet(slot, session, table_hash) else { return Ok(()) };
        let is_stored = known.sequence == sequence;
        let rest = self.rest_of(slot, app, session, table_hash);
        if is_stored && rest != Rest::Stays {
            self.drop_from_memory(slot, app, session, table_hash, Leaves::AtRest(rest));
        } else if !is_stored && (rest != Rest::Stays || is_checkpoint) {
            return self.write_checkpoint(slot, app, session, table_hash, sequence, None);
        }
        Ok(())
    }

    /// A session was seen in the region. `None`: it is not to be looked at further, because it moves, an order is under way for it, or no more are known.
    pub(super) fn meet(&mut self, slot: usize, session: &SessionId, table_hash: u32) -> Option<&mut KnownSession> {
        let Shard { lifecycle, moves, now_ns, .. } = self;
        let AppSessions { app, sessions, pressure, .. } = &mut lifecycle.apps[slot];
        if app.is_some_and(|app| moves.concerns(app, session)) {
            return None;
        }
        if sessions.len() >= KNOWN_SESSIONS_MAX && sessions.find_mut(session, table_hash).is_none() {
            return None; // it stays in memory
        }
        let known = sessions.find_or_insert(session, table_hash, tenths(*now_ns));
        if !std::mem::replace(&mut known.is_in_memory, true) && known.latest != 0 {
            lifecycle.asleep -= 1;
        }
        if known.frequency == 0 && !known.is_pre_warmed {
            (known.frequency, known.clock) = (1, pressure.clock());
        }
        (known.ticket == NO_TICKET).then_some(known)
    }

    /// What is to become of a session that is known.
    fn rest_of(&mut self, slot: usize, app: u16, session: &SessionId, table_hash: u32) -> Rest {
        let Shard { lifecycle, proxy, now_ns, .. } = self;
        let AppSessions { keeping: Some(keeping), sessions, .. } = &mut lifecycle.apps[slot] else { return Rest::Stays };
        let Some(known) = sessions.find_mut(session, table_hash) else { return Rest::Stays };
        let now_tenths = tenths(*now_ns);
        match proxy.last_use(app, session, table_hash) {
            LastUse::Now => (known.used_tenths, known.was_used) = (now_tenths, true),
            // Never before a use that the session is known for.
            LastUse::SinceNs(since_ns) if known.was_used => known.used_tenths = known.used_tenths.max(tenths(since_ns)),
            LastUse::SinceNs(since_ns) => (known.used_tenths, known.was_used) = (tenths(since_ns), true),
            LastUse::Forgotten => {}
        }
        let rest = keeping.at_rest(now_tenths.saturating_sub(known.used_tenths));
        if rest != Rest::Stays && !self.timers_allow_rest(app, session, table_hash) {
            return Rest::Stays;
        }
        rest
    }

    /// False: the session is needed in memory soon.
    pub(super) fn timers_allow_rest(&mut self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        let outlook = self.timer_outlook(app, session, table_hash);
        let is_far = |outlook: TimerOutlook| outlook.is_calm && outlook.first_ms - clock::unix_ms() > TIMER_REST_MS_MIN;
        outlook.is_none_or(is_far)
    }

    fn timer_outlook(&mut self, app: u16, session: &SessionId, table_hash: u32) -> Option<TimerOutlook> {
        self.proxy.with_state(|state, _| state.timer_outlook(&SessionKey { app, session, table_hash }))
    }

    /// Hands a copy of the session to the checkpoints' thread. Input: a session that is known and has no order under way.
    pub(super) fn write_checkpoint(
        &mut self,
        slot: usize,
        app: u16,
        session: &SessionId,
        table_hash: u32,
        sequence: u64,
        evicting: Option<Evicting>,
    ) -> Result<(), NoRoom> {
        if !self.lifecycle.has_room() {
            return Err(NoRoom);
        }
        let due_s = self.timer_outlook(app, session, table_hash).map_or(0, |outlook| (outlook.first_ms / 1_000).clamp(1, u32::MAX.into()));
        let Shard { lifecycle, proxy, .. } = self;
        let Lifecycle { door: Some(door), apps, tickets, writing, .. } = lifecycle else { return Err(NoRoom) };
        let AppSessions { name, sessions, .. } = &mut apps[slot];
        let [latest, previous] = sessions.checkpoints(session, table_hash);
        let Some(region) = proxy.state().region(app) else { return Ok(()) };
        let (Some(namespace), Some(known)) = (region.find(session, table_hash), sessions.find_mut(session, table_hash)) else {
            return Ok(());
        };
        let mut record = Vec::new();
        record_session(&mut record, name, region, session, namespace);
        known.attempted += 1;
        let (number, bytes) = (CheckpointNumber::new(known.attempted, due_s as u32), record.len());
        let order = Ordered::Write { number, sequence, bytes, evicting, leaving: proxy.state().journal.leaving_of(app) };
        let ticket = tickets.insert(Ticket { slot, session: *session, table_hash, order }) as u32;
        let work = CheckpointWork::Write { number, latest, previous, record };
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
        let Shard { lifecycle, now_ns, .. } = self;
        let Ticket { slot, session, table_hash, order } = lifecycle.tickets.remove(ticket as usize);
        let Ordered::Write { number, sequence, bytes, evicting, leaving } = order else { unreachable!("a write is answered as a write") };
        lifecycle.writing.bytes -= bytes;
        lifecycle.writing.writes -= 1;
        let AppSessions { app, sessions, pressure, .. } = &mut lifecycle.apps[slot];
        if let Some(evicting) = evicting {
            pressure.on_written(evicting.bytes);
        }
        let [latest, _] = sessions.checkpoints(&session, table_hash);
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
        known.sequence = sequence;
        sessions.set_checkpoints(&session, table_hash, [number, latest]);
        let Some(app) = *app else { return };
        if leaving.is_some() && leaving == self.proxy.state().journal.leaving_of(app) {
            self.end_in_log(app, &session, table_hash);
        }
        if let Some(evicting) = evicting {
            self.evict(slot, app, &session, table_hash, evicting);
        }
        let namespace = self.proxy.state().region(app).and_then(|region| region.find(&session, table_hash));
        // An idle session goes at once. No write can be due: so there is room.
        if let Some(namespace) = namespace {
            self.look_at(slot, app, &session, table_hash, namespace, false).ok();
        }
    }

    /// The store has all that the session holds. False: dropped now, something would be lost.
    pub(super) fn drop_from_memory(&mut self, slot: usize, app: u16, session: &SessionId, table_hash: u32, why: Leaves) -> bool {
        // A snapshot of the log that is being made may have had the session or not: writes that are behind its beginning must not be all that is
        // left of a session.
        if self.logging.has_snapshot() && self.proxy.state().journal.logs(app) {
            return false;
        }
        if !self.end_in_log(app, session, table_hash) {
            return false; // soon
        }
        // Calls here are seen by `let_go`; those of containers only by the sections that they have open.
        let is_locked = self.proxy.state().locks.has_locks_of(app, session);
        let must_stay = self.draining_since_ns.is_some() || self.moves.concerns(app, session) || is_locked;
        if must_stay || !self.proxy.let_go(app, session, table_hash) {
            return false;
        }
        let key = SessionKey { app, session, table_hash };
        let outlook = self.proxy.with_state(|state, _| {
            let outlook = state.timer_outlook(&key);
            state.timers.forget_session(app, session);
            if let Some(region) = state.region_mut(app)
                && let Some(namespace) = region.find(session, table_hash)
            {
                region.remove(namespace);
            }
            outlook
        });
        let AppSessions { sessions, keeping, timers, .. } = &mut self.lifecycle.apps[slot];
        let Some(known) = sessions.find_mut(session, table_hash) else { return true };
        (known.is_in_memory, known.is_pre_warmed, known.frequency) = (false, false, 0);
        if let Some(outlook) = outlook {
            timers.set(session, u64::try_from(outlook.first_ms).unwrap_or(0), WAKE_AHEAD_MS);
        }
        if let (Some(keeping), Leaves::AtRest(Rest::Dozes { pre_warm_ms })) = (keeping, why)
            && keeping.pre_warms.len() < PRE_WARMS_MAX
        {
            keeping.pre_warms.set(session, u64::from(known.used_tenths) * TENTH_NS / 1_000_000 + pre_warm_ms, 0);
        }
        self.lifecycle.asleep += 1;
        self.view.counters.sessions_reclaimed.add(1);
        if why == Leaves::ForRoom {
            self.view.counters.dropped_for_room.add(1);
        }
        true
    }

    /// Writes all that changed of apps with durability `checkpoint`, when the process is to end and nothing runs any more.
    pub(super) fn step_last_pass(&mut self) {
        if self.lifecycle.is_saved() || !self.is_ending {
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
        if self.logging.is_ending_sessions() && self.logging.is_failing() {
            return self.end_last_pass("the log, which has older state of some, cannot be written");
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
        let is_over = slot == self.lifecycle.apps.len() && self.lifecycle.writing.writes == 0 && !self.logging.is_ending_sessions();
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
