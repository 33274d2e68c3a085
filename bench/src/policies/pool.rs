//! The loaded containers of a simulation, at most one a function: which are idle, who of them goes first, and what they cost in memory-time.

use std::collections::BTreeSet;
use xfaas_dataplane::session::Priority;

const MIB_MS_PER_GIB_S: f64 = 1_024.0 * 1_000.0;

/// A container that is loaded.
#[derive(Clone, Copy, Debug)]
struct Container {
    memory_mib: u32,
    loaded_ms: u64,
    running: u32,
    /// While it is idle: since when, its priority, and which of all rests this is.
    idle: Option<(u64, Priority, u64)>,
}

/// All containers and the memory they share.
pub(super) struct Pool {
    /// By the function's index.
    containers: Vec<Option<Container>>,
    idle: BTreeSet<(Priority, u32)>,
    memory_mib: u64,
    /// The part of it that idle ones have.
    idle_mib: u64,
    memory_mib_max: u64,
    rests: u64,
    mib_ms: u64,
    idle_mib_ms: u64,
}

impl Pool {
    pub(super) fn new(functions: usize, memory_mib_max: u64) -> Pool {
        Pool {
            containers: vec![None; functions],
            idle: BTreeSet::new(),
            memory_mib: 0,
            idle_mib: 0,
            memory_mib_max,
            rests: 0,
            mib_ms: 0,
            idle_mib_ms: 0,
        }
    }

    pub(super) fn is_loaded(&self, function: u32) -> bool {
        self.containers[function as usize].is_some()
    }

    pub(super) fn has_room_for(&self, memory_mib: u32) -> bool {
        self.memory_mib + u64::from(memory_mib) <= self.memory_mib_max
    }

    /// True if it would fit once all idle ones are gone.
    pub(super) fn could_have_room_for(&self, memory_mib: u32) -> bool {
        self.memory_mib - self.idle_mib + u64::from(memory_mib) <= self.memory_mib_max
    }

    /// The idle one that should go first.
    pub(super) fn lowest(&self) -> Option<(Priority, u32)> {
        self.idle.first().copied()
    }

    /// True while it is in that rest and no other one.
    pub(super) fn is_in_rest(&self, function: u32, rest: u64) -> bool {
        self.containers[function as usize].and_then(|container| container.idle).is_some_and(|(_, _, number)| number == rest)
    }

    fn get_mut(&mut self, function: u32) -> &mut Container {
        self.containers[function as usize].as_mut().expect("asked for only while it is loaded")
    }

    /// Loads a container in which nothing runs or rests yet; whoever calls has made room.
    pub(super) fn load(&mut self, function: u32, memory_mib: u32, now_ms: u64) {
        assert!(self.has_room_for(memory_mib) && !self.is_loaded(function), "room is made first, and one is enough");
        self.memory_mib += u64::from(memory_mib);
        self.containers[function as usize] = Some(Container { memory_mib, loaded_ms: now_ms, running: 0, idle: None });
    }

    /// A request begins in it.
    pub(super) fn run(&mut self, function: u32, now_ms: u64) {
        self.get_mut(function).running += 1;
        self.leave_rest(function, now_ms);
    }

    /// A request in it ends. Output: true when nothing runs in it any more.
    pub(super) fn end(&mut self, function: u32) -> bool {
        let container = self.get_mut(function);
        container.running -= 1;
        container.running == 0
    }

    /// It becomes idle. Output: the number of this rest.
    pub(super) fn rest(&mut self, function: u32, priority: Priority, now_ms: u64) -> u64 {
        self.rests += 1;
        let rest = self.rests;
        let container = self.get_mut(function);
        assert!(container.running == 0 && container.idle.is_none(), "only a busy one can become idle");
        container.idle = Some((now_ms, priority, rest));
        let memory_mib = u64::from(container.memory_mib);
        self.idle_mib += memory_mib;
        self.idle.insert((priority, function));
        rest
    }

    fn leave_rest(&mut self, function: u32, now_ms: u64) {
        let container = self.get_mut(function);
        let Some((since_ms, priority, _)) = container.idle.take() else { return };
        let memory_mib = u64::from(container.memory_mib);
        self.idle_mib -= memory_mib;
        self.idle_mib_ms += memory_mib * now_ms.saturating_sub(since_ms);
        assert!(self.idle.remove(&(priority, function)), "idle ones are in the order");
    }

    /// Its memory is free from now on.
    pub(super) fn unload(&mut self, function: u32, now_ms: u64) {
        self.leave_rest(function, now_ms);
        let container = self.containers[function as usize].take().expect("looked at just above");
        self.memory_mib -= u64::from(container.memory_mib);
        self.mib_ms += u64::from(container.memory_mib) * now_ms.saturating_sub(container.loaded_ms);
    }

    /// Ends the simulation. Output: memory-time of all containers, and the part of it in which they were idle, in GiB x s.
    pub(super) fn finish(mut self, end_ms: u64) -> (f64, f64) {
        for function in 0..self.containers.len() as u32 {
            if self.is_loaded(function) {
                self.unload(function, end_ms);
            }
        }
        assert!(self.memory_mib == 0 && self.idle_mib == 0 && self.idle.is_empty(), "all containers are gone");
        (self.mib_ms as f64 / MIB_MS_PER_GIB_S, self.idle_mib_ms as f64 / MIB_MS_PER_GIB_S)
    }
}
