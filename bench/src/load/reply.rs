//! HTTP/1.1 replies: bytes to status, body and the two headers that are checked. Replies with a content-length only, which is all that
//! the servers under test send. The server is under test, so nothing it sends is trusted; nothing is copied.

use memchr::memchr;
use memchr::memmem;
use std::sync::LazyLock;

/// Bytes of a reply's head; a longer one is refused.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes of a reply's body; a longer one is refused.
const BODY_BYTES_MAX: usize = 16 << 20;

/// One whole reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    pub status: u16,
    /// Value of `x-session-id`.
    pub session: Option<&'a [u8]>,
    /// The server said `connection: close`.
    pub closes: bool,
    pub body: &'a [u8],
    /// Length of head and body.
    pub bytes: usize,
}

/// Why bytes are no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    #[error("the status line is not `HTTP/1.1 <3 digits> ...`")]
    StatusLine,
    #[error("the head does not end within {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    #[error("a header line has no colon")]
    HeaderLine,
    #[error("there is no content-length, or it is no number up to {BODY_BYTES_MAX}")]
    ContentLength,
}

/// Input: the bytes received so far of one reply. Output: `None` when more must come. Cost: one pass over the head.
pub fn parse_reply(input: &[u8]) -> Result<Option<Reply<'_>>, BadReply> {
    static HEAD_END: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\r\n\r\n"));
    let Some(end) = HEAD_END.find(&input[..input.len().min(HEAD_BYTES_MAX)]) else {
        return if input.len() >= HEAD_BYTES_MAX { Err(BadReply::HeadTooLong) } else { Ok(None) };
    };
    let head = &input[..end + 2];
    let status = status(head)?;
    let mut fields = Fields::default();
    let mut rest = next_line(head).1;
    while !rest.is_empty() {
        let (line, after) = next_line(rest);
        fields.take(line)?;
        rest = after;
    }
    let body_bytes = fields.content_length.ok_or(BadReply::ContentLength)?;
    let bytes = end + 4 + body_bytes;
    if input.len() < bytes {
        return Ok(None);
    }
    Ok(Some(Reply { status, session: fields.session, closes: fields.closes, body: &input[end + 4..bytes], bytes }))
}

fn status(head: &[u8]) -> Result<u16, BadReply> {
    match head.strip_prefix(b"HTTP/1.1 ") {
        Some([a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ' | b'\r', ..]) => {
            Ok([a, b, c].iter().fold(0, |sum, digit| sum * 10 + u16::from(**digit - b'0')))
        }
        _ => Err(BadReply::StatusLine),
    }
}

/// The first line without its end, and what follows it.
fn next_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match memchr(b'\n', bytes) {
        Some(at) => (bytes[..at].strip_suffix(b"\r").unwrap_or(&bytes[..at]), &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

#[derive(Default)]
struct Fields<'a> {
    content_length: Option<usize>,
    session: Option<&'a [u8]>,
    closes: bool,
}

impl<'a> Fields<'a> {
    fn take(&mut self, line: &'a [u8]) -> Result<(), BadReply> {
        let colon = memchr(b':', line).ok_or(BadReply::HeaderLine)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // The length of a name tells nearly all apart, so that a line costs one comparison.
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length = Some(content_length(value)?),
            12 if name.eq_ignore_ascii_case(b"x-session-id") => self.session = Some(value),
            10 if name.eq_ignore_ascii_case(b"connection") => self.closes = value.eq_ignore_ascii_case(b"close"),
            _ => {}
        }
        Ok(())
    }
}

fn content_length(value: &[u8]) -> Result<usize, BadReply> {
    let digits = !value.is_empty() && value.len() <= 9 && value.iter().all(u8::is_ascii_digit);
    let bytes = value.iter().take(9).fold(0usize, |sum, digit| sum * 10 + usize::from(digit.wrapping_sub(b'0')));
    if digits && bytes <= BODY_BYTES_MAX { Ok(bytes) } else { Err(BadReply::ContentLength) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nDate: x\r\nX-Session-Id:  user-1 \r\nConnection: Close\r\n\r\n123";

    #[test]
    fn a_whole_reply_is_taken_apart() {
        let reply = parse_reply(REPLY).unwrap().unwrap();
        assert_eq!(reply, Reply { status: 200, session: Some(b"user-1"), closes: true, body: b"123", bytes: REPLY.len() });
    }

    #[test]
    fn a_reply_cut_anywhere_wants_more() {
        for end in 0..REPLY.len() {
            assert_eq!(parse_reply(&REPLY[..end]), Ok(None), "cut at {end}");
        }
    }

    #[test]
    fn what_follows_a_reply_is_left() {
        let mut two = REPLY.to_vec();
        two.extend_from_slice(REPLY);
        assert_eq!(parse_reply(&two).unwrap().unwrap().bytes, REPLY.len());
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        let refused = |bytes: &[u8]| parse_reply(bytes).unwrap_err();
        assert_eq!(refused(b"HTTP/1.0 200 OK\r\n\r\n"), BadReply::StatusLine);
        assert_eq!(refused(b"HTTP/1.1 20 OK\r\n\r\n"), BadReply::StatusLine);
        assert_eq!(refused(b"HTTP/1.1 2000 OK\r\n\r\n"), BadReply::StatusLine);
        assert_eq!(refused(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), BadReply::HeaderLine);
        assert_eq!(refused(b"HTTP/1.1 200 OK\r\nDate: x\r\n\r\n"), BadReply::ContentLength);
        assert_eq!(refused(b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n"), BadReply::ContentLength);
        assert_eq!(refused(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), BadReply::ContentLength);
        assert_eq!(refused(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999999999\r\n\r\n"), BadReply::ContentLength);
        assert_eq!(refused(&[b'x'; HEAD_BYTES_MAX]), BadReply::HeadTooLong);
    }
}
