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
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
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
        let text = describe(fault);
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

/// The shard of an app's session.
pub type OwnerOf = Box<dyn Fn(&str, &SessionId) -> u16 + Send>;

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
    let answers = answers.into_iter().map(|sender| Arc::new(Mutex::new(sender))).collect();
    let office = Office { place, answers, wake, status: Arc::clone(&status) };
    let (started, starting) = std::sync::mpsc::sync_channel(1);
    // A ring belongs to the thread that makes it.
    let run = move || match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => {
            // Whoever started the thread waits for this.
            if started.send(Ok(())).is_ok() {
                // Deletions of what is not needed any more may be cut short: the next start does them.
                runtime.block_on(office.run(orders, &*owner));
            }
        }
        Err(source) => started.send(Err(CheckpointsError::Ring { source })).unwrap_or_default(),
    };
    let spawned = std::thread::Builder::new().name("xfaas-checkpts".to_owned()).spawn(run);
    spawned.map_err(|source| CheckpointsError::Thread { source })?;
    starting.recv().unwrap_or(Err(CheckpointsError::Panicked))?;
    Ok((doors, status))
}

#[derive(Clone)]
struct Office {
    place: StorePlace,
    answers: Vec<Arc<Mutex<Sender<CheckpointAnswer>>>>,
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

    async fn run(self, mut orders: mpsc::Receiver<(u16, CheckpointOrder)>, owner: &dyn Fn(&str, &SessionId) -> u16) {
        let store = loop {
            match self.open(owner).await {
                Ok(store) => break store,
                Err(fault) => self.status.note(&fault),
            }
            if orders.is_closed() && orders.is_empty() {
                return;
            }
            tokio::time::sleep(PROBE_EVERY).await;
        };
        self.status.clear();
        self.status.set_listed();
        let (writes, reads) = (Arc::new(Semaphore::new(WRITES_MAX)), Arc::new(Semaphore::new(READS_MAX)));
        while let Some((shard, order)) = orders.recv().await {
            let (office, store) = (self.clone(), store.clone());
            let permits = Arc::clone(if matches!(order.work, CheckpointWork::Write { .. }) { &writes } else { &reads });
            tokio_uring::spawn(async move {
                // Never closed.
                let _permit = permits.acquire_owned().await;
                office.serve(shard, order, &store).await;
            });
        }
    }

    /// Opens the store and tells the shards what is in it.
    async fn open(&self, owner: &dyn Fn(&str, &SessionId) -> u16) -> Result<CheckpointStore, StoreFault> {
        let store = CheckpointStore::open(&self.place)?;
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
        let mut batches: Vec<Vec<KnownCheckpoint>> = self.answers.iter().map(|_| Vec::new()).collect();
        for ((app, session), (latest, previous)) in sessions {
            let shard = owner(&app, &session);
            let batch = &mut batches[usize::from(shard)];
            batch.push(KnownCheckpoint { app, session, latest, previous });
            if batch.len() >= LISTED_MAX {
                self.answer(shard, CheckpointAnswer::Listed(std::mem::take(batch)));
            }
        }
        for (shard, batch) in batches.into_iter().enumerate() {
            self.answer(shard as u16, CheckpointAnswer::Listed(batch));
            self.answer(shard as u16, CheckpointAnswer::ListedAll(apps.iter().cloned().collect()));
        }
        let (collector, status) = (store.clone(), Arc::clone(&self.status));
        tokio_uring::spawn(async move {
            for (app, session, number) in needless {
                if let Err(fault) = collector.delete(&app, &session, std::iter::once(number.in_name())).await {
                    return status.note(&fault); // the next start looks again
                }
            }
        });
        Ok(store)
    }

    async fn serve(&self, shard: u16, order: CheckpointOrder, store: &CheckpointStore) {
        let CheckpointOrder { ticket, app, session, work } = order;
        match work {
            CheckpointWork::Write { number, latest, previous, record } => {
                let bytes = record.len() as u64;
                let name = CheckpointName { app: &app, session: &session, number: number.in_name() };
                let written = store.put(name, record).await;
                self.answer(shard, CheckpointAnswer::Written { ticket, is_stored: written.is_ok() });
                if self.works(written, store).is_some() {
                    self.status.note_app(&app);
                    self.status.written.fetch_add(1, Ordering::Relaxed);
                    self.status.written_bytes.fetch_add(bytes, Ordering::Relaxed);
                    self.collect(&app, &session, needless(number, latest, previous), store).await;
                }
            }
            CheckpointWork::Read { latest, previous } => {
                let found = self.read(&app, &session, latest, previous, store).await;
                self.answer(shard, CheckpointAnswer::Loaded { ticket, found });
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
                        Err(fault) => *status.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(describe(&fault)),
                    }
                }
                status.probing.store(false, Ordering::Release);
                status.clear();
            });
        }
        None
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
mod tests {
    use super::*;

    #[test]
    fn two_checkpoints_are_kept() {
        let numbers = |[number, latest, previous]: [CheckpointNumber; 3]| needless(number, latest, previous).collect::<Vec<_>>();
        let needless = |number, latest, previous| {
            let needless = numbers([number, latest, previous].map(|count| CheckpointNumber::new(count, 0)));
            needless.into_iter().map(CheckpointNumber::in_name).collect::<Vec<_>>()
        };
        assert_eq!(needless(1, 0, 0).len(), 0);
        assert_eq!(needless(2, 1, 0).len(), 0);
        assert_eq!(needless(3, 2, 1), [1]);
        assert_eq!(needless(7, 3, 2), [4, 5, 6, 2]);
        assert_eq!(needless(100, 3, 0).len(), LEFT_OVER_MAX as usize);
        let timed = CheckpointNumber::new;
        assert_eq!(numbers([timed(5, 8), timed(3, 7), timed(2, 6)]), [timed(4, 0), timed(4, 8), timed(2, 6)]);
    }

    #[test]
    fn a_start_knows_two_of_a_sessions_checkpoints_and_deletes_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let place = StorePlace::Folder(folder.path().to_owned());
        let session = SessionId::new(b"s").unwrap();
        let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).unwrap();
        let store = CheckpointStore::open(&place).unwrap();
        for number in [3, 9, 1, 4] {
            let name = CheckpointName { app: "shop", session: &session, number };
            runtime.block_on(store.put(name, vec![0; 10])).unwrap();
        }
        let (told, waking) = std::sync::mpsc::channel();
        let told = Mutex::new(told);
        let wake = Arc::new(move |shard| told.lock().unwrap().send(shard).unwrap());
        let (doors, status) = start_checkpoints(place, 2, Box::new(|_, _| 1), wake).unwrap();
        assert!(status.wait_listed(Duration::from_secs(20)));
        assert!(status.ready().is_ok() && status.has("shop") && !status.has("other"));
        waking.recv_timeout(Duration::from_secs(20)).unwrap();
        let answers: Vec<_> = std::iter::from_fn(|| doors[1].answer()).collect();
        let [CheckpointAnswer::Listed(listed), CheckpointAnswer::ListedAll(apps)] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!((listed.len(), apps.len()), (1, 1));
        assert_eq!([listed[0].latest, listed[0].previous].map(CheckpointNumber::in_name), [9, 4]);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let mut numbers = Vec::new();
            runtime.block_on(store.list(|found| numbers.push(found.number))).unwrap();
            numbers.sort_unstable();
            if numbers == [4, 9] {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{numbers:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
