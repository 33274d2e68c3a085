//! `[limits]`: what an operator may lower or raise, each with its range. Ceilings come from `xfaas_common::limits`.

use super::ConfigError;
use crate::sys::memory;
use serde::Deserialize;
use xfaas_common::limits::{
    BODY_BYTES_MAX_DEFAULT, CONNECTIONS_MAX, LOCK_WAIT_MS_DEFAULT, LOG_MIB_DEFAULT, NAMESPACE_QUEUE_CALLS_MAX, SHARD_CALLS_MAX,
    STATE_MIB_DEFAULT,
};

const MEMORY_MIB_MIN: u32 = 64;
const MEMORY_MIB_MAX: u32 = 1 << 24;
/// Of a small machine.
const MACHINE_MIB_UNKNOWN: u64 = 4_096;

/// Checked by `check`; the ranges are in each field's text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of an HTTP body, 1_024..=67_108_864.
    pub body_bytes_max: u32,
    /// Connections one shard holds at once, 1..=16_384.
    pub connections_max: u32,
    /// Calls one shard holds at once: running, parked and waiting. 1..=65_536.
    pub shard_calls_max: u32,
    /// Calls that wait for a worker in one namespace, 1..=256.
    pub namespace_queue_calls_max: u32,
    /// Shared memory of one app on one shard, MiB, 64..=1_048_576. Taken from tmpfs as it is used.
    pub region_mib: u32,
    /// Writes in a shard's log, MiB, after which a snapshot takes the place of what is before it. 1..=1_048_576.
    pub log_mib: u32,
    /// How long an invocation waits for a lock, milliseconds, 1..=600_000.
    pub lock_wait_ms: u32,
    /// Workers of the whole process that live at once, 1..=10_000. Each reserves 4 GiB of address space.
    pub workers_live_max: u32,
    /// What the memories of all workers may take together, by their size, MiB, 64..=16_777_216. 0: half of what this process may use.
    pub guest_memory_mib: u32,
    /// What all HTTP connections may hold for requests and replies, MiB, 64..=16_777_216. 0: an eighth of what this process may use.
    pub http_memory_mib: u32,
    /// The most a function may ask for as `memory_mib`, 1..=4_096.
    pub memory_mib_max: u32,
    /// From the first byte of a head to its end, milliseconds, 10..=600_000.
    pub head_timeout_ms: u32,
    /// A body that brings no byte for so long is given up, milliseconds, 10..=600_000.
    pub body_stall_ms: u32,
    /// A whole body, milliseconds, 10..=3_600_000.
    pub body_timeout_ms: u32,
    /// A connection without a request is closed, milliseconds, 10..=3_600_000.
    pub idle_timeout_ms: u32,
    /// How long running requests may take to finish after SIGTERM, milliseconds, 0..=600_000.
    pub drain_ms: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body_bytes_max: BODY_BYTES_MAX_DEFAULT as u32,
            connections_max: CONNECTIONS_MAX as u32,
            shard_calls_max: SHARD_CALLS_MAX as u32,
            namespace_queue_calls_max: NAMESPACE_QUEUE_CALLS_MAX as u32,
            region_mib: 1_024,
            log_mib: LOG_MIB_DEFAULT,
            lock_wait_ms: LOCK_WAIT_MS_DEFAULT,
            workers_live_max: 4_000,
            guest_memory_mib: 0,
            http_memory_mib: 0,
            memory_mib_max: 1_024,
            head_timeout_ms: 10_000,
            body_stall_ms: 30_000,
            body_timeout_ms: 300_000,
            idle_timeout_ms: 60_000,
            drain_ms: 10_000,
        }
    }
}

impl Limits {
    /// `guest_memory_mib`, or what is meant by its 0.
    pub fn guest_memory_mib(&self) -> u32 {
        if self.guest_memory_mib != 0 {
            return self.guest_memory_mib;
        }
        memory_mib(1)
    }

    /// `http_memory_mib`, or what is meant by its 0.
    pub fn http_memory_mib(&self) -> u32 {
        if self.http_memory_mib != 0 {
            return self.http_memory_mib;
        }
        memory_mib(3)
    }

    /// Errors: the first key outside its range.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let ranges: [(&str, u32, u32, u32); 16] = [
            ("body_bytes_max", self.body_bytes_max, 1_024, 64 << 20),
            ("connections_max", self.connections_max, 1, CONNECTIONS_MAX as u32),
            ("shard_calls_max", self.shard_calls_max, 1, SHARD_CALLS_MAX as u32),
            ("namespace_queue_calls_max", self.namespace_queue_calls_max, 1, NAMESPACE_QUEUE_CALLS_MAX as u32),
            ("region_mib", self.region_mib, STATE_MIB_DEFAULT, 1 << 20),
            ("log_mib", self.log_mib, 1, 1 << 20),
            ("lock_wait_ms", self.lock_wait_ms, 1, 600_000),
            ("workers_live_max", self.workers_live_max, 1, 10_000),
            ("guest_memory_mib", self.guest_memory_mib(), MEMORY_MIB_MIN, MEMORY_MIB_MAX),
            ("http_memory_mib", self.http_memory_mib(), MEMORY_MIB_MIN, MEMORY_MIB_MAX),
            ("memory_mib_max", self.memory_mib_max, 1, 4_096),
            ("head_timeout_ms", self.head_timeout_ms, 10, 600_000),
            ("body_stall_ms", self.body_stall_ms, 10, 600_000),
            ("body_timeout_ms", self.body_timeout_ms, 10, 3_600_000),
            ("idle_timeout_ms", self.idle_timeout_ms, 10, 3_600_000),
            ("drain_ms", self.drain_ms, 0, 600_000),
        ];
        for (key, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                return Err(ConfigError::OutOfRange {
                    key: format!("limits.{key}"),
                    value: value.into(),
                    low: low.into(),
                    high: high.into(),
                });
            }
        }
        Ok(())
    }
}

/// This process's memory, or that of a small machine, shifted right, MiB.
fn memory_mib(shift: u32) -> u32 {
    let mib = memory::available_bytes().map_or(MACHINE_MIB_UNKNOWN, |bytes| bytes >> 20) >> shift;
    u32::try_from(mib).unwrap_or(u32::MAX).clamp(MEMORY_MIB_MIN, MEMORY_MIB_MAX)
}
