//! What processes and all that they started cost: CPU time and resident memory, from proc(5).

use std::collections::HashMap;

#[derive(Debug, thiserror::Error)]
#[error("the processes cannot be looked at")]
pub struct UsageError(#[from] std::io::Error);

/// Of some processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time so far. Resolution: a clock tick, 10 ms.
    pub cpu_us: f64,
    /// Pages that processes share are in it once for each.
    pub rss_bytes: u64,
}

struct Process {
    parent: u32,
    ticks: u64,
    rss_pages: u64,
}

/// Of `roots` and all that descends from them now.
pub fn usage_of(roots: &[u32]) -> Result<Usage, UsageError> {
    let mut processes = HashMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that ended meanwhile is none.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        processes.extend(parse(&stat).map(|process| (pid, process)));
    }
    let mut usage = Usage::default();
    for (pid, process) in &processes {
        if descends(*pid, roots, &processes) {
            usage.cpu_us += process.ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64;
            usage.rss_bytes += process.rss_pages * rustix::param::page_size() as u64;
        }
    }
    Ok(usage)
}

fn descends(pid: u32, roots: &[u32], processes: &HashMap<u32, Process>) -> bool {
    let mut pid = pid;
    // No tree is deeper; a number that was given twice cannot make a ring that is walked for ever.
    for _ in 0..64 {
        if roots.contains(&pid) {
            return true;
        }
        match processes.get(&pid) {
            Some(process) if process.parent != 0 => pid = process.parent,
            _ => return false,
        }
    }
    false
}

/// Fields 4, 14, 15 and 24 of a `stat`; the second field may hold blanks.
fn parse(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Process { parent: u32::try_from(field(4)?).ok()?, ticks: field(14)? + field(15)?, rss_pages: field(24)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_taken_apart() {
        let process = parse("7 (a b) c) S 5 7 7 0 -1 4194560 1 2 3 4 11 12 130 14 20 0 1 0 99 4096 55 18446744073709551615 1").unwrap();
        assert_eq!((process.parent, process.ticks, process.rss_pages), (5, 23, 55));
        assert!(parse("").is_none() && parse("7 (a").is_none());
    }

    #[test]
    fn children_are_counted_with_their_parents() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (all, own) = (usage_of(&[std::process::id()]).unwrap(), usage_of(&[child.id()]).unwrap());
        assert!(own.rss_bytes > 0 && all.rss_bytes > own.rss_bytes, "{all:?} {own:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(usage_of(&[]).unwrap(), Usage::default());
    }
}
