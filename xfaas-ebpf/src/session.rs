//! A session ID as eight words, and the rules of a request datagram. Called by `parse` and `head`. Sees bytes only through `Source`.

use xfaas_common::drop_reason::DropReason;
use xfaas_common::hash::{HashKeys, SessionHash, session_hash_words};
use xfaas_common::limits::SESSION_ID_BYTES_MAX;
use xfaas_common::wire::{HEADER_BYTES, Header};

use crate::parse::opaque_zero;

const WORDS: usize = SESSION_ID_BYTES_MAX / 8;
/// Times a byte: the same byte eight times.
pub(crate) const EACH: u64 = 0x0101_0101_0101_0101;

/// Bytes that can be read eight at a time.
pub trait Source {
    /// Eight bytes from `offset` on, as a little-endian word; `None` when they cannot be read.
    fn word(&self, offset: u32) -> Option<u64>;
}

/// A session ID, zero-padded to 64 bytes, as little-endian words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionWords {
    pub words: [u64; WORDS],
    /// Bytes of the ID, 1..=64.
    pub length: u32,
}

impl SessionWords {
    /// No session: to be filled by `read_session`.
    #[inline(always)]
    pub fn none() -> SessionWords {
        // Eight stores. Of a zero that it knows, the compiler makes a call that stores byte by byte: 20 ns.
        let zero = opaque_zero();
        SessionWords { words: [zero; WORDS], length: 0 }
    }

    #[inline(always)]
    pub fn hash(&self, keys: &HashKeys) -> SessionHash {
        session_hash_words(keys, &self.words, self.length as u8)
    }
}

/// Why there is no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The rules are broken: the datagram gets no answer.
    Malformed(DropReason),
    /// Some bytes could not be read here: someone else decides.
    Unreadable,
}

/// Holds a datagram's payload against CONTRACT.md section 2.
/// Input: the payload and its length in bytes. Output: `session` is filled, unless it fails. Cost: 5 to 13 reads.
#[inline(always)]
pub fn request_session<S: Source>(payload: &S, payload_bytes: u32, session: &mut SessionWords) -> Result<(), Fault> {
    if payload_bytes < HEADER_BYTES as u32 {
        return Err(Fault::Malformed(DropReason::Truncated));
    }
    let Some(header) = header(payload) else { return Err(Fault::Unreadable) };
    if let Some(reason) = header.request_fault(payload_bytes as usize) {
        return Err(Fault::Malformed(reason));
    }
    // The header's length is at least 1, so the eight bytes before the ID's end always exist: they begin in the header.
    match read_session(payload, HEADER_BYTES as u32, u32::from(header.session_len), session) {
        Some(true) => Ok(()),
        Some(false) => Err(Fault::Malformed(DropReason::BadSessionByte)),
        None => Err(Fault::Unreadable),
    }
}

#[inline(always)]
fn header<S: Source>(payload: &S) -> Option<Header> {
    let a = payload.word(0)?.to_le_bytes();
    let b = payload.word(8)?;
    let c = payload.word(16)?;
    let d = payload.word(24)?;
    Some(Header {
        magic: [a[0], a[1]],
        version: a[2],
        kind: a[3],
        flags: [a[4], a[5]],
        session_len: a[6],
        status: a[7],
        request_id: b.to_le_bytes(),
        function: (c as u32).to_le_bytes(),
        payload_len: ((c >> 32) as u32).to_le_bytes(),
        reserved: d.to_le_bytes(),
    })
}

/// Reads the ID of `length` bytes, 1..=64, at `offset`, which is at least 8: the last bytes are taken from a word that ends with the
/// ID, so nothing behind it is read. Input: `session` as `none` made it. Output: whether all bytes of the ID are 0x21-0x7E; `None` when
/// some cannot be read.
#[inline(always)]
pub fn read_session<S: Source>(source: &S, offset: u32, length: u32, session: &mut SessionWords) -> Option<bool> {
    let last = source.word(offset + length - 8)?;
    let mut valid = true;
    session.length = length;
    let mut i = 0;
    while i < WORDS {
        let from = 8 * i as u32;
        if length <= from {
            break;
        }
        if length >= from + 8 {
            let word = source.word(offset + from)?;
            valid &= is_visible(word);
            session.words[i] = word;
        } else {
            let pad_bits = 8 * (from + 8 - length);
            // The bytes before the ID leave at the lower end; zeros enter at the upper.
            let word = last >> pad_bits;
            valid &= is_visible(word | (EACH * 0x21) << (64 - pad_bits));
            session.words[i] = word;
        }
        i += 1;
    }
    Some(valid)
}

/// True when all eight bytes are 0x21..=0x7E. Two additions without carries between bytes: with the top bit clear, adding 1 sets it
/// exactly for 0x7F, and adding 0x5F sets it exactly from 0x21 on.
#[inline(always)]
const fn is_visible(word: u64) -> bool {
    const TOP: u64 = EACH * 0x80;
    if word & TOP != 0 {
        return false;
    }
    (word + EACH) & TOP == 0 && (word + EACH * 0x5F) & TOP == TOP
}
