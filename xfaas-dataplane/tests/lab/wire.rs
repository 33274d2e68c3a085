//! Whole Ethernet frames, written to and read from a device as they are.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, UdpSocket};
use std::time::Instant;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{CLIENT_MAC, Lab, PATIENCE, PLAIN_V4, PORT, Route, SERVER_MAC};
use xfaas_dataplane::sys::socket::uninterrupted;

/// `ETH_P_ALL` of include/uapi/linux/if_ether.h.
const ALL_PROTOCOLS: u16 = 3;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// A frame from the client to the server's port, well-formed until a test breaks it.
#[derive(Clone, Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// Where the IP header begins.
    pub network: usize,
    /// Where the UDP or TCP header begins.
    pub transport: usize,
}

impl Frame {
    pub fn udp(route: &Route, source_port: u16, payload: &[u8]) -> Frame {
        let mut segment = Vec::new();
        segment.extend(source_port.to_be_bytes());
        segment.extend(PORT.to_be_bytes());
        segment.extend((8 + payload.len() as u16).to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(payload);
        let checksum = transport_checksum(route, UDP, &segment);
        segment[6..8].copy_from_slice(&checksum.to_be_bytes());
        Frame::build(route, UDP, &[], &segment)
    }

    /// A UDP datagram in IPv4 with these options, four bytes each.
    pub fn udp_with_options(route: &Route, source_port: u16, options: &[u8], payload: &[u8]) -> Frame {
        let plain = Frame::udp(route, source_port, payload);
        Frame::build(route, UDP, options, &plain.bytes[plain.transport..])
    }

    /// A TCP segment of no connection.
    pub fn tcp(route: &Route, source_port: u16, flags: u8, payload: &[u8]) -> Frame {
        let mut segment = Vec::new();
        segment.extend(source_port.to_be_bytes());
        segment.extend(PORT.to_be_bytes());
        segment.extend([1, 2, 3, 4, 5, 6, 7, 8, 5 << 4, flags, 0xFF, 0xFF, 0, 0, 0, 0]);
        segment.extend(payload);
        let checksum = transport_checksum(route, TCP, &segment);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        Frame::build(route, TCP, &[], &segment)
    }

    fn build(route: &Route, protocol: u8, options: &[u8], segment: &[u8]) -> Frame {
        let mut bytes = [SERVER_MAC, CLIENT_MAC].concat();
        let network = 14;
        match addresses(route) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend([8, 0]);
                let header_bytes = 20 + options.len();
                bytes.extend([0x40 | (header_bytes / 4) as u8, 0]);
                bytes.extend(((header_bytes + segment.len()) as u16).to_be_bytes());
                bytes.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(options);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
                bytes.extend((segment.len() as u16).to_be_bytes());
                bytes.extend([protocol, 64]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            _ => unreachable!("a route has one family"),
        }
        let transport = bytes.len();
        bytes.extend(segment);
        let mut frame = Frame { bytes, network, transport };
        frame.seal();
        frame
    }

    /// Puts VLAN tags of these types and numbers before the network header, outermost first.
    pub fn tagged(mut self, tags: &[(u16, u16)]) -> Frame {
        let tags: Vec<u8> = tags.iter().flat_map(|(kind, id)| [kind.to_be_bytes(), id.to_be_bytes()].concat()).collect();
        self.network += tags.len();
        self.transport += tags.len();
        self.bytes.splice(12..12, tags);
        self
    }

    /// Changes the network header or what follows, from `offset` in the header on; an IPv4 header's checksum is put right again.
    pub fn with_network(mut self, offset: usize, bytes: &[u8]) -> Frame {
        let at = self.network + offset;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.seal();
        self
    }

    pub fn with_transport(mut self, offset: usize, bytes: &[u8]) -> Frame {
        let at = self.transport + offset;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Computes the checksum of an IPv4 header.
    fn seal(&mut self) {
        if self.bytes[self.network - 2..self.network] != [8, 0] {
            return;
        }
        let header = &mut self.bytes[self.network..self.transport];
        header[10..12].fill(0);
        let checksum = checksum(header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

fn addresses(route: &Route) -> (IpAddr, IpAddr) {
    (route.client.parse().unwrap(), route.server.parse().unwrap())
}

/// RFC 768 and RFC 8200 section 8.1.
fn transport_checksum(route: &Route, protocol: u8, segment: &[u8]) -> u16 {
    let mut summed = Vec::new();
    match addresses(route) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => summed.extend([source.octets(), destination.octets()].concat()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => summed.extend([source.octets(), destination.octets()].concat()),
        _ => unreachable!("a route has one family"),
    }
    summed.extend([0, protocol]);
    summed.extend((segment.len() as u16).to_be_bytes());
    summed.extend(segment);
    match checksum(&summed) {
        0 => 0xFFFF,
        sum => sum,
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !(sum as u16)
}

/// The client's end of the wire.
pub struct Wire {
    socket: Socket,
    device: SockAddr,
}

impl Wire {
    /// The kernel tells the device's address along with the first frame that is seen there: one of ours, to a port where nobody listens.
    pub fn of_client(lab: &Lab) -> Wire {
        const MARK: &[u8] = b"which device is this?";
        lab.on_client(|| {
            let socket = listen();
            let mark = UdpSocket::bind(PLAIN_V4.local()).unwrap();
            mark.send_to(MARK, PLAIN_V4.address(9)).unwrap();
            let deadline = Instant::now() + PATIENCE;
            loop {
                assert!(Instant::now() < deadline, "no frame was seen");
                let device = socket.peek_sender().unwrap();
                if next_frame(&socket).is_some_and(|frame| frame.ends_with(MARK)) {
                    return Wire { socket: Socket::new(Domain::PACKET, Type::RAW, None).unwrap(), device };
                }
            }
        })
    }

    /// Sends a frame of 14 bytes to the device's MTU and its header.
    pub fn send(&self, frame: &[u8]) {
        assert_eq!(self.socket.send_to(frame, &self.device).unwrap(), frame.len());
    }

    /// Reads what comes in at the server's devices until there is such a frame.
    pub fn assert_received(lab: &Lab, send: impl FnOnce(), what: &str, is_it: impl Fn(&[u8]) -> bool) {
        let socket = lab.on_server(listen);
        send();
        let deadline = Instant::now() + PATIENCE;
        while !next_frame(&socket).is_some_and(|frame| is_it(&frame)) {
            assert!(Instant::now() < deadline, "did not come through: {what}");
        }
    }
}

/// Sees every frame of every device of this namespace.
pub(super) fn listen() -> Socket {
    let protocol = Protocol::from(i32::from(ALL_PROTOCOLS.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn next_frame(mut socket: &Socket) -> Option<Vec<u8>> {
    let mut frame = vec![0; 65_536];
    match uninterrupted(|| socket.read(&mut frame)) {
        Ok(length) => frame.truncate(length),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
        Err(error) => panic!("read a frame: {error}"),
    }
    Some(frame)
}
