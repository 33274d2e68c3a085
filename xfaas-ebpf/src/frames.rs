//! Builds frames to try the programs on: well-formed ones, of which a test then breaks what it wants to break.
//! For tests and benches only; the kernel programs are built without it.

use alloc::vec::Vec;

use network_types::ip::IpProto;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::wire::{Header, KIND_INVOKE, SESSION_LEN_OFFSET};

use crate::parse::Place;
pub use crate::parse::{TCP_FIN, TCP_RST, TCP_SYN};
use crate::refusal;
use crate::session::SessionWords;

/// The flags for which the programs do not look, RFC 9293 section 3.1.
pub const TCP_PSH: u8 = 0x08;
pub const TCP_ACK: u8 = 0x10;

/// Tags of IEEE 802.1Q and 802.1ad.
pub const TAG_8021Q: u16 = 0x8100;
pub const TAG_8021AD: u16 = 0x88A8;

/// The addresses of the frames' two ends.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const CLIENT_V4: [u8; 4] = [10, 0, 0, 2];
pub const SERVER_V4: [u8; 4] = [10, 0, 0, 1];
pub const CLIENT_V6: [u8; 16] = [0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub const SERVER_V6: [u8; 16] = [0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// What surrounds a payload on its way from client to server.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub is_v6: bool,
    /// Types of the VLAN tags, outermost first.
    pub tags: Vec<u16>,
    /// 32-bit words of IPv4 options, 0..=10.
    pub option_words: u8,
    /// 32-bit words of TCP options, 0..=10.
    pub tcp_option_words: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Envelope {
    /// Plain IPv4 from port 40,000.
    pub fn to_port(destination_port: u16) -> Envelope {
        Envelope { is_v6: false, tags: Vec::new(), option_words: 0, tcp_option_words: 0, source_port: 40_000, destination_port }
    }

    pub fn v6(self) -> Envelope {
        Envelope { is_v6: true, ..self }
    }

    pub fn from_port(self, source_port: u16) -> Envelope {
        Envelope { source_port, ..self }
    }

    /// One more VLAN tag, inside those already there.
    pub fn tagged(mut self, tag: u16) -> Envelope {
        self.tags.push(tag);
        self
    }

    /// Where the IP header begins, in bytes.
    pub fn network_offset(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Where the UDP or TCP header begins, in bytes.
    pub fn transport_offset(&self) -> usize {
        self.network_offset() + if self.is_v6 { 40 } else { 20 + 4 * usize::from(self.option_words) }
    }

    /// A frame with a UDP datagram.
    pub fn udp(&self, payload: &[u8]) -> Vec<u8> {
        let mut segment = Vec::with_capacity(8 + payload.len());
        segment.extend(self.source_port.to_be_bytes());
        segment.extend(self.destination_port.to_be_bytes());
        segment.extend(((8 + payload.len()) as u16).to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(payload);
        // A sum of zero is sent as its other form: zero would mean that there is none, RFC 768.
        let checksum = match self.checksum(IpProto::Udp as u8, &segment) {
            0 => 0xFFFF,
            checksum => checksum,
        };
        segment[6..8].copy_from_slice(&checksum.to_be_bytes());
        self.frame(IpProto::Udp as u8, &segment)
    }

    /// A frame with a TCP segment; its sequence numbers are zero.
    pub fn tcp(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut segment = Vec::with_capacity(20 + payload.len());
        segment.extend(self.source_port.to_be_bytes());
        segment.extend(self.destination_port.to_be_bytes());
        segment.extend([0; 8]);
        segment.extend([(5 + self.tcp_option_words) << 4, flags]);
        segment.extend([0xFF, 0xFF, 0, 0, 0, 0]);
        segment.extend(core::iter::repeat_n(1_u8, 4 * usize::from(self.tcp_option_words))); // kind 1: no operation
        segment.extend(payload);
        let checksum = self.checksum(IpProto::Tcp as u8, &segment);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        self.frame(IpProto::Tcp as u8, &segment)
    }

    fn frame(&self, protocol: u8, segment: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(self.transport_offset() + segment.len());
        frame.extend(SERVER_MAC);
        frame.extend(CLIENT_MAC);
        for tag in &self.tags {
            frame.extend(tag.to_be_bytes());
            // VLAN 0: a priority only, so a host takes the frame without having a VLAN.
            frame.extend([0, 0]);
        }
        if self.is_v6 {
            frame.extend(0x86DD_u16.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((segment.len() as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(CLIENT_V6);
            frame.extend(SERVER_V6);
        } else {
            frame.extend(0x0800_u16.to_be_bytes());
            frame.extend(self.ipv4_header(protocol, segment.len()));
        }
        frame.extend(segment);
        frame
    }

    fn ipv4_header(&self, protocol: u8, segment_bytes: usize) -> Vec<u8> {
        let header_bytes = 20 + 4 * usize::from(self.option_words);
        let mut header = Vec::with_capacity(header_bytes);
        header.extend([0x40 | (header_bytes / 4) as u8, 0]);
        header.extend(((header_bytes + segment_bytes) as u16).to_be_bytes());
        header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
        header.extend(CLIENT_V4);
        header.extend(SERVER_V4);
        header.resize(header_bytes, 1); // option 1: no operation
        let checksum = !folded(sum(&header));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    /// Over the pseudo-header and the segment, whose own field is still zero: RFC 9293 section 3.1, RFC 8200 section 8.1.
    fn checksum(&self, protocol: u8, segment: &[u8]) -> u16 {
        let addresses = if self.is_v6 { sum(&CLIENT_V6) + sum(&SERVER_V6) } else { sum(&CLIENT_V4) + sum(&SERVER_V4) };
        !folded(addresses + u32::from(protocol) + segment.len() as u32 + sum(segment))
    }
}

/// The 16-bit words of `bytes`, added: RFC 1071.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// The carries added back in.
fn folded(sum: u32) -> u16 {
    let once = (sum & 0xFFFF) + (sum >> 16);
    ((once & 0xFFFF) + (once >> 16)) as u16
}

/// The frame with which the kernel program answers this one when there is no room for it. Input: where its headers lie.
///
/// # Panics
/// When they do not lie there.
pub fn turned_back(frame: &[u8], place: &Place) -> Vec<u8> {
    let (network, transport) = (place.network as usize, place.transport as usize);
    let words32 = |at: usize| u32::from_ne_bytes(*frame[at..].first_chunk().expect("within the frame"));
    let words64 = |at: usize| u64::from_ne_bytes(*frame[at..].first_chunk().expect("within the frame"));
    let mut headers: refusal::Headers = core::array::from_fn(|i| words64(transport + 8 * i));
    let mut session = SessionWords { words: [0; 8], length: u32::from(frame[transport + 8 + SESSION_LEN_OFFSET]) };
    let id = &frame[transport + 40..][..session.length as usize];
    for (word, bytes) in session.words.iter_mut().zip(id.chunks(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    let bytes = refusal::answer_bytes(session.length) as u16;
    let mut addresses: refusal::Addresses = core::array::from_fn(|i| words32(4 * i));
    refusal::turn_addresses(&mut addresses);
    refusal::turn_headers(&mut headers, bytes);
    let mut answer: Vec<u8> = addresses.iter().flat_map(|word| word.to_ne_bytes()).collect();
    answer.extend(&frame[12..network]);
    if place.is_v6 {
        let mut header: refusal::Ipv6 = core::array::from_fn(|i| words64(network + 8 * i));
        refusal::turn_ipv6(&mut header, bytes);
        refusal::sum_headers(&mut headers, &header, &session);
        answer.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
    } else {
        let mut header: refusal::Ipv4 = core::array::from_fn(|i| words32(network + 4 * i));
        refusal::turn_ipv4(&mut header, (transport - network) as u16 + bytes);
        answer.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        answer.extend(&frame[network + 20..transport]);
    }
    answer.extend(headers.iter().flat_map(|word| word.to_ne_bytes()));
    answer.extend(id);
    answer.extend(refusal::CODE);
    answer
}

/// A request datagram's payload.
pub fn request(session: &SessionId, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(Header::new(KIND_INVOKE, 0, session, 1, FunctionHash::of(b"echo"), payload.len() as u32).to_bytes());
    bytes.extend(session.as_bytes());
    bytes.extend(payload);
    bytes
}

/// A GET request's head whose line with the session begins `offset` bytes in, or right behind the first line if that is longer.
/// The lines between are of common length.
pub fn http_head(offset: usize, session_line: &[u8]) -> Vec<u8> {
    let mut head = Vec::from(&b"GET /f/echo HTTP/1.1\r\n"[..]);
    let mut number = 0_u8;
    while head.len() < offset {
        let line_bytes = if offset - head.len() >= 60 { 32 } else { offset - head.len() };
        // Too short for a header: the first line's target grows instead.
        if line_bytes < 6 {
            head.splice(11..11, core::iter::repeat_n(b'a', line_bytes));
            continue;
        }
        head.extend([b'a' + number % 26, b':', b' ']);
        head.extend(core::iter::repeat_n(b'v', line_bytes - 5));
        head.extend(b"\r\n");
        number += 1;
    }
    head.extend(session_line);
    head.extend(b"\r\nhost: localhost\r\n\r\n");
    head
}
