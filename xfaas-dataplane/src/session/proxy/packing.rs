//! Bin-packing: a call for which the primary container has no worker goes to a secondary one on another shard, if its function may have some.
//! ARCHITECTURE.md "Secondary containers". The shard carries calls there and back; here it is decided which. Called by `proxy`
//! where no worker is free, and by the shard's loop.

use super::{Proxy, refused};
use crate::net::ErrorCode;
use crate::session::loads::ShardLoads;
use crate::session::namespace::NamespaceId;
use crate::session::outcome::Finished;
use crate::session::secondaries::PlaceRules;
use crate::sys::clock;
use crate::worker::{Call, Function, StateAt};
use std::collections::VecDeque;
use std::sync::Arc;
use xfaas_common::ids::SessionId;

/// A call and the shard that is to run it.
pub type Offer = (u16, Box<Call>);

#[derive(Default)]
pub(super) struct Packing {
    core: u16,
    /// `None`: this shard has no neighbours that may help.
    loads: Option<Arc<ShardLoads>>,
    /// Not yet on their way. Bounded by the workers of all secondaries.
    offers: VecDeque<Offer>,
}

impl Proxy {
    /// From now on calls may go to secondary containers on other shards.
    pub fn set_neighbours(&mut self, core: u16, loads: Arc<ShardLoads>) {
        (self.packing.core, self.packing.loads) = (core, Some(loads));
    }

    /// No call goes to a secondary any more: shards end one by one.
    pub fn keep_calls(&mut self) {
        self.packing.loads = None;
    }

    /// Tells the other shards how busy this one is.
    pub fn publish_load(&self) {
        if let Some(loads) = &self.packing.loads {
            let workers = self.workers.len();
            loads.publish(self.packing.core, (workers - self.idle.len() + self.queued) as u32, workers as u32);
        }
    }

    /// A place for a call in a secondary container of its namespace, which is taken then.
    fn place_away(&mut self, id: NamespaceId, function: &Function, call: (StateAt, bool), now_ns: u64) -> Option<u16> {
        let (state_at, stays) = call;
        let loads = self.packing.loads.as_ref()?;
        if state_at != StateAt::Here || stays || self.namespaces.get(id).is_hook() {
            return None;
        }
        let manifest = &function.manifest;
        let rules = PlaceRules {
            workers_max: manifest.workers_max,
            containers_max: manifest.containers_max,
            keep_warm_ns: self.options.keep_warm_ns,
            core: self.packing.core,
            loads,
        };
        self.namespaces.get_mut(id).secondaries.place(&rules, now_ns)
    }

    /// For a call that found no worker here. Output: the call, if there is no room for it elsewhere.
    pub(super) fn offer(&mut self, id: NamespaceId, call: Box<Call>, now_ns: u64) -> Option<Box<Call>> {
        let function = self.functions[usize::from(call.function)].clone().expect("looked up by the caller");
        let Some(shard) = self.place_away(id, &function, (call.state_at, call.stays), now_ns) else { return Some(call) };
        self.packing.offers.push_back((shard, call));
        None
    }

    /// For the call that has waited longest. False: it stays where it is.
    pub(super) fn offer_waiting(&mut self, id: NamespaceId, function: &Function, now_ns: u64) -> bool {
        let Some((state_at, stays)) = self.namespaces.get(id).waiting.front().map(|call| (call.state_at, call.stays)) else { return false };
        let Some(shard) = self.place_away(id, function, (state_at, stays), now_ns) else { return false };
        let call = self.namespaces.get_mut(id).waiting.pop_front().expect("looked at just above");
        self.queued -= 1;
        self.packing.offers.push_back((shard, call));
        true
    }

    pub fn has_offers(&self) -> bool {
        !self.packing.offers.is_empty()
    }

    /// The next call that is to go to another shard.
    pub fn next_offer(&mut self) -> Option<Offer> {
        self.packing.offers.pop_front()
    }

    /// A call that had a place on `shard` is over or could not go there: the place is for those who wait.
    pub fn end_offer(&mut self, app: u16, session: &SessionId, table_hash: u32, shard: u16) {
        let Some(id) = self.namespaces.find(app, session, table_hash) else { return };
        let now_ns = clock::monotonic_ns();
        self.namespaces.get_mut(id).secondaries.end(shard, now_ns);
        self.start_waiting(id, now_ns);
        self.namespaces.remove_if_empty(id);
    }

    /// Runs a call of another shard's namespace in this shard's secondary container of it, which is made if there is none.
    pub fn submit_offered(&mut self, mut call: Box<Call>) -> Option<Finished> {
        let now_ns = clock::monotonic_ns();
        if self.function(call.function).is_none() {
            return refused(call, ErrorCode::NoFunction, "the function was removed");
        }
        self.stats.secondary_wait_ns += now_ns.saturating_sub(call.offered_ns);
        self.stats.secondary_calls += 1;
        call.namespace = None;
        let is_new = self.namespaces.find(call.app, &call.session, call.table_hash).is_none();
        self.stats.copy_sessions += u64::from(is_new);
        let id = self.namespaces.find_or_insert(call.app, &call.session, call.table_hash);
        self.namespaces.set_secondary(id, true);
        self.submit(call, now_ns)
    }

    /// Live workers of a session in its primary container, running and idle, and its containers, that one included.
    pub fn presence_of(&self, app: u16, session: &SessionId, table_hash: u32, now_ns: u64) -> (usize, usize) {
        let Some(id) = self.namespaces.find(app, session, table_hash) else { return (0, 1) };
        let namespace = self.namespaces.get(id);
        let secondaries = namespace.secondaries.count(self.options.keep_warm_ns, now_ns);
        (namespace.idle.len() + usize::from(namespace.running), 1 + secondaries)
    }

    /// Counts a call that had to wait for a lock of this shard.
    pub fn note_lock_wait(&mut self) {
        self.stats.lock_waits += 1;
    }
}
