//! The checker itself: histories that a simulated key made are accepted, spoiled ones refused, and on small histories it agrees with the
//! plain definition, tried order by order.

use super::checker::{Effect, Refused, State, apply, check};
use super::operation::{Action, Operation, Outcome};
use proptest::collection::vec;
use proptest::prelude::*;

const INITIAL: u64 = 0;

/// What a simulated key allows: numbers and weak writes do not go together.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Register,
    Counter,
    Swaps,
}

impl Kind {
    /// The `number`th operation, which writes a value of its own.
    fn action(self, choice: u8, number: usize) -> Action {
        let value = 1_000 + number as u64;
        match (self, choice % 8) {
            (Kind::Register, 0 | 1) | (Kind::Counter, 0..3) => Action::ReadWeak,
            (Kind::Register, 2 | 3) | (Kind::Counter, 3) => Action::ReadStrong,
            (Kind::Register, 4) => Action::WriteStrong(value),
            (Kind::Register, 5) => Action::WriteWeak(value),
            (Kind::Register | Kind::Swaps, _) => Action::Swap(value),
            (Kind::Counter, _) => Action::Increment,
        }
    }
}

/// A client in the middle of its operation.
struct Running {
    index: usize,
    /// What is still to happen at the key; after it the operation is answered.
    effects: Vec<Effect>,
    told: u64,
}

fn effects(action: Action) -> Vec<Effect> {
    match action {
        Action::ReadWeak => vec![Effect::Read],
        Action::ReadStrong => vec![Effect::ReadStrong],
        Action::WriteWeak(value) => vec![Effect::Write(value)],
        Action::WriteStrong(value) => vec![Effect::WriteStrong(value)],
        Action::Swap(value) => vec![Effect::Open, Effect::Close(value)],
        Action::Increment => vec![Effect::Increment],
    }
}

/// Runs `clients` against one right key, in the order that `choices` say. A choice of 250 and more takes a client's answer away: its
/// operation stops where it is, as in a crash.
fn simulate(kind: Kind, clients: usize, choices: &[u8]) -> Vec<Operation> {
    let mut history: Vec<Operation> = Vec::new();
    let mut running: Vec<Option<Running>> = (0..clients).map(|_| None).collect();
    let mut state = State { value: INITIAL, section: None };
    for (now, choice) in choices.iter().enumerate() {
        let (now_ns, client) = (10 * now as u64, usize::from(*choice) % clients);
        let Some(mut operation) = running[client].take() else {
            let action = kind.action(choice / clients as u8, history.len());
            running[client] = Some(Running { index: history.len(), effects: effects(action), told: 0 });
            history.push(Operation { action, called_ns: now_ns, outcome: Outcome::Unknown });
            continue;
        };
        if *choice >= 250 {
            if state.section == Some(operation.index) {
                state.section = None;
            }
            continue;
        }
        let Some(effect) = operation.effects.first().copied() else {
            history[operation.index].outcome = Outcome::Answered { at_ns: now_ns, value: operation.told };
            continue;
        };
        if let Some(next) = apply(state, effect, operation.index, None) {
            if matches!(effect, Effect::Read | Effect::ReadStrong | Effect::Open) {
                operation.told = state.value;
            }
            if effect == Effect::Increment {
                operation.told = next.value;
            }
            state = next;
            operation.effects.remove(0);
        }
        running[client] = Some(operation);
    }
    history
}

/// The definition: some order of all moments, in which one comes before another if its operation was answered before the other was
/// called, and each sees what those before it left. What has no answer may happen or not, and a crash may end its section.
fn is_linearizable(history: &[Operation]) -> bool {
    fn told(operation: &Operation) -> Option<u64> {
        if let Outcome::Answered { value, .. } = operation.outcome { Some(value) } else { None }
    }
    fn search(history: &[Operation], left: &mut [Vec<Effect>], state: State) -> bool {
        let is_due = |index: usize| matches!(history[index].outcome, Outcome::Answered { .. });
        if (0..history.len()).all(|index| left[index].is_empty() || !is_due(index)) {
            return true;
        }
        let crashed = state.section.filter(|section| !is_due(*section));
        if crashed.is_some() && search(history, left, State { section: None, ..state }) {
            return true;
        }
        let deadline = |index: usize| match history[index].outcome {
            Outcome::Answered { at_ns, .. } if !left[index].is_empty() => at_ns,
            _ => u64::MAX,
        };
        let first_answer_ns = (0..history.len()).map(deadline).min().unwrap_or(u64::MAX);
        for index in 0..history.len() {
            let Some(effect) = left[index].first().copied() else { continue };
            let sees = match effect {
                Effect::Read | Effect::ReadStrong | Effect::Open | Effect::Increment => told(&history[index]),
                _ => None,
            };
            if history[index].called_ns > first_answer_ns {
                continue;
            }
            if let Some(next) = apply(state, effect, index, sees) {
                let effect = left[index].remove(0);
                let found = search(history, left, next);
                left[index].insert(0, effect);
                if found {
                    return true;
                }
            }
        }
        false
    }
    let mut left: Vec<Vec<Effect>> = history.iter().map(|operation| effects(operation.action)).collect();
    search(history, &mut left, State { value: INITIAL, section: None })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Register), Just(Kind::Counter), Just(Kind::Swaps)]
}

/// Gives one answered operation, chosen by `which`, another value. Output: false when none reads anything.
fn spoil(history: &mut [Operation], which: usize, value: u64) -> bool {
    let reads = |operation: &Operation| !matches!(operation.action, Action::WriteWeak(_) | Action::WriteStrong(_));
    let mut answered: Vec<&mut Operation> =
        history.iter_mut().filter(|operation| reads(operation) && operation.outcome != Outcome::Unknown).collect();
    let count = answered.len();
    if count == 0 {
        return false;
    }
    if let Outcome::Answered { value: told, .. } = &mut answered[which % count].outcome {
        *told = value;
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn histories_of_a_right_key_are_accepted(kind in kind(), clients in 1_usize..9, choices in vec(any::<u8>(), 0..2_000)) {
        let history = simulate(kind, clients, &choices);
        prop_assert!(check(INITIAL, &history).is_ok(), "{history:?}");
    }

    #[test]
    fn a_value_that_nobody_wrote_is_refused(kind in kind(), clients in 1_usize..9, choices in vec(any::<u8>(), 0..1_000), which: usize) {
        let mut history = simulate(kind, clients, &choices);
        prop_assume!(spoil(&mut history, which, 999_999));
        let refused = check(INITIAL, &history);
        prop_assert!(matches!(refused, Err(Refused::NotLinearizable { .. })), "{refused:?} {history:?}");
    }

    #[test]
    fn two_swaps_that_saw_the_same_value_are_refused(clients in 1_usize..9, choices in vec(any::<u8>(), 50..1_000), which in 0_usize..1_000) {
        let mut history = simulate(Kind::Swaps, clients, &choices);
        let told = |operation: &Operation| if let Outcome::Answered { value, .. } = operation.outcome { Some(value) } else { None };
        let values: Vec<u64> = history.iter().filter_map(told).collect();
        prop_assume!(values.len() >= 2);
        let value = values[(which + 1) % values.len()];
        spoil(&mut history, which % values.len(), value);
        prop_assert!(check(INITIAL, &history).is_err());
    }

    #[test]
    fn the_verdict_on_a_small_history_is_that_of_the_definition(
        kind in kind(), clients in 1_usize..5, choices in vec(any::<u8>(), 0..28), which: usize, value in 0_u64..8,
    ) {
        let mut history = simulate(kind, clients, &choices);
        history.truncate(7);
        let right = is_linearizable(&history);
        prop_assert_eq!(check(INITIAL, &history).is_ok(), right, "{:?}", &history);
        // Spoiled with a value that is there: it may still be right.
        let value = if let Kind::Counter = kind { value } else { 1_000 + value };
        if spoil(&mut history, which, value) {
            prop_assert_eq!(check(INITIAL, &history).is_ok(), is_linearizable(&history), "{:?}", &history);
        }
    }
}

fn operation(action: Action, called_ns: u64, at_ns: u64, value: u64) -> Operation {
    Operation { action, called_ns, outcome: Outcome::Answered { at_ns, value } }
}

#[test]
fn a_read_may_not_go_back_in_time() {
    let write = operation(Action::WriteWeak(5), 0, 100, 0);
    let [new, old] = [operation(Action::ReadWeak, 10, 20, 5), operation(Action::ReadWeak, 30, 40, INITIAL)];
    assert!(check(INITIAL, &[write, new]).is_ok());
    assert!(check(INITIAL, &[write, old]).is_ok());
    assert!(check(INITIAL, &[write, new, old]).is_err());
}

#[test]
fn a_lost_increment_is_refused() {
    let [a, b] = [operation(Action::Increment, 0, 10, 1), operation(Action::Increment, 5, 15, 1)];
    assert!(check(INITIAL, &[a, b]).is_err());
    assert!(check(INITIAL, &[a, Operation { outcome: Outcome::Unknown, ..b }]).is_ok());
}

/// Histories are put together client by client.
#[test]
fn increments_without_an_answer_are_taken_by_time_whoever_made_them() {
    let lost = |called_ns| Operation { action: Action::Increment, called_ns, outcome: Outcome::Unknown };
    let counted = operation(Action::Increment, 20, 30, 2);
    for history in [[lost(10), lost(50), counted], [lost(50), lost(10), counted]] {
        assert!(check(INITIAL, &history).is_ok(), "{history:?}");
    }
    assert!(check(INITIAL, &[lost(50), counted, lost(31)]).is_err(), "neither had been called");
}

#[test]
fn a_weak_write_may_fall_into_a_section_and_a_strong_one_may_not() {
    // The swap read the first value and its write came last: the other write fell in between.
    let swap = operation(Action::Swap(7), 0, 100, INITIAL);
    let [before, after] = [operation(Action::ReadWeak, 10, 20, 5), operation(Action::ReadWeak, 110, 120, 7)];
    let between = operation(Action::ReadWeak, 1, 2, INITIAL);
    let history = |action| [between, operation(action, 3, 9, 0), swap, before, after];
    assert!(check(INITIAL, &history(Action::WriteWeak(5))).is_ok());
    assert!(check(INITIAL, &history(Action::WriteStrong(5))).is_err());
}

#[test]
fn what_was_acknowledged_outlives_a_crash() {
    let lost = Operation { action: Action::WriteWeak(6), called_ns: 50, outcome: Outcome::Unknown };
    let write = operation(Action::WriteWeak(5), 0, 10, 0);
    for (told, is_right) in [(5, true), (6, true), (INITIAL, false)] {
        let history = [write, lost, operation(Action::ReadWeak, 60, 70, told)];
        assert_eq!(check(INITIAL, &history).is_ok(), is_right, "{told}");
    }
}
