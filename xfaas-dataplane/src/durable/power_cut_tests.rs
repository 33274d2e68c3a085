//! The log against a disk that loses what was not synced: whole pages of the write under way, in any choice. A cut leaves exactly the first so
//! many records, and none of the acknowledged ones missing.

use super::files::{LogDirectory, SnapshotFile};
use super::format::{Head, HeadApp, PAGE_BYTES, Place, SegmentKind};
use super::log::{Log, Write};
use super::recover::{RecoverOptions, Recovered, SessionPlace, replay};
use crate::state::{Region, RegionOptions, SessionKey, ShardState};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tempfile::TempDir;
use xfaas_common::ids::SessionId;

const APP: &str = "shop";
const EPOCH: u64 = 1;
const LIMIT: usize = 64 << 20;

type Write1 = (Vec<u8>, Option<Vec<u8>>);
type State = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

fn session(number: u8) -> SessionId {
    SessionId::new(format!("session-{number}").as_bytes()).unwrap()
}

fn place(shards: u16) -> impl Fn(&SessionId) -> SessionPlace {
    move |session| {
        let last = *session.as_bytes().last().unwrap();
        SessionPlace { shard: u16::from(last) % shards, table_hash: u32::from(last) }
    }
}

/// What the disk has of each segment, by number, and the write that it has not acknowledged.
struct Machine {
    directory: TempDir,
    state: ShardState,
    log: Log<u64>,
    segments: BTreeMap<u64, Vec<u8>>,
    writing: Option<Write<u64>>,
    snapshot: Option<(u64, u64, SnapshotFile)>,
    history: Vec<(u8, Vec<Write1>)>,
    random: StdRng,
    nothing: BTreeSet<String>,
}

impl Machine {
    fn new(seed: u64) -> Machine {
        let directory = tempfile::tempdir().unwrap();
        let mut state = ShardState::new(directory.path().join("shm"), 0, 16 << 20);
        state.open_app(0, APP).unwrap();
        let identity = state.region(0).unwrap().identity();
        state.journal.log_app(0, APP, identity);
        let log = Log::new(0, EPOCH, 1, 1);
        let random = StdRng::seed_from_u64(seed);
        let mut machine = Machine {
            directory,
            state,
            log,
            segments: BTreeMap::new(),
            writing: None,
            snapshot: None,
            history: Vec::new(),
            random,
            nothing: BTreeSet::new(),
        };
        machine.log_directory().set_current(super::files::Current { epoch: EPOCH, shards: 1 }).unwrap();
        let (_, first) = machine.log.begin_snapshot();
        machine.make_segment(first);
        machine
    }

    fn log_directory(&self) -> LogDirectory {
        LogDirectory::open(&self.directory.path().join("log")).unwrap()
    }

    fn head(&self, kind: SegmentKind) -> Head {
        let apps = self.state.journal.apps_in_log().map(|(_, name, identity)| HeadApp { name: name.to_owned(), identity });
        Head { shards: 1, kind, goes_on_at: self.log.goes_on_at(), apps: apps.collect() }
    }

    fn make_segment(&mut self, number: u64) {
        let head = self.head(SegmentKind::Writes).encode(&Place { shard: 0, epoch: EPOCH, segment: number, sequence: 0 });
        self.log.on_segment(number, number, head.len() as u64);
        self.segments.insert(number, head);
    }

    fn store(&mut self) {
        let of = self.random.random_range(0..4);
        let count = [1, 1, 1, 2, 5][self.random.random_range(0..5)];
        let mut writes: Vec<Write1> = Vec::new();
        for _ in 0..count {
            let key = format!("key-{}", self.random.random_range(0..6)).into_bytes();
            let bytes = [8, 8, 40, 3_000, 9_000][self.random.random_range(0..5)];
            let value = (0..bytes).map(|_| self.random.random()).collect();
            writes.push((key, (count == 1 || self.random.random_bool(0.7)).then_some(value)));
        }
        let (id, table_hash) = (session(of), place(1)(&session(of)).table_hash);
        let key = SessionKey { app: 0, session: &id, table_hash };
        let borrowed = writes.iter().map(|(key, value)| (key.as_slice(), value.as_deref()));
        self.state.store_many(&key, &mut None, borrowed, LIMIT).unwrap();
        self.history.push((of, writes));
    }

    /// Puts pages of a write on the disk: all of them, or any.
    fn put(&mut self, write: &Write<u64>, is_whole: bool) {
        let segment = self.segments.get_mut(&write.file).unwrap();
        let end = write.offset as usize + write.buffer.len();
        segment.resize(segment.len().max(end), 0);
        for (page, bytes) in write.buffer.chunks(PAGE_BYTES).enumerate() {
            if is_whole || self.random.random_bool(0.5) {
                let at = write.offset as usize + page * PAGE_BYTES;
                segment[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    fn step(&mut self, now_ns: u64) {
        match self.random.random_range(0..21) {
            0..10 => self.store(),
            10..17 => match self.writing.take() {
                Some(write) => {
                    let is_done = self.random.random_bool(0.9);
                    self.put(&write, is_done);
                    self.log.on_written(write.buffer, is_done, now_ns);
                }
                None => self.writing = self.log.begin_write(&mut self.state.journal, now_ns),
            },
            17 => match self.log.next_segment(now_ns) {
                Some(wanted) if self.random.random_bool(0.8) => self.make_segment(wanted.number),
                Some(wanted) => self.log.on_no_segment(wanted.number, now_ns),
                None => {}
            },
            18 if self.snapshot.is_none() => self.begin_snapshot(),
            19 => self.cut_segment(),
            _ => self.end_snapshot(),
        }
    }

    /// What was cut off may be there again after a cut of the power.
    fn cut_segment(&mut self) {
        let Some(retired) = self.log.take_retired() else { return };
        let is_kept = self.random.random_bool(0.3);
        match (self.segments.get_mut(&retired.number), retired.used_bytes) {
            (Some(segment), Some(used)) if !is_kept => segment.truncate(used as usize),
            (Some(_), None) if !is_kept => drop(self.segments.remove(&retired.number)),
            _ => {}
        }
    }

    fn begin_snapshot(&mut self) {
        let (number, behind) = self.log.begin_snapshot_of_all();
        self.make_segment(behind);
        let head = self.head(SegmentKind::Snapshot);
        let place = Place { shard: 0, epoch: EPOCH, segment: number, sequence: 0 };
        let file = self.log_directory().begin_snapshot(place, &head).unwrap();
        // Later than the writes that go behind it, as in a shard.
        for _ in 0..self.random.random_range(0..4) {
            self.store();
        }
        let mut file = file;
        file.append_region(APP, self.state.region(0).unwrap()).unwrap();
        self.snapshot = Some((number, self.state.journal.position(), file));
    }

    fn end_snapshot(&mut self) {
        if let Some((number, _, file)) = self.snapshot.take_if(|(_, position, _)| self.log.synced() >= *position) {
            file.finish(&self.log_directory()).unwrap();
            self.segments.retain(|segment, _| *segment > number);
        }
    }

    /// The power goes: memory is lost, and the disk has what it has.
    fn cut(&mut self) {
        if let Some(write) = self.writing.take() {
            self.put(&write, false);
        }
        self.snapshot = None;
        for (number, bytes) in &self.segments {
            std::fs::write(self.directory.path().join(format!("log/0-{number}.log")), bytes).unwrap();
        }
        self.state.close_app(0);
        std::fs::remove_dir_all(self.directory.path().join("shm")).unwrap();
    }

    fn recover(&self, shards: u16) -> (Recovered, State) {
        let shm = self.directory.path().join("shm");
        std::fs::create_dir_all(&shm).unwrap();
        let log = self.directory.path().join("log");
        let at = |_: &str, session: &SessionId| place(shards)(session);
        let recovered = replay(&self.options(&shm, &log, shards, &at)).unwrap().begin().unwrap();
        (recovered, held(&shm, shards))
    }

    fn options<'a>(
        &'a self,
        region_directory: &'a Path,
        directory: &'a Path,
        shards: u16,
        place: &'a dyn Fn(&str, &SessionId) -> SessionPlace,
    ) -> RecoverOptions<'a> {
        RecoverOptions { directory, region_directory, region_bytes_max: 16 << 20, hash_tag: 0, shards, place, whole: &self.nothing }
    }

    /// The state after each number of records.
    fn states(&self) -> Vec<State> {
        let mut state = State::new();
        let mut states = vec![state.clone()];
        for (of, writes) in &self.history {
            for (key, value) in writes {
                match value {
                    Some(value) => state.insert((*of, key.clone()), value.clone()),
                    None => state.remove(&(*of, key.clone())),
                };
            }
            states.push(state.clone());
        }
        states
    }
}

/// All that the regions hold.
fn held(shm: &Path, shards: u16) -> State {
    let mut state = State::new();
    for shard in 0..shards {
        let path = shm.join(format!("{APP}.{shard}.region"));
        if !path.exists() {
            continue; // nothing was ever logged
        }
        let options = RegionOptions { app: APP, shard, bytes_max: 16 << 20, hash_tag: 0 };
        let region = Region::open_or_create(&path, &options).unwrap();
        for of in 0..4 {
            let at = place(shards)(&session(of));
            let Some(namespace) = region.find(&session(of), at.table_hash) else { continue };
            assert_eq!(at.shard, shard, "a session is with its owner only");
            for key in region.keys(namespace) {
                let mut value = vec![0; key.value_bytes()];
                region.read(namespace, key.as_bytes(), &mut value);
                state.insert((of, key.as_bytes().to_vec()), value);
            }
        }
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_power_cut_leaves_all_acknowledged_records_and_others_whole_or_not_at_all(seed: u64, steps in 1_u64..150, shards in 1_u16..3) {
        let mut machine = Machine::new(seed);
        (0..steps).for_each(|step| machine.step(step * 60_000_000));
        let (synced, states) = (machine.log.synced() as usize, machine.states());
        machine.cut();
        let (recovered, state) = machine.recover(shards);
        prop_assert_eq!(recovered.damaged, 0);
        prop_assert!(states[synced..].contains(&state), "{} acknowledged of {}", synced, states.len() - 1);
        // What was loaded once is there for good: the new log has it by itself.
        std::fs::remove_dir_all(machine.directory.path().join("shm")).unwrap();
        let (again, state_again) = machine.recover(3 - shards);
        prop_assert_eq!((again.damaged, again.torn, state_again), (0, 0, state));
    }
}

/// Ten batches of one record each.
fn ten_batches() -> Machine {
    let mut machine = Machine::new(7);
    for _ in 0..10 {
        machine.store();
        let write = machine.log.begin_write(&mut machine.state.journal, 0).unwrap();
        machine.put(&write, true);
        machine.log.on_written(write.buffer, true, 0);
    }
    machine
}

#[test]
fn damage_in_the_middle_is_told_from_a_torn_end_and_set_aside() {
    let ends: Vec<usize> = {
        let machine = ten_batches();
        let bytes = machine.segments.values().next().unwrap();
        (0..bytes.len()).step_by(PAGE_BYTES).filter(|at| bytes[*at..].starts_with(b"XFLB")).collect()
    };
    assert_eq!(ends.len(), 11, "a head and ten batches");
    for (batch, is_damage) in [(6, true), (10, false)] {
        let mut machine = ten_batches();
        machine.segments.values_mut().next().unwrap()[ends[batch] + 50] ^= 4;
        machine.cut();
        let (recovered, state) = machine.recover(1);
        assert_eq!((recovered.damaged, recovered.torn), if is_damage { (1, 0) } else { (0, 1) });
        assert_eq!(state, machine.states()[batch - 1], "what came before counts");
        let log = std::fs::read_dir(machine.directory.path().join("log")).unwrap();
        let kept = log.filter(|entry| entry.as_ref().unwrap().path().to_string_lossy().ends_with(".refused-0")).count();
        assert_eq!(kept, usize::from(is_damage));
    }
}

#[test]
fn a_region_that_the_log_was_written_beside_is_believed_and_any_other_is_not() {
    let mut machine = ten_batches();
    let shm = machine.directory.path().join("shm");
    machine.store(); // nobody was told of it, and yet it can have been seen
    for (number, bytes) in &machine.segments {
        std::fs::write(machine.directory.path().join(format!("log/0-{number}.log")), bytes).unwrap();
    }
    machine.state.close_app(0);
    let (recovered, state) = machine.recover(1);
    assert_eq!((recovered.replayed, &state), (0, &machine.states()[11]));
    // It is in the log now, too: it survives the memory.
    std::fs::remove_file(shm.join("shop.0.region")).unwrap();
    let (_, after_cut) = machine.recover(1);
    assert_eq!(after_cut, state);
    // Another region in its place is set aside.
    std::fs::remove_file(shm.join("shop.0.region")).unwrap();
    let options = RegionOptions { app: APP, shard: 0, bytes_max: 16 << 20, hash_tag: 0 };
    drop(Region::open_or_create(&shm.join("shop.0.region"), &options).unwrap());
    assert_eq!(machine.recover(1).1, state);
    assert!(shm.join("shop.0.region.refused-0").exists());
}

/// What a start that was cut short leaves: no region that the next one would set aside, and no file beside those in force.
fn assert_nothing_piles_up(machine: &Machine) {
    let shm = machine.directory.path().join("shm");
    let names: Vec<_> = std::fs::read_dir(&shm).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("refused")), "{names:?}");
}

#[test]
fn starts_that_do_not_get_to_their_end_leave_nothing_that_piles_up() {
    let mut machine = ten_batches();
    machine.cut();
    let expected = machine.states()[10].clone();
    let (shm, log) = (machine.directory.path().join("shm"), machine.directory.path().join("log"));
    std::fs::create_dir_all(&shm).unwrap();
    let in_the_way = log.join("current.new");
    let start = || replay(&machine.options(&shm, &log, 1, &|_, session| place(1)(session))).unwrap();
    for try_of_many in 0..4 {
        let mut replayed = start();
        match try_of_many {
            0 => drop(replayed), // an error elsewhere
            1 => {
                std::fs::create_dir(&in_the_way).unwrap();
                replayed.begin().unwrap_err(); // a disk without room
                drop(replayed);
                std::fs::remove_dir(&in_the_way).unwrap();
            }
            _ => std::mem::forget(replayed), // a kill
        }
        assert!(std::fs::read_dir(&shm).unwrap().next().is_none());
    }
    // A region that cannot get its name, once the new log is in force: as a kill between the two.
    let name = shm.join(format!("{APP}.0.region"));
    let mut replayed = start();
    std::fs::create_dir_all(name.join("in-the-way")).unwrap();
    replayed.begin().unwrap_err();
    std::mem::forget(replayed);
    std::fs::remove_dir_all(&name).unwrap();
    let mut replayed = start();
    std::fs::create_dir_all(name.join("in-the-way")).unwrap();
    replayed.begin().unwrap_err();
    std::fs::remove_dir_all(&name).unwrap();
    replayed.begin().unwrap(); // tried again
    drop(replayed);
    assert_eq!(held(&shm, 1), expected);
    assert!(!machine.directory.path().join("replay").exists());
    let (recovered, state) = machine.recover(1);
    assert_eq!((recovered.replayed, state), (0, expected), "it is believed");
    assert_nothing_piles_up(&machine);
}

#[test]
fn a_log_without_anything_is_not_written_at_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let (shm, log) = (folder.path().join("shm"), folder.path().join("log"));
    let machine = Machine::new(1);
    let start = |shards| replay(&machine.options(&shm, &log, shards, &|_, session| place(1)(session))).unwrap().begin();
    assert_eq!(start(1).unwrap().epoch, 1);
    std::fs::create_dir(log.join("current.d")).unwrap();
    let before = std::fs::metadata(log.join("current")).unwrap().modified().unwrap();
    assert_eq!((start(1).unwrap().epoch, start(1).unwrap().epoch), (1, 1));
    assert_eq!(std::fs::metadata(log.join("current")).unwrap().modified().unwrap(), before);
    assert_eq!(start(2).unwrap().epoch, 2, "another number of shards is written down");
}

#[test]
fn a_session_that_was_ended_in_the_log_is_left_to_its_checkpoint() {
    let mut machine = ten_batches();
    let identity = machine.state.region(0).unwrap().identity();
    machine.state.journal.leave_app(0, APP, identity);
    let held = machine.states()[10].clone();
    let ended = held.keys().next().unwrap().0;
    machine.state.journal.end_session(0, &session(ended)).unwrap();
    let write = machine.log.begin_write(&mut machine.state.journal, 0).unwrap();
    for is_on_the_disk in [true, false] {
        let (mut machine, mut expected) = (ten_batches(), held.clone());
        if is_on_the_disk {
            machine.put(&write, true);
            expected.retain(|(of, _), _| *of != ended);
        }
        machine.cut();
        assert!(machine.recover(1).1 == expected, "{is_on_the_disk}");
        std::fs::remove_dir_all(machine.directory.path().join("shm")).unwrap();
        assert!(machine.recover(2).1 == expected, "the new log says the same: {is_on_the_disk}");
    }
}
