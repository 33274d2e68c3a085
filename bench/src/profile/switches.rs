//! Which threads had a CPU, by the kernel's record of its switches from one to the next. Pure functions of what `perf script` prints of `sched:sched_switch`.

use super::samples::head;
use std::collections::BTreeMap;
use std::time::Duration;

/// What one name's threads had of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share<'a> {
    pub thread: &'a str,
    /// How often one came onto the CPU.
    pub turns: u32,
    pub in_all: Duration,
    pub longest: Duration,
    /// Of `in_all`, while one of the slowest requests was under way.
    pub while_slow: Duration,
}

/// The threads that had the CPU beside those whose name begins with `except`, and beside the idle one; who had it longest comes first. `switches` is of one
/// CPU; `windows` are from and until on its clock.
pub fn shares<'a>(switches: &'a str, except: &str, windows: &[(u64, u64)]) -> Vec<Share<'a>> {
    let windows = united(windows);
    let mut of_thread: BTreeMap<&str, Share<'a>> = BTreeMap::new();
    let mut since = None;
    for (thread, at_ns) in switches.lines().filter_map(head) {
        // An event is of the thread that leaves: it had come with the event before.
        if let Some(from) = since.replace(at_ns).filter(|_| !thread.starts_with(except) && !thread.starts_with("swapper")) {
            let empty = Share { thread, turns: 0, in_all: Duration::ZERO, longest: Duration::ZERO, while_slow: Duration::ZERO };
            let share = of_thread.entry(thread).or_insert(empty);
            let turn = Duration::from_nanos(at_ns.saturating_sub(from));
            share.turns += 1;
            share.in_all += turn;
            share.longest = share.longest.max(turn);
            share.while_slow += Duration::from_nanos(windows.iter().map(|window| overlap(*window, (from, at_ns))).sum());
        }
    }
    let mut shares: Vec<_> = of_thread.into_values().collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.in_all));
    shares
}

/// How long the windows are together; what is in two of them counts once.
pub fn covered(windows: &[(u64, u64)]) -> Duration {
    Duration::from_nanos(united(windows).iter().map(|(from, until)| until.saturating_sub(*from)).sum())
}

/// The windows without their overlaps, in order: what is in two of them counts once.
fn united(windows: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut sorted = windows.to_vec();
    sorted.sort_unstable();
    let mut united: Vec<(u64, u64)> = Vec::new();
    for (from, until) in sorted {
        match united.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(until),
            _ => united.push((from, until)),
        }
    }
    united
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> u64 {
    a.1.min(b.1).saturating_sub(a.0.max(b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCHES: &str = "   perf  1201 [000] 46.000001: sched:sched_switch:\n\
        xfaas-shard-0  1191 46.001001: sched:sched_switch:\n\
        kdamond.0    77 46.009001: sched:sched_switch:\n\
        swapper     0 46.010001: sched:sched_switch:\n\
        nonsense\n\
        kworker/0:1H    11 46.010051: sched:sched_switch:\n\
        kdamond.0    77 46.010151: sched:sched_switch:\n";

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn who_had_the_cpu_longest_comes_first() {
        let windows = [(46_008_001_000, 46_008_501_000), (46_008_401_000, 46_009_501_000), (46_010_001_000, 46_010_011_000)];
        let found = shares(SWITCHES, "xfaas-shard", &windows);
        let damon = Share { thread: "kdamond.0", turns: 2, in_all: micros(8_100), longest: micros(8_000), while_slow: micros(1_000) };
        let worker = Share { thread: "kworker/0:1H", turns: 1, in_all: micros(50), longest: micros(50), while_slow: micros(10) };
        assert_eq!(found, [damon, worker]);
        assert_eq!(covered(&windows), micros(1_510));
    }

    #[test]
    fn what_is_no_record_of_switches_names_nobody() {
        assert_eq!(shares("", "x", &[]), []);
        assert_eq!(shares("a 1 1.5: sched:sched_switch:\nmuch nonsense\n\n", "x", &[(0, u64::MAX)]), []);
    }
}
