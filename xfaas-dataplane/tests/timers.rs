//! Timers of sessions: they fire once when all goes well, again when it does not, and after any end of the process. CONTRACT.md section 3, "Timers".
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Container, Function, Node, RESULTS, Reply, Script, eventually};
use std::time::{SystemTime, UNIX_EPOCH};

const NOT_FOUND: i32 = -1;
const BAD_ARGUMENT: i32 = -2;
const OVER_LIMIT: i32 = -3;
const MEMORY_END: i32 = 20 * 65_536;
const HOUR_MS: i64 = 3_600_000;
const FIRED: &str = "xfaas_timers_fired_total";

/// `s`: sets timer `a` at the time that its body says at 8, with the payload from 16 on. `g`: answers key `n`. `h`: heals. Anything else is a payload:
/// it counts in `n`, with the lengths of method, path, query and session ID and the payload's last byte; then `t` traps unless it was healed, and `r` sets the timer anew.
const ALARM: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (import "xfaas" "read_state" (func $read_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "set_timer" (func $set_timer (param i32 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "n\00")
  (data (i32.const 24) "heal\00")
  (data (i32.const 32) "a\00")
  (func (export "handle") (result i32)
    (local $bytes i32) (local $op i32)
    (local.set $bytes (call $read_input (i32.const 0) (i32.const 1024) (i32.const 4096)))
    (local.set $op (i32.load8_u (i32.const 1024)))
    (i64.store (i32.const 512) (i64.const 0))
    (i32.store (i32.const 520) (i32.const 0))
    (if (i32.eq (local.get $op) (i32.const 115)) (then
      (return (call $set_timer (i32.const 32) (i64.load (i32.const 1032)) (i32.const 1040) (i32.sub (local.get $bytes) (i32.const 16))))))
    (if (i32.eq (local.get $op) (i32.const 103)) (then
      (drop (call $read_state (i32.const 16) (i32.const 512) (i32.const 12) (i32.const 0)))
      (return (call $set_output (i32.const 512) (i32.const 9)))))
    (if (i32.eq (local.get $op) (i32.const 104)) (then
      (return (call $write_state (i32.const 24) (i32.const 512) (i32.const 1) (i32.const 0)))))
    (drop (call $read_state (i32.const 16) (i32.const 512) (i32.const 4) (i32.const 0)))
    (i32.store (i32.const 512) (i32.add (i32.load (i32.const 512)) (i32.const 1)))
    (i32.store8 (i32.const 516) (call $read_input (i32.const 2) (i32.const 0) (i32.const 0)))
    (i32.store8 (i32.const 517) (call $read_input (i32.const 3) (i32.const 0) (i32.const 0)))
    (i32.store8 (i32.const 518) (call $read_input (i32.const 4) (i32.const 0) (i32.const 0)))
    (i32.store8 (i32.const 519) (call $read_input (i32.const 1) (i32.const 0) (i32.const 0)))
    (i32.store8 (i32.const 520) (i32.load8_u (i32.add (i32.const 1023) (local.get $bytes))))
    (drop (call $write_state (i32.const 16) (i32.const 512) (i32.const 9) (i32.const 0)))
    (if (i32.and (i32.eq (local.get $op) (i32.const 116))
                 (i32.lt_s (call $read_state (i32.const 24) (i32.const 0) (i32.const 0) (i32.const 0)) (i32.const 0)))
      (then unreachable))
    (if (i32.eq (local.get $op) (i32.const 114)) (then
      (return (call $set_timer (i32.const 32) (i64.const 9000000000000000) (i32.const 1024) (i32.const 1)))))
    (i32.const 0)))"#;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Has `alarm` set its timer in `session`.
#[track_caller]
fn set(node: &Node, session: &str, at_ms: i64, payload: &[u8]) {
    let body = [b"s.......", &at_ms.to_le_bytes()[..], payload].concat();
    node.post("alarm", session, &body).assert_ok(b"");
}

/// How often `alarm` was run by its timer in `session`, and what it saw.
#[track_caller]
fn seen(node: &Node, session: &str) -> (i32, [u8; 5]) {
    let reply = node.post("alarm", session, b"g");
    assert_eq!((reply.status, reply.body.len()), (200, 9), "{reply:?}");
    let (count, seen) = reply.body.split_first_chunk().unwrap();
    (i32::from_le_bytes(*count), seen.try_into().unwrap())
}

#[track_caller]
fn results(reply: &Reply) -> Vec<i32> {
    assert_eq!(reply.status, 200, "{reply:?}");
    Script::results(&reply.body)
}

fn alarm() -> Function {
    Function::text("alarm", ALARM).with("deadline_ms = 20000")
}

fn metric(node: &Node, name: &str) -> f64 {
    node.metrics().sum(name, &[])
}

#[test]
fn a_timer_runs_its_function_once_and_not_before_its_time() {
    let node = Node::builder().function(alarm()).start();
    let sessions: Vec<String> = (0..20).map(|number| format!("timer-{number}")).collect();
    let at_ms = now_ms() + 700;
    for session in &sessions {
        set(&node, session, at_ms, b"f-payload");
    }
    for session in &sessions {
        let (count, _) = seen(&node, session);
        assert!(count == 0 || now_ms() >= at_ms, "it fired early");
    }
    for session in &sessions {
        eventually("the timer has fired", || seen(&node, session).0 > 0);
        assert_eq!(seen(&node, session), (1, [0, 0, 0, session.len() as u8, b'd']), "the payload is the body, as of a datagram");
    }
    eventually("no timer is left", || metric(&node, "xfaas_timers") == 0.0);
    // One in the past is due at once, and one that is set anew takes the other's place.
    set(&node, "past", 0, b"f");
    eventually("it has fired", || seen(&node, "past").0 == 1);
    set(&node, "again", now_ms() + HOUR_MS, b"f");
    set(&node, "again", 1, b"f2");
    eventually("it has fired", || seen(&node, "again") == (1, [0, 0, 0, 5, b'2']));
    // One that its own invocation sets anew stays.
    set(&node, "periodic", 1, b"r");
    eventually("it has fired", || seen(&node, "periodic").0 == 1);
    eventually("the one set anew is left", || metric(&node, "xfaas_timers") == 1.0);
    assert_eq!(metric(&node, FIRED), 23.0);
    assert_eq!(metric(&node, "xfaas_timers_failed_total"), 0.0);
    for session in &sessions {
        assert_eq!(seen(&node, session).0, 1, "never a second time");
    }
}

#[test]
fn a_timer_fires_after_the_process_was_killed() {
    let mut node = Node::builder().function(alarm()).start();
    set(&node, "far", now_ms() + HOUR_MS, b"f");
    let at_ms = loop {
        let at_ms = now_ms() + 1_500;
        for session in ["one", "two", "three", "four"] {
            set(&node, session, at_ms, b"f");
        }
        node.kill();
        if now_ms() < at_ms {
            break at_ms;
        }
        node.start(); // too slow: they may have fired already
    };
    node.start();
    for session in ["one", "two", "three", "four"] {
        eventually("the timer has fired", || seen(&node, session).0 > 0);
    }
    assert!(now_ms() >= at_ms);
    eventually("only the far one is left", || metric(&node, "xfaas_timers") == 1.0);
    node.kill();
    node.start();
    eventually("the far one is found again", || metric(&node, "xfaas_timers") == 1.0);
    assert_eq!((metric(&node, FIRED), seen(&node, "far").0), (0.0, 0));
}

#[test]
fn a_timer_goes_along_when_its_session_moves() {
    let mut node = Node::builder().shard_setting("rebalance = false").function(alarm()).start();
    set(&node, "s", now_ms() + HOUR_MS, b"f");
    let home: u16 = node.post("alarm", "s", b"g").header("x-xfaas-core").unwrap().parse().unwrap();
    let timers = |node: &Node, core: u16| node.metrics().sum("xfaas_timers", &[("shard", &core.to_string())]);
    for core in [1 - home, home, 1 - home] {
        node.cli_json(&["sessions", "move", "alarm", "s", "--core", &core.to_string()]);
        eventually("the timer is there", || (timers(&node, core), timers(&node, 1 - core)) == (1.0, 0.0));
    }
    node.kill();
    node.start();
    eventually("it is found there", || (timers(&node, home), timers(&node, 1 - home)) == (0.0, 1.0));
    set(&node, "s", 1, b"f2");
    eventually("it has fired", || seen(&node, "s") == (1, [0, 0, 0, 1, b'2']));
    eventually("it is gone", || metric(&node, "xfaas_timers") == 0.0);
}

#[test]
fn a_timer_of_a_synced_app_fires_after_the_machine_lost_its_memory() {
    let mut node = Node::builder().function(alarm().with("durability = \"sync\"")).start();
    set(&node, "s", now_ms() + HOUR_MS, b"f");
    set(&node, "trapped", 1, b"t");
    eventually("it was tried", || seen(&node, "trapped").0 > 0);
    node.kill();
    for entry in std::fs::read_dir(node.shared_memory()).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    node.start();
    node.post("alarm", "trapped", b"h").assert_ok(b"");
    eventually("the failed one is found and ends well", || metric(&node, "xfaas_timers") == 1.0 && metric(&node, FIRED) > 0.0);
    assert!(seen(&node, "trapped").0 >= 2);
    assert_eq!(seen(&node, "s").0, 0);
}

#[test]
fn a_timer_that_traps_is_tried_again_until_it_ends_well() {
    let node = Node::builder().function(alarm()).start();
    set(&node, "s", 1, b"t");
    eventually("it failed twice", || metric(&node, "xfaas_timers_failed_total") >= 2.0);
    eventually("it is overdue", || metric(&node, "xfaas_timers_overdue") == 1.0);
    assert!(seen(&node, "s").0 >= 2);
    node.post("alarm", "s", b"h").assert_ok(b"");
    eventually("it ends well", || metric(&node, "xfaas_timers") == 0.0);
    eventually("nothing is overdue", || metric(&node, "xfaas_timers_overdue") == 0.0);
    assert_eq!(metric(&node, FIRED) - metric(&node, "xfaas_timers_failed_total"), 1.0);
    assert_eq!(f64::from(seen(&node, "s").0), metric(&node, FIRED));
}

fn scripts() -> harness::NodeBuilder {
    let script = |name: &str| Script::function(name).app("app").with("deadline_ms = 20000");
    Node::builder()
        .function(script("script"))
        .function(script("atomic").with("atomic = true"))
        .function(script("reader").with("read_only = true"))
}

#[test]
fn wrong_arguments_and_what_is_over_a_limit_are_refused() {
    let node = scripts().start();
    let far = now_ms() + HOUR_MS;
    let run = |function: &str, script: Script| results(&node.post(function, "s", &script.end()));
    for function in ["script", "atomic"] {
        let script = Script::new()
            .timer("", far, b"")
            .timer("n", -1, b"")
            .timer("n", i64::MIN, b"")
            .timer(&"n".repeat(65), far, b"")
            .timer(&"n".repeat(65), -1, b"")
            .timer("n", far, &[7; 4_097])
            .cancel_timer("")
            .cancel_timer(&"n".repeat(65))
            .cancel_timer("n")
            .timer(&"n".repeat(64), i64::MAX, &[7; 4_096])
            .cancel_timer(&"n".repeat(64))
            .cancel_timer(&"n".repeat(64));
        let [bad, over] = [BAD_ARGUMENT, OVER_LIMIT];
        assert_eq!(run(function, script), [bad, bad, bad, over, bad, over, bad, over, NOT_FOUND, 0, 0, NOT_FOUND], "{function}");
        let good = RESULTS + 4_096;
        for (name, payload, bytes) in
            [(-1, good, 1), (MEMORY_END, good, 1), (good, good, 1), (good, MEMORY_END, 1), (good, good, -1), (good, MEMORY_END - 3, 4)]
        {
            assert_eq!(
                run(function, Script::new().timer_at(name, far, payload, bytes).cancel_timer_at(name)),
                [bad, bad],
                "{name} {payload}"
            );
        }
    }
    assert_eq!(run("reader", Script::new().timer("n", far, b"").cancel_timer("n")), [BAD_ARGUMENT; 2]);
    // 64 a session, whoever sets them.
    let fill = |from: usize, count: usize| (from..from + count).fold(Script::new(), |script, n| script.timer(&n.to_string(), far, b"p"));
    assert_eq!(run("script", fill(0, 40)), [0; 40]);
    assert_eq!(run("atomic", fill(40, 24)), [0; 24]);
    for function in ["script", "atomic"] {
        assert_eq!(run(function, fill(64, 2)), [OVER_LIMIT; 2], "{function}");
        assert_eq!(run(function, fill(10, 3)), [0; 3], "{function}: those are there already");
        assert_eq!(run(function, Script::new().cancel_timer("7").timer("7", far, b"").cancel_timer("99")), [0, 0, NOT_FOUND]);
        assert_eq!(run(function, Script::new().cancel_timer("7").timer("x", far, b"").timer("y", far, b"")), [0, 0, OVER_LIMIT]);
        assert_eq!(run(function, Script::new().cancel_timer("x").timer("7", far, b"")), [0, 0]);
    }
    assert_eq!(results(&node.post("script", "other", &fill(0, 1).end())), [0]);
    // Timers are no keys of the guest's.
    assert_eq!(run("script", Script::new().read("7", 0).read("t7", 0)), [NOT_FOUND; 2]);
    eventually("all are counted", || metric(&node, "xfaas_timers") == 65.0);
}

#[test]
fn an_atomic_invocation_sets_and_cancels_timers_when_it_ends_well() {
    let node = scripts().start();
    let far = now_ms() + HOUR_MS;
    let mark = Script::new().write("fired", b"yes", 0).end();
    let failed = Script::new().timer("due", 1, &mark).timer("far", far, b"").write("k", b"v", 0).end_with(3);
    assert_eq!(node.post("atomic", "s", &failed).status, 500);
    let read = || results(&node.post("script", "s", &Script::new().read("k", 0).read("fired", 0).cancel_timer("none").end()));
    assert_eq!(read(), [NOT_FOUND; 3]);
    assert_eq!(metric(&node, FIRED), 0.0);
    let good =
        Script::new().timer("due", 1, &mark).timer("far", far, b"").timer("gone", far, b"").cancel_timer("gone").write("k", b"v", 0).end();
    assert_eq!(results(&node.post("atomic", "s", &good)), [0; 5]);
    eventually("the due one has fired", || read() == [1, 3, NOT_FOUND]);
    eventually("the far one is left", || metric(&node, "xfaas_timers") == 1.0);
    let cancel = |code| Script::new().cancel_timer("far").cancel_timer("far").end_with(code);
    assert_eq!(node.post("atomic", "s", &cancel(1)).status, 500);
    assert_eq!(results(&node.post("atomic", "s", &Script::new().cancel_timer("far").cancel_timer("far").end())), [0, NOT_FOUND]);
    eventually("none is left", || metric(&node, "xfaas_timers") == 0.0);
    assert_eq!((metric(&node, FIRED), metric(&node, "xfaas_timers_failed_total")), (1.0, 0.0));
}

/// A guest in a container sets and cancels as at the primary, where its timers are run.
#[test]
fn a_container_sets_timers_that_its_primary_runs() {
    let node = scripts().start();
    let far = now_ms() + HOUR_MS;
    for (flags, function) in [(&[][..], "script"), (&["--no-map"], "script"), (&[], "atomic"), (&["--no-map"], "atomic")] {
        let container = Container::join(&node, flags);
        let session = format!("{function}-{}", flags.len());
        let before = metric(&node, FIRED);
        let run = |script: Script| results(&container.post(function, &session, &script.end()));
        let mark = Script::new().write("fired", b"yes", 0).end();
        let script =
            Script::new().timer("n", 1, &mark).timer("far", far, b"p").timer("gone", far, b"").cancel_timer("gone").cancel_timer("gone");
        assert_eq!(run(script), [0, 0, 0, 0, NOT_FOUND], "{flags:?} {function}");
        eventually("it has fired", || results(&node.post("script", &session, &Script::new().read("fired", 0).end())) == [3]);
        eventually("it is counted", || metric(&node, FIRED) == before + 1.0);
        let script = Script::new()
            .cancel_timer("n")
            .timer("", 1, b"")
            .timer("n", -1, b"")
            .timer("n", 1, &[0; 4_097])
            .cancel_timer(&"n".repeat(65))
            .cancel_timer("far")
            .cancel_timer("far")
            .read("tfar", 0);
        let [bad, over] = [BAD_ARGUMENT, OVER_LIMIT];
        assert_eq!(run(script), [NOT_FOUND, bad, bad, over, over, 0, NOT_FOUND, NOT_FOUND], "{flags:?} {function}");
        assert_eq!(run(Script::new().cancel_timer("far")), [NOT_FOUND]);
        let fill =
            |from: usize, count: usize| (from..from + count).fold(Script::new(), |script, n| script.timer(&n.to_string(), far, b"p"));
        assert_eq!(run(fill(0, 60)), [0; 60]);
        match function {
            "script" => assert_eq!(run(fill(60, 5)), [0, 0, 0, 0, over]),
            _ => container.post(function, &session, &fill(60, 5).end()).assert_error(500, "guest_error"),
        };
        assert_eq!(results(&container.post("reader", "s", &Script::new().timer("n", 1, b"").cancel_timer("n").end())), [bad; 2]);
    }
    assert_eq!(metric(&node, "xfaas_timers_failed_total"), 0.0);
    eventually("the others are left", || metric(&node, "xfaas_timers") == 64.0 + 64.0 + 60.0 + 60.0);
}

#[test]
fn a_session_with_a_timer_sleeps_only_when_it_has_fired() {
    let node = Node::builder().function(alarm().with("keep_alive_s = 1")).start();
    set(&node, "later", now_ms() + 4_000, b"f");
    set(&node, "at-once", 1, b"f");
    eventually("one without timers sleeps", || metric(&node, "xfaas_sessions_asleep") >= 1.0);
    eventually("the other's timer has fired", || metric(&node, FIRED) == 2.0);
    eventually("both sleep", || metric(&node, "xfaas_sessions_asleep") == 2.0);
    assert_eq!((seen(&node, "later").0, seen(&node, "at-once").0), (1, 1));
}
