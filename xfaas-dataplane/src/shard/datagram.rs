//! The datagram stage: one datagram in, exactly one answer out, or silence and a counter. CONTRACT.md section 2.

use super::answers::Batch;
use super::replay::{Asker, FirstAnswer, Replay, ReplayEnd, ReplayKey};
use super::turn::Shard;
use crate::net::{DatagramHead, ErrorCode, decode_datagram, encode_datagram_error, encode_datagram_reply};
use crate::session::{Finished, Outcome};
use crate::shard::tag::Operation;
use crate::sys::{Completion, Peer, ReceivedBuffer};
use crate::worker::{Call, Origin};
use std::os::fd::AsFd;
use std::sync::Arc;
use xfaas_common::drop_reason::DropReason;
use xfaas_common::limits::DATAGRAM_BYTES_MAX;
use xfaas_common::wire::HEADER_BYTES;

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
        if peer.local.is_some_and(|local| local.is_to_many) {
            return Err(DropReason::NotUnicast); // the other shards got it too
        }
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
            if let Some(Finished { call, outcome }) = self.hold_back(call) {
                // Whether it is a duplicate was not looked up: the first one may run, and its answer is not this.
                self.record(&call, &outcome);
                let head = named_by(&call, request_id);
                self.send_datagram(peer, |out| encode_end(out, &head, &outcome, &call.output));
                self.keep_call(call);
            }
            return;
        }
        let idempotent = self.proxy.function(call.function).is_some_and(|function| function.manifest.idempotent);
        if idempotent {
            let key = replay_key(&call, request_id);
            let head = named_by(&call, request_id);
            let replay = self.replays.look_up(&key, Asker { peer, session: head.session }, self.now_ns);
            if replay != Replay::New {
                self.keep_call(call);
                return self.answer_duplicate(peer, &head, replay);
            }
        }
        if let Some(finished) = self.submit(call) {
            self.reply_datagram(finished);
        }
    }

    /// A duplicate of a call that runs, or that was answered.
    fn answer_duplicate(&mut self, peer: Peer, head: &DatagramHead, replay: Replay) {
        match replay {
            Replay::New => unreachable!("it is run"),
            Replay::Running => self.view.counters.replays.add(1),
            Replay::Full => {
                self.view.counters.shed.add(1);
                self.send_datagram(peer, |out| encode_datagram_error(out, head, ErrorCode::Overloaded, None));
            }
            Replay::Answered(FirstAnswer { outcome, output }) => {
                self.view.counters.replays.add(1);
                self.send_datagram(peer, |out| encode_end(out, head, &outcome, &output));
            }
        }
    }

    /// Answers a datagram whose call is over, from this shard's own socket, whichever shard received it: the port is the same.
    pub(super) fn reply_datagram(&mut self, finished: Finished) {
        let Finished { call, outcome } = finished;
        self.record(&call, &outcome);
        let Origin::Datagram { peer, request_id, .. } = call.origin else {
            unreachable!("`deliver` sends datagrams' calls here only");
        };
        let head = named_by(&call, request_id);
        let key = replay_key(&call, request_id);
        if self.replays.is_running(&key) {
            self.answer_waiters(&key, &head, &call, outcome);
        }
        self.send_datagram(peer, |out| encode_end(out, &head, &outcome, &call.output));
        self.keep_call(call);
    }

    /// An idempotent call is over: those who asked the same meanwhile hear of it, each by the name that it gave the session.
    fn answer_waiters(&mut self, key: &ReplayKey, head: &DatagramHead, call: &Call, outcome: Outcome) {
        let first = (outcome.ran() && call.has_begun()).then(|| first_answer(outcome, &call.output));
        let ReplayEnd { waiters, evictions } = self.replays.finish(key, first, self.now_ns);
        self.view.counters.replay_evictions.add(evictions);
        for Asker { peer, session } in waiters {
            let head = DatagramHead { session, ..*head };
            self.send_datagram(peer, |out| encode_end(out, &head, &outcome, &call.output));
        }
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

/// What names a datagram's call to its client, which may have said an alias.
fn named_by(call: &Call, request_id: u64) -> DatagramHead {
    let session = *call.request.session().expect("a datagram names its session");
    DatagramHead { session, request_id, function: call.function_hash }
}

fn replay_key(call: &Call, request_id: u64) -> ReplayKey {
    ReplayKey { app: call.app, function: call.function_hash, session: call.session, request_id }
}

/// Appends the answer of a call that is over.
fn encode_end(out: &mut Vec<u8>, head: &DatagramHead, outcome: &Outcome, output: &[u8]) {
    match *outcome {
        Outcome::Replied => encode_datagram_reply(out, head, output),
        Outcome::Cancelled => unreachable!("a datagram's sender is never known to be gone"),
        Outcome::Failed { code, guest_code, .. } => encode_datagram_error(out, head, code, guest_code),
    }
}

/// What is remembered of a call's end. An output that fits in no datagram is not kept: all that is ever said of it is that.
fn first_answer(outcome: Outcome, output: &[u8]) -> FirstAnswer {
    match outcome {
        Outcome::Replied if output.len() < DATAGRAM_BYTES_MAX - HEADER_BYTES => FirstAnswer { outcome, output: output.into() },
        Outcome::Replied => {
            let outcome = Outcome::failed(ErrorCode::ReplyTooLarge, "the output does not fit in a datagram");
            FirstAnswer { outcome, output: Arc::default() }
        }
        _ => FirstAnswer { outcome, output: Arc::default() },
    }
}
