//! Strong sections between workers: waiting, handing over, many fibers parked at once.

use super::script::{self, BUFFERS, Results, Script};
use super::{Engine, EngineOptions, Guest, Progress, Shard, Worker, load};
use crate::worker::ForkError;
use std::collections::VecDeque;
use xfaas_common::guest_abi::{NOT_FOUND, OK};

/// Adds one to the number at key "n", strongly, and spins for as many rounds as its body says in between.
const INCREMENT: &str = r#"(module
  (import "xfaas" "read_input" (func $input (param i32 i32 i32) (result i32)))
  (import "xfaas" "read_state" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "n\00")
  (func (export "handle") (result i32) (local $rounds i32)
    (i32.store (i32.const 16) (i32.const 0))
    (drop (call $input (i32.const 0) (i32.const 8) (i32.const 4)))
    (local.set $rounds (i32.load (i32.const 8)))
    (drop (call $read (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 1)))
    loop $round
      (local.set $rounds (i32.sub (local.get $rounds) (i32.const 1)))
      (br_if $round (i32.gt_s (local.get $rounds) (i32.const 0)))
    end
    (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
    (call $write (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 1))))"#;

/// A strong read of `key` and then, after `rounds`, a strong write.
fn section(key: &str, rounds: i32) -> Vec<u8> {
    let mut script = Script::new();
    let (key, value) = (script.key(key), script.data(b"v"));
    script.read(key, BUFFERS, 4, 1).spin(rounds).write(key, value, 1, 1).end(0)
}

#[test]
fn two_workers_take_turns_on_one_lock() {
    let mut shard = Shard::new();
    let (mut first, mut second) = (Guest::fork(script::program(), 1), Guest::fork(script::program(), 2));
    first.begin(&section("k", 5_000_000));
    assert_eq!(shard.poll(&mut first), Progress::SliceOver);
    assert_eq!(shard.invoke(&mut second, &section("k", 1)), Progress::Waiting);
    assert_eq!(shard.poll(&mut second), Progress::Waiting, "polled too early, it goes on waiting");
    assert_eq!(shard.run(&mut first), Progress::Finished(0));
    assert_eq!(Results::of(&mut first).first(), [NOT_FOUND, OK]);
    assert_eq!(first.granted(), [2]);
    assert_eq!(shard.run(&mut second), Progress::Finished(0));
    assert_eq!(Results::of(&mut second).first(), [1, OK]);
    assert!(second.granted().is_empty());
}

#[test]
fn a_strong_write_alone_waits_writes_and_releases() {
    let mut shard = Shard::new();
    let (mut holder, mut writer, mut reader) =
        (Guest::fork(script::program(), 1), Guest::fork(script::program(), 2), Guest::fork(script::program(), 3));
    holder.begin(&section("k", 5_000_000));
    assert_eq!(shard.poll(&mut holder), Progress::SliceOver);
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"two"));
    assert_eq!(shard.invoke(&mut writer, &script.write(key, value, 3, 1).spin(5_000_000).end(0)), Progress::Waiting);
    assert_eq!(shard.invoke(&mut reader, &section("k", 1)), Progress::Waiting);
    assert_eq!(shard.run(&mut holder), Progress::Finished(0));
    assert_eq!(holder.granted(), [2]);
    assert_eq!(shard.poll(&mut writer), Progress::SliceOver);
    assert_eq!(writer.granted(), [3], "released at once, not at the end of the call");
    assert_eq!(shard.run(&mut reader), Progress::Finished(0));
    assert_eq!(Results::of(&mut reader).first(), [3, OK]);
    assert_eq!(shard.run(&mut writer), Progress::Finished(0));
}

#[test]
fn a_call_re_enters_its_own_lock_and_one_write_ends_the_section() {
    let mut shard = Shard::new();
    let (mut first, mut second) = (Guest::fork(script::program(), 1), Guest::fork(script::program(), 2));
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"v"));
    let body = script.read(key, 0, 0, 1).read(key, 0, 0, 1).write(key, value, 1, 1).spin(5_000_000).end(0);
    first.begin(&body);
    assert_eq!(shard.poll(&mut first), Progress::SliceOver);
    assert_eq!(shard.invoke(&mut second, &section("k", 1)), Progress::Finished(0));
    assert_eq!(shard.run(&mut first), Progress::Finished(0));
}

#[test]
fn weak_access_neither_waits_nor_releases() {
    let mut shard = Shard::new();
    let (mut holder, mut other) = (Guest::fork(script::program(), 1), Guest::fork(script::program(), 2));
    holder.begin(&section("k", 5_000_000));
    assert_eq!(shard.poll(&mut holder), Progress::SliceOver);
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"weak"));
    let body = script.read(key, BUFFERS, 8, 0).write(key, value, 4, 0).read(key, BUFFERS, 8, 0).end(0);
    assert_eq!(shard.invoke(&mut other, &body), Progress::Finished(0));
    assert_eq!(Results::of(&mut other).first(), [NOT_FOUND, OK, 4]);
    assert_eq!(shard.state().locks.locks_held(), 1);
    assert_eq!(shard.run(&mut holder), Progress::Finished(0));
    // The holder's own weak write in an open section does not end it either.
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"v"));
    holder.begin(&script.read(key, 0, 0, 1).write(key, value, 1, 0).spin(5_000_000).end(0));
    assert_eq!(shard.poll(&mut holder), Progress::SliceOver);
    assert_eq!(shard.state().locks.locks_held(), 1);
    assert_eq!(shard.run(&mut holder), Progress::Finished(0));
    assert_eq!(shard.state().locks.locks_held(), 0);
}

#[test]
fn ten_workers_lose_no_strong_increment() {
    let program = load(INCREMENT);
    let mut shard = Shard::new();
    let mut guests: Vec<Guest> = (0..10).map(|token| Guest::fork(&program, token)).collect();
    let mut left = [100; 10];
    let mut waits = 0;
    for guest in &mut guests {
        guest.begin(&1i32.to_le_bytes());
    }
    let mut runnable: VecDeque<usize> = (0..10).collect();
    while let Some(at) = runnable.pop_front() {
        match shard.poll(&mut guests[at]) {
            Progress::Waiting => waits += 1,
            Progress::SliceOver => runnable.push_back(at),
            Progress::Finished(0) => {
                runnable.extend(guests[at].granted().into_iter().map(|token| token as usize));
                left[at] -= 1;
                if left[at] > 0 {
                    // Some long enough for their slice to end inside the section.
                    let rounds: i32 = if left[at] % 16 == 0 { 3_000_000 } else { 1 };
                    guests[at].begin(&rounds.to_le_bytes());
                    runnable.push_back(at);
                }
            }
            progress => panic!("{progress:?}"),
        }
        runnable.extend(guests[at].granted().into_iter().map(|token| token as usize));
    }
    assert_eq!(left, [0; 10]);
    assert!(waits > 50, "{waits} waits");
    assert_eq!(shard.value("alice", "n").unwrap(), 1_000u32.to_le_bytes());
}

#[test]
fn many_parked_workers_resume_in_any_order_and_may_be_dropped_instead() {
    const KEYS: usize = 64;
    let mut shard = Shard::new();
    let mut holders: Vec<Guest> = (0..KEYS).map(|i| Guest::fork(script::program(), i as u32)).collect();
    let mut waiters: Vec<Guest> = (0..KEYS).map(|i| Guest::fork(script::program(), (KEYS + i) as u32)).collect();
    for (i, holder) in holders.iter_mut().enumerate() {
        holder.begin(&section(&format!("k{i}"), 2_000_000));
        holder.call().deadline_ns = 60_000_000_000;
        assert_eq!(shard.poll(holder), Progress::SliceOver);
    }
    for (i, waiter) in waiters.iter_mut().enumerate() {
        assert_eq!(shard.invoke(waiter, &section(&format!("k{i}"), 1)), Progress::Waiting);
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
    let engine = Engine::new(&EngineOptions { workers_live_max: 2, tick_us: 200, ..EngineOptions::default() }).unwrap();
    let program = engine.load(&super::manifest(), &wat::parse_str(script::WAT).unwrap()).unwrap();
    for round in 0..40 {
        let mut shard = Shard::new();
        let (mut holder, mut waiter) = (Guest::fork(&program, 1), Guest::fork(&program, 2));
        assert!(matches!(Worker::fork(&program), Err(ForkError::PoolFull)));
        holder.begin(&section("k", 3_000_000));
        holder.call().deadline_ns = 60_000_000_000;
        assert_eq!(shard.poll(&mut holder), Progress::SliceOver);
        assert_eq!(shard.invoke(&mut waiter, &section("k", 1)), Progress::Waiting);
        if round % 2 == 0 {
            drop(waiter);
            drop(holder);
        }
    }
    assert_eq!(engine.workers_live(), 0);
}

#[test]
fn a_worker_moves_to_another_thread_between_polls() {
    let mut shard = Shard::new();
    let mut guest = Guest::fork(script::program(), 1);
    guest.begin(&Script::new().spin(3_000_000).end(0));
    assert_eq!(shard.poll(&mut guest), Progress::SliceOver);
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
    let (mut holder, mut waiter) = (Guest::fork(script::program(), 1), Guest::fork(&program, 2));
    holder.begin(&section("k", 3_000_000));
    assert_eq!(shard.poll(&mut holder), Progress::SliceOver);
    assert_eq!(shard.invoke(&mut waiter, b""), Progress::Waiting);
    assert_eq!(shard.run(&mut holder), Progress::Finished(0));
    assert_eq!(holder.granted(), [2]);
    assert_eq!(shard.run(&mut waiter), Progress::Finished(0));
    assert_eq!(shard.value("alice", "k").unwrap(), [0; 4]);
}
