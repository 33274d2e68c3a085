//! HTTP/1.1, or redis' protocol, over connections: a request is known by its connection and the order in which it was sent there. With as
//! many requests under way as connections there is one on each; with more, they are pipelined. A connection that the server closes, or on which it says what is no
//! reply, is made anew.

use super::judge::{Outcome, fault_of_bytes, judge_http};
use super::ledger::Ledger;
use super::resp::judge_resp;
use super::spec::{GeneratorError, LoadSpec, Transport};
use super::template::Template;
use super::thread::Wire;
use crate::load::{LoadError, excerpt, parse_reply};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::sys::{Completion, FixedFile, GroupOptions, Ring, RingOptions, Tag};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RECEIVE_BUFFER_BYTES: u32 = 4_096;
/// A server whose connections end so often, with nothing served meanwhile, does not serve.
const RECONNECTS_IN_VAIN_MAX: u64 = 10_000;
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
    /// Places of the requests that are not answered yet, in the order in which they were sent.
    asked: VecDeque<u32>,
    /// Requests that wait for the send under way, or for the end of this batch.
    out: Vec<u8>,
    is_sending: bool,
}

/// What came of the bytes on a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Took {
    /// So many bytes of whole replies.
    Bytes(usize),
    /// No more of this connection is of use: the server closes it, or says what is no reply to anything.
    Ended,
}

pub(super) struct Streams<'a> {
    spec: &'a LoadSpec,
    sessions: &'a [SessionId],
    templates: Vec<Template>,
    connections: Vec<Connection>,
    /// Connections with something to send.
    ready: Vec<u32>,
    request: Vec<u8>,
    /// Send buffers to use again.
    spare: Vec<Vec<u8>>,
    /// Requests that were served when a connection last ended, and how often one has since then.
    served: u64,
    in_vain: u64,
}

impl<'a> Streams<'a> {
    /// Connects `count` times. Errors: the server cannot be reached.
    pub(super) fn connect(spec: &'a LoadSpec, sessions: &'a [SessionId], count: usize) -> Result<(Streams<'a>, Ring), GeneratorError> {
        let mut ring = Ring::new(&RingOptions {
            submission_entries: 1_024,
            completion_entries: 16_384,
            files: count as u32,
            groups: vec![GroupOptions {
                buffers: (count * 2).next_power_of_two().clamp(64, 4_096) as u16,
                buffer_bytes: RECEIVE_BUFFER_BYTES,
            }],
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
            templates: spec.functions.iter().map(|function| template(spec, &function.name)).collect(),
            connections: (0..count).map(|_| Connection::default()).collect(),
            ready: Vec::with_capacity(count),
            request: Vec::new(),
            spare: Vec::with_capacity(2 * count),
            served: 0,
            in_vain: 0,
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

    fn on_receive(
        &mut self,
        ring: &mut Ring,
        i: usize,
        completion: Completion,
        ledger: &mut Ledger<'_>,
        now_ns: u64,
    ) -> Result<(), GeneratorError> {
        let Some(buffer) = completion.received else {
            if completion.result == -Errno::NOBUFS.raw_os_error() {
                self.arm(ring, i);
                return Ok(());
            }
            return self.reconnect(ring, i, ledger);
        };
        let bytes = ring.bytes(&buffer);
        let Connection { partial, asked, .. } = &mut self.connections[i];
        let took = if partial.is_empty() {
            let took = take(self.spec, self.sessions, asked, bytes, ledger, now_ns);
            if let Took::Bytes(taken) = took {
                partial.extend_from_slice(&bytes[taken..]);
            }
            took
        } else {
            partial.extend_from_slice(bytes);
            let took = take(self.spec, self.sessions, asked, partial, ledger, now_ns);
            if let Took::Bytes(taken) = took {
                partial.drain(..taken);
            }
            took
        };
        ring.recycle(buffer);
        if took == Took::Ended {
            ring.cancel_all(FixedFile(i as u32));
            ring.poll().map_err(LoadError::from)?; // now, or it would meet the connection that takes this one's place
            return self.reconnect(ring, i, ledger);
        }
        if !completion.more {
            self.arm(ring, i);
        }
        Ok(())
    }

    /// The server closed connection `i`, or it broke.
    fn reconnect(&mut self, ring: &mut Ring, i: usize, ledger: &mut Ledger<'_>) -> Result<(), GeneratorError> {
        let connection = &mut self.connections[i];
        for place in connection.asked.drain(..) {
            ledger.cut(place as usize);
        }
        connection.round = connection.round.wrapping_add(1);
        connection.partial.clear();
        connection.out.clear();
        connection.is_sending = false; // what was being sent belongs to the round before
        ledger.tally.reconnects += 1;
        let served = ledger.served();
        self.in_vain = if served > self.served { 1 } else { self.in_vain + 1 };
        self.served = served;
        if self.in_vain > RECONNECTS_IN_VAIN_MAX {
            return Err(GeneratorError::Reconnects { target: self.spec.target, count: RECONNECTS_IN_VAIN_MAX });
        }
        let socket = self.spec.network.at_client(|| connect(self.spec))??;
        ring.adopt(FixedFile(i as u32), socket.as_fd()).map_err(LoadError::from)?; // in place of the old one
        self.arm(ring, i);
        Ok(())
    }
}

fn template(spec: &LoadSpec, function: &str) -> Template {
    if spec.transport == Transport::Redis { Template::redis(spec, function) } else { Template::http(spec, function) }
}

fn connect(spec: &LoadSpec) -> Result<TcpStream, LoadError> {
    let target = spec.target;
    let stream = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT).map_err(|source| LoadError::Connect { target, source })?;
    stream.set_nodelay(true).map_err(|source| LoadError::Socket { operation: "set TCP_NODELAY", target, source })?;
    if target.ip().to_canonical().is_loopback() {
        // Nothing is congested there, and models of the path cost CPU time with each request. Every kernel has it; if not, it is only slower.
        rustix::net::sockopt::set_tcp_congestion(&stream, "reno").ok();
    }
    Ok(stream)
}

/// Judges the whole replies in what came so far on a connection.
fn take(spec: &LoadSpec, sessions: &[SessionId], asked: &mut VecDeque<u32>, bytes: &[u8], ledger: &mut Ledger<'_>, now_ns: u64) -> Took {
    let mut taken = 0;
    while taken < bytes.len() {
        let rest = &bytes[taken..];
        let Some(place) = asked.front().map(|place| *place as usize) else {
            ledger.stray(|| excerpt(rest));
            return Took::Ended;
        };
        let Some((outcome, reply_bytes)) = judge(spec, sessions, place, rest, ledger) else { break };
        asked.pop_front();
        ledger.answered(place, outcome, now_ns, || excerpt(rest));
        match reply_bytes {
            Some(bytes) => taken += bytes,
            None => return Took::Ended,
        }
    }
    Took::Bytes(taken)
}

/// What the first reply in `bytes` is worth to the request at `place`, and its length if more may follow it; `None` when more of it must come.
fn judge(spec: &LoadSpec, sessions: &[SessionId], place: usize, bytes: &[u8], ledger: &Ledger<'_>) -> Option<(Outcome, Option<usize>)> {
    if spec.transport == Transport::Redis {
        return judge_resp(bytes, ledger.check_of(place), &spec.payload);
    }
    match parse_reply(bytes) {
        Ok(reply) => reply.map(|reply| {
            let session = spec.shape.names_session.then(|| &sessions[ledger.place(place).session as usize]);
            let outcome = judge_http(&reply, session, ledger.check_of(place), &spec.payload);
            (outcome, (!reply.closes).then_some(reply.bytes))
        }),
        Err(_) => Some((Outcome::Wrong(fault_of_bytes(bytes)), None)),
    }
}

impl Wire for Streams<'_> {
    /// Each is a send of its own, and of more of them the kernel's way out stays in the cache: of 16 each costs a twentieth more.
    const SEND_BATCH: usize = 32;

    fn send(&mut self, _ring: &mut Ring, ledger: &Ledger<'_>, place: usize) {
        let asked = ledger.place(place);
        let i = place % self.connections.len();
        let connection = &mut self.connections[i];
        if connection.out.is_empty() && !connection.is_sending {
            self.ready.push(i as u32);
        }
        self.templates[usize::from(asked.function)].fill(&self.sessions[asked.session as usize], &mut self.request);
        connection.out.extend_from_slice(&self.request);
        connection.asked.push_back(place as u32);
    }

    /// One send for all that a connection has: two of one socket under way at once could change places.
    fn flush(&mut self, ring: &mut Ring) {
        while let Some(i) = self.ready.pop() {
            let i = i as usize;
            let tag = self.tag(SENT, i);
            let connection = &mut self.connections[i];
            if connection.is_sending || connection.out.is_empty() {
                continue; // made anew meanwhile
            }
            connection.is_sending = true;
            let buffer = std::mem::replace(&mut connection.out, self.spare.pop().unwrap_or_default());
            ring.send(tag, FixedFile(i as u32), buffer);
        }
    }

    fn on_completion(
        &mut self,
        ring: &mut Ring,
        completion: Completion,
        ledger: &mut Ledger<'_>,
        now_ns: u64,
    ) -> Result<(), GeneratorError> {
        let i = completion.tag.0 as u32 as usize;
        let is_of_round = (completion.tag.0 >> ROUND_SHIFT) as u16 == self.connections[i].round;
        if completion.tag.0 >> KIND_SHIFT == SENT {
            if let Some(mut buffer) = completion.sent {
                buffer.clear();
                self.spare.push(buffer);
            }
            // A send that failed is told by the receive's end as well.
            if is_of_round {
                self.connections[i].is_sending = false;
                if !self.connections[i].out.is_empty() {
                    self.ready.push(i as u32);
                }
            }
            return Ok(());
        }
        if !is_of_round {
            if let Some(buffer) = completion.received {
                ring.recycle(buffer); // of a connection that is no more
            }
            return Ok(());
        }
        self.on_receive(ring, i, completion, ledger, now_ns)
    }
}
