//! The stable error codes of CONTRACT.md section 1 and what each of them means on either wire.
//! Used by every stage that refuses a request; depends on nothing but the datagram status numbers.

use xfaas_common::wire::Status;

/// Why a request got no reply of its function. The text of `code` is stable: clients match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)] // outcomes, which hold one, are handed on for each request: as whole words that is a few moves
pub enum ErrorCode {
    BadRequest,
    BadSession,
    BadToken,
    NoRoute,
    NoFunction,
    Timeout,
    BodyTooLarge,
    BadExpectation,
    HeadTooLarge,
    RateLimited,
    GuestTrapped,
    GuestError,
    Overloaded,
    Draining,
    LockWait,
    NoPrimary,
    Deadline,
    ReplyTooLarge,
}

/// Seconds after which a client that was shed may try again.
const RETRY_AFTER_S: u32 = 1;

impl ErrorCode {
    pub const ALL: [ErrorCode; 18] = [
        ErrorCode::BadRequest,
        ErrorCode::BadSession,
        ErrorCode::BadToken,
        ErrorCode::NoRoute,
        ErrorCode::NoFunction,
        ErrorCode::Timeout,
        ErrorCode::BodyTooLarge,
        ErrorCode::BadExpectation,
        ErrorCode::HeadTooLarge,
        ErrorCode::RateLimited,
        ErrorCode::GuestTrapped,
        ErrorCode::GuestError,
        ErrorCode::Overloaded,
        ErrorCode::Draining,
        ErrorCode::LockWait,
        ErrorCode::NoPrimary,
        ErrorCode::Deadline,
        ErrorCode::ReplyTooLarge,
    ];

    /// The member `code` of a problem document and the payload of an error datagram.
    pub const fn code(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "bad_request",
            ErrorCode::BadSession => "bad_session",
            ErrorCode::BadToken => "bad_token",
            ErrorCode::NoRoute => "no_route",
            ErrorCode::NoFunction => "no_function",
            ErrorCode::Timeout => "timeout",
            ErrorCode::BodyTooLarge => "body_too_large",
            ErrorCode::BadExpectation => "bad_expectation",
            ErrorCode::HeadTooLarge => "head_too_large",
            ErrorCode::RateLimited => "rate_limited",
            ErrorCode::GuestTrapped => "guest_trapped",
            ErrorCode::GuestError => "guest_error",
            ErrorCode::Overloaded => "overloaded",
            ErrorCode::Draining => "draining",
            ErrorCode::LockWait => "lock_wait",
            ErrorCode::NoPrimary => "no_primary",
            ErrorCode::Deadline => "deadline",
            ErrorCode::ReplyTooLarge => "reply_too_large",
        }
    }

    /// The status of the HTTP answer. `ReplyTooLarge` exists for datagrams only; 500 stands in.
    pub const fn http_status(self) -> u16 {
        match self {
            ErrorCode::BadRequest | ErrorCode::BadSession => 400,
            ErrorCode::BadToken => 401,
            ErrorCode::NoRoute | ErrorCode::NoFunction => 404,
            ErrorCode::Timeout => 408,
            ErrorCode::BodyTooLarge => 413,
            ErrorCode::BadExpectation => 417,
            ErrorCode::RateLimited => 429,
            ErrorCode::HeadTooLarge => 431,
            ErrorCode::GuestTrapped | ErrorCode::GuestError | ErrorCode::ReplyTooLarge => 500,
            ErrorCode::Overloaded | ErrorCode::Draining | ErrorCode::LockWait | ErrorCode::NoPrimary => 503,
            ErrorCode::Deadline => 504,
        }
    }

    /// The member `title`: the same words for every occurrence.
    pub const fn title(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "The request is malformed",
            ErrorCode::BadSession => "The session ID is not valid",
            ErrorCode::BadToken => "The token is missing or wrong",
            ErrorCode::NoRoute => "The path names no function",
            ErrorCode::NoFunction => "No function of this name is deployed",
            ErrorCode::Timeout => "The request took too long to arrive",
            ErrorCode::BodyTooLarge => "The body is over the limit",
            ErrorCode::BadExpectation => "The expectation is not supported",
            ErrorCode::HeadTooLarge => "The head is over the limit",
            ErrorCode::RateLimited => "Too many requests",
            ErrorCode::GuestTrapped => "The function trapped",
            ErrorCode::GuestError => "The function returned an error",
            ErrorCode::Overloaded => "The server is overloaded",
            ErrorCode::Draining => "The server is shutting down",
            ErrorCode::LockWait => "A lock was not granted in time",
            ErrorCode::NoPrimary => "The session's primary cannot be reached",
            ErrorCode::Deadline => "The function passed its deadline",
            ErrorCode::ReplyTooLarge => "The output does not fit in a datagram",
        }
    }

    /// True when the connection must be closed after the answer, whatever the client asked for.
    pub const fn closes(self) -> bool {
        matches!(
            self,
            ErrorCode::BadRequest
                | ErrorCode::BadSession
                | ErrorCode::Timeout
                | ErrorCode::BodyTooLarge
                | ErrorCode::BadExpectation
                | ErrorCode::HeadTooLarge
        )
    }

    /// `status` of an error datagram; `None` for what can only happen over HTTP.
    pub const fn datagram_status(self) -> Option<Status> {
        match self {
            ErrorCode::NoFunction => Some(Status::NoFunction),
            ErrorCode::RateLimited => Some(Status::RateLimited),
            ErrorCode::Overloaded => Some(Status::Overloaded),
            ErrorCode::Draining => Some(Status::Draining),
            ErrorCode::Deadline => Some(Status::Deadline),
            ErrorCode::GuestTrapped => Some(Status::GuestTrapped),
            ErrorCode::GuestError => Some(Status::GuestError),
            ErrorCode::ReplyTooLarge => Some(Status::ReplyTooLarge),
            ErrorCode::LockWait => Some(Status::LockWait),
            ErrorCode::NoPrimary => Some(Status::NoPrimary),
            ErrorCode::BadToken => Some(Status::BadToken),
            _ => None,
        }
    }

    /// The answer's `Retry-After` in seconds: with every 429 and 503.
    pub const fn retry_after_s(self) -> Option<u32> {
        match self.http_status() {
            429 | 503 => Some(RETRY_AFTER_S),
            _ => None,
        }
    }
}

/// A request that is refused while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: ErrorCode,
    /// What was wrong, for the client's eyes: names the rule, never repeats the client's bytes.
    pub(super) detail: &'static str,
}

impl Refusal {
    pub(super) const fn new(code: ErrorCode, detail: &'static str) -> Refusal {
        Refusal { code, detail }
    }

    pub(super) const fn bad_request(detail: &'static str) -> Refusal {
        Refusal::new(ErrorCode::BadRequest, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_statuses_and_connection_are_the_contracts_table() {
        let table: [(u16, &[&str], bool); 11] = [
            (400, &["bad_request", "bad_session"], true),
            (401, &["bad_token"], false),
            (404, &["no_route", "no_function"], false),
            (408, &["timeout"], true),
            (413, &["body_too_large"], true),
            (417, &["bad_expectation"], true),
            (431, &["head_too_large"], true),
            (429, &["rate_limited"], false),
            (500, &["guest_trapped", "guest_error"], false),
            (503, &["overloaded", "draining", "lock_wait", "no_primary"], false),
            (504, &["deadline"], false),
        ];
        for (status, codes, closes) in table {
            for code in codes {
                let found = ErrorCode::ALL.into_iter().find(|error| error.code() == *code).expect("every code of the contract exists");
                assert_eq!((found.http_status(), found.closes()), (status, closes), "{code}");
                assert_eq!(found.retry_after_s().is_some(), status == 429 || status == 503, "{code}");
            }
        }
    }

    #[test]
    fn datagram_statuses_are_the_contracts_numbers() {
        let numbers = [
            "no_function",
            "rate_limited",
            "overloaded",
            "draining",
            "deadline",
            "guest_trapped",
            "guest_error",
            "reply_too_large",
            "lock_wait",
            "no_primary",
            "bad_token",
        ];
        for error in ErrorCode::ALL {
            let expected = numbers.iter().position(|code| *code == error.code()).map(|index| index as u8 + 1);
            assert_eq!(error.datagram_status().map(|status| status as u8), expected, "{}", error.code());
        }
    }
}
