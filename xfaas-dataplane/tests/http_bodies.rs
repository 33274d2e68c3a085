//! Bodies as CONTRACT.md section 1, "Bodies", rules them: by length and chunked, and everything that is neither.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, eventually};

fn node() -> Node {
    Node::builder().guests(&["echo", "counter-rmw"]).start()
}

fn post(lines: &str, body: &[u8]) -> Vec<u8> {
    [format!("POST /f/echo HTTP/1.1\r\nhost: x\r\n{lines}\r\n").as_bytes(), body].concat()
}

#[track_caller]
fn assert_refused(node: &Node, bytes: &[u8], status: u16, code: &str) {
    let mut client = node.connect();
    client.try_send(bytes);
    let reply = client.reply();
    assert_eq!((reply.status, reply.code().as_str()), (status, code), "{:?} got {reply:?}", String::from_utf8_lossy(bytes));
    assert_eq!(reply.header("connection"), Some("close"));
    client.assert_closed();
}

#[track_caller]
fn assert_chunked(node: &Node, body: &[u8], expected: &[u8]) {
    let mut client = node.connect();
    client.send(&post("transfer-encoding: chunked\r\n", body));
    client.reply().assert_ok(expected);
    client.assert_open();
}

#[test]
fn a_content_length_that_is_not_one_number_is_refused() {
    let node = node();
    for lines in [
        "content-length: 3\r\ncontent-length: 3\r\n",
        "content-length: 3\r\nContent-Length: 4\r\n",
        "content-length: 3, 3\r\n",
        "content-length: 3,\r\n",
        "content-length: +3\r\n",
        "content-length: -3\r\n",
        "content-length: 0x3\r\n",
        "content-length: 3.0\r\n",
        "content-length: 3 3\r\n",
        "content-length:\r\n",
        "content-length: three\r\n",
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
    ] {
        assert_refused(&node, &post(lines, b"abc"), 400, "bad_request");
    }
    assert_eq!(node.metrics().runs("echo"), 0.0);
}

#[test]
fn a_content_length_too_large_to_hold_is_too_large() {
    let node = node();
    for digits in ["18446744073709551615", "18446744073709551616", &"9".repeat(400), "8388609"] {
        assert_refused(&node, &post(&format!("content-length: {digits}\r\n"), b""), 413, "body_too_large");
    }
    let mut client = node.connect();
    client.send(&post(&format!("content-length: {}3\r\n", "0".repeat(300)), b"abc"));
    client.reply().assert_ok(b"abc");
}

#[test]
fn a_transfer_encoding_other_than_chunked_is_refused() {
    let node = node();
    for lines in [
        "transfer-encoding: gzip\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding: chunked;q=1\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding:\r\n",
        "transfer-encoding: xchunked\r\n",
    ] {
        assert_refused(&node, &post(lines, b"3\r\nabc\r\n0\r\n\r\n"), 400, "bad_request");
    }
    let old = b"POST /f/echo HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_refused(&node, old, 400, "bad_request");
    for value in ["CHUNKED", "Chunked", "\t chunked "] {
        let mut client = node.connect();
        client.send(&post(&format!("Transfer-Encoding: {value}\r\n"), b"3\r\nabc\r\n0\r\n\r\n"));
        client.reply().assert_ok(b"abc");
    }
}

#[test]
fn chunks_are_put_together_and_extensions_and_trailers_dropped() {
    let node = node();
    let cases: &[(&[u8], &[u8])] = &[
        (b"0\r\n\r\n", b""),
        (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"1\r\na\r\n2\r\nbc\r\n000\r\n\r\n", b"abc"),
        (b"0003\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"01234567890123456789"),
        (b"3;x\r\nabc\r\n0;y=z\r\n\r\n", b"abc"),
        (b"3;x=\"a;b\\\" c\";y\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"3\r\nabc\r\n0\r\ncontent-length: 9\r\nx-session-id: other\r\n\r\n", b"abc"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
    ];
    for (body, expected) in cases {
        assert_chunked(&node, body, expected);
    }
    let mut client = node.connect();
    client.send(&post("transfer-encoding: chunked\r\nx-session-id: mine\r\n", b"0\r\nx-session-id: other\r\n\r\n"));
    assert_eq!(client.reply().session(), "mine", "a trailer is not a header");
}

#[test]
fn malformed_chunk_framing_is_refused() {
    let node = node();
    let bad: &[&[u8]] = &[
        b"\r\nabc\r\n0\r\n\r\n",
        b"g\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3\t\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"3\rabc\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"3;\r\nabc\r\n0\r\n\r\n",
        b"3; x\r\nabc\r\n0\r\n\r\n",
        b"3;x \r\nabc\r\n0\r\n\r\n",
        b"3;=y\r\nabc\r\n0\r\n\r\n",
        b"3;x=\r\nabc\r\n0\r\n\r\n",
        b"3;x=\"y\r\nabc\r\n0\r\n\r\n",
        b"3;x=y z\r\nabc\r\n0\r\n\r\n",
        b"3;x\nabc\r\n0\r\n\r\n",
        b"3,4\r\nabc\r\n0\r\n\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"0\r\na : b\r\n\r\n",
        b"0\r\na: b\n\r\n",
        b"0\r\na: \0\r\n\r\n",
        b"0\r\n\n",
        b"0\n\n",
    ];
    for body in bad {
        assert_refused(&node, &post("transfer-encoding: chunked\r\n", body), 400, "bad_request");
    }
    assert_eq!(node.metrics().runs("echo"), 0.0);
}

#[test]
fn a_chunk_size_too_large_to_hold_is_too_large() {
    let node = node();
    for size in ["10000000000000000", "ffffffffffffffff", "fffffffffffffffffffffff", "800001"] {
        assert_refused(&node, &post("transfer-encoding: chunked\r\n", format!("{size}\r\n").as_bytes()), 413, "body_too_large");
    }
    assert_chunked(&node, format!("{}3\r\nabc\r\n0\r\n\r\n", "0".repeat(40)).as_bytes(), b"abc");
    assert_refused(&node, &post("transfer-encoding: chunked\r\n", b"ffffffffffffffffffg\r\n"), 400, "bad_request");
}

#[test]
fn a_body_cut_short_runs_nothing() {
    let node = node();
    for bytes in [
        &b"POST /f/counter-rmw HTTP/1.1\r\nhost: x\r\nx-session-id: cut\r\ncontent-length: 3\r\n\r\nab"[..],
        b"POST /f/counter-rmw HTTP/1.1\r\nhost: x\r\nx-session-id: cut\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        b"POST /f/counter-rmw HTTP/1.1\r\nhost: x\r\nx-session-id: cut\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab",
        b"POST /f/counter-rmw HTTP/1.1\r\nhost: x\r\nx-session-id: cut\r\n",
    ] {
        let mut client = node.connect();
        client.send(bytes);
        client.finish();
        client.assert_closed();
    }
    eventually("all connections are gone", || node.metrics().sum("xfaas_connections", &[]) == 0.0);
    assert_eq!(node.metrics().runs("counter-rmw"), 0.0);
    node.post("counter-rmw", "cut", b"").assert_ok(b"1");
}

#[test]
fn bodies_are_the_same_wherever_they_are_split() {
    let node = node();
    let body = b"5;a=\"b\"\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nx: y\r\n\r\n";
    let bytes = post("transfer-encoding: chunked\r\n", body);
    let mut client = node.connect();
    for at in 1..bytes.len() {
        client.send(&bytes[..at]);
        client.send(&bytes[at..]);
        client.reply().assert_ok(b"hello world");
    }
    for byte in bytes.chunks(1) {
        client.send(byte);
    }
    client.reply().assert_ok(b"hello world");
}

#[test]
fn any_bytes_come_back_as_they_were() {
    let node = Node::builder().function(Function::guest("echo")).start();
    let mut client = node.connect();
    for length in [0, 1, 255, 4_095, 16_384, 16_385, 65_536, 100_003] {
        let body: Vec<u8> = (0..length).map(|i: usize| (i * 31 + i / 256) as u8).collect();
        client.call("POST", "/f/echo", &[], &body).assert_ok(&body);
        let mut chunked = Vec::new();
        for chunk in body.chunks(7_001) {
            chunked.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
            chunked.extend_from_slice(chunk);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        client.call("PUT", "/f/echo", &[("transfer-encoding", "chunked")], &chunked).assert_ok(&body);
    }
}

#[test]
fn a_get_may_have_a_body() {
    let node = node();
    node.call("GET", "/f/echo", &[("content-length", "3")], b"abc").assert_ok(b"abc");
}
