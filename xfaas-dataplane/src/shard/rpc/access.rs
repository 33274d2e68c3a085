//! State and locks of one request, with the results of CONTRACT.md section 3, and the answers to those who waited for a lock.
//! Asked by frames of containers, and by secondary containers on other shards of the process (`neighbours`). The same rules as for guests of this shard (`worker::host_calls`); the parts that touch the region are shared with them.

use super::super::turn::Shard;
use super::frames::{BUSY_INVOCATION, DRAINING, OVERLOADED, Refusal};
use super::invocations::{Asked, Asker, Holder, Task, Waiting};
use super::neighbours::Answered;
use crate::state::{Acquire, CallToken, Limit, LockKey, SessionKey, StateError, timer_name};
use crate::sys::clock::{self, MS_NS};
use xfaas_common::guest_abi::{BAD_ARGUMENT, DEADLOCK, MODE_STRONG, MODE_WEAK, NOT_FOUND, OK, OVER_LIMIT};
use xfaas_common::limits::{KEY_BYTES_MAX, RPC_INVOCATIONS_MAX, SNAPSHOT_KEYS_MAX, VALUE_BYTES_MAX};
use xfaas_common::rpc::{REPLY_VALUE_BYTES_MAX, StateRead, StateWrite, snapshot_keys};
use xfaas_common::wire::Status;

/// A request for a lock, and what is to be done when it is there.
struct Wanted<'a> {
    invocation: u64,
    deadline_ms: u32,
    key: &'a [u8],
    then: Then<'a>,
}

enum Then<'a> {
    Read { bytes_max: u32 },
    Write { value: &'a [u8] },
}

impl Wanted<'_> {
    /// Bytes that are kept while it waits.
    fn bytes(&self) -> usize {
        match self.then {
            Then::Read { .. } => self.key.len(),
            Then::Write { value } => self.key.len() + value.len(),
        }
    }

    fn task(&self) -> Task {
        match self.then {
            Then::Read { bytes_max } => Task::Read { bytes_max },
            Then::Write { value } => Task::Write { value: value.into() },
        }
    }
}

/// How a request for a lock went.
enum Lock {
    /// The invocation holds it; `true`: it held it before.
    Held(CallToken, bool),
    /// It waits: the answer comes when the lock is there.
    Waits,
    /// The answer is this result.
    Refused(i32),
}

impl Asked {
    pub(super) fn session(&self) -> SessionKey<'_> {
        SessionKey { app: self.app, session: &self.session, table_hash: self.table_hash }
    }

    fn lock<'a>(&'a self, key: &'a [u8]) -> LockKey<'a> {
        LockKey { app: self.app, session: &self.session, key }
    }
}

/// What is wrong with a request that is answered with a number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wrong {
    /// -2.
    Argument,
    /// -3.
    Over(Limit),
}

impl From<StateError> for Wrong {
    fn from(error: StateError) -> Wrong {
        Wrong::Over(error.limit())
    }
}

/// Errors: no guest could have given the key, or it is too long.
pub(super) fn check_key(key: &[u8]) -> Result<(), Wrong> {
    match key.len() {
        0 => Err(Wrong::Argument),
        _ if key.contains(&0) => Err(Wrong::Argument),
        1..=KEY_BYTES_MAX => Ok(()),
        _ => Err(Wrong::Over(Limit::Key)),
    }
}

/// Errors: the value is too long.
pub(super) fn check_value(value: &[u8]) -> Result<(), Wrong> {
    if value.len() > VALUE_BYTES_MAX { Err(Wrong::Over(Limit::Value)) } else { Ok(()) }
}

/// Errors: a snapshot's list is malformed or too long, in that order.
fn check_keys(read: &StateRead<'_>) -> Result<(), Wrong> {
    let keys = || snapshot_keys(read.key);
    if i32::from(read.mode) != MODE_WEAK || !read.key.ends_with(&[0]) || keys().any(<[u8]>::is_empty) {
        return Err(Wrong::Argument);
    }
    if keys().count() > SNAPSHOT_KEYS_MAX || keys().any(|key| key.len() > KEY_BYTES_MAX) {
        return Err(Wrong::Over(Limit::Snapshot));
    }
    Ok(())
}

/// Errors: there is no such mode.
fn check_mode(mode: u8) -> Result<bool, Wrong> {
    match i32::from(mode) {
        MODE_WEAK => Ok(false),
        MODE_STRONG => Ok(true),
        _ => Err(Wrong::Argument),
    }
}

impl Shard {
    /// The result of a request without a value.
    pub(super) fn answer(&mut self, asked: &Asked, result: i32) {
        self.rpc.begin_answer(asked, result, 0);
        self.end_answer(asked, result);
    }

    /// The result that says what is wrong; a limit is counted.
    #[cold]
    pub(super) fn result_of(&mut self, wrong: Wrong) -> i32 {
        match wrong {
            Wrong::Argument => BAD_ARGUMENT,
            Wrong::Over(limit) => {
                self.proxy.with_state(|state, _| state.refused.note(limit));
                OVER_LIMIT
            }
        }
    }

    /// Errors: the request is refused, whatever its key.
    pub(super) fn read_key(&mut self, asked: &Asked, read: &StateRead<'_>) -> Result<(), Refusal> {
        // An atomic function's guest asks so whether there is a timer to cancel.
        let is_timer = i32::from(read.mode) == MODE_WEAK && timer_name(read.key).is_some();
        let check = |key| if is_timer { Ok(()) } else { check_key(key) };
        let is_strong = match check_mode(read.mode).and_then(|is_strong| check(read.key).map(|()| is_strong)) {
            Ok(is_strong) => is_strong,
            Err(wrong) => {
                let result = self.result_of(wrong);
                self.answer(asked, result);
                return Ok(());
            }
        };
        if is_strong {
            let StateRead { invocation, deadline_ms, key, bytes_max, .. } = *read;
            match self.lock(asked, &Wanted { invocation, deadline_ms, key, then: Then::Read { bytes_max } })? {
                Lock::Held(..) => {}
                Lock::Waits => return Ok(()),
                Lock::Refused(result) => {
                    self.answer(asked, result);
                    return Ok(());
                }
            }
        }
        self.answer_value(asked, read.key, read.bytes_max);
        Ok(())
    }

    /// The value of a key as it is now.
    fn answer_value(&mut self, asked: &Asked, key: &[u8], bytes_max: u32) {
        let state = self.proxy.state();
        let region = state.region(asked.app).zip(state.find_namespace(&asked.session(), &mut None));
        let found = region.and_then(|(region, namespace)| Some((region, namespace, region.value_bytes(namespace, key)?)));
        let Some((region, namespace, value_bytes)) = found else {
            return self.answer(asked, NOT_FOUND);
        };
        let copied = value_bytes.min(bytes_max as usize);
        let out = self.rpc.begin_answer(asked, value_bytes as i32, copied);
        let start = out.len();
        out.resize(start + copied, 0);
        region.read(namespace, key, &mut out[start..]);
        self.end_answer(asked, value_bytes as i32);
    }

    /// Several keys of the session at one moment: this thread is the only writer.
    pub(super) fn read_snapshot(&mut self, asked: &Asked, read: &StateRead<'_>) {
        if let Err(wrong) = check_keys(read) {
            let result = self.result_of(wrong);
            return self.answer(asked, result);
        }
        let state = self.proxy.state();
        let place = state.region(asked.app).zip(state.find_namespace(&asked.session(), &mut None));
        let value_bytes = |key: &[u8]| place.and_then(|(region, namespace)| region.value_bytes(namespace, key));
        let list_bytes: usize = snapshot_keys(read.key).map(|key| 4 + value_bytes(key).unwrap_or(0)).sum();
        let answer_bytes_max = if matches!(asked.asker, Asker::Frame { .. }) { REPLY_VALUE_BYTES_MAX } else { usize::MAX };
        let mut room = list_bytes.min(read.bytes_max as usize).min(answer_bytes_max);
        let out = self.rpc.begin_answer(asked, list_bytes as i32, room);
        for key in snapshot_keys(read.key) {
            let bytes = value_bytes(key);
            let length = bytes.map_or(-1, |bytes| bytes as i32).to_be_bytes();
            let copied = room.min(length.len());
            out.extend_from_slice(&length[..copied]);
            room -= copied;
            let (start, copied) = (out.len(), room.min(bytes.unwrap_or(0)));
            out.resize(start + copied, 0);
            if let Some((region, namespace)) = place {
                region.read(namespace, key, &mut out[start..]);
            }
            room -= copied;
        }
        self.end_answer(asked, list_bytes as i32);
    }

    /// Errors: the request is refused, whatever its key.
    pub(super) fn write_key(&mut self, asked: &Asked, write: &StateWrite<'_>) -> Result<(), Refusal> {
        if let Some(name) = timer_name(write.key) {
            let result = self.write_timer(asked, write.mode, name, write.value);
            self.answer(asked, result);
            return Ok(());
        }
        let checked = match check_mode(write.mode) {
            _ if asked.read_only => Err(Wrong::Argument),
            Err(wrong) => Err(wrong),
            Ok(is_strong) => check_key(write.key).and_then(|()| check_value(write.value)).map(|()| is_strong),
        };
        let result = match checked {
            Err(wrong) => self.result_of(wrong),
            Ok(false) => self.store(asked, write.key, write.value),
            Ok(true) => {
                let StateWrite { invocation, deadline_ms, key, value, .. } = *write;
                match self.lock(asked, &Wanted { invocation, deadline_ms, key, then: Then::Write { value } })? {
                    Lock::Held(token, before) => self.write_locked(asked, token, key, value, before),
                    Lock::Waits => return Ok(()),
                    Lock::Refused(result) => result,
                }
            }
        };
        self.answer(asked, result);
        Ok(())
    }

    fn store(&mut self, asked: &Asked, key: &[u8], value: &[u8]) -> i32 {
        let stored = self.proxy.with_state(|state, _| state.store(&asked.session(), &mut None, key, value, asked.session_bytes_max));
        stored.map_or_else(|error| self.result_of(error.into()), |()| OK)
    }

    /// A strong write whose lock is there. It ends the section that a strong read opened, unless it is refused; a lock of its own it gives
    /// back either way.
    fn write_locked(&mut self, asked: &Asked, token: CallToken, key: &[u8], value: &[u8], has_section: bool) -> i32 {
        let result = self.store(asked, key, value);
        if result == OK || !has_section {
            self.proxy.with_state(|state, granted| state.locks.release(&asked.lock(key), token, granted));
            self.forget_idle(token);
        }
        result
    }

    /// Asks for a key's lock. Errors: the request is refused: its invocation waits already, or there are too many.
    fn lock(&mut self, asked: &Asked, wanted: &Wanted<'_>) -> Result<Lock, Refusal> {
        if self.is_waiting(asked, wanted.invocation) {
            return Err(BUSY_INVOCATION);
        }
        let index = match (self.rpc.invocation_of(asked, wanted.invocation), asked.asker) {
            (Some(index), _) => index,
            (None, Asker::Frame { .. }) if self.draining_since_ns.is_some() => return Err(DRAINING),
            (None, Asker::Frame { connection, .. }) => self.add_invocation(connection, wanted.invocation).ok_or(OVERLOADED)?,
            (None, Asker::Shard { .. }) => unreachable!("it has its place from its begin to its end"),
        };
        let token = CallToken::remote(index);
        let acquired = self.proxy.with_state(|state, _| state.locks.acquire(&asked.lock(wanted.key), token));
        let refused = match acquired {
            Acquire::Granted => return Ok(Lock::Held(token, false)),
            Acquire::Held => return Ok(Lock::Held(token, true)),
            Acquire::Waiting if matches!(asked.asker, Asker::Shard { .. }) || self.rpc.invocations.has_room_for(wanted.bytes()) => {
                self.wait(index, asked, wanted);
                return Ok(Lock::Waits);
            }
            Acquire::Waiting => {
                self.proxy.with_state(|state, _| state.locks.cancel_wait(token));
                Err(OVERLOADED)
            }
            Acquire::Deadlock => Ok(Lock::Refused(DEADLOCK)),
            Acquire::Full => Ok(Lock::Refused(self.result_of(Wrong::Over(Limit::Locks)))),
        };
        self.forget_idle(token);
        refused
    }

    /// True while a request of the invocation waits for its lock.
    pub(super) fn is_waiting(&self, asked: &Asked, invocation: u64) -> bool {
        self.rpc.invocation_of(asked, invocation).is_some_and(|index| self.rpc.invocations.is_waiting(index))
    }

    fn add_invocation(&mut self, id: u32, number: u64) -> Option<u32> {
        let connection = &mut self.rpc.connections[id as usize];
        if connection.invocations.len() >= RPC_INVOCATIONS_MAX {
            return None;
        }
        let index = self.rpc.invocations.add(Holder::Connection(id), number)?;
        connection.invocations.insert(number, index);
        Some(index)
    }

    fn wait(&mut self, index: u32, asked: &Asked, wanted: &Wanted<'_>) {
        match asked.asker {
            Asker::Frame { .. } => self.view.counters.rpc.lock_waits.add(1),
            Asker::Shard { .. } => self.proxy.note_lock_wait(),
        }
        let lock_wait_ns = self.options.proxy.lock_wait_ns;
        let deadline_ns = u64::from(wanted.deadline_ms) * MS_NS;
        let is_askers_deadline = wanted.deadline_ms != 0 && deadline_ns < lock_wait_ns;
        let until_ns = clock::monotonic_ns() + if is_askers_deadline { deadline_ns } else { lock_wait_ns };
        let waiting = Waiting { asked: *asked, key: wanted.key.into(), task: wanted.task(), until_ns, is_askers_deadline };
        self.rpc.invocations.wait(index, waiting);
    }

    /// An invocation of a container is known only while it holds or waits for a lock.
    fn forget_idle(&mut self, token: CallToken) {
        let Some(index) = token.remote_index() else { return };
        let Some(Holder::Connection(id)) = self.rpc.invocations.get(index).map(|invocation| invocation.holder) else { return };
        if self.proxy.state().locks.knows(token) {
            return;
        }
        let invocation = self.rpc.invocations.remove(index);
        self.rpc.connections[id as usize].invocations.remove(&invocation.number);
    }

    /// The end of an invocation: its wait is cancelled, its locks go to those who wait for them.
    pub(super) fn end_invocation(&mut self, id: u32, number: u64) {
        let Some(index) = self.rpc.connections[id as usize].invocations.remove(&number) else { return };
        self.proxy.with_state(|state, granted| state.locks.release_all(CallToken::remote(index), granted));
        self.rpc.invocations.remove(index);
    }

    /// Does what requests had to wait for whose lock is there now. Ends: each one that is done was waiting, and none begins to wait here.
    pub(in crate::shard) fn answer_granted(&mut self) {
        while let Some(token) = self.proxy.take_granted_remote() {
            // The token's invocation may have ended since, and its index may be another's by now, which may wait itself.
            let Some(index) = token.remote_index() else { continue };
            if self.proxy.state().locks.is_waiting(token) {
                continue;
            }
            let Some(Waiting { asked, key, task, .. }) = self.rpc.invocations.take_waiting(index) else { continue };
            match task {
                Task::Read { bytes_max } => self.answer_value(&asked, &key, bytes_max),
                Task::Write { value } => {
                    let result = self.write_locked(&asked, token, &key, &value, false);
                    self.answer(&asked, result);
                }
            }
            // What a secondary container is told goes no further than its call, whose own end waits for the log.
            if let Asker::Frame { connection, .. } = asked.asker {
                self.hold_rpc(connection, Some(asked.app));
                self.settle_rpc(connection);
            }
        }
    }

    /// A wait that lasted too long ends with an error; what the invocation holds stays held.
    pub(super) fn end_late_wait(&mut self, token: CallToken) {
        let Some(index) = token.remote_index() else { return };
        // One that was just given its lock is not late any more.
        if !self.proxy.with_state(|state, _| state.locks.cancel_wait(token)) {
            return;
        }
        let Some(waiting) = self.rpc.invocations.take_waiting(index) else { return };
        let (connection, request_id) = match waiting.asked.asker {
            Asker::Frame { connection, request_id, .. } => (connection, request_id),
            Asker::Shard { shard, ticket, .. } => return self.tell_neighbour(shard, ticket, Answered::LockWait),
        };
        let (status, text) = if waiting.is_askers_deadline { (Status::Deadline, "deadline") } else { (Status::LockWait, "lock_wait") };
        self.refuse_request(connection, request_id, status as u8, text);
        self.forget_idle(token);
        self.settle_rpc(connection);
    }
}
