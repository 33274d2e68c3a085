//! What a snapshot of several keys is asked with and answered into: a list of NUL-terminated keys, and the bytes of `snapshot_read`.
//! Used by `Region` and `RegionReader`, and by whoever asks them: guests' host calls, and the RPC of secondary containers.

use xfaas_common::guest_abi::SNAPSHOT_MISSING;
use xfaas_common::limits::{KEY_BYTES_MAX, SNAPSHOT_KEYS_MAX};

/// Bytes of the longest list of keys.
pub const KEY_LIST_BYTES_MAX: usize = SNAPSHOT_KEYS_MAX * (KEY_BYTES_MAX + 1);

const LENGTH_BYTES: usize = size_of::<u32>();

/// Why bytes are no list of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeyList {
    #[error("no key, an empty one, or the last one has no NUL")]
    Malformed,
    #[error("more than {SNAPSHOT_KEYS_MAX} keys, or one over {KEY_BYTES_MAX} bytes")]
    OverLimit,
}

/// 1..=64 keys of 1..=255 bytes, each followed by a NUL.
#[derive(Clone, Copy, Debug)]
pub struct KeyList<'k> {
    bytes: &'k [u8],
}

impl<'k> KeyList<'k> {
    /// Cost: a look at each byte, `KEY_LIST_BYTES_MAX` at most; a longer list is `OverLimit` unseen. Errors: `Malformed` wins.
    pub fn new(bytes: &'k [u8]) -> Result<KeyList<'k>, BadKeyList> {
        if bytes.len() > KEY_LIST_BYTES_MAX {
            return Err(BadKeyList::OverLimit);
        }
        let list = KeyList { bytes };
        if bytes.last() != Some(&0) || list.iter().any(<[u8]>::is_empty) {
            return Err(BadKeyList::Malformed);
        }
        if list.iter().count() > SNAPSHOT_KEYS_MAX || list.iter().any(|key| key.len() > KEY_BYTES_MAX) {
            return Err(BadKeyList::OverLimit);
        }
        Ok(list)
    }

    pub fn iter(self) -> impl Iterator<Item = &'k [u8]> {
        let keys = self.bytes.split_last().map_or(&[][..], |(_, keys)| keys);
        keys.split(|byte| *byte == 0)
    }
}

/// The snapshot of a session that does not exist.
pub fn snapshot_of_nothing(keys: KeyList<'_>, sink: &mut impl SnapshotSink) {
    sink.begin();
    for key in keys.iter() {
        if !sink.has_own(key) {
            sink.missing();
        }
    }
}

/// Takes the values of a snapshot, one call a key in the order of the list.
pub trait SnapshotSink {
    /// The snapshot begins, or begins again: what was taken so far is void.
    fn begin(&mut self);

    /// True when the sink takes a value of its own for this key: then the region is not asked.
    fn has_own(&mut self, key: &[u8]) -> bool;

    /// The next key does not exist.
    fn missing(&mut self);

    /// Where to put the next value, at most `value_bytes` bytes.
    fn value(&mut self, value_bytes: usize) -> &mut [u8];
}

/// Writes a snapshot as guests get it: for each key a little-endian `u32` length and the bytes, as much as fits.
#[derive(Debug)]
pub struct SnapshotWriter<'b> {
    buf: &'b mut [u8],
    /// Full length so far, also of what did not fit.
    bytes: usize,
}

impl<'b> SnapshotWriter<'b> {
    pub fn new(buf: &'b mut [u8]) -> SnapshotWriter<'b> {
        SnapshotWriter { buf, bytes: 0 }
    }

    /// Length of the whole snapshot in bytes, of which the buffer holds as much as fits.
    pub fn full_bytes(&self) -> usize {
        self.bytes
    }

    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.bytes.min(self.buf.len());
        let end = self.bytes.saturating_add(bytes).min(self.buf.len());
        self.bytes += bytes;
        &mut self.buf[start..end]
    }

    fn length(&mut self, length: u32) {
        let room = self.room(LENGTH_BYTES);
        let copied = room.len();
        room.copy_from_slice(&length.to_le_bytes()[..copied]);
    }

    /// A value that comes from elsewhere than the region.
    pub fn own(&mut self, value: &[u8]) {
        let room = self.value(value.len());
        let copied = room.len();
        room.copy_from_slice(&value[..copied]);
    }
}

impl SnapshotSink for SnapshotWriter<'_> {
    fn begin(&mut self) {
        // What a void try copied may be another session's: none of it stays behind the end of a shorter answer.
        let written = self.bytes.min(self.buf.len());
        self.buf[..written].fill(0);
        self.bytes = 0;
    }

    fn has_own(&mut self, _key: &[u8]) -> bool {
        false
    }

    fn missing(&mut self) {
        self.length(SNAPSHOT_MISSING);
    }

    fn value(&mut self, value_bytes: usize) -> &mut [u8] {
        self.length(u32::try_from(value_bytes).unwrap_or(SNAPSHOT_MISSING)); // only a void try sees a length that no value has
        self.room(value_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_checked_malformed_first() {
        let new = |bytes: &'static [u8]| KeyList::new(bytes).map(|list| list.iter().collect::<Vec<_>>());
        assert_eq!(new(b"a\0"), Ok(vec![&b"a"[..]]));
        assert_eq!(new(b"a\0bc\0a\0"), Ok(vec![&b"a"[..], b"bc", b"a"]));
        for malformed in [&b""[..], b"a", b"\0", b"a\0\0", b"\0a\0", b"a\0b"] {
            assert_eq!(new(malformed), Err(BadKeyList::Malformed), "{malformed:?}");
        }
        let of = |key: &[u8], keys: usize, end: &[u8]| KeyList::new(&[&[key, b"\0"].concat().repeat(keys), end].concat()).map(drop);
        assert_eq!(of(&[7; 255], 64, b""), Ok(()));
        assert_eq!(of(&[7; 256], 1, b""), Err(BadKeyList::OverLimit));
        assert_eq!(of(&[7; 256], 1, b"\0"), Err(BadKeyList::Malformed));
        assert_eq!(of(b"k", 65, b""), Err(BadKeyList::OverLimit));
        assert_eq!(of(&[7; 255], 64, b"k\0"), Err(BadKeyList::OverLimit));
    }

    #[test]
    fn a_buffer_of_any_size_holds_the_start_of_the_answer() {
        let mut whole = [0xEE; 40];
        let write = |buf: &mut [u8]| {
            let mut writer = SnapshotWriter::new(buf);
            writer.value(3).fill(9);
            writer.begin();
            writer.own(b"seven b");
            writer.missing();
            writer.own(b"");
            writer.own(b"xy");
            writer.full_bytes()
        };
        assert_eq!(write(&mut whole), 25);
        assert_eq!(&whole[..25], b"\x07\0\0\0seven b\xFF\xFF\xFF\xFF\0\0\0\0\x02\0\0\0xy");
        for length in 0..25 {
            let mut part = [0xEE; 40];
            assert_eq!(write(&mut part[..length]), 25);
            assert_eq!((&part[..length], part[length]), (&whole[..length], 0xEE));
        }
    }
}
