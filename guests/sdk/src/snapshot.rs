//! Several keys of the session as they are at one moment.

use crate::error::{Error, length};
use crate::sys;
use xfaas_common::guest_abi::SNAPSHOT_MISSING;

const LENGTH_BYTES: usize = size_of::<u32>();

/// Copies as much of the answer as fits: for each key a little-endian `u32` length (`u32::MAX` for a missing key) and the value. `keys`:
/// 1-64 keys one after another, each with its NUL, such as `b"price\0stock\0"`. Output: the answer's full length in bytes.
/// Errors: `OverLimit` (over 64 keys, or one over 255 bytes), `BadArgument`, `Unreachable`.
pub fn snapshot_read(keys: &[u8], buffer: &mut [u8]) -> Result<usize, Error> {
    length(sys::snapshot_read(keys, buffer))
}

/// The values of all `keys` at one moment, in `buffer`. Errors: as [`snapshot_read`], and `OverLimit` when the answer does not fit.
pub fn snapshot<'b>(keys: &[u8], buffer: &'b mut [u8]) -> Result<Snapshot<'b>, Error> {
    let length_bytes = snapshot_read(keys, buffer)?;
    let rest = buffer.get(..length_bytes).ok_or(Error::OverLimit)?;
    Ok(Snapshot { rest })
}

/// The values in the order of the keys, `None` for a missing one.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'b> {
    rest: &'b [u8],
}

impl<'b> Iterator for Snapshot<'b> {
    type Item = Option<&'b [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        let (length_bytes, rest) = self.rest.split_first_chunk::<LENGTH_BYTES>()?;
        let value_bytes = u32::from_le_bytes(*length_bytes);
        if value_bytes == SNAPSHOT_MISSING {
            self.rest = rest;
            return Some(None);
        }
        // The host's answer is whole: a length is followed by so many bytes.
        let (value, rest) = rest.split_at_checked(value_bytes as usize)?;
        self.rest = rest;
        Some(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mode, write_state};

    #[test]
    fn values_come_in_the_order_of_the_keys() {
        crate::fake::reset();
        write_state(c"price", b"12", Mode::Weak).expect("written");
        write_state(c"empty", b"", Mode::Weak).expect("written");
        let mut buffer = [0; 64];
        let values: Vec<_> = snapshot(b"empty\0none\0price\0price\0", &mut buffer).expect("fits").collect();
        assert_eq!(values, [Some(&b""[..]), None, Some(b"12"), Some(b"12")]);
        assert_eq!(snapshot(b"price\0", &mut buffer[..5]).err(), Some(Error::OverLimit));
        assert_eq!(snapshot_read(b"price\0", &mut buffer[..5]), Ok(6));
    }

    #[test]
    fn a_list_is_refused_as_the_host_refuses_it() {
        let mut buffer = [0; 8];
        for bad in [&b""[..], b"a", b"\0", b"a\0\0"] {
            assert_eq!(snapshot_read(bad, &mut buffer), Err(Error::BadArgument));
        }
        assert_eq!(snapshot_read(&b"k\0".repeat(65), &mut buffer), Err(Error::OverLimit));
        assert_eq!(snapshot_read(&[&[b'k'; 256][..], b"\0"].concat(), &mut buffer), Err(Error::OverLimit));
    }
}
