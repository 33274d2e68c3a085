//! The session proxy of one shard: picks or forks a worker for a call, runs it, and owns what waits.
//! Called by the shard's loop alone. A warm call allocates nothing and blocks on nothing: a guest that must wait is parked.

mod ahead;
mod beside;
mod cancel;
mod eviction;
mod limits;
mod moving;
mod packing;
mod remote;
mod rest;
mod run_queue;
mod secondary;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod unserved_tests;

pub use self::ahead::Ahead;
pub use self::secondary::{EndedInvocation, RemoteAnswer, RemoteTicket, invocation_of};

pub use self::cancel::CallName;
pub use self::moving::{HotNamespace, UsedLimits};
pub use self::packing::Offer;
pub use self::rest::LastUse;

use self::beside::Beside;
use self::limits::SliceEnd;
use self::packing::Packing;
use self::run_queue::RunQueue;
use self::secondary::{RemoteCalls, RemoteWait, failed_with};
use super::idle::IdleList;
use super::namespace::{NamespaceId, NamespaceTable};
use super::outcome::{Finished, Outcome};
use crate::net::ErrorCode;
use crate::state::{CallToken, RegionError, ShardState, set_aside};
use crate::worker::{Call, ForkError, Function, FunctionManifest, Lent, Progress, STAMPED, StateAt, Worker};
use slab::Slab;
use std::collections::VecDeque;
use std::sync::Arc;
use xfaas_common::ids::AppHash;
use xfaas_common::limits::FUNCTIONS_MAX;

/// Bytes of session state moved in one sweep to keep it compact: less than a hundredth of a core's time.
const COMPACT_BYTES_MAX: usize = 64 << 10;

/// Limits of one shard's proxy.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// Workers alive at once on this shard, idle ones included.
    pub workers_live_max: usize,
    /// An idle worker is dropped after this time, nanoseconds.
    pub keep_warm_ns: u64,
    /// A call waits for a lock at most this long, nanoseconds.
    pub lock_wait_ns: u64,
    /// The state is with a primary in another process: no region is opened here.
    pub is_secondary: bool,
    /// Calls that wait for a worker: in one namespace, and on the whole shard.
    pub namespace_queue_calls_max: usize,
    pub queued_calls_max: usize,
}

/// Counts since start, and what is there now.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProxyStats {
    pub forks: u64,
    pub fork_ns: u64,
    pub evictions: u64,
    pub workers: u64,
    pub workers_idle: u64,
    pub workers_parked: u64,
    pub namespaces: u64,
    pub queued: u64,
    pub lock_waits: u64,
    pub slices: u64,
    pub mapped_reads: u64,
    pub cancelled: u64,
    pub regions_refused: u64,
    pub rate_limited: u64,
    /// Of this shard's secondary containers: how many there are, were made, the calls they were given, and how long those were on their way.
    pub secondaries: u64,
    pub copy_sessions: u64,
    pub secondary_calls: u64,
    pub secondary_wait_ns: u64,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle {
        since_ns: u64,
    },
    /// In the run queue, or running right now.
    Runnable,
    /// Parked until a lock is handed over.
    Parked {
        since_ns: u64,
    },
    /// Parked until the primary, or the owner of another session, has answered.
    Remote(RemoteWait),
}

struct WorkerSlot {
    worker: Worker,
    namespace: NamespaceId,
    function: u16,
    generation: u64,
    phase: Phase,
    call: Option<Box<Call>>,
}

pub struct Proxy {
    options: ProxyOptions,
    functions: Vec<Option<Arc<Function>>>,
    /// By function: the hash of its app's name, worked out once.
    app_hashes: Vec<AppHash>,
    workers: Slab<WorkerSlot>,
    /// With up to so many live workers, what their calls touch stays in the core's cache.
    workers_near: usize,
    idle: IdleList,
    namespaces: NamespaceTable,
    run_queue: RunQueue,
    /// Whose turn of the run queue it is, while its guest runs.
    in_turn: Option<NamespaceId>,
    /// The last slice that was over while others waited.
    slice_ended: SliceEnd,
    /// Runnable workers of namespaces that are over their share.
    held: VecDeque<u32>,
    /// Lent to the guest that runs; here at all other times.
    state: Option<Box<ShardState>>,
    granted: Vec<CallToken>,
    remote: RemoteCalls,
    beside: Beside,
    packing: Packing,
    /// Those of `granted` that are invocations in other processes.
    granted_remote: Vec<CallToken>,
    parked: usize,
    queued: usize,
    /// Until then the balancer wants to know what each namespace runs.
    measured_until_ns: u64,
    stats: ProxyStats,
}

impl Proxy {
    pub fn new(options: ProxyOptions, state: Box<ShardState>) -> Proxy {
        // Room for every worker: a guest that a tick slices for the first time must not be what makes a queue grow.
        let run_queue = RunQueue::new(options.workers_live_max);
        let held = VecDeque::with_capacity(options.workers_live_max);
        let granted = Vec::with_capacity(options.workers_live_max);
        let remote = RemoteCalls::new(options.workers_live_max);
        let idle = IdleList::new(options.workers_live_max);
        Proxy {
            options,
            functions: Vec::new(),
            app_hashes: Vec::new(),
            workers: Slab::new(),
            workers_near: 0,
            idle,
            namespaces: NamespaceTable::new(),
            run_queue,
            in_turn: None,
            slice_ended: SliceEnd::default(),
            held,
            state: Some(state),
            granted,
            remote,
            beside: Beside::default(),
            packing: Packing::default(),
            granted_remote: Vec::new(),
            parked: 0,
            queued: 0,
            measured_until_ns: 0,
            stats: ProxyStats::default(),
        }
    }

    pub fn state(&self) -> &ShardState {
        self.state.as_ref().expect("lent only while a guest runs")
    }

    /// Takes a function, or its new version, into service. Idle workers of an older version are dropped at once; running ones end first.
    pub fn install(&mut self, function: Arc<Function>) -> Result<(), RegionError> {
        let index = usize::from(function.index);
        assert!(index < FUNCTIONS_MAX, "the deployer hands out indexes below the limit");
        if !self.options.is_secondary {
            self.open_app(function.app, &function.manifest.app)?;
        }
        if self.functions.len() <= index {
            self.functions.resize(index + 1, None);
            self.app_hashes.resize(index + 1, AppHash::NONE);
        }
        self.app_hashes[index] = AppHash::of(function.manifest.app.as_bytes());
        self.functions[index] = Some(function);
        self.beside.forget(index);
        self.drop_stale();
        Ok(())
    }

    /// Opens the region of an app. A file that cannot be trusted is set aside, never deleted, and the app starts with empty state.
    fn open_app(&mut self, app: u16, name: &str) -> Result<(), RegionError> {
        let state = self.state.as_mut().expect("lent only while a guest runs");
        let error = match state.open_app(app, name) {
            Err(error) if error.is_about_content() => error,
            opened => return opened,
        };
        let path = state.region_path(name);
        self.stats.regions_refused += 1;
        match set_aside(&path) {
            Ok(aside) => tracing::error!("{error}: set aside as {}; app {name:?} starts with empty state", aside.display()),
            Err(_) => return Err(error),
        }
        state.open_app(app, name)
    }

    /// Takes a function out of service.
    pub fn remove(&mut self, index: u16) {
        if let Some(function) = self.functions.get_mut(usize::from(index)) {
            *function = None;
        }
        self.drop_stale();
        self.drop_stale_readers();
    }

    pub fn function(&self, index: u16) -> Option<&Arc<Function>> {
        self.functions.get(usize::from(index))?.as_ref()
    }

    /// What the app of a function that is in service is known by between processes.
    pub fn app_hash(&self, index: u16) -> AppHash {
        self.app_hashes.get(usize::from(index)).copied().unwrap_or(AppHash::NONE)
    }

    /// True while a worker could run now.
    pub fn has_runnable(&self) -> bool {
        !self.run_queue.is_empty() || !self.held.is_empty()
    }

    /// True while all that could run are namespaces over their share.
    pub fn has_held_only(&self) -> bool {
        self.run_queue.is_empty() && !self.held.is_empty()
    }

    /// True while a call runs, is parked or waits.
    pub fn is_busy(&self) -> bool {
        self.queued > 0 || self.parked > 0 || self.remote.waiting > 0 || self.has_runnable()
    }

    pub fn stats(&self) -> ProxyStats {
        ProxyStats {
            workers: self.workers.len() as u64,
            workers_idle: self.idle.len() as u64,
            workers_parked: (self.parked + self.remote.waiting) as u64,
            namespaces: self.namespaces.len() as u64,
            secondaries: self.namespaces.secondaries() as u64,
            queued: self.queued as u64,
            ..self.stats
        }
    }

    /// Runs `call` at once when its namespace has room, else lets it wait its turn. Output: the call back, when it is over already.
    pub fn submit(&mut self, mut call: Box<Call>, now_ns: u64) -> Option<Finished> {
        // Not cloned: all shards count in the same place, and a warm call would change it twice.
        let function = self.functions.get(usize::from(call.function)).and_then(Option::as_ref);
        let Some(function) = function.filter(|function| call.is_for(function)) else { return self.refuse_unserved(call) };
        match (call.is_hook(), &function.hook) {
            (false, _) => call.set_function(&function.manifest),
            (true, Some(_)) => call.set_hook(&function.manifest),
            (true, None) => return refused(call, ErrorCode::Overloaded, "the function was replaced"),
        }
        let FunctionManifest { workers_max, containers_max, ref rules, .. } = function.manifest;
        let requests_per_s = rules.requests_per_s;
        let id = self.namespaces.find_or_insert(call.app, &call.session, call.table_hash);
        if let Some(requests_per_s) = requests_per_s
            && !call.is_hook()
            && !call.is_admitted
            && !self.take_request(id, requests_per_s, now_ns)
        {
            return refused(call, ErrorCode::RateLimited, "the session has more requests than its app's requests_per_s");
        }
        call.is_admitted = true;
        let is_near = call.is_near;
        let namespace = self.namespaces.get_mut(id);
        call.namespace = namespace.state;
        if namespace.running < workers_max && namespace.waiting.is_empty() {
            match self.take_worker(id, call.function, is_near, now_ns) {
                Ok(worker) => {
                    let is_busy = self.namespaces.get(id).running > 0;
                    self.assign(worker, call, now_ns);
                    if is_busy || self.is_over_share(id, now_ns) {
                        // It is over its share, or another invocation was sliced or parked: its namespace's calls take turns with everybody's.
                        self.enqueue(worker, now_ns);
                        return None;
                    }
                    return self.run(worker, now_ns);
                }
                Err(ForkError::PoolFull) => {}
                Err(_) => {
                    self.namespaces.remove_if_empty(id);
                    return refused(call, ErrorCode::Overloaded, "a worker could not be made");
                }
            }
        }
        if containers_max > 1 && self.namespaces.get(id).waiting.is_empty() {
            call = self.offer(id, call, now_ns)?; // else it is on its way to another shard
        }
        let namespace = self.namespaces.get_mut(id);
        // Without a call of its own nothing would ever start what waits here.
        if !namespace.has_calls()
            || namespace.waiting.len() >= self.options.namespace_queue_calls_max
            || self.queued >= self.options.queued_calls_max
        {
            self.namespaces.remove_if_empty(id);
            return refused(call, ErrorCode::Overloaded, "all workers are busy and the queue is full");
        }
        namespace.waiting.push_back(call);
        self.queued += 1;
        None
    }

    /// Answers a call whose function is gone.
    #[cold]
    fn refuse_unserved(&mut self, call: Box<Call>) -> Option<Finished> {
        // One that was offered by another shard may have had it made.
        if let Some(id) = self.namespaces.find(call.app, &call.session, call.table_hash) {
            self.namespaces.remove_if_empty(id);
        }
        refused(call, ErrorCode::NoFunction, "the function was removed")
    }

    /// Runs the next runnable worker for one slice. Output: a call that is over.
    pub fn run_next(&mut self, now_ns: u64) -> Option<Finished> {
        let id = self.next_runnable(now_ns)?;
        self.in_turn = Some(self.workers[id as usize].namespace);
        let finished = self.run(id, now_ns);
        self.in_turn = None;
        finished
    }

    /// An idle worker of the namespace, else a Fork. `function`: the index of one that is in service. `is_near`: what it touches was asked for before.
    fn take_worker(&mut self, id: NamespaceId, function: u16, is_near: bool, now_ns: u64) -> Result<u32, ForkError> {
        let namespace = self.namespaces.get_mut(id);
        let workers = &self.workers;
        if let Some(worker) = namespace.idle.take(|worker| workers[worker as usize].function == function) {
            if !is_near && self.looks_ahead() {
                let worker = &self.workers[worker as usize].worker;
                worker.warm_instance();
                worker.warm_stack();
            }
            self.idle.remove(worker);
            return Ok(worker);
        }
        self.fork(id, function, now_ns)
    }

    #[cold]
    fn fork(&mut self, id: NamespaceId, function: u16, now_ns: u64) -> Result<u32, ForkError> {
        let function = self.functions[usize::from(function)].clone().expect("looked up by the caller");
        if self.workers.len() >= self.options.workers_live_max && !self.evict_oldest(id) {
            return Err(ForkError::PoolFull);
        }
        let is_hook = self.namespaces.get(id).is_hook();
        // Replaced while the call waited: `sweep` answers it.
        let program = if is_hook { function.hook.as_ref().ok_or(ForkError::PoolFull)? } else { &function.program };
        let worker = self.fork_with_room(program, id)?;
        self.stats.forks += 1;
        self.stats.fork_ns += crate::sys::clock::monotonic_ns().saturating_sub(now_ns);
        let slot = WorkerSlot {
            worker,
            namespace: id,
            function: function.index,
            generation: function.generation,
            phase: Phase::Runnable,
            call: None,
        };
        Ok(self.workers.insert(slot) as u32)
    }

    fn assign(&mut self, id: u32, mut call: Box<Call>, now_ns: u64) {
        let slot = &mut self.workers[id as usize];
        call.token = CallToken(id);
        call.started_ns = now_ns;
        slot.call = Some(call);
        slot.phase = Phase::Runnable;
        slot.worker.start();
        self.namespaces.get_mut(slot.namespace).running += 1;
    }

    fn run(&mut self, id: u32, now_ns: u64) -> Option<Finished> {
        let slot = &mut self.workers[id as usize];
        let call = slot.call.take().expect("a runnable worker has a call");
        let state = self.state.take().expect("one guest runs at a time on a shard");
        let (namespace, function) = (slot.namespace, slot.function);
        // All hooks of an app have one namespace, whose time is nobody's share.
        let share = self.share_of(function).filter(|_| !call.is_hook());
        let is_measured = now_ns < self.measured_until_ns;
        let from_ns = if share.is_some() || is_measured { crate::sys::clock::monotonic_ns() } else { 0 };
        let entered_ns = if STAMPED { crate::sys::clock::quick_ns() } else { 0 };
        let (lent, progress) = self.workers[id as usize].worker.poll(Lent { call, state });
        if let Some(share) = share {
            self.charge_core_time(namespace, share, from_ns);
        }
        if is_measured {
            self.measure(namespace, from_ns);
        }
        let Lent { mut call, state } = lent;
        self.state = Some(state);
        self.stats.slices += 1;
        if STAMPED {
            call.stages.note_slice(entered_ns, crate::sys::clock::quick_ns());
        }
        self.granted.append(&mut call.granted);
        let finished = match progress {
            Progress::Finished(0) => Some(self.end(id, call, Outcome::Replied, true, now_ns)),
            Progress::Finished(code) => {
                let outcome = failed_with(&call, code);
                Some(self.end(id, call, outcome, true, now_ns))
            }
            Progress::Asking | Progress::Committing => {
                self.park_for_primary(id, call, progress == Progress::Committing);
                None
            }
            Progress::Trapped(kind) => {
                let outcome = Outcome::failed(ErrorCode::GuestTrapped, kind.detail());
                Some(self.end(id, call, outcome, false, now_ns))
            }
            Progress::DeadlinePassed => {
                let detail = match call.is_hook() {
                    true => "the hook ran longer than its hook_deadline_ms",
                    false => "the function ran longer than its deadline_ms",
                };
                let outcome = Outcome::failed(ErrorCode::Deadline, detail);
                Some(self.end(id, call, outcome, false, now_ns))
            }
            Progress::NeedsOwner { for_lock } => {
                self.give_up(id, call, for_lock, now_ns);
                None
            }
            Progress::SliceOver => {
                self.end_slice(id, call, now_ns);
                None
            }
            Progress::Waiting => {
                let slot = &mut self.workers[id as usize];
                slot.call = Some(call);
                // Not the turn's clock: the guest may have run for a while before it had to wait.
                slot.phase = Phase::Parked { since_ns: crate::sys::clock::monotonic_ns() };
                self.parked += 1;
                self.stats.lock_waits += 1;
                None
            }
        };
        self.resume_granted();
        finished
    }

    /// Workers whose lock was handed over go to the run queue.
    fn resume_granted(&mut self) {
        if self.granted.is_empty() {
            return;
        }
        let now_ns = crate::sys::clock::monotonic_ns();
        while let Some(token) = self.granted.pop() {
            if token.remote_index().is_some() {
                self.granted_remote.push(token);
                continue;
            }
            let CallToken(id) = token;
            let slot = &mut self.workers[id as usize];
            let Phase::Parked { since_ns } = slot.phase else {
                unreachable!("a lock is handed over only to a call that waits for it");
            };
            slot.phase = Phase::Runnable;
            slot.call.as_mut().expect("a parked worker has a call").waited_ns += now_ns.saturating_sub(since_ns);
            self.parked -= 1;
            self.enqueue(id, now_ns);
        }
    }

    fn end(&mut self, id: u32, call: Box<Call>, outcome: Outcome, intact: bool, now_ns: u64) -> Finished {
        self.note_end(&call);
        self.release(id, &call, intact, now_ns);
        Finished { call, outcome }
    }

    /// An invocation is over: its worker rests or goes, and the next waiting call of the namespace gets its place.
    fn release(&mut self, id: u32, call: &Call, intact: bool, now_ns: u64) {
        let slot = &mut self.workers[id as usize];
        let (namespace_id, function) = (slot.namespace, slot.function);
        let current = self.functions.get(usize::from(function)).and_then(Option::as_ref);
        // A hook runs before its session is known: what it leaves in memory is nobody else's to see.
        let is_fresh = |current: &Arc<Function>| current.manifest.fresh || call.is_hook();
        let keep = intact && current.is_some_and(|current| current.generation == slot.generation && !is_fresh(current));
        let namespace = self.namespaces.get_mut(namespace_id);
        namespace.running -= 1;
        if call.state_at == StateAt::Here {
            // A call beside its session's owner may have it from when the session was here, which has left since.
            namespace.state = call.namespace;
        }
        if keep {
            slot.phase = Phase::Idle { since_ns: now_ns };
            namespace.idle.push(id);
            self.idle.push(id);
        } else {
            drop(self.workers.remove(id as usize));
        }
        if self.namespaces.get(namespace_id).waiting.is_empty() {
            self.namespaces.remove_if_empty(namespace_id);
        } else {
            self.start_waiting(namespace_id, now_ns);
        }
    }

    /// Gives free places to the calls that have waited longest. They run from the run queue, so that no chain of calls grows the stack.
    fn start_waiting(&mut self, id: NamespaceId, now_ns: u64) {
        // More than one place may be free: functions of one app differ in `workers_max`, and one that needs more room held up the others.
        while let Some(next) = self.namespaces.get(id).waiting.front() {
            let function = self.functions.get(usize::from(next.function)).cloned().flatten();
            let Some(function) = function.filter(|function| next.is_for(function)) else {
                // Removed while the call waited: `sweep` answers it.
                return;
            };
            let has_room = self.namespaces.get(id).running < function.manifest.workers_max;
            let Some(worker) = has_room.then(|| self.take_worker(id, function.index, false, now_ns).ok()).flatten() else {
                if function.manifest.containers_max > 1 && self.offer_waiting(id, &function, now_ns) {
                    continue;
                }
                return;
            };
            let call = self.namespaces.get_mut(id).waiting.pop_front().expect("looked at just above");
            self.queued -= 1;
            self.assign(worker, call, now_ns);
            self.enqueue(worker, now_ns);
        }
    }

    /// Timed work, up to a hundred times a second while calls wait, else less often: lock waits that lasted too long, calls that nothing will start, workers idle for too long.
    pub fn sweep(&mut self, now_ns: u64, finished: &mut Vec<Finished>) {
        if self.parked > 0 {
            self.sweep_parked(now_ns, finished);
        }
        if self.queued > 0 {
            self.sweep_waiting(now_ns, finished);
        }
        if self.beside.has_stale_readers {
            self.drop_stale_readers();
        }
        if self.namespaces.is_cooling() {
            self.namespaces.cool_down(now_ns);
        }
        self.drop_long_idle(now_ns);
        let (state, namespaces) = (self.state.as_mut().expect("no guest runs now"), &self.namespaces);
        state.compact_some(COMPACT_BYTES_MAX, &mut |app, session, table_hash| namespaces.contains(app, session, table_hash));
    }

    fn sweep_parked(&mut self, now_ns: u64, finished: &mut Vec<Finished>) {
        let lock_wait_ns = self.options.lock_wait_ns;
        let late = |slot: &WorkerSlot| match slot.phase {
            Phase::Parked { since_ns } => (now_ns.saturating_sub(since_ns) >= lock_wait_ns).then_some(since_ns),
            _ => None,
        };
        let mut late: Vec<(u64, u32)> = self.workers.iter().filter_map(|(id, slot)| Some((late(slot)?, id as u32))).collect();
        late.sort_unstable();
        for (_, id) in late {
            // The longest waiting goes first: its locks may just have been handed to this one.
            if !matches!(self.workers[id as usize].phase, Phase::Parked { .. }) {
                continue;
            }
            let outcome = Outcome::failed(ErrorCode::LockWait, "a lock was not free within lock_wait_ms");
            finished.push(self.abandon(id, outcome, now_ns));
        }
    }

    /// Calls whose function was removed while they waited, or whose namespace has room again that nobody noticed (a full pool).
    fn sweep_waiting(&mut self, now_ns: u64, finished: &mut Vec<Finished>) {
        for id in self.namespaces.waiting_ids() {
            let functions = &self.functions;
            let gone = |call: &Call| {
                let function = functions.get(usize::from(call.function)).and_then(Option::as_ref);
                function.is_none_or(|function| !call.is_for(function) || call.is_hook() && function.hook.is_none())
            };
            let namespace = self.namespaces.get_mut(id);
            while let Some(at) = namespace.waiting.iter().position(|call| gone(call)) {
                let call = namespace.waiting.remove(at).expect("found just above");
                self.queued -= 1;
                finished.extend(refused(call, ErrorCode::NoFunction, "the function was removed"));
            }
            self.start_waiting(id, now_ns);
            self.namespaces.remove_if_empty(id);
        }
    }
}

fn refused(call: Box<Call>, code: ErrorCode, detail: &'static str) -> Option<Finished> {
    Some(Finished { call, outcome: Outcome::failed(code, detail) })
}
