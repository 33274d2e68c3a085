//! Sessions that move with the number of shards, against a map: in any order, with kills between any two changes of files, and when it cannot
//! be done.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use xfaas_common::ids::SessionId;

use super::region_tests::Scratch;
use super::test_points::{self, Killed};
use super::{Region, RegionError, RegionOptions, ReshardError, ReshardOptions, ReshardReport, reshard};

const HASH_TAG: u64 = 9;
const BYTES_MAX: u64 = 8 << 20;

/// (app, session) -> its keys.
type Model = BTreeMap<(&'static str, u32), BTreeMap<u8, Vec<u8>>>;

fn session(number: u32) -> SessionId {
    SessionId::new(format!("session-{number}").as_bytes()).unwrap()
}

fn table_hash(id: &SessionId) -> u32 {
    id.as_bytes().iter().fold(0x811C_9DC5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn owner(shards: u16) -> impl Fn(&SessionId) -> (u16, u32) {
    move |id| ((table_hash(id) >> 7) as u16 % shards, table_hash(id))
}

fn open(directory: &Path, shards: u16, app: &str, shard: u16, bytes_max: u64) -> Region {
    let folder = directory.join(format!("shards-{shards}"));
    std::fs::create_dir_all(&folder).unwrap();
    let options = RegionOptions { app, shard, bytes_max, hash_tag: HASH_TAG };
    Region::open_or_create(&folder.join(format!("{app}.{shard}.region")), &options).unwrap()
}

/// What a node with `shards` shards writes.
fn fill(directory: &Path, shards: u16, model: &Model) {
    for ((app, number), keys) in model {
        let id = session(*number);
        let (shard, hash) = owner(shards)(&id);
        let mut region = open(directory, shards, app, shard, BYTES_MAX);
        let ns = region.find_or_create(&id, hash).unwrap();
        keys.iter().for_each(|(key, value)| region.write(ns, &[*key], value, 64 << 20).unwrap());
    }
}

fn start(directory: &Path, shards: u16, bytes_max: u64) -> Result<ReshardReport, ReshardError> {
    let owner = owner(shards);
    let options = ReshardOptions {
        directory,
        shards,
        region_bytes_max: bytes_max,
        hash_tag: HASH_TAG,
        owner: &|_, session| owner(session),
        placement_file: "moves",
    };
    reshard(&options, &mut |_| {})
}

/// A node with `shards` shards finds all of the model, and nothing else is left.
#[track_caller]
fn check(directory: &Path, shards: u16, model: &Model) {
    let mut keys_left: BTreeMap<(&str, u16), u64> = BTreeMap::new();
    let mut regions: BTreeMap<(&str, u16), Region> = BTreeMap::new();
    let mut buf = vec![0; 1 << 20];
    for ((app, number), keys) in model {
        let id = session(*number);
        let (shard, hash) = owner(shards)(&id);
        let region = regions.entry((app, shard)).or_insert_with(|| open(directory, shards, app, shard, BYTES_MAX));
        let ns = region.find(&id, hash).unwrap_or_else(|| panic!("session {number} of {app} is not on shard {shard} of {shards}"));
        for (key, value) in keys {
            assert_eq!(region.read(ns, &[*key], &mut buf), Some(value.len()));
            assert_eq!(&buf[..value.len()], &value[..]);
        }
        *keys_left.entry((app, shard)).or_default() += keys.len() as u64;
    }
    for (place, region) in &regions {
        assert_eq!(Some(&region.stats().keys), keys_left.get(place), "{place:?}");
    }
    let names: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.len() <= 1, "{names:?}");
}

fn sample() -> Model {
    let keys = |number: u32| (1..=(number % 7) as u8).map(|key| (key, vec![number as u8 ^ key; (number as usize * 97) % 3_000])).collect();
    let mut model: Model = (0..60).map(|number| ((if number % 3 == 0 { "shop" } else { "chat.v2" }, number), keys(number))).collect();
    model.insert(("shop", 900), BTreeMap::from([(1, vec![7; 200_000])]));
    model
}

#[test]
fn sessions_follow_their_owners_from_one_number_of_shards_to_the_next() {
    let (scratch, mut model) = (Scratch::new(), sample());
    fill(scratch.path(), 1, &model);
    let mut last = 1;
    for shards in [2, 3, 3, 1, 64, 1] {
        let report = start(scratch.path(), shards, BYTES_MAX).unwrap();
        let expected = if shards == last { (0, vec![]) } else { (model.len() as u64, vec![last]) };
        assert_eq!((report.sessions, report.from), expected);
        assert!(report.refused.is_empty() && report.superseded.is_empty());
        check(scratch.path(), shards, &model);
        // The node goes on writing where it found them.
        let changed = model.get_mut(&("shop", 3)).unwrap();
        changed.insert(shards as u8, vec![shards as u8; 99]);
        let one = BTreeMap::from([(("shop", 3), changed.clone())]);
        fill(scratch.path(), shards, &one);
        last = shards;
    }
}

#[test]
fn a_kill_between_any_two_changes_of_files_loses_nothing_whatever_number_comes_next() {
    let model: Model = sample().into_iter().filter(|((_, number), _)| number % 4 == 0).collect();
    for next in [2, 3, 1] {
        for operations in 0.. {
            let scratch = Scratch::new();
            fill(scratch.path(), 2, &model);
            test_points::kill_at_file_operation(Some(operations));
            let outcome = catch_unwind(AssertUnwindSafe(|| start(scratch.path(), 3, BYTES_MAX)));
            test_points::kill_at_file_operation(None);
            let was_killed = outcome.is_err();
            if let Err(cause) = outcome {
                assert!(cause.is::<Killed>());
                // The next start may be killed as well.
                test_points::kill_at_file_operation(Some(operations % 3));
                let again = catch_unwind(AssertUnwindSafe(|| drop(start(scratch.path(), next, BYTES_MAX))));
                test_points::kill_at_file_operation(None);
                assert!(again.map_or_else(|cause| cause.is::<Killed>(), |()| true));
            }
            start(scratch.path(), next, BYTES_MAX).unwrap();
            check(scratch.path(), next, &model);
            if !was_killed {
                assert!(operations > 8, "{operations}");
                break;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn kills_in_the_middle_of_copying_or_of_files_lose_nothing(
        sizes in vec((0u32..40, any::<bool>(), 1u8..5, 0usize..20_000), 1..24),
        starts in vec((1u16..5, prop_oneof![Just(None), (0u64..40).prop_map(Some)], prop_oneof![Just(None), (0u64..6_000).prop_map(Some)]), 1..6),
    ) {
        let (scratch, mut model) = (Scratch::new(), Model::new());
        for (number, is_shop, key, length) in sizes {
            model.entry((if is_shop { "shop" } else { "chat" }, number)).or_default().insert(key, vec![key; length]);
        }
        fill(scratch.path(), 2, &model);
        for (shards, operations, stores) in starts {
            test_points::kill_at_file_operation(operations);
            test_points::kill_at_store(stores);
            let outcome = catch_unwind(AssertUnwindSafe(|| start(scratch.path(), shards, BYTES_MAX)));
            test_points::kill_at_file_operation(None);
            test_points::kill_at_store(None);
            match outcome {
                Ok(report) => {
                    prop_assert!(report.is_ok());
                    check(scratch.path(), shards, &model);
                }
                Err(cause) => prop_assert!(cause.is::<Killed>()),
            }
        }
        start(scratch.path(), 2, BYTES_MAX).unwrap();
        check(scratch.path(), 2, &model);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_everything_left_as_it_was() {
    let scratch = Scratch::new();
    let large = |number| (("shop", number), BTreeMap::from([(1, vec![number as u8; 150_000])]));
    let model: Model = (0..12).map(large).collect();
    fill(scratch.path(), 2, &model);
    let refusal = start(scratch.path(), 1, 1 << 20).unwrap_err();
    assert!(matches!(&refusal, ReshardError::TooLarge { shard: 0, shards: 1, region_mib: 1, .. }), "{refusal}");
    assert!(refusal.to_string().contains("region_mib") && refusal.to_string().contains("shop"), "{refusal}");
    let report = start(scratch.path(), 2, BYTES_MAX).unwrap();
    assert_eq!(report.sessions, 0, "nothing had moved");
    check(scratch.path(), 2, &model);
    start(scratch.path(), 1, BYTES_MAX).unwrap();
    check(scratch.path(), 1, &model);
}

#[test]
fn a_region_that_is_refused_is_kept_and_the_others_move() {
    let (scratch, model) = (Scratch::new(), sample());
    fill(scratch.path(), 2, &model);
    let damaged = scratch.path().join("shards-2/broken.1.region");
    std::fs::write(&damaged, b"not a region").unwrap();
    let strange = RegionOptions { app: "other-keys", shard: 0, bytes_max: BYTES_MAX, hash_tag: 1 };
    drop(Region::open_or_create(&scratch.path().join("shards-2/other-keys.0.region"), &strange).unwrap());
    let report = start(scratch.path(), 3, BYTES_MAX).unwrap();
    assert_eq!(report.sessions, model.len() as u64);
    let (aside, error) = &report.refused[0];
    assert!(matches!(error, RegionError::NotARegion { .. }), "{error}");
    assert_eq!(std::fs::read(aside).unwrap(), b"not a region");
    assert!(matches!(&report.refused[1].1, RegionError::OtherHashKeys { found: 1, .. }));
    std::fs::remove_dir_all(scratch.path().join("shards-2")).unwrap();
    check(scratch.path(), 3, &model);
    assert!(start(scratch.path(), 3, BYTES_MAX).unwrap().refused.is_empty());
}

#[test]
fn of_a_session_in_two_folders_the_own_folders_stays_and_the_other_file_is_kept() {
    let (scratch, model) = (Scratch::new(), sample());
    fill(scratch.path(), 2, &model);
    let newer = BTreeMap::from([(("shop", 3), BTreeMap::from([(1, b"newer".to_vec())]))]);
    fill(scratch.path(), 1, &newer);
    let report = start(scratch.path(), 1, BYTES_MAX).unwrap();
    assert_eq!((report.sessions, report.superseded.len()), (model.len() as u64, 1));
    let (kept, sessions) = &report.superseded[0];
    assert!(kept.exists() && kept.to_string_lossy().contains("shop.") && *sessions == 1, "{kept:?}");
    std::fs::remove_dir_all(scratch.path().join("shards-2")).unwrap();
    let mut expected = model;
    expected.extend(newer);
    check(scratch.path(), 1, &expected);
}
