//! The datagram stage: one datagram in, exactly one answer out, or silence and a counter. CONTRACT.md section 2.

use super::answers::Batch;
use super::replay::{Replay, ReplayKey};
use super::turn::Shard;
use crate::net::{DatagramHead, ErrorCode, decode_datagram, encode_datagram_error, encode_datagram_reply};
use crate::session::{Finished, Outcome};
use crate::shard::tag::Operation;
use crate::sys::{Completion, Peer, ReceivedBuffer};
use crate::worker::{Call, Origin};
use std::os::fd::AsFd;
use xfaas_common::drop_reason::DropReason;

impl Shard {
    pub(super) fn on_datagram(&mut self, completion: Completion) {
        if !completion.more {
            self.datagrams_armed = false;
        }
        if completion.result == -libc::ENOBUFS {
            self.view.counters.buffers_exhausted.add(1);
        }
        let Some(buffer) = completion.received else { return };
        if completion.result >= 0 {
            self.view.counters.datagrams.add(1);
            match self.read_datagram(&buffer) {
                Ok((head, peer, call)) => self.on_invoke_datagram(head, peer, call),
                Err(reason) => self.view.counters.drops[reason as usize].add(1),
            }
        }
        self.ring.recycle(buffer);
    }

    /// Decodes a datagram into a fresh call.
    fn read_datagram(&mut self, buffer: &ReceivedBuffer) -> Result<(DatagramHead, Peer, Box<Call>), DropReason> {
        let (peer, bytes) = self.ring.datagram(buffer).ok_or(DropReason::Truncated)?;
        let (head, payload) = decode_datagram(bytes)?;
        let mut call = self.spare_calls.pop().unwrap_or_default();
        call.request.set_datagram(head.session, payload);
        Ok((head, peer, call))
    }

    fn on_invoke_datagram(&mut self, head: DatagramHead, peer: Peer, mut call: Box<Call>) {
        let refusal = if self.draining_since_ns.is_some() {
            Some(ErrorCode::Draining)
        } else if !self.by_hash.contains_key(&head.function.0) {
            Some(if self.is_unjoined() { ErrorCode::NoPrimary } else { ErrorCode::NoFunction })
        } else {
            None
        };
        if let Some(code) = refusal {
            self.keep_call(call);
            return self.send_datagram(peer, |out| encode_datagram_error(out, &head, code, None));
        }
        let index = self.by_hash[&head.function.0];
        let function = self.proxy.function(index).expect("by_hash holds functions in service only");
        let Call { request, session, .. } = &mut *call;
        *session = head.session;
        self.aliases.resolve(&function.manifest.app, session);
        let hash = self.placement.hash(session);
        self.pins.refresh();
        let owner = self.pins.owner(&*self.placement, &function.manifest.app, session, hash);
        if !self.admit_datagram(function, session, request) {
            self.view.counters.tokens_refused.add(1);
            self.keep_call(call);
            return self.send_datagram(peer, |out| encode_datagram_error(out, &head, ErrorCode::BadToken, None));
        }
        call.function = index;
        call.app = function.app;
        call.table_hash = hash.table_hash();
        call.invocation_id = self.fresh.invocation();
        call.received_ns = self.now_ns;
        call.stages = self.tail.stages(self.core, self.now_ns);
        call.function_hash = head.function;
        call.origin = Origin::Datagram { shard: self.core.0, peer, request_id: head.request_id };
        if self.runs_here(&mut call, owner) {
            if self.line.is_open() {
                return self.line_up(call);
            }
            return self.run_datagram(call, peer, head.request_id);
        }
        match self.post.invoke(owner.index(), call) {
            Ok(()) => self.view.counters.forwarded.add(1),
            Err(call) => {
                self.view.counters.shed.add(1);
                self.keep_call(call);
                self.send_datagram(peer, |out| encode_datagram_error(out, &head, ErrorCode::Overloaded, None));
            }
        }
    }

    /// Runs a datagram's call on the owner; an idempotent one that was answered before gets the first answer again.
    pub(super) fn run_datagram(&mut self, call: Box<Call>, peer: Peer, request_id: u64) {
        if self.holds_back_datagram(&call) {
            if let Some(finished) = self.hold_back(call) {
                self.reply_datagram(finished);
            }
            return;
        }
        let idempotent = self.proxy.function(call.function).is_some_and(|function| function.manifest.idempotent);
        if idempotent {
            let key = ReplayKey { function: call.function, session: call.session, request_id };
            match self.replays.look_up(&key, peer, self.now_ns) {
                Replay::New => {}
                Replay::Running => {
                    self.view.counters.replays.add(1);
                    return self.keep_call(call);
                }
                Replay::Answered(answer) => {
                    self.view.counters.replays.add(1);
                    let mut out = self.spare_buffers.pop().unwrap_or_default();
                    out.extend_from_slice(answer);
                    self.keep_call(call);
                    return self.answer_datagram(peer, out);
                }
            }
        }
        if let Some(finished) = self.submit(call) {
            self.reply_datagram(finished);
        }
    }

    /// Answers a datagram whose call is over, from this shard's own socket, whichever shard received it: the port is the same.
    pub(super) fn reply_datagram(&mut self, finished: Finished) {
        let Finished { call, outcome } = finished;
        self.record(&call, &outcome);
        let Origin::Datagram { peer, request_id, .. } = call.origin else {
            unreachable!("`deliver` sends datagrams' calls here only");
        };
        // As the client named it, which may be an alias.
        let session = *call.request.session().expect("a datagram names its session");
        let head = DatagramHead { session, request_id, function: call.function_hash };
        let mut out = self.spare_buffers.pop().unwrap_or_default();
        match outcome {
            Outcome::Replied => encode_datagram_reply(&mut out, &head, &call.output),
            Outcome::Cancelled => unreachable!("a datagram's sender is never known to be gone"),
            Outcome::Failed { code, guest_code, .. } => encode_datagram_error(&mut out, &head, code, guest_code),
        }
        let key = ReplayKey { function: call.function, session: call.session, request_id };
        if self.replays.is_running(&key) {
            let evicted = self.replays.finish(&key, (outcome.ran() && call.has_begun()).then_some(&out[..]), self.now_ns);
            self.view.counters.replay_evictions.add(evicted.evictions);
            for other in evicted.waiters {
                let copy = out.clone();
                self.answer_datagram(other, copy);
            }
        }
        self.answer_datagram(peer, out);
        self.keep_call(call);
    }

    fn send_datagram(&mut self, peer: Peer, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut out = self.spare_buffers.pop().unwrap_or_default();
        encode(&mut out);
        self.answer_datagram(peer, out);
    }

    /// Sends an answer at the turn's end, with others of its peer where there are any.
    fn answer_datagram(&mut self, peer: Peer, answer: Vec<u8>) {
        let (full, spare) = self.answers.add(peer, answer);
        self.keep_buffer(spare);
        if let Some(full) = full {
            self.send_batch(full);
        }
    }

    /// Sends what waits.
    pub(super) fn send_answers(&mut self) {
        while let Some(batch) = self.answers.take() {
            self.send_batch(batch);
        }
    }

    fn send_batch(&mut self, batch: Batch) {
        self.ring.send_datagrams(Operation::DatagramSent.tag(), self.udp.as_fd(), batch.bytes, batch.segment_bytes, batch.peer);
    }

    pub(super) fn on_datagram_sent(&mut self, completion: Completion) {
        let spare = completion.sent.and_then(|buffer| self.answers.keep(buffer));
        self.keep_buffer(spare);
    }
}
