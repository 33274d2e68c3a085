//! What the kernel reads or writes until an operation's completion, by the number that the operation carries. Called by `ring`.
//!
//! Places are filled field by field and never moved: a send that is put together elsewhere and then copied here is loaded in other pieces than it was
//! stored in a moment ago, for which the processor waits until the stores are in its cache.

use super::peer::Outgoing;
use super::ring::{FixedFile, Tag};

/// A send or a write under way.
#[derive(Default)]
pub(super) struct Sending {
    pub(super) tag: Tag,
    pub(super) buffer: Vec<u8>,
    /// Of a datagram: the kernel reads its address, too.
    pub(super) peer: Option<Box<Outgoing>>,
    /// Of a send in pieces: where the next one goes.
    pub(super) stream: Option<FixedFile>,
    /// Bytes that left in the pieces before.
    pub(super) sent_bytes: u32,
}

#[derive(Default)]
pub(super) struct InFlight {
    places: Vec<Sending>,
    free: Vec<u32>,
}

impl InFlight {
    /// Grows beyond `places` when it must.
    pub(super) fn with_capacity(places: usize) -> InFlight {
        InFlight { places: Vec::with_capacity(places), free: Vec::with_capacity(places) }
    }

    /// Output: the number of the place, below 2^32, and the place.
    #[inline]
    pub(super) fn put(&mut self, tag: Tag, buffer: Vec<u8>, peer: Option<Box<Outgoing>>) -> (u64, &mut Sending) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Sending::default());
            (self.places.len() - 1) as u32
        });
        let sending = &mut self.places[place as usize];
        sending.tag = tag;
        sending.buffer = buffer;
        sending.peer = peer;
        (sending.stream, sending.sent_bytes) = (None, 0);
        (u64::from(place), sending)
    }

    /// Where the send in pieces at `place` goes.
    #[inline]
    pub(super) fn stream(&self, place: u64) -> Option<FixedFile> {
        self.places[place as usize].stream
    }

    /// What of the buffer there has not left yet.
    pub(super) fn rest(&self, place: u64) -> &[u8] {
        let sending = &self.places[place as usize];
        sending.buffer.get(sending.sent_bytes as usize..).unwrap_or_default()
    }

    /// So many bytes more have left. Output: what the operation is called.
    pub(super) fn advance(&mut self, place: u64, bytes: u32) -> Tag {
        let sending = &mut self.places[place as usize];
        sending.sent_bytes = sending.sent_bytes.saturating_add(bytes);
        sending.tag
    }

    /// What was put there. To be called once for each `put`: the place is free then.
    #[inline]
    pub(super) fn take(&mut self, place: u64) -> Sending {
        let sending = std::mem::take(&mut self.places[place as usize]);
        self.free.push(place as u32);
        sending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_used_again_when_it_was_taken() {
        let mut in_flight = InFlight::with_capacity(1);
        let (first, _) = in_flight.put(Tag(1), vec![1], None);
        let (second, sending) = in_flight.put(Tag(2), vec![2], Some(Outgoing::new()));
        assert_eq!((first, second, sending.tag, &sending.buffer[..]), (0, 1, Tag(2), &[2][..]));
        let taken = in_flight.take(first);
        assert_eq!((taken.tag, taken.buffer, taken.peer.is_none()), (Tag(1), vec![1], true));
        assert_eq!(in_flight.put(Tag(3), vec![3], None).0, first);
        assert_eq!(in_flight.put(Tag(4), Vec::new(), None).0, 2);
        assert_eq!((in_flight.take(second).peer.is_some(), in_flight.take(first).tag), (true, Tag(3)));
    }
}
