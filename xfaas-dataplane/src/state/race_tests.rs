//! Readers on other threads, through the owner's mapping and through one of their own, while the owner writes, deletes and removes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use xfaas_common::ids::SessionId;

use super::region_tests::{Scratch, open, session};
use super::{NamespaceRef, ReadRefused, RegionReader};

const SESSIONS: u8 = 6;
const KEYS: u8 = 7;
const RUN: Duration = Duration::from_millis(700);

/// SplitMix64, Steele et al. 2014.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The value number `sequence` of a key: its length and every byte follow from session, key and number, so that a torn or foreign one
/// shows. From 8 bytes on it starts with its number.
fn fill(out: &mut Vec<u8>, session: u8, key: u8, sequence: u64) {
    let random = mix(sequence << 16 | u64::from(session) << 8 | u64::from(key));
    let length = match random % 16 {
        0 => 0,
        1..8 => random >> 8 & 31,
        8..15 => random >> 8 & 4_095,
        _ => random >> 8 & 65_535,
    };
    out.clear();
    out.extend_from_slice(&sequence.to_le_bytes()[..8.min(length as usize)]);
    let mut state = random;
    while out.len() < length as usize {
        state = mix(state);
        let rest = length as usize - out.len();
        out.extend_from_slice(&state.to_le_bytes()[..8.min(rest)]);
    }
}

#[derive(Default)]
struct Seen {
    values: AtomicU64,
    missing: AtomicU64,
    refused: AtomicU64,
}

/// Reads until `stop`; each value must be one that was written to that key, and never one older than the last seen in the same place.
fn read_all(reader: &RegionReader, stop: &AtomicBool, seen: &Seen) {
    let ids: Vec<(SessionId, u32)> = (0..SESSIONS).map(session).collect();
    let mut newest = [[0u64; KEYS as usize]; SESSIONS as usize];
    let mut stale: [Option<NamespaceRef>; SESSIONS as usize] = [None; SESSIONS as usize];
    let (mut buf, mut expected) = (vec![0; 1 << 17], Vec::new());
    while !stop.load(Ordering::Relaxed) {
        for (index, (id, hash)) in ids.iter().enumerate() {
            let Ok(found) = reader.find(id, *hash) else {
                seen.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            // Also through references found long ago: gone ones must say so, whatever lies there now.
            for ns in [found, stale[index]].into_iter().flatten() {
                for key in 0..KEYS {
                    let length = match reader.read(ns, &[key + 1], &mut buf) {
                        Ok(Some(length)) => length,
                        Ok(None) => {
                            seen.missing.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        Err(ReadRefused::Missing) => unreachable!("only `Readers` says so"),
                        Err(ReadRefused::Busy | ReadRefused::Gone) => {
                            seen.refused.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                    };
                    seen.values.fetch_add(1, Ordering::Relaxed);
                    if length < 8 {
                        continue; // too short to carry its number
                    }
                    let sequence = u64::from_le_bytes(buf[..8].try_into().unwrap());
                    fill(&mut expected, index as u8, key, sequence);
                    assert!(buf[..length] == expected[..], "torn or foreign: session {index}, key {key}, {length} bytes");
                    let newest = &mut newest[index][usize::from(key)];
                    assert!(sequence >= *newest, "went back from {newest} to {sequence}");
                    *newest = sequence;
                }
            }
            if stale[index].is_none_or(|ns| found != Some(ns) && mix(index as u64) & 3 == 0) {
                stale[index] = found;
            }
        }
    }
}

#[test]
fn readers_beside_a_writing_owner_see_whole_values_of_their_key_only() {
    let scratch = Scratch::new();
    let mut region = open(&scratch, 8).unwrap();
    let own_mapping = RegionReader::open(region.path()).unwrap();
    let readers = [region.reader(), own_mapping];
    let (stop, seen) = (AtomicBool::new(false), Seen::default());
    let mut writes = 0u64;
    std::thread::scope(|scope| {
        let threads: Vec<_> = readers.iter().map(|reader| scope.spawn(|| read_all(reader, &stop, &seen))).collect();
        let started = Instant::now();
        let mut value = Vec::new();
        let is_short_of_reads = || seen.values.load(Ordering::Relaxed) < 1_000 && started.elapsed() < RUN * 20;
        while (started.elapsed() < RUN || is_short_of_reads()) && !threads.iter().any(|thread| thread.is_finished()) {
            for _ in 0..64 {
                writes += 1;
                let random = mix(writes);
                let (index, key) = ((random % u64::from(SESSIONS)) as u8, (random >> 8) as u8 % KEYS);
                let (id, hash) = session(index);
                let ns = region.find_or_create(&id, hash).unwrap();
                match random >> 16 & 63 {
                    0 => region.remove(ns),
                    1..8 => _ = region.delete(ns, &[key + 1]),
                    _ => {
                        fill(&mut value, index, key, writes);
                        region.write(ns, &[key + 1], &value, 64 << 20).unwrap();
                    }
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
    });
    let [values, missing, refused] = [&seen.values, &seen.missing, &seen.refused].map(|count| count.load(Ordering::Relaxed));
    println!("{writes} writes; reads: {values} values, {missing} missing, {refused} busy or gone");
    assert!(writes > 100 && values >= 1_000);
}

#[test]
fn a_counter_read_beside_its_owner_only_rises() {
    let scratch = Scratch::new();
    let mut region = open(&scratch, 4).unwrap();
    let (id, hash) = session(2);
    let ns = region.find_or_create(&id, hash).unwrap();
    region.write(ns, b"n", &[0; 16], 1 << 20).unwrap();
    let (reader, stop) = (region.reader(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let counted = scope.spawn(|| {
            let (mut last, mut reads, mut busy) = (0, 0u64, 0u64);
            while !stop.load(Ordering::Relaxed) {
                let mut buf = [0; 16];
                reads += 1;
                match reader.read(ns, b"n", &mut buf) {
                    Ok(length) => {
                        assert_eq!(length, Some(16));
                        let (low, high) = buf.split_at(8);
                        assert_eq!(low, high, "torn");
                        let count = u64::from_le_bytes(low.try_into().unwrap());
                        assert!(count >= last);
                        last = count;
                    }
                    Err(refused) => {
                        assert_eq!(refused, ReadRefused::Busy);
                        busy += 1;
                    }
                }
            }
            (last, reads, busy)
        });
        for count in 0..300_000u64 {
            let mut value = [0; 16];
            value[..8].copy_from_slice(&count.to_le_bytes());
            value[8..].copy_from_slice(&count.to_le_bytes());
            region.write(ns, b"n", &value, 1 << 20).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        let (last, reads, busy) = counted.join().unwrap();
        println!("last {last}, {reads} reads, {busy} busy");
    });
    let mut buf = [0; 16];
    assert_eq!(reader.read(ns, b"n", &mut buf), Ok(Some(16)));
    assert_eq!(u64::from_le_bytes(buf[..8].try_into().unwrap()), 299_999);
    region.remove(ns);
    assert_eq!(reader.read(ns, b"n", &mut buf), Err(ReadRefused::Gone));
}
