//! Which capabilities this process lacks for steering.

use crate::sys::capabilities::{self, CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, Capabilities};

/// The missing capabilities, or `None` when all are there.
pub(super) fn missing() -> Option<String> {
    missing_in(capabilities::effective())
}

fn missing_in(ours: Capabilities) -> Option<String> {
    // Before Linux 5.8 there was no CAP_BPF; CAP_SYS_ADMIN still stands for it and for CAP_PERFMON.
    let wanted = [
        ("CAP_BPF", ours.has(CAP_BPF) || ours.has(CAP_SYS_ADMIN)),
        ("CAP_NET_ADMIN", ours.has(CAP_NET_ADMIN)),
        ("CAP_PERFMON", ours.has(CAP_PERFMON) || ours.has(CAP_SYS_ADMIN)),
    ];
    let missing: Vec<&str> = wanted.iter().filter(|(_, is_there)| !is_there).map(|(name, _)| *name).collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_in(Capabilities(u64::MAX)), None);
        assert_eq!(missing_in(Capabilities::of(&[CAP_SYS_ADMIN, CAP_NET_ADMIN])), None);
        assert_eq!(missing_in(Capabilities::of(&[CAP_BPF, CAP_PERFMON])).as_deref(), Some("CAP_NET_ADMIN"));
        assert_eq!(missing_in(Capabilities::of(&[])).as_deref(), Some("CAP_BPF and CAP_NET_ADMIN and CAP_PERFMON"));
    }
}
