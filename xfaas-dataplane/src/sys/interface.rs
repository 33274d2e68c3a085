//! What the kernel says of a network interface of this namespace. Asks by rtnetlink, which needs no rights; changes nothing.

use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

// Layouts and numbers of include/uapi/linux/netlink.h, rtnetlink.h and if_link.h; all in the order of this machine.
const MESSAGE_HEAD_BYTES: usize = 16;
const INTERFACE_BYTES: usize = 16;
const ATTRIBUTE_HEAD_BYTES: usize = 4;
/// Attributes begin at multiples of this.
const ALIGNMENT_BYTES: usize = 4;
/// Marks an attribute that holds others, and one in network order; the rest is its type.
const ATTRIBUTE_FLAGS: u16 = 0xC000;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
/// What the kernel may say of one interface; more is cut off.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Errors: there is none of that name. (What `/sys/class/net` lists is of the namespace in which that was mounted.)
pub fn index(name: &str) -> Result<u32, Error> {
    Ok(name_to_index(socket()?, name)?)
}

/// True when an XDP program is attached, in any mode.
pub fn has_xdp_program(index: u32) -> Result<bool, Error> {
    let socket = socket()?;
    send(&socket, &question(index), SendFlags::empty())?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    let (_, bytes) = recv(&socket, &mut answer, RecvFlags::empty())?;
    xdp_state(answer.get(..bytes).unwrap_or_default())
}

fn socket() -> Result<OwnedFd, Error> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// `RTM_GETLINK` for one interface: `nlmsghdr`, `ifinfomsg`.
fn question(index: u32) -> [u8; MESSAGE_HEAD_BYTES + INTERFACE_BYTES] {
    let mut bytes = [0; MESSAGE_HEAD_BYTES + INTERFACE_BYTES];
    bytes[..4].copy_from_slice(&((MESSAGE_HEAD_BYTES + INTERFACE_BYTES) as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    bytes[MESSAGE_HEAD_BYTES + 4..][..4].copy_from_slice(&index.to_ne_bytes());
    bytes
}

/// Input: what the kernel answered. Errors: its own, or that it is no answer.
fn xdp_state(answer: &[u8]) -> Result<bool, Error> {
    let kind = answer.get(4..).and_then(<[u8]>::first_chunk).map(|kind| u16::from_ne_bytes(*kind));
    let body = answer.get(MESSAGE_HEAD_BYTES..).unwrap_or_default();
    match (kind.map(i32::from), body.first_chunk()) {
        (Some(libc::NLMSG_ERROR), Some(code)) => Err(Error::from_raw_os_error(i32::from_ne_bytes(*code).wrapping_neg())),
        (Some(kind), Some(_)) if kind == i32::from(libc::RTM_NEWLINK) => {
            let attached =
                attribute(body.get(INTERFACE_BYTES..).unwrap_or_default(), IFLA_XDP).and_then(|xdp| attribute(xdp, IFLA_XDP_ATTACHED));
            Ok(attached.and_then(<[u8]>::first).is_some_and(|mode| *mode != 0))
        }
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// What the first attribute of this type holds.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let [a, b, c, d] = *attributes.first_chunk::<ATTRIBUTE_HEAD_BYTES>()?;
        let bytes = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(ATTRIBUTE_HEAD_BYTES..bytes)?;
        if u16::from_ne_bytes([c, d]) & !ATTRIBUTE_FLAGS == wanted {
            return Some(value);
        }
        attributes = attributes.get(bytes.next_multiple_of(ALIGNMENT_BYTES)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An attribute, and what fills it up.
    fn coded(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = [((ATTRIBUTE_HEAD_BYTES + value.len()) as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT_BYTES), 0);
        bytes
    }

    fn answer(kind: u16, body: &[u8]) -> Vec<u8> {
        [&[0; 4][..], &kind.to_ne_bytes(), &[0; 10], body].concat()
    }

    #[test]
    fn an_attached_program_is_seen_in_the_answer() {
        let of_mode = |mode| {
            let nested = coded(IFLA_XDP | 0x8000, &coded(IFLA_XDP_ATTACHED, &[mode]));
            answer(libc::RTM_NEWLINK, &[&[0; INTERFACE_BYTES][..], &coded(3, b"lo\0"), &nested].concat())
        };
        assert!(!xdp_state(&of_mode(0)).unwrap());
        assert!(xdp_state(&of_mode(1)).unwrap() && xdp_state(&of_mode(2)).unwrap());
        assert!(!xdp_state(&answer(libc::RTM_NEWLINK, &[0; INTERFACE_BYTES])).unwrap(), "says nothing of XDP");
        let whole = of_mode(1);
        for cut in 0..whole.len() {
            assert!(!matches!(xdp_state(&whole[..cut]), Ok(true)) || cut > whole.len() - 4, "cut at {cut}");
        }
        let refused = xdp_state(&answer(libc::NLMSG_ERROR as u16, &(-libc::ENODEV).to_ne_bytes()));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn interfaces_of_this_machine_are_asked() {
        assert!(has_xdp_program(index("lo").unwrap()).is_ok());
        assert_eq!(has_xdp_program(i32::MAX as u32).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        for nothing in ["", ".", "..", "nowhere0", "../net/lo"] {
            assert!(index(nothing).is_err(), "{nothing:?}");
        }
    }
}
