//! Guests that mean harm: each costs its own invocation a clear end, and nobody else anything.

use super::script::{self, MEMORY, Results, Script};
use super::{FunctionManifest, Guest, Progress, Shard, load, load_with, manifest};
use crate::worker::TrapKind;
use std::time::{Duration, Instant};

/// Runs a function body `() -> i32` in a fresh worker with a table of two empty entries and one page of memory.
fn run(body: &str) -> Progress {
    let program = load(&format!(
        r#"(module (type $unary (func (param i32) (result i32))) (table 2 funcref) (memory (export "memory") 1)
          (func $handle (export "handle") (result i32) {body})
          (func $recurse (param i32) (result i32) (i32.add (i32.const 1) (call $recurse (local.get 0))))
          (func $other (result i32) (i32.const 0))
          (elem (i32.const 1) func $other))"#
    ));
    Shard::new().invoke(&mut Guest::fork(&program, 1), b"")
}

#[test]
fn each_trap_has_its_name() {
    for (body, kind) in [
        ("unreachable", TrapKind::Unreachable),
        ("(i32.load (i32.const 65533))", TrapKind::MemoryOutOfBounds),
        ("(i32.load offset=0xffffffff (i32.const -1))", TrapKind::MemoryOutOfBounds),
        ("(i32.div_s (i32.const 1) (i32.const 0))", TrapKind::DivisionByZero),
        ("(i32.div_s (i32.const 0x80000000) (i32.const -1))", TrapKind::IntegerOverflow),
        ("(i32.trunc_f32_s (f32.const nan))", TrapKind::BadConversion),
        ("(call_indirect (type $unary) (i32.const 0) (i32.const 0))", TrapKind::BadIndirectCall),
        ("(call_indirect (type $unary) (i32.const 0) (i32.const 1))", TrapKind::BadIndirectCall),
        ("(call_indirect (type $unary) (i32.const 0) (i32.const 9))", TrapKind::TableOutOfBounds),
        ("(call $recurse (i32.const 0))", TrapKind::StackOverflow),
    ] {
        assert_eq!(run(body), Progress::Trapped(kind), "{body}");
    }
}

#[test]
fn a_guest_that_spins_is_stopped_at_its_deadline_and_yields_on_the_way() {
    let mut shard = Shard::new();
    let mut guest = Guest::fork(script::program(), 1);
    guest.manifest.deadline_ms = 50;
    guest.begin(&Script::new().spin(0).end(0));
    let started = Instant::now();
    let (mut slices, mut progress) = (0, Progress::SliceOver);
    while progress == Progress::SliceOver {
        progress = shard.poll(&mut guest);
        slices += 1;
    }
    let took = started.elapsed();
    assert_eq!(progress, Progress::DeadlinePassed);
    assert!(slices > 2, "{slices} slices of 0.2 ms in 50 ms");
    assert!((Duration::from_millis(50)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

#[test]
fn one_long_operation_on_memory_takes_many_slices() {
    let program = load_with(
        &FunctionManifest { memory_mib: 64, ..manifest() },
        r#"(module (memory (export "memory") 1024) (func (export "handle") (result i32)
          (memory.fill (i32.const 0) (i32.const 7) (i32.const 0x2000000))
          (memory.copy (i32.const 0x2000000) (i32.const 0) (i32.const 0x2000000))
          (i32.load8_u (i32.const 0x3ffffff))))"#,
    );
    let (mut shard, mut guest) = (Shard::new(), Guest::fork(&program.unwrap(), 1));
    guest.begin(b"");
    let (mut slices, mut progress) = (0, Progress::SliceOver);
    while progress == Progress::SliceOver {
        progress = shard.poll(&mut guest);
        slices += 1;
    }
    assert_eq!(progress, Progress::Finished(7));
    // Each check that meets an operation is one; 64 MiB are touched for the first time, which takes many times 0.2 ms.
    assert!(slices > 8, "{slices} slices");
}

#[test]
fn waiting_for_a_lock_does_not_count_towards_the_deadline() {
    let mut shard = Shard::new();
    let mut guest = Guest::fork(script::program(), 1);
    guest.begin(&Script::new().spin(2_000_000).end(0));
    let call = guest.call();
    // Many deadlines, and less than the machine has been up: the clock counts from its start.
    call.started_ns -= 20_000_000_000;
    call.waited_ns = 20_000_000_000;
    assert_eq!(shard.run(&mut guest), Progress::Finished(0));
    guest.begin(&Script::new().spin(0).end(0));
    guest.call().started_ns -= 5_000_000_000;
    assert_eq!(shard.run(&mut guest), Progress::DeadlinePassed);
}

#[test]
fn a_guest_that_grows_without_end_is_refused_by_its_limit() {
    let mut shard = Shard::new();
    // 8 MiB are 128 pages, of which it has four.
    let results = script::run(&mut shard, Script::new().grow(100).grow(24).grow(1).grow(1 << 20).grow(-1));
    assert_eq!(results.first(), [4, 104, -1, -1, -1]);
    assert_eq!(
        run("(local $n i32) loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))) end (memory.size)"),
        Progress::Finished(128)
    );
}

#[test]
fn a_table_grows_only_so_far() {
    let progress = run("loop (br_if 0 (i32.ne (table.grow (ref.null func) (i32.const 1000)) (i32.const -1))) end (table.size)");
    assert!(matches!(progress, Progress::Finished(size) if (1_000..=20_000).contains(&size)), "{progress:?}");
}

#[test]
fn memory_is_clean_in_a_new_worker_and_kept_in_a_warm_one() {
    let program = load(
        r#"(module (memory (export "memory") 1) (data (i32.const 8) "\05") (func (export "handle") (result i32)
          (i32.store8 (i32.const 8) (i32.add (i32.load8_u (i32.const 8)) (i32.const 1)))
          (i32.store8 (i32.const 60000) (i32.add (i32.load8_u (i32.const 60000)) (i32.const 16)))
          (drop (memory.grow (i32.const 20)))
          (i32.store (i32.const 1000000) (i32.add (i32.load (i32.const 1000000)) (i32.const 256)))
          (i32.add (i32.load (i32.const 1000000)) (i32.add (i32.load8_u (i32.const 8)) (i32.load8_u (i32.const 60000))))))"#,
    );
    let mut shard = Shard::new();
    for _ in 0..5 {
        let mut guest = Guest::fork(&program, 1);
        assert_eq!(shard.invoke(&mut guest, b""), Progress::Finished(6 + 16 + 256));
        assert_eq!(shard.invoke(&mut guest, b""), Progress::Finished(7 + 32 + 512));
    }
}

#[test]
fn a_trap_in_one_worker_leaves_others_alone() {
    let mut shard = Shard::new();
    let (mut good, mut bad) = (Guest::fork(script::program(), 1), Guest::fork(script::program(), 2));
    shard.close_gate("gate");
    assert_eq!(shard.invoke(&mut good, &Script::new().pass("gate").end(0)), Progress::Waiting);
    let mut script = Script::new();
    let key = script.key("k");
    assert_eq!(shard.invoke(&mut bad, &script.read(key, 0, 0, 1).trap().end(0)), Progress::Trapped(TrapKind::Unreachable));
    drop(bad);
    assert_eq!(shard.open_gate("gate"), Some(1));
    assert_eq!(shard.run(&mut good), Progress::Finished(0));
    let mut script = Script::new();
    let key = script.key("k");
    assert_eq!(shard.invoke(&mut good, &script.read(key, MEMORY - 4, 4, 1).end(0)), Progress::Finished(0));
    assert_eq!(Results::of(&mut good).first(), [-1], "the trapped worker's lock is free");
}
