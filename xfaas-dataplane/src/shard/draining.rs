//! The end of a shard's work: what runs may finish, and what has not when its time is over is answered all the same. CONTRACT.md section 4.
//! Called by the loop between two turns.

use super::lifecycle::Ordered;
use super::turn::Shard;
use crate::net::ErrorCode;
use crate::session::{Finished, Outcome};
use crate::sys::clock;

/// How long what is said at the end may take to leave: through other shards, the log, the kernel.
const LAST_WORDS_NS: u64 = 100_000_000;
/// For so long of that, answers wait for a log that is slow.
const LAST_SYNC_NS: u64 = LAST_WORDS_NS / 2;

const NOT_BEGUN: Outcome = Outcome::failed(ErrorCode::Draining, "this server is shutting down");

impl Shard {
    /// True when draining is over: what ran has finished on all shards, and what is to be saved here is. A shard that went before the others would take
    /// away what their calls still ask of it, and reset its clients instead of telling them that the node drains.
    pub(super) fn is_drained(&mut self) -> bool {
        if self.draining_since_ns.is_some() && !self.is_ending {
            if self.is_late() {
                self.end_calls();
            }
            self.is_ending = self.post.say_finished(self.has_finished()) || self.is_over_for(LAST_WORDS_NS);
        }
        let is_drained = self.is_ending && self.lifecycle.is_saved();
        if is_drained {
            self.ring.hand_over(); // refusals of the last turn
        }
        is_drained
    }

    /// True when the time to finish is over.
    fn is_late(&self) -> bool {
        self.draining_since_ns.is_some_and(|since_ns| self.now_ns.saturating_sub(since_ns) > self.options.drain_ns_max)
    }

    /// True when all calls were ended so long ago.
    fn is_over_for(&self, time_ns: u64) -> bool {
        self.calls_ended_ns.is_some_and(|ended_ns| self.now_ns.saturating_sub(ended_ns) > time_ns)
    }

    /// True when draining and nothing is left to finish.
    fn has_finished(&self) -> bool {
        let Some(since_ns) = self.draining_since_ns else { return false };
        let busy = self.proxy.is_busy()
            || self.moves.is_busy()
            || self.rpc.is_busy()
            || self.logging.has_held()
            || !self.session_reads.is_empty()
            || self.lifecycle.has_parked()
            || !self.answers.is_empty()
            || self.connections.iter().any(|(_, connection)| connection.busy || connection.sending);
        // A moment of 503 `draining` for those who are just asking, then the end.
        let told = self.now_ns.saturating_sub(since_ns) > self.options.drain_ns_min;
        told && !busy && !self.post.has_unsent()
    }

    /// Answers every call that is here, wherever it waits. Those of neighbours' clients go back to them, those that are still on their way here come with
    /// one of the next turns.
    fn end_calls(&mut self) {
        let mut finished = std::mem::take(&mut self.finished);
        self.take_not_begun(&mut finished);
        self.proxy.end_all(self.now_ns, NOT_BEGUN, &mut finished);
        self.deliver_all(finished);
        if self.is_over_for(LAST_SYNC_NS) {
            self.give_up_held();
        }
        self.calls_ended_ns = self.calls_ended_ns.or_else(|| Some(clock::monotonic_ns()));
        self.send_answers();
        self.wake_neighbours();
    }

    /// The calls that wait for their session to be here: to be loaded, or moved.
    fn take_not_begun(&mut self, finished: &mut Vec<Finished>) {
        let before = finished.len();
        let not_begun = |call| Finished { call, outcome: NOT_BEGUN };
        for (_, ticket) in &mut self.lifecycle.tickets {
            if let Ordered::Load { calls, .. } = &mut ticket.order {
                finished.extend(calls.drain(..).map(not_begun));
            }
        }
        self.lifecycle.end_parking(finished.len() - before);
        self.moves.queues().for_each(|calls| finished.extend(calls.drain(..).map(not_begun)));
    }
}
