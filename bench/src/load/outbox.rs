//! Datagrams of one socket that leave in one send: a generator's core would else spend most of its time on the kernel's way out, and the
//! server wait for it. The kernel cuts them before they reach a socket, so the server sees the same datagrams.

use xfaas_dataplane::sys::{FixedFile, Ring, Tag};

/// Together at most: the server begins with the first ones while the next are made.
const DATAGRAMS_MAX: usize = 16;
/// Longer ones leave alone: with headers they fit in an Ethernet's MTU.
const DATAGRAM_BYTES_MAX: usize = 1_400;

/// What waits for one connected socket.
pub(crate) struct Outbox {
    tag: Tag,
    file: FixedFile,
    bytes: Vec<u8>,
    /// Of each datagram, but that the last may be shorter.
    segment_bytes: usize,
}

impl Outbox {
    /// `tag`: of the sends, each of which completes with a buffer to use again.
    pub(crate) fn new(tag: Tag, file: FixedFile) -> Outbox {
        Outbox { tag, file, bytes: Vec::new(), segment_bytes: 0 }
    }

    /// Adds a datagram; what it cannot leave with is sent before. `spare`: a buffer to use.
    pub(crate) fn add(&mut self, ring: &mut Ring, parts: &[&[u8]], spare: impl FnOnce() -> Vec<u8>) {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if !self.takes(bytes) {
            self.send(ring);
        }
        if self.bytes.is_empty() {
            self.bytes = spare();
            self.bytes.clear();
            self.segment_bytes = bytes;
        }
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    fn takes(&self, bytes: usize) -> bool {
        let is_whole = self.segment_bytes > 0 && self.bytes.len().is_multiple_of(self.segment_bytes);
        let has_room = self.bytes.len() < DATAGRAMS_MAX * self.segment_bytes;
        is_whole && has_room && bytes <= self.segment_bytes && self.segment_bytes <= DATAGRAM_BYTES_MAX
    }

    /// Sends what waits.
    pub(crate) fn send(&mut self, ring: &mut Ring) {
        if !self.bytes.is_empty() {
            ring.send_segments(self.tag, self.file, std::mem::take(&mut self.bytes), self.segment_bytes);
        }
    }
}
