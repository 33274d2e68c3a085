//! Timers that guests in containers set and cancel: writes under the keys of timers, which no guest can name. docs/PROTOCOL.md, kind 17.

use super::super::turn::Shard;
use super::access::{Wrong, check_key};
use super::invocations::Asked;
use crate::state::{TimerRecord, timer_name};
use xfaas_common::guest_abi::{BAD_ARGUMENT, MODE_WEAK, NOT_FOUND, OK};

/// Errors: no guest could have written the key, or the timer, of this write of a commit.
pub(super) fn check_write(key: &[u8], value: &[u8]) -> Result<(), Wrong> {
    match timer_name(key) {
        Some(_) if value.is_empty() || is_good(value) => Ok(()),
        Some(_) => Err(Wrong::Argument),
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
        let done = self.proxy.with_state(|state, _| {
            if record.is_empty() {
                return match state.has_timer(&session, &mut None, name) {
                    false => Ok(NOT_FOUND),
                    true => state.remove_timer(&session, &mut None, name).map_err(Wrong::from).map(|()| OK),
                };
            }
            match TimerRecord::decode(record) {
                Some(record) if record.at_ms >= 0 => {
                    let set = state.set_timer(&session, &mut None, name, &record, asked.session_bytes_max);
                    set.map_err(Wrong::from).map(|()| OK)
                }
                _ => Err(Wrong::Argument),
            }
        });
        done.unwrap_or_else(|wrong| self.result_of(wrong))
    }
}
