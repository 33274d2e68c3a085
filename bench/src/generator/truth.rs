//! What the counters of a run must be: every acknowledged increment has a number of its own, and in the end each session has counted exactly
//! the acknowledged ones and at most those besides whose fate is unknown. Shared by the threads of a run.

use super::ranges::{Inserted, Ranges};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Sessions are spread over so many locks, so that threads seldom meet.
const STRIPES: usize = 64;

#[derive(Debug, Default)]
struct Counter {
    /// What it was before the run.
    base: u64,
    acknowledged: u64,
    unsure: u64,
    /// Increments that left and were not refused. Kept only where reads are held against it.
    asked: u64,
    seen: Ranges,
}

/// What the counters came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CounterVerdict {
    /// Sessions that were asked to count.
    pub sessions: u64,
    pub acknowledged: u64,
    /// Requests without an answer: each may have counted or not.
    pub unsure: u64,
    /// How far the counters are behind what was acknowledged, or behind the highest number that they answered.
    pub lost_updates: u64,
    /// How far they, or the numbers that they answered, are beyond it and all that is unsure.
    pub doubled_updates: u64,
    /// True where the counters were read in the end; else only the answers were held against each other.
    pub was_read: bool,
    pub first_fault: Option<String>,
}

pub(super) struct Truth {
    stripes: Vec<Mutex<Vec<Counter>>>,
}

impl Truth {
    /// Of sessions `0..sessions`, all at 0.
    pub(super) fn new(sessions: usize) -> Truth {
        let stripe = || Mutex::new((0..sessions.div_ceil(STRIPES)).map(|_| Counter::default()).collect());
        Truth { stripes: (0..STRIPES).map(|_| stripe()).collect() }
    }

    fn stripe(&self, session: usize) -> MutexGuard<'_, Vec<Counter>> {
        // A thread that panicked ends the run anyway.
        self.stripes[session % STRIPES].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, session: usize, work: impl FnOnce(&mut Counter) -> T) -> T {
        work(&mut self.stripe(session)[session / STRIPES])
    }

    /// What the session had counted before the run.
    pub(super) fn set_base(&self, session: usize, base: u64) {
        self.with(session, |counter| counter.base = base);
    }

    /// A request was answered with `number`. Output: what is wrong with that.
    pub(super) fn acknowledge(&self, session: usize, number: u64) -> Option<&'static str> {
        self.with(session, |counter| {
            counter.acknowledged += 1;
            if number <= counter.base {
                return Some("the counter answered a number from before the run: an update was lost");
            }
            match counter.seen.insert(number) {
                Inserted::New => None,
                Inserted::Twice => Some("the counter answered the same number twice: an update was lost"),
                Inserted::Scattered => Some("the counter's answers do not follow each other"),
            }
        })
    }

    /// A request that may have counted or not.
    pub(super) fn unsure(&self, session: usize) {
        self.with(session, |counter| counter.unsure += 1);
    }

    /// What a read that leaves now must not fall behind.
    pub(super) fn floor(&self, session: usize) -> u64 {
        self.with(session, |counter| counter.seen.highest().unwrap_or(counter.base))
    }

    /// An increment leaves.
    pub(super) fn ask(&self, session: usize) {
        self.with(session, |counter| counter.asked += 1);
    }

    /// An increment that left did not run.
    pub(super) fn refuse(&self, session: usize) {
        self.with(session, |counter| counter.asked -= 1);
    }

    /// What a read that is answered now must not exceed: every increment that left may have run, whoever sent it and answered or not.
    pub(super) fn ceiling(&self, session: usize) -> u64 {
        self.with(session, |counter| counter.base + counter.asked)
    }

    /// Whether the session was asked to count.
    pub(super) fn was_asked(&self, session: usize) -> bool {
        self.with(session, |counter| counter.acknowledged + counter.unsure > 0)
    }

    /// Holds one session against its counter. `read`: what it is now; without, the highest number that was answered stands for it. Nobody else
    /// may have written it since the run began.
    pub(super) fn judge(&self, verdict: &mut CounterVerdict, session: usize, name: &str, read: Option<u64>) {
        self.with(session, |counter| {
            let Counter { base, acknowledged, unsure, .. } = *counter;
            let highest = counter.seen.highest().unwrap_or(base);
            let number = read.unwrap_or(highest);
            let (grown, answered) = (number.saturating_sub(base), highest.saturating_sub(base));
            let lost = acknowledged.saturating_sub(grown).max(highest.saturating_sub(number));
            let doubled = grown.max(answered).saturating_sub(acknowledged + unsure);
            verdict.sessions += 1;
            verdict.acknowledged += acknowledged;
            verdict.unsure += unsure;
            verdict.lost_updates += lost;
            verdict.doubled_updates += doubled;
            if lost + doubled > 0 {
                verdict.first_fault.get_or_insert_with(|| {
                    format!(
                        "session {name}: {acknowledged} updates were acknowledged and {unsure} are unsure, the counter grew by {grown}, and the \
                         highest number that it answered is {answered} more than it was"
                    )
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(truth: &Truth, read: Option<u64>) -> CounterVerdict {
        let mut verdict = CounterVerdict::default();
        truth.judge(&mut verdict, 70, "s", read);
        verdict
    }

    #[test]
    fn a_right_counter_is_found_right_whatever_the_order() {
        let truth = Truth::new(80);
        truth.set_base(70, 5);
        assert_eq!(truth.floor(70), 5);
        for number in [7, 6, 8] {
            assert_eq!(truth.acknowledge(70, number), None);
        }
        assert_eq!(truth.floor(70), 8);
        let found = verdict(&truth, Some(8));
        assert_eq!((found.lost_updates, found.doubled_updates, found.acknowledged, &found.first_fault), (0, 0, 3, &None));
        assert!(truth.was_asked(70) && !truth.was_asked(6)); // of the same stripe
    }

    #[test]
    fn a_read_is_at_most_what_was_there_and_what_was_asked_for() {
        let truth = Truth::new(80);
        truth.set_base(70, 5);
        assert_eq!(truth.ceiling(70), 5);
        (0..3).for_each(|_| truth.ask(70));
        truth.refuse(70);
        assert_eq!(truth.acknowledge(70, 6), None);
        truth.unsure(70);
        assert_eq!((truth.ceiling(70), truth.ceiling(6)), (7, 0));
    }

    #[test]
    fn a_lost_update_shows_in_the_answers_and_in_the_end() {
        let truth = Truth::new(80);
        assert_eq!(truth.acknowledge(70, 1), None);
        assert!(truth.acknowledge(70, 1).unwrap().contains("twice"));
        assert!(truth.acknowledge(70, 0).unwrap().contains("before the run"));
        let found = verdict(&truth, Some(1));
        assert_eq!((found.lost_updates, found.doubled_updates), (2, 0));
        assert!(found.first_fault.unwrap().contains("grew by 1"));
    }

    #[test]
    fn a_doubled_update_shows_in_the_end() {
        let truth = Truth::new(80);
        assert_eq!(truth.acknowledge(70, 1), None);
        assert_eq!(truth.acknowledge(70, 3), None);
        assert_eq!(verdict(&truth, Some(3)).doubled_updates, 1);
        assert_eq!(verdict(&truth, None).doubled_updates, 1);
    }

    #[test]
    fn answers_are_held_against_the_counter_that_is_right_in_the_end() {
        let truth = Truth::new(80);
        truth.set_base(70, 4);
        for number in [1_004, 2_004, 3_004] {
            assert_eq!(truth.acknowledge(70, number), None);
        }
        let found = verdict(&truth, Some(7));
        assert_eq!((found.lost_updates, found.doubled_updates), (2_997, 2_997));
        assert!(found.first_fault.unwrap().contains("answered is 3000 more"));
        // One that may have counted allows no number that the counter never had.
        let truth = Truth::new(80);
        assert_eq!(truth.acknowledge(70, 2), None);
        truth.unsure(70);
        let found = verdict(&truth, Some(1));
        assert_eq!((found.lost_updates, found.doubled_updates), (1, 0));
        assert_eq!(verdict(&truth, Some(2)).lost_updates, 0);
    }

    #[test]
    fn a_request_without_an_answer_may_have_counted_or_not() {
        let truth = Truth::new(80);
        assert_eq!(truth.acknowledge(70, 2), None);
        truth.unsure(70);
        for (read, lost, doubled) in [(0, 2, 0), (1, 1, 0), (2, 0, 0), (3, 0, 1)] {
            let found = verdict(&truth, Some(read));
            assert_eq!((found.lost_updates, found.doubled_updates, found.unsure), (lost, doubled, 1), "read {read}");
        }
    }
}
