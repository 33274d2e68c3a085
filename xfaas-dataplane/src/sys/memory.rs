//! How much memory this process may use: the machine's, or its control group's where that is less. Read once when a node starts.

use std::path::{Path, PathBuf};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Bytes. `None` where the kernel does not say.
pub fn available_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_bytes(&text));
    let group = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| group_of(&text));
    let limits = group.iter().flat_map(|group| group.ancestors()).filter_map(limit_of);
    machine.into_iter().chain(limits).min()
}

/// `MemTotal` of /proc/meminfo, proc_meminfo(5).
fn total_bytes(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1_024)
}

/// The folder of the process's group in the second version of control groups, cgroups(7): the line `0::/path`.
fn group_of(cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(CGROUPS).join(path))
}

/// `None` for `max`, and where the group has no such limit.
fn limit_of(group: &Path) -> Option<u64> {
    std::fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood_and_nonsense_is_not() {
        assert_eq!(total_bytes("MemTotal:       24603348 kB\nMemFree:        1 kB\n"), Some(24_603_348 * 1_024));
        for bad in ["", "MemFree: 5 kB", "MemTotal: 5", "MemTotal: many kB", "MemTotal: 18446744073709551615 kB"] {
            assert_eq!(total_bytes(bad), None, "{bad}");
        }
        let group = group_of("12:cpu:/old\n0::/system.slice/x.service\n");
        assert_eq!(group, Some(PathBuf::from("/sys/fs/cgroup/system.slice/x.service")));
        assert_eq!(group_of("0::/\n"), Some(PathBuf::from("/sys/fs/cgroup/")));
        assert_eq!(group_of("3:memory:/old\n"), None);
    }

    #[test]
    fn a_group_is_held_against_its_limit_and_those_above_it() {
        let folder = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(folder.path().join("memory.max"), text).unwrap();
        assert_eq!(limit_of(folder.path()), None);
        write("max\n");
        assert_eq!(limit_of(folder.path()), None);
        write("1073741824\n");
        assert_eq!(limit_of(folder.path()), Some(1 << 30));
        assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
