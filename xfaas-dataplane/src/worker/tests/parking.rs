//! Strong sections between workers: waiting, handing over, many fibers parked at once.

use super::script::{self, BUFFERS, Results, Script};
use super::{Engine, EngineOptions, GATEKEEPER, Guest, Program, Progress, Shard, Worker, gate, load};
use crate::state::Acquire;
use crate::worker::ForkError;
use std::collections::VecDeque;
use xfaas_common::guest_abi::{NOT_FOUND, OK, OVER_LIMIT};

/// Adds one to the number at key "n", strongly; if its body is not zero, it waits for the gate in between.
const INCREMENT: &str = r#"(module
  (import "xfaas" "read_input" (func $input (param i32 i32 i32) (result i32)))
  (import "xfaas" "read_state" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "n\00") (data (i32.const 4) "gate\00")
  (func (export "handle") (result i32)
    (i32.store (i32.const 16) (i32.const 0))
    (drop (call $input (i32.const 0) (i32.const 12) (i32.const 4)))
    (drop (call $read (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 1)))
    (if (i32.load (i32.const 12)) (then (drop (call $read (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 1)))))
    (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
    (call $write (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 1))))"#;

/// A strong read of `key` and then a strong write, without a wait in between.
fn section(key: &str) -> Vec<u8> {
    let mut script = Script::new();
    let (key, value) = (script.key(key), script.data(b"v"));
    script.read(key, BUFFERS, 4, 1).write(key, value, 1, 1).end(0)
}

/// The same, waiting for `gate` in between.
fn gated(key: &str, gate: &str) -> Vec<u8> {
    let mut script = Script::new();
    let (key, value) = (script.key(key), script.data(b"v"));
    script.read(key, BUFFERS, 4, 1).pass(gate).write(key, value, 1, 1).end(0)
}

/// A worker that holds `key` until `gate` is opened.
fn holder(shard: &mut Shard, program: &Program, token: u32, key: &str, gate: &str) -> Guest {
    let mut guest = Guest::fork(program, token);
    shard.close_gate(gate);
    assert_eq!(shard.invoke(&mut guest, &gated(key, gate)), Progress::Waiting);
    guest
}

#[test]
fn two_workers_take_turns_on_one_lock() {
    let mut shard = Shard::new();
    let mut first = holder(&mut shard, script::program(), 1, "k", "gate");
    let mut second = Guest::fork(script::program(), 2);
    assert_eq!(shard.invoke(&mut second, &section("k")), Progress::Waiting);
    assert_eq!(shard.poll(&mut second), Progress::Waiting, "polled too early, it goes on waiting");
    assert_eq!(shard.open_gate("gate"), Some(1));
    assert_eq!(shard.run(&mut first), Progress::Finished(0));
    assert_eq!(Results::of(&mut first).first(), [NOT_FOUND, NOT_FOUND, OK]);
    assert_eq!(first.granted(), [2]);
    assert_eq!(shard.run(&mut second), Progress::Finished(0));
    assert_eq!(Results::of(&mut second).first(), [1, OK]);
    assert!(second.granted().is_empty());
}

#[test]
fn a_strong_write_alone_waits_writes_and_releases() {
    let mut shard = Shard::new();
    let mut first = holder(&mut shard, script::program(), 1, "k", "g1");
    let (mut writer, mut reader) = (Guest::fork(script::program(), 2), Guest::fork(script::program(), 3));
    shard.close_gate("g2");
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"two"));
    assert_eq!(shard.invoke(&mut writer, &script.write(key, value, 3, 1).pass("g2").end(0)), Progress::Waiting);
    assert_eq!(shard.invoke(&mut reader, &section("k")), Progress::Waiting);
    assert_eq!(shard.open_gate("g1"), Some(1));
    assert_eq!(shard.run(&mut first), Progress::Finished(0));
    assert_eq!(first.granted(), [2]);
    assert_eq!(shard.run(&mut writer), Progress::Waiting, "for the second gate");
    assert_eq!(writer.granted(), [3], "released at once, not at the end of the call");
    assert_eq!(shard.run(&mut reader), Progress::Finished(0));
    assert_eq!(Results::of(&mut reader).first(), [3, OK]);
    assert_eq!(shard.open_gate("g2"), Some(2));
    assert_eq!(shard.run(&mut writer), Progress::Finished(0));
}

#[test]
fn a_call_re_enters_its_own_lock_and_one_write_ends_the_section() {
    let mut shard = Shard::new();
    let (mut first, mut second) = (Guest::fork(script::program(), 1), Guest::fork(script::program(), 2));
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"v"));
    shard.close_gate("gate");
    let body = script.read(key, 0, 0, 1).read(key, 0, 0, 1).write(key, value, 1, 1).pass("gate").end(0);
    assert_eq!(shard.invoke(&mut first, &body), Progress::Waiting);
    assert_eq!(shard.invoke(&mut second, &section("k")), Progress::Finished(0));
    assert_eq!(shard.open_gate("gate"), Some(1));
    assert_eq!(shard.run(&mut first), Progress::Finished(0));
}

#[test]
fn weak_access_neither_waits_nor_releases() {
    let mut shard = Shard::new();
    let mut first = holder(&mut shard, script::program(), 1, "k", "gate");
    let mut other = Guest::fork(script::program(), 2);
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"weak"));
    let body = script.read(key, BUFFERS, 8, 0).write(key, value, 4, 0).read(key, BUFFERS, 8, 0).end(0);
    assert_eq!(shard.invoke(&mut other, &body), Progress::Finished(0));
    assert_eq!(Results::of(&mut other).first(), [NOT_FOUND, OK, 4]);
    assert_eq!(shard.state().locks.locks_held(), 2);
    assert_eq!(shard.open_gate("gate"), Some(1));
    assert_eq!(shard.run(&mut first), Progress::Finished(0));
    // The holder's own weak write in an open section does not end it either.
    shard.close_gate("gate");
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"v"));
    let body = script.read(key, 0, 0, 1).write(key, value, 1, 0).pass("gate").end(0);
    assert_eq!(shard.invoke(&mut first, &body), Progress::Waiting);
    assert_eq!(shard.state().locks.locks_held(), 2);
    assert_eq!(shard.open_gate("gate"), Some(1));
    assert_eq!(shard.run(&mut first), Progress::Finished(0));
    assert_eq!(shard.state().locks.locks_held(), 0);
}

#[test]
fn ten_workers_lose_no_strong_increment() {
    let program = load(INCREMENT);
    let mut shard = Shard::new();
    let mut guests: Vec<Guest> = (0..10).map(|token| Guest::fork(&program, token)).collect();
    let mut left = [100u32; 10];
    let mut waits = 0;
    shard.close_gate("gate");
    for guest in &mut guests {
        guest.begin(&1u32.to_le_bytes());
    }
    let mut runnable: VecDeque<usize> = (0..10).collect();
    loop {
        let Some(at) = runnable.pop_front() else {
            // All wait: one for the gate inside its section, the others for that section.
            let Some(next) = shard.open_gate("gate") else { break };
            runnable.push_back(next as usize);
            // Behind that call, so that the gate is closed again when it is over.
            assert_eq!(shard.state().locks.acquire(&gate("gate"), GATEKEEPER), Acquire::Waiting);
            continue;
        };
        let guest = &mut guests[at];
        let progress = shard.poll(guest);
        runnable.extend(guest.granted().into_iter().filter(|token| *token != GATEKEEPER.0).map(|token| token as usize));
        match progress {
            Progress::Waiting => waits += 1,
            Progress::SliceOver => runnable.push_back(at),
            Progress::Finished(0) => {
                left[at] -= 1;
                if left[at] > 0 {
                    guest.begin(&u32::from(left[at].is_multiple_of(4)).to_le_bytes());
                    runnable.push_back(at);
                }
            }
            progress => panic!("{progress:?}"),
        }
    }
    assert_eq!(left, [0; 10]);
    assert!(waits > 1_000, "{waits} waits");
    assert_eq!(shard.value("alice", "n").unwrap(), 1_000u32.to_le_bytes());
}

#[test]
fn many_parked_workers_resume_in_any_order_and_may_be_dropped_instead() {
    const KEYS: usize = 64;
    let mut shard = Shard::new();
    let program = script::program();
    let mut holders: Vec<Guest> = (0..KEYS).map(|i| holder(&mut shard, program, i as u32, &format!("k{i}"), &format!("g{i}"))).collect();
    let mut waiters: Vec<Guest> = (0..KEYS).map(|i| Guest::fork(program, (KEYS + i) as u32)).collect();
    for (i, waiter) in waiters.iter_mut().enumerate() {
        assert_eq!(shard.invoke(waiter, &section(&format!("k{i}"))), Progress::Waiting);
    }
    // 37 has no divisor in common with 64: every index once, far from last in, first out.
    for i in (0..KEYS).map(|i| i * 37 % KEYS) {
        if i % 5 == 0 {
            // The session proxy gives up on it: the worker goes, its wait is cancelled.
            let waiter = &mut waiters[i];
            waiter.worker = None;
            let call = waiter.call.as_mut().unwrap();
            shard.state().locks.release_all(call.token, &mut call.granted);
            assert!(call.granted.is_empty());
        }
        assert_eq!(shard.open_gate(&format!("g{i}")), Some(i as u32));
        assert_eq!(shard.run(&mut holders[i]), Progress::Finished(0));
        let expected: &[u32] = if i % 5 == 0 { &[] } else { &[(KEYS + i) as u32] };
        assert_eq!(holders[i].granted(), expected);
    }
    for i in (0..KEYS).map(|i| i * 11 % KEYS).filter(|i| i % 5 != 0) {
        assert_eq!(shard.run(&mut waiters[i]), Progress::Finished(0));
        assert_eq!(Results::of(&mut waiters[i]).first(), [1, OK]);
    }
    assert_eq!(shard.state().locks.locks_held(), 0);
}

#[test]
fn a_worker_dropped_in_a_call_gives_its_place_back() {
    let engine = Engine::new(&EngineOptions { workers_live_max: 2, ..EngineOptions::default() }).unwrap();
    let program = engine.load(&super::manifest(), &wat::parse_str(script::WAT).unwrap()).unwrap();
    for round in 0..40 {
        let mut shard = Shard::new();
        let first = holder(&mut shard, &program, 1, "k", "gate");
        let mut waiter = Guest::fork(&program, 2);
        assert!(matches!(Worker::fork(&program), Err(ForkError::PoolFull)));
        assert_eq!(shard.invoke(&mut waiter, &section("k")), Progress::Waiting);
        if round % 2 == 0 {
            drop(first);
            drop(waiter);
        }
    }
    assert_eq!(engine.workers_live(), 0);
}

#[test]
fn workers_whose_memories_do_not_fit_together_are_refused_and_the_next_fits_when_one_is_gone() {
    let engine = Engine::new(&EngineOptions { workers_live_max: 64, guest_memory_mib: 1, ..EngineOptions::default() }).unwrap();
    let program = engine.load(&super::manifest(), &wat::parse_str(script::WAT).unwrap()).unwrap();
    let one = Worker::fork(&program).unwrap();
    let (bytes, bytes_max) = engine.guest_memory_bytes();
    let mut others: Vec<Worker> = (1..bytes_max / bytes).map(|_| Worker::fork(&program).unwrap()).collect();
    assert!(matches!(Worker::fork(&program), Err(ForkError::PoolFull)) && engine.is_short_of_memory());
    drop(one);
    others.push(Worker::fork(&program).unwrap());
    engine.load(&super::manifest(), &wat::parse_str(script::WAT).unwrap()).expect("it is loaded beside the limit");
    drop(others);
    assert_eq!((engine.guest_memory_bytes(), engine.workers_live()), ((0, 1 << 20), 0));
}

#[test]
fn what_atomic_calls_keep_is_of_the_memory_of_all_guests_and_goes_back_when_they_end() {
    let engine = Engine::new(&EngineOptions { workers_live_max: 64, guest_memory_mib: 1, ..EngineOptions::default() }).unwrap();
    let program = engine.load(&super::manifest(), &wat::parse_str(script::WAT).unwrap()).unwrap();
    let (mut shard, mut guest) = (Shard::new(), Guest::fork(&program, 1));
    guest.manifest.atomic = true;
    let (idle, _) = engine.guest_memory_bytes();
    for end in [0, 7, 0] {
        // The guest itself has a quarter of the MiB: three of these fit beside it.
        let mut script = Script::new();
        let keys: Vec<i32> = (0..4).map(|number| script.key(&format!("key{number}"))).collect();
        let script = keys.iter().fold(script, |script, key| script.write(*key, 0, 200 << 10, 0)).write(keys[3], 0, 9, 0);
        assert_eq!(shard.invoke(&mut guest, &script.end(end)), Progress::Finished(end));
        assert_eq!(Results::of(&mut guest).first(), [0, 0, 0, OVER_LIMIT, 0]);
        assert_eq!(engine.guest_memory_bytes().0, idle);
    }
    assert_eq!(shard.value("alice", "key2").unwrap().len(), 200 << 10);
}

#[test]
fn a_worker_moves_to_another_thread_between_polls() {
    let mut shard = Shard::new();
    let mut guest = holder(&mut shard, script::program(), 1, "k", "gate");
    shard.open_gate("gate");
    std::thread::spawn(move || assert_eq!(shard.run(&mut guest), Progress::Finished(0))).join().unwrap();
}

#[test]
fn imports_reached_through_a_table_or_a_reference_park_as_well() {
    // Calls read_state through a table entry and write_state through a global's function reference put in the table at run time.
    let program = load(
        r#"(module
          (type $state (func (param i32 i32 i32 i32) (result i32)))
          (import "xfaas" "write_state" (func $write (type $state)))
          (import "xfaas" "read_state" (func $read (type $state)))
          (memory (export "memory") 1)
          (data (i32.const 0) "k\00")
          (table $table 2 funcref)
          (elem (i32.const 0) func $read)
          (global $late funcref (ref.func $write))
          (export "write_again" (func $write))
          (func (export "handle") (result i32)
            (table.set (i32.const 1) (global.get $late))
            (drop (call_indirect (type $state) (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 1) (i32.const 0)))
            (call_indirect (type $state) (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 1) (i32.const 1))))"#,
    );
    let mut shard = Shard::new();
    let mut first = holder(&mut shard, script::program(), 1, "k", "gate");
    let mut waiter = Guest::fork(&program, 2);
    assert_eq!(shard.invoke(&mut waiter, b""), Progress::Waiting);
    assert_eq!(shard.open_gate("gate"), Some(1));
    assert_eq!(shard.run(&mut first), Progress::Finished(0));
    assert_eq!(first.granted(), [2]);
    assert_eq!(shard.run(&mut waiter), Progress::Finished(0));
    assert_eq!(shard.value("alice", "k").unwrap(), b"v\0\0\0", "what it read, written back in full");
}
