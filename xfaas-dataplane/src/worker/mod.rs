//! Workers: wasm instances, each parked on a fiber of its own between calls. CONTRACT.md section 3.
//!
//! ```text
//! load:  module -> checks (shape) -> init() once (init) -> host loop and shims added (rewrite) -> compiled, kept on disk -> Program
//! fork:  Program -> instance from its image + fiber = Worker
//! call:  start, poll(Lent) -> Progress, again while the call waits or its slice is over
//! ```
//! Used by `session` (runs workers) and `control` (loads programs). Knows nothing of connections, shards or other workers.

mod abi;
mod app_rules;
mod call;
mod effort;
mod engine;
mod fiber;
mod hook_module;
mod host_calls;
mod init;
mod kept;
mod lend;
mod manifest;
mod memory_budget;
mod overlay;
mod program;
mod read_session;
mod remote;
mod rewrite;
mod shape;
mod snapshot;
mod stages;
mod ticker;
mod timers;
mod trap;

#[cfg(test)]
mod tests;

pub use self::app_rules::{AppRules, CpuShare, Hint, KeepAliveRule};
pub use self::call::{Call, Origin, StateAt};
pub use self::engine::{Engine, EngineError, EngineOptions};
pub use self::fiber::{ForkError, Progress, Worker};
pub use self::hook_module::attach_hook;
pub use self::lend::Lent;
pub(crate) use self::manifest::with_deploy_flags;
pub use self::manifest::{Durability, FunctionManifest};
pub use self::program::{Function, LoadError, Program};
pub use self::remote::{RemoteAccess, RemoteOperation, RemoteRequest};
pub use self::stages::{CoreWork, STAMPED, Stages};
pub use self::trap::TrapKind;
