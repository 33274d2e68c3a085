//! What this process may do. Reads `/proc`; asks the kernel nothing.

/// A bit's number in a set, include/uapi/linux/capability.h.
pub type Capability = u32;

pub const CAP_NET_BIND_SERVICE: Capability = 10;
pub const CAP_NET_ADMIN: Capability = 12;
pub const CAP_IPC_LOCK: Capability = 14;
pub const CAP_SYS_ADMIN: Capability = 21;
pub const CAP_PERFMON: Capability = 38;
pub const CAP_BPF: Capability = 39;

/// A set of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    pub fn of(all: &[Capability]) -> Capabilities {
        Capabilities(all.iter().fold(0, |set, one| set | 1 << one))
    }

    pub fn has(self, one: Capability) -> bool {
        self.0 >> one & 1 == 1
    }
}

/// Those that count when this process asks for something; none where `/proc` does not say.
pub fn effective() -> Capabilities {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_in(&status).unwrap_or(Capabilities(0))
}

/// Input: `/proc/self/status`.
fn effective_in(status: &str) -> Option<Capabilities> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok().map(Capabilities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_set_is_read_from_the_status_file() {
        let set = effective_in("Name:\tx\nCapPrm:\t0000000000000001\nCapEff:\t000001ffffffffff\n");
        assert_eq!(set, Some(Capabilities(0x1ff_ffff_ffff)));
        assert_eq!(effective_in("Name:\tx\n"), None);
    }

    #[test]
    fn a_set_has_what_it_was_made_of() {
        let set = Capabilities::of(&[CAP_BPF, CAP_NET_ADMIN]);
        assert_eq!((set.has(CAP_BPF), set.has(CAP_NET_ADMIN), set.has(CAP_SYS_ADMIN)), (true, true, false));
    }
}
