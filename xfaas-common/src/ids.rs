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
    /// Stands where no session is known yet; a text can be put into it.
    pub const PLACEHOLDER: SessionId = {
        let mut bytes = [0; SESSION_ID_BYTES_MAX];
        bytes[0] = b'-';
        SessionId { length: 1, bytes }
    };

    /// Input: any bytes. Output: `None` when empty, longer than 64 bytes, or holding a byte outside 0x21-0x7E.
    #[inline]
    pub fn new(text: &[u8]) -> Option<SessionId> {
        let mut session = SessionId::PLACEHOLDER;
        session.set(text).then_some(session)
    }

    /// As `new`, in its place. Output: false, and nothing is changed, where `new` gives `None`.
    #[inline]
    pub fn set(&mut self, text: &[u8]) -> bool {
        let length = text.len();
        if length == 0 || length > SESSION_ID_BYTES_MAX || !are_visible(text) {
            return false;
        }
        self.length = length as u8;
        self.bytes = [0; SESSION_ID_BYTES_MAX];
        match (text.first_chunk::<8>(), text.last_chunk::<8>()) {
            // The usual ones, put together in registers and stored in the words in which they are hashed: what is stored in other pieces than it is
            // loaded in has to get to the cache first.
            (Some(first), Some(last)) if length <= 16 => {
                let second = u64::from_le_bytes(*last).checked_shr(8 * (16 - length as u32)).unwrap_or(0);
                self.bytes[..8].copy_from_slice(first);
                self.bytes[8..16].copy_from_slice(&second.to_le_bytes());
            }
            _ => self.bytes[..length].copy_from_slice(text),
        }
        true
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

/// True if all bytes are 0x21-0x7E.
#[inline]
fn are_visible(text: &[u8]) -> bool {
    let Some(last) = text.last_chunk::<8>() else { return text.iter().all(u8::is_ascii_graphic) };
    text.as_chunks::<8>().0.iter().chain([last]).all(|eight| are_eight_visible(u64::from_le_bytes(*eight)))
}

/// The same of a word's bytes: none is below 0x21, which takes from the byte above, and none above 0x7E, which adds to it. A byte that another one
/// spoils so is not the first that is outside.
const fn are_eight_visible(word: u64) -> bool {
    const ONES: u64 = u64::MAX / 0xFF;
    (word.wrapping_sub(ONES * 0x21) | word.wrapping_add(ONES) | word) & (ONES * 0x80) == 0
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

/// FNV-1a-64 of an app's name: which app a container means. Unlike an index it means the same to the node's next process.
/// Source: draft-eastlake-fnv-21, section 6.2 (64-bit basis and prime).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AppHash(pub u64);

impl AppHash {
    /// Where nothing is said about an app. No name is known to have it.
    pub const NONE: AppHash = AppHash(0);

    pub const fn of(name: &[u8]) -> AppHash {
        let mut hash: u64 = 0xCBF2_9CE4_8422_2325;
        let mut i = 0;
        while i < name.len() {
            hash = (hash ^ name[i] as u64).wrapping_mul(0x0000_0100_0000_01B3);
            i += 1;
        }
        AppHash(hash)
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
    fn a_byte_outside_is_seen_wherever_it_stands_and_changes_nothing() {
        let mut session = SessionId::new(b"before").unwrap();
        for length in 1..=64 {
            let text: Vec<u8> = (0..length).map(|i| 0x21 + (i * 7 % 94) as u8).collect();
            let padded: Vec<u8> = text.iter().copied().chain(std::iter::repeat_n(0, 64 - length)).collect();
            let whole = SessionId::new(&text).unwrap();
            assert_eq!((whole.as_bytes(), &whole.padded()[..]), (&text[..], &padded[..]));
            for at in 0..length {
                for byte in 0..=255 {
                    let mut text = text.clone();
                    text[at] = byte;
                    let is_visible = byte.is_ascii_graphic();
                    assert_eq!(session.set(&text), is_visible, "{byte} at {at} of {length}");
                    let is = if is_visible { &text[..] } else { b"before" };
                    assert_eq!(session.as_bytes(), is);
                    session = SessionId::new(b"before").unwrap();
                }
            }
        }
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
