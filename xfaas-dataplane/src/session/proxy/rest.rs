//! Namespaces that nobody uses: since when, and letting go of what they still hold here before their state is dropped.
//! Called by the shard's `lifecycle`, never while a guest runs.

use super::{Phase, Proxy};
use xfaas_common::ids::SessionId;

/// When a namespace was used last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastUse {
    /// A call runs or waits.
    Now,
    /// Its last worker has been idle since then, on the monotonic clock.
    SinceNs(u64),
    /// It has no worker any more.
    Forgotten,
}

impl Proxy {
    pub fn last_use(&self, app: u16, session: &SessionId, table_hash: u32) -> LastUse {
        let Some(id) = self.namespaces.find(app, session, table_hash) else { return LastUse::Forgotten };
        let namespace = self.namespaces.get(id);
        if !namespace.is_at_rest() {
            return LastUse::Now;
        }
        let since = namespace.idle.iter().filter_map(|worker| match self.workers[worker as usize].phase {
            Phase::Idle { since_ns } => Some(since_ns),
            _ => None,
        });
        since.max().map_or(LastUse::Forgotten, LastUse::SinceNs)
    }

    /// Drops the idle workers of a namespace and forgets where its state is. False: it is in use.
    pub fn let_go(&mut self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        let Some(id) = self.namespaces.find(app, session, table_hash) else { return true };
        let namespace = self.namespaces.get_mut(id);
        if !namespace.is_at_rest() {
            return false;
        }
        namespace.state = None;
        while let Some(worker) = self.namespaces.get(id).idle.warmest() {
            self.drop_idle(worker);
        }
        self.namespaces.remove_if_empty(id);
        true
    }
}
