//! The host's refusals as an enum, and what a handler may return. Numbers are those of `xfaas_common::guest_abi`.

use xfaas_common::guest_abi;

/// Why the host refused a call. CONTRACT section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The input or key does not exist.
    NotFound,
    /// A pointer, length, mode or argument index that the host does not accept, or a write from a read-only function.
    BadArgument,
    /// A key, value, session or output over its limit; nothing changed. Also: a buffer of ours that is too small.
    OverLimit,
    /// Waiting for this key would close a cycle of waiting calls; the locks already held stay held.
    Deadlock,
    /// The container that holds the state did not answer.
    Unreachable,
    /// A number that this version of the SDK does not know.
    Unknown(i32),
}

impl Error {
    /// The error behind a negative host result.
    pub const fn from_host(code: i32) -> Self {
        match code {
            guest_abi::NOT_FOUND => Error::NotFound,
            guest_abi::BAD_ARGUMENT => Error::BadArgument,
            guest_abi::OVER_LIMIT => Error::OverLimit,
            guest_abi::DEADLOCK => Error::Deadlock,
            guest_abi::UNREACHABLE => Error::Unreachable,
            other => Error::Unknown(other),
        }
    }

    /// The host's number for this error, -5..=-1; what `handle` returns for it, so that a client sees it as `guest_code`.
    pub const fn code(self) -> i32 {
        match self {
            Error::NotFound => guest_abi::NOT_FOUND,
            Error::BadArgument => guest_abi::BAD_ARGUMENT,
            Error::OverLimit => guest_abi::OVER_LIMIT,
            Error::Deadlock => guest_abi::DEADLOCK,
            Error::Unreachable => guest_abi::UNREACHABLE,
            Error::Unknown(code) => code,
        }
    }
}

/// The full length that a host call reports, or its refusal.
pub(crate) const fn length(result: i32) -> Result<usize, Error> {
    if result < 0 { Err(Error::from_host(result)) } else { Ok(result as usize) }
}

/// What a handler may return: nothing, a code (0 = reply with the output, otherwise 500 with that code), or a result of either error.
pub trait Outcome {
    /// The value that `handle` returns to the host.
    fn code(self) -> i32;
}

impl Outcome for () {
    fn code(self) -> i32 {
        0
    }
}

impl Outcome for i32 {
    fn code(self) -> i32 {
        self
    }
}

impl Outcome for Result<(), Error> {
    fn code(self) -> i32 {
        self.map_or_else(Error::code, |()| 0)
    }
}

impl Outcome for Result<(), i32> {
    fn code(self) -> i32 {
        self.err().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_keeps_its_number() {
        for code in -9..0 {
            assert_eq!(Error::from_host(code).code(), code);
        }
        assert_eq!(length(-4), Err(Error::Deadlock));
        assert_eq!(length(7), Ok(7));
    }

    #[test]
    fn an_outcome_is_zero_only_when_it_went_well() {
        assert_eq!(().code(), 0);
        assert_eq!(Outcome::code(Ok::<(), Error>(())), 0);
        assert_eq!(Outcome::code(Err::<(), _>(Error::OverLimit)), -3);
        assert_eq!(Outcome::code(Err::<(), _>(17)), 17);
    }
}
