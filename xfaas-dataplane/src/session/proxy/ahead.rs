//! Looks at what a call will touch before its turn comes: its namespace, its worker, its session's state. They lie all over memory and one leads to the
//! next, so a call that looks for them when it runs waits for each in turn; while other calls run, they come by themselves. Called by the shard's line.

use super::super::namespace::NamespaceId;
use super::{Proxy, WorkerSlot};
use crate::state::NamespaceRef;
use crate::sys::prefetch_span;
use crate::worker::Call;

/// What a warm call touches that no other session's call does: some 60 lines of its worker, its session's record and values, its connection. Measured:
/// with more live workers than half a core's cache of 2 MiB holds, looking ahead begins to gain; with fewer it costs 2% and gains nothing.
const CALL_BYTES: usize = 5 << 10;

/// What is known of a call that runs soon. May be out of date by then: it is good for hints only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ahead {
    /// Nothing was looked at.
    #[default]
    Nothing,
    /// On its way: the namespace.
    Namespace(NamespaceId),
    /// On their way: the worker's place, the session's record.
    Places { worker: u32, state: Option<NamespaceRef> },
    /// On their way: the worker's instance, the session's values.
    Instance { worker: u32 },
    /// On its way: all there is.
    All,
    /// It has no worker that waits for it, so there is nothing to bring.
    Cold,
}

impl Proxy {
    /// Tells how large the cache of this shard's core is (`sys::core_cache_bytes`). Half of it is reckoned to be the kernel's.
    pub fn set_cache_bytes(&mut self, bytes: usize) {
        self.workers_near = bytes / 2 / CALL_BYTES;
    }

    /// True when so many workers live that what a call touches has probably left the cache since the last one.
    #[inline]
    pub fn looks_ahead(&self) -> bool {
        self.workers.len() > self.workers_near
    }

    /// Takes the next step for a call that runs soon; what the step before asked for should have come meanwhile. To be called with other work between the steps.
    pub fn look_ahead(&self, call: &Call, ahead: Ahead) -> Ahead {
        let next = match ahead {
            Ahead::Nothing => self.namespaces.prefetch(call.app, call.table_hash).map(Ahead::Namespace),
            Ahead::Namespace(id) => self.look_at_places(call, id),
            Ahead::Places { worker, state } => self.look_at_instance(call, worker, state),
            Ahead::Instance { worker } => self.workers.get(worker as usize).map(|slot| {
                slot.worker.warm_stack();
                Ahead::All
            }),
            Ahead::All | Ahead::Cold => Some(ahead),
        };
        next.unwrap_or(Ahead::Cold)
    }

    fn look_at_places(&self, call: &Call, id: NamespaceId) -> Option<Ahead> {
        let namespace = self.namespaces.try_get(id)?;
        let worker = namespace.idle.warmest()?;
        let slot = self.workers.get(worker as usize)?;
        prefetch_span((&raw const *slot).addr(), size_of::<WorkerSlot>());
        self.idle.prefetch(worker);
        let state = namespace.state;
        if let (Some(state), Some(region)) = (state, self.state().region(call.app)) {
            region.prefetch_record(state);
        }
        Some(Ahead::Places { worker, state })
    }

    fn look_at_instance(&self, call: &Call, worker: u32, state: Option<NamespaceRef>) -> Option<Ahead> {
        self.workers.get(worker as usize)?.worker.warm_instance();
        if let (Some(state), Some(region)) = (state, self.state().region(call.app)) {
            region.prefetch_cells(state);
        }
        Some(Ahead::Instance { worker })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TABLE_HASH, call, proxy};
    use super::*;
    use crate::sys::clock::monotonic_ns;
    use crate::worker::StateAt;
    use xfaas_common::ids::SessionId;

    /// Each step as far as it goes.
    fn steps(proxy: &Proxy, session: &SessionId) -> Vec<Ahead> {
        let call = call(session, b"", StateAt::Here);
        let mut steps = vec![Ahead::Nothing];
        while !matches!(steps.last(), Some(Ahead::All | Ahead::Cold)) {
            steps.push(proxy.look_ahead(&call, steps[steps.len() - 1]));
        }
        steps
    }

    #[test]
    fn few_workers_stay_in_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let mut proxy = proxy(directory.path());
        let run = |proxy: &mut Proxy, name: &[u8]| {
            let session = SessionId::new(name).unwrap();
            let mut finished = proxy.submit(call(&session, b"", StateAt::Here), monotonic_ns());
            while finished.is_none() {
                finished = proxy.run_next(monotonic_ns());
            }
        };
        run(&mut proxy, b"a");
        assert!(proxy.looks_ahead(), "nobody said that there is a cache");
        proxy.set_cache_bytes(2 * CALL_BYTES);
        assert!(!proxy.looks_ahead());
        run(&mut proxy, b"b");
        assert!(proxy.looks_ahead());
    }

    #[test]
    fn a_worker_that_waits_is_found_and_one_that_is_gone_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (mut proxy, session) = (proxy(directory.path()), SessionId::new(b"s").unwrap());
        assert_eq!(steps(&proxy, &session), [Ahead::Nothing, Ahead::Cold], "nobody has asked for the session yet");
        let mut finished = proxy.submit(call(&session, b"", StateAt::Here), monotonic_ns());
        while finished.is_none() {
            finished = proxy.run_next(monotonic_ns());
        }
        let warm = steps(&proxy, &session);
        let [_, Ahead::Namespace(_), Ahead::Places { worker, state: Some(_) }, Ahead::Instance { worker: same }, Ahead::All] = warm[..]
        else {
            panic!("{warm:?}");
        };
        assert_eq!(worker, same);
        let id = proxy.namespaces.find(0, &session, TABLE_HASH).unwrap();
        proxy.drop_idle(worker);
        proxy.namespaces.remove_if_empty(id);
        for late in &warm[1..4] {
            let call = call(&session, b"", StateAt::Here);
            assert_eq!(proxy.look_ahead(&call, *late), Ahead::Cold, "what was known at {late:?} is out of date");
        }
    }
}
