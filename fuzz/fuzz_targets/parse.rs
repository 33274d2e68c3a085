//! Feeds any bytes to the parser of the kernel programs, as a frame, as a datagram, as a socket program sees one, and as an HTTP head:
//! no read outside them (the sanitizer watches), and what is found keeps its promises.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::SessionId;
use xfaas_common::map_layout::{FlowKey, HeaderPattern, Listen, Listens, SESSION_HEADER_DEFAULT};
use xfaas_ebpf::frames::{Envelope, TAG_8021Q};
use xfaas_ebpf::head::find_session;
use xfaas_ebpf::parse::{Handler, Other, Packet, Place, Segment, datagram_session, parse};
use xfaas_ebpf::session::SessionWords;

const PORT: u16 = 8_080;

/// Checks what it is given; the output is the session, if there is one.
struct Check {
    frame_bytes: usize,
}

impl Handler for Check {
    type Output = Option<SessionId>;

    fn datagram(self, place: &Place, session: &SessionWords) -> Option<SessionId> {
        assert!(14 <= place.network && place.network + 20 <= place.transport);
        assert!((place.transport + 40 + session.length) as usize <= self.frame_bytes);
        Some(id(session))
    }

    fn malformed(self, place: &Place, _reason: DropReason) -> Option<SessionId> {
        assert!((place.transport + 8) as usize <= self.frame_bytes);
        None
    }

    fn segment(self, _flow: &FlowKey, segment: Segment) -> Option<SessionId> {
        assert!((segment.payload_offset + segment.payload_bytes) as usize <= self.frame_bytes);
        None
    }
}

fn id(session: &SessionWords) -> SessionId {
    let bytes: Vec<u8> = session.words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (text, rest) = bytes.split_at(session.length as usize);
    assert!(rest.iter().all(|byte| *byte == 0), "padded with zeros");
    SessionId::new(text).expect("a session ID by the rules")
}

fn session_of(frame: &[u8]) -> Result<Option<SessionId>, Other> {
    let listen = Listen { port: u64::from(PORT), ..Listen::NOWHERE };
    parse(&Packet::of(frame), &Listens { udp: listen, tcp: listen }, Check { frame_bytes: frame.len() })
}

fuzz_target!(|data: &[u8]| {
    drop(session_of(data));

    let mut words = SessionWords::none();
    if datagram_session(&Packet::of(data), &mut words).is_ok() {
        id(&words);
    }

    if data.len() <= 1_400 {
        let plain = session_of(&Envelope::to_port(PORT).udp(data));
        assert_eq!(plain, session_of(&Envelope::to_port(PORT).v6().tagged(TAG_8021Q).udp(data)));
        if let Ok(Some(session)) = plain {
            assert_eq!(session.as_bytes(), &data[32..32 + session.as_bytes().len()]);
        }
    }

    let pattern = HeaderPattern::new(SESSION_HEADER_DEFAULT.as_bytes()).expect("a header's name");
    for head in [data, &[b"GET / HTTP/1.1\r\n", data].concat()] {
        if let Some(session) = find_session(head, &pattern) {
            let session = id(&session);
            assert!(head.windows(session.as_bytes().len()).any(|window| window == session.as_bytes()));
        }
    }
});
