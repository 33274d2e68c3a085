//! One request on a connection of its own, with plain blocking sockets: for preparing a run and looking at the counters afterwards.

use super::check::excerpt;
use super::reply::{BadReply, parse_reply};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use xfaas_dataplane::sys::socket::uninterrupted;

const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Fetched {
    pub status: u16,
    pub body: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{operation} {target}")]
    Io {
        operation: &'static str,
        target: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("{target} answered with something else than HTTP: {excerpt}")]
    Reply {
        target: SocketAddr,
        excerpt: String,
        #[source]
        source: BadReply,
    },
    #[error("{target} closed the connection after {bytes} bytes of a reply")]
    Cut { target: SocketAddr, bytes: usize },
}

/// Sends `request` (a whole HTTP/1.1 request) to `target` and waits at most 2 s a step for its reply.
pub fn fetch(target: SocketAddr, request: &[u8]) -> Result<Fetched, FetchError> {
    let io = |operation| move |source| FetchError::Io { operation, target, source };
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT).map_err(io("connect to"))?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(io("set a timeout on a connection to"))?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(io("set a timeout on a connection to"))?;
    stream.write_all(request).map_err(io("write to"))?;
    let mut received = Vec::with_capacity(4_096);
    let mut chunk = [0; 4_096];
    loop {
        let bytes = uninterrupted(|| stream.read(&mut chunk)).map_err(io("read from"))?;
        if bytes == 0 {
            return Err(FetchError::Cut { target, bytes: received.len() });
        }
        received.extend_from_slice(&chunk[..bytes]);
        match parse_reply(&received) {
            Ok(Some(reply)) => return Ok(Fetched { status: reply.status, body: reply.body.to_vec() }),
            Ok(None) => {}
            Err(source) => return Err(FetchError::Reply { target, excerpt: excerpt(&received), source }),
        }
    }
}
