//! How long to wait before the next try to connect: twice as long each time, and never in step with others that lost the same primary.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// Waiting times of one connection's tries.
#[derive(Debug)]
pub struct Backoff {
    /// Tries since the last success.
    failures: u32,
    random: StdRng,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { failures: 0, random: StdRng::from_os_rng() }
    }
}

impl Backoff {
    /// The pause after another failure: 50 ms, doubled each time up to 2 s, of which a random half to the whole.
    pub fn next_pause(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// A try succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_two_seconds_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        for full_ms in [50, 100, 200, 400, 800, 1_600, 2_000, 2_000] {
            let pause = backoff.next_pause();
            assert!((full_ms / 2..=full_ms).contains(&(pause.as_millis() as u64)), "{pause:?} of {full_ms} ms");
        }
        (0..100).for_each(|_| assert!(backoff.next_pause() <= LONGEST));
        backoff.reset();
        assert!(backoff.next_pause() <= FIRST);
    }
}
