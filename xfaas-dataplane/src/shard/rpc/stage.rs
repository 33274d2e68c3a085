//! Bytes of containers' connections: accept, receive, send, close, and what time ends.

use super::super::start::GROUP_RPC;
use super::super::tag::{Operation, RpcOperation};
use super::super::turn::Shard;
use super::connection::RpcConnection;
use super::offer::ContainerOffer;
use crate::state::CallToken;
use crate::sys::{Completion, FixedFile};
use std::os::fd::AsFd;
use std::sync::Arc;
use xfaas_common::limits::{RPC_CONNECTIONS_MAX, RPC_SILENCE_MS_MAX};
use xfaas_common::rpc::{FrameFault, Next, encode_empty, next_frame};
use xfaas_common::wire::{HEADER_BYTES, KIND_CHANGED};

const SILENCE_NS_MAX: u64 = RPC_SILENCE_MS_MAX * 1_000_000;

impl Shard {
    /// Arms the accept that an error ended.
    pub(in crate::shard) fn arm_rpc(&mut self) {
        if let Some(listener) = &self.rpc.listener
            && !self.rpc.accept_armed
            && self.draining_since_ns.is_none()
        {
            self.ring.accept_multi(Operation::Rpc(RpcOperation::Accept).tag(), listener.as_fd());
            self.rpc.accept_armed = true;
        }
    }

    pub(in crate::shard) fn on_rpc(&mut self, operation: RpcOperation, completion: Completion) {
        match operation {
            RpcOperation::Accept => self.on_rpc_accept(&completion),
            RpcOperation::Receive { connection, generation } => self.on_rpc_receive(connection, generation, completion),
            RpcOperation::Sent { connection, generation } => self.on_rpc_sent(connection, generation, completion),
            RpcOperation::Handed { connection, generation } => self.on_rpc_handed(connection, generation, completion.result),
        }
    }

    fn on_rpc_accept(&mut self, completion: &Completion) {
        if !completion.more {
            self.rpc.accept_armed = false;
        }
        let Ok(file) = u32::try_from(completion.result) else { return };
        if let Some(id) = self.insert_rpc(FixedFile(file)) {
            self.view.counters.rpc.accepted.add(1);
            self.arm_rpc_receive(id);
        }
    }

    /// A new connection, unless there are as many as may be: then its descriptor is closed.
    pub(super) fn insert_rpc(&mut self, file: FixedFile) -> Option<u32> {
        if self.rpc.connections.len() >= RPC_CONNECTIONS_MAX || self.draining_since_ns.is_some() {
            self.view.counters.rpc.refused.add(1);
            self.ring.close(Operation::Closed.tag(), file);
            return None;
        }
        self.rpc.generation = self.rpc.generation.wrapping_add(1);
        Some(self.rpc.connections.insert(RpcConnection::new(file, self.rpc.generation, self.now_ns)) as u32)
    }

    fn arm_rpc_receive(&mut self, id: u32) {
        let connection = &mut self.rpc.connections[id as usize];
        if connection.armed || !connection.takes_frames() {
            return;
        }
        (connection.armed, connection.pausing) = (true, false);
        let tag = Operation::Rpc(RpcOperation::Receive { connection: id, generation: connection.generation }).tag();
        self.ring.recv_multi(tag, connection.file, GROUP_RPC);
    }

    fn pause_rpc_receive(&mut self, id: u32) {
        let connection = &mut self.rpc.connections[id as usize];
        if connection.armed && !connection.pausing {
            connection.pausing = true;
            let tag = Operation::Rpc(RpcOperation::Receive { connection: id, generation: connection.generation }).tag();
            self.ring.cancel_receive(tag, GROUP_RPC);
        }
    }

    /// The connection of a completion, unless it is gone and its slot used again.
    pub(super) fn rpc_connection(&mut self, id: u32, generation: u16) -> Option<&mut RpcConnection> {
        self.rpc.connections.get_mut(id as usize).filter(|connection| connection.generation == generation)
    }

    fn on_rpc_receive(&mut self, id: u32, generation: u16, completion: Completion) {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        if let Some(buffer) = completion.received {
            bytes.extend_from_slice(self.ring.bytes(&buffer));
            self.ring.recycle(buffer);
        }
        let now_ns = self.now_ns;
        if let Some(connection) = self.rpc_connection(id, generation) {
            if !completion.more {
                connection.armed = false;
            }
            if completion.result > 0 {
                connection.heard_ns = now_ns;
                self.view.counters.rpc.received_bytes.add(bytes.len() as u64);
                self.take_rpc_bytes(id, &bytes);
            } else if completion.result == -libc::ENOBUFS {
                self.view.counters.buffers_exhausted.add(1); // all are back by the time the next one is armed, below
            } else if completion.result != -libc::ECANCELED {
                self.shut_rpc(id); // its end, or a reset: nobody waits for answers
            }
            self.settle_rpc(id);
        }
        self.scratch = bytes;
    }

    fn take_rpc_bytes(&mut self, id: u32, bytes: &[u8]) {
        let connection = &mut self.rpc.connections[id as usize];
        if connection.shut {
            return;
        }
        if !connection.pending.is_empty() || !connection.takes_frames() {
            connection.pending.extend_from_slice(bytes);
            return self.take_pending_frames(id);
        }
        let (used, wanted) = self.take_frames(id, bytes);
        let connection = &mut self.rpc.connections[id as usize];
        connection.pending.extend_from_slice(&bytes[used..]);
        connection.consume(0, wanted);
    }

    /// Takes apart what has waited.
    pub(super) fn take_pending_frames(&mut self, id: u32) {
        let connection = &mut self.rpc.connections[id as usize];
        if connection.pending.is_empty() || !connection.takes_frames() {
            return;
        }
        let pending = std::mem::take(&mut connection.pending);
        let (used, wanted) = self.take_frames(id, &pending);
        let connection = &mut self.rpc.connections[id as usize];
        connection.pending = pending;
        connection.consume(used, wanted);
    }

    /// Does what the frames in `bytes` ask, until one is not whole or the connection takes no more. Output: bytes done with, and bytes that
    /// the next frame needs.
    fn take_frames(&mut self, id: u32, bytes: &[u8]) -> (usize, usize) {
        let mut used = 0;
        while self.rpc.connections[id as usize].takes_frames() {
            match next_frame(&bytes[used..]) {
                Next::NeedMore { bytes: wanted } => return (used, wanted),
                Next::Malformed(fault) => {
                    self.refuse_rpc_stream(id, fault);
                    break;
                }
                Next::Frame(frame) => {
                    used += frame.used;
                    if let Err(fault) = self.on_frame(id, &frame) {
                        self.refuse_rpc_stream(id, fault);
                        break;
                    }
                }
            }
        }
        (used, HEADER_BYTES)
    }

    fn refuse_rpc_stream(&mut self, id: u32, fault: FrameFault) {
        self.view.counters.rpc.malformed[fault as usize].add(1);
        self.shut_rpc(id);
    }

    /// Sends what is to be sent, unless a send is under way.
    fn flush_rpc(&mut self, id: u32) {
        let connection = &mut self.rpc.connections[id as usize];
        if connection.sending || connection.shut || self.logging.is_behind(connection.waits_for) {
            return;
        }
        let Some(buffer) = connection.next_send() else { return };
        connection.sending = true;
        self.view.counters.rpc.sent_bytes.add(buffer.len() as u64);
        let tag = Operation::Rpc(RpcOperation::Sent { connection: id, generation: connection.generation }).tag();
        self.ring.send(tag, connection.file, buffer);
    }

    fn on_rpc_sent(&mut self, id: u32, generation: u16, completion: Completion) {
        let now_ns = self.now_ns;
        let Some(connection) = self.rpc_connection(id, generation) else { return };
        connection.sending = false;
        let buffer = completion.sent.unwrap_or_default();
        let is_lost = completion.result < 0 || (completion.result as usize) < buffer.len();
        if !connection.takes_frames() {
            connection.heard_ns = now_ns; // nothing is read from it, but it takes what it is sent
        }
        connection.keep(buffer);
        if is_lost {
            self.shut_rpc(id);
        }
        self.settle_rpc(id);
    }

    /// Brings a connection forward after anything happened to it: sends, receives, moves or removes it, as its state allows.
    pub(super) fn settle_rpc(&mut self, id: u32) {
        let connection = &self.rpc.connections[id as usize];
        if connection.shut {
            if connection.is_quiet() {
                let connection = self.rpc.connections.remove(id as usize);
                self.ring.close(Operation::Closed.tag(), connection.file);
            }
            return;
        }
        self.flush_rpc(id);
        self.take_pending_frames(id);
        self.flush_rpc(id);
        let connection = &self.rpc.connections[id as usize];
        if connection.shut {
            return self.settle_rpc(id);
        }
        if connection.moving.is_some() {
            self.pause_rpc_receive(id);
            return self.hand_rpc_over(id);
        }
        match connection.takes_frames() {
            true => self.arm_rpc_receive(id),
            false => self.pause_rpc_receive(id),
        }
    }

    /// Gives a connection up: its locks go on at once, the rest when nothing of it is under way. `settle_rpc` follows.
    pub(super) fn shut_rpc(&mut self, id: u32) {
        let connection = &mut self.rpc.connections[id as usize];
        if std::mem::replace(&mut connection.shut, true) {
            return;
        }
        let file = connection.file;
        let invocations = std::mem::take(&mut connection.invocations);
        connection.pending = Vec::new();
        self.ring.cancel_all(file);
        for (_, index) in invocations {
            let token = CallToken::remote(index);
            let lost = self.proxy.with_state(|state, granted| {
                let held = state.locks.held_by(token);
                state.locks.release_all(token, granted);
                held
            });
            self.view.counters.rpc.locks_lost.add(lost as u64);
            self.rpc.invocations.remove(index);
        }
    }

    /// Ends waits and connections whose time is over.
    pub(in crate::shard) fn sweep_rpc(&mut self) {
        if self.rpc.has_waiting() {
            for token in self.rpc.invocations.late(self.now_ns) {
                self.end_late_wait(token);
            }
        }
        let now_ns = self.now_ns;
        let is_silent = |connection: &RpcConnection| !connection.shut && now_ns.saturating_sub(connection.heard_ns) > SILENCE_NS_MAX;
        let silent = self.rpc.connections.iter().filter(|(_, connection)| is_silent(connection));
        for id in silent.map(|(id, _)| id as u32).collect::<Vec<u32>>() {
            self.view.counters.rpc.silent.add(1);
            self.shut_rpc(id);
            self.settle_rpc(id);
        }
    }

    /// Takes over what containers are told from now on, and tells them that something changed.
    pub(in crate::shard) fn offer_to_containers(&mut self, offer: Arc<ContainerOffer>) {
        self.rpc.offer = offer;
        let greeted = self.rpc.connections.iter().filter(|(_, connection)| connection.greeted && !connection.shut);
        for id in greeted.map(|(id, _)| id as u32).collect::<Vec<u32>>() {
            encode_empty(KIND_CHANGED, 0, &mut self.rpc.connections[id as usize].out);
            self.settle_rpc(id);
        }
    }
}
