//! Which capabilities this process lacks for steering. Reads `/proc`; asks the kernel nothing.

use std::fs;

/// Bits of `CapEff` in `/proc/self/status`, include/uapi/linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The missing capabilities, or `None` when all are there.
pub(super) fn missing() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    missing_in(effective(&status).unwrap_or(0))
}

fn effective(status: &str) -> Option<u64> {
    let text = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(text.trim(), 16).ok()
}

fn missing_in(effective: u64) -> Option<String> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    // Before Linux 5.8 there was no CAP_BPF; CAP_SYS_ADMIN still stands for it and for CAP_PERFMON.
    let wanted = [
        ("CAP_BPF", has(CAP_BPF) || has(CAP_SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
        ("CAP_PERFMON", has(CAP_PERFMON) || has(CAP_SYS_ADMIN)),
    ];
    let missing: Vec<&str> = wanted.iter().filter(|(_, is_there)| !is_there).map(|(name, _)| *name).collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_in(u64::MAX), None);
        assert_eq!(missing_in(1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN), None);
        assert_eq!(missing_in(1 << CAP_BPF | 1 << CAP_PERFMON).as_deref(), Some("CAP_NET_ADMIN"));
        assert_eq!(missing_in(0).as_deref(), Some("CAP_BPF and CAP_NET_ADMIN and CAP_PERFMON"));
    }

    #[test]
    fn effective_set_is_read_from_the_status_file() {
        assert_eq!(effective("Name:\tx\nCapPrm:\t0000000000000001\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
