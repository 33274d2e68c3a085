//! The queues between shards: one bounded queue a pair, so that no two cores ever write the same queue.

use super::connection::MovedConnection;
use super::moving_session::{MoveAnswer, MoveMessage, MoveOrder};
use super::primary::PrimaryCommand;
use super::rpc::{ContainerOffer, MovedRpc};
use super::secondaries::SecondaryMessage;
use super::session_reads::{SessionAnswer, SessionQuestion};
use crate::durable::CheckpointDoor;
use crate::session::{AliasChange, CallName, Finished, HotNamespace, MoveClaim, ShardLoads};
use crate::state::RegionReader;
use crate::sys::Waker;
use crate::worker::{Call, Function};
use crossbeam::queue::ArrayQueue;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// The one shard has a secondary container of a session of the other's.
    Secondary(SecondaryMessage),
}

/// All mailboxes of a process.
pub struct Mailboxes {
    /// `queues[to][from]`.
    queues: Vec<Vec<ArrayQueue<Message>>>,
    loads: Arc<ShardLoads>,
    /// By shard: it drains and has nothing left to finish, or is gone.
    finished: Box<[AtomicBool]>,
    /// Of long replies on their way to the shards that were asked.
    reply_bytes: AtomicU64,
}

impl Mailboxes {
    pub fn new(shards: usize) -> Mailboxes {
        let to_one = || (0..shards).map(|_| ArrayQueue::new(MAILBOX_MESSAGES_MAX)).collect();
        let finished = (0..shards).map(|_| AtomicBool::new(false)).collect();
        Mailboxes {
            queues: (0..shards).map(|_| to_one()).collect(),
            loads: Arc::new(ShardLoads::new(shards)),
            finished,
            reply_bytes: AtomicU64::new(0),
        }
    }
}

/// One shard's side of the mailboxes.
pub(super) struct Post {
    mailboxes: Arc<Mailboxes>,
    me: usize,
    /// By receiver: what found a full queue, and what was to be sent behind it. It is not shed: the other side counts on it, and there are few of
    /// each a call.
    unsent: Vec<VecDeque<Message>>,
    unsent_messages: usize,
    /// Shards to wake at the end of the turn.
    wake: Vec<bool>,
    has_mail_out: bool,
}

impl Post {
    pub(super) fn new(mailboxes: Arc<Mailboxes>, me: usize) -> Post {
        let shards = mailboxes.queues.len();
        let unsent = (0..shards).map(|_| VecDeque::new()).collect();
        Post { mailboxes, me, unsent, unsent_messages: 0, wake: vec![false; shards], has_mail_out: false }
    }

    /// Asks `to` to run a call. Full: the call comes back, to be shed.
    pub(super) fn invoke(&mut self, to: usize, call: Box<Call>) -> Result<(), Box<Call>> {
        match self.mailboxes.queues[to][self.me].push(Message::Invoke(call)) {
            Ok(()) => {
                self.note_mail(to);
                Ok(())
            }
            Err(Message::Invoke(call)) => Err(call),
            Err(_) => unreachable!("a full queue gives back what it was given"),
        }
    }

    /// Asks `to` to run a call in a secondary container. Full: the call comes back.
    pub(super) fn offer(&mut self, to: usize, call: Box<Call>) -> Result<(), Box<Call>> {
        match self.mailboxes.queues[to][self.me].push(Message::Secondary(SecondaryMessage::Offer(call))) {
            Ok(()) => {
                self.note_mail(to);
                Ok(())
            }
            Err(Message::Secondary(SecondaryMessage::Offer(call))) => Err(call),
            Err(_) => unreachable!("a full queue gives back what it was given"),
        }
    }

    /// Sends what must not be lost: now, or at one of the next turns. What is sent to one shard arrives in its order.
    pub(super) fn send(&mut self, to: usize, message: Message) {
        self.note_mail(to);
        let unsent = &mut self.unsent[to];
        if !unsent.is_empty() {
            unsent.push_back(message);
        } else if let Err(message) = self.mailboxes.queues[to][self.me].push(message) {
            unsent.push_back(message);
        } else {
            return;
        }
        self.unsent_messages += 1;
    }

    /// Counts a long reply that is about to be sent to another shard. Output: what all of them are now; `None`, and nothing counted, if that were more than
    /// `bytes_max`.
    pub(super) fn count_reply(&self, bytes: u64, bytes_max: u64) -> Option<u64> {
        let all = &self.mailboxes.reply_bytes;
        let after = |before: u64| before.checked_add(bytes).filter(|after| *after <= bytes_max);
        all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).ok().map(|before| before + bytes)
    }

    /// A long reply that was counted has come.
    pub(super) fn count_reply_off(&self, bytes: u64) {
        self.mailboxes.reply_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Tries again what found a full queue.
    pub(super) fn retry(&mut self) {
        if self.unsent_messages == 0 {
            return;
        }
        self.has_mail_out = true;
        for (to, unsent) in self.unsent.iter_mut().enumerate() {
            while let Some(message) = unsent.pop_front() {
                self.wake[to] = true;
                if let Err(message) = self.mailboxes.queues[to][self.me].push(message) {
                    unsent.push_front(message);
                    break;
                }
                self.unsent_messages -= 1;
            }
        }
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.unsent_messages > 0
    }

    /// Says whether this shard has anything left to finish. Output: true when no shard has.
    pub(super) fn say_finished(&self, is_finished: bool) -> bool {
        let all = &self.mailboxes.finished;
        all[self.me].store(is_finished, Ordering::Release);
        is_finished && all.iter().all(|finished| finished.load(Ordering::Acquire))
    }

    /// How busy the shards are.
    pub(super) fn loads(&self) -> &Arc<ShardLoads> {
        &self.mailboxes.loads
    }

    /// The next message from `from`.
    pub(super) fn receive(&mut self, from: usize) -> Option<Message> {
        self.mailboxes.queues[self.me][from].pop()
    }

    pub(super) fn shards(&self) -> usize {
        self.wake.len()
    }

    fn note_mail(&mut self, to: usize) {
        self.wake[to] = true;
        self.has_mail_out = true;
    }

    /// True once after something was sent to anybody.
    pub(super) fn take_has_mail_out(&mut self) -> bool {
        std::mem::take(&mut self.has_mail_out)
    }

    /// True once for each shard that got a message since it was last asked.
    pub(super) fn take_wake(&mut self, shard: usize) -> bool {
        std::mem::take(&mut self.wake[shard])
    }
}

impl Drop for Post {
    /// Nobody is to wait for a shard that failed.
    fn drop(&mut self) {
        self.say_finished(true);
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
    /// Sessions with state here; answered some turns later.
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
    /// In the primary container.
    pub workers: u64,
    pub containers: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_found_a_full_queue_is_not_overtaken() {
        let mailboxes = Arc::new(Mailboxes::new(2));
        let (mut sender, mut receiver) = (Post::new(Arc::clone(&mailboxes), 0), Post::new(mailboxes, 1));
        let finished = |number: u16| {
            let mut call = Box::<Call>::default();
            call.function = number;
            Message::Done(Finished { call, outcome: crate::session::Outcome::Replied })
        };
        let sent = MAILBOX_MESSAGES_MAX as u16 + 3;
        (0..sent).for_each(|number| sender.send(1, finished(number)));
        assert!(sender.has_unsent() && sender.take_wake(1) && !sender.take_wake(1));
        let mut received = Vec::new();
        let take_all = |receiver: &mut Post, received: &mut Vec<u16>| {
            while let Some(Message::Done(finished)) = receiver.receive(0) {
                received.push(finished.call.function);
            }
        };
        take_all(&mut receiver, &mut received);
        sender.send(1, finished(sent));
        assert!(receiver.receive(0).is_none(), "it waits behind the others");
        sender.retry();
        take_all(&mut receiver, &mut received);
        assert!(!sender.has_unsent() && sender.take_wake(1));
        assert!(received.iter().copied().eq(0..=sent));
    }

    #[test]
    fn shards_have_finished_when_the_last_one_has_or_is_gone() {
        let mailboxes = Arc::new(Mailboxes::new(3));
        let [one, two, three] = [0, 1, 2].map(|shard| Post::new(Arc::clone(&mailboxes), shard));
        assert!(!one.say_finished(true) && !two.say_finished(true));
        drop(three);
        assert!(two.say_finished(true) && !two.say_finished(false) && !one.say_finished(true));
        assert!(two.say_finished(true) && one.say_finished(true));
    }
}
