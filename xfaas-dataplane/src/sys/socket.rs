//! The listening sockets of a shard: one TCP and one UDP socket a shard, all on the same port with SO_REUSEPORT.

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({kind}){hint}")]
pub struct ListenError {
    pub address: SocketAddr,
    pub kind: &'static str,
    hint: &'static str,
    #[source]
    source: std::io::Error,
}

/// Connections that wait to be accepted, a socket.
const BACKLOG_CONNECTIONS: i32 = 4_096;
/// Asked of the kernel for datagrams on their way in; the kernel grants at most `net.core.rmem_max`.
const UDP_RECEIVE_BYTES: usize = 4 << 20;

/// The kernel takes the rings of a process apart after its end, and the sockets they hold with them: a restart waits so long. 24 ms measured, and
/// over a second on a machine that had more to do than it could.
pub const RELEASE_WAIT: Duration = Duration::from_secs(3);
const RELEASE_POLL: Duration = Duration::from_millis(5);

/// Refuses an address that another process listens on. SO_REUSEPORT alone would share it without a word, when it is ours or we are root.
/// Called once before the shards' sockets are made. Cost: three seconds when the address is taken.
pub fn ensure_free(address: SocketAddr, tcp: bool) -> Result<(), ListenError> {
    ensure_free_by(address, tcp, Instant::now() + RELEASE_WAIT)
}

/// As `ensure_free`, but waits until `deadline` for an address that is taken: several addresses can share one wait.
pub fn ensure_free_by(address: SocketAddr, tcp: bool, deadline: Instant) -> Result<(), ListenError> {
    loop {
        match bind(address, tcp, false) {
            Err(error) if error.source.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => std::thread::sleep(RELEASE_POLL),
            bound => return bound.map(drop),
        }
    }
}

/// A TCP listener with SO_REUSEPORT.
pub fn tcp_listener(address: SocketAddr) -> Result<OwnedFd, ListenError> {
    let socket = bind(address, true, true)?;
    socket.listen(BACKLOG_CONNECTIONS).map_err(|source| listen_error(address, true, source))?;
    Ok(socket.into())
}

/// A UDP socket with SO_REUSEPORT.
pub fn udp_socket(address: SocketAddr) -> Result<OwnedFd, ListenError> {
    let socket = bind(address, false, true)?;
    // Refused only below the kernel's own minimum: then its default stands.
    drop(socket.set_recv_buffer_size(UDP_RECEIVE_BYTES));
    if address.ip().is_unspecified() {
        tell_local_addresses(&socket, address).map_err(|source| listen_error(address, false, source))?;
    }
    Ok(socket.into())
}

/// Bytes of datagrams, with what the kernel keeps about each, that a socket holds before more are dropped; 0 when it does not say.
pub fn receive_bytes(socket: BorrowedFd<'_>) -> u64 {
    SockRef::from(&socket).recv_buffer_size().unwrap_or(0) as u64
}

/// Makes each datagram come with the address it was sent to: what `peer` reads. An IPv6 socket tells it of IPv4 datagrams too, and which of them are
/// broadcasts by the other option only.
fn tell_local_addresses(socket: &Socket, address: SocketAddr) -> std::io::Result<()> {
    if address.is_ipv6() {
        switch_on(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?;
    }
    switch_on(socket, libc::IPPROTO_IP, libc::IP_PKTINFO)
}

fn switch_on(socket: &Socket, level: libc::c_int, option: libc::c_int) -> std::io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one `int` from `on`, which lives until the call returns; the descriptor is open as long as `socket`.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size_of::<libc::c_int>() as libc::socklen_t) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn listen_error(address: SocketAddr, tcp: bool, source: std::io::Error) -> ListenError {
    let hint = match source.kind() {
        ErrorKind::AddrInUse => ": another process listens there; stop it or choose another port",
        ErrorKind::PermissionDenied => ": a port below 1024 needs CAP_NET_BIND_SERVICE",
        ErrorKind::AddrNotAvailable => ": no interface of this machine has that address",
        _ => "",
    };
    ListenError { address, kind: if tcp { "TCP" } else { "UDP" }, hint, source }
}

fn bind(address: SocketAddr, tcp: bool, share: bool) -> Result<Socket, ListenError> {
    let make = || {
        let (kind, protocol) = if tcp { (Type::STREAM, Protocol::TCP) } else { (Type::DGRAM, Protocol::UDP) };
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?; // `[::]` serves IPv4 too
        }
        if tcp {
            socket.set_reuse_address(true)?;
            // Inherited by accepted connections: a reply must not wait for the client's delayed ACK.
            socket.set_tcp_nodelay(true)?;
        }
        if share {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    make().map_err(|source| listen_error(address, tcp, source))
}

/// What `call` gives when nothing interrupts it. A wait for a socket that has a time limit ends with `EINTR` also where no signal is handled: in a process that was
/// stopped and goes on, or frozen with its control group (signal(7)). The time limit begins anew then.
pub fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_call_is_made_again_and_other_errors_are_told() {
        let outcome_of = |mut outcomes: Vec<std::io::Result<u8>>| uninterrupted(move || outcomes.remove(0)).map_err(|error| error.kind());
        let interrupted = || Err(ErrorKind::Interrupted.into());
        assert_eq!(outcome_of(vec![interrupted(), interrupted(), Ok(7), Ok(8)]), Ok(7));
        assert_eq!(outcome_of(vec![interrupted(), Err(ErrorKind::TimedOut.into()), Ok(8)]), Err(ErrorKind::TimedOut));
    }
}
