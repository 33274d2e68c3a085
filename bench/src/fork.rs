//! Fork, DESIGN.md section 1: a new worker from a function's image, its first call, and its end.

use crate::guest::{Guest, GuestError};
use crate::load::Interrupt;
use hdrhistogram::Histogram;
use std::path::Path;
use xfaas_dataplane::sys::clock::monotonic_ns;

/// Forks that are not counted: the pool's first places are touched for the first time.
const WARM_UP_FORKS: u32 = 500;

/// Times of fork + first call + drop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForkReport {
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Forks a worker of `module` `forks` times on the calling thread, one after the other. `None`: interrupted.
/// Errors: the module is refused or the guest fails.
pub fn measure_fork(module: &Path, forks: u32, interrupt: &Interrupt) -> Result<Option<ForkReport>, GuestError> {
    let mut guest = Guest::load(module)?;
    let mut times_ns = Histogram::<u64>::new_with_bounds(1, 1_000_000_000, 3).expect("constant bounds in order");
    for i in 0..WARM_UP_FORKS + forks {
        if interrupt.is_set() {
            return Ok(None);
        }
        let started_ns = monotonic_ns();
        let mut worker = guest.fork()?;
        guest.call(&mut worker)?;
        drop(worker);
        let ended_ns = monotonic_ns();
        if i >= WARM_UP_FORKS {
            times_ns.saturating_record(ended_ns - started_ns);
        }
    }
    let quantile_us = |quantile| times_ns.value_at_quantile(quantile) as f64 / 1_000.0;
    Ok(Some(ForkReport { p50_us: quantile_us(0.50), p99_us: quantile_us(0.99) }))
}
