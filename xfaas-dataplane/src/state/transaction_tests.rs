//! Transactions stopped before each of their stores in turn: what a reader beside the owner sees there, and what is left after a kill. And
//! readers stopped before each of their loads, while the owner commits.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::region_tests::{Scratch, open, session};
use super::test_points::{self, Killed};
use super::{KeyList, NamespaceRef, ReadRefused, Region, RegionReader, SnapshotWriter, StateError};

const MAX: usize = 1 << 20;
/// The keys of all cases, as a list and one by one.
const LIST: &[u8] = b"a\0b\0c\0d\0e\0f\0g\0";
const KEYS: [&[u8]; 7] = [b"a", b"b", b"c", b"d", b"e", b"f", b"g"];

type Values = [Option<Vec<u8>>; KEYS.len()];
type Write = (&'static [u8], Option<Vec<u8>>);

struct Case {
    name: &'static str,
    before: &'static [(usize, usize)],
    /// Key, and length of its new value or nothing.
    writes: &'static [(usize, Option<usize>)],
    session_bytes_max: usize,
    is_done: bool,
}

const CASES: &[Case] = &[
    Case {
        name: "short values over short ones",
        before: &[(0, 8), (1, 8), (2, 3)],
        writes: &[(0, Some(8)), (1, Some(16)), (2, Some(0))],
        session_bytes_max: MAX,
        is_done: true,
    },
    Case {
        name: "blocks, pieces and short values over each other",
        before: &[(0, 100), (1, 9), (2, 20_000)],
        writes: &[(0, Some(9)), (1, Some(17_000)), (2, Some(100))],
        session_bytes_max: MAX,
        is_done: true,
    },
    Case {
        name: "new keys, links become a table",
        before: &[(0, 8), (3, 8)],
        writes: &[(0, Some(20)), (1, Some(8)), (2, Some(40)), (4, Some(8)), (5, Some(0)), (6, Some(3))],
        session_bytes_max: MAX,
        is_done: true,
    },
    Case {
        name: "deletions of links and a new key in their place",
        before: &[(0, 8), (1, 30), (2, 8)],
        writes: &[(0, None), (1, None), (3, None), (4, Some(30)), (2, Some(9))],
        session_bytes_max: MAX,
        is_done: true,
    },
    Case {
        name: "deletions out of a table",
        before: &[(0, 8), (1, 30), (2, 8), (3, 8), (4, 8), (5, 8), (6, 8)],
        writes: &[(6, None), (0, Some(8)), (1, None), (2, None), (3, None), (4, None)],
        session_bytes_max: MAX,
        is_done: true,
    },
    Case {
        name: "several writes to one key",
        before: &[(0, 30)],
        writes: &[(0, Some(40)), (1, Some(40)), (1, None), (0, None), (0, Some(50)), (2, None), (1, Some(7)), (1, Some(30))],
        session_bytes_max: MAX,
        is_done: true,
    },
    Case {
        name: "refused at its end, everything given up",
        before: &[(0, 8), (1, 30), (2, 8)],
        writes: &[(0, Some(100)), (1, None), (3, Some(20)), (4, Some(8)), (5, Some(0)), (2, Some(20_000))],
        session_bytes_max: 10_000,
        is_done: false,
    },
];

fn value(key: usize, length: usize, generation: u8) -> Vec<u8> {
    vec![(key as u8) << 4 | generation; length]
}

impl Case {
    fn values(&self) -> (Values, Values) {
        let mut before: Values = Default::default();
        for (key, length) in self.before {
            before[*key] = Some(value(*key, *length, 1));
        }
        let mut after = before.clone();
        for (number, (key, length)) in self.writes.iter().enumerate() {
            after[*key] = length.map(|length| value(*key, length, number as u8 + 2));
        }
        if self.is_done { (before, after) } else { (before.clone(), before) }
    }

    fn prepare(&self, region: &mut Region) -> NamespaceRef {
        let (id, hash) = session(0);
        let ns = region.find_or_create(&id, hash).unwrap();
        for (key, length) in self.before {
            region.write(ns, KEYS[*key], &value(*key, *length, 1), MAX).unwrap();
        }
        ns
    }

    fn commit(&self, region: &mut Region, ns: NamespaceRef) -> Result<(), StateError> {
        let of = |(number, (key, length)): (usize, &(usize, Option<usize>))| {
            (KEYS[*key], length.map(|length| value(*key, length, number as u8 + 2)))
        };
        let writes: Vec<Write> = self.writes.iter().enumerate().map(of).collect();
        region.write_many(ns, writes.iter().map(|(key, value)| (*key, value.as_deref())), self.session_bytes_max)
    }
}

fn parse(answer: &[u8]) -> Values {
    let mut rest = answer;
    let values = std::array::from_fn(|_| {
        let (length, behind) = rest.split_first_chunk::<4>().unwrap();
        let length = u32::from_le_bytes(*length);
        let (value, behind) = behind.split_at(if length == u32::MAX { 0 } else { length as usize });
        rest = behind;
        (length != u32::MAX).then(|| value.to_vec())
    });
    assert!(rest.is_empty());
    values
}

fn snapshot(reader: &RegionReader, ns: NamespaceRef) -> Result<Values, ReadRefused> {
    let mut buf = vec![0; 64 << 10];
    let mut writer = SnapshotWriter::new(&mut buf);
    reader.snapshot(ns, KeyList::new(LIST).unwrap(), &mut writer)?;
    let length = writer.full_bytes();
    Ok(parse(&buf[..length]))
}

fn read_each(reader: &RegionReader, ns: NamespaceRef) -> Values {
    KEYS.map(|key| {
        let mut buf = vec![0; 32 << 10];
        let length = reader.read(ns, key, &mut buf).unwrap()?;
        buf.truncate(length);
        Some(buf)
    })
}

/// Stores of the case's transaction, some more or less: the secret of a region shapes its tables.
fn count_stores(case: &Case) -> u64 {
    let scratch = Scratch::new();
    let mut region = open(&scratch, 2).unwrap();
    let ns = case.prepare(&mut region);
    test_points::kill_at_store(Some(u64::MAX));
    assert_eq!(case.commit(&mut region, ns).is_ok(), case.is_done);
    u64::MAX - test_points::kill_at_store(None).unwrap()
}

/// Does `work` until it would make store number `stores` from now; `None` when that stopped it.
fn until_store<T>(stores: u64, work: impl FnOnce() -> T) -> Option<T> {
    test_points::kill_at_store(Some(stores));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    test_points::kill_at_store(None);
    outcome.map_err(|cause| assert!(cause.is::<Killed>())).ok()
}

/// Output: whether the new values were seen, and whether a snapshot was refused; `None` when the transaction was over before.
fn stop_at_store(case: &Case, stores: u64) -> Option<(bool, bool)> {
    let place = format!("{}, before store {stores}", case.name);
    let (before, after) = case.values();
    let scratch = Scratch::new();
    let mut region = open(&scratch, 2).unwrap();
    let ns = case.prepare(&mut region);
    let reader = region.reader();
    if until_store(stores, || case.commit(&mut region, ns)).is_some() {
        return None;
    }
    let values = read_each(&reader, ns);
    assert!(values == before || values == after, "{place}: {values:?}");
    let snapshot_now = snapshot(&reader, ns);
    assert!(snapshot_now.as_ref() == Ok(&values) || snapshot_now == Err(ReadRefused::Busy), "{place}: {snapshot_now:?}");
    drop(region);
    // Several starts may be killed as well.
    for stores in [0, 3, 7] {
        assert!(until_store(stores, || open(&scratch, 2).map(drop)).is_none_or(|opened| opened.is_ok()), "{place}");
    }
    let mut region = open(&scratch, 2).unwrap();
    let reader = region.reader();
    assert_eq!(read_each(&reader, ns), values, "{place}: re-mapped");
    assert_eq!(snapshot(&reader, ns), Ok(values.clone()), "{place}: re-mapped");
    assert_eq!(region.stats().keys, values.iter().flatten().count() as u64, "{place}");
    // The next one goes as if nothing had happened.
    assert_eq!(case.commit(&mut region, ns).is_ok(), case.is_done, "{place}");
    assert_eq!(read_each(&reader, ns), after, "{place}: again");
    region.remove(ns);
    assert_eq!(region.stats().bytes_blocks, 0, "{place}: a block leaked");
    Some((values == after, snapshot_now.is_err()))
}

#[test]
fn a_transaction_stopped_at_any_store_is_whole_or_absent_for_readers_and_after_a_kill() {
    for case in CASES {
        let total = count_stores(case);
        let (mut old, mut new, mut refused) = (0, 0, 0);
        for stores in 0..total + 40 {
            // Long values are the same store again and again.
            if stores > 150 && stores + 150 < total && stores % 97 != 0 {
                continue;
            }
            let Some((is_new, is_refused)) = stop_at_store(case, stores) else { continue };
            *(if is_new { &mut new } else { &mut old }) += 1;
            refused += u32::from(is_refused);
        }
        assert!(old > 10 && new > 5 || !case.is_done, "{}: {old} times old, {new} times new", case.name);
        assert!(refused > 0 && refused * 3 < old + new, "{}: {refused} snapshots of {} refused", case.name, old + new);
    }
}

#[test]
fn readers_stopped_at_any_load_see_all_writes_of_a_transaction_or_none() {
    for case in CASES {
        let (before, after) = case.values();
        for is_snapshot in [false, true] {
            for loads in 0.. {
                let place = format!("{}, snapshot: {is_snapshot}, at load {loads}", case.name);
                let scratch = Scratch::new();
                let mut region = open(&scratch, 2).unwrap();
                let ns = case.prepare(&mut region);
                let reader = region.reader();
                let owner = Rc::new(RefCell::new(region));
                let work = Rc::clone(&owner);
                test_points::work_at_load(
                    loads,
                    Box::new(move || assert_eq!(case.commit(&mut work.borrow_mut(), ns).is_ok(), case.is_done)),
                );
                if is_snapshot {
                    let values = snapshot(&reader, ns).unwrap();
                    assert!(values == before || values == after, "{place}: {values:?}");
                } else {
                    let values = read_each(&reader, ns);
                    // Once a key shows the new state, all later ones do.
                    let is_at = |turn: usize| (0..KEYS.len()).all(|key| values[key] == if key < turn { &before } else { &after }[key]);
                    assert!((0..=KEYS.len()).any(is_at), "{place}: {values:?}");
                }
                if test_points::no_more_work() {
                    assert!(loads > 40, "{place}");
                    break;
                }
                assert_eq!(read_each(&reader, ns), after, "{place}: in the end");
            }
        }
    }
}

#[test]
fn a_refused_transaction_changes_nothing() {
    let scratch = Scratch::new();
    let mut region = open(&scratch, 2).unwrap();
    let (id, hash) = session(0);
    let ns = region.find_or_create(&id, hash).unwrap();
    region.write(ns, b"a", &[1; 300_000], MAX).unwrap();
    let stats = region.stats();
    let long = vec![2; MAX];
    let mut refused = |writes: &[(&[u8], Option<&[u8]>)], max| {
        let error = region.write_many(ns, writes.iter().copied(), max).unwrap_err();
        assert_eq!(region.stats().bytes_blocks, stats.bytes_blocks);
        assert_eq!(region.stats().bytes_live, stats.bytes_live);
        assert_eq!(region.keys(ns).count(), 1);
        error
    };
    let both = |value| [(&b"b"[..], Some(&b"new"[..])), (&b"a"[..], value)];
    assert_eq!(refused(&[(b"b", Some(&long)), (b"c", None), (b"d", Some(&long))], 64 << 20), StateError::RegionFull);
    assert!(matches!(refused(&both(Some(&long[..300_000])), 300_001), StateError::SessionFull { bytes: 300_005, .. }));
    assert_eq!(refused(&[(b"b", Some(b"new")), (b"", None)], MAX), StateError::BadKey { bytes: 0 });
    assert_eq!(refused(&[(b"b", Some(b"new")), (&[7; 256], None)], MAX), StateError::BadKey { bytes: 256 });
    // What counts is the end, not the way there.
    region.write_many(ns, [(&b"b"[..], Some(&long[..200_000])), (b"a", Some(b""))], 200_002).unwrap();
    assert_eq!(region.namespace_size(ns), Some((200_002, 2)));
    region.write_many(ns, [], 0).unwrap();
    region.remove(ns);
    assert_eq!(region.write_many(ns, both(None), MAX), Err(StateError::NoNamespace));
}
