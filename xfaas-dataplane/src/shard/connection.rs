//! One HTTP connection as a shard holds it: what was read and not yet understood, what is to be sent, and what is under way.

use crate::net::{Http1Decoder, Phase};
use crate::sys::FixedFile;
use crate::worker::Call;
use std::collections::VecDeque;
use xfaas_common::ids::{CoreIndex, SessionId};

/// Input kept while a request runs; over it the connection is not read until the reply is out.
pub(super) const PENDING_BYTES_MAX: usize = 128 << 10;
/// Output kept for a client that reads slowly; over it no further request of the connection is started.
pub(super) const OUT_BYTES_MAX: usize = 256 << 10;

/// Where a connection stands on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// It stays.
    No,
    /// Closes when what is to be sent is sent.
    AfterSend,
    /// Our half is closed; input is read and dropped until the client closes too, so that it can read our last reply before a reset.
    Lingering { since_ns: u64 },
    /// Given up; gone as soon as nothing is under way.
    Shut,
}

pub(super) struct Connection {
    pub(super) file: FixedFile,
    pub(super) generation: u16,
    pub(super) decoder: Http1Decoder,
    /// The request that is being read.
    pub(super) call: Option<Box<Call>>,
    /// Bytes read and not decoded yet.
    pub(super) pending: Vec<u8>,
    pub(super) out: Vec<u8>,
    /// A request of this connection runs; the next one waits.
    pub(super) busy: bool,
    /// Where the request that runs is.
    pub(super) asked: Option<Asked>,
    pub(super) sending: bool,
    /// Of the send under way.
    pub(super) sending_bytes: usize,
    /// The multishot receive is armed.
    pub(super) armed: bool,
    /// Our half is being closed; see `Ring::shutdown_write`.
    pub(super) half_closing: bool,
    /// Its reset is watched for, because it is not read: see `Shard::watch`.
    pub(super) watched: bool,
    /// The client closed its half: what it asked before is still answered.
    pub(super) ended: bool,
    pub(super) closing: Closing,
    /// Since when the decoder is in its present phase.
    pub(super) phase_since_ns: u64,
    pub(super) phase: Phase,
    /// Body bytes seen at the last look, and when they last grew.
    pub(super) progress: u64,
    pub(super) progress_ns: u64,
    pub(super) send_since_ns: u64,
    pub(super) speaks_for: SpeaksFor,
    /// `table_hash` of the session of its last request: the session may have moved since.
    pub(super) spoke_for: u32,
    /// The shard to which this connection is on its way.
    pub(super) moving_to: Option<u16>,
    /// The client's; 0 until somebody traces.
    pub(super) peer_port: u16,
}

/// The shard that was asked to run a connection's request, and what names the request there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) shard: u16,
    pub(super) app: u16,
    pub(super) table_hash: u32,
    pub(super) session: SessionId,
    /// Of the request.
    pub(super) body_bytes: usize,
}

/// Whose sessions a connection has spoken for: one owner's connection moves to it, a connection of many stays and forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpeaksFor {
    Nobody,
    Owner(u16),
    Many,
}

impl SpeaksFor {
    pub(super) fn heard(self, owner: u16) -> SpeaksFor {
        match self {
            SpeaksFor::Nobody => SpeaksFor::Owner(owner),
            SpeaksFor::Owner(known) if known == owner => self,
            _ => SpeaksFor::Many,
        }
    }

    /// The same for the session it spoke for last: the owner may be another one since.
    pub(super) fn heard_of_same(self, owner: u16) -> SpeaksFor {
        match self {
            SpeaksFor::Many => SpeaksFor::Many,
            _ => SpeaksFor::Owner(owner),
        }
    }
}

/// A connection between two shards: everything but its descriptor, which travels by ring message.
pub(super) struct MovedConnection {
    pub(super) arrival: Arrival,
    pub(super) decoder: Http1Decoder,
    pub(super) pending: Vec<u8>,
    pub(super) speaks_for: SpeaksFor,
    pub(super) spoke_for: u32,
}

/// Names a connection under way: who sent it, and its slot and generation there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) from: u8,
    pub(super) connection: u32,
    pub(super) generation: u16,
}

/// Halves of moved connections that wait for the other half: state without descriptor, or descriptor without state.
pub(super) struct Arrivals<T> {
    states: VecDeque<(Arrival, Box<T>)>,
    files: VecDeque<(Arrival, FixedFile)>,
}

impl<T> Default for Arrivals<T> {
    fn default() -> Arrivals<T> {
        Arrivals { states: VecDeque::new(), files: VecDeque::new() }
    }
}

impl<T> Arrivals<T> {
    /// The descriptor of a moved connection is here. Output: both halves, if the state came before.
    pub(super) fn file(&mut self, arrival: Arrival, file: FixedFile) -> Option<(Box<T>, FixedFile)> {
        match self.states.iter().position(|(other, _)| *other == arrival) {
            Some(at) => self.states.remove(at).map(|(_, state)| (state, file)),
            None => {
                self.files.push_back((arrival, file));
                None
            }
        }
    }

    /// The state of a moved connection is here. Output: both halves, if the descriptor came before.
    pub(super) fn state(&mut self, arrival: Arrival, state: Box<T>) -> Option<(Box<T>, FixedFile)> {
        match self.files.iter().position(|(other, _)| *other == arrival) {
            Some(at) => self.files.remove(at).map(|(_, file)| (state, file)),
            None => {
                self.states.push_back((arrival, state));
                None
            }
        }
    }
}

impl Connection {
    pub(super) fn new(file: FixedFile, generation: u16, now_ns: u64) -> Connection {
        Connection {
            file,
            generation,
            decoder: Http1Decoder::new(),
            call: None,
            pending: Vec::new(),
            out: Vec::new(),
            busy: false,
            asked: None,
            sending: false,
            sending_bytes: 0,
            armed: false,
            half_closing: false,
            watched: false,
            ended: false,
            closing: Closing::No,
            phase_since_ns: now_ns,
            phase: Phase::BetweenRequests,
            progress: 0,
            progress_ns: now_ns,
            send_since_ns: now_ns,
            speaks_for: SpeaksFor::Nobody,
            spoke_for: 0,
            moving_to: None,
            peer_port: 0,
        }
    }

    /// True while no further request may be started.
    pub(super) fn holds_input(&self) -> bool {
        self.busy || self.moving_to.is_some() || self.closing != Closing::No || self.out.len() > OUT_BYTES_MAX
    }

    /// True when nothing is left to do after a send: it stays, is read, and has nothing to say, to decode or to move.
    #[inline]
    pub(super) fn is_at_rest(&self, core: CoreIndex) -> bool {
        self.closing == Closing::No
            && self.armed
            && !self.ended
            && self.out.is_empty()
            && self.pending.is_empty()
            && self.moving_to.is_none()
            && !matches!(self.speaks_for, SpeaksFor::Owner(owner) if owner != core.0)
    }

    /// Notes the decoder's phase and progress, so that a stall can be seen.
    pub(super) fn note_phase(&mut self, now_ns: u64) {
        let phase = self.decoder.phase();
        if phase != self.phase {
            self.phase = phase;
            self.phase_since_ns = now_ns;
            self.progress_ns = now_ns;
            self.progress = self.decoder.progress();
        } else if self.decoder.progress() != self.progress {
            self.progress = self.decoder.progress();
            self.progress_ns = now_ns;
        }
    }

    /// Memory that was taken for what this connection sent and is to be sent.
    pub(super) fn held_bytes(&self) -> u64 {
        let read = self.call.as_ref().map_or(0, |call| call.request.held_bytes()) + self.pending.capacity();
        let asked = self.asked.filter(|_| self.busy).map_or(0, |asked| asked.body_bytes);
        let sent = if self.sending { self.sending_bytes } else { 0 };
        (read + asked + self.out.capacity() + sent) as u64
    }

    /// True when nothing of this connection is with the kernel or the proxy.
    pub(super) fn is_quiet(&self) -> bool {
        !self.busy && !self.sending && !self.armed && !self.half_closing && !self.watched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_of_a_moved_connection_meet_in_either_order() {
        let arrival = |connection| Arrival { from: 1, connection, generation: 9 };
        let mut arrivals = Arrivals::default();
        assert!(arrivals.file(arrival(1), FixedFile(11)).is_none());
        assert!(arrivals.state(arrival(2), Box::new("two")).is_none());
        assert_eq!(arrivals.state(arrival(1), Box::new("one")), Some((Box::new("one"), FixedFile(11))));
        assert_eq!(arrivals.file(arrival(2), FixedFile(12)), Some((Box::new("two"), FixedFile(12))));
        assert!(arrivals.file(arrival(1), FixedFile(13)).is_none(), "a pair is taken once");
    }

    #[test]
    fn a_connection_of_two_owners_speaks_for_many_for_good() {
        let one = SpeaksFor::Nobody.heard(3);
        assert_eq!(one.heard(3), SpeaksFor::Owner(3));
        assert_eq!(one.heard(4).heard(3), SpeaksFor::Many);
    }
}
