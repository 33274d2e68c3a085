//! Replies and problem documents to bytes, CONTRACT.md section 1. Called by the shard when a call has ended or was refused.
//! Appends to a buffer that the caller reuses: nothing else is allocated. Header values are the caller's to keep clean, except the guest's
//! content type, which is checked here.

use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use xfaas_common::ids::SessionId;

use super::error::ErrorCode;
use super::request::Request;

/// The interim answer that lets the client send its body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

const CONTENT_TYPE_DEFAULT: &[u8] = b"application/octet-stream";

/// The last second of the year 9999, beyond which there is no IMF-fixdate. Seconds since 1970.
const DATE_UNIX_S_MAX: u64 = 253_402_300_799;

/// What the answer says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionHeader {
    /// Nothing: HTTP/1.1 stays by default.
    None,
    /// `keep-alive`, for an HTTP/1.0 client that asked for it.
    KeepAlive,
    Close,
}

impl ConnectionHeader {
    /// What to say to this request's client when the connection stays or does not.
    pub fn of(request: &Request, stays: bool) -> ConnectionHeader {
        match (stays, request.is_http10()) {
            (false, _) => ConnectionHeader::Close,
            (true, true) => ConnectionHeader::KeepAlive,
            (true, false) => ConnectionHeader::None,
        }
    }

    const fn line(self) -> &'static [u8] {
        match self {
            ConnectionHeader::None => b"",
            ConnectionHeader::KeepAlive => b"connection: keep-alive\r\n",
            ConnectionHeader::Close => b"connection: close\r\n",
        }
    }
}

/// The head of a function's reply.
#[derive(Clone, Copy)]
pub struct ReplyHead<'a> {
    /// 200..=599.
    pub status: u16,
    /// The guest's; empty, or not a header value: `application/octet-stream`.
    pub content_type: &'a [u8],
    /// Name of the header that gives the session ID, lower case.
    pub session_header: &'a [u8],
    pub session: &'a SessionId,
    /// Written as 32 hex digits.
    pub invocation_id: u128,
    /// From `http_date`.
    pub date: &'a [u8; 29],
    pub connection: ConnectionHeader,
    /// Checked header lines, each `name: value` with its CRLF; may be empty.
    pub extra: &'a [u8],
}

/// Appends a reply. `head_only`: the answer to HEAD, with the length of the body that is left out. A status that has no body (204, 205, 304)
/// gets none, and 204 and 304 no length either (RFC 9110 sections 8.6 and 15).
pub fn encode_reply(out: &mut Vec<u8>, head: &ReplyHead<'_>, body: &[u8], head_only: bool) {
    debug_assert!((200..=599).contains(&head.status), "an interim status is no reply");
    let (body, has_length) = match head.status {
        204 | 304 => (&[][..], false),
        205 => (&[][..], true),
        _ => (body, true),
    };
    let sent_bytes = if head_only { 0 } else { body.len() };
    out.reserve(HEAD_BYTES_TYPICAL + head.content_type.len() + head.extra.len() + sent_bytes);
    if head.status == 200 && head.content_type == CONTENT_TYPE_DEFAULT {
        push_usual_lines(out, head);
    } else {
        push_status_line(out, head.status);
        push_content_type(out, head.content_type);
        push_date(out, head.date);
        push_invocation_id(out, head.invocation_id);
    }
    push_session(out, head.session_header, head.session);
    if has_length {
        push_content_length(out, body.len());
    }
    if head.connection != ConnectionHeader::None {
        out.extend_from_slice(head.connection.line());
    }
    out.extend_from_slice(head.extra);
    out.extend_from_slice(b"\r\n");
    if !head_only {
        out.extend_from_slice(body);
    }
}

/// As `encode_reply`, of a body that is given away: the output takes over its memory, so that a long one takes it once and touches no other. Output is
/// empty, or holds little. The status is one that has a body.
pub fn encode_reply_over(out: &mut Vec<u8>, head: &ReplyHead<'_>, mut body: Vec<u8>) {
    debug_assert!(!matches!(head.status, 204 | 205 | 304), "this status has no body");
    encode_reply(out, head, &body, true);
    let (before_bytes, body_bytes) = (out.len(), body.len());
    body.reserve_exact(before_bytes);
    body.resize(before_bytes + body_bytes, 0);
    body.copy_within(..body_bytes, before_bytes);
    body[..before_bytes].copy_from_slice(out);
    *out = body;
}

/// Bytes of a reply's head without the guest's parts, rounded up: room that saves growing in steps.
const HEAD_BYTES_TYPICAL: usize = 384;

/// What the `type` of an answered error begins with; the code follows.
pub const PROBLEM_TYPE: &str = "urn:xfaas:error:";

/// An error as the client gets it: `application/problem+json`, RFC 9457.
#[derive(Clone, Copy)]
pub struct Problem<'a> {
    pub code: ErrorCode,
    /// What happened, in a sentence.
    pub detail: &'a str,
    /// The code the guest returned, with `GuestError`.
    pub guest_code: Option<i32>,
    /// Name of the header that gives the session ID, lower case.
    pub session_header: &'a [u8],
    /// Only where the function ran.
    pub session: Option<&'a SessionId>,
    /// Only where the function ran.
    pub invocation_id: Option<u128>,
    /// From `http_date`.
    pub date: &'a [u8; 29],
    /// An error that closes says so whatever stands here.
    pub connection: ConnectionHeader,
}

/// Appends an error's answer. `head_only` as in `encode_reply`.
pub fn encode_problem(out: &mut Vec<u8>, problem: &Problem<'_>, head_only: bool) {
    let code = problem.code;
    // The body comes first, as its length is part of the head, and is then turned behind the head: nothing more is allocated.
    let start = out.len();
    push_problem_document(out, problem);
    let body_bytes = out.len() - start;
    push_status_line(out, code.http_status());
    push_content_length(out, body_bytes);
    out.extend_from_slice(b"content-type: application/problem+json");
    push_date(out, problem.date);
    if let Some(session) = problem.session {
        push_session(out, problem.session_header, session);
    }
    if let Some(invocation_id) = problem.invocation_id {
        push_invocation_id(out, invocation_id);
    }
    if let Some(seconds) = code.retry_after_s() {
        out.extend_from_slice(b"retry-after: ");
        out.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if code == ErrorCode::BadToken {
        out.extend_from_slice(b"www-authenticate: Bearer\r\n"); // RFC 9110 section 15.5.2: a 401 must name a scheme
    }
    let connection = if code.closes() { ConnectionHeader::Close } else { problem.connection };
    out.extend_from_slice(connection.line());
    out.extend_from_slice(b"\r\n");
    out[start..].rotate_left(body_bytes);
    if head_only {
        out.truncate(out.len() - body_bytes);
    }
}

/// `unix_s`, seconds since 1970, as IMF-fixdate (RFC 9110 section 5.6.7). Beyond the year 9999: its last second.
pub fn http_date(unix_s: u64) -> [u8; 29] {
    let mut date = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let time = UNIX_EPOCH + Duration::from_secs(unix_s.min(DATE_UNIX_S_MAX));
    write!(&mut date[..], "{}", httpdate::HttpDate::from(time)).expect("an IMF-fixdate has 29 bytes");
    date
}

/// What nearly all replies begin with: status, type, date and invocation.
const USUAL_LINES: &[u8; 145] = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
    x-invocation-id: 00000000000000000000000000000000\r\n";
const USUAL_DATE_AT: usize = 63;
const USUAL_ID_AT: usize = 111;

/// Those lines at once, and then what differs in its place in the output: lines made elsewhere would be loaded again in other pieces than they were
/// stored in, which waits.
fn push_usual_lines(out: &mut Vec<u8>, head: &ReplyHead<'_>) {
    let start = out.len();
    out.extend_from_slice(USUAL_LINES);
    let lines: &mut [u8; USUAL_LINES.len()] = out[start..].first_chunk_mut().expect("they are there since just now");
    lines[USUAL_DATE_AT..][..29].copy_from_slice(head.date);
    lines[USUAL_ID_AT..][..32].copy_from_slice(&hex_digits(head.invocation_id));
}

fn push_status_line(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(status));
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase; empty for a status without a name, which RFC 9112 section 4 allows.
const fn reason(status: u16) -> &'static [u8] {
    match status {
        200 => b"OK",
        201 => b"Created",
        202 => b"Accepted",
        203 => b"Non-Authoritative Information",
        204 => b"No Content",
        205 => b"Reset Content",
        206 => b"Partial Content",
        301 => b"Moved Permanently",
        302 => b"Found",
        303 => b"See Other",
        304 => b"Not Modified",
        307 => b"Temporary Redirect",
        308 => b"Permanent Redirect",
        400 => b"Bad Request",
        401 => b"Unauthorized",
        403 => b"Forbidden",
        404 => b"Not Found",
        405 => b"Method Not Allowed",
        406 => b"Not Acceptable",
        408 => b"Request Timeout",
        409 => b"Conflict",
        410 => b"Gone",
        412 => b"Precondition Failed",
        413 => b"Content Too Large",
        415 => b"Unsupported Media Type",
        417 => b"Expectation Failed",
        422 => b"Unprocessable Content",
        429 => b"Too Many Requests",
        431 => b"Request Header Fields Too Large",
        500 => b"Internal Server Error",
        501 => b"Not Implemented",
        502 => b"Bad Gateway",
        503 => b"Service Unavailable",
        504 => b"Gateway Timeout",
        _ => b"",
    }
}

fn push_content_length(out: &mut Vec<u8>, bytes: usize) {
    out.extend_from_slice(b"content-length: ");
    match bytes {
        0..10 => out.push(b'0' + bytes as u8),
        _ => out.extend_from_slice(itoa::Buffer::new().format(bytes).as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
}

/// Without its line's end. A known type is not looked through: nearly all replies have it.
fn push_content_type(out: &mut Vec<u8>, content_type: &[u8]) {
    if content_type != CONTENT_TYPE_DEFAULT && is_field_value(content_type) {
        out.extend_from_slice(b"content-type: ");
        out.extend_from_slice(content_type);
    } else {
        out.extend_from_slice(b"content-type: application/octet-stream");
    }
}

/// Ends the line before it, too.
fn push_date(out: &mut Vec<u8>, date: &[u8; 29]) {
    let mut lines = *b"\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
    lines[b"\r\ndate: ".len()..][..date.len()].copy_from_slice(date);
    out.extend_from_slice(&lines);
}

fn push_session(out: &mut Vec<u8>, header: &[u8], session: &SessionId) {
    out.extend_from_slice(header);
    out.extend_from_slice(b": ");
    let end = out.len() + session.as_bytes().len();
    out.extend_from_slice(session.padded()); // a copy of a fixed length is a few instructions
    out.truncate(end);
    out.extend_from_slice(b"\r\n");
}

fn push_invocation_id(out: &mut Vec<u8>, invocation_id: u128) {
    out.extend_from_slice(b"x-invocation-id: ");
    out.extend_from_slice(&hex_digits(invocation_id));
    out.extend_from_slice(b"\r\n");
}

/// The hex digits, the highest first.
#[inline]
fn hex_digits(number: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (place, eight) in digits.as_chunks_mut::<8>().0.iter_mut().zip(number.to_be_bytes().as_chunks::<4>().0) {
        *place = eight_hex_digits(u32::from_be_bytes(*eight));
    }
    digits
}

/// All digits in one word, a byte each.
#[inline]
const fn eight_hex_digits(number: u32) -> [u8; 8] {
    const ONES: u64 = u64::MAX / 0xFF;
    let spread = number as u64;
    let spread = (spread | spread << 16) & 0x0000_FFFF_0000_FFFF;
    let spread = (spread | spread << 8) & 0x00FF_00FF_00FF_00FF;
    let spread = (spread | spread << 4) & (ONES * 0x0F);
    // 10 and more are 16 and more when 6 is added.
    let letters = (spread + ONES * 6) >> 4 & ONES;
    (spread + ONES * b'0' as u64 + letters * (b'a' - b'0' - 10) as u64).to_be_bytes()
}

/// True for text that may stand in a header: not empty, no control byte but tab, no white space at its ends.
fn is_field_value(value: &[u8]) -> bool {
    !value.is_empty() && value.trim_ascii() == value && value.iter().all(|byte| matches!(byte, b'\t' | b' '..=0x7E | 0x80..))
}

fn push_problem_document(out: &mut Vec<u8>, problem: &Problem<'_>) {
    let code = problem.code;
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(PROBLEM_TYPE.as_bytes());
    out.extend_from_slice(code.code().as_bytes());
    out.extend_from_slice(b"\",\"title\":");
    push_json_string(out, code.title());
    out.extend_from_slice(b",\"status\":");
    out.extend_from_slice(itoa::Buffer::new().format(code.http_status()).as_bytes());
    out.extend_from_slice(b",\"code\":");
    push_json_string(out, code.code());
    out.extend_from_slice(b",\"detail\":");
    push_json_string(out, problem.detail);
    if let Some(guest_code) = problem.guest_code {
        out.extend_from_slice(b",\"guest_code\":");
        out.extend_from_slice(itoa::Buffer::new().format(guest_code).as_bytes());
    }
    out.push(b'}');
}

/// RFC 8259 section 7: the quote, the backslash and control characters are escaped, all else stands for itself.
fn push_json_string(out: &mut Vec<u8>, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for &byte in text.as_bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..0x20 => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &[u8; 29] = b"Sun, 06 Nov 1994 08:49:37 GMT";

    fn reply(status: u16, content_type: &[u8], connection: ConnectionHeader, body: &[u8], head_only: bool) -> String {
        let session = SessionId::new(b"alice").unwrap();
        let session_header = b"x-session-id";
        let (invocation_id, extra) = (0xAB, b"a: b\r\n");
        let head = ReplyHead { status, content_type, session_header, session: &session, invocation_id, date: DATE, connection, extra };
        let mut out = b"before|".to_vec();
        encode_reply(&mut out, &head, body, head_only);
        if !head_only && !matches!(status, 204 | 205 | 304) {
            let mut over = b"before|".to_vec();
            encode_reply_over(&mut over, &head, body.to_vec());
            assert_eq!(over, out);
        }
        String::from_utf8(out).unwrap().strip_prefix("before|").unwrap().to_owned()
    }

    fn problem(code: ErrorCode, detail: &str, guest_code: Option<i32>, head_only: bool) -> String {
        let mut out = b"before|".to_vec();
        let session = SessionId::new(b"s").unwrap();
        let ran = code == ErrorCode::GuestError;
        let problem = Problem {
            code,
            detail,
            guest_code,
            session_header: b"x-session-id",
            session: ran.then_some(&session),
            invocation_id: ran.then_some(1),
            date: DATE,
            connection: ConnectionHeader::None,
        };
        encode_problem(&mut out, &problem, head_only);
        String::from_utf8(out).unwrap().strip_prefix("before|").unwrap().to_owned()
    }

    #[test]
    fn a_reply_carries_the_five_headers_and_the_body() {
        assert_eq!(
            reply(200, b"", ConnectionHeader::None, b"42", false),
            "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             x-invocation-id: 000000000000000000000000000000ab\r\nx-session-id: alice\r\ncontent-length: 2\r\na: b\r\n\r\n42"
        );
    }

    #[test]
    fn the_usual_reply_is_written_as_any_other() {
        let body = "x".repeat(10);
        let usual = reply(200, CONTENT_TYPE_DEFAULT, ConnectionHeader::None, body.as_bytes(), false);
        assert_eq!(usual, reply(200, b"", ConnectionHeader::None, body.as_bytes(), false));
        assert!(usual.contains("\r\ncontent-length: 10\r\n"));
    }

    #[test]
    fn numbers_are_written_in_hex() {
        for number in [0, 1, 0x0123_4567_89AB_CDEF_FEDC_BA98_7654_3210, u128::MAX, 0x9A << 40] {
            assert_eq!(std::str::from_utf8(&hex_digits(number)), Ok(&*format!("{number:032x}")));
        }
    }

    #[test]
    fn the_answer_to_head_has_the_length_and_no_body() {
        let text = reply(200, b"", ConnectionHeader::None, b"hello", true);
        assert!(text.contains("content-length: 5\r\n") && text.ends_with("\r\n\r\n"));
        let text = problem(ErrorCode::NoRoute, "d", None, true);
        assert!(text.ends_with("\r\n\r\n") && !text.contains("content-length: 0"));
        assert!(problem(ErrorCode::NoRoute, "d", None, false).starts_with(&text));
    }

    #[test]
    fn statuses_without_a_body_have_none() {
        for (status, has_length) in [(204, false), (205, true), (304, false)] {
            let text = reply(status, b"", ConnectionHeader::None, b"hello", false);
            assert!(text.ends_with("\r\n\r\n"), "{status}");
            assert_eq!(text.contains("content-length: 0\r\n"), has_length, "{status}");
        }
        assert!(reply(299, b"", ConnectionHeader::None, b"", false).starts_with("HTTP/1.1 299 \r\n"));
    }

    #[test]
    fn a_content_type_that_would_break_the_head_is_replaced() {
        assert!(reply(200, b"text/plain; a=b", ConnectionHeader::None, b"", false).contains("content-type: text/plain; a=b\r\n"));
        for bad in [&b"a\r\nx: y"[..], b"a\n", b"\0", b" a", b"a "] {
            assert!(reply(200, bad, ConnectionHeader::None, b"", false).contains("content-type: application/octet-stream\r\n"));
        }
    }

    #[test]
    fn the_connection_header_is_said_when_it_must_be() {
        assert!(reply(200, b"", ConnectionHeader::Close, b"", false).contains("\r\nconnection: close\r\n"));
        assert!(reply(200, b"", ConnectionHeader::KeepAlive, b"", false).contains("\r\nconnection: keep-alive\r\n"));
        assert!(!reply(200, b"", ConnectionHeader::None, b"", false).contains("connection"));
        assert!(problem(ErrorCode::BadRequest, "", None, false).contains("\r\nconnection: close\r\n"));
        let mut http11 = Request::default();
        assert_eq!(ConnectionHeader::of(&http11, true), ConnectionHeader::None);
        http11.set_connection(true, true);
        assert_eq!(ConnectionHeader::of(&http11, true), ConnectionHeader::KeepAlive);
        assert_eq!(ConnectionHeader::of(&http11, false), ConnectionHeader::Close);
    }

    #[test]
    fn a_problem_is_json_with_escapes_and_names_the_guest_code() {
        let text = problem(ErrorCode::GuestError, "a \"b\" \\ \n \u{1} é", Some(-7), false);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(
            body,
            "{\"type\":\"urn:xfaas:error:guest_error\",\"title\":\"The function returned an error\",\"status\":500,\"code\":\"guest_error\",\
             \"detail\":\"a \\\"b\\\" \\\\ \\u000a \\u0001 é\",\"guest_code\":-7}"
        );
        assert!(head.starts_with("HTTP/1.1 500 Internal Server Error\r\n"));
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        assert!(head.contains("content-type: application/problem+json\r\n") && head.contains("x-session-id: s\r\n"));
        assert!(head.contains("x-invocation-id: 00000000000000000000000000000001"));
        let text = problem(ErrorCode::NoRoute, "d", None, false);
        assert!(!text.contains("x-session-id") && !text.contains("guest_code") && !text.contains("connection"));
    }

    #[test]
    fn shed_requests_are_told_when_to_come_back() {
        for code in ErrorCode::ALL {
            let text = problem(code, "", None, false);
            assert_eq!(text.contains("\r\nretry-after: 1\r\n"), matches!(code.http_status(), 429 | 503), "{}", code.code());
            assert_eq!(text.contains("\r\nwww-authenticate: "), code.http_status() == 401, "{}", code.code());
        }
    }

    #[test]
    fn the_date_is_imf_fixdate() {
        assert_eq!(&http_date(784_111_777), DATE);
        assert_eq!(&http_date(0), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(&http_date(1_709_164_800), b"Thu, 29 Feb 2024 00:00:00 GMT");
        assert_eq!(&http_date(u64::MAX), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
