//! One thread's book: what is due, what is under way, and what came of it. Knows no sockets and reads no clock: times are passed in, in ns of
//! one clock.

use super::arrivals::Schedule;
use super::judge::Outcome;
use super::live::LiveThread;
use super::mix::{Check, FunctionChoice};
use super::popularity::SessionChoice;
use super::spec::LoadSpec;
use super::tally::Tally;
use super::truth::Truth;
use crate::load::Random;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// An answer is timed if the thread was off its CPU for at most one such part of its latency while it may have come: that is the error.
const AWAY_PART_MAX: u64 = 8;

/// One request under way, or room for one.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub(super) function: u16,
    pub(super) session: u32,
    due_ns: u64,
    sent_ns: u64,
    /// How long the thread was off its CPU between taking it up and handing it to the kernel, as far as anybody knows.
    away_ns: u64,
    /// What a read of the session's counter must not fall behind.
    floor: u64,
    busy: bool,
}

/// When the run measures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start_ns: u64,
    pub(super) from_ns: u64,
    pub(super) to_ns: u64,
}

impl Window {
    pub(super) fn new(spec: &LoadSpec, start_ns: u64) -> Window {
        let from_ns = start_ns + spec.warm_up.as_nanos() as u64;
        Window { start_ns, from_ns, to_ns: from_ns + spec.measured.as_nanos() as u64 }
    }

    fn has(&self, now_ns: u64) -> bool {
        (self.from_ns..self.to_ns).contains(&now_ns)
    }

    /// Whether a part of it lies between the two.
    fn meets(&self, began_ns: u64, ended_ns: u64) -> bool {
        self.from_ns < self.to_ns && began_ns < self.to_ns && ended_ns >= self.from_ns
    }

    /// How much of it lies in the `length_ns` from `from_ns` on.
    fn part_ns(&self, from_ns: u64, length_ns: u64) -> u64 {
        (from_ns + length_ns).min(self.to_ns).saturating_sub(from_ns.max(self.from_ns))
    }
}

pub(super) struct Ledger<'a> {
    spec: &'a LoadSpec,
    truth: &'a Truth,
    live: &'a LiveThread,
    places: Vec<Place>,
    /// Room for the next requests, used longest ago first, so that all connections take part at any rate.
    idle: VecDeque<u32>,
    under_way: usize,
    schedule: Option<Schedule>,
    functions: FunctionChoice,
    sessions: SessionChoice,
    random: Random,
    window: Window,
    requests_max: u64,
    has_counter: bool,
    bounds_reads: bool,
    last_answer_ns: u64,
    /// Answers taken and requests given up.
    ended: u64,
    /// Since when answers are awaited and none came.
    awaiting_since_ns: Option<u64>,
    /// How long the thread was off its CPU since it last looked at what came.
    away_ns: u64,
    /// Places of the requests that were taken up since the thread was last seen to run. Where it stood still, they may have left only then.
    taken_up: Vec<u32>,
    /// Time in which nothing of us ran.
    stopped_ns: u64,
    pub(super) tally: Tally,
}

impl<'a> Ledger<'a> {
    /// Of thread `thread`, with so many requests under way at once.
    pub(super) fn new(
        spec: &'a LoadSpec,
        thread: usize,
        places: usize,
        (truth, live): (&'a Truth, &'a LiveThread),
        start_ns: u64,
    ) -> Ledger<'a> {
        let share = |total: u64| total / spec.threads as u64 + u64::from((thread as u64) < total % spec.threads as u64);
        Ledger {
            spec,
            truth,
            live,
            places: vec![Place::default(); places],
            idle: (0..places as u32).collect(),
            under_way: 0,
            schedule: Schedule::new(spec.arrivals, thread, spec.threads, start_ns, spec.seed),
            functions: FunctionChoice::new(&spec.functions),
            sessions: SessionChoice::new(spec.popularity, spec.sessions),
            random: Random::new(spec.seed.wrapping_add(1 + thread as u64)),
            window: Window::new(spec, start_ns),
            requests_max: share(spec.requests_max),
            has_counter: spec.functions.iter().any(|function| function.check == Check::Counter),
            bounds_reads: spec.bounds_reads(),
            last_answer_ns: start_ns,
            ended: 0,
            awaiting_since_ns: None,
            away_ns: 0,
            taken_up: Vec::new(),
            stopped_ns: 0,
            tally: Tally::new(spec.functions.len()),
        }
    }

    /// The next request that is due, now counted as sent; `None` while none is due or there is no room.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<usize> {
        if self.idle.is_empty() || self.tally.sent == self.requests_max || now_ns >= self.window.to_ns {
            return None;
        }
        let due_ns = match &mut self.schedule {
            None if now_ns < self.window.start_ns => return None,
            None => now_ns,
            Some(schedule) => {
                let due_ns = schedule.due_ns();
                if due_ns > now_ns || due_ns >= self.window.to_ns {
                    return None;
                }
                schedule.advance();
                due_ns
            }
        };
        let index = self.idle.pop_front()?;
        let (function, session) = (self.functions.next(&mut self.random), self.sessions.next(&mut self.random));
        let check = self.spec.functions[function].check;
        let floor = if self.has_counter && check == Check::Read { self.truth.floor(session) } else { 0 };
        if self.bounds_reads && check == Check::Counter {
            self.truth.ask(session);
        }
        self.places[index as usize] =
            Place { function: function as u16, session: session as u32, due_ns, sent_ns: now_ns, away_ns: 0, floor, busy: true };
        self.taken_up.push(index);
        if self.schedule.is_some() && self.window.has(due_ns) {
            self.tally.arrived += 1;
            self.tally.send_delay_ns.saturating_record(now_ns - due_ns);
        }
        self.awaiting_since_ns.get_or_insert(now_ns);
        self.tally.sent += 1;
        self.under_way += 1;
        Some(index as usize)
    }

    /// ns from now until a request is due; `None` if an answer must come first, or nothing is left to send.
    pub(super) fn due_in_ns(&self, now_ns: u64) -> Option<u64> {
        if self.idle.is_empty() || self.tally.sent == self.requests_max {
            return None;
        }
        let due_ns = self.schedule.as_ref().map_or(now_ns.max(self.window.start_ns), Schedule::due_ns);
        (due_ns < self.window.to_ns).then(|| due_ns.saturating_sub(now_ns))
    }

    /// What was asked at `place`.
    pub(super) fn place(&self, place: usize) -> &Place {
        &self.places[place]
    }

    pub(super) fn is_busy(&self, place: usize) -> bool {
        self.places[place].busy
    }

    pub(super) fn check_of(&self, place: usize) -> Check {
        self.spec.functions[usize::from(self.places[place].function)].check
    }

    /// The answer to the request at `place`, which must be busy. `excerpt` tells of a fault.
    pub(super) fn answered(&mut self, place: usize, outcome: Outcome, now_ns: u64, excerpt: impl FnOnce() -> String) {
        let Place { function, session, due_ns, floor, away_ns, .. } = self.places[place];
        let check = self.check_of(place);
        self.last_answer_ns = now_ns;
        self.awaiting_since_ns = (self.under_way > 1).then_some(now_ns);
        let (outcome, is_counted) = match outcome {
            Outcome::Number(number) if check == Check::Counter => {
                (self.truth.acknowledge(session as usize, number).map_or(Outcome::Good, Outcome::Wrong), true)
            }
            Outcome::Number(number) if check == Check::Read && number < floor => {
                (Outcome::Wrong("a read fell behind acknowledged updates"), false)
            }
            Outcome::Number(number) if check == Check::Read && self.bounds_reads && number > self.truth.ceiling(session as usize) => {
                (Outcome::Wrong("a read ran ahead of all updates that were asked for"), false)
            }
            other => (other, false),
        };
        if self.bounds_reads && check == Check::Counter && matches!(outcome, Outcome::Refused(_)) {
            self.truth.refuse(session as usize);
        }
        if check == Check::Counter && !is_counted && matches!(outcome, Outcome::Failed(_) | Outcome::Wrong(_)) {
            self.truth.unsure(session as usize); // it may have run
        }
        let (in_time, is_timed) = (self.window.has(now_ns), self.is_timed(due_ns, now_ns));
        let tally = &mut self.tally.functions[usize::from(function)];
        match outcome {
            Outcome::Good | Outcome::Number(_) => {
                tally.good += 1;
                self.tally.good_in_time += u64::from(in_time);
                if is_timed {
                    let latency_ns = now_ns - due_ns;
                    let is_disturbed = self.away_ns.max(away_ns) > latency_ns / AWAY_PART_MAX;
                    let times = if is_disturbed { &mut tally.disturbed_ns } else { &mut tally.latency_ns };
                    times.saturating_record(latency_ns);
                }
            }
            Outcome::Refused(status) => {
                tally.refused += 1;
                self.tally.refused_in_time += u64::from(in_time);
                *self.tally.statuses.entry(status).or_default() += 1;
            }
            Outcome::Failed(status) => {
                tally.failed += 1;
                *self.tally.statuses.entry(status).or_default() += 1;
                self.tally.first_fault.get_or_insert_with(|| format!("status {status}: {}", excerpt()));
            }
            Outcome::Wrong(fault) => {
                tally.wrong += 1;
                self.tally.first_fault.get_or_insert_with(|| format!("{fault}: {}", excerpt()));
            }
        }
        self.free(place);
    }

    /// An open loop times what was due in the measured time. A closed loop times what was under way in it, with the whole of its time: one that
    /// hangs from the warm-up on keeps its place, and no later one would be due there to be late.
    fn is_timed(&self, due_ns: u64, ended_ns: u64) -> bool {
        if self.schedule.is_some() { self.window.has(due_ns) } else { self.window.meets(due_ns, ended_ns) }
    }

    /// No answer to the request at `place` came until now, and none is awaited any more. It is timed with what it has waited, which is less
    /// than it really takes: without it, a server that hangs for longer than the time to answer would have no slow requests.
    fn given_up(&mut self, place: usize, now_ns: u64) {
        let Place { function, due_ns, .. } = self.places[place];
        if self.is_timed(due_ns, now_ns) {
            self.tally.functions[usize::from(function)].latency_ns.saturating_record(now_ns.saturating_sub(due_ns));
        }
        self.unanswered(place);
    }

    /// The connection of the request at `place` ended before its answer: that is a failure and no slow answer, and has no time.
    pub(super) fn cut(&mut self, place: usize) {
        self.tally.cut += 1;
        self.unanswered(place);
    }

    fn unanswered(&mut self, place: usize) {
        let Place { function, session, .. } = self.places[place];
        self.tally.functions[usize::from(function)].unsure += 1;
        if self.check_of(place) == Check::Counter {
            self.truth.unsure(session as usize);
        }
        self.free(place);
    }

    fn free(&mut self, place: usize) {
        self.places[place].busy = false;
        self.ended += 1;
        self.under_way -= 1;
        self.idle.push_back(place as u32);
    }

    /// Bytes that answer nothing that was asked.
    pub(super) fn stray(&mut self, excerpt: impl FnOnce() -> String) {
        self.tally.strays += 1;
        self.tally.first_fault.get_or_insert_with(|| format!("bytes that nobody asked for: {}", excerpt()));
    }

    /// The run ends here and now: all that is under way is given up.
    pub(super) fn abandon(&mut self, now_ns: u64) {
        for place in 0..self.places.len() {
            if self.places[place].busy {
                self.given_up(place, now_ns);
            }
        }
        self.stop(now_ns);
    }

    /// Sends no more from now on, as if the measured time were over.
    pub(super) fn stop(&mut self, now_ns: u64) {
        self.window.to_ns = self.window.to_ns.min(now_ns);
    }

    /// Nothing is left to send and no answer is awaited. Gives up what is unanswered long after the end.
    pub(super) fn is_over(&mut self, now_ns: u64) -> bool {
        let is_sent = self.tally.sent == self.requests_max || now_ns >= self.window.to_ns;
        if is_sent && now_ns.saturating_sub(self.window.to_ns + self.stopped_ns) > self.spec.answer_timeout.as_nanos() as u64 {
            self.abandon(now_ns);
        }
        is_sent && self.under_way == 0
    }

    /// Gives up requests that left more than the time to answer ago.
    pub(super) fn give_up_late(&mut self, now_ns: u64) {
        let timeout_ns = self.spec.answer_timeout.as_nanos() as u64;
        for place in 0..self.places.len() {
            if self.places[place].busy && now_ns.saturating_sub(self.places[place].sent_ns) > timeout_ns {
                self.given_up(place, now_ns);
            }
        }
    }

    /// Nothing of us ran for so long: that is no silence of the server's.
    pub(super) fn was_stopped(&mut self, elapsed_ns: u64) {
        self.stopped_ns += elapsed_ns;
        self.awaiting_since_ns = self.awaiting_since_ns.map(|since_ns| since_ns + elapsed_ns);
    }

    /// This thread ran at `from_ns`, and since then waited so long for its CPU. Arrivals pause meanwhile, and of the answers that it finds
    /// next nobody knows when they came: a server is not to be measured by what its generator did not do. Those that took far longer than
    /// that are timed as ever, a little too high, and so are all that come later: slow ones, during which the generator nearly always waits
    /// once, would be missing.
    pub(super) fn was_off_cpu(&mut self, from_ns: u64, waited_ns: u64) {
        if self.window.has(from_ns) {
            self.tally.off_cpu += 1;
            self.tally.off_cpu_ns += waited_ns;
            self.tally.off_cpu_ns_max = self.tally.off_cpu_ns_max.max(waited_ns);
        }
        if self.spec.counts_own_stalls {
            return;
        }
        if let Some(schedule) = &mut self.schedule {
            schedule.pause(from_ns, waited_ns);
            self.tally.paused_ns += self.window.part_ns(from_ns, waited_ns);
        }
        self.away_ns += waited_ns;
        for place in &self.taken_up {
            self.places[*place as usize].away_ns = waited_ns;
        }
    }

    /// The thread runs, and what was taken up before is the kernel's now.
    pub(super) fn was_seen(&mut self) {
        self.taken_up.clear();
    }

    /// How long the thread was off its CPU since it last looked; 0 where that is counted as the server's.
    pub(super) fn away_ns(&self) -> u64 {
        self.away_ns
    }

    /// All answers that had come by now were handed over.
    pub(super) fn has_looked(&mut self) {
        self.away_ns = 0;
    }

    /// How long answers have been awaited and none came, ns.
    pub(super) fn silence_ns(&self, now_ns: u64) -> u64 {
        self.awaiting_since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns))
    }

    /// Good and refused answers so far.
    pub(super) fn served(&self) -> u64 {
        self.tally.functions.iter().map(|function| function.good + function.refused).sum()
    }

    /// Requests sent and answers taken so far.
    pub(super) fn handled(&self) -> u64 {
        self.tally.sent + self.ended
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// For whoever watches from another thread.
    pub(super) fn publish(&self) {
        let sum = |of: fn(&super::tally::FunctionTally) -> u64| self.tally.functions.iter().map(of).sum();
        self.live.good.store(sum(|function| function.good), Ordering::Relaxed);
        self.live.refused.store(sum(|function| function.refused), Ordering::Relaxed);
        self.live.bad.store(sum(|function| function.failed + function.wrong + function.unsure), Ordering::Relaxed);
        self.live.under_way.store(self.under_way as u64, Ordering::Relaxed);
    }

    /// The end of the run: what was due and never left is counted with the time that it waited in vain, or the slowest requests of an
    /// overloaded server would be those that nobody sees.
    pub(super) fn finish(mut self) -> Tally {
        let by_count = self.tally.sent == self.requests_max;
        let end_ns = if by_count { self.last_answer_ns.min(self.window.to_ns) } else { self.window.to_ns };
        self.tally.measured_ns = end_ns.saturating_sub(self.window.from_ns);
        // A run that ends by its count waits for answers when no more is due.
        let next_due_ns = self.schedule.as_ref().filter(|_| by_count).map(Schedule::due_ns);
        let due_end_ns = next_due_ns.map_or(end_ns, |due_ns| due_ns.min(self.window.to_ns));
        self.tally.arriving_ns = due_end_ns.saturating_sub(self.window.from_ns);
        if let Some(schedule) = self.schedule.as_mut().filter(|_| !by_count) {
            while schedule.due_ns() < end_ns {
                let waited_ns = end_ns - schedule.due_ns();
                self.tally.unsent += 1;
                if schedule.due_ns() >= self.window.from_ns {
                    let function = self.functions.next(&mut self.random);
                    self.tally.arrived += 1;
                    self.tally.functions[function].latency_ns.saturating_record(waited_ns);
                    self.tally.send_delay_ns.saturating_record(waited_ns);
                }
                schedule.advance();
            }
        }
        self.publish();
        self.tally
    }
}

#[cfg(test)]
mod tests;
