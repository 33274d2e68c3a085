//! The models: an owner at work and a reader beside it, on the real code. Each says what the reader may see.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as Counter, Ordering};

use xfaas_common::ids::SessionId;

use super::alloc::{CONTENT_LISTS, RECORD_LISTS};
use super::compact::Budget;
use super::error::ReadRefused;
use super::layout::{HEADER, RegionOptions};
use super::namespace::{self, NamespaceRef};
use super::reader::RegionReader;
use super::region::Region;
use super::snapshot::{KeyList, SnapshotWriter};
use super::words::{Offset, WORD_BYTES};
use crate::checked::{self, Mutation};

/// Loads, stores and switches of one run.
const BRANCHES_MAX: usize = 20_000;
const SESSION_BYTES: usize = 1 << 16;

/// Bytes of a value that lies in its slot, in two words, and of one in a block of three.
const INLINE: usize = 16;
const BLOCK: usize = 24;

/// An owner's work and what a reader makes of it.
pub struct Model {
    pub name: &'static str,
    /// Switches away from a thread that could have gone on, at most; two or three are enough for nearly all bugs (CHESS, OSDI 2008).
    switches_max: usize,
    /// The session is removed meanwhile.
    ends: bool,
    prepare: fn(&mut Region),
    /// The owner's work, beside the reader.
    work: fn(&mut Region),
    /// The reader's; panics at what must not be seen.
    read: fn(&Eye) -> Result<(), ReadRefused>,
}

/// A reader and the session it looks at.
struct Eye {
    reader: RegionReader,
    ns: NamespaceRef,
}

fn id(name: &str) -> SessionId {
    SessionId::new(name.as_bytes()).expect("a visible name")
}

/// All sessions have the same hash, so that freed table nodes, records and cells are used again where a reader passes.
fn session(region: &mut Region, name: &str) -> NamespaceRef {
    region.find_or_create(&id(name), 5).expect("the region has room")
}

fn write(region: &mut Region, name: &str, key: &str, value: u8, length: usize) {
    let ns = session(region, name);
    region.write(ns, key.as_bytes(), &vec![value; length], SESSION_BYTES).expect("the region has room");
}

/// Writes several keys of session "s" at once; 0 deletes one. Output: whether they were taken.
fn write_many(region: &mut Region, writes: &[(&str, u8)], length: usize, session_bytes_max: usize) -> bool {
    let ns = session(region, "s");
    let values: Vec<Vec<u8>> = writes.iter().map(|(_, value)| vec![*value; length]).collect();
    let writes = writes.iter().zip(&values).map(|((key, value), bytes)| (key.as_bytes(), (*value > 0).then_some(&bytes[..])));
    region.write_many(ns, writes, session_bytes_max).is_ok()
}

/// Moves what lies on any page elsewhere, as compaction does it: records of sessions, or all else.
fn move_all(region: &mut Region, is_for_records: bool) {
    let Region { space, alloc, compactor, record_compactor, .. } = region;
    let lists = if is_for_records { RECORD_LISTS } else { CONTENT_LISTS };
    for page in 0..alloc.pages_fresh() {
        if let Some(fill) = alloc.fill_of(page).filter(|fill| lists.contains(&fill.list)) {
            alloc.evacuate(space.words(), page, fill);
        }
    }
    let compactor = if is_for_records { record_compactor } else { compactor };
    compactor.begin_moving();
    while compactor.work(space, alloc, Budget::of_bytes(1 << 16), &mut |_, _| false) {}
    assert!(!alloc.is_evacuating(lists), "everything has moved");
}

impl Eye {
    /// The value of a key, `length` times the same byte, or 0 for none. Panics when it is torn.
    fn see(&self, key: &str, length: usize) -> Result<u8, ReadRefused> {
        let mut buf = [0xEE; 64];
        let Some(full) = self.reader.read(self.ns, key.as_bytes(), &mut buf)? else { return Ok(0) };
        assert_eq!(full, length, "seen foreign");
        Ok(whole(&buf[..full]))
    }

    /// The same of several keys at one moment.
    fn snapshot<const N: usize>(&self, keys: &str, length: usize) -> Result<[u8; N], ReadRefused> {
        let mut buf = [0xEE; 256];
        let mut writer = SnapshotWriter::new(&mut buf);
        self.reader.snapshot(self.ns, KeyList::new(keys.as_bytes()).expect("keys with NULs"), &mut writer)?;
        let full = writer.full_bytes();
        let mut rest = &buf[..full];
        let values = std::array::from_fn(|_| {
            let (bytes, behind) = rest.split_first_chunk::<4>().expect("a length for each key");
            let bytes = u32::from_le_bytes(*bytes);
            let value_bytes = if bytes == u32::MAX { 0 } else { bytes as usize };
            assert!(bytes == u32::MAX || value_bytes == length, "seen foreign");
            let (value, behind) = behind.split_at(value_bytes);
            rest = behind;
            if value.is_empty() { 0 } else { whole(value) }
        });
        assert!(rest.is_empty());
        Ok(values)
    }
}

fn whole(value: &[u8]) -> u8 {
    assert!(value.iter().all(|byte| *byte == value[0]), "seen torn: {value:?}");
    value[0]
}

pub const MODELS: &[Model] = &[
    Model {
        name: "a short value overwritten twice",
        switches_max: 3,
        ends: false,
        prepare: |region| write(region, "s", "k", 1, INLINE),
        work: |region| (2..4).for_each(|value| write(region, "s", "k", value, INLINE)),
        read: |eye| {
            let first = eye.see("k", INLINE)?;
            let second = eye.see("k", INLINE)?;
            assert!((1..=3).contains(&first) && (first..=3).contains(&second), "seen {first}, then {second}");
            Ok(())
        },
    },
    Model {
        name: "a block overwritten until it is used again",
        switches_max: 3,
        ends: false,
        prepare: |region| write(region, "s", "k", 1, BLOCK),
        work: |region| (2..4).for_each(|value| write(region, "s", "k", value, BLOCK)),
        read: |eye| {
            let value = eye.see("k", BLOCK)?;
            assert!((1..=3).contains(&value), "seen {value}");
            Ok(())
        },
    },
    Model {
        name: "a deleted key's cell and block used for the same key of another session",
        switches_max: 2,
        ends: false,
        prepare: |region| {
            write(region, "s", "k", 1, BLOCK);
            session(region, "t");
        },
        work: |region| {
            let ns = session(region, "s");
            assert!(region.delete(ns, b"k"));
            write(region, "t", "k", 9, BLOCK);
        },
        read: |eye| {
            let first = eye.see("k", BLOCK)?;
            let second = eye.see("k", BLOCK)?;
            assert!(first <= 1 && second <= first, "seen {first}, then {second}");
            Ok(())
        },
    },
    Model {
        name: "a removed session's record, cell and block used for another",
        switches_max: 2,
        ends: true,
        prepare: |region| write(region, "s", "k", 1, BLOCK),
        work: |region| {
            let ns = session(region, "s");
            region.remove(ns);
            write(region, "t", "k", 9, BLOCK);
        },
        read: |eye| {
            assert_eq!(eye.see("k", BLOCK)?, 1, "seen another's");
            Ok(())
        },
    },
    Model {
        name: "a cell and its value moved, then overwritten, the old places used for another key",
        switches_max: 2,
        ends: false,
        prepare: |region| write(region, "s", "k", 1, BLOCK),
        work: |region| {
            move_all(region, false);
            write(region, "s", "k", 2, BLOCK);
            write(region, "s", "j", 9, 2 * BLOCK); // of another class: it gets the page that the value was on
        },
        read: |eye| {
            let value = eye.see("k", BLOCK)?;
            assert!((1..=2).contains(&value), "seen {value}");
            Ok(())
        },
    },
    Model {
        name: "a session moved, then changed, its old place used for another",
        switches_max: 2,
        ends: true,
        prepare: |region| write(region, "s", "k", 1, INLINE),
        work: |region| {
            move_all(region, true);
            write(region, "s", "k", 2, INLINE);
            write(region, "t", "k", 9, INLINE);
        },
        read: |eye| {
            let first = eye.see("k", INLINE)?;
            let second = eye.see("k", INLINE)?;
            assert!(1 <= first && first <= second && second <= 2, "seen {first}, then {second}");
            Ok(())
        },
    },
    Model {
        name: "cells moved between two writes, a snapshot",
        switches_max: 2,
        ends: false,
        prepare: |region| ["a", "b"].iter().for_each(|key| write(region, "s", key, 1, 8)),
        work: |region| {
            write(region, "s", "a", 2, 8);
            move_all(region, false);
            write(region, "s", "b", 2, 8);
        },
        read: |eye| {
            let [a, b] = eye.snapshot("a\0b\0", 8)?;
            assert!(1 <= b && b <= a && a <= 2, "seen a {a}, b {b}");
            Ok(())
        },
    },
    Model {
        name: "two keys in one transaction, read one after the other",
        switches_max: 3,
        ends: false,
        prepare: |region| ["a", "b"].iter().for_each(|key| write(region, "s", key, 1, INLINE)),
        work: |region| assert!(write_many(region, &[("a", 2), ("b", 2)], INLINE, SESSION_BYTES)),
        read: |eye| {
            let first = eye.see("b", INLINE)?;
            let second = eye.see("a", INLINE)?;
            let third = eye.see("b", INLINE)?;
            let is_in_order = 1 <= first && first <= second && second <= third && third <= 2;
            assert!(is_in_order, "seen b {first}, then a {second}, then b {third}");
            Ok(())
        },
    },
    Model {
        name: "blocks in one transaction, the old ones used again",
        switches_max: 2,
        ends: false,
        prepare: |region| ["a", "b"].iter().for_each(|key| write(region, "s", key, 1, BLOCK)),
        work: |region| {
            assert!(write_many(region, &[("a", 2), ("b", 2)], BLOCK, SESSION_BYTES));
            write(region, "s", "b", 3, BLOCK);
        },
        read: |eye| {
            let value = eye.see("a", BLOCK)?;
            assert!((1..=2).contains(&value), "seen {value}");
            Ok(())
        },
    },
    Model {
        name: "a new key and an old one in one transaction",
        switches_max: 3,
        ends: false,
        prepare: |region| write(region, "s", "a", 1, INLINE),
        work: |region| assert!(write_many(region, &[("n", 2), ("a", 2)], INLINE, SESSION_BYTES)),
        read: |eye| {
            let first = eye.see("n", INLINE)?;
            let second = eye.see("a", INLINE)?;
            assert!((first == 0 && second >= 1 || first == 2) && (first..=2).contains(&second), "seen n {first}, then a {second}");
            Ok(())
        },
    },
    Model {
        name: "a transaction given up, its number used again for another key",
        switches_max: 3,
        ends: false,
        prepare: |region| ["a", "b"].iter().for_each(|key| write(region, "s", key, 1, INLINE)),
        work: |region| {
            assert!(!write_many(region, &[("a", 9), ("n", 9)], INLINE, 2 * INLINE + 2));
            assert!(write_many(region, &[("b", 2)], INLINE, SESSION_BYTES));
        },
        read: |eye| {
            assert_eq!(eye.see("a", INLINE)?, 1, "seen what was given up");
            Ok(())
        },
    },
    Model {
        name: "two keys in one transaction, a snapshot",
        switches_max: 3,
        ends: false,
        prepare: |region| ["a", "b"].iter().for_each(|key| write(region, "s", key, 1, 8)),
        work: |region| assert!(write_many(region, &[("a", 2), ("b", 2)], 8, SESSION_BYTES)),
        read: |eye| {
            let [a, b] = eye.snapshot("a\0b\0", 8)?;
            assert!(a == b && (1..=2).contains(&a), "seen a {a}, b {b}");
            Ok(())
        },
    },
    Model {
        name: "two writes one after the other, a snapshot with one key twice",
        switches_max: 3,
        ends: false,
        prepare: |region| ["a", "b"].iter().for_each(|key| write(region, "s", key, 1, 8)),
        work: |region| ["a", "b"].iter().for_each(|key| write(region, "s", key, 2, 8)),
        read: |eye| {
            let [first, b, a] = eye.snapshot("a\0b\0a\0", 8)?;
            assert!(first == a && (1..=a).contains(&b) && a <= 2, "seen a {first} and {a}, b {b}");
            Ok(())
        },
    },
    Model {
        name: "a session changed, removed and another made, a snapshot",
        switches_max: 2,
        ends: true,
        prepare: |region| ["a", "b"].iter().for_each(|key| write(region, "s", key, 1, 8)),
        work: |region| {
            ["a", "b"].iter().for_each(|key| write(region, "s", key, 2, 8));
            let ns = session(region, "s");
            region.remove(ns);
            // As many changes as the first session had when the reader came: its record, used again, has the same sequence then.
            ["a", "b"].iter().for_each(|key| write(region, "t", key, 9, 8));
        },
        read: |eye| {
            let [a, b] = eye.snapshot("a\0b\0", 8)?;
            assert!(1 <= b && b <= a && a <= 2, "seen a {a}, b {b}");
            Ok(())
        },
    },
    Model {
        name: "a write, then a transaction into the slot it left",
        switches_max: 3,
        ends: false,
        prepare: |region| write(region, "s", "k", 1, INLINE),
        work: |region| {
            write(region, "s", "k", 2, INLINE);
            assert!(write_many(region, &[("k", 3)], INLINE, SESSION_BYTES));
        },
        read: |eye| {
            let first = eye.see("k", INLINE)?;
            let second = eye.see("k", INLINE)?;
            assert!((1..=3).contains(&first) && (first..=3).contains(&second), "seen {first}, then {second}");
            Ok(())
        },
    },
    Model {
        name: "a write, then a deletion that is given up",
        switches_max: 3,
        ends: false,
        prepare: |region| write(region, "s", "k", 1, 8),
        work: |region| {
            write(region, "s", "k", 2, 8);
            assert!(!write_many(region, &[("k", 0), ("n", 9), ("m", 9)], 8, 10));
        },
        read: |eye| {
            let value = eye.see("k", 8)?;
            assert!((1..=2).contains(&value), "seen {value}");
            Ok(())
        },
    },
];

fn make(model: &Model) -> Region {
    let options = RegionOptions { app: "app", shard: 0, bytes_max: 1 << 20, hash_tag: 0 };
    let mut region = Region::open_or_create(Path::new("/none"), &options).expect("a region without a file");
    (model.prepare)(&mut region);
    region
}

/// What the mutation takes from the reader: words it does not look at twice, and words of which it sees some bits.
fn blinkers(region: &Region, ns: NamespaceRef, mutation: Option<Mutation>) -> (Vec<usize>, Vec<(usize, u64)>) {
    let index = |at: Offset, word: usize| at.0 as usize / WORD_BYTES + word;
    let words = region.space.words();
    let cells = || namespace::cells(words, ns.record);
    match mutation {
        Some(Mutation::NoSecondLookAtHeader(word)) => (vec![index(HEADER, word)], Vec::new()),
        Some(Mutation::NoSecondLookAtVersion) => (cells().map(|cell| index(cell, 0)).collect(), Vec::new()),
        Some(Mutation::NoSecondLookAtSequence) => (vec![index(ns.record, 1)], Vec::new()),
        Some(Mutation::NoMark) => (Vec::new(), cells().map(|cell| (index(cell, 1), 0xFF)).collect()),
        _ => (Vec::new(), Vec::new()),
    }
}

impl Model {
    /// The model of that name, for tests that mutate it.
    pub fn named(name: &str) -> &'static Model {
        MODELS.iter().find(|model| model.name == name).expect("a model has that name")
    }

    /// Tries all orders, with `mutation` in the code. Output: their number. Panics when the reader sees what it must not.
    pub fn check(&'static self, mutation: Option<Mutation>) -> u64 {
        checked::set_mutation(mutation);
        checked::begin_alone(false);
        let mut region = make(self);
        checked::begin_alone(true);
        (self.work)(&mut region);
        let stored = checked::take_stored();
        drop(region);

        let runs = Arc::new(Counter::new(0));
        let counter = Arc::clone(&runs);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(self.switches_max);
        builder.max_branches = BRANCHES_MAX;
        builder.check(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            checked::begin_alone(false);
            let mut region = make(self);
            let ns = session(&mut region, "s");
            let eye = Eye { reader: region.reader(), ns };
            let (once, masked) = blinkers(&region, ns, checked::mutation());
            region.space.memory.words().begin_race(&stored);
            let reader = loom::thread::spawn(move || {
                checked::begin_reading(&once, &masked);
                match (self.read)(&eye) {
                    Ok(()) => {}
                    Err(ReadRefused::Gone) => assert!(self.ends, "seen gone, and it was there all the time"),
                    Err(refused) => assert!(refused == ReadRefused::Busy && checked::is_past_retries(), "seen {refused}"),
                }
            });
            (self.work)(&mut region);
            reader.join().expect("the reader came to an end");
        });
        runs.load(Ordering::Relaxed)
    }
}
