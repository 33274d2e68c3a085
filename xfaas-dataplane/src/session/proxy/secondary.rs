//! Calls whose state is with a primary in another process: the proxy parks their workers while the primary is asked. The shard sends what
//! `next_remote` gives it and brings the answers; how long a call waits is decided here.
//! Called by the shard's loop alone. Allocates nothing once its queues have grown.

use super::{Phase, Proxy};
use crate::net::ErrorCode;
use crate::session::outcome::{Finished, Outcome};
use crate::sys::clock;
use crate::worker::Call;
use std::collections::VecDeque;
use xfaas_common::guest_abi::UNREACHABLE;
use xfaas_common::ids::{FunctionHash, SessionId};

/// A guest whose request is not answered gets its -5 so long before its deadline, that it can still say so: this part of `deadline_ms`, and
/// at most this time.
const LAST_WORDS_PART: u64 = 8;
const LAST_WORDS_NS_MAX: u64 = 100_000_000;
/// A request that is made with nearly no time left may still take so long.
const PATIENCE_NS_MIN: u64 = 1_000_000;
/// A primary that nothing is heard of for less than this may just be busy: no wait for a lock ends because of it, however short the deadline.
const SILENCE_NS_MIN: u64 = 500_000_000;

/// Names one request of one call: an answer that comes late finds that it is no longer meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteTicket {
    worker: u32,
    number: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteAnswer<'a> {
    /// As the guest's call returns it; a value only for reads.
    Result(i32, &'a [u8]),
    /// The primary gave up waiting for the lock.
    LockWait,
    /// The connection is gone, or the primary refused.
    Unreachable,
}

/// An invocation that is over and may hold locks at the primary.
#[derive(Clone, Copy, Debug)]
pub struct EndedInvocation {
    /// The connection over which it took them.
    pub link: u64,
    /// The primary's shard.
    pub shard: u16,
    pub invocation: u64,
    pub function: FunctionHash,
    pub session: SessionId,
}

/// How long a parked worker waits for the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RemoteWait {
    number: u64,
    since_ns: u64,
    /// Without an answer for so long, or without a sign of life if it waits for a lock, the guest gets -5.
    patience_ns: u64,
    /// The primary may let it wait for a lock, which does not count towards the deadline.
    for_lock: bool,
    /// The guest has returned: the answer ends the invocation.
    is_commit: bool,
}

#[derive(Default)]
pub(super) struct RemoteCalls {
    /// Requests that are not sent yet, oldest first.
    unsent: VecDeque<RemoteTicket>,
    ended: VecDeque<EndedInvocation>,
    /// Workers in `Phase::Remote`.
    pub(super) waiting: usize,
    number: u64,
}

impl RemoteCalls {
    pub(super) fn new(workers_max: usize) -> RemoteCalls {
        let room = VecDeque::with_capacity(workers_max);
        RemoteCalls { unsent: room, ended: VecDeque::with_capacity(workers_max), waiting: 0, number: 0 }
    }
}

impl Proxy {
    /// Parks a worker whose call asks the primary.
    pub(super) fn park_for_primary(&mut self, id: u32, call: Box<Call>, is_commit: bool) {
        let now_ns = clock::monotonic_ns(); // not the turn's clock: the guest may have run for a while
        self.remote.number += 1;
        let number = self.remote.number;
        let left_ns = call.deadline_ns.saturating_sub(call.taken_ns(now_ns));
        let last_words_ns = (call.deadline_ns / LAST_WORDS_PART).min(LAST_WORDS_NS_MAX);
        let patience_ns = left_ns.saturating_sub(last_words_ns).max(PATIENCE_NS_MIN);
        let wait = RemoteWait { number, since_ns: now_ns, patience_ns, for_lock: call.remote.may_wait_for_lock(), is_commit };
        let slot = &mut self.workers[id as usize];
        slot.call = Some(call);
        slot.phase = Phase::Remote(wait);
        self.remote.waiting += 1;
        self.remote.unsent.push_back(RemoteTicket { worker: id, number });
    }

    /// The oldest request that is not sent yet, and its call. It is taken for sent, unless `put_back_remote` follows.
    pub fn next_remote(&mut self) -> Option<(RemoteTicket, &mut Call)> {
        while let Some(ticket) = self.remote.unsent.pop_front() {
            if self.remote_wait(ticket).is_some() {
                let call = self.workers[ticket.worker as usize].call.as_mut().expect("a parked worker has a call");
                return Some((ticket, call));
            }
        }
        None
    }

    pub fn count_unsent_remote(&self) -> usize {
        self.remote.unsent.len()
    }

    /// There was no room to send it: it waits behind those that go to other shards of the primary, and before later ones to its own.
    pub fn put_back_remote(&mut self, ticket: RemoteTicket) {
        self.remote.unsent.push_back(ticket);
    }

    /// Invocations of whose end the primary must be told.
    pub fn next_ended(&mut self) -> Option<EndedInvocation> {
        self.remote.ended.pop_front()
    }

    fn remote_wait(&self, ticket: RemoteTicket) -> Option<RemoteWait> {
        match self.workers.get(ticket.worker as usize)?.phase {
            Phase::Remote(wait) if wait.number == ticket.number => Some(wait),
            _ => None,
        }
    }

    /// Gives a call its answer: its worker goes on, or the invocation is over. Late answers are dropped.
    pub fn answer_remote(&mut self, ticket: RemoteTicket, answer: RemoteAnswer<'_>, now_ns: u64) -> Option<Finished> {
        let wait = self.remote_wait(ticket)?;
        self.remote.waiting -= 1;
        let id = ticket.worker;
        let slot = &mut self.workers[id as usize];
        let call = slot.call.as_mut().expect("a parked worker has a call");
        if wait.for_lock {
            call.waited_ns += now_ns.saturating_sub(wait.since_ns);
        }
        match answer {
            RemoteAnswer::Result(result, value) => call.remote.answer(result, value),
            RemoteAnswer::Unreachable => call.remote.answer(UNREACHABLE, &[]),
            RemoteAnswer::LockWait => {
                let call = slot.call.take().expect("looked at just above");
                let outcome = Outcome::failed(ErrorCode::LockWait, "a lock was not free within lock_wait_ms");
                return Some(self.end(id, call, outcome, false, now_ns));
            }
        }
        if wait.is_commit {
            let mut call = slot.call.take().expect("looked at just above");
            let outcome = match call.remote.take_commit() {
                0 => Outcome::Replied,
                code => failed_with(&call, code),
            };
            return Some(self.end(id, call, outcome, true, now_ns));
        }
        slot.phase = Phase::Runnable;
        self.enqueue(id, now_ns);
        None
    }

    /// Gives -5 to those who have waited in vain. `heard_ns`: when a shard of the primary last sent anything. Output: how many.
    pub fn sweep_remote(&mut self, now_ns: u64, heard_ns: impl Fn(u16) -> u64, finished: &mut Vec<Finished>) -> u64 {
        if self.remote.waiting == 0 {
            return 0;
        }
        let mut late = Vec::new();
        for (id, slot) in &self.workers {
            let (Phase::Remote(wait), Some(call)) = (slot.phase, &slot.call) else { continue };
            let lock_ns = if wait.for_lock { self.options.lock_wait_ns.saturating_add(call.deadline_ns) } else { 0 };
            if wait.is_over(now_ns, heard_ns(call.remote.shard), lock_ns) {
                late.push(RemoteTicket { worker: id as u32, number: wait.number });
            }
        }
        for ticket in &late {
            finished.extend(self.answer_remote(*ticket, RemoteAnswer::Unreachable, now_ns));
        }
        late.len() as u64
    }

    /// Bound on waiting for a lock at the primary, as that one says it keeps it.
    pub fn set_lock_wait_ns(&mut self, lock_wait_ns: u64) {
        self.options.lock_wait_ns = lock_wait_ns;
    }

    /// The invocation of `call` is over.
    pub(super) fn note_end(&mut self, call: &Call) {
        self.stats.mapped_reads += call.remote.mapped_reads;
        let Some(link) = call.remote.owed_end() else { return };
        let (function, session) = (call.function_hash, call.session);
        let ended = EndedInvocation { link, shard: call.remote.shard, invocation: invocation_of(call), function, session };
        self.remote.ended.push_back(ended);
    }
}

impl RemoteWait {
    /// `lock_ns`: how long a wait for a lock may last at most, however lively the primary is.
    fn is_over(&self, now_ns: u64, heard_ns: u64, lock_ns: u64) -> bool {
        if !self.for_lock {
            return now_ns >= self.since_ns.saturating_add(self.patience_ns);
        }
        let silent_since_ns = self.since_ns.max(heard_ns);
        now_ns >= silent_since_ns.saturating_add(self.patience_ns.max(SILENCE_NS_MIN)) || now_ns >= self.since_ns.saturating_add(lock_ns)
    }
}

/// What the primary knows an invocation by: the part of its number that counts up on this shard.
pub fn invocation_of(call: &Call) -> u64 {
    call.invocation_id as u64
}

/// How an invocation ended that returned `code`, or whose commit did: one that could not reach its primary says that.
pub(super) fn failed_with(call: &Call, code: i32) -> Outcome {
    let (code_, detail) = if call.remote.is_unreachable() {
        (ErrorCode::NoPrimary, "the primary could not be reached: what the function had written before may have taken effect")
    } else {
        (ErrorCode::GuestError, "handle returned a non-zero code")
    };
    Outcome::Failed { code: code_, detail, guest_code: Some(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_read_waits_until_its_patience_ends_and_a_lock_while_the_primary_lives() {
        let wait = RemoteWait { number: 1, since_ns: 1_000 * MS, patience_ns: 875 * MS, for_lock: false, is_commit: false };
        assert!(!wait.is_over(1_874 * MS, 1_870 * MS, 0));
        assert!(wait.is_over(1_875 * MS, 1_870 * MS, 0), "signs of life are no answer");
        let wait = RemoteWait { for_lock: true, ..wait };
        let lock_ns = 6_000 * MS;
        assert!(!wait.is_over(5_000 * MS, 4_500 * MS, lock_ns));
        assert!(wait.is_over(5_400 * MS, 4_500 * MS, lock_ns), "the primary has fallen silent");
        assert!(wait.is_over(1_900 * MS, 0, lock_ns), "it never spoke");
        assert!(wait.is_over(7_000 * MS, 6_999 * MS, lock_ns), "no lock takes so long");
        let hasty = RemoteWait { patience_ns: 50 * MS, ..wait };
        assert!(!hasty.is_over(1_499 * MS, 0, lock_ns) && hasty.is_over(1_500 * MS, 0, lock_ns), "it may just be busy");
    }
}
