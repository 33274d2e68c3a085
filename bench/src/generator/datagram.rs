//! Datagrams over some sockets: a request is known by its ID, which holds its place and how often that place was used. One that is not
//! answered in time is given up, and its place used again.

use super::judge::judge_datagram;
use super::ledger::Ledger;
use super::spec::{GeneratorError, LoadSpec};
use super::thread::Wire;
use crate::load::{LoadError, Outbox, connect_datagrams, excerpt};
use rustix::io::Errno;
use std::os::fd::AsFd;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::wire::{Header, KIND_INVOKE};
use xfaas_dataplane::sys::{Completion, FixedFile, GroupOptions, Ring, RingOptions, Tag};

const RECEIVE_BUFFER_BYTES: u32 = 2_048;
/// Below it lies the number of the place, above it how often that place was used.
const ROUND_SHIFT: u32 = 16;
const SWEEP_NS: u64 = 20_000_000;
/// A tag: what it is, above the socket's number.
const KIND_SHIFT: u32 = 32;
const RECEIVE: u64 = 1;
const SENT: u64 = 2;

pub(super) struct Datagrams<'a> {
    spec: &'a LoadSpec,
    sessions: &'a [SessionId],
    functions: Vec<FunctionHash>,
    /// One for each socket.
    outboxes: Vec<Outbox>,
    /// Those to be sent from.
    filled: Vec<usize>,
    request_ids: Vec<u64>,
    /// Send buffers to use again.
    spare: Vec<Vec<u8>>,
    swept_ns: u64,
}

impl<'a> Datagrams<'a> {
    /// Makes `sockets` sockets for `in_flight` requests under way, at most 65,536.
    pub(super) fn connect(
        spec: &'a LoadSpec,
        sessions: &'a [SessionId],
        sockets: usize,
        in_flight: usize,
    ) -> Result<(Datagrams<'a>, Ring), GeneratorError> {
        let target = spec.target;
        let mut ring = Ring::new(&RingOptions {
            submission_entries: 1_024,
            completion_entries: 16_384,
            files: sockets as u32,
            groups: vec![GroupOptions {
                buffers: (in_flight * 2).next_power_of_two().clamp(64, 8_192) as u16,
                buffer_bytes: RECEIVE_BUFFER_BYTES,
            }],
            polls: true,
        })
        .map_err(LoadError::from)?;
        let made = spec.network.at_client(|| (0..sockets).map(|_| connect_datagrams(target)).collect::<std::io::Result<Vec<_>>>())?;
        for (i, socket) in made.map_err(|source| LoadError::Connect { target, source })?.into_iter().enumerate() {
            ring.adopt(FixedFile(i as u32), socket.as_fd()).map_err(LoadError::from)?; // the ring keeps the socket, the descriptor goes
            ring.recv_multi(tag(RECEIVE, i), FixedFile(i as u32), 0);
        }
        let datagrams = Datagrams {
            spec,
            sessions,
            functions: spec.functions.iter().map(|function| FunctionHash::of(function.name.as_bytes())).collect(),
            outboxes: (0..sockets).map(|socket| Outbox::new(tag(SENT, socket), FixedFile(socket as u32))).collect(),
            filled: Vec::new(),
            request_ids: (0..in_flight as u64).collect(),
            spare: Vec::with_capacity(2 * in_flight),
            swept_ns: 0,
        };
        Ok((datagrams, ring))
    }

    fn take(&self, bytes: &[u8], ledger: &mut Ledger<'_>, now_ns: u64) {
        let Some(header) = Header::read(bytes) else {
            ledger.stray(|| excerpt(bytes));
            return;
        };
        let place = (header.request_id() & ((1 << ROUND_SHIFT) - 1)) as usize;
        if self.request_ids.get(place) != Some(&header.request_id()) || !ledger.is_busy(place) {
            ledger.tally.late_answers += 1;
            return;
        }
        let (function, session) = (usize::from(ledger.place(place).function), ledger.place(place).session as usize);
        let outcome = judge_datagram(bytes, &self.sessions[session], self.functions[function], ledger.check_of(place), &self.spec.payload);
        ledger.answered(place, outcome, now_ns, || excerpt(bytes));
    }

    fn error(&self, operation: &'static str, result: i32) -> GeneratorError {
        let source = std::io::Error::from_raw_os_error(-result);
        LoadError::Socket { operation, target: self.spec.target, source }.into()
    }
}

fn tag(kind: u64, socket: usize) -> Tag {
    Tag(kind << KIND_SHIFT | socket as u64)
}

impl Wire for Datagrams<'_> {
    /// One send or two (`UDP_SEGMENT`).
    const SEND_BATCH: usize = 16;

    fn send(&mut self, ring: &mut Ring, ledger: &Ledger<'_>, place: usize) {
        let asked = ledger.place(place);
        let (function, session) = (self.functions[usize::from(asked.function)], &self.sessions[asked.session as usize]);
        self.request_ids[place] += 1 << ROUND_SHIFT;
        let header = Header::new(KIND_INVOKE, 0, session, self.request_ids[place], function, self.spec.payload.len() as u32);
        let parts = [&header.to_bytes()[..], session.as_bytes(), &self.spec.payload];
        let socket = place % self.outboxes.len();
        self.outboxes[socket].add(ring, &parts, || self.spare.pop().unwrap_or_default());
        if !self.filled.contains(&socket) {
            self.filled.push(socket);
        }
    }

    fn flush(&mut self, ring: &mut Ring) {
        self.filled.drain(..).for_each(|socket| self.outboxes[socket].send(ring));
    }

    fn on_completion(
        &mut self,
        ring: &mut Ring,
        completion: Completion,
        ledger: &mut Ledger<'_>,
        now_ns: u64,
    ) -> Result<(), GeneratorError> {
        // The ICMP answer to an earlier datagram: nobody listens. Silence tells that too, but later.
        let is_refused = completion.result == -Errno::CONNREFUSED.raw_os_error();
        if completion.tag.0 >> KIND_SHIFT == SENT {
            self.spare.extend(completion.sent);
            let is_full = completion.result == -Errno::NOBUFS.raw_os_error(); // lost on our side: never answered
            return if completion.result < 0 && !is_full { Err(self.error("send", completion.result)) } else { Ok(()) };
        }
        if let Some(buffer) = completion.received {
            self.take(ring.bytes(&buffer), ledger, now_ns);
            ring.recycle(buffer);
        } else if is_refused || (completion.result < 0 && completion.result != -Errno::NOBUFS.raw_os_error()) {
            return Err(self.error("receive", completion.result));
        }
        if !completion.more {
            let socket = completion.tag.0 as u32;
            ring.recv_multi(completion.tag, FixedFile(socket), 0);
        }
        Ok(())
    }

    fn sweep(&mut self, ledger: &mut Ledger<'_>, now_ns: u64) {
        if now_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = now_ns;
            ledger.give_up_late(now_ns);
        }
    }
}
