//! The primary's side of RPC, by a raw client against the real node: docs/PROTOCOL.md, "RPC", and CONTRACT.md section 3.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
#[path = "../harness/mod.rs"]
mod harness;

mod apps;
mod life;
mod locks;
mod locks_local;
mod offer;
mod regions;
mod state;
mod streams;

use harness::{Function, Node, Script};

/// Functions that share app `script`, and a counter of its own.
fn node() -> Node {
    let script = |name: &str| Script::function(name).app("script").with("deadline_ms = 60000");
    Node::builder()
        .guests(&["counter-rmw-linear"])
        .function(script("script"))
        .function(script("read-only").with("read_only = true"))
        .function(script("small").with("state_mib = 1"))
        .function(Function::guest("echo"))
        .start()
}

const NOT_FOUND: i32 = -1;
const BAD_ARGUMENT: i32 = -2;
const OVER_LIMIT: i32 = -3;
const DEADLOCK: i32 = -4;
