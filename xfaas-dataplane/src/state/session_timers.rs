//! Timers as a session's state: set, cancelled and ended by changes of its region, and found in regions after a start.
//! Called by the host functions and by the shard's loop.

use super::error::StateError;
use super::namespace::NamespaceRef;
use super::region::SESSION_BUCKETS;
use super::section::SessionKey;
use super::shard_state::ShardState;
use super::timers::{TimerKey, TimerOutlook, TimerRecord, committed, timer_name};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::TIMER_PAYLOAD_BYTES_MAX;

/// Bytes of the longest record.
const RECORD_BYTES_MAX: usize = 16 + TIMER_PAYLOAD_BYTES_MAX;

/// Regions whose timers are being looked for.
#[derive(Default)]
pub(super) struct TimerScan {
    /// Apps, and the part of each region that comes next.
    apps: Vec<(u16, usize)>,
}

impl ShardState {
    /// Sets a session's timer, in place of one of the same name. Errors: `TooManyTimers` when the session has as many timers as it may, or the
    /// shard; else those of `Region::write`.
    pub fn set_timer(
        &mut self,
        key: &SessionKey<'_>,
        known: &mut Option<NamespaceRef>,
        name: &[u8],
        record: &TimerRecord<'_>,
        session_bytes_max: usize,
    ) -> Result<(), StateError> {
        if !self.has_room_for_timers(key, std::iter::once((name, true))) {
            return Err(StateError::TooManyTimers);
        }
        self.store(key, known, TimerKey::new(name).as_bytes(), &record.encode(), session_bytes_max)?;
        self.timers.set(key.app, key.session, name, record.at_ms);
        Ok(())
    }

    /// True when timers of these names may be set (true) and cancelled (false); the names are all different.
    pub fn has_room_for_timers<'n>(&mut self, key: &SessionKey<'_>, changes: impl Iterator<Item = (&'n [u8], bool)>) -> bool {
        self.find_timers_of(key);
        self.timers.has_room(key.app, key.session, changes)
    }

    /// True when the session has a timer of this name.
    pub fn has_timer(&self, key: &SessionKey<'_>, known: &mut Option<NamespaceRef>, name: &[u8]) -> bool {
        let namespace = self.find_namespace(key, known);
        let found = self.region(key.app).zip(namespace);
        found.is_some_and(|(region, namespace)| region.value_bytes(namespace, TimerKey::new(name).as_bytes()).is_some())
    }

    /// Removes a timer with its record. Errors: as `Region::write_many`; then it is still there.
    pub fn remove_timer(&mut self, key: &SessionKey<'_>, known: &mut Option<NamespaceRef>, name: &[u8]) -> Result<(), StateError> {
        let timer_key = TimerKey::new(name);
        if self.has_timer(key, known, name) {
            self.store_many(key, known, std::iter::once((timer_key.as_bytes(), None)), usize::MAX)?;
        }
        self.timers.remove(key.app, key.session, name);
        Ok(())
    }

    /// Does all writes of an atomic invocation, or none: values of keys, records of timers under their keys, and an empty value where a timer is
    /// cancelled. Errors: those of `store_many`, and as `set_timer`.
    pub fn commit<'w, W>(
        &mut self,
        key: &SessionKey<'_>,
        known: &mut Option<NamespaceRef>,
        writes: W,
        session_bytes_max: usize,
    ) -> Result<(), StateError>
    where
        W: Iterator<Item = (&'w [u8], &'w [u8])> + Clone,
    {
        let changes = writes.clone().filter_map(|(key, value)| Some((timer_name(key)?, !value.is_empty())));
        let has_timers = changes.clone().next().is_some();
        if has_timers && !self.has_room_for_timers(key, changes) {
            return Err(StateError::TooManyTimers);
        }
        self.store_many(key, known, writes.clone().map(committed), session_bytes_max)?;
        if has_timers {
            self.note_timer_writes(key, writes);
        }
        Ok(())
    }

    fn note_timer_writes<'w>(&mut self, key: &SessionKey<'_>, writes: impl Iterator<Item = (&'w [u8], &'w [u8])>) {
        for (state_key, value) in writes {
            let Some(name) = timer_name(state_key) else { continue };
            match TimerRecord::decode(value) {
                Some(record) => self.timers.set(key.app, key.session, name, record.at_ms),
                None => drop(self.timers.remove(key.app, key.session, name)),
            }
        }
    }

    /// The record of a timer; `None`: there is none.
    pub fn timer_record(&self, key: &SessionKey<'_>, name: &[u8]) -> Option<Vec<u8>> {
        let namespace = self.find_namespace(key, &mut None)?;
        let mut bytes = vec![0; RECORD_BYTES_MAX];
        let length = self.region(key.app)?.read(namespace, TimerKey::new(name).as_bytes(), &mut bytes)?;
        bytes.truncate(length);
        Some(bytes)
    }

    /// The region of an app was opened: it may have timers that are not known yet.
    pub(super) fn begin_timer_scan(&mut self, app: u16) {
        self.timers.forget_app(app);
        self.timer_scan.apps.retain(|(scanned, _)| *scanned != app);
        if self.region(app).is_some_and(|region| region.stats().sessions > 0) {
            self.timer_scan.apps.push((app, 0));
        }
    }

    /// True while `scan_timers` has something to do.
    pub fn is_scanning_timers(&self) -> bool {
        !self.timer_scan.apps.is_empty()
    }

    /// Looks for timers in the next of `SESSION_BUCKETS` parts of a region.
    pub fn scan_timers(&mut self) {
        let Some((app, bucket)) = self.timer_scan.apps.last_mut() else { return };
        let (app, at) = (*app, *bucket);
        *bucket += 1;
        if *bucket == SESSION_BUCKETS {
            self.timer_scan.apps.pop();
        }
        let Some(open) = self.regions.get(usize::from(app)).and_then(Option::as_ref) else { return };
        for (session, namespace) in open.region.sessions_of(at) {
            find_timers(&open.region, &mut self.timers, app, &session, namespace);
        }
    }

    /// Finds the timers of one session that came here with its state, or that the scan has not come to.
    pub fn load_timers(&mut self, key: &SessionKey<'_>) {
        let Some(namespace) = self.find_namespace(key, &mut None) else { return };
        let Some(open) = self.regions.get(usize::from(key.app)).and_then(Option::as_ref) else { return };
        find_timers(&open.region, &mut self.timers, key.app, key.session, namespace);
    }

    /// What the timers of a session want, also when the scan has not come to it; `None`: it has none.
    pub fn timer_outlook(&mut self, key: &SessionKey<'_>) -> Option<TimerOutlook> {
        self.find_timers_of(key);
        self.timers.outlook(key.app, key.session)
    }

    /// The same as `load_timers`, if the scan may not have come to it.
    fn find_timers_of(&mut self, key: &SessionKey<'_>) {
        if self.timer_scan.apps.iter().any(|(app, _)| *app == key.app) {
            self.load_timers(key);
        }
    }
}

fn find_timers(
    region: &super::region::Region,
    timers: &mut super::timers::TimerQueue,
    app: u16,
    session: &SessionId,
    namespace: NamespaceRef,
) {
    for key in region.keys(namespace) {
        let Some(name) = timer_name(key.as_bytes()) else { continue };
        let mut head = [0; RECORD_BYTES_MAX];
        let Some(length) = region.read(namespace, key.as_bytes(), &mut head) else { continue };
        if let Some(record) = head.get(..length).and_then(TimerRecord::decode) {
            timers.find_again(app, session, name, record.at_ms);
        }
    }
}
