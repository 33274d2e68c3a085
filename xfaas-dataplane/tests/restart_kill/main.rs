//! What survives `kill -9`, CONTRACT.md sections 3 and 4: every acknowledged write, each half-done one whole or absent, whatever else was under
//! way; the first answer comes soon after a restart; and a file of session state that was damaged meanwhile is refused, kept and replaced.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod damage;
#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
#[path = "../harness/mod.rs"]
mod harness;
mod kills;
mod load;
