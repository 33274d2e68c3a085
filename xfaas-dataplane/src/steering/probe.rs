//! What `xfaas doctor` asks about steering: can this process use it, does the kernel take the programs. Attaches nothing.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;

use xfaas_common::hash::{HASH_KEYS, HashKeys};
use xfaas_common::limits::SLOTS;
use xfaas_common::map_layout::SESSION_HEADER_DEFAULT;

use super::bench::{SteerBench, SteerBenchOptions};
use super::rights;
use crate::sys::interface;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub name: &'static str,
    pub is_ok: bool,
    /// What was found, and what to do about it when it is not well.
    pub advice: String,
}

impl Probe {
    fn good(name: &'static str, found: impl Into<String>) -> Probe {
        Probe { name, is_ok: true, advice: found.into() }
    }

    fn bad(name: &'static str, advice: impl Into<String>) -> Probe {
        Probe { name, is_ok: false, advice: advice.into() }
    }
}

/// Input: the compiled programs; the interface is the doctor's to look at. Cost: some ten milliseconds, for the verifier.
pub fn probe(ebpf_object: &[u8]) -> Vec<Probe> {
    let missing = rights::missing();
    let mut probes = vec![match &missing {
        None => Probe::good("steering capabilities", "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are there"),
        Some(missing) => Probe::bad("steering capabilities", format!("without {missing} only `--steering off` works: run as root")),
    }];
    probes.push(if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Probe::good("kernel type information", "/sys/kernel/btf/vmlinux is there")
    } else {
        Probe::bad("kernel type information", "use a kernel built with CONFIG_DEBUG_INFO_BTF=y")
    });
    if missing.is_none() {
        probes.push(verifier(ebpf_object));
    }
    probes
}

/// In this network namespace.
pub fn interface_exists(iface: &str) -> bool {
    interface::index(iface).is_ok()
}

/// True when the interface has an XDP program, in any mode, beside which the kernel attaches none of ours. Errors: the kernel did not say.
pub fn is_xdp_taken(iface: &str) -> std::io::Result<bool> {
    interface::has_xdp_program(interface::index(iface)?)
}

fn verifier(ebpf_object: &[u8]) -> Probe {
    let name = "kernel programs";
    let nowhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let options = SteerBenchOptions {
        udp: nowhere,
        tcp: nowhere,
        cpus: &[0],
        slot_to_core: &[0; SLOTS],
        keys: &HashKeys { keys: [0; HASH_KEYS] },
        session_header: SESSION_HEADER_DEFAULT.as_bytes(),
    };
    match SteerBench::load(ebpf_object, &options) {
        Ok(_) => Probe::good(name, "the kernel takes them"),
        Err(error) => Probe::bad(name, error.in_one_line()),
    }
}
