//! A read stopped at every one of its loads in turn, while the owner does something there: all interleavings with one switch to the owner
//! and back. What comes out must be a value the key had meanwhile, or "gone" or "missing" where that was true.

use std::cell::RefCell;
use std::rc::Rc;

use xfaas_common::ids::SessionId;

use super::namespace;
use super::region_tests::{Scratch, open, session};
use super::test_points;
use super::words::Offset;
use super::{NamespaceRef, ReadRefused, Region, RegionReader};

const MAX: usize = 64 << 20;
const KEY: &[u8] = b"key";

/// Session 0 is the one that is read; 2 has another hash, 1 the same lower 32 bits.
fn make(region: &mut Region, index: u8) -> NamespaceRef {
    let (id, hash) = session(index);
    region.find_or_create(&id, hash).unwrap()
}

fn write(region: &mut Region, index: u8, key: &[u8], value: &[u8]) {
    let ns = make(region, index);
    region.write(ns, key, value, MAX).unwrap();
}

fn remove(region: &mut Region, index: u8) {
    let (id, hash) = session(index);
    region.remove(region.find(&id, hash).unwrap());
}

fn other_key(number: u16) -> [u8; 3] {
    [b'o', number as u8, (number >> 8) as u8]
}

/// Values of session 0 start with `0`, all others with something else; length and filling differ.
fn own(length: usize, filling: u8) -> Vec<u8> {
    let mut value = vec![filling; length];
    value[0] = 0;
    value
}

/// One of many sessions, without keys.
fn crowd(region: &mut Region, number: u32) -> NamespaceRef {
    let id = SessionId::new(format!("c{number:06}").as_bytes()).unwrap();
    region.find_or_create(&id, number.wrapping_mul(0x9E37_79B9)).unwrap()
}

/// Where the cell of session 0's key lies.
fn place_of_key(region: &Region) -> Offset {
    let ns = region.find(&session(0).0, session(0).1).unwrap();
    let found = namespace::find_key(region.space.words(), ns.record, region.secret.hash(KEY), KEY);
    found.unwrap().unwrap()
}

struct Case {
    name: &'static str,
    prepare: fn(&mut Region),
    work: fn(&mut Region),
    /// True when session 0 has the key afterwards.
    key_stays: bool,
}

fn start(region: &mut Region, keys: u16, length: usize) {
    for number in 0..keys {
        write(region, 0, &other_key(number), b"x");
    }
    write(region, 0, KEY, &own(length, 1));
}

const CASES: &[Case] = &[
    Case {
        name: "overwritten once in its slot",
        prepare: |region| start(region, 0, 16),
        work: |region| write(region, 0, KEY, &own(9, 2)),
        key_stays: true,
    },
    Case {
        name: "overwritten until slot and block are the same again",
        prepare: |region| start(region, 2, 200),
        work: |region| (2..6).for_each(|filling| write(region, 0, KEY, &own(200, filling))),
        key_stays: true,
    },
    Case {
        name: "overwritten from pieces by a short value, the pieces used by another session",
        prepare: |region| start(region, 0, 20_000),
        work: |region| {
            write(region, 0, KEY, &own(3, 2));
            write(region, 2, KEY, &[7; 20_000]);
        },
        key_stays: true,
    },
    Case {
        name: "deleted, cell and block used for the same key of another session",
        prepare: |region| start(region, 1, 100),
        work: |region| {
            let ns = make(region, 0);
            assert!(region.delete(ns, KEY));
            write(region, 2, KEY, &[9; 100]);
        },
        key_stays: false,
    },
    Case {
        name: "deleted, the block used elsewhere and the cell not",
        prepare: |region| start(region, 1, 100),
        work: |region| {
            write(region, 2, b"longer key, another cell", b"");
            let ns = make(region, 0);
            assert!(region.delete(ns, KEY));
            write(region, 2, b"longer key, another cell", &[9; 100]);
        },
        key_stays: false,
    },
    Case {
        name: "removed, everything used for another session",
        prepare: |region| start(region, 0, 100),
        work: |region| {
            remove(region, 0);
            write(region, 6, KEY, &[9; 100]);
        },
        key_stays: false,
    },
    Case {
        name: "removed and made again",
        prepare: |region| start(region, 9, 100),
        work: |region| {
            remove(region, 0);
            write(region, 6, KEY, &[9; 100]);
            write(region, 0, KEY, &own(90, 3));
        },
        key_stays: true,
    },
    Case {
        name: "links become a table, and the old cells go",
        prepare: |region| start(region, 3, 30),
        work: |region| {
            (10..20).for_each(|number| write(region, 0, &other_key(number), b"y"));
            let ns = make(region, 0);
            assert!(region.delete(ns, KEY));
            write(region, 2, KEY, &[9; 30]);
        },
        key_stays: false,
    },
    Case {
        name: "nodes collapse and are used by another table",
        prepare: |region| start(region, 60, 30),
        work: |region| {
            let ns = make(region, 0);
            (0..60).for_each(|number| assert!(region.delete(ns, &other_key(number))));
            (0..60).for_each(|number| write(region, 2, &other_key(number), b"z"));
            write(region, 2, KEY, &[9; 30]);
        },
        key_stays: true,
    },
    Case {
        name: "cell, value and nodes moved, the places where they were used by another session",
        prepare: |region| {
            // Session 3 fills the second half of what session 0 comes to lie in, and goes at once.
            (0..1_100).for_each(|number| write(region, 2, &other_key(number), if number < 100 { &[8; 300] } else { b"x" }));
            (0..900).for_each(|number| write(region, 3, &other_key(number), &[8; 300]));
            start(region, 9, 300);
            remove(region, 3);
        },
        work: |region| {
            let before = region.stats().bytes_used;
            while region.compact_some(1 << 20, &mut |_, _| true) {}
            let after = region.stats().bytes_used;
            assert!(after + 3 * 65_536 <= before, "a page of each kind became free: {before}, {after}");
            (0..900).for_each(|number| write(region, 4, &other_key(number), &[9; 300]));
        },
        key_stays: true,
    },
    Case {
        name: "cell moved while its page lasts, then overwritten, its old block used by another session",
        prepare: |region| {
            (0..6).for_each(|index| _ = make(region, index)); // first, so that no node lies where it must move
            (0..1_100).for_each(|number| write(region, 2, &other_key(number), b"x"));
            (0..700).for_each(|number| write(region, 3, &other_key(number), b"x"));
            start(region, 2, 300);
            write(region, 5, KEY, b"x"); // in the same page, and the last one of all in the order of the hashes
            remove(region, 3);
        },
        work: |region| {
            let before = place_of_key(region);
            while place_of_key(region) == before {
                assert!(region.compact_some(1, &mut |_, _| true), "compaction ended without moving it");
            }
            write(region, 0, KEY, &own(200, 2));
            // No more, or the steps that go with them would come to the last session.
            (0..3).for_each(|number| write(region, 4, &other_key(number), &[9; 300]));
        },
        key_stays: true,
    },
    Case {
        name: "record moved, the place where it was used by another session",
        prepare: |region| {
            (0..700).for_each(|number| _ = crowd(region, number));
            start(region, 2, 30);
            (0..300).for_each(|number| {
                let ns = crowd(region, number);
                region.remove(ns);
            });
        },
        work: |region| {
            let before = region.find(&session(0).0, session(0).1);
            while region.compact_some(1 << 20, &mut |_, _| false) {}
            assert_ne!(region.find(&session(0).0, session(0).1), before);
            (1_000..1_800).for_each(|number| _ = crowd(region, number));
            write(region, 0, KEY, &own(31, 2));
        },
        key_stays: true,
    },
    Case {
        name: "pages of cells become pages of values that look like cells",
        prepare: |region| {
            // The last key's cell lies in a page of its own, the page before it has room, and lists of pieces have their page.
            write(region, 2, b"v", &[9; 65_536]);
            for number in 1..819 {
                write(region, 2, &other_key(number), b"x");
            }
            start(region, 0, 16);
            let ns = make(region, 2);
            assert!(region.delete(ns, &other_key(5)));
        },
        work: |region| {
            let ns = make(region, 0);
            assert!(region.delete(ns, KEY));
            // Each word is what the cell's version was, then what a length could be.
            for number in 0..3u16 {
                let value: Vec<u8> = 1u64.to_le_bytes().into_iter().chain(16u64.to_le_bytes()).cycle().take(65_536).collect();
                write(region, 2, &[b'v', number as u8 + 1], &value);
            }
        },
        key_stays: false,
    },
];

/// Reads with the owner at work before load number `loads`. False when the read was over before.
fn run(case: &Case, loads: u64) -> bool {
    let scratch = Scratch::new();
    let mut region = open(&scratch, 4).unwrap();
    (case.prepare)(&mut region);
    let ns = make(&mut region, 0);
    let reader: RegionReader = region.reader();
    let region = Rc::new(RefCell::new(region));
    let (work, owner) = (case.work, Rc::clone(&region));
    test_points::work_at_load(loads, Box::new(move || work(&mut owner.borrow_mut())));
    let mut buf = vec![0xEE; 70_000];
    let outcome = reader.read(ns, KEY, &mut buf);
    if test_points::no_more_work() {
        return false;
    }
    let place = format!("{}, at load {loads}: {outcome:?}", case.name);
    let now = region.borrow().find(&session(0).0, session(0).1);
    let was_removed = now != Some(ns);
    match outcome {
        Ok(Some(length)) => {
            assert!(length > 0 && buf[0] == 0, "{place}: foreign, starts with {:?}", &buf[..16]);
            let filling = buf[length - 1];
            assert!(filling > 0 && filling < 6 && buf[1..length].iter().all(|byte| *byte == filling), "{place}: torn");
        }
        Ok(None) => assert!(!case.key_stays && !was_removed, "{place}: it was there all the time"),
        Err(ReadRefused::Gone) => assert!(was_removed, "{place}: it was there all the time"),
        Err(ReadRefused::Busy) => panic!("{place}: the owner worked once only"),
        Err(ReadRefused::Missing) => unreachable!("only `Readers` says so"),
    }
    true
}

#[test]
fn a_read_interrupted_at_any_load_returns_a_value_of_its_key_or_says_why_not() {
    for case in CASES {
        // A long copy is the same load again and again: every load at first, then some.
        let mut loads = 0;
        while run(case, loads) {
            loads += 1 + loads / 40 * 7;
        }
        assert!(loads > 8, "{}: {loads} loads", case.name);
    }
}

#[test]
fn a_lookup_of_a_session_interrupted_at_any_load_finds_it_if_it_was_there_all_the_time() {
    for loads in 0.. {
        let scratch = Scratch::new();
        let mut region = open(&scratch, 4).unwrap();
        // Sessions 0, 1, 6 and 7 share all 32 bits that the node hashes, so their nodes lie deep and collapse when the others go.
        let all = [0, 1, 6, 7, 12, 13];
        all.iter().for_each(|index| _ = make(&mut region, *index));
        let reader = region.reader();
        let expected = make(&mut region, 0);
        let region = Rc::new(RefCell::new(region));
        let owner = Rc::clone(&region);
        let work = move || {
            let mut region = owner.borrow_mut();
            all[1..].iter().for_each(|index| remove(&mut region, *index));
            // The freed nodes become key tables.
            (0..200).for_each(|number| write(&mut region, 2, &other_key(number), b"x"));
        };
        test_points::work_at_load(loads, Box::new(work));
        let (id, hash) = session(0);
        assert_eq!(reader.find(&id, hash), Ok(Some(expected)), "at load {loads}");
        if test_points::no_more_work() {
            assert!(loads > 8);
            return;
        }
    }
}

#[test]
fn a_lookup_interrupted_while_its_session_moves_or_goes_never_gives_another_one() {
    let move_it: fn(&mut Region) = |region| while region.compact_some(1 << 20, &mut |_, _| false) {};
    let remove_it: fn(&mut Region) = |region| remove(region, 0);
    for work in [move_it, remove_it] {
        for loads in 0.. {
            let scratch = Scratch::new();
            let mut region = open(&scratch, 4).unwrap();
            (0..700).for_each(|number| _ = crowd(&mut region, number));
            start(&mut region, 2, 30);
            (0..300).for_each(|number| {
                let ns = crowd(&mut region, number);
                region.remove(ns);
            });
            let (reader, (id, hash)) = (region.reader(), session(0));
            let region = Rc::new(RefCell::new(region));
            let owner = Rc::clone(&region);
            let interrupt = move || work(&mut owner.borrow_mut());
            test_points::work_at_load(loads, Box::new(interrupt));
            let found = reader.find(&id, hash).unwrap();
            if test_points::no_more_work() {
                assert!(loads > 5);
                break;
            }
            let mut region = region.borrow_mut();
            let now = region.find(&id, hash);
            // Whatever comes to lie there, a reference found meanwhile leads to this session or nowhere.
            (1_000..1_800).for_each(|number| {
                let ns = crowd(&mut region, number);
                region.write(ns, KEY, &[9; 30], MAX).unwrap();
            });
            let mut buf = [0; 40];
            match found.map(|ns| reader.read(ns, KEY, &mut buf)) {
                None => assert_eq!(now, None, "at load {loads}"),
                Some(Ok(length)) => {
                    assert!(found == now && length == Some(30) && buf[..30] == own(30, 1), "at load {loads}: {:?}", &buf[..30])
                }
                Some(Err(refused)) => assert!(refused == ReadRefused::Gone && found != now, "at load {loads}: {refused}"),
            }
        }
    }
}

#[test]
fn a_reference_to_a_removed_session_stays_gone_whatever_is_written_where_its_record_was() {
    let scratch = Scratch::new();
    let mut region = open(&scratch, 4).unwrap();
    // Two pages of records; the second one is emptied and becomes a page of values.
    let id = |number: u32| (SessionId::new(format!("{number:08}").as_bytes()).unwrap(), number);
    write(&mut region, 2, b"v", &[9; 65_536]);
    let all: Vec<NamespaceRef> = (0..700).map(id).map(|(id, hash)| region.find_or_create(&id, hash).unwrap()).collect();
    region.remove(all[0]);
    all[600..].iter().for_each(|ns| region.remove(*ns));
    let (reader, mut buf) = (region.reader(), [0; 64]);
    for ns in &all[600..] {
        let forged: Vec<u8> = ns.incarnation.to_le_bytes().into_iter().cycle().take(65_536).collect();
        write(&mut region, 2, b"v", &forged);
        assert_eq!(reader.read(*ns, KEY, &mut buf), Err(ReadRefused::Gone));
        assert_eq!(region.read(*ns, KEY, &mut buf), None);
    }
}
