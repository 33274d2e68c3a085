//! Wakes sessions that sleep without a request: those whose timers are due, and those that their app's history expects to be asked for soon.
//! A stage of the loop's timed work. Few are loaded at once, so that requests for other sessions find room.

use super::lifecycle::{Lifecycle, Whereabouts};
use super::pressure::has_room_ahead;
use super::turn::Shard;
use crate::sys::clock;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{TIMER_OVERDUE_MS, WAKING_LOADS_MAX};

/// How long before its first timer is due a session is loaded.
pub(super) const WAKE_AHEAD_MS: u64 = 2_000;

impl Lifecycle {
    fn may_load_ahead(&self) -> bool {
        self.loads < WAKING_LOADS_MAX
    }

    /// Sessions that sleep and have timers, and those of them that should have been woken.
    pub(super) fn timers_asleep(&self, unix_ms: u64) -> (usize, usize) {
        let each = self.apps.iter().filter(|app| !app.timers.is_empty());
        each.fold((0, 0), |(all, overdue), app| {
            (all + app.timers.len(), overdue + app.timers.overdue(unix_ms, u64::from(TIMER_OVERDUE_MS)))
        })
    }
}

impl Shard {
    /// Begins the loads that are due. Called in sweeps, when it is known who sleeps.
    pub(super) fn wake_what_is_due(&mut self) {
        if !self.is_serving || self.draining_since_ns.is_some() {
            return;
        }
        let (unix_ms, now_ms) = (u64::try_from(clock::unix_ms()).unwrap_or(0), self.now_ns / 1_000_000);
        for slot in 0..self.lifecycle.apps.len() {
            let Some(app) = self.lifecycle.apps[slot].app else { continue };
            while self.lifecycle.may_load_ahead()
                && let Some(session) = self.lifecycle.apps[slot].timers.take_due(unix_ms)
            {
                self.wake_for_timer(slot, app, &session);
            }
            while self.lifecycle.may_load_ahead()
                && let Some(session) = self.lifecycle.apps[slot].keeping.as_mut().and_then(|keeping| keeping.pre_warms.take_due(now_ms))
            {
                self.pre_warm(slot, app, &session);
            }
        }
    }

    /// What comes of it is seen by the session being in memory: until then it is tried again.
    fn wake_for_timer(&mut self, slot: usize, app: u16, session: &SessionId) {
        let table_hash = self.placement.hash(session).table_hash();
        match self.whereabouts(app, session, table_hash, false) {
            Whereabouts::Here => self.lifecycle.apps[slot].timers.remove(session),
            Whereabouts::Asleep => drop(self.load(app, session, table_hash, false)),
            Whereabouts::Unknown => {}
        }
    }

    /// Tried once: if it comes to nothing, the request that was expected waits for the load.
    fn pre_warm(&mut self, slot: usize, app: u16, session: &SessionId) {
        if let Some(keeping) = &mut self.lifecycle.apps[slot].keeping {
            keeping.pre_warms.remove(session);
        }
        let has_room = self.proxy.state().region(app).is_some_and(|region| has_room_ahead(&region.stats()));
        let table_hash = self.placement.hash(session).table_hash();
        if has_room && matches!(self.whereabouts(app, session, table_hash, false), Whereabouts::Asleep) {
            self.load(app, session, table_hash, true);
        }
    }
}
