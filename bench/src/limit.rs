//! The limit: what one core and one io_uring can do when the server does nothing. Finds the end of each request head and answers with a
//! fixed reply of the size that xfaas' counter sends. Used by the binary `limit`. Takes no bodies; nothing but the head's end is looked at.

use memchr::memmem;
use rustix::io::Errno;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::net::{ConnectionHeader, ReplyHead, encode_reply, http_date};
use xfaas_dataplane::sys::socket::{ListenError, tcp_listener};
use xfaas_dataplane::sys::{Completion, FixedFile, GroupOptions, Ring, RingError, RingOptions, Tag, clock};

/// Connections at once; more are refused by the ring's table of descriptors.
pub const LIMIT_CONNECTIONS_MAX: u32 = 1_024;
const RECEIVE_BUFFERS: u16 = 256;
const RECEIVE_BUFFER_BYTES: u32 = 2_048;
/// Bytes of replies under way and not yet sent on one connection; one that pipelines more without reading is closed.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Kind of operation in a tag, above the number of the descriptor.
const TAG_KIND_SHIFT: u32 = 32;
const TAG_ACCEPT: u64 = 1;
const TAG_RECEIVE: u64 = 2;
const TAG_SENT: u64 = 3;
const TAG_CLOSED: u64 = 4;
const HEAD_END: &[u8; 4] = b"\r\n\r\n";

#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    #[error("the echo server cannot listen")]
    Listen(#[from] ListenError),
    #[error("the echo server's ring failed")]
    Ring(#[from] RingError),
}

/// A reply exactly as xfaas would send it for a counter of session `session` at `count`.
pub fn counter_reply(session: &SessionId, count: u64) -> Vec<u8> {
    let head = ReplyHead {
        status: 200,
        content_type: b"application/octet-stream",
        session_header: b"x-session-id",
        session,
        invocation_id: 0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF,
        date: &http_date(clock::unix_s()),
        connection: ConnectionHeader::None,
        extra: b"x-xfaas-core: 0\r\n",
    };
    let mut reply = Vec::new();
    encode_reply(&mut reply, &head, count.to_string().as_bytes(), false);
    reply
}

/// Counts head ends in a stream that comes in pieces: how many bytes of `\r\n\r\n` the last piece ended with is all it keeps.
#[derive(Default)]
struct HeadEnds {
    matched: usize,
}

impl HeadEnds {
    /// Heads that end in `bytes`. Cost: one pass.
    fn count(&mut self, finder: &memmem::Finder<'_>, mut bytes: &[u8]) -> usize {
        let mut ends = 0;
        while self.matched > 0 {
            let Some((&byte, rest)) = bytes.split_first() else { return ends };
            bytes = rest;
            self.step(byte);
            if self.matched == HEAD_END.len() {
                self.matched = 0;
                ends += 1;
            }
        }
        while let Some(at) = finder.find(bytes) {
            ends += 1;
            bytes = &bytes[at + HEAD_END.len()..];
        }
        for &byte in &bytes[bytes.len().saturating_sub(HEAD_END.len() - 1)..] {
            self.step(byte);
        }
        ends
    }

    fn step(&mut self, byte: u8) {
        self.matched = match byte {
            byte if byte == HEAD_END[self.matched] => self.matched + 1,
            b'\r' => 1,
            _ => 0,
        };
    }
}

#[derive(Default)]
struct Connection {
    heads: HeadEnds,
    /// Replies that wait for the send under way.
    out: Vec<u8>,
    sending: bool,
    /// The client is gone: nothing more is received.
    ended: bool,
}

struct Echo {
    ring: Ring,
    listener: OwnedFd,
    connections: Vec<Connection>,
    spare: Vec<Vec<u8>>,
    finder: memmem::Finder<'static>,
    reply: Vec<u8>,
}

/// Listens on `address` and answers with `reply` until the process ends; `ready` is called when connections are taken. Runs on the calling
/// thread. Errors: the address is taken, or the kernel lacks a feature of the ring.
pub fn serve(address: SocketAddr, reply: Vec<u8>, ready: impl FnOnce()) -> Result<(), LimitError> {
    let ring = Ring::new(&RingOptions {
        submission_entries: 256, // as a shard's: larger rings leave the caches
        completion_entries: 1_024,
        files: LIMIT_CONNECTIONS_MAX,
        groups: vec![GroupOptions { buffers: RECEIVE_BUFFERS, buffer_bytes: RECEIVE_BUFFER_BYTES }],
        polls: false,
    })?;
    let mut echo = Echo {
        ring,
        listener: tcp_listener(address)?,
        connections: (0..LIMIT_CONNECTIONS_MAX).map(|_| Connection::default()).collect(),
        spare: Vec::with_capacity(LIMIT_CONNECTIONS_MAX as usize),
        finder: memmem::Finder::new(HEAD_END),
        reply,
    };
    echo.accept();
    ready();
    loop {
        echo.ring.wait_past_sends(Duration::from_secs(1))?; // as a shard does: half the system calls under load
        while let Some(completion) = echo.ring.next_completion() {
            echo.on_completion(completion);
        }
    }
}

fn tag(kind: u64, file: FixedFile) -> Tag {
    Tag(kind << TAG_KIND_SHIFT | u64::from(file.0))
}

impl Echo {
    fn accept(&mut self) {
        self.ring.accept_multi(tag(TAG_ACCEPT, FixedFile(0)), self.listener.as_fd());
    }

    fn on_completion(&mut self, completion: Completion) {
        let file = FixedFile(completion.tag.0 as u32);
        match completion.tag.0 >> TAG_KIND_SHIFT {
            TAG_RECEIVE => self.on_receive(file, completion),
            TAG_SENT => self.on_sent(file, completion),
            TAG_ACCEPT => {
                if let Ok(file) = u32::try_from(completion.result) {
                    self.connections[file as usize] = Connection::default();
                    self.ring.recv_multi(tag(TAG_RECEIVE, FixedFile(file)), FixedFile(file), 0);
                }
                if !completion.more {
                    self.accept();
                }
            }
            _ => {} // closed
        }
    }

    fn on_receive(&mut self, file: FixedFile, completion: Completion) {
        let connection = &mut self.connections[file.0 as usize];
        if let Some(buffer) = completion.received {
            let heads = connection.heads.count(&self.finder, self.ring.bytes(&buffer));
            self.ring.recycle(buffer);
            for _ in 0..heads {
                connection.out.extend_from_slice(&self.reply);
            }
        }
        if !completion.more {
            if completion.result > 0 || completion.result == -Errno::NOBUFS.raw_os_error() {
                self.ring.recv_multi(tag(TAG_RECEIVE, file), file, 0);
            } else {
                connection.ended = true;
            }
        }
        if connection.out.len() > OUTPUT_BYTES_MAX {
            connection.out.clear();
            self.ring.cancel_all(file); // its receive then ends
        }
        self.go_on(file);
    }

    fn on_sent(&mut self, file: FixedFile, completion: Completion) {
        let connection = &mut self.connections[file.0 as usize];
        connection.sending = false;
        if completion.result < 0 {
            connection.out.clear(); // the client is gone, and its receive ends as well
        }
        if let Some(mut buffer) = completion.sent {
            buffer.clear();
            self.spare.push(buffer);
        }
        self.go_on(file);
    }

    /// Sends what waits, or closes what is over.
    fn go_on(&mut self, file: FixedFile) {
        let connection = &mut self.connections[file.0 as usize];
        if connection.sending {
            return;
        }
        if !connection.out.is_empty() {
            let buffer = std::mem::replace(&mut connection.out, self.spare.pop().unwrap_or_default());
            connection.sending = true;
            self.ring.send(tag(TAG_SENT, file), file, buffer);
        } else if connection.ended {
            connection.ended = false; // closed once
            self.ring.close(tag(TAG_CLOSED, file), file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(pieces: &[&[u8]]) -> usize {
        let finder = memmem::Finder::new(HEAD_END);
        let mut heads = HeadEnds::default();
        pieces.iter().map(|piece| heads.count(&finder, piece)).sum()
    }

    #[test]
    fn heads_are_found_however_the_stream_is_cut() {
        let stream = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\n\r\r\nHost: b\r\n\r\n\r\n\r\n";
        assert_eq!(count(&[stream]), 3);
        for first in 0..stream.len() {
            for second in first..stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(count(&pieces), 3, "cut at {first} and {second}");
            }
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(count(&bytes), 3);
    }

    #[test]
    fn the_reply_is_one_that_the_load_generator_takes() {
        let reply = counter_reply(&SessionId::new(b"session-00000001").unwrap(), 12_345);
        let parsed = crate::load::parse_reply(&reply).unwrap().unwrap();
        assert_eq!((parsed.status, parsed.body, parsed.bytes), (200, b"12345".as_slice(), reply.len()));
        assert!((190..260).contains(&reply.len()), "{} bytes", reply.len());
    }
}
