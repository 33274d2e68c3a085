//! State and locks on behalf of invocations in other processes, which reach this shard by RPC. Called by the shard's RPC stage.

use super::Proxy;
use crate::state::{CallToken, ShardState};

impl Proxy {
    /// Works on the state for a remote invocation. Calls that get a lock by it go in the list; those of this shard are resumed, the others
    /// come out of `take_granted_remote`.
    pub fn with_state<R>(&mut self, work: impl FnOnce(&mut ShardState, &mut Vec<CallToken>) -> R) -> R {
        let state = self.state.as_mut().expect("lent only while a guest runs");
        let result = work(state, &mut self.granted);
        self.resume_granted();
        result
    }

    /// A remote invocation that got the lock it waited for, unless it is gone since.
    pub fn take_granted_remote(&mut self) -> Option<CallToken> {
        self.granted_remote.pop()
    }
}
