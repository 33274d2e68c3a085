//! A frame becomes a datagram with its session, a TCP segment with its flow, or the reason why it is neither.
//! Called by the entry points and by user-space tests. Never calls a helper or a map. Every byte here is hostile.
//!
//! The verifier accepts a packet read when the pointer that is read through was itself compared with the packet's end. So a position is
//! one pointer (`Cursor`), compared once per header (`Window`), and the compiler is kept from splitting it into base and offset.

use core::marker::PhantomData;
use core::mem::offset_of;

use network_types::eth::{EthHdr, EtherType};
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;
use xfaas_common::drop_reason::DropReason;
use xfaas_common::map_layout::{FlowKey, Listen, Listens};

use crate::session::{Fault, SessionWords, Source, request_session};

/// Bytes of a VLAN tag, IEEE 802.1Q clause 9.
const VLAN_TAG_BYTES: usize = 4;
/// "More fragments" and the fragment offset, RFC 791 section 3.1.
const FRAGMENT_BITS: u16 = 0x3FFF;
/// An IPv6 fragment header, RFC 8200 section 4.5; its first byte names the protocol of what was cut.
const FRAGMENT_HEADER_BYTES: usize = 8;
/// Where TCP keeps its header's length (upper half of the byte, in 32-bit words) and its flags, RFC 9293 section 3.1.
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;

/// What becomes of the packets that are ours. A trait and not a result with everything in it: what `parse` found is built once, where it
/// is used, because copies are what costs in a kernel program, and its stack has 512 bytes.
pub trait Handler {
    type Output;

    /// A well-formed request datagram.
    fn datagram(self, place: &Place, session: &SessionWords) -> Self::Output;

    /// A datagram that breaks the rules of CONTRACT.md section 2.
    fn malformed(self, place: &Place, reason: DropReason) -> Self::Output;

    /// A TCP segment to our socket.
    fn segment(self, flow: &FlowKey, segment: Segment) -> Self::Output;
}

/// What is not given to a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// Not UDP or TCP to our sockets.
    Foreign,
    /// A fragment of a UDP or TCP packet.
    Fragment,
    /// To our sockets, but its lengths contradict each other: the stack decides.
    Inconsistent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// SYN is set: what was known of this flow is over.
    pub starts: bool,
    /// FIN or RST is set.
    pub ends: bool,
    /// Where the payload begins, in bytes from the frame's first.
    pub payload_offset: u32,
    /// Bytes of payload, 0..=65,515.
    pub payload_bytes: u32,
}

/// Where a datagram's headers lie, in bytes from the frame's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub network: u32,
    pub transport: u32,
    pub is_v6: bool,
}

/// A frame, from its first byte of Ethernet (or of UDP, in `datagram_session`).
pub struct Packet<'a> {
    data: *const u8,
    end: *const u8,
    /// Bytes of the frame, where some of them may lie beyond `end` (socket buffers); `None` when all lie before it.
    bytes: Option<u32>,
    lifetime: PhantomData<&'a [u8]>,
}

impl<'a> Packet<'a> {
    /// Input: the context's `data` and `data_end`, and the frame's length where the context has bytes beyond `data_end`.
    ///
    /// # Safety
    /// `data..end` must be readable, and not be written, for `'a`.
    #[inline(always)]
    pub const unsafe fn new(data: usize, end: usize, bytes: Option<u32>) -> Packet<'a> {
        Packet { data: data as *const u8, end: end as *const u8, bytes, lifetime: PhantomData }
    }

    /// The same over a slice, for user space.
    pub fn of(frame: &'a [u8]) -> Packet<'a> {
        let range = frame.as_ptr_range();
        Packet { data: range.start, end: range.end, bytes: None, lifetime: PhantomData }
    }

    /// As `of`, of a frame whose first bytes only are readable: `bytes` is the length of the whole.
    pub fn of_head(frame: &'a [u8], bytes: u32) -> Packet<'a> {
        Packet { bytes: Some(bytes), ..Packet::of(frame) }
    }

    #[inline(always)]
    fn cursor(&self) -> Cursor<'a> {
        Cursor { at: self.data, end: self.end, lifetime: PhantomData }
    }

    /// True when the frame has `bytes` more bytes from `cursor` on, which stands at `offset`.
    #[inline(always)]
    fn reaches(&self, cursor: Cursor<'a>, offset: u32, bytes: u32) -> bool {
        match self.bytes {
            Some(frame_bytes) => offset + bytes <= frame_bytes,
            None => cursor.at.wrapping_add(bytes as usize) <= cursor.end,
        }
    }
}

/// A place in a packet, anywhere: reads go through `window`.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    at: *const u8,
    end: *const u8,
    lifetime: PhantomData<&'a [u8]>,
}

impl<'a> Cursor<'a> {
    /// Moves on; also over the packet's end, where no window opens.
    #[inline(always)]
    fn skip(self, bytes: u32) -> Cursor<'a> {
        Cursor { at: whole_pointer(self.at.wrapping_add(bytes as usize)), ..self }
    }

    /// The next `N` bytes, or `None` when the packet ends before.
    #[inline(always)]
    fn window<const N: usize>(self) -> Option<Window<'a, N>> {
        if self.at.wrapping_add(N) > self.end {
            return None;
        }
        Some(Window { at: self.at, lifetime: PhantomData })
    }
}

impl Source for Cursor<'_> {
    #[inline(always)]
    fn word(&self, offset: u32) -> Option<u64> {
        Some(self.skip(offset).window::<8>()?.u64::<0>())
    }
}

/// `N` readable bytes of a packet; offsets are checked when the program is compiled.
struct Window<'a, const N: usize> {
    at: *const u8,
    lifetime: PhantomData<&'a [u8]>,
}

impl<const N: usize> Window<'_, N> {
    #[inline(always)]
    fn u8<const AT: usize>(&self) -> u8 {
        const { assert!(AT < N) };
        // SAFETY: `window` saw that `N` bytes lie between `at` and the packet's end, and `AT < N`; the packet outlives the lifetime.
        unsafe { load_u8(self.at.wrapping_add(AT)) }
    }

    /// In the order of the machine, as it lies there.
    #[inline(always)]
    fn u16<const AT: usize>(&self) -> u16 {
        const { assert!(AT + 2 <= N) };
        // SAFETY: `window` saw `N` bytes before the packet's end, and this read ends at `AT + 2 <= N`; alignment is not asked for.
        unsafe { load_u16(self.at.wrapping_add(AT)) }
    }

    /// Little-endian, as is every wider read here.
    #[inline(always)]
    fn u32<const AT: usize>(&self) -> u32 {
        const { assert!(AT + 4 <= N) };
        // SAFETY: `window` saw `N` bytes before the packet's end, and this read ends at `AT + 4 <= N`; alignment is not asked for.
        u32::from_le(unsafe { load_u32(self.at.wrapping_add(AT)) })
    }

    #[inline(always)]
    fn u64<const AT: usize>(&self) -> u64 {
        const { assert!(AT + 8 <= N) };
        // SAFETY: `window` saw `N` bytes before the packet's end, and this read ends at `AT + 8 <= N`; alignment is not asked for.
        u64::from_le(unsafe { load_u64(self.at.wrapping_add(AT)) })
    }
}

/// What the network layer says of the packet it carries.
struct Network<'a> {
    transport: Cursor<'a>,
    /// Of the network header, and of `transport`, in bytes from the frame's first.
    begin: u32,
    offset: u32,
    is_v6: bool,
    protocol: u8,
    /// Bytes of the transport header and payload, as the network header says.
    bytes: u32,
    /// The addresses' halves, little-endian.
    source: [u64; 2],
    destination: [u64; 2],
}

/// Input: a frame from its Ethernet header on. Output: the handler's, or what the frame is when it is not for a handler.
/// Cost: no loop but two VLAN tags and the eight words of a session ID.
#[inline(always)]
pub fn parse<H: Handler>(packet: &Packet<'_>, listens: &Listens, handler: H) -> Result<H::Output, Other> {
    let Some((ether_type, cursor, offset)) = link(packet) else { return Err(Other::Foreign) };
    let network = if ether_type == EtherType::Ipv4 as u16 {
        ipv4(cursor, offset)?
    } else if ether_type == EtherType::Ipv6 as u16 {
        ipv6(cursor, offset)?
    } else {
        return Err(Other::Foreign);
    };
    if network.protocol == IpProto::Udp as u8 {
        udp(packet, &network, &listens.udp, handler)
    } else if network.protocol == IpProto::Tcp as u8 {
        tcp(packet, &network, &listens.tcp, handler)
    } else {
        Err(Other::Foreign)
    }
}

/// The session of a request datagram of which `packet` holds the UDP header and what follows, as `sk_reuseport` programs see it.
#[inline(always)]
pub fn datagram_session(packet: &Packet<'_>, session: &mut SessionWords) -> Result<(), Fault> {
    let cursor = packet.cursor();
    let Some(header) = cursor.window::<{ UdpHdr::LEN }>() else { return Err(Fault::Unreadable) };
    let bytes = u32::from(u16::from_be(header.u16::<{ offset_of!(UdpHdr, len) }>()));
    if bytes < UdpHdr::LEN as u32 {
        return Err(Fault::Unreadable);
    }
    request_session(&cursor.skip(UdpHdr::LEN as u32), bytes - UdpHdr::LEN as u32, session)
}

/// The Ethernet header and up to two VLAN tags. Output: the type of what follows as it lies there, its place and its offset.
#[inline(always)]
fn link<'a>(packet: &Packet<'a>) -> Option<(u16, Cursor<'a>, u32)> {
    let cursor = packet.cursor();
    let mut ether_type = cursor.window::<{ EthHdr::LEN }>()?.u16::<{ offset_of!(EthHdr, ether_type) }>();
    let mut cursor = cursor.skip(EthHdr::LEN as u32);
    let mut offset = EthHdr::LEN as u32;
    for _ in 0..2 {
        if ether_type != EtherType::Ieee8021q as u16 && ether_type != EtherType::Ieee8021ad as u16 {
            break;
        }
        ether_type = cursor.window::<VLAN_TAG_BYTES>()?.u16::<2>();
        cursor = cursor.skip(VLAN_TAG_BYTES as u32);
        offset += VLAN_TAG_BYTES as u32;
    }
    Some((ether_type, cursor, offset))
}

#[inline(always)]
fn ipv4(cursor: Cursor<'_>, offset: u32) -> Result<Network<'_>, Other> {
    let Some(header) = cursor.window::<{ Ipv4Hdr::LEN }>() else { return Err(Other::Foreign) };
    let version_and_length = header.u8::<{ offset_of!(Ipv4Hdr, vihl) }>();
    let header_bytes = u32::from(version_and_length & 0x0F) * 4;
    if version_and_length >> 4 != 4 || header_bytes < Ipv4Hdr::LEN as u32 {
        return Err(Other::Foreign);
    }
    let protocol = header.u8::<{ offset_of!(Ipv4Hdr, proto) }>();
    if header.u16::<{ offset_of!(Ipv4Hdr, frags) }>() & FRAGMENT_BITS.to_be() != 0 {
        return Err(fragment(protocol));
    }
    let total_bytes = u32::from(u16::from_be(header.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>()));
    let source = header.u32::<{ offset_of!(Ipv4Hdr, src_addr) }>();
    let destination = header.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>();
    const MAPPED: u64 = u32::from_le_bytes([0, 0, 0xFF, 0xFF]) as u64; // bytes 8..12 of ::ffff:a.b.c.d
    Ok(Network {
        transport: cursor.skip(header_bytes),
        begin: offset,
        offset: offset + header_bytes,
        is_v6: false,
        protocol,
        // An impossible length becomes 0, which no transport header fits.
        bytes: total_bytes.saturating_sub(header_bytes),
        source: [0, MAPPED | u64::from(source) << 32],
        destination: [0, MAPPED | u64::from(destination) << 32],
    })
}

#[inline(always)]
fn ipv6(cursor: Cursor<'_>, offset: u32) -> Result<Network<'_>, Other> {
    let Some(header) = cursor.window::<{ Ipv6Hdr::LEN }>() else { return Err(Other::Foreign) };
    if header.u8::<0>() >> 4 != 6 {
        return Err(Other::Foreign);
    }
    let transport = cursor.skip(Ipv6Hdr::LEN as u32);
    let protocol = header.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>();
    if protocol == IpProto::Ipv6Frag as u8 {
        let Some(cut) = transport.window::<FRAGMENT_HEADER_BYTES>() else { return Err(Other::Foreign) };
        return Err(fragment(cut.u8::<0>()));
    }
    const SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);
    const DESTINATION: usize = offset_of!(Ipv6Hdr, dst_addr);
    Ok(Network {
        transport,
        begin: offset,
        offset: offset + Ipv6Hdr::LEN as u32,
        is_v6: true,
        protocol,
        bytes: u32::from(u16::from_be(header.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>())),
        source: [header.u64::<SOURCE>(), header.u64::<{ SOURCE + 8 }>()],
        destination: [header.u64::<DESTINATION>(), header.u64::<{ DESTINATION + 8 }>()],
    })
}

#[inline(always)]
fn fragment(protocol: u8) -> Other {
    if protocol == IpProto::Udp as u8 || protocol == IpProto::Tcp as u8 { Other::Fragment } else { Other::Foreign }
}

/// Input: the ports as they lie there, the source's first.
#[inline(always)]
fn flow_key(network: &Network<'_>, ports: u32) -> FlowKey {
    let [a, b, c, d] = ports.to_le_bytes();
    FlowKey { source: address(network.source), destination: address(network.destination), source_port: [a, b], destination_port: [c, d] }
}

#[inline(always)]
fn address(halves: [u64; 2]) -> [u8; 16] {
    let (a, b) = (halves[0].to_le_bytes(), halves[1].to_le_bytes());
    [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]
}

#[inline(always)]
fn udp<H: Handler>(packet: &Packet<'_>, network: &Network<'_>, listen: &Listen, handler: H) -> Result<H::Output, Other> {
    let Some(header) = network.transport.window::<{ UdpHdr::LEN }>() else { return Err(Other::Foreign) };
    if !listen.takes(&network.destination, u16::from_be(header.u16::<{ offset_of!(UdpHdr, dst) }>())) {
        return Err(Other::Foreign);
    }
    let bytes = u32::from(u16::from_be(header.u16::<{ offset_of!(UdpHdr, len) }>()));
    if bytes < UdpHdr::LEN as u32 || bytes != network.bytes || !packet.reaches(network.transport, network.offset, bytes) {
        return Err(Other::Inconsistent);
    }
    let mut session = SessionWords::none();
    let payload_bytes = bytes - UdpHdr::LEN as u32;
    let place = Place { network: network.begin, transport: network.offset, is_v6: network.is_v6 };
    match request_session(&network.transport.skip(UdpHdr::LEN as u32), payload_bytes, &mut session) {
        Ok(()) => Ok(handler.datagram(&place, &session)),
        Err(Fault::Malformed(reason)) => Ok(handler.malformed(&place, reason)),
        Err(Fault::Unreadable) => Err(Other::Inconsistent),
    }
}

#[inline(always)]
fn tcp<H: Handler>(packet: &Packet<'_>, network: &Network<'_>, listen: &Listen, handler: H) -> Result<H::Output, Other> {
    let Some(header) = network.transport.window::<{ TcpHdr::LEN }>() else { return Err(Other::Foreign) };
    if !listen.takes(&network.destination, u16::from_be(header.u16::<{ offset_of!(TcpHdr, dest) }>())) {
        return Err(Other::Foreign);
    }
    let header_bytes = u32::from(header.u8::<TCP_DATA_OFFSET>() >> 4) * 4;
    if header_bytes < TcpHdr::LEN as u32
        || header_bytes > network.bytes
        || !packet.reaches(network.transport, network.offset, network.bytes)
    {
        return Err(Other::Inconsistent);
    }
    let flags = header.u8::<TCP_FLAGS>();
    let segment = Segment {
        starts: flags & TCP_SYN != 0,
        ends: flags & (TCP_FIN | TCP_RST) != 0,
        payload_offset: network.offset + header_bytes,
        payload_bytes: network.bytes - header_bytes,
    };
    Ok(handler.segment(&flow_key(network, header.u32::<{ offset_of!(TcpHdr, source) }>()), segment))
}

/// Makes the compiler take the pointer as one value of unknown origin: else it adds a variable offset twice, once to compare and once to
/// read, and the verifier does not know that both are the same place.
#[inline(always)]
fn whole_pointer(pointer: *const u8) -> *const u8 {
    #[cfg(target_arch = "bpf")]
    {
        let mut pointer = pointer;
        // SAFETY: a move of a register onto itself reads no memory and changes no flag.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) pointer, options(pure, nomem, nostack)) };
        pointer
    }
    #[cfg(not(target_arch = "bpf"))]
    pointer
}

/// A zero of which the compiler does not know that it is one.
#[inline(always)]
pub fn opaque_zero() -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let zero: u64;
        // SAFETY: writes its output register and nothing else.
        unsafe { core::arch::asm!("{0} = 0", out(reg) zero, options(pure, nomem, nostack)) };
        zero
    }
    #[cfg(not(target_arch = "bpf"))]
    0
}

/// One load of a fixed width that asks for no alignment. The BPF backend would read an unaligned word byte by byte, though the kernel
/// allows the whole (on machines that do); so the instruction is written out.
macro_rules! define_load {
    ($name:ident, $type:ty, $instruction:literal) => {
        /// # Safety
        /// The bytes from `at` on must be readable.
        #[inline(always)]
        unsafe fn $name(at: *const u8) -> $type {
            #[cfg(target_arch = "bpf")]
            {
                let value: u64;
                // SAFETY: the caller vouches for the bytes; the instruction writes its output register only.
                unsafe { core::arch::asm!($instruction, out(reg) value, in(reg) at, options(pure, readonly, nostack)) };
                value as $type
            }
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: the caller vouches for the bytes, and the read asks for no alignment.
            unsafe {
                at.cast::<$type>().read_unaligned()
            }
        }
    };
}

define_load!(load_u8, u8, "{0} = *(u8 *)({1} + 0)");
define_load!(load_u16, u16, "{0} = *(u16 *)({1} + 0)");
define_load!(load_u32, u32, "{0} = *(u32 *)({1} + 0)");
define_load!(load_u64, u64, "{0} = *(u64 *)({1} + 0)");

/// Bytes of the per-CPU copy of a payload's beginning.
pub const HEAD_BUFFER_BYTES: usize = HEAD_MASK as usize + 1 + 8;
const HEAD_MASK: u32 = 1_023;

/// The copied beginning of a payload. Any offset may be asked for: it is taken modulo 1024, so no read leaves the buffer.
#[repr(C, align(8))]
pub struct HeadBytes {
    pub bytes: [u8; HEAD_BUFFER_BYTES],
}
const _: () = assert!(size_of::<HeadBytes>() == HEAD_BUFFER_BYTES);

impl HeadBytes {
    /// Eight bytes from `offset` on, little-endian.
    #[inline(always)]
    pub fn word_at(&self, offset: u32) -> u64 {
        let at = masked(self.bytes.as_ptr(), offset);
        // SAFETY: `masked` stays within the first 1024 bytes, and the buffer has eight more behind them.
        u64::from_le(unsafe { load_u64(at) })
    }

    #[inline(always)]
    pub fn byte_at(&self, offset: u32) -> u8 {
        let at = masked(self.bytes.as_ptr(), offset);
        // SAFETY: `masked` stays within the first 1024 bytes of the buffer.
        unsafe { load_u8(at) }
    }
}

impl Source for &HeadBytes {
    #[inline(always)]
    fn word(&self, offset: u32) -> Option<u64> {
        Some(self.word_at(offset))
    }
}

/// `base + offset % 1024`, with the mask where the verifier sees it: the compiler would drop one that it can prove from what the
/// verifier has forgotten.
#[inline(always)]
fn masked(base: *const u8, offset: u32) -> *const u8 {
    #[cfg(target_arch = "bpf")]
    {
        let mut at = u64::from(offset);
        // SAFETY: register arithmetic only, no memory is read.
        unsafe { core::arch::asm!("{0} &= 1023", inout(reg) at, options(pure, nomem, nostack)) };
        whole_pointer(base.wrapping_add(at as usize))
    }
    #[cfg(not(target_arch = "bpf"))]
    base.wrapping_add((offset & HEAD_MASK) as usize)
}
