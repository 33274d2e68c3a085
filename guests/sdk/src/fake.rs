//! A model of the host for tests on the developer's machine: one session, one call at a time, so locks are always granted.
//! Each thread has its own, so tests may run side by side. Not built for wasm32.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::CStr;

use crate::error::Error;
use crate::input::Input;
use xfaas_common::guest_abi;
use xfaas_common::limits::{
    KEY_BYTES_MAX, OUTPUT_BYTES_MAX, SESSION_ID_BYTES_MAX, SNAPSHOT_KEYS_MAX, TIMER_NAME_BYTES_MAX, TIMER_PAYLOAD_BYTES_MAX,
    TIMERS_SESSION_MAX, VALUE_BYTES_MAX,
};

#[derive(Default)]
struct Host {
    inputs: BTreeMap<i32, Vec<u8>>,
    output: Vec<u8>,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Values of other sessions, by session and key.
    others: BTreeMap<(Vec<u8>, Vec<u8>), Vec<u8>>,
    /// Time and payload by name.
    timers: BTreeMap<Vec<u8>, (i64, Vec<u8>)>,
}

thread_local! {
    static HOST: RefCell<Host> = RefCell::default();
}

/// Forgets inputs, output and state of this thread.
pub fn reset() {
    HOST.with_borrow_mut(|host| *host = Host::default());
}

/// Sets what the next calls read as `input`. With `Headers` they are those of a hook.
pub fn set_input(input: Input, bytes: &[u8]) {
    HOST.with_borrow_mut(|host| host.inputs.insert(input.index(), bytes.to_vec()));
}

/// What the last `set_output` set, and clears it.
pub fn take_output() -> Vec<u8> {
    HOST.with_borrow_mut(|host| std::mem::take(&mut host.output))
}

/// The value of a key, if it exists.
pub fn value(key: &str) -> Option<Vec<u8>> {
    HOST.with_borrow(|host| host.state.get(key.as_bytes()).cloned())
}

/// Time and payload of a timer, if it is set. Nothing runs it here.
pub fn timer(name: &str) -> Option<(i64, Vec<u8>)> {
    HOST.with_borrow(|host| host.timers.get(name.as_bytes()).cloned())
}

/// Sets a value of another session.
pub fn set_session_value(session: &str, key: &str, value: &[u8]) {
    HOST.with_borrow_mut(|host| host.others.insert((session.into(), key.into()), value.to_vec()));
}

fn copy_out(bytes: &[u8], buffer: &mut [u8]) -> i32 {
    let copied_bytes = bytes.len().min(buffer.len());
    buffer[..copied_bytes].copy_from_slice(&bytes[..copied_bytes]);
    bytes.len() as i32
}

/// The refusal of a key or mode, if there is one.
fn refusal(key: &CStr, mode: i32) -> Option<i32> {
    match key.count_bytes() {
        0 => Some(guest_abi::BAD_ARGUMENT),
        length_bytes if length_bytes > KEY_BYTES_MAX => Some(guest_abi::OVER_LIMIT),
        _ if mode != guest_abi::MODE_WEAK && mode != guest_abi::MODE_STRONG => Some(guest_abi::BAD_ARGUMENT),
        _ => None,
    }
}

pub(crate) fn read_input(arg_index: i32, buffer: &mut [u8]) -> i32 {
    HOST.with_borrow(|host| match host.inputs.get(&arg_index) {
        Some(bytes) => copy_out(bytes, buffer),
        None if (guest_abi::ARG_BODY..=guest_abi::ARG_QUERY).contains(&arg_index) => copy_out(&[], buffer),
        None => guest_abi::BAD_ARGUMENT,
    })
}

pub(crate) fn set_output(bytes: &[u8]) -> i32 {
    if bytes.len() > OUTPUT_BYTES_MAX {
        return guest_abi::OVER_LIMIT;
    }
    HOST.with_borrow_mut(|host| host.output = bytes.to_vec());
    guest_abi::OK
}

pub(crate) fn read_state(key: &CStr, buffer: &mut [u8], mode: i32) -> i32 {
    if let Some(code) = refusal(key, mode) {
        return code;
    }
    HOST.with_borrow(|host| host.state.get(key.to_bytes()).map_or(guest_abi::NOT_FOUND, |value| copy_out(value, buffer)))
}

pub(crate) fn read_session(session: &CStr, key: &CStr, buffer: &mut [u8]) -> i32 {
    let is_name = |session: &[u8]| !session.is_empty() && session.iter().all(u8::is_ascii_graphic);
    if key.is_empty() || session.count_bytes() <= SESSION_ID_BYTES_MAX && !is_name(session.to_bytes()) {
        return guest_abi::BAD_ARGUMENT;
    }
    if session.count_bytes() > SESSION_ID_BYTES_MAX || key.count_bytes() > KEY_BYTES_MAX {
        return guest_abi::OVER_LIMIT;
    }
    let at = (session.to_bytes().to_vec(), key.to_bytes().to_vec());
    HOST.with_borrow(|host| host.others.get(&at).map_or(guest_abi::NOT_FOUND, |value| copy_out(value, buffer)))
}

pub(crate) fn set_timer(name: &CStr, at_ms: i64, payload: &[u8]) -> i32 {
    if name.is_empty() || at_ms < 0 {
        return guest_abi::BAD_ARGUMENT;
    }
    HOST.with_borrow_mut(|host| {
        let is_new = !host.timers.contains_key(name.to_bytes());
        let is_full = is_new && host.timers.len() >= TIMERS_SESSION_MAX;
        if name.count_bytes() > TIMER_NAME_BYTES_MAX || payload.len() > TIMER_PAYLOAD_BYTES_MAX || is_full {
            return guest_abi::OVER_LIMIT;
        }
        host.timers.insert(name.to_bytes().to_vec(), (at_ms, payload.to_vec()));
        guest_abi::OK
    })
}

pub(crate) fn cancel_timer(name: &CStr) -> i32 {
    match name.count_bytes() {
        0 => guest_abi::BAD_ARGUMENT,
        length_bytes if length_bytes > TIMER_NAME_BYTES_MAX => guest_abi::OVER_LIMIT,
        _ => HOST.with_borrow_mut(|host| host.timers.remove(name.to_bytes()).map_or(guest_abi::NOT_FOUND, |_| guest_abi::OK)),
    }
}

pub(crate) fn write_state(key: &CStr, value: &[u8], mode: i32) -> i32 {
    if let Some(code) = refusal(key, mode) {
        return code;
    }
    if value.len() > VALUE_BYTES_MAX {
        return guest_abi::OVER_LIMIT;
    }
    HOST.with_borrow_mut(|host| host.state.insert(key.to_bytes().to_vec(), value.to_vec()));
    guest_abi::OK
}

pub(crate) fn snapshot_read(keys: &[u8], buffer: &mut [u8]) -> i32 {
    let Some((0, list)) = keys.split_last() else { return guest_abi::BAD_ARGUMENT };
    let keys: Vec<&[u8]> = list.split(|byte| *byte == 0).collect();
    if keys.iter().any(|key| key.is_empty()) {
        return guest_abi::BAD_ARGUMENT;
    }
    if keys.len() > SNAPSHOT_KEYS_MAX || keys.iter().any(|key| key.len() > KEY_BYTES_MAX) {
        return guest_abi::OVER_LIMIT;
    }
    let mut answer = Vec::new();
    HOST.with_borrow(|host| {
        for key in keys {
            let value = host.state.get(key);
            let length = value.map_or(guest_abi::SNAPSHOT_MISSING, |value| value.len() as u32);
            answer.extend_from_slice(&length.to_le_bytes());
            answer.extend_from_slice(value.map_or(&[], Vec::as_slice));
        }
    });
    copy_out(&answer, buffer)
}

pub(crate) fn with_scratch_memory<R>(length_bytes: usize, use_bytes: impl FnOnce(&mut [u8]) -> R) -> Result<R, Error> {
    Ok(use_bytes(&mut vec![0; length_bytes]))
}
