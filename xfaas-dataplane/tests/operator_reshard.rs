//! Restart with another number of shards, CONTRACT.md section 4: what was acknowledged is there, whichever shard owns its session now.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, NodeBuilder, eventually};
use std::time::Duration;

const SESSIONS: usize = 200;
const FUNCTIONS: [&str; 2] = ["shop", "chat"];

/// Gives the node so many of the CPUs it was configured with.
fn set_cpus(node: &Node, all: &[&str], count: usize) {
    let text = std::fs::read_to_string(node.config()).unwrap();
    let line = text.lines().find(|line| line.starts_with("cpus = ")).unwrap();
    let text = text.replace(line, &format!("cpus = [{}]", all[..count].join(", ")));
    std::fs::write(node.config(), text).unwrap();
}

/// Adds 1 in every session of both apps, and compares with what it should be then.
#[track_caller]
fn count(node: &Node, values: &mut [u32]) {
    let mut client = node.connect();
    for (number, value) in values.iter_mut().enumerate() {
        *value += 1;
        for function in FUNCTIONS {
            let reply = client.call("POST", &format!("/f/{function}"), &[("x-session-id", &format!("user-{number}"))], b"");
            assert_eq!((reply.status, reply.text()), (200, value.to_string().as_str()), "session {number} of {function}");
        }
    }
}

fn folders(node: &Node) -> Vec<String> {
    let names = std::fs::read_dir(node.shared_memory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn acknowledged_writes_are_there_after_a_kill_and_a_start_with_another_number_of_shards() {
    let functions = FUNCTIONS.map(|name| Function::guest("counter-rmw").named(name).app(&format!("{name}.app")));
    let mut node = functions.into_iter().fold(Node::builder().shards(2), NodeBuilder::function).start();
    let text = std::fs::read_to_string(node.config()).unwrap();
    let cpus = text.lines().find_map(|line| line.strip_prefix("cpus = [")?.strip_suffix(']')).unwrap();
    let cpus: Vec<&str> = cpus.split(", ").collect();
    let mut values = vec![0; SESSIONS];
    for shards in [1, 2, 2, 1] {
        count(&node, &mut values);
        node.kill();
        set_cpus(&node, &cpus, shards);
        // Starts that are killed, wherever they have come to.
        for delay_ms in [0, 5, 20] {
            node.spawn();
            std::thread::sleep(Duration::from_millis(delay_ms));
            node.kill();
        }
        node.start();
        assert_eq!(folders(&node), [format!("shards-{shards}")]);
        eventually("all sessions are counted", || node.metrics().sum("xfaas_sessions", &[]) == 2.0 * SESSIONS as f64);
        let metrics = node.metrics();
        let per_shard = |shard: usize| metrics.sum("xfaas_sessions", &[("shard", &shard.to_string())]);
        assert!((0..shards).all(|shard| per_shard(shard) > SESSIONS as f64 / 2.0), "every shard has its share");
    }
    count(&node, &mut values);
    assert!(node.log().contains("moved sessions to the shards that own them now"), "{}", node.log());
}
