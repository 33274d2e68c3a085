//! What long replies cost the machine, CONTRACT.md section 4, `limits.http_memory_mib`: at most about what they may, and nothing when they are gone.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Node, eventually, request};
use rustix::process::Signal;
use std::io::Read;

const MIB: u64 = 1 << 20;
const LIMIT_MIB: u64 = 64;
const REPLY_MIB: u64 = 8;

fn node(shards: usize) -> Node {
    let node = Node::builder().guests(&["big-output", "echo"]).shards(shards).limit(&format!("http_memory_mib = {LIMIT_MIB}")).start();
    // The worker and its memory are there from here on.
    assert_eq!(node.post("big-output", "s", b"").body.len() as u64, REPLY_MIB * MIB);
    node
}

/// Asks for so many long replies, which all wait for the node when it looks.
fn ask_at_once(node: &Node, count: usize) -> Vec<Client> {
    node.signal(Signal::STOP);
    let ask = |_| {
        let mut client = node.connect();
        client.send(&request("POST", "/f/big-output", &[("x-session-id", "s"), ("connection", "close")], b""));
        client
    };
    (0..count).map(ask).collect()
}

/// A value of /proc/PID/status, MiB.
fn memory_mib(node: &Node, name: &str) -> u64 {
    let status = std::fs::read_to_string(node.folder_in_proc().join("status")).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix(" kB")).unwrap();
    kib.trim().parse::<u64>().unwrap() >> 10
}

fn crowded_out(node: &Node) -> f64 {
    node.metrics().sum("xfaas_connections_crowded_out_total", &[])
}

/// `held_mib`: what replies may take at most.
fn burst(shards: usize, held_mib: u64) {
    let node = node(shards);
    // The peak starts over, proc_pid_clear_refs(5).
    std::fs::write(node.folder_in_proc().join("clear_refs"), "5").unwrap();
    let (before_mib, own_before_mib) = (memory_mib(&node, "VmHWM"), memory_mib(&node, "RssAnon"));
    for round in 1..=3 {
        let clients = ask_at_once(&node, 60);
        drop(clients);
        node.signal(Signal::CONT);
        eventually("all ran", || node.metrics().runs("big-output") == f64::from(1 + 60 * round));
        eventually("all are gone", || node.metrics().sum("xfaas_connections", &[]) == 0.0);
        eventually("they hold nothing", || node.metrics().sum("xfaas_http_buffer_bytes", &[]) == 0.0);
    }
    assert!(crowded_out(&node) >= 1.0, "they came at once");
    // One that the guest has just set, for each core, and some for all else.
    let (most_mib, peak_mib) = (held_mib + (shards as u64 + 1) * REPLY_MIB + 16, memory_mib(&node, "VmHWM") - before_mib);
    assert!(peak_mib <= most_mib, "{peak_mib} MiB more than before, of at most {most_mib}");
    let kept_mib = || memory_mib(&node, "RssAnon").saturating_sub(own_before_mib);
    eventually("their memory is the system's again", || kept_mib() <= 24);
    assert_eq!(node.post("big-output", "s", b"").body.len() as u64, REPLY_MIB * MIB);
}

#[test]
fn a_burst_of_long_replies_takes_half_more_than_it_may_at_most_and_gives_it_back() {
    burst(1, LIMIT_MIB * 3 / 2);
}

#[test]
fn so_it_does_when_another_core_runs_the_function() {
    // Half of the connections are the other core's, and their replies on their way have a limit of their own.
    burst(2, (LIMIT_MIB + LIMIT_MIB / 2) * 3 / 2);
}

#[test]
fn of_more_long_replies_than_have_room_those_written_first_arrive_and_the_others_end_without_a_word() {
    let node = node(1);
    let clients = ask_at_once(&node, 20);
    let reading: Vec<_> = clients
        .into_iter()
        .map(|client| {
            std::thread::spawn(move || {
                let mut reply = Vec::new();
                // One that is cut may be reset.
                let is_over = client.stream().read_to_end(&mut reply).is_ok();
                assert!(reply.is_empty() || reply.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&reply[..100]));
                is_over && reply.len() as u64 > REPLY_MIB * MIB
            })
        })
        .collect();
    node.signal(Signal::CONT);
    let whole = reading.into_iter().map(|thread| thread.join().unwrap()).filter(|is_whole| *is_whole).count();
    // On a machine so busy that clients read nothing for a while some make room: seven eighths of the limit stay.
    assert!(whole as u64 >= LIMIT_MIB * 7 / 8 / REPLY_MIB - 1, "{whole} of 20");
    assert_eq!(crowded_out(&node), (20 - whole) as f64);
    assert_eq!(node.metrics().requests("big-output", "ok"), 21.0, "they all ran");
    node.call("POST", "/f/echo", &[], b"small").assert_ok(b"small");
}

#[test]
fn a_reply_without_its_body_needs_no_room() {
    let node = node(1);
    node.signal(Signal::STOP);
    let mut clients: Vec<Client> = (0..20).map(|_| node.connect()).collect();
    for client in &mut clients {
        client.send(&request("HEAD", "/f/big-output", &[("x-session-id", "s")], b""));
    }
    node.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.reply_to_head().header("content-length"), Some((REPLY_MIB * MIB).to_string().as_str()));
    }
    assert_eq!(crowded_out(&node), 0.0);
}
