//! What a frame asks. Answers are put into the connection's output; the stage sends them.

use super::super::turn::Shard;
use super::connection::Moving;
use super::counters::{COMMIT, END, HELLO, MODULE, OTHER, PING, READ, SNAPSHOT, WRITE};
use super::invocations::{Asked, Asker};
use std::sync::Arc;
use xfaas_common::guest_abi::MODE_STRONG;
use xfaas_common::ids::{AppHash, SessionId};
use xfaas_common::limits::RPC_MODULES_MAX;
use xfaas_common::rpc::{
    ANY_SHARD, CommitWrites, Frame, FrameFault, FrameHead, Hello, PROTOCOL, READ_KEY, READ_SNAPSHOT, STATUS_REFUSED, StateRead, StateWrite,
    WRITE_COMMIT, WRITE_END, WRITE_KEY, Welcome, encode_empty, encode_error,
};
use xfaas_common::wire::{
    KIND_CHANGED, KIND_ERROR, KIND_HELLO, KIND_MODULE, KIND_MODULE_REPLY, KIND_PING, KIND_PONG, KIND_REPLY, KIND_STATE_READ,
    KIND_STATE_REPLY, KIND_STATE_WRITE, KIND_WELCOME, Status,
};

/// Why a request gets an error frame: its status and text.
pub(super) type Refusal = (u8, &'static str);

pub(super) const OVERLOADED: Refusal = (Status::Overloaded as u8, "overloaded");
pub(super) const DRAINING: Refusal = (Status::Draining as u8, "draining");
pub(super) const BUSY_INVOCATION: Refusal = (STATUS_REFUSED, "busy_invocation");
const WRONG_SHARD: Refusal = (STATUS_REFUSED, "wrong_shard");
/// A container knows slots only: it comes again when all sessions are where their slots say.
const SESSIONS_MOVED: Refusal = (STATUS_REFUSED, "sessions_moved");
const UNKNOWN_OP: Refusal = (STATUS_REFUSED, "unknown_op");
const NO_FUNCTION: Refusal = (Status::NoFunction as u8, "no_function");

impl Shard {
    /// Errors: the payload breaks its kind's rules.
    pub(super) fn on_frame(&mut self, id: u32, frame: &Frame<'_>) -> Result<(), FrameFault> {
        let (head, payload) = (&frame.head, frame.payload);
        let mut kind = OTHER;
        match (head.kind, &head.session) {
            (KIND_STATE_READ, Some(session)) => {
                let read = StateRead::decode(payload)?;
                kind = if read.op == READ_SNAPSHOT { SNAPSHOT } else { READ };
                self.on_state_read(id, head, session, &read);
            }
            (KIND_STATE_WRITE, Some(session)) => {
                let write = StateWrite::decode(payload)?;
                kind = match write.op {
                    WRITE_END => END,
                    WRITE_COMMIT => COMMIT,
                    _ => WRITE,
                };
                self.on_state_write(id, head, session, &write)?;
            }
            (KIND_PING, _) => {
                kind = PING;
                encode_empty(KIND_PONG, head.request_id, &mut self.rpc.connections[id as usize].out);
            }
            (KIND_HELLO, _) => {
                kind = HELLO;
                self.on_hello(id, head.request_id, Hello::decode(payload)?);
            }
            (KIND_MODULE, _) => {
                kind = MODULE;
                self.on_module(id, head.request_id, payload);
            }
            // Answers to nothing. An error for an error could go round for ever.
            (KIND_REPLY | KIND_ERROR | KIND_STATE_REPLY | KIND_WELCOME | KIND_MODULE_REPLY | KIND_PONG | KIND_CHANGED, _) => {}
            _ => self.refuse_request(id, head.request_id, STATUS_REFUSED, "unknown_kind"),
        }
        self.view.counters.rpc.requests[kind].add(1);
        Ok(())
    }

    pub(super) fn refuse_request(&mut self, id: u32, request_id: u64, status: u8, text: &str) {
        self.view.counters.rpc.errors.add(1);
        encode_error(request_id, status, text.as_bytes(), &mut self.rpc.connections[id as usize].out);
    }

    fn on_hello(&mut self, id: u32, request_id: u64, hello: Hello) {
        let shards = self.rings.len();
        let connection = &mut self.rpc.connections[id as usize];
        let is_here = hello.shard == ANY_SHARD || hello.shard == self.core.0;
        let refusal = if hello.protocol != PROTOCOL {
            Some((STATUS_REFUSED, "wrong_protocol"))
        } else if self.draining_since_ns.is_some() {
            Some(DRAINING)
        } else if !is_here && (connection.greeted || usize::from(hello.shard) >= shards) {
            Some(WRONG_SHARD)
        } else {
            None
        };
        match refusal {
            Some((status, text)) => self.refuse_request(id, request_id, status, text),
            None if is_here => self.welcome(id, request_id),
            None => connection.moving = Some(Moving { to: hello.shard, request_id }),
        }
    }

    pub(super) fn welcome(&mut self, id: u32, request_id: u64) {
        // One that was let in may ask again while somebody finds out that it is here.
        if !self.rpc.connections[id as usize].greeted && self.pins.board().keeps_containers_out() {
            let (status, text) = SESSIONS_MOVED;
            return self.refuse_request(id, request_id, status, text);
        }
        let connection = &mut self.rpc.connections[id as usize];
        connection.greeted = true;
        Welcome { shard: self.core.0, text: &self.rpc.offer.welcome }.encode(request_id, &mut connection.out);
    }

    fn on_module(&mut self, id: u32, request_id: u64, name: &[u8]) {
        let connection = &mut self.rpc.connections[id as usize];
        let (status, text) = match self.rpc.offer.modules.get(name) {
            Some(module) if connection.modules() < RPC_MODULES_MAX => return connection.send_module(request_id, Arc::clone(module)),
            Some(_) => OVERLOADED,
            None => NO_FUNCTION,
        };
        self.refuse_request(id, request_id, status, text);
    }

    /// Finds what a request is about. Errors: it is not this shard's, or there is no such function, or not in the app that is meant.
    fn asked(&self, id: u32, head: &FrameHead, session: &SessionId, app: AppHash) -> Result<Asked, Refusal> {
        if !self.rpc.connections[id as usize].greeted {
            return Err((STATUS_REFUSED, "no_hello"));
        }
        let hash = self.placement.hash(session);
        // The name of an invocation that began long ago may be another app's by now, whose sessions are none of its business.
        let index = self.by_hash.get(&head.function.0).filter(|index| self.proxy.app_hash(**index) == app);
        let function = index.and_then(|index| self.proxy.function(*index));
        let owner = match function {
            Some(function) => self.pins.owner(&*self.placement, &function.manifest.app, session, hash),
            None => self.placement.owner(hash.slot()),
        };
        if owner != self.core {
            return Err(WRONG_SHARD);
        }
        let function = function.ok_or(NO_FUNCTION)?;
        if self.log_refusal(function.app).is_some() {
            return Err(OVERLOADED);
        }
        Ok(Asked {
            asker: Asker::Frame { connection: id, request_id: head.request_id, function: head.function },
            session: *session,
            table_hash: hash.table_hash(),
            app: function.app,
            read_only: function.manifest.read_only,
            session_bytes_max: function.manifest.state_mib as usize * (1 << 20),
        })
    }

    /// The same; errors: also, the invocation waits for a lock, or the session sleeps. Then it is woken, and the container had better ask again.
    /// `strong`: the invocation that asks so, or commits. Its weak requests go on: it may have given up a wait that is not over here.
    fn asked_awake(&mut self, id: u32, head: &FrameHead, session: &SessionId, app: AppHash, strong: Option<u64>) -> Result<Asked, Refusal> {
        let asked = self.asked(id, head, session, app)?;
        if self.rpc.has_waiting() && strong.is_some_and(|invocation| self.is_waiting(&asked, invocation)) {
            return Err(BUSY_INVOCATION);
        }
        if self.is_asleep(asked.app, &asked.session, asked.table_hash) { Err(OVERLOADED) } else { Ok(asked) }
    }

    fn on_state_read(&mut self, id: u32, head: &FrameHead, session: &SessionId, read: &StateRead<'_>) {
        let strong = (i32::from(read.mode) == MODE_STRONG).then_some(read.invocation);
        let asked = self.asked_awake(id, head, session, read.app, strong);
        let app = asked.as_ref().ok().map(|asked| asked.app);
        let done = asked.and_then(|asked| match read.op {
            READ_KEY => self.read_key(&asked, read),
            READ_SNAPSHOT => {
                self.read_snapshot(&asked, read);
                Ok(())
            }
            _ => Err(UNKNOWN_OP),
        });
        if let Err((status, text)) = done {
            self.refuse_request(id, head.request_id, status, text);
        }
        self.hold_rpc(id, app);
    }

    /// Errors: a commit's lengths do not add up.
    fn on_state_write(&mut self, id: u32, head: &FrameHead, session: &SessionId, write: &StateWrite<'_>) -> Result<(), FrameFault> {
        if write.op == WRITE_END {
            self.end_invocation(id, write.invocation);
            return Ok(());
        }
        let writes = match write.op {
            WRITE_COMMIT => Some(CommitWrites::decode(write.value)?),
            _ => None,
        };
        let strong = (i32::from(write.mode) == MODE_STRONG || write.op != WRITE_KEY).then_some(write.invocation);
        // Nothing changes behind what is saved at the end.
        let asked = if self.is_ending { Err(DRAINING) } else { self.asked_awake(id, head, session, write.app, strong) };
        let app = asked.as_ref().ok().map(|asked| asked.app);
        let done = asked.and_then(|asked| match (write.op, writes) {
            (WRITE_KEY, _) => self.write_key(&asked, write),
            (_, Some(writes)) => self.commit(&asked, write.invocation, writes),
            _ => Err(UNKNOWN_OP),
        });
        if let Err(refusal) = done {
            // Who commits says nothing more of its invocation, however it is answered. One that still waits for a lock is not known to a container that keeps to the rules.
            if write.op == WRITE_COMMIT && refusal != BUSY_INVOCATION {
                self.end_invocation(id, write.invocation);
            }
            let (status, text) = refusal;
            self.refuse_request(id, head.request_id, status, text);
        }
        self.hold_rpc(id, app);
        Ok(())
    }
}
