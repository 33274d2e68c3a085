//! Cycles are found at once, whoever closes them, and cost nobody the locks they hold.

use crate::gate::{Gate, begin, cancelled, node, parked, results, run, value};
use crate::harness::Script;

/// Takes `first`, goes through the gate, wants `second`, and writes `first` whatever the answer.
fn through_gate(first: &str, gate: &str, second: &str, value: &[u8]) -> Vec<u8> {
    Script::new().read(first, 1).read(gate, 1).write(gate, b"", 1).read(second, 1).write(first, value, 1).end()
}

#[test]
fn two_keys_in_both_orders_cost_the_one_that_closes_the_cycle_its_wish_and_nobody_a_lock() {
    let node = node(2);
    for round in 1..=4 {
        let session = format!("s{round}");
        let gate = Gate::close(&node, &session, "gate");
        let mut one = begin(&node, "script", &session, &through_gate("a", "gate", "b", b"from one"));
        parked(&node, 1);
        let mut other = begin(&node, "script", &session, &Script::new().read("b", 1).read("a", 1).write("a", b"x", 1).end());
        parked(&node, 2);
        gate.open();
        assert_eq!(results(&one.reply()), [-1, -1, 0, -4, 0], "refused, and still holds what it held");
        assert_eq!(results(&other.reply()), [-1, 8, 0], "goes on once the first has written, and sees it");
        assert_eq!(value(&node, &session, "a").unwrap(), b"x");
        cancelled(&node, round);
    }
}

#[test]
fn a_cycle_of_three_is_refused_at_its_last_link() {
    let node = node(2);
    let gate = Gate::close(&node, "s", "gate");
    let mut first = begin(&node, "script", "s", &through_gate("a", "gate", "b", b"one"));
    parked(&node, 1);
    let mut third = begin(&node, "script", "s", &Script::new().read("c", 1).read("a", 1).write("c", b"three", 1).end());
    parked(&node, 2);
    let mut second = begin(&node, "script", "s", &Script::new().read("b", 1).read("c", 1).write("b", b"two", 1).end());
    parked(&node, 3);
    gate.open();
    assert_eq!(results(&first.reply()), [-1, -1, 0, -4, 0]);
    assert_eq!(results(&third.reply()), [-1, 3, 0], "a is free by then");
    assert_eq!(results(&second.reply()), [-1, 5, 0], "c is free by then");
    assert_eq!(run(&node, "s", Script::new().read("a", 1).read("b", 1).read("c", 1)), [3, 3, 5], "all are free");
}

#[test]
fn a_call_that_was_refused_may_try_again_and_again() {
    let node = node(2);
    let gate = Gate::close(&node, "s", "gate");
    let again = (0..10).fold(Script::new().read("a", 1).read("gate", 1), |script, _| script.read("b", 1).write("b", b"x", 1));
    let mut one = begin(&node, "script", "s", &again.end());
    parked(&node, 1);
    let mut other = begin(&node, "script", "s", &Script::new().read("b", 1).read("a", 1).end());
    parked(&node, 2);
    gate.open();
    let expected = [&[-1, -1][..], &[-4; 20]].concat();
    assert_eq!(results(&one.reply()), expected, "reads and writes are refused alike");
    assert_eq!(results(&other.reply()), [-1, -1]);
}

#[test]
fn a_strong_write_closes_a_cycle_as_a_read_does() {
    let node = node(2);
    let gate = Gate::close(&node, "s", "gate");
    let mut one = begin(&node, "script", "s", &Script::new().read("a", 1).read("gate", 1).write("b", b"x", 1).end());
    parked(&node, 1);
    let mut other = begin(&node, "script", "s", &Script::new().read("b", 1).write("a", b"from other", 1).read("b", 0).end());
    parked(&node, 2);
    gate.open();
    assert_eq!(results(&one.reply()), [-1, -1, -4]);
    assert_eq!(results(&other.reply()), [-1, 0, -1], "the refused write did not happen");
    assert_eq!(value(&node, "s", "a").unwrap(), b"from other");
}

#[test]
fn the_same_keys_of_two_sessions_are_no_cycle() {
    let node = node(2);
    let gates = [Gate::close(&node, "s", "gate"), Gate::close(&node, "t", "gate")];
    let mut clients = [
        begin(&node, "script", "s", &through_gate("a", "gate", "b", b"s")),
        begin(&node, "script", "t", &through_gate("b", "gate", "a", b"t")),
    ];
    parked(&node, 2);
    gates.into_iter().for_each(Gate::open);
    for client in &mut clients {
        assert_eq!(results(&client.reply()), [-1, -1, 0, -1, 0]);
    }
}
