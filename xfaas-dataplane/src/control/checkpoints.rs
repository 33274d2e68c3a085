//! The checkpoints' thread: writes sessions to the store and reads them back, for all shards. A runtime of its own, so that a slow store holds up
//! neither the admin API nor, through it, a deployment. Started by `node`; docs/ARCHITECTURE.md, "Sessions that sleep".
//!
//! The runtime is tokio-uring's: local files are read and written on its io_uring, so that the thread waits for none of them. Buckets are asked over
//! sockets on the same runtime. Its pool of threads only compresses, lists folders, and looks up names of hosts.

use super::describe;
use crate::durable::{
    CheckpointAnswer, CheckpointDoor, CheckpointName, CheckpointNumber, CheckpointOrder, CheckpointStore, CheckpointWork, KnownCheckpoint,
    ListedCheckpoint, StoreFault, StorePlace, checkpoint_mail,
};
use futures_util::FutureExt;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use xfaas_common::ids::SessionId;

/// Writes, and reads, that are under way at once.
const WRITES_MAX: usize = 16;
const READS_MAX: usize = 32;
/// Sessions told to a shard at once.
const LISTED_MAX: usize = 1_024;
/// Checkpoints that failed writes may have left are looked for as far back as this.
const LEFT_OVER_MAX: u32 = 16;
/// How often a store that failed is tried.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Of what is told of a fault: a store may answer with a page of text.
const FAULT_CHARS_MAX: usize = 600;

/// How the store does. Read by the admin API.
#[derive(Debug, Default)]
pub struct CheckpointStatus {
    /// Why it does not work, in words.
    fault: Mutex<Option<String>>,
    probing: AtomicBool,
    listed: (Mutex<bool>, Condvar),
    /// Apps that have checkpoints.
    apps: Mutex<BTreeSet<String>>,
    pub written: AtomicU64,
    pub written_bytes: AtomicU64,
    pub read: AtomicU64,
    pub failures: AtomicU64,
    pub damaged: AtomicU64,
}

impl CheckpointStatus {
    /// Errors: why the store does not work, in words.
    pub fn ready(&self) -> Result<(), String> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.as_ref().map_or(Ok(()), |fault| Err(format!("sessions stay in memory, and those that sleep get 503: {fault}")))
    }

    fn note_app(&self, app: &str) {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        if !apps.contains(app) {
            apps.insert(app.to_owned());
        }
    }

    /// True when an app has checkpoints, of whatever age.
    pub fn has(&self, app: &str) -> bool {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner).contains(app)
    }

    /// Waits until it is known which sessions have checkpoints, for so long at most. False: it is not.
    pub fn wait_listed(&self, wait: Duration) -> bool {
        let (listed, changed) = &self.listed;
        let guard = listed.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(guard, wait, |listed| !*listed);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn set_listed(&self) {
        *self.listed.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.listed.1.notify_all();
    }

    /// Counts and tells what went wrong; the same trouble of the store is told once.
    fn note(&self, fault: &StoreFault) {
        let text = in_words(fault);
        if !fault.is_of_the_store() {
            self.damaged.fetch_add(1, Ordering::Relaxed);
            return tracing::error!("{text}");
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut current = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            tracing::error!("{text}: sessions stay in memory, and those that sleep get 503 until it works");
        }
        *current = Some(text);
    }

    fn clear(&self) {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).take();
        if fault.is_some() {
            tracing::info!("the store of checkpoints works again");
        }
    }
}

/// A fault and its causes in one line that is not too long.
fn in_words(fault: &StoreFault) -> String {
    let text = describe(fault);
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut told: String = chars.by_ref().take(FAULT_CHARS_MAX).collect();
    if chars.next().is_some() {
        told.push_str(" ...");
    }
    told
}

/// The shard of an app's session.
pub type OwnerOf = Box<dyn Fn(&str, &SessionId) -> u16 + Send>;
type Owner = dyn Fn(&str, &SessionId) -> u16 + Send;
/// Whoever started the thread waits for this.
type Started = SyncSender<Result<(), CheckpointsError>>;

/// Why the checkpoints' thread does not run.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointsError {
    #[error("cannot start the checkpoints' thread")]
    Thread {
        #[source]
        source: std::io::Error,
    },
    #[error("the checkpoints' thread cannot use io_uring: allow it to this process (`xfaas doctor` tells what stands in the way)")]
    Ring {
        #[source]
        source: std::io::Error,
    },
    #[error("the checkpoints' thread panicked: see the message above")]
    Panicked,
}

/// Starts the thread. `wake`: makes a shard look for answers. Output: a door for each shard.
/// Errors: the thread cannot be started, or not use io_uring.
pub fn start_checkpoints(
    place: StorePlace,
    shards: usize,
    owner: OwnerOf,
    wake: Arc<dyn Fn(u16) + Send + Sync>,
) -> Result<(Vec<CheckpointDoor>, Arc<CheckpointStatus>), CheckpointsError> {
    let (doors, (orders, answers)) = checkpoint_mail(shards);
    let status = Arc::new(CheckpointStatus::default());
    let answers = answers.into_iter().map(Mutex::new).collect();
    let office = Arc::new(Office { place, answers, wake, status: Arc::clone(&status) });
    let (started, starting) = std::sync::mpsc::sync_channel(1);
    let run = move || {
        let mut started = Some(started);
        let mut desk = Desk { orders, to_tell: None };
        loop {
            // Around all of it: a runtime may panic while it ends, too.
            let fault = match catch_unwind(AssertUnwindSafe(|| office.work(&mut started, &mut desk, &*owner))) {
                Ok(Ok(())) => return,
                Ok(Err(fault)) => fault,
                Err(_) if started.is_some() => return, // who waits for the start hears of it
                Err(panic) => StoreFault::panicked("serve", "the shards", &*panic),
            };
            office.status.note(&fault);
            std::thread::sleep(PROBE_EVERY);
        }
    };
    let spawned = std::thread::Builder::new().name("xfaas-checkpts".to_owned()).spawn(run);
    spawned.map_err(|source| CheckpointsError::Thread { source })?;
    starting.recv().unwrap_or(Err(CheckpointsError::Panicked))?;
    Ok((doors, status))
}

/// What outlives a panic of the thread. Nothing else does: an order that was taken is answered when its task is dropped, and no number is written
/// twice, so that it is as after a store that failed. What the shards were told of the list is not told again: they would count it twice.
struct Desk {
    orders: mpsc::Receiver<(u16, CheckpointOrder)>,
    /// What the shards have not yet been told of the list. `None`: there is no list yet.
    to_tell: Option<VecDeque<(u16, CheckpointAnswer)>>,
}

/// An order that is to be answered, once and whatever happens.
struct Owed {
    office: Arc<Office>,
    shard: u16,
    answer: Option<CheckpointAnswer>,
}

impl Owed {
    fn give(mut self, answer: CheckpointAnswer) {
        self.answer = Some(answer);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.office.answer(self.shard, answer);
        }
    }
}

struct Office {
    place: StorePlace,
    answers: Vec<Mutex<Sender<CheckpointAnswer>>>,
    wake: Arc<dyn Fn(u16) + Send + Sync>,
    status: Arc<CheckpointStatus>,
}

impl Office {
    /// A shard that is gone wants no answer.
    fn answer(&self, shard: u16, answer: CheckpointAnswer) {
        let sender = self.answers[usize::from(shard)].lock().unwrap_or_else(PoisonError::into_inner);
        if sender.send(answer).is_ok() {
            (self.wake)(shard);
        }
    }

    /// Serves until all shards are gone. A ring belongs to the thread that makes it. `started`: who waits for that.
    fn work(self: &Arc<Office>, started: &mut Option<Started>, desk: &mut Desk, owner: &Owner) -> Result<(), StoreFault> {
        let runtime = tokio_uring::Runtime::new(&tokio_uring::builder());
        match (runtime, started.take()) {
            (Ok(runtime), waits) => {
                // The start may have failed elsewhere: then nobody waits any more.
                if waits.is_none_or(|waits| waits.send(Ok(())).is_ok()) {
                    // Deletions of what is not needed any more may be cut short: the next start does them.
                    runtime.block_on(self.run(desk, owner));
                }
                Ok(())
            }
            (Err(source), Some(waits)) => {
                waits.send(Err(CheckpointsError::Ring { source })).unwrap_or_default();
                Ok(())
            }
            (Err(source), None) => Err(StoreFault::File { operation: "use", path: "io_uring".into(), source }),
        }
    }

    async fn run(self: &Arc<Office>, desk: &mut Desk, owner: &Owner) {
        // Whoever was probing went with the former runtime.
        self.status.probing.store(false, Ordering::Release);
        let store = loop {
            match self.open(desk, owner).await {
                Ok(store) => break store,
                Err(fault) => self.status.note(&fault),
            }
            if desk.orders.is_closed() && desk.orders.is_empty() {
                return;
            }
            tokio::time::sleep(PROBE_EVERY).await;
        };
        self.status.clear();
        self.status.set_listed();
        let (writes, reads) = (Arc::new(Semaphore::new(WRITES_MAX)), Arc::new(Semaphore::new(READS_MAX)));
        while let Some((shard, order)) = desk.orders.recv().await {
            let (office, store) = (Arc::clone(self), store.clone());
            let permits = Arc::clone(if matches!(order.work, CheckpointWork::Write { .. }) { &writes } else { &reads });
            let owed = Owed { office: Arc::clone(self), shard, answer: Some(refusal(&order)) };
            tokio_uring::spawn(async move {
                // Never closed.
                let _permit = permits.acquire_owned().await;
                let session = order.session;
                let served = AssertUnwindSafe(office.serve(owed, order, &store)).catch_unwind().await;
                let served = served.map_err(|panic| StoreFault::panicked("serve", session.as_str(), &*panic));
                office.works(served, &store);
            });
        }
    }

    /// Opens the store and tells the shards what is in it, if they do not know yet.
    async fn open(&self, desk: &mut Desk, owner: &Owner) -> Result<CheckpointStore, StoreFault> {
        let store = CheckpointStore::open(&self.place)?;
        if desk.to_tell.is_none() {
            desk.to_tell = Some(self.list(&store, owner).await?);
        }
        while let Some((shard, answer)) = desk.to_tell.as_mut().and_then(VecDeque::pop_front) {
            self.answer(shard, answer);
        }
        Ok(store)
    }

    /// What the shards are to be told of the store. What nobody needs there is deleted meanwhile.
    async fn list(&self, store: &CheckpointStore, owner: &Owner) -> Result<VecDeque<(u16, CheckpointAnswer)>, StoreFault> {
        let mut sessions: HashMap<(Arc<str>, SessionId), (CheckpointNumber, CheckpointNumber)> = HashMap::new();
        let mut apps: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut needless = Vec::new();
        store
            .list(|ListedCheckpoint { app, session, number }| {
                let mut number = CheckpointNumber::of_name(number);
                if number.is_none() {
                    return;
                }
                let app = apps.get(app.as_str()).cloned().unwrap_or_else(|| {
                    let app: Arc<str> = app.into();
                    apps.insert(Arc::clone(&app));
                    app
                });
                let (latest, previous) = sessions.entry((Arc::clone(&app), session)).or_default();
                for kept in [latest, previous] {
                    if kept.count() < number.count() {
                        std::mem::swap(kept, &mut number);
                    }
                }
                if !number.is_none() {
                    needless.push((app, session, number));
                }
            })
            .await?;
        *self.status.apps.lock().unwrap_or_else(PoisonError::into_inner) = apps.iter().map(|app| app.to_string()).collect();
        let mut to_tell = VecDeque::new();
        let mut batches: Vec<Vec<KnownCheckpoint>> = self.answers.iter().map(|_| Vec::new()).collect();
        for ((app, session), (latest, previous)) in sessions {
            let shard = owner(&app, &session);
            let batch = &mut batches[usize::from(shard)];
            batch.push(KnownCheckpoint { app, session, latest, previous });
            if batch.len() >= LISTED_MAX {
                to_tell.push_back((shard, CheckpointAnswer::Listed(std::mem::take(batch))));
            }
        }
        for (shard, batch) in batches.into_iter().enumerate() {
            to_tell.push_back((shard as u16, CheckpointAnswer::Listed(batch)));
            to_tell.push_back((shard as u16, CheckpointAnswer::ListedAll(apps.iter().cloned().collect())));
        }
        let (collector, status) = (store.clone(), Arc::clone(&self.status));
        tokio_uring::spawn(async move {
            for (app, session, number) in needless {
                if let Err(fault) = collector.delete(&app, &session, std::iter::once(number.in_name())).await {
                    return status.note(&fault); // the next start looks again
                }
            }
        });
        Ok(to_tell)
    }

    async fn serve(&self, owed: Owed, order: CheckpointOrder, store: &CheckpointStore) {
        let CheckpointOrder { ticket, app, session, work } = order;
        match work {
            CheckpointWork::Write { number, latest, previous, record } => {
                let bytes = record.len() as u64;
                let name = CheckpointName { app: &app, session: &session, number: number.in_name() };
                let written = store.put(name, record).await;
                owed.give(CheckpointAnswer::Written { ticket, is_stored: written.is_ok() });
                if self.works(written, store).is_some() {
                    self.status.note_app(&app);
                    self.status.written.fetch_add(1, Ordering::Relaxed);
                    self.status.written_bytes.fetch_add(bytes, Ordering::Relaxed);
                    self.collect(&app, &session, needless(number, latest, previous), store).await;
                }
            }
            CheckpointWork::Read { latest, previous } => {
                let found = self.read(&app, &session, latest, previous, store).await;
                owed.give(CheckpointAnswer::Loaded { ticket, found });
            }
        }
    }

    async fn read(
        &self,
        app: &str,
        session: &SessionId,
        latest: CheckpointNumber,
        previous: CheckpointNumber,
        store: &CheckpointStore,
    ) -> Option<(u32, Vec<u8>)> {
        for number in [latest, previous].into_iter().filter(|number| !number.is_none()) {
            let read = store.get(CheckpointName { app, session, number: number.in_name() }).await;
            let is_damaged = read.as_ref().is_err_and(|fault| !fault.is_of_the_store());
            if let Some(record) = self.works(read, store) {
                self.status.read.fetch_add(1, Ordering::Relaxed);
                if number != latest {
                    tracing::warn!(
                        app,
                        session = session.as_str(),
                        number = number.count(),
                        "the latest checkpoint is damaged: the one before is taken"
                    );
                }
                return Some((number.count(), record));
            }
            if !is_damaged {
                return None; // what the latest one holds may be there again later
            }
        }
        None
    }

    async fn collect(&self, app: &str, session: &SessionId, numbers: impl Iterator<Item = CheckpointNumber>, store: &CheckpointStore) {
        let deleted = store.delete(app, session, numbers.map(CheckpointNumber::in_name)).await;
        self.works(deleted, store);
    }

    /// Notes how an operation went. A store that failed is tried until it works again.
    fn works<T>(&self, done: Result<T, StoreFault>, store: &CheckpointStore) -> Option<T> {
        let fault = match done {
            Ok(done) => return Some(done),
            Err(fault) => fault,
        };
        self.status.note(&fault);
        if fault.is_of_the_store() && !self.status.probing.swap(true, Ordering::AcqRel) {
            let (status, store) = (Arc::clone(&self.status), store.clone());
            tokio_uring::spawn(async move {
                loop {
                    tokio::time::sleep(PROBE_EVERY).await;
                    match store.probe().await {
                        Ok(()) => break,
                        Err(fault) => *status.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(in_words(&fault)),
                    }
                }
                status.probing.store(false, Ordering::Release);
                status.clear();
            });
        }
        None
    }
}

/// The answer to an order that could not be done.
fn refusal(order: &CheckpointOrder) -> CheckpointAnswer {
    match order.work {
        CheckpointWork::Write { .. } => CheckpointAnswer::Written { ticket: order.ticket, is_stored: false },
        CheckpointWork::Read { .. } => CheckpointAnswer::Loaded { ticket: order.ticket, found: None },
    }
}

/// What is not needed any more when `number` is there and `latest` is the one before: `previous`, and what failed writes may have left, as far as
/// it is known for when their timers were; the next start finds the others.
fn needless(number: CheckpointNumber, latest: CheckpointNumber, previous: CheckpointNumber) -> impl Iterator<Item = CheckpointNumber> {
    let left_over = (latest.count() + 1).max(number.count().saturating_sub(LEFT_OVER_MAX))..number.count();
    let named = |due_s| left_over.clone().map(move |count| CheckpointNumber::new(count, due_s));
    let with_timers = named(number.due_s()).filter(|left_over| left_over.due_s() != 0);
    named(0).chain(with_timers).chain((!previous.is_none()).then_some(previous))
}

#[cfg(test)]
mod tests;
