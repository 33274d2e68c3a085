//! Shards of the real-time class: they are in it and nothing else is, deadlines are kept, and without the right a node says so.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, xfaas};
use std::path::Path;
use std::time::{Duration, Instant};
use xfaas_dataplane::sys::realtime::{self, Children, PRIORITY_SHARD, PRIORITY_TICKER};

/// `rt_priority` and `policy` of a thread: fields 40 and 41 of proc_pid_stat(5).
fn scheduling(thread: &Path) -> (u8, u8) {
    let stat = std::fs::read_to_string(thread.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[40 - 3].parse().unwrap(), fields[41 - 3].parse().unwrap())
}

fn is_allowed() -> bool {
    std::thread::spawn(|| realtime::enter(PRIORITY_SHARD, Children::Ordinary)).join().unwrap().is_ok()
}

#[test]
fn shards_and_what_counts_their_guests_time_are_in_the_class_and_deadlines_are_kept() {
    if !is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let ended = xfaas(&["run", "--realtime", "--http", "127.0.0.1:18999", "--state-dir", folder.path().to_str().unwrap()]);
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success() && text.contains("CAP_SYS_NICE"), "{text}");
        return;
    }
    let spin = Function::guest("spin").with("deadline_ms = 200");
    let node = Node::builder().guests(&["counter-rmw-linear"]).function(spin).flag("--realtime").start();
    let tasks = node.thread("xfaas-shard-0").parent().unwrap().to_path_buf();
    for thread in std::fs::read_dir(&tasks).unwrap() {
        let thread = thread.unwrap().path();
        let name = std::fs::read_to_string(thread.join("comm")).unwrap();
        let expected = match name.trim() {
            "xfaas-ticker" => (PRIORITY_TICKER, 1),
            name if name.starts_with("xfaas-shard-") => (PRIORITY_SHARD, 1),
            _ => (0, 0),
        };
        assert_eq!(scheduling(&thread), expected, "{name}");
    }
    let begun = Instant::now();
    let reply = node.connect().call("POST", "/f/spin", &[("x-session-id", "s")], b"");
    assert_eq!(reply.status, 504, "{reply:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let reply = node.connect().call("POST", "/f/counter-rmw-linear", &[("x-session-id", "s")], b"");
    assert_eq!((reply.status, &*reply.body), (200, &b"1"[..]), "{reply:?}");
}
