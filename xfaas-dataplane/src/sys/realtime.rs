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
    fn an_impossible_priority_is_refused() {
        let tried = std::thread::spawn(|| enter(200, Children::Ordinary)).join().unwrap();
        assert_eq!(tried.unwrap_err().priority, 200);
    }
}
