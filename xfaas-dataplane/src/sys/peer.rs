//! Who sent a datagram and to which of our addresses, so that the answer leaves from there: a client that asked one address of a machine
//! with several would take an answer from another for a stranger's. Layouts are the kernel's; bytes in, values out, no I/O.

use socket2::SockAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::RawFd;

/// `CMSG_SPACE(sizeof(struct in6_pktinfo))`, include/uapi/linux/ipv6.h, and `CMSG_SPACE(sizeof(struct in_pktinfo))`, include/uapi/linux/in.h.
const CONTROL_V6_BYTES: usize = 40;
const CONTROL_V4_BYTES: usize = 32;
/// Of a datagram that is received: of IPv4 ones an IPv6 socket says both, that one first (net/ipv6/udp.c).
pub(super) const CONTROL_BYTES: usize = CONTROL_V6_BYTES + CONTROL_V4_BYTES;
/// `struct cmsghdr`: its length in a `size_t`, then level and type, `int` each. include/linux/socket.h.
const CONTROL_HEAD_BYTES: usize = 16;
/// `CMSG_SPACE(sizeof(__u16))`: the size of segments, net/ipv4/udp.c.
const SEGMENT_CONTROL_BYTES: usize = 24;
const _: () = assert!(CONTROL_HEAD_BYTES == size_of::<libc::cmsghdr>());
const _: () = assert!(CONTROL_V6_BYTES >= CONTROL_HEAD_BYTES + size_of::<libc::in6_pktinfo>());
const _: () = assert!(CONTROL_V4_BYTES >= CONTROL_HEAD_BYTES + size_of::<libc::in_pktinfo>());
const _: () = assert!(size_of::<libc::in_pktinfo>() == 12 && size_of::<libc::in6_pktinfo>() == 20);

/// The other end of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: SocketAddr,
    /// Our address that it was sent to; known where the socket listens on all of them.
    pub local: Option<LocalAddress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    pub ip: IpAddr,
    /// For a link-local address the interface's index, which it means nothing without; else 0.
    pub interface: u32,
    /// It was sent to a broadcast or multicast address, and every socket of the port got a copy.
    pub is_to_many: bool,
}

/// Input: the control bytes of a received datagram. Output: the address it was sent to, if they say so.
pub(super) fn local_address(control: &[u8]) -> Option<LocalAddress> {
    let word = |at: usize| Some(u32::from_ne_bytes(*control.get(at..)?.first_chunk()?));
    let data = control.get(CONTROL_HEAD_BYTES..)?;
    match (word(8)? as i32, word(12)? as i32) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // `in_pktinfo`: interface, address to answer from, address in the packet. They differ where the latter is nobody's own
            // (`fib_compute_spec_dst`, net/ipv4/fib_frontend.c), which tells a subnet's broadcast address too.
            let octets: [u8; 4] = *data.get(4..)?.first_chunk()?;
            let is_to_many = octets != *data.get(8..)?.first_chunk()?;
            Some(LocalAddress { ip: Ipv4Addr::from(octets).into(), interface: 0, is_to_many })
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            let octets: [u8; 16] = *data.first_chunk()?;
            let ip = Ipv6Addr::from(octets);
            // This one has the address in the packet only: of an IPv4 datagram the other says more.
            let v4 = control.get(CONTROL_V6_BYTES..).and_then(local_address);
            let is_to_many = ip.is_multicast() || v4.is_some_and(|v4| v4.is_to_many);
            let interface = if ip.is_unicast_link_local() { word(CONTROL_HEAD_BYTES + 16)? } else { 0 };
            Some(LocalAddress { ip: ip.into(), interface, is_to_many })
        }
        _ => None,
    }
}

/// A `sockaddr` as the kernel wrote it. Input: its bytes. Output: `None` unless a whole IPv4 or IPv6 address.
pub(super) fn socket_address(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*name.first_chunk()?);
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    match i32::from(family) {
        libc::AF_INET => {
            let address: [u8; 4] = *name.get(4..)?.first_chunk()?;
            Some(SocketAddr::from((address, port)))
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(*name.get(4..)?.first_chunk()?);
            let address: [u8; 16] = *name.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*name.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(address.into(), port, flow, scope).into())
        }
        _ => None,
    }
}

/// Where one datagram goes and where from, in the shape the kernel reads. Lives in a box: its parts point at each other.
pub(super) struct Outgoing {
    pub(super) route: Route,
    /// The payload leaves as datagrams of so many bytes, the last maybe shorter.
    pub(super) segment_bytes: usize,
    address: SockAddr,
    control: Control,
    payload: libc::iovec,
    message: libc::msghdr,
}

/// Through which socket a datagram leaves, and where to.
#[derive(Clone, Copy)]
pub(super) enum Route {
    /// An ordinary descriptor.
    To(RawFd, Peer),
    /// A direct descriptor whose socket is connected.
    Connected(u32),
}

/// Aligned as `struct cmsghdr` is.
#[repr(C, align(8))]
struct Control([u8; CONTROL_V6_BYTES + SEGMENT_CONTROL_BYTES]);

impl Outgoing {
    /// One to be filled in.
    pub(super) fn new() -> Box<Outgoing> {
        let null = std::ptr::null_mut();
        let message = libc::msghdr {
            msg_name: null,
            msg_namelen: 0,
            msg_iov: std::ptr::null_mut(),
            msg_iovlen: 0,
            msg_control: null,
            msg_controllen: 0,
            msg_flags: 0,
        };
        Box::new(Outgoing {
            route: Route::Connected(u32::MAX),
            segment_bytes: 0,
            address: SockAddr::from(SocketAddr::from(([0; 4], 0))),
            control: Control([0; CONTROL_V6_BYTES + SEGMENT_CONTROL_BYTES]),
            payload: libc::iovec { iov_base: null, iov_len: 0 },
            message,
        })
    }

    pub(super) fn set(&mut self, route: Route, segment_bytes: usize) {
        (self.route, self.segment_bytes) = (route, segment_bytes);
        if let Route::To(_, peer) = route {
            self.address = SockAddr::from(peer.address);
        }
    }

    pub(super) fn address(&self) -> &SockAddr {
        &self.address
    }

    /// The message that sends `payload` on its route, cut into segments where it is longer than one. It points into `self` and into `payload`:
    /// neither may move or change until it is sent.
    pub(super) fn message(&mut self, payload: &[u8]) -> *const libc::msghdr {
        let (name, name_bytes, local) = match self.route {
            Route::To(_, peer) => (self.address.as_ptr().cast_mut().cast(), self.address.len(), peer.local),
            Route::Connected(_) => (std::ptr::null_mut(), 0, None),
        };
        let mut length = local.map_or(0, |local| self.control.fill(local));
        if payload.len() > self.segment_bytes {
            length += self.control.add_segment_bytes(length, self.segment_bytes as u16);
        }
        self.payload = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
        (self.message.msg_name, self.message.msg_namelen) = (name, name_bytes);
        self.message.msg_iov = &raw mut self.payload;
        self.message.msg_iovlen = 1;
        self.message.msg_control = self.control.0.as_mut_ptr().cast();
        self.message.msg_controllen = length;
        &raw const self.message
    }
}

impl Control {
    /// Writes the message that names the address to send from. Output: its length in bytes, as `msg_controllen` wants it.
    fn fill(&mut self, local: LocalAddress) -> usize {
        let bytes = &mut self.0;
        bytes.fill(0);
        let (level, kind, data_bytes) = match local.ip {
            IpAddr::V4(ip) => {
                bytes[CONTROL_HEAD_BYTES + 4..][..4].copy_from_slice(&ip.octets());
                (libc::IPPROTO_IP, libc::IP_PKTINFO, size_of::<libc::in_pktinfo>())
            }
            IpAddr::V6(ip) => {
                bytes[CONTROL_HEAD_BYTES..][..16].copy_from_slice(&ip.octets());
                bytes[CONTROL_HEAD_BYTES + 16..][..4].copy_from_slice(&local.interface.to_ne_bytes());
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, size_of::<libc::in6_pktinfo>())
            }
        };
        self.put_head(0, level, kind, data_bytes)
    }

    /// Writes at `at` the message that says how long each datagram is. Output: its length.
    fn add_segment_bytes(&mut self, at: usize, segment_bytes: u16) -> usize {
        self.0[at..at + SEGMENT_CONTROL_BYTES].fill(0);
        self.0[at + CONTROL_HEAD_BYTES..][..2].copy_from_slice(&segment_bytes.to_ne_bytes());
        self.put_head(at, libc::SOL_UDP, libc::UDP_SEGMENT, size_of::<u16>())
    }

    fn put_head(&mut self, at: usize, level: i32, kind: i32, data_bytes: usize) -> usize {
        let head = &mut self.0[at..at + CONTROL_HEAD_BYTES];
        head[..8].copy_from_slice(&(CONTROL_HEAD_BYTES + data_bytes).to_ne_bytes());
        head[8..12].copy_from_slice(&level.to_ne_bytes());
        head[12..].copy_from_slice(&kind.to_ne_bytes());
        (CONTROL_HEAD_BYTES + data_bytes).next_multiple_of(size_of::<usize>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_control_message() {
        for (ip, interface) in [("192.0.2.7", 0), ("2001:db8::1", 0), ("fe80::1", 3), ("::ffff:192.0.2.7", 0)] {
            let ip: IpAddr = ip.parse().unwrap();
            let local = LocalAddress { ip, interface, is_to_many: false };
            let mut control = Control([0xFF; CONTROL_V6_BYTES + SEGMENT_CONTROL_BYTES]);
            let length = control.fill(local);
            if let IpAddr::V4(ip) = ip {
                control.0[CONTROL_HEAD_BYTES + 8..][..4].copy_from_slice(&ip.octets()); // as the kernel does when it receives
            }
            assert_eq!(control.add_segment_bytes(length, 60), SEGMENT_CONTROL_BYTES);
            assert_eq!(local_address(&control.0[..length]), Some(local));
            for cut in 0..CONTROL_HEAD_BYTES + 8 {
                assert_eq!(local_address(&control.0[..cut]), None);
            }
        }
        assert_eq!(local_address(&[0xFF; CONTROL_BYTES]), None);
    }

    #[test]
    fn what_was_sent_to_many_is_told_from_what_was_sent_to_us() {
        let message = |ip: &str, destination: &str| {
            let mut control = Control([0; CONTROL_V6_BYTES + SEGMENT_CONTROL_BYTES]);
            let length = control.fill(LocalAddress { ip: ip.parse().unwrap(), interface: 0, is_to_many: false });
            if let Ok(destination) = destination.parse::<Ipv4Addr>() {
                control.0[CONTROL_HEAD_BYTES + 8..][..4].copy_from_slice(&destination.octets());
            }
            control.0[..length].to_vec()
        };
        let is_to_many = |control: &[u8]| local_address(control).unwrap().is_to_many;
        for (destination, expected) in [("192.0.2.7", false), ("192.0.2.255", true), ("255.255.255.255", true), ("224.0.0.1", true)] {
            let v4 = message("192.0.2.7", destination);
            assert_eq!(is_to_many(&v4), expected, "{destination}");
            let both = [message(&format!("::ffff:{destination}"), ""), v4].concat();
            assert_eq!(is_to_many(&both), expected, "{destination} at an IPv6 socket");
        }
        assert!(is_to_many(&message("ff02::1", "")) && !is_to_many(&message("fe80::1", "")));
    }
}
