//! The error table of CONTRACT.md section 1: each code's status, its headers, its document, and what becomes of the connection.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, Reply, Script, eventually, request};

fn node() -> Node {
    Node::builder()
        .guests(&["echo", "trap", "garbage-return", "recurse"])
        .function(Function::guest("spin").with("deadline_ms = 100"))
        .function(Script::function("script").with("workers_max = 2"))
        .function(Function::guest("lock-forever").with("deadline_ms = 1500"))
        .limit("lock_wait_ms = 200")
        .limit("namespace_queue_calls_max = 1")
        .start()
}

/// Which headers an error must have: the session and the invocation only where the function ran.
#[track_caller]
fn assert_headers(reply: &Reply, ran: bool, retry: bool, closes: bool) {
    for header in ["content-length", "content-type", "date"] {
        assert!(reply.header(header).is_some(), "{header} in {reply:?}");
    }
    assert_eq!(reply.header("x-session-id").is_some(), ran, "{reply:?}");
    assert_eq!(reply.header("x-invocation-id").is_some(), ran, "{reply:?}");
    assert_eq!(reply.header("retry-after").is_some(), retry, "{reply:?}");
    if let Some(seconds) = reply.header("retry-after") {
        assert!(seconds.parse::<u32>().is_ok(), "{reply:?}");
    }
    assert_eq!(reply.header("connection"), closes.then_some("close"), "{reply:?}");
}

#[test]
fn a_good_reply_has_the_headers_of_the_contract() {
    let node = node();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..3 {
        let reply = node.post("echo", "s", b"x");
        assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
        assert_eq!((reply.header("content-length"), reply.session()), (Some("1"), "s"));
        let date = reply.header("date").unwrap();
        assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
        let id = reply.header("x-invocation-id").unwrap();
        assert!(id.len() >= 16 && seen.insert(id.to_owned()), "{id}");
    }
}

#[test]
fn errors_before_a_run_name_no_session() {
    let node = node();
    let closing: [(&[u8], u16, &str); 5] = [
        (b"GET /f/echo HTTP/1.1\r\nx-session-id: s\r\n\r\n", 400, "bad_request"),
        (b"GET /f/echo HTTP/1.1\r\nhost: x\r\nx-session-id: a b\r\n\r\n", 400, "bad_session"),
        (b"POST /f/echo HTTP/1.1\r\nhost: x\r\nx-session-id: s\r\ncontent-length: 9999999999\r\n\r\n", 413, "body_too_large"),
        (b"POST /f/echo HTTP/1.1\r\nhost: x\r\nx-session-id: s\r\nexpect: x\r\n\r\n", 417, "bad_expectation"),
        (&[b'\r', b'\n'].repeat(9_000), 431, "head_too_large"),
    ];
    for (bytes, status, code) in closing {
        let mut client = node.connect();
        client.try_send(bytes);
        let reply = client.reply();
        reply.assert_error(status, code);
        assert_headers(&reply, false, false, true);
        client.assert_closed();
    }
    let mut client = node.connect();
    for (target, code) in [("/x", "no_route"), ("/f/none", "no_function")] {
        let reply = client.call("POST", target, &[("x-session-id", "s")], b"body");
        reply.assert_error(404, code);
        assert_headers(&reply, false, false, false);
        assert!(reply.problem().get("guest_code").is_none());
    }
    client.assert_open();
}

#[test]
fn errors_of_a_run_name_session_and_invocation_and_keep_the_connection() {
    let node = node();
    let mut client = node.connect();
    let cases = [
        ("trap", 500, "guest_trapped"),
        ("recurse", 500, "guest_trapped"),
        ("garbage-return", 500, "guest_error"),
        ("spin", 504, "deadline"),
    ];
    for (function, status, code) in cases {
        let reply = client.call("POST", &format!("/f/{function}"), &[("x-session-id", "mine")], b"");
        reply.assert_error(status, code);
        assert_headers(&reply, true, false, false);
        assert_eq!(reply.session(), "mine");
    }
    client.assert_open();
}

#[test]
fn a_guest_error_brings_its_code_and_not_the_output() {
    let node = node();
    for code in [1, -1, 42, i32::MIN, i32::MAX, -559_038_737] {
        let reply = node.post("garbage-return", "s", &code.to_le_bytes());
        reply.assert_error(500, "guest_error");
        assert_eq!(reply.problem()["guest_code"], code);
        assert!(!reply.text().contains("must not be seen"));
    }
    node.post("garbage-return", "s", &0_i32.to_le_bytes()).assert_ok(b"must not be seen");
    assert!(node.post("trap", "s", b"").problem().get("guest_code").is_none());
}

#[test]
fn a_lock_waited_for_in_vain_is_lock_wait() {
    let node = node();
    let mut holder = node.connect();
    holder.send(&request("POST", "/f/lock-forever", &[("x-session-id", "locked")], b""));
    eventually("the holder runs", || node.metrics().sum("xfaas_workers", &[]) == 1.0);
    let waiting = node.post("lock-forever", "locked", b"");
    waiting.assert_error(503, "lock_wait");
    assert_headers(&waiting, true, true, false);
    holder.reply().assert_error(504, "deadline");
}

#[test]
fn a_full_queue_is_overloaded_and_the_function_does_not_run() {
    let node = node();
    let spin = Script::new().write("ran", b"x", 0).spin(400_000_000).end();
    let mut clients: Vec<_> = (0..8).map(|_| node.connect()).collect();
    for client in &mut clients {
        client.send(&request("POST", "/f/script", &[("x-session-id", "busy")], &spin));
    }
    let mut shed = 0;
    for client in &mut clients {
        let reply = client.reply();
        if reply.status == 503 {
            reply.assert_error(503, "overloaded");
            assert_headers(&reply, false, true, false);
            shed += 1;
        }
        client.assert_open();
    }
    // Two run and one waits; the rest came while these did, but for what the first ones finished meanwhile.
    assert!((1..=5).contains(&shed), "{shed} shed");
    let metrics = node.metrics();
    assert_eq!(metrics.requests("script", "overloaded"), f64::from(shed));
    assert_eq!(metrics.sum("xfaas_shed_total", &[]), f64::from(shed));
}

#[test]
fn errors_of_a_client_that_says_close_close() {
    let node = node();
    for target in ["/f/trap", "/f/none", "/nowhere"] {
        let mut client = node.connect();
        let reply = client.call("POST", target, &[("connection", "close")], b"");
        assert!(reply.status >= 400);
        assert_eq!(reply.header("connection"), Some("close"), "{target}");
        client.assert_closed();
    }
}
