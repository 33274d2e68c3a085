//! The parser of the kernel programs against a plain one, on good frames, broken ones and noise.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use proptest::collection::vec;
use proptest::prelude::*;
use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::SessionId;
use xfaas_common::map_layout::{FlowKey, HeaderPattern, Listen, Listens};
use xfaas_common::wire::Header;
use xfaas_ebpf::frames::{Envelope, TAG_8021AD, TAG_8021Q, http_head, request};
use xfaas_ebpf::head::find_session;
use xfaas_ebpf::parse::{Handler, HeadBytes, Other, Packet, Place, Segment, datagram_session, parse};
use xfaas_ebpf::session::{Fault, SessionWords, request_session};

const UDP_PORT: u16 = 8_080;
const TCP_PORT: u16 = 8_081;

/// What a handler was given.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Datagram(Vec<u8>),
    Malformed(DropReason),
    Segment(FlowKey, Segment),
}

struct Collect;

/// On any address.
fn listens() -> Listens {
    let on = |port| Listen { port: u64::from(port), ..Listen::NOWHERE };
    Listens { udp: on(UDP_PORT), tcp: on(TCP_PORT) }
}

impl Handler for Collect {
    type Output = Seen;

    fn datagram(self, _place: &Place, session: &SessionWords) -> Seen {
        Seen::Datagram(text(session))
    }

    fn malformed(self, _place: &Place, reason: DropReason) -> Seen {
        Seen::Malformed(reason)
    }

    fn segment(self, flow: &FlowKey, segment: Segment) -> Seen {
        Seen::Segment(*flow, segment)
    }
}

/// The ID's bytes; asserts that the rest is zero.
fn text(session: &SessionWords) -> Vec<u8> {
    let mut bytes: Vec<u8> = session.words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert!(bytes[session.length as usize..].iter().all(|byte| *byte == 0));
    bytes.truncate(session.length as usize);
    bytes
}

/// The parser's answer; asserts that no byte outside the frame changes it.
fn seen(frame: &[u8]) -> Result<Seen, Other> {
    let within = |fill: u8| {
        let mut around = vec![fill; frame.len() + 256];
        around[128..128 + frame.len()].copy_from_slice(frame);
        parse(&Packet::of(&around[128..128 + frame.len()]), &listens(), Collect)
    };
    let answer = within(0x00);
    assert_eq!(answer, within(0xFF));
    assert_eq!(answer, within(b'a'));
    answer
}

mod plain {
    //! The same rules, written for reading.

    use super::*;

    pub fn parse(frame: &[u8]) -> Result<Seen, Other> {
        let be16 = |bytes: &[u8], at: usize| bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        let mut offset = 14;
        let mut ether_type = be16(frame, 12).filter(|_| frame.len() >= 14).ok_or(Other::Foreign)?;
        for _ in 0..2 {
            if ether_type == TAG_8021Q || ether_type == TAG_8021AD {
                ether_type = be16(frame, offset + 2).ok_or(Other::Foreign)?;
                offset += 4;
            }
        }
        let packet = frame.get(offset..).ok_or(Other::Foreign)?;
        let (protocol, header_bytes, bytes, source, destination) = match ether_type {
            0x0800 => ipv4(packet)?,
            0x86DD => ipv6(packet)?,
            _ => return Err(Other::Foreign),
        };
        let transport = packet.get(header_bytes..).ok_or(Other::Foreign)?;
        let (port, least) = match protocol {
            17 => (UDP_PORT, 8),
            6 => (TCP_PORT, 20),
            _ => return Err(Other::Foreign),
        };
        if transport.len() < least || be16(transport, 2) != Some(port) {
            return Err(Other::Foreign);
        }
        let flow =
            FlowKey { source, destination, source_port: [transport[0], transport[1]], destination_port: [transport[2], transport[3]] };
        if protocol == 17 {
            let length = usize::from(be16(transport, 4).unwrap());
            if length < 8 || length != bytes || length > transport.len() {
                return Err(Other::Inconsistent);
            }
            return Ok(datagram(&transport[8..length]).map_or_else(Seen::Malformed, Seen::Datagram));
        }
        let tcp_bytes = usize::from(transport[12] >> 4) * 4;
        if tcp_bytes < 20 || tcp_bytes > bytes || bytes > transport.len() {
            return Err(Other::Inconsistent);
        }
        let segment = Segment {
            starts: transport[13] & 2 != 0,
            ends: transport[13] & 5 != 0,
            payload_offset: (offset + header_bytes + tcp_bytes) as u32,
            payload_bytes: (bytes - tcp_bytes) as u32,
        };
        Ok(Seen::Segment(flow, segment))
    }

    type Network = (u8, usize, usize, [u8; 16], [u8; 16]);

    fn ipv4(packet: &[u8]) -> Result<Network, Other> {
        let header: &[u8; 20] = packet.first_chunk().ok_or(Other::Foreign)?;
        let header_bytes = usize::from(header[0] & 15) * 4;
        if header[0] >> 4 != 4 || header_bytes < 20 {
            return Err(Other::Foreign);
        }
        if u16::from_be_bytes([header[6], header[7]]) & 0x3FFF != 0 {
            return Err(fragment(header[9]));
        }
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let mapped = |at: usize| {
            let mut address = [0; 16];
            address[10..].copy_from_slice(&[0xFF, 0xFF, header[at], header[at + 1], header[at + 2], header[at + 3]]);
            address
        };
        Ok((header[9], header_bytes, total.saturating_sub(header_bytes), mapped(12), mapped(16)))
    }

    fn ipv6(packet: &[u8]) -> Result<Network, Other> {
        let header: &[u8; 40] = packet.first_chunk().ok_or(Other::Foreign)?;
        if header[0] >> 4 != 6 {
            return Err(Other::Foreign);
        }
        if header[6] == 44 {
            return Err(if packet.len() < 48 { Other::Foreign } else { fragment(packet[40]) });
        }
        let bytes = usize::from(u16::from_be_bytes([header[4], header[5]]));
        Ok((header[6], 40, bytes, header[8..24].try_into().unwrap(), header[24..40].try_into().unwrap()))
    }

    fn fragment(protocol: u8) -> Other {
        if protocol == 6 || protocol == 17 { Other::Fragment } else { Other::Foreign }
    }

    pub fn datagram(payload: &[u8]) -> Result<Vec<u8>, DropReason> {
        let header = Header::read(payload).ok_or(DropReason::Truncated)?;
        if let Some(reason) = header.request_fault(payload.len()) {
            return Err(reason);
        }
        let session = SessionId::new(&payload[32..32 + usize::from(header.session_len)]).ok_or(DropReason::BadSessionByte)?;
        Ok(session.as_bytes().to_vec())
    }

    /// `name` in lower case.
    pub fn http_session(payload: &[u8], name: &[u8]) -> Option<Vec<u8>> {
        let head = &payload[..payload.len().min(640)];
        let line_end = |from: usize| head[from..].iter().position(|byte| *byte == b'\n').map(|at| from + at);
        let mut end = line_end(0)?;
        let first = &head[..end];
        if end < 10 || &first[end - 10..end - 2] != b" HTTP/1." || first[end - 1] != b'\r' {
            return None;
        }
        loop {
            let line = end + 1;
            if line >= 512 || line >= head.len() || head[line] == b'\r' || head[line] == b'\n' {
                return None;
            }
            end = line_end(line)?;
            let text = &head[line..end];
            if text.len() > name.len() && text[..name.len()].eq_ignore_ascii_case(name) && text[name.len()] == b':' {
                let value = text[name.len() + 1..].strip_suffix(b"\r")?;
                let is_text = |byte: &u8| *byte != b' ' && *byte != b'\t';
                let start = value.iter().position(is_text)?;
                let stop = value.iter().rposition(is_text)? + 1;
                return SessionId::new(&value[start..stop]).map(|session| session.as_bytes().to_vec());
            }
        }
    }
}

fn any_envelope() -> impl Strategy<Value = Envelope> {
    let tags = vec(prop_oneof![Just(TAG_8021Q), Just(TAG_8021AD)], 0..=2);
    let port = prop_oneof![9 => Just(UDP_PORT), 9 => Just(TCP_PORT), 1 => any::<u16>()];
    (any::<bool>(), tags, 0..=10_u8, 0..=10_u8, any::<u16>(), port).prop_map(
        |(is_v6, tags, option_words, tcp_option_words, source_port, destination_port)| Envelope {
            is_v6,
            tags,
            option_words,
            tcp_option_words,
            source_port,
            destination_port,
        },
    )
}

fn any_session() -> impl Strategy<Value = SessionId> {
    "[!-~]{1,64}".prop_map(|text| SessionId::new(text.as_bytes()).unwrap())
}

/// Changes some bytes and perhaps the length; changes near the front hit headers more often.
fn broken(mut frame: Vec<u8>, changes: &[(prop::sample::Index, u8)], length: Option<prop::sample::Index>) -> Vec<u8> {
    for (at, byte) in changes {
        if !frame.is_empty() {
            let at = at.index(frame.len());
            frame[at] = *byte;
        }
    }
    if let Some(length) = length {
        frame.truncate(length.index(frame.len() + 1));
    }
    frame
}

type Changes = Vec<(prop::sample::Index, u8)>;

fn any_changes() -> impl Strategy<Value = (Changes, Option<prop::sample::Index>)> {
    (vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), proptest::option::weighted(0.3, any::<prop::sample::Index>()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn noise_is_read_within_its_bounds(frame in vec(any::<u8>(), 0..256)) {
        prop_assert_eq!(seen(&frame), plain::parse(&frame));
    }

    #[test]
    fn good_datagram_gives_its_session(envelope in any_envelope(), session in any_session(), payload in vec(any::<u8>(), 0..128)) {
        let envelope = Envelope { destination_port: UDP_PORT, ..envelope };
        let frame = envelope.udp(&request(&session, &payload));
        match seen(&frame) {
            Ok(Seen::Datagram(found)) => prop_assert_eq!(found, session.as_bytes()),
            other => prop_assert!(false, "{:?}", other),
        }
        // Ethernet pads short frames: what follows the packet is not part of it.
        let padded = [&frame[..], &[0; 20]].concat();
        prop_assert_eq!(seen(&padded), seen(&frame));
    }

    #[test]
    fn broken_datagram_is_what_the_plain_parser_says(
        envelope in any_envelope(),
        session in any_session(),
        payload in vec(any::<u8>(), 0..64),
        (changes, length) in any_changes(),
    ) {
        let frame = broken(envelope.udp(&request(&session, &payload)), &changes, length);
        prop_assert_eq!(seen(&frame), plain::parse(&frame));
    }

    #[test]
    fn broken_segment_is_what_the_plain_parser_says(
        envelope in any_envelope(),
        flags: u8,
        payload in vec(any::<u8>(), 0..64),
        (changes, length) in any_changes(),
    ) {
        let frame = broken(envelope.tcp(flags, &payload), &changes, length);
        prop_assert_eq!(seen(&frame), plain::parse(&frame));
    }

    #[test]
    fn headers_that_lie_in_pieces_are_counted_whole(envelope in any_envelope(), session in any_session(), payload in vec(any::<u8>(), 0..2_000)) {
        let envelope = Envelope { destination_port: UDP_PORT, ..envelope };
        let frame = envelope.udp(&request(&session, &payload));
        let readable = frame.len().min(186);
        let answer = parse(&Packet::of_head(&frame[..readable], frame.len() as u32), &listens(), Collect);
        prop_assert_eq!(answer, seen(&frame));
    }

    #[test]
    fn socket_program_sees_the_session_of_the_xdp_program(session in any_session(), payload in vec(any::<u8>(), 0..64), (changes, length) in any_changes()) {
        let bytes = broken(request(&session, &payload), &changes, length);
        let datagram = &Envelope::to_port(UDP_PORT).udp(&bytes)[34..];
        let mut words = SessionWords::none();
        let read = datagram_session(&Packet::of(datagram), &mut words);
        let expected = plain::datagram(&bytes);
        match read {
            Ok(()) => prop_assert_eq!(Ok(text(&words)), expected),
            Err(Fault::Malformed(reason)) => prop_assert_eq!(Err(reason), expected),
            Err(Fault::Unreadable) => prop_assert!(false, "all bytes are there"),
        }
        // The same through a copy, as for socket buffers in pieces.
        let mut head = HeadBytes { bytes: [0xA5; xfaas_ebpf::parse::HEAD_BUFFER_BYTES] };
        let copied = bytes.len().min(96);
        head.bytes[..copied].copy_from_slice(&bytes[..copied]);
        let mut again = SessionWords::none();
        prop_assert_eq!(request_session(&&head, bytes.len() as u32, &mut again), read);
        if read.is_ok() {
            prop_assert_eq!(again, words);
        }
    }

    #[test]
    fn session_header_is_found_where_the_plain_search_finds_it(
        offset in 0..600_usize,
        line in "(x-session-id|X-Session-ID|x-sessionxid|cookie):[ \t]{0,3}[!-~]{0,70}[ \t]{0,3}",
        (changes, length) in any_changes(),
    ) {
        let head = broken(http_head(offset, line.as_bytes()), &changes, length);
        let pattern = HeaderPattern::new(b"x-session-id").unwrap();
        let found = find_session(&head, &pattern).map(|session| text(&session));
        prop_assert_eq!(found, plain::http_session(&head, b"x-session-id"));
    }

    #[test]
    fn lines_of_any_shape_are_searched_alike(
        lines in vec(prop_oneof![
            4 => "[a-z]{1,12}: [ -~]{0,40}\r\n",
            1 => "[a-c\r\n: ]{0,12}",
            1 => "(ab|AB|a\r|A\n): {0,2}[!-~]{0,10}\r\n",
        ], 0..30),
    ) {
        let head = [b"GET / HTTP/1.1\r\n".to_vec(), lines.concat().into_bytes()].concat();
        let pattern = HeaderPattern::new(b"ab").unwrap();
        let found = find_session(&head, &pattern).map(|session| text(&session));
        prop_assert_eq!(found, plain::http_session(&head, b"ab"));
    }
}

#[test]
fn what_is_sent_to_another_address_is_foreign() {
    let session = SessionId::new(b"session").unwrap();
    for (envelope, own, other) in [
        (Envelope::to_port(UDP_PORT), "10.0.0.1:8080", "10.0.0.3:8080"),
        (Envelope::to_port(UDP_PORT), "0.0.0.0:8080", "[fd00::1]:8080"),
        (Envelope::to_port(UDP_PORT).v6(), "[fd00::1]:8080", "[fd00::3]:8080"),
        (Envelope::to_port(UDP_PORT).v6(), "[::]:8080", "0.0.0.0:8080"),
    ] {
        let listens = |address: &str| {
            let listen = Listen::on(address.parse().unwrap());
            Listens { udp: listen, tcp: listen }
        };
        for frame in [envelope.udp(&request(&session, b"")), envelope.udp(b"malformed"), envelope.tcp(0, b"x")] {
            assert!(parse(&Packet::of(&frame), &listens(own), Collect).is_ok(), "{own}");
            assert_eq!(parse(&Packet::of(&frame), &listens(other), Collect), Err(Other::Foreign), "{other}");
        }
    }
}

#[test]
fn session_header_is_found_from_every_place_in_the_first_512_bytes() {
    let pattern = HeaderPattern::new(b"x-session-id").unwrap();
    let longest = "s".repeat(64);
    for offset in 22..600 {
        let head = http_head(offset, format!("X-Session-Id: {longest}").as_bytes());
        let at = head.windows(2).position(|pair| pair == b"X-").unwrap();
        assert_eq!(at, offset, "the builder puts it there");
        let found = find_session(&head, &pattern).map(|session| text(&session));
        assert_eq!(found.is_some(), offset < 512, "at {offset}");
        assert!(found.is_none_or(|found| found == longest.as_bytes()));
    }
}
