//! Timers of the session: the function is run again when their time has come, at least once.

use core::ffi::CStr;

use crate::error::{Error, length};
use crate::sys;

/// Has this function run in this session, with `payload` (at most 4,096 bytes) as its body, when `at_ms` has come: milliseconds since 1970-01-01 UTC.
/// Takes the place of the session's timer of the same name. It is run again later until it replies; what it does must bear being done twice.
/// Errors: `BadArgument` (an empty name, a negative time, a read-only function), `OverLimit` (a name over 64 bytes, the payload, 64 timers of the
/// session), `Unreachable`.
pub fn set_timer(name: &CStr, at_ms: i64, payload: &[u8]) -> Result<(), Error> {
    length(sys::set_timer(name, at_ms, payload)).map(|_| ())
}

/// Takes a timer of the session away. Output: false when there is none of that name. Errors: as [`set_timer`].
pub fn cancel_timer(name: &CStr) -> Result<bool, Error> {
    match length(sys::cancel_timer(name)) {
        Ok(_) => Ok(true),
        Err(Error::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_set_replaced_and_cancelled_by_its_name() {
        crate::fake::reset();
        assert_eq!(cancel_timer(c"wake"), Ok(false));
        set_timer(c"wake", 5, b"first").expect("set");
        set_timer(c"wake", 7, b"second").expect("set");
        assert_eq!(crate::fake::timer("wake"), Some((7, b"second".to_vec())));
        assert_eq!(cancel_timer(c"wake"), Ok(true));
        assert_eq!(crate::fake::timer("wake"), None);
    }

    #[test]
    fn a_timer_is_refused_as_the_host_refuses_it() {
        crate::fake::reset();
        assert_eq!(set_timer(c"", 5, b""), Err(Error::BadArgument));
        assert_eq!(set_timer(c"wake", -1, b""), Err(Error::BadArgument));
        assert_eq!(set_timer(c"wake", 5, &[0; 4_097]), Err(Error::OverLimit));
        for number in 0..64_u8 {
            let name = [b'a' + number / 10, b'0' + number % 10, 0];
            set_timer(CStr::from_bytes_with_nul(&name).expect("one NUL"), 5, b"").expect("set");
        }
        assert_eq!(set_timer(c"wake", 5, b""), Err(Error::OverLimit));
        assert_eq!(set_timer(c"a0", 6, b""), Ok(()));
    }
}
