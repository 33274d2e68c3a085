//! Closed loop over datagrams: a fixed number of requests is always under way, each known by its request ID. An answer that does not
//! come in time is given up and its place used again; a late one is dropped.

use super::check::{BodyRule, excerpt};
use super::measure::{LoadReport, Recorder};
use super::outbox::Outbox;
use super::plan::{LoadError, LoadPlan, SILENCE_NS_MAX};
use super::random::Random;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::wire::{HEADER_BYTES, Header, KIND_INVOKE, KIND_REPLY};
use xfaas_dataplane::sys::clock::monotonic_ns;
use xfaas_dataplane::sys::{Completion, FixedFile, GroupOptions, Ring, RingOptions, Tag};

/// An answer is given up after this long.
const ANSWER_NS_MAX: u64 = 200_000_000;
const SWEEP_NS: u64 = 20_000_000;
const RECEIVE_BUFFER_BYTES: u32 = 2_048;
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Below it lies the number of the place, above it how often that place was used.
const ROUND_SHIFT: u32 = 16;
const SOCKET_FILE: FixedFile = FixedFile(0);
const TAG_RECEIVE: Tag = Tag(1);
const TAG_SENT: Tag = Tag(2);

/// What to ask, of whom, and what a good answer is.
pub struct DatagramLoad<'a> {
    pub target: SocketAddr,
    pub function: &'a str,
    /// The next one is chosen uniformly.
    pub sessions: &'a [SessionId],
    pub payload: &'a [u8],
    /// Requests under way at once, 1..=4096.
    pub in_flight: usize,
    pub body: BodyRule,
}

/// One of the requests under way.
#[derive(Default)]
struct Place {
    request_id: u64,
    session: usize,
    sent_ns: u64,
    busy: bool,
}

struct Generator<'a> {
    load: &'a DatagramLoad<'a>,
    plan: &'a LoadPlan<'a>,
    ring: Ring,
    places: Vec<Place>,
    /// Places whose answer came in this turn: the next requests leave together.
    idle: Vec<u16>,
    outbox: Outbox,
    spare: Vec<Vec<u8>>,
    recorder: Recorder,
    random: Random,
    function: FunctionHash,
    outstanding: usize,
    swept_ns: u64,
}

/// Runs one closed loop on the calling thread until the plan's time or count is over and the last answers are in or given up.
/// Errors: a server that cannot be reached or falls silent. Wrong answers and lost requests are counted in the report.
pub fn run_datagrams(load: &DatagramLoad<'_>, plan: &LoadPlan<'_>) -> Result<LoadReport, LoadError> {
    if load.sessions.is_empty() || !(1..=4_096).contains(&load.in_flight) {
        return Err(LoadError::Nothing);
    }
    let buffers = (load.in_flight * 2).next_power_of_two().clamp(64, 8_192) as u16;
    let mut ring = Ring::new(&RingOptions {
        submission_entries: 1_024,
        completion_entries: 16_384,
        files: 1,
        groups: vec![GroupOptions { buffers, buffer_bytes: RECEIVE_BUFFER_BYTES }],
        polls: true,
    })?;
    let socket = connect(load.target).map_err(|source| LoadError::Connect { target: load.target, source })?;
    ring.adopt(SOCKET_FILE, socket.as_fd())?;
    ring.recv_multi(TAG_RECEIVE, SOCKET_FILE, 0);
    let now_ns = monotonic_ns();
    let mut generator = Generator {
        load,
        plan,
        ring,
        places: (0..load.in_flight).map(|_| Place::default()).collect(),
        idle: (0..load.in_flight as u16).collect(),
        outbox: Outbox::new(TAG_SENT, SOCKET_FILE),
        spare: Vec::with_capacity(2 * load.in_flight),
        recorder: Recorder::new(plan, load.sessions.len(), now_ns),
        random: Random::new(0x5EED),
        function: FunctionHash::of(load.function.as_bytes()),
        outstanding: 0,
        swept_ns: now_ns,
    };
    generator.send_idle(now_ns);
    while generator.outstanding > 0 {
        generator.turn()?;
    }
    Ok(generator.recorder.finish())
}

/// A socket that sends to `target` and hears only it.
pub(crate) fn connect(target: SocketAddr) -> std::io::Result<Socket> {
    let local: SocketAddr = if target.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::UDP))?;
    // Asked for, granted up to net.core.rmem_max; what is lost for want of room is counted.
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&local.into())?;
    socket.connect(&target.into())?;
    Ok(socket)
}

impl Generator<'_> {
    fn turn(&mut self) -> Result<(), LoadError> {
        self.ring.poll()?;
        while let Some(completion) = self.ring.next_completion() {
            self.on_completion(completion)?;
        }
        let now_ns = monotonic_ns();
        if now_ns - self.swept_ns >= SWEEP_NS {
            self.give_up_late(now_ns);
        }
        self.send_idle(now_ns);
        if self.plan.interrupt.is_set() {
            return Err(LoadError::Interrupted);
        }
        if now_ns.saturating_sub(self.recorder.last_reply_ns()) > SILENCE_NS_MAX {
            return Err(LoadError::Silence { target: self.load.target, outstanding: self.outstanding });
        }
        Ok(())
    }

    fn on_completion(&mut self, completion: Completion) -> Result<(), LoadError> {
        let refused = -Errno::CONNREFUSED.raw_os_error(); // the ICMP answer to an earlier datagram: nobody listens
        if completion.tag == TAG_SENT {
            self.spare.extend(completion.sent);
            return if completion.result < 0 && completion.result != refused { Err(self.error("send", completion.result)) } else { Ok(()) };
        }
        if let Some(buffer) = completion.received {
            let now_ns = monotonic_ns();
            let bytes = self.ring.bytes(&buffer);
            if let Some(place) = answered(bytes, &mut self.places) {
                let session = self.places[place].session;
                match fault(bytes, &self.load.sessions[session], self.function, &self.load.body) {
                    None => self.recorder.good(session, self.places[place].sent_ns, now_ns),
                    Some(fault) => self.recorder.wrong(now_ns, || format!("{fault}: {}", excerpt(bytes))),
                }
                self.outstanding -= 1;
                self.idle.push(place as u16);
            }
            self.ring.recycle(buffer);
        } else if completion.result < 0 && completion.result != refused && completion.result != -Errno::NOBUFS.raw_os_error() {
            return Err(self.error("receive", completion.result));
        }
        if !completion.more {
            self.ring.recv_multi(TAG_RECEIVE, SOCKET_FILE, 0);
        }
        Ok(())
    }

    fn send_idle(&mut self, now_ns: u64) {
        while let Some(place) = self.idle.pop() {
            if !self.recorder.may_send(now_ns) {
                self.idle.clear();
                break;
            }
            let session = self.random.below(self.load.sessions.len());
            let id = &self.load.sessions[session];
            let slot = &mut self.places[usize::from(place)];
            slot.request_id = ((slot.request_id >> ROUND_SHIFT) + 1) << ROUND_SHIFT | u64::from(place);
            slot.session = session;
            slot.sent_ns = now_ns;
            slot.busy = true;
            let header = Header::new(KIND_INVOKE, 0, id, slot.request_id, self.function, self.load.payload.len() as u32);
            let parts = [&header.to_bytes()[..], id.as_bytes(), self.load.payload];
            self.outbox.add(&mut self.ring, &parts, || self.spare.pop().unwrap_or_default());
            self.outstanding += 1;
        }
        self.outbox.send(&mut self.ring);
    }

    fn give_up_late(&mut self, now_ns: u64) {
        self.swept_ns = now_ns;
        for (i, place) in self.places.iter_mut().enumerate() {
            if place.busy && now_ns.saturating_sub(place.sent_ns) > ANSWER_NS_MAX {
                place.busy = false;
                self.recorder.lost();
                self.outstanding -= 1;
                self.idle.push(i as u16);
            }
        }
    }

    fn error(&self, operation: &'static str, result: i32) -> LoadError {
        LoadError::Socket { operation, target: self.load.target, source: std::io::Error::from_raw_os_error(-result) }
    }
}

/// The place whose request this answers, which is then no longer busy; `None` for anything else, late answers among them.
fn answered(bytes: &[u8], places: &mut [Place]) -> Option<usize> {
    let request_id = Header::read(bytes)?.request_id();
    let index = (request_id & ((1 << ROUND_SHIFT) - 1)) as usize;
    let place = places.get_mut(index).filter(|place| place.busy && place.request_id == request_id)?;
    place.busy = false;
    Some(index)
}

/// What is wrong with an answer; `None` when nothing is.
fn fault(bytes: &[u8], session: &SessionId, function: FunctionHash, body: &BodyRule) -> Option<&'static str> {
    let header = Header::read(bytes)?;
    let payload_at = HEADER_BYTES + usize::from(session.length());
    if header.kind != KIND_REPLY || header.status != 0 {
        return Some("the answer is an error");
    }
    if header.function() != function
        || header.session_len != session.length()
        || bytes.get(HEADER_BYTES..payload_at) != Some(session.as_bytes())
    {
        return Some("the answer is another session's or function's");
    }
    if bytes.len() != payload_at + header.payload_len() as usize {
        return Some("the answer's length is not what its header says");
    }
    if body.holds(&bytes[payload_at..]) { None } else { Some("the output is not what was asked for") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u8, request_id: u64, output: &[u8]) -> Vec<u8> {
        let session = SessionId::new(b"user-1").unwrap();
        let mut bytes = Header::new(kind, 0, &session, request_id, FunctionHash(7), output.len() as u32).to_bytes().to_vec();
        bytes.extend_from_slice(b"user-1");
        bytes.extend_from_slice(output);
        bytes
    }

    #[test]
    fn only_a_whole_reply_to_the_same_session_is_good() {
        let session = SessionId::new(b"user-1").unwrap();
        let judge = |bytes: &[u8]| fault(bytes, &session, FunctionHash(7), &BodyRule::Number);
        let good = answer(KIND_REPLY, 1, b"41");
        assert_eq!(judge(&good), None);
        assert!(judge(&good[..good.len() - 1]).is_some());
        assert!(judge(&answer(3, 1, b"41")).is_some());
        assert!(judge(&answer(KIND_REPLY, 1, b"x")).is_some());
        assert!(fault(&good, &SessionId::new(b"user-2").unwrap(), FunctionHash(7), &BodyRule::Number).is_some());
        assert!(fault(&good, &session, FunctionHash(8), &BodyRule::Number).is_some());
    }

    #[test]
    fn an_answer_counts_once_and_a_late_one_never() {
        let mut places = vec![Place::default(), Place { request_id: 5 << ROUND_SHIFT | 1, busy: true, ..Place::default() }];
        assert_eq!(answered(&answer(KIND_REPLY, 4 << ROUND_SHIFT | 1, b""), &mut places), None);
        assert_eq!(answered(&answer(KIND_REPLY, 5 << ROUND_SHIFT | 1, b""), &mut places), Some(1));
        assert_eq!(answered(&answer(KIND_REPLY, 5 << ROUND_SHIFT | 1, b""), &mut places), None);
        assert_eq!(answered(&answer(KIND_REPLY, 5 << ROUND_SHIFT | 9, b""), &mut places), None);
        assert_eq!(answered(b"short", &mut places), None);
    }
}
