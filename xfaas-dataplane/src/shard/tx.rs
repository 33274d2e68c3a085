//! The sending stage: ended calls become bytes, bytes become sends, and connections close in order.

use super::buffers::{UNCOUNTED_BYTES_MAX, long_reply_bytes};
use super::connection::{Closing, PENDING_BYTES_MAX};
use super::tag::Operation;
use super::turn::Shard;
use crate::net::{ConnectionHeader, Problem, ReplyHead, encode_problem, encode_reply, encode_reply_over};
use crate::session::{Finished, Outcome};
use crate::sys::heap::MAPPED_BYTES_MIN;
use crate::sys::{Completion, clock};
use crate::worker::{Call, Origin};

/// An older stamp is another request's.
const STAMP_AGE_NS_MAX: u64 = 1_000_000_000;

impl Shard {
    /// Writes the reply of an ended call into its connection's output. Sends nothing yet: pipelined replies leave together.
    pub(super) fn reply_http(&mut self, id: u32, generation: u32, finished: Finished) {
        let Finished { mut call, outcome } = finished;
        self.record(&call, &outcome);
        if let Some(connection) = self.connection(id, generation as u16) {
            connection.busy = false;
            connection.asked = None;
            // Only a hook ends with a code that closes.
            let closes = matches!(outcome, Outcome::Failed { code, .. } if code.closes());
            self.write_reply(id, &mut call, &outcome, closes);
        }
        self.keep_call(call);
    }

    /// Counts an ended call. Moves the turn's clock on.
    pub(super) fn record(&mut self, call: &Call, outcome: &Outcome) {
        // The guest that ended just now was left at the latest time that is known.
        let is_latest = call.served_by == self.core.0 && call.stages.left_ns > self.now_ns;
        self.now_ns = if is_latest { call.stages.left_ns } else { clock::quick_ns().max(self.now_ns) };
        if self.tail.wants(call, self.now_ns, self.is_traced) {
            let seen_ns = self.seen_ns(call);
            self.tail.keep(call, outcome, self.core, seen_ns);
        }
        let duration_ns = self.now_ns.saturating_sub(call.received_ns);
        self.view.functions[usize::from(call.function)].record(outcome, duration_ns);
        if matches!(outcome, Outcome::Failed { code, .. } if *code == crate::net::ErrorCode::Overloaded) {
            self.view.counters.shed.add(1);
        }
    }

    /// When the kernel program saw the packet of a request, as far as its stamps tell: they are of the last packet of a slot or port, and one that came
    /// after the shard was at this request is another's.
    #[cold]
    fn seen_ns(&self, call: &Call) -> Option<u64> {
        let stamps = self.flows.as_ref()?.stamps();
        let seen_ns = match call.origin {
            Origin::Datagram { .. } => stamps.datagram_ns(self.placement.hash(call.request.session()?).slot()),
            Origin::Http { connection, shard, .. } if shard == self.core.0 => stamps
                .segment_ns(self.connections.get(connection as usize).map(|connection| connection.peer_port).filter(|port| *port != 0)?),
            _ => return None,
        };
        (1..=call.stages.handed_ns)
            .contains(&seen_ns)
            .then_some(seen_ns)
            .filter(|seen_ns| call.stages.handed_ns - seen_ns < STAMP_AGE_NS_MAX)
    }

    /// Encodes a reply. `close`: the connection ends with it, whatever the request asked. A long one that finds no room is not written: the connection
    /// ends behind the replies before it. No error is right here, because the function ran and what it wrote stays.
    pub(super) fn write_reply(&mut self, id: u32, call: &mut Call, outcome: &Outcome, close: bool) {
        let request = &call.request;
        let long_bytes = if request.is_head() { 0 } else { long_reply_bytes(call, outcome) };
        let has_room = long_bytes == 0 || self.finds_room(long_bytes);
        let connection = &mut self.connections[id as usize];
        let stays = has_room && !matches!(outcome, Outcome::Cancelled) && !close && request.keep_alive();
        let header = match (stays, request.is_http10()) {
            (false, _) => ConnectionHeader::Close,
            (true, true) => ConnectionHeader::KeepAlive,
            (true, false) => ConnectionHeader::None,
        };
        match outcome {
            Outcome::Replied if !has_room => {}
            Outcome::Replied => {
                let head = ReplyHead {
                    status: 200,
                    content_type: b"application/octet-stream",
                    session_header: &self.limits.session_header,
                    session: &call.session,
                    invocation_id: call.invocation_id,
                    date: &self.date,
                    connection: header,
                    extra: &self.served_by[usize::from(call.served_by)],
                };
                match long_bytes >= MAPPED_BYTES_MIN && connection.out.len() <= UNCOUNTED_BYTES_MAX {
                    true => encode_reply_over(&mut connection.out, &head, std::mem::take(&mut call.output)),
                    false => encode_reply(&mut connection.out, &head, &call.output, request.is_head()),
                }
            }
            // The connection is given up, and what its output holds is never sent; or the reply found no room on its way here.
            Outcome::Cancelled => {}
            Outcome::Failed { code, detail, guest_code } => {
                // A container whose primary cannot be reached refuses before anything runs.
                let ran = outcome.ran() && call.has_begun();
                let problem = Problem {
                    code: *code,
                    detail,
                    guest_code: *guest_code,
                    session_header: &self.limits.session_header,
                    session: (ran && !call.is_hook()).then_some(&call.session),
                    invocation_id: ran.then_some(call.invocation_id),
                    date: &self.date,
                    connection: header,
                };
                encode_problem(&mut connection.out, &problem, request.is_head());
            }
        }
        if !stays && connection.closing == Closing::No {
            connection.closing = Closing::AfterSend;
            connection.pending = Vec::new();
        }
    }

    /// Sends what is to be sent, unless a send is under way.
    pub(super) fn flush(&mut self, id: u32) {
        let connection = &mut self.connections[id as usize];
        if connection.sending || connection.out.is_empty() || connection.closing == Closing::Shut {
            return;
        }
        let buffer = std::mem::replace(&mut connection.out, self.spare_buffers.pop().unwrap_or_default());
        connection.sending = true;
        connection.sending_bytes = buffer.capacity();
        connection.send_since_ns = self.now_ns;
        let tag = Operation::Sent { connection: id, generation: connection.generation }.tag();
        self.ring.send_in_pieces(tag, connection.file, buffer);
    }

    pub(super) fn on_sent(&mut self, id: u32, generation: u16, completion: Completion) {
        if completion.more {
            return self.on_piece_sent(id, generation);
        }
        let bytes = completion.sent.as_ref().map_or(0, Vec::len);
        self.keep_buffer(completion.sent);
        if bytes > UNCOUNTED_BYTES_MAX {
            self.count_off(bytes);
        }
        let (core, now_ns) = (self.core, self.now_ns);
        let Some(connection) = self.connection(id, generation) else { return };
        connection.sending = false;
        // A client that reads a long reply is not idle, and what it sent of the next request meanwhile had to wait.
        connection.phase_since_ns = now_ns;
        let is_whole = completion.result >= 0 && completion.result as usize >= bytes;
        if is_whole && connection.is_at_rest(core) {
            return;
        }
        if !is_whole {
            connection.closing = Closing::Shut; // the client is gone
            self.run_line(); // what is given up is where it is looked for
            if self.connection(id, generation).is_none() {
                return;
            }
        }
        self.flush(id);
        self.resume(id, u32::from(generation));
    }

    /// The client takes its reply, if slowly.
    #[cold]
    fn on_piece_sent(&mut self, id: u32, generation: u16) {
        let now_ns = self.now_ns;
        let Some(connection) = self.connection(id, generation) else { return };
        connection.send_since_ns = now_ns;
        if connection.closing == Closing::Shut {
            self.settle(id, generation); // given up between two pieces: the one under way now was not cancelled yet
        }
    }

    /// Goes on with a connection whose reply is out: the input that waited, then what is due of a move or a close.
    pub(super) fn resume(&mut self, id: u32, generation: u32) {
        let generation = generation as u16;
        let Some(connection) = self.connection(id, generation) else { return };
        if !connection.holds_input() && !connection.pending.is_empty() {
            let pending = std::mem::take(&mut connection.pending);
            self.feed(id, &pending);
        }
        let connection = &mut self.connections[id as usize];
        if connection.closing == Closing::No && connection.moving_to.is_none() && connection.pending.len() <= PENDING_BYTES_MAX {
            self.arm_receive(id);
        }
        self.flush(id);
        self.settle(id, generation);
    }

    /// Takes the next step of a move or a close, if its time has come.
    pub(super) fn settle(&mut self, id: u32, generation: u16) {
        let now_ns = self.now_ns;
        let Some(connection) = self.connection(id, generation) else { return };
        if connection.ended && connection.closing == Closing::No && !connection.busy && connection.pending.is_empty() {
            // The client asked all it had to ask. A request cut short runs nothing.
            connection.closing = Closing::AfterSend;
        }
        match connection.closing {
            Closing::No => self.settle_move(id),
            Closing::AfterSend if connection.sending || connection.busy || !connection.out.is_empty() => {}
            Closing::AfterSend if connection.ended => {
                connection.closing = Closing::Shut;
                self.settle(id, generation);
            }
            Closing::AfterSend => {
                connection.closing = Closing::Lingering { since_ns: now_ns };
                connection.half_closing = true;
                let file = connection.file;
                self.ring.shutdown_write(Operation::HalfClosed { connection: id, generation }.tag(), file);
                self.arm_receive(id);
            }
            Closing::Lingering { .. } if connection.ended => {
                connection.closing = Closing::Shut;
                self.settle(id, generation);
            }
            Closing::Lingering { .. } => {}
            Closing::Shut => self.settle_shut(id, generation),
        }
    }

    pub(super) fn on_half_closed(&mut self, id: u32, generation: u16) {
        let Some(connection) = self.connection(id, generation) else { return };
        connection.half_closing = false;
        self.settle(id, generation);
    }

    /// Ends a connection at once, without a word.
    pub(super) fn shut(&mut self, id: u32) {
        let connection = &mut self.connections[id as usize];
        connection.closing = Closing::Shut;
        let generation = connection.generation;
        self.settle(id, generation);
    }

    pub(super) fn remove_connection(&mut self, id: u32) {
        let mut connection = self.connections.remove(id as usize);
        if let Some(call) = connection.call.take() {
            self.keep_call(call);
        }
        self.ring.close(Operation::Closed.tag(), connection.file);
    }
}
