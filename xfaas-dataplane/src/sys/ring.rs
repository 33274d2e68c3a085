//! One io_uring behind a safe door: buffers in flight are owned by the ring, received
//! buffers by a token. Called by `shard/` and by the bench's echo limit; decides nothing, knows no protocol.

use super::buffers::{BufferGroup, GroupOptions, ReceivedBuffer};
use super::in_flight::{InFlight, Sending};
use super::peer::{CONTROL_BYTES, Outgoing, Peer, Route, local_address, socket_address};
use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("io_uring is not usable: the kernel lacks {feature}; Linux 6.1 or later is needed")]
    Feature {
        feature: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "this process may open too few files for a shard's {files} connections: raise the hard limit (`ulimit -Hn`, LimitNOFILE= of systemd)"
    )]
    Files {
        files: u32,
        #[source]
        source: std::io::Error,
    },
    #[error("io_uring: {operation}")]
    Operation {
        operation: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Sizes of a ring. All counts are entries.
#[derive(Clone, Debug)]
pub struct RingOptions {
    pub submission_entries: u32,
    pub completion_entries: u32,
    /// Direct descriptors, and so open connections.
    pub files: u32,
    /// Group `i` of provided buffers.
    pub groups: Vec<GroupOptions>,
    /// For a loop that never sleeps: the kernel says in shared memory when `poll` has something to do.
    pub polls: bool,
}

/// A connection's descriptor inside the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FixedFile(pub u32);

/// The caller's name for an operation; comes back with its completions. The upper four bits belong to the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag(pub u64);

const RESET: i16 = libc::POLLERR | libc::POLLHUP;
const RING_OWNED: u64 = 1 << 63;
const IGNORED: u64 = 1 << 62;
/// A receive carries the number of its buffer group here, because a completion names only the buffer.
const GROUP_SHIFT: u32 = 60;
const GROUP_MASK: u64 = 3 << GROUP_SHIFT;

fn receive_user_data(tag: Tag, group: u16) -> u64 {
    assert!(tag.0 >> GROUP_SHIFT == 0 && group < 4, "the upper four bits of a tag belong to the ring");
    tag.0 | u64::from(group) << GROUP_SHIFT
}

#[derive(Debug)]
pub struct Completion {
    pub tag: Tag,
    /// The operation's result: a count, a descriptor, or a negative errno.
    pub result: i32,
    /// A multishot operation that stays armed, or a send of which a piece has left.
    pub more: bool,
    /// What a receive brought; give it back with `recycle`.
    pub received: Option<ReceivedBuffer>,
    /// The buffer that a send took, to be used again.
    pub sent: Option<Vec<u8>>,
}

/// `struct io_uring_recvmsg_out`: name, control and payload lengths and flags, four `u32`. Source: include/uapi/linux/io_uring.h.
const RECVMSG_OUT_BYTES: usize = 16;
/// Bytes that a received datagram's buffer spends before the payload.
pub const DATAGRAM_PREFIX_BYTES: usize = RECVMSG_OUT_BYTES + size_of::<libc::sockaddr_in6>() + CONTROL_BYTES;

/// Address boxes made at start: as many datagrams may be on their way out before another is allocated.
const PEERS_AT_START: usize = 256;

/// A longer send leaves in pieces of this size, so that whoever waits sees it get on.
const PIECE_BYTES: usize = 256 << 10;

/// How long `wait_past_sends` waits for more than sends.
const GATHER: Duration = Duration::from_micros(50);

pub struct Ring {
    ring: IoUring,
    groups: Vec<BufferGroup>,
    /// Sends under way, boxed addresses and all: the kernel reads them until the completion.
    in_flight: InFlight,
    /// Address boxes to use again, so that a datagram's answer allocates nothing.
    #[expect(clippy::vec_box, reason = "spare boxes: what the kernel reads must not move while a send is under way")]
    peers: Vec<Box<Outgoing>>,
    /// Completions taken from the kernel's queue, not yet given out.
    completed: VecDeque<cqueue::Entry>,
    /// Shape of a received datagram: room for one address and one control message before the payload.
    message: Box<libc::msghdr>,
    enters: u64,
    submissions: u64,
    completions: u64,
    /// Sends pushed since the last `wait_past_sends`.
    sends: usize,
    /// Datagrams leave one by one here.
    segments_refused: bool,
}

impl Ring {
    /// Makes a ring for the calling thread, which must be the only one to use it. Errors: `Feature` names what the kernel lacks.
    pub fn new(options: &RingOptions) -> Result<Ring, RingError> {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_submit_all()
            .setup_cqsize(options.completion_entries);
        if options.polls {
            builder.setup_taskrun_flag();
        }
        let ring = builder
            .build(options.submission_entries)
            .map_err(|source| RingError::Feature { feature: "IORING_SETUP_SINGLE_ISSUER and IORING_SETUP_DEFER_TASKRUN", source })?;
        // Saves the descriptor look-up at each enter; a kernel or sandbox without it still works.
        drop(ring.submitter().register_ring_fd());
        ring.submitter().register_files_sparse(options.files).map_err(|source| match source.raw_os_error() {
            Some(libc::EMFILE) => RingError::Files { files: options.files, source },
            _ => RingError::Feature { feature: "direct descriptors (IORING_REGISTER_FILES2)", source },
        })?;
        let mut groups = Vec::with_capacity(options.groups.len());
        for (id, group) in options.groups.iter().enumerate() {
            let mut group = BufferGroup::new(id as u16, *group)
                .map_err(|source| RingError::Operation { operation: "map the memory of a buffer group", source })?;
            group
                .register(&ring)
                .map_err(|source| RingError::Feature { feature: "provided buffer rings (IORING_REGISTER_PBUF_RING)", source })?;
            groups.push(group);
        }
        let message = Box::new(libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: size_of::<libc::sockaddr_in6>() as libc::socklen_t,
            msg_iov: std::ptr::null_mut(),
            msg_iovlen: 0,
            msg_control: std::ptr::null_mut(),
            msg_controllen: CONTROL_BYTES,
            msg_flags: 0,
        });
        Ok(Ring {
            ring,
            groups,
            in_flight: InFlight::with_capacity(1_024),
            peers: (0..PEERS_AT_START).map(|_| Outgoing::new()).collect(),
            completed: VecDeque::with_capacity(options.completion_entries as usize),
            message,
            enters: 0,
            submissions: 0,
            completions: 0,
            sends: 0,
            segments_refused: false,
        })
    }

    /// The descriptor by which other rings send messages to this one.
    pub fn raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// `io_uring_enter` calls so far: the only system calls of a shard's loop.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Operations pushed so far.
    pub fn submissions(&self) -> u64 {
        self.submissions
    }

    /// Completions taken from the kernel so far, those that nobody is told of too.
    pub fn completions(&self) -> u64 {
        self.completions
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.submissions += 1;
        loop {
            // SAFETY: every buffer, address and message header that an entry points to is owned by `self` until the operation's last completion:
            // sends by `in_flight`, receives by `groups`, the header by `message`.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                return;
            }
            self.enters += 1;
            // A full queue is handed over; what an interrupted call left is taken by the next turn of this loop.
            drop(self.ring.submit());
        }
    }

    /// Accepts connections as direct descriptors until an error ends it: each completion's result is a `FixedFile`.
    pub fn accept_multi(&mut self, tag: Tag, listener: BorrowedFd<'_>) {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true).build();
        self.push(entry.user_data(tag.0));
    }

    /// Puts a socket made elsewhere, connected already, into the direct descriptor `file`; the ring keeps its own reference. For a ring that
    /// does not accept: `accept_multi` picks descriptors by itself. Errors: `file` is outside the ring's table.
    pub fn adopt(&mut self, file: FixedFile, socket: BorrowedFd<'_>) -> Result<(), RingError> {
        match self.ring.submitter().register_files_update(file.0, &[socket.as_raw_fd()]) {
            Ok(_) => Ok(()),
            Err(source) => Err(RingError::Operation { operation: "put a socket into the table of direct descriptors", source }),
        }
    }

    /// Receives into buffers of `group` until the stream ends or the group is empty (ENOBUFS).
    pub fn recv_multi(&mut self, tag: Tag, file: FixedFile, group: u16) {
        self.push(opcode::RecvMulti::new(Fixed(file.0), group).build().user_data(receive_user_data(tag, group)));
    }

    /// As `recv_multi`, of a socket that was made elsewhere. It must stay open until the last completion.
    pub fn recv_multi_socket(&mut self, tag: Tag, socket: BorrowedFd<'_>, group: u16) {
        self.push(opcode::RecvMulti::new(Fd(socket.as_raw_fd()), group).build().user_data(receive_user_data(tag, group)));
    }

    /// Receives datagrams with their source address into buffers of `group`; read them with `datagram`.
    pub fn recvmsg_multi(&mut self, tag: Tag, socket: BorrowedFd<'_>, group: u16) {
        let message: *const libc::msghdr = &*self.message;
        let receive = opcode::RecvMsgMulti::new(Fd(socket.as_raw_fd()), message, group).build();
        self.push(receive.user_data(receive_user_data(tag, group)));
    }

    /// As `send`, in pieces: each but the last completes with `more`, the last with the bytes of all.
    pub fn send_in_pieces(&mut self, tag: Tag, file: FixedFile, buffer: Vec<u8>) {
        if buffer.len() <= PIECE_BYTES {
            return self.send(tag, file, buffer);
        }
        let (id, sending) = self.in_flight.put(tag, buffer, None);
        sending.stream = Some(file);
        self.send_piece(id, file);
    }

    fn send_piece(&mut self, id: u64, file: FixedFile) {
        self.sends += 1;
        let piece = self.in_flight.rest(id);
        let (address, bytes) = (piece.as_ptr(), piece.len().min(PIECE_BYTES) as u32);
        let send = opcode::Send::new(Fixed(file.0), address, bytes).flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build();
        self.push(send.user_data(RING_OWNED | id));
    }

    /// Output: the completion of a piece, unless it is the last one or the last that left.
    #[cold]
    fn end_piece(&mut self, id: u64, file: FixedFile, result: i32) -> Option<Completion> {
        let is_whole = result >= 0 && result as usize == self.in_flight.rest(id).len().min(PIECE_BYTES);
        let tag = self.in_flight.advance(id, result.max(0) as u32);
        if !is_whole || self.in_flight.rest(id).is_empty() {
            return None;
        }
        self.send_piece(id, file);
        Some(Completion { tag, result, more: true, received: None, sent: None })
    }

    /// Sends the whole buffer on a stream; it comes back in `Completion::sent`.
    pub fn send(&mut self, tag: Tag, file: FixedFile, buffer: Vec<u8>) {
        self.sends += 1;
        let (id, sending) = self.in_flight.put(tag, buffer, None);
        let (address, bytes) = (sending.buffer.as_ptr(), sending.buffer.len() as u32);
        let send = opcode::Send::new(Fixed(file.0), address, bytes).flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build();
        self.push(send.user_data(RING_OWNED | id));
    }

    /// As `send`, on a socket that was made elsewhere. It must stay open until the completion.
    pub fn send_socket(&mut self, tag: Tag, socket: BorrowedFd<'_>, buffer: Vec<u8>) {
        let (id, sending) = self.in_flight.put(tag, buffer, None);
        let (address, bytes) = (sending.buffer.as_ptr(), sending.buffer.len() as u32);
        let send = opcode::Send::new(Fd(socket.as_raw_fd()), address, bytes).flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build();
        self.push(send.user_data(RING_OWNED | id));
    }

    /// Sends a buffer to `peer`, from the address it wrote to where that is known, cut into datagrams of `segment_bytes`, 1..=65507, the last maybe
    /// shorter: the way out of the kernel is gone once for all of them (UDP_SEGMENT, udp(7)). The buffer comes back in `Completion::sent`. Where
    /// the kernel, the device or the path's MTU does not take them so they are sent one by one, which allocates, and `tag` completes once for each.
    pub fn send_datagrams(&mut self, tag: Tag, socket: BorrowedFd<'_>, buffer: Vec<u8>, segment_bytes: usize, peer: Peer) {
        self.send_on(tag, Route::To(socket.as_raw_fd(), peer), buffer, segment_bytes);
    }

    /// As `send_datagrams`, on a direct descriptor whose socket is connected.
    pub fn send_segments(&mut self, tag: Tag, file: FixedFile, buffer: Vec<u8>, segment_bytes: usize) {
        self.send_on(tag, Route::Connected(file.0), buffer, segment_bytes);
    }

    fn send_on(&mut self, tag: Tag, route: Route, buffer: Vec<u8>, segment_bytes: usize) {
        match buffer.len() > segment_bytes && self.segments_refused {
            true => self.send_one_by_one(tag, route, &buffer, segment_bytes),
            false => self.push_datagrams(tag, route, buffer, segment_bytes),
        }
    }

    fn push_datagrams(&mut self, tag: Tag, route: Route, buffer: Vec<u8>, segment_bytes: usize) {
        let mut outgoing = self.peers.pop().unwrap_or_else(Outgoing::new);
        outgoing.set(route, segment_bytes);
        self.sends += 1;
        let (id, Sending { buffer, peer: outgoing, .. }) = self.in_flight.put(tag, buffer, Some(outgoing));
        let outgoing = outgoing.as_mut().expect("set just above");
        let flags = libc::MSG_NOSIGNAL;
        let (address, bytes, is_one) = (buffer.as_ptr(), buffer.len() as u32, buffer.len() <= segment_bytes);
        let send = match route {
            Route::To(socket, Peer { local: None, .. }) if is_one => opcode::Send::new(Fd(socket), address, bytes)
                .flags(flags)
                .dest_addr(outgoing.address().as_ptr().cast())
                .dest_addr_len(outgoing.address().len())
                .build(),
            Route::To(socket, _) => opcode::SendMsg::new(Fd(socket), outgoing.message(buffer)).flags(flags as u32).build(),
            Route::Connected(file) if is_one => opcode::Send::new(Fixed(file), address, bytes).flags(flags).build(),
            Route::Connected(file) => opcode::SendMsg::new(Fixed(file), outgoing.message(buffer)).flags(flags as u32).build(),
        };
        self.push(send.user_data(RING_OWNED | id));
    }

    #[cold]
    fn send_one_by_one(&mut self, tag: Tag, route: Route, datagrams: &[u8], segment_bytes: usize) {
        for datagram in datagrams.chunks(segment_bytes) {
            self.push_datagrams(tag, route, datagram.to_vec(), segment_bytes);
        }
    }

    /// What a send of datagrams came to. Output: false when they were refused as segments and are sent again one by one.
    fn end_datagrams(&mut self, outgoing: Box<Outgoing>, sent: &Sending, result: i32) -> bool {
        let (route, segment_bytes) = (outgoing.route, outgoing.segment_bytes);
        self.peers.push(outgoing);
        if result >= 0 || sent.buffer.len() <= segment_bytes {
            return true;
        }
        match -result {
            // No checksums by the device, a transformation on the way (IPsec), or a kernel before 4.18: so for all. net/ipv4/udp.c.
            libc::EIO | libc::EOPNOTSUPP => self.segments_refused = true,
            libc::EINVAL | libc::EMSGSIZE => {} // this path's MTU is smaller
            _ => return true,
        }
        self.send_one_by_one(sent.tag, route, &sent.buffer, segment_bytes);
        false
    }

    /// Writes the whole buffer at `offset` of a file and has it on the disk, as by `pwrite` and `fdatasync`; it comes back in
    /// `Completion::sent`. On a thread of the kernel's: the caller's loop waits for no disk. The file stays open until then.
    pub fn write_synced(&mut self, tag: Tag, file: BorrowedFd<'_>, offset: u64, buffer: Vec<u8>) {
        let (id, writing) = self.in_flight.put(tag, buffer, None);
        let (address, bytes) = (writing.buffer.as_ptr(), writing.buffer.len() as u32);
        let write = opcode::Write::new(Fd(file.as_raw_fd()), address, bytes).offset(offset).rw_flags(libc::RWF_DSYNC).build();
        // A file system that takes writes without waiting would wait for the sync here.
        self.push(write.flags(squeue::Flags::ASYNC).user_data(RING_OWNED | id));
    }

    /// Closes a direct descriptor.
    pub fn close(&mut self, tag: Tag, file: FixedFile) {
        self.push(opcode::Close::new(Fixed(file.0)).build().user_data(tag.0));
    }

    /// Ends the writing half of a connection. The kernel does it on a worker thread, which looks the descriptor up late: until `tag` has
    /// completed the descriptor must not be closed, or its slot's next connection is shut instead.
    pub fn shutdown_write(&mut self, tag: Tag, file: FixedFile) {
        self.push(opcode::Shutdown::new(Fixed(file.0), libc::SHUT_WR).build().user_data(tag.0));
    }

    /// Cancels everything that is under way on a connection; each operation then completes.
    pub fn cancel_all(&mut self, file: FixedFile) {
        let operations = CancelBuilder::fd(Fixed(file.0)).all();
        self.push(opcode::AsyncCancel2::new(operations).build().user_data(IGNORED));
    }

    /// Cancels the receive of `target` from `group`; that one then completes, last, with ECANCELED or with what it had.
    pub fn cancel_receive(&mut self, target: Tag, group: u16) {
        let receive = CancelBuilder::user_data(receive_user_data(target, group));
        self.push(opcode::AsyncCancel2::new(receive).build().user_data(IGNORED));
    }

    /// Cancels the one operation `target`, which is no send and no receive; that one then completes, last, with ECANCELED or with what it had.
    pub fn cancel(&mut self, target: Tag) {
        self.push(opcode::AsyncCancel2::new(CancelBuilder::user_data(target.0)).build().user_data(IGNORED));
    }

    /// Completes once when a connection is reset or closed on both sides, with what poll(2) says of it; input does not count. The end of the client's
    /// half does, though nobody asks: io_uring adds POLLRDHUP to every poll (IO_POLL_UNMASK, io_uring/poll.c). `is_reset` tells the two apart.
    pub fn poll_reset(&mut self, tag: Tag, file: FixedFile) {
        let poll = opcode::PollAdd::new(Fixed(file.0), RESET as u32).build();
        self.push(poll.user_data(tag.0));
    }

    /// What a completion of `poll_reset` says: true when nobody reads a reply any more.
    pub fn is_reset(result: i32) -> bool {
        result > 0 && result & i32::from(RESET) != 0
    }

    /// Completes each time `descriptor` becomes readable.
    pub fn poll_multi(&mut self, tag: Tag, descriptor: BorrowedFd<'_>) {
        let poll = opcode::PollAdd::new(Fd(descriptor.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
        self.push(poll.user_data(tag.0));
    }

    /// Wakes another ring with a completion that carries `remote_tag`.
    pub fn message(&mut self, ring: RawFd, remote_tag: Tag) {
        self.push(opcode::MsgRingData::new(Fd(ring), 0, remote_tag.0, None).build().user_data(IGNORED));
    }

    /// Gives a connection to another ring, where it appears as a completion of `remote_tag` whose result is its `FixedFile`. Here `tag`
    /// completes with 0, or an error if the other ring has no room; the descriptor stays open here until closed.
    pub fn message_file(&mut self, tag: Tag, ring: RawFd, file: FixedFile, remote_tag: Tag) {
        let slot = DestinationSlot::auto_target();
        self.push(opcode::MsgRingSendFd::new(Fd(ring), Fixed(file.0), slot, remote_tag.0).build().user_data(tag.0));
    }

    /// Makes an ordinary descriptor of a direct one (Linux 6.8); take it from the completion with `installed`.
    pub fn install(&mut self, tag: Tag, file: FixedFile) {
        self.push(opcode::FixedFdInstall::new(Fixed(file.0), 0).build().user_data(tag.0));
    }

    /// The descriptor that a completed `install` made; `None` where the kernel refused.
    pub fn installed(completion: &Completion) -> Option<OwnedFd> {
        if completion.result < 0 {
            return None;
        }
        // SAFETY: the kernel just made this descriptor for us (FIXED_FD_INSTALL succeeded), and each completion is asked once.
        Some(unsafe { OwnedFd::from_raw_fd(completion.result) })
    }

    /// Hands over what was pushed and waits for `at_least` completions, at most `timeout`. One system call.
    pub fn wait(&mut self, at_least: usize, timeout: Option<Duration>) -> Result<(), RingError> {
        self.end_turn();
        self.enters += 1;
        let waited = match timeout {
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(at_least.max(1), &SubmitArgs::new().timespec(&timespec))
            }
            None => self.ring.submitter().submit_and_wait(at_least),
        };
        match waited {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(source) => return Err(RingError::Operation { operation: "wait for completions", source }),
        }
        Ok(())
    }

    /// Hands over what was pushed and takes what is there, without waiting. A system call only where there is either; for a ring that `polls`.
    pub fn poll(&mut self) -> Result<(), RingError> {
        self.end_turn();
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(source) => Err(RingError::Operation { operation: "hand over operations", source }),
        }
    }

    /// Hands over what was pushed, without waiting. What cannot be handed over now is by the next `wait`, which says what is wrong.
    pub fn hand_over(&mut self) {
        self.enters += 1;
        drop(self.ring.submit());
    }

    /// As `wait` for one completion, but those of the sends being handed over do not count: nearly all of them complete while they are handed
    /// over, and a turn that finds nothing else has entered the kernel in vain. Waits at most `GATHER` where there are sends, because one to
    /// a client that does not read completes later, and its place would be taken by something else that waits.
    pub fn wait_past_sends(&mut self, timeout: Duration) -> Result<(), RingError> {
        match std::mem::take(&mut self.sends) {
            0 => self.wait(1, Some(timeout)),
            sends => self.wait(sends + 1, Some(timeout.min(GATHER))),
        }
    }

    fn end_turn(&mut self) {
        for group in &mut self.groups {
            group.end_turn();
        }
    }

    /// The next completion that is already there; makes no system call.
    pub fn next_completion(&mut self) -> Option<Completion> {
        loop {
            if self.completed.is_empty() {
                self.completed.clear(); // starts over at its first places, which the caches hold
                self.completed.extend(self.ring.completion());
                self.completions += self.completed.len() as u64;
            }
            let entry = self.completed.pop_front()?;
            if entry.user_data() == IGNORED {
                continue;
            }
            if let Some(completion) = self.translate(&entry) {
                return Some(completion);
            }
        }
    }

    /// `None` for a send that is tried again in another way.
    fn translate(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let (result, more) = (entry.result(), cqueue::more(entry.flags()));
        if entry.user_data() & RING_OWNED == 0 {
            let group = ((entry.user_data() & GROUP_MASK) >> GROUP_SHIFT) as u16;
            let received = cqueue::buffer_select(entry.flags()).map(|id| ReceivedBuffer { group, id, bytes: result.max(0) as u32 });
            if let Some(buffers) = self.groups.get_mut(usize::from(group)) {
                if received.is_some() {
                    buffers.on_taken();
                } else if result == -libc::ENOBUFS {
                    buffers.on_exhausted();
                }
            }
            return Some(Completion { tag: Tag(entry.user_data() & !GROUP_MASK), result, more, received, sent: None });
        }
        let id = entry.user_data() & !RING_OWNED;
        if let Some(file) = self.in_flight.stream(id)
            && let Some(piece) = self.end_piece(id, file, result)
        {
            return Some(piece);
        }
        let mut sent = self.in_flight.take(id);
        let result = if sent.stream.is_some() && result >= 0 { sent.sent_bytes as i32 } else { result };
        let is_over = sent.peer.take().is_none_or(|outgoing| self.end_datagrams(outgoing, &sent, result));
        is_over.then_some(Completion { tag: sent.tag, result, more, received: None, sent: Some(sent.buffer) })
    }

    /// The bytes of a received buffer.
    pub fn bytes(&self, buffer: &ReceivedBuffer) -> &[u8] {
        self.groups[usize::from(buffer.group)].bytes(buffer)
    }

    /// A received datagram: who sent it and its payload; `None` if it is cut or its address is of no kind we know.
    pub fn datagram(&self, buffer: &ReceivedBuffer) -> Option<(Peer, &[u8])> {
        let bytes = self.bytes(buffer);
        let field = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let (name_bytes, control_bytes, payload_bytes, flags) = (field(0)?, field(4)?, field(8)?, field(12)?);
        let control_at = RECVMSG_OUT_BYTES + self.message.msg_namelen as usize;
        let payload_at = control_at + CONTROL_BYTES;
        let payload = bytes.get(payload_at..)?;
        let name = bytes.get(RECVMSG_OUT_BYTES..control_at)?.get(..name_bytes as usize)?;
        let control = bytes.get(control_at..payload_at)?.get(..control_bytes as usize)?;
        if flags & libc::MSG_TRUNC as u32 != 0 || payload.len() != payload_bytes as usize {
            return None;
        }
        Some((Peer { address: socket_address(name)?, local: local_address(control) }, payload))
    }

    /// Gives a received buffer back to the kernel.
    pub fn recycle(&mut self, buffer: ReceivedBuffer) {
        self.groups[usize::from(buffer.group)].recycle(buffer.id);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still read sends and write receives of this ring for a moment after its descriptor is closed, so the memory is leaked
        // rather than freed. A shard's ring lives as long as the process: this costs nothing but in tests.
        std::mem::forget(std::mem::take(&mut self.in_flight));
        std::mem::forget(std::mem::take(&mut self.groups));
        let message = Box::new(libc::msghdr { ..*self.message });
        std::mem::forget(std::mem::replace(&mut self.message, message));
    }
}
