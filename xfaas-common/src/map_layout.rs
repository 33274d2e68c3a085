//! The eBPF maps: names, sizes, keys and values, for the kernel programs and the loader alike. DESIGN.md section 5.

use crate::drop_reason::DropReason;
use crate::limits::{CORES_MAX, SLOTS};

pub const MAP_CONFIG: &str = "CONFIG";
pub const MAP_KEYS: &str = "KEYS";
pub const MAP_SLOT_TO_CORE: &str = "SLOT_TO_CORE";
pub const MAP_PINS: &str = "PINS";
pub const MAP_FLOWS: &str = "FLOWS";
pub const MAP_CPUS: &str = "CPUS";
pub const MAP_UDP_SOCKETS: &str = "UDP_SOCKETS";
pub const MAP_TCP_SOCKETS: &str = "TCP_SOCKETS";
pub const MAP_COUNTERS: &str = "COUNTERS";
pub const MAP_EVENTS: &str = "EVENTS";

pub const PROGRAM_XDP: &str = "xfaas_xdp";
pub const PROGRAM_TC: &str = "xfaas_tc";
pub const PROGRAM_REUSEPORT_UDP: &str = "xfaas_reuseport_udp";
pub const PROGRAM_REUSEPORT_TCP: &str = "xfaas_reuseport_tcp";

pub const SLOT_TO_CORE_ENTRIES: u32 = SLOTS as u32;
pub const PINS_ENTRIES: u32 = 4_096;
pub const FLOWS_ENTRIES: u32 = 65_536;
pub const CPUS_ENTRIES: u32 = 256;
pub const SOCKETS_ENTRIES: u32 = CORES_MAX as u32;
/// Frames a CPU's queue holds before the kernel drops.
pub const CPUMAP_QUEUE_FRAMES: u32 = 2_048;
pub const EVENTS_BYTES: u32 = 256 << 10;

/// Entry 0 of `CONFIG`: what the programs must know of this process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteerConfig {
    /// UDP port of datagrams, host order.
    pub udp_port: u16,
    /// TCP port of HTTP, host order.
    pub tcp_port: u16,
    /// Shards, 1..=CORES_MAX.
    pub cores: u16,
    /// 1: every 1024th verdict leaves an event in `EVENTS`.
    pub sample_events: u16,
    /// Entry `i`: CPU number of `CoreIndex(i)`.
    pub cpu_of_core: [u16; CORES_MAX],
}
const _: () = assert!(size_of::<SteerConfig>() == 8 + 2 * CORES_MAX);

/// A TCP 4-tuple, addresses in network order, IPv4 as ::ffff:a.b.c.d; ports in network order. Padding is explicit and zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
}
const _: () = assert!(size_of::<FlowKey>() == 36);
const _: () = assert!(align_of::<FlowKey>() == 1);

/// Key of `PINS`: a session ID, zero-padded.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PinKey {
    pub padded: [u8; 64],
    pub length: u8,
    pub pad: [u8; 7],
}
const _: () = assert!(size_of::<PinKey>() == 72);

/// What the programs count, one `u64` a CPU; the position is the index in `COUNTERS`. Drop reasons follow after `Verdict::ALL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// Not ours: other protocols, ports, fragments; passed untouched.
    Foreign = 0,
    /// UDP datagram redirected to the owner's CPU.
    UdpRedirected = 1,
    /// UDP datagram already on the owner's CPU.
    UdpLocal = 2,
    /// TCP segment of a known flow redirected to the owner's CPU.
    TcpFlowRedirected = 3,
    /// TCP segment of a known flow, already on the owner's CPU.
    TcpFlowLocal = 4,
    /// A TCP segment in which the session header was found: the flow is now known.
    TcpFlowLearned = 5,
    /// TCP segment of our port without a known flow or session header: passed.
    TcpUnknown = 6,
    /// The redirect failed: passed instead.
    RedirectFailed = 7,
    /// `sk_reuseport` chose the owner's UDP socket.
    ReuseportUdp = 8,
    /// `sk_reuseport` chose the TCP socket of the CPU that handles the SYN.
    ReuseportTcp = 9,
    /// `sk_reuseport` could not choose: the kernel's own choice stands.
    ReuseportFallback = 10,
    /// The TC program assigned the owner's socket.
    TcAssigned = 11,
    /// IP fragment of our port: passed to the stack, which puts it together.
    Fragment = 12,
}

impl Verdict {
    pub const ALL: [Verdict; 13] = [
        Verdict::Foreign,
        Verdict::UdpRedirected,
        Verdict::UdpLocal,
        Verdict::TcpFlowRedirected,
        Verdict::TcpFlowLocal,
        Verdict::TcpFlowLearned,
        Verdict::TcpUnknown,
        Verdict::RedirectFailed,
        Verdict::ReuseportUdp,
        Verdict::ReuseportTcp,
        Verdict::ReuseportFallback,
        Verdict::TcAssigned,
        Verdict::Fragment,
    ];

    /// The `verdict` label in `/metrics`.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Foreign => "foreign",
            Verdict::UdpRedirected => "udp_redirected",
            Verdict::UdpLocal => "udp_local",
            Verdict::TcpFlowRedirected => "tcp_flow_redirected",
            Verdict::TcpFlowLocal => "tcp_flow_local",
            Verdict::TcpFlowLearned => "tcp_flow_learned",
            Verdict::TcpUnknown => "tcp_unknown",
            Verdict::RedirectFailed => "redirect_failed",
            Verdict::ReuseportUdp => "reuseport_udp",
            Verdict::ReuseportTcp => "reuseport_tcp",
            Verdict::ReuseportFallback => "reuseport_fallback",
            Verdict::TcAssigned => "tc_assigned",
            Verdict::Fragment => "fragment",
        }
    }
}

const _: () = {
    let mut i = 0;
    while i < Verdict::ALL.len() {
        assert!(Verdict::ALL[i] as usize == i, "the position is the counter's index");
        i += 1;
    }
};

/// Entries of `COUNTERS`.
pub const COUNTERS_ENTRIES: u32 = (Verdict::ALL.len() + DropReason::ALL.len()) as u32;

/// Index in `COUNTERS` of a drop reason.
pub const fn drop_counter(reason: DropReason) -> u32 {
    Verdict::ALL.len() as u32 + reason as u32
}

#[cfg(feature = "user")]
mod pod {
    use super::{FlowKey, PinKey, SteerConfig};
    use crate::hash::HashKeys;

    // SAFETY: `repr(C)`, integers only, and the size assertion above proves there is no padding, so every bit pattern is a value.
    unsafe impl aya::Pod for SteerConfig {}
    // SAFETY: bytes only, size asserted to be the sum of the fields, so every bit pattern is a value and nothing is uninitialised.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: bytes only, the padding is a named field, size asserted.
    unsafe impl aya::Pod for PinKey {}
    // SAFETY: one array of `u64`, size asserted next to the struct.
    unsafe impl aya::Pod for HashKeys {}
}
