//! Timers of one shard's sessions: which are due when, in an order that is kept in memory, beside their records, which are state and outlive it.
//! Set by guests (`worker::timers`), fired by the shard's loop, found again in the regions after a start.
//!
//! A timer's record is a value of its session under a key that begins with a NUL, which no guest can name:
//! `u8 version=1 | 3 bytes 0 | u32 function | i64 at, unix ms | payload`, numbers little-endian; `function` is the FNV-1a-32 of its name.

use std::collections::{BTreeMap, HashMap};

use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::limits::{
    TIMER_NAME_BYTES_MAX, TIMER_OVERDUE_MS, TIMER_PAYLOAD_BYTES_MAX, TIMERS_SESSION_MAX, TIMERS_SHARD_MAX, timer_retry_ms,
};

/// What a timer's key begins with.
const KEY_PREFIX: &[u8] = b"\0t";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 16;
/// Timers that are counted one by one to find how many are overdue.
const COUNTED_MAX: usize = 10_000;

/// The key of a timer in its session's state.
pub struct TimerKey {
    bytes: [u8; KEY_PREFIX.len() + TIMER_NAME_BYTES_MAX],
    length: usize,
}

impl TimerKey {
    /// Input: a name of 1..=`TIMER_NAME_BYTES_MAX` bytes.
    pub fn new(name: &[u8]) -> TimerKey {
        assert!((1..=TIMER_NAME_BYTES_MAX).contains(&name.len()), "names are checked where guests give them");
        let mut bytes = [0; KEY_PREFIX.len() + TIMER_NAME_BYTES_MAX];
        let length = KEY_PREFIX.len() + name.len();
        bytes[..KEY_PREFIX.len()].copy_from_slice(KEY_PREFIX);
        bytes[KEY_PREFIX.len()..length].copy_from_slice(name);
        TimerKey { bytes, length }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The name of the timer whose record has this key; `None`: it is a guest's key.
pub fn timer_name(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(KEY_PREFIX).filter(|name| (1..=TIMER_NAME_BYTES_MAX).contains(&name.len()))
}

/// A write as it takes effect at a commit: the empty value of a timer, which no record is, deletes it.
pub(super) fn committed<'w>((key, value): (&'w [u8], &'w [u8])) -> (&'w [u8], Option<&'w [u8]>) {
    (key, (!value.is_empty() || timer_name(key).is_none()).then_some(value))
}

/// What is kept of a timer beside its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerRecord<'a> {
    /// The function that set it and is to be run.
    pub function: FunctionHash,
    /// Unix milliseconds.
    pub at_ms: i64,
    pub payload: &'a [u8],
}

impl<'a> TimerRecord<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.payload.len());
        bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
        bytes.extend_from_slice(&self.function.0.to_le_bytes());
        bytes.extend_from_slice(&self.at_ms.to_le_bytes());
        bytes.extend_from_slice(self.payload);
        bytes
    }

    /// `None`: these bytes are no record of this version.
    pub fn decode(bytes: &'a [u8]) -> Option<TimerRecord<'a>> {
        let (head, payload) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let [version, 0, 0, 0, rest @ ..] = head else { return None };
        let (function, at) = rest.split_first_chunk::<4>()?;
        let at_ms = i64::from_le_bytes(*at.first_chunk()?);
        let is_known = *version == VERSION && payload.len() <= TIMER_PAYLOAD_BYTES_MAX;
        is_known.then_some(TimerRecord { function: FunctionHash(u32::from_le_bytes(*function)), at_ms, payload })
    }
}

/// A session's timer.
struct Timer {
    name: Box<[u8]>,
    at_ms: i64,
    /// Tells it from an earlier one of the same name.
    number: u64,
    /// When it is to be run next; `None`: it runs.
    due_ms: Option<i64>,
    /// Since it last was set, or the start.
    failures: u32,
}

/// A timer that is to be run now.
#[derive(Debug, PartialEq, Eq)]
pub struct DueTimer {
    pub app: u16,
    pub session: SessionId,
    pub name: Box<[u8]>,
    pub number: u64,
}

/// The timers of one session together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerOutlook {
    /// The earliest time that one was set for, unix milliseconds.
    pub first_ms: i64,
    /// None of them runs or has failed.
    pub is_calm: bool,
}

type Sessions = HashMap<(u16, SessionId), Vec<Timer>>;

/// The timers of one shard, at most `TIMERS_SHARD_MAX`.
#[derive(Default)]
pub struct TimerQueue {
    /// Sessions choose their names, so the table's hash has a secret.
    sessions: Sessions,
    /// Of those that do not run, by time and number.
    waiting: BTreeMap<(i64, u64), (u16, SessionId)>,
    timers: usize,
    /// Of the last timer that was set.
    number: u64,
    running: usize,
    failing: usize,
}

impl TimerQueue {
    /// The timers of a shard. Their numbers are not those of another shard, so that a run that went there with its session ends nothing else.
    pub fn of_shard(shard: u16) -> TimerQueue {
        TimerQueue { number: u64::from(shard) << 48, ..TimerQueue::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.timers == 0
    }

    pub fn len(&self) -> usize {
        self.timers
    }

    /// Invocations under way.
    pub fn running(&self) -> usize {
        self.running
    }

    /// When the first one is due that does not run.
    pub fn next_due_ms(&self) -> Option<i64> {
        self.waiting.first_key_value().map(|((due_ms, _), _)| *due_ms)
    }

    /// Timers that failed since they were due, and those whose time passed a second ago without a try; of the latter the first 10,000.
    pub fn overdue(&self, now_ms: i64) -> usize {
        let late = self.waiting.range(..(now_ms.saturating_sub(i64::from(TIMER_OVERDUE_MS)), 0)).take(COUNTED_MAX);
        let untried = late.filter(|((_, number), owner)| self.find(owner, *number).is_some_and(|timer| timer.failures == 0));
        self.failing + untried.count()
    }

    fn find(&self, owner: &(u16, SessionId), number: u64) -> Option<&Timer> {
        self.sessions.get(owner)?.iter().find(|timer| timer.number == number)
    }

    /// True when timers of these names may be set (true) and cancelled (false); the names are all different.
    pub fn has_room<'n>(&self, app: u16, session: &SessionId, changes: impl Iterator<Item = (&'n [u8], bool)>) -> bool {
        let (mut more, mut fewer) = (0, 0);
        for (name, is_set) in changes {
            match (is_set, self.contains(app, session, name)) {
                (true, false) => more += 1,
                (false, true) => fewer += 1,
                _ => {}
            }
        }
        let held = self.sessions.get(&(app, *session)).map_or(0, Vec::len);
        more <= fewer || (held + more - fewer <= TIMERS_SESSION_MAX && self.timers + more - fewer <= TIMERS_SHARD_MAX)
    }

    /// True when the session has a timer.
    pub fn has_any(&self, app: u16, session: &SessionId) -> bool {
        self.sessions.contains_key(&(app, *session))
    }

    /// What the session's timers want; `None`: it has none.
    pub fn outlook(&self, app: u16, session: &SessionId) -> Option<TimerOutlook> {
        let timers = self.sessions.get(&(app, *session))?;
        let first_ms = timers.iter().map(|timer| timer.at_ms).min()?;
        Some(TimerOutlook { first_ms, is_calm: timers.iter().all(|timer| timer.due_ms.is_some() && timer.failures == 0) })
    }

    pub fn contains(&self, app: u16, session: &SessionId, name: &[u8]) -> bool {
        self.sessions.get(&(app, *session)).is_some_and(|timers| timers.iter().any(|timer| *timer.name == *name))
    }

    /// Sets a timer, in place of one of the same name; what runs of that one is not its own any more.
    pub fn set(&mut self, app: u16, session: &SessionId, name: &[u8], at_ms: i64) {
        self.remove(app, session, name);
        self.number += 1;
        let (owner, number) = ((app, *session), self.number);
        self.waiting.insert((at_ms, number), owner);
        self.sessions.entry(owner).or_default().push(Timer { name: name.into(), at_ms, number, due_ms: Some(at_ms), failures: 0 });
        self.timers += 1;
    }

    /// Sets a timer that was found in a region, unless it is known already.
    pub fn find_again(&mut self, app: u16, session: &SessionId, name: &[u8], at_ms: i64) {
        if !self.contains(app, session, name) {
            self.set(app, session, name, at_ms);
        }
    }

    /// False: there was none.
    pub fn remove(&mut self, app: u16, session: &SessionId, name: &[u8]) -> bool {
        self.remove_if((app, *session), |timer| *timer.name == *name).is_some()
    }

    fn remove_if(&mut self, owner: (u16, SessionId), is_meant: impl Fn(&Timer) -> bool) -> Option<Timer> {
        let timers = self.sessions.get_mut(&owner)?;
        let at = timers.iter().position(is_meant)?;
        let timer = timers.swap_remove(at);
        if timers.is_empty() {
            self.sessions.remove(&owner);
        }
        match timer.due_ms {
            Some(due_ms) => drop(self.waiting.remove(&(due_ms, timer.number))),
            None => self.running -= 1,
        }
        self.failing -= usize::from(timer.failures > 0);
        self.timers -= 1;
        Some(timer)
    }

    /// Forgets the timers of a session; their records stay.
    pub fn forget_session(&mut self, app: u16, session: &SessionId) {
        while self.remove_if((app, *session), |_| true).is_some() {}
    }

    /// The same of all sessions of an app.
    pub fn forget_app(&mut self, app: u16) {
        let sessions: Vec<SessionId> = self.sessions.keys().filter(|owner| owner.0 == app).map(|owner| owner.1).collect();
        sessions.iter().for_each(|session| self.forget_session(app, session));
    }

    /// The next one whose time has come. It counts as running until `retry` or `remove`.
    pub fn take_due(&mut self, now_ms: i64) -> Option<DueTimer> {
        let (&(due_ms, number), &owner) = self.waiting.first_key_value()?;
        if due_ms > now_ms {
            return None;
        }
        self.waiting.remove(&(due_ms, number));
        let timer = timer_mut(&mut self.sessions, &owner, number).expect("what waits is a session's timer");
        timer.due_ms = None;
        self.running += 1;
        Some(DueTimer { app: owner.0, session: owner.1, name: timer.name.clone(), number })
    }

    /// The name of a timer that was taken, unless it was set anew or cancelled meanwhile.
    pub fn name_of(&self, app: u16, session: &SessionId, number: u64) -> Option<Box<[u8]>> {
        self.find(&(app, *session), number).map(|timer| timer.name.clone())
    }

    /// The invocation of a timer failed: it is run again, later each time.
    pub fn retry(&mut self, app: u16, session: &SessionId, number: u64, now_ms: i64) {
        let owner = (app, *session);
        let Some(timer) = timer_mut(&mut self.sessions, &owner, number) else { return };
        debug_assert!(timer.due_ms.is_none(), "only what runs can fail");
        self.failing += usize::from(timer.failures == 0);
        let wait_ms = i64::from(timer_retry_ms(timer.failures));
        timer.failures = timer.failures.saturating_add(1);
        let due_ms = now_ms.max(timer.at_ms).saturating_add(wait_ms);
        timer.due_ms = Some(due_ms);
        self.running -= 1;
        self.waiting.insert((due_ms, number), owner);
    }
}

fn timer_mut<'s>(sessions: &'s mut Sessions, owner: &(u16, SessionId), number: u64) -> Option<&'s mut Timer> {
    sessions.get_mut(owner)?.iter_mut().find(|timer| timer.number == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(name: &str) -> SessionId {
        SessionId::new(name.as_bytes()).unwrap()
    }

    #[test]
    fn a_record_comes_back_as_it_was_and_other_bytes_do_not() {
        let record = TimerRecord { function: FunctionHash(7), at_ms: -5, payload: b"later" };
        let bytes = record.encode();
        assert_eq!(TimerRecord::decode(&bytes), Some(record));
        assert_eq!(TimerRecord::decode(&bytes[..HEAD_BYTES]), Some(TimerRecord { payload: b"", ..record }));
        for bad in [&bytes[..HEAD_BYTES - 1], &[&[2], &bytes[1..]].concat(), &[&[1, 1], &bytes[2..]].concat(), b""] {
            assert_eq!(TimerRecord::decode(bad), None);
        }
        assert_eq!(timer_name(TimerKey::new(b"wake").as_bytes()), Some(&b"wake"[..]));
        for key in [&b"t"[..], b"\0t", b"\0x", b"name", b""] {
            assert_eq!(timer_name(key), None);
        }
    }

    #[test]
    fn timers_are_due_in_the_order_of_their_times_and_leave_when_they_ended_well() {
        let (mut queue, a, b) = (TimerQueue::default(), session("a"), session("b"));
        queue.set(1, &a, b"late", 300);
        queue.set(1, &b, b"early", 100);
        queue.set(1, &a, b"middle", 200);
        assert_eq!((queue.len(), queue.next_due_ms()), (3, Some(100)));
        assert_eq!(queue.take_due(99), None);
        let early = queue.take_due(250).unwrap();
        let middle = queue.take_due(250).unwrap();
        assert_eq!((&*early.name, &*middle.name, queue.take_due(250)), (&b"early"[..], &b"middle"[..], None));
        assert_eq!(queue.running(), 2);
        assert_eq!(queue.name_of(1, &b, early.number).as_deref(), Some(&b"early"[..]));
        assert!(queue.remove(1, &b, b"early") && queue.name_of(1, &b, early.number).is_none());
        // Set anew while it ran: the new one stays.
        queue.set(1, &a, b"middle", 400);
        assert_eq!(queue.name_of(1, &a, middle.number), None);
        assert_eq!((queue.len(), queue.running(), queue.next_due_ms()), (2, 0, Some(300)));
        assert!(queue.remove(1, &a, b"late") && !queue.remove(1, &a, b"late"));
        queue.forget_session(1, &a);
        assert!(queue.is_empty() && queue.next_due_ms().is_none() && queue.sessions.is_empty());
    }

    #[test]
    fn a_failed_timer_comes_again_later_each_time_and_is_overdue_until_it_ends_well() {
        let (mut queue, a) = (TimerQueue::default(), session("a"));
        queue.set(0, &a, b"n", 1_000);
        assert_eq!((queue.overdue(1_900), queue.overdue(2_500)), (0, 1), "nobody began it");
        queue.set(0, &a, b"far", i64::MAX);
        assert_eq!(queue.outlook(0, &a), Some(TimerOutlook { first_ms: 1_000, is_calm: true }));
        assert!(queue.remove(0, &a, b"far") && queue.outlook(1, &a).is_none());
        let mut now_ms = 1_000;
        for wait_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            let due = queue.take_due(now_ms).unwrap();
            assert_eq!(queue.outlook(0, &a), Some(TimerOutlook { first_ms: 1_000, is_calm: false }));
            queue.retry(0, &a, due.number, now_ms);
            assert_eq!((queue.next_due_ms(), queue.overdue(now_ms)), (Some(now_ms + wait_ms), 1));
            now_ms += wait_ms;
        }
        let due = queue.take_due(now_ms).unwrap();
        assert_eq!(queue.overdue(now_ms), 1);
        assert_eq!(queue.name_of(0, &a, due.number).as_deref(), Some(&b"n"[..]));
        assert!(queue.remove(0, &a, b"n"));
        assert_eq!((queue.overdue(now_ms), queue.failing, queue.running()), (0, 0, 0));
    }

    /// What a timer is in the model: its time, when it is due next if it does not run, and its failures.
    type Model = BTreeMap<(u8, u8), (i64, Option<i64>, u32)>;

    proptest::proptest! {
        #[test]
        fn the_queue_does_what_a_plain_list_does(ops in proptest::collection::vec((0..6_u8, 0..3_u8, 0..4_u8, 0..50_i64), 0..200)) {
            let (mut queue, mut model, mut now_ms, mut running) = (TimerQueue::default(), Model::new(), 0_i64, Vec::new());
            let sessions = ["a", "b", "c"].map(session);
            for (op, owner, name, time) in ops {
                let (of, id) = ((owner, name), &sessions[usize::from(owner)]);
                match op {
                    0 | 1 => {
                        queue.set(0, id, &[name], now_ms + time);
                        model.insert(of, (now_ms + time, Some(now_ms + time), 0));
                        running.retain(|(other, _)| *other != of);
                    }
                    2 => {
                        proptest::prop_assert_eq!(queue.remove(0, id, &[name]), model.remove(&of).is_some());
                        running.retain(|(other, _)| *other != of);
                    }
                    3 => {
                        now_ms += time;
                        while let Some(due) = queue.take_due(now_ms) {
                            let of = (sessions.iter().position(|other| *other == due.session).unwrap() as u8, due.name[0]);
                            let first = model.values().filter_map(|(_, due_ms, _)| *due_ms).min().unwrap();
                            proptest::prop_assert_eq!(model[&of].1, Some(first));
                            proptest::prop_assert!(first <= now_ms);
                            model.get_mut(&of).unwrap().1 = None;
                            running.push((of, due.number));
                        }
                        proptest::prop_assert!(model.values().all(|(_, due_ms, _)| due_ms.is_none_or(|due_ms| due_ms > now_ms)));
                    }
                    _ => {
                        let Some((of, number)) = running.pop() else { continue };
                        let id = &sessions[usize::from(of.0)];
                        proptest::prop_assert_eq!(queue.name_of(0, id, number), Some(Box::from([of.1])));
                        if op == 4 {
                            queue.remove(0, id, &[of.1]);
                            model.remove(&of);
                        } else {
                            queue.retry(0, id, number, now_ms);
                            let (at_ms, due_ms, failures) = model.get_mut(&of).unwrap();
                            *due_ms = Some(now_ms.max(*at_ms) + (1_000 << (*failures).min(16)).min(60_000));
                            *failures += 1;
                        }
                    }
                }
                proptest::prop_assert_eq!(queue.len(), model.len());
                proptest::prop_assert_eq!(queue.running(), running.len());
                proptest::prop_assert_eq!(queue.next_due_ms(), model.values().filter_map(|(_, due_ms, _)| *due_ms).min());
                proptest::prop_assert_eq!(queue.failing, model.values().filter(|(_, _, failures)| *failures > 0).count());
            }
        }
    }

    #[test]
    fn a_session_has_room_for_its_maximum_and_no_more() {
        let (mut queue, a) = (TimerQueue::default(), session("a"));
        for number in 0..TIMERS_SESSION_MAX {
            assert!(queue.has_room(3, &a, [(&b"new"[..], true)].into_iter()));
            queue.set(3, &a, number.to_string().as_bytes(), 5);
        }
        let has_room = |app, changes: &[(&[u8], bool)]| queue.has_room(app, &a, changes.iter().copied());
        assert!(!has_room(3, &[(b"new", true)]) && has_room(3, &[(b"0", true)]) && has_room(2, &[(b"new", true)]));
        assert!(has_room(3, &[(b"new", true), (b"0", false)]) && !has_room(3, &[(b"new", true), (b"none", false)]));
        queue.set(3, &a, b"0", 6);
        assert_eq!(queue.len(), TIMERS_SESSION_MAX);
        assert!(queue.has_any(3, &a) && !queue.has_any(2, &a));
        queue.forget_app(3);
        assert!(queue.is_empty());
    }
}
