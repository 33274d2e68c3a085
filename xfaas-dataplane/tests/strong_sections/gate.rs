//! What the tests of strong sections share: a node whose functions share one app, and gates that hold a call where it is.

use crate::harness::{Client, Function, Node, Reply, Script, eventually, request};
use socket2::SockRef;
use std::time::Duration;

/// `script` and its siblings run scripts on the state of one app.
pub fn node(shards: usize) -> Node {
    let script = |name: &str| Script::function(name).app("state");
    Node::builder()
        .shards(shards)
        .limit("lock_wait_ms = 60000")
        .function(script("script").with("deadline_ms = 60000"))
        .function(script("brief").with("deadline_ms = 200"))
        .function(script("atomic").with("atomic = true").with("deadline_ms = 60000"))
        .function(script("atomic-brief").with("atomic = true").with("deadline_ms = 200"))
        .function(script("read-only").with("read_only = true").with("deadline_ms = 60000"))
        .function(script("single").with("workers_max = 1").with("deadline_ms = 60000"))
        .function(script("fresh").with("fresh = true").with("deadline_ms = 60000"))
        .function(script("idempotent").with("idempotent = true").with("deadline_ms = 60000"))
        .function(Function::guest("counter-rmw-linear").app("state"))
        .start()
}

/// Sends a script and does not wait for its reply.
pub fn begin(node: &Node, function: &str, session: &str, body: &[u8]) -> Client {
    let mut client = node.connect();
    client.send(&request("POST", &format!("/f/{function}"), &[("x-session-id", session)], body));
    client
}

#[track_caller]
pub fn results(reply: &Reply) -> Vec<i32> {
    assert_eq!(reply.status, 200, "{reply:?}");
    Script::results(&reply.body)
}

/// The results of a script's calls.
#[track_caller]
pub fn run(node: &Node, session: &str, script: Script) -> Vec<i32> {
    results(&node.post("script", session, &script.end()))
}

/// The value of a key, read weakly.
#[track_caller]
pub fn value(node: &Node, session: &str, key: &str) -> Option<Vec<u8>> {
    let length = run(node, session, Script::new().read(key, 0))[0];
    if length < 0 {
        return None;
    }
    let reply = node.post("script", session, &Script::new().read(key, 0).output(length).end_with(0));
    assert_eq!(reply.status, 200, "{reply:?}");
    Some(reply.body)
}

/// Waits until so many calls of the node are parked for a lock.
#[track_caller]
pub fn parked(node: &Node, calls: u32) {
    let is_so = || node.metrics().sum("xfaas_workers_parked", &[]) == f64::from(calls);
    eventually(&format!("{calls} calls wait for a lock"), is_so);
}

/// Waits until so many calls of the node wait for a worker.
#[track_caller]
pub fn queued(node: &Node, calls: u32) {
    let is_so = || node.metrics().sum("xfaas_calls_queued", &[]) == f64::from(calls);
    eventually(&format!("{calls} calls wait for a worker"), is_so);
}

#[track_caller]
pub fn cancelled(node: &Node, calls: u32) {
    let is_so = || node.metrics().sum("xfaas_cancelled_total", &[]) == f64::from(calls);
    eventually(&format!("{calls} calls were cancelled"), is_so);
}

/// Ends a connection with a reset: the client is gone.
pub fn reset(client: Client) {
    SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
}

/// A call that holds `key` of a session, spinning, until the gate is opened.
pub struct Gate {
    holder: Client,
}

impl Gate {
    pub fn close(node: &Node, session: &str, key: &str) -> Gate {
        Gate::close_by(node, "script", session, key)
    }

    /// As `close`, by a call of that function.
    pub fn close_by(node: &Node, function: &str, session: &str, key: &str) -> Gate {
        let mark = format!("{key}-is-held");
        let holder = begin(node, function, session, &Script::new().read(key, 1).write(&mark, b"held", 0).spin_forever());
        eventually("the gate is closed", || value(node, session, &mark).is_some());
        run(node, session, Script::new().write(&mark, b"", 0));
        Gate { holder }
    }

    /// The holder's client goes away: the first in the queue holds the key from now on.
    pub fn open(self) {
        reset(self.holder);
    }
}
