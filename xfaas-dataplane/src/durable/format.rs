//! The bytes of a segment: batches, each padded to whole pages, the first one its head. Arithmetic and checksums only.
//!
//! ```text
//! batch     u32 magic | u32 CRC-32C of the rest | u32 bytes of payload | u8 version | u8 kind | u16 shard | u64 sequence | u64 epoch
//!           | u64 segment | payload | zeros up to a multiple of 4,096
//! head      its payload: u16 shards | u8 kind of segment | u8 0 | u32 apps | u64 sequence that the log goes on with at most,
//!           and of each app u8 bytes of its name | name | u64 identity of its region
//! ```
//! A page is written once: a power cut in the middle of a write can harm no batch before it.

use crate::state::BATCH_HEAD_BYTES;

const MAGIC: u32 = u32::from_le_bytes(*b"XFLB");
const VERSION: u8 = 1;
/// What a batch is padded to: the page of the kernel's cache, and no less than the block of any disk.
pub(super) const PAGE_BYTES: usize = 4_096;

/// What a batch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BatchKind {
    Head = 1,
    Records = 2,
    /// The last one of a snapshot.
    End = 3,
}

/// What a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SegmentKind {
    /// Takes the shard's writes as they come.
    Writes = 1,
    /// All that the apps of its head hold: nothing before it is needed for them.
    Snapshot = 2,
}

/// Says which log a batch belongs to, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub shard: u16,
    pub epoch: u64,
    pub segment: u64,
    pub sequence: u64,
}

/// Fills in the head of a batch whose first `BATCH_HEAD_BYTES` are free, and pads it.
pub(super) fn seal(batch: &mut Vec<u8>, kind: BatchKind, place: &Place) {
    let payload_bytes = (batch.len() - BATCH_HEAD_BYTES) as u32;
    batch[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    batch[8..12].copy_from_slice(&payload_bytes.to_le_bytes());
    batch[12] = VERSION;
    batch[13] = kind as u8;
    batch[14..16].copy_from_slice(&place.shard.to_le_bytes());
    batch[16..24].copy_from_slice(&place.sequence.to_le_bytes());
    batch[24..32].copy_from_slice(&place.epoch.to_le_bytes());
    batch[32..40].copy_from_slice(&place.segment.to_le_bytes());
    let crc = crc32c::crc32c(&batch[8..]);
    batch[4..8].copy_from_slice(&crc.to_le_bytes());
    batch.resize(batch.len().next_multiple_of(PAGE_BYTES), 0);
}

/// A batch whose checksum holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch<'a> {
    pub kind: BatchKind,
    pub place: Place,
    pub payload: &'a [u8],
    /// Bytes it takes, padding included.
    pub bytes: usize,
}

/// The batch at the start of `bytes`. `None`: there is none, or it is damaged or of another version.
pub(super) fn open(bytes: &[u8]) -> Option<Batch<'_>> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    if u32_at(0)? != MAGIC {
        return None;
    }
    let end = BATCH_HEAD_BYTES.checked_add(u32_at(8)? as usize)?;
    let payload = bytes.get(BATCH_HEAD_BYTES..end)?;
    if crc32c::crc32c(&bytes[8..end]) != u32_at(4)? || bytes[12] != VERSION {
        return None;
    }
    let kind = match bytes[13] {
        1 => BatchKind::Head,
        2 => BatchKind::Records,
        3 => BatchKind::End,
        _ => return None,
    };
    let shard = u16::from_le_bytes([bytes[14], bytes[15]]);
    let place = Place { shard, sequence: u64_at(16)?, epoch: u64_at(24)?, segment: u64_at(32)? };
    Some(Batch { kind, place, payload, bytes: end.next_multiple_of(PAGE_BYTES) })
}

/// An app as a head names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeadApp {
    pub name: String,
    pub identity: u64,
}

/// What a segment's first batch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub shards: u16,
    pub kind: SegmentKind,
    /// Of a snapshot: the first batch behind it has this sequence or a smaller one, or a batch is missing.
    pub goes_on_at: u64,
    pub apps: Vec<HeadApp>,
}

impl Head {
    /// The sealed batch.
    pub fn encode(&self, place: &Place) -> Vec<u8> {
        let mut out = vec![0; BATCH_HEAD_BYTES];
        out.extend_from_slice(&self.shards.to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, 0]);
        out.extend_from_slice(&(self.apps.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.goes_on_at.to_le_bytes());
        for app in &self.apps {
            out.push(app.name.len() as u8);
            out.extend_from_slice(app.name.as_bytes());
            out.extend_from_slice(&app.identity.to_le_bytes());
        }
        seal(&mut out, BatchKind::Head, place);
        out
    }

    /// `None`: the payload is not one of this version.
    pub fn decode(payload: &[u8]) -> Option<Head> {
        let (fixed, mut rest) = payload.split_at_checked(16)?;
        let kind = match fixed[2] {
            1 => SegmentKind::Writes,
            2 => SegmentKind::Snapshot,
            _ => return None,
        };
        let mut apps = Vec::new();
        while let Some((&name_bytes, after)) = rest.split_first() {
            let (name, after) = after.split_at_checked(usize::from(name_bytes))?;
            let (identity, after) = after.split_first_chunk::<8>()?;
            apps.push(HeadApp { name: String::from_utf8(name.to_vec()).ok()?, identity: u64::from_le_bytes(*identity) });
            rest = after;
        }
        let counted = u32::from_le_bytes(*fixed[4..].first_chunk()?) as usize == apps.len();
        let goes_on_at = u64::from_le_bytes(*fixed[8..].first_chunk()?);
        counted.then_some(Head { shards: u16::from_le_bytes([fixed[0], fixed[1]]), kind, goes_on_at, apps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_batch_comes_back_and_no_flipped_bit_does(
            payload in vec(any::<u8>(), 0..5_000), sequence: u64, segment: u64, flip in any::<prop::sample::Index>(), bit in 0_u32..8,
        ) {
            let place = Place { shard: 3, epoch: 9, segment, sequence };
            let mut batch = vec![0; BATCH_HEAD_BYTES];
            batch.extend_from_slice(&payload);
            seal(&mut batch, BatchKind::Records, &place);
            prop_assert!(batch.len().is_multiple_of(PAGE_BYTES));
            let opened = open(&batch).unwrap();
            prop_assert_eq!((opened.kind, opened.place, opened.payload, opened.bytes), (BatchKind::Records, place, &payload[..], batch.len()));
            batch[flip.index(BATCH_HEAD_BYTES + payload.len())] ^= 1 << bit;
            prop_assert!(open(&batch).is_none());
        }

        #[test]
        fn a_head_comes_back(names in vec("[a-z]{1,64}", 0..5), goes_on_at: u64) {
            let apps = names.into_iter().map(|name| HeadApp { identity: name.len() as u64, name }).collect();
            let head = Head { shards: 2, kind: SegmentKind::Snapshot, goes_on_at, apps };
            let batch = head.encode(&Place { shard: 0, epoch: 1, segment: 2, sequence: 0 });
            prop_assert_eq!(Head::decode(open(&batch).unwrap().payload), Some(head));
        }
    }
}
