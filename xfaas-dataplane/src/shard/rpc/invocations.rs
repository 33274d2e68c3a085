//! Invocations elsewhere that hold or wait for a lock of this shard, by the index that is in their token: those in containers of other processes while
//! they do, those in secondary containers on other shards of this one from their begin to their end.

use crate::session::RemoteTicket;
use crate::state::CallToken;
use crate::worker::Origin;
use slab::Slab;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::limits::{RPC_SHARD_INVOCATIONS_MAX, RPC_WAITING_BYTES_MAX};

/// Who asked, and how the answer gets there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// A frame of a connection.
    Frame { connection: u32, request_id: u64, function: FunctionHash },
    /// A worker on another shard of this process, in the invocation of this index.
    Shard { shard: u16, ticket: RemoteTicket, invocation: u32 },
}

/// What a request is about, found once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) asker: Asker,
    pub(super) session: SessionId,
    pub(super) table_hash: u32,
    pub(super) app: u16,
    pub(super) read_only: bool,
    pub(super) session_bytes_max: usize,
}

/// What is done when the lock is there.
#[derive(Debug)]
pub(super) enum Task {
    Read { bytes_max: u32 },
    Write { value: Box<[u8]> },
}

/// A request that waits for a lock.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) asked: Asked,
    pub(super) key: Box<[u8]>,
    pub(super) task: Task,
    /// When the wait ends in vain, on the monotonic clock, and whether that is the asker's deadline rather than `lock_wait_ms`.
    pub(super) until_ns: u64,
    pub(super) is_askers_deadline: bool,
}

impl Waiting {
    /// What counts: each one from another shard is a worker's there, and those are bounded.
    fn bytes(&self) -> usize {
        match (&self.asked.asker, &self.task) {
            (Asker::Shard { .. }, _) => 0,
            (Asker::Frame { .. }, Task::Read { .. }) => self.key.len(),
            (Asker::Frame { .. }, Task::Write { value }) => self.key.len() + value.len(),
        }
    }
}

/// Where an invocation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum Holder {
    /// In the container at the other end of a connection.
    Connection(u32),
    /// On another shard of this process, for the sake of `origin`, which may be gone meanwhile.
    Shard { shard: u16, origin: Origin, is_cancelled: bool },
}

pub(super) struct Invocation {
    pub(super) holder: Holder,
    /// The container's number for it; 0 where it is on another shard.
    pub(super) number: u64,
    waiting: Option<Waiting>,
}

#[derive(Default)]
pub(super) struct Invocations {
    slab: Slab<Invocation>,
    /// Those on other shards.
    on_shards: usize,
    waiting: usize,
    waiting_bytes: usize,
}

impl Invocations {
    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// Those in containers of other processes.
    pub(super) fn in_containers(&self) -> usize {
        self.slab.len() - self.on_shards
    }

    /// Notes that nobody waits for the call of `origin` any more. Output: the shard on which it runs, if it is another one.
    pub(super) fn cancel(&mut self, origin: &Origin) -> Option<u16> {
        if self.on_shards == 0 {
            return None; // a reset costs no search through what containers hold
        }
        self.slab.iter_mut().find_map(|(_, invocation)| match &mut invocation.holder {
            Holder::Shard { shard, origin: other, is_cancelled } if other == origin => {
                *is_cancelled = true;
                Some(*shard)
            }
            _ => None,
        })
    }

    /// Requests that wait for a lock.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// `None`: there are as many as may be.
    pub(super) fn add(&mut self, holder: Holder, number: u64) -> Option<u32> {
        if self.slab.len() >= RPC_SHARD_INVOCATIONS_MAX {
            return None;
        }
        self.on_shards += usize::from(matches!(holder, Holder::Shard { .. }));
        Some(self.slab.insert(Invocation { holder, number, waiting: None }) as u32)
    }

    pub(super) fn get(&self, index: u32) -> Option<&Invocation> {
        self.slab.get(index as usize)
    }

    pub(super) fn is_waiting(&self, index: u32) -> bool {
        self.get(index).is_some_and(|invocation| invocation.waiting.is_some())
    }

    /// True when a request of so many bytes may wait.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.waiting_bytes + bytes <= RPC_WAITING_BYTES_MAX
    }

    pub(super) fn wait(&mut self, index: u32, waiting: Waiting) {
        let invocation = &mut self.slab[index as usize];
        assert!(invocation.waiting.is_none(), "a waiting invocation is refused before");
        self.waiting += 1;
        self.waiting_bytes += waiting.bytes();
        invocation.waiting = Some(waiting);
    }

    /// Ends a wait. Output: `None` when there is no such invocation any more, or it does not wait.
    pub(super) fn take_waiting(&mut self, index: u32) -> Option<Waiting> {
        let waiting = self.slab.get_mut(index as usize)?.waiting.take()?;
        self.waiting -= 1;
        self.waiting_bytes -= waiting.bytes();
        Some(waiting)
    }

    pub(super) fn remove(&mut self, index: u32) -> Invocation {
        self.take_waiting(index);
        let removed = self.slab.remove(index as usize);
        self.on_shards -= usize::from(matches!(removed.holder, Holder::Shard { .. }));
        removed
    }

    /// Tokens of those whose wait is over in vain.
    pub(super) fn late(&self, now_ns: u64) -> Vec<CallToken> {
        let is_late = |invocation: &Invocation| invocation.waiting.as_ref().is_some_and(|waiting| waiting.until_ns <= now_ns);
        let late = self.slab.iter().filter(|(_, invocation)| is_late(invocation));
        late.map(|(index, _)| CallToken::remote(index as u32)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: Holder = Holder::Connection(0);

    fn waiting(value_bytes: usize, until_ns: u64) -> Waiting {
        let asked = Asked {
            asker: Asker::Frame { connection: 0, request_id: 1, function: FunctionHash(2) },
            session: SessionId::new(b"s").unwrap(),
            table_hash: 3,
            app: 0,
            read_only: false,
            session_bytes_max: 100,
        };
        let task = Task::Write { value: vec![0; value_bytes].into() };
        Waiting { asked, key: Box::from(*b"key"), task, until_ns, is_askers_deadline: false }
    }

    #[test]
    fn what_waits_is_counted_until_it_is_taken_or_its_invocation_ends() {
        let mut invocations = Invocations::default();
        let (one, other) = (invocations.add(CONTAINER, 10).unwrap(), invocations.add(CONTAINER, 11).unwrap());
        invocations.wait(one, waiting(RPC_WAITING_BYTES_MAX - 4, 100));
        assert!(invocations.has_room_for(1) && !invocations.has_room_for(2));
        assert!(invocations.late(99).is_empty());
        assert_eq!(invocations.late(100), [CallToken::remote(one)]);
        assert!(invocations.take_waiting(other).is_none());
        assert_eq!(invocations.remove(one).number, 10);
        assert!(invocations.has_room_for(RPC_WAITING_BYTES_MAX) && invocations.waiting() == 0 && invocations.len() == 1);
        assert!(invocations.take_waiting(one).is_none(), "gone");
    }

    #[test]
    fn there_is_a_most() {
        let mut invocations = Invocations::default();
        assert!((0..RPC_SHARD_INVOCATIONS_MAX as u64).all(|number| invocations.add(CONTAINER, number).is_some()));
        assert!(invocations.add(CONTAINER, 0).is_none());
        invocations.remove(7);
        assert_eq!(invocations.add(CONTAINER, 0), Some(7));
    }

    #[test]
    fn invocations_on_other_shards_are_told_apart_and_found_by_their_origin() {
        let mut invocations = Invocations::default();
        let origin = |connection| Origin::Http { connection, generation: 1, shard: 0 };
        invocations.add(CONTAINER, 10).unwrap();
        let there = invocations.add(Holder::Shard { shard: 3, origin: origin(7), is_cancelled: false }, 0).unwrap();
        assert_eq!((invocations.len(), invocations.in_containers()), (2, 1));
        assert_eq!((invocations.cancel(&origin(7)), invocations.cancel(&origin(8))), (Some(3), None));
        assert!(matches!(invocations.remove(there).holder, Holder::Shard { is_cancelled: true, .. }));
        assert_eq!((invocations.len(), invocations.in_containers(), invocations.cancel(&origin(7))), (1, 1, None));
    }
}
