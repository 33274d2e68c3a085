//! Secondary containers on other shards of this process: what their workers ask about state of this shard's sessions comes by mailbox, is done as for
//! containers of other processes, and goes back by mailbox. Nothing is hostile here but what the guest chose.

use super::super::secondaries::SecondaryMessage;
use super::super::turn::Shard;
use super::Rpc;
use super::invocations::{Asked, Asker, Holder};
use crate::session::RemoteTicket;
use crate::state::CallToken;
use crate::worker::{Call, Origin, RemoteOperation};
use xfaas_common::guest_abi::{MODE_STRONG, MODE_WEAK};
use xfaas_common::ids::{AppHash, SessionId};
use xfaas_common::rpc::{CommitWrites, READ_KEY, READ_SNAPSHOT, StateRead, StateReply, StateWrite, WRITE_KEY};

/// A request of a worker in a secondary container.
pub(in crate::shard) struct StateQuestion {
    ticket: RemoteTicket,
    /// What the primary's shard knows its invocation by.
    invocation: u32,
    app: u16,
    session: SessionId,
    table_hash: u32,
    read_only: bool,
    session_bytes_max: usize,
    operation: RemoteOperation,
    bytes_max: u32,
    key: Box<[u8]>,
    value: Box<[u8]>,
}

/// What became of it.
pub(in crate::shard) enum Answered {
    /// As the guest's call returns it; a value only for reads.
    Result(i32, Vec<u8>),
    LockWait,
    Refused,
}

impl StateQuestion {
    /// What the call asks, which was parked for it.
    pub(in crate::shard) fn of(call: &Call, ticket: RemoteTicket) -> StateQuestion {
        let request = call.remote.request();
        StateQuestion {
            ticket,
            invocation: call.remote.invocation,
            app: call.app,
            session: call.session,
            table_hash: call.table_hash,
            read_only: call.read_only,
            session_bytes_max: call.session_bytes_max,
            operation: request.operation,
            bytes_max: request.bytes_max,
            key: request.key.into(),
            value: request.value.into(),
        }
    }
}

impl Rpc {
    /// An invocation that is to run on another shard. Output: its index. `None`: there are as many as may be.
    pub(in crate::shard) fn begin_on_shard(&mut self, shard: u16, origin: Origin) -> Option<u32> {
        self.invocations.add(Holder::Shard { shard, origin, is_cancelled: false }, 0)
    }

    /// Notes that nobody waits for the call of `origin` any more. Output: the shard on which it runs, if it is another one.
    pub(in crate::shard) fn cancel_on_shard(&mut self, origin: &Origin) -> Option<u16> {
        self.invocations.cancel(origin)
    }

    /// The invocation that asks, if it is known; `number`: what a container calls it.
    pub(super) fn invocation_of(&self, asked: &Asked, number: u64) -> Option<u32> {
        match asked.asker {
            Asker::Frame { connection, .. } => self.connections[connection as usize].invocations.get(&number).copied(),
            Asker::Shard { invocation, .. } => Some(invocation),
        }
    }

    /// Begins an answer. Output: where to append its value, of exactly `value_bytes`; `Shard::end_answer` follows.
    pub(super) fn begin_answer(&mut self, asked: &Asked, result: i32, value_bytes: usize) -> &mut Vec<u8> {
        match asked.asker {
            Asker::Frame { connection, request_id, function } => {
                let out = &mut self.connections[connection as usize].out;
                StateReply::encode_head(result, value_bytes, request_id, function, out);
                out
            }
            Asker::Shard { .. } => &mut self.neighbours_answer,
        }
    }
}

impl Shard {
    /// The answer is complete: one in a connection's output leaves with what else is there.
    pub(super) fn end_answer(&mut self, asked: &Asked, result: i32) {
        if let Asker::Shard { shard, ticket, .. } = asked.asker {
            let value = std::mem::take(&mut self.rpc.neighbours_answer);
            self.tell_neighbour(shard, ticket, Answered::Result(result, value));
        }
    }

    pub(super) fn tell_neighbour(&mut self, shard: u16, ticket: RemoteTicket, answered: Answered) {
        self.tell_secondary(shard, SecondaryMessage::Answer(ticket, answered));
    }

    /// A worker of a secondary container on `shard` asks.
    pub(in crate::shard) fn on_state_question(&mut self, shard: u16, question: &StateQuestion) {
        let StateQuestion { ticket, invocation, app, session, table_hash, read_only, session_bytes_max, operation, bytes_max, .. } =
            *question;
        let asker = Asker::Shard { shard, ticket, invocation };
        let asked = Asked { asker, session, table_hash, app, read_only, session_bytes_max };
        let (key, value) = (&*question.key, &*question.value);
        // 0: the bound on waiting for a lock is this shard's, and such a wait does not count towards the deadline.
        let (number, deadline_ms) = (u64::from(invocation), 0);
        let app = AppHash::NONE; // found by who asks
        let read = |mode: i32, op| StateRead { invocation: number, app, deadline_ms, mode: mode as u8, op, bytes_max, key };
        let write = |mode: i32| StateWrite { invocation: number, app, deadline_ms, mode: mode as u8, op: WRITE_KEY, key, value };
        let done = match operation {
            RemoteOperation::ReadWeak => self.read_key(&asked, &read(MODE_WEAK, READ_KEY)),
            RemoteOperation::ReadStrong => self.read_key(&asked, &read(MODE_STRONG, READ_KEY)),
            RemoteOperation::WriteWeak => self.write_key(&asked, &write(MODE_WEAK)),
            RemoteOperation::WriteStrong => self.write_key(&asked, &write(MODE_STRONG)),
            RemoteOperation::Snapshot => {
                self.read_snapshot(&asked, &read(MODE_WEAK, READ_SNAPSHOT));
                Ok(())
            }
            RemoteOperation::Commit => {
                let writes = CommitWrites::decode(value).expect("made by this process");
                self.commit(&asked, number, writes)
            }
            RemoteOperation::OtherSession => unreachable!("it is asked of that session's owner, not of a primary"),
        };
        if done.is_err() {
            self.tell_neighbour(shard, ticket, Answered::Refused);
        }
    }

    /// Hands the locks of an invocation on another shard on; a request of it that waits will not be answered.
    pub(super) fn release_locks(&mut self, index: u32) {
        self.rpc.invocations.take_waiting(index);
        self.proxy.with_state(|state, granted| state.locks.release_all(CallToken::remote(index), granted));
    }

    /// An invocation on another shard is over. Output: true when nobody waits for it any more.
    pub(in crate::shard) fn end_on_shard(&mut self, index: u32) -> bool {
        self.release_locks(index);
        matches!(self.rpc.invocations.remove(index).holder, Holder::Shard { is_cancelled: true, .. })
    }
}
