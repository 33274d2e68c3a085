//! Ctrl-C, SIGTERM and a terminal that closes as a flag that the loops look at, so that everything that was started is also ended.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, thiserror::Error)]
#[error("cannot handle signal {signal}")]
pub struct InterruptError {
    signal: i32,
    #[source]
    source: std::io::Error,
}

/// Set once, never cleared.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
}

impl Interrupt {
    /// A flag that SIGINT and SIGTERM set, and SIGHUP unless it is ignored.
    pub fn on_signals() -> Result<Interrupt, InterruptError> {
        let interrupt = Interrupt::default();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        // `nohup` ignores it so that the program outlives its terminal.
        let hang_up = Some(SIGHUP).filter(|signal| !is_ignored(&status, *signal));
        for signal in [SIGINT, SIGTERM].into_iter().chain(hang_up) {
            signal_hook::flag::register(signal, interrupt.flag.clone()).map_err(|source| InterruptError { signal, source })?;
        }
        Ok(interrupt)
    }

    /// What a signal does.
    pub fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

/// `status`: `/proc/PID/status`.
fn is_ignored(status: &str, signal: i32) -> bool {
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_some_and(|ignored| ignored & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_ignored_stays_ignored() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert_eq!([SIGHUP, SIGINT, 13, SIGTERM].map(|signal| is_ignored(status, signal)), [true, false, true, false]);
        assert!(!is_ignored("", SIGHUP));
    }
}
