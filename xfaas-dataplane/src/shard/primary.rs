//! A container's shard and its primary: connections to the primary's shards on this shard's ring, requests of parked calls out, answers in.
//! Connections are made elsewhere and come by command; here they are used until they are lost. `rpc::Link` knows the protocol, the proxy who waits.

use super::start::GROUP_STREAMS;
use super::tag::{LinkOperation, Operation};
use super::turn::Shard;
use crate::net::ErrorCode;
use crate::rpc::{Event, Health, Link};
use crate::session::{
    ContainerPlacement, ContainerPlaces, EndedInvocation, Finished, Outcome, Primary, RemoteAnswer, RemoteTicket, invocation_of,
};
use crate::state::RegionReader;
use crate::sys::Completion;
use crate::sys::clock::MS_NS;
use crate::worker::{Call, RemoteOperation, RemoteRequest, StateAt};
use slab::Slab;
use socket2::SockRef;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use xfaas_common::guest_abi::{MODE_STRONG, MODE_WEAK};
use xfaas_common::rpc::{Asker, READ_KEY, READ_SNAPSHOT, StateRead, StateWrite, WRITE_COMMIT, WRITE_KEY};
use xfaas_common::wire::Status;

/// Told, on the shard's thread, that the connection with this number to this shard of the primary is lost: must neither block nor panic.
pub type OnLost = Arc<dyn Fn(u16, u64) + Send + Sync>;

/// What control tells a container's shard.
pub enum PrimaryCommand {
    /// This is the primary from now on; connections to another one are given up.
    Join(Arc<Primary>),
    /// A connection to a shard of the primary, whose hello was answered.
    Connected(NewLink),
    /// Readers of the primary's regions by app and shard, in place of all earlier ones. Those of shards without a connection are not used.
    Readers(Vec<(u16, u16, RegionReader)>),
}

/// A connection to a shard of the primary.
pub struct NewLink {
    /// The primary that it was made to.
    pub primary: Arc<Primary>,
    pub shard: u16,
    /// Never used twice for a shard of the container.
    pub number: u64,
    pub socket: OwnedFd,
    /// What came behind the welcome.
    pub leftover: Vec<u8>,
}

struct LinkSocket {
    link: Link<RemoteTicket>,
    socket: OwnedFd,
    shard: u16,
    /// The lower bits are in the tags of its operations.
    number: u64,
    is_sending: bool,
    is_armed: bool,
    /// Gone as soon as the kernel has given everything back.
    is_lost: bool,
}

/// What a shard is more if its process is a container.
pub(super) struct Container {
    primary: Option<Arc<Primary>>,
    sockets: Slab<LinkSocket>,
    /// By the primary's shard: its living connection.
    by_shard: Vec<Option<u32>>,
    readers: Vec<(u16, u16, RegionReader)>,
    on_lost: OnLost,
}

impl Container {
    pub(super) fn new(on_lost: OnLost) -> Container {
        Container { primary: None, sockets: Slab::new(), by_shard: Vec::new(), readers: Vec::new(), on_lost }
    }

    fn link_to(&mut self, shard: u16) -> Option<&mut LinkSocket> {
        let id = (*self.by_shard.get(usize::from(shard))?)?;
        self.sockets.get_mut(id as usize)
    }

    fn is_linked(&self, shard: u16) -> bool {
        self.by_shard.get(usize::from(shard)).is_some_and(Option::is_some)
    }

    fn heard_ns(&self, shard: u16) -> u64 {
        let id = self.by_shard.get(usize::from(shard)).copied().flatten();
        id.and_then(|id| self.sockets.get(id as usize)).map_or(0, |socket| socket.link.heard_ns())
    }

    /// Requests of parked calls, and ends of invocations, become frames. Those that cannot be sent go to `refused`.
    fn encode(&mut self, ticket: RemoteTicket, call: &mut Call) -> Sent {
        let Some(socket) = self.link_to(call.remote.asked_shard()) else { return Sent::Unreachable };
        if !call.remote.may_go_over(socket.number) {
            return Sent::Unreachable;
        }
        if !socket.link.has_room() {
            return Sent::NoRoom;
        }
        call.remote.note_sent(socket.number);
        let is_read = matches!(
            call.remote.request().operation,
            RemoteOperation::ReadWeak | RemoteOperation::ReadStrong | RemoteOperation::Snapshot | RemoteOperation::OtherSession
        );
        socket.link.ask(ticket, |request_id, out| encode_request(call, request_id, out));
        Sent::Done { is_read }
    }

    fn encode_end(&mut self, ended: &EndedInvocation) {
        let Some(socket) = self.link_to(ended.shard) else { return };
        // The locks of another connection ended with it.
        if socket.number == ended.link {
            let asker = Asker { request_id: 0, function: ended.function, session: ended.session };
            socket.link.tell(|out| StateWrite::end(ended.invocation).encode(&asker, out));
        }
    }
}

enum Sent {
    Done { is_read: bool },
    Unreachable,
    NoRoom,
}

fn encode_request(call: &Call, request_id: u64, out: &mut Vec<u8>) {
    let asker = Asker {
        request_id,
        function: call.function_hash,
        session: call.remote.other_session().map_or(call.session, |other| other.session),
    };
    let (invocation, app) = (invocation_of(call), call.remote.app);
    // 0: the primary's own bound on waiting for a lock holds, since that time does not count.
    let left_ns = call.deadline_ns.saturating_sub(call.taken_ns(crate::sys::clock::monotonic_ns()));
    let deadline_ms = if call.remote.may_wait_for_lock() { 0 } else { (left_ns / MS_NS).clamp(1, u64::from(u32::MAX)) as u32 };
    let RemoteRequest { operation, bytes_max, key, value } = call.remote.request();
    let read = |mode: i32, op| StateRead { invocation, app, deadline_ms, mode: mode as u8, op, bytes_max, key };
    let write = |mode: i32, op| StateWrite { invocation, app, deadline_ms, mode: mode as u8, op, key, value };
    match operation {
        RemoteOperation::ReadWeak | RemoteOperation::OtherSession => read(MODE_WEAK, READ_KEY).encode(&asker, out),
        RemoteOperation::ReadStrong => read(MODE_STRONG, READ_KEY).encode(&asker, out),
        RemoteOperation::Snapshot => read(MODE_WEAK, READ_SNAPSHOT).encode(&asker, out),
        RemoteOperation::WriteWeak => write(MODE_WEAK, WRITE_KEY).encode(&asker, out),
        RemoteOperation::WriteStrong => write(MODE_STRONG, WRITE_KEY).encode(&asker, out),
        RemoteOperation::Commit => write(MODE_WEAK, WRITE_COMMIT).encode(&asker, out),
    }
}

impl Shard {
    /// True while a container knows no primary yet, and so no function either.
    pub(super) fn is_unjoined(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.primary.is_none())
    }

    /// Tells a container's call where its state is. Errors: its primary cannot be reached, so it must not begin.
    pub(super) fn place_remote(&self, call: &mut Call) -> Result<(), Outcome> {
        let Some(container) = &self.container else { return Ok(()) };
        let shard = container.primary.as_ref().map(|primary| primary.shard_of(call.table_hash));
        let Some(shard) = shard.filter(|shard| container.is_linked(*shard)) else {
            return Err(Outcome::failed(ErrorCode::NoPrimary, "the primary cannot be reached"));
        };
        call.state_at = StateAt::Primary;
        call.remote.shard = shard;
        call.remote.app = self.proxy.app_hash(call.function);
        Ok(())
    }

    pub(super) fn on_primary_command(&mut self, command: PrimaryCommand) {
        let Some(container) = &mut self.container else { return };
        match command {
            PrimaryCommand::Join(primary) => {
                let lost: Vec<u32> = container.by_shard.iter().flatten().copied().collect();
                container.by_shard = vec![None; usize::from(primary.shards())];
                self.proxy.set_places(Box::new(ContainerPlaces(Arc::clone(&primary))));
                self.placement = Arc::new(ContainerPlacement::new(Some(Arc::clone(&primary)), self.core));
                self.limits.session_header = primary.session_header.clone();
                self.proxy.set_lock_wait_ns(primary.lock_wait_ns);
                container.primary = Some(primary);
                self.set_primary_readers(Vec::new());
                lost.into_iter().for_each(|id| self.lose_link(id));
            }
            PrimaryCommand::Connected(new) => self.add_link(new),
            PrimaryCommand::Readers(readers) => self.set_primary_readers(readers),
        }
    }

    fn add_link(&mut self, new: NewLink) {
        let NewLink { primary, shard, number, socket, leftover } = new;
        let Some(container) = &mut self.container else { return };
        if !container.primary.as_ref().is_some_and(|known| Arc::ptr_eq(known, &primary)) || shard >= primary.shards() {
            return; // another primary has been joined meanwhile
        }
        let former = container.by_shard[usize::from(shard)].take();
        let link = Link::new(&leftover, crate::sys::clock::monotonic_ns());
        let id = container.sockets.insert(LinkSocket { link, socket, shard, number, is_sending: false, is_armed: false, is_lost: false });
        container.by_shard[usize::from(shard)] = Some(id as u32);
        self.view.counters.primary_links_made.add(1);
        if let Some(former) = former {
            self.lose_link(former);
        }
        self.take_events(id as u32);
    }

    /// Readers whose shard has a connection are lent to guests, the others are let go.
    fn set_primary_readers(&mut self, mut readers: Vec<(u16, u16, RegionReader)>) {
        let Some(container) = &mut self.container else { return };
        readers.retain(|(_, shard, _)| container.is_linked(*shard));
        let mut apps: Vec<u16> = readers.iter().chain(&container.readers).map(|(app, ..)| *app).collect();
        apps.sort_unstable();
        apps.dedup();
        for app in apps {
            let of_app = readers.iter().filter(|(other, ..)| *other == app);
            self.proxy.set_readers(app, of_app.map(|(_, shard, reader)| (*shard, reader.clone())));
        }
        container.readers = readers;
    }

    pub(super) fn on_link(&mut self, id: u32, generation: u16, operation: LinkOperation, completion: Completion) {
        let bytes_sent = completion.sent.as_ref().map_or(0, Vec::len);
        self.keep_buffer(completion.sent);
        let is_known = |socket: &&mut LinkSocket| socket.number as u16 == generation;
        let socket = self.container.as_mut().and_then(|container| container.sockets.get_mut(id as usize)).filter(is_known);
        let mut is_lost = false;
        if let Some(socket) = socket {
            match operation {
                LinkOperation::Sent => {
                    socket.is_sending = false;
                    is_lost = completion.result < 0 || (completion.result as usize) < bytes_sent;
                }
                LinkOperation::Received => {
                    socket.is_armed = completion.more;
                    is_lost = completion.result <= 0 && completion.result != -libc::ENOBUFS;
                    if let Some(buffer) = completion.received.as_ref().filter(|_| !socket.is_lost) {
                        socket.link.receive(self.ring.bytes(buffer), crate::sys::clock::monotonic_ns());
                    }
                }
            }
        }
        if let Some(buffer) = completion.received {
            self.ring.recycle(buffer);
        }
        if completion.result == -libc::ENOBUFS {
            self.view.counters.buffers_exhausted.add(1);
        }
        if is_lost {
            return self.lose_link(id);
        }
        if operation == LinkOperation::Received {
            self.take_events(id);
        }
        self.drop_quiet_link(id);
    }

    /// Brings what the primary said to those who wait for it.
    fn take_events(&mut self, id: u32) {
        let mut finished = std::mem::take(&mut self.finished);
        let mut is_lost = false;
        let Shard { container, proxy, view, .. } = self;
        let socket = container.as_mut().and_then(|container| container.sockets.get_mut(id as usize));
        if let Some(socket) = socket.filter(|socket| !socket.is_lost) {
            loop {
                let (asker, answer) = match socket.link.next_event() {
                    Ok(None) => break,
                    Ok(Some(Event::Answered { asker, result, value })) => (asker, RemoteAnswer::Result(result, value)),
                    Ok(Some(Event::Refused { asker, status, .. })) if status == Status::LockWait as u8 => (asker, RemoteAnswer::LockWait),
                    Ok(Some(Event::Refused { asker, .. })) => (asker, RemoteAnswer::Unreachable),
                    Err(fault) => {
                        tracing::warn!(shard = socket.shard, "the primary's shard does not keep to the protocol: {fault}");
                        is_lost = true;
                        break;
                    }
                };
                view.counters.primary_answers.add(1);
                finished.extend(proxy.answer_remote(asker, answer, crate::sys::clock::monotonic_ns()));
            }
        }
        self.deliver_all(finished);
        if is_lost {
            self.lose_link(id);
        }
    }

    pub(super) fn deliver_all(&mut self, mut finished: Vec<Finished>) {
        for call in finished.drain(..) {
            self.deliver(call);
        }
        self.finished = finished;
    }

    /// A connection is of no use any more: those who wait for it are told at once, and control makes another.
    fn lose_link(&mut self, id: u32) {
        let mut finished = std::mem::take(&mut self.finished);
        let Shard { container: Some(container), proxy, .. } = self else { return };
        if let Some(socket) = container.sockets.get_mut(id as usize).filter(|socket| !socket.is_lost) {
            socket.is_lost = true;
            // Makes what is under way complete. A socket that is not connected any more is shut already.
            SockRef::from(&socket.socket).shutdown(std::net::Shutdown::Both).ok();
            let (shard, number) = (socket.shard, socket.number);
            let now_ns = crate::sys::clock::monotonic_ns();
            for asker in socket.link.lose() {
                finished.extend(proxy.answer_remote(asker, RemoteAnswer::Unreachable, now_ns));
            }
            let place = container.by_shard.get_mut(usize::from(shard));
            if let Some(place) = place.filter(|place| **place == Some(id)) {
                *place = None;
                (container.on_lost)(shard, number);
                let readers = std::mem::take(&mut container.readers);
                self.keep_readers_of_links(readers, shard);
            }
        }
        self.deliver_all(finished);
        self.drop_quiet_link(id);
    }

    fn keep_readers_of_links(&mut self, readers: Vec<(u16, u16, RegionReader)>, lost: u16) {
        if let Some(container) = &mut self.container {
            container.readers = readers.clone();
        }
        self.set_primary_readers(readers.into_iter().filter(|(_, shard, _)| *shard != lost).collect());
    }

    fn drop_quiet_link(&mut self, id: u32) {
        let Some(container) = &mut self.container else { return };
        if container.sockets.get(id as usize).is_some_and(|socket| socket.is_lost && !socket.is_sending && !socket.is_armed) {
            drop(container.sockets.remove(id as usize));
        }
    }

    /// Sends what calls asked since the last turn, one send a connection. Called once a turn, when no guest runs any more.
    pub(super) fn pump_primary(&mut self) {
        if self.container.is_none() {
            return self.ask_owners();
        }
        // A refused commit ends its call, and the connection's next request may ask something in turn.
        while self.encode_requests() {}
        let Shard { container: Some(container), ring, spare_buffers, view, .. } = self else { return };
        for (id, socket) in &mut container.sockets {
            if socket.is_lost {
                continue;
            }
            let tag = |operation| Operation::Link { link: id as u32, generation: socket.number as u16, operation }.tag();
            if !socket.is_armed {
                socket.is_armed = true;
                ring.recv_multi_socket(tag(LinkOperation::Received), socket.socket.as_fd(), GROUP_STREAMS);
            }
            if socket.is_sending {
                continue;
            }
            if let Some(out) = socket.link.take_out(|| spare_buffers.pop().unwrap_or_default()) {
                socket.is_sending = true;
                ring.send_socket(tag(LinkOperation::Sent), socket.socket.as_fd(), out);
            }
        }
        view.counters.primary_links.set(container.by_shard.iter().flatten().count() as u64);
    }

    /// Output: true when a call ended here, so that others may have come forward.
    fn encode_requests(&mut self) -> bool {
        let mut finished = std::mem::take(&mut self.finished);
        let Shard { container: Some(container), proxy, view, .. } = self else { return false };
        while let Some(ended) = proxy.next_ended() {
            container.encode_end(&ended);
        }
        for _ in 0..proxy.count_unsent_remote() {
            let Some((ticket, call)) = proxy.next_remote() else { break };
            match container.encode(ticket, call) {
                Sent::Done { is_read } => {
                    view.counters.primary_requests.add(1);
                    view.counters.primary_reads.add(u64::from(is_read));
                }
                Sent::NoRoom => proxy.put_back_remote(ticket),
                Sent::Unreachable => {
                    finished.extend(proxy.answer_remote(ticket, RemoteAnswer::Unreachable, crate::sys::clock::monotonic_ns()));
                }
            }
        }
        let has_finished = !finished.is_empty();
        self.deliver_all(finished);
        has_finished
    }

    /// Timed work: pings, silent connections, requests that wait in vain.
    pub(super) fn sweep_primary(&mut self) {
        let now_ns = self.now_ns;
        let Some(container) = &mut self.container else { return self.sweep_asked() };
        let mut silent = Vec::new();
        for (id, socket) in &mut container.sockets {
            if !socket.is_lost && socket.link.tick(now_ns) == Health::Silent {
                tracing::warn!("shard {} of the primary has fallen silent: its connection is given up", socket.shard);
                silent.push(id as u32);
            }
        }
        silent.into_iter().for_each(|id| self.lose_link(id));
        let mut finished = std::mem::take(&mut self.finished);
        let Shard { container: Some(container), proxy, view, .. } = self else { return };
        let late = proxy.sweep_remote(now_ns, |shard| container.heard_ns(shard), &mut finished);
        view.counters.primary_timeouts.add(late);
        self.deliver_all(finished);
    }
}
