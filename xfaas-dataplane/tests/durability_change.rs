//! Apps that leave durability `sync` and come back to it: of what the log has and what the store of checkpoints has, the newer counts after the machine
//! has lost its memory. The regions on tmpfs are deleted while the node is down, which is what a reboot does to them.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Node, eventually, guest};
use std::path::PathBuf;

const SESSIONS: usize = 6;

fn lose_memory(node: &Node) {
    for entry in std::fs::read_dir(node.shared_memory()).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
}

fn deploy_as(node: &Node, name: &str, flags: &[&str]) {
    let module = guest("counter-rmw-linear");
    let done = node.cli(&[&["deploy", name, module.to_str().unwrap()], flags].concat());
    assert!(done.status.success(), "{done:?}");
}

fn deploy(node: &Node, flags: &[&str]) {
    deploy_as(node, "counter", flags);
}

/// Counts sessions up `times` times. Output: where they are then.
fn count(node: &Node, sessions: std::ops::Range<usize>, times: usize) -> Vec<u64> {
    let up = |number: usize| {
        let reply = node.post("counter", &format!("s{number}"), b"");
        assert_eq!(reply.status, 200, "{reply:?}");
        String::from_utf8_lossy(&reply.body).parse::<u64>().unwrap()
    };
    sessions.map(|number| (0..times).fold(0, |_, _| up(number))).collect()
}

fn asleep(node: &Node) -> f64 {
    node.metrics().sum("xfaas_sessions_asleep", &[])
}

const CHECKPOINT: [&str; 4] = ["--durability", "checkpoint", "--checkpoint-every-s", "1"];
const NAP: [&str; 4] = ["--durability", "memory", "--keep-alive-s", "1"];

#[test]
fn what_an_app_checkpointed_after_it_left_the_log_counts_and_not_what_the_log_has() {
    let mut node = Node::builder().start();
    deploy(&node, &["--durability", "sync"]);
    count(&node, 0..SESSIONS, 5);
    deploy(&node, &CHECKPOINT);
    count(&node, 0..2, 5);
    node.stop(); // writes what changed
    lose_memory(&node);
    node.start();
    assert_eq!(count(&node, 0..2, 1), [11, 11], "{}", node.log());
    assert_eq!(count(&node, 2..SESSIONS, 1), [6; SESSIONS - 2], "what has no newer checkpoint is as it was acknowledged");
    // The log has been begun anew since, with all that.
    node.stop();
    lose_memory(&node);
    node.start();
    assert_eq!(count(&node, 0..SESSIONS, 1), [12, 12, 7, 7, 7, 7]);
    // In memory it is newer than what the store and the log have of it.
    count(&node, 0..1, 1);
    node.kill();
    node.start();
    assert_eq!(count(&node, 0..SESSIONS, 1), [14, 13, 8, 8, 8, 8]);
}

#[test]
fn a_session_that_slept_after_its_app_left_the_log_wakes_as_it_slept() {
    let mut node = Node::builder().start();
    deploy(&node, &["--durability", "sync"]);
    count(&node, 0..SESSIONS, 5);
    deploy(&node, &NAP);
    count(&node, 0..2, 5);
    for restart in 0..2_u64 {
        eventually("all sleep", || asleep(&node) == SESSIONS as f64);
        node.kill();
        lose_memory(&node);
        node.start();
        let (first, second) = (11 + restart, 6 + restart);
        assert_eq!(count(&node, 0..2, 1), [first; 2], "{}", node.log());
        assert_eq!(count(&node, 2..SESSIONS, 1), [second; SESSIONS - 2]);
    }
}

#[test]
fn an_app_that_comes_back_to_the_log_brings_along_what_it_did_meanwhile() {
    let mut node = Node::builder().start();
    deploy(&node, &["--durability", "sync"]);
    count(&node, 0..SESSIONS, 1);
    node.stop();
    node.start(); // the snapshots of this start have it
    for flags in [&["--durability", "memory"][..], &NAP, &CHECKPOINT] {
        deploy(&node, flags);
        count(&node, 0..SESSIONS, 1);
        deploy(&node, &["--durability", "sync"]);
    }
    node.kill();
    lose_memory(&node);
    node.start();
    assert_eq!(count(&node, 0..SESSIONS, 1), [5; SESSIONS]);
    // So it does when it was no part of the log's writes since the start.
    deploy(&node, &["--durability", "memory"]);
    node.stop();
    node.start();
    count(&node, 0..SESSIONS, 1);
    deploy(&node, &["--durability", "sync"]);
    node.kill();
    lose_memory(&node);
    node.start();
    assert_eq!(count(&node, 0..SESSIONS, 1), [7; SESSIONS]);
}

fn log_files(node: &Node) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(node.directory.path().join("state/log")).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|end| end == "log")).collect()
}

#[test]
fn snapshots_for_other_apps_leave_what_was_acknowledged_of_one_that_left_the_log() {
    let mut node = Node::builder().limit("log_mib = 1").shards(1).start();
    deploy(&node, &["--durability", "sync"]);
    deploy_as(&node, "busy", &["--durability", "sync"]);
    count(&node, 0..SESSIONS, 5);
    deploy(&node, &CHECKPOINT);
    count(&node, 0..1, 1);
    let stored = || node.metrics().sum("xfaas_checkpoints_written_total", &[]) >= 1.0;
    eventually("the one that changed is stored", stored);
    let before = log_files(&node);
    let mut client = node.connect();
    eventually("snapshots take the place of all there was", || {
        for _ in 0..300 {
            assert_eq!(client.call("POST", "/f/busy", &[("x-session-id", "b")], b"").status, 200);
        }
        !before.iter().any(|path| path.exists())
    });
    node.kill();
    lose_memory(&node);
    node.start();
    assert_eq!(count(&node, 0..SESSIONS, 1), [7, 6, 6, 6, 6, 6], "{}", node.log());
}

#[test]
fn apps_that_become_sync_do_not_each_take_a_segment_of_the_disk() {
    let node = Node::builder().shards(1).start();
    let taken = || -> u64 { log_files(&node).iter().map(|path| std::fs::metadata(path).map_or(0, |file| file.len())).sum() };
    for number in 0..4 {
        deploy_as(&node, &format!("counter-{number}"), &["--durability", "sync"]);
        assert_eq!(node.post(&format!("counter-{number}"), "s", b"").body, b"1");
    }
    eventually("one segment is set aside", || taken() < 65 << 20);
    for durability in ["memory", "sync"] {
        deploy_as(&node, "counter-0", &["--durability", durability]);
    }
    eventually("one segment is set aside", || taken() < 65 << 20);
}
