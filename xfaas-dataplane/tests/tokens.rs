//! Guarded addresses, CONTRACT.md sections 1 and 4: session tokens over both protocols, and limits of a namespace.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, UdpClient, guest, request};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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

/// Keeps its core busy for a million rounds.
const BURN: &str = r#"(module (memory (export "memory") 1) (func (export "handle") (result i32) (local $i i32)
  (local.set $i (i32.const 1000000))
  (loop $again (local.set $i (i32.sub (local.get $i) (i32.const 1))) (br_if $again (local.get $i)))
  (i32.const 0)))"#;

/// Latencies of a neighbour's requests, ascending, while four connections keep asking for one session's core time.
fn neighbour_ms(cpu_share: &str) -> Vec<f64> {
    let node = Node::builder().function(Function::text("burn", BURN).with(cpu_share)).function(Function::guest("echo")).shards(1).start();
    let piped = request("POST", "/f/burn", &[("x-session-id", "crowd")], b"").repeat(100);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let client = node.connect();
            let (mut reader, mut writer) = (client.stream().try_clone().unwrap(), client.stream().try_clone().unwrap());
            let (stop, piped) = (&stop, &piped);
            scope.spawn(move || while !stop.load(Ordering::Relaxed) && writer.write_all(piped).is_ok() {});
            // Ends with the connection, which ends when the neighbour has seen enough.
            scope.spawn(move || {
                let mut replies = [0; 4096];
                while !stop.load(Ordering::Relaxed) && reader.read(&mut replies).is_ok_and(|bytes| bytes > 0) {}
                reader.shutdown(std::net::Shutdown::Both).ok();
            });
        }
        harness::eventually("the crowd is there", || node.metrics().requests("burn", "ok") > 200.0);
        let mut neighbour = node.connect();
        let mut latencies: Vec<f64> = (0..20)
            .map(|_| {
                let asked = Instant::now();
                neighbour.call("POST", "/f/echo", &[("x-session-id", "quiet")], b"x").assert_ok(b"x");
                asked.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        latencies.sort_by(f64::total_cmp);
        latencies
    })
}

#[test]
fn a_namespace_over_its_share_of_the_core_does_not_crowd_its_neighbours() {
    let (free, held) = (neighbour_ms(""), neighbour_ms("cpu_share = 0.05"));
    let (p50, p99) = (free.len() / 2, free.len() - 1);
    println!(
        "neighbour beside a crowd: p50 {:.1} ms, p99 {:.1} ms; with cpu_share 0.05: p50 {:.1} ms, p99 {:.1} ms",
        free[p50], free[p99], held[p50], held[p99]
    );
    assert!(held[p50] * 2.0 < free[p50], "{held:?} against {free:?}");
}

#[test]
fn a_share_that_is_none_is_refused() {
    let node = Node::builder().start();
    let echo = guest("echo").to_str().unwrap().to_owned();
    for share in ["0", "1.5", "NaN", "much"] {
        let refused = node.cli(&["deploy", "x", &echo, "--cpu-share", share]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(errors(&refused).contains("0.01..=1.0"), "{refused:?}");
    }
    let info = node.cli_json(&["deploy", "x", &echo, "--cpu-share", "0.25"]);
    assert_eq!(info["manifest"]["cpu_share"], 0.25);
    node.post("x", "alone", b"hi").assert_ok(b"hi");
}
