//! Clocks. Called everywhere; a call costs about 20 ns (vDSO), so the loop reads the clock once a turn.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds of the monotonic clock, from an arbitrary start.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Milliseconds since 1970-01-01 UTC; 0 if the machine's clock is set before it.
pub fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Whole seconds since 1970-01-01 UTC; 0 if the machine's clock is set before it.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
