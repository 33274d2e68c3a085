//! Heads as CONTRACT.md section 1, "Framing", "Route" and "Session header", rules them: what is malformed gets its 400 and a closed connection,
//! never a hang and never a run; what is well-formed runs.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Function, Node, request};

fn node() -> Node {
    Node::builder().guests(&["echo", "counter-rmw"]).function(harness::Script::function("script")).start()
}

/// Sends `bytes` on a new connection, whole. Panics unless the answer is this error and the connection then closes in order.
#[track_caller]
fn assert_refused(node: &Node, bytes: &[u8], status: u16, code: &str) {
    let mut client = node.connect();
    client.try_send(bytes);
    let reply = client.reply();
    assert_eq!((reply.status, reply.code().as_str()), (status, code), "{:?} got {reply:?}", String::from_utf8_lossy(bytes));
    assert_eq!(reply.header("connection"), Some("close"), "{reply:?}");
    client.assert_closed();
}

/// Heads that are wrong in one place each. `\r\n` ends lines where nothing else is said.
const MALFORMED: &[&[u8]] = &[
    // Line ends and control bytes.
    b"GET /f/echo HTTP/1.1\nhost: x\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\n\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\na: b\rc: d\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\rhost: x\r\n\r\n",
    b"\nGET /f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
    b"\r\rGET /f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\na: b\0c\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\na: b\x01c\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\na: b\x7fc\r\n\r\n",
    b"GET /f/ec\0ho HTTP/1.1\r\nhost: x\r\n\r\n",
    // Header lines.
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\na: b\r\n folded\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\na: b\r\n\tfolded\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\n host: x\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost : x\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\na\t: b\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\nnocolon\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\n: empty\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\na(b): c\r\n\r\n",
    // Version.
    b"GET /f/echo HTTP/1.2\r\nhost: x\r\n\r\n",
    b"GET /f/echo HTTP/2.0\r\nhost: x\r\n\r\n",
    b"GET /f/echo HTTP/0.9\r\nhost: x\r\n\r\n",
    b"GET /f/echo http/1.1\r\nhost: x\r\n\r\n",
    b"GET /f/echo HTTP/1.10\r\nhost: x\r\n\r\n",
    b"GET /f/echo\r\nhost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    // Request line.
    b"GET  /f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /f/echo  HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET\t/f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /f/echo\tHTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /f/echo HTTP/1.1 \r\nhost: x\r\n\r\n",
    b" GET /f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
    b"G(T /f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
    b"/f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
    // Target.
    b"GET /f/echo#top HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /f/echo?a#top HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /f/ech\xc3\xb6 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /f/echo?\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET https://x/f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET http:///f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET http://x HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    // Host.
    b"GET /f/echo HTTP/1.1\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost:\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: a b\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x/y\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: u@x\r\n\r\n",
    b"GET /f/echo HTTP/1.1\r\nhost: x:port\r\n\r\n",
    b"GET /f/echo HTTP/1.0\r\nhost: x\r\nHost: y\r\n\r\n",
];

#[test]
fn a_malformed_head_gets_400_and_a_closed_connection_and_runs_nothing() {
    let node = node();
    for head in MALFORMED {
        assert_refused(&node, head, 400, "bad_request");
    }
    assert_eq!(node.metrics().runs("echo"), 0.0);
}

#[test]
fn a_malformed_head_is_found_byte_by_byte_too() {
    let node = node();
    for head in MALFORMED {
        let mut client = node.connect();
        for byte in head.chunks(1) {
            if !client.try_send(byte) {
                break;
            }
        }
        client.reply().assert_error(400, "bad_request");
        client.assert_closed();
    }
    assert_eq!(node.metrics().runs("echo"), 0.0);
}

#[test]
fn what_follows_a_malformed_request_is_not_run() {
    let node = node();
    let mut bytes = b"GET /f/echo HTTP/1.1\r\nhost : x\r\n\r\n".to_vec();
    bytes.extend(request("POST", "/f/echo", &[], b"smuggled"));
    assert_refused(&node, &bytes, 400, "bad_request");
    assert_eq!(node.metrics().runs("echo"), 0.0);
}

#[test]
fn well_formed_heads_of_every_shape_run() {
    let node = node();
    let heads: &[&[u8]] = &[
        b"GET /f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /f/echo HTTP/1.1\r\nHOST:x\r\n\r\n",
        b"GET /f/echo HTTP/1.1\r\nhost: \t x:8080 \t\r\n\r\n",
        b"GET /f/echo HTTP/1.1\r\nhost: [::1]:80\r\n\r\n",
        b"GET /f/echo HTTP/1.1\r\nhost: x\r\na:\r\nb: \x80\xff\r\n\r\n",
        b"GET http://x/f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET HTTP://x:80/f/echo?q HTTP/1.1\r\nhost: y\r\n\r\n",
        b"\r\n\r\n\r\nGET /f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
        b"OPTIONS /f/echo/any%2Fthing;x=1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"BREW-IT! /f/echo HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /f/echo HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
        b"GET /f/echo HTTP/1.0\r\nhost:\r\nconnection: keep-alive\r\n\r\n",
    ];
    for head in heads {
        let mut client = node.connect();
        client.send(head);
        let reply = client.reply();
        assert_eq!(reply.status, 200, "{:?} got {reply:?}", String::from_utf8_lossy(head));
        client.assert_open();
    }
}

#[test]
fn empty_lines_count_as_head() {
    let node = node();
    assert_refused(&node, &b"\r\n".repeat(9_000), 431, "head_too_large");
    let mut client = node.connect();
    client.send(&b"\r\n".repeat(8_000));
    client.call("GET", "/f/echo", &[], b"").assert_ok(b"");
}

#[test]
fn every_other_path_is_no_route_and_the_connection_stays() {
    let node = node();
    let mut client = node.connect();
    let long = format!("/f/{}", "n".repeat(65));
    let targets = [
        "/",
        "*",
        "/metrics",
        "/f",
        "/f/",
        "/F/echo",
        "//f/echo",
        "/f//echo",
        "/f/ec%68o",
        "/f/echo%2Fx",
        "/f/a+b",
        "/f/?echo",
        "/f/echo!",
        "/ff/echo",
        "/./f/echo",
        "/healthz",
        "http://x/",
        "/f/a:b",
        &long,
    ];
    for target in targets {
        let reply = client.call("GET", target, &[], b"");
        assert_eq!((reply.status, reply.code().as_str()), (404, "no_route"), "{target}");
        assert_eq!((reply.header("connection"), reply.header("x-session-id"), reply.header("x-invocation-id")), (None, None, None));
        let reply = client.call("POST", target, &[], b"a body that is read and dropped");
        assert_eq!((reply.status, reply.code().as_str()), (404, "no_route"), "{target} with a body");
    }
    let unknown = format!("/f/{}", "n".repeat(64));
    for target in ["/f/missing", "/f/Echo", "/f/..", "/f/echo.", unknown.as_str()] {
        client.call("GET", target, &[], b"").assert_error(404, "no_function");
        client.call("POST", target, &[], b"a body").assert_error(404, "no_function");
    }
    client.assert_open();
}

#[test]
fn the_guest_sees_method_path_and_query_raw() {
    let node = node();
    let cases: &[(&str, &str, &str, &str)] = &[
        ("GET", "/f/script", "", ""),
        ("DELETE", "/f/script/", "/", ""),
        ("PATCH", "/f/script/a%2Fb/../c//d;e?x=%20&y=?/", "/a%2Fb/../c//d;e", "x=%20&y=?/"),
        ("PUT", "/f/script?", "", ""),
        ("M-SEARCH", "/f/script?f=/g", "", "f=/g"),
        ("POST", "http://other/f/script/rest?q", "/rest", "q"),
    ];
    for (method, target, path, query) in cases {
        for (argument, expected) in [(2, *method), (3, *path), (4, *query)] {
            let body = harness::Script::new().input(argument).output(expected.len() as i32).end_with(0);
            let reply = node.call(method, target, &[("content-length", &body.len().to_string())], &body);
            reply.assert_ok(expected.as_bytes());
            let body = harness::Script::new().input(argument).end();
            let reply = node.call(method, target, &[("content-length", &body.len().to_string())], &body);
            assert_eq!(harness::Script::results(&reply.body), [expected.len() as i32], "{method} {target} argument {argument}");
        }
    }
}

#[test]
fn session_headers_are_held_to_their_rules() {
    let node = node();
    let longest = "s".repeat(64);
    for good in ["a", "A", "!~", "a,b", "a:b;c=d", &longest, " \t padded\t "] {
        let reply = node.call("GET", "/f/echo", &[("X-Session-ID", good)], b"");
        assert_eq!((reply.status, reply.session()), (200, good.trim()), "{good:?}");
    }
    let with = |lines: &[u8]| [b"GET /f/echo HTTP/1.1\r\nhost: x\r\n", lines, b"\r\n"].concat();
    let too_long = format!("x-session-id: {}\r\n", "s".repeat(65));
    let bad: &[&[u8]] = &[
        b"x-session-id:\r\n",
        b"x-session-id:  \t \r\n",
        b"x-session-id: a b\r\n",
        b"x-session-id: a\tb\r\n",
        b"x-session-id: \xc3\xa4\r\n",
        b"x-session-id: a\r\nx-session-id: a\r\n",
        b"x-session-id: a\r\nX-Session-Id: b\r\n",
        b"x-session-id:\r\nx-session-id: a\r\n",
        too_long.as_bytes(),
    ];
    let before = node.metrics().runs("echo");
    for lines in bad {
        assert_refused(&node, &with(lines), 400, "bad_session");
    }
    assert_eq!(node.metrics().runs("echo"), before);
}

#[test]
fn the_session_header_can_have_another_name() {
    let node = Node::builder().function(Function::guest("echo")).listen("session_header = \"X-Game-Room\"").start();
    let reply = node.call("GET", "/f/echo", &[("x-game-room", "lobby")], b"");
    assert_eq!(
        (reply.status, reply.header("x-game-room")),
        (200, Some("lobby")),
        "the ID comes back in the header it is looked for in: {reply:?}"
    );
    let reply = node.call("GET", "/f/echo", &[("x-session-id", "lobby")], b"");
    let fresh = reply.header("x-game-room").unwrap();
    assert!(fresh != "lobby" && fresh.len() >= 16, "{fresh}");
}

#[test]
fn heads_are_the_same_wherever_they_are_split() {
    let node = node();
    let head = b"\r\nPOST /f/echo/a?b HTTP/1.1\r\nhost: x\r\nx-session-id: split\r\ncontent-length: 3\r\n\r\nabc";
    let mut client = Client::connect(node.http);
    for at in 1..head.len() {
        client.send(&head[..at]);
        client.send(&head[at..]);
        let reply = client.reply();
        reply.assert_ok(b"abc");
        assert_eq!(reply.session(), "split");
    }
    for byte in head.repeat(3).chunks(1) {
        client.send(byte);
    }
    for _ in 0..3 {
        client.reply().assert_ok(b"abc");
    }
}
