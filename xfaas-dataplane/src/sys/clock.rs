//! Clocks. Called everywhere; a call costs about 20 ns (vDSO), so the loop reads the clock once a turn and counts the processor's ticks within it.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds of a millisecond, and of a second.
pub const MS_NS: u64 = 1_000_000;
pub const SECOND_NS: u64 = 1_000_000_000;

/// Nanoseconds of the monotonic clock, from an arbitrary start.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // Not by rustix, which looks for the vDSO where the kernel has it and not where valgrind lets it be found.
    // SAFETY: the kernel writes one `timespec` to a place of this function's own.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(result, 0, "every Linux has a monotonic clock");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// CPU time of the calling thread so far, nanoseconds. A system call.
pub fn thread_cpu_ns() -> u64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64
}

/// A moment on both clocks, kept by a loop that reads the slower one once a turn.
#[derive(Clone, Copy, Default)]
struct Anchor {
    ticks: u64,
    ns: u64,
}

/// What is counted from an anchor at most: beyond it the two clocks may have drifted apart.
const TICKS_FROM_ANCHOR_MAX: u64 = 1 << 30;

thread_local! {
    static ANCHOR: Cell<Anchor> = const { Cell::new(Anchor { ticks: 0, ns: 0 }) };
}

/// As `monotonic_ns`; `quick_ns` on this thread counts from here. To be called about a thousand times a second or more.
pub fn anchor_ns() -> u64 {
    let ns = monotonic_ns();
    if ns_per_tick_q32() != 0 {
        ANCHOR.set(Anchor { ticks: ticks(), ns });
    }
    ns
}

/// The monotonic clock to within some nanoseconds, at a third of its price where the processor has a steady counter. Never before the last `anchor_ns`.
#[inline]
pub fn quick_ns() -> u64 {
    let (anchor, rate) = (ANCHOR.get(), ns_per_tick_q32());
    let passed = ticks().wrapping_sub(anchor.ticks);
    if rate == 0 || passed > TICKS_FROM_ANCHOR_MAX {
        return monotonic_ns();
    }
    anchor.ns + ((passed * rate) >> 32)
}

/// Nanoseconds a tick, times 2^32; 0 where there is no counter to rely on.
fn ns_per_tick_q32() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(measure_rate)
}

/// Compares the two clocks for some milliseconds.
fn measure_rate() -> u64 {
    const MEASURED_NS: u64 = 3_000_000;
    if !has_steady_ticks() {
        return 0;
    }
    let (from_ns, from_ticks) = (monotonic_ns(), ticks());
    while monotonic_ns() - from_ns < MEASURED_NS {
        std::hint::spin_loop();
    }
    let (ns, passed) = (monotonic_ns() - from_ns, ticks().wrapping_sub(from_ticks));
    // Of 100 MHz to 4 GHz and more: `quick_ns` multiplies 30 bits of ticks by it.
    if passed < ns / 10 { 0 } else { ((u128::from(ns) << 32) / u128::from(passed)) as u64 }
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: reads a counter that every x86-64 processor has; Linux leaves it readable for user space.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

/// True where the counter runs at one rate in all states of the processor, and the kernel itself trusts it. Intel SDM volume 3, "Invariant TSC".
#[cfg(target_arch = "x86_64")]
fn has_steady_ticks() -> bool {
    const INVARIANT_TSC: u32 = 1 << 8;
    let source = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let is_trusted = source.is_ok_and(|source| matches!(source.trim(), "tsc" | "kvm-clock"));
    is_trusted && core::arch::x86_64::__cpuid(0x8000_0007).edx & INVARIANT_TSC != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn has_steady_ticks() -> bool {
    false
}

/// Milliseconds since 1970-01-01 UTC; 0 if the machine's clock is set before it.
pub fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Whole seconds since 1970-01-01 UTC; 0 if the machine's clock is set before it.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_time_is_never_before_the_anchor_and_close_to_the_clock() {
        for _ in 0..1_000 {
            let anchor_ns = anchor_ns();
            let quick_ns = quick_ns();
            assert!(quick_ns >= anchor_ns && quick_ns <= monotonic_ns() + 1_000_000, "{anchor_ns} {quick_ns}");
        }
        // Without an anchor it is the clock itself.
        let other = std::thread::spawn(|| (monotonic_ns(), quick_ns(), monotonic_ns())).join().unwrap();
        assert!(other.0 <= other.1 && other.1 <= other.2, "{other:?}");
    }
}
