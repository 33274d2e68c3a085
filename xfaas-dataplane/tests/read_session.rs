//! `read_session`: a value of another session of the same app, from the same shard, another one, and a container. CONTRACT.md section 3.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Container, Function, Node, RESULTS, Reply, Script, Stop, eventually};
use std::io::Write;
use std::path::PathBuf;

const NOT_FOUND: i32 = -1;
const BAD_ARGUMENT: i32 = -2;
const OVER_LIMIT: i32 = -3;
const UNREACHABLE: i32 = -5;
const ASKED: &str = "xfaas_session_reads_asked_total";
/// The end of the memory of a script's guest.
const MEMORY_END: i32 = 20 * 65_536;

/// Writes as many bytes as the body says at 4, all of them the body's first, to key `v`.
const FILL: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write_state (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 18)
  (data (i32.const 1040) "v\00")
  (func (export "handle") (result i32)
    (drop (call $read_input (i32.const 0) (i32.const 1024) (i32.const 8)))
    (memory.fill (i32.const 65536) (i32.load8_u (i32.const 1024)) (i32.load (i32.const 1028)))
    (call $write_state (i32.const 1040) (i32.const 65536) (i32.load (i32.const 1028)) (i32.const 0))))"#;

/// Reads key `v` of the session that the body names; answers its length and its byte, and traps if its bytes differ or one behind it was touched.
const LOOK: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (import "xfaas" "read_session" (func $read_session (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 18)
  (data (i32.const 1000) "v\00")
  (func (export "handle") (result i32)
    (local $length i32) (local $byte i32) (local $at i32)
    (i32.store8 (i32.add (i32.const 1024) (call $read_input (i32.const 0) (i32.const 1024) (i32.const 64))) (i32.const 0))
    (memory.fill (i32.const 65536) (i32.const 0) (i32.const 1048576))
    (local.set $length (call $read_session (i32.const 1024) (i32.const 1000) (i32.const 65536) (i32.const 1048576)))
    (local.set $byte (i32.load8_u (i32.const 65536)))
    (local.set $at (i32.const 0))
    (if (i32.lt_s (local.get $length) (i32.const 0)) (then unreachable))
    block $end
      loop $next
        (br_if $end (i32.ge_u (local.get $at) (local.get $length)))
        (if (i32.ne (i32.load8_u (i32.add (i32.const 65536) (local.get $at))) (local.get $byte)) (then unreachable))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        br $next
      end
    end
    (if (i32.load8_u (i32.add (i32.const 65536) (local.get $length))) (then unreachable))
    (i32.store (i32.const 2048) (local.get $length))
    (i32.store (i32.const 2052) (local.get $byte))
    (drop (call $set_output (i32.const 2048) (i32.const 8)))
    (i32.const 0)))"#;

/// The lengths that are written, by the byte that fills them less one.
const LENGTHS: [usize; 6] = [0, 1, 17, 9_000, 300_000, 1 << 20];

/// Functions of one app, of which all but `blind` may read other sessions.
fn node() -> Node {
    let script = |name: &str| Script::function(name).app("app").with("deadline_ms = 20000");
    let reads = |function: Function| function.with("read_sessions = true");
    Node::builder()
        .shard_setting("rebalance = false")
        .guests(&["counter-rmw"])
        .function(reads(script("script")))
        .function(reads(script("atomic")).with("atomic = true"))
        .function(reads(script("reader")).with("read_only = true"))
        .function(script("blind"))
        .function(reads(Script::function("stranger")))
        .function(Function::text("fill", FILL).app("app").with("deadline_ms = 20000"))
        .function(reads(Function::text("look", LOOK).app("app")).with("deadline_ms = 20000"))
        .function(reads(Function::text("look-beside", LOOK).app("app")).with("read_only = true").with("deadline_ms = 20000"))
        .start()
}

#[track_caller]
fn results(reply: &Reply) -> Vec<i32> {
    assert_eq!(reply.status, 200, "{reply:?}");
    Script::results(&reply.body)
}

/// Two sessions of shard 0 and one of shard 1.
fn sessions(node: &Node) -> [String; 3] {
    let [of_zero, of_one] = node.sessions_of_both_shards();
    [of_zero[0].clone(), of_zero[1].clone(), of_one[0].clone()]
}

#[test]
fn a_guest_reads_values_of_other_sessions_on_every_shard() {
    let node = node();
    let [me, near, far] = sessions(&node);
    for session in [&near, &far] {
        let script = Script::new().write("k", b"hello", 0).write("empty", b"", 1);
        assert_eq!(results(&node.post("script", session, &script.end())), [0, 0]);
    }
    for session in [&near, &far] {
        for function in ["script", "atomic", "reader"] {
            let script = || Script::new().session(session, "k").session(session, "empty").session(session, "none").session("nobody", "k");
            assert_eq!(results(&node.post(function, &me, &script().end())), [5, 0, NOT_FOUND, NOT_FOUND], "{function} reads {session}");
            let reply = node.post(function, &me, &Script::new().session(session, "k").output(5).end_with(0));
            reply.assert_ok(b"hello");
            // No more than there is room for.
            let address = RESULTS + 1_024;
            let script = Script::new().session_to(address, 2, session, "k").output_from(address, 4);
            node.post(function, &me, &script.end_with(0)).assert_ok(b"he\0\0");
        }
        // Another app has nothing under that name.
        assert_eq!(results(&node.post("stranger", &me, &Script::new().session(session, "k").end())), [NOT_FOUND]);
    }
    // The caller's own session is as `read_state` shows it.
    let script =
        || Script::new().write("mine", b"123", 0).session(&me, "mine").session(&me, "k").write("mine", b"1", 1).session(&me, "mine");
    for function in ["script", "atomic"] {
        assert_eq!(results(&node.post(function, &me, &script().end())), [0, 3, NOT_FOUND, 0, 1], "{function}");
    }
    assert_eq!(node.metrics().sum(ASKED, &[]), 0.0, "the regions of all shards can be read here");
}

#[test]
fn what_must_not_be_read_is_refused() {
    let node = node();
    let [me, near, far] = sessions(&node);
    for session in [&near, &far] {
        assert_eq!(results(&node.post("script", session, &Script::new().write("k", b"secret", 0).end())), [0]);
        let script = Script::new().session(session, "k").session(session, "none").session(&me, "k");
        assert_eq!(results(&node.post("blind", &me, &script.end())), [BAD_ARGUMENT; 3], "it was deployed without read_sessions");
    }
    let long = "s".repeat(64);
    let script = Script::new()
        .session("", "k")
        .session("two words", "k")
        .session("ü", "k")
        .session(&near, "")
        .session(&format!("{long}s"), "k")
        .session(&near, &"k".repeat(256))
        .session(&format!("{long}s"), "")
        .session(&long, &"k".repeat(255));
    let expected = [BAD_ARGUMENT, BAD_ARGUMENT, BAD_ARGUMENT, BAD_ARGUMENT, OVER_LIMIT, OVER_LIMIT, BAD_ARGUMENT, NOT_FOUND];
    assert_eq!(results(&node.post("script", &me, &script.end())), expected);
    // Bad pointers, and names that memory cuts off: the guest's memory has zeros where nothing was written.
    let good = RESULTS + 4_096;
    for (session, key, buffer, bytes) in [
        (-1, good, good, 4),
        (MEMORY_END, good, good, 4),
        (good, -1, good, 4),
        (good, MEMORY_END, good, 4),
        (good, good, MEMORY_END - 3, 4),
        (good, good, -1, 4),
        (good, good, good, -1),
        (good, good, good, i32::MIN),
    ] {
        let script = Script::new().session_at(session, key, buffer, bytes);
        assert_eq!(results(&node.post("script", &me, &script.end())), [BAD_ARGUMENT], "{session} {key} {buffer} {bytes}");
    }
}

fn fill(client: &mut Client, session: &str, index: usize) {
    let body = [(index as u32 + 1).to_le_bytes(), (LENGTHS[index] as u32).to_le_bytes()].concat();
    client.call("POST", "/f/fill", &[("x-session-id", session)], &body).assert_ok(b"");
}

/// Looks at `v` of `session`. Output: which of `LENGTHS` it was; the guest has seen that its bytes are all the same.
#[track_caller]
fn look(client: &mut Client, function: &str, me: &str, session: &str) -> usize {
    let reply = client.call("POST", &format!("/f/{function}"), &[("x-session-id", me)], session.as_bytes());
    let found = results(&reply);
    let index = LENGTHS.iter().position(|length| *length as i32 == found[0]).unwrap_or_else(|| panic!("{found:?}"));
    assert_eq!(found[1], if index == 0 { 0 } else { index as i32 + 1 }, "a length with another value's bytes");
    index
}

#[test]
fn a_value_is_whole_while_its_owner_writes() {
    let node = node();
    let [me, near, far] = sessions(&node);
    for session in [&near, &far] {
        fill(&mut node.connect(), session, 1);
        let is_over = Stop::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = node.connect();
                for index in (0..LENGTHS.len()).cycle() {
                    if is_over.is_set() {
                        return;
                    }
                    fill(&mut client, session, index);
                }
            });
            let _guard = is_over.at_end();
            let (mut client, mut seen) = (node.connect(), [0; LENGTHS.len()]);
            for round in 0..60 {
                seen[look(&mut client, ["look", "look-beside"][round % 2], &me, session)] += 1;
            }
            assert!(seen.iter().filter(|count| **count > 0).count() > 1, "nothing was written meanwhile: {seen:?}");
        });
    }
}

#[test]
fn a_session_is_found_while_it_moves() {
    let node = node();
    let [near, other, far] = sessions(&node);
    assert_eq!(results(&node.post("script", &other, &Script::new().write("k", b"hello", 0).end())), [0]);
    let is_over = Stop::default();
    std::thread::scope(|scope| {
        for me in [&near, &far] {
            let (node, other, is_over) = (&node, &other, &is_over);
            scope.spawn(move || {
                let mut client = node.connect();
                while !is_over.is_set() {
                    let body = Script::new().session(other, "k").session(other, "none").session(other, "k").end();
                    let reply = client.call("POST", "/f/script", &[("x-session-id", me)], &body);
                    assert_eq!(results(&reply), [5, NOT_FOUND, 5]);
                }
            });
        }
        let _guard = is_over.at_end();
        for core in [1, 0].iter().cycle().take(20) {
            node.cli_json(&["sessions", "move", "app", &other, "--core", &core.to_string()]);
        }
    });
}

#[test]
fn where_only_the_owner_knows_what_is_safe_it_is_asked() {
    let script = |name: &str| Script::function(name).app("app").with("durability = \"sync\"").with("deadline_ms = 20000");
    let node = Node::builder().guests(&["counter-rmw"]).function(script("script").with("read_sessions = true")).start();
    let [me, near, far] = sessions(&node);
    for (session, asked) in [(&near, 0.0), (&far, 1.0)] {
        let before = node.metrics().sum(ASKED, &[]);
        assert_eq!(results(&node.post("script", session, &Script::new().write("k", b"hello", 0).end())), [0]);
        let script = Script::new().session(session, "k").session(session, "none").session("nobody", "k").output(0);
        assert_eq!(node.post("script", &me, &script.end_with(0)).status, 200);
        node.post("script", &me, &Script::new().session(session, "k").output(5).end_with(0)).assert_ok(b"hello");
        let script = Script::new().session(session, "none").session(session, "k").session(session, &"k".repeat(256));
        assert_eq!(results(&node.post("script", &me, &script.end())), [NOT_FOUND, 5, OVER_LIMIT]);
        let asked_for = node.metrics().sum(ASKED, &[]) - before;
        assert!(if asked == 0.0 { asked_for <= 1.0 } else { asked_for >= 5.0 }, "{asked_for}: only `nobody` may be the other shard's");
    }
}

#[test]
fn a_container_reads_other_sessions_with_and_without_a_mapping() {
    let node = node();
    let [me, near, far] = sessions(&node);
    for session in [&near, &far] {
        fill(&mut node.connect(), session, 3);
        assert_eq!(results(&node.post("script", session, &Script::new().write("k", b"hello", 0).end())), [0]);
    }
    for flags in [&[][..], &["--no-map"]] {
        let container = Container::join(&node, flags);
        let counts = || {
            let metrics = container.metrics();
            ["xfaas_container_mapped_reads_total", "xfaas_container_rpc_reads_total"].map(|name| metrics.sum(name, &[]))
        };
        let before = counts();
        for session in [&near, &far] {
            let script = || Script::new().session(session, "k").session(session, "none").session("nobody", "k");
            for function in ["script", "reader", "atomic"] {
                assert_eq!(results(&container.post(function, &me, &script().end())), [5, NOT_FOUND, NOT_FOUND], "{flags:?}");
                container.post(function, &me, &Script::new().session(session, "k").output(5).end_with(0)).assert_ok(b"hello");
            }
            assert_eq!(results(&container.post("blind", &me, &script().end())), [BAD_ARGUMENT; 3], "{flags:?}");
            let script = Script::new().session("", "k").session(&"s".repeat(65), "k").session(session, &"k".repeat(256));
            assert_eq!(results(&container.post("script", &me, &script.end())), [BAD_ARGUMENT, OVER_LIMIT, OVER_LIMIT], "{flags:?}");
        }
        let script = Script::new().write("mine", b"123", 0).session(&me, "mine");
        assert_eq!(results(&container.post("atomic", &me, &script.end())), [0, 3], "{flags:?}");
        let way = usize::from(!flags.is_empty());
        eventually("the reads are counted", || counts()[way] - before[way] >= 24.0);
        assert_eq!(counts()[1 - way], before[1 - way], "{flags:?}");
        let (mut writer, mut client) = (node.connect(), container.connect());
        for index in 0..LENGTHS.len() {
            fill(&mut writer, &far, index);
            assert_eq!(look(&mut client, "look", &me, &far), index, "{flags:?}");
        }
    }
}

#[test]
fn a_container_without_its_primary_answers_unreachable_or_refuses() {
    let mut node = node();
    let [me, near, _] = sessions(&node);
    let container = Container::join(&node, &[]);
    assert_eq!(results(&container.post("script", &me, &Script::new().session(&near, "k").end())), [NOT_FOUND]);
    node.kill();
    eventually("the container noticed", || !container.is_ready());
    // Its shards notice by themselves, and read in the mapped region until then.
    let ask = || container.post("script", &me, &Script::new().session(&near, "k").end());
    eventually("its shards noticed", || ask().status != 200);
    ask().assert_error(503, "no_primary");
}

#[test]
fn a_session_that_sleeps_is_loaded_to_be_read() {
    let script = Script::function("script").app("app").with("keep_alive_s = 1").with("read_sessions = true").with("deadline_ms = 20000");
    let node = Node::builder().guests(&["counter-rmw"]).function(script).start();
    let [me, near, far] = sessions(&node);
    for session in [&near, &far] {
        assert_eq!(results(&node.post("script", session, &Script::new().write("k", b"hello", 0).end())), [0]);
    }
    eventually("they sleep", || node.metrics().sum("xfaas_sessions_asleep", &[]) == 2.0);
    for session in [&near, &far] {
        let script = Script::new().session(session, "k").session(session, "none").session("nobody", "k");
        assert_eq!(results(&node.post("script", &me, &script.end())), [5, NOT_FOUND, NOT_FOUND]);
    }
    assert!(node.metrics().sum(ASKED, &[]) >= 2.0, "their owners were asked");
}

/// The checkpoint of the only session of an app that sleeps.
fn checkpoint_of(node: &Node, app: &str) -> PathBuf {
    let inside = |folder: PathBuf| std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    inside(inside(node.directory.path().join("state/checkpoints").join(app)))
}

#[test]
fn a_session_that_cannot_be_loaded_is_not_taken_for_one_of_its_name_in_another_app() {
    let script = |app: &str| {
        let function = Script::function(&format!("in-{app}")).app(app).with("keep_alive_s = 1");
        function.with("read_sessions = true").with("deadline_ms = 20000")
    };
    let node = Node::builder().guests(&["counter-rmw"]).shards(1).function(script("slow")).function(script("lost")).start();
    for function in ["in-slow", "in-lost"] {
        assert_eq!(results(&node.post(function, "twin", &Script::new().write("k", b"hello", 0).end())), [0]);
    }
    eventually("they sleep", || node.metrics().sum("xfaas_sessions_asleep", &[]) == 2.0);
    // What is read from a pipe comes when this test has written it.
    let (slow, lost) = (checkpoint_of(&node, "slow"), checkpoint_of(&node, "lost"));
    let bytes = std::fs::read(&slow).unwrap();
    std::fs::remove_file(&slow).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&slow).status().unwrap().success());
    // Open for reading too, or opening would wait for a reader.
    let mut pipe = std::fs::File::options().read(true).write(true).open(&slow).unwrap();
    std::fs::remove_file(lost).unwrap();
    let ask = Script::new().session("twin", "k").session("twin", "none").end();
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| node.post("in-slow", "asker", &ask));
        eventually("it is asked", || node.metrics().sum(ASKED, &[]) == 1.0);
        node.post("in-lost", "twin", &Script::new().end()).assert_error(503, "overloaded");
        pipe.write_all(&bytes).unwrap();
        drop(pipe);
        assert_eq!(results(&asks.join().unwrap()), [5, NOT_FOUND]);
    });
}

#[test]
fn a_question_for_a_session_that_cannot_be_loaded_ends_at_once() {
    let script = Script::function("script").app("app").with("keep_alive_s = 1").with("read_sessions = true").with("deadline_ms = 20000");
    let node = Node::builder().guests(&["counter-rmw"]).shards(1).function(script).start();
    assert_eq!(results(&node.post("script", "lost", &Script::new().write("k", b"hello", 0).end())), [0]);
    eventually("it sleeps", || node.metrics().sum("xfaas_sessions_asleep", &[]) == 1.0);
    std::fs::remove_file(checkpoint_of(&node, "app")).unwrap();
    let asked = std::time::Instant::now();
    assert_eq!(results(&node.post("script", "me", &Script::new().session("lost", "k").end())), [UNREACHABLE]);
    assert!(asked.elapsed() < std::time::Duration::from_secs(10), "not only when the call's time is over");
}
