//! The loop of one shard, read top to bottom: wait, take what completed, take the mail, run who waits, send. ARCHITECTURE.md "The way of a request".
//! A warm request allocates nothing here and makes no system call but the loop's own `io_uring_enter`, and in the real-time
//! class those of `rests.rs`, 500 times a second.

use super::answers::Answers;
use super::connection::{Arrivals, Connection, MovedConnection};
use super::counters::ShardView;
use super::inflow::Inflow;
use super::lifecycle::{Lifecycle, Woken};
use super::line::Line;
use super::listing::Listings;
use super::logging::Logging;
use super::mailbox::{CommandDoor, Message, Post};
use super::moving_session::Moves;
use super::primary::Container;
use super::replay::Replays;
use super::rests::Rests;
use super::rpc::Rpc;
use super::session_reads::SessionReads;
use super::start::ShardOptions;
use super::tag::Operation;
use super::tail::Tail;
use crate::net::{ErrorCode, HttpLimits, http_date};
use crate::session::{AliasTable, Finished, FreshIds, Outcome, PinView, Placement, Proxy};
use crate::steering::{FlowTable, Gate};
use crate::sys::{Completion, Ring, RingError, clock, realtime};
use crate::worker::{Call, Origin};
use rustc_hash::FxHashMap;
use slab::Slab;
use socket2::SockRef;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use xfaas_common::ids::CoreIndex;

/// Guests that used up a slice run again at most this long a turn, so that a new request waits for one slice and not for all.
const SLICES_NS_MAX: u64 = 1_000_000;
/// A shard in the real-time class sleeps so long between slices: less than a twentieth of them.
const PACKETS_WAIT: Duration = Duration::from_micros(50);
/// Messages taken from one neighbour a turn.
const MAIL_MESSAGES_MAX: usize = 256;
/// Calls kept to be used again.
const SPARE_CALLS_MAX: usize = 1_024;
/// Send buffers made at start, and their size: more than one a connection is needed when a request comes before its last send is done.
const SPARE_BUFFERS_AT_START: usize = 256;
const SPARE_BUFFER_BYTES: usize = 1_024;
/// How often timeouts are looked at: while calls are parked, while connections are open, and else.
const SWEEP_PARKED_NS: u64 = 10_000_000;
const SWEEP_OPEN_NS: u64 = 100_000_000;
const SWEEP_REST_NS: u64 = 1_000_000_000;

/// Everything one dataplane thread owns.
pub struct Shard {
    pub(super) core: CoreIndex,
    pub(super) options: ShardOptions,
    pub(super) limits: HttpLimits,
    pub(super) ring: Ring,
    pub(super) rings: Arc<[RawFd]>,
    pub(super) proxy: Proxy,
    pub(super) placement: Arc<dyn Placement>,
    /// Sessions that are elsewhere than their slot says.
    pub(super) pins: PinView,
    pub(super) moves: Moves,
    /// In a container: the primary that has the state.
    pub(super) container: Option<Container>,
    pub(super) connections: Slab<Connection>,
    /// Generation of the next connection: tells a late completion of a closed one apart.
    pub(super) generation: u16,
    pub(super) arrivals: Arrivals<MovedConnection>,
    /// Function index by name and by wire hash. Only what an operator deployed is ever inserted, so the hash needs no key.
    pub(super) by_name: FxHashMap<Box<[u8]>, u16>,
    pub(super) by_hash: FxHashMap<u32, u16>,
    pub(super) post: Post,
    pub(super) fresh: FreshIds,
    pub(super) aliases: AliasTable,
    pub(super) replays: Replays,
    pub(super) view: Arc<ShardView>,
    pub(super) door: Arc<CommandDoor>,
    pub(super) tcp: OwnedFd,
    pub(super) udp: OwnedFd,
    pub(super) rpc: Rpc,
    pub(super) logging: Logging,
    pub(super) session_reads: SessionReads,
    pub(super) lifecycle: Lifecycle,
    pub(super) flows: Option<FlowTable>,
    pub(super) inflow: Option<Inflow>,
    /// In the real-time class, where the kernel bounds it.
    pub(super) rests: Option<Rests>,
    #[expect(clippy::vec_box, reason = "calls travel as boxes: one is taken out and put back without moving its kilobyte")]
    pub(super) spare_calls: Vec<Box<Call>>,
    pub(super) spare_buffers: Vec<Vec<u8>>,
    pub(super) line: Line,
    /// Lists of sessions that control has asked for.
    pub(super) listings: Listings,
    /// Datagrams that leave at the turn's end.
    pub(super) answers: Answers,
    /// Calls that end outside the stage that started them.
    pub(super) finished: Vec<Finished>,
    /// What a receive brought, copied out so that its buffer goes back at once.
    pub(super) scratch: Vec<u8>,
    /// Takes connections and datagrams.
    pub(super) is_serving: bool,
    pub(super) datagrams_armed: bool,
    pub(super) accept_armed: bool,
    pub(super) draining_since_ns: Option<u64>,
    /// No shard has anything left to finish: what is to be saved is, and then the loop ends.
    pub(super) is_ending: bool,
    /// When the calls that had not finished in time were ended.
    pub(super) calls_ended_ns: Option<u64>,
    pub(super) swept_ns: u64,
    /// When it was last looked what connections hold.
    pub(super) bounded_ns: u64,
    /// Entry `i`: the header line that says core `i` served the request.
    pub(super) served_by: Box<[Vec<u8>]>,
    date_s: u64,
    pub(super) date: [u8; 29],
    /// When the turn began, or the last call in it ended: one clock read a request gives this one's end and the next one's begin.
    pub(super) now_ns: u64,
    pub(super) tail: Tail,
    /// Somebody traces; the kernel programs, where there are any, write stamps.
    pub(super) is_traced: bool,
}

/// The parts of a shard that `start` prepares.
pub(super) struct ShardParts {
    pub(super) core: CoreIndex,
    pub(super) options: ShardOptions,
    pub(super) ring: Ring,
    pub(super) rings: Arc<[RawFd]>,
    pub(super) proxy: Proxy,
    pub(super) placement: Arc<dyn Placement>,
    pub(super) pins: PinView,
    pub(super) container: Option<Container>,
    pub(super) post: Post,
    pub(super) view: Arc<ShardView>,
    pub(super) door: Arc<CommandDoor>,
    pub(super) tcp: OwnedFd,
    pub(super) udp: OwnedFd,
    pub(super) rpc: Option<OwnedFd>,
    pub(super) flows: Option<FlowTable>,
    pub(super) gate: Option<Gate>,
}

impl Shard {
    pub(super) fn new(parts: ShardParts) -> Shard {
        let ShardParts { core, options, ring, rings, proxy, placement, pins, container, post, view, door, tcp, udp, rpc, flows, gate } =
            parts;
        let limits = HttpLimits { body_bytes_max: options.body_bytes_max, session_header: options.session_header.clone() };
        let now_ns = clock::monotonic_ns();
        let mut spare_buffers = Vec::with_capacity(SPARE_CALLS_MAX);
        spare_buffers.extend((0..SPARE_BUFFERS_AT_START).map(|_| Vec::with_capacity(SPARE_BUFFER_BYTES)));
        let replays = Replays::new(options.replay_bytes_max);
        let served_by = (0..rings.len()).map(|core| format!("x-xfaas-core: {core}\r\n").into_bytes()).collect();
        let rests = options.realtime.then(|| Rests::new(realtime::bound(), now_ns)).flatten();
        let inflow = gate.map(|gate| Inflow::new(gate, udp.as_fd()));
        Shard {
            core,
            limits,
            options,
            ring,
            rings,
            proxy,
            placement,
            pins,
            moves: Moves::default(),
            container,
            connections: Slab::with_capacity(1_024),
            generation: 0,
            arrivals: Arrivals::default(),
            by_name: FxHashMap::default(),
            by_hash: FxHashMap::default(),
            post,
            fresh: FreshIds::default(),
            aliases: AliasTable::default(),
            replays,
            view,
            door,
            tcp,
            udp,
            rpc: Rpc::new(rpc),
            logging: Logging::default(),
            session_reads: SessionReads::default(),
            lifecycle: Lifecycle::default(),
            flows,
            inflow,
            rests,
            spare_calls: Vec::with_capacity(SPARE_CALLS_MAX),
            spare_buffers,
            line: Line::default(),
            listings: Listings::default(),
            answers: Answers::default(),
            finished: Vec::new(),
            scratch: Vec::with_capacity(128 << 10),
            is_serving: false,
            datagrams_armed: false,
            accept_armed: false,
            draining_since_ns: None,
            is_ending: false,
            calls_ended_ns: None,
            swept_ns: now_ns,
            bounded_ns: now_ns,
            served_by,
            date_s: 0,
            date: [0; 29],
            now_ns,
            tail: Tail::default(),
            is_traced: false,
        }
    }

    /// Runs until drained. Errors: the ring itself failed.
    pub fn run(mut self) -> Result<(), RingError> {
        self.listen_for_commands();
        while !self.is_drained() {
            self.turn()?;
        }
        // The kernel takes a ring apart some milliseconds after its process is gone, and keeps the listener for so long. A client that came
        // then would be reset; so listening ends here. If that fails the process ends all the same.
        for listener in std::iter::once(&self.tcp).chain(&self.rpc.listener) {
            SockRef::from(listener).shutdown(std::net::Shutdown::Both).ok();
        }
        Ok(())
    }

    fn listen_for_commands(&mut self) {
        self.ring.poll_multi(Operation::Command.tag(), self.door.waker.descriptor());
    }

    fn turn(&mut self) -> Result<(), RingError> {
        self.arm();
        self.stamp_sent();
        self.rest();
        let timeout = self.wait_time();
        self.ring.wait_past_sends(timeout)?;
        self.now_ns = clock::anchor_ns();
        self.tail.begin_turn(self.now_ns);
        self.refresh_date();
        if self.proxy.looks_ahead() {
            self.line.open();
        }
        while let Some(completion) = self.ring.next_completion() {
            self.on_completion(completion);
            self.step_line();
        }
        self.run_line();
        if let Some(inflow) = &mut self.inflow {
            inflow.end_turn(self.view.counters.datagrams.get(), self.now_ns);
        }
        self.take_mail();
        self.close_line();
        self.fire_timers();
        self.run_slices();
        let (chores_from_ns, named_ns) = (clock::quick_ns(), self.tail.work.log_ns + self.tail.work.checkpoints_ns);
        if self.now_ns.saturating_sub(self.swept_ns) >= self.sweep_interval_ns() {
            self.sweep();
        } else if self.is_overfull() {
            self.bound_buffers();
        }
        self.step_move();
        if !self.listings.is_empty() {
            self.step_listing();
        }
        self.send_to_owners();
        if self.proxy.has_offers() {
            self.send_offers();
        }
        self.answer_granted();
        self.step_log();
        self.step_lifecycle();
        self.pump_primary();
        let chores_ns = clock::quick_ns().saturating_sub(chores_from_ns);
        self.tail.work.chores_ns += chores_ns.saturating_sub(self.tail.work.log_ns + self.tail.work.checkpoints_ns - named_ns);
        self.tail.work.fork_ns = self.proxy.stats().fork_ns;
        self.send_answers();
        self.post.retry();
        self.wake_neighbours();
        self.publish();
        Ok(())
    }

    /// Somebody traces and this turn has replies: they are handed over before the wait. That does it otherwise, but lasts until something comes, and nobody
    /// could tell when it sent. It is one system call more in each turn that has a reply, so it is not made when nobody looks.
    fn stamp_sent(&mut self) {
        if self.tail.has_pending() {
            self.ring.hand_over();
            self.tail.publish(clock::quick_ns(), &self.view.tail);
        }
    }

    /// Leaves the CPU to others for a moment, if that is due.
    fn rest(&mut self) {
        let Some(rest) = self.rests.as_mut().and_then(|rests| rests.due(self.now_ns)) else { return };
        self.ring.hand_over(); // what is ready to leave does not wait
        let from_ns = clock::monotonic_ns();
        std::thread::sleep(rest);
        let rested_ns = clock::monotonic_ns().saturating_sub(from_ns);
        self.tail.work.rests_ns += rested_ns;
        self.view.counters.rest_ns.add(rested_ns);
    }

    /// Arms what a receive without a buffer, or an error, ended.
    fn arm(&mut self) {
        if !self.is_serving {
            return;
        }
        if !self.accept_armed {
            self.ring.accept_multi(Operation::Accept.tag(), self.tcp.as_fd());
            self.accept_armed = true;
        }
        if !self.datagrams_armed {
            self.ring.recvmsg_multi(Operation::Datagram.tag(), self.udp.as_fd(), super::start::GROUP_DATAGRAMS);
            self.datagrams_armed = true;
        }
        self.arm_rpc();
    }

    fn wait_time(&self) -> Duration {
        if self.proxy.has_runnable() && self.flows.is_some() {
            return self.let_packets_in();
        }
        if self.proxy.has_runnable() || self.post.has_unsent() || self.logging.is_copying() || !self.listings.is_empty() {
            return Duration::ZERO;
        }
        let due_ns = self.swept_ns + self.sweep_interval_ns();
        let rest = Duration::from_nanos(due_ns.saturating_sub(self.now_ns));
        let looks = self.inflow.as_ref().and_then(Inflow::wait);
        self.timer_wait().into_iter().chain(looks).fold(rest, Duration::min)
    }

    /// Between two slices of guests that do not end: the kernel's thread that brings steered packets on this CPU has its turn, or it would wait for
    /// the scheduler's, which comes once a second where this thread is in the real-time class. Output: how long to wait for what it brings.
    fn let_packets_in(&self) -> Duration {
        if self.options.realtime {
            return PACKETS_WAIT;
        }
        std::thread::yield_now();
        Duration::ZERO
    }

    fn sweep_interval_ns(&self) -> u64 {
        if self.proxy.is_busy()
            || self.moves.is_busy()
            || self.rpc.has_waiting()
            || self.logging.has_work()
            || self.lifecycle.has_work()
            || self.draining_since_ns.is_some()
            || self.is_getting_crowded()
        {
            SWEEP_PARKED_NS
        } else if self.connections.is_empty() && !self.rpc.has_connections() && self.container.is_none() {
            SWEEP_REST_NS
        } else {
            SWEEP_OPEN_NS
        }
    }

    fn refresh_date(&mut self) {
        let unix_s = clock::unix_s();
        if unix_s != self.date_s {
            self.date_s = unix_s;
            self.date = http_date(unix_s);
        }
    }

    fn on_completion(&mut self, completion: Completion) {
        let operation = Operation::of(completion.tag);
        if !operation.leaves_calls_alone() || completion.result <= 0 {
            self.run_line(); // those in line came before it
        }
        match operation {
            Operation::Receive { connection, generation } => self.on_receive(connection, generation, completion),
            Operation::Sent { connection, generation } => self.on_sent(connection, generation, completion),
            Operation::Datagram => self.on_datagram(completion),
            Operation::DatagramSent => self.on_datagram_sent(completion),
            Operation::Accept => self.on_accept(&completion),
            Operation::Command => {
                if !completion.more {
                    self.listen_for_commands();
                }
                self.take_commands();
            }
            Operation::Mail | Operation::Closed => {} // the mail is taken every turn; a closed slot needs nothing
            Operation::Handed { connection, generation } => self.on_handed(connection, generation, completion.result),
            Operation::Arrived(arrival) => self.on_arrived(arrival, completion.result),
            Operation::HalfClosed { connection, generation } => self.on_half_closed(connection, generation),
            Operation::Watched { connection, generation } => self.on_watched(connection, generation, completion.result),
            Operation::Installed { connection, generation } => self.on_installed(connection, generation, &completion),
            Operation::Link { link, generation, operation } => self.on_link(link, generation, operation, completion),
            Operation::Rpc(operation) => self.on_rpc(operation, completion),
            Operation::RpcArrived(arrival) => self.on_rpc_arrived(arrival, completion.result),
            Operation::Logged => self.on_logged(completion),
        }
    }

    fn take_mail(&mut self) {
        for from in 0..self.post.shards() {
            for _ in 0..MAIL_MESSAGES_MAX {
                let Some(message) = self.post.receive(from) else { break };
                if !matches!(message, Message::Invoke(_) | Message::Done(_)) {
                    self.run_line(); // those in line came before it
                }
                self.on_message(from, message);
                self.step_line();
            }
        }
    }

    fn on_message(&mut self, from: usize, message: Message) {
        match message {
            Message::Invoke(call) => self.on_invoke(call),
            Message::Cancel(name) => self.cancel(&name),
            Message::Done(finished) => self.on_done(finished),
            Message::ReadSession(question) => self.on_session_question(question),
            Message::SessionRead(answer) => self.on_session_answer(&answer),
            Message::Moved(state) => self.on_moved(state),
            Message::RpcMoved(moved) => self.on_rpc_moved(moved),
            Message::Move(message) => self.on_move_message(from, message),
            Message::Secondary(message) => self.on_secondary_message(from, message),
        }
    }

    /// A neighbour's request for a session of ours.
    pub(super) fn on_invoke(&mut self, call: Box<Call>) {
        let Some(call) = self.keep_own(call) else { return };
        if self.line.is_open() {
            return self.line_up(call);
        }
        if let Origin::Datagram { peer, request_id, .. } = call.origin {
            return self.run_datagram(call, peer, request_id);
        }
        if let Some(finished) = self.submit(call) {
            self.deliver(finished);
        }
    }

    /// Runs a call of a session of ours, or lets it wait its turn.
    pub(super) fn submit(&mut self, mut call: Box<Call>) -> Option<Finished> {
        call.served_by = self.core.0;
        if self.moves.holds_back(&call) {
            return self.hold_back(call);
        }
        if let Some(detail) = self.log_refusal(call.app) {
            return Some(Finished { call, outcome: Outcome::failed(ErrorCode::Overloaded, detail) });
        }
        if let Err(outcome) = self.place_remote(&mut call) {
            return Some(Finished { call, outcome });
        }
        let call = match self.wake(call) {
            Woken::Run(call) => call,
            Woken::Waits => return None,
            Woken::Over(finished) => return Some(finished),
        };
        let finished = self.proxy.submit(call, self.now_ns);
        if finished.is_none() {
            self.now_ns = clock::quick_ns(); // a whole slice may have gone by, and the next call's deadline starts now
            if self.proxy.has_offers() {
                self.send_offers();
            }
        }
        self.hold(finished?)
    }

    fn run_slices(&mut self) {
        if !self.proxy.has_runnable() {
            return;
        }
        self.wake_now(); // whoever waits for an answer waits for no guest here
        let started_ns = clock::monotonic_ns();
        let mut now_ns = started_ns;
        while self.proxy.has_runnable() && now_ns - started_ns < SLICES_NS_MAX {
            let is_idle_time = self.proxy.has_held_only();
            if let Some(finished) = self.proxy.run_next(now_ns) {
                self.deliver(finished);
            }
            now_ns = clock::monotonic_ns();
            if is_idle_time {
                break; // whoever came meanwhile goes first
            }
        }
        self.tail.work.slices_ns += now_ns - started_ns;
    }

    /// Brings a call that is over to whoever asked, once what it did or saw is as durable as its app is to be.
    pub(super) fn deliver(&mut self, finished: Finished) {
        if let Some(finished) = self.hold(finished) {
            self.deliver_now(finished);
        }
    }

    /// A connection here, a datagram's sender, or the shard that forwarded it or gave it away.
    pub(super) fn deliver_now(&mut self, finished: Finished) {
        let Some(finished) = self.return_offer(finished) else { return };
        match finished.call.origin {
            Origin::Http { shard, .. } if shard != self.core.0 => self.send_home(usize::from(shard), finished),
            Origin::Http { connection, generation, .. } => {
                match finished.call.is_hook() {
                    true => self.on_hook_end(connection, generation, finished),
                    false => self.reply_http(connection, generation, finished),
                }
                self.resume(connection, generation);
            }
            Origin::Datagram { .. } => self.reply_datagram(finished),
            Origin::Timer { .. } => self.end_timer(finished),
            Origin::None => self.keep_call(finished.call),
        }
    }

    /// Output: true when somebody had mail.
    pub(super) fn wake_neighbours(&mut self) -> bool {
        if !self.post.take_has_mail_out() {
            return false;
        }
        for shard in 0..self.post.shards() {
            if self.post.take_wake(shard) {
                self.ring.message(self.rings[shard], Operation::Mail.tag());
            }
        }
        true
    }

    fn publish(&self) {
        let counters = &self.view.counters;
        counters.publish_proxy(&self.proxy.stats());
        self.proxy.publish_load();
        counters.held_for_move.set(self.moves.held_back() as u64);
        counters.ring_enters.set(self.ring.enters());
        counters.ring_submissions.set(self.ring.submissions());
        counters.ring_completions.set(self.ring.completions());
        counters.connections.set(self.connections.len() as u64);
        counters.sessions_asleep.set(self.lifecycle.asleep);
        self.rpc.publish(&counters.rpc);
        counters.turns.add(1);
    }

    /// A call to fill, used before if there is one.
    pub(super) fn fresh_call(&mut self) -> Box<Call> {
        self.spare_calls.pop().unwrap_or_default()
    }

    pub(super) fn keep_call(&mut self, mut call: Box<Call>) {
        if self.spare_calls.len() < SPARE_CALLS_MAX {
            call.reset();
            self.spare_calls.push(call);
        }
    }

    pub(super) fn keep_buffer(&mut self, buffer: Option<Vec<u8>>) {
        let Some(mut buffer) = buffer else { return };
        if self.spare_buffers.len() < SPARE_CALLS_MAX && buffer.capacity() <= 64 << 10 {
            buffer.clear();
            self.spare_buffers.push(buffer);
        }
    }
}
