//! One request on each of many connections, all sent at once, and when each reply came. Does not poll, as the other loads do: it tells of milliseconds.

use super::check::excerpt;
use super::plan::{LoadError, LoadPlan, SILENCE_NS_MAX};
use super::reply::parse_reply;
use rustix::io::Errno;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;
use xfaas_dataplane::sys::clock::monotonic_ns;
use xfaas_dataplane::sys::{Completion, FixedFile, GroupOptions, Ring, RingOptions, Tag};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it waits before it looks whether anything else is due.
const WAIT: Duration = Duration::from_millis(10);
const RECEIVE_BUFFER_BYTES: u32 = 4_096;
/// Set in the tag of a send; below it is the connection's number.
const TAG_SENT: u64 = 1 << 32;

/// One reply, whatever its status.
#[derive(Clone, Debug)]
pub struct BurstReply {
    pub status: u16,
    pub body: Vec<u8>,
    /// From the moment at which the burst began to the reply's last byte.
    pub delay_ns: u64,
}

struct Burst<'a> {
    target: SocketAddr,
    plan: &'a LoadPlan<'a>,
    ring: Ring,
    partial: Vec<Vec<u8>>,
    replies: Vec<BurstReply>,
    started_ns: u64,
}

/// Connects `plan.requests_max` times to `target`, at most 4,096 times, then sends `request` on all connections. Of the plan only that and
/// the interrupt count. Output: the replies in the order in which they came.
/// Errors: a server that cannot be reached, closes, falls silent, or answers with something else than HTTP.
pub fn run_burst(target: SocketAddr, request: &[u8], plan: &LoadPlan<'_>) -> Result<Vec<BurstReply>, LoadError> {
    let connections = plan.requests_max.min(4_096) as usize;
    if connections == 0 {
        return Err(LoadError::Nothing);
    }
    let mut ring = Ring::new(&RingOptions {
        submission_entries: 1_024,
        completion_entries: 16_384,
        files: connections as u32,
        polls: false,
        groups: vec![GroupOptions {
            buffers: (connections * 2).next_power_of_two().clamp(64, 8_192) as u16,
            buffer_bytes: RECEIVE_BUFFER_BYTES,
        }],
    })?;
    for i in 0..connections {
        let stream = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT).map_err(|source| LoadError::Connect { target, source })?;
        stream.set_nodelay(true).map_err(|source| LoadError::Socket { operation: "set TCP_NODELAY", target, source })?;
        ring.adopt(FixedFile(i as u32), stream.as_fd())?; // the ring keeps the socket, the descriptor goes
        ring.recv_multi(Tag(i as u64), FixedFile(i as u32), 0);
    }
    let started_ns = monotonic_ns();
    for i in 0..connections {
        ring.send(Tag(TAG_SENT | i as u64), FixedFile(i as u32), request.to_vec());
    }
    let mut burst =
        Burst { target, plan, ring, partial: vec![Vec::new(); connections], replies: Vec::with_capacity(connections), started_ns };
    while burst.replies.len() < connections {
        burst.turn()?;
    }
    Ok(burst.replies)
}

impl Burst<'_> {
    fn turn(&mut self) -> Result<(), LoadError> {
        // One of the server's shards may have this CPU too, and has more to do than to be looked at.
        self.ring.wait(1, Some(WAIT))?;
        while let Some(completion) = self.ring.next_completion() {
            self.on_completion(completion)?;
        }
        if self.plan.interrupt.is_set() {
            return Err(LoadError::Interrupted);
        }
        let last_ns = self.started_ns + self.replies.last().map_or(0, |reply| reply.delay_ns);
        if monotonic_ns().saturating_sub(last_ns) > SILENCE_NS_MAX {
            return Err(LoadError::Silence { target: self.target, outstanding: self.partial.len() - self.replies.len() });
        }
        Ok(())
    }

    fn on_completion(&mut self, completion: Completion) -> Result<(), LoadError> {
        let (is_send, i) = (completion.tag.0 & TAG_SENT != 0, completion.tag.0 as u32 as usize);
        let has_no_buffer = !is_send && completion.result == -Errno::NOBUFS.raw_os_error();
        if completion.result < 0 && !has_no_buffer {
            let operation = if is_send { "send" } else { "receive" };
            let source = std::io::Error::from_raw_os_error(-completion.result);
            return Err(LoadError::Socket { operation, target: self.target, source });
        }
        if is_send {
            return Ok(());
        }
        if let Some(buffer) = completion.received {
            self.partial[i].extend_from_slice(self.ring.bytes(&buffer));
            self.ring.recycle(buffer);
            self.look_at(i)?;
        } else if !has_no_buffer {
            return Err(LoadError::Closed { target: self.target, replies: self.replies.len() as u64 });
        }
        if !completion.more {
            self.ring.recv_multi(Tag(i as u64), FixedFile(i as u32), 0);
        }
        Ok(())
    }

    fn look_at(&mut self, i: usize) -> Result<(), LoadError> {
        let delay_ns = monotonic_ns() - self.started_ns;
        let bytes = &mut self.partial[i];
        let bad =
            |excerpt| LoadError::Socket { operation: "understand a reply", target: self.target, source: std::io::Error::other(excerpt) };
        if let Some(reply) = parse_reply(bytes).map_err(|error| bad(format!("{error}: {}", excerpt(bytes))))? {
            self.replies.push(BurstReply { status: reply.status, body: reply.body.to_vec(), delay_ns });
            bytes.clear();
        }
        Ok(())
    }
}
