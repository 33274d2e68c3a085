//! What an answer is worth. Bytes of the server under test: nothing in them is trusted.

use super::mix::Check;
use crate::load::Reply;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::wire::{HEADER_BYTES, Header, KIND_ERROR, KIND_REPLY};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Good,
    /// Good, and a counter's number.
    Number(u64),
    /// 503 or 429: not run, as the server promises.
    Refused(u16),
    /// Another status that is not 2xx.
    Failed(u16),
    /// Breaks a rule: why.
    Wrong(&'static str),
}

/// HTTP's name for each status of a datagram's error. Source: docs/CONTRACT.md, section 2.
const STATUS_OF_ERROR: [u16; 12] = [500, 404, 429, 503, 503, 504, 500, 500, 500, 503, 503, 401];

/// `session`: which the reply must name, if any.
pub(super) fn judge_http(reply: &Reply<'_>, session: Option<&SessionId>, check: Check, payload: &[u8]) -> Outcome {
    if !(200..=299).contains(&reply.status) {
        return refused_or_failed(reply.status);
    }
    if session.is_some_and(|session| reply.session != Some(session.as_bytes())) {
        return Outcome::Wrong("the reply is another session's");
    }
    judge_output(check, payload, reply.body)
}

/// `bytes`: a whole datagram whose request ID is known.
pub(super) fn judge_datagram(bytes: &[u8], session: &SessionId, function: FunctionHash, check: Check, payload: &[u8]) -> Outcome {
    let Some(header) = Header::read(bytes) else { return Outcome::Wrong("the answer has no whole header") };
    let output_at = HEADER_BYTES + usize::from(session.length());
    if header.session_len != session.length() || bytes.get(HEADER_BYTES..output_at) != Some(session.as_bytes()) {
        return Outcome::Wrong("the answer is another session's");
    }
    if header.function() != function {
        return Outcome::Wrong("the answer is another function's");
    }
    if bytes.len() != output_at + header.payload_len() as usize {
        return Outcome::Wrong("the answer's length is not what its header says");
    }
    match (header.kind, header.status) {
        (KIND_REPLY, 0) => judge_output(check, payload, &bytes[output_at..]),
        (KIND_ERROR, status) => status_of_error(status).map_or(Outcome::Wrong("the answer's error status is unknown"), refused_or_failed),
        _ => Outcome::Wrong("the answer is neither a reply nor an error"),
    }
}

/// The server did not run the request, and may take it later.
pub(super) const fn is_refusal(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// HTTP's name for the status of an error datagram.
pub(super) fn status_of_error(status: u8) -> Option<u16> {
    STATUS_OF_ERROR.get(usize::from(status)).copied()
}

fn refused_or_failed(status: u16) -> Outcome {
    if is_refusal(status) { Outcome::Refused(status) } else { Outcome::Failed(status) }
}

fn judge_output(check: Check, payload: &[u8], output: &[u8]) -> Outcome {
    match check {
        Check::Anything => Outcome::Good,
        Check::Echo if output == payload => Outcome::Good,
        Check::Echo => Outcome::Wrong("the output is not the payload"),
        Check::Number | Check::Counter | Check::Read => number(output).map_or(Outcome::Wrong("the output is no number"), Outcome::Number),
    }
}

/// What is wrong with `bytes`, which are no reply that is understood.
pub(super) fn fault_of_bytes(bytes: &[u8]) -> &'static str {
    let head = &bytes[..memchr::memmem::find(bytes, b"\r\n\r\n").unwrap_or(bytes.len())];
    let is_chunked = head.split(|byte| *byte == b'\n').any(|line| {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(0));
        name.eq_ignore_ascii_case(b"transfer-encoding") && value.to_ascii_lowercase().windows(7).any(|word| word == b"chunked")
    });
    if is_chunked {
        return "the answer is chunked, which is not understood: only replies with a content-length are";
    }
    if head.starts_with(b"HTTP/1.1 ") { "the answer is no HTTP reply that is understood" } else { "the answer is no HTTP reply" }
}

/// Decimal digits only, below 2^64.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| byte - b'0')?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> SessionId {
        SessionId::new(b"user-1").unwrap()
    }

    #[test]
    fn numbers_are_digits_below_2_to_the_64() {
        assert_eq!((number(b"0"), number(b"18446744073709551615")), (Some(0), Some(u64::MAX)));
        assert!([&b""[..], b"-1", b"1 ", b"18446744073709551616", b"x"].iter().all(|text| number(text).is_none()));
    }

    #[test]
    fn an_http_reply_is_judged_by_status_then_session_then_output() {
        let good = || Reply { status: 200, session: Some(b"user-1"), closes: false, body: b"7", bytes: 9 };
        let judge = |reply: &Reply<'_>, check| judge_http(reply, Some(&session()), check, b"pay");
        assert_eq!(judge(&good(), Check::Counter), Outcome::Number(7));
        assert_eq!(judge(&good(), Check::Anything), Outcome::Good);
        assert_eq!(judge(&Reply { body: b"pay", ..good() }, Check::Echo), Outcome::Good);
        assert!(matches!(judge(&good(), Check::Echo), Outcome::Wrong(_)));
        assert!(matches!(judge(&Reply { session: Some(b"user-2"), ..good() }, Check::Anything), Outcome::Wrong(_)));
        assert!(matches!(judge(&Reply { body: b"", ..good() }, Check::Read), Outcome::Wrong(_)));
        assert_eq!(judge_http(&Reply { session: None, ..good() }, None, Check::Number, b""), Outcome::Number(7));
        for (status, outcome) in [(503, Outcome::Refused(503)), (429, Outcome::Refused(429)), (504, Outcome::Failed(504))] {
            assert_eq!(judge(&Reply { status, ..good() }, Check::Counter), outcome);
        }
    }

    #[test]
    fn what_is_no_reply_is_told_by_what_it_is() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n1\r\n7\r\n0\r\n\r\n";
        assert!(fault_of_bytes(chunked).contains("chunked"));
        assert!(fault_of_bytes(b"HTTP/1.1 200 OK\r\n\r\ntransfer-encoding: chunked\r\n").ends_with("reply that is understood"));
        assert_eq!([fault_of_bytes(b"SSH-2.0-x\r\n"), fault_of_bytes(b"")], ["the answer is no HTTP reply"; 2]);
    }

    #[test]
    fn a_datagram_is_judged_by_session_function_length_then_status() {
        let answer = |kind: u8, status: u8, output: &[u8]| {
            let mut header = Header::new(kind, 0, &session(), 9, FunctionHash(7), output.len() as u32);
            header.status = status;
            [&header.to_bytes()[..], b"user-1", output].concat()
        };
        let judge = |bytes: &[u8]| judge_datagram(bytes, &session(), FunctionHash(7), Check::Number, b"");
        let good = answer(KIND_REPLY, 0, b"41");
        assert_eq!(judge(&good), Outcome::Number(41));
        assert!(matches!(judge(&good[..good.len() - 1]), Outcome::Wrong(_)));
        assert!(matches!(judge(&good[..10]), Outcome::Wrong(_)));
        assert!(matches!(judge_datagram(&good, &session(), FunctionHash(8), Check::Number, b""), Outcome::Wrong(_)));
        let other = SessionId::new(b"user-2").unwrap();
        assert!(matches!(judge_datagram(&good, &other, FunctionHash(7), Check::Number, b""), Outcome::Wrong(_)));
        assert_eq!(judge(&answer(KIND_ERROR, 3, b"overloaded")), Outcome::Refused(503));
        assert_eq!(judge(&answer(KIND_ERROR, 2, b"rate_limited")), Outcome::Refused(429));
        assert_eq!(judge(&answer(KIND_ERROR, 5, b"deadline")), Outcome::Failed(504));
        assert!(matches!(judge(&answer(KIND_ERROR, 12, b"")), Outcome::Wrong(_)));
        assert!(matches!(judge(&answer(1, 0, b"41")), Outcome::Wrong(_)));
    }
}
