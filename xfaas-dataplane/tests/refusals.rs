//! Limits that guests hit: -3 for the guest, and `xfaas_state_refused_total` says which limit it was. CONTRACT.md section 3.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Container, Function, Metrics, Node, PATIENCE, RpcClient, Script, State, eventually};
use std::time::{Duration, Instant};

const OVER_LIMIT: i32 = -3;
const REASONS: [&str; 12] =
    ["key", "session_id", "value", "session_bytes", "keys", "region", "guest_memory", "locks", "timers", "output", "snapshot", "commit"];

/// Does something as many times as the body says, each time with another key: 0 writes a byte, 1 writes a mebibyte, 2 reads strongly, 3 sets an output of
/// 8 MiB and one byte. Its output is the result of the last time.
const OFTEN: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (import "xfaas" "read_state" (func $read_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write_state (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 130)
  (func $once (result i32)
    (if (i32.eqz (i32.load (i32.const 0))) (then (return (call $write_state (i32.const 16) (i32.const 0) (i32.const 1) (i32.const 0)))))
    (if (i32.eq (i32.load (i32.const 0)) (i32.const 1))
      (then (return (call $write_state (i32.const 16) (i32.const 0) (i32.const 1048576) (i32.const 0)))))
    (if (i32.eq (i32.load (i32.const 0)) (i32.const 2))
      (then (return (call $read_state (i32.const 16) (i32.const 0) (i32.const 0) (i32.const 1)))))
    (call $set_output (i32.const 0) (i32.const 8388609)))
  (func (export "handle") (result i32)
    (local $left i32)
    (drop (call $read_input (i32.const 0) (i32.const 0) (i32.const 8)))
    (local.set $left (i32.load (i32.const 4)))
    ;; A key of three bytes, none of them a NUL.
    (loop $next
      (i32.store (i32.const 16)
        (i32.or (i32.const 0x010101)
          (i32.or (i32.shl (i32.and (local.get $left) (i32.const 0x7F)) (i32.const 1))
            (i32.or (i32.shl (i32.and (i32.shr_u (local.get $left) (i32.const 7)) (i32.const 0x7F)) (i32.const 9))
              (i32.shl (i32.and (i32.shr_u (local.get $left) (i32.const 14)) (i32.const 0x7F)) (i32.const 17))))))
      (i32.store (i32.const 8) (call $once))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $next (local.get $left)))
    (drop (call $set_output (i32.const 8) (i32.const 4)))
    (i32.const 0)))"#;

fn node() -> Node {
    let script = |name: &str| Script::function(name).app("scripts").with("deadline_ms = 60000");
    Node::builder()
        .function(script("script").with("read_sessions = true"))
        .function(script("small").with("state_mib = 1"))
        .function(script("atomic").with("atomic = true"))
        .function(Script::function("tight").with("atomic = true").with("state_mib = 1"))
        .function(Function::text("often", OFTEN).app("often").with("deadline_ms = 60000"))
        .limit("region_mib = 64")
        .start()
}

/// How often each limit was hit.
fn refused(metrics: &Metrics) -> Vec<(&'static str, f64)> {
    REASONS.iter().map(|reason| (*reason, metrics.sum("xfaas_state_refused_total", &[("reason", reason)]))).collect()
}

/// Runs what hits one limit, a number of times.
#[track_caller]
fn assert_counted(read: impl Fn() -> Metrics, reason: &str, times: f64, work: impl FnOnce()) {
    let before = refused(&read());
    work();
    let expected: Vec<_> = before.iter().map(|(other, count)| (*other, count + if *other == reason { times } else { 0.0 })).collect();
    let seen = || refused(&read());
    let end = Instant::now() + PATIENCE;
    while seen() != expected && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(seen(), expected, "{reason}");
}

#[test]
fn each_limit_that_a_guest_hits_is_counted_under_its_name() {
    let node = node();
    let run = |function: &str, session: &str, script: Script, expected: &[i32]| {
        let reply = node.post(function, session, &script.end());
        assert_eq!((reply.status, Script::results(&reply.body)), (200, expected.to_vec()), "{reply:?}");
    };
    let often = |session: &str, op: u32, times: u32| {
        let reply = node.post("often", session, &[op.to_le_bytes(), times.to_le_bytes()].concat());
        assert_eq!(reply.status, 200, "{reply:?}");
        Script::results(&reply.body)[0]
    };
    let counted = |reason, times, work: &dyn Fn()| assert_counted(|| node.metrics(), reason, times, work);
    let long = "k".repeat(256);
    counted("key", 3.0, &|| {
        let script = Script::new().read(&long, 0).write(&long, b"v", 1).session("other", &long);
        run("script", "s", script, &[OVER_LIMIT; 3]);
    });
    counted("session_id", 1.0, &|| run("script", "s", Script::new().session(&long[..65], "k"), &[OVER_LIMIT]));
    for function in ["script", "atomic"] {
        counted("value", 1.0, &|| run(function, "s", Script::new().write_bytes("k", (1 << 20) + 1), &[OVER_LIMIT]));
    }
    counted("session_bytes", 1.0, &|| {
        run("small", "small", Script::new().write_bytes("k", (1 << 20) - 1).write("l", b"v", 0), &[0, OVER_LIMIT])
    });
    counted("timers", 3.0, &|| {
        let script = Script::new().timer(&long[..65], 0, b"").cancel_timer(&long[..65]).timer("t", 0, &[0; 4_097]);
        run("script", "s", script, &[OVER_LIMIT; 3]);
    });
    let far = 32_503_680_000_000_i64;
    for function in ["script", "atomic"] {
        let timers = |from: u32, to: u32| (from..to).fold(Script::new(), |script, number| script.timer(&number.to_string(), far, b""));
        run(function, function, timers(0, 60), &[0; 60]);
        counted("timers", 1.0, &|| run(function, function, timers(60, 65), &[0, 0, 0, 0, OVER_LIMIT]));
    }
    counted("snapshot", 1.0, &|| run("script", "s", Script::new().snapshot(&["k"; 65]), &[OVER_LIMIT]));
    counted("output", 1.0, &|| assert_eq!(often("s", 3, 1), OVER_LIMIT));
    counted("locks", 2.0, &|| assert_eq!(often("s", 2, 1_026), OVER_LIMIT));
    counted("keys", 1.0, &|| assert_eq!(often("keys", 0, 65_537), OVER_LIMIT));
    counted("none", 0.0, &|| run("script", "fresh", Script::new().write("k", b"v", 1).read("k", 0), &[0, 1]));
    // Two of three sessions share a region of 64 MiB: there are two shards.
    let before = refused(&node.metrics());
    let results: Vec<i32> = ["a", "b", "c"].iter().map(|session| often(session, 1, 40)).collect();
    assert!(results.contains(&OVER_LIMIT), "{results:?}");
    eventually("full regions are counted", || node.metrics().sum("xfaas_state_refused_total", &[("reason", "region")]) > 0.0);
    let others = |counts: Vec<(&'static str, f64)>| counts.into_iter().filter(|(reason, _)| *reason != "region").collect::<Vec<_>>();
    assert_eq!(others(refused(&node.metrics())), others(before));
}

#[test]
fn limits_of_containers_are_counted_by_whoever_finds_them() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State { app: "scripts", ..State::weak("small", "s") };
    let strong = State { mode: 1, ..at };
    let counted = |reason, times, work: &mut dyn FnMut()| assert_counted(|| node.metrics(), reason, times, work);
    let large = vec![0; 1 << 20];
    counted("key", 2.0, &mut || {
        assert_eq!(client.call(|id| at.read(id, &[b'k'; 256])).result(), OVER_LIMIT);
        assert_eq!(client.call(|id| at.commit(id, &[(&[b'k'; 256], b"")])).result(), OVER_LIMIT);
    });
    counted("value", 2.0, &mut || {
        assert_eq!(client.call(|id| strong.write(id, b"k", &vec![0; (1 << 20) + 1])).result(), OVER_LIMIT);
        assert_eq!(client.call(|id| at.commit(id, &[(b"k", &vec![0; (1 << 20) + 1])])).result(), OVER_LIMIT);
    });
    counted("session_bytes", 2.0, &mut || {
        assert_eq!(client.call(|id| at.write(id, b"k", &large)).result(), OVER_LIMIT);
        assert_eq!(client.call(|id| at.commit(id, &[(b"k", &large), (b"l", b"")])).result(), OVER_LIMIT);
    });
    counted("snapshot", 1.0, &mut || {
        assert_eq!(client.call(|id| State { op: 1, ..at }.read(id, &b"k\0".repeat(65))).result(), OVER_LIMIT);
    });
    let container = Container::join(&node, &[]);
    assert_counted(
        || container.metrics(),
        "key",
        1.0,
        || {
            let reply = container.post("script", "s", &Script::new().read(&"k".repeat(256), 0).end());
            assert_eq!(Script::results(&reply.body), [OVER_LIMIT]);
        },
    );
    assert_counted(
        || container.metrics(),
        "commit",
        1.0,
        || {
            let script = Script::new().write_bytes("k", 1 << 20).write_bytes("l", 1 << 20).write_bytes("m", 1 << 20).end();
            assert_eq!(Script::results(&container.post("atomic", "s", &script).body), [0, 0, OVER_LIMIT]);
        },
    );
    // What the session holds already is found at the commit, by the primary.
    assert_counted(
        || node.metrics(),
        "session_bytes",
        1.0,
        || {
            let script = Script::new().write_bytes("k", 700_000).end();
            assert_eq!(container.post("tight", "s", &script).status, 200);
            let script = Script::new().write_bytes("l", 700_000).end();
            container.post("tight", "s", &script).assert_error(500, "guest_error");
        },
    );
}
