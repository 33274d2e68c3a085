//! Sessions: who gets which state, whichever shard a request lands on; and how connections find the shard of their session.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, UdpClient, eventually, request};
use std::collections::HashSet;

fn node() -> Node {
    Node::builder()
        .guests(&["echo", "counter-rmw", "remember"])
        .function(Function::guest("counter-rmw-linear").app("counter"))
        .function(Function::guest("counter-read").app("counter").with("read_only = true"))
        .function(Function::guest("counter-rmw").named("other-app"))
        .start()
}

#[test]
fn a_request_without_a_session_gets_a_fresh_unguessable_one() {
    let node = node();
    let mut seen = HashSet::new();
    for i in 0..40 {
        let reply = node.call("POST", "/f/counter-rmw", &[], b"");
        reply.assert_ok(b"1");
        let session = reply.session().to_owned();
        assert!(session.len() >= 16 && session.bytes().all(|byte| byte.is_ascii_graphic()), "{session}");
        assert!(seen.insert(session.clone()), "{session} twice");
        if i % 10 == 0 {
            node.post("counter-rmw", &session, b"").assert_ok(b"2");
        }
    }
}

#[test]
fn a_fresh_session_lives_on_the_shard_that_received_it() {
    let node = node();
    for _ in 0..20 {
        node.call("POST", "/f/echo", &[], b"").assert_ok(b"");
    }
    let metrics = node.metrics();
    assert_eq!((metrics.sum("xfaas_misrouted_total", &[]), metrics.sum("xfaas_steered_total", &[])), (0.0, 20.0));
}

#[test]
fn one_connection_without_sessions_gets_another_for_each_request() {
    let node = node();
    let mut client = node.connect();
    let sessions: HashSet<String> = (0..10).map(|_| client.call("GET", "/f/echo", &[], b"").session().to_owned()).collect();
    assert_eq!(sessions.len(), 10);
}

#[test]
fn sessions_do_not_see_each_other() {
    let node = node();
    for session in ["alice", "Alice", "alic", "alice1", "alice."] {
        for i in 1..=3 {
            node.post("counter-rmw", session, b"").assert_ok(i.to_string().as_bytes());
        }
    }
    for session in ["alice", "bob"] {
        // A worker's memory may last within one session and must never be seen by another.
        let first = node.post("remember", session, b"");
        assert_eq!(first.body, b"", "the first call of {session} sees nothing");
        let second = node.post("remember", session, b"");
        assert!(second.body.is_empty() || second.text() == session, "{second:?}");
    }
}

#[test]
fn apps_do_not_see_each_other_and_functions_of_one_app_do() {
    let node = node();
    for _ in 0..3 {
        node.post("counter-rmw-linear", "s", b"");
    }
    node.post("counter-read", "s", b"").assert_ok(b"3");
    node.post("counter-rmw", "s", b"").assert_ok(b"1");
    node.post("other-app", "s", b"").assert_ok(b"1");
    node.post("counter-read", "t", b"").assert_ok(b"0");
}

#[test]
fn a_session_is_the_same_through_every_shard_and_protocol() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    // Each connection lands on a shard of the kernel's choice.
    for i in (1..60).step_by(2) {
        node.post("counter-rmw", "everywhere", b"").assert_ok(i.to_string().as_bytes());
        udp.call("counter-rmw", "everywhere", i, b"").assert_reply((i + 1).to_string().as_bytes());
    }
    assert!(node.metrics().sum("xfaas_misrouted_total", &[]) > 0.0, "thirty connections on one shard happen once in a billion runs");
}

#[test]
fn a_connection_of_one_session_moves_to_its_shard_and_stays_there() {
    let node = node();
    let [zero, _] = node.sessions_of_both_shards();
    let before = node.metrics();
    let mut clients: Vec<_> = (0..24).map(|_| node.connect()).collect();
    for round in 0..10 {
        for client in &mut clients {
            let reply = client.call("POST", "/f/echo", &[("x-session-id", &zero[0])], b"x");
            reply.assert_ok(b"x");
            assert_eq!(reply.session(), zero[0], "round {round}");
        }
    }
    let after = node.metrics();
    let grown = |name: &str| after.sum(name, &[]) - before.sum(name, &[]);
    let moved = grown("xfaas_moved_total");
    assert!((1.0..=23.0).contains(&moved), "about half of 24 connections land on the other shard: {moved}");
    assert_eq!(grown("xfaas_forwarded_total"), moved, "only the first request of each is forwarded");
    assert_eq!(grown("xfaas_misrouted_total"), moved);
    assert_eq!(after.sum("xfaas_connections", &[("shard", "0")]), 24.0);
    assert_eq!(after.sum("xfaas_connections", &[("shard", "1")]), 0.0);
}

#[test]
fn a_moved_connection_behaves_like_any_other() {
    let node = node();
    let [zero, one] = node.sessions_of_both_shards();
    for sessions in [[&zero[0], &one[0]], [&one[0], &zero[0]]] {
        for _ in 0..8 {
            let mut client = node.connect();
            for i in 0..3 {
                client.call("POST", "/f/echo", &[("x-session-id", sessions[0])], &[i; 10_000]).assert_ok(&[i; 10_000]);
            }
            for byte in harness::request("POST", "/f/echo", &[("x-session-id", sessions[0])], b"split").chunks(3) {
                client.send(byte);
            }
            client.reply().assert_ok(b"split");
            client.call("POST", "/f/echo", &[("x-session-id", sessions[1])], b"x").assert_ok(b"x");
            let pipelined = harness::request("POST", "/f/echo", &[("x-session-id", sessions[0])], b"y").repeat(5);
            client.send(&pipelined);
            client.finish();
            for _ in 0..5 {
                client.reply().assert_ok(b"y");
            }
            client.assert_closed();
        }
    }
    eventually("all connections are gone", || node.metrics().sum("xfaas_connections", &[]) == 0.0);
}

#[test]
fn requests_sent_while_a_connection_moves_are_answered_in_order() {
    let node = node();
    let [zero, one] = node.sessions_of_both_shards();
    for session in [&zero[0], &one[0]] {
        for _ in 0..20 {
            let mut client = node.connect();
            let mut writer = client.stream().try_clone().unwrap();
            let session = session.clone();
            let writing = std::thread::spawn(move || {
                for i in 0..50 {
                    let bytes = harness::request("POST", "/f/echo", &[("x-session-id", &session)], format!("{i}").as_bytes());
                    std::io::Write::write_all(&mut writer, &bytes).unwrap();
                }
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            for i in 0..50 {
                client.reply().assert_ok(format!("{i}").as_bytes());
            }
            client.assert_closed();
            writing.join().unwrap();
        }
    }
}

#[test]
fn a_connection_of_many_sessions_stays_and_forwards() {
    let node = node();
    let [zero, one] = node.sessions_of_both_shards();
    let mut clients: Vec<_> = (0..16).map(|_| node.connect()).collect();
    let mut talk = |rounds: usize| {
        for _ in 0..rounds {
            for client in &mut clients {
                for session in [&zero[0], &one[0]] {
                    let reply = client.call("POST", "/f/echo", &[("x-session-id", session)], b"");
                    assert_eq!((reply.status, reply.session()), (200, session.as_str()));
                }
            }
        }
    };
    talk(1);
    let before = node.metrics();
    talk(10);
    let after = node.metrics();
    let grown = |name: &str| after.sum(name, &[]) - before.sum(name, &[]);
    assert_eq!(grown("xfaas_moved_total"), 0.0);
    assert_eq!((grown("xfaas_steered_total"), grown("xfaas_forwarded_total")), (160.0, 160.0));
}

#[test]
fn concurrent_requests_of_one_session_through_both_shards_lose_nothing() {
    let node = node();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..25 {
                    // A new connection each: half of them have to be forwarded.
                    assert_eq!(node.post("counter-rmw-linear", "shared", b"").status, 200);
                }
            });
        }
    });
    node.post("counter-read", "shared", b"").assert_ok(b"200");
}

#[test]
fn a_long_list_of_sessions_is_made_in_many_steps() {
    const SESSIONS: usize = 10_000;
    let node = Node::builder().guests(&["counter-rmw"]).shards(1).start();
    let mut client = node.connect();
    for first in (0..SESSIONS).step_by(100) {
        let some = (first..first + 100).map(|i| request("POST", "/f/counter-rmw", &[("x-session-id", &format!("user-{i}"))], b""));
        client.send(&some.collect::<Vec<_>>().concat());
        (0..100).for_each(|_| client.reply().assert_ok(b"1"));
    }
    let turns = || node.metrics().sum("xfaas_turns_total", &[]);
    let listed = |arguments: &[&str]| {
        let before = turns();
        let listed = node.cli_json(&[&["sessions", "--limit", "10000"], arguments].concat());
        let sessions: HashSet<String> = listed["sessions"].as_array().unwrap().iter().map(|row| row["session"].to_string()).collect();
        // Between two steps are calls: at rest a turn for each, beside those few that come by themselves.
        (listed, sessions.len(), turns() - before)
    };
    let (list, distinct, turns) = listed(&[]);
    assert_eq!((distinct, &list["truncated"]), (SESSIONS, &false.into()));
    let row = &list["sessions"][0];
    assert_eq!((&row["app"], &row["keys"], &row["containers"]), (&"counter-rmw".into(), &1.into(), &1.into()), "{row}");
    let busy = list["sessions"].as_array().unwrap().iter().filter(|row| row["workers"] != 0).count() as f64;
    assert_eq!(busy, node.metrics().sum("xfaas_workers", &[]), "each worker is somebody's");
    assert!(turns > 15.0, "{turns} turns");
    let (_, none, turns) = listed(&["--prefix", "zzz"]);
    assert!(none == 0 && turns > 5.0, "{none} sessions in {turns} turns");
    let (list, some, _) = listed(&["--prefix", "user-77"]);
    assert_eq!((some, &list["truncated"]), (111, &false.into()));
    // What is wanted is there: the rest is not looked at.
    let few = node.cli_json(&["sessions", "--limit", "7"]);
    assert_eq!((few["sessions"].as_array().unwrap().len(), &few["truncated"]), (7, &true.into()));
    assert_eq!(listed(&["--app", "none"]).1, 0);
}
