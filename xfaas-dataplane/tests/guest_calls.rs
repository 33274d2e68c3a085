//! What guests can rely on, CONTRACT.md section 3, end to end: strong sections, deadlocks, deadlines, failed runs, `--atomic`, `--fresh`, `init`.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, Reply, Script, eventually, guest, request, run_until_a_deadlock};
use std::time::{Duration, Instant};

/// Functions that share app `state`, so that one looks at what another left.
fn node() -> Node {
    let script = |name: &str| Script::function(name).app("state");
    Node::builder()
        .function(script("script").with("deadline_ms = 5000"))
        .function(script("brief").with("deadline_ms = 250"))
        .function(script("atomic").with("atomic = true"))
        .function(script("read-only").with("read_only = true"))
        .function(script("small").with("state_mib = 1"))
        .function(Function::guest("trap").app("state"))
        .function(Function::guest("trap").named("trap-atomic").app("state").with("atomic = true"))
        .function(Function::guest("lock-forever").app("state").with("deadline_ms = 700"))
        .start()
}

#[track_caller]
fn results(reply: &Reply) -> Vec<i32> {
    assert_eq!(reply.status, 200, "{reply:?}");
    Script::results(&reply.body)
}

/// The results of a script's calls in a session of `function`.
#[track_caller]
fn run(node: &Node, function: &str, session: &str, script: Script) -> Vec<i32> {
    results(&node.post(function, session, &script.end()))
}

/// The value of a key, read weakly.
#[track_caller]
fn value(node: &Node, session: &str, key: &str) -> Option<Vec<u8>> {
    let length = run(node, "script", session, Script::new().read(key, 0))[0];
    let length = (length >= 0).then_some(length)?;
    let reply = node.post("script", session, &Script::new().read(key, 0).output(length).end_with(0));
    assert_eq!(reply.status, 200, "{reply:?}");
    Some(reply.body)
}

/// Rounds in which two calls may fail to meet.
const ROUNDS_MAX: i32 = 300;

#[test]
fn ten_clients_of_a_thousand_strong_increments_end_at_ten_thousand() {
    let node = Node::builder().guests(&["counter-rmw-linear"]).start();
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let mut client = node.connect();
                for _ in 0..1_000 {
                    let reply = client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "one")], b"");
                    assert_eq!(reply.status, 200, "{reply:?}");
                }
            });
        }
    });
    node.post("counter-rmw-linear", "one", b"").assert_ok(b"10001");
}

#[test]
fn strong_increments_that_must_wait_lose_nothing() {
    // The section is longer than a time slice, so that calls meet inside it.
    let node = Node::builder().function(Function::text("slow-add", SLOW_ADD)).start();
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let mut client = node.connect();
                for _ in 0..5 {
                    let reply = client.call("POST", "/f/slow-add", &[("x-session-id", "one")], b"");
                    assert_eq!(reply.status, 200, "{reply:?}");
                }
            });
        }
    });
    let reply = node.post("slow-add", "one", b"");
    reply.assert_ok(&51_i32.to_le_bytes());
    assert!(node.metrics().sum("xfaas_lock_waits_total", &[]) > 0.0, "some calls had to wait");
}

/// Adds 1 to `n` (four bytes) in a strong section of some milliseconds.
const SLOW_ADD: &str = r#"(module
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (import "xfaas" "read_state" (func $read_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write_state (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "n\00")
  (func (export "handle") (result i32)
    (local $turns i32)
    (i32.store (i32.const 8) (i32.const 0))
    (drop (call $read_state (i32.const 0) (i32.const 8) (i32.const 4) (i32.const 1)))
    (local.set $turns (i32.const 4000000))
    loop $turn
      (local.set $turns (i32.sub (local.get $turns) (i32.const 1)))
      (br_if $turn (local.get $turns))
    end
    (i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.const 1)))
    (drop (call $write_state (i32.const 0) (i32.const 8) (i32.const 4) (i32.const 1)))
    (call $set_output (i32.const 8) (i32.const 4))))"#;

#[test]
fn weak_increments_may_be_lost_but_values_are_never_torn() {
    let node = node();
    std::thread::scope(|scope| {
        for letter in [b'a', b'b', b'c'] {
            let node = &node;
            scope.spawn(move || {
                let write = Script::new().write("text", &[letter; 5_000], 0).end();
                let read = Script::new().read("text", 0).output(5_000).end_with(0);
                let mut client = node.connect();
                for _ in 0..100 {
                    client.call("POST", "/f/script", &[("x-session-id", "torn")], &write);
                    let seen = client.call("POST", "/f/script", &[("x-session-id", "torn")], &read).body;
                    assert!(seen.len() == 5_000 && seen.iter().all(|byte| *byte == seen[0]) && b"abc".contains(&seen[0]));
                }
            });
        }
    });
}

#[test]
fn two_locks_in_opposite_order_end_in_a_deadlock_for_one_and_a_reply_for_the_other() {
    let node = Node::builder().function(Function::guest("lock-ab").app("locks")).function(Function::guest("lock-ba").app("locks")).start();
    let replied = run_until_a_deadlock([node.http; 2]);
    let reply = node.post("lock-ab", "s", b"");
    reply.assert_ok(&(replied + 1).to_le_bytes());
}

#[test]
fn after_a_deadlock_the_locks_already_held_stay_held() {
    let node = node();
    // Each holds its first lock for longer than a slice, then wants the other's, then writes what it holds.
    let script = |first: &str, second: &str| Script::new().read(first, 1).spin(50_000_000).read(second, 1).write(first, b"1", 1).end();
    let mut deadlocks = 0;
    for _ in 0..ROUNDS_MAX {
        let mut clients = [node.connect(), node.connect()];
        for (client, body) in clients.iter_mut().zip([script("a", "b"), script("b", "a")]) {
            client.send(&request("POST", "/f/script", &[("x-session-id", "s")], &body));
        }
        for client in &mut clients {
            let results = results(&client.reply());
            assert_eq!(results[2], 0, "the write to the held key is done: {results:?}");
            deadlocks += i32::from(results[1] == -4);
        }
        if deadlocks > 0 {
            break;
        }
    }
    assert!(deadlocks > 0, "no two calls met");
}

#[test]
fn waiting_for_a_lock_does_not_count_towards_the_deadline() {
    let node = node();
    run(&node, "script", "s", Script::new().write("n", b"old", 1));
    let mut holder = node.connect();
    holder.send(&request("POST", "/f/lock-forever", &[("x-session-id", "s")], b""));
    eventually("the holder runs", || {
        let begun = Instant::now();
        let read = Script::new().read("n", 1).end();
        // The waiter's own deadline is 250 ms; the holder keeps the lock for 700 ms.
        assert_eq!(results(&node.post("brief", "s", &read)), [3], "the value is the old one");
        begun.elapsed() > Duration::from_millis(300)
    });
    holder.reply().assert_error(504, "deadline");
}

#[test]
fn a_section_open_at_a_deadline_changes_nothing_and_is_closed() {
    let node = node();
    run(&node, "script", "s", Script::new().write("n", b"old", 1));
    node.post("lock-forever", "s", b"").assert_error(504, "deadline");
    assert_eq!(run(&node, "script", "s", Script::new().read("n", 1).write("n", b"new!", 1)), [3, 0]);
    assert_eq!(value(&node, "s", "n").unwrap(), b"new!");
}

#[test]
fn a_failed_run_keeps_finished_writes_and_gives_back_its_locks() {
    let node = node();
    let scripts = || {
        [
            ("trap", Script::new().write("weak", b"w", 0).read("strong", 1).write("strong", b"s", 1).read("open", 1).trap()),
            ("code", Script::new().write("weak", b"w", 0).read("strong", 1).write("strong", b"s", 1).read("open", 1).end_with(3)),
            ("deadline", Script::new().write("weak", b"w", 0).read("strong", 1).write("strong", b"s", 1).read("open", 1).spin_forever()),
        ]
    };
    for (session, body) in scripts() {
        let reply = node.post("brief", session, &body);
        assert!(reply.status >= 500, "{reply:?}");
        assert_eq!(value(&node, session, "weak").unwrap(), b"w", "{session}");
        assert_eq!(value(&node, session, "strong").unwrap(), b"s", "{session}");
        assert_eq!(value(&node, session, "open"), None, "{session}");
        assert_eq!(run(&node, "brief", session, Script::new().read("open", 1).write("open", b"o", 1)), [-1, 0], "{session}: free again");
    }
    for (session, body) in scripts() {
        let session = format!("atomic-{session}");
        let reply = node.post("atomic", &session, &body);
        assert!(reply.status >= 500, "{reply:?}");
        for key in ["weak", "strong", "open"] {
            assert_eq!(value(&node, &session, key), None, "{session} {key}");
        }
        assert_eq!(
            run(&node, "brief", &session, Script::new().read("strong", 1).write("strong", b"o", 1)),
            [-1, 0],
            "{session}: free again"
        );
    }
    node.post("trap", "s", b"").assert_error(500, "guest_trapped");
    assert_eq!(value(&node, "s", "before-trap").unwrap(), b"done");
    node.post("trap-atomic", "t", b"").assert_error(500, "guest_trapped");
    assert_eq!(value(&node, "t", "before-trap"), None);
}

#[test]
fn an_atomic_function_sees_its_own_writes_and_leaves_all_of_them() {
    let node = node();
    let script =
        Script::new().write("a", b"1", 0).read("a", 0).read("b", 1).write("b", b"22", 1).read("b", 0).write("a", b"333", 0).read("a", 0);
    assert_eq!(run(&node, "atomic", "s", script), [0, 1, -1, 0, 2, 0, 3]);
    assert_eq!((value(&node, "s", "a").unwrap(), value(&node, "s", "b").unwrap()), (b"333".to_vec(), b"22".to_vec()));
}

#[test]
fn results_of_reads_and_writes_are_those_of_the_contract() {
    let node = node();
    let script = Script::new()
        .read("missing", 0)
        .write("empty", b"", 0)
        .read("empty", 0)
        .read("again", 1)
        .read("again", 1)
        .write("again", b"x", 1)
        .write("alone", b"yy", 1)
        .read("alone", 1)
        .read("held", 1)
        .write("held", b"w", 0)
        .read("held", 0)
        .write("held", b"ss", 1)
        .write_bytes("large", 1 << 20)
        .read("large", 0)
        .write_bytes("larger", (1 << 20) + 1)
        .read("larger", 0)
        .read(&"k".repeat(255), 0)
        .read(&"k".repeat(256), 0)
        .read("mode", 2)
        .write("mode", b"x", -1)
        .write("any \u{1}\u{ff} bytes", b"x", 0)
        .input(5)
        .input(1);
    let expected = [-1, 0, 0, -1, -1, 0, 0, 2, -1, 0, 1, 0, 0, 1 << 20, -3, -1, -1, -3, -2, -2, 0, -2, 4];
    assert_eq!(run(&node, "script", "s123", script), expected);
    assert_eq!(
        run(&node, "read-only", "s123", Script::new().read("alone", 0).write("alone", b"z", 0).write("alone", b"z", 1)),
        [2, -2, -2]
    );
    assert_eq!(value(&node, "s123", "alone").unwrap(), b"yy");
}

#[test]
fn a_weak_access_neither_waits_for_a_section_nor_closes_it() {
    let node = node();
    run(&node, "script", "s", Script::new().write("n", b"old", 1));
    let mut holder = node.connect();
    holder.send(&request("POST", "/f/script", &[("x-session-id", "s")], &Script::new().read("n", 1).spin_forever()));
    eventually("two workers", || {
        let begun = Instant::now();
        assert_eq!(run(&node, "brief", "s", Script::new().read("n", 0).write("other", b"x", 0)), [3, 0]);
        assert!(begun.elapsed() < Duration::from_secs(3));
        node.metrics().sum("xfaas_workers", &[]) >= 2.0
    });
    assert_eq!(run(&node, "brief", "s", Script::new().write("n", b"weak", 0).read("n", 0)), [0, 4]);
    holder.reply().assert_error(504, "deadline");
    assert_eq!(value(&node, "s", "n").unwrap(), b"weak");
}

#[test]
fn a_session_over_its_state_limit_gets_minus_three_and_keeps_what_it_has() {
    let node = node();
    let half = 600 << 10;
    let script = Script::new()
        .write_bytes("a", half)
        .write_bytes("b", half)
        .read("a", 0)
        .read("b", 0)
        .write("c", b"small", 0)
        .write_bytes("a", half + 1);
    assert_eq!(run(&node, "small", "s", script), [0, -3, half, -1, 0, 0]);
    assert_eq!(run(&node, "small", "another", Script::new().write_bytes("a", half)), [0], "the limit is each session's own");
}

#[test]
fn outputs_follow_the_contract() {
    let node = Node::builder().guests(&["big-output", "bad-pointers"]).function(Script::function("script")).start();
    node.post("script", "s", &Script::new().end_with(0)).assert_ok(b"");
    node.post("script", "s", &Script::new().input(1).output(1).output(0).end_with(0)).assert_ok(b"");
    assert_eq!(node.post("big-output", "s", &(8_u32 << 20).to_le_bytes()).body.len(), 8 << 20);
    let reply = node.post("big-output", "s", &((8_u32 << 20) + 1).to_le_bytes());
    reply.assert_error(500, "guest_error");
    assert_eq!(reply.problem()["guest_code"], -3);
    node.post("bad-pointers", "s", b"").assert_ok(b"refused");
}

#[test]
fn init_runs_once_and_every_worker_starts_from_what_it_left() {
    let node = Node::builder()
        .guests(&["init", "remember"])
        .function(Function::guest("init").named("init-fresh").with("fresh = true"))
        .function(Function::guest("remember").named("remember-fresh").with("fresh = true"))
        .start();
    for session in ["a", "b"] {
        node.post("init", session, b"").assert_ok(b"init 1 calls 000001");
        let again = node.post("init", session, b"");
        assert!(again.text().starts_with("init 1 calls 00000"), "{again:?}");
        for _ in 0..3 {
            node.post("init-fresh", session, b"").assert_ok(b"init 1 calls 000001");
            node.post("remember-fresh", session, b"").assert_ok(b"");
        }
    }
}

#[test]
fn memory_is_dropped_after_a_trap() {
    let text = r#"(module
      (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
      (memory (export "memory") 1)
      (global $calls (mut i32) (i32.const 0))
      (func (export "handle") (result i32)
        (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 1)))
        (if (i32.eq (global.get $calls) (i32.const 3)) (then unreachable))
        (i32.store8 (i32.const 1) (global.get $calls))
        (call $set_output (i32.const 0) (i32.const 2))))"#;
    let node = Node::builder().function(Function::text("third-traps", text)).start();
    let mut client = node.connect();
    let mut seen = Vec::new();
    for _ in 0..9 {
        let reply = client.call("POST", "/f/third-traps", &[("x-session-id", "s")], b"");
        match reply.status {
            200 => assert_eq!(reply.body[0], reply.body[1], "memory and globals are of one instance"),
            _ => reply.assert_error(500, "guest_trapped"),
        }
        seen.push(reply.status);
    }
    assert_eq!(seen, [200, 200, 500].repeat(3), "after a trap a worker begins anew");
}

#[test]
fn a_module_that_breaks_a_rule_is_refused_with_the_reason() {
    let node = Node::builder().guests(&["echo"]).start();
    let file = |name: &str, text: &str| {
        let path = node.directory.path().join(name);
        std::fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
        path
    };
    let garbage = node.directory.path().join("garbage.wasm");
    std::fs::write(&garbage, b"\0asm\x01\0\0\0 this is no module").unwrap();
    let handle = "(func (export \"handle\") (result i32) i32.const 0)";
    let cases = [
        (guest("no-handle"), "handle"),
        (guest("wrong-handle"), "handle"),
        (guest("unknown-import"), "open_the_door"),
        (guest("init-imports"), "init"),
        (guest("init-traps"), "init"),
        (garbage, "wasm"),
        (file("no-memory.wasm", &format!("(module {handle})")), "memory"),
        (file("hidden-memory.wasm", &format!("(module (memory 1) {handle})")), "memory"),
        (file("large.wasm", &format!("(module (memory (export \"memory\") 2049) {handle})")), "memory"),
        (file("wasi.wasm", &format!("(module (import \"env\" \"f\" (func)) (memory (export \"memory\") 1) {handle})")), "env"),
        (
            file("type.wasm", &format!("(module (import \"xfaas\" \"set_output\" (func)) (memory (export \"memory\") 1) {handle})")),
            "set_output",
        ),
    ];
    for (path, reason) in cases {
        let output = node.cli(&["deploy", "refused", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{path:?}: {output:?}");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains(reason), "{path:?}: {errors}");
        assert_eq!(output.stdout, b"");
    }
    node.call("GET", "/f/refused", &[], b"").assert_error(404, "no_function");
    assert_eq!(node.cli_json(&["functions"])["functions"].as_array().unwrap().len(), 1);
    node.call("POST", "/f/echo", &[], b"still here").assert_ok(b"still here");
}
