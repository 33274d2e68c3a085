//! Lets sessions at rest leave memory when their app's region is nearly full, whatever its keep-alive policy says: those first whose frequency x cost
//! of a load / size is least, aged as in greedy-dual. A stage of the loop's timed work, called by `checkpoints`, which writes them.
//! Never drops what is in use, has timers that are due soon, or is not in the store.

use super::checkpoints::{Evicting, Leaves};
use super::lifecycle::AppSessions;
use super::turn::Shard;
use crate::session::{EvictionOrder, Evictor, KnownSession, LastUse, NO_TICKET, Priority, Use};
use crate::state::{NamespaceRef, RegionStats, SESSION_BUCKETS};
use crate::sys::clock::{self, SECOND_NS};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::EVICTION_SAMPLE_MAX;

/// Parts of a region's pages that are taken when sessions begin to leave, and of its bytes in use when they end, in 1/100.
const HIGH_PERCENT: u64 = 90;
const LOW_PERCENT: u64 = 80;
/// A write or a load that found no room frees this part of what is in use, wherever the marks are: large values need much at once.
const REFUSED_PART: u64 = 8;
/// How soon it is looked again after no session was found that may go.
const RETRY_NS: u64 = SECOND_NS / 4;
/// What a load takes as long as none was seen, and how much of the mean each one is.
const LOAD_US_AT_START: u64 = 1_000;
const LOAD_PART: u64 = 8;
/// Of a session's memory beside its keys and values, about: its record, and a cell a key.
const RECORD_BYTES: u64 = 256;
const CELL_BYTES: u64 = 64;

/// A session that may go.
struct Victim {
    priority: Priority,
    session: SessionId,
    table_hash: u32,
    bytes: u64,
    used_tenths: u32,
}

enum Stage {
    /// Sessions are gathered; so many parts of the region are left to be looked at.
    Gathering { left: usize },
    /// They leave, the last of the sample first, until it has so many.
    Leaving { kept: usize },
}

const GATHERING: Stage = Stage::Gathering { left: SESSION_BUCKETS };

/// The want of memory of one app on one shard.
pub(super) struct Pressure {
    evictor: Evictor,
    /// Sessions leave until no more bytes are in use than this; `None`: there is room.
    target_bytes: Option<u64>,
    refusals: u64,
    sample: Vec<Victim>,
    stage: Stage,
    /// The part of the region that is looked at next.
    bucket: usize,
    /// Of sessions that leave when they are written.
    leaving_bytes: u64,
    load_us: u64,
    retry_at_ns: u64,
}

impl Default for Pressure {
    fn default() -> Pressure {
        Pressure {
            evictor: Evictor::new(EvictionOrder::GreedyDual),
            target_bytes: None,
            refusals: 0,
            sample: Vec::new(),
            stage: GATHERING,
            bucket: 0,
            leaving_bytes: 0,
            load_us: LOAD_US_AT_START,
            retry_at_ns: 0,
        }
    }
}

fn low_mark(stats: &RegionStats) -> u64 {
    stats.bytes_max / 100 * LOW_PERCENT
}

/// True when sessions may be loaded that nobody has asked for yet.
pub(super) fn has_room_ahead(stats: &RegionStats) -> bool {
    stats.bytes_used < low_mark(stats)
}

impl Pressure {
    /// Of the evictor, to be kept with a session that is used now.
    #[inline(always)]
    pub(super) fn clock(&self) -> f64 {
        self.evictor.clock()
    }

    /// A session was loaded in so long.
    pub(super) fn on_load(&mut self, took_ns: u64) {
        self.load_us = (self.load_us * (LOAD_PART - 1) + took_ns / 1_000) / LOAD_PART;
    }

    /// A session that was to leave when it is written was, or could not be.
    pub(super) fn on_written(&mut self, bytes: u64) {
        self.leaving_bytes -= bytes;
    }

    /// How many bytes may be in use; `None`: as many as are.
    fn judge(&mut self, stats: &RegionStats, refusals: u64) -> Option<u64> {
        let low = low_mark(stats);
        if refusals > self.refusals {
            let eased = stats.bytes_blocks - stats.bytes_blocks / REFUSED_PART;
            self.target_bytes = Some(self.target_bytes.unwrap_or(low).min(eased));
        } else if self.target_bytes.is_none() && stats.bytes_used >= stats.bytes_max / 100 * HIGH_PERCENT {
            self.target_bytes = Some(low);
        }
        self.refusals = refusals;
        if self.target_bytes.is_some_and(|target_bytes| stats.bytes_blocks <= target_bytes) {
            self.rest();
        }
        self.target_bytes
    }

    fn rest(&mut self) {
        (self.target_bytes, self.stage) = (None, GATHERING);
        self.sample = Vec::new();
    }

    /// A part of the region was looked at.
    fn end_bucket(&mut self, now_ns: u64) {
        self.bucket = (self.bucket + 1) % SESSION_BUCKETS;
        let Stage::Gathering { left } = &mut self.stage else { return };
        *left -= 1;
        let is_whole = *left == 0;
        if !is_whole && self.sample.len() < EVICTION_SAMPLE_MAX {
            return;
        }
        if self.sample.is_empty() {
            self.retry_at_ns = now_ns + RETRY_NS;
            return self.rest();
        }
        self.sample.sort_unstable_by_key(|victim| std::cmp::Reverse(victim.priority));
        // Others may be worth less than the better half of a sample.
        self.stage = Stage::Leaving { kept: if is_whole { 0 } else { self.sample.len() / 2 } };
    }

    /// The next session that is to leave.
    fn next_victim(&mut self) -> Option<Victim> {
        let Stage::Leaving { kept } = self.stage else { return None };
        if self.sample.len() <= kept {
            self.sample.clear();
            self.stage = GATHERING;
            return None;
        }
        self.sample.pop()
    }
}

impl Shard {
    /// Lets some sessions of an app leave memory, if it is short. True while it is.
    pub(super) fn ease_pressure(&mut self, slot: usize, until_ns: u64) -> bool {
        let AppSessions { app: Some(app), keeping: Some(_), .. } = self.lifecycle.apps[slot] else { return false };
        if self.now_ns < self.lifecycle.apps[slot].pressure.retry_at_ns {
            return false;
        }
        while let Some(room) = self.lack(slot, app) {
            if clock::monotonic_ns() >= until_ns || room == 0 {
                return true;
            }
            if matches!(self.lifecycle.apps[slot].pressure.stage, Stage::Gathering { .. }) {
                self.gather(slot, app);
                continue;
            }
            let Some(victim) = self.lifecycle.apps[slot].pressure.next_victim() else { continue };
            if let Err(victim) = self.send_off(slot, app, victim) {
                self.lifecycle.apps[slot].pressure.sample.push(victim); // too much is being written: later
                return true;
            }
        }
        false
    }

    /// Bytes that are to be freed, beside those of sessions that are being written; `None`: there is room.
    fn lack(&mut self, slot: usize, app: u16) -> Option<u64> {
        let region = self.proxy.state().region(app)?;
        let (stats, refusals) = (region.stats(), region.refusals());
        let pressure = &mut self.lifecycle.apps[slot].pressure;
        let target_bytes = pressure.judge(&stats, refusals)?;
        Some(stats.bytes_blocks.saturating_sub(target_bytes).saturating_sub(pressure.leaving_bytes))
    }

    /// Looks for sessions that may go in the next part of the region.
    fn gather(&mut self, slot: usize, app: u16) {
        let Some(region) = self.proxy.state().region(app) else { return };
        let sessions: Vec<(SessionId, NamespaceRef)> = region.sessions_of(self.lifecycle.apps[slot].pressure.bucket).collect();
        for (session, namespace) in sessions {
            let victim = self.weigh(slot, app, session, namespace);
            self.lifecycle.apps[slot].pressure.sample.extend(victim);
        }
        let now_ns = self.now_ns;
        self.lifecycle.apps[slot].pressure.end_bucket(now_ns);
    }

    /// `None`: the session must stay.
    fn weigh(&mut self, slot: usize, app: u16, session: SessionId, namespace: NamespaceRef) -> Option<Victim> {
        let table_hash = self.placement.hash(&session).table_hash();
        let known = self.meet(slot, &session, table_hash)?;
        let (used_tenths, frequency, clock) = (known.used_tenths, u32::from(known.frequency.max(1)), known.clock);
        if !self.may_leave(app, &session, table_hash) {
            return None;
        }
        let (held_bytes, keys) = self.proxy.state().region(app)?.namespace_size(namespace)?;
        let bytes = held_bytes + keys * CELL_BYTES + RECORD_BYTES;
        let pressure = &self.lifecycle.apps[slot].pressure;
        let last = Use { at_ms: u64::from(used_tenths) * 100, frequency, cold_us: pressure.load_us, size_bytes: bytes };
        Some(Victim { priority: pressure.evictor.priority_since(clock, &last), session, table_hash, bytes, used_tenths })
    }

    fn may_leave(&mut self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        self.proxy.last_use(app, session, table_hash) != LastUse::Now && self.timers_allow_rest(app, session, table_hash)
    }

    /// Drops a session that the store has, else has it written first. Errors: too much is being written.
    fn send_off(&mut self, slot: usize, app: u16, victim: Victim) -> Result<(), Victim> {
        let Victim { priority, session, table_hash, bytes, used_tenths } = victim;
        let region = self.proxy.state().region(app);
        let sequence = region.and_then(|region| region.namespace_sequence(region.find(&session, table_hash)?));
        let known = self.lifecycle.apps[slot].sessions.find_mut(&session, table_hash);
        // It may have been used, or have gone, since it was gathered.
        let is_as_it_was = |known: &&mut KnownSession| known.ticket == NO_TICKET && known.used_tenths == used_tenths;
        let Some((sequence, known)) = sequence.zip(known.filter(is_as_it_was)).filter(|_| !self.moves.concerns(app, &session)) else {
            return Ok(());
        };
        let evicting = Evicting { priority, bytes, used_tenths };
        if known.sequence == sequence {
            self.evict(slot, app, &session, table_hash, evicting);
            return Ok(());
        }
        if self.write_checkpoint(slot, app, &session, table_hash, sequence, Some(evicting)).is_err() {
            return Err(victim);
        }
        self.lifecycle.apps[slot].pressure.leaving_bytes += bytes;
        Ok(())
    }

    /// Drops a session for want of memory, unless it was used or changed since that was decided.
    pub(super) fn evict(&mut self, slot: usize, app: u16, session: &SessionId, table_hash: u32, evicting: Evicting) {
        let region = self.proxy.state().region(app);
        let sequence = region.and_then(|region| region.namespace_sequence(region.find(session, table_hash)?));
        let known = self.lifecycle.apps[slot].sessions.find_mut(session, table_hash);
        let is_as_it_was = known.is_some_and(|known| sequence == Some(known.sequence) && known.used_tenths == evicting.used_tenths);
        if is_as_it_was
            && self.may_leave(app, session, table_hash)
            && self.drop_from_memory(slot, app, session, table_hash, Leaves::ForRoom)
        {
            self.lifecycle.apps[slot].pressure.evictor.on_eviction(evicting.priority);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn stats(used_mib: u64, blocks_mib: u64) -> RegionStats {
        RegionStats { bytes_max: 100 * MIB, bytes_used: used_mib * MIB, bytes_blocks: blocks_mib * MIB, ..RegionStats::default() }
    }

    fn victim(name: &str, priority: Priority) -> Victim {
        Victim { priority, session: SessionId::new(name.as_bytes()).unwrap(), table_hash: 0, bytes: 1, used_tenths: 0 }
    }

    #[test]
    fn sessions_leave_from_the_high_mark_on_down_to_the_low_one() {
        let mut pressure = Pressure::default();
        assert_eq!(pressure.judge(&stats(89, 89), 0), None);
        assert_eq!(pressure.judge(&stats(91, 90), 0), Some(80 * MIB));
        assert_eq!(pressure.judge(&stats(91, 81), 0), Some(80 * MIB));
        assert_eq!(pressure.judge(&stats(91, 80), 0), None, "pages that are half empty are compacted");
        assert_eq!(pressure.judge(&stats(85, 85), 0), None);
    }

    #[test]
    fn what_found_no_room_frees_an_eighth_wherever_the_marks_are() {
        let mut pressure = Pressure::default();
        assert_eq!(pressure.judge(&stats(60, 56), 1), Some(49 * MIB));
        assert_eq!(pressure.judge(&stats(60, 52), 1), Some(49 * MIB));
        assert_eq!(pressure.judge(&stats(60, 49), 1), None);
        assert_eq!(pressure.judge(&stats(60, 49), 1), None, "once");
        assert_eq!(pressure.judge(&stats(99, 96), 2), Some(80 * MIB), "the marks hold too");
    }

    #[test]
    fn the_least_worth_leave_first_and_of_a_part_only_the_lower_half() {
        let mut pressure = Pressure::default();
        let priority = |frequency| pressure.evictor.priority(&Use { at_ms: 0, frequency, cold_us: 1, size_bytes: MIB });
        let sample: Vec<Victim> = [("b", 2), ("d", 4), ("a", 1), ("c", 3)].map(|(name, often)| victim(name, priority(often))).into();
        let names = |pressure: &mut Pressure| -> Vec<String> {
            std::iter::from_fn(|| pressure.next_victim()).map(|victim| victim.session.as_str().to_owned()).collect()
        };
        pressure.sample = sample;
        (1..SESSION_BUCKETS).for_each(|_| pressure.end_bucket(0));
        assert!(pressure.next_victim().is_none(), "a part of the region is left");
        pressure.end_bucket(0);
        assert_eq!(names(&mut pressure), ["a", "b", "c", "d"]);
        let low = pressure.evictor.priority(&Use { at_ms: 0, frequency: 1, cold_us: 1, size_bytes: MIB });
        pressure.sample = (0..EVICTION_SAMPLE_MAX).map(|at| victim(&at.to_string(), low)).collect();
        pressure.end_bucket(0);
        assert_eq!(names(&mut pressure).len(), EVICTION_SAMPLE_MAX / 2);
        assert!(matches!(pressure.stage, Stage::Gathering { left: SESSION_BUCKETS }) && pressure.bucket == 1);
        (0..SESSION_BUCKETS).for_each(|_| pressure.end_bucket(7));
        assert_eq!(pressure.retry_at_ns, 7 + RETRY_NS, "nobody may go");
    }
}
