//! One connection of a container to one shard of its primary: requests under way, frames out, frames in, signs of life.
//! Pure: bytes go in and out, time is told. `T` is whoever asked. Bytes from the primary are checked, and a wrong one ends the connection.

use crate::sys::clock::MS_NS;
use slab::Slab;
use xfaas_common::limits::{RPC_ASKED_BYTES_MAX, RPC_PING_MS, RPC_REQUESTS_MAX, RPC_SILENCE_MS_MAX};
use xfaas_common::rpc::{Frame, FrameFault, Next, StateReply, encode_empty, next_frame};
use xfaas_common::wire::{KIND_CHANGED, KIND_ERROR, KIND_PING, KIND_PONG, KIND_STATE_REPLY, KIND_WELCOME};

/// While somebody waits for an answer the primary is asked this often whether it lives: a wait for a lock ends when it does not.
const PING_BUSY_NS: u64 = 50 * MS_NS;
/// Requests for which there is room from the start.
const REQUESTS_AT_START: usize = 256;
const BUFFER_BYTES_AT_START: usize = 16 << 10;
/// Bytes above which the buffer for incoming frames is given back when it is empty.
const INPUT_BYTES_KEPT_MAX: usize = 256 << 10;
/// The lower bits of a request's ID are its place in the table, the upper ones count up.
const PLACE_BITS: u32 = 24;
const _: () = assert!(RPC_REQUESTS_MAX < 1 << PLACE_BITS);

/// Why a connection cannot be used any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    #[error("a frame is malformed ({})", .0.name())]
    Frame(FrameFault),
    #[error("a frame of kind {kind} does not come from a primary")]
    UnexpectedKind { kind: u8 },
}

/// What the primary said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a, T> {
    /// The answer to a request. `value` only of reads.
    Answered { asker: T, result: i32, value: &'a [u8] },
    /// A request was refused: `wire::Status`, or 0 with the reason as text.
    Refused { asker: T, status: u8, text: &'a [u8] },
}

/// Whether the primary is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Alive,
    /// Nothing came for 2 s: to be taken for lost.
    Silent,
}

pub struct Link<T> {
    /// Bytes received; those before `taken` are dealt with.
    input: Vec<u8>,
    taken: usize,
    out: Vec<u8>,
    requests: Slab<(u64, T)>,
    /// Requests so far.
    count: u64,
    heard_ns: u64,
    pinged_ns: u64,
}

impl<T: Copy> Link<T> {
    /// A connection whose hello was answered. Input: what came behind the welcome, and the time on the monotonic clock.
    pub fn new(leftover: &[u8], now_ns: u64) -> Link<T> {
        let mut input = Vec::with_capacity(BUFFER_BYTES_AT_START.max(leftover.len()));
        input.extend_from_slice(leftover);
        Link {
            input,
            taken: 0,
            out: Vec::with_capacity(BUFFER_BYTES_AT_START),
            requests: Slab::with_capacity(REQUESTS_AT_START),
            count: 0,
            heard_ns: now_ns,
            pinged_ns: now_ns,
        }
    }

    /// When the primary last sent anything.
    pub fn heard_ns(&self) -> u64 {
        self.heard_ns
    }

    /// True while another request may be taken.
    pub fn has_room(&self) -> bool {
        self.out.len() < RPC_ASKED_BYTES_MAX && self.requests.len() < RPC_REQUESTS_MAX
    }

    /// Takes a request. `encode` appends its frame with the request ID it is given.
    pub fn ask(&mut self, asker: T, encode: impl FnOnce(u64, &mut Vec<u8>)) {
        assert!(self.requests.len() < RPC_REQUESTS_MAX, "the caller asks `has_room` first");
        self.count += 1;
        let id = self.requests.insert((0, asker));
        let request_id = self.count << PLACE_BITS | id as u64;
        self.requests[id].0 = request_id;
        encode(request_id, &mut self.out);
    }

    /// Takes a frame that is not answered. These are small and there are no more than requests were, so none is refused.
    pub fn tell(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        encode(&mut self.out);
    }

    /// What is to be sent now, if anything; `spare` is used for what comes next.
    pub fn take_out(&mut self, spare: impl FnOnce() -> Vec<u8>) -> Option<Vec<u8>> {
        if self.out.is_empty() { None } else { Some(std::mem::replace(&mut self.out, spare())) }
    }

    /// Bytes came. `next_event` takes them apart.
    pub fn receive(&mut self, bytes: &[u8], now_ns: u64) {
        self.heard_ns = now_ns;
        if self.taken == self.input.len() {
            self.input.clear();
            self.input.shrink_to(INPUT_BYTES_KEPT_MAX);
            self.taken = 0;
        } else if self.taken > BUFFER_BYTES_AT_START {
            self.input.drain(..self.taken);
            self.taken = 0;
        }
        self.input.extend_from_slice(bytes);
    }

    /// The next thing that the primary said. Errors: it does not keep to the protocol.
    pub fn next_event(&mut self) -> Result<Option<Event<'_, T>>, LinkFault> {
        let Link { input, taken, out, requests, .. } = self;
        loop {
            let Frame { head, payload, used } = match next_frame(&input[*taken..]) {
                Next::Frame(frame) => frame,
                Next::NeedMore { .. } => return Ok(None),
                Next::Malformed(fault) => return Err(LinkFault::Frame(fault)),
            };
            *taken += used;
            match head.kind {
                KIND_STATE_REPLY => {
                    let StateReply { result, value } = StateReply::decode(payload).map_err(LinkFault::Frame)?;
                    if let Some(asker) = take_request(requests, head.request_id) {
                        return Ok(Some(Event::Answered { asker, result, value }));
                    }
                }
                KIND_ERROR => {
                    if let Some(asker) = take_request(requests, head.request_id) {
                        return Ok(Some(Event::Refused { asker, status: head.status, text: payload }));
                    }
                }
                KIND_PING => encode_empty(KIND_PONG, head.request_id, out),
                // The connection that fetches functions hears of changes too, and acts on them.
                KIND_PONG | KIND_CHANGED | KIND_WELCOME => {}
                kind => return Err(LinkFault::UnexpectedKind { kind }),
            }
        }
    }

    /// Pings when it is time to. To be called ten times a second, and more often while somebody waits.
    pub fn tick(&mut self, now_ns: u64) -> Health {
        if now_ns.saturating_sub(self.heard_ns) >= RPC_SILENCE_MS_MAX * MS_NS {
            return Health::Silent;
        }
        let interval_ns = if self.requests.is_empty() { RPC_PING_MS * MS_NS } else { PING_BUSY_NS };
        if now_ns.saturating_sub(self.pinged_ns) >= interval_ns {
            self.pinged_ns = now_ns;
            encode_empty(KIND_PING, 0, &mut self.out);
        }
        Health::Alive
    }

    /// The connection is lost. Output: those who get no answer any more.
    pub fn lose(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.requests).into_iter().map(|(_, (_, asker))| asker)
    }
}

/// Who made the request, unless it was answered before.
fn take_request<T>(requests: &mut Slab<(u64, T)>, request_id: u64) -> Option<T> {
    let place = (request_id & ((1 << PLACE_BITS) - 1)) as usize;
    let (known, _) = requests.get(place)?;
    (*known == request_id).then(|| requests.remove(place).1)
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
