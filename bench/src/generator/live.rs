//! How a run stands while it goes on: counters that its threads write and one line on stderr a second.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The thread that shows it may share a CPU with one that generates: it wakes no more often.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Of one thread, which alone writes it.
#[derive(Debug, Default)]
#[repr(align(128))] // the prefetcher fetches 64-byte lines in pairs
pub(super) struct LiveThread {
    pub(super) good: AtomicU64,
    pub(super) refused: AtomicU64,
    /// Failed, wrong and given up.
    pub(super) bad: AtomicU64,
    pub(super) under_way: AtomicU64,
}

/// Whether the line is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Off,
    /// One line that is written over, if stderr is a terminal.
    Terminal,
    /// A line a second, wherever stderr goes.
    Lines,
}

/// Writes the line.
pub(super) struct ProgressLine<'a> {
    threads: &'a [LiveThread],
    /// `None`: nothing is shown. Else whether lines are written over.
    overwrites: Option<bool>,
    started: Instant,
    shown: Instant,
    shown_good: u64,
}

impl<'a> ProgressLine<'a> {
    pub(super) fn new(progress: Progress, threads: &'a [LiveThread]) -> ProgressLine<'a> {
        let overwrites = match progress {
            Progress::Off => None,
            Progress::Terminal => std::io::stderr().is_terminal().then_some(true),
            Progress::Lines => Some(false),
        };
        let now = Instant::now();
        ProgressLine { threads, overwrites, started: now, shown: now, shown_good: 0 }
    }

    /// Shows the line if it is time to.
    pub(super) fn tick(&mut self) {
        let Some(overwrites) = self.overwrites else { return };
        let elapsed = self.shown.elapsed();
        if elapsed < INTERVAL {
            return;
        }
        let sum = |of: fn(&LiveThread) -> &AtomicU64| self.threads.iter().map(|thread| of(thread).load(Ordering::Relaxed)).sum::<u64>();
        let good = sum(|thread| &thread.good);
        let rate = (good - self.shown_good) as f64 / elapsed.as_secs_f64();
        let line = line(
            self.started.elapsed().as_secs(),
            rate,
            good,
            sum(|live| &live.refused),
            sum(|live| &live.bad),
            sum(|live| &live.under_way),
        );
        // Nobody who watches, no line: a run does not end for that.
        let mut stderr = std::io::stderr().lock();
        if overwrites {
            write!(stderr, "\r\x1b[K{line}").ok()
        } else {
            writeln!(stderr, "{line}").ok()
        };
        stderr.flush().ok();
        (self.shown, self.shown_good) = (Instant::now(), good);
    }

    /// Takes the line away.
    pub(super) fn end(self) {
        if self.overwrites == Some(true) {
            eprint!("\r\x1b[K");
        }
    }
}

fn line(second: u64, rate: f64, good: u64, refused: u64, bad: u64, under_way: u64) -> String {
    format!("{second:>4} s  {rate:>9.0} good/s  {good} good  {refused} refused  {bad} bad  {under_way} under way")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_rate_and_counts() {
        assert_eq!(line(3, 1_234.5, 40, 1, 2, 32), "   3 s       1234 good/s  40 good  1 refused  2 bad  32 under way");
    }

    #[test]
    fn nothing_is_shown_before_a_second_is_over() {
        let threads = [LiveThread::default()];
        let mut progress = ProgressLine::new(Progress::Lines, &threads);
        threads[0].good.store(7, Ordering::Relaxed);
        progress.tick();
        assert_eq!(progress.shown_good, 0);
        progress.end();
    }
}
