//! The host function `read_session`: a value of another session of the same app, read weakly. CONTRACT.md section 3.
//! Called by `abi`. Every pointer and length is hostile here, as in `host_calls`: -2 wins over -3.
//!
//! The value goes straight from the owner's region into the guest's memory wherever that region can be read here. Where it cannot, or its owner
//! disturbed the read at every try, the worker is parked and the owner asked: by mailbox within a node, by RPC from a container.

use super::call::StateAt;
use super::host_calls::{Key, misnamed, read_state, span};
use super::lend::Lent;
use crate::state::{Limit, SessionPlace};
use xfaas_common::guest_abi::{BAD_ARGUMENT, MODE_WEAK, NOT_FOUND, OVER_LIMIT, UNREACHABLE};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::SESSION_ID_BYTES_MAX;

/// Places at which a session is looked for before its owner is asked.
const LOOKS_MAX: usize = 4;

/// `read_session(session, key, buf, buf_len)`: the value's full length, of which at most `buf_len` bytes are copied; `PARK` while the owner is
/// asked; `NEEDS_OWNER` as `read_state` when the session is the call's own.
pub(super) fn read_session(lent: &mut Lent, memory: &mut [u8], session: i32, key: i32, buf: i32, buf_len: i32) -> i32 {
    let (named, state_key) = (name(memory, session), Key::read(memory, key));
    let (Some(span), false) = (span(memory, buf, buf_len), matches!(named, Err(BAD_ARGUMENT)) || matches!(state_key, Err(BAD_ARGUMENT)))
    else {
        return BAD_ARGUMENT;
    };
    if !lent.call.reads_sessions || lent.call.is_hook() {
        return BAD_ARGUMENT;
    }
    let (named, state_key) = match (named, state_key) {
        (Ok(named), Ok(state_key)) => (named, state_key),
        (Err(code), _) => return misnamed(lent, code, Limit::SessionId),
        (_, Err(code)) => return misnamed(lent, code, Limit::Key),
    };
    if named == lent.call.session {
        // What it wrote itself counts.
        return read_state(lent, memory, key, buf, buf_len, MODE_WEAK);
    }
    let buffer = &mut memory[span];
    let Lent { call, state } = lent;
    if let Some(result) = call.remote.take_answer() {
        call.remote.copy_answer(buffer);
        return result;
    }
    let Some(places) = &state.places else { return UNREACHABLE };
    let mut place = places.place(state.app_name(call.app), &named);
    for _ in 0..LOOKS_MAX {
        let SessionPlace { table_hash, shard } = place;
        let read = match shard {
            None => Ok(state.region(call.app).and_then(|region| {
                let namespace = region.find(&named, table_hash)?;
                region.read(namespace, state_key.as_bytes(), buffer)
            })),
            // Where writes wait for the log, only the owner knows which of them are safe to show.
            Some(_) if state.journal.logs(call.app) => break,
            Some(shard) => state.readers.read(call.app, shard, &named, table_hash, state_key.as_bytes(), buffer),
        };
        let Ok(length) = read else { break };
        if let Some(length) = length {
            call.remote.mapped_reads += u64::from(call.state_at == StateAt::Primary);
            return length as i32;
        }
        // It may just have left the place where it was looked for.
        let now = places.place(state.app_name(call.app), &named);
        if now == place && call.others_may_sleep {
            break; // the session may have to be loaded first
        }
        if now == place {
            call.remote.mapped_reads += u64::from(call.state_at == StateAt::Primary);
            return NOT_FOUND;
        }
        place = now;
    }
    // Without a shard it has just come here, or may sleep, and is this one's to be asked for.
    let shard = place.shard.unwrap_or(call.served_by);
    call.remote.ask_session(named, shard, place.table_hash, buffer.len(), state_key.as_bytes())
}

/// Errors: -2 when the pointer is outside memory, the name empty or no session's, or memory ends before the NUL; -3 when 65 bytes hold no NUL.
fn name(memory: &[u8], pointer: i32) -> Result<SessionId, i32> {
    let rest = memory.get(pointer as u32 as usize..).ok_or(BAD_ARGUMENT)?;
    let window = &rest[..rest.len().min(SESSION_ID_BYTES_MAX + 1)];
    match window.iter().position(|byte| *byte == 0) {
        Some(length) => SessionId::new(&window[..length]).ok_or(BAD_ARGUMENT),
        None if window.len() > SESSION_ID_BYTES_MAX => Err(OVER_LIMIT),
        None => Err(BAD_ARGUMENT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_checked_as_the_contract_says() {
        let mut memory = vec![b'x'; 200];
        memory[64] = 0;
        memory[70] = 0;
        memory[72] = b' ';
        memory[73] = 0;
        assert_eq!(name(&memory, 0).unwrap().length(), 64);
        assert_eq!(name(&memory, 70), Err(BAD_ARGUMENT), "empty");
        assert_eq!(name(&memory, 71), Err(BAD_ARGUMENT), "a space");
        assert_eq!(name(&memory, 74), Err(OVER_LIMIT));
        assert_eq!(name(&memory, 135), Err(OVER_LIMIT));
        assert_eq!(name(&memory, 136), Err(BAD_ARGUMENT), "memory ends before the NUL");
        for outside in [200, 201, -1] {
            assert_eq!(name(&memory, outside), Err(BAD_ARGUMENT));
        }
    }
}
