//! What guests here ask other shards of the node: values of other sessions that they could not read in the owner's region themselves, and, in secondary
//! containers, all that their primary does for them. The owner is asked by mailbox.
//! A stage of the loop; the worker that asks is parked by the proxy, as one that asks a primary is.

use super::lifecycle::Roused;
use super::mailbox::Message;
use super::rpc::{Answered, StateQuestion};
use super::turn::Shard;
use crate::session::{RemoteAnswer, RemoteTicket};
use crate::state::SessionKey;
use crate::worker::StateAt;
use std::collections::VecDeque;
use xfaas_common::guest_abi::{NOT_FOUND, UNREACHABLE};
use xfaas_common::ids::SessionId;

/// A question to the owner of a session.
pub(super) struct SessionQuestion {
    from: u16,
    ticket: RemoteTicket,
    app: u16,
    session: SessionId,
    table_hash: u32,
    key: Box<[u8]>,
    bytes_max: u32,
}

/// The answer: the result as the guest gets it, and the value's first bytes.
pub(super) struct SessionAnswer {
    ticket: RemoteTicket,
    result: i32,
    value: Vec<u8>,
}

/// What waits here; no more than there are parked workers on all shards.
#[derive(Default)]
pub(super) struct SessionReads {
    /// Answers that wait for a position of the log.
    held: VecDeque<(u64, u16, SessionAnswer)>,
    /// Questions whose session is being loaded.
    #[expect(clippy::vec_box, reason = "questions come and go as boxes")]
    waking: Vec<Box<SessionQuestion>>,
}

impl SessionReads {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waking.is_empty()
    }
}

impl Shard {
    /// Sends what parked calls of this node's shard ask. Called once a turn.
    pub(super) fn ask_owners(&mut self) {
        for _ in 0..self.proxy.count_unsent_remote() {
            let Some((ticket, call)) = self.proxy.next_remote() else { return };
            let Some(other) = call.remote.other_session() else {
                let StateAt::PrimaryShard(owner) = call.state_at else {
                    unreachable!("where there is no other container only other sessions are asked for");
                };
                // There is no connection whose end could be the end of sections; an answer that did not come in time is.
                if call.remote.may_go_over(0) {
                    let question = StateQuestion::of(call, ticket);
                    self.ask_primary_shard(owner, question);
                } else {
                    self.on_primary_answer(ticket, &Answered::Refused);
                }
                continue;
            };
            let request = call.remote.request();
            let question = SessionQuestion {
                from: self.core.0,
                ticket,
                app: call.app,
                session: other.session,
                table_hash: other.table_hash,
                key: request.key.into(),
                bytes_max: request.bytes_max,
            };
            let owner = usize::from(other.shard);
            self.view.counters.session_reads_asked.add(1);
            match Box::new(question) {
                question if owner == self.core.index() => self.on_session_question(question),
                question => self.post.send(owner, Message::ReadSession(question)),
            }
        }
    }

    /// A neighbour, or a call of ours, asks for a value of a session of ours.
    pub(super) fn on_session_question(&mut self, question: Box<SessionQuestion>) {
        let state = self.proxy.state();
        let place = state.places.as_ref().map(|places| places.place(state.app_name(question.app), &question.session));
        if let Some(shard) = place.and_then(|place| place.shard) {
            // It was, when it was asked for.
            return self.post.send(usize::from(shard), Message::ReadSession(question));
        }
        match self.rouse(question.app, &question.session, question.table_hash) {
            Roused::Awake => self.read_for(&question),
            Roused::Waking => self.session_reads.waking.push(question),
            Roused::NotNow => {
                let answer = SessionAnswer { ticket: question.ticket, result: UNREACHABLE, value: Vec::new() };
                self.answer_session_question(question.from, answer);
            }
        }
    }

    /// The load of a session is over: who asked for its values gets them, or hears that they cannot be had. `slot`: its app's.
    pub(super) fn answer_roused(&mut self, slot: usize, session: &SessionId, is_there: bool) {
        let waking = std::mem::take(&mut self.session_reads.waking);
        for question in waking {
            // Another app may have a session of that name.
            if question.session != *session || self.lifecycle.slot(question.app) != Some(slot) {
                self.session_reads.waking.push(question);
            } else if is_there {
                self.on_session_question(question);
            } else {
                let answer = SessionAnswer { ticket: question.ticket, result: UNREACHABLE, value: Vec::new() };
                self.answer_session_question(question.from, answer);
            }
        }
    }

    fn answer_session_question(&mut self, to: u16, answer: SessionAnswer) {
        if to == self.core.0 { self.on_session_answer(&answer) } else { self.post.send(usize::from(to), Message::SessionRead(answer)) }
    }

    fn read_for(&mut self, question: &SessionQuestion) {
        let SessionQuestion { from, ticket, app, session, table_hash, key, bytes_max } = question;
        let state = self.proxy.state();
        let place = SessionKey { app: *app, session, table_hash: *table_hash };
        let region = state.region(*app).zip(state.find_namespace(&place, &mut None));
        let found = region.and_then(|(region, namespace)| Some((region, namespace, region.value_bytes(namespace, key)?)));
        let mut answer = SessionAnswer { ticket: *ticket, result: NOT_FOUND, value: Vec::new() };
        if let Some((region, namespace, value_bytes)) = found {
            answer.result = value_bytes as i32;
            answer.value.resize(value_bytes.min(*bytes_max as usize), 0);
            region.read(namespace, key, &mut answer.value);
        }
        match state.journal.position_of(*app) {
            Some(position) if self.logging.is_behind(position) => self.session_reads.held.push_back((position, *from, answer)),
            _ => self.answer_session_question(*from, answer),
        }
    }

    /// Answers leave whose position is on the disk by now.
    pub(super) fn release_session_answers(&mut self) {
        while let Some((position, ..)) = self.session_reads.held.front()
            && !self.logging.is_behind(*position)
        {
            let Some((_, from, answer)) = self.session_reads.held.pop_front() else { return };
            self.answer_session_question(from, answer);
        }
    }

    /// The log could not be written for long: those who asked get -5 when their time is over.
    pub(super) fn drop_session_answers(&mut self) {
        self.session_reads.held.clear();
    }

    pub(super) fn on_session_answer(&mut self, answer: &SessionAnswer) {
        let value = RemoteAnswer::Result(answer.result, &answer.value);
        if let Some(finished) = self.proxy.answer_remote(answer.ticket, value, crate::sys::clock::monotonic_ns()) {
            self.deliver(finished);
        }
    }

    /// Timed work: questions that wait in vain.
    pub(super) fn sweep_asked(&mut self) {
        let now_ns = self.now_ns;
        let mut finished = std::mem::take(&mut self.finished);
        self.proxy.sweep_remote(now_ns, |_| now_ns, &mut finished);
        self.deliver_all(finished);
    }
}
