//! The search for the session header in the first bytes of an HTTP head, as a machine of small steps: the kernel turns it with
//! `bpf_loop`, because the verifier cannot follow a plain loop of that length; user space with a loop.
//! It only steers: what it does not find or understand, the shard finds and answers.

use xfaas_common::limits::{SESSION_ID_BYTES_MAX, STEER_HEAD_SCAN_BYTES};
use xfaas_common::map_layout::{HEADER_WORDS, HeaderPattern, SESSION_HEADER_BYTES_MAX};

use crate::parse::HeadBytes;
use crate::session::{EACH, SessionWords, read_session};

/// Spaces and tabs around the value for which there is always room, beside name, value and line end.
const SPARE_BYTES: usize = 128 - (SESSION_HEADER_BYTES_MAX + 1) - SESSION_ID_BYTES_MAX - 2;
/// Bytes of payload to copy: a header line that begins within the first 512 may end behind them.
pub const HEAD_COPY_BYTES: u32 = (STEER_HEAD_SCAN_BYTES + SESSION_HEADER_BYTES_MAX + 1 + SESSION_ID_BYTES_MAX + 2 + SPARE_BYTES) as u32;
const _: () = assert!(HEAD_COPY_BYTES == 640);
const SCAN_BYTES: u32 = STEER_HEAD_SCAN_BYTES as u32;

/// Steps after which the machine is given up: enough for 64 words and 256 lines of two bytes, and the value with its line end.
/// Only a value among hundreds of spaces needs more; user space finds it.
pub const SCAN_STEPS_MAX: u32 = SCAN_BYTES / 8 + SCAN_BYTES / 2 + HEAD_COPY_BYTES / 8 + 80;

/// The end of a request line before its CR is a space, this word, and a digit: RFC 9112, section 2.3.
const VERSION_WORD: u64 = u64::from_le_bytes(*b" HTTP/1.");
/// Bytes from the beginning of that word to the LF.
const VERSION_BYTES: u32 = 10;

/// What the machine looks for next. Plain numbers: the kernel keeps them in memory that the verifier reads as such.
pub mod phase {
    pub const REQUEST_LINE: u32 = 0;
    pub const HEADERS: u32 = 1;
    pub const SPACE_BEFORE: u32 = 2;
    pub const LINE_END: u32 = 3;
    pub const SPACE_AFTER: u32 = 4;
    pub const FOUND: u32 = 5;
    pub const STOPPED: u32 = 6;
}

/// The machine. `start..end` is the trimmed value once the phase is `FOUND`.
#[repr(C)]
pub struct Scan<'a> {
    pub head: &'a HeadBytes,
    pub pattern: &'a HeaderPattern,
    /// Bytes of `head` that are of this segment, at most `HEAD_COPY_BYTES`.
    pub bytes: u32,
    pub position: u32,
    pub start: u32,
    pub end: u32,
    pub phase: u32,
    pub pad: u32,
}

impl<'a> Scan<'a> {
    #[inline(always)]
    pub const fn new(head: &'a HeadBytes, pattern: &'a HeaderPattern, bytes: u32) -> Scan<'a> {
        Scan { head, pattern, bytes, position: 0, start: 0, end: 0, phase: phase::REQUEST_LINE, pad: 0 }
    }

    /// Reads one word or byte and moves on. Output: false once the machine has stopped.
    #[inline(always)]
    pub fn step(&mut self) -> bool {
        match self.phase {
            phase::REQUEST_LINE | phase::HEADERS => self.seek_header(),
            phase::SPACE_BEFORE => self.skip_space_before(),
            phase::LINE_END => self.seek_line_end(),
            phase::SPACE_AFTER => self.skip_space_after(),
            _ => {}
        }
        self.phase < phase::FOUND
    }

    /// Fills in the session. Output: false when the header was not found or its value is no session ID.
    #[inline(always)]
    pub fn read(&self, session: &mut SessionWords) -> bool {
        let length = self.end.wrapping_sub(self.start);
        if self.phase != phase::FOUND || length == 0 || length > SESSION_ID_BYTES_MAX as u32 {
            return false;
        }
        read_session(&self.head, self.start, length, session) == Some(true)
    }

    #[inline(always)]
    fn seek_header(&mut self) {
        let Some(line_end) = self.next_line_end(SCAN_BYTES) else { return };
        if self.phase == phase::REQUEST_LINE {
            // A segment that does not begin with a request line is the middle of something: what looks like a header there is none.
            if line_end < VERSION_BYTES
                || self.head.word_at(line_end - VERSION_BYTES) != VERSION_WORD
                || self.head.byte_at(line_end - 1) != b'\r'
            {
                self.phase = phase::STOPPED;
                return;
            }
            self.phase = phase::HEADERS;
        }
        let line = line_end + 1;
        self.position = line;
        let first = self.head.byte_at(line);
        // An empty line ends the head.
        if line >= SCAN_BYTES || first == b'\r' || first == b'\n' {
            self.phase = phase::STOPPED;
        } else if self.matches(line) {
            self.position = line + self.pattern.bytes as u32;
            self.phase = phase::SPACE_BEFORE;
        }
    }

    #[inline(always)]
    fn skip_space_before(&mut self) {
        if self.position >= self.bytes {
            self.phase = phase::STOPPED;
            return;
        }
        if is_space(self.head.byte_at(self.position)) {
            self.position += 1;
        } else {
            self.start = self.position;
            self.phase = phase::LINE_END;
        }
    }

    #[inline(always)]
    fn seek_line_end(&mut self) {
        let Some(line_end) = self.next_line_end(HEAD_COPY_BYTES) else { return };
        self.end = line_end.wrapping_sub(1);
        let is_crlf = line_end > self.start && self.head.byte_at(line_end.wrapping_sub(1)) == b'\r';
        self.phase = if is_crlf { phase::SPACE_AFTER } else { phase::STOPPED };
    }

    #[inline(always)]
    fn skip_space_after(&mut self) {
        if self.end > self.start && is_space(self.head.byte_at(self.end.wrapping_sub(1))) {
            self.end = self.end.wrapping_sub(1);
        } else {
            self.phase = phase::FOUND;
        }
    }

    /// The first LF in the word at `position`. `None`: there is none, and the position moved on, or the bytes before `limit` ended.
    #[inline(always)]
    fn next_line_end(&mut self, limit: u32) -> Option<u32> {
        if self.position >= self.bytes || self.position >= limit {
            self.phase = phase::STOPPED;
            return None;
        }
        // A byte that becomes zero sets its top bit. Bytes above the first zero may set theirs too, so only the lowest counts.
        let zero_where_lf = self.head.word_at(self.position) ^ (EACH * b'\n' as u64);
        let tops = zero_where_lf.wrapping_sub(EACH) & !zero_where_lf & (EACH * 0x80);
        if tops == 0 {
            self.position += 8;
            return None;
        }
        // The lowest top bit as a number of its byte: BPF counts no zeros, but the product of a power of two picks a byte of the constant.
        let lowest = (tops & tops.wrapping_neg()) >> 7;
        let line_end = self.position + (lowest.wrapping_mul(0x0001_0203_0405_0607) >> 56) as u32;
        if line_end >= self.bytes {
            self.phase = phase::STOPPED;
            return None;
        }
        Some(line_end)
    }

    /// True when the name and its colon lie at `line`, all within this segment's bytes.
    #[inline(always)]
    fn matches(&self, line: u32) -> bool {
        let pattern = self.pattern;
        let mut i = 0;
        while i < HEADER_WORDS {
            if pattern.care[i] == 0 {
                break;
            }
            let text = self.head.word_at(line + 8 * i as u32);
            if (text | pattern.fold[i]) & pattern.care[i] != pattern.want[i] {
                return false;
            }
            i += 1;
        }
        pattern.bytes != 0 && line + pattern.bytes as u32 <= self.bytes
    }
}

#[inline(always)]
const fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The session of an HTTP request's first segment, as the kernel finds it, for user-space tests.
/// Input: the payload. Output: the session, or `None` when steering does not see one.
pub fn find_session(payload: &[u8], pattern: &HeaderPattern) -> Option<SessionWords> {
    let mut head = HeadBytes { bytes: [0xA5; crate::parse::HEAD_BUFFER_BYTES] };
    let bytes = payload.len().min(HEAD_COPY_BYTES as usize);
    head.bytes[..bytes].copy_from_slice(&payload[..bytes]);
    let mut scan = Scan::new(&head, pattern, bytes as u32);
    for _ in 0..SCAN_STEPS_MAX {
        if !scan.step() {
            break;
        }
    }
    let mut session = SessionWords::none();
    scan.read(&mut session).then_some(session)
}
