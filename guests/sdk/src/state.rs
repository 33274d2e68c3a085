//! Session state: `read_state` and `write_state` with both modes of the paper's Table 1.

use core::ffi::CStr;

use crate::error::{Error, length};
use crate::sys;
use xfaas_common::guest_abi;
use xfaas_common::limits::KEY_BYTES_MAX;

/// How an access is ordered against those of other calls of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Atomic per key, no order promised; never waits.
    Weak,
    /// A strong read opens a critical section on its key, the strong write (or the end of the call) closes it.
    Strong,
}

impl Mode {
    const fn number(self) -> i32 {
        match self {
            Mode::Weak => guest_abi::MODE_WEAK,
            Mode::Strong => guest_abi::MODE_STRONG,
        }
    }
}

/// Copies as much of the key's value as fits. Output: its full length in bytes; `None` if the key does not exist, and with
/// `Mode::Strong` the section is open all the same. Errors: `OverLimit` (key over 255 bytes), `Deadlock`, `Unreachable`.
#[inline]
pub fn read_state(key: &CStr, buffer: &mut [u8], mode: Mode) -> Result<Option<usize>, Error> {
    match length(sys::read_state(key, buffer, mode.number())) {
        Ok(length_bytes) => Ok(Some(length_bytes)),
        Err(Error::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The key's whole value, in `buffer`. Errors: as [`read_state`], and `OverLimit` when the value does not fit.
#[inline]
pub fn state<'b>(key: &CStr, buffer: &'b mut [u8], mode: Mode) -> Result<Option<&'b [u8]>, Error> {
    match read_state(key, buffer, mode)? {
        Some(length_bytes) => buffer.get(..length_bytes).ok_or(Error::OverLimit).map(Some),
        None => Ok(None),
    }
}

/// Copies as much of a value of another session of the app as fits, read weakly. Output: its full length in bytes; `None` if the session or the key
/// does not exist. Errors: `BadArgument` when the function was not deployed with `read_sessions` or the name is no session's, `OverLimit` (key over
/// 255 bytes, name over 64), `Unreachable`.
pub fn read_session(session: &CStr, key: &CStr, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
    match length(sys::read_session(session, key, buffer)) {
        Ok(length_bytes) => Ok(Some(length_bytes)),
        Err(Error::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the key's value, at most 1 MiB. A strong write ends the section that a strong read opened; without one it locks, writes
/// and releases. Errors: `OverLimit` and nothing changed, `BadArgument` from a read-only function, `Deadlock`, `Unreachable`.
#[inline]
pub fn write_state(key: &CStr, value: &[u8], mode: Mode) -> Result<(), Error> {
    length(sys::write_state(key, value, mode.number())).map(|_| ())
}

/// A key put together from parts, NUL-terminated, on the stack.
pub struct KeyBuffer {
    bytes: [u8; KEY_BYTES_MAX + 1],
    length_bytes: usize,
}

impl KeyBuffer {
    /// `prefix` followed by `rest`. Errors: `OverLimit` over 255 bytes in all, `BadArgument` if empty or with a NUL inside.
    pub fn new(prefix: &[u8], rest: &[u8]) -> Result<Self, Error> {
        let length_bytes = prefix.len() + rest.len();
        if length_bytes > KEY_BYTES_MAX {
            return Err(Error::OverLimit);
        }
        if length_bytes == 0 || prefix.contains(&0) || rest.contains(&0) {
            return Err(Error::BadArgument);
        }
        let mut bytes = [0; KEY_BYTES_MAX + 1];
        for (to, from) in bytes.iter_mut().zip(prefix.iter().chain(rest)) {
            *to = *from;
        }
        Ok(KeyBuffer { bytes, length_bytes })
    }

    /// The key as the host takes it.
    pub fn as_c_str(&self) -> &CStr {
        // `new` allows no NUL before the end, so this never falls back to the empty key, which the host would refuse.
        CStr::from_bytes_with_nul(&self.bytes[..=self.length_bytes]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_parts_is_checked_and_terminated() {
        assert_eq!(KeyBuffer::new(b"item:", b"tea").expect("fits").as_c_str(), c"item:tea");
        assert_eq!(KeyBuffer::new(&[b'a'; 200], &[b'b'; 55]).expect("fits").as_c_str().to_bytes().len(), 255);
        assert_eq!(KeyBuffer::new(&[b'a'; 200], &[b'b'; 56]).err(), Some(Error::OverLimit));
        assert_eq!(KeyBuffer::new(b"", b"").err(), Some(Error::BadArgument));
        assert_eq!(KeyBuffer::new(b"a", b"b\0c").err(), Some(Error::BadArgument));
    }

    #[test]
    fn a_value_of_another_session_is_found_by_session_and_key() {
        crate::fake::reset();
        crate::fake::set_session_value("other", "k", b"12345");
        let mut buffer = [0; 4];
        assert_eq!(read_session(c"other", c"k", &mut buffer), Ok(Some(5)));
        assert_eq!(buffer, *b"1234");
        assert_eq!(read_session(c"other", c"none", &mut buffer), Ok(None));
        assert_eq!(read_session(c"nobody", c"k", &mut buffer), Ok(None));
        assert_eq!(read_session(c"two words", c"k", &mut buffer), Err(Error::BadArgument));
        assert_eq!(read_session(c"", c"k", &mut buffer), Err(Error::BadArgument));
    }

    #[test]
    fn a_missing_key_is_none_and_an_empty_value_is_not() {
        crate::fake::reset();
        let mut buffer = [0; 4];
        assert_eq!(state(c"k", &mut buffer, Mode::Weak), Ok(None));
        write_state(c"k", b"", Mode::Weak).expect("written");
        assert_eq!(state(c"k", &mut buffer, Mode::Weak), Ok(Some(&b""[..])));
        write_state(c"k", b"12345", Mode::Strong).expect("written");
        assert_eq!(read_state(c"k", &mut buffer, Mode::Strong), Ok(Some(5)));
        assert_eq!(state(c"k", &mut buffer, Mode::Strong), Err(Error::OverLimit));
    }
}
