//! The answer to a datagram for which its core has no room, made of the request's own frame: who sent it gets it back as kind 3, `overloaded`.
//! Arithmetic on words as they lie in the frame; `answer` of the kernel programs moves them, and user-space tests hold the result against the rules.

use xfaas_common::wire::{HEADER_BYTES, KIND_ERROR, Status};

use crate::session::SessionWords;

/// The payload of the answer: the code of CONTRACT.md section 1.
pub const CODE: [u8; 10] = *b"overloaded";
/// Hops that an answer may take: the recommended default, RFC 1700.
const HOPS: u8 = 64;
const UDP: u8 = 17;

/// An Ethernet header's two addresses.
pub type Addresses = [u32; 3];
/// An IPv4 header without its options.
pub type Ipv4 = [u32; 5];
pub type Ipv6 = [u64; 5];
/// The UDP header, and ours behind it.
pub type Headers = [u64; 5];
const _: () = assert!(size_of::<Headers>() == 8 + HEADER_BYTES);

/// Bytes of the answer from its UDP header on, 51..=114. Input: bytes of the session ID.
#[inline(always)]
pub const fn answer_bytes(session_bytes: u32) -> u32 {
    size_of::<Headers>() as u32 + session_bytes + CODE.len() as u32
}

/// True when the frame was sent to one host: what goes to many is answered to nobody.
#[inline(always)]
pub const fn is_unicast(addresses: &Addresses) -> bool {
    u32::from_le(addresses[0]) & 1 == 0
}

#[inline(always)]
pub const fn turn_addresses(addresses: &mut Addresses) {
    let [a, b, c] = [u32::from_le(addresses[0]), u32::from_le(addresses[1]), u32::from_le(addresses[2])];
    *addresses = [(b >> 16 | c << 16).to_le(), (c >> 16 | a << 16).to_le(), (a >> 16 | b << 16).to_le()];
}

/// Input: bytes of the whole packet. The checksum is changed by what changes: options may follow, and swapped addresses add up to the same.
#[inline(always)]
pub const fn turn_ipv4(header: &mut Ipv4, bytes: u16) {
    let [first, hops] = [u32::from_le(header[0]), u32::from_le(header[2])];
    let length = bytes.swap_bytes() as u32;
    let protocol_and_hops = hops & 0xFF00 | HOPS as u32;
    // RFC 1624, equation 3, over the words as they lie there: the sum does not care for their order of bytes (RFC 1071).
    let old = (!first >> 16) + (!hops & 0xFFFF);
    let sum = fold((!hops >> 16) as u64 + old as u64 + length as u64 + protocol_and_hops as u64);
    header[0] = (first & 0xFFFF | length << 16).to_le();
    header[2] = (protocol_and_hops | (!sum as u32) << 16).to_le();
    (header[3], header[4]) = (header[4], header[3]);
}

/// Input: bytes from the UDP header on.
#[inline(always)]
pub const fn turn_ipv6(header: &mut Ipv6, bytes: u16) {
    let first = u64::from_le(header[0]) & 0xFFFF_FFFF | (bytes.swap_bytes() as u64) << 32 | (UDP as u64) << 48 | (HOPS as u64) << 56;
    *header = [first.to_le(), header[3], header[4], header[1], header[2]];
}

/// Without a checksum, as IPv4 allows (RFC 768). Input: bytes from the UDP header on.
#[inline(always)]
pub const fn turn_headers(headers: &mut Headers, bytes: u16) {
    let udp = u64::from_le(headers[0]);
    headers[0] = (udp >> 16 & 0xFFFF | (udp & 0xFFFF) << 16 | (bytes.swap_bytes() as u64) << 32).to_le();
    // Magic, version, kind, flags, length of the session ID, status.
    let kind = u64::from_le(headers[1]) & 0x00FF_FFFF_00FF_FFFF;
    headers[1] = (kind | (KIND_ERROR as u64) << 24 | (Status::Overloaded as u64) << 56).to_le();
    // The function's hash, and the payload's length.
    headers[3] = (u64::from_le(headers[3]) & 0xFFFF_FFFF | (CODE.len() as u64) << 56).to_le();
}

/// Puts in the checksum that IPv6 asks for, RFC 8200 section 8.1. Input: the answer's headers, the session ID.
#[inline(always)]
pub fn sum_headers(headers: &mut Headers, network: &Ipv6, session: &SessionWords) {
    let mut sum = u64::from(UDP) << 8; // the pseudo-header's, whose zeros add nothing
    sum += u64::from_le(headers[0]) >> 32 & 0xFFFF; // its length, once more
    let mut i = 0;
    while i < headers.len() {
        sum += halves(headers[i]);
        i += 1;
    }
    i = 1;
    while i < network.len() {
        sum += halves(network[i]);
        i += 1;
    }
    i = 0;
    while i < session.words.len() {
        sum += halves(session.words[i].to_le());
        i += 1;
    }
    // Behind an ID of odd length the code's bytes lie in the other halves of their words.
    sum += u64::from(if session.length.is_multiple_of(2) { CODE_SUM } else { CODE_SUM.swap_bytes() });
    let checksum = match !fold(sum) {
        0 => 0xFFFF,
        checksum => checksum,
    };
    headers[0] |= (u64::from(checksum) << 48).to_le();
}

const CODE_SUM: u16 = {
    let (mut sum, mut i) = (0, 0);
    while i < CODE.len() {
        sum += u16::from_le_bytes([CODE[i], CODE[i + 1]]) as u64;
        i += 2;
    }
    fold(sum)
};

/// Two 32-bit halves: ones' complement sums of 16-bit words may be taken of wider ones first, RFC 1071 section 2.
#[inline(always)]
const fn halves(word: u64) -> u64 {
    (u64::from_le(word) & 0xFFFF_FFFF) + (u64::from_le(word) >> 32)
}

/// The carries added back in. Input: at most 2^36.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    ((sum & 0xFFFF) + (sum >> 16)) as u16
}
