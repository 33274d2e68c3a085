//! The answers of idempotent functions, remembered for a minute: a duplicate gets the first answer again. CONTRACT.md section 2.
//! Bounded in bytes, oldest out first. Untouched by functions that are not idempotent.

use crate::session::Outcome;
use crate::sys::Peer;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::limits::IDEMPOTENT_WINDOW_S;

const WINDOW_NS: u64 = IDEMPOTENT_WINDOW_S * 1_000_000_000;
/// Rough cost of an entry beside its answer: key twice, table, queue.
const ENTRY_BYTES: usize = 320;
/// Duplicates that wait for one running call; more are refused.
const WAITERS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ReplayKey {
    /// Never another app's while the process runs, as a function's index may be: what one app's clients were told is nothing to another's.
    pub(super) app: u16,
    /// Stays the same when a function is deployed again.
    pub(super) function: FunctionHash,
    pub(super) session: SessionId,
    pub(super) request_id: u64,
}

/// Who sent a duplicate, and the session as it is named there: an alias is another name than the first one's, and an answer repeats the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) peer: Peer,
    pub(super) session: SessionId,
}

/// How the first call ended: what each asker's answer is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FirstAnswer {
    pub(super) outcome: Outcome,
    /// Empty unless it replied.
    pub(super) output: Arc<[u8]>,
}

/// What is known of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Replay {
    /// Run it, and tell `finish`.
    New,
    /// The first one still runs: its answer will go to this sender too.
    Running,
    /// The first one still runs, and as many wait for it as may.
    Full,
    Answered(FirstAnswer),
}

enum Entry {
    Running { waiters: Vec<Asker> },
    Answered { answer: FirstAnswer },
}

/// What the end of a call leaves to do.
pub(super) struct ReplayEnd {
    pub(super) waiters: Vec<Asker>,
    pub(super) evictions: u64,
}

/// What is known of one session's requests.
#[derive(Default)]
pub(super) struct SessionReplays {
    answered: Vec<(u64, ReplayKey, FirstAnswer)>,
    running: Vec<(ReplayKey, Vec<Asker>)>,
}

fn entry_bytes(answer: &FirstAnswer) -> usize {
    ENTRY_BYTES + answer.output.len()
}

pub(super) struct Replays {
    entries: HashMap<ReplayKey, Entry>,
    /// Answered keys, oldest first.
    order: VecDeque<(u64, ReplayKey)>,
    bytes: usize,
    bytes_max: usize,
}

impl Replays {
    pub(super) fn new(bytes_max: usize) -> Replays {
        Replays { entries: HashMap::new(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub(super) fn look_up(&mut self, key: &ReplayKey, asker: Asker, now_ns: u64) -> Replay {
        self.expire(now_ns);
        if !self.entries.contains_key(key) {
            self.entries.insert(*key, Entry::Running { waiters: Vec::new() });
            return Replay::New;
        }
        match self.entries.get_mut(key).expect("looked at just above") {
            Entry::Answered { answer } => Replay::Answered(answer.clone()),
            Entry::Running { waiters } if waiters.len() >= WAITERS_MAX => Replay::Full,
            Entry::Running { waiters } => {
                waiters.push(asker);
                Replay::Running
            }
        }
    }

    pub(super) fn is_running(&self, key: &ReplayKey) -> bool {
        !self.entries.is_empty() && matches!(self.entries.get(key), Some(Entry::Running { .. }))
    }

    /// The call of `key` is over. `answer`: to be remembered; `None` when the function did not run, so that a repeat may run it.
    pub(super) fn finish(&mut self, key: &ReplayKey, answer: Option<FirstAnswer>, now_ns: u64) -> ReplayEnd {
        let waiters = match self.entries.remove(key) {
            Some(Entry::Running { waiters }) => waiters,
            _ => Vec::new(),
        };
        let mut evictions = 0;
        if let Some(answer) = answer {
            self.bytes += entry_bytes(&answer);
            self.entries.insert(*key, Entry::Answered { answer });
            self.order.push_back((now_ns, *key));
            evictions = self.make_room();
        }
        ReplayEnd { waiters, evictions }
    }

    /// Takes out what is known of a session's requests, to go on elsewhere. Cost: a look at every entry.
    pub(super) fn take_session(&mut self, app: u16, session: &SessionId) -> SessionReplays {
        let is_of = |key: &ReplayKey| key.session == *session && key.app == app;
        let mut taken = SessionReplays::default();
        if self.entries.is_empty() {
            return taken;
        }
        let (gone, kept): (VecDeque<_>, VecDeque<_>) = self.order.drain(..).partition(|(_, key)| is_of(key));
        self.order = kept;
        for (at_ns, key) in gone {
            if let Some(Entry::Answered { answer }) = self.entries.remove(&key) {
                self.bytes -= entry_bytes(&answer);
                taken.answered.push((at_ns, key, answer));
            }
        }
        let running: Vec<ReplayKey> = self.entries.keys().filter(|key| is_of(key)).copied().collect();
        for key in running {
            if let Some(Entry::Running { waiters }) = self.entries.remove(&key) {
                taken.running.push((key, waiters));
            }
        }
        taken
    }

    /// Takes over what is known of a session's requests. Those that run are to be run here next.
    /// Output: answers dropped before their time because there was no room for all.
    pub(super) fn put_session(&mut self, replays: SessionReplays) -> u64 {
        for (at_ns, key, answer) in replays.answered {
            self.bytes += entry_bytes(&answer);
            self.entries.insert(key, Entry::Answered { answer });
            // Oldest first, as all clocks here are one.
            let at = self.order.partition_point(|(other_ns, _)| *other_ns <= at_ns);
            self.order.insert(at, (at_ns, key));
        }
        self.entries.extend(replays.running.into_iter().map(|(key, waiters)| (key, Entry::Running { waiters })));
        self.make_room()
    }

    /// Drops the oldest answers until the others fit. Output: how many.
    fn make_room(&mut self) -> u64 {
        let mut evictions = 0;
        while self.bytes > self.bytes_max && self.order.len() > 1 {
            self.drop_oldest();
            evictions += 1;
        }
        evictions
    }

    fn expire(&mut self, now_ns: u64) {
        while self.order.front().is_some_and(|(at_ns, _)| now_ns.saturating_sub(*at_ns) >= WINDOW_NS) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((_, key)) = self.order.pop_front() else { return };
        if let Some(Entry::Answered { answer }) = self.entries.remove(&key) {
            self.bytes -= entry_bytes(&answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(request_id: u64) -> ReplayKey {
        ReplayKey { app: 1, function: FunctionHash(7), session: SessionId::new(b"alice").unwrap(), request_id }
    }

    fn asker(port: u16) -> Asker {
        let peer = Peer { address: std::net::SocketAddr::from(([127, 0, 0, 1], port)), local: None };
        Asker { peer, session: SessionId::new(format!("name-{port}").as_bytes()).unwrap() }
    }

    fn output(text: &[u8]) -> FirstAnswer {
        FirstAnswer { outcome: Outcome::Replied, output: text.into() }
    }

    #[test]
    fn a_duplicate_gets_the_first_answer_for_a_minute() {
        let mut replays = Replays::new(1 << 20);
        assert_eq!(replays.look_up(&key(1), asker(1), 0), Replay::New);
        assert_eq!(replays.look_up(&key(1), asker(2), 0), Replay::Running);
        let end = replays.finish(&key(1), Some(output(b"one")), 10);
        assert_eq!((end.waiters, end.evictions), (vec![asker(2)], 0));
        assert_eq!(replays.look_up(&key(1), asker(1), WINDOW_NS), Replay::Answered(output(b"one")));
        assert_eq!(replays.look_up(&key(1), asker(1), WINDOW_NS + 10), Replay::New);
    }

    #[test]
    fn one_duplicate_more_than_may_wait_is_refused() {
        let mut replays = Replays::new(1 << 20);
        assert_eq!(replays.look_up(&key(1), asker(0), 0), Replay::New);
        assert!((0..WAITERS_MAX as u16).all(|port| replays.look_up(&key(1), asker(port), 0) == Replay::Running));
        assert_eq!(replays.look_up(&key(1), asker(1), 0), Replay::Full);
        assert_eq!(replays.finish(&key(1), Some(output(b"one")), 10).waiters.len(), WAITERS_MAX);
        assert_eq!(replays.look_up(&key(1), asker(1), 10), Replay::Answered(output(b"one")));
    }

    #[test]
    fn what_never_ran_may_run_again() {
        let mut replays = Replays::new(1 << 20);
        assert_eq!(replays.look_up(&key(1), asker(1), 0), Replay::New);
        replays.finish(&key(1), None, 0);
        assert!(!replays.is_running(&key(1)));
        assert_eq!(replays.look_up(&key(1), asker(1), 0), Replay::New);
    }

    #[test]
    fn the_oldest_answer_goes_first_when_memory_is_full() {
        let mut replays = Replays::new(3 * ENTRY_BYTES);
        let mut evictions = 0;
        for id in 0..5 {
            assert_eq!(replays.look_up(&key(id), asker(1), id), Replay::New);
            evictions += replays.finish(&key(id), Some(output(b"")), id).evictions;
        }
        assert_eq!(evictions, 2);
        assert_eq!(replays.look_up(&key(4), asker(1), 5), Replay::Answered(output(b"")));
        assert_eq!(replays.look_up(&key(1), asker(1), 5), Replay::New);
    }

    #[test]
    fn a_session_that_arrives_with_more_than_there_is_room_for_drops_the_oldest_and_says_so() {
        let (mut from, mut to) = (Replays::new(1 << 20), Replays::new(3 * ENTRY_BYTES));
        for id in 0..3 {
            assert_eq!(from.look_up(&key(id), asker(1), id), Replay::New);
            from.finish(&key(id), Some(output(b"")), id);
        }
        let other = ReplayKey { session: SessionId::new(b"bob").unwrap(), ..key(9) };
        for id in 3..5 {
            assert_eq!(to.look_up(&ReplayKey { request_id: id, ..other }, asker(1), id), Replay::New);
            to.finish(&ReplayKey { request_id: id, ..other }, Some(output(b"")), id);
        }
        let session = key(0).session;
        assert_eq!(to.put_session(from.take_session(1, &session)), 2);
        assert_eq!(to.look_up(&key(1), asker(1), 5), Replay::New);
        assert_eq!(to.look_up(&key(2), asker(1), 5), Replay::Answered(output(b"")));
    }
}
