//! Aliases in the kernel: what steers by the session's name in a packet must know what the name means. Called by the door to the shards.

use crate::session::{LocalPlacement, Placement};
use crate::steering::Pins;
use std::sync::{Arc, Mutex, PoisonError};
use xfaas_common::ids::SessionId;

pub(super) struct KernelPins {
    /// `None`: nothing steers.
    pins: Mutex<Option<Pins>>,
    placement: Arc<LocalPlacement>,
}

impl KernelPins {
    pub(super) fn new(pins: Option<Pins>, placement: Arc<LocalPlacement>) -> KernelPins {
        KernelPins { pins: Mutex::new(pins), placement }
    }

    /// From now on packets for `key` go to the owner of `session`; `None`: to their own. Best effort: a shard forwards what it does not own.
    pub(super) fn set(&self, key: &SessionId, session: Option<SessionId>) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pins) = pins.as_mut() else { return };
        let set = match session {
            Some(session) => pins.pin(key, self.placement.owner(self.placement.hash(&session).slot())),
            None => pins.unpin(key),
        };
        if let Err(error) = set {
            tracing::warn!(error = crate::control::describe(&error), "the kernel does not follow an alias: its packets take a detour");
        }
    }
}
