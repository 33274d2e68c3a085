//! Sizes and times as CONTRACT.md section 1, "Limits", rules them. Timeouts are lowered, each on a node of its own.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Node, eventually, request};
use socket2::SockRef;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const HEAD_BYTES_MAX: usize = 16 << 10;

fn node() -> Node {
    Node::builder().guests(&["echo"]).start()
}

fn node_with(limit: &str) -> Node {
    Node::builder().guests(&["echo"]).limit(limit).start()
}

#[track_caller]
fn assert_refused(node: &Node, bytes: &[u8], status: u16, code: &str) {
    let mut client = node.connect();
    client.try_send(bytes);
    client.reply().assert_error(status, code);
    client.assert_closed();
}

/// A head of exactly so many bytes, the final empty line included.
fn head_of(bytes: usize, lines: &str) -> Vec<u8> {
    let start = format!("POST /f/echo HTTP/1.1\r\nhost: x\r\n{lines}a: ");
    format!("{start}{}\r\n\r\n", "b".repeat(bytes - start.len() - 4)).into_bytes()
}

#[test]
fn a_head_may_have_16_kib_and_not_one_byte_more() {
    let node = node();
    let mut client = node.connect();
    client.send(&head_of(HEAD_BYTES_MAX, ""));
    client.reply().assert_ok(b"");
    client.assert_open();
    assert_refused(&node, &head_of(HEAD_BYTES_MAX + 1, ""), 431, "head_too_large");
    assert_refused(&node, &head_of(HEAD_BYTES_MAX + 100_000, ""), 431, "head_too_large");
    let long_target = format!("GET /f/echo?{} HTTP/1.1\r\nhost: x\r\n\r\n", "q".repeat(HEAD_BYTES_MAX));
    assert_refused(&node, long_target.as_bytes(), 431, "head_too_large");
}

#[test]
fn a_head_without_end_is_refused_before_it_is_all_sent() {
    let node = node();
    let mut client = node.connect();
    client.try_send(b"GET /f/echo HTTP/1.1\r\na: ");
    for _ in 0..5 {
        client.try_send(&[b'x'; 4_096]);
    }
    client.reply().assert_error(431, "head_too_large");
}

#[test]
fn a_head_may_have_100_headers_and_not_one_more() {
    let node = node();
    let head = |headers: usize| format!("GET /f/echo HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(headers - 1));
    let mut client = node.connect();
    client.send(head(100).as_bytes());
    client.reply().assert_ok(b"");
    client.assert_open();
    assert_refused(&node, head(101).as_bytes(), 431, "head_too_large");
}

#[test]
fn chunk_extensions_and_trailers_count_as_head() {
    let node = node();
    let chunked = |body: &str| [&head_of(1_000, "transfer-encoding: chunked\r\n")[..], body.as_bytes()].concat();
    let fill = |bytes: usize| "x".repeat(bytes);
    let mut client = node.connect();
    client.send(&chunked(&format!("1;{}\r\na\r\n0\r\n\r\n", fill(15_000))));
    client.reply().assert_ok(b"a");
    client.send(&chunked(&format!("0\r\na: {}\r\n\r\n", fill(15_000))));
    client.reply().assert_ok(b"");
    client.send(&chunked(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(97))));
    client.reply().assert_ok(b"");
    assert_refused(&node, &chunked(&format!("1;{}\r\na\r\n0\r\n\r\n", fill(15_400))), 431, "head_too_large");
    assert_refused(&node, &chunked(&format!("1;{0}\r\na\r\n1;{0}\r\nb\r\n0\r\n\r\n", fill(8_000))), 431, "head_too_large");
    assert_refused(&node, &chunked(&format!("0\r\na: {}\r\n\r\n", fill(15_400))), 431, "head_too_large");
    assert_refused(&node, &chunked(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(98))), 431, "head_too_large");
}

#[test]
fn a_body_may_have_the_limit_and_not_one_byte_more() {
    let node = node_with("body_bytes_max = 2048");
    let body = vec![7; 2_049];
    node.call("POST", "/f/echo", &[], &body[1..]).assert_ok(&body[1..]);
    assert_refused(&node, &request("POST", "/f/echo", &[], &body), 413, "body_too_large");
    let chunks = [b"400\r\n", &body[..1_024], b"\r\n401\r\n", &body[..1_025], b"\r\n0\r\n\r\n"].concat();
    assert_refused(&node, &request("POST", "/f/echo", &[("transfer-encoding", "chunked")], &chunks), 413, "body_too_large");
    let known = request("POST", "/f/missing", &[], &body);
    assert_refused(&node, &known, 413, "body_too_large");
    assert_eq!(node.metrics().runs("echo"), 1.0);
}

#[test]
fn a_body_too_large_is_refused_before_it_is_asked_for() {
    let node = node();
    let mut client = node.connect();
    let length = ((8 << 20) + 1).to_string();
    client.send(&request("POST", "/f/echo", &[("expect", "100-continue"), ("content-length", &length)], b""));
    client.reply().assert_error(413, "body_too_large");
    client.assert_closed();
}

/// The time until the answer, or the end, of a connection that `begin` left waiting.
fn waited(begin: impl FnOnce() -> Client, end: impl FnOnce(&mut Client)) -> Duration {
    let mut client = begin();
    let since = Instant::now();
    end(&mut client);
    since.elapsed()
}

#[test]
fn a_head_that_does_not_end_in_time_is_refused() {
    let node = node_with("head_timeout_ms = 300");
    for start in [&b"G"[..], b"\r\n", b"GET /f/echo HTTP/1.1\r\nhost: x\r\n"] {
        let begin = || {
            let mut client = node.connect();
            client.send(start);
            client
        };
        let time = waited(begin, |client| {
            client.reply().assert_error(408, "timeout");
            client.assert_closed();
        });
        assert!(time >= Duration::from_millis(250), "{time:?}");
    }
    let mut idle = node.connect();
    let mut dripping = node.connect();
    dripping.stream().set_nonblocking(true).unwrap();
    eventually("a head that comes in drop by drop is refused all the same", || {
        drip(dripping.stream()) && dripping.stream().peek(&mut [0]).is_ok()
    });
    dripping.stream().set_nonblocking(false).unwrap();
    dripping.reply().assert_error(408, "timeout");
    idle.assert_open();
}

#[test]
fn a_second_head_has_its_own_time() {
    let node = node_with("head_timeout_ms = 300");
    let mut client = node.connect();
    client.call("GET", "/f/echo", &[], b"").assert_ok(b"");
    client.send(b"GET /f/");
    client.reply().assert_error(408, "timeout");
    client.assert_closed();
}

#[test]
fn a_body_that_stalls_is_refused_and_one_that_grows_is_not() {
    let node = node_with("body_stall_ms = 400");
    let mut stalling = node.connect();
    stalling.send(b"POST /f/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc");
    let mut unbegun = node.connect();
    unbegun.send(b"POST /f/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut growing = node.connect();
    growing.send(b"POST /f/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n");
    for byte in b"012345678" {
        growing.send(&[*byte]);
        std::thread::sleep(Duration::from_millis(100)); // a slow client, well within the stall limit and in all beyond it
    }
    growing.reply().assert_ok(b"012345678");
    for mut client in [stalling, unbegun] {
        client.reply().assert_error(408, "timeout");
        client.assert_closed();
    }
    assert_eq!(node.metrics().runs("echo"), 1.0);
}

#[test]
fn a_whole_body_has_a_time_too() {
    let node = node_with("body_timeout_ms = 400");
    let mut client = node.connect();
    client.send(b"POST /f/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n");
    client.stream().set_nonblocking(true).unwrap();
    eventually("a body that grows too slowly is refused", || drip(client.stream()) && client.stream().peek(&mut [0]).is_ok());
    client.stream().set_nonblocking(false).unwrap();
    client.reply().assert_error(408, "timeout");
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let node = node_with("idle_timeout_ms = 300");
    let mut fresh = node.connect();
    let mut used = node.connect();
    used.call("GET", "/f/echo", &[], b"").assert_ok(b"");
    for client in [&mut fresh, &mut used] {
        client.assert_closed();
    }
    assert_eq!(node.metrics().sum("xfaas_connections_timed_out_total", &[]), 2.0);
}

#[test]
fn a_client_that_was_reading_a_long_reply_was_not_idle() {
    let node = node_with("idle_timeout_ms = 1500");
    let mut client = node.connect();
    SockRef::from(client.stream()).set_recv_buffer_size(64 << 10).unwrap();
    client.send(&request("POST", "/f/echo", &[], &vec![b'x'; 8 << 20]));
    // More than the sockets hold waits for the client all this time.
    std::thread::sleep(Duration::from_millis(2_000));
    assert_eq!(client.reply().body.len(), 8 << 20);
    std::thread::sleep(Duration::from_millis(500));
    client.call("GET", "/f/echo", &[], b"").assert_ok(b"");
}

#[test]
fn a_connection_whose_function_runs_is_not_idle() {
    let node = Node::builder()
        .function(harness::Script::function("script").with("deadline_ms = 1500"))
        .limit("idle_timeout_ms = 200")
        .limit("head_timeout_ms = 200")
        .start();
    let body = harness::Script::new().spin_forever();
    node.post("script", "s", &body).assert_error(504, "deadline");
}

#[test]
fn connections_over_the_limit_are_closed_and_the_others_stay() {
    let node = Node::builder().guests(&["echo"]).shards(1).limit("connections_max = 4").start();
    let mut kept: Vec<Client> = (0..4).map(|_| node.connect()).collect();
    for client in &mut kept {
        client.call("GET", "/f/echo", &[], b"").assert_ok(b"");
    }
    node.connect().assert_closed();
    for client in &mut kept {
        client.call("GET", "/f/echo", &[], b"").assert_ok(b"");
    }
    drop(kept.pop());
    eventually("a place is free again", || node.metrics().sum("xfaas_connections", &[]) == 3.0);
    node.connect().call("GET", "/f/echo", &[], b"").assert_ok(b"");
    assert!(node.metrics().sum("xfaas_connections_refused_total", &[]) >= 1.0);
}

/// Sends one byte of a slow client. True, so that it can stand in a condition; a full or refused one is fine, the answer is what counts.
fn drip(mut stream: &TcpStream) -> bool {
    stream.write_all(b"x").ok();
    true
}

/// Bytes, of a node whose connections may hold 64 MiB.
const HELD_MAX: f64 = (64 << 20) as f64;
const LONG: usize = 6 << 20;

fn node_of_one_core() -> Node {
    Node::builder().guests(&["echo"]).shards(1).limit("http_memory_mib = 64").start()
}

#[test]
fn bodies_that_do_not_come_on_make_room_for_those_that_do() {
    let node = node_of_one_core();
    let begun = || {
        let mut client = node.connect();
        let length = (LONG + 1).to_string();
        client.send(&request("POST", "/f/echo", &[("content-length", &length)], b""));
        client.send(&vec![b'a'; LONG]);
        client
    };
    let mut clients: Vec<Client> = (0..20).map(|_| begun()).collect();
    eventually("they hold no more than they may", || {
        let metrics = node.metrics();
        metrics.sum("xfaas_connections_crowded_out_total", &[]) >= 1.0 && metrics.sum("xfaas_http_buffer_bytes", &[]) <= HELD_MAX
    });
    clients[0].reply().assert_error(503, "overloaded");
    clients[0].assert_closed();
    let last = clients.last_mut().unwrap();
    last.send(b"b");
    let reply = last.reply();
    assert_eq!((reply.status, reply.body.len()), (200, LONG + 1));
    node.call("POST", "/f/echo", &[], b"small").assert_ok(b"small");
}

#[test]
fn replies_that_nobody_takes_make_room_for_those_that_are_taken() {
    let node = node_of_one_core();
    let body = vec![b'a'; LONG];
    let ask = || {
        let mut client = node.connect();
        // What the kernel keeps is not the node's memory.
        SockRef::from(client.stream()).set_recv_buffer_size(4_096).unwrap();
        client.send(&request("POST", "/f/echo", &[], &body));
        client
    };
    let clients: Vec<Client> = (0..30).map(|_| ask()).collect();
    eventually("they hold no more than they may", || {
        let metrics = node.metrics();
        metrics.sum("xfaas_connections_crowded_out_total", &[]) >= 1.0 && metrics.sum("xfaas_http_buffer_bytes", &[]) <= HELD_MAX
    });
    let mut reader = node.connect();
    let reply = reader.call("POST", "/f/echo", &[], &body);
    assert_eq!((reply.status, reply.body.len()), (200, LONG));
    drop(clients);
    eventually("what they held is given back", || node.metrics().sum("xfaas_http_buffer_bytes", &[]) < 1e6);
}
