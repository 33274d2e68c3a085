//! Locks of strong sections: FIFO per (app, session, key), owned by one shard thread. Called by the host calls of a worker and by the
//! session proxy. It decides who holds what; parking and resuming calls is its callers' part.
//!
//! A call waits for at most one lock and a lock has one holder, so the wait-for graph is a set of chains: lock, its holder, the lock that
//! one waits for, its holder, and so on. A cycle can only close when a call begins to wait, so walking the one chain from the wanted lock
//! at that moment finds every deadlock, and the newcomer is refused. Waiters ahead in the queue need not be looked at: they wait for the
//! same holder, and when one of them becomes the holder it waits for nothing.
//!
//! Locks and calls live in slabs, found through hash tables as large as what they hold, so that a shard that holds a few locks at a time finds
//! them in a few cache lines. No allocation on the heap once both have grown.

use xfaas_common::ids::SessionId;
use xfaas_common::limits::{CALL_LOCKS_MAX, KEY_BYTES_MAX, LOCKS_MAX, SHARD_CALLS_MAX};

use super::hash::Secret;

/// Identity of a running invocation on this shard: below `REMOTE` the slot of a worker here, else an invocation in another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallToken(pub u32);

impl CallToken {
    const REMOTE: u32 = 1 << 31;

    /// The token of remote invocation `index`, below 2^31.
    pub fn remote(index: u32) -> CallToken {
        assert!(index < CallToken::REMOTE, "remote invocations are bounded far below");
        CallToken(index | CallToken::REMOTE)
    }

    /// What `remote` was given, if this is such a token.
    pub const fn remote_index(self) -> Option<u32> {
        if self.0 & CallToken::REMOTE == 0 { None } else { Some(self.0 & !CallToken::REMOTE) }
    }
}

/// What is locked.
#[derive(Clone, Copy, Debug)]
pub struct LockKey<'a> {
    /// The app's index.
    pub app: u16,
    pub session: &'a SessionId,
    /// 1..=255 bytes.
    pub key: &'a [u8],
}

/// Answer to `LockTable::acquire`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquire {
    /// The call holds the lock now.
    Granted,
    /// The call held it already: it re-enters, and one release ends the section.
    Held,
    /// The call waits in the lock's queue; its token comes out of a release once it holds the lock.
    Waiting,
    /// Waiting would never end. Nothing changed: locks held stay held.
    Deadlock,
    /// The call holds `CALL_LOCKS_MAX` locks, or the shard `LOCKS_MAX`. Nothing changed.
    Full,
}

const NONE: u32 = u32::MAX;
/// Buckets of a hash table at first; a power of two, doubled whenever there are as many entries.
const BUCKETS_AT_START: usize = 64;

struct Lock {
    hash: u64,
    session: SessionId,
    app: u16,
    key_length: u8,
    key: [u8; KEY_BYTES_MAX],
    /// Indices of calls. `holder` is never `NONE` while the lock is in the table.
    holder: u32,
    first_waiter: u32,
    last_waiter: u32,
    /// Next lock of the bucket, or of the free list.
    next: u32,
    /// Neighbours among the locks of the holder.
    held_previous: u32,
    held_next: u32,
}

impl Lock {
    /// Room for a lock; `add_lock` says of which key.
    const fn new(session: &SessionId) -> Lock {
        Lock {
            hash: 0,
            session: *session,
            app: 0,
            key_length: 0,
            key: [0; KEY_BYTES_MAX],
            holder: NONE,
            first_waiter: NONE,
            last_waiter: NONE,
            next: NONE,
            held_previous: NONE,
            held_next: NONE,
        }
    }

    fn is_of(&self, key: &LockKey<'_>) -> bool {
        self.app == key.app && self.session == *key.session && self.key[..usize::from(self.key_length)] == *key.key
    }
}

struct Call {
    token: CallToken,
    /// Next call of the bucket, or of the free list.
    next: u32,
    held_first: u32,
    held: u32,
    /// The lock waited for, and the neighbours in its queue.
    waits_for: u32,
    wait_previous: u32,
    wait_next: u32,
}

#[inline(always)]
fn bucket_of(hash: u64, buckets: &[u32]) -> usize {
    hash as usize & (buckets.len() - 1)
}

#[inline(always)]
fn call_hash(call: CallToken) -> u64 {
    u64::from(call.0.wrapping_mul(0x9E37_79B1) >> 12)
}

/// All locks of one shard.
pub struct LockTable {
    secret: Secret,
    locks: Vec<Lock>,
    locks_free: u32,
    locks_held: usize,
    lock_buckets: Vec<u32>,
    calls: Vec<Call>,
    calls_free: u32,
    calls_known: usize,
    call_buckets: Vec<u32>,
}

impl Default for LockTable {
    fn default() -> LockTable {
        LockTable::new()
    }
}

impl LockTable {
    /// An empty table.
    pub fn new() -> LockTable {
        LockTable {
            secret: Secret::random(),
            locks: Vec::new(),
            locks_free: NONE,
            locks_held: 0,
            lock_buckets: vec![NONE; BUCKETS_AT_START],
            calls: Vec::new(),
            calls_free: NONE,
            calls_known: 0,
            call_buckets: vec![NONE; BUCKETS_AT_START],
        }
    }

    /// Locks held at this moment.
    pub fn locks_held(&self) -> usize {
        self.locks_held
    }

    /// Asks for a lock on behalf of a call that runs, so waits for nothing. Cost: a hash of session and key, and a step for each call in
    /// the chain of those who wait for one another.
    pub fn acquire(&mut self, key: &LockKey<'_>, call: CallToken) -> Acquire {
        #[cfg(debug_assertions)]
        if super::broken_lock::is_broken() {
            return Acquire::Granted;
        }
        assert!(key.key.len() <= KEY_BYTES_MAX, "the host checks keys before it locks them");
        let hash = self.hash(key);
        let known = self.find_call(call);
        let lock = self.find_lock(hash, key);
        if let Some(known) = known {
            let state = &self.calls[known as usize];
            if lock.is_some_and(|lock| self.locks[lock as usize].holder == known) {
                return Acquire::Held;
            }
            if state.waits_for != NONE {
                assert!(lock == Some(state.waits_for), "a call waits for one lock at a time");
                return Acquire::Waiting;
            }
            if lock.is_some_and(|lock| self.leads_to(lock, known)) {
                return Acquire::Deadlock;
            }
            if state.held as usize >= CALL_LOCKS_MAX {
                return Acquire::Full;
            }
        }
        if lock.is_none() && self.locks_held == LOCKS_MAX || known.is_none() && self.calls_known == SHARD_CALLS_MAX {
            return Acquire::Full;
        }
        let index = known.unwrap_or_else(|| self.add_call(call));
        match lock {
            None => {
                let lock = self.add_lock(hash, key);
                self.give(lock, index);
                Acquire::Granted
            }
            Some(lock) => {
                self.enqueue(lock, index);
                Acquire::Waiting
            }
        }
    }

    /// True when the call is the lock's holder.
    pub fn holds(&self, key: &LockKey<'_>, call: CallToken) -> bool {
        let lock = self.find_lock(self.hash(key), key);
        lock.is_some_and(|lock| self.calls[self.locks[lock as usize].holder as usize].token == call)
    }

    /// True when a key of the session is locked. Cost: a look at as many locks as were ever held at once, if any is held now.
    pub fn has_locks_of(&self, app: u16, session: &SessionId) -> bool {
        let is_of = |lock: &Lock| lock.holder != NONE && lock.app == app && lock.session == *session;
        self.locks_held > 0 && self.locks.iter().any(is_of)
    }

    /// Locks that the call holds.
    pub fn held_by(&self, call: CallToken) -> usize {
        self.find_call(call).map_or(0, |index| self.calls[index as usize].held as usize)
    }

    /// True while the call holds or waits for a lock.
    pub fn knows(&self, call: CallToken) -> bool {
        self.find_call(call).is_some()
    }

    /// True while the call stands in a queue.
    pub fn is_waiting(&self, call: CallToken) -> bool {
        self.find_call(call).is_some_and(|index| self.calls[index as usize].waits_for != NONE)
    }

    /// Ends a section: the first in the queue holds the lock from now on, and its token is added to `granted`. Nothing happens when the
    /// call does not hold the lock.
    pub fn release(&mut self, key: &LockKey<'_>, call: CallToken, granted: &mut Vec<CallToken>) {
        let Some(holder) = self.find_call(call) else { return };
        // Nearly always the lock that was taken last: found without a hash.
        let last = self.calls[holder as usize].held_first;
        let lock = match last != NONE && self.locks[last as usize].is_of(key) {
            true => Some(last),
            false => self.find_lock(self.hash(key), key),
        };
        if let Some(lock) = lock.filter(|lock| self.locks[*lock as usize].holder == holder) {
            self.hand_over(lock, granted);
            self.forget_idle_call(holder);
        }
    }

    /// End of an invocation, however it ends: its wait is cancelled, and every lock it holds goes to the first in its queue.
    pub fn release_all(&mut self, call: CallToken, granted: &mut Vec<CallToken>) {
        let Some(index) = self.find_call(call) else { return };
        self.leave_queue(index);
        while self.calls[index as usize].held_first != NONE {
            self.hand_over(self.calls[index as usize].held_first, granted);
        }
        self.forget_idle_call(index);
    }

    /// Takes a call out of the queue it stands in; what it holds stays held. False when it was not waiting.
    pub fn cancel_wait(&mut self, call: CallToken) -> bool {
        let Some(index) = self.find_call(call) else { return false };
        let was_waiting = self.leave_queue(index);
        self.forget_idle_call(index);
        was_waiting
    }

    /// True when the holder of `lock`, or whom it waits for in the end, is `call`. Ends because there is no cycle yet.
    fn leads_to(&self, mut lock: u32, call: u32) -> bool {
        while lock != NONE {
            let holder = self.locks[lock as usize].holder;
            if holder == call {
                return true;
            }
            lock = self.calls[holder as usize].waits_for;
        }
        false
    }

    fn enqueue(&mut self, lock: u32, call: u32) {
        let last = self.locks[lock as usize].last_waiter;
        let state = &mut self.calls[call as usize];
        (state.waits_for, state.wait_previous, state.wait_next) = (lock, last, NONE);
        match last {
            NONE => self.locks[lock as usize].first_waiter = call,
            last => self.calls[last as usize].wait_next = call,
        }
        self.locks[lock as usize].last_waiter = call;
    }

    fn leave_queue(&mut self, call: u32) -> bool {
        let Call { waits_for, wait_previous, wait_next, .. } = self.calls[call as usize];
        if waits_for == NONE {
            return false;
        }
        match wait_previous {
            NONE => self.locks[waits_for as usize].first_waiter = wait_next,
            previous => self.calls[previous as usize].wait_next = wait_next,
        }
        match wait_next {
            NONE => self.locks[waits_for as usize].last_waiter = wait_previous,
            next => self.calls[next as usize].wait_previous = wait_previous,
        }
        self.calls[call as usize].waits_for = NONE;
        true
    }

    /// The lock leaves its holder: to the first waiter, or out of the table.
    fn hand_over(&mut self, lock: u32, granted: &mut Vec<CallToken>) {
        self.take_from_holder(lock);
        let first = self.locks[lock as usize].first_waiter;
        if first == NONE {
            self.remove_lock(lock);
            return;
        }
        self.leave_queue(first);
        self.give(lock, first);
        granted.push(self.calls[first as usize].token);
    }

    fn give(&mut self, lock: u32, call: u32) {
        let state = &mut self.calls[call as usize];
        let next = state.held_first;
        state.held_first = lock;
        state.held += 1;
        let granted = &mut self.locks[lock as usize];
        (granted.holder, granted.held_previous, granted.held_next) = (call, NONE, next);
        if next != NONE {
            self.locks[next as usize].held_previous = lock;
        }
    }

    fn take_from_holder(&mut self, lock: u32) {
        let Lock { holder, held_previous, held_next, .. } = self.locks[lock as usize];
        match held_previous {
            NONE => self.calls[holder as usize].held_first = held_next,
            previous => self.locks[previous as usize].held_next = held_next,
        }
        if held_next != NONE {
            self.locks[held_next as usize].held_previous = held_previous;
        }
        self.calls[holder as usize].held -= 1;
    }

    fn hash(&self, key: &LockKey<'_>) -> u64 {
        let session = self.secret.hash(key.session.as_bytes());
        self.secret.hash(key.key) ^ session.rotate_left(21) ^ u64::from(key.app).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    fn find_lock(&self, hash: u64, key: &LockKey<'_>) -> Option<u32> {
        let mut index = self.lock_buckets[bucket_of(hash, &self.lock_buckets)];
        while index != NONE {
            let lock = &self.locks[index as usize];
            if lock.hash == hash && lock.is_of(key) {
                return Some(index);
            }
            index = lock.next;
        }
        None
    }

    /// A lock that is in the table and has no holder yet: `give` follows.
    fn add_lock(&mut self, hash: u64, key: &LockKey<'_>) -> u32 {
        if self.locks_held == self.lock_buckets.len() {
            self.grow_locks();
        }
        let index = match self.locks_free {
            NONE => {
                self.locks.push(Lock::new(key.session));
                self.locks.len() as u32 - 1
            }
            index => {
                self.locks_free = self.locks[index as usize].next;
                index
            }
        };
        let bucket = bucket_of(hash, &self.lock_buckets);
        let next = std::mem::replace(&mut self.lock_buckets[bucket], index);
        // Field by field: most of a lock is room for a longer key, and what an earlier one left there is never looked at.
        let lock = &mut self.locks[index as usize];
        (lock.hash, lock.next, lock.app, lock.key_length) = (hash, next, key.app, key.key.len() as u8);
        lock.session = *key.session;
        lock.key[..key.key.len()].copy_from_slice(key.key);
        (lock.holder, lock.first_waiter, lock.last_waiter) = (NONE, NONE, NONE);
        (lock.held_previous, lock.held_next) = (NONE, NONE);
        self.locks_held += 1;
        index
    }

    #[cold]
    fn grow_locks(&mut self) {
        let doubled = vec![NONE; self.lock_buckets.len() * 2];
        for mut index in std::mem::replace(&mut self.lock_buckets, doubled) {
            while index != NONE {
                let lock = &mut self.locks[index as usize];
                let bucket = bucket_of(lock.hash, &self.lock_buckets);
                index = std::mem::replace(&mut lock.next, std::mem::replace(&mut self.lock_buckets[bucket], index));
            }
        }
    }

    #[cold]
    fn grow_calls(&mut self) {
        let doubled = vec![NONE; self.call_buckets.len() * 2];
        for mut index in std::mem::replace(&mut self.call_buckets, doubled) {
            while index != NONE {
                let call = &mut self.calls[index as usize];
                let bucket = bucket_of(call_hash(call.token), &self.call_buckets);
                index = std::mem::replace(&mut call.next, std::mem::replace(&mut self.call_buckets[bucket], index));
            }
        }
    }

    fn remove_lock(&mut self, index: u32) {
        let Lock { hash, next, .. } = self.locks[index as usize];
        let bucket = bucket_of(hash, &self.lock_buckets);
        if self.lock_buckets[bucket] == index {
            self.lock_buckets[bucket] = next;
        } else {
            let mut at = self.lock_buckets[bucket];
            while self.locks[at as usize].next != index {
                at = self.locks[at as usize].next;
            }
            self.locks[at as usize].next = next;
        }
        (self.locks[index as usize].next, self.locks[index as usize].holder) = (self.locks_free, NONE);
        self.locks_free = index;
        self.locks_held -= 1;
    }

    fn find_call(&self, call: CallToken) -> Option<u32> {
        // Most invocations take no lock, and each asks at its end: a far bucket is a cache miss.
        if self.calls_known == 0 {
            return None;
        }
        let mut index = self.call_buckets[bucket_of(call_hash(call), &self.call_buckets)];
        while index != NONE && self.calls[index as usize].token != call {
            index = self.calls[index as usize].next;
        }
        (index != NONE).then_some(index)
    }

    fn add_call(&mut self, token: CallToken) -> u32 {
        if self.calls_known == self.call_buckets.len() {
            self.grow_calls();
        }
        let bucket = bucket_of(call_hash(token), &self.call_buckets);
        let bucket = &mut self.call_buckets[bucket];
        let call = Call { token, next: *bucket, held_first: NONE, held: 0, waits_for: NONE, wait_previous: NONE, wait_next: NONE };
        let index = match self.calls_free {
            NONE => {
                self.calls.push(call);
                self.calls.len() as u32 - 1
            }
            index => {
                self.calls_free = self.calls[index as usize].next;
                self.calls[index as usize] = call;
                index
            }
        };
        *bucket = index;
        self.calls_known += 1;
        index
    }

    /// A call is known only while it holds or waits.
    fn forget_idle_call(&mut self, index: u32) {
        let Call { token, next, held, waits_for, .. } = self.calls[index as usize];
        if held > 0 || waits_for != NONE {
            return;
        }
        let bucket = bucket_of(call_hash(token), &self.call_buckets);
        if self.call_buckets[bucket] == index {
            self.call_buckets[bucket] = next;
        } else {
            let mut at = self.call_buckets[bucket];
            while self.calls[at as usize].next != index {
                at = self.calls[at as usize].next;
            }
            self.calls[at as usize].next = next;
        }
        self.calls[index as usize].next = self.calls_free;
        self.calls_free = index;
        self.calls_known -= 1;
    }
}
