//! Fork: a new worker from a function's image, its first call, and its end.

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
    /// Medians of the three by themselves.
    pub instance_us: f64,
    pub first_call_us: f64,
    pub end_us: f64,
}

/// Forks a worker of `module` `forks` times on the calling thread, one after the other. `None`: interrupted.
/// Errors: the module is refused or the guest fails.
pub fn measure_fork(module: &Path, forks: u32, interrupt: &Interrupt) -> Result<Option<ForkReport>, GuestError> {
    let mut guest = Guest::load(module)?;
    let mut times_ns: [Histogram<u64>; 4] =
        std::array::from_fn(|_| Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("constant bounds in order"));
    for i in 0..WARM_UP_FORKS + forks {
        if interrupt.is_set() {
            return Ok(None);
        }
        let started_ns = monotonic_ns();
        let mut worker = guest.fork()?;
        let forked_ns = monotonic_ns();
        guest.call(&mut worker)?;
        let called_ns = monotonic_ns();
        drop(worker);
        let ended_ns = monotonic_ns();
        if i >= WARM_UP_FORKS {
            let phases = [ended_ns - started_ns, forked_ns - started_ns, called_ns - forked_ns, ended_ns - called_ns];
            times_ns.iter_mut().zip(phases).for_each(|(times, phase_ns)| times.saturating_record(phase_ns));
        }
    }
    let quantile_us = |times: &Histogram<u64>, quantile| times.value_at_quantile(quantile) as f64 / 1_000.0;
    let [all, instance, first_call, end] = &times_ns;
    Ok(Some(ForkReport {
        p50_us: quantile_us(all, 0.50),
        p99_us: quantile_us(all, 0.99),
        instance_us: quantile_us(instance, 0.50),
        first_call_us: quantile_us(first_call, 0.50),
        end_us: quantile_us(end, 0.50),
    }))
}
