//! A session moves to another shard while it is in use. ARCHITECTURE.md "Moving a session".
//!
//! ```text
//! old owner                                   new owner
//! calls of the session wait in order
//! those that run end, with their sections
//! begin    -> record
//! Piece ...............................>      stores keys in its region
//!          <..................... Taken       (one piece at a time)
//! Piece (last) ........................>      stores, pin -> record and board: its copy counts from here
//!                                             what comes from now on waits behind what the old owner has
//!          <..................... Taken
//! removes its copy, done -> record
//! End: the calls that waited, what was used of limits, answers kept for duplicates ..> runs them, then those that came since
//! ```
//! Until the board changes, every refusal and failure leaves all as it was. One move at a time in a process (`PinBoard::claim`).

use super::mailbox::Message;
use super::moving_sleepers::{KnownCheckpoints, Readiness};
use super::replay::SessionReplays;
use super::turn::Shard;
use crate::net::ErrorCode;
use crate::session::{CallName, Finished, MoveClaim, Outcome, UsedLimits};
use crate::state::{SessionKey, StateKey};
use crate::worker::{Call, Function, Origin, StateAt};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use xfaas_common::ids::{CoreIndex, SessionId};
use xfaas_common::limits::{FUNCTIONS_MAX, KEY_BYTES_MAX, MOVE_PIECE_BYTES, MOVE_PIECE_KEYS_MAX};

/// Which session is to go where.
#[derive(Clone, Debug)]
pub struct MoveOrder {
    pub app: u16,
    pub app_name: Box<str>,
    pub session: SessionId,
    /// A shard of this process.
    pub to: u16,
}

/// What was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedSession {
    pub from: u16,
    pub keys: u64,
    pub state_bytes: u64,
}

/// Why a session stays where it is. The texts say what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveRefusal {
    #[error("the session is on another core by now: try again")]
    NotHere,
    #[error("the session has neither state nor calls: see `xfaas sessions`")]
    UnknownSession,
    #[error("no function of its app runs: see `xfaas functions`")]
    NoFunction,
    #[error("its app has durability sync, whose log belongs to the core: such sessions cannot be moved")]
    Durable,
    #[error("the session sleeps and cannot be woken now: try again later")]
    Asleep,
    #[error("a checkpoint of the session was being written or read for longer than lock_wait_ms: try again")]
    StoreGoesOn,
    #[error("the store of checkpoints was not listed yet, so it is not known what it has of the session: try again later")]
    Unlisted,
    #[error("the session's calls did not end within lock_wait_ms: try again when it is less busy")]
    CallsGoOn,
    #[error("the other core has no room for the session: raise limits.region_mib, or move it to another core")]
    NoRoom,
    #[error("the rules of its app are changing: try again")]
    RulesChange,
    #[error("the move could not be written down beside the regions, or there are as many pinned sessions as may be: see the log")]
    Record,
    #[error("this server is shutting down")]
    Draining,
}

pub(super) type MoveAnswer = SyncSender<Result<MovedSession, MoveRefusal>>;

/// What the two shards of a move tell each other.
pub(super) enum MoveMessage {
    Piece(Box<Piece>),
    /// A piece is stored; after the last one the copy counts. Errors: nothing of the session is left there.
    Taken(Result<(), MoveRefusal>),
    End(Box<Handover>),
}

/// Some keys of a session.
pub(super) struct Piece {
    order: MoveOrder,
    table_hash: u32,
    is_home: bool,
    is_last: bool,
    /// With the last piece of a session whose app's sessions may sleep, if it is known.
    known: Option<KnownCheckpoints>,
    /// Bytes of each key and of its value, which follow one another in `bytes`.
    lengths: Vec<(u8, u32)>,
    bytes: Vec<u8>,
}

/// What goes along when the copy counts.
pub(super) struct Handover {
    order: MoveOrder,
    table_hash: u32,
    /// Calls that waited for a worker, and those that came later.
    waiting: VecDeque<Box<Call>>,
    arrived: VecDeque<Box<Call>>,
    used: UsedLimits,
    replays: SessionReplays,
    claim: MoveClaim,
    answer: MoveAnswer,
    moved: MovedSession,
}

enum Step {
    /// Until the calls that run have ended.
    Emptying { since_ns: u64 },
    /// Keys from `next` on are still to be sent.
    Copying { keys: Vec<StateKey>, next: usize, state_bytes: u64 },
}

struct Leaving {
    order: MoveOrder,
    table_hash: u32,
    is_home: bool,
    claim: MoveClaim,
    answer: MoveAnswer,
    step: Step,
    waiting: VecDeque<Box<Call>>,
    arrived: VecDeque<Box<Call>>,
}

struct Arriving {
    app: u16,
    session: SessionId,
    arrived: VecDeque<Box<Call>>,
}

/// The session that this shard is giving away, and the one that it is getting.
#[derive(Default)]
pub(super) struct Moves {
    leaving: Option<Box<Leaving>>,
    arriving: Option<Box<Arriving>>,
}

impl Moves {
    pub(super) fn is_busy(&self) -> bool {
        self.leaving.is_some() || self.arriving.is_some()
    }

    /// True for the half-made copy of a session that is on its way here.
    pub(super) fn is_arriving(&self, app: u16, session: &SessionId) -> bool {
        self.arriving.as_ref().is_some_and(|arriving| arriving.app == app && arriving.session == *session)
    }

    /// True when calls of this one's session wait until the session has moved.
    pub(super) fn holds_back(&self, call: &Call) -> bool {
        if !self.is_busy() || call.state_at != StateAt::Here {
            return false;
        }
        self.is_arriving(call.app, &call.session) || self.is_leaving(call.app, &call.session)
    }

    pub(super) fn is_leaving(&self, app: u16, session: &SessionId) -> bool {
        self.leaving.as_ref().is_some_and(|leaving| leaving.order.app == app && leaving.order.session == *session)
    }

    /// Calls that wait for a move to end.
    pub(super) fn queues(&mut self) -> impl Iterator<Item = &mut VecDeque<Box<Call>>> {
        let leaving = self.leaving.iter_mut().flat_map(|leaving| [&mut leaving.waiting, &mut leaving.arrived]);
        leaving.chain(self.arriving.iter_mut().map(|arriving| &mut arriving.arrived))
    }

    /// How many they are.
    pub(super) fn held_back(&self) -> usize {
        let leaving = self.leaving.as_ref().map_or(0, |leaving| leaving.waiting.len() + leaving.arrived.len());
        leaving + self.arriving.as_ref().map_or(0, |arriving| arriving.arrived.len())
    }

    /// The call of a client that is gone, if it waits here.
    fn take(&mut self, name: &CallName) -> Option<Box<Call>> {
        self.queues().find_map(|queue| {
            let at = queue.iter().position(|call| call.origin == name.origin)?;
            queue.remove(at)
        })
    }
}

impl Shard {
    /// Lets a call wait until its session has moved. Output: the call back, when as many wait as may.
    pub(super) fn hold_back(&mut self, call: Box<Call>) -> Option<Finished> {
        if self.moves.held_back() >= self.options.proxy.namespace_queue_calls_max {
            let outcome = Outcome::failed(ErrorCode::Overloaded, "the session is being moved and its queue is full");
            return Some(Finished { call, outcome });
        }
        match (&mut self.moves.leaving, &mut self.moves.arriving) {
            (Some(leaving), _) if leaving.order.session == call.session => leaving.arrived.push_back(call),
            (_, Some(arriving)) => arriving.arrived.push_back(call),
            _ => unreachable!("`holds_back` said so just before"),
        }
        None
    }

    /// Takes a call that waits for a move away from there.
    pub(super) fn cancel_held_back(&mut self, name: &CallName) -> Option<Finished> {
        let call = self.moves.take(name)?;
        self.proxy.note_cancelled();
        Some(Finished { call, outcome: Outcome::Cancelled })
    }

    pub(super) fn begin_move(&mut self, order: MoveOrder, claim: MoveClaim, answer: MoveAnswer) {
        self.pins.refresh();
        let hash = self.placement.hash(&order.session);
        let table_hash = hash.table_hash();
        let state = self.proxy.state();
        let has_state = state.region(order.app).is_some_and(|region| region.find(&order.session, table_hash).is_some());
        let is_durable = state.journal.logs(order.app);
        let has_state = has_state || self.has_checkpoint(order.app, &order.session, table_hash);
        let has_function = self.function_of(order.app).is_some();
        let is_home = self.placement.owner(hash.slot()) == CoreIndex(order.to);
        let has_something = has_state || self.proxy.is_active(order.app, &order.session, table_hash);
        let refusal = if self.pins.owner(&*self.placement, &order.app_name, &order.session, hash) != self.core || order.to == self.core.0 {
            Some(MoveRefusal::NotHere)
        } else if self.draining_since_ns.is_some() {
            Some(MoveRefusal::Draining)
        } else if !has_function && !is_home {
            Some(MoveRefusal::NoFunction)
        } else if self.lifecycle.is_listing {
            Some(MoveRefusal::Unlisted)
        } else if !has_something && !is_home {
            // One that is elsewhere and has nothing any more still goes home: until then it keeps containers out.
            Some(MoveRefusal::UnknownSession)
        } else if is_durable {
            Some(MoveRefusal::Durable)
        } else {
            None
        };
        let woken = refusal.map_or_else(|| self.wake_to_move(order.app, &order.session, table_hash), Err);
        let mut waiting = match woken {
            Ok(waiting) => waiting,
            Err(refusal) => {
                drop(claim); // whoever hears the answer may try again at once
                answer.try_send(Err(refusal)).ok();
                return;
            }
        };
        assert!(self.moves.leaving.is_none(), "whoever asks has claimed the board");
        waiting.append(&mut self.proxy.take_waiting(order.app, &order.session, table_hash));
        let step = Step::Emptying { since_ns: self.now_ns };
        self.moves.leaving = Some(Box::new(Leaving { order, table_hash, is_home, claim, answer, step, waiting, arrived: VecDeque::new() }));
        self.step_move();
    }

    /// Goes on with a move whose session's calls may have ended. Called every turn.
    pub(super) fn step_move(&mut self) {
        let Some(leaving) = &mut self.moves.leaving else { return };
        let Step::Emptying { since_ns } = leaving.step else { return };
        let Leaving { ref order, table_hash, .. } = **leaving;
        let (app, session) = (order.app, order.session);
        let is_at_rest = self.proxy.is_at_rest(app, &session, table_hash);
        let readiness = self.readiness(app, &session, table_hash);
        if !is_at_rest || readiness != Readiness::Ready {
            if is_at_rest && readiness == Readiness::Asleep {
                self.stay(MoveRefusal::Asleep);
            } else if self.draining_since_ns.is_some() {
                self.stay(MoveRefusal::Draining);
            } else if self.now_ns.saturating_sub(since_ns) > self.options.proxy.lock_wait_ns {
                self.stay(if is_at_rest { MoveRefusal::StoreGoesOn } else { MoveRefusal::CallsGoOn });
            }
            return;
        }
        let Some(leaving) = &mut self.moves.leaving else { return };
        let Leaving { order, table_hash, is_home, .. } = &**leaving;
        if let Err(error) = self.pins.board().begin(&order.app_name, &order.session, *is_home) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a session stays where it is");
            return self.stay(MoveRefusal::Record);
        }
        let region = self.proxy.state().region(order.app);
        let found = region.and_then(|region| Some((region, region.find(&order.session, *table_hash)?)));
        let keys = found.map(|(region, namespace)| region.keys(namespace).collect()).unwrap_or_default();
        let size = found.and_then(|(region, namespace)| region.namespace_size(namespace));
        leaving.step = Step::Copying { keys, next: 0, state_bytes: size.map_or(0, |(bytes, _)| bytes) };
        self.send_piece();
    }

    /// Sends the next keys; the last piece may be empty.
    fn send_piece(&mut self) {
        let Some(leaving) = &self.moves.leaving else { return };
        let Leaving { ref order, table_hash, .. } = **leaving;
        let (app, session) = (order.app, order.session);
        let known = self.known_checkpoints(app, &session, table_hash);
        let Some(leaving) = &mut self.moves.leaving else { return };
        let Leaving { order, table_hash, is_home, step, .. } = &mut **leaving;
        let Step::Copying { keys, next, .. } = step else { return };
        let mut piece = Piece {
            order: order.clone(),
            table_hash: *table_hash,
            is_home: *is_home,
            is_last: false,
            known: None,
            lengths: Vec::new(),
            bytes: Vec::new(),
        };
        let region = self.proxy.state().region(order.app);
        // Found anew each time: the record may have been moved within the region.
        let found = region.and_then(|region| Some((region, region.find(&order.session, *table_hash)?)));
        while let Some(key) = keys.get(*next)
            && piece.bytes.len() < MOVE_PIECE_BYTES
            && piece.lengths.len() < MOVE_PIECE_KEYS_MAX
        {
            let (region, namespace) = found.expect("the session has keys, and nobody writes to it");
            let (key_bytes, value_bytes) = (key.as_bytes(), key.value_bytes());
            piece.lengths.push((key_bytes.len() as u8, value_bytes as u32));
            piece.bytes.extend_from_slice(key_bytes);
            let start = piece.bytes.len();
            piece.bytes.resize(start + value_bytes, 0);
            let read = region.read(namespace, key_bytes, &mut piece.bytes[start..]);
            assert_eq!(read, Some(value_bytes), "the key was listed, and nobody writes to it");
            *next += 1;
        }
        piece.is_last = *next == keys.len();
        piece.known = known.filter(|_| piece.is_last);
        let to = usize::from(order.to);
        self.post.send(to, Message::Move(MoveMessage::Piece(Box::new(piece))));
    }

    pub(super) fn on_move_message(&mut self, from: usize, message: MoveMessage) {
        match message {
            MoveMessage::Piece(piece) => {
                let taken = self.take_piece(&piece);
                if taken.is_err() {
                    self.forget_copy(piece.order.app, &piece.order.session, piece.table_hash);
                    self.forget_known(piece.order.app, &piece.order.session, piece.table_hash);
                    self.moves.arriving = None; // nobody was sent here for it yet
                }
                self.post.send(from, Message::Move(MoveMessage::Taken(taken)));
            }
            MoveMessage::Taken(Err(refusal)) => self.stay(refusal),
            MoveMessage::Taken(Ok(())) => self.on_taken(),
            MoveMessage::End(handover) => self.take_over(*handover),
        }
    }

    /// Stores a piece of a session that comes here; with the last one the session is this shard's.
    fn take_piece(&mut self, piece: &Piece) -> Result<(), MoveRefusal> {
        let MoveOrder { app, ref app_name, session, .. } = piece.order;
        if self.moves.arriving.is_none() {
            self.forget_copy(app, &session, piece.table_hash); // there is none, unless the last start could not look
            self.forget_known(app, &session, piece.table_hash);
            self.moves.arriving = Some(Box::new(Arriving { app, session, arrived: VecDeque::new() }));
        }
        if self.lifecycle.is_listing {
            return Err(MoveRefusal::Unlisted);
        }
        // The last checkpoints of this shard may all be written: its old owner writes that of this session.
        if self.draining_since_ns.is_some() && self.lifecycle.may_sleep(app) {
            return Err(MoveRefusal::Draining);
        }
        self.proxy.with_state(|state, _| {
            if state.journal.logs(app) {
                return Err(MoveRefusal::Durable);
            }
            let region = state.region_mut(app).ok_or(MoveRefusal::NoRoom)?;
            if piece.known.is_some() {
                // A session without keys must be found in memory, or it would be looked for in the store, which may have more.
                region.find_or_create(&session, piece.table_hash).map_err(|_| MoveRefusal::NoRoom)?;
            }
            let mut bytes = &piece.bytes[..];
            for (key_bytes, value_bytes) in &piece.lengths {
                let namespace = region.find_or_create(&session, piece.table_hash).map_err(|_| MoveRefusal::NoRoom)?;
                let (key, rest) = bytes.split_at(usize::from(*key_bytes));
                let (value, rest) = rest.split_at(*value_bytes as usize);
                // It was within its limit when it was written.
                region.write(namespace, key, value, usize::MAX).map_err(|_| MoveRefusal::NoRoom)?;
                bytes = rest;
            }
            Ok(())
        })?;
        if piece.is_last {
            if let Some(known) = &piece.known {
                self.know_moved(app, &session, piece.table_hash, known)?;
            }
            self.pins.board().commit(app_name, &session, self.core, piece.is_home).map_err(|error| {
                tracing::warn!(error = &error as &dyn std::error::Error, "a session stays where it is");
                MoveRefusal::Record
            })?;
            self.pins.refresh();
            let key = SessionKey { app, session: &session, table_hash: piece.table_hash };
            self.proxy.with_state(|state, _| state.load_timers(&key));
        }
        Ok(())
    }

    fn forget_copy(&mut self, app: u16, session: &SessionId, table_hash: u32) {
        self.proxy.with_state(|state, _| {
            if let Some(region) = state.region_mut(app)
                && let Some(namespace) = region.find(session, table_hash)
            {
                region.remove(namespace);
            }
            state.timers.forget_session(app, session);
        });
    }

    /// The other shard has what was sent: the next piece, or the end.
    fn on_taken(&mut self) {
        let has_more =
            matches!(self.moves.leaving.as_deref(), Some(Leaving { step: Step::Copying { keys, next, .. }, .. }) if *next < keys.len());
        if has_more {
            return self.send_piece();
        }
        let Some(leaving) = self.moves.leaving.take() else { return };
        let Leaving { order, table_hash, claim, answer, step, waiting, arrived, .. } = *leaving;
        self.pins.refresh();
        let used = self.proxy.leave(order.app, &order.session, table_hash);
        let replays = self.replays.take_session(order.app, &order.session);
        for call in waiting.iter().chain(&arrived) {
            self.note_asked(call.origin, order.to);
        }
        self.view.counters.forwarded.add((waiting.len() + arrived.len()) as u64);
        self.forget_copy(order.app, &order.session, table_hash);
        self.forget_known(order.app, &order.session, table_hash);
        if let Err(error) = self.pins.board().end(&order.app_name, &order.session) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the next start looks for copies of a moved session");
        }
        let (keys, state_bytes) = match step {
            Step::Copying { keys, state_bytes, .. } => (keys.len() as u64, state_bytes),
            Step::Emptying { .. } => (0, 0),
        };
        let (to, moved) = (usize::from(order.to), MovedSession { from: self.core.0, keys, state_bytes });
        let handover = Handover { order, table_hash, waiting, arrived, used, replays, claim, answer, moved };
        self.post.send(to, Message::Move(MoveMessage::End(Box::new(handover))));
    }

    /// The old owner is done with the session: its calls go first, then those that came here since.
    fn take_over(&mut self, handover: Handover) {
        let Handover { order, table_hash, waiting, arrived, used, replays, claim, answer, moved } = handover;
        let since = self.moves.arriving.take().map(|arriving| arriving.arrived).unwrap_or_default();
        self.proxy.arrive(order.app, &order.session, table_hash, used);
        let evicted = self.replays.put_session(replays);
        self.view.counters.replay_evictions.add(evicted);
        self.go_on(waiting, arrived);
        self.go_on(VecDeque::new(), since);
        drop(claim); // whoever hears the answer may move it again at once
        answer.try_send(Ok(moved)).ok();
    }

    /// The session stays: what waited goes on here.
    fn stay(&mut self, refusal: MoveRefusal) {
        let Some(leaving) = self.moves.leaving.take() else { return };
        let Leaving { order, claim, answer, step, waiting, arrived, .. } = *leaving;
        if matches!(step, Step::Copying { .. })
            && let Err(error) = self.pins.board().end(&order.app_name, &order.session)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "the next start looks for copies of a session that stayed");
        }
        drop(claim);
        answer.try_send(Err(refusal)).ok();
        self.go_on(waiting, arrived);
    }

    /// Runs calls that waited for a move, in their order. Those that had waited for a worker before are known to the memory of answers already.
    fn go_on(&mut self, waiting: VecDeque<Box<Call>>, arrived: VecDeque<Box<Call>>) {
        for call in waiting {
            if let Some(finished) = self.submit(call) {
                self.deliver_now(finished);
            }
        }
        for call in arrived {
            self.on_invoke(call);
        }
    }

    /// The owner of a call's session as it is known now; `None` when its function is gone.
    fn owner_of(&mut self, call: &Call) -> Option<CoreIndex> {
        self.pins.refresh();
        let function = self.proxy.function(call.function)?;
        Some(self.pins.owner(&*self.placement, &function.manifest.app, &call.session, self.placement.hash(&call.session)))
    }

    /// Sends a neighbour's call on, if its session is not here any more. Output: the call, if it is.
    pub(super) fn keep_own(&mut self, call: Box<Call>) -> Option<Box<Call>> {
        self.pins.refresh();
        if self.pins.generation() == 0 {
            return Some(call);
        }
        match self.owner_of(&call) {
            Some(owner) if owner != self.core => {
                self.note_asked(call.origin, owner.0);
                self.view.counters.forwarded.add(1);
                self.post.send(owner.index(), Message::Invoke(call));
                None
            }
            _ => Some(call),
        }
    }

    /// True when a read-only call ran beside its session's owner while sessions moved: what it read may have been on its way out.
    pub(super) fn is_stale_read(&self, finished: &Finished) -> bool {
        matches!(finished.call.state_at, StateAt::Shard(_))
            && finished.outcome != Outcome::Cancelled
            && self.pins.has_changed_since(finished.call.pins_seen)
    }

    /// Runs such a call anew with the owner: nobody has seen anything of it. Output: its end, when that is here and over already.
    pub(super) fn read_again(&mut self, mut call: Box<Call>) -> Option<Finished> {
        call.give_up(self.now_ns);
        call.is_admitted = true;
        call.state_at = StateAt::Here;
        self.view.counters.local_reads_given_up.add(1);
        let call = self.keep_own(call)?;
        self.note_asked(call.origin, self.core.0);
        self.submit(call)
    }

    /// Some function of an app.
    fn function_of(&self, app: u16) -> Option<&Arc<Function>> {
        (0..FUNCTIONS_MAX as u16).filter_map(|index| self.proxy.function(index)).find(|function| function.app == app)
    }

    /// A cancellation goes after a call that was sent on.
    pub(super) fn pass_on_cancel(&mut self, name: &CallName) {
        self.pins.refresh();
        if self.pins.generation() == 0 {
            return;
        }
        let Some(function) = self.function_of(name.app) else { return };
        let owner = self.pins.owner(&*self.placement, &function.manifest.app, &name.session, self.placement.hash(&name.session));
        if owner != self.core {
            self.post.send(owner.index(), Message::Cancel(Box::new(*name)));
        }
    }

    /// True when a datagram's call is to wait before it is looked up among answered ones.
    pub(super) fn holds_back_datagram(&self, call: &Call) -> bool {
        matches!(call.origin, Origin::Datagram { .. }) && self.moves.holds_back(call)
    }
}

const _: () = assert!(KEY_BYTES_MAX <= u8::MAX as usize, "a key's length is one byte of a piece");
