//! The lock table against a plain model, and the order in which waiters are served.

use std::collections::{HashMap, HashSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::CALL_LOCKS_MAX;

use super::{Acquire, CallToken, LockKey, LockTable};

const SESSIONS: [&str; 2] = ["one", "two"];

fn with_key<T>(number: u8, run: impl FnOnce(&LockKey<'_>) -> T) -> T {
    let session = SessionId::new(SESSIONS[usize::from(number) % 2].as_bytes()).unwrap();
    run(&LockKey { app: u16::from(number / 2 % 2), session: &session, key: &[b'k', number / 4] })
}

/// Holder and queue of each lock.
#[derive(Default)]
struct Model(HashMap<u8, (u32, VecDeque<u32>)>);

impl Model {
    fn waits_for(&self, call: u32) -> Option<u8> {
        self.0.iter().find(|(_, (_, queue))| queue.contains(&call)).map(|(key, _)| *key)
    }

    /// Everyone that `call` would wait for, queue neighbours ahead included.
    fn would_close_a_cycle(&self, key: u8, call: u32) -> bool {
        let (mut pending, mut reached) = (vec![(key, None)], HashSet::new());
        while let Some((key, from)) = pending.pop() {
            let (holder, queue) = &self.0[&key];
            let ahead = queue.iter().take_while(|waiter| Some(**waiter) != from);
            for other in std::iter::once(holder).chain(ahead) {
                if *other == call {
                    return true;
                }
                if let (true, Some(next)) = (reached.insert(*other), self.waits_for(*other)) {
                    pending.push((next, Some(*other)));
                }
            }
        }
        false
    }

    fn acquire(&mut self, key: u8, call: u32) -> Acquire {
        let Some((holder, _)) = self.0.get(&key) else {
            self.0.insert(key, (call, VecDeque::new()));
            return Acquire::Granted;
        };
        if *holder == call {
            return Acquire::Held;
        }
        if self.would_close_a_cycle(key, call) {
            return Acquire::Deadlock;
        }
        self.0.get_mut(&key).unwrap().1.push_back(call);
        Acquire::Waiting
    }

    fn release(&mut self, key: u8, call: u32) -> Option<u32> {
        let (holder, queue) = self.0.get_mut(&key)?;
        if *holder != call {
            return None;
        }
        let next = queue.pop_front();
        match next {
            Some(next) => *holder = next,
            None => _ = self.0.remove(&key),
        }
        next
    }

    fn cancel(&mut self, call: u32) -> bool {
        let waited = self.waits_for(call);
        if let Some(key) = waited {
            self.0.get_mut(&key).unwrap().1.retain(|waiter| *waiter != call);
        }
        waited.is_some()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Acquire(u8, u32),
    Release(u8, u32),
    Cancel(u32),
    End(u32),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (0u8..12, 0u32..8).prop_map(|(key, call)| Op::Acquire(key, call)),
        4 => (0u8..12, 0u32..8).prop_map(|(key, call)| Op::Release(key, call)),
        1 => (0u32..8).prop_map(Op::Cancel),
        1 => (0u32..8).prop_map(Op::End),
    ]
}

fn check(table: &LockTable, model: &Model) {
    assert_eq!(table.locks_held(), model.0.len());
    for key in 0..4 {
        // Keys of one session of one app are four apart.
        let is_locked = model.0.keys().any(|locked| locked % 4 == key);
        assert_eq!(with_key(key, |key| table.has_locks_of(key.app, key.session)), is_locked);
    }
    for call in 0..8 {
        assert_eq!(table.is_waiting(CallToken(call)), model.waits_for(call).is_some());
        for key in 0..12 {
            let is_holder = model.0.get(&key).is_some_and(|(holder, _)| *holder == call);
            assert_eq!(with_key(key, |key| table.holds(key, CallToken(call))), is_holder);
        }
    }
}

fn apply(table: &mut LockTable, model: &mut Model, op: &Op) {
    let mut granted = Vec::new();
    match *op {
        Op::Acquire(_, call) if table.is_waiting(CallToken(call)) => {} // a call that waits does not run
        Op::Acquire(key, call) => {
            let answer = with_key(key, |key| table.acquire(key, CallToken(call)));
            assert_eq!(answer, model.acquire(key, call));
        }
        Op::Release(key, call) => {
            with_key(key, |key| table.release(key, CallToken(call), &mut granted));
            let expected: Vec<_> = model.release(key, call).map(CallToken).into_iter().collect();
            assert_eq!(granted, expected);
        }
        Op::Cancel(call) => assert_eq!(table.cancel_wait(CallToken(call)), model.cancel(call)),
        Op::End(call) => {
            table.release_all(CallToken(call), &mut granted);
            model.cancel(call);
            let held: Vec<u8> = model.0.iter().filter(|(_, (holder, _))| *holder == call).map(|(key, _)| *key).collect();
            let mut expected: Vec<_> = held.into_iter().filter_map(|key| model.release(key, call)).map(CallToken).collect();
            expected.sort();
            granted.sort();
            assert_eq!(granted, expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn lock_table_matches_a_plain_model(ops in vec(any_op(), 0..200)) {
        let (mut table, mut model) = (LockTable::new(), Model::default());
        for op in &ops {
            apply(&mut table, &mut model, op);
            check(&table, &model);
        }
        for call in 0..8 {
            apply(&mut table, &mut model, &Op::End(call));
        }
        prop_assert_eq!(table.locks_held(), 0);
    }
}

#[test]
fn thirty_two_waiters_are_served_in_the_order_they_came() {
    let mut table = LockTable::new();
    let mut granted = Vec::new();
    with_key(0, |key| {
        assert_eq!(table.acquire(key, CallToken(100)), Acquire::Granted);
        for call in 0..32 {
            assert_eq!(table.acquire(key, CallToken(call)), Acquire::Waiting);
        }
        assert_eq!(table.acquire(key, CallToken(100)), Acquire::Held, "re-enters before those who wait");
        table.release(key, CallToken(100), &mut granted);
        for call in 0..32 {
            assert_eq!(granted.last(), Some(&CallToken(call)));
            assert!(table.holds(key, CallToken(call)));
            assert_eq!(table.acquire(key, CallToken(200 + call)), Acquire::Waiting, "a newcomer does not overtake");
            table.release_all(CallToken(call), &mut granted);
        }
        assert_eq!(granted.last(), Some(&CallToken(200)));
    });
}

#[test]
fn two_keys_in_both_orders_refuse_the_newcomer_and_let_it_keep_its_lock() {
    let mut table = LockTable::new();
    let mut granted = Vec::new();
    let (first, second) = (CallToken(1), CallToken(2));
    with_key(0, |a| {
        with_key(4, |b| {
            assert_eq!(table.acquire(a, first), Acquire::Granted);
            assert_eq!(table.acquire(b, second), Acquire::Granted);
            assert_eq!(table.acquire(b, first), Acquire::Waiting);
            assert_eq!(table.acquire(a, second), Acquire::Deadlock);
            assert!(table.holds(b, second) && !table.is_waiting(second));
            table.release(b, second, &mut granted);
            assert_eq!(granted, [first]);
            assert!(table.holds(a, first) && table.holds(b, first));
            assert_eq!(table.acquire(a, second), Acquire::Waiting);
        });
    });
}

#[test]
fn a_call_cannot_lock_without_end_and_slots_are_used_again() {
    let mut table = LockTable::new();
    let session = SessionId::new(b"s").unwrap();
    let mut granted = Vec::new();
    for _ in 0..3 {
        for number in 0..CALL_LOCKS_MAX as u32 {
            let key = number.to_le_bytes();
            assert_eq!(table.acquire(&LockKey { app: 0, session: &session, key: &key }, CallToken(1)), Acquire::Granted);
        }
        assert_eq!(table.acquire(&LockKey { app: 0, session: &session, key: b"more" }, CallToken(1)), Acquire::Full);
        table.release_all(CallToken(1), &mut granted);
        assert_eq!(table.locks_held(), 0);
    }
    assert!(granted.is_empty());
}

#[test]
fn a_table_that_grows_keeps_every_lock_and_call() {
    let session = SessionId::new(b"s").unwrap();
    let names: Vec<String> = (0..1_000).map(|number| format!("key-{number}")).collect();
    let key_of = |number: usize| LockKey { app: 0, session: &session, key: names[number].as_bytes() };
    let (mut table, mut granted) = (LockTable::new(), Vec::new());
    // Twice: the second time in slots that held longer keys.
    for _ in 0..2 {
        for number in (0..1_000).rev() {
            assert_eq!(table.acquire(&key_of(number), CallToken(number as u32 / 2)), Acquire::Granted);
            assert_eq!(table.acquire(&key_of(number), CallToken(2_000 + number as u32)), Acquire::Waiting);
        }
        assert!((0..1_000).all(|number| table.holds(&key_of(number), CallToken(number as u32 / 2))));
        (0..500).for_each(|call| table.release_all(CallToken(call), &mut granted));
        assert_eq!(granted.len(), 1_000);
        assert!((0..1_000).all(|number| table.holds(&key_of(number), CallToken(2_000 + number as u32))));
        granted.drain(..).for_each(|call| table.release_all(call, &mut Vec::new()));
        assert_eq!(table.locks_held(), 0);
        assert!((0..3_000).all(|call| !table.knows(CallToken(call))));
    }
}
