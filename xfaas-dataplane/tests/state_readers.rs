//! Lock-free readers in this process and in another one, beside an owner that writes values of 0 B to 1 MiB, deletes, removes sessions and
//! commits transactions: no torn value, no foreign one, and every snapshot of one moment.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use xfaas_common::ids::SessionId;
use xfaas_common::limits::VALUE_BYTES_MAX;
use xfaas_dataplane::state::{KeyList, NamespaceRef, ReadRefused, Region, RegionOptions, RegionReader, SnapshotWriter};

/// Set in the reading process: the region's path.
const REGION: &str = "XFAAS_TEST_REGION";
const RUN: Duration = Duration::from_millis(2_500);
/// On a machine that is busy with other things the owner goes on until enough was seen.
const RUN_MAX: Duration = Duration::from_secs(60);
const VALUES_MIN: u64 = 2_000;
const SNAPSHOTS_MIN: u64 = 200;
const RETRIES_MIN: u64 = 20;

/// Sessions whose keys get values of any size, and which are removed at times.
const WILD: u8 = 3;
/// Its keys are written one after the other, in their order.
const CHAIN: u8 = 3;
/// Its keys are written and deleted in transactions.
const TOGETHER: u8 = 4;
const SESSIONS: u8 = 5;
const KEYS: u8 = 4;
/// All keys and two that do not exist, one of them at the end.
const LIST: &[u8] = b"none\0k0\0k1\0k2\0k3\0no\0";

fn session(index: u8) -> (SessionId, u32) {
    (SessionId::new(format!("session-{index}").as_bytes()).unwrap(), u32::from(index % 2) << 31)
}

fn key(index: u8) -> [u8; 2] {
    [b'k', b'0' + index]
}

/// SplitMix64, Steele et al. 2014.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Value `number` of a key: its number, then bytes that follow from session, key, number and length. So a value says by itself whether it
/// is whole and where it belongs. One of less than 8 bytes holds the end of its number only.
fn fill(out: &mut Vec<u8>, session: u8, key: u8, number: u64, length: usize) {
    out.clear();
    let number = if length < 8 { number & 0xFF } else { number };
    out.extend_from_slice(&number.to_le_bytes()[..length.min(8)]);
    let mut state = mix(number ^ mix((length as u64) << 16 | u64::from(session) << 8 | u64::from(key)));
    if length < 8 {
        out.iter_mut().skip(1).for_each(|byte| *byte = state as u8);
    }
    while out.len() < length {
        state = mix(state);
        let rest = length - out.len();
        out.extend_from_slice(&state.to_le_bytes()[..rest.min(8)]);
    }
}

/// The number of a value that is whole and this key's; `None` for one too short to hold it.
fn number_of(value: &[u8], session: u8, key: u8, expected: &mut Vec<u8>) -> Option<u64> {
    let number = value.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    fill(expected, session, key, number.unwrap_or(u64::from(value.first().copied().unwrap_or(0))), value.len());
    assert!(value == expected, "torn or foreign: session {session}, key {key}, {} bytes", value.len());
    number
}

/// What readers saw, all in numbers.
#[derive(Default)]
struct Seen {
    values: AtomicU64,
    missing: AtomicU64,
    refused: AtomicU64,
    snapshots: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One reader: its buffers, and what it saw last.
struct Eye<'a> {
    reader: RegionReader,
    seen: &'a Seen,
    buf: Vec<u8>,
    expected: Vec<u8>,
    newest: [[u64; KEYS as usize]; SESSIONS as usize],
}

impl Eye<'_> {
    fn new(reader: RegionReader, seen: &Seen) -> Eye<'_> {
        Eye { reader, seen, buf: vec![0; VALUE_BYTES_MAX + 64], expected: Vec::new(), newest: Default::default() }
    }

    fn read_until(mut self, stop: &AtomicBool) {
        let mut old: [Option<NamespaceRef>; SESSIONS as usize] = Default::default();
        for round in 0_u64.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            for index in 0..SESSIONS {
                let (id, hash) = session(index);
                let Ok(found) = self.reader.find(&id, hash) else {
                    count(&self.seen.refused);
                    continue;
                };
                // Also through a reference of long ago: if its session is gone it must say so, whatever lies there now.
                let old = &mut old[usize::from(index)];
                for ns in [found, *old].into_iter().flatten() {
                    (0..KEYS).for_each(|key| self.look(ns, index, key));
                    if index >= CHAIN {
                        self.take_snapshot(ns, index);
                    }
                }
                if round.is_multiple_of(64) {
                    *old = found;
                }
            }
        }
    }

    fn look(&mut self, ns: NamespaceRef, index: u8, key_index: u8) {
        let length = match self.reader.read(ns, &key(key_index), &mut self.buf) {
            Ok(Some(length)) => length,
            Ok(None) => return count(&self.seen.missing),
            Err(ReadRefused::Busy | ReadRefused::Gone) => return count(&self.seen.refused),
            Err(other) => panic!("{other}"),
        };
        count(&self.seen.values);
        let number = number_of(&self.buf[..length], index, key_index, &mut self.expected);
        self.note(index, key_index, number);
    }

    /// No reader sees an older value after a newer one.
    fn note(&mut self, index: u8, key_index: u8, number: Option<u64>) {
        let Some(number) = number else { return };
        let newest = &mut self.newest[usize::from(index)][usize::from(key_index)];
        assert!(number >= *newest, "session {index}, key {key_index} went back from {newest} to {number}");
        *newest = number;
    }

    fn take_snapshot(&mut self, ns: NamespaceRef, index: u8) {
        let mut writer = SnapshotWriter::new(&mut self.buf);
        match self.reader.snapshot(ns, KeyList::new(LIST).unwrap(), &mut writer) {
            Ok(()) => count(&self.seen.snapshots),
            Err(ReadRefused::Busy | ReadRefused::Gone) => return count(&self.seen.refused),
            Err(other) => panic!("{other}"),
        }
        let full = writer.full_bytes();
        let mut rest = &self.buf[..full];
        let mut numbers = [None; KEYS as usize + 2];
        for (place, number) in numbers.iter_mut().enumerate() {
            let (length, behind) = rest.split_first_chunk::<4>().unwrap();
            let length = u32::from_le_bytes(*length);
            rest = behind;
            if length != u32::MAX {
                let (value, behind) = rest.split_at(length as usize);
                *number =
                    Some(number_of(value, index, place as u8 - 1, &mut self.expected).expect("values of these sessions are numbered"));
                rest = behind;
            }
        }
        assert!(rest.is_empty());
        let [None, keys @ .., None] = numbers else { panic!("a key that never was: {numbers:?}") };
        if index == TOGETHER {
            assert!(keys.iter().all(|number| *number == keys[0]), "a transaction in parts: {keys:?}");
        } else {
            let is_chain =
                keys.windows(2).all(|pair| pair[0] >= pair[1]) && keys[0].unwrap_or(0) <= keys[KEYS as usize - 1].unwrap_or(0) + 1;
            assert!(is_chain, "not of one moment: {keys:?}");
        }
        (0..KEYS).for_each(|key_index| self.note(index, key_index, keys[usize::from(key_index)]));
    }
}

/// Length of a value of any size: many short ones, some of pieces, a few of a MiB.
fn any_length(random: u64) -> usize {
    let within = |bytes: usize| (random >> 16) as usize % bytes;
    match random & 63 {
        0 => 0,
        1 => VALUE_BYTES_MAX,
        2..4 => within(VALUE_BYTES_MAX + 1),
        4..12 => within(40_000),
        12..32 => within(3_000),
        _ => within(32),
    }
}

/// The owner's work.
struct Owner {
    region: Region,
    step: u64,
    /// Of the chain: its values are numbered without gaps.
    rounds: u64,
    value: Vec<u8>,
    values: [Vec<u8>; KEYS as usize],
}

impl Owner {
    fn namespace(&mut self, index: u8) -> NamespaceRef {
        let (id, hash) = session(index);
        self.region.find_or_create(&id, hash).unwrap()
    }

    fn write(&mut self, index: u8, key_index: u8, number: u64, length: usize) {
        let ns = self.namespace(index);
        fill(&mut self.value, index, key_index, number, length);
        self.region.write(ns, &key(key_index), &self.value, 64 << 20).unwrap();
    }

    fn work(&mut self) {
        self.step += 1;
        let random = mix(self.step);
        let (index, key_index) = ((random >> 40) as u8 % WILD, (random >> 48) as u8 % KEYS);
        match random >> 56 & 127 {
            0 => {
                let ns = self.namespace(index);
                self.region.remove(ns);
            }
            1..12 => {
                let ns = self.namespace(index);
                self.region.delete(ns, &key(key_index));
            }
            12..16 if self.step.is_multiple_of(8) => {
                let ns = self.namespace(TOGETHER);
                self.region.remove(ns);
            }
            16..64 => self.write(index, key_index, self.step, any_length(random)),
            64..80 => {
                self.rounds += 1;
                (0..KEYS).for_each(|key_index| self.write(CHAIN, key_index, self.rounds, 8 + any_length(random) % 5_000));
            }
            _ => self.commit(random),
        }
    }

    fn commit(&mut self, random: u64) {
        let ns = self.namespace(TOGETHER);
        let is_deletion = random.is_multiple_of(16);
        let is_refused = random & 15 == 1;
        for key_index in 0..KEYS {
            let length = 8 + any_length(mix(random ^ u64::from(key_index))) % 20_000;
            fill(&mut self.values[usize::from(key_index)], TOGETHER, key_index, self.step, length);
        }
        let first = self.step as u8; // the order of the writes is not that of the keys
        let order = (0..KEYS).map(|turn| first.wrapping_add(turn) % KEYS);
        let names: [[u8; 2]; KEYS as usize] = std::array::from_fn(|key_index| key(key_index as u8));
        let values = &self.values;
        let writes = order.map(|key_index| {
            let value = values[usize::from(key_index)].as_slice();
            (&names[usize::from(key_index)][..], (!is_deletion).then_some(value))
        });
        if is_refused {
            let too_many = writes.chain([(&b"no"[..], Some(&b"never"[..])), (&[7; 256][..], None)]);
            self.region.write_many(ns, too_many, 64 << 20).unwrap_err();
        } else {
            self.region.write_many(ns, writes, 64 << 20).unwrap();
        }
    }
}

/// The other process: reads until its input ends, says how far it is every now and then.
fn read_in_this_process(path: &Path) {
    let reader = RegionReader::open(path).unwrap();
    let (stop, seen) = (AtomicBool::new(false), Seen::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut input = [0];
            while std::io::stdin().read(&mut input).unwrap() > 0 {}
            stop.store(true, Ordering::Relaxed);
        });
        let eye = scope.spawn(|| Eye::new(reader.clone(), &seen).read_until(&stop));
        while !stop.load(Ordering::Relaxed) && !eye.is_finished() {
            std::thread::park_timeout(Duration::from_millis(20));
            report(&seen, reader.retries());
        }
        if let Err(panic) = eye.join() {
            std::panic::resume_unwind(panic); // the other thread may wait for input for ever, so the process must be ended from outside
        }
    });
}

fn report(seen: &Seen, retries: u64) {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!("seen {} {} {}", of(&seen.values), of(&seen.snapshots), retries);
}

/// The three numbers of a report.
fn parse(line: &str) -> Option<[u64; 3]> {
    let mut numbers = line.split_once("seen ")?.1.split(' ').map(|number| number.trim().parse().unwrap());
    Some(std::array::from_fn(|_| numbers.next().unwrap()))
}

fn is_enough([values, snapshots, retries]: [u64; 3]) -> bool {
    values >= VALUES_MIN && snapshots >= SNAPSHOTS_MIN && retries >= RETRIES_MIN
}

#[test]
fn readers_of_this_and_of_another_process_see_whole_values_and_snapshots_of_one_moment() {
    if let Some(path) = std::env::var_os(REGION) {
        return read_in_this_process(Path::new(&path));
    }
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = scratch.path().join("app.0.region");
    let options = RegionOptions { app: "app", shard: 0, bytes_max: 64 << 20, hash_tag: 1 };
    let region = Region::open_or_create(&path, &options).unwrap();
    let reader = region.reader();
    let mut owner = Owner { region, step: 0, rounds: 0, value: Vec::new(), values: Default::default() };
    (0..200).for_each(|_| owner.work());

    let name = "readers_of_this_and_of_another_process_see_whole_values_and_snapshots_of_one_moment";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(REGION, &path);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let others = [const { AtomicU64::new(0) }; 3];
    let (stop, seen) = (AtomicBool::new(false), Seen::default());
    let now = |counters: &[AtomicU64; 3]| counters.each_ref().map(|counter| counter.load(Ordering::Relaxed));
    let of_threads = || [seen.values.load(Ordering::Relaxed), seen.snapshots.load(Ordering::Relaxed), reader.retries()];
    std::thread::scope(|scope| {
        let threads = [0, 1].map(|_| scope.spawn(|| Eye::new(reader.clone(), &seen).read_until(&stop)));
        let listener = scope.spawn(|| {
            for numbers in lines.map_while(Result::ok).filter_map(|line| parse(&line)) {
                numbers.iter().zip(&others).for_each(|(number, counter)| counter.store(*number, Ordering::Relaxed));
            }
        });
        let started = Instant::now();
        let goes_on = || match started.elapsed() {
            elapsed if elapsed < RUN => true,
            elapsed => elapsed < RUN_MAX && !(is_enough(of_threads()) && is_enough(now(&others))),
        };
        while goes_on() && !listener.is_finished() && !threads.iter().any(|thread| thread.is_finished()) {
            (0..32).for_each(|_| owner.work());
        }
        stop.store(true, Ordering::Relaxed);
        drop(child.stdin.take());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        listener.join().unwrap();
    });
    assert!(child.wait().unwrap().success(), "the other process saw what it must not");
    let refused = [&seen.refused, &seen.missing].map(|counter| counter.load(Ordering::Relaxed));
    let (own, others) = (of_threads(), now(&others));
    println!("{} steps; values, snapshots, retries: {own:?} here, {others:?} there; refused, missing here: {refused:?}", owner.step);
    assert!(is_enough(own) && is_enough(others) && owner.step > 500);

    // What the owner left is what the next one finds.
    let stats = owner.region.stats();
    drop(owner);
    let region = Region::open_or_create(&path, &options).unwrap();
    assert_eq!((region.stats().keys, region.stats().bytes_live), (stats.keys, stats.bytes_live));
}
