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

/// Of several processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time since they began. Resolution: a clock tick, 10 ms, for each process.
    pub cpu_us: f64,
    /// Resident pages; one that two of them share counts twice.
    pub rss_bytes: u64,
}

/// A line of /proc/PID/stat, as far as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    parent: u32,
    ticks: u64,
    rss_pages: u64,
}

/// The processes `roots` and their descendants. Errors: one of `roots` is gone.
pub fn usage_of(roots: &[u32]) -> Result<Usage, UsageError> {
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
    let (tick_us, page_bytes) = (1e6 / rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as u64);
    Ok(family.iter().filter_map(|pid| all.get(pid)).fold(Usage::default(), |sum, stat| Usage {
        cpu_us: sum.cpu_us + stat.ticks as f64 * tick_us,
        rss_bytes: sum.rss_bytes + stat.rss_pages * page_bytes,
    }))
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
            let own = usage_of(&[child.id()]).unwrap();
            if own.rss_bytes > 0 || std::time::Instant::now() > deadline {
                break own;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        let both = usage_of(&[std::process::id()]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(own.rss_bytes > 0 && both.rss_bytes > own.rss_bytes, "{own:?} {both:?}");
        assert!(matches!(usage_of(&[child.id()]), Err(UsageError::Ended { .. })));
    }
}
