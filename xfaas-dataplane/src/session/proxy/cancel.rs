//! Calls that end between two of their slices: nobody waits for them any more, they have waited too long for a lock, or the node ends.
//! Called by the shard's loop, never while a guest runs.

use super::{Phase, Proxy};
use crate::net::ErrorCode;
use crate::session::namespace::NamespaceId;
use crate::session::outcome::{Finished, Outcome};
use crate::state::CallToken;
use crate::worker::Origin;
use xfaas_common::ids::SessionId;

/// Names a call that is somewhere in a proxy. The session makes the search short, whoever sends how many resets.
#[derive(Clone, Copy, Debug)]
pub struct CallName {
    pub origin: Origin,
    pub app: u16,
    pub session: SessionId,
    pub table_hash: u32,
}

impl Proxy {
    /// Ends a call whose client is gone: its worker is dropped, its locks go on, what it wrote in an open section never was.
    /// Output: the call; `None` when it is over already, or was never here.
    pub fn cancel(&mut self, name: &CallName, now_ns: u64) -> Option<Finished> {
        let id = self.namespaces.find(name.app, &name.session, name.table_hash)?;
        if let Some(finished) = self.cancel_waiting(id, &name.origin, now_ns) {
            return Some(finished);
        }
        let mut workers = self.workers.iter().filter(|(_, slot)| slot.namespace == id);
        let (worker, _) = workers.find(|(_, slot)| slot.call.as_ref().is_some_and(|call| call.origin == name.origin))?;
        self.stats.cancelled += 1;
        Some(self.abandon(worker as u32, Outcome::Cancelled, now_ns))
    }

    fn cancel_waiting(&mut self, id: NamespaceId, origin: &Origin, now_ns: u64) -> Option<Finished> {
        let waiting = &mut self.namespaces.get_mut(id).waiting;
        let at = waiting.iter().position(|call| call.origin == *origin)?;
        let call = waiting.remove(at).expect("found just above");
        self.queued -= 1;
        self.stats.cancelled += 1;
        // It may have been what the others waited behind.
        self.start_waiting(id, now_ns);
        self.namespaces.remove_if_empty(id);
        Some(Finished { call, outcome: Outcome::Cancelled })
    }

    /// Ends all calls: those that wait for a worker as `not_begun`, the others as out of time.
    pub fn end_all(&mut self, now_ns: u64, not_begun: Outcome, finished: &mut Vec<Finished>) {
        for id in self.namespaces.waiting_ids() {
            let waiting = std::mem::take(&mut self.namespaces.get_mut(id).waiting);
            self.queued -= waiting.len();
            self.namespaces.remove_if_empty(id);
            finished.extend(waiting.into_iter().map(|call| Finished { call, outcome: not_begun }));
        }
        let out_of_time = Outcome::failed(ErrorCode::Deadline, "the server shut down before the function ended");
        let begun: Vec<usize> = self.workers.iter().filter(|(_, slot)| slot.call.is_some()).map(|(id, _)| id).collect();
        finished.extend(begun.into_iter().map(|id| self.abandon(id as u32, out_of_time, now_ns)));
    }

    /// Ends an invocation that is parked or waits for its next slice.
    pub(super) fn abandon(&mut self, id: u32, outcome: Outcome, now_ns: u64) -> Finished {
        let slot = &mut self.workers[id as usize];
        let call = slot.call.take().expect("a worker that is parked or runnable has a call");
        match slot.phase {
            Phase::Parked { .. } => self.parked -= 1,
            Phase::Remote(_) => self.remote.waiting -= 1,
            Phase::Runnable => {
                self.run_queue.remove(id, slot.namespace);
                self.held.retain(|worker| *worker != id);
            }
            Phase::Idle { .. } => unreachable!("an idle worker has no call"),
        }
        self.state.as_mut().expect("no guest runs now").locks.release_all(CallToken(id), &mut self.granted);
        let finished = self.end(id, call, outcome, false, now_ns);
        self.resume_granted();
        finished
    }
}
