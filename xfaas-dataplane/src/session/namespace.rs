//! The active namespaces of a shard: those with a worker or a waiting call. A namespace at rest is only its state in the region.

use super::budget::Budget;
use super::resting::RestingWorkers;
use super::secondaries::Secondaries;
use crate::state::NamespaceRef;
use crate::sys::prefetch_span;
use crate::worker::Call;
use hashbrown::HashTable;
use slab::Slab;
use std::collections::VecDeque;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{COOLING_NAMESPACES_MAX, HOOK_APP};

/// Index of an active namespace on this shard.
pub(super) type NamespaceId = u32;

/// (app, session): the session's primary container, or, on another shard than the session's, a secondary one.
pub(super) struct Namespace {
    pub(super) app: u16,
    pub(super) session: SessionId,
    table_hash: u32,
    /// Where the session's state lies, once a call has looked it up. Nothing removes a session's state while it is active.
    pub(super) state: Option<NamespaceRef>,
    pub(super) idle: RestingWorkers,
    /// Workers that run or are parked in an invocation.
    pub(super) running: u16,
    /// Calls that wait for a worker, oldest first.
    pub(super) waiting: VecDeque<Box<Call>>,
    /// Its secondary containers on other shards.
    pub(super) secondaries: Secondaries,
    /// It is such a container itself.
    is_secondary: bool,
    /// Time of the core since the balancer asked last, while it is asking: nanoseconds.
    pub(super) ran_ns: u64,
    /// Requests of late, where the app has `requests_per_s`.
    pub(super) requests: Budget,
    /// Time of the core of late, where the app has a `cpu_share`.
    pub(super) core_time: Budget,
    /// It rests in the table until what it used of late is paid off: to be forgotten and made again would be a way around its limits.
    is_cooling: bool,
}

impl Namespace {
    /// True while a call of it runs, here or in a secondary container.
    pub(super) fn has_calls(&self) -> bool {
        self.running > 0 || self.secondaries.is_busy()
    }

    /// True when no call runs or waits.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.has_calls() && self.waiting.is_empty()
    }

    pub(super) fn is_secondary(&self) -> bool {
        self.is_secondary
    }

    /// True for that of an app's hooks.
    pub(super) fn is_hook(&self) -> bool {
        self.app & HOOK_APP != 0
    }

    /// When nothing of what it used of late counts any more; 0: nothing ever did.
    fn settled_at_ns(&self) -> u64 {
        self.requests.empty_at_ns().max(self.core_time.empty_at_ns())
    }
}

pub(super) struct NamespaceTable {
    by_session: HashTable<NamespaceId>,
    namespaces: Slab<Namespace>,
    /// Namespaces that rest for their limits only.
    cooling: VecDeque<NamespaceId>,
    /// Those that are secondary containers.
    secondaries: usize,
}

impl NamespaceTable {
    pub(super) fn new() -> NamespaceTable {
        NamespaceTable { by_session: HashTable::new(), namespaces: Slab::new(), cooling: VecDeque::new(), secondaries: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.namespaces.len()
    }

    pub(super) fn find(&self, app: u16, session: &SessionId, table_hash: u32) -> Option<NamespaceId> {
        let same = |id: &NamespaceId| {
            let namespace = &self.namespaces[*id as usize];
            namespace.app == app && namespace.session == *session
        };
        self.by_session.find(spread(table_hash, app), same).copied()
    }

    /// The active namespace that the session's hash leads to: nearly always the session's own. It is not looked at but brought nearer.
    pub(super) fn prefetch(&self, app: u16, table_hash: u32) -> Option<NamespaceId> {
        let id = *self.by_session.find(spread(table_hash, app), |_| true)?;
        let namespace = self.namespaces.get(id as usize)?;
        prefetch_span((&raw const *namespace).addr(), size_of::<Namespace>());
        Some(id)
    }

    /// Where `id` may be out of date.
    pub(super) fn try_get(&self, id: NamespaceId) -> Option<&Namespace> {
        self.namespaces.get(id as usize)
    }

    /// `table_hash` is the well-mixed half of the session's keyed hash, so a client cannot crowd a bucket.
    pub(super) fn find_or_insert(&mut self, app: u16, session: &SessionId, table_hash: u32) -> NamespaceId {
        if let Some(id) = self.find(app, session, table_hash) {
            return id;
        }
        let hash = spread(table_hash, app);
        let fresh = Namespace {
            app,
            session: *session,
            table_hash,
            state: None,
            idle: RestingWorkers::new(),
            running: 0,
            waiting: VecDeque::new(),
            secondaries: Secondaries::default(),
            is_secondary: false,
            ran_ns: 0,
            requests: Budget::default(),
            core_time: Budget::default(),
            is_cooling: false,
        };
        let id = self.namespaces.insert(fresh) as NamespaceId;
        let namespaces = &self.namespaces;
        self.by_session.insert_unique(hash, id, |id| {
            let namespace = &namespaces[*id as usize];
            spread(namespace.table_hash, namespace.app)
        });
        id
    }

    /// True when the session's namespace is active, and so a reference to its state may be held.
    pub(super) fn contains(&self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        let namespaces = &self.namespaces;
        let same = |id: &NamespaceId| {
            let namespace = &namespaces[*id as usize];
            namespace.app == app && namespace.session == *session
        };
        self.by_session.find(spread(table_hash, app), same).is_some()
    }

    pub(super) fn get(&self, id: NamespaceId) -> &Namespace {
        &self.namespaces[id as usize]
    }

    pub(super) fn get_mut(&mut self, id: NamespaceId) -> &mut Namespace {
        &mut self.namespaces[id as usize]
    }

    /// Forgets the namespace if nothing runs, waits or rests in it.
    pub(super) fn remove_if_empty(&mut self, id: NamespaceId) {
        let namespace = &mut self.namespaces[id as usize];
        if namespace.running != 0 || !namespace.idle.is_empty() || !namespace.waiting.is_empty() || namespace.secondaries.is_busy() {
            return;
        }
        if namespace.is_cooling {
            return; // `cool_down` looks at it again
        }
        if namespace.settled_at_ns() != 0 && self.cooling.len() < COOLING_NAMESPACES_MAX {
            namespace.is_cooling = true;
            return self.cooling.push_back(id);
        }
        let hash = spread(namespace.table_hash, namespace.app);
        if let Ok(entry) = self.by_session.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
        let removed = self.namespaces.remove(id as usize);
        self.secondaries -= usize::from(removed.is_secondary);
    }

    /// The namespace's session is another shard's, or this one's from now on.
    pub(super) fn set_secondary(&mut self, id: NamespaceId, is_secondary: bool) {
        let was = std::mem::replace(&mut self.namespaces[id as usize].is_secondary, is_secondary);
        self.secondaries = self.secondaries + usize::from(is_secondary) - usize::from(was);
    }

    pub(super) fn secondaries(&self) -> usize {
        self.secondaries
    }

    /// Looks at the namespaces that rest for their limits: those whose time is over are forgotten, unless they are in use again.
    pub(super) fn cool_down(&mut self, now_ns: u64) {
        for _ in 0..self.cooling.len() {
            let Some(id) = self.cooling.pop_front() else { return };
            let namespace = &mut self.namespaces[id as usize];
            if namespace.settled_at_ns() > now_ns {
                self.cooling.push_back(id);
                continue;
            }
            namespace.is_cooling = false;
            (namespace.requests, namespace.core_time) = (Budget::default(), Budget::default());
            self.remove_if_empty(id);
        }
    }

    pub(super) fn is_cooling(&self) -> bool {
        !self.cooling.is_empty()
    }

    /// Namespaces with a waiting call.
    pub(super) fn waiting_ids(&self) -> Vec<NamespaceId> {
        self.namespaces.iter().filter(|(_, namespace)| !namespace.waiting.is_empty()).map(|(id, _)| id as NamespaceId).collect()
    }

    pub(super) fn each_mut(&mut self, mut visit: impl FnMut(&mut Namespace)) {
        self.namespaces.iter_mut().for_each(|(_, namespace)| visit(namespace));
    }
}

/// hashbrown reads the upper 7 and the lower bits: both come from the mixed half.
fn spread(table_hash: u32, app: u16) -> u64 {
    let hash = table_hash.wrapping_add(u32::from(app).wrapping_mul(0x9E37_79B9));
    u64::from(hash) << 32 | u64::from(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_found_again_until_it_is_empty() {
        let mut table = NamespaceTable::new();
        let session = SessionId::new(b"alice").unwrap();
        let id = table.find_or_insert(0, &session, 7);
        assert_eq!(table.find_or_insert(0, &session, 7), id);
        assert_ne!(table.find_or_insert(1, &session, 7), id);
        table.get_mut(id).running = 1;
        table.remove_if_empty(id);
        assert_eq!(table.find_or_insert(0, &session, 7), id);
        table.get_mut(id).running = 0;
        table.remove_if_empty(id);
        assert_eq!(table.len(), 1);
        assert!(table.find(0, &session, 7).is_none() && table.find(1, &session, 7).is_some());
    }

    #[test]
    fn a_namespace_with_limits_is_forgotten_only_when_they_are_paid_off() {
        let mut table = NamespaceTable::new();
        let session = SessionId::new(b"alice").unwrap();
        let id = table.find_or_insert(0, &session, 7);
        assert!(table.get_mut(id).requests.take(100, 100, 1_000));
        table.remove_if_empty(id);
        assert_eq!(table.find_or_insert(0, &session, 7), id);
        assert!(!table.get_mut(id).requests.take(100, 100, 1_050));
        table.remove_if_empty(id);
        table.cool_down(1_099);
        assert_eq!(table.len(), 1);
        table.cool_down(1_100);
        assert_eq!((table.len(), table.is_cooling()), (0, false));
    }

    #[test]
    fn colliding_hashes_stay_apart() {
        let mut table = NamespaceTable::new();
        let ids: Vec<_> = (0..100).map(|i| table.find_or_insert(0, &SessionId::new(format!("s{i}").as_bytes()).unwrap(), 1)).collect();
        for (i, id) in ids.iter().enumerate() {
            assert_eq!(table.get(*id).session.as_str(), format!("s{i}"));
            table.remove_if_empty(*id);
        }
        assert_eq!(table.len(), 0);
    }
}
