//! The host functions `set_timer` and `cancel_timer`. CONTRACT.md section 3, "Timers".
//! Called by `abi`. Every pointer and length is hostile here, as in `host_calls`: -2 wins over -3.

use super::host_calls::{misnamed, over, span, store_later};
use super::lend::Lent;
use super::remote;
use crate::state::{Limit, SessionKey, StateError, TimerKey, TimerRecord};
use xfaas_common::guest_abi::{BAD_ARGUMENT, MODE_WEAK, NOT_FOUND, OK, OVER_LIMIT};
use xfaas_common::limits::{TIMER_NAME_BYTES_MAX, TIMER_PAYLOAD_BYTES_MAX};

/// A timer's name, copied out of the guest's memory.
struct Name {
    bytes: [u8; TIMER_NAME_BYTES_MAX],
    length: usize,
}

impl Name {
    /// Errors: -2 when the pointer is outside memory, the name empty, or memory ends before the NUL; -3 when 65 bytes hold no NUL.
    fn read(memory: &[u8], pointer: i32) -> Result<Name, i32> {
        let rest = memory.get(pointer as u32 as usize..).ok_or(BAD_ARGUMENT)?;
        let window = &rest[..rest.len().min(TIMER_NAME_BYTES_MAX + 1)];
        match window.iter().position(|byte| *byte == 0) {
            Some(0) => Err(BAD_ARGUMENT),
            Some(length) => {
                let mut bytes = [0; TIMER_NAME_BYTES_MAX];
                bytes[..length].copy_from_slice(&window[..length]);
                Ok(Name { bytes, length })
            }
            None if window.len() > TIMER_NAME_BYTES_MAX => Err(OVER_LIMIT),
            None => Err(BAD_ARGUMENT),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Its state is not its own to change.
fn is_refused(lent: &Lent) -> bool {
    lent.call.read_only || lent.call.is_hook()
}

/// `set_timer(name, at_ms, payload, payload_len)`: 0; `PARK` while the primary is asked. In an atomic function it takes effect with the other writes.
pub(super) fn set_timer(lent: &mut Lent, memory: &[u8], name: i32, at_ms: i64, payload: i32, payload_len: i32) -> i32 {
    let name = Name::read(memory, name);
    let (Some(span), false) = (span(memory, payload, payload_len), matches!(name, Err(BAD_ARGUMENT)) || at_ms < 0 || is_refused(lent))
    else {
        return BAD_ARGUMENT;
    };
    let name = match name {
        Ok(name) if span.len() <= TIMER_PAYLOAD_BYTES_MAX => name,
        _ => return over(&mut lent.state, Limit::Timers),
    };
    let record = TimerRecord { function: lent.call.function_hash, at_ms, payload: &memory[span] };
    if lent.call.state_at.asks_primary() {
        return remote::write(lent, TimerKey::new(name.as_bytes()).as_bytes(), &record.encode(), MODE_WEAK);
    }
    let set = if lent.call.atomic { set_later(lent, name.as_bytes(), &record) } else { set_now(lent, name.as_bytes(), &record) };
    result_of(lent, set)
}

fn result_of(lent: &mut Lent, done: Result<(), StateError>) -> i32 {
    match done {
        Ok(()) => OK,
        Err(error) => over(&mut lent.state, error.limit()),
    }
}

fn set_now(lent: &mut Lent, name: &[u8], record: &TimerRecord<'_>) -> Result<(), StateError> {
    let Lent { call, state } = lent;
    let session = SessionKey { app: call.app, session: &call.session, table_hash: call.table_hash };
    state.set_timer(&session, &mut call.namespace, name, record, call.session_bytes_max)
}

/// Keeps the timer in the call until it is committed.
fn set_later(lent: &mut Lent, name: &[u8], record: &TimerRecord<'_>) -> Result<(), StateError> {
    let Lent { call, state } = lent;
    let session = SessionKey { app: call.app, session: &call.session, table_hash: call.table_hash };
    let others = call.overlay.timers().filter(|(other, _)| *other != name);
    if !state.has_room_for_timers(&session, others.chain(std::iter::once((name, true)))) {
        return Err(StateError::TooManyTimers);
    }
    store_later(lent, TimerKey::new(name).as_bytes(), &record.encode())
}

/// `cancel_timer(name)`: 0, or -1 when there is none; `PARK` while the primary is asked.
pub(super) fn cancel_timer(lent: &mut Lent, memory: &[u8], name: i32) -> i32 {
    let name = match Name::read(memory, name) {
        Err(BAD_ARGUMENT) => return BAD_ARGUMENT,
        _ if is_refused(lent) => return BAD_ARGUMENT,
        Err(code) => return misnamed(lent, code, Limit::Timers),
        Ok(name) => name,
    };
    let (name, key) = (name.as_bytes(), TimerKey::new(name.as_bytes()));
    if lent.call.state_at.asks_primary() {
        return cancel_at_primary(lent, &key);
    }
    let Lent { call, state } = lent;
    let session = SessionKey { app: call.app, session: &call.session, table_hash: call.table_hash };
    let is_there = match call.overlay.get(key.as_bytes()) {
        Some(own) => !own.is_empty(),
        None => state.has_timer(&session, &mut call.namespace, name),
    };
    if !is_there {
        return NOT_FOUND;
    }
    let done = match call.atomic {
        true => store_later(lent, key.as_bytes(), CANCELLED),
        false => state.remove_timer(&session, &mut call.namespace, name),
    };
    result_of(lent, done)
}

/// The primary says whether there is one. An atomic function asks that before it writes its wish down.
fn cancel_at_primary(lent: &mut Lent, key: &TimerKey) -> i32 {
    if lent.call.atomic {
        let length = remote::read(lent, key.as_bytes(), &mut [], MODE_WEAK);
        if length <= 0 {
            return if length == 0 { NOT_FOUND } else { length }; // empty: it was cancelled before
        }
    }
    remote::write(lent, key.as_bytes(), CANCELLED, MODE_WEAK)
}

/// Stands for a record where a timer is cancelled: no record is empty.
const CANCELLED: &[u8] = b"";
