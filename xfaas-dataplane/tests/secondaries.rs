//! Secondary containers within a node: with all workers of a session's primary busy its calls run on another core, on the same state and under the
//! same locks. CONTRACT.md section 3, "Secondary containers".
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Function, Node, NodeBuilder, Reply, Script, eventually, request};
use socket2::SockRef;
use std::time::Duration;

/// Functions of one app. While a call of `script` runs, those of `narrow` and its siblings find the primary full: one of them runs in a secondary
/// container, the others wait.
fn builder() -> NodeBuilder {
    let script = |name: &str| Script::function(name).app("state").with("read_sessions = true");
    let narrow = |name: &str| script(name).with("workers_max = 1").with("containers_max = 2");
    Node::builder()
        .shard_setting("rebalance = false")
        .limit("lock_wait_ms = 60000")
        .function(script("script").with("workers_max = 64").with("deadline_ms = 60000"))
        .function(narrow("narrow").with("deadline_ms = 60000"))
        .function(narrow("narrow-brief").with("deadline_ms = 200"))
        .function(narrow("narrow-atomic").with("atomic = true").with("deadline_ms = 60000"))
}

/// Sends a script and does not wait for its reply.
fn begin(node: &Node, function: &str, session: &str, body: &[u8]) -> Client {
    let mut client = node.connect();
    client.send(&request("POST", &format!("/f/{function}"), &[("x-session-id", session)], body));
    client
}

#[track_caller]
fn results(reply: &Reply) -> Vec<i32> {
    assert_eq!(reply.status, 200, "{reply:?}");
    Script::results(&reply.body)
}

#[track_caller]
fn run(node: &Node, session: &str, script: Script) -> Vec<i32> {
    results(&node.post("script", session, &script.end()))
}

#[track_caller]
fn run_narrow(node: &Node, session: &str, script: Script) -> Vec<i32> {
    results(&node.post("narrow", session, &script.end()))
}

#[track_caller]
fn wait_for(node: &Node, metric: &str, value: u32) {
    eventually(&format!("{metric} is {value}"), || node.metrics().sum(metric, &[]) == f64::from(value));
}

#[track_caller]
fn parked(node: &Node, calls: u32) {
    wait_for(node, "xfaas_workers_parked", calls);
}

fn copies(node: &Node) -> f64 {
    node.metrics().sum("xfaas_copy_sessions_total", &[])
}

fn calls_away(node: &Node) -> f64 {
    node.metrics().sum("xfaas_secondary_calls_total", &[])
}

/// Ends a connection with a reset: the client is gone.
fn reset(client: Client) {
    SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
}

/// A call that holds `key` of a session, spinning, until it is opened. By `script` it keeps the primary full for `narrow`.
struct Gate(Client);

impl Gate {
    fn close(node: &Node, function: &str, session: &str, key: &str) -> Gate {
        let mark = format!("{key}-is-held");
        let holder = begin(node, function, session, &Script::new().read(key, 1).write(&mark, b"held", 0).spin_forever());
        eventually("the gate is closed", || run(node, session, Script::new().read(&mark, 0))[0] > 0);
        run(node, session, Script::new().write(&mark, b"", 0));
        Gate(holder)
    }

    fn open(self) {
        reset(self.0);
    }
}

fn core_of(reply: &Reply) -> &str {
    reply.header("x-xfaas-core").unwrap()
}

#[test]
fn a_call_that_finds_the_primary_full_runs_on_another_core() {
    let node = builder().start();
    let home = node.post("script", "s", &Script::new().write("k", b"value", 0).end());
    assert_eq!(core_of(&node.post("narrow", "s", &Script::new().end())), core_of(&home), "there is a worker free");
    assert_eq!((copies(&node), calls_away(&node)), (0.0, 0.0));
    let gate = Gate::close(&node, "script", "s", "gate");
    for round in 1..=3 {
        let reply = node.post("narrow", "s", &Script::new().read("k", 0).read("k", 1).write("k", b"value", 1).read("none", 0).end());
        assert_eq!(results(&reply), [5, 5, 0, -1]);
        assert_ne!(core_of(&reply), core_of(&home));
        assert_eq!((copies(&node), calls_away(&node)), (1.0, f64::from(round)), "its worker stays warm");
    }
    wait_for(&node, "xfaas_secondaries", 1);
    gate.open();
    eventually("the primary has a worker free", || core_of(&node.post("narrow", "s", &Script::new().end())) == core_of(&home));
}
