//! Timers that guests in containers set and cancel: writes under the keys of timers, which no guest can name. docs/PROTOCOL.md, kind 17.

use super::super::turn::Shard;
use super::access::check_key;
use super::invocations::Asked;
use crate::state::{TimerRecord, timer_name};
use xfaas_common::guest_abi::{BAD_ARGUMENT, MODE_WEAK, NOT_FOUND, OK, OVER_LIMIT};

/// Errors: the result for a write of a commit whose key, or timer, no guest could have written.
pub(super) fn check_write(key: &[u8], value: &[u8]) -> Result<(), i32> {
    match timer_name(key) {
        Some(_) if value.is_empty() || is_good(value) => Ok(()),
        Some(_) => Err(BAD_ARGUMENT),
        None => check_key(key),
    }
}

fn is_good(record: &[u8]) -> bool {
    TimerRecord::decode(record).is_some_and(|record| record.at_ms >= 0)
}

impl Shard {
    /// Sets a timer, or cancels it where the record is empty. Output: the result.
    pub(super) fn write_timer(&mut self, asked: &Asked, mode: u8, name: &[u8], record: &[u8]) -> i32 {
        if asked.read_only || i32::from(mode) != MODE_WEAK {
            return BAD_ARGUMENT;
        }
        let session = asked.session();
        self.proxy.with_state(|state, _| {
            if record.is_empty() {
                return match state.has_timer(&session, &mut None, name) {
                    false => NOT_FOUND,
                    true => state.remove_timer(&session, &mut None, name).map_or(OVER_LIMIT, |()| OK),
                };
            }
            match TimerRecord::decode(record) {
                Some(record) if record.at_ms >= 0 => {
                    let set = state.set_timer(&session, &mut None, name, &record, asked.session_bytes_max);
                    set.map_or(OVER_LIMIT, |()| OK)
                }
                _ => BAD_ARGUMENT,
            }
        })
    }
}
