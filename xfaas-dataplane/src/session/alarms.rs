//! Sessions that sleep and are to be in memory again at some time: because a timer of theirs is due, or because a request is expected.
//! Called by the shard's `waking`. No clock, no I/O: times come in, milliseconds of whatever clock the caller reads.

use std::collections::{BTreeMap, HashMap};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{TIMER_RETRY_MS_MAX, timer_retry_ms};

/// Entries that are counted one by one to find how many are late.
const COUNTED_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug)]
struct Alarm {
    at_ms: u64,
    next_ms: u64,
    tries: u8,
}

/// At most one time a session. Memory: some 250 bytes each.
#[derive(Debug, Default)]
pub struct Alarms {
    by_time: BTreeMap<(u64, SessionId), u64>,
    /// Clients choose the names, so the table's hash has a secret.
    by_session: HashMap<SessionId, Alarm>,
}

impl Alarms {
    pub fn len(&self) -> usize {
        self.by_session.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_session.is_empty()
    }

    /// The session is needed at `at_ms` and to be woken `ahead_ms` before. Takes the place of what was set for it.
    pub fn set(&mut self, session: &SessionId, at_ms: u64, ahead_ms: u64) {
        self.put(session, Alarm { at_ms, next_ms: at_ms.saturating_sub(ahead_ms), tries: 0 });
    }

    fn put(&mut self, session: &SessionId, alarm: Alarm) {
        if let Some(old) = self.by_session.insert(*session, alarm) {
            self.by_time.remove(&(old.next_ms, *session));
        }
        self.by_time.insert((alarm.next_ms, *session), alarm.at_ms);
    }

    pub fn remove(&mut self, session: &SessionId) {
        if let Some(alarm) = self.by_session.remove(session) {
            self.by_time.remove(&(alarm.next_ms, *session));
        }
    }

    /// A session that is to be woken now. It stays here until `remove`; meanwhile it is named again, later each time: a try may be in vain.
    pub fn take_due(&mut self, now_ms: u64) -> Option<SessionId> {
        let ((next_ms, session), _) = self.by_time.first_key_value()?;
        if *next_ms > now_ms {
            return None;
        }
        let session = *session;
        let alarm = *self.by_session.get(&session).expect("what has a time is a session's");
        let wait_ms = u64::from(timer_retry_ms(u32::from(alarm.tries)));
        self.put(&session, Alarm { next_ms: now_ms.saturating_add(wait_ms), tries: alarm.tries.saturating_add(1), ..alarm });
        Some(session)
    }

    /// Sessions that were needed more than `late_ms` ago, of the first 10,000.
    pub fn overdue(&self, now_ms: u64, late_ms: u64) -> usize {
        // What is late was due, and so is named again within the longest wait.
        let tried = self.by_time.range(..(now_ms.saturating_add(u64::from(TIMER_RETRY_MS_MAX) + 1), smallest())).take(COUNTED_MAX);
        tried.filter(|(_, at_ms)| at_ms.saturating_add(late_ms) < now_ms).count()
    }
}

/// No session's name comes before it.
fn smallest() -> SessionId {
    SessionId::new(b"!").expect("one visible character is a name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn session(name: &str) -> SessionId {
        SessionId::new(name.as_bytes()).unwrap()
    }

    #[test]
    fn a_session_is_named_ahead_of_its_time_and_again_until_it_is_removed() {
        let (mut alarms, a, b) = (Alarms::default(), session("a"), session("b"));
        alarms.set(&a, 10_000, 2_000);
        alarms.set(&b, 9_000, 0);
        assert_eq!(alarms.take_due(7_999), None);
        assert_eq!((alarms.take_due(8_000), alarms.take_due(8_000)), (Some(a), None));
        assert_eq!((alarms.overdue(11_000, 1_000), alarms.overdue(11_001, 1_000)), (1, 2), "b was never tried, a in vain");
        assert_eq!((alarms.take_due(9_000), alarms.take_due(9_000), alarms.take_due(9_000)), (Some(a), Some(b), None));
        let mut now_ms = 9_000;
        for wait_ms in [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            alarms.remove(&b);
            assert_eq!(alarms.take_due(now_ms + wait_ms - 1), None, "{wait_ms}");
            now_ms += wait_ms;
            assert_eq!(alarms.take_due(now_ms), Some(a));
            assert_eq!(alarms.overdue(now_ms, 1_000), usize::from(now_ms > 11_000));
        }
        alarms.set(&a, now_ms + 5, 0);
        assert_eq!((alarms.len(), alarms.take_due(now_ms + 5)), (1, Some(a)));
        alarms.remove(&a);
        alarms.remove(&a);
        assert!(alarms.is_empty() && alarms.by_time.is_empty());
    }

    proptest! {
        #[test]
        fn both_orders_hold_the_same(ops in prop::collection::vec((0..4_u8, 0..6_u8, 0..5_000_u64), 0..200)) {
            let (mut alarms, mut model, mut now_ms) = (Alarms::default(), HashMap::new(), 0_u64);
            for (op, name, time) in ops {
                let id = session(&name.to_string());
                match op {
                    0 => {
                        alarms.set(&id, now_ms + time, 0);
                        model.insert(id, now_ms + time);
                    }
                    1 => {
                        alarms.remove(&id);
                        model.remove(&id);
                    }
                    _ => {
                        now_ms += time;
                        while let Some(due) = alarms.take_due(now_ms) {
                            prop_assert!(model[&due] <= now_ms);
                        }
                    }
                }
                prop_assert_eq!((alarms.len(), alarms.by_time.len()), (model.len(), model.len()));
                let late = model.values().filter(|at_ms| **at_ms + 100 < now_ms).count();
                prop_assert_eq!(alarms.overdue(now_ms, 100), late);
                for ((next_ms, of), at_ms) in &alarms.by_time {
                    prop_assert_eq!((alarms.by_session[of].next_ms, model[of]), (*next_ms, *at_ms));
                }
            }
        }
    }
}
