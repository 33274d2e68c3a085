//! How long the generator's own thread stood still: it waited for its CPU while others had it, or the host of this machine had taken that away. What
//! is due or answered just then is late by no fault of the server's.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Between two looks that lie further apart others may have had the CPU.
const LOOK_NS_MIN: u64 = 100_000;
/// A thread that spins and did so little for so long did not run. A host that pauses a virtual machine need not tell it, so this alone shows it.
const STILL_NS_MIN: u64 = 1_000_000;
/// Far more than a request or an answer ever takes.
const HANDLED_NS_MAX: u64 = 10_000;

/// What a thread had done when it looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    /// Requests sent and answers taken.
    pub(super) handled: u64,
    /// Connections made anew, which may wait for the server.
    pub(super) reconnects: u64,
}

/// What one thread has waited. The kernel counts it (Documentation/scheduler/sched-stats.rst, `/proc/<pid>/schedstat`).
pub(super) struct OffCpu {
    /// `None` where the kernel does not count.
    file: Option<File>,
    waited_ns: u64,
    /// When the thread was last seen to run.
    seen_ns: u64,
    done: Done,
    /// It never sleeps.
    spins: bool,
}

impl OffCpu {
    /// Of the calling thread, from now on.
    pub(super) fn of_this_thread(now_ns: u64, spins: bool) -> OffCpu {
        let file = File::open("/proc/thread-self/schedstat").ok();
        let mut off_cpu = OffCpu { file, waited_ns: 0, seen_ns: now_ns, done: Done::default(), spins };
        off_cpu.since_last();
        off_cpu
    }

    /// The thread runs at `now_ns` and has `done` so much since it began. Output: since when that was not certain, and for how long of that it
    /// stood still, if it did for so long that it matters. Costs a system call only after such a gap.
    pub(super) fn seen(&mut self, now_ns: u64, done: Done) -> Option<(u64, u64)> {
        let from_ns = std::mem::replace(&mut self.seen_ns, now_ns);
        let before = std::mem::replace(&mut self.done, done);
        let gap_ns = now_ns.saturating_sub(from_ns);
        if gap_ns < LOOK_NS_MIN {
            return None;
        }
        // It may hold what was waited in short gaps before, which is little, and never more than this gap.
        let waited_ns = self.since_last().min(gap_ns);
        let worked_ns_max = done.handled.saturating_sub(before.handled) * HANDLED_NS_MAX;
        if self.spins && done.reconnects == before.reconnects && gap_ns > worked_ns_max.max(STILL_NS_MIN) {
            return Some((from_ns, gap_ns));
        }
        (waited_ns > 0).then_some((from_ns, waited_ns))
    }

    /// ns that the thread was ready to run and did not, since the last call.
    fn since_last(&mut self) -> u64 {
        let mut line = [0; 96];
        let read = self.file.as_ref().and_then(|file| file.read_at(&mut line, 0).ok());
        let waited_ns = read.and_then(|bytes| parse(line.get(..bytes)?)).unwrap_or(self.waited_ns);
        let since_ns = waited_ns.saturating_sub(self.waited_ns);
        self.waited_ns = waited_ns;
        since_ns
    }
}

/// The second of three numbers: ns that passed on the queue of a CPU.
fn parse(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};
    use xfaas_dataplane::sys::affinity::{allowed_cpus, pin_to};

    #[test]
    fn the_second_number_counts() {
        assert_eq!(parse(b"1234 567 8\n"), Some(567));
        assert_eq!((parse(b""), parse(b"1234"), parse(b"1 x 2")), (None, None, None));
    }

    #[test]
    fn a_thread_that_spins_and_did_next_to_nothing_stood_still() {
        let done = |handled, reconnects| Done { handled, reconnects };
        let seen = |spins, gap_ns, done| OffCpu { file: None, waited_ns: 0, seen_ns: 0, done: Done::default(), spins }.seen(gap_ns, done);
        assert_eq!(seen(true, 1_500_000, done(3, 0)), Some((0, 1_500_000)));
        assert_eq!(seen(true, 900_000, done(3, 0)), None, "too short to be told from work");
        assert_eq!(seen(true, 1_500_000, done(200, 0)), None, "it worked");
        assert_eq!(seen(true, 1_500_000, done(3, 1)), None, "it waited for the server");
        assert_eq!(seen(false, 1_500_000, done(3, 0)), None, "it slept");
        let mut off_cpu = OffCpu { file: None, waited_ns: 0, seen_ns: 0, done: Done::default(), spins: true };
        assert_eq!(off_cpu.seen(5_000_000, done(400, 2)), None);
        assert_eq!(off_cpu.seen(7_000_000, done(410, 2)), Some((5_000_000, 2_000_000)));
    }

    #[test]
    fn a_thread_that_shares_its_cpu_has_waited_and_is_told_once() {
        let cpu = allowed_cpus()[0];
        let until = Instant::now() + Duration::from_millis(300);
        let waited_ns = || {
            pin_to(cpu).unwrap();
            let mut off_cpu = OffCpu::of_this_thread(0, false);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            (off_cpu.seen(400_000_000, Done::default()).map_or(0, |(from_ns, waited_ns)| from_ns + waited_ns), off_cpu.since_last())
        };
        let both = std::thread::scope(|scope| [scope.spawn(waited_ns), scope.spawn(waited_ns)].map(|thread| thread.join().unwrap()));
        let whole: u64 = both.iter().map(|(first, _)| first).sum();
        assert!(whole > 30_000_000, "two threads on one CPU for 300 ms waited {whole} ns");
        assert!(both.iter().all(|(first, again)| again <= first), "{both:?}");
    }
}
