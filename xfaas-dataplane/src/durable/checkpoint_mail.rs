//! What shards and the checkpoints' thread tell each other. A shard has at most `CHECKPOINT_ORDERS_MAX` orders under way, each is answered once, so
//! neither queue is ever full. Called by `shard` (its end) and `control` (the other one).

use super::checkpoint::CheckpointNumber;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::mpsc;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::CHECKPOINT_ORDERS_MAX;

/// What a shard wants done.
#[derive(Debug)]
pub struct CheckpointOrder {
    /// Comes back with the answer.
    pub ticket: u32,
    pub app: Arc<str>,
    pub session: SessionId,
    pub work: CheckpointWork,
}

#[derive(Debug)]
pub enum CheckpointWork {
    /// Write `record` as checkpoint `number`; then only it and `latest` are needed of those from `previous` on.
    Write { number: CheckpointNumber, latest: CheckpointNumber, previous: CheckpointNumber, record: Vec<u8> },
    /// Read checkpoint `latest`, or `previous` if that is damaged.
    Read { latest: CheckpointNumber, previous: CheckpointNumber },
}

/// What became of it.
#[derive(Debug)]
pub enum CheckpointAnswer {
    /// Checkpoints that were there at the start, of sessions of this shard.
    Listed(Vec<KnownCheckpoint>),
    /// All were listed: a session that was not named has none.
    /// `apps`: those that have any, on whichever shard.
    ListedAll(Vec<Arc<str>>),
    /// `is_stored`: it is as safe as the store is. Else why not is in the log.
    Written { ticket: u32, is_stored: bool },
    /// The record and the count of its checkpoint. `None`: it cannot be had now; why is in the log.
    Loaded { ticket: u32, found: Option<(u32, Vec<u8>)> },
}

/// A session's checkpoints.
#[derive(Clone, Debug)]
pub struct KnownCheckpoint {
    pub app: Arc<str>,
    pub session: SessionId,
    pub latest: CheckpointNumber,
    pub previous: CheckpointNumber,
}

/// A shard's end.
#[derive(Debug)]
pub struct CheckpointDoor {
    shard: u16,
    orders: mpsc::Sender<(u16, CheckpointOrder)>,
    answers: Receiver<CheckpointAnswer>,
}

impl CheckpointDoor {
    /// False: the checkpoints' thread is gone.
    pub fn send(&self, order: CheckpointOrder) -> bool {
        self.orders.try_send((self.shard, order)).is_ok()
    }

    pub fn answer(&self) -> Option<CheckpointAnswer> {
        self.answers.try_recv().ok()
    }
}

/// The other end: orders of all shards, and where each shard's answers go.
pub type CheckpointOffice = (mpsc::Receiver<(u16, CheckpointOrder)>, Vec<Sender<CheckpointAnswer>>);

/// A door for each shard, and the other end of them.
pub fn checkpoint_mail(shards: usize) -> (Vec<CheckpointDoor>, CheckpointOffice) {
    let (orders, taken) = mpsc::channel(CHECKPOINT_ORDERS_MAX * shards);
    let door = |shard| {
        let (answer, answers) = channel();
        (CheckpointDoor { shard: shard as u16, orders: orders.clone(), answers }, answer)
    };
    let (doors, answers) = (0..shards).map(door).unzip();
    (doors, (taken, answers))
}
