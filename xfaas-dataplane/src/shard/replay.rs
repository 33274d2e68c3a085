//! The answers of idempotent functions, remembered for a minute: a duplicate gets the first answer again. CONTRACT.md section 2.
//! Bounded in bytes, oldest out first. Untouched by functions that are not idempotent.

use crate::sys::Peer;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::IDEMPOTENT_WINDOW_S;

const WINDOW_NS: u64 = IDEMPOTENT_WINDOW_S * 1_000_000_000;
/// Rough cost of an entry beside its answer: key twice, table, queue.
const ENTRY_BYTES: usize = 320;
/// Duplicates that wait for one running call; more get no answer of their own.
const WAITERS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ReplayKey {
    pub(super) function: u16,
    pub(super) session: SessionId,
    pub(super) request_id: u64,
}

/// What is known of a request.
pub(super) enum Replay<'a> {
    /// Run it, and tell `finish`.
    New,
    /// The first one still runs: its answer will go to this sender too.
    Running,
    Answered(&'a [u8]),
}

enum Entry {
    Running { waiters: Vec<Peer> },
    Answered { answer: Arc<[u8]> },
}

/// What the end of a call leaves to do.
pub(super) struct ReplayEnd {
    pub(super) waiters: Vec<Peer>,
    pub(super) evictions: u64,
}

/// What is known of one session's requests.
#[derive(Default)]
pub(super) struct SessionReplays {
    answered: Vec<(u64, ReplayKey, Arc<[u8]>)>,
    running: Vec<(ReplayKey, Vec<Peer>)>,
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

    pub(super) fn look_up(&mut self, key: &ReplayKey, peer: Peer, now_ns: u64) -> Replay<'_> {
        self.expire(now_ns);
        if !self.entries.contains_key(key) {
            self.entries.insert(*key, Entry::Running { waiters: Vec::new() });
            return Replay::New;
        }
        match self.entries.get_mut(key).expect("looked at just above") {
            Entry::Answered { answer } => Replay::Answered(answer),
            Entry::Running { waiters } => {
                if waiters.len() < WAITERS_MAX {
                    waiters.push(peer);
                }
                Replay::Running
            }
        }
    }

    pub(super) fn is_running(&self, key: &ReplayKey) -> bool {
        !self.entries.is_empty() && matches!(self.entries.get(key), Some(Entry::Running { .. }))
    }

    /// The call of `key` is over. `answer`: to be remembered; `None` when the function did not run, so that a repeat may run it.
    pub(super) fn finish(&mut self, key: &ReplayKey, answer: Option<&[u8]>, now_ns: u64) -> ReplayEnd {
        let waiters = match self.entries.remove(key) {
            Some(Entry::Running { waiters }) => waiters,
            _ => Vec::new(),
        };
        let mut evictions = 0;
        if let Some(answer) = answer {
            self.bytes += ENTRY_BYTES + answer.len();
            self.entries.insert(*key, Entry::Answered { answer: answer.into() });
            self.order.push_back((now_ns, *key));
            while self.bytes > self.bytes_max && self.order.len() > 1 {
                self.drop_oldest();
                evictions += 1;
            }
        }
        ReplayEnd { waiters, evictions }
    }

    /// Takes out what is known of a session's requests of those functions, to go on elsewhere. Cost: a look at every entry.
    pub(super) fn take_session(&mut self, session: &SessionId, is_wanted: impl Fn(u16) -> bool) -> SessionReplays {
        let is_of = |key: &ReplayKey| key.session == *session && is_wanted(key.function);
        let mut taken = SessionReplays::default();
        if self.entries.is_empty() {
            return taken;
        }
        let (gone, kept): (VecDeque<_>, VecDeque<_>) = self.order.drain(..).partition(|(_, key)| is_of(key));
        self.order = kept;
        for (at_ns, key) in gone {
            if let Some(Entry::Answered { answer }) = self.entries.remove(&key) {
                self.bytes -= ENTRY_BYTES + answer.len();
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
    pub(super) fn put_session(&mut self, replays: SessionReplays) {
        for (at_ns, key, answer) in replays.answered {
            self.bytes += ENTRY_BYTES + answer.len();
            self.entries.insert(key, Entry::Answered { answer });
            // Oldest first, as all clocks here are one.
            let at = self.order.partition_point(|(other_ns, _)| *other_ns <= at_ns);
            self.order.insert(at, (at_ns, key));
        }
        while self.bytes > self.bytes_max && self.order.len() > 1 {
            self.drop_oldest();
        }
        self.entries.extend(replays.running.into_iter().map(|(key, waiters)| (key, Entry::Running { waiters })));
    }

    fn expire(&mut self, now_ns: u64) {
        while self.order.front().is_some_and(|(at_ns, _)| now_ns.saturating_sub(*at_ns) >= WINDOW_NS) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((_, key)) = self.order.pop_front() else { return };
        if let Some(Entry::Answered { answer }) = self.entries.remove(&key) {
            self.bytes -= ENTRY_BYTES + answer.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(request_id: u64) -> ReplayKey {
        ReplayKey { function: 1, session: SessionId::new(b"alice").unwrap(), request_id }
    }

    fn peer(port: u16) -> Peer {
        Peer { address: std::net::SocketAddr::from(([127, 0, 0, 1], port)), local: None }
    }

    #[test]
    fn a_duplicate_gets_the_first_answer_for_a_minute() {
        let mut replays = Replays::new(1 << 20);
        assert!(matches!(replays.look_up(&key(1), peer(1), 0), Replay::New));
        assert!(matches!(replays.look_up(&key(1), peer(2), 0), Replay::Running));
        let end = replays.finish(&key(1), Some(b"one"), 10);
        assert_eq!((end.waiters, end.evictions), (vec![peer(2)], 0));
        assert!(matches!(replays.look_up(&key(1), peer(1), WINDOW_NS), Replay::Answered(b"one")));
        assert!(matches!(replays.look_up(&key(1), peer(1), WINDOW_NS + 10), Replay::New));
    }

    #[test]
    fn what_never_ran_may_run_again() {
        let mut replays = Replays::new(1 << 20);
        assert!(matches!(replays.look_up(&key(1), peer(1), 0), Replay::New));
        replays.finish(&key(1), None, 0);
        assert!(!replays.is_running(&key(1)));
        assert!(matches!(replays.look_up(&key(1), peer(1), 0), Replay::New));
    }

    #[test]
    fn the_oldest_answer_goes_first_when_memory_is_full() {
        let mut replays = Replays::new(3 * ENTRY_BYTES);
        let mut evictions = 0;
        for id in 0..5 {
            assert!(matches!(replays.look_up(&key(id), peer(1), id), Replay::New));
            evictions += replays.finish(&key(id), Some(b""), id).evictions;
        }
        assert_eq!(evictions, 2);
        assert!(matches!(replays.look_up(&key(4), peer(1), 5), Replay::Answered(b"")));
        assert!(matches!(replays.look_up(&key(1), peer(1), 5), Replay::New));
    }
}
