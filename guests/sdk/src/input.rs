//! Reading the request and setting the reply.

use crate::error::{Error, length};
use crate::sys;
use xfaas_common::guest_abi;

/// A part of the request. Method, path and query are empty for a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The body, or a datagram's payload.
    Body,
    /// The session ID, 1..=64 visible ASCII bytes; `NotFound` in a `hook`, which is to find it.
    Session,
    Method,
    /// What follows the function's name in the path, raw, with its leading `/`; empty if nothing does.
    Path,
    /// The query without its `?`, raw.
    Query,
    /// Only in a `hook`, elsewhere `BadArgument`: the header lines as they came, each with its line end.
    Headers,
}

impl Input {
    pub(crate) const fn index(self) -> i32 {
        match self {
            Input::Body => guest_abi::ARG_BODY,
            Input::Session => guest_abi::ARG_SESSION,
            Input::Method => guest_abi::ARG_METHOD,
            Input::Path => guest_abi::ARG_PATH,
            Input::Query => guest_abi::ARG_QUERY,
            Input::Headers => guest_abi::ARG_HEADERS,
        }
    }
}

/// Copies as much of the input as fits into `buffer`. Output: the input's full length in bytes, which may be more than was copied.
#[inline]
pub fn read_input(input: Input, buffer: &mut [u8]) -> Result<usize, Error> {
    length(sys::read_input(input.index(), buffer))
}

/// The whole input, in `buffer`. Errors: `OverLimit` when it does not fit.
#[inline]
pub fn input(input: Input, buffer: &mut [u8]) -> Result<&[u8], Error> {
    let length_bytes = read_input(input, buffer)?;
    buffer.get(..length_bytes).ok_or(Error::OverLimit)
}

/// Makes `bytes` the reply's body; the last call wins. At most 8 MiB, else `OverLimit` and the earlier output stays.
#[inline]
pub fn set_output(bytes: &[u8]) -> Result<(), Error> {
    length(sys::set_output(bytes)).map(|_| ())
}

/// The value of `name` in a raw query such as `item=tea&n=2`: the first one, nothing decoded. A name without `=` has an empty value.
pub fn query_value<'q>(query: &'q [u8], name: &[u8]) -> Option<&'q [u8]> {
    query.split(|byte| *byte == b'&').find_map(|pair| {
        let rest = pair.strip_prefix(name)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"=") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_value_is_found_by_its_whole_name() {
        assert_eq!(query_value(b"item=tea&n=2", b"n"), Some(&b"2"[..]));
        assert_eq!(query_value(b"number=3&n=2&n=9", b"n"), Some(&b"2"[..]));
        assert_eq!(query_value(b"flag&item=", b"flag"), Some(&b""[..]));
        assert_eq!(query_value(b"flag&item=", b"item"), Some(&b""[..]));
        assert_eq!(query_value(b"", b"item"), None);
        assert_eq!(query_value(b"items=1", b"item"), None);
    }

    #[test]
    fn header_lines_are_there_for_a_hook_only() {
        crate::fake::reset();
        let mut buffer = [0; 16];
        assert_eq!(input(Input::Headers, &mut buffer), Err(Error::BadArgument));
        crate::fake::set_input(Input::Headers, b"host: a\r\n");
        assert_eq!(input(Input::Headers, &mut buffer), Ok(&b"host: a\r\n"[..]));
    }

    #[test]
    fn an_input_that_does_not_fit_is_an_error_not_a_cut() {
        crate::fake::reset();
        crate::fake::set_input(Input::Body, b"hello");
        let mut small = [0; 4];
        assert_eq!(input(Input::Body, &mut small), Err(Error::OverLimit));
        assert_eq!(&small, b"hell");
        let mut large = [0; 8];
        assert_eq!(input(Input::Body, &mut large), Ok(&b"hello"[..]));
    }
}
