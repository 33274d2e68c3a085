//! What one shard's log does next: which batch is written where, and what is safe by then. Does no I/O itself, so that tests can stand
//! for the disk: `begin_write` says what to write, the caller does it, and `on_written` is told how it went.
//!
//! One write is under way at a time; what comes meanwhile gathers for the next one. So when a batch is on the disk, all before it are, and
//! a batch that does not hold is either the last one or damage.
//!
//! A write that failed may or may not have reached the disk, and another sync of the same file may claim success for pages that are lost
//! (Rebello et al., "Can applications recover from fsync failures?", USENIX ATC 2020). So its segment is left alone and the same batch
//! is written again into a new one.

use super::format::{BatchKind, Place, seal};
use crate::state::Journal;

/// Bytes after which a segment is left for the next one.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes of a segment in use at which the next one is asked for.
const PREPARE_AT_BYTES: u64 = SEGMENT_BYTES / 2;
/// A write that failed is tried again after so long.
const RETRY_NS: u64 = 100_000_000;

/// A segment that is open for writing.
struct Segment<F> {
    number: u64,
    file: F,
    offset: u64,
    head_bytes: u64,
}

/// A batch that is to be in the file, and on the disk, before `on_written` is called.
pub struct Write<F> {
    pub file: F,
    pub offset: u64,
    pub buffer: Vec<u8>,
}

/// A new segment is to be made, `Log::on_segment` to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentWanted {
    pub number: u64,
}

/// A segment that is not written to any more, and that was made longer than it became.
#[derive(Debug, PartialEq, Eq)]
pub struct RetiredSegment<F> {
    pub number: u64,
    pub file: F,
    /// Nothing that counts lies behind this. `None`: it has its head only, and nobody needs it.
    pub used_bytes: Option<u64>,
}

/// A batch, and the position of its last record.
struct Batch {
    sequence: u64,
    position: u64,
    buffer: Vec<u8>,
}

/// The write under way.
#[derive(Clone, Copy)]
struct Writing {
    /// Of its batch.
    sequence: u64,
    /// Of the batch's last record.
    position: u64,
    bytes: u64,
}

/// The log of one shard. `F`: what names an open file.
pub struct Log<F> {
    shard: u16,
    epoch: u64,
    active: Option<Segment<F>>,
    /// Made ahead of its use.
    next: Option<Segment<F>>,
    /// To be cut to what is used of them.
    retired: Vec<RetiredSegment<F>>,
    /// Asked for and not there yet.
    awaited: Option<u64>,
    next_number: u64,
    /// Segments below it are not to be written any more.
    number_min: u64,
    /// Of the next batch.
    sequence: u64,
    writing: Option<Writing>,
    /// Waits for a segment: there was no room, or its write failed.
    unwritten: Option<Batch>,
    synced: u64,
    spare: Vec<u8>,
    failing_since_ns: Option<u64>,
    retry_at_ns: u64,
    bytes_since_snapshot: u64,
}

impl<F: Clone> Log<F> {
    /// A log without a segment. `number`: of the first segment; `sequence`: of the first batch.
    pub fn new(shard: u16, epoch: u64, number: u64, sequence: u64) -> Log<F> {
        Log {
            shard,
            epoch,
            active: None,
            next: None,
            retired: Vec::new(),
            awaited: None,
            next_number: number,
            number_min: 0,
            sequence,
            writing: None,
            unwritten: None,
            synced: 0,
            spare: Vec::new(),
            failing_since_ns: None,
            retry_at_ns: 0,
            bytes_since_snapshot: 0,
        }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// All records up to this position are on the disk.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// The largest sequence that the first batch of a segment made now can have.
    pub fn goes_on_at(&self) -> u64 {
        self.unwritten.as_ref().map_or(self.sequence, |batch| batch.sequence)
    }

    /// Since when nothing could be written.
    pub fn failing_since_ns(&self) -> Option<u64> {
        self.failing_since_ns
    }

    /// True while records are not on the disk yet.
    pub fn is_behind(&self, journal: &Journal) -> bool {
        self.synced < journal.position()
    }

    /// Bytes of the segments since the last snapshot of all, or since the start.
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.bytes_since_snapshot
    }

    /// True when writes have somewhere to go.
    pub fn has_segment(&self) -> bool {
        self.active.is_some() || self.next.is_some()
    }

    /// Numbers for a snapshot that is about to be made and for the segment after it, which takes all writes from now on: those of before
    /// stay below the snapshot. Ask for the segment with `next_segment`, or make it and tell `on_segment`.
    pub fn begin_snapshot(&mut self) -> (u64, u64) {
        let snapshot = self.next_number;
        self.next_number = snapshot + 2;
        self.number_min = snapshot + 1;
        self.retire_active();
        let next = self.next.take();
        self.retire(next);
        self.awaited = Some(snapshot + 1);
        (snapshot, snapshot + 1)
    }

    /// The same for a snapshot of all logged apps, which lets all segments before it go.
    pub fn begin_snapshot_of_all(&mut self) -> (u64, u64) {
        self.bytes_since_snapshot = 0;
        self.begin_snapshot()
    }

    /// The next segment to be made, if one is needed and not asked for yet.
    pub fn next_segment(&mut self, now_ns: u64) -> Option<SegmentWanted> {
        let is_wanted = self.unwritten.is_some() || self.failing_since_ns.is_some();
        let is_late = is_wanted && self.active.is_none() && now_ns >= self.retry_at_ns;
        let is_soon = self.active.as_ref().is_some_and(|active| active.offset > PREPARE_AT_BYTES) && now_ns >= self.retry_at_ns;
        if self.awaited.is_some() || self.next.is_some() || !(is_late || is_soon) {
            return None;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.awaited = Some(number);
        Some(SegmentWanted { number })
    }

    /// A segment is there, its head written and synced.
    pub fn on_segment(&mut self, number: u64, file: F, head_bytes: u64) {
        if self.awaited == Some(number) {
            self.awaited = None;
        }
        let segment = Segment { number, file, offset: head_bytes, head_bytes };
        if number < self.number_min {
            self.retire(Some(segment));
        } else {
            self.next = Some(segment);
            self.bytes_since_snapshot += head_bytes;
            if self.unwritten.is_none() && self.writing.is_none() {
                self.failing_since_ns = None; // all that failed was to make this
            }
        }
    }

    /// A segment cannot be made.
    pub fn on_no_segment(&mut self, number: u64, now_ns: u64) {
        if self.awaited == Some(number) {
            self.awaited = None;
        }
        self.retry_at_ns = now_ns + RETRY_NS;
        if self.active.is_none() {
            self.failing_since_ns = self.failing_since_ns.or(Some(now_ns));
        }
    }

    /// The next write, if one is due: at most one is under way.
    pub fn begin_write(&mut self, journal: &mut Journal, now_ns: u64) -> Option<Write<F>> {
        if self.writing.is_some() || (self.failing_since_ns.is_some() && now_ns < self.retry_at_ns && self.next.is_none()) {
            return None;
        }
        if self.unwritten.is_none() {
            if journal.waiting_bytes() == 0 {
                return None;
            }
            let buffer = journal.take(std::mem::take(&mut self.spare));
            self.unwritten = Some(Batch { sequence: self.sequence, position: journal.position(), buffer });
            self.sequence += 1;
        }
        let batch_bytes = self.unwritten.as_ref().map_or(0, |batch| batch.buffer.len() as u64);
        // A batch that no segment has room for gets one of its own, which grows.
        let has_room = |segment: &Segment<F>| segment.offset == segment.head_bytes || segment.offset + batch_bytes <= SEGMENT_BYTES;
        if !self.active.as_ref().is_some_and(has_room) {
            self.retire_active();
            self.active = self.next.take();
        }
        let active = self.active.as_mut()?;
        let Batch { sequence, position, mut buffer } = self.unwritten.take()?;
        let place = Place { shard: self.shard, epoch: self.epoch, segment: active.number, sequence };
        unpad(&mut buffer);
        seal(&mut buffer, BatchKind::Records, &place);
        let offset = active.offset;
        active.offset += buffer.len() as u64;
        self.bytes_since_snapshot += buffer.len() as u64;
        self.writing = Some(Writing { sequence, position, bytes: buffer.len() as u64 });
        Some(Write { file: active.file.clone(), offset, buffer })
    }

    /// The write under way is over. `done`: every byte is on the disk.
    pub fn on_written(&mut self, buffer: Vec<u8>, done: bool, now_ns: u64) {
        let Writing { sequence, position, bytes } = self.writing.take().expect("one write is under way when one ends");
        if done {
            self.synced = position;
            self.spare = buffer;
            self.failing_since_ns = None;
            return;
        }
        // Unless a snapshot has begun meanwhile, the segment is still the active one, and it ends before this batch.
        if let Some(active) = &mut self.active {
            active.offset -= bytes;
        }
        self.retire_active();
        self.unwritten = Some(Batch { sequence, position, buffer });
        self.fail(now_ns);
    }

    fn retire_active(&mut self) {
        let active = self.active.take();
        self.retire(active);
    }

    /// A write to it may be under way: that one ends where the used bytes do.
    fn retire(&mut self, segment: Option<Segment<F>>) {
        let Some(Segment { number, file, offset, head_bytes }) = segment else { return };
        self.retired.push(RetiredSegment { number, file, used_bytes: (offset > head_bytes).then_some(offset) });
    }

    /// A segment to be cut, if there is one: what was set aside for it and not used is room for others. Should that be lost in a crash, the segment is
    /// as it was, and reads the same.
    pub fn take_retired(&mut self) -> Option<RetiredSegment<F>> {
        self.retired.pop()
    }

    /// It could not be cut now.
    pub fn give_back(&mut self, retired: RetiredSegment<F>) {
        self.retired.push(retired);
    }

    fn fail(&mut self, now_ns: u64) {
        self.retry_at_ns = match self.failing_since_ns {
            None => now_ns, // the first time at once: another segment may lie elsewhere
            Some(_) => now_ns + RETRY_NS,
        };
        self.failing_since_ns = self.failing_since_ns.or(Some(now_ns));
    }
}

/// Takes the padding off a batch that was sealed before.
fn unpad(batch: &mut Vec<u8>) {
    if let Some(sealed) = super::format::open(batch) {
        let bytes = crate::state::BATCH_HEAD_BYTES + sealed.payload.len();
        batch.truncate(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::open;
    use super::*;
    use crate::state::ShardState;

    struct Bench {
        log: Log<u32>,
        state: ShardState,
        _directory: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Bench {
            let directory = tempfile::tempdir().unwrap();
            let mut state = ShardState::new(directory.path().join("regions"), 0, 4 << 20);
            state.open_app(0, "a").unwrap();
            state.journal.log_app(0, "a", 1);
            let mut log = Log::new(0, 1, 1, 1);
            let (_, number) = log.begin_snapshot();
            log.on_segment(number, 100, 4_096);
            Bench { log, state, _directory: directory }
        }

        fn store(&mut self, value: &[u8]) {
            let session = xfaas_common::ids::SessionId::new(b"s").unwrap();
            let key = crate::state::SessionKey { app: 0, session: &session, table_hash: 1 };
            self.state.store(&key, &mut None, b"k", value, 2 << 20).unwrap();
        }

        fn write(&mut self, now_ns: u64) -> Option<Write<u32>> {
            self.log.begin_write(&mut self.state.journal, now_ns)
        }
    }

    #[test]
    fn writes_gather_while_one_is_under_way() {
        let mut bench = Bench::new();
        assert!(bench.write(0).is_none(), "nothing to write");
        bench.store(b"1");
        let first = bench.write(0).unwrap();
        assert_eq!((first.file, first.offset, first.buffer.len()), (100, 4_096, 4_096));
        bench.store(b"2");
        bench.store(b"3");
        assert!(bench.write(0).is_none(), "one is under way");
        assert_eq!(bench.log.synced(), 0);
        bench.log.on_written(first.buffer, true, 0);
        assert_eq!(bench.log.synced(), 1);
        let second = bench.write(0).unwrap();
        assert_eq!((second.offset, open(&second.buffer).unwrap().place.sequence), (8_192, 2));
        bench.log.on_written(second.buffer, true, 0);
        assert_eq!(bench.log.synced(), 3);
        assert!(!bench.log.is_behind(&bench.state.journal));
    }

    #[test]
    fn a_batch_that_failed_is_written_again_into_a_new_segment_and_nothing_is_safe_before() {
        let mut bench = Bench::new();
        bench.store(b"1");
        let write = bench.write(0).unwrap();
        let payload = open(&write.buffer).unwrap().payload.to_vec();
        bench.log.on_written(write.buffer, false, 5);
        assert_eq!((bench.log.synced(), bench.log.failing_since_ns()), (0, Some(5)));
        bench.store(b"2");
        assert!(bench.write(5).is_none(), "the old segment is left alone");
        let wanted = bench.log.next_segment(5).unwrap();
        assert_eq!(bench.log.next_segment(5), None, "asked once");
        bench.log.on_no_segment(wanted.number, 6);
        assert_eq!(bench.log.next_segment(7), None, "not at once again");
        let wanted = bench.log.next_segment(6 + RETRY_NS).unwrap();
        bench.log.on_segment(wanted.number, 200, 4_096);
        let again = bench.write(6 + RETRY_NS).unwrap();
        let batch = open(&again.buffer).unwrap();
        assert_eq!((again.file, batch.place.segment, batch.place.sequence, batch.payload), (200, wanted.number, 1, &payload[..]));
        bench.log.on_written(again.buffer, true, 0);
        assert_eq!((bench.log.synced(), bench.log.failing_since_ns()), (1, None));
        let rest = bench.write(0).unwrap();
        bench.log.on_written(rest.buffer, true, 0);
        assert_eq!(bench.log.synced(), 2);
    }

    #[test]
    fn what_was_set_aside_for_a_segment_and_not_used_is_given_back_when_it_is_left() {
        let mut bench = Bench::new();
        let retired = |number, file, used_bytes| Some(RetiredSegment { number, file, used_bytes });
        let (_, second) = bench.log.begin_snapshot();
        assert_eq!(bench.log.take_retired(), retired(2, 100, None), "nothing was written to it");
        let (_, third) = bench.log.begin_snapshot();
        bench.log.on_segment(second, 200, 4_096);
        assert_eq!(bench.log.take_retired(), retired(second, 200, None), "it came too late");
        bench.log.on_segment(third, 300, 4_096);
        bench.store(b"1");
        let write = bench.write(0).unwrap();
        let (_, fourth) = bench.log.begin_snapshot();
        let left = bench.log.take_retired();
        assert_eq!(left, retired(third, 300, Some(8_192)), "with the write that is under way");
        bench.log.give_back(left.unwrap());
        assert_eq!(bench.log.take_retired(), retired(third, 300, Some(8_192)));
        bench.log.on_written(write.buffer, false, 0);
        bench.log.on_segment(fourth, 400, 4_096);
        let again = bench.write(0).unwrap();
        bench.log.on_written(again.buffer, true, 0);
        bench.store(b"2");
        let write = bench.write(0).unwrap();
        assert_eq!((again.file, write.file), (400, 400));
        bench.log.on_written(write.buffer, false, 0);
        assert_eq!(bench.log.take_retired(), retired(fourth, 400, Some(8_192)), "without what may have failed half way");
        assert_eq!(bench.log.take_retired(), None);
    }

    #[test]
    fn a_full_segment_is_left_for_one_made_ahead() {
        let mut bench = Bench::new();
        let value = vec![7; 1 << 20];
        let mut files = Vec::new();
        for turn in 0..100 {
            bench.store(&value);
            if let Some(wanted) = bench.log.next_segment(turn) {
                bench.log.on_segment(wanted.number, 101, 4_096);
            }
            let write = bench.write(turn).expect("a segment is always there");
            assert!(write.offset + write.buffer.len() as u64 <= SEGMENT_BYTES);
            files.push(write.file);
            bench.log.on_written(write.buffer, true, turn);
        }
        assert!(files.is_sorted() && files.contains(&100) && files.contains(&101));
    }

    #[test]
    fn writes_after_a_snapshot_began_go_behind_it() {
        let mut bench = Bench::new();
        bench.store(b"1");
        let before = bench.write(0).unwrap();
        let (snapshot, behind) = bench.log.begin_snapshot();
        assert!(behind > snapshot);
        bench.store(b"2");
        bench.log.on_written(before.buffer, true, 0);
        assert!(bench.write(0).is_none(), "its segment is not there yet");
        bench.log.on_segment(behind, 300, 4_096);
        assert_eq!(open(&bench.write(0).unwrap().buffer).unwrap().place.segment, behind);
    }
}
