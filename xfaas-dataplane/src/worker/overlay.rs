//! The writes of an invocation of an `--atomic` function: seen by its own reads at once, by others when `handle` has returned 0.
//! Buffers are kept for the next invocation, so a warm call allocates nothing. What is large is charged to the budget of the guests' memories.

use super::memory_budget::{CHARGE_FREE_BYTES, Charge, MemoryBudget};
use crate::state::{StateError, timer_name};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use xfaas_common::limits::SESSION_KEYS_MAX;

/// Entries whose buffers are kept for the next invocation.
const ENTRIES_KEPT_MAX: usize = 64;
/// What an entry takes besides its key and value: itself, its place in the index, and what the allocator adds to three pieces of memory.
const ENTRY_BYTES: usize = 128;
/// End of a chain of entries with the same hash.
const NONE: u32 = u32::MAX;

#[derive(Default)]
pub(super) struct Overlay {
    /// The first `live` are this invocation's, in the order of their first write; the rest are spare buffers.
    entries: Vec<Entry>,
    live: usize,
    /// Keys by which the session will grow; negative if it loses timers.
    growth_keys: i64,
    /// Bytes of keys and values by which the session will grow; negative if it shrinks.
    growth_bytes: i64,
    /// Bytes of keys and values as they are now, cancelled timers included: what a commit to a primary carries.
    content_bytes: usize,
    /// Bytes of memory that the entries take, and what of them is charged.
    memory_bytes: usize,
    charge: Charge,
    /// Hash of a key -> the newest entry with that hash. Guests choose the keys, so the hash has a secret.
    index: HashMap<u64, u32>,
    hasher: RandomState,
}

#[derive(Default)]
struct Entry {
    key: Vec<u8>,
    value: Vec<u8>,
    /// Length of the longest value that this invocation has put here: a shorter one gives no memory back.
    value_bytes_max: u32,
    next: u32,
}

/// What the session has of one key.
#[derive(Clone, Copy, Default)]
struct Held {
    bytes: i64,
    keys: i64,
}

impl Held {
    /// Of a key with this value. An empty value cancels a timer.
    fn of(key: &[u8], value_bytes: usize) -> Held {
        let is_cancelled = value_bytes == 0 && timer_name(key).is_some();
        if is_cancelled { Held::default() } else { Held { bytes: (key.len() + value_bytes) as i64, keys: 1 } }
    }
}

/// The session in the region, as a write finds it.
pub(super) struct SessionSize {
    pub(super) bytes: u64,
    pub(super) keys: u64,
    pub(super) bytes_max: usize,
    /// Length of the value that the region has for the key being written.
    pub(super) value_bytes: Option<usize>,
}

impl Overlay {
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        if self.live == 0 {
            return None;
        }
        self.find(key).map(|at| self.entries[at].value.as_slice())
    }

    /// What the writes take beyond a little is charged to this budget.
    #[inline(always)]
    pub(super) fn set_budget(&mut self, budget: &Arc<MemoryBudget>) {
        self.charge.set_budget(budget);
    }

    /// Errors: with this write the session would hold more bytes or keys than it may, or all guests more memory; then nothing changes.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8], session: &SessionSize) -> Result<(), StateError> {
        let found = self.find(key);
        let replaced_bytes = found.map(|at| self.entries[at].value.len()).or(session.value_bytes);
        let before = replaced_bytes.map_or(Held::default(), |bytes| Held::of(key, bytes));
        let after = Held::of(key, value.len());
        let growth_bytes = self.growth_bytes + after.bytes - before.bytes;
        let bytes = session.bytes.saturating_add_signed(growth_bytes);
        if growth_bytes > self.growth_bytes && bytes > session.bytes_max as u64 {
            return Err(StateError::SessionFull { bytes: bytes as usize, bytes_max: session.bytes_max });
        }
        let growth_keys = self.growth_keys + after.keys - before.keys;
        let has_room = growth_keys <= self.growth_keys || session.keys.saturating_add_signed(growth_keys) <= SESSION_KEYS_MAX as u64;
        // Timers that are set and cancelled again are no keys in the end, and take memory all the same.
        if !has_room || (found.is_none() && self.live == SESSION_KEYS_MAX) {
            return Err(StateError::TooManyKeys);
        }
        let kept_bytes = found.map_or(0, |at| self.entries[at].value_bytes_max as usize);
        let entry_bytes = if found.is_some() { 0 } else { ENTRY_BYTES + key.len() };
        let memory_bytes = self.memory_bytes + entry_bytes + value.len().saturating_sub(kept_bytes);
        if !self.charge.cover(memory_bytes) {
            return Err(StateError::NoGuestMemory);
        }
        self.content_bytes = self.content_bytes_with(found, key, value);
        (self.growth_bytes, self.growth_keys, self.memory_bytes) = (growth_bytes, growth_keys, memory_bytes);
        let at = found.unwrap_or_else(|| self.add(key));
        let entry = &mut self.entries[at];
        entry.value.clear();
        entry.value.reserve_exact(value.len()); // not twice as much: that is what is charged
        entry.value.extend_from_slice(value);
        entry.value_bytes_max = entry.value_bytes_max.max(value.len() as u32);
        Ok(())
    }

    /// Bytes of keys and values when this write is done too.
    pub(super) fn content_bytes_after(&self, key: &[u8], value: &[u8]) -> usize {
        self.content_bytes_with(self.find(key), key, value)
    }

    fn content_bytes_with(&self, found: Option<usize>, key: &[u8], value: &[u8]) -> usize {
        let replaced_bytes = found.map_or(0, |at| key.len() + self.entries[at].value.len());
        self.content_bytes - replaced_bytes + key.len() + value.len()
    }

    /// A new entry for `key`, its value still to be set.
    fn add(&mut self, key: &[u8]) -> usize {
        let at = self.live;
        if at == self.entries.len() {
            self.entries.push(Entry::default());
        }
        let entry = &mut self.entries[at];
        entry.key.clear();
        entry.key.extend_from_slice(key);
        entry.value.clear();
        entry.value_bytes_max = 0;
        entry.next = self.index.insert(self.hasher.hash_one(key), at as u32).unwrap_or(NONE);
        self.live += 1;
        at
    }

    fn find(&self, key: &[u8]) -> Option<usize> {
        let mut at = self.index.get(&self.hasher.hash_one(key)).copied().unwrap_or(NONE);
        while at != NONE {
            let entry = &self.entries[at as usize];
            if entry.key == key {
                return Some(at as usize);
            }
            at = entry.next;
        }
        None
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Keys and values, in the order of each key's first write.
    pub(super) fn writes(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.entries[..self.live].iter().map(|entry| (entry.key.as_slice(), entry.value.as_slice()))
    }

    /// Names of the timers that are set (true) and cancelled (false).
    pub(super) fn timers(&self) -> impl Iterator<Item = (&[u8], bool)> {
        self.writes().filter_map(|(key, value)| Some((timer_name(key)?, !value.is_empty())))
    }

    pub(super) fn clear(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        // What is kept for the next invocation is charged to nobody.
        if self.memory_bytes > CHARGE_FREE_BYTES {
            self.entries = Vec::new();
        }
        self.entries.truncate(ENTRIES_KEPT_MAX);
        self.entries.iter_mut().for_each(|entry| entry.value.clear());
        self.index.clear();
        self.index.shrink_to(ENTRIES_KEPT_MAX);
        self.live = 0;
        (self.growth_bytes, self.growth_keys) = (0, 0);
        (self.content_bytes, self.memory_bytes) = (0, 0);
        self.charge.give_back();
    }

    /// What the writes are charged, to be kept for as long as a copy of them is.
    pub(super) fn take_charge(&mut self) -> Charge {
        self.charge.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::TimerKey;

    fn session(bytes: u64, keys: u64, value_bytes: Option<usize>) -> SessionSize {
        SessionSize { bytes, keys, bytes_max: 1_000, value_bytes }
    }

    #[test]
    fn a_cancelled_timer_makes_room_for_what_is_written_after_it() {
        let timer = TimerKey::new(b"t");
        let key_bytes = timer.as_bytes().len();
        let is_full = || session(1_000, SESSION_KEYS_MAX as u64, None);
        let mut overlay = Overlay::default();
        assert!(matches!(overlay.set(b"key", b"", &is_full()), Err(StateError::SessionFull { .. })));
        overlay.set(timer.as_bytes(), b"", &SessionSize { value_bytes: Some(100), ..is_full() }).unwrap();
        overlay.set(b"key", &vec![0; 97 + key_bytes], &is_full()).unwrap();
        assert!(matches!(overlay.set(b"k", b"", &session(0, SESSION_KEYS_MAX as u64, None)), Err(StateError::TooManyKeys)));
        assert!(matches!(overlay.set(timer.as_bytes(), b"", &is_full()), Ok(())), "it stays cancelled");
        assert!(matches!(overlay.set(timer.as_bytes(), b"r", &is_full()), Err(StateError::SessionFull { .. })), "and counts when set anew");
        assert_eq!(overlay.content_bytes_after(b"key", b"v"), key_bytes + 4, "a commit carries the mark");
        overlay.clear();
        overlay.set(timer.as_bytes(), b"record", &session(0, SESSION_KEYS_MAX as u64 - 1, None)).unwrap();
        overlay.set(timer.as_bytes(), b"", &session(0, SESSION_KEYS_MAX as u64 - 1, None)).unwrap();
        overlay.set(b"key", b"", &session(0, SESSION_KEYS_MAX as u64 - 1, None)).unwrap();
    }

    #[test]
    fn timers_set_and_cancelled_without_end_are_bounded() {
        let mut overlay = Overlay::default();
        let mut set = |number: usize| overlay.set(TimerKey::new(number.to_string().as_bytes()).as_bytes(), b"", &session(0, 0, None));
        (0..SESSION_KEYS_MAX).for_each(|number| set(number).unwrap());
        assert!(matches!(set(SESSION_KEYS_MAX), Err(StateError::TooManyKeys)));
        set(7).unwrap();
    }

    #[test]
    fn large_writes_are_charged_by_the_longest_value_and_given_back_at_the_end() {
        let budget = Arc::new(MemoryBudget::new((4 << 20) - (64 << 10)));
        let mut overlay = Overlay::default();
        overlay.set_budget(&budget);
        let session = || SessionSize { bytes_max: 64 << 20, ..session(0, 0, None) };
        let mebibyte = vec![1; 1 << 20];
        overlay.set(b"small", b"value", &session()).unwrap();
        assert_eq!(budget.taken(), 0);
        for number in 0..3 {
            overlay.set(&[number], &mebibyte, &session()).unwrap();
            overlay.set(&[number], b"", &session()).unwrap(); // its buffer stays
        }
        assert!((3 << 20..4 << 20).contains(&budget.taken()), "{}", budget.taken());
        assert!(matches!(overlay.set(b"large", &mebibyte, &session()), Err(StateError::NoGuestMemory)));
        assert_eq!(overlay.get(b"large"), None);
        overlay.set(&[0], &mebibyte, &session()).unwrap();
        overlay.clear();
        assert_eq!(budget.taken(), 0);
        overlay.set(b"large", &mebibyte, &session()).unwrap();
        let charge = overlay.take_charge();
        overlay.clear();
        assert!(budget.taken() >= 1 << 20, "somebody has a copy");
        drop(charge);
        assert_eq!(budget.taken(), 0);
    }
}
