//! `xfaas trace --tail` says where the time of requests went: CONTRACT.md section 4.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Node, Script, Stop, UdpClient, request, xfaas};
use serde_json::Value;

const STAGES: [&str; 7] = ["network_us", "turn_us", "decode_us", "worker_us", "guest_us", "parked_us", "send_us"];

fn node() -> Node {
    let script = |name: &str| Script::function(name).app("state").with("deadline_ms = 60000");
    Node::builder().limit("lock_wait_ms = 60000").guests(&["echo"]).function(script("script")).start()
}

/// What was remembered of one kind on all shards.
fn entries<'a>(reply: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    reply["shards"].as_array().unwrap().iter().flat_map(move |shard| shard[kind].as_array().unwrap())
}

/// Sends requests until the trace has ended, so that the slow one is among many.
fn load(node: &Node, stop: &Stop) {
    let (mut client, udp) = (node.connect(), UdpClient::connect(node.http));
    let mut number = 0;
    while !stop.is_set() {
        client.call("POST", "/f/echo", &[("x-session-id", "quick")], b"hello").assert_ok(b"hello");
        udp.call("echo", "datagram", number, b"hi").assert_reply(b"hi");
        number += 1;
    }
}

#[test]
fn a_request_that_waits_for_a_lock_is_among_the_slowest_and_says_so() {
    let (node, stop) = (node(), Stop::default());
    let hold = Script::new().read("k", 1).spin(20_000_000).write("k", b"v", 1).end();
    let take = Script::new().read("k", 1).write("k", b"w", 1).end();
    let reply: Value = std::thread::scope(|scope| {
        let _guard = stop.at_end();
        scope.spawn(|| load(&node, &stop));
        let tracing = scope.spawn(|| node.cli_json(&["trace", "--tail", "--seconds", "3"]));
        while !tracing.is_finished() {
            let mut holder = node.connect();
            holder.send(&request("POST", "/f/script", &[("x-session-id", "locked")], &hold));
            node.post("script", "locked", &take);
            holder.reply();
        }
        tracing.join().unwrap()
    });
    assert!(entries(&reply, "sample").count() > 0 && entries(&reply, "slow").count() > 0);
    for entry in entries(&reply, "slow").chain(entries(&reply, "sample")) {
        let sum: f64 = STAGES.iter().map(|stage| entry[*stage].as_f64().unwrap()).sum();
        assert!((sum - entry["total_us"].as_f64().unwrap()).abs() < 0.01, "{entry}");
    }
    for shard in reply["shards"].as_array().unwrap() {
        // Nothing had to go, so what the sample has of the slow ones is there too, each by its total.
        assert_eq!((&shard["dropped"], &shard["slow_above_us"], &shard["sampled_one_in"]), (&0.into(), &0.0.into(), &128.into()));
        let slow = shard["slow"].as_array().unwrap();
        assert!(slow.iter().all(|entry| entry["is_slow"] == true));
        assert!(shard["sample"].as_array().unwrap().iter().all(|entry| entry["is_slow"] == slow.contains(entry)));
    }
    let waited = entries(&reply, "slow").filter(|entry| entry["session"] == "locked" && entry["lock_us"].as_f64() > Some(1_000.0));
    let waited: Vec<&Value> = waited.collect();
    assert!(!waited.is_empty(), "{} slow ones, none of them waited", entries(&reply, "slow").count());
    assert!(waited.iter().all(|entry| entry["function"] == "script" && entry["parked_us"].as_f64() >= entry["lock_us"].as_f64()));
    assert!(entries(&reply, "sample").any(|entry| entry["is_datagram"] == true));
}

#[test]
fn the_text_has_a_row_for_each_quantile_and_bad_times_are_refused() {
    let (node, stop) = (node(), Stop::default());
    let text = std::thread::scope(|scope| {
        let _guard = stop.at_end();
        scope.spawn(|| load(&node, &stop));
        let output = node.cli(&["trace", "--seconds", "2"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    });
    // Packets are not steered here, so no kernel program stamps them.
    assert!(text.starts_with("no packet was stamped by a kernel program"), "{text}");
    for row in ["p50 ", "p99 ", "p99.9 "] {
        let row = text.lines().find(|line| line.starts_with(row)).unwrap_or_else(|| panic!("no {row:?} in\n{text}"));
        assert_eq!(row.split_whitespace().nth(2), Some("-"), "{row}");
    }
    assert!(text.lines().any(|line| line.trim_start().starts_with("SLOWEST")), "{text}");
    for seconds in ["0", "61", "x", "-1"] {
        assert_eq!(xfaas(&["trace", "--seconds", seconds]).status.code(), Some(2), "{seconds}");
    }
    for query in ["", "?seconds=0", "?seconds=61", "?seconds=x", "?seconds=1&more=1"] {
        let mut admin = harness::Client::connect(node.admin);
        assert_eq!(admin.call("GET", &format!("/v1/trace{query}"), &[], b"").status, 400, "{query}");
    }
}
