//! Aliases and moved sessions in the kernel: what steers by the session's name in a packet must know what the name means and where the session
//! is. Called by the door to the shards.

use crate::session::{LocalPlacement, PinBoard, Placement};
use crate::steering::{Pins, SteeringError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use xfaas_common::ids::{CoreIndex, SessionId};

pub(super) struct KernelPins {
    /// `None`: nothing steers.
    known: Mutex<Option<Known>>,
    placement: Arc<LocalPlacement>,
    board: Arc<PinBoard>,
}

struct Known {
    pins: Pins,
    /// What keys mean: an alias wins over a session of the same name.
    aliases: HashMap<SessionId, SessionId>,
}

impl KernelPins {
    pub(super) fn new(pins: Option<Pins>, placement: Arc<LocalPlacement>, board: Arc<PinBoard>) -> KernelPins {
        let known = pins.map(|pins| Known { pins, aliases: HashMap::new() });
        let all = KernelPins { known: Mutex::new(known), placement, board };
        all.board.list().iter().for_each(|(_, session, _)| all.moved(session));
        all
    }

    pub(super) fn placement(&self) -> &LocalPlacement {
        &self.placement
    }

    pub(super) fn board(&self) -> &Arc<PinBoard> {
        &self.board
    }

    /// From now on packets for `key` go to the owner of `session`; `None`: to their own. Best effort: a shard forwards what it does not own.
    pub(super) fn set(&self, key: &SessionId, session: Option<SessionId>) {
        self.change(|known| {
            match session {
                Some(session) => drop(known.aliases.insert(*key, session)),
                None => drop(known.aliases.remove(key)),
            }
            self.steer(known, key)
        });
    }

    /// The session is on another core now: its packets, and those of its aliases, go there.
    pub(super) fn moved(&self, session: &SessionId) {
        self.change(|known| {
            let aliases: Vec<SessionId> = known.aliases.iter().filter(|(_, meaning)| *meaning == session).map(|(key, _)| *key).collect();
            aliases.iter().chain([session]).try_for_each(|key| self.steer(known, key))
        });
    }

    /// The kernel programs note when they see packets, or do not.
    pub(super) fn set_stamps(&self, is_on: bool) {
        self.change(|known| known.pins.set_stamps(is_on));
    }

    fn steer(&self, known: &mut Known, key: &SessionId) -> Result<(), SteeringError> {
        match known.aliases.get(key) {
            Some(session) => known.pins.pin(key, self.core_of(session)),
            None => match self.board.core_in_any_app(key) {
                Some(core) => known.pins.pin(key, core),
                None => known.pins.unpin(key),
            },
        }
    }

    fn core_of(&self, session: &SessionId) -> CoreIndex {
        self.board.core_in_any_app(session).unwrap_or_else(|| self.placement.owner(self.placement.hash(session).slot()))
    }

    fn change(&self, change: impl FnOnce(&mut Known) -> Result<(), SteeringError>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known.as_mut() else { return };
        if let Err(error) = change(known) {
            tracing::warn!(
                error = crate::control::describe(&error),
                "the kernel does not follow a session's name: its packets take a detour"
            );
        }
    }
}
