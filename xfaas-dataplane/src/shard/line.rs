//! The line: calls that are understood and run in a moment. While one runs, what the next ones will touch is on its way to the caches, so that a
//! shard with many sessions does not wait for memory at each step of each call. Nobody waits longer for it: replies leave at the turn's end anyway.
//! A shard whose sessions all stay in its core's cache opens no line: each call runs as soon as it is understood.

use super::turn::Shard;
use crate::session::Ahead;
use crate::worker::{Call, Origin};
use std::collections::VecDeque;

/// Calls in line while more arrive: as many as there are steps to look ahead. More would only push each other out of the nearest cache.
const LINE_CALLS: usize = 3;

struct Waiting {
    call: Box<Call>,
    ahead: Ahead,
}

/// Calls in the order in which they run.
pub(super) struct Line {
    calls: VecDeque<Waiting>,
    /// The turn takes what completed and the mail: more calls may come, and what is in line runs before anything else is done.
    is_open: bool,
    /// The request that is being understood is the last of its connection's input.
    pub(super) is_last: bool,
}

impl Default for Line {
    fn default() -> Line {
        Line { calls: VecDeque::with_capacity(LINE_CALLS + 1), is_open: false, is_last: true }
    }
}

impl Line {
    pub(super) fn open(&mut self) {
        (self.is_open, self.is_last) = (true, true);
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// True when the request that was just understood may stand in line. One that others of its connection follow runs at once: what follows would have to
    /// be kept for later, and their replies leave together.
    pub(super) fn takes(&self) -> bool {
        self.is_open && self.is_last
    }
}

impl Shard {
    /// Puts a call at the end of the line.
    pub(super) fn line_up(&mut self, call: Box<Call>) {
        self.line.calls.push_back(Waiting { call, ahead: Ahead::Nothing });
        self.look_ahead();
    }

    fn look_ahead(&mut self) {
        for waiting in &mut self.line.calls {
            if !matches!(waiting.ahead, Ahead::Instance { .. }) {
                waiting.ahead = self.proxy.look_ahead(&waiting.call, waiting.ahead);
            }
        }
    }

    /// Runs the first in line, as long as enough others stand behind it.
    #[inline]
    pub(super) fn step_line(&mut self) {
        while self.line.calls.len() > LINE_CALLS {
            self.run_first();
        }
    }

    /// Runs all in line. What they bring about may put others there.
    pub(super) fn run_line(&mut self) {
        while !self.line.calls.is_empty() {
            self.look_ahead();
            self.run_first();
        }
    }

    pub(super) fn close_line(&mut self) {
        self.run_line();
        self.line.is_open = false;
    }

    fn run_first(&mut self) {
        let Some(Waiting { mut call, ahead }) = self.line.calls.pop_front() else { return };
        call.is_near = ahead == Ahead::All;
        call.stages.wait_until(self.now_ns);
        if let Some(next) = self.line.calls.front_mut() {
            // By itself, so that not too much is asked for at once: the processor keeps track of some sixteen lines.
            next.ahead = self.proxy.look_ahead(&next.call, next.ahead);
        }
        if let Origin::Datagram { peer, request_id, .. } = call.origin {
            return self.run_datagram(call, peer, request_id);
        }
        if let Some(finished) = self.submit(call) {
            self.deliver_now(finished);
        }
    }
}
