//! What a server used while it was measured: from when the warm-up was over, in which JITs compile, to the end of the measured time. Neither that nor
//! the counters that are read before and after a run are what its requests cost.

use super::usage::{Usage, UsageError, family_of};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Between two looks at the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    cpu_us: f64,
    /// Of the measured time, as far as both looks were in it.
    seconds: f64,
    /// Resident bytes at its end.
    pub(super) rss_bytes: u64,
}

impl Window {
    /// CPU us for each good answer, to the hundredth. `per_second`: good answers of the measured time.
    pub(super) fn cpu_us_per_answer(&self, per_second: f64) -> f64 {
        let answers = (per_second * self.seconds).max(1.0);
        (self.cpu_us / answers * 100.0).round() / 100.0
    }
}

/// Runs `load`, which calls what it is given when its measured time begins. `pids`: the server's processes, whose children are theirs.
/// Output: also what they used in that time; `None` if it never began. Errors: one of them has ended.
pub(super) fn used_while_measured<T>(
    pids: &[u32],
    measured: Duration,
    load: impl FnOnce(&mut dyn FnMut()) -> T,
) -> Result<(T, Option<Window>), UsageError> {
    // Known before: to look for it costs what the generator's CPU should not spend while it measures.
    let family = family_of(pids)?;
    std::thread::scope(|scope| {
        let (began, has_begun) = channel();
        let (going_on, is_over) = channel::<()>();
        let looking = scope.spawn(move || has_begun.recv().ok().map(|begun| until_end(pids, begun, measured, &is_over)));
        // Without a receiver nobody asks.
        let mut begin = || began.send((Usage::of(&family), Instant::now())).unwrap_or_default();
        let loaded = load(&mut begin);
        drop((began, going_on));
        let window = looking.join().unwrap_or(None).transpose()?;
        Ok((loaded, window))
    })
}

/// Waits until the measured time is over, or the run, which ends before where it is interrupted.
fn until_end(pids: &[u32], (before, since): (Usage, Instant), measured: Duration, is_over: &Receiver<()>) -> Result<Window, UsageError> {
    is_over.recv_timeout(measured.saturating_sub(since.elapsed())).unwrap_or_default();
    // Where this thread got its CPU too late, the server has done nothing meanwhile.
    let seconds = since.elapsed().min(measured).as_secs_f64();
    let after = Usage::of(&family_of(pids)?);
    Ok(Window { cpu_us: after.cpu_us_since(&before), seconds, rss_bytes: after.rss_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn the_warm_up_is_not_charged() {
        let warm_up = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; echo warm; exec sleep 60";
        let mut server = Command::new("sh").args(["-c", warm_up]).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(server.stdout.take().unwrap());
        let load = |measuring: &mut dyn FnMut()| {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            // It has become another program, which only sleeps.
            let deadline = Instant::now() + Duration::from_secs(20);
            let name = format!("/proc/{}/comm", server.id());
            while std::fs::read_to_string(&name).unwrap() != "sleep\n" && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(5));
            measuring();
            std::thread::sleep(Duration::from_millis(60));
            line
        };
        let (line, window) = used_while_measured(&[server.id()], Duration::from_millis(20), load).unwrap();
        let all = Usage::of(&[server.id()]).cpu_us_since(&Usage::default());
        server.kill().unwrap();
        server.wait().unwrap();
        let window = window.unwrap();
        assert_eq!(line, "warm\n");
        assert!(window.cpu_us < all / 4.0, "{window:?} of {all} us");
        assert!((0.01..=0.02).contains(&window.seconds) && window.rss_bytes > 0, "{window:?}");
    }

    #[test]
    fn a_run_that_was_never_measured_has_no_window() {
        let own = [std::process::id()];
        assert_eq!(used_while_measured(&own, Duration::from_secs(600), |_| 7).unwrap(), (7, None));
        // One that ends before its time is looked at then.
        let began = Instant::now();
        let (_, window) = used_while_measured(&own, Duration::from_secs(600), |measuring| measuring()).unwrap();
        assert!(window.unwrap().seconds < 600.0 && began.elapsed() < Duration::from_secs(300));
    }

    #[test]
    fn cpu_is_divided_by_the_answers_of_the_same_time() {
        let window = Window { cpu_us: 1_900_000.0, seconds: 1.9, rss_bytes: 0 };
        assert_eq!(window.cpu_us_per_answer(100_000.0), 10.0);
        assert_eq!(window.cpu_us_per_answer(0.0), 1_900_000.0);
    }
}
