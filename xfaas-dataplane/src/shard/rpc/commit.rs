//! The writes of an atomic invocation in a container, of another process or on another shard: all of them take effect, or none.

use super::super::turn::Shard;
use super::access::{Wrong, check_value};
use super::frames::{BUSY_INVOCATION, Refusal};
use super::invocations::{Asked, Asker};
use super::timers::check_write;
use crate::state::StateError;
use xfaas_common::guest_abi::OK;
use xfaas_common::rpc::CommitWrites;

impl Shard {
    /// Applies the writes and ends the invocation. Errors: it waits for a lock.
    pub(super) fn commit(&mut self, asked: &Asked, invocation: u64, writes: CommitWrites<'_>) -> Result<(), Refusal> {
        if self.is_waiting(asked, invocation) {
            return Err(BUSY_INVOCATION);
        }
        let checked = match writes.is_empty() {
            false if asked.read_only => Err(Wrong::Argument),
            _ => writes.into_iter().try_for_each(|(key, value)| check_write(key, value).and_then(|()| check_value(value))),
        };
        let done = match checked {
            Ok(()) if !writes.is_empty() => self.apply(asked, writes).map_err(Wrong::from),
            checked => checked,
        };
        let result = done.map_or_else(|wrong| self.result_of(wrong), |()| OK);
        match asked.asker {
            Asker::Frame { connection, .. } => self.end_invocation(connection, invocation),
            Asker::Shard { invocation, .. } => self.release_locks(invocation),
        }
        self.answer(asked, result);
        Ok(())
    }

    fn apply(&mut self, asked: &Asked, writes: CommitWrites<'_>) -> Result<(), StateError> {
        self.proxy.with_state(|state, _| state.commit(&asked.session(), &mut None, writes, asked.session_bytes_max))
    }
}
