//! Closed loop over HTTP/1.1: each connection sends its next request when the reply to the last one is there and good.
//! It polls and never sleeps: waking a sleeping neighbour core is dear, dearer still under a hypervisor, and would be the server's to pay.

use super::check::{Expect, excerpt};
use super::measure::{LoadReport, Recorder};
use super::plan::{LoadError, LoadPlan, SILENCE_NS_MAX};
use super::random::Random;
use super::reply::parse_reply;
use rustix::io::Errno;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;
use xfaas_dataplane::sys::clock::monotonic_ns;
use xfaas_dataplane::sys::{Completion, FixedFile, GroupOptions, Ring, RingOptions, Tag};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RECEIVE_BUFFER_BYTES: u32 = 4_096;
/// Kind of operation in a tag, above the number of the connection.
const TAG_KIND_SHIFT: u32 = 32;
const TAG_RECEIVE: u64 = 1;
const TAG_SENT: u64 = 2;

/// What to ask, of whom, and what a good answer is.
pub struct HttpLoad<'a> {
    pub target: SocketAddr,
    /// Session ID and whole request of each session; the next one is chosen uniformly.
    pub sessions: &'a [(Vec<u8>, Vec<u8>)],
    pub connections: usize,
    pub expect: Expect,
}

struct Connection {
    session: usize,
    sent_ns: u64,
    /// The start of a reply that came in pieces.
    partial: Vec<u8>,
}

struct Generator<'a> {
    load: &'a HttpLoad<'a>,
    plan: &'a LoadPlan<'a>,
    ring: Ring,
    connections: Vec<Connection>,
    /// Send buffers to use again.
    spare: Vec<Vec<u8>>,
    recorder: Recorder,
    random: Random,
    outstanding: usize,
}

/// Runs one closed loop on the calling thread until the plan's time or count is over and the last replies are in.
/// Errors: a server that cannot be reached, closes, or falls silent. Wrong replies are counted in the report.
pub fn run_http(load: &HttpLoad<'_>, plan: &LoadPlan<'_>) -> Result<LoadReport, LoadError> {
    if load.sessions.is_empty() || load.connections == 0 {
        return Err(LoadError::Nothing);
    }
    let buffers = (load.connections * 2).next_power_of_two().clamp(64, 4_096) as u16;
    let mut ring = Ring::new(&RingOptions {
        submission_entries: 1_024,
        completion_entries: 8_192,
        files: load.connections as u32,
        groups: vec![GroupOptions { buffers, buffer_bytes: RECEIVE_BUFFER_BYTES }],
        polls: true,
    })?;
    for i in 0..load.connections {
        let stream = connect(load.target)?;
        ring.adopt(FixedFile(i as u32), stream.as_fd())?; // the ring keeps the socket, the descriptor goes
    }
    let now_ns = monotonic_ns();
    let mut generator = Generator {
        load,
        plan,
        ring,
        connections: (0..load.connections).map(|_| Connection { session: 0, sent_ns: 0, partial: Vec::new() }).collect(),
        spare: Vec::with_capacity(2 * load.connections),
        recorder: Recorder::new(plan, load.sessions.len(), now_ns),
        random: Random::new(0x5EED),
        outstanding: 0,
    };
    for i in 0..load.connections {
        generator.arm(i);
        generator.send_next(i, now_ns);
    }
    while generator.outstanding > 0 {
        generator.turn()?;
    }
    Ok(generator.recorder.finish())
}

fn connect(target: SocketAddr) -> Result<TcpStream, LoadError> {
    let stream = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT).map_err(|source| LoadError::Connect { target, source })?;
    stream.set_nodelay(true).map_err(|source| LoadError::Socket { operation: "set TCP_NODELAY", target, source })?;
    Ok(stream)
}

impl Generator<'_> {
    fn turn(&mut self) -> Result<(), LoadError> {
        self.ring.poll()?;
        while let Some(completion) = self.ring.next_completion() {
            let connection = completion.tag.0 as u32 as usize;
            match completion.tag.0 >> TAG_KIND_SHIFT {
                TAG_RECEIVE => self.on_receive(connection, completion)?,
                _ => self.on_sent(completion)?,
            }
        }
        if self.plan.interrupt.is_set() {
            return Err(LoadError::Interrupted);
        }
        if monotonic_ns().saturating_sub(self.recorder.last_reply_ns()) > SILENCE_NS_MAX {
            return Err(LoadError::Silence { target: self.load.target, outstanding: self.outstanding });
        }
        Ok(())
    }

    fn arm(&mut self, i: usize) {
        self.ring.recv_multi(Tag(TAG_RECEIVE << TAG_KIND_SHIFT | i as u64), FixedFile(i as u32), 0);
    }

    /// Sends the next request of connection `i`, if the plan has one left.
    fn send_next(&mut self, i: usize, now_ns: u64) {
        if !self.recorder.may_send(now_ns) {
            return;
        }
        let session = self.random.below(self.load.sessions.len());
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(&self.load.sessions[session].1);
        let connection = &mut self.connections[i];
        connection.session = session;
        connection.sent_ns = now_ns;
        self.ring.send(Tag(TAG_SENT << TAG_KIND_SHIFT | i as u64), FixedFile(i as u32), buffer);
        self.outstanding += 1;
    }

    fn on_sent(&mut self, completion: Completion) -> Result<(), LoadError> {
        if completion.result < 0 {
            return Err(self.socket_error("send", completion.result));
        }
        self.spare.extend(completion.sent);
        Ok(())
    }

    fn on_receive(&mut self, i: usize, completion: Completion) -> Result<(), LoadError> {
        let Some(buffer) = completion.received else {
            if completion.result == -Errno::NOBUFS.raw_os_error() {
                self.arm(i);
                return Ok(());
            }
            if completion.result < 0 {
                return Err(self.socket_error("receive", completion.result));
            }
            return Err(LoadError::Closed { target: self.load.target, replies: self.recorder.replies() });
        };
        let now_ns = monotonic_ns();
        let session_id = &self.load.sessions[self.connections[i].session].0;
        let complete = self.connections[i].take(self.ring.bytes(&buffer), session_id, &self.load.expect, &mut self.recorder, now_ns);
        self.ring.recycle(buffer);
        if !completion.more {
            self.arm(i);
        }
        if complete {
            self.outstanding -= 1;
            self.send_next(i, now_ns);
        }
        Ok(())
    }

    fn socket_error(&self, operation: &'static str, result: i32) -> LoadError {
        LoadError::Socket { operation, target: self.load.target, source: std::io::Error::from_raw_os_error(-result) }
    }
}

impl Connection {
    /// Takes what came; true when the reply is complete, or so wrong that no more of it is awaited.
    fn take(&mut self, bytes: &[u8], session_id: &[u8], expect: &Expect, recorder: &mut Recorder, now_ns: u64) -> bool {
        if self.partial.is_empty() {
            return self.judge(bytes, session_id, expect, recorder, now_ns);
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(bytes);
        self.judge(&whole, session_id, expect, recorder, now_ns)
    }

    fn judge(&mut self, bytes: &[u8], session_id: &[u8], expect: &Expect, recorder: &mut Recorder, now_ns: u64) -> bool {
        match parse_reply(bytes) {
            Ok(None) => {
                self.partial.extend_from_slice(bytes);
                return false;
            }
            Ok(Some(reply)) => {
                let fault = expect.fault(&reply, session_id).or_else(|| (reply.bytes != bytes.len()).then_some("bytes follow the reply"));
                match fault {
                    None => recorder.good(self.session, self.sent_ns, now_ns),
                    Some(fault) => recorder.wrong(now_ns, || format!("{fault}: {}", excerpt(bytes))),
                }
            }
            Err(error) => recorder.wrong(now_ns, || format!("{error}: {}", excerpt(bytes))),
        }
        true
    }
}
