//! Secondary containers within the process: calls of a session whose primary has no worker free run on another shard, in workers of that one, on state
//! that stays here. ARCHITECTURE.md "Secondary containers". A stage of the loop.
//!
//! ```text
//! the owner's shard                              the shard of the secondary
//! Offer(call) ..............................>    idle worker, else Fork; weak reads from the owner's region
//!          <.......................... Ask       its worker is parked, as one whose primary is another process
//! state and locks: `rpc::neighbours`
//! Answer ...................................>    the worker goes on
//!          <......................... Done       over, or there was no room: then the owner runs it, or lets it wait
//! its locks go on, the next call that waits gets its place, the reply leaves as that of a call that ran here
//! ```
//! A shard's messages to another arrive in their order, so nothing of an invocation comes behind its `Done`.

use super::mailbox::Message;
use super::rpc::{Answered, StateQuestion};
use super::turn::Shard;
use crate::session::{CallName, Finished, Offer, Outcome, RemoteAnswer, RemoteTicket};
use crate::sys::clock;
use crate::worker::{Call, StateAt};

/// What the shards of a primary and of a secondary container tell each other.
pub(super) enum SecondaryMessage {
    /// Run this in a secondary container of its session.
    Offer(Box<Call>),
    /// The client of an `Offer` is gone: end it if it is not over. Its `Done` comes in either case.
    Cancel(Box<CallName>),
    /// A guest asks for the session's state.
    Ask(Box<StateQuestion>),
    Answer(RemoteTicket, Answered),
    /// The end of an `Offer`.
    Done(Finished),
}

impl Shard {
    pub(super) fn on_secondary_message(&mut self, from: usize, message: SecondaryMessage) {
        match message {
            SecondaryMessage::Offer(call) => self.on_offer(call),
            SecondaryMessage::Cancel(name) => {
                // Over already, otherwise.
                if let Some(finished) = self.proxy.cancel(&name, clock::monotonic_ns()) {
                    self.deliver(finished);
                }
            }
            SecondaryMessage::Ask(question) => self.on_state_question(from as u16, &question),
            SecondaryMessage::Answer(ticket, answered) => self.on_primary_answer(ticket, &answered),
            SecondaryMessage::Done(finished) => self.on_offer_done(from as u16, finished),
        }
    }

    pub(super) fn tell_secondary(&mut self, shard: u16, message: SecondaryMessage) {
        self.post.send(usize::from(shard), Message::Secondary(message));
    }

    /// Sends calls to the shards that have a place for them.
    pub(super) fn send_offers(&mut self) {
        while let Some((shard, mut call)) = self.proxy.next_offer() {
            let Some(invocation) = self.rpc.begin_on_shard(shard, call.origin) else {
                self.keep_offer((shard, call));
                continue;
            };
            call.state_at = StateAt::PrimaryShard(self.core.0);
            (call.remote.shard, call.remote.invocation) = (self.core.0, invocation);
            call.offered_ns = clock::monotonic_ns();
            if let Err(call) = self.post.offer(usize::from(shard), call) {
                self.end_on_shard(invocation);
                self.keep_offer((shard, call));
            }
        }
        self.wake_now();
    }

    /// A call that found no room elsewhere waits here, or is refused.
    fn keep_offer(&mut self, (shard, mut call): Offer) {
        let (app, session, table_hash) = (call.app, call.session, call.table_hash);
        (call.state_at, call.stays, call.served_by) = (StateAt::Here, true, self.core.0);
        // Before its place is given back: the namespace must not be forgotten in between.
        let finished = self.proxy.submit(call, clock::monotonic_ns());
        self.proxy.end_offer(app, &session, table_hash, shard);
        if let Some(finished) = finished {
            self.deliver(finished);
        }
    }

    /// A neighbour's call, to be run in this shard's secondary container of its session.
    fn on_offer(&mut self, mut call: Box<Call>) {
        call.served_by = self.core.0;
        let finished = self.proxy.submit_offered(call);
        self.now_ns = clock::quick_ns().max(self.now_ns); // a whole slice may have gone by
        if let Some(finished) = finished {
            self.deliver(finished);
        }
    }

    /// Brings the end of a call that ran in a secondary container to its owner, once what it may have read of this shard's sessions is safe. Output: the call,
    /// if it is not one.
    #[inline(always)]
    pub(super) fn return_offer(&mut self, finished: Finished) -> Option<Finished> {
        let StateAt::PrimaryShard(owner) = finished.call.state_at else { return Some(finished) };
        self.tell_secondary(owner, SecondaryMessage::Done(finished));
        None
    }

    /// A call that ran elsewhere is over: what it held is free, and it goes on as if it had run here.
    fn on_offer_done(&mut self, shard: u16, finished: Finished) {
        let Finished { mut call, outcome } = finished;
        let is_cancelled = self.end_on_shard(call.remote.invocation);
        call.state_at = StateAt::Here;
        if outcome.ran() || is_cancelled {
            self.proxy.end_offer(call.app, &call.session, call.table_hash, shard);
            let outcome = if outcome.ran() { outcome } else { Outcome::Cancelled };
            self.deliver(Finished { call, outcome });
        } else {
            self.keep_offer((shard, call));
        }
        self.send_offers();
    }

    /// A parked worker's question about its own session goes to the shard of the primary.
    pub(super) fn ask_primary_shard(&mut self, owner: u16, question: StateQuestion) {
        self.view.counters.secondary_requests.add(1);
        self.tell_secondary(owner, SecondaryMessage::Ask(Box::new(question)));
    }

    pub(super) fn on_primary_answer(&mut self, ticket: RemoteTicket, answered: &Answered) {
        let answer = match answered {
            Answered::Result(result, value) => RemoteAnswer::Result(*result, value),
            Answered::LockWait => RemoteAnswer::LockWait,
            Answered::Refused => RemoteAnswer::Unreachable,
        };
        if let Some(finished) = self.proxy.answer_remote(ticket, answer, clock::monotonic_ns()) {
            self.deliver(finished);
        }
    }

    /// Ends a call of ours that runs in a secondary container. False: there is none.
    pub(super) fn cancel_offered(&mut self, name: &CallName) -> bool {
        self.send_offers();
        let Some(shard) = self.rpc.cancel_on_shard(&name.origin) else { return false };
        self.tell_secondary(shard, SecondaryMessage::Cancel(Box::new(*name)));
        true
    }

    /// Wakes the neighbours that have mail before the turn ends: guests that run until then would keep them waiting.
    pub(super) fn wake_now(&mut self) {
        if self.wake_neighbours() {
            self.ring.hand_over();
        }
    }
}
