//! What every kind of load has in common: how long, how much, and how it can fail.

use crate::load::Interrupt;
use std::net::SocketAddr;
use std::time::Duration;
use xfaas_dataplane::sys::RingError;

/// Bounds of one run, in count and time.
#[derive(Clone, Copy, Debug)]
pub struct LoadPlan<'a> {
    /// Replies in this first time are checked but not measured.
    pub warm_up: Duration,
    pub measured: Duration,
    /// Requests sent in all, warm-up included.
    pub requests_max: u64,
    /// Ends the run early, with `LoadError::Interrupted`.
    pub interrupt: &'a Interrupt,
}

/// A server that answers nothing for this long has failed.
pub(crate) const SILENCE_NS_MAX: u64 = 5_000_000_000;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot reach {target}")]
    Connect {
        target: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("io_uring of the load generator")]
    Ring(#[from] RingError),
    #[error("{operation} on a connection to {target}")]
    Socket {
        operation: &'static str,
        target: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("{target} closed a connection while a request was under way, after {replies} replies in all")]
    Closed { target: SocketAddr, replies: u64 },
    #[error("{target} gave no answer to {outstanding} requests for {} s", SILENCE_NS_MAX / 1_000_000_000)]
    Silence { target: SocketAddr, outstanding: usize },
    #[error("interrupted")]
    Interrupted,
    #[error("no request to send: give at least one session and one connection")]
    Nothing,
}
