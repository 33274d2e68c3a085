//! Ctrl-C and SIGTERM as a flag that the loops look at, so that everything that was started is also ended.

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
    /// A flag that SIGINT and SIGTERM set.
    pub fn on_signals() -> Result<Interrupt, InterruptError> {
        let interrupt = Interrupt::default();
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
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
