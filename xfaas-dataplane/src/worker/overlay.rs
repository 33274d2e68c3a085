//! The writes of an invocation of an `--atomic` function: seen by its own reads at once, by others when `handle` has returned 0.
//! Buffers are kept for the next invocation, so a warm call allocates nothing.

use crate::state::{StateError, timer_name};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use xfaas_common::limits::SESSION_KEYS_MAX;

/// Entries whose buffers are kept for the next invocation.
const ENTRIES_KEPT_MAX: usize = 64;
/// Bytes above which a kept buffer is given back.
const BUFFER_BYTES_KEPT_MAX: usize = 64 << 10;
/// End of a chain of entries with the same hash.
const NONE: u32 = u32::MAX;

#[derive(Default)]
pub(super) struct Overlay {
    /// The first `live` are this invocation's, in the order of their first write; the rest are spare buffers.
    entries: Vec<Entry>,
    live: usize,
    /// Entries whose key the session does not have yet.
    new_keys: u64,
    /// Bytes of keys and values by which the session will grow; negative if it shrinks.
    growth_bytes: i64,
    /// Hash of a key -> the newest entry with that hash. Guests choose the keys, so the hash has a secret.
    index: HashMap<u64, u32>,
    hasher: RandomState,
}

#[derive(Default)]
struct Entry {
    key: Vec<u8>,
    value: Vec<u8>,
    next: u32,
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

    /// Errors: with this write the session would hold more bytes or keys than it may; then nothing changes.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8], session: &SessionSize) -> Result<(), StateError> {
        let found = self.find(key);
        let replaced_bytes = match found {
            Some(at) => self.entries[at].value.len() as i64,
            None => session.value_bytes.map_or(0, |bytes| bytes as i64),
        };
        let is_new_key = found.is_none() && session.value_bytes.is_none();
        let key_bytes = if is_new_key { key.len() as i64 } else { 0 };
        let growth_bytes = self.growth_bytes + key_bytes + value.len() as i64 - replaced_bytes;
        let bytes = session.bytes.saturating_add_signed(growth_bytes);
        if growth_bytes > self.growth_bytes && bytes > session.bytes_max as u64 {
            return Err(StateError::SessionFull { bytes: bytes as usize, bytes_max: session.bytes_max });
        }
        if is_new_key && session.keys + self.new_keys >= SESSION_KEYS_MAX as u64 {
            return Err(StateError::TooManyKeys);
        }
        self.growth_bytes = growth_bytes;
        self.new_keys += u64::from(is_new_key);
        let at = found.unwrap_or_else(|| self.add(key));
        let entry = &mut self.entries[at];
        entry.value.clear();
        entry.value.extend_from_slice(value);
        Ok(())
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
        for entry in &mut self.entries[..self.live.min(ENTRIES_KEPT_MAX)] {
            entry.value.clear();
            entry.value.shrink_to(BUFFER_BYTES_KEPT_MAX);
        }
        self.entries.truncate(ENTRIES_KEPT_MAX);
        self.index.clear();
        self.index.shrink_to(ENTRIES_KEPT_MAX);
        self.live = 0;
        self.new_keys = 0;
        self.growth_bytes = 0;
    }
}
