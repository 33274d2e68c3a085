//! Containers on loopback: the same functions and sessions as at their primary, whichever of the two is asked, and what happens when one of them goes.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses a part of the harness")]
#[path = "../harness/mod.rs"]
mod harness;

mod loss;
mod operator;
mod rules;
mod sections;
mod sharing;

use harness::{Container, Function, Node, Reply, Script};

/// Both ways of reading.
const WAYS: [&[&str]; 2] = [&[], &["--no-map"]];

fn node() -> Node {
    Node::builder()
        .guests(&["echo"])
        .function(Function::guest("counter-rmw-linear").app("counter"))
        .function(Function::guest("counter-read").app("counter"))
        .function(Script::function("script").app("scripts").with("deadline_ms = 60000"))
        .function(Script::function("atomic").app("scripts").with("atomic = true").with("deadline_ms = 60000"))
        .function(Script::function("reader").app("scripts").with("read_only = true"))
        .function(Script::function("hasty").app("scripts").with("deadline_ms = 300"))
        .function(Function::guest("lock-ab").app("locks"))
        .function(Function::guest("lock-ba").app("locks"))
        .start()
}

/// Results of a script that ended well.
#[track_caller]
fn results(reply: &Reply) -> Vec<i32> {
    assert_eq!(reply.status, 200, "{reply:?}");
    Script::results(&reply.body)
}

/// The decimal text that a counter answered.
#[track_caller]
fn number(reply: &Reply) -> u64 {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.text().parse().unwrap_or_else(|error| panic!("{error}: {reply:?}"))
}

/// How far a container's counters say that it has read in the mapped region, and by RPC.
fn reads(container: &Container) -> (f64, f64) {
    let metrics = container.metrics();
    (metrics.sum("xfaas_container_mapped_reads_total", &[]), metrics.sum("xfaas_container_rpc_reads_total", &[]))
}
