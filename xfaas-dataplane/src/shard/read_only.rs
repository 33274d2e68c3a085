//! Where a call runs: with its session's owner, or, if its function is read-only, beside it on the shard where the request landed.
//! CONTRACT.md section 3.

use super::turn::Shard;
use crate::net::ErrorCode;
use crate::session::{Finished, Outcome};
use crate::worker::{Call, Durability, Origin, StateAt};
use xfaas_common::ids::CoreIndex;

impl Shard {
    /// Decides where a request that landed here runs; counts it. True: on this shard. False: `owner` is to be asked.
    pub(super) fn runs_here(&mut self, call: &mut Call, owner: CoreIndex) -> bool {
        let counters = &self.view.counters;
        if owner == self.core {
            counters.steered.add(1);
            return true;
        }
        counters.misrouted.add(1);
        let may_run_beside = self.proxy.function(call.function).is_some_and(|function| {
            // The answers that an idempotent function's datagrams get again are kept in one place, with the owner.
            let is_replayed = function.manifest.idempotent && matches!(call.origin, Origin::Datagram { .. });
            // Where writes wait for the log, only the owner knows which of them are safe to show.
            function.manifest.read_only
                && function.manifest.durability == Durability::Memory
                && !is_replayed
                && !self.lifecycle.may_sleep(function.app)
                && self.proxy.state().readers.get(function.app, owner.0).is_some()
        });
        if !may_run_beside || self.proxy.takes_locks(call.function) {
            return false;
        }
        counters.local_reads.add(1);
        call.state_at = StateAt::Shard(owner.0);
        call.pins_seen = self.pins.generation();
        true
    }

    /// Hands calls that could not go on beside their session's owner over to it. They were read-only, so they may run anew.
    pub(super) fn send_to_owners(&mut self) {
        while let Some(mut call) = self.proxy.next_for_owner() {
            let StateAt::Shard(owner) = std::mem::take(&mut call.state_at) else {
                unreachable!("only a call beside its session's owner is given up");
            };
            self.view.counters.local_reads_given_up.add(1);
            self.note_asked(call.origin, owner);
            match self.post.invoke(usize::from(owner), call) {
                Ok(()) => self.view.counters.forwarded.add(1),
                Err(call) => {
                    let outcome = Outcome::failed(ErrorCode::Overloaded, "the owner's mailbox is full");
                    self.deliver(Finished { call, outcome });
                }
            }
        }
    }
}
