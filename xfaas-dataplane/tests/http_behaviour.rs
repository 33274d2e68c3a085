//! Connections as CONTRACT.md section 1, "Expect" and "Order", rules them: keep-alive, pipelining, half-close, HEAD, HTTP/1.0, large bodies,
//! slow readers and many connections.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Function, Node, NodeBuilder, Script, UdpClient, eventually, request, request_datagram};
use socket2::SockRef;
use std::collections::HashSet;
use std::io::Write;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn node() -> Node {
    Node::builder().guests(&["echo", "counter-rmw", "big-output", "trap"]).function(Script::function("script")).start()
}

#[test]
fn a_connection_serves_many_requests() {
    let node = node();
    let mut client = node.connect();
    for i in 0..100 {
        let body = format!("body {i}");
        let reply = client.call("POST", "/f/echo", &[("x-session-id", "one")], body.as_bytes());
        reply.assert_ok(body.as_bytes());
        assert_eq!(reply.header("connection"), None);
    }
    assert_eq!(node.metrics().sum("xfaas_connections_accepted_total", &[]), 1.0);
}

#[test]
fn connection_close_is_obeyed_and_said() {
    let node = node();
    for value in ["close", "Close", "keep-alive, close", "x , close , y"] {
        let mut client = node.connect();
        client.send(&[request("GET", "/f/echo", &[("connection", value)], b""), request("GET", "/f/echo", &[], b"")].concat());
        let reply = client.reply();
        assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "{value}");
        client.assert_closed();
    }
    assert_eq!(node.metrics().runs("echo"), 4.0, "what follows a close is not run");
}

#[test]
fn pipelined_replies_come_in_order_across_both_shards() {
    let node = node();
    let [zero, one] = node.sessions_of_both_shards();
    let sessions = [&zero[0], &one[0], &zero[1], &one[1]];
    for _ in 0..4 {
        let mut client = node.connect();
        let mut bytes = Vec::new();
        for i in 0..200 {
            let body = format!("number {i}");
            match i % 7 {
                3 => bytes.extend(request("GET", "/nowhere", &[], b"")),
                5 => bytes.extend(request("HEAD", "/f/echo", &[("x-session-id", sessions[i % 4])], b"")),
                6 => bytes.extend(request("POST", "/f/trap", &[("x-session-id", sessions[i % 4])], b"")),
                _ => bytes.extend(request("POST", "/f/echo", &[("x-session-id", sessions[i % 4])], body.as_bytes())),
            }
        }
        client.send(&bytes);
        for i in 0..200 {
            match i % 7 {
                3 => client.reply().assert_error(404, "no_route"),
                5 => assert_eq!(client.reply_to_head().session(), sessions[i % 4]),
                6 => client.reply().assert_error(500, "guest_trapped"),
                _ => {
                    let reply = client.reply();
                    reply.assert_ok(format!("number {i}").as_bytes());
                    assert_eq!(reply.session(), sessions[i % 4]);
                }
            }
        }
        client.assert_open();
    }
}

#[test]
fn pipelined_requests_run_one_after_another() {
    let node = node();
    let mut client = node.connect();
    // Weak increments lose updates when they overlap: these must not.
    client.send(&request("POST", "/f/counter-rmw", &[("x-session-id", "ordered")], b"").repeat(300));
    for i in 1..=300 {
        client.reply().assert_ok(i.to_string().as_bytes());
    }
}

/// While a guest spins, a turn begins once in a millisecond: calls of several sessions stand in line together, and some clients are gone by then.
#[test]
fn what_comes_in_one_turn_is_answered_whatever_becomes_of_some_of_it() {
    let counters = ["counter-rmw-linear", "counter-read"].map(|name| Function::guest(name).app("counters"));
    let node = counters.into_iter().fold(Node::builder().shards(1), NodeBuilder::function).function(Script::function("script")).start();
    let mut spinner = node.connect();
    spinner.send(&request("POST", "/f/script", &[("x-session-id", "busy")], &Script::new().spin(400_000_000).end()));
    let udp = UdpClient::connect(node.http);
    let (mut sent, mut counted) = (0, HashSet::new());
    for round in 0..10 {
        let mut clients: Vec<(usize, Client)> = (0..24).map(|i| (i, node.connect())).collect();
        for (i, client) in &mut clients {
            let one = request("POST", "/f/counter-rmw-linear", &[("x-session-id", &format!("of-{}", *i % 5))], b"");
            client.send(&one.repeat(1 + *i % 3));
            sent += 1 + *i % 3;
        }
        udp.send(&request_datagram("counter-rmw-linear", "of-0", round, b""));
        sent += 1;
        for (_, gone) in clients.split_off(18) {
            SockRef::from(gone.stream()).set_linger(Some(Duration::ZERO)).unwrap();
        }
        for (i, client) in &mut clients {
            for _ in 0..1 + *i % 3 {
                let reply = client.reply();
                assert_eq!((reply.status, reply.session()), (200, &*format!("of-{}", *i % 5)));
                assert!(counted.insert((reply.session().to_owned(), reply.text().to_owned())), "a number twice: {reply:?}");
            }
        }
        assert!(counted.insert(("of-0".to_owned(), udp.answer().text().to_owned())));
    }
    spinner.reply();
    let total: usize = (0..5).map(|i| node.post("counter-read", &format!("of-{i}"), b"").text().parse::<usize>().unwrap()).sum();
    assert!((counted.len()..=sent).contains(&total), "{total} of {} to {sent}", counted.len());
    drop(spinner);
    eventually("nobody is connected any more", || node.metrics().sum("xfaas_connections", &[]) == 0.0);
}

#[test]
fn more_is_pipelined_than_is_buffered() {
    let node = node();
    let mut client = node.connect();
    let body = vec![b'x'; 3_000];
    let bytes = request("POST", "/f/echo", &[("x-session-id", "flood")], &body).repeat(1_000);
    let mut writer = client.stream().try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
    for _ in 0..1_000 {
        client.reply().assert_ok(&body);
    }
    writing.join().unwrap();
    client.assert_open();
}

#[test]
fn a_client_that_ends_its_half_behind_much_input_still_gets_its_replies() {
    let node = Node::builder().guests(&["echo"]).function(Script::function("slow")).start();
    let mut client = node.connect();
    let body = vec![b'x'; 4_096];
    client.send(&request("POST", "/f/slow", &[("x-session-id", "s")], &Script::new().spin(200_000_000).end()));
    // More than is read while a request runs.
    client.send(&request("POST", "/f/echo", &[("x-session-id", "s")], &body).repeat(40));
    client.finish();
    assert_eq!(client.reply().status, 200);
    (0..40).for_each(|_| client.reply().assert_ok(&body));
    client.assert_closed();
    assert_eq!(node.metrics().sum("xfaas_cancelled_total", &[]), 0.0);
}

#[test]
fn expect_gets_100_then_the_reply() {
    let node = node();
    for value in ["100-continue", "100-Continue"] {
        let mut client = node.connect();
        client.send(&request("POST", "/f/echo", &[("expect", value), ("content-length", "3")], b""));
        client.interim();
        client.send(b"abc");
        client.reply().assert_ok(b"abc");
        client.send(&request("POST", "/f/echo", &[("expect", value), ("transfer-encoding", "chunked")], b""));
        client.interim();
        client.send(b"3\r\nabc\r\n0\r\n\r\n");
        client.reply().assert_ok(b"abc");
        client.assert_open();
    }
    let mut old = node.connect();
    old.send(b"POST /f/echo HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc");
    old.reply().assert_ok(b"abc");
}

#[test]
fn expect_gets_the_error_instead_of_100_and_the_connection_closes() {
    let node = node();
    let cases = [
        ("/f/missing", "100-continue", 404, "no_function"),
        ("/nowhere", "100-continue", 404, "no_route"),
        ("/f/echo", "200-ok", 417, "bad_expectation"),
        ("/f/echo", "100-continue, 100-continue", 417, "bad_expectation"),
        ("/nowhere", "something", 417, "bad_expectation"),
    ];
    for (target, value, status, code) in cases {
        let mut client = node.connect();
        client.send(&request("POST", target, &[("expect", value), ("content-length", "3")], b""));
        let reply = client.reply();
        reply.assert_error(status, code);
        assert_eq!(reply.header("connection"), Some("close"), "{target} {value}");
        client.assert_closed();
    }
    assert_eq!(node.metrics().runs("echo"), 0.0);
}

#[test]
fn head_runs_the_function_and_brings_no_body() {
    let node = node();
    let mut client = node.connect();
    for i in 1..=3 {
        let reply = client.call("HEAD", "/f/counter-rmw", &[("x-session-id", "head")], b"");
        assert_eq!((reply.status, reply.header("content-length")), (200, Some("1")), "{i}");
    }
    client.call("POST", "/f/counter-rmw", &[("x-session-id", "head")], b"").assert_ok(b"4");
    let reply = client.call("HEAD", "/f/missing", &[], b"");
    assert_eq!((reply.status, reply.header("content-type")), (404, Some("application/problem+json")));
    client.assert_open();
    let refused = [
        (&b"HEAD /f/echo HTTP/1.1\r\nhost : x\r\n\r\n"[..], 400),
        (b"HEAD /f/echo HTTP/1.1\r\nhost: x\r\na: \x01\r\n\r\n", 400),
        (b"\r\n\r\nHEAD /f/echo HTTP/1.1\nhost: x\n\n", 400),
        (&[&b"HEAD /f/echo HTTP/1.1\r\na: "[..], &[b'b'; 17_000]].concat(), 431),
    ];
    for (bytes, status) in refused {
        let mut client = node.connect();
        client.send(bytes);
        assert_eq!(client.reply_to_head().status, status);
        client.assert_closed();
    }
}

#[test]
fn a_client_that_sends_no_body_waits_for_no_100_continue_and_keeps_its_connection() {
    let node = node();
    let mut client = node.connect();
    for (target, code) in [("/x", "no_route"), ("/f/missing", "no_function")] {
        client.call("GET", target, &[("expect", "100-continue")], b"").assert_error(404, code);
    }
    client.call("GET", "/f/echo", &[("expect", "100-continue")], b"").assert_ok(b"");
}

#[test]
fn http_10_ignores_100_continue_and_knows_no_other_expectation_either() {
    let node = node();
    let mut client = node.connect();
    client.send(b"POST /f/echo HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello");
    client.reply().assert_ok(b"hello");
    let mut client = node.connect();
    client.send(b"POST /f/echo HTTP/1.0\r\nexpect: foo\r\ncontent-length: 5\r\n\r\nhello");
    client.reply().assert_error(417, "bad_expectation");
    client.assert_closed();
}

#[test]
fn http_10_closes_unless_asked_to_stay() {
    let node = node();
    let mut client = node.connect();
    client.send(b"GET /f/echo HTTP/1.0\r\n\r\n");
    assert_eq!(client.reply().header("connection"), Some("close"));
    client.assert_closed();
    let mut client = node.connect();
    for _ in 0..3 {
        client.send(b"GET /f/echo HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        assert_eq!(client.reply().header("connection"), Some("keep-alive"));
        client.send(b"GET /nowhere HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.reply().header("connection"), Some("keep-alive"));
    }
    client.send(b"GET /f/echo HTTP/1.0\r\nconnection: keep-alive, close\r\n\r\n");
    assert_eq!(client.reply().header("connection"), Some("close"));
    client.assert_closed();
}

#[test]
fn a_half_closed_client_gets_all_its_replies() {
    let node = node();
    let [zero, one] = node.sessions_of_both_shards();
    for sessions in [[&zero[0], &zero[0]], [&one[0], &one[0]], [&zero[0], &one[0]]] {
        for count in [1, 2, 20] {
            let mut client = node.connect();
            for i in 0..count {
                client.send(&request("POST", "/f/echo", &[("x-session-id", sessions[i % 2])], i.to_string().as_bytes()));
            }
            client.finish();
            for i in 0..count {
                client.reply().assert_ok(i.to_string().as_bytes());
            }
            client.assert_closed();
        }
    }
    let mut client = node.connect();
    client.send(&request("GET", "/f/big-output", &[], b""));
    client.finish();
    assert_eq!(client.reply().body.len(), 8 * MIB);
    client.assert_closed();
    let mut silent = node.connect();
    silent.finish();
    silent.assert_closed();
    eventually("all connections are gone", || node.metrics().sum("xfaas_connections", &[]) == 0.0);
}

#[test]
fn a_client_that_still_sends_gets_the_error_before_the_end() {
    let node = node();
    let junk = vec![b'z'; 4 * MIB];
    for _ in 0..5 {
        let mut client = node.connect();
        client.send(b"POST /f/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n");
        let mut writer = client.stream().try_clone().unwrap();
        let body = junk.clone();
        let writing = std::thread::spawn(move || writer.write_all(&body).is_ok());
        client.reply().assert_error(413, "body_too_large");
        writing.join().unwrap();
        client.finish();
        client.assert_closed();
    }
}

#[test]
fn eight_mib_go_in_and_come_back() {
    let node = Node::builder().function(Function::guest("echo").with("deadline_ms = 15000")).start();
    let body: Vec<u8> = (0..8 * MIB).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    let mut client = node.connect();
    for headers in [&[("x-session-id", "large")][..], &[]] {
        client.call("POST", "/f/echo", headers, &body).assert_ok(&body);
    }
    client.assert_open();
}

#[test]
fn a_slow_reader_gets_everything_and_hinders_nobody() {
    let node = Node::builder().guests(&["echo", "big-output"]).shards(1).start();
    let mut slow = node.connect();
    for _ in 0..4 {
        slow.send(&request("GET", "/f/big-output", &[("x-session-id", "slow")], b""));
    }
    // The first bytes are there, so the rest waits in the server and the socket.
    assert_eq!(slow.stream().peek(&mut [0]).unwrap(), 1);
    let mut other = node.connect();
    for _ in 0..50 {
        other.call("GET", "/f/echo", &[("x-session-id", "quick")], b"").assert_ok(b"");
    }
    for _ in 0..4 {
        assert_eq!(slow.reply().body.len(), 8 * MIB);
    }
    slow.assert_open();
}

#[test]
fn a_client_that_goes_away_leaves_nothing_behind() {
    let node = node();
    for i in 0..30 {
        let mut client = node.connect();
        match i % 3 {
            0 => client.send(b"POST /f/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nabc"),
            1 => client.send(&request("GET", "/f/big-output", &[], b"")),
            _ => client.send(&request("POST", "/f/script", &[("x-session-id", "gone")], &Script::new().spin(5_000_000).end())),
        }
        // Closed with unread input, or with a reset: the server may be at any point of the request.
        socket2::SockRef::from(client.stream()).set_linger((i % 2 == 0).then_some(Duration::ZERO)).unwrap();
    }
    eventually("all connections are gone", || node.metrics().sum("xfaas_connections", &[]) == 0.0);
    node.call("GET", "/f/echo", &[], b"").assert_ok(b"");
}

#[test]
fn two_thousand_connections_are_served_at_once() {
    let node = Node::builder().function(Function::guest("echo")).start();
    let mut clients: Vec<Client> = (0..2_000).map(|_| node.connect()).collect();
    for round in 0..2 {
        for (i, client) in clients.iter_mut().enumerate() {
            client.send(&request("POST", "/f/echo", &[("x-session-id", &format!("crowd-{}", i % 80))], format!("{round} {i}").as_bytes()));
        }
        for (i, client) in clients.iter_mut().enumerate() {
            client.reply().assert_ok(format!("{round} {i}").as_bytes());
        }
    }
    let metrics = node.metrics();
    assert_eq!(metrics.sum("xfaas_connections", &[]), 2_000.0);
    assert_eq!(metrics.requests("echo", "ok"), 4_000.0);
    drop(clients);
    eventually("all connections are gone", || node.metrics().sum("xfaas_connections", &[]) == 0.0);
}
