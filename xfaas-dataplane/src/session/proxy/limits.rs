//! Limits of a namespace that its app asks for, requests in a second and a share of the core (CONTRACT.md section 4), and the order in which workers that
//! are not done take turns, which a share changes. Called by `proxy`.

use super::Proxy;
use crate::session::namespace::NamespaceId;
use crate::worker::{Call, CpuShare};
use std::time::Duration;

const SECOND_NS: u64 = 1_000_000_000;
/// A namespace may use its share of this time at once.
const SHARE_WINDOW_NS: u64 = 100_000_000;
/// What it runs over its share while nobody else wants the core counts for so long at most.
const SHARE_DEBT_NS_MAX: u64 = 2 * SHARE_WINDOW_NS;

impl Proxy {
    /// Counts a request. False: it is over the limit, and is not to run.
    pub(super) fn take_request(&mut self, id: NamespaceId, requests_per_s: u32, now_ns: u64) -> bool {
        let cost_ns = SECOND_NS / u64::from(requests_per_s);
        let is_taken = self.namespaces.get_mut(id).requests.take(cost_ns, SECOND_NS, now_ns);
        if !is_taken {
            self.stats.rate_limited += 1;
            self.namespaces.remove_if_empty(id);
        }
        is_taken
    }

    pub(super) fn is_over_share(&self, id: NamespaceId, now_ns: u64) -> bool {
        self.namespaces.get(id).core_time.empty_at_ns() > now_ns + SHARE_WINDOW_NS
    }

    /// The share of the app whose function this worker runs, if it has one.
    pub(super) fn share_of(&self, function: u16) -> Option<CpuShare> {
        self.function(function)?.manifest.rules.cpu_share
    }

    /// A worker of the namespace ran from `from_ns` until now.
    pub(super) fn charge_core_time(&mut self, id: NamespaceId, share: CpuShare, from_ns: u64) {
        let now_ns = crate::sys::clock::monotonic_ns();
        let cost_ns = share.wall_ns(now_ns.saturating_sub(from_ns));
        self.namespaces.get_mut(id).core_time.charge(cost_ns, SHARE_DEBT_NS_MAX, now_ns);
    }

    /// A slice of a worker is over: it waits for its next one.
    pub(super) fn end_slice(&mut self, worker: u32, call: Box<Call>, now_ns: u64) {
        let taken = Duration::from_nanos(call.taken_ns(crate::sys::clock::monotonic_ns()));
        let slot = &mut self.workers[worker as usize];
        slot.call = Some(call);
        let function = slot.function;
        if let Some(function) = self.function(function) {
            function.program.engine().note_slice(taken);
        }
        self.enqueue(worker, now_ns);
    }

    /// Lets a worker wait for the core: behind everybody else while its namespace is over its share.
    pub(super) fn enqueue(&mut self, worker: u32, now_ns: u64) {
        match self.is_over_share(self.workers[worker as usize].namespace, now_ns) {
            true => self.held.push_back(worker),
            false => self.run_queue.push_back(worker),
        }
    }

    /// The worker whose turn it is. One of those that are held is looked at each time: it goes back to the others when its namespace may
    /// use the core again, and runs when nobody else wants it.
    pub(super) fn next_runnable(&mut self, now_ns: u64) -> Option<u32> {
        if let Some(worker) = self.held.pop_front() {
            if self.run_queue.is_empty() {
                return Some(worker);
            }
            self.enqueue(worker, now_ns);
        }
        self.run_queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{call, proxy};
    use crate::sys::clock::monotonic_ns;
    use crate::worker::StateAt;
    use xfaas_common::ids::SessionId;

    #[test]
    fn time_is_counted_finely_once_a_guest_runs_for_many_slices() {
        let directory = tempfile::tempdir().unwrap();
        let (mut proxy, session) = (proxy(directory.path()), SessionId::new(b"s").unwrap());
        let engine = proxy.function(0).unwrap().program.engine().clone();
        while !engine.ticks_coarsely() {
            std::thread::yield_now();
        }
        let mut finished = proxy.submit(call(&session, b"spin", StateAt::Here), monotonic_ns());
        while finished.is_none() {
            finished = proxy.run_next(monotonic_ns());
        }
        assert!(proxy.stats().slices > 2 && !engine.ticks_coarsely());
    }
}
