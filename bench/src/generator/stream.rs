//! HTTP/1.1 over connections, one request at a time on each: the connection's number is the place of its request. A connection that the
//! server closes is made anew.

use super::judge::{Outcome, judge_http};
use super::ledger::Ledger;
use super::spec::{GeneratorError, LoadSpec};
use super::template::Template;
use super::thread::Wire;
use crate::load::{LoadError, excerpt, parse_reply};
use rustix::io::Errno;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::sys::{Completion, FixedFile, GroupOptions, Ring, RingOptions, Tag};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RECEIVE_BUFFER_BYTES: u32 = 4_096;
/// A server that closes more often does not serve.
const RECONNECTS_MAX: u64 = 10_000;
/// A tag: what it is, how often the connection was made (16 bits), its number (32 bits).
const KIND_SHIFT: u32 = 48;
const ROUND_SHIFT: u32 = 32;
const RECEIVE: u64 = 1;
const SENT: u64 = 2;

#[derive(Default)]
struct Connection {
    round: u16,
    /// The start of a reply that came in pieces.
    partial: Vec<u8>,
}

pub(super) struct Streams<'a> {
    spec: &'a LoadSpec,
    sessions: &'a [SessionId],
    templates: Vec<Template>,
    connections: Vec<Connection>,
    /// Send buffers to use again.
    spare: Vec<Vec<u8>>,
}

impl<'a> Streams<'a> {
    /// Connects `count` times. Errors: the server cannot be reached.
    pub(super) fn connect(spec: &'a LoadSpec, sessions: &'a [SessionId], count: usize) -> Result<(Streams<'a>, Ring), GeneratorError> {
        let mut ring = Ring::new(&RingOptions {
            submission_entries: 1_024,
            completion_entries: 16_384,
            files: count as u32,
            groups: vec![GroupOptions { buffers: (count * 2).next_power_of_two().clamp(64, 4_096) as u16, buffer_bytes: RECEIVE_BUFFER_BYTES }],
            polls: true,
        })
        .map_err(LoadError::from)?;
        let sockets = spec.network.at_client(|| (0..count).map(|_| connect(spec)).collect::<Result<Vec<_>, LoadError>>())??;
        for (i, socket) in sockets.into_iter().enumerate() {
            ring.adopt(FixedFile(i as u32), socket.as_fd()).map_err(LoadError::from)?; // the ring keeps the socket, the descriptor goes
        }
        let streams = Streams {
            spec,
            sessions,
            templates: spec.functions.iter().map(|function| Template::http(spec, &function.name)).collect(),
            connections: (0..count).map(|_| Connection::default()).collect(),
            spare: Vec::with_capacity(2 * count),
        };
        for i in 0..count {
            streams.arm(&mut ring, i);
        }
        Ok((streams, ring))
    }

    fn tag(&self, kind: u64, i: usize) -> Tag {
        Tag(kind << KIND_SHIFT | u64::from(self.connections[i].round) << ROUND_SHIFT | i as u64)
    }

    fn arm(&self, ring: &mut Ring, i: usize) {
        ring.recv_multi(self.tag(RECEIVE, i), FixedFile(i as u32), 0);
    }

    fn on_receive(&mut self, ring: &mut Ring, i: usize, completion: Completion, ledger: &mut Ledger<'_>, now_ns: u64) -> Result<(), GeneratorError> {
        let Some(buffer) = completion.received else {
            if completion.result == -Errno::NOBUFS.raw_os_error() {
                self.arm(ring, i);
                return Ok(());
            }
            return self.reconnect(ring, i, ledger);
        };
        let bytes = ring.bytes(&buffer);
        let connection = &mut self.connections[i];
        if connection.partial.is_empty() {
            if !take(self.spec, self.sessions, i, bytes, ledger, now_ns) {
                connection.partial.extend_from_slice(bytes);
            }
        } else {
            connection.partial.extend_from_slice(bytes);
            if take(self.spec, self.sessions, i, &connection.partial, ledger, now_ns) {
                connection.partial.clear();
            }
        }
        ring.recycle(buffer);
        if !completion.more {
            self.arm(ring, i);
        }
        Ok(())
    }

    /// The server closed connection `i`, or it broke.
    fn reconnect(&mut self, ring: &mut Ring, i: usize, ledger: &mut Ledger<'_>) -> Result<(), GeneratorError> {
        if ledger.is_busy(i) {
            ledger.tally.cut += 1;
            ledger.given_up(i);
        }
        let connection = &mut self.connections[i];
        connection.round = connection.round.wrapping_add(1);
        connection.partial.clear();
        ledger.tally.reconnects += 1;
        if ledger.tally.reconnects > RECONNECTS_MAX {
            return Err(LoadError::Closed { target: self.spec.target, replies: ledger.tally.whole().answers() }.into());
        }
        let socket = self.spec.network.at_client(|| connect(self.spec))??;
        ring.adopt(FixedFile(i as u32), socket.as_fd()).map_err(LoadError::from)?; // in place of the old one
        self.arm(ring, i);
        Ok(())
    }
}

fn connect(spec: &LoadSpec) -> Result<TcpStream, LoadError> {
    let target = spec.target;
    let stream = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT).map_err(|source| LoadError::Connect { target, source })?;
    stream.set_nodelay(true).map_err(|source| LoadError::Socket { operation: "set TCP_NODELAY", target, source })?;
    Ok(stream)
}

/// Judges what came on connection `i` so far; false while more must come.
fn take(spec: &LoadSpec, sessions: &[SessionId], i: usize, bytes: &[u8], ledger: &mut Ledger<'_>, now_ns: u64) -> bool {
    if !ledger.is_busy(i) {
        ledger.stray(|| excerpt(bytes));
        return true;
    }
    let session = spec.shape.names_session.then(|| &sessions[ledger.place(i).session as usize]);
    let outcome = match parse_reply(bytes) {
        Ok(None) => return false,
        Ok(Some(reply)) if reply.bytes != bytes.len() => Outcome::Wrong("bytes follow the reply"),
        Ok(Some(reply)) => judge_http(&reply, session, ledger.check_of(i), &spec.payload),
        Err(_) => Outcome::Wrong("the answer is no HTTP reply"),
    };
    ledger.answered(i, outcome, now_ns, || excerpt(bytes));
    true
}

impl Wire for Streams<'_> {
    fn send(&mut self, ring: &mut Ring, ledger: &Ledger<'_>, place: usize) {
        let asked = ledger.place(place);
        let mut buffer = self.spare.pop().unwrap_or_default();
        self.templates[usize::from(asked.function)].fill(&self.sessions[asked.session as usize], &mut buffer);
        ring.send(self.tag(SENT, place), FixedFile(place as u32), buffer);
    }

    fn on_completion(&mut self, ring: &mut Ring, completion: Completion, ledger: &mut Ledger<'_>, now_ns: u64) -> Result<(), GeneratorError> {
        let i = completion.tag.0 as u32 as usize;
        if completion.tag.0 >> KIND_SHIFT == SENT {
            // A send that failed is told by the receive's end as well.
            self.spare.extend(completion.sent);
            return Ok(());
        }
        if (completion.tag.0 >> ROUND_SHIFT) as u16 != self.connections[i].round {
            if let Some(buffer) = completion.received {
                ring.recycle(buffer); // of a connection that is no more
            }
            return Ok(());
        }
        self.on_receive(ring, i, completion, ledger, now_ns)
    }
}
