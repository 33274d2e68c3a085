//! Fragmentation under a long run of random writes of mixed and drifting sizes: one region at 70% fill, changed as its shard changes it.
//! What is measured is `RegionStats::fragmentation`, the part of the pages taken that holds nothing.

mod output;

pub use self::output::{curve, json_lines};

use hdrhistogram::Histogram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::SESSION_STATE_BYTES_MAX;
use xfaas_dataplane::state::{Region, RegionError, RegionOptions, RegionStats, StateError};

/// Fragmentation at or over which the soak has failed.
pub const FRAGMENTATION_MAX: f64 = 0.20;
/// Part of the region that holds values and records, in 1/100.
const FILL_PERCENT: u64 = 70;
/// A phase ends after so many turnovers of the region's content, or so many operations for each MiB.
const PHASE_TURNOVERS: f64 = 4.0;
const PHASE_OPERATIONS_PER_MIB: u64 = 10_000;
/// Turnovers that are not judged: until the region has been filled, and then this.
const WARM_UP_TURNOVERS: f64 = 1.0;
/// A shard sweeps 40 times a second and gives each time so many bytes of work to compaction: here, at 100,000 operations a second.
const OPERATIONS_PER_SWEEP: u64 = 2_500;
const SWEEP_BYTES_MAX: usize = 64 << 10;
/// Operations between two points of the curve, and between two looks at the clock.
const OPERATIONS_PER_POINT: u64 = 2_000;
const VALUE_BYTES_MAX: usize = 64 << 10;
const WRITE_NS_MAX: u64 = 10_000_000_000;

/// A mix of sizes: lengths are spread evenly over the doublings from `2^low` to `2^high` bytes.
struct Phase {
    name: &'static str,
    low: f64,
    high: f64,
    keys_per_session: u64,
    /// The mix is reached by and by in the first half of the phase, not at once.
    drifts: bool,
}

const PHASES: [Phase; 8] = [
    Phase { name: "mixed", low: 4.0, high: 16.0, keys_per_session: 64, drifts: false },
    Phase { name: "small", low: 4.0, high: 10.0, keys_per_session: 8, drifts: true },
    Phase { name: "large", low: 12.0, high: 16.0, keys_per_session: 64, drifts: false },
    Phase { name: "middle", low: 8.0, high: 12.0, keys_per_session: 16, drifts: true },
    Phase { name: "mixed", low: 4.0, high: 16.0, keys_per_session: 1_000, drifts: true },
    Phase { name: "one key", low: 6.0, high: 9.0, keys_per_session: 1, drifts: false },
    Phase { name: "steps", low: 12.5, high: 12.9, keys_per_session: 32, drifts: false },
    Phase { name: "upper", low: 10.0, high: 14.0, keys_per_session: 32, drifts: true },
];

/// How long to run, and on what.
pub struct SoakOptions<'a> {
    /// The region is a file of this directory, which should be on tmpfs.
    pub directory: &'a Path,
    pub region_mib: u64,
    pub time_max: Duration,
    /// Ends earlier when the content was replaced so many times.
    pub turnovers_max: f64,
}

/// The region at one moment of the soak.
#[derive(Clone, Copy, Debug)]
pub struct SoakPoint {
    pub operations: u64,
    /// Times the content has been replaced: bytes written over bytes held, summed up.
    pub turnovers: f64,
    pub phase: &'static str,
    pub fragmentation: f64,
    /// The part of the pages taken that is not keys and values: fragmentation, and records of sessions, cells and tables.
    pub overhead: f64,
    pub sessions: u64,
    pub keys: u64,
    /// Not part of the judgement.
    pub is_warm_up: bool,
}

/// What a soak gives.
pub struct SoakReport {
    pub region_mib: u64,
    pub points: Vec<SoakPoint>,
    pub elapsed: Duration,
    /// Writes refused because the region was full: there must be none.
    pub refused: u64,
    /// Nanoseconds of writes of up to 1 KiB.
    pub write_ns: Histogram<u64>,
}

impl SoakReport {
    fn judged(&self) -> impl Iterator<Item = f64> {
        self.points.iter().filter(|point| !point.is_warm_up).map(|point| point.fragmentation)
    }

    /// The highest fragmentation after the warm-up.
    pub fn worst(&self) -> f64 {
        self.judged().fold(0.0, f64::max)
    }

    pub fn mean(&self) -> f64 {
        self.judged().sum::<f64>() / (self.judged().count().max(1) as f64)
    }

    pub fn last(&self) -> Option<&SoakPoint> {
        self.points.last()
    }

    /// False when memory was wasted, a write was refused, or the soak did not get past its warm-up.
    pub fn has_passed(&self) -> bool {
        let last = self.last().map_or(1.0, |point| point.fragmentation);
        self.judged().count() > 0 && self.worst() < FRAGMENTATION_MAX && last < FRAGMENTATION_MAX && self.refused == 0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SoakError {
    #[error("cannot make the region {}", path.display())]
    Region {
        path: PathBuf,
        #[source]
        source: RegionError,
    },
    #[error("a write was refused")]
    Write(#[from] StateError),
    #[error("session {session} has lost key {key}")]
    Lost { session: String, key: u32 },
}

struct Session {
    id: SessionId,
    table_hash: u32,
    keys: Vec<u32>,
}

/// Runs until the time or the turnovers are over. Deterministic but for the time.
/// Errors: the region cannot be made, or it misbehaves.
pub fn soak(options: &SoakOptions<'_>) -> Result<SoakReport, SoakError> {
    let mut load = Load::new(options)?;
    let (mut points, started) = (Vec::new(), Instant::now());
    let phase_operations_max = PHASE_OPERATIONS_PER_MIB * options.region_mib;
    let (mut operations, mut turnovers, mut filled_at) = (0u64, 0.0, None);
    for (number, phase) in PHASES.iter().cycle().enumerate() {
        let former = &PHASES[(number + PHASES.len() - 1) % PHASES.len()];
        let (turnovers_before, operations_before) = (turnovers, operations);
        while turnovers - turnovers_before < PHASE_TURNOVERS && operations - operations_before < phase_operations_max {
            let share = (turnovers - turnovers_before) / PHASE_TURNOVERS;
            let (low, high) = phase.bounds(former, share.max((operations - operations_before) as f64 / phase_operations_max as f64));
            let length = load.random.length(low, high);
            let written = load.operate(length, phase.keys_per_session)?;
            operations += 1;
            let stats = load.region.stats();
            // While it is being filled, no more is replaced than what was there.
            turnovers += written as f64 / stats.bytes_live.max(load.goal_bytes / 8) as f64;
            if filled_at.is_none() && stats.bytes_held >= load.goal_bytes {
                filled_at = Some(turnovers);
            }
            if operations.is_multiple_of(OPERATIONS_PER_SWEEP) {
                load.region.compact_some(SWEEP_BYTES_MAX, &mut |_, _| false);
            }
            if operations.is_multiple_of(OPERATIONS_PER_POINT) {
                let is_warm_up = filled_at.is_none_or(|at| turnovers < at + WARM_UP_TURNOVERS);
                points.push(SoakPoint { operations, turnovers, is_warm_up, ..SoakPoint::new(phase.name, &stats) });
                if started.elapsed() >= options.time_max || turnovers >= options.turnovers_max {
                    let Load { refused, write_ns, .. } = load;
                    return Ok(SoakReport { region_mib: options.region_mib, points, elapsed: started.elapsed(), refused, write_ns });
                }
            }
        }
    }
    unreachable!("the phases come round again and again")
}

impl SoakPoint {
    fn new(phase: &'static str, stats: &RegionStats) -> SoakPoint {
        SoakPoint {
            operations: 0,
            turnovers: 0.0,
            phase,
            fragmentation: stats.fragmentation(),
            overhead: 1.0 - stats.bytes_live as f64 / stats.bytes_used.max(1) as f64,
            sessions: stats.sessions,
            keys: stats.keys,
            is_warm_up: true,
        }
    }
}

impl Phase {
    /// The bounds of lengths after `share` of the phase, as powers of two.
    fn bounds(&self, former: &Phase, share: f64) -> (f64, f64) {
        let reached = if self.drifts { (share * 2.0).min(1.0) } else { 1.0 };
        (former.low + (self.low - former.low) * reached, former.high + (self.high - former.high) * reached)
    }
}

/// SplitMix64, Steele et al. 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 32) as usize % end
    }

    fn length(&mut self, low: f64, high: f64) -> usize {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        ((low + (high - low) * unit).exp2() as usize).min(VALUE_BYTES_MAX)
    }
}

/// The region, and what it should hold.
struct Load {
    region: Region,
    /// Bytes it is to hold, records included.
    goal_bytes: u64,
    random: Random,
    sessions: Vec<Session>,
    keys: u64,
    serial: u32,
    value: Vec<u8>,
    refused: u64,
    write_ns: Histogram<u64>,
}

impl Load {
    fn new(options: &SoakOptions<'_>) -> Result<Load, SoakError> {
        let path = options.directory.join("soak.0.region");
        let region_options = RegionOptions { app: "soak", shard: 0, bytes_max: options.region_mib << 20, hash_tag: 0 };
        let region = Region::open_or_create(&path, &region_options).map_err(|source| SoakError::Region { path, source })?;
        Ok(Load {
            region,
            goal_bytes: (options.region_mib << 20) * FILL_PERCENT / 100,
            random: Random(0x5EED),
            sessions: Vec::new(),
            keys: 0,
            serial: 0,
            value: (0..VALUE_BYTES_MAX).map(|i| i as u8).collect(),
            refused: 0,
            write_ns: Histogram::new_with_bounds(1, WRITE_NS_MAX, 3).expect("the bounds make sense"),
        })
    }

    /// One operation: over the goal a key or a session goes, under it a value of `length` bytes is written. Output: bytes written.
    fn operate(&mut self, length: usize, keys_per_session: u64) -> Result<usize, SoakError> {
        let draw = self.random.below(100);
        let sessions_wanted = self.keys / keys_per_session + 8;
        if self.region.stats().bytes_held >= self.goal_bytes {
            let is_crowded = self.sessions.len() as u64 > sessions_wanted;
            return if draw < if is_crowded { 10 } else { 1 } { self.remove_session() } else { self.delete() };
        }
        match draw {
            0..4 if self.keys > 0 => self.delete(),
            4..45 if self.keys > 0 => self.overwrite(length),
            _ => self.insert(length, sessions_wanted),
        }
    }

    fn remove_session(&mut self) -> Result<usize, SoakError> {
        let at = self.random.below(self.sessions.len());
        let session = self.sessions.swap_remove(at);
        self.keys -= session.keys.len() as u64;
        if let Some(ns) = self.region.find(&session.id, session.table_hash) {
            self.region.remove(ns);
        }
        Ok(0)
    }

    fn delete(&mut self) -> Result<usize, SoakError> {
        let at = self.random.below(self.sessions.len());
        let session = &mut self.sessions[at];
        let key = session.keys.swap_remove(self.random.below(session.keys.len()));
        let ns = self.region.find(&session.id, session.table_hash);
        if !ns.is_some_and(|ns| self.region.delete(ns, &key.to_le_bytes())) {
            return Err(SoakError::Lost { session: session.id.as_str().to_owned(), key });
        }
        self.keys -= 1;
        if session.keys.is_empty() {
            let session = self.sessions.swap_remove(at);
            ns.into_iter().for_each(|ns| self.region.remove(ns));
            drop(session);
        }
        Ok(0)
    }

    fn overwrite(&mut self, length: usize) -> Result<usize, SoakError> {
        let at = self.random.below(self.sessions.len());
        let key = self.sessions[at].keys[self.random.below(self.sessions[at].keys.len())];
        self.write(at, key, length)?;
        Ok(length)
    }

    fn insert(&mut self, length: usize, sessions_wanted: u64) -> Result<usize, SoakError> {
        self.serial = self.serial.wrapping_add(1);
        let key = self.serial;
        let at = if (self.sessions.len() as u64) < sessions_wanted {
            let id = SessionId::new(format!("session-{key:08}").as_bytes()).expect("a session ID");
            self.sessions.push(Session { id, table_hash: self.random.next() as u32, keys: Vec::new() });
            self.sessions.len() - 1
        } else {
            self.random.below(self.sessions.len())
        };
        if self.write(at, key, length)? {
            self.sessions[at].keys.push(key);
            self.keys += 1;
            return Ok(length + size_of_val(&key));
        }
        if self.sessions[at].keys.is_empty() {
            self.sessions.swap_remove(at);
        }
        Ok(0)
    }

    /// False when the region was full.
    fn write(&mut self, at: usize, key: u32, length: usize) -> Result<bool, SoakError> {
        let session = &self.sessions[at];
        let started = Instant::now();
        let ns = self.region.find_or_create(&session.id, session.table_hash);
        let written = ns.and_then(|ns| self.region.write(ns, &key.to_le_bytes(), &self.value[..length], SESSION_STATE_BYTES_MAX));
        if length <= 1_024 {
            self.write_ns.saturating_record(started.elapsed().as_nanos() as u64);
        }
        match written {
            Ok(()) => Ok(true),
            Err(StateError::RegionFull) => {
                self.refused += 1;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::scratch_directory;

    #[test]
    fn a_short_soak_gives_a_curve_and_stays_compact() {
        let directory = scratch_directory("soak-test").unwrap();
        let time_max = Duration::from_secs(4);
        let report = soak(&SoakOptions { directory: directory.path(), region_mib: 16, time_max, turnovers_max: 12.0 }).unwrap();
        let last = report.last().unwrap();
        assert!(last.turnovers > 1.0 && last.keys > 100 && report.refused == 0, "{last:?}");
        // So small a region has little more than a page for each size, so the bound is not that of the real soak.
        let judged: Vec<f64> = report.judged().collect();
        assert!(judged.iter().all(|fragmentation| (0.0..0.32).contains(fragmentation)), "{judged:?}");
        let json = json_lines(&report);
        let summary: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
        assert_eq!((summary["name"].as_str(), summary["region_mib"].as_u64()), (Some("soak"), Some(16)));
        assert_eq!(summary["passed"].as_bool(), Some(report.has_passed()));
        assert!(json.lines().count() <= 241);
        assert!(curve(&report).lines().count() > 4);
    }
}
