//! Guarded addresses, CONTRACT.md sections 1 and 4: session tokens over both protocols, and limits of a namespace.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, UdpClient, guest, request};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

const HEADER: &str = "x-session-token";

fn node() -> Node {
    let guarded = |name: &str| Function::guest("counter-rmw").named(name).app("shop").with("tokens = true");
    Node::builder()
        .function(guarded("guarded"))
        .function(Function::guest("counter-read").app("shop").with("tokens = true"))
        .function(Function::guest("echo").with("tokens = true\nhint = \"path:0\""))
        .function(Function::guest("counter-rmw").named("open"))
        .start()
}

fn token(node: &Node, app: &str, session: &str) -> String {
    let output = node.cli(&["token", "--app", app, "--session", session]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_request_runs_with_its_token_only() {
    let node = node();
    let (alice, bob) = (token(&node, "shop", "alice"), token(&node, "shop", "bob"));
    let mut client = node.connect();
    let mut call = |session: &[(&str, &str)], body: &[u8]| client.call("POST", "/f/guarded", session, body);
    call(&[("x-session-id", "alice"), (HEADER, &alice)], b"").assert_ok(b"1");
    let (front, last) = alice.split_at(alice.len() - 1);
    let wrong = format!("{front}{}", if last == "A" { "E" } else { "A" });
    let refused: [(&[(&str, &str)], &str); 7] = [
        (&[("x-session-id", "alice")], "x-session-token"),
        (&[("x-session-id", "alice"), (HEADER, "")], "<expiry>"),
        (&[("x-session-id", "alice"), (HEADER, &bob)], "not made"),
        (&[("x-session-id", "alice"), (HEADER, &wrong)], "not made"),
        (&[("x-session-id", "alice"), (HEADER, &alice), (HEADER, &alice)], "twice"),
        (&[("x-session-id", "bob"), (HEADER, &alice)], "not made"),
        (&[(HEADER, &alice)], "session"),
    ];
    for (headers, word) in refused {
        for body in [&b""[..], b"a body"] {
            let reply = call(headers, body);
            reply.assert_error(401, "bad_token");
            let problem = reply.problem();
            assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        }
    }
    // Of the same app, on the same connection, which stayed.
    let read = client.call("POST", "/f/counter-read", &[("x-session-id", "alice"), (HEADER, &alice)], b"");
    read.assert_ok(b"1");
    let metrics = node.metrics();
    assert_eq!(metrics.sum("xfaas_tokens_refused_total", &[]), 14.0);
    assert_eq!(metrics.runs("guarded"), 1.0);
    node.post("open", "alice", b"").assert_ok(b"1");
}

#[test]
fn a_token_is_for_the_session_that_the_hint_names() {
    let node = node();
    let alice = token(&node, "echo", "alice");
    node.call("POST", "/f/echo/alice/x", &[(HEADER, &alice)], b"hi").assert_ok(b"hi");
    node.call("POST", "/f/echo/bob", &[(HEADER, &alice)], b"hi").assert_error(401, "bad_token");
    node.call("POST", "/f/echo", &[(HEADER, &alice)], b"hi").assert_error(401, "bad_token");
    let mut client = node.connect();
    let headers = [("expect", "100-continue"), ("content-length", "5")];
    client.send(&request("POST", "/f/echo/alice", &headers, b""));
    client.reply().assert_error(401, "bad_token");
    client.assert_closed();
}

#[test]
fn an_expired_token_is_refused() {
    let node = node();
    let reply = node.cli_json(&["token", "--app", "shop", "--session", "alice", "--ttl-s", "1"]);
    let (token, expires_s) = (reply["token"].as_str().unwrap(), reply["expires_unix_s"].as_u64().unwrap());
    assert!(token.starts_with(&format!("v1.{expires_s}.")), "{reply}");
    harness::eventually("the token has expired", || {
        let reply = node.call("POST", "/f/guarded", &[("x-session-id", "alice"), (HEADER, token)], b"");
        reply.status == 401 && reply.problem()["detail"].as_str().unwrap().contains("expired")
    });
}

#[test]
fn a_datagram_brings_its_token_before_its_payload() {
    let node = node();
    let alice = token(&node, "echo", "alice");
    let with = |token: &str, payload: &[u8]| [&[token.len() as u8], token.as_bytes(), payload].concat();
    let udp = UdpClient::connect(node.http);
    udp.call("echo", "alice", 1, &with(&alice, b"payload")).assert_reply(b"payload");
    udp.call("echo", "alice", 2, &with(&alice, b"")).assert_reply(b"");
    for (i, payload) in [vec![], b"payload".to_vec(), with("", b"x"), with(&alice[1..], b"x"), vec![255; 30]].iter().enumerate() {
        udp.call("echo", "alice", 10 + i as u64, payload).assert_error(11, "bad_token");
    }
    udp.call("echo", "bob", 20, &with(&alice, b"x")).assert_error(11, "bad_token");
    udp.call("open", "alice", 21, b"x").assert_reply(b"1");
    assert_eq!(node.metrics().sum("xfaas_tokens_refused_total", &[]), 6.0);
}

#[test]
fn tokens_survive_a_restart_and_their_secret_is_private() {
    let mut node = node();
    let alice = token(&node, "shop", "alice");
    node.stop();
    let secret = node.directory.path().join("state/token-secret");
    assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    node.start();
    node.call("POST", "/f/guarded", &[("x-session-id", "alice"), (HEADER, &alice)], b"").assert_ok(b"1");
    node.stop();
    std::fs::remove_file(&secret).unwrap();
    node.start();
    node.call("POST", "/f/guarded", &[("x-session-id", "alice"), (HEADER, &alice)], b"").assert_error(401, "bad_token");
}

#[test]
fn tokens_that_cannot_be_made_are_refused() {
    let node = node();
    for (arguments, code, word) in [
        (&["token", "--app", "none", "--session", "a"][..], 1, "functions"),
        (&["token", "--app", "open", "--session", "a"], 1, "--tokens"),
        (&["token", "--app", "shop", "--session", "a b"], 2, "visible ASCII"),
        (&["token", "--app", "shop", "--session", "a", "--ttl-s", "0"], 2, "ttl-s"),
        (&["token", "--app", "shop"], 2, "--session"),
    ] {
        let output = node.cli(arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(errors(&output).contains(word) && output.stdout.is_empty(), "{output:?}");
    }
    let echo = guest("echo").to_str().unwrap().to_owned();
    let refused = node.cli(&["deploy", "another", &echo, "--app", "shop"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors(&refused).contains("tokens"), "{refused:?}");
}

#[test]
fn requests_over_the_rate_of_their_session_are_refused_and_others_are_not() {
    // One request a second, and `fresh`: a namespace without a worker must not forget what it used.
    let node = Node::builder().function(Function::guest("echo").with("requests_per_s = 1\nfresh = true")).start();
    let udp = UdpClient::connect(node.http);
    let mut limited = 0;
    for i in 0..60 {
        let session = format!("s{}", i % 2);
        let reply = node.post("echo", &session, b"x");
        if reply.status == 429 {
            reply.assert_error(429, "rate_limited");
            assert_eq!(reply.header("retry-after"), Some("1"));
            limited += 1;
        } else {
            reply.assert_ok(b"x");
        }
    }
    // However slow this machine is: sixty requests of two sessions would have to take thirty seconds to be within the limit.
    assert!(limited > 0);
    let answers: Vec<_> = (0..20).map(|i| udp.call("echo", "udp", i, b"x")).collect();
    answers[0].assert_reply(b"x");
    answers.iter().find(|answer| answer.status != 0).expect("twenty within a second").assert_error(2, "rate_limited");
    node.post("echo", "another", b"x").assert_ok(b"x");
    assert!(node.metrics().sum("xfaas_rate_limited_total", &[]) >= f64::from(limited + 1));
    let refused = node.cli(&["deploy", "x", guest("echo").to_str().unwrap(), "--requests-per-s", "0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors(&refused).contains("requests_per_s"), "{refused:?}");
}
