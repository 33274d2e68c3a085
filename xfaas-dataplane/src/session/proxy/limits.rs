//! Limits of a namespace that its app asks for, requests in a second and a share of the core (CONTRACT.md section 4), and the order in which workers that
//! are not done take turns, which a share changes. Called by `proxy`.

use super::Proxy;
use super::run_queue::Turn;
use crate::session::namespace::NamespaceId;
use crate::sys::clock::{SECOND_NS, monotonic_ns, thread_cpu_ns};
use crate::worker::{Call, CpuShare};
use std::time::Duration;

/// A namespace may use its share of this time at once.
const SHARE_WINDOW_NS: u64 = 100_000_000;
/// What it runs over its share while nobody else wants the core counts for so long at most.
const SHARE_DEBT_NS_MAX: u64 = 2 * SHARE_WINDOW_NS;
/// Whose slice is over after so little was interrupted: ticks pass also while the kernel runs others on the core. A quarter of a slice.
const INTERRUPTED_NS_MAX: u64 = 250_000;

/// A slice of some guest was over. On the monotonic clock, and in CPU time of the shard's thread; nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SliceEnd {
    at_ns: u64,
    cpu_ns: u64,
}

impl SliceEnd {
    /// For how long a guest really ran whose first slice this was, nanoseconds: the thread's CPU time since `earlier` without what went by until the guest
    /// was entered. Too little, never too much, where the thread also slept or lost its CPU before that. Nobody reads that clock, a system call, before
    /// a guest that may end at once.
    fn ran_ns(&self, earlier: &SliceEnd, entered_ns: u64) -> u64 {
        let before_ns = entered_ns.saturating_sub(earlier.at_ns);
        self.cpu_ns.saturating_sub(earlier.cpu_ns).saturating_sub(before_ns)
    }
}

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
        let now_ns = monotonic_ns();
        let cost_ns = share.wall_ns(now_ns.saturating_sub(from_ns));
        self.namespaces.get_mut(id).core_time.charge(cost_ns, SHARE_DEBT_NS_MAX, now_ns);
    }

    /// A slice of a worker is over: it waits for its next one.
    pub(super) fn end_slice(&mut self, worker: u32, call: Box<Call>, now_ns: u64) {
        let taken = Duration::from_nanos(call.taken_ns(monotonic_ns()));
        let hardly_ran = self.note_slice_end(call.stages.entered_ns) < INTERRUPTED_NS_MAX;
        let slot = &mut self.workers[worker as usize];
        slot.call = Some(call);
        let (function, namespace) = (slot.function, slot.namespace);
        if let Some(function) = self.function(function) {
            function.program.engine().note_slice(taken);
        }
        match self.next_turn(namespace) {
            Turn::First if hardly_ran => self.enqueue_for(Turn::Next, worker, now_ns),
            turn => self.enqueue_for(turn, worker, now_ns),
        }
    }

    /// Output: for how long the guest ran if this was its first slice, nanoseconds.
    fn note_slice_end(&mut self, entered_ns: u64) -> u64 {
        if self.run_queue.is_empty() {
            return u64::MAX; // nobody whom it could come before, so not worth a system call
        }
        let end = SliceEnd { at_ns: monotonic_ns(), cpu_ns: thread_cpu_ns() };
        let earlier = std::mem::replace(&mut self.slice_ended, end);
        end.ran_ns(&earlier, entered_ns)
    }

    /// That of a namespace which has one now is not its first.
    fn next_turn(&self, namespace: NamespaceId) -> Turn {
        if self.in_turn == Some(namespace) { Turn::Another } else { Turn::First }
    }

    /// Lets a worker wait for the core: behind everybody else while its namespace is over its share.
    pub(super) fn enqueue(&mut self, worker: u32, now_ns: u64) {
        let turn = self.next_turn(self.workers[worker as usize].namespace);
        self.enqueue_for(turn, worker, now_ns);
    }

    fn enqueue_for(&mut self, turn: Turn, worker: u32, now_ns: u64) {
        let namespace = self.workers[worker as usize].namespace;
        match self.is_over_share(namespace, now_ns) {
            true => self.held.push_back(worker),
            false => self.run_queue.push(worker, namespace, turn),
        }
    }

    /// The worker whose turn it is. One of those that are held is looked at each time: it goes back to the others when its namespace may
    /// use the core again, and runs when nobody else wants it.
    pub(super) fn next_runnable(&mut self, now_ns: u64) -> Option<u32> {
        if let Some(worker) = self.held.pop_front() {
            if self.run_queue.is_empty() {
                return Some(worker);
            }
            self.enqueue_for(Turn::Another, worker, now_ns);
        }
        self.run_queue.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{call, proxy};
    use super::SliceEnd;
    use crate::session::{Outcome, Proxy};
    use crate::sys::clock::monotonic_ns;
    use crate::worker::StateAt;
    use xfaas_common::ids::SessionId;

    /// A call of the session that runs for many slices has had its first.
    fn spin(proxy: &mut Proxy, session: &SessionId) {
        assert!(proxy.submit(call(session, b"spin", StateAt::Here), monotonic_ns()).is_none(), "it runs for more than a slice");
    }

    /// The slices that calls of the session had so far which are not over.
    fn slices(proxy: &Proxy, session: &SessionId) -> u32 {
        let calls = proxy.workers.iter().filter_map(|(_, slot)| slot.call.as_ref());
        calls.filter(|call| call.session == *session).map(|call| call.stages.slices).sum()
    }

    #[test]
    fn a_call_whose_first_slice_is_over_has_the_next_and_then_sessions_take_turns() {
        let directory = tempfile::tempdir().unwrap();
        let (mut proxy, [many, one]) = (proxy(directory.path()), [b"many", b"one_"].map(|name| SessionId::new(name).unwrap()));
        (0..3).for_each(|_| spin(&mut proxy, &many)); // the first ran at once, the others wait behind it
        for slices_of_many in 2..8 {
            assert!(proxy.run_next(monotonic_ns()).is_none());
            assert_eq!(slices(&proxy, &many), slices_of_many);
        }
        spin(&mut proxy, &one);
        for turn in 0_u32..6 {
            assert!(proxy.run_next(monotonic_ns()).is_none());
            assert_eq!((slices(&proxy, &one), slices(&proxy, &many)), (2 + turn / 2, 7 + turn.div_ceil(2)));
        }
        let mut finished = Vec::new();
        proxy.end_all(monotonic_ns(), Outcome::Cancelled, &mut finished);
        assert!(finished.len() == 4 && !proxy.is_busy() && proxy.run_next(monotonic_ns()).is_none());
    }

    #[test]
    fn what_the_thread_did_before_the_guest_was_entered_does_not_count() {
        let earlier = SliceEnd { at_ns: 5_000, cpu_ns: 100 };
        assert_eq!(SliceEnd { at_ns: 15_000, cpu_ns: 900 }.ran_ns(&earlier, 5_200), 600);
        assert_eq!(SliceEnd { at_ns: 15_000, cpu_ns: 900 }.ran_ns(&earlier, 14_000), 0, "it had lost its CPU before");
    }

    #[test]
    fn a_call_that_hardly_ran_when_its_slice_was_over_comes_before_those_that_used_theirs() {
        let directory = tempfile::tempdir().unwrap();
        let (mut proxy, sessions) = (proxy(directory.path()), [b"a", b"b", b"c"].map(|name| SessionId::new(name).unwrap()));
        for (session, cpu_ns) in sessions.iter().zip([0, 0, u64::MAX]) {
            proxy.slice_ended = SliceEnd { at_ns: monotonic_ns(), cpu_ns }; // since then the thread had its CPU all the time, or never
            spin(&mut proxy, session);
        }
        assert!(proxy.run_next(monotonic_ns()).is_none());
        assert_eq!(sessions.map(|session| slices(&proxy, &session)), [1, 1, 2]);
    }

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
