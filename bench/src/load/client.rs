//! One connection with plain blocking sockets that is kept: for requests one after another, and for many in one write.

use super::check::excerpt;
use super::fetch::{FetchError, Fetched};
use super::reply::parse_reply;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use xfaas_dataplane::sys::socket::uninterrupted;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Whole HTTP/1.1 requests in, replies out, in order.
pub struct Client {
    target: SocketAddr,
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    /// Every step waits at most 10 s.
    pub fn connect(target: SocketAddr) -> Result<Client, FetchError> {
        let io = |operation| move |source| FetchError::Io { operation, target, source };
        let stream = TcpStream::connect_timeout(&target, TIMEOUT).map_err(io("connect to"))?;
        stream.set_nodelay(true).map_err(io("set TCP_NODELAY on a connection to"))?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(io("set a timeout on a connection to"))?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(io("set a timeout on a connection to"))?;
        Ok(Client { target, stream, received: Vec::with_capacity(64 << 10) })
    }

    /// Sends one or more whole requests.
    pub fn send(&mut self, requests: &[u8]) -> Result<(), FetchError> {
        let target = self.target;
        self.stream.write_all(requests).map_err(|source| FetchError::Io { operation: "write to", target, source })
    }

    /// The next reply.
    pub fn receive(&mut self) -> Result<Fetched, FetchError> {
        let target = self.target;
        let mut chunk = [0; 16 << 10];
        loop {
            match parse_reply(&self.received) {
                Ok(Some(reply)) => {
                    let (fetched, bytes) = (Fetched { status: reply.status, body: reply.body.to_vec() }, reply.bytes);
                    self.received.drain(..bytes);
                    return Ok(fetched);
                }
                Ok(None) => {}
                Err(source) => return Err(FetchError::Reply { target, excerpt: excerpt(&self.received), source }),
            }
            let read = uninterrupted(|| self.stream.read(&mut chunk));
            let bytes = read.map_err(|source| FetchError::Io { operation: "read from", target, source })?;
            if bytes == 0 {
                return Err(FetchError::Cut { target, bytes: self.received.len() });
            }
            self.received.extend_from_slice(&chunk[..bytes]);
        }
    }

    /// Sends one request and waits for its reply.
    pub fn ask(&mut self, request: &[u8]) -> Result<Fetched, FetchError> {
        self.send(request)?;
        self.receive()
    }
}
