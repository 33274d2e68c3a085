//! Calls of read-only functions that run beside their session's owner: readers of the neighbours' regions, and the way back to the owner
//! for a call that cannot go on here. Called by `proxy` and by the shard's loop.

use super::{Phase, Proxy};
use crate::state::{RegionReader, SessionPlaces};
use crate::worker::Call;
use std::collections::VecDeque;

#[derive(Default)]
pub(super) struct Beside {
    /// By function: one of its calls asked for a lock where there is none.
    takes_locks: Vec<bool>,
    /// Calls that cannot go on here; handed over every turn.
    for_owner: VecDeque<Box<Call>>,
    /// Calls that still run keep readers of apps that have no function any more.
    pub(super) has_stale_readers: bool,
}

impl Beside {
    /// A function has a new version.
    pub(super) fn forget(&mut self, function: usize) {
        if let Some(takes_locks) = self.takes_locks.get_mut(function) {
            *takes_locks = false;
        }
    }
}

impl Proxy {
    /// Takes over the readers of an app's regions on other shards, in place of all earlier ones.
    pub fn set_readers(&mut self, app: u16, readers: impl Iterator<Item = (u16, RegionReader)>) {
        let state = self.state.as_mut().expect("lent only while a guest runs");
        state.readers.clear_app(app);
        for (shard, reader) in readers {
            state.readers.set(app, shard, reader);
        }
    }

    /// Tells guests' calls where other sessions than their own are.
    pub fn set_places(&mut self, places: Box<dyn SessionPlaces>) {
        self.state.as_mut().expect("lent only while a guest runs").places = Some(places);
    }

    /// A reader of this shard's region of an app, for its neighbours.
    pub fn reader(&self, app: u16) -> Option<RegionReader> {
        Some(self.state().region(app)?.reader())
    }

    /// True when a call of this function was seen to ask for a lock beside its session's owner: its calls had better go to the owner at once.
    pub fn takes_locks(&self, function: u16) -> bool {
        self.beside.takes_locks.get(usize::from(function)).is_some_and(|takes| *takes)
    }

    /// The next call that its owner must run; `state_at` says who that is.
    pub fn next_for_owner(&mut self) -> Option<Box<Call>> {
        self.beside.for_owner.pop_front()
    }

    /// Takes a call back from the worker that ran it beside its session's owner. Nobody has seen anything of it.
    pub(super) fn give_up(&mut self, id: u32, mut call: Box<Call>, for_lock: bool, now_ns: u64) {
        let slot = &self.workers[id as usize];
        let (function, generation) = (usize::from(slot.function), slot.generation);
        if for_lock && self.functions[function].as_ref().is_some_and(|current| current.generation == generation) {
            let takes_locks = &mut self.beside.takes_locks;
            takes_locks.resize(takes_locks.len().max(function + 1), false);
            takes_locks[function] = true;
        }
        self.release(id, &call, false, now_ns);
        call.give_up(crate::sys::clock::monotonic_ns());
        self.beside.for_owner.push_back(call);
    }

    /// Lets go of the readers of apps without a function, once none of their calls runs.
    pub(super) fn drop_stale_readers(&mut self) {
        let installed: Vec<u16> = self.functions.iter().flatten().map(|function| function.app).collect();
        let busy = self.workers.iter().filter(|(_, slot)| !matches!(slot.phase, Phase::Idle { .. }));
        let running: Vec<u16> = busy.map(|(_, slot)| self.namespaces.get(slot.namespace).app).collect();
        let mut is_kept = false;
        let state = self.state.as_mut().expect("lent only while a guest runs");
        state.readers.retain(|app| {
            let is_stale = !installed.contains(&app);
            is_kept |= is_stale && running.contains(&app);
            !is_stale || running.contains(&app)
        });
        self.beside.has_stale_readers = is_kept;
    }
}
