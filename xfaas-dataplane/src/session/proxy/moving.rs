//! What a namespace leaves behind when its session moves to another shard, and what it begins with there. Called by `shard::moving_session`.

use super::Proxy;
use crate::session::budget::Budget;
use crate::session::namespace::NamespaceId;
use crate::worker::Call;
use std::collections::VecDeque;
use xfaas_common::ids::SessionId;

/// How long it is measured what each namespace runs after somebody asked.
const MEASURED_NS: u64 = 3_000_000_000;
/// Roughly what a request costs its core beside its guest: packets, system calls.
const SLICE_COST_NS: u64 = 8_000;

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
    /// Time of the core, nanoseconds.
    pub ran_ns: u64,
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

    /// Counts a call that its client gave up while it waited for a move.
    pub fn note_cancelled(&mut self) {
        self.stats.cancelled += 1;
    }

    /// True when the session has a worker or a call here.
    pub fn is_active(&self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        self.namespaces.find(app, session, table_hash).is_some()
    }

    /// True when no call of the session runs, is parked or waits for a worker.
    pub fn is_at_rest(&self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        self.namespaces.find(app, session, table_hash).is_none_or(|id| self.namespaces.get(id).is_at_rest())
    }

    /// Forgets a namespace at rest with its idle workers.
    pub fn leave(&mut self, app: u16, session: &SessionId, table_hash: u32) -> UsedLimits {
        let Some(id) = self.namespaces.find(app, session, table_hash) else { return UsedLimits::default() };
        while let Some(worker) = self.namespaces.get(id).idle.warmest() {
            self.drop_idle(worker);
        }
        let namespace = self.namespaces.get_mut(id);
        namespace.state = None;
        namespace.secondaries.clear();
        let used = UsedLimits { requests: std::mem::take(&mut namespace.requests), core_time: std::mem::take(&mut namespace.core_time) };
        self.namespaces.remove_if_empty(id);
        used
    }

    /// Begins with what the namespace used of its limits on another shard.
    pub fn arrive(&mut self, app: u16, session: &SessionId, table_hash: u32, used: UsedLimits) {
        let id = self.namespaces.find_or_insert(app, session, table_hash);
        self.namespaces.set_secondary(id, false); // the workers of one that was here may serve the primary
        let namespace = self.namespaces.get_mut(id);
        (namespace.requests, namespace.core_time) = (used.requests, used.core_time);
        self.namespaces.remove_if_empty(id);
    }

    /// The namespaces that ran most since this was asked last, the hottest first, and what all ran. Nothing is measured until it is asked,
    /// nor when it was not asked for a while.
    pub fn take_hottest(&mut self, count: usize, now_ns: u64) -> (Vec<HotNamespace>, u64) {
        self.measured_until_ns = now_ns + MEASURED_NS;
        let mut hot = Vec::new();
        let mut all_ns = 0;
        self.namespaces.each_mut(|namespace| {
            let ran_ns = std::mem::take(&mut namespace.ran_ns);
            all_ns += ran_ns;
            // The session of a secondary container is another shard's to give away.
            if ran_ns > 0 && !namespace.is_secondary() {
                hot.push(HotNamespace { app: namespace.app, session: namespace.session, ran_ns });
            }
        });
        hot.sort_unstable_by_key(|namespace| std::cmp::Reverse(namespace.ran_ns));
        hot.truncate(count);
        (hot, all_ns)
    }

    /// Notes a slice that a worker of the namespace ran from `from_ns` until now.
    pub(super) fn measure(&mut self, id: NamespaceId, from_ns: u64) {
        let ran_ns = crate::sys::clock::monotonic_ns().saturating_sub(from_ns);
        self.namespaces.get_mut(id).ran_ns += ran_ns + SLICE_COST_NS;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TABLE_HASH, call, proxy};
    use crate::session::Outcome;
    use crate::sys::clock::monotonic_ns;
    use crate::worker::StateAt;
    use xfaas_common::ids::SessionId;

    /// It may begin beside the new owner before this shard has left the session, and end after that.
    #[test]
    fn a_call_beside_the_new_owner_brings_nothing_back_of_what_was_left() {
        let directory = tempfile::tempdir().unwrap();
        let (mut proxy, session) = (proxy(directory.path()), SessionId::new(b"s").unwrap());
        let mut finished = proxy.submit(call(&session, b"", StateAt::Here), monotonic_ns());
        while finished.is_none() {
            finished = proxy.run_next(monotonic_ns());
        }
        assert_eq!(finished.unwrap().outcome, Outcome::Replied);
        let id = proxy.namespaces.find(0, &session, TABLE_HASH).unwrap();
        assert!(proxy.namespaces.get(id).state.is_some());
        assert!(proxy.submit(call(&session, b"spin", StateAt::Shard(1)), monotonic_ns()).is_none(), "it runs for more than a slice");
        proxy.leave(0, &session, TABLE_HASH);
        let finished = loop {
            if let Some(finished) = proxy.run_next(monotonic_ns()) {
                break finished;
            }
        };
        assert_eq!(finished.outcome, Outcome::Replied);
        let id = proxy.namespaces.find(0, &session, TABLE_HASH).unwrap();
        assert!(proxy.namespaces.get(id).state.is_none(), "the session's record is removed when it has left");
    }
}
