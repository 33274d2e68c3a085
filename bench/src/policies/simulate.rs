//! Replays a trace under one policy and one memory limit: events in the order of their times, nothing random, no clock.
//!
//! A function has one container, as a session has: requests at once run in it side by side, since one more worker is a Fork of microseconds. A
//! request that finds it loaded is warm, else it is a cold start. For want of memory idle containers go, lowest priority first; what does
//! not fit even then is refused. A policy may load a container again before the request it foresees, if there is room without evicting one.
//! At one millisecond requests end before containers go or come, and all that before new requests.

use super::pool::Pool;
use super::trace::{Invocation, Trace};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use xfaas_dataplane::session::{EvictionOrder, Evictor, KeepAlive, KeepAlivePolicy, Use};

/// When containers go by themselves, and in which order when memory is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimulatedPolicy {
    pub keep_alive: KeepAlivePolicy,
    pub order: EvictionOrder,
}

/// What a replay gives.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    pub requests: u64,
    pub cold_starts: u64,
    /// Three of four functions have at most this share of cold starts in their requests: the figure by which the paper compares.
    pub cold_share_p75: f64,
    /// Memory of all loaded containers x time.
    pub memory_gib_s: f64,
    /// The part of it in which they ran nothing.
    pub idle_gib_s: f64,
    /// Containers that went for want of memory.
    pub evictions: u64,
    /// Containers that were loaded before a request.
    pub pre_warms: u64,
    /// Requests for which there was no memory: all of it was busy. They are no cold starts.
    pub refused: u64,
}

impl Figures {
    /// Of the requests that ran.
    pub fn cold_share(&self) -> f64 {
        self.cold_starts as f64 / (self.requests - self.refused).max(1) as f64
    }
}

/// In the order in which they happen in one millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    End { function: u32 },
    Expire { function: u32, rest: u64 },
    PreWarm { function: u32, requests: u64, keep_alive_ms: u64 },
}

struct FunctionState {
    keep_alive: KeepAlive,
    requests: u64,
    cold_starts: u64,
    /// Until then a cold start is under way, and who came meanwhile waits for it.
    loaded_ms: u64,
}

struct Simulation<'a> {
    trace: &'a Trace,
    functions: Vec<FunctionState>,
    pool: Pool,
    evictor: Evictor,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    figures: Figures,
}

/// Replays `trace`. `memory_mib_max`: of all containers together, `None` for no limit.
/// Cost: some events a request, each the logarithm of the containers.
pub fn simulate(trace: &Trace, policy: SimulatedPolicy, memory_mib_max: Option<u64>) -> Figures {
    let state = || FunctionState { keep_alive: KeepAlive::new(policy.keep_alive), requests: 0, cold_starts: 0, loaded_ms: 0 };
    let mut simulation = Simulation {
        trace,
        functions: trace.functions.iter().map(|_| state()).collect(),
        pool: Pool::new(trace.functions.len(), memory_mib_max.unwrap_or(u64::MAX)),
        evictor: Evictor::new(policy.order),
        events: BinaryHeap::new(),
        figures: Figures::default(),
    };
    for invocation in &trace.invocations {
        simulation.happen_until(invocation.at_ms);
        simulation.request(invocation);
    }
    simulation.happen_until(trace.end_ms);
    let Simulation { pool, mut figures, functions, .. } = simulation;
    (figures.memory_gib_s, figures.idle_gib_s) = pool.finish(trace.end_ms);
    figures.cold_share_p75 = cold_share_p75(&functions);
    figures
}

/// By nearest rank; of the functions that were asked for at all.
fn cold_share_p75(functions: &[FunctionState]) -> f64 {
    let asked = functions.iter().filter(|state| state.requests > 0);
    let mut shares: Vec<f64> = asked.map(|state| state.cold_starts as f64 / state.requests as f64).collect();
    shares.sort_by(f64::total_cmp);
    shares.get((shares.len() * 3).div_ceil(4).saturating_sub(1)).copied().unwrap_or(0.0)
}

impl Simulation<'_> {
    fn happen_until(&mut self, now_ms: u64) {
        while let Some(Reverse((at_ms, _))) = self.events.peek()
            && *at_ms <= now_ms
        {
            let Some(Reverse((at_ms, event))) = self.events.pop() else { return };
            match event {
                Event::End { function } => self.end(function, at_ms),
                Event::Expire { function, rest } if self.pool.is_in_rest(function, rest) => self.drop_idle(function, at_ms),
                Event::Expire { .. } => {}
                Event::PreWarm { function, requests, keep_alive_ms } => self.pre_warm(function, requests, keep_alive_ms, at_ms),
            }
        }
    }

    fn request(&mut self, invocation: &Invocation) {
        let Invocation { at_ms, function, duration_ms } = *invocation;
        let about = &self.trace.functions[function as usize];
        self.figures.requests += 1;
        let state = &mut self.functions[function as usize];
        state.requests += 1;
        state.keep_alive.on_request(at_ms);
        if !self.pool.is_loaded(function) {
            if !self.make_room(about.memory_mib, at_ms) {
                self.figures.refused += 1;
                return;
            }
            self.figures.cold_starts += 1;
            self.pool.load(function, about.memory_mib, at_ms);
            let state = &mut self.functions[function as usize];
            state.cold_starts += 1;
            state.loaded_ms = at_ms + u64::from(about.cold_ms);
        }
        self.pool.run(function, at_ms);
        let end_ms = at_ms.max(self.functions[function as usize].loaded_ms) + u64::from(duration_ms);
        self.events.push(Reverse((end_ms, Event::End { function })));
    }

    /// Evicts idle containers until `memory_mib` fit. False: they do not, and nobody was evicted for it.
    fn make_room(&mut self, memory_mib: u32, now_ms: u64) -> bool {
        if !self.pool.could_have_room_for(memory_mib) {
            return false;
        }
        while !self.pool.has_room_for(memory_mib) {
            let (priority, function) = self.pool.lowest().expect("what is not busy is idle");
            self.evictor.on_eviction(priority);
            self.figures.evictions += 1;
            self.drop_idle(function, now_ms);
        }
        true
    }

    /// An idle container goes, and does not come back by itself.
    fn drop_idle(&mut self, function: u32, now_ms: u64) {
        self.pool.unload(function, now_ms);
        self.functions[function as usize].keep_alive.forget_frequency();
    }

    fn end(&mut self, function: u32, now_ms: u64) {
        let state = &mut self.functions[function as usize];
        state.keep_alive.on_end(now_ms);
        if !self.pool.end(function) {
            return;
        }
        let windows = state.keep_alive.windows();
        if windows.pre_warm_ms == 0 {
            return self.rest(function, windows.keep_alive_ms, now_ms);
        }
        let event = Event::PreWarm { function, requests: state.requests, keep_alive_ms: windows.keep_alive_ms };
        self.pool.unload(function, now_ms);
        self.events.push(Reverse((now_ms + windows.pre_warm_ms, event)));
    }

    fn rest(&mut self, function: u32, keep_alive_ms: u64, now_ms: u64) {
        let about = &self.trace.functions[function as usize];
        let priority = self.evictor.priority(&Use {
            at_ms: now_ms,
            frequency: self.functions[function as usize].keep_alive.frequency(),
            cold_us: u64::from(about.cold_ms) * 1_000,
            size_bytes: u64::from(about.memory_mib) << 20,
        });
        let rest = self.pool.rest(function, priority, now_ms);
        if let Some(at_ms) = now_ms.checked_add(keep_alive_ms) {
            self.events.push(Reverse((at_ms, Event::Expire { function, rest })));
        }
    }

    /// Loads a container for the request that is expected, unless one came meanwhile.
    fn pre_warm(&mut self, function: u32, requests: u64, keep_alive_ms: u64, now_ms: u64) {
        let memory_mib = self.trace.functions[function as usize].memory_mib;
        if self.functions[function as usize].requests != requests || !self.pool.has_room_for(memory_mib) {
            return;
        }
        self.figures.pre_warms += 1;
        self.pool.load(function, memory_mib, now_ms);
        self.rest(function, keep_alive_ms, now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policies::trace::TracedFunction;

    const MINUTE_MS: u64 = 60_000;
    const FIXED: SimulatedPolicy =
        SimulatedPolicy { keep_alive: KeepAlivePolicy::Fixed { keep_alive_ms: 10_000 }, order: EvictionOrder::LeastRecentlyUsed };

    /// Functions of 1 GiB with a cold start of 1 s; requests run for 1 s.
    fn trace(functions: usize, requests: &[(u64, u32)], end_s: u64) -> Trace {
        let about = |index| TracedFunction { name: format!("f{index}"), memory_mib: 1_024, cold_ms: 1_000 };
        let request = |&(at_s, function): &(u64, u32)| Invocation { at_ms: at_s * 1_000, function, duration_ms: 1_000 };
        Trace { functions: (0..functions).map(about).collect(), invocations: requests.iter().map(request).collect(), end_ms: end_s * 1_000 }
    }

    #[test]
    fn a_known_trace_gives_the_figures_of_a_hand() {
        // Cold at 0 (ends 2), warm at 5 (ends 6), expires at 16; cold at 16 (ends 18), expires at 28.
        let figures = simulate(&trace(1, &[(0, 0), (5, 0), (16, 0)], 100), FIXED, None);
        let cold = Figures { requests: 3, cold_starts: 2, cold_share_p75: 2.0 / 3.0, ..Figures::default() };
        let expected = Figures { memory_gib_s: 28.0, idle_gib_s: 23.0, ..cold };
        assert_eq!(figures, expected);
    }

    #[test]
    fn requests_at_once_share_a_container_and_its_cold_start() {
        // Cold at 0; both end at 2. At 5 it runs to 6 and rests to 16. In all 3 s are busy.
        let figures = simulate(&trace(1, &[(0, 0), (0, 0), (5, 0)], 100), FIXED, None);
        assert_eq!((figures.cold_starts, figures.memory_gib_s, figures.idle_gib_s), (1, 16.0, 13.0));
    }

    #[test]
    fn functions_count_alike_in_the_quartile() {
        // Of f0 to f3 one request each is cold, of 4, 2, 1 and 1.
        let requests = [(0, 0), (3, 0), (5, 0), (7, 0), (9, 1), (11, 1), (13, 2), (15, 3)];
        assert_eq!(simulate(&trace(5, &requests, 20), FIXED, None).cold_share_p75, 1.0);
        assert_eq!(simulate(&trace(3, &requests[..6], 20), FIXED, None).cold_share_p75, 0.5);
    }

    #[test]
    fn for_want_of_memory_the_least_recently_used_goes_and_busy_ones_stay() {
        // 2 GiB: f0 and f1 rest, f2 takes the place of f0 at 6, which is cold again at 9 in the place of f1; f2 is warm at 10.
        let figures = simulate(&trace(3, &[(0, 0), (3, 1), (6, 2), (9, 0), (10, 2)], 12), FIXED, Some(2_048));
        assert_eq!((figures.cold_starts, figures.evictions, figures.refused), (4, 2, 0));
        assert_eq!(figures.memory_gib_s, 6.0 + 6.0 + 6.0 + 3.0);
        // Both places are busy.
        let figures = simulate(&trace(3, &[(0, 0), (0, 1), (1, 2)], 12), FIXED, Some(2_048));
        assert_eq!((figures.cold_starts, figures.evictions, figures.refused), (2, 0, 1));
    }

    #[test]
    fn greedy_dual_keeps_what_is_asked_for_often() {
        let requests = [(0, 0), (3, 0), (5, 0), (7, 1), (10, 2), (13, 0)];
        let greedy = SimulatedPolicy { keep_alive: KeepAlivePolicy::Unbounded, order: EvictionOrder::GreedyDual };
        // f1, used once, goes at 10; the least recently used would have been f0.
        let figures = simulate(&trace(3, &requests, 20), greedy, Some(2_048));
        assert_eq!((figures.cold_starts, figures.evictions), (3, 1));
        assert_eq!(figures.memory_gib_s, 20.0 + 3.0 + 10.0);
        let oldest = SimulatedPolicy { order: EvictionOrder::LeastRecentlyUsed, ..greedy };
        let figures = simulate(&trace(3, &requests, 20), oldest, Some(2_048));
        assert_eq!((figures.cold_starts, figures.evictions), (4, 2));
    }

    #[test]
    fn a_timer_is_loaded_before_it_fires_and_not_kept_for_the_hour() {
        let requests: Vec<(u64, u32)> = (0..24).map(|hour| (hour * 3_600, 0)).collect();
        let trace = trace(1, &requests, 24 * 3_600);
        let hybrid = KeepAlivePolicy::Hybrid { fallback_ms: 10 * MINUTE_MS };
        let figures = simulate(&trace, SimulatedPolicy { keep_alive: hybrid, ..FIXED }, None);
        // Eight idle times must be known. Then it goes at once and is loaded again 53 minutes and 6 s later: a tenth less than the minute in
        // which the next request comes, at 59:59. The last time nothing comes before the end.
        assert_eq!((figures.cold_starts, figures.pre_warms), (9, 16));
        let ten_minutes = KeepAlivePolicy::Fixed { keep_alive_ms: 10 * MINUTE_MS };
        let fixed = simulate(&trace, SimulatedPolicy { keep_alive: ten_minutes, ..FIXED }, None);
        assert_eq!(fixed.cold_starts, 24);
        assert!(figures.memory_gib_s < fixed.memory_gib_s, "{figures:?} {fixed:?}");
    }
}
