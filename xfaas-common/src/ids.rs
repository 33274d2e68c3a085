//! Identifiers: a session's text, its slot, the core that owns the slot, and a function's wire name.

use crate::limits::{NAME_BYTES_MAX, SESSION_ID_BYTES_MAX, SLOTS};

/// A session's identity: 1-64 bytes of 0x21-0x7E, chosen by the client or made by us. The text is the identity, a hash only steers.
/// Unused bytes are zero, so two IDs are equal exactly when the structs are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    length: u8,
    bytes: [u8; SESSION_ID_BYTES_MAX],
}

impl SessionId {
    /// Input: any bytes. Output: `None` when empty, longer than 64 bytes, or holding a byte outside 0x21-0x7E.
    pub fn new(text: &[u8]) -> Option<SessionId> {
        if text.is_empty() || text.len() > SESSION_ID_BYTES_MAX {
            return None;
        }
        let mut bytes = [0_u8; SESSION_ID_BYTES_MAX];
        bytes[..text.len()].copy_from_slice(text);
        // Of the padded form, whose length is fixed: that compiles to a few vector instructions. The padding is not visible.
        let visible = bytes.iter().fold(0_u8, |visible, byte| visible + u8::from(byte.is_ascii_graphic()));
        (usize::from(visible) == text.len()).then_some(SessionId { length: text.len() as u8, bytes })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The text as `str`; it is ASCII by construction.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).expect("0x21-0x7E is ASCII")
    }

    /// The text, zero-padded to 64 bytes: the form that is hashed.
    pub const fn padded(&self) -> &[u8; SESSION_ID_BYTES_MAX] {
        &self.bytes
    }

    /// Bytes of the text, 1..=64.
    pub const fn length(&self) -> u8 {
        self.length
    }
}

impl core::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SessionId({})", self.as_str())
    }
}

impl core::fmt::Display for SessionId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One of 16,384 hash buckets of session IDs, `0..SLOTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotIndex(pub u16);

impl SlotIndex {
    /// The slot as an index into an array of `SLOTS`.
    pub const fn index(self) -> usize {
        self.0 as usize % SLOTS
    }
}

/// Position of a shard in the configuration's list of CPUs, `0..CORES_MAX`; not a CPU number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CoreIndex(pub u16);

impl CoreIndex {
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// FNV-1a-32 of a function's name, its form in a datagram. Two functions of one node never share it: deploy refuses the second.
/// Source: draft-eastlake-fnv-21, section 6.1 (32-bit basis and prime).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionHash(pub u32);

impl FunctionHash {
    pub const fn of(name: &[u8]) -> FunctionHash {
        let mut hash: u32 = 0x811C_9DC5;
        let mut i = 0;
        while i < name.len() {
            hash = (hash ^ name[i] as u32).wrapping_mul(0x0100_0193);
            i += 1;
        }
        FunctionHash(hash)
    }
}

/// True for `[A-Za-z0-9_.-]{1,64}`: the names of functions and apps.
pub fn is_name(text: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.iter().all(|byte| NAME_BYTES[usize::from(*byte)])
}

/// Whether a name may hold each byte.
static NAME_BYTES: [bool; 256] = name_bytes();

const fn name_bytes() -> [bool; 256] {
    let mut are_name_bytes = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        are_name_bytes[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        byte += 1;
    }
    are_name_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_id_takes_visible_ascii_of_1_to_64_bytes() {
        assert!(SessionId::new(b"").is_none());
        assert!(SessionId::new(b"a b").is_none());
        assert!(SessionId::new(b"a\x7f").is_none());
        assert!(SessionId::new("é".as_bytes()).is_none());
        assert!(SessionId::new(&[b'x'; 65]).is_none());
        let longest = SessionId::new(&[b'~'; 64]).unwrap();
        assert_eq!(longest.as_bytes(), [b'~'; 64]);
        assert_eq!(SessionId::new(b"!").unwrap().as_str(), "!");
    }

    #[test]
    fn function_hash_is_fnv_1a_32() {
        // Vectors of draft-eastlake-fnv-21, appendix C.
        assert_eq!(FunctionHash::of(b""), FunctionHash(0x811c_9dc5));
        assert_eq!(FunctionHash::of(b"a"), FunctionHash(0xe40c_292c));
        assert_eq!(FunctionHash::of(b"foobar"), FunctionHash(0xbf9c_f968));
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(is_name(b"counter-rmw_1.2"));
        assert!(!is_name(b""));
        assert!(!is_name(b"a/b"));
        assert!(!is_name(&[b'a'; 65]));
    }
}
