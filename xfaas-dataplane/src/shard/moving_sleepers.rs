//! Moves of sessions that may sleep: what their owner knows of their checkpoints goes along, or the next owner would give numbers again that were given,
//! and take a session with state in the store for one without. Called by `moving_session`. While a session moves nothing of it is written or
//! dropped: its numbers stay as they were sent, and of a copy that is half made no checkpoint is written.

use super::lifecycle::{AppSessions, Ordered, Roused};
use super::moving_session::{MoveRefusal, Moves};
use super::turn::Shard;
use crate::durable::CheckpointNumber;
use crate::session::{KnownSession, NO_TICKET};
use crate::worker::Call;
use std::collections::VecDeque;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::KNOWN_SESSIONS_MAX;

/// What goes along.
#[derive(Clone, Debug)]
pub(super) struct KnownCheckpoints {
    checkpoints: [CheckpointNumber; 2],
    attempted: u32,
    used_tenths: u32,
    was_used: bool,
    frequency: u16,
}

/// Whether a session's checkpoints let it go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// A checkpoint is being written or read.
    Busy,
    /// It sleeps, and nobody wakes it.
    Asleep,
}

impl Moves {
    /// True for a session that is being moved, from here or to here.
    pub(super) fn concerns(&self, app: u16, session: &SessionId) -> bool {
        self.is_busy() && (self.is_leaving(app, session) || self.is_arriving(app, session))
    }
}

impl Shard {
    /// Has a session woken that is to move. Output: the calls that waited for it. Errors: it cannot be.
    pub(super) fn wake_to_move(&mut self, app: u16, session: &SessionId, table_hash: u32) -> Result<VecDeque<Box<Call>>, MoveRefusal> {
        if self.rouse(app, session, table_hash) == Roused::NotNow {
            return Err(MoveRefusal::Asleep);
        }
        let ticket = self.known_of(app, session, table_hash).map_or(NO_TICKET, |known| known.ticket);
        let order = self.lifecycle.tickets.get_mut(ticket as usize).map(|ticket| &mut ticket.order);
        let Some(Ordered::Load { calls, .. }) = order else { return Ok(VecDeque::new()) };
        let calls = std::mem::take(calls);
        self.lifecycle.end_parking(calls.len());
        Ok(calls)
    }

    pub(super) fn readiness(&mut self, app: u16, session: &SessionId, table_hash: u32) -> Readiness {
        let Some(known) = self.known_of(app, session, table_hash) else { return Readiness::Ready };
        match (known.ticket, known.is_in_memory || known.latest == 0) {
            (NO_TICKET, true) => Readiness::Ready,
            (NO_TICKET, false) => Readiness::Asleep,
            _ => Readiness::Busy,
        }
    }

    /// True for a session that has state in the store, wherever else.
    pub(super) fn has_checkpoint(&mut self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        self.known_of(app, session, table_hash).is_some_and(|known| known.latest != 0)
    }

    fn known_of(&mut self, app: u16, session: &SessionId, table_hash: u32) -> Option<&mut KnownSession> {
        self.sessions_of(app)?.sessions.find_mut(session, table_hash)
    }

    fn sessions_of(&mut self, app: u16) -> Option<&mut AppSessions> {
        let slot = self.lifecycle.slot(app)?;
        Some(&mut self.lifecycle.apps[slot])
    }

    /// Input: a session that is ready.
    pub(super) fn known_checkpoints(&mut self, app: u16, session: &SessionId, table_hash: u32) -> Option<KnownCheckpoints> {
        let sessions = &mut self.sessions_of(app)?.sessions;
        let checkpoints = sessions.checkpoints(session, table_hash);
        let known = sessions.find_mut(session, table_hash)?;
        debug_assert!(known.ticket == NO_TICKET);
        let (attempted, used_tenths, was_used, frequency) = (known.attempted, known.used_tenths, known.was_used, known.frequency);
        Some(KnownCheckpoints { checkpoints, attempted, used_tenths, was_used, frequency })
    }

    /// A session has come here that is in memory. What it holds is to be written anew: its sequence counts from the beginning.
    pub(super) fn know_moved(
        &mut self,
        app: u16,
        session: &SessionId,
        table_hash: u32,
        moved: &KnownCheckpoints,
    ) -> Result<(), MoveRefusal> {
        // The shards learn one after the other that sessions of an app may sleep from now on.
        let Some(AppSessions { sessions, pressure, .. }) = self.sessions_of(app) else { return Err(MoveRefusal::RulesChange) };
        if sessions.len() >= KNOWN_SESSIONS_MAX {
            return Err(MoveRefusal::NoRoom);
        }
        let known = sessions.find_or_insert(session, table_hash, moved.used_tenths);
        known.attempted = moved.attempted;
        (known.was_used, known.frequency, known.clock) = (moved.was_used, moved.frequency, pressure.clock());
        known.is_in_memory = true;
        sessions.set_checkpoints(session, table_hash, moved.checkpoints);
        Ok(())
    }

    /// A session is not here any more, or not yet.
    pub(super) fn forget_known(&mut self, app: u16, session: &SessionId, table_hash: u32) {
        let Some(AppSessions { sessions, keeping, timers, .. }) = self.sessions_of(app) else { return };
        timers.remove(session);
        if let Some(keeping) = keeping {
            keeping.pre_warms.remove(session);
        }
        let known = sessions.remove(session, table_hash);
        if known.is_some_and(|known| !known.is_in_memory && known.latest != 0) {
            self.lifecycle.asleep -= 1;
        }
    }
}
