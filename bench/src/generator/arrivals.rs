//! When requests are due. Pure: times follow from the rate, the seed and the number of the request, never from when replies came, so that a
//! slow server cannot make the load wait for it.

use crate::load::Random;

/// How requests arrive. Rates are requests a second of all threads together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// The next one when a reply is there: as many under way as there are places.
    Closed,
    /// One every `1 / per_second`.
    Fixed { per_second: f64 },
    /// Independent users: exponential gaps with that mean rate.
    Poisson { per_second: f64 },
    /// `size` at the same moment, as often as keeps the rate.
    Bursts { per_second: f64, size: u32 },
}

impl Arrivals {
    /// Requests a second that are asked for; `None` in a closed loop.
    pub fn per_second(&self) -> Option<f64> {
        match *self {
            Arrivals::Closed => None,
            Arrivals::Fixed { per_second } | Arrivals::Poisson { per_second } | Arrivals::Bursts { per_second, .. } => Some(per_second),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Arrivals::Closed => "closed",
            Arrivals::Fixed { .. } => "fixed",
            Arrivals::Poisson { .. } => "poisson",
            Arrivals::Bursts { .. } => "bursts",
        }
    }
}

/// The due times of one thread's share of an open loop, in order. All threads' shares together are the whole.
pub(super) struct Schedule {
    arrivals: Arrivals,
    random: Random,
    /// ns between two requests of the whole load.
    gap_ns: f64,
    thread: u64,
    threads: u64,
    /// Requests of this thread so far.
    taken: u64,
    start_ns: u64,
    /// Since the start.
    due_ns: f64,
    /// What is due from the first time on comes so much later.
    pause: Option<(u64, u64)>,
}

impl Schedule {
    /// Thread `thread` of `threads`. Output: `None` for a closed loop.
    pub(super) fn new(arrivals: Arrivals, thread: usize, threads: usize, start_ns: u64, seed: u64) -> Option<Schedule> {
        let per_second = arrivals.per_second()?;
        let random = Random::new(seed ^ (thread as u64).wrapping_mul(0xA076_1D64_78BD_642F));
        let mut schedule = Schedule {
            arrivals,
            random,
            gap_ns: 1e9 / per_second,
            thread: thread as u64,
            threads: threads.max(1) as u64,
            taken: 0,
            start_ns,
            due_ns: 0.0,
            pause: None,
        };
        schedule.due_ns = schedule.due_after(0.0);
        Some(schedule)
    }

    /// When the next request is due, on the clock of the start.
    pub(super) fn due_ns(&self) -> u64 {
        self.start_ns + self.due_ns as u64
    }

    /// The next request is taken: after it comes another.
    pub(super) fn advance(&mut self) {
        self.taken += 1;
        self.due_ns = self.due_after(self.due_ns);
        self.apply_pause();
    }

    /// No request arrives for `pause_ns` from `from_ns` on: all that is due then is due so much later.
    pub(super) fn pause(&mut self, from_ns: u64, pause_ns: u64) {
        let (from_ns, earlier_ns) = self.pause.unwrap_or((from_ns, 0));
        self.pause = Some((from_ns, earlier_ns + pause_ns));
        self.apply_pause();
    }

    fn apply_pause(&mut self) {
        if let Some((_, pause_ns)) = self.pause.take_if(|(from_ns, _)| self.start_ns + self.due_ns as u64 >= *from_ns) {
            self.start_ns += pause_ns;
        }
    }

    fn due_after(&mut self, last_ns: f64) -> f64 {
        // From the number, not from the last time: no error adds up.
        let number = self.thread + self.taken * self.threads;
        match self.arrivals {
            Arrivals::Closed => last_ns,
            Arrivals::Fixed { .. } => number as f64 * self.gap_ns,
            // Independent shares of a Poisson process are Poisson processes.
            Arrivals::Poisson { .. } => last_ns - (1.0 - self.random.unit()).ln() * self.gap_ns * self.threads as f64,
            Arrivals::Bursts { size, .. } => {
                let size = u64::from(size.max(1));
                (number / size * size) as f64 * self.gap_ns
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(arrivals: Arrivals, thread: usize, threads: usize, count: usize) -> Vec<u64> {
        let mut schedule = Schedule::new(arrivals, thread, threads, 1_000, 7).unwrap();
        (0..count)
            .map(|_| {
                let due_ns = schedule.due_ns();
                schedule.advance();
                due_ns
            })
            .collect()
    }

    #[test]
    fn a_pause_moves_what_comes_after_it_and_nothing_before() {
        let mut schedule = Schedule::new(Arrivals::Fixed { per_second: 1e6 }, 0, 1, 0, 7).unwrap();
        let mut due = Vec::new();
        for taken in 0..8 {
            if taken == 1 {
                schedule.pause(2_500, 100_000);
                schedule.pause(5_000, 20_000); // the first one is still to come
            }
            if taken == 6 {
                schedule.pause(0, 7);
            }
            due.push(schedule.due_ns());
            schedule.advance();
        }
        assert_eq!(due, [0, 1_000, 2_000, 123_000, 124_000, 125_000, 126_007, 127_007]);
    }

    #[test]
    fn a_fixed_rate_is_evenly_spaced_and_does_not_drift() {
        let times = due(Arrivals::Fixed { per_second: 3.0 }, 0, 1, 3_000_001);
        assert_eq!(times[..3], [1_000, 333_334_333, 666_667_666]);
        assert_eq!(times[3_000_000], 1_000_000_000_001_000);
    }

    #[test]
    fn threads_share_one_schedule() {
        for arrivals in [Arrivals::Fixed { per_second: 1_000.0 }, Arrivals::Bursts { per_second: 1_000.0, size: 10 }] {
            let mut shared = [due(arrivals, 0, 2, 100), due(arrivals, 1, 2, 100)].concat();
            shared.sort_unstable();
            assert_eq!(shared, due(arrivals, 0, 1, 200));
        }
    }

    #[test]
    fn a_burst_is_due_at_one_moment_and_the_rate_is_kept() {
        let times = due(Arrivals::Bursts { per_second: 1_000.0, size: 50 }, 0, 1, 200);
        let moments: Vec<u64> = times.chunks(50).map(|burst| burst[0]).collect();
        assert!(times.chunks(50).all(|burst| burst.iter().all(|time| *time == burst[0])));
        assert_eq!(moments, [1_000, 50_001_000, 100_001_000, 150_001_000]);
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        for threads in [1, 4] {
            let times = due(Arrivals::Poisson { per_second: 10_000.0 }, threads - 1, threads, 100_001);
            let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
            let wanted = 100_000.0 * threads as f64;
            // The mean of 100,000 exponential gaps is within 1.3 % with 4 standard errors; the seed is fixed.
            assert!((mean / wanted - 1.0).abs() < 0.013, "{mean}");
            assert!((deviation / mean - 1.0).abs() < 0.02, "{deviation}");
            // Memoryless: e^-1 of the gaps are longer than the mean, e^-3 longer than three times the mean.
            for (times_mean, share) in [(1.0, 0.3679), (3.0, 0.0498)] {
                let longer = gaps.iter().filter(|gap| **gap > times_mean * wanted).count() as f64 / gaps.len() as f64;
                assert!((longer - share).abs() < 0.01, "{longer} of the gaps are longer than {times_mean} means");
            }
        }
    }

    #[test]
    fn a_closed_loop_has_no_schedule() {
        assert!(Schedule::new(Arrivals::Closed, 0, 1, 0, 1).is_none());
    }
}
