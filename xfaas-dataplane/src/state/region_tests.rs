//! The region against a plain map: operations, limits, re-mapping, kills at any store, and corrupted files.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{SESSION_KEYS_MAX, VALUE_BYTES_MAX};

use super::test_points::{self, Killed};
use super::{KeyList, NamespaceRef, Region, RegionError, RegionOptions, SnapshotWriter, StateError};

/// A directory on tmpfs that goes away with the value.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = Path::new("/dev/shm").join(format!("xfaas-state-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

const SESSION_BYTES: usize = 3 << 20;

pub(super) fn open(scratch: &Scratch, mib: u64) -> Result<Region, RegionError> {
    let options = RegionOptions { app: "app", shard: 1, bytes_max: mib << 20, hash_tag: 7 };
    Region::open_or_create(&scratch.path().join("app.1.region"), &options)
}

/// Sessions with few and close hashes, so that tries get deep.
pub(super) fn session(index: u8) -> (SessionId, u32) {
    let id = SessionId::new(format!("{index}{}", "s".repeat(usize::from(index) % 60)).as_bytes()).unwrap();
    (id, [0, 0, 1 << 31, 1 << 10, 1 << 14, 0xFFFF_FFFF][usize::from(index) % 6])
}

fn value_of(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed).collect()
}

fn any_long_length() -> impl Strategy<Value = usize> {
    prop_oneof![0..=VALUE_BYTES_MAX, Just(VALUE_BYTES_MAX)]
}

/// A key, and length and seed of its new value, or nothing.
type Change = (Vec<u8>, Option<(usize, u8)>);

#[derive(Clone, Debug)]
enum Op {
    Write {
        session: u8,
        key: Vec<u8>,
        length: usize,
        seed: u8,
    },
    /// Writes that take effect together: length and seed of the value, or a deletion.
    Together {
        session: u8,
        writes: Vec<Change>,
    },
    Delete {
        session: u8,
        key: Vec<u8>,
    },
    Remove {
        session: u8,
    },
    Reopen,
}

fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![8 => (0u8..12).prop_map(|i| vec![i + 1]), 2 => (0u8..200).prop_map(|i| vec![b'k', i + 1]), 1 => vec(1u8.., 1..=255)]
}

fn any_length() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0usize..40, 4 => 0usize..4_000, 2 => 8_000usize..20_000, 1 => 0usize..200_000]
}

fn any_change() -> impl Strategy<Value = Option<(usize, u8)>> {
    prop_oneof![1 => Just(None), 4 => (any_length(), any::<u8>()).prop_map(Some)]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => (0u8..12, any_key(), any_length(), any::<u8>()).prop_map(|(session, key, length, seed)| Op::Write { session, key, length, seed }),
        1 => (0u8..3, 1u8..3, any_long_length()).prop_map(|(session, key, length)| Op::Write { session, key: vec![key], length, seed: key }),
        10 => (0u8..12, vec((any_key(), any_change()), 0..7)).prop_map(|(session, writes)| Op::Together { session, writes }),
        10 => (0u8..12, any_key()).prop_map(|(session, key)| Op::Delete { session, key }),
        2 => (0u8..12).prop_map(|session| Op::Remove { session }),
        1 => Just(Op::Reopen),
    ]
}

type Model = BTreeMap<u8, BTreeMap<Vec<u8>, Vec<u8>>>;

fn size_of(keys: &BTreeMap<Vec<u8>, Vec<u8>>) -> usize {
    keys.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// Applies an operation to the region and, if it was done, to the model.
fn apply(region: &mut Region, model: &mut Model, op: &Op) {
    match op {
        Op::Write { session: index, key, length, seed } => {
            let (id, hash) = session(*index);
            let ns = match region.find_or_create(&id, hash) {
                Ok(ns) => ns,
                Err(error) => return assert_eq!(error, StateError::RegionFull),
            };
            let keys = model.entry(*index).or_default();
            let value = value_of(*length, *seed);
            match region.write(ns, key, &value, SESSION_BYTES) {
                Ok(()) => _ = keys.insert(key.clone(), value),
                Err(StateError::RegionFull) => {}
                Err(StateError::SessionFull { bytes, bytes_max }) => {
                    let replaced = keys.get(key).map_or(0, |old| key.len() + old.len());
                    assert_eq!((bytes, bytes_max), (size_of(keys) - replaced + key.len() + length, SESSION_BYTES));
                    assert!(bytes > bytes_max);
                }
                Err(other) => panic!("{other}"),
            }
        }
        Op::Together { session: index, writes } => {
            let (id, hash) = session(*index);
            let ns = match region.find_or_create(&id, hash) {
                Ok(ns) => ns,
                Err(error) => return assert_eq!(error, StateError::RegionFull),
            };
            let before = model.entry(*index).or_default();
            let after = with_all(before, writes);
            match write_together(region, ns, writes) {
                Ok(()) => *before = after,
                Err(StateError::RegionFull) => {}
                Err(StateError::SessionFull { bytes, bytes_max }) => {
                    assert_eq!((bytes, bytes_max), (size_of(&after), SESSION_BYTES));
                    assert!(bytes > bytes_max && bytes > size_of(before));
                }
                Err(other) => panic!("{other}"),
            }
        }
        Op::Delete { session: index, key } => {
            let (id, hash) = session(*index);
            let deleted = region.find(&id, hash).is_some_and(|ns| region.delete(ns, key));
            assert_eq!(deleted, model.get_mut(index).is_some_and(|keys| keys.remove(key).is_some()));
        }
        Op::Remove { session: index } => {
            let (id, hash) = session(*index);
            if let Some(ns) = region.find(&id, hash) {
                region.remove(ns);
                assert_eq!(region.write(ns, b"k", b"v", SESSION_BYTES), Err(StateError::NoNamespace));
                assert_eq!(region.read(ns, b"k", &mut []), None);
            }
            model.remove(index);
        }
        Op::Reopen => {}
    }
}

fn write_together(region: &mut Region, ns: NamespaceRef, writes: &[Change]) -> Result<(), StateError> {
    let values: Vec<Option<Vec<u8>>> = writes.iter().map(|(_, value)| value.map(|(length, seed)| value_of(length, seed))).collect();
    region.write_many(ns, writes.iter().zip(&values).map(|((key, _), value)| (&key[..], value.as_deref())), SESSION_BYTES)
}

fn with_all(keys: &BTreeMap<Vec<u8>, Vec<u8>>, writes: &[Change]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut after = keys.clone();
    for (key, value) in writes {
        match value {
            Some((length, seed)) => _ = after.insert(key.clone(), value_of(*length, *seed)),
            None => _ = after.remove(key),
        }
    }
    after
}

/// Up to 62 keys of the session, and two it does not have, of one moment: as the owner sees them and as a reader does.
fn check_snapshots(region: &Region, ns: NamespaceRef, keys: &BTreeMap<Vec<u8>, Vec<u8>>, buf: &mut Vec<u8>) {
    let (mut list, mut expected) = (Vec::new(), Vec::new());
    for (key, value) in [(&b"never"[..], None)].into_iter().chain(keys.iter().take(62).map(|(key, value)| (&key[..], Some(value)))) {
        list.extend_from_slice(&[key, b"\0"].concat());
        expected.extend_from_slice(&value.map_or(u32::MAX, |value| value.len() as u32).to_le_bytes());
        expected.extend_from_slice(value.map_or(&[], Vec::as_slice));
    }
    let list = KeyList::new(&list).unwrap();
    buf.resize(expected.len() + 1, 0);
    let mut writer = SnapshotWriter::new(buf);
    region.snapshot(ns, list, &mut writer);
    assert_eq!(writer.full_bytes(), expected.len());
    assert!(buf[..expected.len()] == expected);
    buf.fill(0xEE);
    let mut writer = SnapshotWriter::new(buf);
    assert_eq!(region.reader().snapshot(ns, list, &mut writer), Ok(()));
    assert_eq!(writer.full_bytes(), expected.len());
    assert!(buf[..expected.len()] == expected && buf[expected.len()] == 0xEE);
}

fn check(region: &Region, model: &Model) {
    let reader = region.reader();
    let (mut buf, mut snapshot) = (vec![0; VALUE_BYTES_MAX], Vec::new());
    for index in 0..12 {
        let (id, hash) = session(index);
        let found = region.find(&id, hash);
        assert_eq!(reader.find(&id, hash), Ok(found));
        assert_eq!(found.is_some(), model.contains_key(&index));
        let (Some(ns), Some(keys)) = (found, model.get(&index)) else { continue };
        for (key, value) in keys {
            assert_eq!(region.read(ns, key, &mut buf), Some(value.len()));
            assert_eq!(&buf[..value.len()], &value[..]);
            buf[..value.len()].fill(0xAA);
            assert_eq!(reader.read(ns, key, &mut buf), Ok(Some(value.len())));
            assert_eq!(&buf[..value.len()], &value[..]);
            let part = value.len() / 2;
            buf[part..=part].fill(0xAA);
            assert_eq!(region.read(ns, key, &mut buf[..part]), Some(value.len()));
            assert_eq!((&buf[..part], buf[part]), (&value[..part], 0xAA));
        }
        check_snapshots(region, ns, keys, &mut snapshot);
        assert_eq!(region.read(ns, b"never written", &mut buf), None);
        assert_eq!(reader.read(ns, b"never written", &mut buf), Ok(None));
        let listed: BTreeMap<Vec<u8>, usize> = region.keys(ns).map(|key| (key.as_bytes().to_vec(), key.value_bytes())).collect();
        assert_eq!(listed, keys.iter().map(|(key, value)| (key.clone(), value.len())).collect());
    }
    let listed: BTreeMap<String, (u64, u64)> = region.sessions().map(|(id, bytes, keys)| (id.as_str().to_owned(), (bytes, keys))).collect();
    let expected = model.iter().map(|(index, keys)| (session(*index).0.as_str().to_owned(), (size_of(keys) as u64, keys.len() as u64)));
    assert_eq!(listed, expected.collect());
    let stats = region.stats();
    assert_eq!(stats.bytes_live, model.values().map(size_of).sum::<usize>() as u64);
    assert_eq!(stats.keys, model.values().map(BTreeMap::len).sum::<usize>() as u64);
    assert_eq!(stats.sessions, model.len() as u64);
    assert!(stats.bytes_live <= stats.bytes_blocks && stats.bytes_blocks <= stats.bytes_used && stats.bytes_used <= stats.bytes_max);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn region_matches_a_map_and_shows_the_same_after_a_re_map(ops in vec(any_op(), 1..120)) {
        let scratch = Scratch::new();
        let mut region = open(&scratch, 8).unwrap();
        let mut model = Model::new();
        for op in &ops {
            apply(&mut region, &mut model, op);
            if matches!(op, Op::Reopen) {
                let before = region.stats();
                drop(region);
                region = open(&scratch, 8).unwrap();
                prop_assert_eq!(region.stats().bytes_blocks, before.bytes_blocks, "a block leaked");
                check(&region, &model);
            }
        }
        check(&region, &model);
        for index in 0..12 {
            apply(&mut region, &mut model, &Op::Remove { session: index });
        }
        prop_assert_eq!(region.stats().bytes_blocks, 0, "a block leaked");
    }

    #[test]
    fn a_kill_at_any_store_leaves_each_write_whole_or_absent(ops in vec((any_op(), 0u64..60, any::<bool>()), 1..80)) {
        let scratch = Scratch::new();
        let mut region = open(&scratch, 8).unwrap();
        let mut model = Model::new();
        for (op, stores, is_late) in &ops {
            // Half of the kills fall among the last stores of an operation, wherever that is for long values.
            let stores = match op {
                Op::Write { length, .. } if *is_late => *stores + *length as u64 / 8,
                Op::Together { writes, .. } if *is_late => {
                    *stores + writes.iter().map(|(_, value)| value.map_or(0, |(length, _)| length as u64 / 8 + 8)).sum::<u64>()
                }
                _ => *stores,
            };
            let mut after = model.clone();
            test_points::kill_at_store(Some(stores));
            let outcome = catch_unwind(AssertUnwindSafe(|| apply(&mut region, &mut after, op)));
            test_points::kill_at_store(None);
            if let Err(cause) = outcome {
                prop_assert!(cause.is::<Killed>());
                drop(region);
                // The next start may be killed as well.
                test_points::kill_at_store(Some(stores % 5));
                let opened = catch_unwind(AssertUnwindSafe(|| open(&scratch, 8).map(drop)));
                test_points::kill_at_store(None);
                prop_assert!(opened.map_or(true, |opened| opened.is_ok()));
                region = open(&scratch, 8).unwrap();
                model = settle(&region, model, op);
            } else {
                model = after;
            }
        }
        check(&region, &model);
        for index in 0..12 {
            apply(&mut region, &mut model, &Op::Remove { session: index });
        }
        prop_assert_eq!(region.stats().bytes_blocks, 0, "a block leaked");
    }
}

/// What the model must be after a kill in the middle of `op`: the state before it or after it, or a session made and left empty.
fn settle(region: &Region, mut model: Model, op: &Op) -> Model {
    let (Op::Write { session: index, .. }
    | Op::Together { session: index, .. }
    | Op::Delete { session: index, .. }
    | Op::Remove { session: index }) = op
    else {
        return model;
    };
    let (id, hash) = session(*index);
    let Some(ns) = region.find(&id, hash) else {
        let expected = model.remove(index);
        assert!(expected.is_none() || matches!(op, Op::Remove { .. }), "only a removal makes a session go");
        check(region, &model);
        return model;
    };
    let keys = model.entry(*index).or_default();
    match op {
        Op::Write { key, length, seed, .. } => {
            if let Some(value) = read(region, ns, key).filter(|value| keys.get(key) != Some(value)) {
                assert!(value == value_of(*length, *seed), "neither the old value nor the new one");
                keys.insert(key.clone(), value);
            }
        }
        Op::Together { writes, .. } => {
            let after = with_all(keys, writes);
            // One key decides which of the two it is; `check` compares all of them.
            if after.iter().any(|(key, value)| keys.get(key) != Some(value) && read(region, ns, key).as_ref() == Some(value))
                || keys.keys().any(|key| !after.contains_key(key) && read(region, ns, key).is_none())
            {
                *keys = after;
            }
        }
        Op::Delete { key, .. } if read(region, ns, key).is_none() => _ = keys.remove(key),
        _ => {}
    }
    check(region, &model);
    model
}

fn read(region: &Region, ns: NamespaceRef, key: &[u8]) -> Option<Vec<u8>> {
    let mut value = vec![0; region.value_bytes(ns, key)?];
    region.read(ns, key, &mut value)?;
    Some(value)
}

#[test]
fn limits_refuse_with_nothing_changed() {
    let scratch = Scratch::new();
    let mut region = open(&scratch, 64).unwrap();
    let (id, hash) = session(1);
    let ns = region.find_or_create(&id, hash).unwrap();
    assert_eq!(region.write(ns, &[b'k'; 256], b"", 1 << 20), Err(StateError::BadKey { bytes: 256 }));
    assert_eq!(region.write(ns, b"", b"", 1 << 20), Err(StateError::BadKey { bytes: 0 }));
    let long = vec![1; VALUE_BYTES_MAX + 1];
    assert_eq!(region.write(ns, b"k", &long, 8 << 20), Err(StateError::ValueTooLarge { bytes: VALUE_BYTES_MAX + 1 }));
    region.write(ns, b"k", &long[1..], 8 << 20).unwrap();
    assert_eq!(region.namespace_size(ns), Some((VALUE_BYTES_MAX as u64 + 1, 1)));
    // Full to the byte, then over it, then written again at the same size, also under a limit lowered meanwhile.
    region.write(ns, b"full", &[2; 95], VALUE_BYTES_MAX + 100).unwrap();
    assert!(matches!(region.write(ns, b"x", b"", VALUE_BYTES_MAX + 100), Err(StateError::SessionFull { .. })));
    assert!(matches!(region.write(ns, b"full", &[3; 96], VALUE_BYTES_MAX + 100), Err(StateError::SessionFull { .. })));
    assert_eq!(read(&region, ns, b"full"), Some(vec![2; 95]));
    region.write(ns, b"full", &[4; 95], 10).unwrap();
    region.write(ns, b"full", &[], 10).unwrap();
    assert_eq!((read(&region, ns, b"full"), read(&region, ns, b"x")), (Some(vec![]), None));
    assert!(region.delete(ns, b"k") && region.delete(ns, b"full") && !region.delete(ns, b"full"));
    assert_eq!(region.namespace_size(ns), Some((0, 0)));
}

#[test]
fn a_session_holds_65536_keys_and_not_one_more() {
    let scratch = Scratch::new();
    let mut region = open(&scratch, 64).unwrap();
    let (id, hash) = session(1);
    let ns = region.find_or_create(&id, hash).unwrap();
    for index in 0..SESSION_KEYS_MAX as u32 {
        region.write(ns, &index.to_le_bytes(), &index.to_be_bytes(), 64 << 20).unwrap();
    }
    assert_eq!(region.write(ns, b"one more", b"", 64 << 20), Err(StateError::TooManyKeys));
    region.write(ns, &7u32.to_le_bytes(), b"again", 64 << 20).unwrap();
    drop(region);
    let mut region = open(&scratch, 64).unwrap();
    let ns = region.find(&id, hash).unwrap();
    assert_eq!(region.keys(ns).count(), SESSION_KEYS_MAX);
    assert_eq!(read(&region, ns, &7u32.to_le_bytes()), Some(b"again".to_vec()));
    for index in 8..SESSION_KEYS_MAX as u32 {
        assert_eq!(read(&region, ns, &index.to_le_bytes()), Some(index.to_be_bytes().to_vec()));
    }
    region.remove(ns);
    assert_eq!(region.stats().bytes_blocks, 0);
}

#[test]
fn a_full_region_refuses_growth_but_takes_overwrites_and_all_of_it_is_used_again() {
    let scratch = Scratch::new();
    let mut region = open(&scratch, 4).unwrap();
    let mut rounds = Vec::new();
    for length in [500usize, 70_000, 24, 3_000] {
        let (id, hash) = session(3);
        let ns = region.find_or_create(&id, hash).unwrap();
        let mut keys = 0u32;
        while region.write(ns, &keys.to_le_bytes(), &value_of(length, 1), 64 << 20).is_ok() {
            keys += 1;
        }
        assert_eq!(region.write(ns, &keys.to_le_bytes(), &value_of(length, 1), 64 << 20), Err(StateError::RegionFull));
        for key in 0..keys {
            region.write(ns, &key.to_le_bytes(), &value_of(length, 2), 64 << 20).unwrap();
        }
        assert_eq!(read(&region, ns, &0u32.to_le_bytes()), Some(value_of(length, 2)));
        rounds.push(region.stats().bytes_live);
        region.remove(ns);
        assert_eq!(region.stats().bytes_blocks, 0);
    }
    assert!(rounds[0] > 2_800_000 && rounds[1] > 3_500_000 && rounds[3] > 3_000_000, "{rounds:?}");
}

#[test]
fn random_writes_of_mixed_sizes_at_70_percent_fill_waste_less_than_20_percent() {
    const MIB: u64 = 64;
    let scratch = Scratch::new();
    let mut region = open(&scratch, MIB).unwrap();
    let (id, hash) = session(3);
    let ns = region.find_or_create(&id, hash).unwrap();
    let mut random = 1u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (random >> 33) % below
    };
    let value = value_of(64 << 10, 0);
    let (mut worst, mut steps_at_fill) = (0.0f64, 0);
    for _ in 0..24_000 {
        let key = next(20_000).to_le_bytes();
        let length = 1 << (5 + next(11)); // as many values in each doubling from 32 B to 64 KiB
        let length = length + next(length);
        if region.stats().bytes_live > (MIB << 20) * 7 / 10 {
            region.delete(ns, &key);
            steps_at_fill += 1;
        } else {
            region.write(ns, &key, &value[..length as usize], 64 << 20).unwrap();
        }
        let stats = region.stats();
        if steps_at_fill > 500 {
            worst = worst.max(1.0 - stats.bytes_live as f64 / stats.bytes_used as f64);
        }
    }
    assert!(steps_at_fill > 4_000 && worst > 0.0 && worst < 0.2, "{steps_at_fill} steps, {worst}");
}

#[test]
fn a_region_grows_when_asked_and_keeps_what_it_took_when_asked_to_shrink() {
    let scratch = Scratch::new();
    let mut region = open(&scratch, 2).unwrap();
    let (id, hash) = session(5);
    let ns = region.find_or_create(&id, hash).unwrap();
    assert_eq!(region.write(ns, b"a", &[1; VALUE_BYTES_MAX], 64 << 20), Ok(()));
    assert_eq!(region.write(ns, b"b", &[2; VALUE_BYTES_MAX], 64 << 20), Err(StateError::RegionFull));
    drop(region);
    let mut region = open(&scratch, 16).unwrap();
    let ns = region.find(&id, hash).unwrap();
    for key in [b"b", b"c", b"d"] {
        region.write(ns, key, &[2; VALUE_BYTES_MAX], 64 << 20).unwrap();
    }
    drop(region);
    let region = open(&scratch, 1).unwrap();
    let stats = region.stats();
    assert!(stats.bytes_live > 4 << 20 && stats.bytes_max >= stats.bytes_used && stats.bytes_max < 6 << 20, "{stats:?}");
    assert_eq!(read(&region, region.find(&id, hash).unwrap(), b"a"), Some(vec![1; VALUE_BYTES_MAX]));
}

fn patch(scratch: &Scratch, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(scratch.path().join("app.1.region")).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn foreign_truncated_and_corrupted_files_are_refused_with_the_reason() {
    let scratch = Scratch::new();
    let path = scratch.path().join("app.1.region");
    let refill = || {
        if path.exists() {
            std::fs::remove_file(&path).unwrap();
        }
        let mut region = open(&scratch, 4).unwrap();
        let (id, hash) = session(5);
        let ns = region.find_or_create(&id, hash).unwrap();
        for key in 1..=8u8 {
            region.write(ns, &[key], &value_of(usize::from(key) * 5_000, key), 1 << 20).unwrap();
        }
        drop(region);
    };
    refill();
    let options = |app, shard, hash_tag| RegionOptions { app, shard, bytes_max: 4 << 20, hash_tag };
    assert!(matches!(Region::open_or_create(&path, &options("other", 1, 7)), Err(RegionError::Foreign { .. })));
    assert!(matches!(Region::open_or_create(&path, &options("app", 2, 7)), Err(RegionError::Foreign { found_shard: 1, .. })));
    assert!(matches!(Region::open_or_create(&path, &options("app", 1, 8)), Err(RegionError::OtherHashKeys { found: 7, expected: 8 })));
    let refused = |offset: u64, bytes: &[u8]| {
        refill();
        patch(&scratch, offset, bytes);
        open(&scratch, 4).unwrap_err()
    };
    assert!(matches!(refused(0, b"Y"), RegionError::NotARegion { .. }));
    assert!(matches!(refused(8, &[9]), RegionError::LayoutVersion { .. }));
    assert!(matches!(refused(57, b"Q"), RegionError::HeaderChecksum { .. }));
    assert!(matches!(refused(520, &[0xFF; 8]), RegionError::Corrupt { offset: 520, .. }));
    assert!(matches!(refused(16 << 10, &[0xFF; 8]), RegionError::Corrupt { offset: 16384, .. }));
    // Session 5 hashes to the root's last link.
    let root = 4096 + 1023 * 8;
    for link in [u64::MAX, 1, 0x10, 0x0081_0001, 0xFFFF_0000_0081_0011, 0xFFFF_7FFF_0000_0001] {
        let refusal = refused(root, &link.to_le_bytes());
        assert!(matches!(refusal, RegionError::Corrupt { .. }), "{link:#x}: {refusal}");
    }
    refill();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(9 << 20).unwrap();
    assert!(matches!(open(&scratch, 4), Err(RegionError::Truncated { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_damage_is_refused_or_harmless_and_never_stops_the_process(words in vec((0u64..6_000, any::<u64>(), 0u32..3), 1..4)) {
        let scratch = Scratch::new();
        let mut region = open(&scratch, 2).unwrap();
        let mut model = Model::new();
        for index in 0..12u8 {
            for key in 1..8u8 {
                apply(&mut region, &mut model, &Op::Write { session: index, key: vec![key], length: usize::from(key) * 700, seed: key });
            }
        }
        drop(region);
        for (word, value, place) in words {
            // The header and root, the page table, the pages in use.
            let (start, span) = [(0, 12 << 10), (16 << 10, 256), (0x81_0000, 1 << 20)][place as usize];
            patch(&scratch, start + word * 8 % span, &value.to_le_bytes());
        }
        if let Ok(mut region) = open(&scratch, 2) {
            let refs: Vec<_> = region.sessions().collect();
            for (id, _, _) in refs {
                for index in 0..12 {
                    if session(index).0 == id && let Some(ns) = region.find(&id, session(index).1) {
                        region.remove(ns);
                    }
                }
            }
        }
    }
}
