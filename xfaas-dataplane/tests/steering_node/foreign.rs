//! What is not ours passes untouched, also while steering sees every packet.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use socket2::{Domain, Protocol, Socket, Type};
use xfaas_common::ids::SessionId;
use xfaas_common::map_layout::Verdict;

use crate::lab::{CLIENT_MAC, Datagram, Lab, PATIENCE, PLAIN, PLAIN_V4, Route, SERVER_MAC, Wire};

/// A port that is not ours.
const OTHER_PORT: u16 = 8_085;
const PINGS: u16 = 20;
/// ICMP echo types: RFC 792, and RFC 4443 sections 4.1 and 4.2.
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

/// Echo requests, of which each must come back as it went.
fn ping(lab: &Lab, route: &Route) {
    let (domain, protocol, (request_type, reply_type)) = match route.is_v6() {
        true => (Domain::IPV6, Protocol::ICMPV6, ECHO_V6),
        false => (Domain::IPV4, Protocol::ICMPV4, ECHO_V4),
    };
    let mut socket = lab.on_client(|| Socket::new(domain, Type::RAW, Some(protocol)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(&route.address(0).into()).unwrap();
    for sequence in 0..PINGS {
        let mut request = vec![request_type, 0, 0, 0, 0xAB, 0xCD];
        request.extend(sequence.to_be_bytes());
        request.extend([b'p'; 300]);
        if !route.is_v6() {
            // The kernel computes it for IPv6 only.
            let sum: u32 = request.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
            request[2..4].copy_from_slice(&(!((sum & 0xFFFF) + (sum >> 16)) as u16).to_be_bytes());
        }
        assert_eq!(socket.send(&request).unwrap(), request.len());
        loop {
            let mut bytes = [0; 2_048];
            let length = socket.read(&mut bytes).unwrap_or_else(|error| panic!("ping {sequence} over {}: {error}", route.name));
            // IPv4 gives its header too.
            let reply = if route.is_v6() { &bytes[..length] } else { &bytes[20..length] };
            if reply[0] == reply_type && reply[4..8] == request[4..8] {
                assert_eq!(reply[8..], request[8..], "over {}", route.name);
                break;
            }
        }
    }
}

/// Servers of others on the same machine: they echo datagrams, and streams of up to their end.
struct Neighbours {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Neighbours {
    fn start(lab: &Lab) -> Neighbours {
        lab.on_server(|| Neighbours {
            udp: UdpSocket::bind(("::", OTHER_PORT)).unwrap(),
            tcp: TcpListener::bind(("::", OTHER_PORT)).unwrap(),
        })
    }

    fn echo_datagrams(&self, lab: &Lab, route: &Route) {
        let client = lab.on_client(|| UdpSocket::bind(route.local()).unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        self.udp.set_read_timeout(Some(PATIENCE)).unwrap();
        let ours = Datagram::new("echo", SessionId::new(b"looks-like-ours").unwrap(), 1, "x").bytes();
        let malformed = ours[..20].to_vec();
        let mut bytes = vec![0; 65_536];
        for payload in [ours, malformed, random_bytes(1_400), vec![], random_bytes(9_000)] {
            client.send_to(&payload, route.address(OTHER_PORT)).unwrap();
            let (length, peer) = self.udp.recv_from(&mut bytes).unwrap_or_else(|error| panic!("over {}: {error}", route.name));
            assert_eq!(bytes[..length], payload, "over {}", route.name);
            self.udp.send_to(&payload, peer).unwrap();
            let length = client.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..length], payload);
        }
    }

    fn echo_stream(&self, lab: &Lab, route: &Route) {
        let mut sent = b"GET /f/echo HTTP/1.1\r\nhost: a\r\nx-session-id: looks-like-ours\r\n\r\n".to_vec();
        sent.extend(random_bytes(200_000));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = self.tcp.accept().unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            });
            let mut stream = lab.on_client(|| TcpStream::connect(route.address(OTHER_PORT)).unwrap());
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut echoed = Vec::new();
            stream.read_to_end(&mut echoed).unwrap();
            assert!(echoed == sent, "{} of {} bytes over {}", echoed.len(), sent.len(), route.name);
        });
    }
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(count as u64);
    (0..count).map(|_| random.random()).collect()
}

/// Protocols that no one here speaks arrive bit for bit.
fn unknown_protocols_pass(lab: &Lab) {
    let wire = Wire::of_client(lab);
    let mut frame = [SERVER_MAC, CLIENT_MAC].concat();
    frame.extend([0x88, 0xB5]); // IEEE 802, local experimental
    frame.extend(random_bytes(700));
    Wire::assert_received(lab, || wire.send(&frame), "an experimental protocol", |received| received == frame);
    // SCTP and an IPv4 header of another version: whatever stands at the ports' place.
    for (offset, value) in [(9, 132), (0, 0x65)] {
        let frame = crate::lab::Frame::udp(&PLAIN_V4, 9, b"whatever").with_network(offset, &[value]).bytes;
        Wire::assert_received(lab, || wire.send(&frame), "an unknown IP protocol", |received| received == frame);
    }
}

/// The same port number of another protocol, and ours as the source, are not ours either.
fn our_ports_elsewhere_pass(lab: &Lab) {
    let server = lab.on_server(|| UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], OTHER_PORT + 1))).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut local = PLAIN_V4.local();
    local.set_port(crate::lab::PORT);
    let client = lab.on_client(|| UdpSocket::bind(local).unwrap());
    client.send_to(b"from our port", PLAIN_V4.address(OTHER_PORT + 1)).unwrap();
    let mut bytes = [0; 64];
    let (length, peer) = server.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..length], peer), (&b"from our port"[..], local));
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn foreign_traffic_passes_untouched() {
    let lab = Lab::new();
    for mode in ["xdp", "tc"] {
        let node = lab.start(mode);
        let before = node.metrics();
        let neighbours = Neighbours::start(&lab);
        for route in &PLAIN {
            ping(&lab, route);
            neighbours.echo_datagrams(&lab, route);
            neighbours.echo_stream(&lab, route);
        }
        unknown_protocols_pass(&lab);
        our_ports_elsewhere_pass(&lab);
        let counted = node.metrics().since(&before);
        assert_eq!((counted.dropped_in_all(), counted.sum("xfaas_datagrams_total", &[])), (0, 0), "{mode}");
        for (verdict, count) in counted.verdicts() {
            assert!(matches!(verdict, Verdict::Foreign | Verdict::Fragment), "{mode} took {count} foreign packets for {verdict:?}");
        }
        assert!(counted.verdict(Verdict::Foreign) > 2 * u64::from(PINGS) + 2 * 200_000 / 1_500, "{mode}: {:?}", counted.verdicts());
        assert!(counted.verdict(Verdict::Fragment) >= 2 * 7, "{mode}: {:?}", counted.verdicts());
    }
}
