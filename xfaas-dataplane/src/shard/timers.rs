//! Runs the timers of the shard's sessions when they are due, as calls that nobody waits for. A stage of the loop; without timers it costs a turn
//! one branch. CONTRACT.md section 3, "Timers".

use super::turn::Shard;
use crate::session::{Finished, Outcome};
use crate::state::{DueTimer, SessionKey, TimerRecord};
use crate::sys::clock;
use crate::worker::{Call, Origin};
use std::time::Duration;
use xfaas_common::limits::TIMERS_RUNNING_MAX;

/// Timers begun in one turn.
const FIRED_MAX: usize = 64;
/// How long the search for timers after a start may take of a turn.
const SCAN_NS_MAX: u64 = 200_000;

impl Shard {
    /// Begins what is due. Called once a turn.
    pub(super) fn fire_timers(&mut self) {
        if self.proxy.state().is_scanning_timers() {
            self.scan_timers();
        }
        if self.proxy.state().timers.is_empty() || !self.may_fire() {
            return;
        }
        let now_ms = clock::unix_ms();
        for _ in 0..FIRED_MAX {
            if !self.may_fire() {
                return;
            }
            let Some(due) = self.proxy.with_state(|state, _| state.timers.take_due(now_ms)) else { return };
            self.fire(&due, now_ms);
        }
    }

    fn may_fire(&self) -> bool {
        self.is_serving && self.draining_since_ns.is_none() && self.proxy.state().timers.running() < TIMERS_RUNNING_MAX
    }

    fn scan_timers(&mut self) {
        let started_ns = clock::monotonic_ns();
        while self.proxy.state().is_scanning_timers() && clock::monotonic_ns() - started_ns < SCAN_NS_MAX {
            self.proxy.with_state(|state, _| state.scan_timers());
        }
    }

    /// How long the loop may rest for the timers' sake; `None`: as long as it likes.
    pub(super) fn timer_wait(&self) -> Option<Duration> {
        let state = self.proxy.state();
        if state.is_scanning_timers() {
            return Some(Duration::ZERO);
        }
        let due_ms = state.timers.next_due_ms().filter(|_| self.may_fire())?;
        Some(Duration::from_millis(u64::try_from(due_ms.saturating_sub(clock::unix_ms())).unwrap_or(0)))
    }

    fn fire(&mut self, due: &DueTimer, now_ms: i64) {
        let hash = self.placement.hash(&due.session);
        let table_hash = hash.table_hash();
        let key = SessionKey { app: due.app, session: &due.session, table_hash };
        let bytes = self.proxy.state().timer_record(&key, &due.name);
        let Some(record) = bytes.as_deref().and_then(TimerRecord::decode) else {
            // Its session's state is gone.
            self.proxy.with_state(|state, _| state.timers.remove(due.app, &due.session, &due.name));
            return;
        };
        self.pins.refresh();
        let app = self.proxy.state().app_name(due.app);
        if self.pins.owner(&*self.placement, app, &due.session, hash) != self.core {
            // What a move left here when it was cut off.
            self.proxy.with_state(|state, _| state.timers.forget_session(due.app, &due.session));
            return;
        }
        let index = self.by_hash.get(&record.function.0).copied();
        let is_of_app = |index: &u16| self.proxy.function(*index).is_some_and(|function| function.app == due.app);
        let Some(function) = index.filter(is_of_app) else {
            return self.retry_timer(due.app, &due.session, due.number, now_ms);
        };
        let mut call = self.fresh_call();
        call.request.set_datagram(due.session, record.payload);
        call.function = function;
        call.app = due.app;
        call.session = due.session;
        call.table_hash = table_hash;
        call.invocation_id = self.fresh.invocation();
        call.received_ns = self.now_ns;
        call.function_hash = record.function;
        call.origin = Origin::Timer { number: due.number };
        if let Some(finished) = self.submit(call) {
            self.end_timer(finished);
        }
    }

    /// The call of a timer is over: the timer is too, if it went well.
    pub(super) fn end_timer(&mut self, finished: Finished) {
        let Finished { call, outcome } = finished;
        self.record(&call, &outcome);
        if let Origin::Timer { number } = call.origin {
            self.view.counters.timers_fired.add(1);
            if outcome != Outcome::Replied || !self.forget_timer(&call, number) {
                self.retry_timer(call.app, &call.session, number, clock::unix_ms());
            }
        }
        self.keep_call(call);
    }

    /// False: its record could not be removed.
    fn forget_timer(&mut self, call: &Call, number: u64) -> bool {
        let key = SessionKey { app: call.app, session: &call.session, table_hash: call.table_hash };
        self.proxy.with_state(|state, _| {
            // The invocation may have set it anew, or cancelled it: then the record is not this one's.
            let Some(name) = state.timers.name_of(call.app, &call.session, number) else { return true };
            state.remove_timer(&key, &mut None, &name).is_ok()
        })
    }

    fn retry_timer(&mut self, app: u16, session: &xfaas_common::ids::SessionId, number: u64, now_ms: i64) {
        self.view.counters.timers_failed.add(1);
        self.proxy.with_state(|state, _| state.timers.retry(app, session, number, now_ms));
    }

    pub(super) fn publish_timers(&self) {
        let (timers, counters) = (&self.proxy.state().timers, &self.view.counters);
        counters.timers.set(timers.len() as u64);
        let now_ms = clock::unix_ms();
        let overdue = if timers.is_empty() { 0 } else { timers.overdue(now_ms) };
        let (asleep, asleep_overdue) = self.lifecycle.timers_asleep(u64::try_from(now_ms).unwrap_or(0));
        counters.timers_overdue.set((overdue + asleep_overdue) as u64);
        counters.asleep_with_timers.set(asleep as u64);
    }
}
