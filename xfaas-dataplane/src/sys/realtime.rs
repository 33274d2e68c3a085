//! The kernel scheduler's classes (sched(7)). A thread in the real-time class is not taken off its CPU by ordinary ones, the kernel's own included:
//! called by threads that a reply waits for, when the operator wants it.

/// Priority of a thread that serves, 1..=99. The lowest is above all ordinary threads.
pub const PRIORITY_SHARD: u8 = 1;
/// Of one that must run for the above to keep their promises.
pub const PRIORITY_TICKER: u8 = 2;

#[derive(Debug, thiserror::Error)]
#[error("the real-time class is not allowed: run as root, give the program CAP_SYS_NICE, or raise its limit with `ulimit -r {priority}`")]
pub struct RealtimeError {
    pub priority: u8,
    #[source]
    pub source: std::io::Error,
}

/// What threads and processes that the calling thread starts later are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Children {
    /// Ordinary.
    Ordinary,
    /// As the calling thread.
    Alike,
}

/// The kernel's bound on what threads of the real-time class use of a CPU together. Source: Documentation/scheduler/sched-rt-group.rst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub runtime_us: u64,
    /// Not 0.
    pub period_us: u64,
}

impl Bound {
    /// Parts of 1,000 of a CPU's time, 0..=1,000.
    pub fn share(self) -> u64 {
        (self.runtime_us.saturating_mul(1_000) / self.period_us.max(1)).min(1_000)
    }
}

/// This machine's bound; `None`: it has none, or does not tell.
pub fn bound() -> Option<Bound> {
    let read = |name| std::fs::read_to_string(format!("/proc/sys/kernel/sched_rt_{name}_us")).ok();
    parse_bound(&read("runtime")?, &read("period")?)
}

/// `runtime`: -1 for no bound.
fn parse_bound(runtime: &str, period: &str) -> Option<Bound> {
    let (runtime_us, period_us) = (runtime.trim().parse().ok()?, period.trim().parse().ok()?);
    (period_us > 0 && runtime_us < period_us).then_some(Bound { runtime_us, period_us })
}

/// Puts the calling thread into the class `SCHED_FIFO`. Errors: no right to; the thread stays as it was.
pub fn enter(priority: u8, children: Children) -> Result<(), RealtimeError> {
    let policy = libc::SCHED_FIFO | if children == Children::Ordinary { libc::SCHED_RESET_ON_FORK } else { 0 };
    set(0, policy, priority).map_err(|source| RealtimeError { priority, source })
}

/// Makes the calling thread an ordinary one again.
pub fn leave() -> Result<(), RealtimeError> {
    set(0, libc::SCHED_OTHER, 0).map_err(|source| RealtimeError { priority: 0, source })
}

/// Puts another thread, by its number in the system, into the class `SCHED_BATCH`: ordinary, but when it wakes the thread that runs is not
/// interrupted. Errors: there is none of that number, or no right to (CAP_SYS_NICE).
pub fn make_batch(thread: i32) -> std::io::Result<()> {
    set(thread, libc::SCHED_BATCH, 0)
}

/// `thread`: 0 is the calling one.
fn set(thread: i32, policy: i32, priority: u8) -> std::io::Result<()> {
    let parameters = libc::sched_param { sched_priority: i32::from(priority) };
    // SAFETY: the call reads `parameters`, which lives until it returns, and writes no memory of this process.
    let set = unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) };
    if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// `policy` of /proc/thread-self/stat (field 41, proc(5)): 0 ordinary, 1 SCHED_FIFO.
    fn policy() -> u32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(41 - 3).unwrap().parse().unwrap()
    }

    #[test]
    fn a_thread_enters_and_leaves_and_its_children_are_as_told() {
        let tried = std::thread::spawn(|| -> Result<[u32; 5], RealtimeError> {
            let child = || std::thread::spawn(policy).join().unwrap();
            let before = policy();
            enter(PRIORITY_SHARD, Children::Ordinary)?;
            let (inside, ordinary) = (policy(), child());
            enter(PRIORITY_SHARD, Children::Alike)?;
            let alike = child();
            leave()?;
            Ok([before, inside, ordinary, alike, policy()])
        });
        match tried.join().unwrap() {
            Ok(policies) => assert_eq!(policies, [0, 1, 0, 1, 0]),
            // Without the right it says so, and what to do.
            Err(error) => {
                assert!(error.source.kind() == std::io::ErrorKind::PermissionDenied && error.to_string().contains("CAP_SYS_NICE"))
            }
        }
    }

    #[test]
    fn a_bound_is_read_where_there_is_one() {
        let bound = parse_bound("950000\n", "1000000\n").unwrap();
        assert_eq!((bound, bound.share()), (Bound { runtime_us: 950_000, period_us: 1_000_000 }, 950));
        for (runtime, period) in [("-1", "1000000"), ("1000000", "1000000"), ("x", "1000000"), ("", ""), ("0", "0"), ("950000", "-5")] {
            assert_eq!(parse_bound(runtime, period), None, "{runtime:?} of {period:?}");
        }
    }

    #[test]
    fn this_machines_bound_is_what_its_files_say() {
        let number = |name| std::fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).unwrap().trim().parse::<i64>().unwrap();
        let (runtime, period) = (number("sched_rt_runtime_us"), number("sched_rt_period_us"));
        let expected = (0..period).contains(&runtime).then_some((runtime as u64, period as u64));
        assert_eq!(bound().map(|bound| (bound.runtime_us, bound.period_us)), expected);
    }

    #[test]
    fn an_impossible_priority_is_refused() {
        let tried = std::thread::spawn(|| enter(200, Children::Ordinary)).join().unwrap();
        assert_eq!(tried.unwrap_err().priority, 200);
    }
}
