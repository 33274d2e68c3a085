//! Stop and start, CONTRACT.md section 4 and issue section 3: SIGTERM finishes what runs, and after a restart the first answer comes soon.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Function, Node, PATIENCE, Script, UdpClient, eventually, request, request_datagram};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[test]
fn sigterm_finishes_what_runs_and_refuses_what_is_new() {
    let mut node = Node::builder().guests(&["echo"]).function(Script::function("script").with("deadline_ms = 15000")).start();
    let mut running = node.connect();
    running.send(&request("POST", "/f/script", &[("x-session-id", "s")], &Script::new().spin(900_000_000).end()));
    eventually("it runs", || node.metrics().sum("xfaas_workers", &[]) == 1.0);
    let mut other = node.connect();
    let udp = UdpClient::connect(node.http);
    other.call("POST", "/f/echo", &[], b"x").assert_ok(b"x");
    node.signal(Signal::TERM);
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        let reply = other.call("POST", "/f/echo", &[], b"x");
        if reply.status != 200 {
            break reply;
        }
        assert!(Instant::now() < deadline, "requests are still served");
    };
    refused.assert_error(503, "draining");
    assert!(refused.header("retry-after").is_some() && refused.header("x-invocation-id").is_none(), "{refused:?}");
    assert_eq!(refused.header("connection"), None, "the connection stays");
    other.send(&request("POST", "/f/echo", &[("expect", "100-continue"), ("content-length", "5")], b""));
    other.reply().assert_error(503, "draining");
    other.assert_closed();
    udp.call("echo", "s", 1, b"").assert_error(4, "draining");
    for _ in 0..8 {
        node.connect().call("POST", "/f/echo", &[], b"x").assert_error(503, "draining");
    }
    running.reply().assert_ok(&0_i32.to_le_bytes()[..0]);
    let status = node.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn a_node_that_drains_is_not_ready_and_takes_no_functions() {
    let mut node = Node::builder().guests(&["echo"]).function(Function::guest("spin").with("deadline_ms = 60000")).start();
    let mut spinner = node.connect();
    spinner.send(&request("POST", "/f/spin", &[("x-session-id", "s")], b""));
    eventually("it runs", || node.metrics().sum("xfaas_workers", &[]) == 1.0);
    let ask = |target: &str| Client::try_connect(node.admin).unwrap().call("GET", target, &[], b"");
    assert_eq!(ask("/readyz").status, 200);
    node.signal(Signal::TERM);
    eventually("it drains", || node.log().contains("stopping"));
    eventually("it is not ready", || ask("/readyz").status == 503);
    for _ in 0..3 {
        let reply = ask("/readyz");
        assert!(reply.status == 503 && reply.code() == "not_ready" && reply.text().contains("draining"), "{reply:?}");
    }
    assert_eq!(ask("/healthz").status, 200);
    let echo = harness::guest("echo");
    for command in [&["deploy", "late", echo.to_str().unwrap()][..], &["undeploy", "echo"]] {
        let output = node.cli(command);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains("the shards are stopping"), "{text}");
    }
    node.kill();
}

#[test]
fn connections_that_move_while_the_node_stops_are_answered() {
    let mut node = Node::builder().guests(&["echo"]).function(Function::guest("spin").with("deadline_ms = 60000")).start();
    let mut spinner = node.connect();
    spinner.send(&request("POST", "/f/spin", &[("x-session-id", "s")], b"")); // the node does not end before we have asked
    eventually("it runs", || node.metrics().sum("xfaas_workers", &[]) == 1.0);
    let mut clients: Vec<Client> = (0..64).map(|_| node.connect()).collect();
    clients.iter_mut().for_each(Client::assert_open);
    // About half of them are with the shard that is not their session's, and leave it after this.
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&request("POST", "/f/echo", &[("x-session-id", &format!("session-{number}"))], b"x"));
        if number == 32 {
            node.signal(Signal::TERM);
        }
    }
    for client in &mut clients {
        let reply = client.reply();
        assert!(matches!(reply.status, 200 | 503), "{reply:?}");
    }
    for (number, client) in clients.iter_mut().enumerate() {
        eventually("it drains", || client.call("POST", "/f/echo", &[("x-session-id", &format!("session-{number}"))], b"x").status == 503);
    }
    // The shard that has nothing left to finish waits for the other one.
    std::thread::sleep(Duration::from_millis(400));
    for client in &mut clients {
        client.call("POST", "/f/echo", &[("x-session-id", "s")], b"x").assert_error(503, "draining");
    }
    node.kill();
}

#[test]
fn an_idle_node_stops_soon_and_connections_are_closed() {
    let mut node = Node::builder().guests(&["echo"]).start();
    let mut clients: Vec<Client> = (0..20).map(|_| node.connect()).collect();
    for client in &mut clients {
        client.call("POST", "/f/echo", &[], b"x").assert_ok(b"x");
    }
    let begun = Instant::now();
    node.stop();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for client in &mut clients {
        client.assert_closed();
    }
    assert!(Client::try_connect(node.http).is_err(), "nobody listens");
}

#[test]
fn a_call_that_runs_too_long_does_not_keep_the_node_from_stopping() {
    let mut node = Node::builder()
        .function(Function::guest("spin").with("deadline_ms = 60000"))
        .function(Function::guest("lock-forever").with("deadline_ms = 60000"))
        .limit("drain_ms = 500")
        .start();
    let mut clients: Vec<Client> = ["spin", "lock-forever", "lock-forever"]
        .iter()
        .map(|function| {
            let mut client = node.connect();
            client.send(&request("POST", &format!("/f/{function}"), &[("x-session-id", "s")], b""));
            client
        })
        .collect();
    eventually("they run", || node.metrics().sum("xfaas_workers", &[]) == 3.0);
    let begun = Instant::now();
    node.stop();
    let time = begun.elapsed();
    assert!((Duration::from_millis(450)..Duration::from_secs(8)).contains(&time), "{time:?}");
    drop(clients.drain(..));
}

#[test]
fn every_call_that_has_not_ended_when_the_time_is_over_is_answered() {
    let spin = || Function::guest("spin").app("one").with("deadline_ms = 60000").with("workers_max = 1");
    let mut node = Node::builder()
        .function(spin())
        .function(spin().named("once").with("idempotent = true"))
        .function(spin().named("wide").with("containers_max = 2"))
        .function(Function::guest("lock-forever").app("one").with("deadline_ms = 60000"))
        .limit("drain_ms = 500")
        .limit("lock_wait_ms = 60000")
        .start();
    let udp = UdpClient::connect(node.http);
    let call = |function: &'static str, session: &str| {
        let mut client = node.connect();
        client.send(&request("POST", &format!("/f/{function}"), &[("x-session-id", session)], b""));
        (client, function)
    };
    // Sessions of both shards, on connections of both: about half of the calls are forwarded.
    let sessions = ["a", "b", "c", "d", "e", "f"];
    sessions.iter().for_each(|session| udp.send(&request_datagram("once", session, 0, b"")));
    let mut clients: Vec<(Client, &str)> = vec![call("wide", "wide"), call("wide", "wide")];
    eventually("the first ones run", || node.metrics().sum("xfaas_workers", &[]) == 8.0);
    for session in sessions {
        clients.extend(["lock-forever", "lock-forever"].map(|function| call(function, session)));
    }
    eventually("they run", || node.metrics().sum("xfaas_workers", &[]) == 20.0);
    for session in sessions {
        clients.extend(["spin", "spin", "spin"].map(|function| call(function, session)));
        (1..=10).for_each(|id| udp.send(&request_datagram("spin", session, id, b"")));
        (0..2).for_each(|_| udp.send(&request_datagram("once", session, 0, b"")));
    }
    clients.push(call("spin", "wide"));
    eventually("all have come", || {
        let metrics = node.metrics();
        metrics.sum("xfaas_calls_queued", &[]) == 6.0 * 13.0 + 1.0 && metrics.sum("xfaas_replays_total", &[]) == 12.0
    });
    node.signal(Signal::TERM);
    for (client, function) in &mut clients {
        let reply = client.reply();
        match *function {
            "spin" => reply.assert_error(503, "draining"),
            _ => reply.assert_error(504, "deadline"),
        }
        assert_eq!(reply.header("x-session-id").is_some(), *function != "spin", "only where it ran: {reply:?}");
    }
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..6 * (1 + 10 + 2) {
        let answer = udp.answer();
        match answer.request_id {
            0 => answer.assert_error(5, "deadline"),
            _ => answer.assert_error(4, "draining"),
        }
        *counts.entry((answer.session, answer.request_id)).or_insert(0) += 1;
    }
    assert!(counts.len() == 6 * 11 && counts.iter().all(|((_, id), count)| *count == if *id == 0 { 3 } else { 1 }), "{counts:?}");
    assert!(node.wait().success());
    assert_eq!(udp.try_answer(Duration::from_millis(20)), None);
}

#[test]
fn replies_under_way_to_slow_readers_are_finished() {
    let mut node = Node::builder().guests(&["big-output"]).start();
    let mut clients: Vec<Client> = (0..4).map(|_| node.connect()).collect();
    for client in &mut clients {
        client.send(&request("GET", "/f/big-output", &[], b""));
    }
    for client in &clients {
        assert_eq!(client.stream().peek(&mut [0]).unwrap(), 1);
    }
    node.signal(Signal::TERM);
    // Nothing is read until the node has been told: the socket buffers are full by then.
    std::thread::sleep(Duration::from_millis(100));
    for client in &mut clients {
        assert_eq!(client.reply().body.len(), 8 << 20);
    }
    assert!(node.wait().success());
}

#[test]
fn the_first_answer_after_a_restart_comes_within_two_seconds() {
    let mut node = Node::builder().guests(&["counter-rmw-linear", "echo", "cart", "init"]).start();
    node.post("counter-rmw-linear", "s", b"").assert_ok(b"1");
    let mut best = Duration::MAX;
    // Other processes of the machine can only make a start slower: the best of three is the closest to what the node does.
    for _ in 0..3 {
        node.stop();
        let begun = Instant::now();
        node.spawn();
        let mut client = loop {
            match Client::try_connect(node.http) {
                Ok(client) => break client,
                Err(_) => assert!(begun.elapsed() < PATIENCE && node.is_running(), "nobody listens"),
            }
        };
        let reply = client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "s")], b"");
        assert_eq!(reply.status, 200, "the first answer is the function's, not that it is not there yet: {reply:?}");
        best = best.min(begun.elapsed());
        if best < Duration::from_secs(2) {
            break;
        }
    }
    assert!(best < Duration::from_secs(2), "{best:?}");
}

#[test]
fn requests_right_after_the_ports_open_are_served() {
    let mut node = Node::builder().guests(&["echo", "cart", "init", "counter-rmw", "counter-read"]).start();
    node.stop();
    node.spawn();
    let udp = UdpClient::connect(node.http);
    let mut answered = None;
    let deadline = Instant::now() + PATIENCE;
    for id in 0.. {
        assert!(Instant::now() < deadline && node.is_running(), "no answer");
        // Refused by ICMP until the port is open, which `send` or `recv` then reports.
        if udp.try_send(&request_datagram("counter-read", "s", id, b"")) {
            answered = udp.try_answer(Duration::from_millis(20));
        }
        if answered.is_some() {
            break;
        }
    }
    answered.unwrap().assert_reply(b"0");
    node.post("counter-read", "s", b"").assert_ok(b"0");
}

#[test]
fn a_terminal_that_goes_away_stops_a_node_as_sigterm_does() {
    let mut node = Node::builder().function(Function::guest("spin").with("deadline_ms = 60000")).limit("drain_ms = 500").start();
    let mut client = node.connect();
    client.send(&request("POST", "/f/spin", &[("x-session-id", "s")], b""));
    eventually("it runs", || node.metrics().sum("xfaas_workers", &[]) == 1.0);
    node.signal(Signal::HUP);
    eventually("it drains", || node.log().contains("stopping"));
    node.signal(Signal::HUP); // the shell's, after the kernel's
    client.reply().assert_error(504, "deadline");
    let status = node.wait();
    assert!(status.success(), "{status}");
    assert!(!node.log().contains('\u{1b}'), "colours in a file: {:?}", node.log());
}

#[test]
fn a_node_under_nohup_stays() {
    let mut node = Node::builder().guests(&["echo"]).ignoring_hangup().start();
    node.signal(Signal::HUP);
    node.post("echo", "s", b"x").assert_ok(b"x");
    node.stop();
}

#[test]
fn a_second_signal_ends_a_node_that_drains() {
    let mut node = Node::builder().function(Function::guest("spin").with("deadline_ms = 60000")).start();
    let mut client = node.connect();
    client.send(&request("POST", "/f/spin", &[("x-session-id", "s")], b""));
    eventually("it runs", || node.metrics().sum("xfaas_workers", &[]) == 1.0);
    node.signal(Signal::INT);
    eventually("it drains", || node.log().contains("stopping"));
    assert!(node.is_running());
    eventually("it ends", || {
        if node.is_running() {
            node.signal(Signal::INT);
        }
        !node.is_running()
    });
}
