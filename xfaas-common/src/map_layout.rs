//! The eBPF maps: names, sizes, keys and values, for the kernel programs and the loader alike.

use core::net::{IpAddr, SocketAddr};

use crate::drop_reason::DropReason;
use crate::ids::{SessionId, SlotIndex};
use crate::limits::{CORES_MAX, SESSION_ID_BYTES_MAX, SLOTS};

/// One `SteerConfig`.
pub const MAP_CONFIG: &str = "CONFIG";
/// One `HashKeys`, of the session hash.
pub const MAP_KEYS: &str = "KEYS";
/// `SlotIndex` -> `CoreIndex` of the slot's owner, a `u16`.
pub const MAP_SLOT_TO_CORE: &str = "SLOT_TO_CORE";
/// `PinKey` -> `CoreIndex`, a `u32`: sessions and aliases whose packets go elsewhere than their slot says.
pub const MAP_PINS: &str = "PINS";
/// `FlowKey` -> `CoreIndex`, a `u32`: connections whose session is known.
pub const MAP_FLOWS: &str = "FLOWS";
/// CPU number -> that CPU's queue of redirected frames.
pub const MAP_CPUS: &str = "CPUS";
/// `CoreIndex` -> the shard's datagram socket.
pub const MAP_UDP_SOCKETS: &str = "UDP_SOCKETS";
/// `CoreIndex` -> the shard's listening socket.
pub const MAP_TCP_SOCKETS: &str = "TCP_SOCKETS";
/// A count of each CPU for each `Verdict`, then for each `DropReason`.
pub const MAP_COUNTERS: &str = "COUNTERS";
/// A ring of `SteerEvent`.
pub const MAP_EVENTS: &str = "EVENTS";
/// Of each CPU: where a segment's head is copied to, to be searched for the session header.
pub const MAP_HEADS: &str = "HEADS";
/// When the last packet of a kind came: `slot_stamp`, `port_stamp`.
pub const MAP_STAMPS: &str = "STAMPS";
/// `CoreIndex` -> `Inflow`.
pub const MAP_INFLOWS: &str = "INFLOWS";

/// At the interface, before the stack.
pub const PROGRAM_XDP: &str = "xfaas_xdp";
/// At the interface's ingress, within the stack.
pub const PROGRAM_TC: &str = "xfaas_tc";
/// Where the kernel chooses one of the shards' datagram sockets.
pub const PROGRAM_REUSEPORT_UDP: &str = "xfaas_reuseport_udp";
/// Where it chooses one of their listening sockets.
pub const PROGRAM_REUSEPORT_TCP: &str = "xfaas_reuseport_tcp";

pub const SLOT_TO_CORE_ENTRIES: u32 = SLOTS as u32;
/// Pins that the kernel knows; of more, those used last.
pub const PINS_ENTRIES: u32 = 4_096;
/// Connections that it knows; of more, those used last.
pub const FLOWS_ENTRIES: u32 = 65_536;
/// One more than the largest CPU number a shard may be pinned to.
pub const CPUS_ENTRIES: u32 = 1_024;
/// One a shard.
pub const SOCKETS_ENTRIES: u32 = CORES_MAX as u32;
/// Frames a CPU's queue holds before the kernel drops.
pub const CPUMAP_QUEUE_FRAMES: u32 = 2_048;
/// Bytes of the ring; an event that finds no room is lost.
pub const EVENTS_BYTES: u32 = 256 << 10;
/// Times of the last packets, nanoseconds of the monotonic clock, while `SteerConfig::stamps` is not 0. User space maps it.
pub const STAMPS_ENTRIES: u32 = 2 * SLOTS as u32;

/// The entry of `STAMPS` for datagrams whose session is of this slot.
#[inline(always)]
pub const fn slot_stamp(slot: SlotIndex) -> u32 {
    slot.0 as u32
}

/// The entry of `STAMPS` for segments with a payload that come from this port: two clients may share one.
#[inline(always)]
pub const fn port_stamp(source_port: u16) -> u32 {
    SLOTS as u32 + source_port as u32 % SLOTS as u32
}

/// The HTTP header that names the session, unless the configuration names another.
pub const SESSION_HEADER_DEFAULT: &str = "x-session-id";
/// Bytes of a session header's name which the programs can look for; a longer name is found by user space only.
pub const SESSION_HEADER_BYTES_MAX: usize = 39;
/// Words that hold a name of that length and its colon.
pub const HEADER_WORDS: usize = (SESSION_HEADER_BYTES_MAX + 1) / 8;

/// A header's name and its colon, prepared for comparing eight bytes at once: a text matches where
/// `(text | fold) & care == want` in every word. Words are little-endian; unused bytes are zero in all three.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderPattern {
    /// The name in lower case and the colon.
    pub want: [u64; HEADER_WORDS],
    /// 0xFF where a byte of the name or the colon is.
    pub care: [u64; HEADER_WORDS],
    /// 0x20 where a letter is: the bit that turns an upper-case letter into a lower-case one.
    pub fold: [u64; HEADER_WORDS],
    /// Bytes of the name and the colon; 0 means that nothing matches.
    pub bytes: u64,
}
const _: () = assert!(size_of::<HeaderPattern>() == 8 * (3 * HEADER_WORDS + 1));

impl HeaderPattern {
    /// Matches nothing: TCP segments are then steered only by the flows that user space remembers.
    pub const NONE: HeaderPattern = HeaderPattern { want: [0; HEADER_WORDS], care: [0; HEADER_WORDS], fold: [0; HEADER_WORDS], bytes: 0 };

    /// Input: a header's name in any case. Output: `None` when it is empty, longer than 39 bytes, or holds a byte that no header name
    /// has (RFC 9110, section 5.6.2).
    pub const fn new(name: &[u8]) -> Option<HeaderPattern> {
        if name.is_empty() || name.len() > SESSION_HEADER_BYTES_MAX {
            return None;
        }
        let mut pattern = HeaderPattern::NONE;
        let mut i = 0;
        while i <= name.len() {
            let byte = if i == name.len() { b':' } else { name[i].to_ascii_lowercase() };
            if i < name.len() && !is_token_byte(byte) {
                return None;
            }
            let shift = 8 * (i % 8);
            pattern.want[i / 8] |= (byte as u64) << shift;
            pattern.care[i / 8] |= 0xFF << shift;
            if byte.is_ascii_lowercase() {
                pattern.fold[i / 8] |= 0x20 << shift;
            }
            i += 1;
        }
        pattern.bytes = name.len() as u64 + 1;
        Some(pattern)
    }
}

const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// In `SteerConfig::core_of_cpu`: no shard runs on this CPU.
pub const CORE_NONE: u16 = u16::MAX;

/// A socket of ours, as packets are told by it. Addresses are as in `FlowKey`, each half a little-endian word.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// What a destination has in the bits of `care`.
    pub want: [u64; 2],
    /// All bits of one address, those that say IPv4, or none.
    pub care: [u64; 2],
    /// Host order; 0: nothing comes here.
    pub port: u64,
}
const _: () = assert!(size_of::<Listen>() == 40);

impl Listen {
    pub const NOWHERE: Listen = Listen { want: [0; 2], care: [0; 2], port: 0 };

    /// `0.0.0.0` takes what is sent to any IPv4 address, `[::]` everything (its sockets are of both families), and any other address itself.
    pub fn on(address: SocketAddr) -> Listen {
        // Of ::ffff:a.b.c.d the bytes that say that it is one.
        const IS_V4: [u64; 2] = [u64::MAX, 0xFFFF_FFFF];
        let ip = address.ip().to_canonical();
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let [low, high] = core::array::from_fn(|half| octets[8 * half..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)));
        let care = match (ip.is_unspecified(), ip.is_ipv4()) {
            (false, _) => [u64::MAX; 2],
            (true, true) => IS_V4,
            (true, false) => [0; 2],
        };
        Listen { want: [low & care[0], high & care[1]], care, port: u64::from(address.port()) }
    }

    /// Input: a packet's destination and its port, host order.
    #[inline(always)]
    pub const fn takes(&self, destination: &[u64; 2], port: u16) -> bool {
        let differs = (destination[0] & self.care[0] ^ self.want[0]) | (destination[1] & self.care[1] ^ self.want[1]);
        port != 0 && self.port == port as u64 && differs == 0
    }
}

/// Where this process listens.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listens {
    /// For datagrams.
    pub udp: Listen,
    /// For HTTP.
    pub tcp: Listen,
}
const _: () = assert!(size_of::<Listens>() == 80);

/// Entry 0 of `CONFIG`: what the programs must know of this process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteerConfig {
    pub listens: Listens,
    /// Shards, 1..=CORES_MAX.
    pub cores: u16,
    /// 1: XDP runs in the stack, where several datagrams may come as one packet that does not say so.
    pub merges: u16,
    /// 0.
    pub pad: u16,
    /// 1: every 1024th packet of a verdict leaves an event in `EVENTS`.
    pub sample_events: u16,
    /// 0: `PINS` is empty, so nobody has to look.
    pub pins: u64,
    /// 0: nobody reads `STAMPS`, so nothing is written there.
    pub stamps: u64,
    /// The session header.
    pub header: HeaderPattern,
    /// Entry `i`: CPU number of `CoreIndex(i)`.
    pub cpu_of_core: [u16; CORES_MAX],
    /// Entry `i`: the shard on CPU number `i`, or `CORE_NONE`.
    pub core_of_cpu: [u16; CPUS_ENTRIES as usize],
}
const _: () =
    assert!(size_of::<SteerConfig>() == 24 + size_of::<Listens>() + size_of::<HeaderPattern>() + 2 * CORES_MAX + 2 * CPUS_ENTRIES as usize);

/// Entry `i` of `INFLOWS`: how full the queue of datagrams of core `i` is, from XDP to the shard. User space maps it; each side writes a cache
/// line of its own.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Inflow {
    /// Datagrams that XDP let in since it was loaded.
    pub admitted: u64,
    /// `taken` as it was when a datagram was last turned away, since when it is the same, and when the next one is let in to wake the shard.
    pub stuck_at: u64,
    /// Nanoseconds of the monotonic clock.
    pub stuck_since_ns: u64,
    /// Nanoseconds of the monotonic clock.
    pub knock_at_ns: u64,
    pad: [u64; 4],
    /// Of these, how many the shard has taken. Some are lost between, so that the shard catches up when its socket is empty.
    pub taken: u64,
    /// How many may be on their way; 0: any number.
    pub limit: u64,
    rest: [u64; 6],
}
const _: () = assert!(size_of::<Inflow>() == 8 * INFLOW_WORDS);
/// One a shard.
pub const INFLOWS_ENTRIES: u32 = CORES_MAX as u32;
/// An entry in words of eight bytes, and which of them is which.
pub const INFLOW_WORDS: usize = 16;
pub const INFLOW_ADMITTED: usize = core::mem::offset_of!(Inflow, admitted) / 8;
pub const INFLOW_STUCK_AT: usize = core::mem::offset_of!(Inflow, stuck_at) / 8;
pub const INFLOW_STUCK_SINCE_NS: usize = core::mem::offset_of!(Inflow, stuck_since_ns) / 8;
pub const INFLOW_KNOCK_AT_NS: usize = core::mem::offset_of!(Inflow, knock_at_ns) / 8;
pub const INFLOW_TAKEN: usize = core::mem::offset_of!(Inflow, taken) / 8;
pub const INFLOW_LIMIT: usize = core::mem::offset_of!(Inflow, limit) / 8;
/// A core that has taken nothing for so long gets one datagram beyond its limit: what was let in may be lost on the way, and the shard asleep. The next
/// one when it has taken nothing for twice as long, and so on.
pub const INFLOW_KNOCK_NS: u64 = 10_000_000;

/// A TCP 4-tuple, addresses in network order, IPv4 as ::ffff:a.b.c.d; ports in network order. No padding; aligned for whole-word access.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The client's.
    pub source: [u8; 16],
    /// Ours.
    pub destination: [u8; 16],
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
}
const _: () = assert!(size_of::<FlowKey>() == 36);

/// Key of `PINS`: a session ID, zero-padded. Aligned for whole-word access.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PinKey {
    pub padded: [u8; 64],
    /// Bytes of the ID, 1..=64.
    pub length: u8,
    /// 0.
    pub pad: [u8; 7],
}
const _: () = assert!(size_of::<PinKey>() == 72);
const _: () = assert!(SESSION_ID_BYTES_MAX == 64, "the length of `PinKey::padded`");

impl PinKey {
    /// The key of `session`, or of an alias.
    pub const fn new(session: &SessionId) -> PinKey {
        PinKey { padded: *session.padded(), length: session.length(), pad: [0; 7] }
    }
}

/// A sampled verdict, as it lies in `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteerEvent {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// How often this CPU had counted it, this packet included.
    pub count: u64,
    /// Index in `COUNTERS`: a verdict, or a drop reason behind `Verdict::ALL`.
    pub counter: u32,
    /// CPU number on which the program ran.
    pub cpu: u32,
}
const _: () = assert!(size_of::<SteerEvent>() == 24);

/// What the programs count, one `u64` a CPU; the position is the index in `COUNTERS`. Drop reasons follow after `Verdict::ALL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// Not ours: other protocols, ports, addresses, hosts; passed untouched.
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
    /// Several datagrams in one packet (`UDP_SEGMENT`, GRO), or what may be such: passed to the stack, which takes them apart.
    Merged = 11,
    /// A fragment of a UDP or TCP packet, of any port, as later fragments carry none: passed to the stack, which puts it together.
    Fragment = 12,
    /// A packet to our sockets whose lengths contradict each other: passed to the stack, which decides.
    Inconsistent = 13,
    /// A datagram, or a segment of a known flow, whose owner sits on another CPU, at a hook that cannot move it: passed.
    Unmoved = 14,
    /// A datagram for a core whose queue is full, which the program answered.
    Shed = 15,
    /// The same, where it could not: it went to many hosts, or the frame has no room for the answer.
    ShedSilently = 16,
}

impl Verdict {
    /// Each one, in the order of `COUNTERS`.
    pub const ALL: [Verdict; 17] = [
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
        Verdict::Merged,
        Verdict::Fragment,
        Verdict::Inconsistent,
        Verdict::Unmoved,
        Verdict::Shed,
        Verdict::ShedSilently,
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
            Verdict::Merged => "merged",
            Verdict::Fragment => "fragment",
            Verdict::Inconsistent => "inconsistent",
            Verdict::Unmoved => "unmoved",
            Verdict::Shed => "shed",
            Verdict::ShedSilently => "shed_silently",
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

    // SAFETY: `repr(C)`, integers only, and the size assertion next to the struct proves there is no padding, so every bit pattern is a value.
    unsafe impl aya::Pod for SteerConfig {}
    // SAFETY: bytes only, size asserted to be the sum of the fields, so every bit pattern is a value and nothing is uninitialised.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: bytes only, the padding is a named field, and the asserted size (a multiple of the alignment) is the sum of the fields.
    unsafe impl aya::Pod for PinKey {}
    // SAFETY: one array of `u64`, size asserted next to the struct.
    unsafe impl aya::Pod for HashKeys {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the programs read an address.
    fn halves(ip: &str) -> [u64; 2] {
        let octets = match ip.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        core::array::from_fn(|half| u64::from_le_bytes(*octets[8 * half..].first_chunk().unwrap()))
    }

    #[test]
    fn a_socket_takes_what_is_sent_to_its_address_and_port() {
        let destinations = ["10.0.0.1", "10.0.0.2", "0.0.0.0", "fd00::1", "fd00::2", "::1", "::"];
        let cases: [(&str, &[&str]); 7] = [
            ("10.0.0.1:80", &["10.0.0.1"]),
            ("[::ffff:10.0.0.1]:80", &["10.0.0.1"]),
            ("0.0.0.0:80", &["10.0.0.1", "10.0.0.2", "0.0.0.0"]),
            ("[::ffff:0.0.0.0]:80", &["10.0.0.1", "10.0.0.2", "0.0.0.0"]),
            ("[fd00::1]:80", &["fd00::1"]),
            ("[::1]:80", &["::1"]),
            ("[::]:80", &destinations),
        ];
        for (address, taken) in cases {
            let listen = Listen::on(address.parse().unwrap());
            for destination in destinations {
                assert_eq!(listen.takes(&halves(destination), 80), taken.contains(&destination), "{destination} on {address}");
                assert!(!listen.takes(&halves(destination), 81), "{destination} on {address}");
            }
        }
        for port in [0, 80] {
            assert!(!Listen::NOWHERE.takes(&halves("10.0.0.1"), port));
            assert!(!Listen::on("[::]:0".parse().unwrap()).takes(&halves("10.0.0.1"), port));
        }
    }

    #[test]
    fn header_pattern_folds_letters_only() {
        let pattern = HeaderPattern::new(b"X-Session-Id").unwrap();
        assert_eq!(pattern.bytes, 13);
        assert_eq!(pattern.want[0], u64::from_le_bytes(*b"x-sessio"));
        assert_eq!(pattern.want[1], u64::from_le_bytes(*b"n-id:\0\0\0"));
        assert_eq!(pattern.fold[0], u64::from_le_bytes([0x20, 0, 0x20, 0x20, 0x20, 0x20, 0x20, 0x20]));
        assert_eq!(pattern.care[1], 0x00FF_FFFF_FFFF);
        assert_eq!(Some(pattern), HeaderPattern::new(SESSION_HEADER_DEFAULT.as_bytes()));
    }

    #[test]
    fn header_pattern_takes_names_of_1_to_39_token_bytes() {
        assert!(HeaderPattern::new(b"").is_none());
        assert!(HeaderPattern::new(b"a b").is_none());
        assert!(HeaderPattern::new(b"a:").is_none());
        assert!(HeaderPattern::new(&[b'a'; 40]).is_none());
        assert_eq!(HeaderPattern::new(&[b'a'; 39]).unwrap().bytes, 40);
    }
}
