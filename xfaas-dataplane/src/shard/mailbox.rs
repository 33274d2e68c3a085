//! The queues between shards: one bounded queue a pair, so that no two cores ever write the same queue. DESIGN.md section 6.

use super::connection::MovedConnection;
use super::moving_session::{MoveAnswer, MoveMessage, MoveOrder};
use super::primary::PrimaryCommand;
use super::rpc::{ContainerOffer, MovedRpc};
use super::session_reads::{SessionAnswer, SessionQuestion};
use crate::durable::CheckpointDoor;
use crate::session::{AliasChange, CallName, Finished, HotNamespace, MoveClaim};
use crate::state::RegionReader;
use crate::sys::Waker;
use crate::worker::{Call, Function};
use crossbeam::queue::ArrayQueue;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use xfaas_common::limits::MAILBOX_MESSAGES_MAX;

/// What one shard tells another.
pub(super) enum Message {
    /// Run this: the receiver owns the session.
    Invoke(Box<Call>),
    /// The client of an `Invoke` is gone: end it if it is not over. Its `Done` comes in either case.
    Cancel(Box<CallName>),
    /// The answer to an `Invoke`.
    Done(Finished),
    /// A guest asks for a value of a session of the receiver's.
    ReadSession(Box<SessionQuestion>),
    /// The answer to it.
    SessionRead(SessionAnswer),
    /// The state of a connection whose descriptor arrives, or has arrived, by ring message.
    Moved(Box<MovedConnection>),
    /// The same of a container's connection.
    RpcMoved(Box<MovedRpc>),
    /// A session moves between the two shards.
    Move(MoveMessage),
}

/// All mailboxes of a process.
pub struct Mailboxes {
    /// `queues[to][from]`.
    queues: Vec<Vec<ArrayQueue<Message>>>,
}

impl Mailboxes {
    pub fn new(shards: usize) -> Mailboxes {
        let to_one = || (0..shards).map(|_| ArrayQueue::new(MAILBOX_MESSAGES_MAX)).collect();
        Mailboxes { queues: (0..shards).map(|_| to_one()).collect() }
    }
}

/// One shard's side of the mailboxes.
pub(super) struct Post {
    mailboxes: Arc<Mailboxes>,
    me: usize,
    /// Answers and cancellations that found a full queue. They are not shed: the other side counts on them, and there is at most one of each a call.
    unsent: VecDeque<(usize, Message)>,
    /// Shards to wake at the end of the turn.
    wake: Vec<bool>,
}

impl Post {
    pub(super) fn new(mailboxes: Arc<Mailboxes>, me: usize) -> Post {
        let shards = mailboxes.queues.len();
        Post { mailboxes, me, unsent: VecDeque::new(), wake: vec![false; shards] }
    }

    /// Asks `to` to run a call. Full: the call comes back, to be shed.
    pub(super) fn invoke(&mut self, to: usize, call: Box<Call>) -> Result<(), Box<Call>> {
        match self.mailboxes.queues[to][self.me].push(Message::Invoke(call)) {
            Ok(()) => {
                self.wake[to] = true;
                Ok(())
            }
            Err(Message::Invoke(call)) => Err(call),
            Err(_) => unreachable!("a full queue gives back what it was given"),
        }
    }

    /// Sends what must not be lost: now, or at one of the next turns.
    pub(super) fn send(&mut self, to: usize, message: Message) {
        if let Err(message) = self.mailboxes.queues[to][self.me].push(message) {
            self.unsent.push_back((to, message));
        }
        self.wake[to] = true;
    }

    /// Tries again what found a full queue.
    pub(super) fn retry(&mut self) {
        for _ in 0..self.unsent.len() {
            let Some((to, message)) = self.unsent.pop_front() else { return };
            self.send(to, message);
        }
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// The next message from `from`.
    pub(super) fn receive(&mut self, from: usize) -> Option<Message> {
        self.mailboxes.queues[self.me][from].pop()
    }

    pub(super) fn shards(&self) -> usize {
        self.wake.len()
    }

    /// True once for each shard that got a message since it was last asked.
    pub(super) fn take_wake(&mut self, shard: usize) -> bool {
        std::mem::take(&mut self.wake[shard])
    }
}

/// What control asks of a shard.
pub enum ShardCommand {
    /// Take a function, or a new version of it, into service; answered when done, with a reader of the app's region for the other shards.
    Install(Arc<Function>, SyncSender<Result<Option<RegionReader>, String>>),
    /// Take over the readers of an app's regions, by shard, in place of all earlier ones.
    Readers(u16, Arc<[Option<RegionReader>]>, SyncSender<Result<(), String>>),
    /// Take a function out of service.
    Remove(u16, SyncSender<Result<(), String>>),
    /// To a container's shard: about its primary.
    Primary(PrimaryCommand),
    /// Sessions with state or workers here.
    Sessions(SessionsQuery, SyncSender<Vec<SessionRow>>),
    /// Aliases to add and to take away, in their order; answered when the next request is chosen a session by them.
    Alias(Arc<[AliasChange]>, SyncSender<()>),
    /// Let a session move to another shard; answered when it is there, or stays.
    Move(MoveOrder, MoveClaim, MoveAnswer),
    /// How many containers' connections are in use.
    Containers(SyncSender<usize>),
    /// The namespaces that ran most since this was asked last, and what all ran, nanoseconds.
    Hottest(SyncSender<(Vec<HotNamespace>, u64)>),
    /// What containers are told from now on; answered when those that are connected will hear of it.
    Offer(Arc<ContainerOffer>, SyncSender<()>),
    /// Sessions are checkpointed by way of this door from now on. Before any function is installed.
    Checkpoints(Box<CheckpointDoor>),
    /// Somebody traces, or nobody any more.
    Trace(bool),
    /// Begin to take connections and datagrams: the functions are there. Until then both wait in the kernel's queues.
    Serve,
    /// Refuse new requests with 503 `draining`; finish what runs; then end the loop.
    Drain,
}

/// Which sessions to list.
#[derive(Clone, Debug)]
pub struct SessionsQuery {
    /// Only this app's, by index.
    pub app: Option<u16>,
    pub prefix: Vec<u8>,
    pub limit: usize,
}

#[derive(Clone, Debug)]
pub struct SessionRow {
    pub app: u16,
    pub session: xfaas_common::ids::SessionId,
    pub state_bytes: u64,
    pub keys: u64,
    pub workers: u64,
}

/// Commands that wait in a shard's door.
const COMMANDS_MAX: usize = 64;

/// The door by which control reaches a shard.
pub struct CommandDoor {
    pub(super) commands: ArrayQueue<ShardCommand>,
    pub(super) waker: Waker,
}

impl CommandDoor {
    pub fn new() -> std::io::Result<CommandDoor> {
        Ok(CommandDoor { commands: ArrayQueue::new(COMMANDS_MAX), waker: Waker::new()? })
    }

    /// Makes the shard look for what others have done for it.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Hands over a command; full: it comes back.
    pub fn send(&self, command: ShardCommand) -> Result<(), ShardCommand> {
        self.commands.push(command)?;
        self.waker.wake();
        Ok(())
    }
}
