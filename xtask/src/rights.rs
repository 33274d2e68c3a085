//! What the kernel lets this process do: the capabilities that steering and network namespaces need, and the CPUs it may use.

use std::fs;

use anyhow::{Context, Result};

/// Name, bit and use of each capability that the demo and the kernel tests need. Source: include/uapi/linux/capability.h.
const NEEDED: [(&str, u32, &str); 4] = [
    ("CAP_NET_ADMIN", 12, "attach programs and configure interfaces"),
    ("CAP_SYS_ADMIN", 21, "make network namespaces"),
    ("CAP_PERFMON", 38, "load programs that the verifier checks for pointers"),
    ("CAP_BPF", 39, "load programs and maps"),
];

/// The missing capabilities as text, such as `CAP_BPF (load programs and maps)`; empty when nothing is missing.
pub fn missing_capabilities() -> Result<Vec<String>> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective =
        field(&status, "CapEff").and_then(|text| u64::from_str_radix(text, 16).ok()).context("no CapEff in /proc/self/status")?;
    Ok(missing(effective))
}

fn missing(effective: u64) -> Vec<String> {
    NEEDED.iter().filter(|(_, bit, _)| effective & (1 << bit) == 0).map(|(name, _, purpose)| format!("{name} ({purpose})")).collect()
}

/// Whether this process is root, who alone may install packages.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The CPU numbers that this process may run on.
pub fn allowed_cpus() -> Result<Vec<u16>> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let list = field(&status, "Cpus_allowed_list").context("no Cpus_allowed_list in /proc/self/status")?;
    parse_cpu_list(list).with_context(|| format!("cannot read the CPU list {list:?}"))
}

fn field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// CPU numbers of a list such as `0,2-3`, as the kernel prints and `--cores` takes it.
pub fn parse_cpu_list(list: &str) -> Option<Vec<u16>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?);
    }
    (!cpus.is_empty()).then_some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("0-1"), Some(vec![0, 1]));
        assert_eq!(parse_cpu_list("0,2-4,7"), Some(vec![0, 2, 3, 4, 7]));
        for wrong in ["", "a", "1-", "3-1", "0,,1"] {
            assert_eq!(parse_cpu_list(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_missing_capability_is_named() {
        assert!(missing(u64::MAX).is_empty());
        assert_eq!(missing(!(1 << 39)), ["CAP_BPF (load programs and maps)"]);
        assert_eq!(missing(0).len(), NEEDED.len());
    }

    #[test]
    fn fields_of_the_status_file_are_found_by_whole_name() {
        assert_eq!(field("CapEffX:\t1\nCapEff:\t00ff\n", "CapEff"), Some("00ff"));
        assert_eq!(field("Name:\tx\n", "CapEff"), None);
    }
}
