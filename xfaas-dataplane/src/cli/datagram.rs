//! The datagram client of `xfaas invoke --udp`: one request, one wait, no retries. CONTRACT.md section 2.

use super::CliError;
use super::args::InvokeArguments;
use super::invoke::{Reply, ReplyBody};
use crate::net::{AnswerBody, DatagramHead, decode_datagram_answer, encode_datagram_request};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::limits::DATAGRAM_BYTES_MAX;

pub(super) struct DatagramClient {
    socket: UdpSocket,
    function: FunctionHash,
    session: Option<SessionId>,
    address: String,
    timeout: Duration,
    buffer: Vec<u8>,
}

impl DatagramClient {
    /// Resolves the address and makes a socket that hears only from there.
    pub fn new(arguments: &InvokeArguments) -> Result<DatagramClient, CliError> {
        let address = arguments.addr.clone();
        let resolved = address.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        let Some(peer) = resolved else {
            return Err(CliError::Invoke(format!("{address} has no address that the system knows: check --addr")));
        };
        let any: SocketAddr = if peer.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let connect = || {
            let socket = UdpSocket::bind(any)?;
            socket.connect(peer)?;
            Ok(socket)
        };
        let socket =
            connect().map_err(|error: std::io::Error| CliError::Invoke(format!("cannot send to {address}: {error}; check --addr")))?;
        Ok(DatagramClient {
            socket,
            function: FunctionHash::of(arguments.name.as_bytes()),
            session: arguments.session,
            address,
            timeout: Duration::from_millis(arguments.timeout_ms.into()),
            buffer: vec![0; DATAGRAM_BYTES_MAX],
        })
    }

    /// Sends `data` once and waits for its answer; answers to earlier requests are passed over.
    pub fn call(&mut self, data: &[u8]) -> Result<Reply, CliError> {
        let (session, request_id) = (self.session.map_or_else(fresh_session, Ok)?, fresh_u64()?);
        let head = DatagramHead { session, request_id, function: self.function };
        let mut request = Vec::new();
        encode_datagram_request(&mut request, &head, data).map_err(|error| CliError::Usage(format!("{error}: send it over HTTP")))?;
        let begun = Instant::now();
        self.socket.send(&request).map_err(|error| self.failed(&error))?;
        loop {
            let left = self.timeout.checked_sub(begun.elapsed()).filter(|left| !left.is_zero());
            let Some(left) = left else { return Err(self.failed(&ErrorKind::TimedOut.into())) };
            self.socket.set_read_timeout(Some(left)).map_err(|error| self.failed(&error))?;
            let bytes = match self.socket.recv(&mut self.buffer) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(&error)),
            };
            let Ok(answer) = decode_datagram_answer(&self.buffer[..bytes]) else { continue };
            if answer.head != head {
                continue;
            }
            let (error, body) = match answer.body {
                AnswerBody::Reply(output) => (None, output),
                AnswerBody::Error { status, text } => (Some(format!("{} (status {status})", String::from_utf8_lossy(text))), text),
            };
            let elapsed_us = begun.elapsed().as_micros() as u64;
            let session = Some(head.session.as_str().to_owned());
            return Ok(Reply { status: None, session, invocation_id: None, elapsed_us, error, body: ReplyBody::new(body.to_vec()) });
        }
    }

    fn failed(&self, error: &std::io::Error) -> CliError {
        let address = &self.address;
        CliError::Invoke(match error.kind() {
            ErrorKind::ConnectionRefused => {
                format!("nobody takes datagrams on {address}: start a node with `xfaas run`, or give its address with --addr")
            }
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                let timeout_ms = self.timeout.as_millis();
                format!("no answer from {address} within {timeout_ms} ms: is it the node's address? Or give it longer with --timeout-ms")
            }
            _ => format!("cannot talk to {address}: {error}; check --addr"),
        })
    }
}

fn fresh_u64() -> Result<u64, CliError> {
    getrandom::u64().map_err(|error| CliError::Invoke(format!("the system gives no random numbers ({error}): give --session")))
}

/// 128 random bits as text: nobody guesses it.
fn fresh_session() -> Result<SessionId, CliError> {
    let text = format!("{:016x}{:016x}", fresh_u64()?, fresh_u64()?);
    Ok(SessionId::new(text.as_bytes()).expect("32 hexadecimal digits are a session ID"))
}
