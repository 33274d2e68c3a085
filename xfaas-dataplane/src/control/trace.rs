//! Where the time of requests went, for some seconds: gathers what the shards remember of their slowest requests and of a sample of all, and puts beside
//! it what the kernel says of their threads. Asked by the admin API (`/v1/trace`); reads counters from outside, so shards do not notice.

mod kernel;

use self::kernel::{CpuFile, Look, ThreadFiles};
use super::shards::Shards;
use crate::shard::{SAMPLED_ONE_IN, ShardView, TailEntry, TailRing};
use crate::sys::clock;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The longest trace, seconds.
pub const TRACE_SECONDS_MAX: u32 = 60;
/// How often the rings are read, and the kernel is asked: a ring holds some hundred milliseconds of the slowest requests at least.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Entries of one kind and shard in an answer: of the slow ones the slowest, of the sample as many from all the time.
const ENTRIES_MAX: usize = 20_000;
/// So many slow ones are gathered before the least slow go: then that costs little, however often it comes.
const GATHERED_MAX: usize = 2 * ENTRIES_MAX;

/// What `/v1/trace` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceReply {
    pub seconds: f64,
    /// When it began, on the machine's monotonic clock.
    pub began_ns: u64,
    pub shards: Vec<ShardTrace>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardTrace {
    pub core: usize,
    /// That ended meanwhile.
    pub requests: u64,
    /// The sample has one request in so many: 128, or twice, four times ... as many where it would have become too long.
    pub sampled_one_in: u64,
    /// Slow ones that are not in `slow`, for want of room.
    pub dropped: u64,
    /// Each request of the sample that is slow and took longer than this is in `slow`; 0 where nothing had to go. `None`: some were written over before
    /// they were read, and nobody knows which.
    pub slow_above_us: Option<f64>,
    /// The slowest hundredth, about, in the order of their ends: all that were slow and took longer than `slow_above_us`.
    pub slow: Vec<TracedRequest>,
    pub sample: Vec<TracedRequest>,
}

impl ShardTrace {
    /// Known with all of its kind, so it stands for itself alone. All others are known by the sample only.
    pub(crate) fn has_all_like(&self, request: &TracedRequest) -> bool {
        request.is_slow && self.slow_above_us.is_some_and(|above_us| request.total_us > above_us)
    }
}

/// One request. All but `at_ms` in microseconds; the stages follow each other and add up to `total_us`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TracedRequest {
    pub function: String,
    /// At most the first 24 bytes.
    pub session: String,
    /// When the shard found it, since the trace began: `network_us` after it came.
    pub at_ms: f64,
    pub total_us: f64,
    pub network_us: f64,
    pub turn_us: f64,
    pub decode_us: f64,
    pub worker_us: f64,
    pub guest_us: f64,
    pub parked_us: f64,
    pub send_us: f64,
    /// Part of `parked_us`.
    pub lock_us: f64,
    pub slices: u32,
    pub is_datagram: bool,
    pub is_forwarded: bool,
    pub is_ok: bool,
    /// It is among the slowest: one of the sample that is stands in `slow` as well, where there was room for it.
    pub is_slow: bool,
    /// What else the core did from the turn before on.
    pub forks_us: f64,
    pub other_slices_us: f64,
    pub log_us: f64,
    pub checkpoints_us: f64,
    pub rests_us: f64,
    pub chores_us: f64,
    /// What the kernel says of the 20 ms or more around it.
    pub kernel: KernelWork,
}

impl TracedRequest {
    /// From when to when it was under way, in milliseconds since the trace began: it may have come before.
    pub fn under_way_ms(&self) -> (f64, f64) {
        let from_ms = self.at_ms - self.network_us / 1e3;
        (from_ms, from_ms + self.total_us / 1e3)
    }
}

/// Between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelWork {
    /// From one look to the other: all that follows was within this time, not necessarily within the request's.
    pub window_us: f64,
    pub page_faults: u64,
    /// The shard's thread could have run and another had its CPU. The kernel counts a wait when it ends: where this is more than the window, it began
    /// before that.
    pub off_cpu_us: f64,
    /// On its CPU; counted in hundredths of a second.
    pub softirq_us: f64,
    pub steal_us: f64,
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// The slowest of the slow ones.
#[derive(Default)]
struct Slowest {
    /// In the order of their ends.
    entries: Vec<TailEntry>,
    /// No more than that took those that had to go.
    above_ns: u64,
    gone: u64,
    /// Before they were read.
    overwritten: u64,
}

impl Slowest {
    /// Output: the number of the next entry.
    fn read(&mut self, ring: &TailRing, from: u64) -> u64 {
        let had = self.entries.len() as u64;
        let next = ring.read(from, &mut self.entries);
        self.overwritten += (next - from) - (self.entries.len() as u64 - had);
        if self.entries.len() > GATHERED_MAX {
            self.leave(ENTRIES_MAX);
        }
        next
    }

    /// Leaves at most so many. What makes room is told by its time alone and for good, so that what stays is all that took longer.
    fn leave(&mut self, most: usize) {
        if self.entries.len() > most {
            let mut totals: Vec<u64> = self.entries.iter().map(TailEntry::total_ns).collect();
            let (_, slowest_to_go, _) = totals.select_nth_unstable_by(most, |a, b| b.cmp(a));
            self.above_ns = self.above_ns.max(*slowest_to_go);
        }
        let had = self.entries.len();
        self.entries.retain(|entry| entry.total_ns() > self.above_ns);
        self.gone += (had - self.entries.len()) as u64;
    }
}

/// The sample, thinned as it grows.
struct Sample {
    entries: Vec<TailEntry>,
    came: u64,
    /// One of so many that came is kept: a power of two.
    one_in: u64,
}

impl Default for Sample {
    fn default() -> Sample {
        Sample { entries: Vec::new(), came: 0, one_in: 1 }
    }
}

impl Sample {
    /// Output: the number of the next entry.
    fn read(&mut self, ring: &TailRing, from: u64) -> u64 {
        let mut fresh = Vec::new();
        let next = ring.read(from, &mut fresh);
        fresh.into_iter().for_each(|entry| self.take(entry));
        next
    }

    /// Where there is no room every other entry goes, and so do half of those to come: what stays is spread over all the time.
    fn take(&mut self, entry: TailEntry) {
        if self.entries.len() == ENTRIES_MAX {
            self.one_in *= 2;
            let mut stays = false;
            self.entries.retain(|_| {
                stays = !stays;
                stays
            });
        }
        if self.came.is_multiple_of(self.one_in) {
            self.entries.push(entry);
        }
        self.came += 1;
    }
}

/// One shard while it is traced.
struct Traced {
    view: Arc<ShardView>,
    thread: Option<ThreadFiles>,
    slow_from: u64,
    sample_from: u64,
    slow: Slowest,
    sample: Sample,
    dropped_before: u64,
    requests_before: u64,
    looks: Vec<Look>,
}

impl Traced {
    fn begin(view: Arc<ShardView>) -> Traced {
        let thread = view.schedstat.get().and_then(|path| ThreadFiles::open(path.parent()?));
        let (requests_before, dropped_before) = (count_requests(&view), view.tail.dropped.get());
        let (slow_from, sample_from) = (view.tail.slow.end(), view.tail.sample.end());
        let (slow, sample, looks) = (Slowest::default(), Sample::default(), Vec::new());
        Traced { view, thread, slow_from, sample_from, slow, sample, dropped_before, requests_before, looks }
    }

    fn look(&mut self, cpus: &CpuFile) {
        let tail = &self.view.tail;
        // A slow one is written before the same one of the sample: what the sample says is slow is there.
        self.sample_from = self.sample.read(&tail.sample, self.sample_from);
        self.slow_from = self.slow.read(&tail.slow, self.slow_from);
        self.looks.extend(self.thread.as_mut().and_then(|thread| cpus.look_at(thread)));
    }

    /// What the kernel did between the looks around that time.
    fn kernel_around(&self, entry: &TailEntry) -> KernelWork {
        let from_ns = entry.handed_ns.saturating_sub(entry.network_ns);
        let until_ns = from_ns + entry.total_ns();
        let before = self.looks[..self.looks.partition_point(|look| look.at_ns <= from_ns)].last().or(self.looks.first());
        let after = self.looks.get(self.looks.partition_point(|look| look.at_ns < until_ns)).or(self.looks.last());
        before.zip(after).map_or_else(KernelWork::default, |(before, after)| after.work_since(before))
    }

    fn end(mut self, core: usize, began_ns: u64, names: &HashMap<u16, String>) -> ShardTrace {
        self.slow.leave(ENTRIES_MAX);
        let dropped_by_shard = self.view.tail.dropped.get() - self.dropped_before;
        let named = |entry: &TailEntry| TracedRequest {
            function: names.get(&entry.function).cloned().unwrap_or_else(|| "?".to_owned()),
            kernel: self.kernel_around(entry),
            ..traced(entry, began_ns)
        };
        ShardTrace {
            core,
            requests: count_requests(&self.view).saturating_sub(self.requests_before),
            sampled_one_in: SAMPLED_ONE_IN * self.sample.one_in,
            dropped: self.slow.gone + self.slow.overwritten + dropped_by_shard,
            slow_above_us: (self.slow.overwritten == 0).then(|| micros(self.slow.above_ns)),
            slow: self.slow.entries.iter().map(named).collect(),
            sample: self.sample.entries.iter().map(named).collect(),
        }
    }
}

fn traced(entry: &TailEntry, began_ns: u64) -> TracedRequest {
    TracedRequest {
        function: String::new(),
        session: String::from_utf8_lossy(entry.session.as_bytes()).into_owned(),
        at_ms: entry.handed_ns.saturating_sub(began_ns) as f64 / 1e6,
        total_us: micros(entry.total_ns()),
        network_us: micros(entry.network_ns),
        turn_us: micros(entry.turn_ns),
        decode_us: micros(entry.decode_ns),
        worker_us: micros(entry.worker_ns),
        guest_us: micros(entry.guest_ns),
        parked_us: micros(entry.parked_ns),
        send_us: micros(entry.send_ns),
        lock_us: micros(entry.lock_ns),
        slices: entry.slices,
        is_datagram: entry.is_datagram,
        is_forwarded: entry.is_forwarded,
        is_ok: entry.is_ok,
        is_slow: entry.is_slow,
        forks_us: micros(entry.other.fork_ns),
        other_slices_us: micros(entry.other.slices_ns),
        log_us: micros(entry.other.log_ns),
        checkpoints_us: micros(entry.other.checkpoints_ns),
        rests_us: micros(entry.other.rests_ns),
        chores_us: micros(entry.other.chores_ns),
        kernel: KernelWork::default(),
    }
}

fn count_requests(view: &ShardView) -> u64 {
    view.functions.iter().flat_map(|function| &function.outcomes).map(crate::shard::Count::get).sum()
}

/// Lets the kernel write stamps while it lives: a client may go away in the middle.
struct Stamping<'a>(&'a dyn Shards);

impl<'a> Stamping<'a> {
    fn begin(shards: &'a dyn Shards) -> Stamping<'a> {
        shards.set_traced(true);
        Stamping(shards)
    }
}

impl Drop for Stamping<'_> {
    fn drop(&mut self) {
        self.0.set_traced(false);
    }
}

/// Traces for that long, 1..=TRACE_SECONDS_MAX seconds.
pub(super) async fn trace(shards: &dyn Shards, seconds: u32) -> TraceReply {
    let _stamping = Stamping::begin(shards);
    let began_ns = clock::monotonic_ns();
    let mut traced: Vec<Traced> = shards.views().into_iter().map(Traced::begin).collect();
    let until_ns = began_ns + u64::from(seconds) * 1_000_000_000;
    let mut cpus = CpuFile::open();
    loop {
        cpus.refresh();
        traced.iter_mut().for_each(|traced| traced.look(&cpus));
        if clock::monotonic_ns() >= until_ns {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let names = shards.function_names();
    let seconds = (clock::monotonic_ns() - began_ns) as f64 / 1e9;
    TraceReply {
        seconds,
        began_ns,
        shards: traced.into_iter().enumerate().map(|(core, traced)| traced.end(core, began_ns, &names)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Their number is what they took.
    fn entry(number: u64) -> TailEntry {
        TailEntry { handed_ns: number, guest_ns: number, ..TailEntry::default() }
    }

    #[test]
    fn of_too_many_slow_ones_the_slowest_stay_and_from_then_on_no_faster_one_comes() {
        let (ring, mut slow, mut from) = (TailRing::default(), Slowest::default(), 0);
        let mut push = |slow: &mut Slowest, number| {
            ring.push(&entry(number));
            from = slow.read(&ring, from);
        };
        let count = GATHERED_MAX as u64 + 1;
        // The slowest come first: that is not what they stay for.
        (1..=count).rev().for_each(|number| push(&mut slow, number));
        assert_eq!((slow.entries.len(), slow.above_ns), (ENTRIES_MAX, count - ENTRIES_MAX as u64));
        push(&mut slow, 1); // took less than what went
        slow.leave(ENTRIES_MAX);
        assert_eq!((slow.entries.len(), slow.gone, slow.overwritten), (ENTRIES_MAX, count + 1 - ENTRIES_MAX as u64, 0));
        assert!(slow.entries.is_sorted_by(|a, b| a.guest_ns > b.guest_ns && b.guest_ns > slow.above_ns));
    }

    #[test]
    fn few_slow_ones_all_stay_and_what_was_written_over_is_counted() {
        let (ring, mut slow) = (TailRing::default(), Slowest::default());
        (1..=100).for_each(|number| ring.push(&entry(number)));
        let next = slow.read(&ring, 0);
        slow.leave(ENTRIES_MAX);
        assert_eq!((slow.entries.len(), slow.above_ns, slow.gone, slow.overwritten), (100, 0, 0, 0));
        (0..10_000).for_each(|number| ring.push(&entry(number)));
        slow.read(&ring, next);
        assert_eq!(slow.overwritten, 10_100 - slow.entries.len() as u64);
    }

    #[test]
    fn a_long_sample_is_thinned_over_all_its_time() {
        let mut sample = Sample::default();
        let count = 7 * ENTRIES_MAX as u64;
        (0..count).for_each(|number| sample.take(entry(number)));
        assert_eq!((sample.one_in, sample.entries.len() as u64), (8, count / 8));
        let at: Vec<u64> = sample.entries.iter().map(|entry| entry.handed_ns).collect();
        assert!(at.iter().enumerate().all(|(place, number)| *number == 8 * place as u64));
    }

    #[test]
    fn a_request_is_held_against_the_looks_around_it() {
        let look = |at_ns, page_faults| Look { at_ns, page_faults, ..Look::default() };
        let mut traced = Traced::begin(Arc::new(ShardView::new()));
        traced.looks = vec![look(100, 1), look(200, 10), look(300, 100), look(400, 1_000)];
        let entry = |handed_ns, guest_ns| TailEntry { handed_ns, guest_ns, ..TailEntry::default() };
        assert_eq!(traced.kernel_around(&entry(210, 50)).page_faults, 90);
        assert_eq!(traced.kernel_around(&entry(150, 200)).page_faults, 999);
        assert_eq!(traced.kernel_around(&entry(50, 1_000)).page_faults, 999);
    }
}
