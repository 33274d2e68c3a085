//! Sessions that sleep: their state is in a checkpoint and not in memory. The next request wakes its session: it waits while the checkpoint is
//! read elsewhere, the state is put into the region, and the request runs. docs/ARCHITECTURE.md, "Sessions that sleep".
//! A stage of the loop; never waits for the store. `checkpoints.rs` is the other half: it writes checkpoints and lets sessions fall asleep.
//! A session whose checkpoint cannot be read is refused and never begun anew.

use super::checkpoints::{Evicting, Pass};
use super::keeping::{Keeping, tenths};
use super::pressure::Pressure;
use super::turn::Shard;
use super::waking::WAKE_AHEAD_MS;
use crate::durable::{CheckpointAnswer, CheckpointDoor, CheckpointNumber, CheckpointOrder, CheckpointWork, KnownCheckpoint};
use crate::net::ErrorCode;
use crate::session::{Alarms, CallName, Finished, KnownSessions, LastUse, NO_TICKET, NOT_STORED, Outcome};
use crate::state::{Record, SessionKey, StateError};
use crate::sys::clock::{self, SECOND_NS};
use crate::worker::{Call, FunctionManifest};
use rustc_hash::FxHashMap;
use slab::Slab;
use std::collections::VecDeque;
use std::sync::Arc;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{COLD_SESSIONS_MAX, COLD_WAIT_MS_MAX};

const UNREADABLE: &str = "the session sleeps and its checkpoint cannot be read now: try again later";
const UNLISTED: &str =
    "the store of checkpoints was not listed yet, so it is not known whether the session has state there: try again later";
const NO_ROOM: &str = "the session sleeps and finds no room in its app's region, where others may leave soon: try again later";
const TOO_MANY: &str = "too many requests wait for sessions that are being loaded";

/// What a shard knows of sessions beside their state.
#[derive(Default)]
pub(super) struct Lifecycle {
    /// `None`: nothing is checkpointed, as in a container.
    pub(super) door: Option<CheckpointDoor>,
    /// It is not yet known which sessions have a checkpoint.
    pub(super) is_listing: bool,
    pub(super) apps: Vec<AppSessions>,
    /// Places in `apps` by name. Only operators name apps, so the hash needs no key.
    by_name: FxHashMap<Arc<str>, usize>,
    /// By the app's index: its place in `apps`. Apps whose sessions never sleep have none.
    slots: Vec<Option<u16>>,
    pub(super) tickets: Slab<Ticket>,
    /// Tickets that are loads, and the calls that wait for them.
    pub(super) loads: usize,
    parked: usize,
    /// Sessions that sleep.
    pub(super) asleep: u64,
    pub(super) writing: super::checkpoints::Writing,
}

/// One app's sessions.
pub(super) struct AppSessions {
    pub(super) name: Arc<str>,
    /// `None` while the app has no function.
    pub(super) app: Option<u16>,
    /// A session of it may sleep, on this or another shard.
    had_checkpoints: bool,
    pub(super) checkpoint_every_ns: Option<u64>,
    /// `None`: its sessions stay in memory.
    pub(super) keeping: Option<Keeping>,
    pub(super) pressure: Pressure,
    pub(super) sessions: KnownSessions,
    /// Sessions that sleep and have timers.
    pub(super) timers: Alarms,
    pub(super) pass: Pass,
}

/// An order that is under way.
pub(super) struct Ticket {
    pub(super) slot: usize,
    pub(super) session: SessionId,
    pub(super) table_hash: u32,
    pub(super) order: Ordered,
}

pub(super) enum Ordered {
    Write {
        number: CheckpointNumber,
        sequence: u64,
        bytes: usize,
        evicting: Option<Evicting>,
        /// The app had left the log before, so that the checkpoint has all that the log has of the session: `Journal::leaving_of`.
        leaving: Option<u32>,
    },
    /// `is_ahead`: nobody asked for it yet when it began.
    Load { calls: VecDeque<Box<Call>>, since_ns: u64, is_ahead: bool },
}

/// What becomes of a call.
pub(super) enum Woken {
    Run(Box<Call>),
    /// Its session is being loaded.
    Waits,
    Over(Finished),
}

/// Where a session is that something else than a call of it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Roused {
    Awake,
    /// It is being loaded.
    Waking,
    /// It sleeps, or may, and cannot be loaded now.
    NotNow,
}

pub(super) enum Whereabouts {
    /// In memory, or the session has no state yet.
    Here,
    Asleep,
    Unknown,
}

impl Lifecycle {
    #[inline(always)]
    fn concerns(&self, app: u16) -> bool {
        self.is_listing || self.slot(app).is_some()
    }

    #[inline(always)]
    pub(super) fn slot(&self, app: u16) -> Option<usize> {
        self.slots.get(usize::from(app)).copied().flatten().map(usize::from)
    }

    /// What is known of an app's sessions, also of one whose sessions do not sleep any more. `None`: nothing.
    pub(super) fn sessions_of(&mut self, app: u16) -> Option<&mut KnownSessions> {
        Some(&mut self.apps.iter_mut().find(|of| of.app == Some(app))?.sessions)
    }

    /// True when a session of the app may sleep: then only its owner knows what it holds.
    pub(super) fn may_sleep(&self, app: u16) -> bool {
        self.concerns(app)
    }

    /// Calls that waited for a session wait elsewhere now.
    pub(super) fn end_parking(&mut self, calls: usize) {
        self.parked -= calls;
    }

    /// True while calls wait for their sessions.
    pub(super) fn has_parked(&self) -> bool {
        self.parked > 0
    }

    /// True while the loop must not rest for long.
    pub(super) fn has_work(&self) -> bool {
        !self.tickets.is_empty() || self.writing.is_looking || self.writing.is_pressed
    }

    /// Calls of the app are looked at from now on, if its sessions may sleep.
    fn note_slot(&mut self, slot: usize) {
        let AppSessions { app: Some(app), had_checkpoints: true, .. } = self.apps[slot] else { return };
        let index = usize::from(app);
        if self.slots.len() <= index {
            self.slots.resize(index + 1, None);
        }
        self.slots[index] = Some(slot as u16);
    }

    fn slot_named(&mut self, name: &str) -> usize {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let name: Arc<str> = name.into();
        self.by_name.insert(Arc::clone(&name), self.apps.len());
        self.apps.push(AppSessions {
            name,
            app: None,
            had_checkpoints: false,
            checkpoint_every_ns: None,
            keeping: None,
            pressure: Pressure::default(),
            sessions: KnownSessions::default(),
            timers: Alarms::default(),
            pass: Pass::default(),
        });
        self.apps.len() - 1
    }
}

impl Shard {
    /// The app's sessions sleep and are checkpointed as the manifest says from now on.
    pub(super) fn set_sleep_rules(&mut self, app: u16, manifest: &FunctionManifest) {
        let lifecycle = &mut self.lifecycle;
        if lifecycle.door.is_none() {
            return;
        }
        let slot = lifecycle.slot_named(&manifest.app);
        let sessions = &mut lifecycle.apps[slot];
        sessions.app = Some(app);
        sessions.checkpoint_every_ns = manifest.checkpoint_every_s().map(|every_s| u64::from(every_s) * SECOND_NS);
        sessions.keeping = Keeping::renew(sessions.keeping.take(), &manifest.rules);
        sessions.had_checkpoints |= manifest.may_sleep();
        lifecycle.note_slot(slot);
    }

    /// Called for each call of a session of ours before it runs.
    #[inline(always)]
    pub(super) fn wake(&mut self, mut call: Box<Call>) -> Woken {
        call.others_may_sleep = self.lifecycle.concerns(call.app);
        if !call.others_may_sleep || call.is_hook() { Woken::Run(call) } else { self.wake_if_asleep(call) }
    }

    fn wake_if_asleep(&mut self, call: Box<Call>) -> Woken {
        match self.whereabouts(call.app, &call.session, call.table_hash, true) {
            Whereabouts::Here => Woken::Run(call),
            Whereabouts::Unknown if call.is_fresh => Woken::Run(call),
            Whereabouts::Unknown => self.refuse_cold(call, UNLISTED),
            Whereabouts::Asleep => self.park_cold(call),
        }
    }

    fn refuse_cold(&mut self, call: Box<Call>, detail: &'static str) -> Woken {
        self.view.counters.cold_refused.add(1);
        Woken::Over(Finished { call, outcome: Outcome::failed(ErrorCode::Overloaded, detail) })
    }

    /// Where is a session? `is_use`: it is about to be used.
    pub(super) fn whereabouts(&mut self, app: u16, session: &SessionId, table_hash: u32, is_use: bool) -> Whereabouts {
        let Shard { lifecycle, proxy, view, now_ns, .. } = self;
        let is_in_region = || proxy.state().region(app).is_some_and(|region| region.find(session, table_hash).is_some());
        let slot = lifecycle.slot(app);
        let mut sessions = slot.map(|slot| &mut lifecycle.apps[slot]);
        let found = sessions.as_mut().map(|of| (&mut of.keeping, &of.pressure, of.sessions.find_mut(session, table_hash)));
        let Some((keeping, pressure, Some(known))) = found else {
            return if !lifecycle.is_listing || is_in_region() { Whereabouts::Here } else { Whereabouts::Unknown };
        };
        if is_use {
            let now_tenths = tenths(*now_ns);
            let idle_tenths = now_tenths.saturating_sub(known.used_tenths);
            if let Some(keeping) = keeping.as_mut().filter(|keeping| known.was_used && idle_tenths >= keeping.noted_tenths) {
                match proxy.last_use(app, session, table_hash) {
                    LastUse::Now => {}
                    LastUse::Forgotten => keeping.on_rest(idle_tenths),
                    LastUse::SinceNs(since_ns) => keeping.on_rest(idle_tenths.min(now_tenths.saturating_sub(tenths(since_ns)))),
                }
            }
            (known.used_tenths, known.was_used) = (now_tenths, true);
            known.frequency = known.frequency.saturating_add(1);
            known.clock = pressure.clock();
            if std::mem::take(&mut known.is_pre_warmed) {
                view.counters.pre_warm_hits.add(1);
            }
        }
        if !known.is_in_memory && known.latest != 0 {
            if !is_in_region() {
                return Whereabouts::Asleep;
            }
            known.is_in_memory = true;
            lifecycle.asleep -= 1;
        }
        Whereabouts::Here
    }

    fn park_cold(&mut self, call: Box<Call>) -> Woken {
        let limits = &self.options.proxy;
        let is_full = self.lifecycle.parked >= limits.queued_calls_max;
        let calls_max = limits.namespace_queue_calls_max;
        if is_full {
            return self.refuse_cold(call, TOO_MANY);
        }
        match self.load(call.app, &call.session, call.table_hash, false) {
            Some(calls) if calls.len() < calls_max => {
                calls.push_back(call);
                self.lifecycle.parked += 1;
                Woken::Waits
            }
            _ => self.refuse_cold(call, TOO_MANY),
        }
    }

    /// Has a session loaded that sleeps, unless it is under way. `is_ahead`: before anybody asks. Output: the calls that wait for it. `None`: not now.
    pub(super) fn load(&mut self, app: u16, session: &SessionId, table_hash: u32, is_ahead: bool) -> Option<&mut VecDeque<Box<Call>>> {
        let Lifecycle { door, apps, slots, tickets, loads, .. } = &mut self.lifecycle;
        let slot = usize::from((*slots.get(usize::from(app))?)?);
        let name = Arc::clone(&apps[slot].name);
        let [latest, previous] = apps[slot].sessions.checkpoints(session, table_hash);
        let known = apps[slot].sessions.find_mut(session, table_hash)?;
        if known.ticket == NO_TICKET {
            if *loads >= COLD_SESSIONS_MAX {
                return None;
            }
            let order = Ordered::Load { calls: VecDeque::new(), since_ns: self.now_ns, is_ahead };
            let ticket = tickets.insert(Ticket { slot, session: *session, table_hash, order }) as u32;
            let work = CheckpointWork::Read { latest, previous };
            let order = CheckpointOrder { ticket, app: name, session: *session, work };
            if !door.as_ref().is_some_and(|door| door.send(order)) {
                tickets.remove(ticket as usize);
                return None;
            }
            known.ticket = ticket;
            *loads += 1;
        }
        match &mut tickets[known.ticket as usize].order {
            Ordered::Load { calls, .. } => Some(calls),
            Ordered::Write { .. } => None,
        }
    }

    /// True when the session sleeps or cannot be looked for: whoever asks, and cannot wait here, is to ask again. It is loaded meanwhile.
    pub(super) fn is_asleep(&mut self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        self.rouse(app, session, table_hash) != Roused::Awake
    }

    /// Has a session loaded if it sleeps, for something else than a call of it. `answer_roused` is called when that is over.
    pub(super) fn rouse(&mut self, app: u16, session: &SessionId, table_hash: u32) -> Roused {
        if !self.lifecycle.concerns(app) {
            return Roused::Awake;
        }
        match self.whereabouts(app, session, table_hash, true) {
            Whereabouts::Here => Roused::Awake,
            Whereabouts::Unknown => Roused::NotNow,
            Whereabouts::Asleep if self.load(app, session, table_hash, false).is_some() => Roused::Waking,
            Whereabouts::Asleep => Roused::NotNow,
        }
    }

    /// Ends a call that waits for its session.
    pub(super) fn cancel_cold(&mut self, name: &CallName) -> Option<Finished> {
        let lifecycle = &mut self.lifecycle;
        let slot = lifecycle.slot(name.app)?;
        let ticket = lifecycle.apps[slot].sessions.find_mut(&name.session, name.table_hash)?.ticket;
        let Ordered::Load { calls, .. } = &mut lifecycle.tickets.get_mut(ticket as usize)?.order else { return None };
        let at = calls.iter().position(|call| call.origin == name.origin)?;
        lifecycle.parked -= 1;
        Some(Finished { call: calls.remove(at)?, outcome: Outcome::Cancelled })
    }

    /// Takes what the checkpoints' thread has done.
    pub(super) fn step_lifecycle(&mut self) {
        if self.lifecycle.tickets.is_empty() && !self.lifecycle.is_listing && self.draining_since_ns.is_none() {
            return;
        }
        let from_ns = clock::quick_ns();
        while let Some(answer) = self.lifecycle.door.as_ref().and_then(CheckpointDoor::answer) {
            match answer {
                CheckpointAnswer::Listed(known) => known.into_iter().for_each(|known| self.learn(&known)),
                CheckpointAnswer::ListedAll(apps) => self.end_listing(&apps),
                CheckpointAnswer::Written { ticket, is_stored } => self.on_written(ticket, is_stored),
                CheckpointAnswer::Loaded { ticket, found } => self.on_loaded(ticket, found),
            }
        }
        self.step_last_pass();
        self.tail.work.checkpoints_ns += clock::quick_ns().saturating_sub(from_ns);
    }

    /// A session has checkpoints since before the start.
    fn learn(&mut self, checkpoint: &KnownCheckpoint) {
        let table_hash = self.placement.hash(&checkpoint.session).table_hash();
        let KnownCheckpoint { app, session, latest, previous } = checkpoint;
        let lifecycle = &mut self.lifecycle;
        let slot = lifecycle.slot_named(app);
        let AppSessions { sessions, timers, .. } = &mut lifecycle.apps[slot];
        let known = sessions.find_or_insert(session, table_hash, tenths(self.now_ns));
        known.attempted = latest.count();
        if !known.is_in_memory {
            lifecycle.asleep += 1;
        }
        sessions.set_checkpoints(session, table_hash, [*latest, *previous]);
        if latest.due_s() != 0 {
            timers.set(session, u64::from(latest.due_s()) * 1_000, WAKE_AHEAD_MS);
        }
    }

    /// All sessions with checkpoints are known.
    fn end_listing(&mut self, apps: &[Arc<str>]) {
        let lifecycle = &mut self.lifecycle;
        for name in apps {
            let slot = lifecycle.slot_named(name);
            lifecycle.apps[slot].had_checkpoints = true;
            lifecycle.note_slot(slot);
        }
        lifecycle.is_listing = false;
    }

    fn on_loaded(&mut self, ticket: u32, found: Option<(u32, Vec<u8>)>) {
        let Ticket { slot, session, table_hash, order } = self.lifecycle.tickets.remove(ticket as usize);
        let Ordered::Load { calls, since_ns, is_ahead } = order else { unreachable!("a load is answered as a load") };
        self.lifecycle.loads -= 1;
        self.lifecycle.parked -= calls.len();
        let is_there = match found {
            Some((number, record)) => self.put_into_memory(slot, &session, table_hash, number, &record),
            None => Err(UNREADABLE),
        };
        let (is_there, detail) = (is_there.is_ok(), is_there.err().unwrap_or_default());
        let is_pre_warmed = is_there && is_ahead && calls.is_empty();
        if let Some(known) = self.lifecycle.apps[slot].sessions.find_mut(&session, table_hash) {
            known.ticket = NO_TICKET;
            known.is_pre_warmed = is_pre_warmed;
            if !is_pre_warmed {
                known.used_tenths = tenths(self.now_ns);
            }
        }
        if is_there {
            let counters = &self.view.counters;
            if is_pre_warmed {
                counters.pre_warm_loads.add(1)
            } else {
                counters.cold_sessions.add(1)
            }
            self.lifecycle.apps[slot].pressure.on_load(clock::monotonic_ns().saturating_sub(since_ns));
        }
        for call in calls {
            let finished = match is_there {
                true => self.submit(call),
                false => {
                    self.view.counters.cold_refused.add(1);
                    Some(Finished { call, outcome: Outcome::failed(ErrorCode::Overloaded, detail) })
                }
            };
            if let Some(finished) = finished {
                self.deliver(finished);
            }
        }
        self.answer_roused(slot, &session, is_there);
    }

    /// Errors: why the session sleeps on: there is no room, or the app is gone.
    fn put_into_memory(
        &mut self,
        slot: usize,
        session: &SessionId,
        table_hash: u32,
        number: u32,
        record: &[u8],
    ) -> Result<(), &'static str> {
        let Shard { lifecycle, proxy, core, .. } = self;
        let AppSessions { app, sessions, name, keeping, timers, .. } = &mut lifecycle.apps[slot];
        let (Some(app), Ok((record, _))) = (*app, Record::decode(record)) else { return Err(UNREADABLE) };
        let [latest, previous] = sessions.checkpoints(session, table_hash);
        let Some(known) = sessions.find_mut(session, table_hash) else { return Err(UNREADABLE) };
        let key = SessionKey { app, session, table_hash };
        let mut namespace = None;
        // By way of the log if the app has one: what it writes from now on is of use only on top of this.
        let stored = proxy.with_state(|state, _| state.store_many(&key, &mut namespace, record.writes(), usize::MAX));
        if let Err(error) = stored {
            tracing::error!(shard = core.0, app = &**name, session = session.as_str(), %error, "a session cannot be loaded");
            return Err(if error == StateError::RegionFull { NO_ROOM } else { UNREADABLE });
        }
        proxy.with_state(|state, _| state.load_timers(&key));
        // Checkpoints of an older form do not say that there are timers: such a one is written anew when it can be.
        let is_untold = latest.due_s() == 0 && proxy.state().timers.has_any(app, session);
        let sequence = proxy.state().region(app).zip(namespace).and_then(|(region, namespace)| region.namespace_sequence(namespace));
        known.is_in_memory = true;
        if number == latest.count() {
            known.sequence = sequence.filter(|_| !is_untold).unwrap_or(NOT_STORED);
        } else {
            // The latest one is damaged: the one before is the latest that is any good, and is to be written anew.
            known.sequence = NOT_STORED;
            sessions.set_checkpoints(session, table_hash, [previous, CheckpointNumber::default()]);
        }
        timers.remove(session);
        if let Some(keeping) = keeping {
            keeping.pre_warms.remove(session);
        }
        lifecycle.asleep -= 1;
        Ok(())
    }

    /// Calls that have waited for too long are told so; the load goes on.
    pub(super) fn sweep_loads(&mut self) {
        if self.lifecycle.parked == 0 {
            return;
        }
        let now_ns = self.now_ns;
        let mut late = VecDeque::new();
        for (_, ticket) in &mut self.lifecycle.tickets {
            if let Ordered::Load { calls, since_ns, .. } = &mut ticket.order
                && now_ns.saturating_sub(*since_ns) > COLD_WAIT_MS_MAX * 1_000_000
            {
                late.append(calls);
            }
        }
        self.lifecycle.parked -= late.len();
        for call in late {
            self.view.counters.cold_refused.add(1);
            self.deliver(Finished { call, outcome: Outcome::failed(ErrorCode::Overloaded, UNREADABLE) });
        }
    }
}
