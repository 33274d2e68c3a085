//! The epoch ticker: the thread that lets running guests see time pass. It ticks finely while guests run for long and coarsely while none does,
//! because each tick takes the CPU from a shard, or from whoever else is there: at a tick a millisecond, about a hundredth of it.

use crate::sys::realtime::{self, Children, PRIORITY_TICKER, RealtimeError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// While no guest runs for long, one tick in so many: what the first slice of one that does may take.
pub(super) const COARSE: u32 = 4;
/// How long ticks stay fine after a guest last ran for long.
const FINE_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum TickerError {
    #[error("start the epoch ticker")]
    Thread(#[source] std::io::Error),
    #[error("the thread that counts guests' time cannot run beside shards of the real-time class")]
    Realtime(#[from] RealtimeError),
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// A guest ran for long since the ticker looked last.
    is_asked: AtomicBool,
    /// The ticker sleeps for a coarse tick.
    is_coarse: AtomicBool,
}

/// Which kind of tick is next.
struct Pace {
    fine_ticks: u32,
    fine_left: u32,
}

impl Pace {
    fn new(tick: Duration) -> Pace {
        let fine_ticks = FINE_FOR.as_nanos() / tick.as_nanos().max(1);
        Pace { fine_ticks: u32::try_from(fine_ticks).unwrap_or(u32::MAX), fine_left: 0 }
    }

    /// Output: how many ticks to sleep for. `is_asked`: a guest ran for long since the last time.
    fn next(&mut self, is_asked: bool) -> u32 {
        self.fine_left = if is_asked { self.fine_ticks } else { self.fine_left.saturating_sub(1) };
        if self.fine_left > 0 { 1 } else { COARSE }
    }
}

/// The thread. Dropping it ends it.
pub(super) struct Ticker {
    shared: Arc<Shared>,
    tick: Duration,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Calls `on_tick` from a thread of its own. `tick`: the fine one. Errors: no thread, or no right to the real-time class.
    pub(super) fn start(tick: Duration, realtime: bool, on_tick: impl Fn() + Send + 'static) -> Result<Ticker, TickerError> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let (is_ready, ready) = channel();
        let run = move || {
            let entered = if realtime { realtime::enter(PRIORITY_TICKER, Children::Ordinary) } else { Ok(()) };
            let may_run = entered.is_ok();
            is_ready.send(entered).ok(); // who started it waits for this
            if may_run {
                of_thread.run(tick, on_tick);
            }
        };
        let thread = thread::Builder::new().name("xfaas-ticker".to_owned()).spawn(run).map_err(TickerError::Thread)?;
        ready.recv().map_err(|ended| TickerError::Thread(std::io::Error::other(ended)))??;
        Ok(Ticker { shared, tick, thread: Some(thread) })
    }

    /// An invocation's slice is over that began `taken` ago: if it was not merely there when the tick came, ticks are fine from now on.
    pub(super) fn note_slice(&self, taken: Duration) {
        if taken < self.tick {
            return;
        }
        self.shared.is_asked.store(true, Ordering::Relaxed);
        if self.shared.is_coarse.swap(false, Ordering::Relaxed)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark(); // the others on the shard do not wait for a coarse tick once more
        }
    }

    #[cfg(test)]
    pub(super) fn is_coarse(&self) -> bool {
        self.shared.is_coarse.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn run(&self, tick: Duration, on_tick: impl Fn()) {
        let mut pace = Pace::new(tick);
        while !self.stop.load(Ordering::Acquire) {
            let ticks = pace.next(self.is_asked.swap(false, Ordering::Relaxed));
            self.is_coarse.store(ticks == COARSE, Ordering::Relaxed);
            // A wake-up without reason makes one tick short, which harms nobody.
            thread::park_timeout(tick * ticks);
            on_tick();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // Its loop cannot panic; if it did, time has stopped, and so has the engine.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn ticks_are_fine_for_a_second_after_a_guest_ran_for_long() {
        let mut pace = Pace::new(Duration::from_millis(100));
        assert_eq!(pace.next(false), COARSE);
        let fine = |pace: &mut Pace| (0..100).take_while(|_| pace.next(false) == 1).count();
        assert_eq!((pace.next(true), fine(&mut pace)), (1, 9));
        assert_eq!((pace.next(true), pace.next(false), pace.next(true), fine(&mut pace)), (1, 1, 1, 9), "it counts from the last one");
    }

    #[test]
    fn a_guest_that_runs_for_long_ends_a_coarse_tick_and_one_that_was_met_by_chance_does_not() {
        // A coarse tick of a minute: whatever ticks within the test was asked to.
        let tick = Duration::from_secs(60) / COARSE;
        let (ticked, ticks) = channel();
        let ticker = Ticker::start(tick, false, move || ticked.send(()).unwrap()).unwrap();
        while !ticker.is_coarse() {
            thread::yield_now();
        }
        ticker.note_slice(tick / 2);
        assert!(ticks.recv_timeout(Duration::from_millis(50)).is_err() && ticker.is_coarse());
        ticker.note_slice(tick);
        ticks.recv().expect("it ticks at once");
        drop(ticker);
        assert!(ticks.iter().count() <= 1, "the end of its last sleep, if it slept again; then the thread has ended");
    }
}
