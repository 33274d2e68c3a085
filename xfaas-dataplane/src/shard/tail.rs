//! Remembers where the time of requests went: of the slowest ones and of a sample of all. The shard writes into a ring of its own, control reads it
//! from outside; neither waits for the other. docs/ARCHITECTURE.md, "The tail".

use super::counters::Count;
use crate::session::Outcome;
use crate::sys::clock;
use crate::worker::{Call, CoreWork, Origin, STAMPED, Stages};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use xfaas_common::ids::CoreIndex;

/// Requests remembered on each side of a shard's ring. At 200,000 requests/s the slowest hundredth fills it in a second.
const ENTRIES: usize = 2_048;
/// One request in so many is remembered whatever it took.
pub const SAMPLED_ONE_IN: u64 = 128;
/// Requests of one turn that may turn out to be slow.
const PENDING_MAX: usize = 1_024;
/// Beyond these, of one turn: those of the sample, and those that came before the turn, which took longer than all that came with it.
const PENDING_BEYOND_MAX: usize = 256;
/// Of a session's ID, so many bytes.
const SESSION_BYTES: usize = 24;
/// The slowest one of so many is remembered.
const SLOW_ONE_IN: u64 = 100;
/// How fast the threshold follows: a request over it raises it by this part.
const STEP_SHIFT: u32 = 6;
/// The threshold has this many bits below a nanosecond, so that small steps are not lost.
const FRACTION_BITS: u32 = 16;

/// The first bytes of a session's ID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionPrefix {
    length: u8,
    bytes: [u8; SESSION_BYTES],
}

impl SessionPrefix {
    fn of(session: &[u8]) -> SessionPrefix {
        let length = session.len().min(SESSION_BYTES);
        let mut bytes = [0; SESSION_BYTES];
        bytes[..length].copy_from_slice(&session[..length]);
        SessionPrefix { length: length as u8, bytes }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    fn words(&self) -> [u64; 3] {
        std::array::from_fn(|word| u64::from_le_bytes(*self.bytes[word * 8..].first_chunk().expect("three words")))
    }
}

/// What is known of one request. Times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TailEntry {
    /// When the shard found its last bytes, monotonic clock.
    pub handed_ns: u64,
    pub function: u16,
    pub is_datagram: bool,
    /// It came from another shard.
    pub is_forwarded: bool,
    pub is_ok: bool,
    /// It is among the slowest, and so in that ring, whether in the sample or not.
    pub is_slow: bool,
    /// Times its guest was entered.
    pub slices: u32,
    pub session: SessionPrefix,
    /// From the XDP program to the shard; 0 where that is not known.
    pub network_ns: u64,
    /// It waited while the shard worked on what came with it.
    pub turn_ns: u64,
    pub decode_ns: u64,
    /// Until a worker was there: queue, Fork, a mailbox.
    pub worker_ns: u64,
    pub guest_ns: u64,
    /// Between the guest's slices: locks, the primary, others' slices.
    pub parked_ns: u64,
    /// Of that, for locks.
    pub lock_ns: u64,
    /// From the guest's end to the reply in the kernel's hands.
    pub send_ns: u64,
    /// What else the core did meanwhile and in the turn before.
    pub other: CoreWork,
}

impl TailEntry {
    /// From the first stamp to the last.
    pub fn total_ns(&self) -> u64 {
        self.network_ns + self.turn_ns + self.decode_ns + self.worker_ns + self.guest_ns + self.parked_ns + self.send_ns
    }
}

const WORDS: usize = 19;

impl TailEntry {
    fn to_words(&self) -> [u64; WORDS] {
        let flags =
            u64::from(self.is_datagram) | u64::from(self.is_forwarded) << 1 | u64::from(self.is_ok) << 2 | u64::from(self.is_slow) << 3;
        let session = self.session.words();
        [
            self.handed_ns,
            u64::from(self.function) | flags << 16 | u64::from(self.session.length) << 24 | u64::from(self.slices) << 32,
            session[0],
            session[1],
            session[2],
            self.network_ns,
            self.turn_ns,
            self.decode_ns,
            self.worker_ns,
            self.guest_ns,
            self.parked_ns,
            self.lock_ns,
            self.send_ns,
            self.other.fork_ns,
            self.other.slices_ns,
            self.other.log_ns,
            self.other.checkpoints_ns,
            self.other.rests_ns,
            self.other.chores_ns,
        ]
    }

    fn of_words(words: &[u64; WORDS]) -> TailEntry {
        let packed = words[1];
        let mut bytes = [0; SESSION_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(&words[2..5]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let session = SessionPrefix { length: (packed >> 24) as u8 & 0x1F, bytes };
        TailEntry {
            handed_ns: words[0],
            function: packed as u16,
            is_datagram: packed >> 16 & 1 != 0,
            is_forwarded: packed >> 17 & 1 != 0,
            is_ok: packed >> 18 & 1 != 0,
            is_slow: packed >> 19 & 1 != 0,
            slices: (packed >> 32) as u32,
            session,
            network_ns: words[5],
            turn_ns: words[6],
            decode_ns: words[7],
            worker_ns: words[8],
            guest_ns: words[9],
            parked_ns: words[10],
            lock_ns: words[11],
            send_ns: words[12],
            other: CoreWork {
                fork_ns: words[13],
                slices_ns: words[14],
                log_ns: words[15],
                checkpoints_ns: words[16],
                rests_ns: words[17],
                chores_ns: words[18],
            },
        }
    }
}

/// One place of a ring: its number plus 1 while it is whole, and the entry.
#[derive(Default)]
struct Place {
    number: AtomicU64,
    words: [AtomicU64; WORDS],
}

/// The last entries of one kind. One thread writes, any reads.
pub struct TailRing {
    places: Box<[Place]>,
    written: AtomicU64,
}

impl Default for TailRing {
    fn default() -> TailRing {
        TailRing { places: (0..ENTRIES).map(|_| Place::default()).collect(), written: AtomicU64::new(0) }
    }
}

impl TailRing {
    /// Called by the one writer.
    pub(crate) fn push(&self, entry: &TailEntry) {
        let number = self.written.load(Ordering::Relaxed);
        let place = &self.places[number as usize % ENTRIES];
        place.number.store(0, Ordering::Relaxed);
        // A reader that sees a word of the new entry also sees that the place is not whole.
        fence(Ordering::Release);
        for (to, word) in place.words.iter().zip(entry.to_words()) {
            to.store(word, Ordering::Relaxed);
        }
        place.number.store(number + 1, Ordering::Release);
        self.written.store(number + 1, Ordering::Release);
    }

    /// The number of the next entry.
    pub fn end(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Appends the entries from number `from` on that are still there. Output: the number of the next one.
    pub fn read(&self, from: u64, entries: &mut Vec<TailEntry>) -> u64 {
        let end = self.end();
        for number in from.max(end.saturating_sub(ENTRIES as u64))..end {
            let place = &self.places[number as usize % ENTRIES];
            let is_whole = |order| place.number.load(order) == number + 1;
            if !is_whole(Ordering::Acquire) {
                continue; // written over meanwhile
            }
            let words = std::array::from_fn(|word| place.words[word].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if is_whole(Ordering::Relaxed) {
                entries.push(TailEntry::of_words(&words));
            }
        }
        end
    }
}

/// What a shard shows of its requests' times.
#[derive(Default)]
pub struct TailView {
    /// The slowest hundredth, about.
    pub slow: TailRing,
    /// One in `SAMPLED_ONE_IN`.
    pub sample: TailRing,
    /// Of turns with more requests than there was room for, those that would have been slow.
    pub dropped: Count,
}

/// Follows the time that only one request in `SLOW_ONE_IN` exceeds: a request over it raises it by a step, one below lowers it by a ninety-ninth of
/// that, so it rests where these balance. Cost: a few operations.
#[derive(Debug)]
struct Threshold(u64);

impl Threshold {
    fn is_exceeded_by(&mut self, duration_ns: u64) -> bool {
        let step = (self.0 >> STEP_SHIFT).max(SLOW_ONE_IN);
        let is_over = duration_ns > self.ns();
        self.0 = if is_over { self.0 + step } else { self.0 - step / (SLOW_ONE_IN - 1) };
        is_over
    }

    fn ns(&self) -> u64 {
        self.0 >> FRACTION_BITS
    }
}

/// One request in `SAMPLED_ONE_IN`, but not every 128th: loads have periods of their own. The multiples of the golden ratio are spread evenly (Knuth, TAOCP
/// volume 3, section 6.4).
fn is_sampled(request: u64) -> bool {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    request.wrapping_mul(GOLDEN) < u64::MAX / SAMPLED_ONE_IN
}

/// A request whose reply is not in the kernel's hands, so nobody can tell yet whether it is among the slowest.
struct Pending {
    entry: TailEntry,
    /// Its guest was left.
    left_ns: u64,
    is_sampled: bool,
    may_be_slow: bool,
}

/// A shard's own part: what may have to be remembered, until its reply is sent.
pub(super) struct Tail {
    /// The turn began.
    pub(super) turn_ns: u64,
    /// So far, and when the turn before this one began.
    pub(super) work: CoreWork,
    work_at_turn: CoreWork,
    pub(super) work_before: CoreWork,
    threshold: Threshold,
    requests: u64,
    pending: Vec<Pending>,
    /// Requests of this turn that could have been slow and for which there was no room in `pending`.
    roomless: u64,
}

impl Default for Tail {
    fn default() -> Tail {
        Tail {
            turn_ns: 0,
            work: CoreWork::default(),
            work_at_turn: CoreWork::default(),
            work_before: CoreWork::default(),
            threshold: Threshold(100_000 << FRACTION_BITS),
            requests: 0,
            pending: Vec::with_capacity(PENDING_MAX + PENDING_BEYOND_MAX),
            roomless: 0,
        }
    }
}

impl Tail {
    pub(super) fn begin_turn(&mut self, now_ns: u64) {
        self.turn_ns = now_ns;
        self.work_before = std::mem::replace(&mut self.work_at_turn, self.work);
    }

    /// True while requests wait to be told when the kernel had their replies: only while somebody traces.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// All replies so far are in the kernel's hands: now the totals are known, and with them which requests were slow.
    #[cold]
    pub(super) fn publish(&mut self, sent_ns: u64, view: &TailView) {
        if sent_ns.saturating_sub(self.turn_ns) > self.threshold.ns() {
            view.dropped.add(self.roomless);
        }
        self.roomless = 0;
        for Pending { mut entry, left_ns, is_sampled, may_be_slow } in self.pending.drain(..) {
            entry.send_ns = sent_ns.saturating_sub(left_ns);
            entry.is_slow = may_be_slow && self.threshold.is_exceeded_by(entry.total_ns());
            if entry.is_slow {
                view.slow.push(&entry);
            }
            if is_sampled {
                view.sample.push(&entry);
            }
        }
    }

    /// The stamps of a request that was just understood; the shard turned to it at `begun_ns`.
    pub(super) fn stages(&self, core: CoreIndex, begun_ns: u64) -> Stages {
        if !STAMPED {
            return Stages::default();
        }
        Stages {
            handed_ns: self.turn_ns,
            begun_ns,
            decoded_ns: clock::quick_ns(),
            core: core.0,
            work_before: self.work_before,
            ..Stages::default()
        }
    }

    /// A call is over, at `now_ns`: is it to be kept until its reply is sent? Cost while nobody traces, when nothing is: that of the threshold.
    #[inline]
    pub(super) fn wants(&mut self, call: &Call, now_ns: u64, is_traced: bool) -> bool {
        if call.stages.entered_ns == 0 {
            return false; // nothing ran
        }
        if !is_traced {
            // Not the total, but near enough for the next trace to begin with.
            self.threshold.is_exceeded_by(now_ns.saturating_sub(call.stages.handed_ns));
        }
        is_traced
    }

    /// `seen_ns`: when the kernel program saw its packet, if it did.
    #[cold]
    pub(super) fn keep(&mut self, call: &Call, outcome: &Outcome, core: CoreIndex, seen_ns: Option<u64>) {
        let stages = &call.stages;
        let parked_ns = stages.left_ns.saturating_sub(stages.entered_ns).saturating_sub(stages.guest_ns);
        let entry = TailEntry {
            handed_ns: stages.handed_ns,
            function: call.function,
            is_datagram: matches!(call.origin, Origin::Datagram { .. }),
            is_forwarded: call.served_by != stages.core,
            is_ok: *outcome == Outcome::Replied,
            is_slow: false,
            slices: stages.slices,
            session: SessionPrefix::of(call.session.as_bytes()),
            network_ns: seen_ns.map_or(0, |seen_ns| stages.handed_ns.saturating_sub(seen_ns)),
            turn_ns: stages.begun_ns.saturating_sub(stages.handed_ns),
            decode_ns: stages.decoded_ns.saturating_sub(stages.begun_ns),
            worker_ns: stages.entered_ns.saturating_sub(stages.decoded_ns),
            guest_ns: stages.guest_ns,
            parked_ns,
            // A wait is told by the kernel's clock, stages by the counter that stands in for it within a turn: they differ by a little.
            lock_ns: call.waited_ns.min(parked_ns),
            send_ns: 0,
            // A datagram that was forwarded ends on another core than it came to, which did other work.
            other: if stages.core == core.0 { self.work.since(&stages.work_before) } else { CoreWork::default() },
        };
        self.hold(entry, stages.left_ns);
    }

    /// One of the sample that there was no room for otherwise stands for the others of its kind, and so is not slow: nothing is known of them.
    fn hold(&mut self, entry: TailEntry, left_ns: u64) {
        self.requests += 1;
        let is_sampled = is_sampled(self.requests);
        let may_be_slow = self.pending.len() < PENDING_MAX || entry.handed_ns < self.turn_ns;
        let has_room = self.pending.len() < PENDING_MAX + PENDING_BEYOND_MAX;
        if has_room && (may_be_slow || is_sampled) {
            self.pending.push(Pending { entry, left_ns, is_sampled, may_be_slow });
        }
        self.roomless += u64::from(!(has_room && may_be_slow));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> TailEntry {
        TailEntry {
            handed_ns: number,
            function: 7,
            is_datagram: number.is_multiple_of(2),
            is_ok: true,
            is_slow: number.is_multiple_of(3),
            slices: 3,
            session: SessionPrefix::of(b"somebody"),
            guest_ns: number * 2,
            other: CoreWork { fork_ns: 1, slices_ns: 2, log_ns: 3, checkpoints_ns: 4, rests_ns: 5, chores_ns: 6 },
            ..TailEntry::default()
        }
    }

    #[test]
    fn what_is_pushed_is_read_once_and_the_oldest_go_first() {
        let ring = TailRing::default();
        let mut read = Vec::new();
        assert_eq!(ring.read(0, &mut read), 0);
        (0..3).for_each(|number| ring.push(&entry(number)));
        let next = ring.read(1, &mut read);
        assert_eq!((next, &read[..]), (3, &[entry(1), entry(2)][..]));
        read.clear();
        (3..3 + ENTRIES as u64 + 10).for_each(|number| ring.push(&entry(number)));
        ring.read(next, &mut read);
        assert_eq!(read.len(), ENTRIES);
        assert_eq!(read[0], entry(13));
    }

    #[test]
    fn a_reader_beside_the_writer_gets_whole_entries() {
        let ring = std::sync::Arc::new(TailRing::default());
        let writer = {
            let ring = std::sync::Arc::clone(&ring);
            std::thread::spawn(move || (0..200_000).for_each(|number| ring.push(&entry(number))))
        };
        let (mut from, mut read) = (0, Vec::new());
        while !writer.is_finished() || from < 200_000 {
            from = ring.read(from, &mut read);
            assert!(read.drain(..).all(|found| found == entry(found.handed_ns)));
        }
        writer.join().unwrap();
    }

    #[test]
    fn the_sample_has_its_share_of_every_rhythm() {
        for period in [1, 2, 3, 4, 32, 64, 128, 1_000] {
            let of_rhythm = (0..1_280_000).filter(|request| request % period == 0 && is_sampled(*request)).count() as f64;
            let expected = 10_000.0 / period as f64;
            assert!((of_rhythm - expected).abs() <= expected.sqrt().max(3.0), "{of_rhythm} of {expected} at {period}");
        }
    }

    /// Turns of so many requests each, of a load that asks again at once. Output: the view.
    fn turns(tail: &mut Tail, requests: usize, turns: u64, send_ns: impl Fn(u64) -> u64) -> TailView {
        let view = TailView::default();
        for turn in 0..turns {
            tail.begin_turn((turn + 1) * 1_000_000_000);
            for request in 0..requests {
                // Each runs when the one before it is over.
                let left_ns = tail.turn_ns + 1_000 * (request as u64 + 1);
                let entry = TailEntry { turn_ns: left_ns - 500 - tail.turn_ns, guest_ns: 500, ..self::entry(tail.turn_ns) };
                tail.hold(entry, left_ns);
            }
            tail.publish(tail.turn_ns + 1_000 * requests as u64 + send_ns(turn), &view);
        }
        view
    }

    fn all(ring: &TailRing) -> Vec<TailEntry> {
        let mut entries = Vec::new();
        ring.read(0, &mut entries);
        entries
    }

    #[test]
    fn a_request_is_slow_by_its_total_and_most_of_it_may_be_its_sending() {
        let mut tail = Tail::default();
        turns(&mut tail, 8, 10_000, |_| 20_000);
        // What it took until its guest was left was the same in all turns.
        let view = turns(&mut tail, 8, 1_000, |turn| if turn == 500 { 3_000_000 } else { 20_000 });
        let (slow, sample) = (all(&view.slow), all(&view.sample));
        let stalled: Vec<&TailEntry> = slow.iter().filter(|entry| entry.send_ns > 2_000_000).collect();
        assert_eq!(stalled.len(), 8);
        assert!(stalled.iter().all(|entry| entry.is_slow && entry.total_ns() == 3_008_000));
        assert!((40..120).contains(&sample.len()), "{} of 8000", sample.len());
        assert!(sample.iter().all(|entry| entry.is_slow == slow.contains(entry)));
    }

    #[test]
    fn of_a_turn_with_too_many_those_that_came_before_it_are_kept_and_the_lost_are_counted() {
        let (mut tail, view) = (Tail::default(), TailView::default());
        tail.begin_turn(10_000_000);
        (0..PENDING_MAX + 500).for_each(|_| tail.hold(entry(tail.turn_ns), tail.turn_ns + 1_000));
        tail.hold(TailEntry { parked_ns: 8_000_000, ..entry(1_000_000) }, tail.turn_ns);
        tail.publish(tail.turn_ns + 2_000_000_000_000, &view);
        assert_eq!(view.dropped.get(), 500);
        assert!(all(&view.slow).iter().any(|entry| entry.handed_ns == 1_000_000));
        let of_sample = all(&view.sample);
        assert!((10..16).contains(&of_sample.len()), "{}", of_sample.len());
        assert!(of_sample.iter().any(|entry| !entry.is_slow), "those that there was no room for are represented");
        // Nothing is lost where nothing was slow, and each turn has its own room.
        tail.begin_turn(20_000_000);
        (0..PENDING_MAX + 500).for_each(|_| tail.hold(entry(tail.turn_ns), tail.turn_ns));
        tail.publish(tail.turn_ns, &view);
        assert_eq!(view.dropped.get(), 500);
        assert!(!tail.has_pending());
    }

    #[test]
    fn the_threshold_finds_the_slowest_hundredth() {
        for scale in [300_u64, 40_000, 9_000_000] {
            let mut threshold = Threshold(100_000 << FRACTION_BITS);
            let mut random = 88_172_645_463_325_252_u64;
            let mut over = 0;
            for step in 0..600_000 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let is_over = threshold.is_exceeded_by(scale + random % scale);
                over += u64::from(is_over && step >= 500_000);
            }
            assert!((700..1_400).contains(&over), "{over} of 100000 at {scale}");
        }
    }
}
