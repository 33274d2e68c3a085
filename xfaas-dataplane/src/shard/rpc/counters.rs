//! What one shard counts of RPC; exported by control beside the shard's other numbers.

use super::super::counters::{Count, Exported, counter, gauge};
use xfaas_common::rpc::FrameFault;

/// The `kind` labels of `xfaas_rpc_requests_total`; the position is the index in `RpcCounters::requests`.
pub const REQUEST_KINDS: [&str; 9] = ["read", "snapshot", "write", "end", "commit", "hello", "module", "ping", "other"];

/// Positions in `REQUEST_KINDS`.
pub(super) const READ: usize = 0;
pub(super) const SNAPSHOT: usize = 1;
pub(super) const WRITE: usize = 2;
pub(super) const END: usize = 3;
pub(super) const COMMIT: usize = 4;
pub(super) const HELLO: usize = 5;
pub(super) const MODULE: usize = 6;
pub(super) const PING: usize = 7;
pub(super) const OTHER: usize = 8;

/// Exported name and meaning beside each.
#[derive(Default)]
pub struct RpcCounters {
    /// `xfaas_rpc_connections`, open now.
    pub connections: Count,
    /// `xfaas_rpc_connections_accepted_total`.
    pub accepted: Count,
    /// `xfaas_rpc_connections_refused_total`: over the limit.
    pub refused: Count,
    /// `xfaas_rpc_connections_moved_total`: given to the shard that their hello named.
    pub moved: Count,
    /// `xfaas_rpc_connections_silent_total`: closed because nothing was heard.
    pub silent: Count,
    /// `xfaas_rpc_requests_total{kind}`.
    pub requests: [Count; REQUEST_KINDS.len()],
    /// `xfaas_rpc_errors_total`: requests answered with an error frame.
    pub errors: Count,
    /// `xfaas_rpc_malformed_total{reason}`: each closed its connection.
    pub malformed: [Count; FrameFault::ALL.len()],
    /// `xfaas_rpc_invocations`: that hold or wait for a lock now.
    pub invocations: Count,
    /// `xfaas_rpc_lock_waits_total`.
    pub lock_waits: Count,
    /// `xfaas_rpc_locks_lost_total`: locks released because their connection ended or fell silent.
    pub locks_lost: Count,
    /// `xfaas_rpc_received_bytes_total`, `xfaas_rpc_sent_bytes_total`.
    pub received_bytes: Count,
    pub sent_bytes: Count,
}

/// Everything of RPC but requests by kind and faults by reason.
pub const EXPORTED_RPC: &[Exported] = &[
    gauge("xfaas_rpc_connections", "Connections of containers open now.", |c| c.rpc.connections.get() as f64),
    counter("xfaas_rpc_connections_accepted_total", "Connections of containers accepted.", |c| c.rpc.accepted.get() as f64),
    counter("xfaas_rpc_connections_refused_total", "Connections of containers closed at once: too many, or draining.", |c| {
        c.rpc.refused.get() as f64
    }),
    counter("xfaas_rpc_connections_moved_total", "Connections of containers given to the shard that they asked for.", |c| {
        c.rpc.moved.get() as f64
    }),
    counter("xfaas_rpc_connections_silent_total", "Connections of containers closed because nothing was heard for 2 s.", |c| {
        c.rpc.silent.get() as f64
    }),
    counter("xfaas_rpc_errors_total", "Requests of containers answered with an error frame.", |c| c.rpc.errors.get() as f64),
    gauge("xfaas_rpc_invocations", "Invocations in containers that hold or wait for a lock.", |c| c.rpc.invocations.get() as f64),
    counter("xfaas_rpc_lock_waits_total", "Requests of containers that had to wait for a lock.", |c| c.rpc.lock_waits.get() as f64),
    counter("xfaas_rpc_locks_lost_total", "Locks released because their container was lost.", |c| c.rpc.locks_lost.get() as f64),
    counter("xfaas_rpc_received_bytes_total", "Bytes received from containers.", |c| c.rpc.received_bytes.get() as f64),
    counter("xfaas_rpc_sent_bytes_total", "Bytes sent to containers.", |c| c.rpc.sent_bytes.get() as f64),
];
