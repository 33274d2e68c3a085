//! What a server's processes have used: CPU time and resident memory of each and all below it, from /proc.

use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("process {pid} has ended")]
    Ended { pid: u32 },
}

/// Of several processes, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    processes: BTreeMap<u32, ProcessUsage>,
}

/// Of one process.
#[derive(Clone, Debug, Default, PartialEq)]
struct ProcessUsage {
    /// User and system time of all its threads, of those that have ended too. The kernel cuts each of the two to whole ticks, 10 ms.
    ticks: u64,
    /// Time on a CPU in ns of each thread that there is.
    threads: BTreeMap<u32, u64>,
    rss_pages: u64,
}

/// Ticks that a difference of `ProcessUsage::ticks` may be too high: one each of user and system time.
const TICKS_UNSURE: u64 = 2;

impl Usage {
    /// Of those of `pids` that there are. Cost: a few files for each process and one for each thread; nothing of other processes.
    pub fn of(pids: &[u32]) -> Usage {
        Usage { processes: pids.iter().filter_map(|pid| Some((*pid, ProcessUsage::read(*pid)?))).collect() }
    }

    /// Resident bytes of all; a page that two of them share counts twice.
    pub fn rss_bytes(&self) -> u64 {
        self.processes.values().map(|process| process.rss_pages).sum::<u64>() * rustix::param::page_size() as u64
    }

    /// CPU time in us, user and system, since `earlier`; of processes that were not there then, all of theirs. Those that have ended meanwhile
    /// are not in it.
    pub fn cpu_us_since(&self, earlier: &Usage) -> f64 {
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        let none = ProcessUsage::default();
        let of = |(pid, now): (&u32, &ProcessUsage)| now.cpu_ns_since(earlier.processes.get(pid).unwrap_or(&none), tick_ns);
        self.processes.iter().map(of).sum::<u64>() as f64 / 1_000.0
    }
}

impl ProcessUsage {
    /// None: it has ended.
    fn read(pid: u32) -> Option<ProcessUsage> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let stat = parse(&std::fs::read_to_string(folder.join("stat")).ok()?)?;
        // A thread that has ended meanwhile, and a kernel that does not count, leave no file.
        let time = |thread: std::fs::DirEntry| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            Some((thread.file_name().to_str()?.parse().ok()?, text.split_ascii_whitespace().next()?.parse().ok()?))
        };
        let threads = std::fs::read_dir(folder.join("task")).into_iter().flatten().flatten().filter_map(time).collect();
        Some(ProcessUsage { ticks: stat.ticks, threads, rss_pages: stat.rss_pages })
    }

    /// By its threads, to the ns, but where some have ended and taken what they used with them: then by the ticks, which have it.
    fn cpu_ns_since(&self, earlier: &ProcessUsage, tick_ns: u64) -> u64 {
        let before = |thread: &u32| earlier.threads.get(thread).copied().unwrap_or(0);
        let by_threads: u64 = self.threads.iter().map(|(thread, ns)| ns.saturating_sub(before(thread))).sum();
        let by_ticks = self.ticks.saturating_sub(earlier.ticks) * tick_ns;
        if by_ticks > by_threads + TICKS_UNSURE * tick_ns { by_ticks } else { by_threads }
    }
}

/// A line of /proc/PID/stat, as far as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    parent: u32,
    ticks: u64,
    rss_pages: u64,
}

/// The processes `roots` and their descendants. Cost: reads a file of every process of the machine. Errors: one of `roots` is gone.
pub fn family_of(roots: &[u32]) -> Result<Vec<u32>, UsageError> {
    let all = all_processes()?;
    if let Some(pid) = roots.iter().find(|pid| !all.contains_key(*pid)) {
        return Err(UsageError::Ended { pid: *pid });
    }
    let mut family = roots.to_vec();
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        let children = all.iter().filter(|(pid, stat)| stat.parent == parent && !family.contains(pid));
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        family.extend(children);
        next += 1;
    }
    Ok(family)
}

fn all_processes() -> Result<BTreeMap<u32, Stat>, UsageError> {
    let failed = |source| UsageError::Read { path: "/proc".into(), source };
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile has no line any more.
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok().and_then(|text| parse(&text));
        if let Some(stat) = stat {
            all.insert(pid, stat);
        }
    }
    Ok(all)
}

/// Fields 4, 14, 15 and 24 of proc(5)'s `stat`; the second field may hold blanks and brackets.
fn parse(stat: &str) -> Option<Stat> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat { parent: number(4)? as u32, ticks: number(14)? + number(15)?, rss_pages: number(24)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use xfaas_dataplane::sys::clock::thread_cpu_ns;

    const TICK_NS: u64 = 10_000_000;

    #[test]
    fn a_line_is_read_behind_a_name_with_blanks_and_brackets() {
        let line = "7 (a b) c) S 42 7 7 0 -1 4194560 1 2 3 4 11 12 130 14 20 0 1 0 99 1000 345 18446744073709551615";
        assert_eq!(parse(line), Some(Stat { parent: 42, ticks: 23, rss_pages: 345 }));
        assert_eq!(parse("7 (a) S 1"), None);
    }

    #[test]
    fn children_count_with_their_parents() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        // The kernel counts pages on each CPU and adds them up in batches: a program that has just begun may show none yet.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let own = loop {
            let own = Usage::of(&family_of(&[child.id()]).unwrap()).rss_bytes();
            if own > 0 || std::time::Instant::now() > deadline {
                break own;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        let both = Usage::of(&family_of(&[std::process::id()]).unwrap()).rss_bytes();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(own > 0 && both > own, "{own} {both}");
        assert!(matches!(family_of(&[child.id()]), Err(UsageError::Ended { .. })));
        assert_eq!(Usage::of(&[child.id()]), Usage::default());
    }

    fn process(ticks: u64, threads: &[(u32, u64)]) -> ProcessUsage {
        ProcessUsage { ticks, threads: threads.iter().copied().collect(), rss_pages: 1 }
    }

    #[test]
    fn threads_count_to_the_nanosecond_and_ended_ones_by_ticks() {
        let earlier = process(100, &[(1, 700_000_000), (2, 300_000_000)]);
        let since = |later: &ProcessUsage| later.cpu_ns_since(&earlier, TICK_NS);
        // Whole ticks may differ from the time by two.
        assert_eq!(since(&process(101, &[(1, 700_000_001), (2, 300_000_000)])), 1);
        assert_eq!(since(&process(152, &[(1, 1_000_000_007), (2, 500_000_000), (3, 5_000_000)])), 505_000_007);
        assert_eq!(since(&process(150, &[(1, 900_000_000)])), 500_000_000);
        // One that came and went is in no list of threads.
        assert_eq!(since(&process(150, &[(1, 700_000_000), (2, 300_000_000)])), 500_000_000);
        // A kernel that does not count by threads.
        assert_eq!(process(150, &[]).cpu_ns_since(&process(100, &[]), TICK_NS), 500_000_000);
    }

    #[test]
    fn what_a_thread_used_before_it_ended_is_counted() {
        let pids = [std::process::id()];
        let before = Usage::of(&pids);
        let burn = || {
            let began = thread_cpu_ns();
            while thread_cpu_ns() - began < 100_000_000 {}
        };
        std::thread::spawn(burn).join().unwrap();
        let ended_us = Usage::of(&pids).cpu_us_since(&before);
        assert!(ended_us >= 80_000.0, "{ended_us}");
    }
}
