//! Makes the connections of one of the container's shards to the shards of its primary, again whenever one is lost, on a thread of its own: neither
//! the shard nor the thread that joins ever waits for a connect.

use super::line::{Line, LineError};
use super::welcome::Welcome;
use crate::control::describe;
use crate::rpc::Backoff;
use crate::session::Primary;
use crate::shard::{CommandDoor, NewLink, PrimaryCommand, ShardCommand};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use xfaas_common::limits::CORES_MAX;

/// Each shard of the primary is lost once before it is connected again, and there are few joins.
const NEWS_MAX: usize = 4 * CORES_MAX;
/// A shard's command door is full only for moments.
const DOOR_PAUSE: Duration = Duration::from_millis(1);
const DOOR_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a linker is told.
pub(super) enum LinkerNews {
    /// Connect to all shards of this primary.
    Join(Arc<Primary>),
    /// A connection to a shard is lost.
    Lost {
        shard: u16,
        number: u64,
    },
    /// The primary was just seen alive: no reason to pause longer.
    Retry,
    Stop,
}

/// What the linkers of all shards have done, for the thread that joins.
#[derive(Default)]
pub(super) struct LinkBoard {
    /// Connections that are up.
    pub(super) up: AtomicUsize,
    /// Connections that were ever made.
    pub(super) made: AtomicU64,
    /// The thread that joins has a connection of its own.
    pub(super) is_joined: AtomicBool,
}

pub(super) struct Linker {
    pub(super) news: SyncSender<LinkerNews>,
    pub(super) thread: JoinHandle<()>,
}

pub(super) fn channel() -> (SyncSender<LinkerNews>, Receiver<LinkerNews>) {
    sync_channel(NEWS_MAX)
}

struct Work {
    join: String,
    container: u64,
    door: Arc<CommandDoor>,
    board: Arc<LinkBoard>,
    news: Receiver<LinkerNews>,
    primary: Option<Arc<Primary>>,
    /// Shards of the primary without a connection.
    wanted: BTreeSet<u16>,
    /// The number of each connection that is up. News of the loss of another one is old.
    up: BTreeMap<u16, u64>,
    /// Connections made so far.
    count: u64,
    backoff: Backoff,
    next_try: Instant,
    has_complained: bool,
}

/// Starts the linker of a container's shard.
pub(super) fn start(
    shard: usize,
    join: String,
    container: u64,
    door: Arc<CommandDoor>,
    board: Arc<LinkBoard>,
    news: Receiver<LinkerNews>,
) -> std::io::Result<JoinHandle<()>> {
    let (backoff, next_try) = (Backoff::default(), Instant::now());
    let (primary, wanted, up) = (None, BTreeSet::new(), BTreeMap::new());
    let work = Work { join, container, door, board, news, primary, wanted, up, count: 0, backoff, next_try, has_complained: false };
    std::thread::Builder::new().name(format!("xfaas-link-{shard}")).spawn(move || work.run())
}

impl Work {
    fn run(mut self) {
        loop {
            let news = if self.wanted.is_empty() {
                self.news.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.news.recv_timeout(self.next_try.saturating_duration_since(Instant::now()))
            };
            match news {
                Ok(LinkerNews::Join(primary)) => {
                    self.board.up.fetch_sub(self.up.len(), Ordering::AcqRel);
                    self.up.clear();
                    self.wanted = (0..primary.shards()).collect();
                    self.primary = Some(primary);
                    self.next_try = Instant::now();
                }
                Ok(LinkerNews::Lost { shard, number }) => {
                    if self.up.get(&shard) == Some(&number) {
                        self.up.remove(&shard);
                        self.wanted.insert(shard);
                        self.board.up.fetch_sub(1, Ordering::AcqRel);
                        self.next_try = Instant::now() + self.backoff.next_pause();
                    }
                }
                Ok(LinkerNews::Retry) => self.next_try = Instant::now(),
                Err(RecvTimeoutError::Timeout) => self.try_one(),
                Ok(LinkerNews::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn try_one(&mut self) {
        let (Some(&shard), Some(primary)) = (self.wanted.first(), self.primary.clone()) else { return };
        match self.connect(shard, &primary) {
            Ok(link) => {
                let number = link.number;
                if self.hand_over(link) {
                    self.wanted.remove(&shard);
                    self.up.insert(shard, number);
                    self.board.up.fetch_add(1, Ordering::AcqRel);
                    self.board.made.fetch_add(1, Ordering::AcqRel);
                    self.backoff.reset();
                    self.has_complained = false;
                }
            }
            Err(error) => {
                // When the whole primary is gone, the thread that joins says so.
                if self.board.is_joined.load(Ordering::Acquire) && !self.has_complained {
                    tracing::warn!("no connection to shard {shard} of the primary: {}; trying again", describe(&error));
                    self.has_complained = true;
                }
                self.next_try = Instant::now() + self.backoff.next_pause();
            }
        }
    }

    fn connect(&mut self, shard: u16, primary: &Arc<Primary>) -> Result<NewLink, LineError> {
        let mut line = Line::connect(&self.join)?;
        let (reached, text) = line.hello(shard, self.container)?;
        let welcome = Welcome::read(&text)?;
        if reached != shard || !welcome.primary.places_as(primary) {
            return Err(LineError::BadWelcome { reason: "it is of another primary than the one that was joined".to_owned() });
        }
        let (socket, leftover) = line.into_socket()?;
        self.count += 1;
        Ok(NewLink { primary: Arc::clone(primary), shard, number: self.count, socket, leftover })
    }

    fn hand_over(&self, link: NewLink) -> bool {
        send(&self.door, ShardCommand::Primary(PrimaryCommand::Connected(link)))
    }
}

/// Gives a shard a command, waiting for a place if need be. False: it does not take any, because it is ending.
pub(super) fn send(door: &CommandDoor, mut command: ShardCommand) -> bool {
    let until = Instant::now() + DOOR_WAIT_MAX;
    loop {
        match door.send(command) {
            Ok(()) => return true,
            Err(back) if Instant::now() < until => command = back,
            Err(_) => return false,
        }
        std::thread::sleep(DOOR_PAUSE);
    }
}
