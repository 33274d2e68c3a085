//! What a namespace leaves behind when its session moves to another shard, and what it begins with there. Called by `shard::moving_session`.

use super::Proxy;
use crate::session::budget::Budget;
use crate::worker::Call;
use std::collections::VecDeque;
use xfaas_common::ids::SessionId;

/// What a namespace used of its limits of late: it goes along, or a move would be a way around them.
#[derive(Clone, Copy, Debug, Default)]
pub struct UsedLimits {
    requests: Budget,
    core_time: Budget,
}

/// How much a namespace ran since it was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotNamespace {
    pub app: u16,
    pub session: SessionId,
    pub slices: u64,
}

impl Proxy {
    /// Takes out the calls that wait for a worker, oldest first. None of them has begun.
    pub fn take_waiting(&mut self, app: u16, session: &SessionId, table_hash: u32) -> VecDeque<Box<Call>> {
        let Some(id) = self.namespaces.find(app, session, table_hash) else { return VecDeque::new() };
        let waiting = std::mem::take(&mut self.namespaces.get_mut(id).waiting);
        self.queued -= waiting.len();
        self.namespaces.remove_if_empty(id);
        waiting
    }

    /// True when the session has a worker or a call here.
    pub fn is_active(&self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        self.namespaces.find(app, session, table_hash).is_some()
    }

    /// True when no call of the session runs, is parked or waits for a worker.
    pub fn is_at_rest(&self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        self.namespaces.find(app, session, table_hash).is_none_or(|id| {
            let namespace = self.namespaces.get(id);
            namespace.running == 0 && namespace.waiting.is_empty()
        })
    }

    /// Forgets a namespace at rest with its idle workers.
    pub fn leave(&mut self, app: u16, session: &SessionId, table_hash: u32) -> UsedLimits {
        let Some(id) = self.namespaces.find(app, session, table_hash) else { return UsedLimits::default() };
        while let Some(worker) = self.namespaces.get(id).idle.last().copied() {
            self.drop_idle(worker);
        }
        let namespace = self.namespaces.get_mut(id);
        namespace.state = None;
        let used = UsedLimits { requests: std::mem::take(&mut namespace.requests), core_time: std::mem::take(&mut namespace.core_time) };
        self.namespaces.remove_if_empty(id);
        used
    }

    /// Begins with what the namespace used of its limits on another shard.
    pub fn arrive(&mut self, app: u16, session: &SessionId, table_hash: u32, used: UsedLimits) {
        let id = self.namespaces.find_or_insert(app, session, table_hash);
        let namespace = self.namespaces.get_mut(id);
        (namespace.requests, namespace.core_time) = (used.requests, used.core_time);
        self.namespaces.remove_if_empty(id);
    }

    /// The namespaces that ran most since this was asked last, the hottest first, and what all ran.
    pub fn take_hottest(&mut self, count: usize) -> (Vec<HotNamespace>, u64) {
        let mut hot = Vec::new();
        let mut all = 0;
        self.namespaces.each_mut(|namespace| {
            let slices = u64::from(std::mem::take(&mut namespace.slices));
            all += slices;
            if slices > 0 {
                hot.push(HotNamespace { app: namespace.app, session: namespace.session, slices });
            }
        });
        hot.sort_unstable_by_key(|namespace| std::cmp::Reverse(namespace.slices));
        hot.truncate(count);
        (hot, all)
    }
}
