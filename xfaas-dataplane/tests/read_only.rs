//! Read-only functions run on the shard where a request landed, for sessions of every shard: CONTRACT.md section 3.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Function, Node, Reply, Script, UdpClient, guest, request};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const NOT_FOUND: i32 = -1;
const BAD_ARGUMENT: i32 = -2;
/// Connections, or sockets, of which none lands on one of two shards once in 2^100 runs.
const ATTEMPTS_MAX: usize = 100;
const LOCAL: &str = "xfaas_local_reads_total";
const GIVEN_UP: &str = "xfaas_local_reads_given_up_total";

/// Functions of one app: `look` reads counter `n`, `script` may write and `read-script` may not.
fn node() -> Node {
    let look = |name: &str| Function::guest("counter-read").named(name).app("app").with("read_only = true");
    Node::builder()
        .function(Function::guest("counter-rmw").app("app"))
        .function(Function::guest("counter-rmw-linear").app("app"))
        .function(look("look"))
        .function(look("look-once").with("idempotent = true"))
        .function(look("look-fresh").with("fresh = true"))
        .function(Script::function("script").app("app").with("deadline_ms = 20000"))
        .function(Script::function("patient-script").app("app").with("read_only = true").with("deadline_ms = 20000"))
        .function(Script::function("read-script").app("app").with("read_only = true").with("deadline_ms = 300"))
        .start()
}

/// A session of each shard, with 1 at key `n`.
fn sessions(node: &Node) -> [String; 2] {
    node.sessions_of_both_shards().map(|sessions| sessions[0].clone())
}

fn core_of(reply: &Reply) -> usize {
    reply.header("x-xfaas-core").unwrap_or_else(|| panic!("no x-xfaas-core: {reply:?}")).parse().unwrap()
}

fn bytes(function: &str, session: &str, body: &[u8]) -> Vec<u8> {
    request("POST", &format!("/f/{function}"), &[("x-session-id", session)], body)
}

fn ask(client: &mut Client, function: &str, session: &str, body: &[u8]) -> Reply {
    client.send(&bytes(function, session, body));
    client.reply()
}

/// A connection to each shard, by shard: a read-only function tells where its request landed.
fn client_of_each_shard(node: &Node) -> [Client; 2] {
    let mut found = [None, None];
    for _ in 0..ATTEMPTS_MAX {
        let mut client = node.connect();
        let core = core_of(&ask(&mut client, "look", "probe", b""));
        found[core].get_or_insert(client);
        if found.iter().all(Option::is_some) {
            return found.map(Option::unwrap);
        }
    }
    panic!("{ATTEMPTS_MAX} connections on one shard");
}

/// A socket whose datagrams reach each shard, by shard.
fn udp_client_of_each_shard(node: &Node) -> [UdpClient; 2] {
    let received_by_zero = || node.metrics().sum("xfaas_datagrams_total", &[("shard", "0")]);
    let mut found = [None, None];
    for _ in 0..ATTEMPTS_MAX {
        let (udp, before) = (UdpClient::connect(node.http), received_by_zero());
        udp.call("look", "probe", 1, b"").assert_reply(b"0");
        let shard = usize::from(received_by_zero() == before);
        found[shard].get_or_insert(udp);
        if found.iter().all(Option::is_some) {
            return found.map(Option::unwrap);
        }
    }
    panic!("{ATTEMPTS_MAX} sockets on one shard");
}

/// Reads `n` weakly, then strongly, then tells the body's length; what it writes is refused.
fn strong_reader(data: &[u8]) -> Vec<u8> {
    Script::new().read("n", 0).read("n", 1).write("n", data, 1).read("missing", 1).input(0).end()
}

#[test]
fn a_session_is_read_on_the_shard_where_the_request_landed() {
    let node = node();
    let sessions = sessions(&node);
    let mut clients = client_of_each_shard(&node);
    let before = node.metrics();
    for round in 2..12 {
        for session in &sessions {
            node.post("counter-rmw-linear", session, b"").assert_ok(round.to_string().as_bytes());
            for (shard, client) in clients.iter_mut().enumerate() {
                for function in ["look", "look-once", "look-fresh"] {
                    let reply = ask(client, function, session, b"");
                    reply.assert_ok(round.to_string().as_bytes());
                    assert_eq!((core_of(&reply), reply.session()), (shard, session.as_str()));
                }
            }
        }
    }
    let after = node.metrics();
    assert_eq!(after.sum(LOCAL, &[]) - before.sum(LOCAL, &[]), 60.0, "three functions, ten rounds, a foreign session on each shard");
    assert_eq!(after.sum(GIVEN_UP, &[]), 0.0);
    for client in &mut clients {
        for session in ["one-without-state", "another", "a-third"] {
            ask(client, "look", session, b"").assert_ok(b"0");
        }
    }
}

#[test]
fn a_read_that_begins_after_a_write_was_answered_sees_it_on_every_shard() {
    let node = node();
    let [session, _] = &sessions(&node);
    let clients = [client_of_each_shard(&node), client_of_each_shard(&node)];
    // The counter is 1 already.
    let (asked, answered, is_over) = (AtomicU64::new(1), AtomicU64::new(1), AtomicBool::new(false));
    let reads = [AtomicU64::new(0), AtomicU64::new(0)];
    let write = || {
        let mut client = node.connect();
        for _ in 0..800 {
            asked.fetch_add(1, Ordering::SeqCst);
            let reply = ask(&mut client, "counter-rmw-linear", session, b"");
            assert_eq!(reply.status, 200, "{reply:?}");
            answered.fetch_max(reply.text().parse().unwrap(), Ordering::SeqCst);
        }
        is_over.store(true, Ordering::SeqCst);
    };
    let read = |shard: usize, mut client: Client| {
        let mut last = 0;
        while !is_over.load(Ordering::SeqCst) {
            let least = answered.load(Ordering::SeqCst).max(last);
            let reply = ask(&mut client, "look", session, b"");
            let most = asked.load(Ordering::SeqCst);
            assert_eq!(reply.status, 200, "{reply:?}");
            last = reply.text().parse().unwrap();
            assert!((least..=most).contains(&last), "{last} on shard {shard}, not in {least}..={most}");
            assert_eq!(core_of(&reply), shard);
            reads[shard].fetch_add(1, Ordering::SeqCst);
        }
    };
    std::thread::scope(|scope| {
        for pair in clients {
            for (shard, client) in pair.into_iter().enumerate() {
                scope.spawn(move || read(shard, client));
            }
            scope.spawn(write);
        }
    });
    let reads = reads.map(AtomicU64::into_inner);
    assert!(reads.iter().all(|count| *count > 0), "{reads:?}");
    node.post("look", session, b"").assert_ok(asked.into_inner().to_string().as_bytes());
}

#[test]
fn a_strong_read_gets_its_answer_from_the_owner() {
    let node = node();
    let [session, _] = &sessions(&node);
    let [_, mut foreign] = client_of_each_shard(&node);
    let body = strong_reader(&[7; 50_000]);
    let expected = [1, 1, BAD_ARGUMENT, NOT_FOUND, body.len() as i32];
    let before = node.metrics();
    let reply = ask(&mut foreign, "read-script", session, &body);
    assert_eq!((Script::results(&reply.body), core_of(&reply)), (expected.to_vec(), 0));
    let after = node.metrics();
    assert_eq!((after.sum(GIVEN_UP, &[]), after.sum(LOCAL, &[]) - before.sum(LOCAL, &[])), (1.0, 1.0));
    assert_eq!(after.runs("read-script"), 1.0, "one answer, counted once");
    // The connection stays where it is, and the shard has learnt where the function's calls belong.
    assert_eq!(core_of(&ask(&mut foreign, "look", session, b"")), 1);
    for _ in 0..5 {
        let [_, mut foreign] = client_of_each_shard(&node);
        let reply = ask(&mut foreign, "read-script", session, &body);
        assert_eq!((Script::results(&reply.body), core_of(&reply)), (expected.to_vec(), 0));
    }
    assert_eq!(node.metrics().sum(GIVEN_UP, &[]), 1.0);
    // A new version may behave otherwise.
    let module = node.directory.path().join("read-script.wasm");
    let output = node.cli(&["deploy", "read-script", module.to_str().unwrap(), "--app", "app", "--read-only"]);
    assert!(output.status.success(), "{output:?}");
    let reply = ask(&mut foreign, "read-script", session, &Script::new().read("n", 0).end());
    assert_eq!((Script::results(&reply.body), core_of(&reply)), (vec![1], 1));
}

#[test]
fn a_read_only_function_writes_nowhere() {
    let node = node();
    let sessions = sessions(&node);
    let mut clients = client_of_each_shard(&node);
    let body = Script::new().write("n", b"9", 0).write("n", b"9", 1).write("new", b"", 0).read("n", 0).end();
    for session in sessions.iter().map(String::as_str).chain(["fresh"]) {
        for (shard, client) in clients.iter_mut().enumerate() {
            let reply = ask(client, "read-script", session, &body);
            let found = if session == "fresh" { NOT_FOUND } else { 1 };
            assert_eq!(Script::results(&reply.body), [BAD_ARGUMENT, BAD_ARGUMENT, BAD_ARGUMENT, found]);
            assert_eq!(core_of(&reply), shard);
        }
    }
    let listed = node.cli_json(&["sessions", "--prefix", "fresh"]);
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 0, "{listed}");
    for session in &sessions {
        node.post("look", session, b"").assert_ok(b"1");
    }
}

#[test]
fn traps_and_deadlines_end_a_read_as_they_do_on_the_owner() {
    let node = node();
    let [session, _] = &sessions(&node);
    for mut client in client_of_each_shard(&node) {
        let cases =
            [(Script::new().read("n", 0).trap(), 500, "guest_trapped"), (Script::new().read("n", 0).spin_forever(), 504, "deadline")];
        for (body, status, code) in cases {
            let reply = ask(&mut client, "read-script", session, &body);
            reply.assert_error(status, code);
            assert_eq!(reply.session(), session);
        }
        let reply = ask(&mut client, "read-script", session, &Script::new().read("n", 0).end_with(-7));
        reply.assert_error(500, "guest_error");
        assert_eq!(reply.problem()["guest_code"], -7);
        ask(&mut client, "look", session, b"").assert_ok(b"1");
    }
    assert_eq!(node.metrics().sum(GIVEN_UP, &[]), 0.0);
}

#[test]
fn a_large_value_that_changes_all_the_time_is_read_all_the_same() {
    const BYTES: i32 = 1 << 20;
    let node = node();
    let [session, _] = &sessions(&node);
    let [_, mut foreign] = client_of_each_shard(&node);
    let write = (0..30).fold(Script::new(), |script, _| script.write_bytes("k", BYTES)).end();
    assert_eq!(Script::results(&node.post("script", session, &write).body), [0; 30]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..12 {
                assert_eq!(node.post("script", session, &write).status, 200);
            }
            is_over.store(true, Ordering::SeqCst);
        });
        let read = Script::new().read("k", 0).read("n", 0).read("k", 0).end();
        while !is_over.load(Ordering::SeqCst) {
            let reply = ask(&mut foreign, "patient-script", session, &read);
            assert_eq!(Script::results(&reply.body), [BYTES, 1, BYTES], "{reply:?}");
        }
    });
    let metrics = node.metrics();
    assert!(metrics.sum(GIVEN_UP, &[]) <= metrics.sum(LOCAL, &[]));
}

#[test]
fn replies_keep_their_order_when_reads_here_and_calls_elsewhere_alternate() {
    let node = node();
    let [session, _] = &sessions(&node);
    let [_, mut foreign] = client_of_each_shard(&node);
    let weak = Script::new().read("n", 0).end();
    let mut pipeline = Vec::new();
    for round in 0..10 {
        pipeline.extend(bytes("look", session, b""));
        pipeline.extend(bytes("counter-rmw-linear", session, b""));
        pipeline.extend(bytes("read-script", session, if round % 2 == 0 { &weak } else { b"" }));
        pipeline.extend(bytes("look", session, b""));
        pipeline.extend(bytes("read-script", session, &strong_reader(b"")));
    }
    foreign.send(&pipeline);
    for round in 1..=10_i32 {
        foreign.reply().assert_ok(round.to_string().as_bytes());
        foreign.reply().assert_ok((round + 1).to_string().as_bytes());
        let digits = (round + 1).to_string().len() as i32;
        let reply = foreign.reply();
        if round % 2 == 1 {
            assert_eq!(Script::results(&reply.body), [digits]);
        }
        foreign.reply().assert_ok((round + 1).to_string().as_bytes());
        let results = Script::results(&foreign.reply().body);
        assert_eq!(results[..4], [digits, digits, BAD_ARGUMENT, NOT_FOUND]);
    }
}

#[test]
fn datagrams_are_answered_once_wherever_they_run() {
    let node = node();
    let sessions = sessions(&node);
    let clients = udp_client_of_each_shard(&node);
    let before = node.metrics();
    for (id, session) in (10..30).zip(sessions.iter().cycle()) {
        for udp in &clients {
            udp.call("look", session, id, b"").assert_reply(b"1");
        }
    }
    assert_eq!(node.metrics().sum(LOCAL, &[]) - before.sum(LOCAL, &[]), 20.0);
    let body = strong_reader(b"x");
    let expected = [1, 1, BAD_ARGUMENT, NOT_FOUND, body.len() as i32];
    for id in 40..44 {
        let answer = clients[1].call("read-script", &sessions[0], id, &body);
        assert_eq!((answer.kind, Script::results(&answer.payload)), (harness::KIND_REPLY, expected.to_vec()));
    }
    assert_eq!(node.metrics().sum(GIVEN_UP, &[]), 1.0);
    clients[1].call("read-script", &sessions[0], 50, &Script::new().spin_forever()).assert_error(5, "deadline");
    for udp in &clients {
        assert_eq!(udp.answer_within(Duration::from_millis(50)), None);
    }
}

#[test]
fn an_idempotent_read_gets_its_first_answer_on_every_shard() {
    let node = node();
    let sessions = sessions(&node);
    let clients = udp_client_of_each_shard(&node);
    for (owner, session) in sessions.iter().enumerate() {
        let before = node.metrics().sum(LOCAL, &[]);
        clients[1 - owner].call("look-once", session, 7, b"").assert_reply(b"1");
        node.post("counter-rmw-linear", session, b"").assert_ok(b"2");
        for udp in &clients {
            udp.call("look-once", session, 7, b"").assert_reply(b"1");
            udp.call("look", session, 7, b"").assert_reply(b"2");
        }
        assert_eq!(node.metrics().sum(LOCAL, &[]) - before, 1.0, "only `look` runs beside the owner");
    }
}

#[test]
fn a_deployment_brings_the_readers_and_a_swap_takes_the_right_away() {
    let node =
        Node::builder().guests(&["counter-rmw"]).function(Function::guest("counter-read").named("look").with("read_only = true")).start();
    let deploy = |node: &Node, module: &str, flags: &[&str]| {
        let module = guest(module);
        let output = node.cli(&[&["deploy", "late", module.to_str().unwrap(), "--app", "counter-rmw"], flags].concat());
        assert!(output.status.success(), "{output:?}");
    };
    let [session, _] = &sessions(&node);
    let [_, mut foreign] = client_of_each_shard(&node);
    for _ in 0..2 {
        deploy(&node, "counter-read", &["--read-only"]);
        let reply = ask(&mut foreign, "late", session, b"");
        assert_eq!((reply.text(), core_of(&reply)), ("1", 1));
        assert!(node.cli(&["undeploy", "late"]).status.success());
        ask(&mut foreign, "late", session, b"").assert_error(404, "no_function");
    }
    deploy(&node, "counter-rmw-linear", &[]);
    let reply = ask(&mut foreign, "late", session, b"");
    assert_eq!((reply.text(), core_of(&reply)), ("2", 0));
    deploy(&node, "counter-read", &["--read-only"]);
    let [_, mut foreign] = client_of_each_shard(&node);
    let reply = ask(&mut foreign, "late", session, b"");
    assert_eq!((reply.text(), core_of(&reply)), ("2", 1));
}
