//! Flipped bits: a region that is opened all the same must behave like any other from then on, to its owner and to readers.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use proptest::collection::vec;
use proptest::prelude::*;
use xfaas_common::limits::VALUE_BYTES_MAX;

use super::Region;
use super::region_tests::{Scratch, open, session};

const MIB: u64 = 2;
const SESSIONS: u8 = 12;
const KEYS: u8 = 10;
const SESSION_BYTES: usize = 1 << 20;
/// Header and session table; page table; pages in use. The offsets are those of `layout`.
const PLACES: [Range<u64>; 3] = [0..(12 << 10), (16 << 10)..(16 << 10) + 256, 0x81_0000..0x81_0000 + (1 << 20)];

fn key(number: u8) -> Vec<u8> {
    vec![b'k'; usize::from(number) + 1]
}

/// Lengths from inline to several blocks of one piece.
fn value(number: u8, seed: u8) -> Vec<u8> {
    vec![seed; usize::from(number) * 600]
}

fn write_all(region: &mut Region, seed: u8) -> usize {
    let mut written = 0;
    for index in 0..SESSIONS {
        let (id, table_hash) = session(index);
        let ns = region.find_or_create(&id, table_hash).unwrap();
        let (single, together) = (0..KEYS / 2, KEYS / 2..KEYS);
        // What was leaked by the damage is free again: there is room.
        for number in single {
            region.write(ns, &key(number), &value(number, seed), SESSION_BYTES).unwrap();
        }
        let writes: Vec<_> = together.map(|number| (key(number), value(number, seed))).collect();
        region.write_many(ns, writes.iter().map(|(key, value)| (&key[..], Some(&value[..]))), SESSION_BYTES).unwrap();
        written += usize::from(KEYS);
    }
    written
}

/// Reads every key of every session, as the owner and as a reader. Output: how many have the value that `write_all` gave them.
fn read_all(region: &Region, seed: u8) -> usize {
    let reader = region.reader();
    let (mut buf, mut other) = (vec![0; VALUE_BYTES_MAX], vec![0; VALUE_BYTES_MAX]);
    let mut found = 0;
    for index in 0..SESSIONS {
        let (id, table_hash) = session(index);
        let Some(ns) = region.find(&id, table_hash) else { continue };
        assert_eq!(reader.find(&id, table_hash).unwrap(), Some(ns));
        for number in 0..KEYS {
            let length = region.read(ns, &key(number), &mut buf);
            assert!(length.is_none_or(|length| length <= VALUE_BYTES_MAX));
            assert_eq!(reader.read(ns, &key(number), &mut other).unwrap(), length);
            assert!(buf[..length.unwrap_or(0)] == other[..length.unwrap_or(0)]);
            found += usize::from(length == Some(value(number, seed).len()) && buf[..length.unwrap_or(0)].iter().all(|byte| *byte == seed));
        }
        assert!(region.keys(ns).count() as u64 == region.namespace_size(ns).unwrap().1);
    }
    found
}

fn flip(scratch: &Scratch, place: usize, at: u64, bit: u32) {
    let file = OpenOptions::new().read(true).write(true).open(scratch.path().join("app.1.region")).unwrap();
    let place = &PLACES[place];
    let at = place.start + at % (place.end - place.start);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
}

fn check(flips: &[(usize, u64, u32)]) {
    let scratch = Scratch::new();
    let mut region = open(&scratch, MIB).unwrap();
    assert_eq!(write_all(&mut region, b'a'), usize::from(SESSIONS) * usize::from(KEYS));
    drop(region);
    for (place, at, bit) in flips {
        flip(&scratch, *place, *at, *bit);
    }
    let mut region = match open(&scratch, MIB) {
        Ok(region) => region,
        Err(error) => {
            assert!(error.is_about_content(), "{error}");
            return;
        }
    };
    read_all(&region, b'a');
    let written = write_all(&mut region, b'b');
    assert_eq!(read_all(&region, b'b'), written);
    drop(region);
    let region = open(&scratch, MIB).unwrap_or_else(|error| panic!("what was taken once is taken again: {error}"));
    assert_eq!(read_all(&region, b'b'), written);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_region_with_flipped_bits_is_refused_or_works_like_any_other(flips in vec((0usize..3, any::<u64>(), 0u32..8), 1..9)) {
        check(&flips);
    }
}
