//! Compaction against a map: what a region holds does not change, whenever it is interrupted, and sparse pages become free.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use xfaas_common::ids::SessionId;

use super::layout::DATA;
use super::region_tests::{Scratch, open};
use super::test_points::{self, Killed};
use super::{NamespaceRef, ReadRefused, Region};

const MAX: usize = 64 << 20;
const SESSIONS: u32 = 2_500;
/// More than any of these regions needs to be compact.
const ALL: usize = 64 << 20;

type Model = BTreeMap<(u32, u32), Vec<u8>>;

fn session(number: u32) -> (SessionId, u32) {
    (SessionId::new(format!("session-{number:04}").as_bytes()).unwrap(), number.wrapping_mul(0x9E37_79B9))
}

fn key(number: u32) -> [u8; 3] {
    [b'k', number as u8, (number >> 8) as u8]
}

fn value(session: u32, key: u32, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i as u32).wrapping_mul(31).wrapping_add(session * 7 + key + (i as u32 >> 8)) as u8).collect()
}

fn write(region: &mut Region, model: &mut Model, session_number: u32, key_number: u32, length: usize) {
    let (id, hash) = session(session_number);
    let ns = region.find_or_create(&id, hash).unwrap();
    let value = value(session_number, key_number, length);
    region.write(ns, &key(key_number), &value, MAX).unwrap();
    model.insert((session_number, key_number), value);
}

fn delete(region: &mut Region, model: &mut Model, session_number: u32, key_number: u32) {
    if model.remove(&(session_number, key_number)).is_some() {
        let (id, hash) = session(session_number);
        let ns = region.find(&id, hash).unwrap();
        assert!(region.delete(ns, &key(key_number)));
    }
}

fn remove(region: &mut Region, model: &mut Model, session_number: u32) {
    let (id, hash) = session(session_number);
    if let Some(ns) = region.find(&id, hash) {
        region.remove(ns);
    }
    model.retain(|(session, _), _| *session != session_number);
}

#[track_caller]
fn check(region: &Region, model: &Model) {
    check_values(region, model);
    assert_eq!(region.stats().keys, model.len() as u64);
    assert_eq!(region.stats().bytes_live, model.values().map(|value| value.len() as u64 + 3).sum::<u64>());
}

#[track_caller]
fn check_values(region: &Region, model: &Model) {
    let (mut buf, reader) = (vec![0; 70_000], region.reader());
    for ((session_number, key_number), value) in model {
        let (id, hash) = session(*session_number);
        let ns = region.find(&id, hash).unwrap();
        assert_eq!(reader.find(&id, hash), Ok(Some(ns)));
        assert_eq!(reader.read(ns, &key(*key_number), &mut buf), Ok(Some(value.len())));
        assert_eq!(&buf[..value.len()], &value[..], "session {session_number}, key {key_number}");
        assert_eq!(region.read(ns, &key(*key_number), &mut buf), Some(value.len()));
    }
}

fn compact_all(region: &mut Region) {
    while region.compact_some(ALL, &mut |_, _| false) {}
}

/// Sessions of which most are gone again: every kind of page is sparse. What stays has all shapes of values.
fn sparse(region: &mut Region, model: &mut Model, sessions: u32) {
    for session in 0..sessions {
        for key in 0..6 {
            write(region, model, session, key, [5, 40, 100, 400, 1_000, 60][key as usize]);
        }
    }
    for big in 0..12 {
        write(region, model, big * 60 + 7, 900, 60_000);
        write(region, model, big * 60 + 8, 901, 9_000);
    }
    for session in (0..sessions).filter(|session| session % 20 > 8 || session % 20 < 7) {
        remove(region, model, session);
    }
    for big in 0..8 {
        delete(region, model, big * 60 + 7, 900);
    }
}

#[test]
fn sparse_pages_of_every_kind_become_free_and_nothing_else_changes() {
    let scratch = Scratch::new();
    let (mut region, mut model) = (open(&scratch, 32).unwrap(), Model::new());
    sparse(&mut region, &mut model, SESSIONS);
    let before = region.stats();
    compact_all(&mut region);
    let after = region.stats();
    check(&region, &model);
    assert_eq!((before.bytes_blocks, before.bytes_held), (after.bytes_blocks, after.bytes_held));
    assert!(after.bytes_used < before.bytes_used * 2 / 3, "{before:?} {after:?}");
    assert!(before.fragmentation() > 0.4 && after.fragmentation() < before.fragmentation() * 0.7);
    drop(region);
    let region = open(&scratch, 32).unwrap();
    check(&region, &model);
    assert_eq!((region.stats().bytes_blocks, region.stats().bytes_held), (after.bytes_blocks, after.bytes_held), "a block leaked");
}

#[test]
fn a_session_whose_reference_is_held_is_not_moved() {
    let scratch = Scratch::new();
    let (mut region, mut model) = (open(&scratch, 32).unwrap(), Model::new());
    sparse(&mut region, &mut model, SESSIONS);
    let references = |region: &Region| -> Vec<(u32, NamespaceRef)> {
        let find = |number: u32| region.find(&session(number).0, session(number).1).map(|ns| (number, ns));
        (0..SESSIONS).filter_map(find).collect()
    };
    let before = references(&region);
    while region.compact_some(ALL, &mut |_, _| true) {}
    assert_eq!(references(&region), before);
    // A round in vain is followed by a rest.
    (0..100).for_each(|_| _ = region.compact_some(1, &mut |_, _| true));
    let held: Vec<SessionId> = before.iter().step_by(10).map(|(number, _)| session(*number).0).collect();
    while region.compact_some(ALL, &mut |id, _| held.contains(id)) {}
    let (mut stayed, mut moved) = (0, 0);
    for ((number, now), (_, former)) in references(&region).iter().zip(&before) {
        assert!(now == former || !held.contains(&session(*number).0));
        if now == former {
            stayed += 1;
        } else {
            // Gone for the owner and for others, and to be found again.
            assert_eq!(region.read(*former, &key(1), &mut []), None);
            assert_eq!(region.reader().read(*former, &key(1), &mut []), Err(ReadRefused::Gone));
            moved += 1;
        }
    }
    assert!(stayed >= held.len() && moved > 20, "{stayed} stayed, {moved} moved");
    check(&region, &model);
}

#[test]
fn compaction_killed_at_any_store_leaves_every_value_whole() {
    let scratch = Scratch::new();
    let (mut region, mut model) = (open(&scratch, 32).unwrap(), Model::new());
    sparse(&mut region, &mut model, 900);
    let blocks = region.stats().bytes_blocks;
    let (mut stores, mut kills) = (0, 0);
    loop {
        test_points::kill_at_store(Some(stores));
        let outcome = catch_unwind(AssertUnwindSafe(|| while region.compact_some(4_096, &mut |_, _| false) {}));
        test_points::kill_at_store(None);
        let Err(cause) = outcome else { break };
        assert!(cause.is::<Killed>());
        drop(region);
        region = open(&scratch, 32).unwrap();
        assert_eq!(region.stats().bytes_blocks, blocks, "after store {stores}");
        if kills % 8 == 0 {
            check(&region, &model);
        }
        kills += 1;
        // Every store at first; later further in, where the pieces and the other kinds come.
        stores += 1 + stores / 180 * 13;
    }
    assert!(kills > 150, "{kills}");
    check(&region, &model);
}

/// Makes a region in which a few moves empty a sparse page of one kind. With few changes at its end, lest they move it already.
type Sparse = fn(&mut Region, &mut Model);

fn sparse_values(region: &mut Region, model: &mut Model) {
    (0..50).for_each(|key| write(region, model, 1, key, 1_000));
    (0..40).for_each(|key| write(region, model, 2, key, 1_000));
    write(region, model, 0, 0, 1_000);
    write(region, model, 0, 1, 1_000);
    remove(region, model, 2);
}

fn sparse_cells(region: &mut Region, model: &mut Model) {
    (0..830).for_each(|key| write(region, model, 1, key, 3));
    write(region, model, 0, 0, 300);
    write(region, model, 0, 1, 5);
    (0..40).for_each(|key| delete(region, model, 1, key));
    (820..830).for_each(|key| delete(region, model, 1, key));
}

fn sparse_nodes(region: &mut Region, model: &mut Model) {
    (0..900).for_each(|key| write(region, model, 1, key, 3));
    (0..600).for_each(|key| write(region, model, 2, key, 3));
    (0..6).for_each(|key| write(region, model, 0, key, 3));
    remove(region, model, 2);
}

fn sparse_records(region: &mut Region, model: &mut Model) {
    (1..620).for_each(|session| write(region, model, session, 0, 3));
    write(region, model, 0, 0, 3);
    (1..100).chain(590..620).for_each(|session| remove(region, model, session));
}

#[test]
fn compaction_killed_at_every_single_store_leaves_every_value_whole() {
    let cases: [(&str, Sparse); 4] =
        [("values", sparse_values), ("cells", sparse_cells), ("nodes", sparse_nodes), ("records", sparse_records)];
    for (name, prepare) in cases {
        let scratch = Scratch::new();
        let (mut region, mut model) = (open(&scratch, 8).unwrap(), Model::new());
        prepare(&mut region, &mut model);
        let (before, path) = (region.stats(), region.path().to_owned());
        drop(region);
        // Everything before the table of pages ends and the pages in use, that is: what compaction can change.
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let ranges = [(0, 64 << 10), (DATA.0, before.bytes_used as usize + (64 << 10))];
        let kept = ranges.map(|(start, bytes)| {
            let mut content = vec![0; bytes];
            file.read_exact_at(&mut content, start).unwrap();
            (start, content)
        });
        for stores in 0.. {
            kept.iter().for_each(|(start, content)| file.write_all_at(content, *start).unwrap());
            let mut region = open(&scratch, 8).unwrap();
            test_points::kill_at_store(Some(stores));
            let outcome = catch_unwind(AssertUnwindSafe(|| compact_all(&mut region)));
            test_points::kill_at_store(None);
            if outcome.is_ok() {
                assert!(stores > 20 && region.stats().bytes_used < before.bytes_used, "{name}: {stores} stores, {before:?}");
                check(&region, &model);
                break;
            }
            drop(region);
            let region = open(&scratch, 8).unwrap_or_else(|error| panic!("{name}, killed at store {stores}: {error}"));
            assert_eq!(region.stats().bytes_blocks, before.bytes_blocks, "{name}, killed at store {stores}");
            let few: Model = model.iter().filter(|((session, _), _)| *session == 0).map(|(place, value)| (*place, value.clone())).collect();
            check_values(&region, &few);
        }
    }
}

#[test]
fn a_write_moves_a_bounded_amount_and_a_busy_region_becomes_compact_by_writes_alone() {
    let scratch = Scratch::new();
    let (mut region, mut model) = (open(&scratch, 32).unwrap(), Model::new());
    sparse(&mut region, &mut model, SESSIONS);
    for big in 0..10 {
        write(&mut region, &mut model, 3, big, 60_000);
    }
    let before = region.stats();
    let mut worst = 0;
    for number in 0..6_000u32 {
        // 16 KiB and a piece of 8 KiB with its list, in words, the write itself, and what is stored to link and count.
        let stores_max = (25 << 10) / 8 + 700;
        let ns = region.find(&session(3).0, session(3).1).unwrap();
        test_points::kill_at_store(Some(stores_max));
        region.write(ns, b"n", &number.to_le_bytes(), MAX).unwrap();
        worst = worst.max(stores_max - test_points::stores_left().unwrap());
        test_points::kill_at_store(None);
    }
    let ns = region.find(&session(3).0, session(3).1).unwrap();
    assert!(region.delete(ns, b"n"));
    let after = region.stats();
    assert!(after.bytes_used + 3 * 65_536 <= before.bytes_used, "{before:?} {after:?}");
    assert!(worst > 1_000, "{worst} stores: nothing was moved");
    check(&region, &model);
}

#[derive(Clone, Debug)]
enum Bulk {
    Write { session: u32, keys: u32, length: usize },
    Thin { keep_one_in: u32, offset: u32 },
    Remove { session: u32 },
    Compact { bytes: usize, times: u8 },
    Reopen,
}

fn any_bulk() -> impl Strategy<Value = Bulk> {
    let length = prop_oneof![4 => 0usize..300, 3 => 300usize..5_000, 1 => 5_000usize..30_000];
    prop_oneof![
        6 => (0u32..40, 1u32..120, length).prop_map(|(session, keys, length)| Bulk::Write {
            session,
            keys: keys.min((200_000 / (length + 1)) as u32 + 1),
            length
        }),
        2 => (2u32..9, 0u32..9).prop_map(|(keep_one_in, offset)| Bulk::Thin { keep_one_in, offset }),
        1 => (0u32..40).prop_map(|session| Bulk::Remove { session }),
        4 => (1usize..100_000, 1u8..20).prop_map(|(bytes, times)| Bulk::Compact { bytes, times }),
        1 => Just(Bulk::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_region_under_compaction_matches_a_map(bulks in vec(any_bulk(), 4..40)) {
        let scratch = Scratch::new();
        let (mut region, mut model) = (open(&scratch, 32).unwrap(), Model::new());
        for bulk in &bulks {
            match *bulk {
                Bulk::Write { session, keys, length } => (0..keys).for_each(|key| write(&mut region, &mut model, session, key, length)),
                Bulk::Thin { keep_one_in, offset } => {
                    let doomed: Vec<_> = model.keys().filter(|(_, key)| (key + offset) % keep_one_in != 0).copied().collect();
                    doomed.into_iter().for_each(|(session, key)| delete(&mut region, &mut model, session, key));
                }
                Bulk::Remove { session } => remove(&mut region, &mut model, session),
                Bulk::Compact { bytes, times } => (0..times).for_each(|_| _ = region.compact_some(bytes, &mut |_, _| false)),
                Bulk::Reopen => {
                    let before = region.stats().bytes_blocks;
                    drop(region);
                    region = open(&scratch, 32).unwrap();
                    prop_assert_eq!(region.stats().bytes_blocks, before, "a block leaked");
                }
            }
        }
        check(&region, &model);
        compact_all(&mut region);
        check(&region, &model);
        (0..40).for_each(|session| remove(&mut region, &mut model, session));
        prop_assert_eq!((region.stats().bytes_blocks, region.stats().bytes_held), (0, 0), "a block leaked");
    }
}

#[test]
fn readers_beside_compaction_see_whole_values_of_their_key() {
    let scratch = Scratch::new();
    let (mut region, mut model) = (open(&scratch, 32).unwrap(), Model::new());
    sparse(&mut region, &mut model, SESSIONS);
    let expected = model.clone();
    let (reader, stop) = (region.reader(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let read = scope.spawn(|| {
            let (mut buf, mut values, mut refused) = (vec![0; 70_000], 0u64, 0u64);
            while !stop.load(Ordering::Relaxed) || values < 1_000 {
                for ((session_number, key_number), value) in &expected {
                    let (id, hash) = session(*session_number);
                    let Ok(found) = reader.find(&id, hash) else {
                        refused += 1;
                        continue;
                    };
                    match reader.read(found.expect("it was never removed"), &key(*key_number), &mut buf) {
                        Ok(length) => {
                            assert_eq!(length, Some(value.len()));
                            assert!(buf[..value.len()] == value[..], "torn or foreign: session {session_number}, key {key_number}");
                            values += 1;
                        }
                        Err(other) => {
                            assert!(matches!(other, ReadRefused::Gone | ReadRefused::Busy));
                            refused += 1;
                        }
                    }
                }
            }
            (values, refused)
        });
        // Make and drop other sessions so that compaction always has something to do.
        let mut junk = Model::new();
        for round in 0..6 {
            for other in 10_000..10_300 {
                (0..4).for_each(|key| write(&mut region, &mut junk, other, key, 90 + 200 * key as usize + round));
                region.compact_some(1_024, &mut |_, _| false);
            }
            for other in 10_000..10_300 {
                remove(&mut region, &mut junk, other);
                region.compact_some(4_096, &mut |_, _| false);
            }
            if read.is_finished() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let (values, refused) = read.join().unwrap();
        println!("{values} values, {refused} refused");
    });
    check(&region, &model);
}
