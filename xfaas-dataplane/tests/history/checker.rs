//! Decides whether the history of one key is linearizable: whether its operations can be put in an order in which each takes effect at
//! one moment between its call and its answer and sees what the ones before it left. Strong sections must exclude each other too.
//!
//! The search is Wing and Gong's (JPDC 1993) with Lowe's memory of the states already seen ("Testing for linearizability", 2017), on a
//! list of calls and answers ordered by time. A `Swap` is two steps, a read that opens its section and a write that closes it, because
//! CONTRACT section 3 lets weak writes fall in between; no other strong step may. Written out here because testers at hand (stateright's)
//! know only operations of one moment, and search without memory, which hundreds of operations do not allow.
//!
//! Three things make histories with lost answers cheap, each compared with the plain definition in `checker_tests`:
//! - a read without an answer tells nothing, and a write without one whose value nobody saw might as well not have happened: left out;
//! - of equal increments without an answer the one called first is taken first;
//! - a step that changes nothing is never put off once it fits.

use super::operation::{Action, Operation, Outcome};
use std::collections::HashSet;

/// Steps tried before the search gives up, which fails the test: a verdict that is not reached is not a good one.
const TRIES_MAX: u64 = 50_000_000;
const NONE: usize = usize::MAX;

/// Why a history was not accepted.
#[derive(Debug)]
#[allow(dead_code, reason = "the fields are for whoever reads the failure")]
pub enum Refused {
    /// No order exists. `placed` operations fit at best; then `stuck` had to, and could not.
    NotLinearizable {
        placed: usize,
        stuck: Operation,
        others: Vec<Operation>,
    },
    TooHard {
        tries: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// A weak read: fits any time.
    Read,
    /// A strong read that leaves no section open: fits when none is.
    ReadStrong,
    Write(u64),
    WriteStrong(u64),
    Open,
    Close(u64),
    Increment,
}

/// The key, as far as operations can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub value: u64,
    /// The operation whose section is open.
    pub section: Option<usize>,
}

/// The state after `effect` of `operation`, if it fits in `state` and reads what its client was told.
pub(super) fn apply(state: State, effect: Effect, operation: usize, told: Option<u64>) -> Option<State> {
    let saw = |value: u64| told.is_none_or(|told| told == value);
    let is_free = state.section.is_none();
    let (fits, next) = match effect {
        Effect::Read => (saw(state.value), state),
        Effect::ReadStrong => (is_free && saw(state.value), state),
        Effect::Write(value) => (true, State { value, ..state }),
        Effect::WriteStrong(value) => (is_free, State { value, ..state }),
        Effect::Open => (is_free && saw(state.value), State { section: Some(operation), ..state }),
        Effect::Close(value) => (state.section == Some(operation), State { value, section: None }),
        Effect::Increment => {
            let value = state.value.wrapping_add(1);
            (is_free && saw(value), State { value, ..state })
        }
    };
    fits.then_some(next)
}

/// One moment to be found.
struct Step {
    operation: usize,
    effect: Effect,
    told: Option<u64>,
    called_ns: u64,
    /// `None`: it need not happen at all.
    answered_ns: Option<u64>,
    /// A step that is always taken before this one.
    after: Option<usize>,
}

impl Step {
    fn changes_nothing(&self) -> bool {
        matches!(self.effect, Effect::Read | Effect::ReadStrong)
    }
}

/// The steps of a history, those left out that cannot matter.
fn steps_of(history: &[Operation]) -> Vec<Step> {
    let seen: HashSet<u64> = history
        .iter()
        .filter_map(|operation| match (operation.action, operation.outcome) {
            (Action::WriteWeak(_) | Action::WriteStrong(_), _) | (_, Outcome::Unknown) => None,
            (_, Outcome::Answered { value, .. }) => Some(value),
        })
        .collect();
    // A number that nobody saw may have been the one before a number that somebody saw.
    let counts = history.iter().any(|operation| operation.action == Action::Increment);
    let mut steps: Vec<Step> = Vec::new();
    let mut last_unknown_increment = None;
    // By time: a history is one client's operations behind another's.
    let mut by_call: Vec<(usize, &Operation)> = history.iter().enumerate().collect();
    by_call.sort_by_key(|(_, operation)| operation.called_ns);
    for (index, operation) in by_call {
        let (told, answered_ns) = match operation.outcome {
            Outcome::Answered { at_ns, value } => (Some(value), Some(at_ns)),
            Outcome::Unknown => (None, None),
        };
        let is_unknown = answered_ns.is_none();
        let step = |effect, told| Step { operation: index, effect, told, called_ns: operation.called_ns, answered_ns, after: None };
        match operation.action {
            Action::ReadWeak | Action::ReadStrong if is_unknown => {}
            Action::WriteWeak(value) | Action::WriteStrong(value) | Action::Swap(value)
                if is_unknown && !counts && !seen.contains(&value) => {}
            Action::ReadWeak => steps.push(step(Effect::Read, told)),
            Action::ReadStrong => steps.push(step(Effect::ReadStrong, told)),
            Action::WriteWeak(value) => steps.push(step(Effect::Write(value), None)),
            Action::WriteStrong(value) => steps.push(step(Effect::WriteStrong(value), None)),
            // Nobody knows what it read, and no strong step fell between its read and its write: the two may as well be one moment.
            Action::Swap(value) if is_unknown => steps.push(step(Effect::WriteStrong(value), None)),
            Action::Swap(value) => {
                steps.push(step(Effect::Open, told));
                steps.push(Step { after: Some(steps.len() - 1), ..step(Effect::Close(value), None) });
            }
            Action::Increment if is_unknown => {
                steps.push(Step { after: last_unknown_increment, ..step(Effect::Increment, None) });
                last_unknown_increment = Some(steps.len() - 1);
            }
            Action::Increment => steps.push(step(Effect::Increment, told)),
        }
    }
    steps
}

/// Calls and answers by time, linked, so that a step can be taken out and put back.
struct Timeline {
    /// The step, and whether it is its call.
    entries: Vec<(usize, bool)>,
    previous: Vec<usize>,
    next: Vec<usize>,
    /// By step: its call's entry and its answer's, `NONE` without one.
    places: Vec<(usize, usize)>,
}

impl Timeline {
    /// Entry 0 is the head.
    fn new(steps: &[Step]) -> Timeline {
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * steps.len());
        for (index, step) in steps.iter().enumerate() {
            // Calls come first among equal times: operations that touch may have overlapped.
            events.push((step.called_ns, false, index));
            events.extend(step.answered_ns.map(|at_ns| (at_ns, true, index)));
        }
        events.sort_unstable();
        let mut entries = vec![(NONE, true)];
        let mut places = vec![(NONE, NONE); steps.len()];
        for (_, is_answer, step) in events {
            match is_answer {
                false => places[step].0 = entries.len(),
                true => places[step].1 = entries.len(),
            }
            entries.push((step, !is_answer));
        }
        let count = entries.len();
        let previous = (0..count).map(|entry| entry.wrapping_sub(1)).collect();
        let next = (0..count).map(|entry| if entry + 1 == count { NONE } else { entry + 1 }).collect();
        Timeline { entries, previous, next, places }
    }

    fn unlink(&mut self, entry: usize) {
        let (previous, next) = (self.previous[entry], self.next[entry]);
        self.next[previous] = next;
        if next != NONE {
            self.previous[next] = previous;
        }
    }

    fn relink(&mut self, entry: usize) {
        let (previous, next) = (self.previous[entry], self.next[entry]);
        self.next[previous] = entry;
        if next != NONE {
            self.previous[next] = entry;
        }
    }

    fn take(&mut self, step: usize) {
        let (call, answer) = self.places[step];
        self.unlink(call);
        if answer != NONE {
            self.unlink(answer);
        }
    }

    fn put_back(&mut self, step: usize) {
        let (call, answer) = self.places[step];
        if answer != NONE {
            self.relink(answer);
        }
        self.relink(call);
    }
}

/// Which steps are placed.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Placed(Box<[u64]>);

impl Placed {
    fn has(&self, step: usize) -> bool {
        self.0[step / 64] >> (step % 64) & 1 == 1
    }

    fn flip(&mut self, step: usize) {
        self.0[step / 64] ^= 1 << (step % 64);
    }
}

/// Checks a history that began with `initial`, in any order. Errors: see `Refused`.
/// Cost: about the number of operations times those under way at once, when the history is good; more when it is not.
pub fn check(initial: u64, history: &[Operation]) -> Result<(), Refused> {
    let steps = steps_of(history);
    let mut timeline = Timeline::new(&steps);
    let mut to_place = steps.iter().filter(|step| step.answered_ns.is_some()).count();
    let mut state = State { value: initial, section: None };
    let mut placed = Placed(vec![0; steps.len().div_ceil(64)].into());
    let mut known: HashSet<(Placed, State)> = HashSet::new();
    let mut path: Vec<(usize, State)> = Vec::new();
    let mut best: (usize, usize) = (0, NONE);
    let mut entry = timeline.next[0];
    let mut tries = 0;
    while to_place > 0 {
        tries += 1;
        if tries > TRIES_MAX {
            return Err(Refused::TooHard { tries });
        }
        if let Some(&(step, true)) = timeline.entries.get(entry) {
            let Step { operation, effect, told, answered_ns, after, .. } = steps[step];
            let comes_after = after.is_none_or(|earlier| placed.has(earlier));
            if let Some(next) = apply(state, effect, operation, told).filter(|_| comes_after) {
                placed.flip(step);
                if known.insert((placed.clone(), next)) {
                    path.push((step, state));
                    timeline.take(step);
                    to_place -= usize::from(answered_ns.is_some());
                    (state, entry) = (next, timeline.next[0]);
                    continue;
                }
                placed.flip(step);
            }
            entry = timeline.next[entry];
            continue;
        }
        // An answer whose step is not placed, or the end: what was chosen so far leads nowhere.
        if best.1 == NONE || path.len() > best.0 {
            best = (path.len(), timeline.entries.get(entry).map_or(NONE, |(step, _)| *step));
        }
        entry = NONE;
        while let Some((step, before)) = path.pop() {
            timeline.put_back(step);
            placed.flip(step);
            to_place += usize::from(steps[step].answered_ns.is_some());
            state = before;
            // Whatever comes after a step that changed nothing could come after it too.
            if !steps[step].changes_nothing() {
                entry = timeline.next[timeline.places[step].0];
                break;
            }
        }
        if entry == NONE && path.is_empty() {
            return Err(refusal(history, &steps, best));
        }
    }
    Ok(())
}

/// The operation that had to be placed when the search had come furthest, and what was under way with it.
fn refusal(history: &[Operation], steps: &[Step], (placed, stuck): (usize, usize)) -> Refused {
    let stuck = history[steps[stuck].operation];
    let end_ns = |operation: &Operation| if let Outcome::Answered { at_ns, .. } = operation.outcome { at_ns } else { u64::MAX };
    let overlaps = |other: &&Operation| **other != stuck && other.called_ns <= end_ns(&stuck) && end_ns(other) >= stuck.called_ns;
    Refused::NotLinearizable { placed, stuck, others: history.iter().filter(overlaps).copied().collect() }
}
