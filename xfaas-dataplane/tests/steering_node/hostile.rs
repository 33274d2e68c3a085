//! Broken and hostile input: counted by reason, never answered with someone else's data, and nothing stops.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::map_layout::Verdict;
use xfaas_common::wire::Header;
use xfaas_dataplane::net::{ErrorCode, decode_datagram, encode_datagram_error, encode_datagram_reply};

use crate::lab::{
    Client, Datagram, Frame, Http, Lab, Metrics, Node, PATIENCE, PLAIN, PLAIN_V4, PLAIN_V6, PORT, Route, TAGGED, Wire, raw_exchange,
};

/// What other sessions sent and got before: it must show up nowhere.
const SECRET: &[u8] = b"SECRET-OF-ANOTHER-SESSION;";
/// Where hostile frames pretend to come from: a socket of ours sees what is answered.
const SOURCE_PORT: u16 = 40_000;
/// More would overflow the wire's queue before the other end has looked.
const BATCH: usize = 64;

fn session(text: &str) -> SessionId {
    SessionId::new(text.as_bytes()).unwrap()
}

/// Fills the buffers of both shards with what nobody else may see.
fn plant_secrets(lab: &Lab) {
    let client = Client::connect(lab, &PLAIN_V4);
    for number in 0..32 {
        let request = Datagram::new("echo", session(&format!("secret-{number}")), number, SECRET.repeat(1 + 70 * number as usize));
        request.assert_echoed(&client.ask(&request));
        let mut http = lab.on_client(|| Http::connect(PLAIN_V4.address(PORT)));
        http.echo(&format!("secret-{number}"), &SECRET.repeat(1_000));
    }
}

fn assert_no_secret(bytes: &[u8]) {
    let found = bytes.windows(SECRET.len() - 1).any(|window| window == &SECRET[1..]);
    assert!(!found, "someone else's data: {:?}", String::from_utf8_lossy(bytes));
}

/// After all that, everyone else is still served.
fn assert_all_is_well(lab: &Lab, node: &mut Node<'_>) {
    assert!(node.is_running() && !node.log().contains("panicked"), "{}", node.log());
    for (number, route) in PLAIN.iter().chain(&TAGGED).enumerate() {
        let client = Client::connect(lab, route);
        for try_number in 0..10 {
            let request = Datagram::new("echo", session(&format!("well-{number}-{try_number}")), try_number, "all well?");
            request.assert_echoed(&client.ask(&request));
        }
        lab.on_client(|| Http::connect(route.address(PORT))).echo(&format!("well-{number}"), b"all well?");
    }
}

/// The answer that a datagram must get: none to a malformed one.
fn right_answer(bytes: &[u8]) -> Result<Vec<u8>, DropReason> {
    let (head, payload) = decode_datagram(bytes)?;
    let mut answer = Vec::new();
    match head.function == FunctionHash::of(b"echo") {
        true => encode_datagram_reply(&mut answer, &head, payload),
        false => encode_datagram_error(&mut answer, &head, ErrorCode::NoFunction, None),
    }
    Ok(answer)
}

/// Random bytes, and requests of which some bytes are changed, cut off or added.
fn broken_datagrams(random: &mut StdRng, count: usize) -> Vec<Vec<u8>> {
    let mut broken = |number: usize| {
        if number.is_multiple_of(4) {
            return (0..random.random_range(0..200)).map(|_| random.random()).collect();
        }
        let payload: Vec<u8> = (0..random.random_range(0..64)).map(|_| random.random()).collect();
        let mut bytes = Datagram::new("echo", session(&format!("broken-{number}")), number as u64, payload).bytes();
        for _ in 0..random.random_range(0..3) {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
        match random.random_range(0..8) {
            0 => bytes.truncate(random.random_range(0..bytes.len())),
            1 => bytes.extend([0; 3]),
            _ => {}
        }
        bytes
    };
    (0..count).map(&mut broken).collect()
}

/// Output: how often each reason must have been counted.
fn send_broken(lab: &Lab, route: &Route, datagrams: &[Vec<u8>]) -> [u64; DropReason::ALL.len()] {
    let mut expected_drops = [0; DropReason::ALL.len()];
    let client = Client::connect(lab, route);
    for batch in datagrams.chunks(BATCH) {
        let mut expected = Vec::new();
        for bytes in batch {
            client.send(bytes);
            match right_answer(bytes) {
                Ok(answer) => expected.push(answer),
                Err(reason) => expected_drops[reason as usize] += 1,
            }
        }
        let mut answers: Vec<Vec<u8>> = expected.iter().map(|_| client.receive()).collect();
        expected.sort();
        answers.sort();
        assert_eq!(answers, expected);
    }
    assert_eq!(client.drain(), Vec::<Vec<u8>>::new(), "an answer to a malformed datagram");
    expected_drops
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn malformed_datagrams_are_counted_by_reason_and_never_answered() {
    let lab = Lab::new();
    let mut random = StdRng::seed_from_u64(4);
    for (mode, is_in_kernel) in [("xdp", true), ("tc", true), ("reuseport", false)] {
        let mut node = lab.start(mode);
        plant_secrets(&lab);
        for route in [&PLAIN[0], &PLAIN[1], &TAGGED[2]] {
            let before = node.metrics();
            let expected = send_broken(&lab, route, &broken_datagrams(&mut random, 800));
            let all = expected.iter().sum();
            let counted = node.metrics_until("all drops are counted", |now| now.since(&before).dropped_in_all() >= all).since(&before);
            // A datagram's bytes do not say where it was sent.
            let of_bytes = DropReason::ALL.iter().zip(expected).filter(|(reason, _)| **reason != DropReason::NotUnicast);
            for (reason, expected) in of_bytes {
                assert!(expected > 0, "no datagram was broken so: {reason:?}");
                let (kernel, user) = (counted.dropped_in_kernel(*reason), counted.dropped_in_user_space(*reason));
                let (here, elsewhere) = if is_in_kernel { (kernel, user) } else { (user, kernel) };
                assert_eq!((here, elsewhere), (expected, 0), "{mode} over {}: {reason:?}", route.name);
            }
        }
        assert_all_is_well(&lab, &mut node);
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn broadcasts_of_the_subnet_run_nowhere_and_are_counted_by_who_gets_them() {
    let lab = Lab::new();
    for mode in ["xdp", "tc", "reuseport"] {
        let node = lab.start(mode);
        let socket = lab.on_client(|| std::net::UdpSocket::bind(PLAIN[0].local())).unwrap();
        socket.set_broadcast(true).unwrap();
        let requests: Vec<Datagram> = (0..20).map(|id| Datagram::new("echo", session(&format!("all-{id}")), id, "x")).collect();
        for request in &requests {
            socket.send_to(&request.bytes(), ("10.77.0.255", PORT)).unwrap();
        }
        let expected = 2 * requests.len() as u64; // each core's socket gets a copy
        node.metrics_until("all copies are dropped", |now| now.dropped_in_user_space(DropReason::NotUnicast) == expected);
        let request = Datagram::new("echo", session("one"), 99, "x");
        request.assert_echoed(&Client::connect(&lab, &PLAIN[0]).ask(&request));
        let metrics = node.metrics();
        assert_eq!((metrics.ran("echo", 0) + metrics.ran("echo", 1), metrics.dropped_in_all()), (1, expected), "{mode}");
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn datagrams_of_every_size_are_answered_also_in_fragments() {
    let lab = Lab::new();
    for mode in ["xdp", "tc"] {
        let node = lab.start(mode);
        let before = node.metrics();
        for route in &PLAIN {
            let client = Client::connect(&lab, route);
            let header_bytes = 32 + 10;
            for (number, bytes) in [43, 1_400, 1_472, 1_473, 8_192, 40_000, 65_507].into_iter().enumerate() {
                let payload: Vec<u8> = (0..bytes - header_bytes).map(|i| (i / 7 + number) as u8).collect();
                let request = Datagram::new("echo", session("some-sizes"), number as u64, payload);
                request.assert_echoed(&client.ask(&request));
            }
            if route.is_v6() {
                // IPv6 carries more than an answer may have.
                let request = Datagram::new("echo", session("some-sizes"), 99, vec![1; 65_527 - header_bytes]);
                let mut expected = Vec::new();
                encode_datagram_error(&mut expected, &request.head, ErrorCode::ReplyTooLarge, None);
                assert_eq!(client.ask(&request), expected, "over {}", route.name);
            }
        }
        let counted = node.metrics().since(&before);
        assert_eq!(counted.dropped_in_all(), 0);
        assert!(counted.verdict(Verdict::Fragment) > 2 * (65_507 + 40_000 + 8_192) / 1_500, "{:?}", counted.verdicts());
    }
}

/// An IPv4 datagram as fragments of this many bytes, a multiple of eight.
fn fragments(frame: &Frame, bytes: usize) -> Vec<Frame> {
    let payload = &frame.bytes[frame.transport..];
    let fragment = |(number, piece): (usize, &[u8])| {
        let is_last = (number + 1) * bytes >= payload.len();
        let mut fragment = frame.clone();
        fragment.bytes.truncate(frame.transport);
        fragment.bytes.extend(piece);
        let offset = (number * bytes / 8) as u16 | if is_last { 0 } else { 0x2000 };
        fragment.with_network(2, &((20 + piece.len()) as u16).to_be_bytes()).with_network(6, &offset.to_be_bytes())
    };
    payload.chunks(bytes).enumerate().map(fragment).collect()
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn fragments_in_any_order_are_put_together_and_a_missing_one_is_missed_by_nobody() {
    let lab = Lab::new();
    let mut node = lab.start("xdp");
    plant_secrets(&lab);
    let wire = Wire::of_client(&lab);
    let client = Client::connect_from(&lab, &PLAIN_V4, SOURCE_PORT);
    let request = Datagram::new("echo", session("in-pieces"), 5, (0..2_000_u32).map(|i| i as u8).collect::<Vec<u8>>());
    let pieces = |id: u8| fragments(&Frame::udp(&PLAIN_V4, SOURCE_PORT, &request.bytes()).with_network(4, &[7, id]), 512);
    for piece in pieces(1).iter().rev() {
        wire.send(&piece.bytes);
    }
    request.assert_echoed(&client.receive());
    // One twice, and in the middle of others.
    for at in [2, 0, 2, 3, 1] {
        wire.send(&pieces(2)[at].bytes);
    }
    // The kernel may give up a datagram with a duplicate; if it does not, it is whole.
    for answer in client.drain() {
        request.assert_echoed(&answer);
    }
    for missing in 0..4 {
        let pieces = pieces(3 + missing as u8);
        for piece in pieces.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, piece)| piece) {
            wire.send(&piece.bytes);
        }
    }
    assert_all_is_well(&lab, &mut node);
    assert_eq!(client.drain(), Vec::<Vec<u8>>::new());
}

/// A counter of the kernel programs.
#[derive(Clone, Copy, Debug)]
enum Counter {
    Verdict(Verdict),
    Drop(DropReason),
    /// On whichever CPU it came in.
    Datagram,
}

impl Counter {
    fn of(self, metrics: &Metrics) -> u64 {
        match self {
            Counter::Verdict(verdict) => metrics.verdict(verdict),
            Counter::Drop(reason) => metrics.dropped_in_kernel(reason),
            Counter::Datagram => metrics.verdict(Verdict::UdpLocal) + metrics.verdict(Verdict::UdpRedirected),
        }
    }
}

/// Frames that get no answer, and what each is counted as.
fn broken_frames() -> Vec<(&'static str, Frame, Counter)> {
    const INCONSISTENT: Counter = Counter::Verdict(Verdict::Inconsistent);
    const FOREIGN: Counter = Counter::Verdict(Verdict::Foreign);
    const FRAGMENT: Counter = Counter::Verdict(Verdict::Fragment);
    let bytes = Datagram::new("echo", session("frame"), 1, "hello").bytes();
    let udp = || Frame::udp(&PLAIN_V4, SOURCE_PORT, &bytes);
    let udp_v6 = || Frame::udp(&PLAIN_V6, SOURCE_PORT, &bytes);
    let tcp = |payload: &[u8]| Frame::tcp(&PLAIN_V4, SOURCE_PORT, 0x10, payload);
    let cut = |mut frame: Frame, bytes: usize| {
        frame.bytes.truncate(bytes);
        frame
    };
    let (network, transport) = (udp().network, udp().transport);
    let total = (udp().bytes.len() - network) as u16;
    vec![
        ("UDP length below its header's", udp().with_transport(4, &[0, 7]), INCONSISTENT),
        ("UDP length over the packet's", udp().with_transport(4, &[9, 9]), INCONSISTENT),
        ("IP length below UDP's", udp().with_network(2, &(total - 4).to_be_bytes()), INCONSISTENT),
        ("IP length over the frame's", udp().with_network(2, &(total + 4).to_be_bytes()), INCONSISTENT),
        ("IP header of four words", udp().with_network(0, &[0x44]), FOREIGN),
        ("IP version 5", udp().with_network(0, &[0x55]), FOREIGN),
        ("only an Ethernet header", cut(udp(), 14), FOREIGN),
        ("cut in the IP header", cut(udp(), network + 13), FOREIGN),
        ("cut in the UDP header", cut(udp(), transport + 7), FOREIGN),
        ("cut in our header", cut(udp(), transport + 8 + 31), INCONSISTENT),
        ("cut in the payload", cut(udp(), transport + 8 + 32 + 7), INCONSISTENT),
        ("first fragment", udp().with_network(6, &[0x20, 0]), FRAGMENT),
        ("later fragment", udp().with_network(6, &[0, 99]), FRAGMENT),
        ("wrong UDP checksum", udp().with_transport(6, &[0xBA, 0xD0]), Counter::Datagram),
        ("three tags", udp().tagged(&[(0x88A8, 9), (0x8100, 9), (0x8100, 9)]), FOREIGN),
        ("a tag that nobody has", udp().tagged(&[(0x8100, 9)]), Counter::Datagram),
        ("only a tag", cut(udp().tagged(&[(0x8100, 9)]), 17), FOREIGN),
        ("datagram of 31 bytes", Frame::udp(&PLAIN_V4, SOURCE_PORT, &bytes[..31]), Counter::Drop(DropReason::Truncated)),
        ("datagram of no bytes", Frame::udp(&PLAIN_V4, SOURCE_PORT, &[]), Counter::Drop(DropReason::Truncated)),
        ("a reply", Frame::udp(&PLAIN_V4, SOURCE_PORT, &reply()), Counter::Drop(DropReason::BadKind)),
        ("IPv6 length over the frame's", udp_v6().with_network(4, &[0xFF, 0xFF]), INCONSISTENT),
        ("IPv6 of no length", udp_v6().with_network(4, &[0, 0]), INCONSISTENT),
        ("IPv6 with a header between", udp_v6().with_network(6, &[0]), FOREIGN),
        ("IPv6 fragment", udp_v6().with_network(6, &[44]).with_transport(0, &[17, 0, 0, 1]), FRAGMENT),
        ("cut in the IPv6 header", cut(udp_v6(), network + 39), FOREIGN),
        ("TCP header of four words", tcp(b"").with_transport(12, &[4 << 4]), INCONSISTENT),
        ("TCP header over the packet's length", tcp(b"").with_transport(12, &[15 << 4]), INCONSISTENT),
        ("cut in the TCP header", cut(tcp(b""), transport + 19), FOREIGN),
        ("TCP segment of no connection", tcp(b""), Counter::Verdict(Verdict::TcpUnknown)),
        ("bytes of no connection", tcp(&[0xFF; 600]), Counter::Verdict(Verdict::TcpUnknown)),
    ]
}

fn reply() -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_datagram_reply(&mut bytes, &Datagram::new("echo", session("frame"), 1, "").head, b"hello");
    bytes
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn every_broken_frame_is_counted_as_what_it_is_and_gets_no_answer() {
    let lab = Lab::new();
    let mut node = lab.start("xdp");
    let wire = Wire::of_client(&lab);
    let clients = [PLAIN_V4, PLAIN_V6].map(|route| Client::connect_from(&lab, &route, SOURCE_PORT));
    let mut before = node.metrics();
    let started = before.clone();
    for (name, frame, counter) in broken_frames() {
        wire.send(&frame.bytes);
        let after = node.metrics_until(name, |now| counter.of(now) > counter.of(&before));
        let counted = after.since(&before);
        // Address resolution may come in between: that is foreign.
        let ours = counted.packets() - counted.verdict(Verdict::Foreign);
        let expected = u64::from(!matches!(counter, Counter::Verdict(Verdict::Foreign)));
        assert_eq!(ours, expected, "{name}: {:?}", counted.verdicts());
        before = after;
    }
    assert_eq!(before.since(&started).sum("xfaas_datagrams_total", &[]), 0, "one came through to user space");
    for client in &clients {
        assert_eq!(client.drain(), Vec::<Vec<u8>>::new());
    }
    assert_all_is_well(&lab, &mut node);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn unusual_but_good_frames_are_answered() {
    let lab = Lab::new();
    for mode in ["xdp", "tc"] {
        let _node = lab.start(mode);
        let wire = Wire::of_client(&lab);
        let client = Client::connect_from(&lab, &PLAIN_V4, SOURCE_PORT);
        let request = Datagram::new("echo", session("x"), 1, "hello");
        let udp = Frame::udp(&PLAIN_V4, SOURCE_PORT, &request.bytes());
        let mut padded = udp.clone();
        padded.bytes.extend([0xEE; 60]);
        for (name, frame) in [
            ("padding behind the packet", padded),
            ("no checksum", udp.clone().with_transport(6, &[0, 0])),
            ("a tag with a priority only", udp.clone().tagged(&[(0x8100, 0xE000)])),
            ("IP options", Frame::udp_with_options(&PLAIN_V4, SOURCE_PORT, &[1; 40], &request.bytes())),
            ("may not be fragmented", udp.clone().with_network(6, &[0x40, 0])),
        ] {
            wire.send(&frame.bytes);
            let answer = client.receive_within(PATIENCE).unwrap_or_else(|| panic!("{mode}: no answer to {name}"));
            request.assert_echoed(&answer);
        }
    }
}

/// Random frames, and good ones of which some bytes are changed or cut off.
fn random_frame(random: &mut StdRng, number: usize) -> Vec<u8> {
    let request = Datagram::new("echo", session(&format!("random-{number}")), number as u64, number.to_be_bytes()).bytes();
    let head = format!("GET /f/echo HTTP/1.1\r\nhost: a\r\nx-session-id: random-{number}\r\n\r\n");
    let route = if random.random() { &PLAIN_V4 } else { &PLAIN_V6 };
    let mut frame = match random.random_range(0..6) {
        0 => {
            let mut frame = Frame::udp(route, SOURCE_PORT, &[]).bytes[..12].to_vec();
            let kinds = [[8, 0], [0x86, 0xDD], [0x81, 0], [0x88, 0xA8], random.random()];
            frame.extend(kinds[random.random_range(0..kinds.len())]);
            let rest = random.random_range(0..1_500);
            frame.extend((0..rest).map(|_| random.random::<u8>()));
            return frame;
        }
        1 => Frame::tcp(route, SOURCE_PORT, random.random(), head.as_bytes()),
        // Without a checksum what is changed gets farther.
        2 => Frame::udp(&PLAIN_V4, SOURCE_PORT, &request).with_transport(6, &[0, 0]).tagged(&[(0x8100, 0)]),
        3 => Frame::udp(route, SOURCE_PORT, &request),
        _ => Frame::udp(&PLAIN_V4, SOURCE_PORT, &request).with_transport(6, &[0, 0]),
    }
    .bytes;
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(12..frame.len());
        frame[at] = random.random();
    }
    if random.random_ratio(1, 8) {
        frame.truncate(random.random_range(14..frame.len()));
    }
    frame
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn random_frames_are_all_counted_and_stop_nothing() {
    let lab = Lab::new();
    let mut random = StdRng::seed_from_u64(5);
    for mode in ["xdp", "tc"] {
        let mut node = lab.start(mode);
        plant_secrets(&lab);
        let wire = Wire::of_client(&lab);
        let clients = [PLAIN_V4, PLAIN_V6].map(|route| Client::connect_from(&lab, &route, SOURCE_PORT));
        let before = node.metrics();
        let mut sent: Vec<Vec<u8>> = Vec::new();
        while sent.len() < 3_000 {
            for _ in 0..BATCH {
                sent.push(random_frame(&mut random, sent.len()));
                wire.send(&sent[sent.len() - 1]);
            }
            node.metrics_until("every frame is counted", |now| now.since(&before).packets() >= sent.len() as u64);
        }
        let answers: Vec<Vec<u8>> = clients.iter().flat_map(Client::drain).collect();
        assert!(!answers.is_empty(), "some frames were left whole");
        for answer in &answers {
            assert_no_secret(answer);
            assert!(is_of(answer, &sent), "{mode}: an answer to nothing that was sent: {answer:?}");
        }
        drop(clients);
        assert_all_is_well(&lab, &mut node);
    }
}

/// True when the answer repeats the session and payload of a frame that was sent, or says that there is no such function.
fn is_of(answer: &[u8], sent: &[Vec<u8>]) -> bool {
    let Some(header) = Header::read(answer) else { return false };
    let repeated = match &answer[32..] {
        rest if header.kind == 2 => rest,
        rest if rest.ends_with(b"no_function") => &rest[..usize::from(header.session_len)],
        _ => return false,
    };
    let request_id = header.request_id.as_slice();
    let contains = |frame: &Vec<u8>, part: &[u8]| frame.windows(part.len()).any(|window| window == part);
    sent.iter().any(|frame| contains(frame, repeated) && contains(frame, request_id))
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn random_bytes_on_connections_get_an_error_or_nothing() {
    let lab = Lab::new();
    let mut node = lab.start("xdp");
    plant_secrets(&lab);
    let mut random = StdRng::seed_from_u64(6);
    for number in 0..300 {
        let mut bytes =
            format!("POST /f/echo HTTP/1.1\r\nhost: a\r\nx-session-id: tcp-{number}\r\ncontent-length: 9\r\n\r\nbody-{number:04}")
                .into_bytes();
        let is_valid = match number % 3 {
            0 => {
                bytes = (0..random.random_range(1..3_000)).map(|_| random.random()).collect();
                false
            }
            1 => {
                bytes.truncate(random.random_range(1..bytes.len()));
                false
            }
            _ => {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
                true
            }
        };
        let cut_at = random.random_range(0..bytes.len());
        let reply = lab.on_client(|| raw_exchange(PLAIN[number % 2].address(PORT), &[&bytes[..cut_at], &bytes[cut_at..]]));
        // A connection may be reset once its error is sent; that the error then does not arrive is TCP's, not ours.
        let Ok(reply) = reply else { continue };
        assert_no_secret(&reply);
        let is_error = reply.is_empty() || reply.starts_with(b"HTTP/1.1 4");
        assert!(is_error || is_valid, "{:?} to {:?}", String::from_utf8_lossy(&reply), String::from_utf8_lossy(&bytes));
    }
    assert_all_is_well(&lab, &mut node);
}
