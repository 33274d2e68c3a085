//! The host functions of CONTRACT.md section 3 but for those of `snapshot`, `read_session` and `timers`, on a guest's memory and what is lent to it. Every pointer and length is hostile here.
//! Called by `abi`, which knows wasmtime; this file does not. Arguments are checked before limits: -2 wins over -3.

use super::call::StateAt;
use super::fiber::Trail;
use super::lend::Lent;
use super::overlay::SessionSize;
use super::remote;
use crate::state::{Acquire, Limit, LockKey, NamespaceRef, SessionKey, ShardState, StateError};
use std::ops::Range;
use xfaas_common::guest_abi::{
    ARG_BODY, ARG_HEADERS, ARG_METHOD, ARG_PATH, ARG_QUERY, ARG_SESSION, BAD_ARGUMENT, DEADLOCK, MODE_STRONG, MODE_WEAK, NOT_FOUND, OK,
    OVER_LIMIT,
};
use xfaas_common::limits::{KEY_BYTES_MAX, OUTPUT_BYTES_MAX, VALUE_BYTES_MAX};

/// Tells the guest's shim to pause and call again: the lock is held by someone else, or the primary is asked. No result of the contract has this value.
pub(super) const PARK: i32 = i32::MIN;
/// Ends the invocation: only the owner's shard can answer. No result of the contract has this value.
pub(super) const NEEDS_OWNER: i32 = i32::MIN + 1;

/// A key copied out of the guest's memory: where the guest's buffer, which may overlap it, is filled while the key is looked at.
pub(super) struct Key {
    bytes: [u8; KEY_BYTES_MAX],
    length: usize,
}

/// Where a key lies in the guest's memory, without its NUL.
/// Errors: -2 when the pointer is outside memory, the key empty, or memory ends before the NUL; -3 when 256 bytes hold no NUL.
#[inline]
fn key_span(memory: &[u8], pointer: i32) -> Result<Range<usize>, i32> {
    let start = pointer as u32 as usize;
    let rest = memory.get(start..).ok_or(BAD_ARGUMENT)?;
    let window = &rest[..rest.len().min(KEY_BYTES_MAX + 1)];
    match window.iter().position(|byte| *byte == 0) {
        Some(0) => Err(BAD_ARGUMENT),
        Some(length) => Ok(start..start + length),
        None if window.len() > KEY_BYTES_MAX => Err(OVER_LIMIT),
        None => Err(BAD_ARGUMENT),
    }
}

impl Key {
    /// Errors: as `key_span`.
    pub(super) fn read(memory: &[u8], pointer: i32) -> Result<Key, i32> {
        key_span(memory, pointer).map(|span| Key::of(&memory[span]))
    }

    fn of(key: &[u8]) -> Key {
        let mut bytes = [0; KEY_BYTES_MAX];
        bytes[..key.len()].copy_from_slice(key);
        Key { bytes, length: key.len() }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The result of a call that hit a limit, which is counted.
#[cold]
#[inline(never)]
pub(super) fn over(state: &mut ShardState, limit: Limit) -> i32 {
    state.refused.note(limit);
    OVER_LIMIT
}

/// The result of a call whose name or key is refused with `code`; `limit`: the one that -3 stands for.
#[cold]
#[inline(never)]
pub(super) fn misnamed(lent: &mut Lent, code: i32, limit: Limit) -> i32 {
    if code == OVER_LIMIT { over(&mut lent.state, limit) } else { code }
}

/// The bytes `[pointer, pointer + length)`, if all of them are memory and the length is not negative.
pub(super) fn span(memory: &[u8], pointer: i32, length: i32) -> Option<Range<usize>> {
    let start = pointer as u32 as usize;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    (end <= memory.len()).then_some(start..end)
}

/// The arguments that `read_state` and `write_state` share: where key and buffer lie.
#[inline]
fn state_arguments(memory: &[u8], key: i32, buf: i32, buf_len: i32, mode: i32) -> Result<(Range<usize>, Range<usize>), i32> {
    let key = key_span(memory, key);
    if matches!(key, Err(BAD_ARGUMENT)) || !matches!(mode, MODE_WEAK | MODE_STRONG) {
        return Err(BAD_ARGUMENT);
    }
    let span = span(memory, buf, buf_len).ok_or(BAD_ARGUMENT)?;
    Ok((key?, span))
}

/// `read_input(arg_index, buf, buf_len)`: the argument's full length, of which at most `buf_len` bytes are copied.
pub(super) fn read_input(lent: &Lent, memory: &mut [u8], arg_index: i32, buf: i32, buf_len: i32) -> i32 {
    let Some(span) = span(memory, buf, buf_len) else { return BAD_ARGUMENT };
    let request = &lent.call.request;
    let value = match arg_index {
        ARG_BODY => request.body(),
        ARG_SESSION if lent.call.is_hook() => return NOT_FOUND,
        ARG_SESSION => lent.call.session.as_bytes(),
        ARG_METHOD => request.method(),
        ARG_PATH => request.path_rest(),
        ARG_QUERY => request.query(),
        ARG_HEADERS if lent.call.is_hook() => request.fields(),
        _ => return BAD_ARGUMENT,
    };
    copy(value, &mut memory[span])
}

/// `set_output(buf, buf_len)`: replaces the output.
pub(super) fn set_output(lent: &mut Lent, memory: &[u8], buf: i32, buf_len: i32) -> i32 {
    let Some(span) = span(memory, buf, buf_len) else { return BAD_ARGUMENT };
    if span.len() > OUTPUT_BYTES_MAX {
        return over(&mut lent.state, Limit::Output);
    }
    let bytes = &memory[span];
    let place = 0_u8;
    lent.call.trail = Trail { stack: (&raw const place).addr(), memory: bytes.as_ptr().addr() };
    lent.call.output.clear();
    lent.call.output.extend_from_slice(bytes);
    OK
}

/// `read_state(key, buf, buf_len, mode)`: the value's full length, of which at most `buf_len` bytes are copied; `PARK` to wait for the lock;
/// `NEEDS_OWNER` when the call runs beside the owner and this read cannot.
pub(super) fn read_state(lent: &mut Lent, memory: &mut [u8], key: i32, buf: i32, buf_len: i32, mode: i32) -> i32 {
    let (key, span) = match state_arguments(memory, key, buf, buf_len, mode) {
        Ok(arguments) => arguments,
        Err(code) => return misnamed(lent, code, Limit::Key),
    };
    if lent.call.is_hook() {
        return BAD_ARGUMENT;
    }
    if lent.call.state_at != StateAt::Here {
        return read_elsewhere(lent, memory, key, span, mode);
    }
    if mode == MODE_STRONG {
        match acquire(lent, &memory[key.clone()]) {
            Acquire::Granted | Acquire::Held => {}
            Acquire::Waiting => return PARK,
            Acquire::Deadlock => return DEADLOCK,
            Acquire::Full => return over(&mut lent.state, Limit::Locks),
        }
    }
    if let Some(value) = lent.call.overlay.get(&memory[key.clone()]) {
        return copy(value, &mut memory[span]);
    }
    let Some(namespace) = find_namespace(lent) else { return NOT_FOUND };
    // Found before anything is copied, so the key needs no copy although the buffer may overlap it.
    let value = lent.state.region(lent.call.app).and_then(|region| region.value(namespace, &memory[key]));
    value.map_or(NOT_FOUND, |value| value.copy_out(&mut memory[span]) as i32)
}

/// A read of a session whose state is not in this shard's own regions. Never inlined: the key's copy would lie in the frame of every read.
#[inline(never)]
fn read_elsewhere(lent: &mut Lent, memory: &mut [u8], key: Range<usize>, span: Range<usize>, mode: i32) -> i32 {
    let key = Key::of(&memory[key]);
    let (key, buffer) = (key.as_bytes(), &mut memory[span]);
    match lent.call.state_at {
        StateAt::Shard(owner) if mode == MODE_WEAK => read_beside_owner(lent, owner, key, buffer),
        StateAt::Shard(_) => NEEDS_OWNER, // the lock table is the owner's
        StateAt::Primary | StateAt::PrimaryShard(_) => remote::read(lent, key, buffer, mode),
        StateAt::Here => unreachable!("read by the caller"),
    }
}

/// A weak read of a session that another shard of this process owns.
fn read_beside_owner(lent: &Lent, owner: u16, key: &[u8], buffer: &mut [u8]) -> i32 {
    let Lent { call, state } = lent;
    match state.readers.read(call.app, owner, &call.session, call.table_hash, key, buffer) {
        Ok(length) => length.map_or(NOT_FOUND, |length| length as i32),
        Err(_) => NEEDS_OWNER,
    }
}

/// `write_state(key, buf, buf_len, mode)`: 0; `PARK` to wait for the lock.
///
/// A strong write ends the section that a strong read opened. Without one it locks, writes and releases. One that is refused leaves an
/// open section open. In an atomic function the lock stays until the writes are committed, or others would read what is about to change.
pub(super) fn write_state(lent: &mut Lent, memory: &[u8], key: i32, buf: i32, buf_len: i32, mode: i32) -> i32 {
    let arguments = state_arguments(memory, key, buf, buf_len, mode);
    if matches!(arguments, Err(BAD_ARGUMENT)) || lent.call.read_only {
        return BAD_ARGUMENT;
    }
    let (key, span) = match arguments {
        Ok(arguments) => arguments,
        Err(code) => return misnamed(lent, code, Limit::Key),
    };
    if span.len() > VALUE_BYTES_MAX {
        return over(&mut lent.state, Limit::Value);
    }
    let (key, value) = (&memory[key], &memory[span]);
    if lent.call.state_at.asks_primary() {
        return remote::write(lent, key, value, mode);
    }
    if mode == MODE_WEAK {
        return store(lent, key, value);
    }
    let parked_in_write = std::mem::take(&mut lent.call.parked_in_write);
    let is_own_lock = match acquire(lent, key) {
        Acquire::Granted => true,
        Acquire::Held => parked_in_write,
        Acquire::Waiting => {
            lent.call.parked_in_write = true;
            return PARK;
        }
        Acquire::Deadlock => return DEADLOCK,
        Acquire::Full => return over(&mut lent.state, Limit::Locks),
    };
    let result = store(lent, key, value);
    if (result == OK || is_own_lock) && !lent.call.atomic {
        let Lent { call, state } = lent;
        let lock = LockKey { app: call.app, session: &call.session, key };
        state.locks.release(&lock, call.token, &mut call.granted);
    }
    result
}

/// A call that waits already, because somebody polled too early, goes on waiting.
fn acquire(lent: &mut Lent, key: &[u8]) -> Acquire {
    let Lent { call, state } = lent;
    let lock = LockKey { app: call.app, session: &call.session, key };
    state.locks.acquire(&lock, call.token)
}

/// The session's place in the region, if it has one by now: another call of the session may have made it a moment ago.
pub(super) fn find_namespace(lent: &mut Lent) -> Option<NamespaceRef> {
    let Lent { call, state } = lent;
    let key = SessionKey { app: call.app, session: &call.session, table_hash: call.table_hash };
    state.find_namespace(&key, &mut call.namespace)
}

fn store(lent: &mut Lent, key: &[u8], value: &[u8]) -> i32 {
    let stored = if lent.call.atomic { store_later(lent, key, value) } else { store_now(lent, key, value) };
    match stored {
        Ok(()) => OK,
        Err(error) => over(&mut lent.state, error.limit()),
    }
}

fn store_now(lent: &mut Lent, key: &[u8], value: &[u8]) -> Result<(), StateError> {
    let Lent { call, state } = lent;
    let session = SessionKey { app: call.app, session: &call.session, table_hash: call.table_hash };
    state.store(&session, &mut call.namespace, key, value, call.session_bytes_max)
}

/// Keeps the write in the call until it is committed.
pub(super) fn store_later(lent: &mut Lent, key: &[u8], value: &[u8]) -> Result<(), StateError> {
    let namespace = find_namespace(lent);
    let Lent { call, state } = lent;
    let region = state.region(call.app).ok_or(StateError::RegionFull)?;
    let (bytes, keys) = namespace.and_then(|namespace| region.namespace_size(namespace)).unwrap_or((0, 0));
    let value_bytes = namespace.and_then(|namespace| region.value_bytes(namespace, key));
    let session = SessionSize { bytes, keys, bytes_max: call.session_bytes_max, value_bytes };
    call.overlay.set(key, value, &session)
}

/// Copies what fits. Output: the value's full length.
pub(super) fn copy(value: &[u8], buffer: &mut [u8]) -> i32 {
    let length = value.len().min(buffer.len());
    buffer[..length].copy_from_slice(&value[..length]);
    value.len() as i32
}
