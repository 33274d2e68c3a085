//! Answers to datagrams, on their way out until the turn's end: those of one peer that are as long as each other leave in one send, since
//! the kernel's way out costs more than all the rest of a datagram. Holds bytes, sends nothing.

use crate::sys::Peer;
use std::net::IpAddr;

/// Peers that are told apart; one more is answered at once. The bits of a `u64`.
const OPEN_MAX: usize = 64;
/// Longest datagram that leaves with others: what fits in the least MTU of IPv6 (RFC 8200 section 5) with its headers, so that hardly any path refuses.
const SEGMENT_BYTES_MAX: usize = 1_232;
/// `UDP_MAX_SEGMENTS` of kernels before 6.9, include/linux/udp.h.
const SEGMENTS_MAX: usize = 64;
/// Bytes that leave together at most, and that a buffer for them holds.
const BATCH_BYTES_MAX: usize = 16 << 10;
/// Buffers made at start and kept.
const BUFFERS: usize = 32;

/// Answers to one peer, one behind the other: all of `segment_bytes`, but the last, which may be shorter.
pub(super) struct Batch {
    pub(super) peer: Peer,
    pub(super) bytes: Vec<u8>,
    pub(super) segment_bytes: usize,
}

impl Batch {
    fn takes(&self, peer: &Peer, answer: &[u8]) -> bool {
        let bytes = self.bytes.len() + answer.len();
        answer.len() <= self.segment_bytes
            && self.segment_bytes <= SEGMENT_BYTES_MAX
            && self.bytes.len().is_multiple_of(self.segment_bytes)
            && bytes <= BATCH_BYTES_MAX.min(SEGMENTS_MAX * self.segment_bytes)
            && self.peer == *peer
    }
}

/// The batches of one shard. Cost of an answer: one look-up and, from a peer's second on, a copy.
pub(super) struct Answers {
    open: [Option<Batch>; OPEN_MAX],
    /// Bit `i`: `open[i]` is some.
    used: u64,
    /// So that a batch allocates nothing.
    buffers: Vec<Vec<u8>>,
    /// Bytes of batches that were given out and not brought back.
    sending_bytes: usize,
}

impl Default for Answers {
    fn default() -> Answers {
        let buffers = (0..BUFFERS).map(|_| Vec::with_capacity(BATCH_BYTES_MAX)).collect();
        Answers { open: std::array::from_fn(|_| None), used: 0, buffers, sending_bytes: 0 }
    }
}

impl Answers {
    /// Takes an answer. Output: a batch that must leave first, if there is one, and a buffer that is no longer needed.
    pub(super) fn add(&mut self, peer: Peer, answer: Vec<u8>) -> (Option<Batch>, Option<Vec<u8>>) {
        let place = place_of(&peer);
        self.used |= 1 << place;
        if let Some(batch) = self.open[place].as_mut().filter(|batch| batch.takes(&peer, &answer)) {
            let mut given_up = answer;
            if batch.bytes.capacity() < BATCH_BYTES_MAX {
                let mut larger = self.buffers.pop().unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES_MAX));
                larger.extend_from_slice(&batch.bytes);
                larger.extend_from_slice(&given_up);
                given_up = std::mem::replace(&mut batch.bytes, larger);
            } else {
                batch.bytes.extend_from_slice(&given_up);
            }
            return (None, Some(given_up));
        }
        let segment_bytes = answer.len();
        let full = self.open[place].replace(Batch { peer, bytes: answer, segment_bytes });
        (full.map(|full| self.give_out(full)), None)
    }

    /// The next batch that waits.
    pub(super) fn take(&mut self) -> Option<Batch> {
        if self.used == 0 {
            return None;
        }
        let place = self.used.trailing_zeros() as usize;
        self.used &= self.used - 1;
        let batch = self.open[place].take();
        batch.map(|batch| self.give_out(batch))
    }

    /// Batches are counted by bytes: one whose segments are refused comes back as several buffers.
    fn give_out(&mut self, batch: Batch) -> Batch {
        self.sending_bytes += batch.bytes.len();
        batch
    }

    /// True when nothing waits or is being sent.
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0 && self.sending_bytes == 0
    }

    /// A buffer that was sent. Output: it, if it is none of ours.
    pub(super) fn keep(&mut self, mut buffer: Vec<u8>) -> Option<Vec<u8>> {
        self.sending_bytes = self.sending_bytes.saturating_sub(buffer.len());
        if buffer.capacity() != BATCH_BYTES_MAX || self.buffers.len() == BUFFERS {
            return Some(buffer);
        }
        buffer.clear();
        self.buffers.push(buffer);
        None
    }
}

/// Clients of one machine differ in their ports, those of many in their addresses.
fn place_of(peer: &Peer) -> usize {
    let address = match peer.address.ip() {
        IpAddr::V4(ip) => u32::from(ip),
        IpAddr::V6(ip) => ip.octets().chunks_exact(4).fold(0, |sum, part| sum ^ u32::from_be_bytes([part[0], part[1], part[2], part[3]])),
    };
    (address ^ address >> 8 ^ u32::from(peer.address.port())) as usize % OPEN_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> Peer {
        Peer { address: ([192, 0, 2, 1], port).into(), local: None }
    }

    /// What leaves, as the datagrams that it is cut into.
    fn datagrams(batch: &Batch) -> Vec<&[u8]> {
        batch.bytes.chunks(batch.segment_bytes).collect()
    }

    #[test]
    fn answers_of_a_length_leave_together_and_a_shorter_one_is_the_last() {
        let mut answers = Answers::default();
        for answer in [&b"one"[..], b"two", b"is"] {
            assert!(answers.add(peer(1), answer.to_vec()).0.is_none());
        }
        // Behind a shorter one nothing goes.
        let (left, _) = answers.add(peer(1), b"six".to_vec());
        assert_eq!(datagrams(&left.unwrap()), [&b"one"[..], b"two", b"is"]);
        // Nor a longer one.
        let (left, _) = answers.add(peer(1), b"seven".to_vec());
        assert_eq!(datagrams(&left.unwrap()), [b"six"]);
        assert_eq!(datagrams(&answers.take().unwrap()), [b"seven"]);
        assert!(answers.take().is_none());
    }

    #[test]
    fn nobody_gets_anothers_answer() {
        let mut answers = Answers::default();
        let mut sent: Vec<(u16, Vec<u8>)> = Vec::new();
        let mut leave = |batch: &Batch| {
            sent.extend(datagrams(batch).into_iter().map(|datagram| (batch.peer.address.port(), datagram.to_vec())));
        };
        for round in 0..3 {
            for port in 1..=1_000_u16 {
                let (left, _) = answers.add(peer(port), format!("{round} {port:5}").into_bytes());
                left.iter().for_each(&mut leave);
            }
        }
        while let Some(batch) = answers.take() {
            leave(&batch);
        }
        assert_eq!(sent.len(), 3_000);
        assert!(sent.iter().all(|(port, bytes)| bytes.ends_with(format!("{port:5}").as_bytes())));
    }

    #[test]
    fn a_batch_is_no_larger_than_the_kernel_takes() {
        for (bytes, most) in [(1, 64), (60, 64), (1_232, 13), (1_233, 1), (60_000, 1)] {
            let mut answers = Answers::default();
            let count = (0..1_000).find(|_| answers.add(peer(1), vec![0; bytes]).0.is_some()).unwrap();
            assert_eq!(count, most, "of {bytes} bytes");
        }
    }

    #[test]
    fn buffers_are_used_again() {
        let mut answers = Answers::default();
        assert!(answers.add(peer(2), b"a".to_vec()).1.is_none());
        let spare = answers.add(peer(2), b"b".to_vec()).1.unwrap();
        assert_eq!(spare, b"a");
        let batch = answers.take().unwrap();
        assert_eq!(answers.buffers.len(), BUFFERS - 1);
        assert!(!answers.is_empty(), "it is being sent");
        assert!(answers.keep(batch.bytes).is_none());
        assert!(answers.is_empty());
        assert_eq!(answers.buffers.len(), BUFFERS);
        assert!(answers.keep(spare).is_some());
    }
}
