//! The thread that makes files for one shard's log, so that the shard never waits for a disk: segments ahead of their use, snapshots that let old
//! segments go. Commands and answers are few and bounded by what the shard has asked for.

use super::files::{LogDirectory, LogError, SnapshotFile};
use super::format::{BatchKind, Head, HeadApp, Place, SegmentKind};
use super::log::RetiredSegment;
use crate::state::{Journal, Region};
use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;

/// Places in the queue for parts of a snapshot, which may take those of other orders too; a shard that finds no room goes on later.
const CHUNKS_WAITING_MAX: usize = 4;

enum Command {
    Segment { number: u64, head: Head },
    BeginSnapshot { number: u64, head: Head },
    Records(Vec<u8>),
    EndSnapshot,
    Cut(RetiredSegment<Arc<File>>),
}

/// What the thread has done.
pub enum KeeperAnswer {
    Segment {
        number: u64,
        file: Arc<File>,
        head_bytes: u64,
    },
    NoSegment {
        number: u64,
        error: LogError,
    },
    /// The snapshot is in force and what it stands for is removed, or nothing has changed.
    Snapshot(Result<(), LogError>),
}

/// A shard's end of it.
pub struct Keeper {
    shard: u16,
    shards: u16,
    epoch: u64,
    directory: LogDirectory,
    commands: SyncSender<Command>,
    answers: Receiver<KeeperAnswer>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread. `wake` is called after each answer. Errors: as the system gives them.
    pub fn start(directory: LogDirectory, shard: u16, shards: u16, epoch: u64, wake: Box<dyn Fn() + Send>) -> Result<Keeper, LogError> {
        // One segment, the beginning and the end of one snapshot, and its parts.
        let (commands, orders) = sync_channel(CHUNKS_WAITING_MAX + 3);
        let (answer, answers) = channel();
        let worker = Worker { directory: directory.try_clone()?, shard, epoch, snapshot: None, answer, wake };
        let thread = std::thread::Builder::new().name(format!("xfaas-log-{shard}")).spawn(move || worker.run(&orders));
        let failed = |source| LogError { operation: "start a thread for", path: "the log".into(), source };
        Ok(Keeper { shard, shards, epoch, directory, commands, answers, thread: Some(thread.map_err(failed)?) })
    }

    fn head(&self, journal: &Journal, kind: SegmentKind, goes_on_at: u64) -> Head {
        let apps = journal.apps_in_log().map(|(_, name, identity)| HeadApp { name: name.to_owned(), identity });
        Head { shards: self.shards, kind, goes_on_at, apps: apps.collect() }
    }

    /// Asks for a segment. False: not now.
    pub fn make_segment(&self, number: u64, journal: &Journal) -> bool {
        self.commands.try_send(Command::Segment { number, head: self.head(journal, SegmentKind::Writes, 0) }).is_ok()
    }

    /// Begins a snapshot of all apps in the log; `goes_on_at`: the log's. False: not now.
    pub fn begin_snapshot(&self, number: u64, goes_on_at: u64, journal: &Journal) -> bool {
        self.commands.try_send(Command::BeginSnapshot { number, head: self.head(journal, SegmentKind::Snapshot, goes_on_at) }).is_ok()
    }

    /// Gives a part of the snapshot, which comes back when there is no room.
    pub fn add_records(&self, records: Vec<u8>) -> Result<(), Vec<u8>> {
        self.commands.try_send(Command::Records(records)).map_err(|refused| match refused {
            TrySendError::Full(Command::Records(records)) | TrySendError::Disconnected(Command::Records(records)) => records,
            _ => unreachable!("what was sent comes back"),
        })
    }

    /// Puts the snapshot in force. False: not now.
    pub fn end_snapshot(&self) -> bool {
        self.commands.try_send(Command::EndSnapshot).is_ok()
    }

    /// Cuts a segment to what is used of it. It comes back when there is no room.
    pub fn cut_segment(&self, retired: RetiredSegment<Arc<File>>) -> Result<(), RetiredSegment<Arc<File>>> {
        self.commands.try_send(Command::Cut(retired)).map_err(|refused| match refused {
            TrySendError::Full(Command::Cut(retired)) | TrySendError::Disconnected(Command::Cut(retired)) => retired,
            _ => unreachable!("what was sent comes back"),
        })
    }

    pub fn answer(&self) -> Option<KeeperAnswer> {
        self.answers.try_recv().ok()
    }

    /// Writes all that an app holds as snapshot `number` and makes segment `number + 1`, before this returns. Cost: as the disk is.
    pub fn log_app(&self, number: u64, goes_on_at: u64, name: &str, state: (&Region, &Journal)) -> Result<(Arc<File>, u64), LogError> {
        let (region, journal) = state;
        let app = HeadApp { name: name.to_owned(), identity: region.identity() };
        let head = Head { shards: self.shards, kind: SegmentKind::Snapshot, goes_on_at, apps: vec![app] };
        let mut snapshot = self.directory.begin_snapshot(self.place(number), &head)?;
        snapshot.append_region(name, region)?;
        snapshot.finish(&self.directory)?;
        self.segment_now(number + 1, journal)
    }

    /// Makes a segment before this returns.
    pub fn segment_now(&self, number: u64, journal: &Journal) -> Result<(Arc<File>, u64), LogError> {
        let head = self.head(journal, SegmentKind::Writes, 0);
        let (file, head_bytes) = self.directory.create_segment(&self.place(number), &head)?;
        Ok((Arc::new(file), head_bytes))
    }

    fn place(&self, segment: u64) -> Place {
        Place { shard: self.shard, epoch: self.epoch, segment, sequence: 0 }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let (nobody, _) = sync_channel(0);
        self.commands = nobody; // the thread ends when it has done what was asked
        if let Some(thread) = self.thread.take() {
            thread.join().ok(); // its panic has been reported already
        }
    }
}

/// The thread's end.
struct Worker {
    directory: LogDirectory,
    shard: u16,
    epoch: u64,
    /// What is being written, for which apps, unless that failed.
    snapshot: Option<(Result<SnapshotFile, LogError>, u64, Vec<String>)>,
    answer: Sender<KeeperAnswer>,
    wake: Box<dyn Fn() + Send>,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Command>) {
        while let Ok(order) = orders.recv() {
            let answer = match order {
                Command::Segment { number, head } => Some(self.segment(number, &head)),
                Command::BeginSnapshot { number, head } => {
                    let begun = self.directory.begin_snapshot(self.place(number), &head);
                    self.snapshot = Some((begun, number, head.apps.into_iter().map(|app| app.name).collect()));
                    None
                }
                Command::Records(records) => {
                    if let Some((file, ..)) = &mut self.snapshot
                        && let Ok(snapshot) = file
                        && let Err(error) = snapshot.append(records, BatchKind::Records)
                    {
                        *file = Err(error);
                    }
                    None
                }
                Command::EndSnapshot => Some(KeeperAnswer::Snapshot(self.end_snapshot())),
                Command::Cut(retired) => {
                    if let Err(error) = self.directory.cut(self.shard, &retired) {
                        tracing::warn!(error = &error as &dyn std::error::Error, "a segment of the log takes more room than it needs");
                    }
                    None
                }
            };
            // Nobody there any more: the channel of orders ends too.
            if let Some(answer) = answer
                && self.answer.send(answer).is_ok()
            {
                (self.wake)();
            }
        }
    }

    fn place(&self, segment: u64) -> Place {
        Place { shard: self.shard, epoch: self.epoch, segment, sequence: 0 }
    }

    fn segment(&self, number: u64, head: &Head) -> KeeperAnswer {
        match self.directory.create_segment(&self.place(number), head) {
            Ok((file, head_bytes)) => KeeperAnswer::Segment { number, file: Arc::new(file), head_bytes },
            Err(error) => KeeperAnswer::NoSegment { number, error },
        }
    }

    fn end_snapshot(&mut self) -> Result<(), LogError> {
        let Some((file, number, apps)) = self.snapshot.take() else { return Ok(()) };
        file?.finish(&self.directory)?;
        for segment in self.directory.segments_of(self.shard)? {
            // Apps that have no function since the start are in the snapshots of the start alone.
            if segment.number < number && segment.is_covered_by(self.epoch, &apps)? {
                self.directory.remove(&segment.path)?;
            }
        }
        Ok(())
    }
}
