//! Every case of the table in CONTRACT.md section 3.

use super::script::{self, BUFFERS, MEMORY, Results, Script, result};
use super::{APP, Guest, Progress, Shard, monotonic_ns};
use crate::net::{Http1Decoder, Http1Event, HttpLimits};
use xfaas_common::guest_abi::{BAD_ARGUMENT, DEADLOCK, NOT_FOUND, OK, OVER_LIMIT};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{OUTPUT_BYTES_MAX, VALUE_BYTES_MAX};

/// Both state calls with the same arguments. Output: their results.
fn read_and_write(script: Script, key: i32, buf: i32, length: i32, mode: i32) -> [i32; 2] {
    script::run(&mut Shard::new(), script.read(key, buf, length, mode).write(key, buf, length, mode)).first()
}

#[test]
fn a_bad_key_pointer_is_a_bad_argument_and_a_long_key_over_the_limit() {
    for mode in [0, 1] {
        for outside in [MEMORY, MEMORY + 1, -1, i32::MIN, i32::MAX] {
            assert_eq!(read_and_write(Script::new(), outside, BUFFERS, 4, mode), [BAD_ARGUMENT; 2], "pointer {outside}");
        }
        assert_eq!(read_and_write(Script::new(), MEMORY - 1, BUFFERS, 4, mode), [BAD_ARGUMENT; 2], "empty key");
        for left in [1, 255] {
            let script = Script::new().fill(MEMORY - 300, b'k', 300);
            assert_eq!(read_and_write(script, MEMORY - left, BUFFERS, 4, mode), [BAD_ARGUMENT; 2], "{left} bytes without a NUL");
        }
        let script = Script::new().fill(MEMORY - 300, b'k', 300);
        assert_eq!(read_and_write(script, MEMORY - 256, BUFFERS, 4, mode), [OVER_LIMIT; 2], "256 bytes without a NUL");
        let script = Script::new().fill(MEMORY - 300, b'k', 299);
        assert_eq!(read_and_write(script, MEMORY - 256, BUFFERS, 4, mode), [NOT_FOUND, OK], "255 bytes and a NUL");
    }
}

#[test]
fn a_key_may_hold_any_other_bytes() {
    let mut shard = Shard::new();
    let mut script = Script::new();
    let key = script.data(b"\x01 /\xff\xfe\n\0");
    let value = script.data(b"v");
    let results = script::run(&mut shard, script.write(key, value, 1, 0).read(key, BUFFERS, 8, 0));
    assert_eq!(results.first(), [OK, 1]);
    assert_eq!(results.buffer(BUFFERS, 1), b"v");
}

#[test]
fn a_span_outside_memory_a_negative_length_or_an_unknown_mode_is_a_bad_argument() {
    for (buf, length) in [(MEMORY - 3, 4), (MEMORY, 1), (0, MEMORY + 1), (-1, 1), (BUFFERS, -1), (BUFFERS, i32::MIN), (-4, i32::MAX)] {
        let mut script = Script::new();
        let key = script.key("k");
        assert_eq!(read_and_write(script, key, buf, length, 0), [BAD_ARGUMENT; 2], "{buf} + {length}");
        let script = Script::new().read_input(0, buf, length).set_output(buf, length);
        assert_eq!(script::run(&mut Shard::new(), script).first(), [BAD_ARGUMENT; 2], "{buf} + {length}");
    }
    for mode in [2, -1, i32::MAX] {
        let mut script = Script::new();
        let key = script.key("k");
        assert_eq!(read_and_write(script, key, BUFFERS, 4, mode), [BAD_ARGUMENT; 2], "mode {mode}");
    }
    for argument in [5, -1, i32::MAX] {
        assert_eq!(result(&mut Shard::new(), Script::new().read_input(argument, BUFFERS, 4)), BAD_ARGUMENT, "argument {argument}");
    }
}

#[test]
fn a_bad_argument_wins_over_a_limit() {
    for (buf, length, mode) in [(MEMORY, 4, 0), (BUFFERS, -1, 0), (BUFFERS, 4, 2)] {
        let script = Script::new().fill(MEMORY - 300, b'k', 300);
        assert_eq!(read_and_write(script, MEMORY - 256, buf, length, mode), [BAD_ARGUMENT; 2]);
    }
}

#[test]
fn a_bad_argument_takes_no_lock() {
    let mut shard = Shard::new();
    let mut script = Script::new();
    let key = script.key("k");
    let script = script.read(key, MEMORY, 1, 1).write(key, MEMORY, 1, 1);
    let mut guest = Guest::fork(script::program(), 1);
    shard.close_gate("gate");
    assert_eq!(shard.invoke(&mut guest, &script.pass("gate").end(0)), Progress::Waiting);
    assert_eq!(shard.state().locks.locks_held(), 1, "the gate alone");
}

#[test]
fn a_read_gives_the_full_length_and_copies_at_most_the_buffer() {
    let mut script = Script::new();
    let (key, empty, missing, value) = (script.key("k"), script.key("e"), script.key("m"), script.data(b"abcdef"));
    let script = script.write(key, value, 6, 0).write(empty, value, 0, 0);
    let script = script.read(key, BUFFERS, 0, 0).read(key, BUFFERS, 4, 0).read(key, BUFFERS + 16, 100, 0);
    let script = script.read(empty, BUFFERS, 4, 0).read(missing, BUFFERS, 4, 0);
    let results = script::run(&mut Shard::new(), script);
    assert_eq!(results.first(), [OK, OK, 6, 6, 6, 0, NOT_FOUND]);
    assert_eq!(results.buffer(BUFFERS, 5), b"abcd\0");
    assert_eq!(results.buffer(BUFFERS + 16, 7), b"abcdef\0");
}

#[test]
fn input_is_body_session_method_path_and_query() {
    let mut shard = Shard::new();
    let mut guest = Guest::fork(script::program(), 1);
    let mut script = Script::new();
    for argument in 0..5 {
        script = script.read_input(argument, BUFFERS + 64 * argument, 64);
    }
    let body = script.read_input(0, BUFFERS, 0).end(0);
    let head = format!("PUT /f/test/a/b%20c?x=1&y HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len());
    let input = [head.as_bytes(), &body].concat();
    let limits = HttpLimits { body_bytes_max: 1 << 20, session_header: b"x-session-id".to_vec() };
    let (mut decoder, mut at) = (Http1Decoder::new(), 0);
    let call = guest.call();
    loop {
        let (used, event) = decoder.decode(&limits, &input[at..], &mut call.request);
        at += used;
        match event {
            Http1Event::Complete => break,
            Http1Event::Head { .. } => {}
            _ => panic!("a good request"),
        }
    }
    call.set_function(&super::manifest());
    (call.app, call.session, call.started_ns) = (APP, SessionId::new(b"bob").unwrap(), monotonic_ns());
    guest.worker.as_mut().unwrap().start();
    assert_eq!(shard.run(&mut guest), Progress::Finished(0));
    let results = Results::of(&mut guest);
    assert_eq!(results.first(), [body.len() as i32, 3, 3, 8, 5, body.len() as i32]);
    for (argument, expected) in [(1, "bob"), (2, "PUT"), (3, "/a/b%20c"), (4, "x=1&y")] {
        assert_eq!(results.buffer(BUFFERS + 64 * argument, expected.len()), expected.as_bytes());
    }
}

#[test]
fn the_last_output_wins_and_none_is_empty() {
    let mut shard = Shard::new();
    let mut guest = Guest::fork(script::program(), 1);
    let mut script = Script::new();
    let (one, two) = (script.data(b"one"), script.data(b"second"));
    let body = script.set_output(one, 3).set_output(two, 6).set_output(MEMORY, 1).end_as_is(0);
    assert_eq!(shard.invoke(&mut guest, &body), Progress::Finished(0));
    assert_eq!(guest.output(), b"second");
    assert_eq!(shard.invoke(&mut guest, &Script::new().end_as_is(0)), Progress::Finished(0));
    assert_eq!(guest.output(), b"");
    assert_eq!(shard.invoke(&mut guest, &Script::new().end_as_is(-7)), Progress::Finished(-7));
}

#[test]
fn values_and_output_over_the_limit_change_nothing() {
    let mut shard = Shard::new();
    let mut guest = Guest::fork(&super::load_with(&manifest_of_20_mib(), script::WAT).unwrap(), 1);
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"old"));
    let big = VALUE_BYTES_MAX as i32;
    let script = script.grow(200).write(key, value, 3, 0);
    let script = script.write(key, 0, big + 1, 0).write(key, 0, big + 1, 1).read(key, BUFFERS, 8, 0).write(key, 0, big, 0);
    let script = script.set_output(0, OUTPUT_BYTES_MAX as i32 + 1).set_output(0, OUTPUT_BYTES_MAX as i32);
    assert_eq!(shard.invoke(&mut guest, &script.end(0)), Progress::Finished(0));
    let results = Results::of(&mut guest);
    assert_eq!(results.first(), [4, OK, OVER_LIMIT, OVER_LIMIT, 3, OK, OVER_LIMIT, OK]);
    assert_eq!(shard.value("alice", "k").unwrap().len(), VALUE_BYTES_MAX);
    guest.call().reset();
    assert!(guest.call().output.capacity() <= 64 << 10, "a large buffer is given back");
}

fn manifest_of_20_mib() -> super::FunctionManifest {
    super::FunctionManifest { memory_mib: 20, ..super::manifest() }
}

#[test]
fn a_session_over_its_limit_keeps_what_it_has() {
    let mut shard = Shard::new();
    for atomic in [false, true] {
        let mut guest = Guest::fork(script::program(), 1);
        guest.manifest.state_mib = 1;
        guest.manifest.atomic = atomic;
        let mut script = Script::new();
        let keys: Vec<i32> = (0..6).map(|i| script.key(&format!("key{i}"))).collect();
        for key in &keys {
            script = script.write(*key, 0, 200 << 10, 1);
        }
        let script = script.write(keys[0], 0, 100, 0).write(keys[5], 0, 1, 0).read(keys[5], 0, 0, 0);
        assert_eq!(shard.invoke(&mut guest, &script.end(0)), Progress::Finished(0));
        assert_eq!(Results::of(&mut guest).first(), [OK, OK, OK, OK, OK, OVER_LIMIT, OK, OK, 1], "atomic: {atomic}");
        assert_eq!(shard.value("alice", "key0").unwrap().len(), 100);
        assert_eq!(shard.value("alice", "key4").unwrap().len(), 200 << 10);
        assert_eq!(shard.state().locks.locks_held(), 0);
        shard = Shard::new();
    }
}

#[test]
fn a_session_holds_65536_keys() {
    // A guest that writes `key` + four digits of a counter for ever, until it is refused.
    let program = super::load(
        r#"(module
          (import "xfaas" "write_state" (func $write (param i32 i32 i32 i32) (result i32)))
          (import "xfaas" "set_output" (func $out (param i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "handle") (result i32) (local $n i32)
            loop $next
              (i32.store (i32.const 0) (i32.or (i32.const 0x01010101) (i32.shl (i32.and (local.get $n) (i32.const 0x7f)) (i32.const 1))))
              (i32.store8 (i32.const 1) (i32.or (i32.const 1) (i32.and (i32.shr_u (local.get $n) (i32.const 6)) (i32.const 0xfe))))
              (i32.store8 (i32.const 2) (i32.or (i32.const 1) (i32.and (i32.shr_u (local.get $n) (i32.const 13)) (i32.const 0xfe))))
              (i32.store8 (i32.const 4) (i32.const 0))
              (if (i32.eqz (call $write (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))
                (then (local.set $n (i32.add (local.get $n) (i32.const 1))) (br $next)))
            end
            (i32.store (i32.const 8) (local.get $n))
            (drop (call $out (i32.const 8) (i32.const 4)))
            (i32.const 0)))"#,
    );
    for atomic in [false, true] {
        let (mut shard, mut guest) = (Shard::new(), Guest::fork(&program, 1));
        guest.manifest.atomic = atomic;
        guest.manifest.deadline_ms = 60_000;
        assert_eq!(shard.invoke(&mut guest, b""), Progress::Finished(0));
        assert_eq!(guest.output(), 65_536u32.to_le_bytes(), "atomic: {atomic}");
    }
}

#[test]
fn a_full_region_is_over_the_limit_and_undoes_an_atomic_call_whole() {
    let mut shard = Shard::new();
    let mut guest = Guest::fork(script::program(), 1);
    let write = |count: i32, start: i32, length: i32, code: i32| {
        let mut script = Script::new();
        for i in 0..count {
            let key = script.key(&format!("k{}", start + i));
            script = script.write(key, 0, length, 0);
        }
        script.end(code)
    };
    // 16 MiB of region in values of 200 KiB.
    for round in 0..3 {
        assert_eq!(shard.invoke(&mut guest, &write(30, 30 * round, 200 << 10, 0)), Progress::Finished(0));
    }
    let last: [i32; 30] = Results::of(&mut guest).first();
    assert_eq!(last[29], OVER_LIMIT);
    let before = shard.value("alice", "k0").unwrap();
    guest.manifest.atomic = true;
    let mut script = Script::new();
    let (k0, small, value) = (script.key("k0"), script.key("small"), script.data(b"new"));
    script = script.write(small, value, 3, 0).write(k0, value, 3, 0);
    for i in 0..20 {
        let key = script.key(&format!("more{i}"));
        script = script.write(key, 0, 200 << 10, 0);
    }
    assert_eq!(shard.invoke(&mut guest, &script.end(0)), Progress::Finished(OVER_LIMIT), "the session has room, the region has not");
    assert_eq!(shard.value("alice", "k0").unwrap(), before);
    assert_eq!(shard.value("alice", "small"), None);
    assert_eq!(shard.value("alice", "more0"), None);
}

#[test]
fn a_read_only_function_reads_and_may_not_write() {
    let mut shard = Shard::new();
    let mut guest = Guest::fork(script::program(), 1);
    guest.manifest.read_only = true;
    let mut script = Script::new();
    let key = script.key("k");
    let script = script.read(key, BUFFERS, 4, 0).write(key, BUFFERS, 4, 0).write(key, BUFFERS, 4, 1);
    assert_eq!(shard.invoke(&mut guest, &script.end(0)), Progress::Finished(0));
    assert_eq!(Results::of(&mut guest).first(), [NOT_FOUND, BAD_ARGUMENT, BAD_ARGUMENT]);
}

#[test]
fn a_failed_call_changes_nothing_in_an_open_section_and_keeps_finished_writes() {
    for (atomic, expected) in [(false, Some(b"v".to_vec())), (true, None)] {
        for end in ["trap", "code", "spin"] {
            let mut shard = Shard::new();
            let mut guest = Guest::fork(script::program(), 1);
            guest.manifest.atomic = atomic;
            guest.manifest.deadline_ms = if end == "spin" { 50 } else { 60_000 };
            let mut script = Script::new();
            let (done, strong, open, value) = (script.key("done"), script.key("strong"), script.key("open"), script.data(b"v"));
            let script = script.write(done, value, 1, 0).write(strong, value, 1, 1).read(open, BUFFERS, 4, 1);
            let body = match end {
                "trap" => script.trap().end(0),
                "code" => script.end(9),
                _ => script.spin(0).end(0),
            };
            let progress = shard.invoke(&mut guest, &body);
            let as_expected = match end {
                "trap" => matches!(progress, Progress::Trapped(_)),
                "code" => progress == Progress::Finished(9),
                _ => progress == Progress::DeadlinePassed,
            };
            assert!(as_expected, "{end}: {progress:?}");
            // The deadline may pass before the first write on a busy machine.
            if end != "spin" || shard.value("alice", "strong").is_some() {
                assert_eq!(shard.value("alice", "done"), expected, "{end}");
                assert_eq!(shard.value("alice", "strong"), expected, "{end}");
            }
            assert_eq!(shard.value("alice", "open"), None, "{end}");
            assert_eq!(shard.state().locks.locks_held(), 0, "{end}");
        }
    }
}

#[test]
fn an_atomic_call_sees_its_own_writes_and_others_see_them_when_it_ends() {
    let mut shard = Shard::new();
    let (mut writer, mut reader) = (Guest::fork(script::program(), 1), Guest::fork(script::program(), 2));
    writer.manifest.atomic = true;
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"newer"));
    let script = script.write(key, value, 3, 1).write(key, value, 5, 0).read(key, BUFFERS, 8, 0).read(key, BUFFERS, 2, 1);
    shard.close_gate("gate");
    assert_eq!(shard.invoke(&mut writer, &script.pass("gate").end(0)), Progress::Waiting);
    let read = |mode| {
        let mut script = Script::new();
        let key = script.key("k");
        script.read(key, BUFFERS, 8, mode).end(0)
    };
    assert_eq!(shard.invoke(&mut reader, &read(0)), Progress::Finished(0));
    assert_eq!(Results::of(&mut reader).first(), [NOT_FOUND]);
    assert_eq!(shard.invoke(&mut reader, &read(1)), Progress::Waiting, "the lock stays until the commit");
    assert_eq!(shard.open_gate("gate"), Some(1));
    assert_eq!(shard.run(&mut writer), Progress::Finished(0));
    assert_eq!(Results::of(&mut writer).first(), [OK, OK, 5, 5]);
    assert_eq!(writer.granted(), [2]);
    assert_eq!(shard.run(&mut reader), Progress::Finished(0));
    assert_eq!(Results::of(&mut reader).first(), [5]);
}

#[test]
fn a_refused_strong_write_leaves_an_open_section_open() {
    let mut shard = Shard::new();
    let (mut first, mut second) = (Guest::fork(script::program(), 1), Guest::fork(script::program(), 2));
    first.manifest.state_mib = 1;
    let mut script = Script::new();
    let (key, other) = (script.key("k"), script.key("other"));
    let script = script.write(other, 0, 250_000, 0).write(key, 0, 250_000, 0).grow(12);
    let body = script.read(key, 0, 0, 1).write(key, 0, 1_000_000, 1).pass("gate").end(0);
    shard.close_gate("gate");
    assert_eq!(shard.invoke(&mut first, &body), Progress::Waiting);
    let mut script = Script::new();
    let key = script.key("k");
    assert_eq!(shard.invoke(&mut second, &script.read(key, 0, 0, 1).end(0)), Progress::Waiting);
    assert_eq!(shard.open_gate("gate"), Some(1));
    assert_eq!(shard.run(&mut first), Progress::Finished(0));
    assert_eq!(Results::of(&mut first).first(), [OK, OK, 4, 250_000, OVER_LIMIT]);
    assert_eq!(first.granted(), [2]);
    assert_eq!(shard.run(&mut second), Progress::Finished(0));
}

#[test]
fn deadlock_is_minus_four_and_held_locks_stay_held() {
    let mut shard = Shard::new();
    let (mut first, mut second) = (Guest::fork(script::program(), 1), Guest::fork(script::program(), 2));
    let take = |one: &str, gate: &str, other: &str| {
        let mut script = Script::new();
        let (one, other, value) = (script.key(one), script.key(other), script.data(b"v"));
        script.read(one, 0, 0, 1).pass(gate).read(other, 0, 0, 1).write(other, value, 1, 1).write(one, value, 1, 1).end(0)
    };
    shard.close_gate("g1");
    shard.close_gate("g2");
    assert_eq!(shard.invoke(&mut first, &take("a", "g1", "b")), Progress::Waiting);
    assert_eq!(shard.invoke(&mut second, &take("b", "g2", "a")), Progress::Waiting);
    assert_eq!(shard.open_gate("g1"), Some(1));
    assert_eq!(shard.run(&mut first), Progress::Waiting, "for b, which the second holds");
    assert_eq!(shard.open_gate("g2"), Some(2));
    assert_eq!(shard.run(&mut second), Progress::Finished(0), "the newcomer is told, not parked, and still holds b");
    assert_eq!(Results::of(&mut second).first(), [NOT_FOUND, NOT_FOUND, DEADLOCK, DEADLOCK, OK]);
    assert_eq!(second.granted(), [1]);
    assert_eq!(shard.run(&mut first), Progress::Finished(0));
    assert_eq!(Results::of(&mut first).first(), [NOT_FOUND, NOT_FOUND, 1, OK, OK]);
}
