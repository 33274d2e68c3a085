//! The answer that the kernel program makes of a datagram's frame, held against the rules of the protocols it is made of.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::net::{Ipv6Addr, SocketAddr};

use proptest::prelude::*;
use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::SessionId;
use xfaas_common::map_layout::{FlowKey, Listen, Listens};
use xfaas_common::wire::{Header, KIND_ERROR, Status};
use xfaas_ebpf::frames::{
    CLIENT_MAC, CLIENT_V4, CLIENT_V6, Envelope, SERVER_MAC, SERVER_V4, SERVER_V6, TAG_8021AD, TAG_8021Q, request, turned_back,
};
use xfaas_ebpf::parse::{Handler, Packet, Place, Segment, parse};
use xfaas_ebpf::refusal;
use xfaas_ebpf::session::SessionWords;

const PORT: u16 = 8_080;

struct Find;

impl Handler for Find {
    type Output = Option<Place>;

    fn datagram(self, place: &Place, _session: &SessionWords) -> Option<Place> {
        Some(*place)
    }

    fn malformed(self, _place: &Place, _reason: DropReason) -> Option<Place> {
        None
    }

    fn segment(self, _flow: &FlowKey, _segment: Segment) -> Option<Place> {
        None
    }
}

/// The 16-bit words of `bytes`, added with their carries: all ones for what holds its own checksum.
fn sum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum();
    let once = (sum & 0xFFFF) + (sum >> 16);
    ((once & 0xFFFF) + (once >> 16)) as u16
}

fn envelope(is_v6: bool, tags: &[u16], option_words: u8) -> Envelope {
    let mut envelope = Envelope { option_words, ..Envelope::to_port(PORT) };
    envelope.tags = tags.to_vec();
    if is_v6 { Envelope { option_words: 0, ..envelope.v6() } } else { envelope }
}

fn check(envelope: &Envelope, session: &str, payload: &[u8]) {
    let asked = request(&SessionId::new(session.as_bytes()).unwrap(), payload);
    let frame = envelope.udp(&asked);
    let listen = Listen::on(SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)));
    let place = parse(&Packet::of(&frame), &Listens { udp: listen, tcp: listen }, Find).unwrap().unwrap();
    assert_eq!((place.network as usize, place.transport as usize), (envelope.network_offset(), envelope.transport_offset()));
    let answer = turned_back(&frame, &place);
    assert_eq!((&answer[..6], &answer[6..12]), (&CLIENT_MAC[..], &SERVER_MAC[..]));
    assert_eq!(answer[12..place.network as usize], frame[12..place.network as usize], "the tags stay");
    let (network, datagram) = (&answer[place.network as usize..place.transport as usize], &answer[place.transport as usize..]);
    let length = (datagram.len() as u16).to_be_bytes();
    if envelope.is_v6 {
        assert_eq!((network[0] >> 4, &network[4..6], network[6], network[7]), (6, &length[..], 17, 64));
        assert_eq!((&network[8..24], &network[24..40]), (&SERVER_V6[..], &CLIENT_V6[..]));
        let pseudo: Vec<u8> = [&network[8..40], &[0, 0], &length, &[0, 0, 0, 17], datagram].concat();
        assert_eq!(sum(&pseudo), 0xFFFF);
        assert_ne!(datagram[6..8], [0, 0], "IPv6 asks for a checksum");
    } else {
        assert_eq!((network[0] >> 4, network[8], network[9]), (4, 64, 17));
        assert_eq!(u16::from_be_bytes([network[2], network[3]]) as usize, network.len() + datagram.len());
        assert_eq!((&network[12..16], &network[16..20]), (&SERVER_V4[..], &CLIENT_V4[..]));
        assert_eq!((sum(network), &datagram[6..8]), (0xFFFF, &[0, 0][..]));
    }
    assert_eq!((&datagram[..2], &datagram[2..4], &datagram[4..6]), (&PORT.to_be_bytes()[..], &40_000_u16.to_be_bytes()[..], &length[..]));
    let (before, after) = (Header::read(&asked).unwrap(), Header::read(&datagram[8..]).unwrap());
    let wanted = Header { kind: KIND_ERROR, status: Status::Overloaded as u8, payload_len: 10_u32.to_be_bytes(), ..before };
    assert_eq!(after, wanted);
    assert_eq!(datagram[40..], [session.as_bytes(), b"overloaded"].concat());
    assert_eq!(datagram.len() as u32, refusal::answer_bytes(session.len() as u32));
}

#[test]
fn answers_of_every_length_of_the_session_id_are_well_formed() {
    for session_bytes in 1..=64 {
        let session = "s".repeat(session_bytes);
        for is_v6 in [false, true] {
            check(&envelope(is_v6, &[], 0), &session, b"");
            check(&envelope(is_v6, &[TAG_8021AD, TAG_8021Q], 10), &session, &[7; 1_000]);
        }
    }
}

#[test]
fn what_goes_to_many_is_told_from_what_goes_to_one() {
    let first = |byte: u8| [u32::from_le_bytes([byte, 0, 0, 0]), 0, 0];
    assert!(refusal::is_unicast(&first(2)) && refusal::is_unicast(&first(0)));
    assert!(!refusal::is_unicast(&first(0xFF)) && !refusal::is_unicast(&first(0x33)) && !refusal::is_unicast(&first(1)));
}

proptest! {
    #[test]
    fn answers_to_any_request_are_well_formed(
        is_v6: bool, tags in 0_usize..3, option_words in 0_u8..=10, session in "[!-~]{1,64}", payload in prop::collection::vec(any::<u8>(), 0..1_200),
    ) {
        check(&envelope(is_v6, &[TAG_8021AD, TAG_8021Q][..tags], option_words), &session, &payload);
    }
}
