//! The HTTP stage: bytes of a connection become requests, requests become calls. Bytes are hostile here.

use super::admission::Refusal;
use super::connection::{Asked, Closing, Connection, PENDING_BYTES_MAX};
use super::start::GROUP_STREAMS;
use super::tag::Operation;
use super::turn::Shard;
use crate::net::{CONTINUE, ErrorCode, Http1Event, Phase};
use crate::session::Outcome;
use crate::sys::{Completion, FixedFile};
use crate::worker::{Call, Origin, StateAt};
use xfaas_common::ids::SessionId;

impl Shard {
    pub(super) fn on_accept(&mut self, completion: &Completion) {
        if !completion.more {
            self.accept_armed = false;
        }
        let Ok(file) = u32::try_from(completion.result) else { return };
        let file = FixedFile(file);
        let counters = &self.view.counters;
        // Also while draining: a client that is told so asks elsewhere, one that is reset knows nothing.
        if self.connections.len() >= self.options.connections_max {
            counters.connections_refused.add(1);
            self.ring.close(Operation::Closed.tag(), file);
            return;
        }
        counters.accepted.add(1);
        let id = self.insert_connection(|generation, now_ns| Connection::new(file, generation, now_ns));
        self.arm_receive(id);
        if self.is_traced && self.flows.is_some() {
            self.ask_for_port(id);
        }
    }

    pub(super) fn insert_connection(&mut self, make: impl FnOnce(u16, u64) -> Connection) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.connections.insert(make(self.generation, self.now_ns)) as u32
    }

    pub(super) fn arm_receive(&mut self, id: u32) {
        let connection = &mut self.connections[id as usize];
        if connection.armed || connection.ended || connection.closing == Closing::Shut {
            return;
        }
        connection.armed = true;
        if connection.watched {
            self.ring.cancel(Operation::Watched { connection: id, generation: connection.generation }.tag());
        }
        let tag = Operation::Receive { connection: id, generation: connection.generation }.tag();
        self.ring.recv_multi(tag, connection.file, GROUP_STREAMS);
    }

    /// The connection of a completion or reply, unless it is gone and its slot used again.
    pub(super) fn connection(&mut self, id: u32, generation: u16) -> Option<&mut Connection> {
        self.connections.get_mut(id as usize).filter(|connection| connection.generation == generation)
    }

    pub(super) fn on_receive(&mut self, id: u32, generation: u16, completion: Completion) {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        if let Some(buffer) = completion.received {
            bytes.extend_from_slice(self.ring.bytes(&buffer));
            self.ring.recycle(buffer);
        }
        if let Some(connection) = self.connection(id, generation) {
            if !completion.more {
                connection.armed = false;
            }
            if completion.result > 0 {
                self.take_bytes(id, &bytes);
            } else if completion.result == -libc::ENOBUFS {
                self.view.counters.buffers_exhausted.add(1); // `after_receive` arms it again, unless it is to rest
            } else if completion.result != -libc::ECANCELED {
                connection.ended = true;
                if completion.result < 0 {
                    connection.closing = Closing::Shut; // reset by the client: nobody reads a reply
                }
            }
            self.after_receive(id, generation);
        }
        self.scratch = bytes;
    }

    /// New bytes of a connection: decoded at once, or kept while a request of it runs.
    fn take_bytes(&mut self, id: u32, bytes: &[u8]) {
        let connection = &mut self.connections[id as usize];
        if connection.closing != Closing::No {
            return; // a lingering connection's input is dropped
        }
        if connection.holds_input() || !connection.pending.is_empty() {
            connection.pending.extend_from_slice(bytes);
            if connection.pending.len() > PENDING_BYTES_MAX && connection.armed {
                let tag = Operation::Receive { connection: id, generation: connection.generation }.tag();
                self.ring.cancel_receive(tag, GROUP_STREAMS);
            }
            return;
        }
        self.feed(id, bytes);
    }

    fn after_receive(&mut self, id: u32, generation: u16) {
        let Some(connection) = self.connection(id, generation) else { return };
        // A receive that its operation's limits ended (not the client) goes on.
        if !connection.armed && !connection.ended && connection.moving_to.is_none() {
            match connection.pending.len() <= PENDING_BYTES_MAX {
                true => self.arm_receive(id),
                false => self.watch(id),
            }
        }
        self.flush(id);
        self.settle(id, generation);
    }

    /// Decodes `bytes` and starts what is complete; keeps the rest while a request runs.
    pub(super) fn feed(&mut self, id: u32, mut bytes: &[u8]) {
        // A head that ends the input may be a whole request: the decoder is asked once more.
        let mut after_head = false;
        let mut is_first = true;
        loop {
            let connection = &mut self.connections[id as usize];
            if connection.closing != Closing::No {
                return;
            }
            if connection.holds_input() {
                connection.pending.extend_from_slice(bytes);
                return;
            }
            if bytes.is_empty() && !after_head {
                return;
            }
            let mut call = match connection.call.take() {
                Some(call) => call,
                None => self.spare_calls.pop().unwrap_or_default(),
            };
            let (used, event) = connection.decoder.decode(&self.limits, bytes, &mut call.request);
            bytes = &bytes[used..];
            connection.note_phase(self.now_ns);
            after_head = matches!(event, Http1Event::Head { .. });
            self.line.is_last = is_first && bytes.is_empty();
            is_first = is_first && after_head;
            match event {
                Http1Event::NeedMore => {
                    match connection.phase {
                        Phase::BetweenRequests => self.keep_call(call),
                        _ => connection.call = Some(call),
                    }
                    return;
                }
                Http1Event::Head { expects_continue, has_body } => self.on_head(id, call, expects_continue, has_body),
                Http1Event::Complete => self.on_request(id, call),
                Http1Event::Refused { code, detail } => {
                    self.view.counters.http_requests.add(1);
                    self.refuse(id, call, code, detail);
                }
            }
        }
    }

    /// A good head whose body is still to come: the last chance to refuse before the client sends it.
    fn on_head(&mut self, id: u32, call: Box<Call>, expects_continue: bool, has_body: bool) {
        let index = self.by_name.get(call.request.function_name()).copied();
        if let Some(function) = index.and_then(|index| self.proxy.function(index))
            && has_body
            && function.manifest.rules.may_refuse_a_head()
            && let Err((code, detail)) = self.admit_http(function, &call.request, &mut { SessionId::PLACEHOLDER })
        {
            if code.closes() || expects_continue {
                self.view.counters.http_requests.add(1);
                self.view.counters.tokens_refused.add(u64::from(code == ErrorCode::BadToken));
                return self.refuse_and_close(id, call, code, detail);
            }
            // Refused once its body is read and dropped, so that the connection can stay.
            self.connections[id as usize].decoder.discard_body();
        }
        let known = index.is_some() || self.is_unjoined();
        let connection = &mut self.connections[id as usize];
        if known && self.draining_since_ns.is_none() {
            if expects_continue && has_body {
                connection.out.extend_from_slice(CONTINUE);
            }
        } else if expects_continue && has_body {
            self.view.counters.http_requests.add(1);
            let (code, detail) = if known {
                (ErrorCode::Draining, "this server is shutting down")
            } else {
                (ErrorCode::NoFunction, "no function of this name is deployed")
            };
            return self.refuse_and_close(id, call, code, detail);
        } else if has_body {
            connection.decoder.discard_body();
        }
        self.connections[id as usize].call = Some(call);
    }

    /// A whole request: finds its function and session, and runs it here or sends it to the owner.
    fn on_request(&mut self, id: u32, mut call: Box<Call>) {
        self.view.counters.http_requests.add(1);
        if self.draining_since_ns.is_some() {
            return self.refuse(id, call, ErrorCode::Draining, "this server is shutting down");
        }
        let Some(index) = self.by_name.get(call.request.function_name()).copied() else {
            if self.is_unjoined() {
                return self.refuse(id, call, ErrorCode::NoPrimary, "no primary has been reached yet");
            }
            return self.refuse(id, call, ErrorCode::NoFunction, "no function of this name is deployed");
        };
        let function = self.proxy.function(index).expect("by_name holds functions in service only");
        (call.function, call.function_hash) = (index, function.hash);
        call.received_ns = self.now_ns;
        call.stages = self.tail.stages(self.core, self.now_ns);
        if function.hook.is_some() {
            return self.run_hook(id, call);
        }
        let Call { request, session, .. } = &mut *call;
        let admitted = self.admit_http(function, request, session);
        self.on_admitted(id, call, admitted);
    }

    /// A request whose session is known, or not to be had: runs it here or sends it to the owner. `admitted`: whether `call.session` is the one that
    /// it names.
    pub(super) fn on_admitted(&mut self, id: u32, mut call: Box<Call>, admitted: Result<bool, Refusal>) {
        let is_named = match admitted {
            Ok(is_named) => is_named,
            Err((code, detail)) => {
                self.view.counters.tokens_refused.add(u64::from(code == ErrorCode::BadToken));
                return self.refuse(id, call, code, detail);
            }
        };
        call.is_fresh = !is_named;
        let hash = if is_named {
            self.placement.hash(&call.session)
        } else {
            let (fresh, hash) = self.fresh.session(&*self.placement, self.core);
            call.session = fresh;
            hash
        };
        self.pins.refresh();
        let function = self.proxy.function(call.function).expect("looked up by the caller");
        let owner = self.pins.owner(&*self.placement, &function.manifest.app, &call.session, hash);
        call.app = function.app;
        call.table_hash = hash.table_hash();
        call.invocation_id = self.fresh.invocation();
        let connection = &mut self.connections[id as usize];
        call.origin = Origin::Http { connection: id, generation: u32::from(connection.generation), shard: self.core.0 };
        connection.busy = true;
        let runs_here = self.runs_here(&mut call, owner);
        let connection = &mut self.connections[id as usize];
        let asked_shard = if runs_here { self.core } else { owner };
        connection.asked = Some(Asked {
            shard: asked_shard.0,
            app: call.app,
            table_hash: call.table_hash,
            session: call.session,
            body_bytes: call.request.body().len(),
        });
        if call.state_at == StateAt::Here {
            // One that runs beside the owner does as well here as there: no reason to move.
            connection.speaks_for = match connection.spoke_for == call.table_hash && self.pins.generation() != 0 {
                true => connection.speaks_for.heard_of_same(owner.0),
                false => connection.speaks_for.heard(owner.0),
            };
            connection.spoke_for = call.table_hash;
        }
        if runs_here && self.line.takes() {
            return self.line_up(call);
        }
        if runs_here {
            if let Some(finished) = self.submit(call) {
                let generation = u32::from(self.connections[id as usize].generation);
                self.reply_http(id, generation, finished);
            }
            return;
        }
        match self.post.invoke(owner.index(), call) {
            Ok(()) => self.view.counters.forwarded.add(1),
            Err(call) => {
                let connection = &mut self.connections[id as usize];
                (connection.busy, connection.asked) = (false, None);
                self.view.counters.shed.add(1);
                self.refuse(id, call, ErrorCode::Overloaded, "the owner's mailbox is full");
            }
        }
    }

    /// Answers a request that runs nothing.
    pub(super) fn refuse(&mut self, id: u32, mut call: Box<Call>, code: ErrorCode, detail: &'static str) {
        let reusable = self.connections[id as usize].decoder.is_reusable();
        if code.closes() || !reusable {
            return self.refuse_and_close(id, call, code, detail);
        }
        self.view.counters.http_refused.add(1);
        self.write_reply(id, &mut call, &Outcome::failed(code, detail), false);
        self.keep_call(call);
    }

    pub(super) fn refuse_and_close(&mut self, id: u32, mut call: Box<Call>, code: ErrorCode, detail: &'static str) {
        self.view.counters.http_refused.add(1);
        self.write_reply(id, &mut call, &Outcome::failed(code, detail), true);
        self.keep_call(call);
    }

    /// Answers a request that was not read to its end in time, and closes.
    pub(super) fn refuse_late(&mut self, id: u32, detail: &'static str) {
        let call = self.connections[id as usize].call.take().unwrap_or_else(|| self.fresh_call());
        self.refuse_and_close(id, call, ErrorCode::Timeout, detail);
    }
}
