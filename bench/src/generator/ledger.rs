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

/// One request under way, or room for one.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub(super) function: u16,
    pub(super) session: u32,
    due_ns: u64,
    sent_ns: u64,
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
    last_answer_ns: u64,
    /// Answers taken and requests given up.
    ended: u64,
    /// Since when answers are awaited and none came.
    awaiting_since_ns: Option<u64>,
    /// The thread was off its CPU and has not yet looked at what came meanwhile.
    was_blind: bool,
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
            last_answer_ns: start_ns,
            ended: 0,
            awaiting_since_ns: None,
            was_blind: false,
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
        let reads = self.has_counter && self.spec.functions[function].check == Check::Read;
        let floor = if reads { self.truth.floor(session) } else { 0 };
        self.places[index as usize] =
            Place { function: function as u16, session: session as u32, due_ns, sent_ns: now_ns, floor, busy: true };
        if self.schedule.is_some() && self.window.has(due_ns) {
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
        let due_ns = self.schedule.as_ref().map_or(now_ns, Schedule::due_ns);
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
        let Place { function, session, due_ns, floor, .. } = self.places[place];
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
            other => (other, false),
        };
        if check == Check::Counter && !is_counted && matches!(outcome, Outcome::Failed(_) | Outcome::Wrong(_)) {
            self.truth.unsure(session as usize); // it may have run
        }
        let in_time = self.window.has(now_ns);
        let tally = &mut self.tally.functions[usize::from(function)];
        match outcome {
            Outcome::Good | Outcome::Number(_) => {
                tally.good += 1;
                self.tally.good_in_time += u64::from(in_time);
                if self.window.has(due_ns) && self.was_blind {
                    tally.disturbed_ns.saturating_record(now_ns - due_ns);
                } else if self.window.has(due_ns) {
                    tally.latency_ns.saturating_record(now_ns - due_ns);
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

    /// No answer came to the request at `place`, and none is awaited any more.
    pub(super) fn given_up(&mut self, place: usize) {
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
        self.stop(now_ns);
        for place in 0..self.places.len() {
            if self.places[place].busy {
                self.given_up(place);
            }
        }
    }

    /// Sends no more from now on, as if the measured time were over.
    pub(super) fn stop(&mut self, now_ns: u64) {
        self.window.to_ns = self.window.to_ns.min(now_ns.max(self.window.start_ns));
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
                self.given_up(place);
            }
        }
    }

    /// Nothing of us ran for so long: that is no silence of the server's.
    pub(super) fn was_stopped(&mut self, elapsed_ns: u64) {
        self.stopped_ns += elapsed_ns;
        self.awaiting_since_ns = self.awaiting_since_ns.map(|since_ns| since_ns + elapsed_ns);
    }

    /// This thread ran at `from_ns`, and since then waited so long for its CPU. Arrivals pause meanwhile, and of the answers that it finds
    /// next nobody knows when they came: a server is not to be measured by what its generator did not do. Answers that come later are timed
    /// as ever, or slow ones, during which the generator nearly always waits once, would be missing.
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
        }
        self.was_blind = true;
    }

    /// All answers that had come by now were handed over.
    pub(super) fn has_looked(&mut self) {
        self.was_blind = false;
    }

    /// How long answers have been awaited and none came, ns.
    pub(super) fn silence_ns(&self, now_ns: u64) -> u64 {
        self.awaiting_since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns))
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
        if let Some(schedule) = self.schedule.as_mut().filter(|_| !by_count) {
            while schedule.due_ns() < end_ns {
                let waited_ns = end_ns - schedule.due_ns();
                self.tally.unsent += 1;
                if schedule.due_ns() >= self.window.from_ns {
                    let function = self.functions.next(&mut self.random);
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
mod tests {
    use super::super::arrivals::Arrivals;
    use super::super::spec::Transport;
    use super::*;
    use std::time::Duration;

    const MS: u64 = 1_000_000;

    struct Run {
        spec: LoadSpec,
        truth: Truth,
        live: LiveThread,
    }

    /// 10 ms of warm-up and 100 ms measured, one session.
    fn run(arrivals: Arrivals, function: &str) -> Run {
        let mut spec = LoadSpec::new(([127, 0, 0, 1], 1).into(), Transport::Datagram, "p".to_owned());
        spec.functions.push(function.parse().unwrap());
        (spec.arrivals, spec.sessions) = (arrivals, 1);
        (spec.warm_up, spec.measured, spec.answer_timeout) =
            (Duration::from_millis(10), Duration::from_millis(100), Duration::from_millis(50));
        Run { spec, truth: Truth::new(1), live: LiveThread::default() }
    }

    impl Run {
        fn ledger(&self, places: usize) -> Ledger<'_> {
            Ledger::new(&self.spec, 0, places, (&self.truth, &self.live), 0)
        }
    }

    fn answer(ledger: &mut Ledger<'_>, place: usize, outcome: Outcome, now_ns: u64) {
        ledger.answered(place, outcome, now_ns, || "bytes".to_owned());
    }

    #[test]
    fn a_closed_loop_measures_from_when_a_request_left() {
        let run = run(Arrivals::Closed, "x");
        let mut ledger = run.ledger(1);
        for (sent_ms, answered_ms) in [(5, 9), (9, 12), (12, 14), (109, 111)] {
            assert_eq!(ledger.due_in_ns(sent_ms * MS), Some(0));
            let place = ledger.next(sent_ms * MS).unwrap();
            assert_eq!((ledger.next(sent_ms * MS), ledger.due_in_ns(sent_ms * MS)), (None, None), "one place, one request");
            answer(&mut ledger, place, Outcome::Good, answered_ms * MS);
        }
        assert_eq!(ledger.next(110 * MS), None);
        assert!(ledger.is_over(111 * MS));
        let tally = ledger.finish();
        assert_eq!((tally.sent, tally.functions[0].good, tally.good_in_time, tally.measured_ns), (4, 4, 2, 100 * MS));
        assert_eq!(tally.functions[0].latency_ns.len(), 2); // those that left in the measured time
    }

    #[test]
    fn an_open_loop_measures_from_when_a_request_was_due_and_counts_what_never_left() {
        let run = run(Arrivals::Fixed { per_second: 100.0 }, "x"); // one every 10 ms
        let mut ledger = run.ledger(1);
        let first = ledger.next(0).unwrap();
        assert_eq!(ledger.next(0), None);
        // The server hangs for 60 ms: requests due at 10..=60 wait for the only place.
        answer(&mut ledger, first, Outcome::Good, 60 * MS);
        let second = ledger.next(60 * MS).unwrap();
        assert_eq!(ledger.due_in_ns(60 * MS), None); // no place
        answer(&mut ledger, second, Outcome::Good, 61 * MS);
        assert_eq!(ledger.due_in_ns(61 * MS), Some(0));
        let tally = {
            assert!(ledger.is_over(200 * MS));
            ledger.finish()
        };
        let latency = &tally.functions[0].latency_ns;
        // Due in 10..110: one was answered 51 ms after it was due, 9 never left and had waited 10 to 90 ms.
        assert_eq!((tally.functions[0].good, tally.unsent, latency.len()), (2, 9, 10));
        assert!(latency.max().abs_diff(90 * MS) < MS && latency.value_at_quantile(0.55).abs_diff(51 * MS) < MS, "{}", latency.max());
        assert!(tally.send_delay_ns.max().abs_diff(90 * MS) < MS);
    }

    #[test]
    fn counters_and_reads_are_held_against_the_truth() {
        let counting = run(Arrivals::Closed, "counter-rmw-linear");
        let mut ledger = counting.ledger(2);
        for (number, wrong) in [(1, 0), (1, 1), (2, 1)] {
            let place = ledger.next(0).unwrap();
            answer(&mut ledger, place, Outcome::Number(number), 1);
            assert_eq!(ledger.tally.functions[0].wrong, wrong);
        }
        assert!(ledger.tally.first_fault.as_ref().unwrap().contains("twice"));

        let mut reading = run(Arrivals::Closed, "counter-read");
        reading.spec.functions.push("counter-rmw-linear:1".parse().unwrap());
        let mut ledger = reading.ledger(1);
        reading.truth.acknowledge(0, 7);
        let mut wrong = 0;
        for number in [7, 6, 8, 0] {
            let place = loop {
                let place = ledger.next(0).unwrap();
                if ledger.check_of(place) == Check::Read {
                    break place;
                }
                answer(&mut ledger, place, Outcome::Refused(503), 1);
            };
            answer(&mut ledger, place, Outcome::Number(number), 1);
            wrong += u64::from(number < 7);
            assert_eq!(ledger.tally.functions[0].wrong, wrong, "{number}");
        }
    }

    #[test]
    fn statuses_are_counted_and_only_what_may_have_run_is_unsure() {
        let run = run(Arrivals::Closed, "counter-rmw-linear");
        let mut ledger = run.ledger(1);
        for outcome in [Outcome::Refused(503), Outcome::Failed(504), Outcome::Failed(500), Outcome::Wrong("nonsense")] {
            let place = ledger.next(11 * MS).unwrap();
            answer(&mut ledger, place, outcome, 12 * MS);
        }
        let place = ledger.next(11 * MS).unwrap();
        ledger.given_up(place);
        let tally = ledger.finish();
        let function = &tally.functions[0];
        assert_eq!((function.refused, function.failed, function.wrong, function.unsure), (1, 2, 1, 1));
        assert_eq!(tally.statuses.into_iter().collect::<Vec<_>>(), [(500, 1), (503, 1), (504, 1)]);
        let mut verdict = super::super::truth::CounterVerdict::default();
        run.truth.judge(&mut verdict, 0, "s", Some(4));
        assert_eq!((verdict.acknowledged, verdict.unsure, verdict.doubled_updates), (0, 4, 0));
    }

    #[test]
    fn what_is_not_answered_is_given_up_and_a_silent_server_is_noticed() {
        let run = run(Arrivals::Closed, "x");
        let mut ledger = run.ledger(2);
        let first = ledger.next(0).unwrap();
        ledger.next(MS).unwrap();
        ledger.give_up_late(51 * MS);
        assert!(!ledger.is_busy(first) && ledger.under_way() == 1);
        ledger.next(51 * MS).unwrap();
        assert_eq!(ledger.silence_ns(60 * MS), 60 * MS); // giving up is no answer
        assert!(!ledger.is_over(109 * MS) && !ledger.is_over(160 * MS));
        assert!(ledger.is_over(161 * MS));
        assert_eq!(ledger.finish().functions[0].unsure, 3);
    }

    #[test]
    fn time_in_which_the_generator_was_stopped_is_not_the_servers() {
        let run = run(Arrivals::Closed, "x");
        let mut ledger = run.ledger(1);
        let place = ledger.next(100 * MS).unwrap();
        ledger.was_stopped(5_000 * MS);
        assert_eq!(ledger.silence_ns(5_102 * MS), 2 * MS);
        assert!(!ledger.is_over(5_102 * MS) && ledger.is_busy(place));
        assert!(ledger.is_over(5_161 * MS));
    }

    #[test]
    fn what_the_generator_missed_is_not_the_servers() {
        let mut run = run(Arrivals::Fixed { per_second: 1_000.0 }, "x"); // one every ms
        let mut tallies = [false, true].map(|counts_own_stalls| {
            run.spec.counts_own_stalls = counts_own_stalls;
            let mut ledger = run.ledger(64);
            let mut answered_ns = 0;
            for ms in (0..120).filter(|ms| !(51..80).contains(ms)) {
                if ms == 80 {
                    ledger.was_off_cpu(50 * MS + 1, 29 * MS);
                }
                // What left a turn ago is answered.
                (0..64).filter(|place| ledger.is_busy(*place)).collect::<Vec<_>>().into_iter().for_each(|place| {
                    answer(&mut ledger, place, Outcome::Good, ms * MS);
                });
                ledger.has_looked();
                answered_ns = ms * MS;
                while ledger.next(ms * MS).is_some() {}
            }
            assert!(ledger.is_over(answered_ns + MS));
            ledger.finish()
        });
        let [own, counted] = &mut tallies;
        assert_eq!((own.off_cpu, own.off_cpu_ns, own.off_cpu_ns_max), (1, 29 * MS, 29 * MS));
        assert_eq!([&own, &counted].map(|tally| tally.functions[0].disturbed_ns.len()), [1, 0]);
        assert!(own.functions[0].latency_ns.max() <= 2 * MS, "{}", own.functions[0].latency_ns.max());
        assert!(counted.functions[0].latency_ns.max() >= 29 * MS);
        assert_eq!((own.sent, counted.sent), (110 - 29, 110));
    }

    #[test]
    fn a_run_that_is_told_to_stop_ends_with_what_it_has() {
        let run = run(Arrivals::Closed, "x");
        let mut ledger = run.ledger(1);
        let place = ledger.next(20 * MS).unwrap();
        ledger.stop(30 * MS);
        answer(&mut ledger, place, Outcome::Good, 31 * MS);
        assert_eq!(ledger.next(31 * MS), None);
        assert!(ledger.is_over(31 * MS));
        assert_eq!(ledger.finish().measured_ns, 20 * MS);
    }

    #[test]
    fn a_run_ends_by_its_count() {
        let mut run = run(Arrivals::Fixed { per_second: 1_000.0 }, "x");
        run.spec.requests_max = 2;
        let mut ledger = run.ledger(4);
        let places = [ledger.next(50 * MS).unwrap(), ledger.next(50 * MS).unwrap()];
        assert_eq!(ledger.next(50 * MS), None);
        places.iter().for_each(|place| answer(&mut ledger, *place, Outcome::Good, 60 * MS));
        assert!(ledger.is_over(60 * MS));
        let tally = ledger.finish();
        assert_eq!((tally.sent, tally.unsent, tally.measured_ns), (2, 0, 50 * MS));
    }
}
