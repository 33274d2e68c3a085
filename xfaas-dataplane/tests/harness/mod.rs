//! What the behaviour tests share: a node of their own (the real binary), clients that send any bytes and read answers strictly, and a guest
//! that does what its body says. Nothing here sleeps to be right: it polls for a condition until a deadline.

mod container;
mod datagram;
mod http;
mod locks;
mod metrics;
mod node;
mod rpc;
mod script;

pub use self::container::Container;
pub use self::datagram::{Answer, KIND_REPLY, UdpClient, function_hash, request_datagram};
pub use self::http::{Client, Reply, request};
pub use self::locks::run_until_a_deadlock;
pub use self::metrics::Metrics;
pub use self::node::{Function, Node, NodeBuilder, guest, xfaas};
pub use self::rpc::{RpcClient, RpcFrame, State, Welcome, rpc_frame};
pub use self::script::{RESULTS, Script};

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Long enough for a busy machine; whatever takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Ends loops of other threads, also when the test fails: a scope waits for its threads before it tells.
#[derive(Default)]
pub struct Stop(AtomicBool);

impl Stop {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it when the guard goes.
    pub fn at_end(&self) -> impl Drop + '_ {
        struct Guard<'a>(&'a AtomicBool);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Guard(&self.0)
    }
}

/// Waits until `condition` holds. Panics with `what` when it does not within `PATIENCE`.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}
