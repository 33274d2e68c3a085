//! One container's connection as a shard holds it.

use super::super::connection::Arrival;
use crate::sys::FixedFile;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use xfaas_common::limits::RPC_UNSENT_BYTES_MAX;
use xfaas_common::rpc::ModuleChunk;

/// Bytes of one send: while a slow peer takes them, each send that is done shows that it lives.
const SEND_BYTES_MAX: usize = 256 << 10;
/// Room kept in a buffer that is not needed now.
const KEPT_BYTES_MAX: usize = 64 << 10;

pub(super) struct RpcConnection {
    pub(super) file: FixedFile,
    pub(super) generation: u16,
    /// Bytes read and not taken apart yet: a part of a frame, or frames that wait until the peer has taken its answers.
    pub(super) pending: Vec<u8>,
    /// Frames that wait to be sent.
    pub(super) out: Vec<u8>,
    /// The last send's buffer, to be used again.
    spare: Vec<u8>,
    pub(super) sending: bool,
    /// The multishot receive is armed, or its end is still to come.
    pub(super) armed: bool,
    /// The receive was told to end.
    pub(super) pausing: bool,
    /// The descriptor is on its way to another shard.
    pub(super) handing: bool,
    /// Given up: gone as soon as nothing is under way.
    pub(super) shut: bool,
    /// The hello was answered here.
    pub(super) greeted: bool,
    pub(super) moving: Option<Moving>,
    pub(super) heard_ns: u64,
    /// The position of the log that must be safe before anything more is sent.
    pub(super) waits_for: u64,
    /// Invocations with locks: the container's number -> index in `Invocations`.
    pub(super) invocations: HashMap<u64, u32>,
    modules: VecDeque<Transfer>,
}

/// A hello whose connection is on its way to the shard that it named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moving {
    pub(super) to: u16,
    pub(super) request_id: u64,
}

/// A module on its way.
struct Transfer {
    request_id: u64,
    module: Arc<[u8]>,
    offset: usize,
}

/// A connection between two shards: everything but its descriptor, which travels by ring message.
pub(in crate::shard) struct MovedRpc {
    pub(in crate::shard) arrival: Arrival,
    pub(super) request_id: u64,
    pub(super) pending: Vec<u8>,
}

impl RpcConnection {
    pub(super) fn new(file: FixedFile, generation: u16, now_ns: u64) -> RpcConnection {
        RpcConnection {
            file,
            generation,
            pending: Vec::new(),
            out: Vec::new(),
            spare: Vec::new(),
            sending: false,
            armed: false,
            pausing: false,
            handing: false,
            shut: false,
            greeted: false,
            moving: None,
            heard_ns: now_ns,
            waits_for: 0,
            invocations: HashMap::new(),
            modules: VecDeque::new(),
        }
    }

    /// True while its frames are to be taken apart and its bytes to be read.
    pub(super) fn takes_frames(&self) -> bool {
        !self.shut && self.moving.is_none() && self.out.len() <= RPC_UNSENT_BYTES_MAX
    }

    /// True when nothing of it is with the kernel.
    pub(super) fn is_quiet(&self) -> bool {
        !self.sending && !self.armed && !self.handing
    }

    /// True while an answer is on its way out.
    pub(super) fn is_answering(&self) -> bool {
        self.sending || !self.out.is_empty() || !self.modules.is_empty()
    }

    pub(super) fn modules(&self) -> usize {
        self.modules.len()
    }

    pub(super) fn send_module(&mut self, request_id: u64, module: Arc<[u8]>) {
        self.modules.push_back(Transfer { request_id, module, offset: 0 });
    }

    /// The bytes of the next send, if there are any; modules go part by part behind the answers.
    pub(super) fn next_send(&mut self) -> Option<Vec<u8>> {
        while self.out.len() < SEND_BYTES_MAX
            && let Some(transfer) = self.modules.front_mut()
        {
            let Transfer { request_id, ref module, offset } = *transfer;
            transfer.offset = ModuleChunk::encode_next(request_id, module, offset, &mut self.out);
            if transfer.offset == module.len() {
                self.modules.pop_front();
            }
        }
        if self.out.is_empty() {
            return None;
        }
        let mut buffer = std::mem::replace(&mut self.out, std::mem::take(&mut self.spare));
        if buffer.len() > SEND_BYTES_MAX {
            self.out.extend_from_slice(&buffer[SEND_BYTES_MAX..]);
            buffer.truncate(SEND_BYTES_MAX);
        }
        Some(buffer)
    }

    /// Takes a sent buffer back.
    pub(super) fn keep(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= KEPT_BYTES_MAX {
            buffer.clear();
            self.spare = buffer;
        }
    }

    /// Forgets the first `used` pending bytes, and makes room for a frame of `wanted` bytes.
    pub(super) fn consume(&mut self, used: usize, wanted: usize) {
        self.pending.drain(..used);
        if self.pending.is_empty() {
            self.pending.shrink_to(KEPT_BYTES_MAX);
        } else {
            self.pending.reserve_exact(wanted.saturating_sub(self.pending.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xfaas_common::rpc::{Next, next_frame};

    #[test]
    fn a_long_answer_leaves_in_parts_and_a_module_behind_it() {
        let mut connection = RpcConnection::new(FixedFile(0), 0, 0);
        assert_eq!(connection.next_send(), None);
        connection.out = vec![7; SEND_BYTES_MAX * 2 + 1];
        let module: Arc<[u8]> = vec![1; 600 << 10].into();
        connection.send_module(5, module);
        assert!(connection.is_answering());
        let mut sent = Vec::new();
        while let Some(buffer) = connection.next_send() {
            assert!(buffer.len() <= SEND_BYTES_MAX && connection.out.len() < SEND_BYTES_MAX * 3);
            sent.extend_from_slice(&buffer);
            connection.keep(buffer);
        }
        let mut rest = &sent[SEND_BYTES_MAX * 2 + 1..];
        let mut module_bytes = 0;
        while let Next::Frame(frame) = next_frame(rest) {
            module_bytes += ModuleChunk::decode(frame.payload).unwrap().bytes.len();
            rest = &rest[frame.used..];
        }
        assert_eq!((module_bytes, rest.len(), connection.modules()), (600 << 10, 0, 0));
    }
}
