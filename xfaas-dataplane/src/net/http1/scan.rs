//! Finds the end of a head that may come in pieces, each byte looked at once, and refuses what no head may hold: a bare LF or CR and
//! control bytes. Called by the decoder before anything is parsed, so that a head dripping in byte by byte costs no more than a whole one.

use memchr::{memchr2, memmem};
use std::sync::LazyLock;

use crate::net::error::Refusal;

/// What a piece brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    /// Not the end yet. The head's bytes in this piece start at `start`; before it are empty lines. `start` is the piece's length when the
    /// request line has not begun.
    More { start: usize },
    /// The head's bytes in this piece are `start..end`, the final empty line included.
    End { start: usize, end: usize },
}

/// The state between two pieces of one head.
#[derive(Debug)]
pub(super) struct HeadScan {
    /// The last byte seen is a CR whose LF must come next.
    after_cr: bool,
    /// Bytes other than the line end were seen in this line.
    in_line: bool,
    /// The request line has begun: from here on an empty line ends the head.
    started: bool,
}

impl HeadScan {
    pub(super) const fn new() -> HeadScan {
        HeadScan { after_cr: false, in_line: false, started: false }
    }

    /// Input: the bytes that follow the last piece. Cost: at most four passes over `piece` up to the head's end.
    pub(super) fn scan(&mut self, piece: &[u8]) -> Result<Scanned, Refusal> {
        if let Some(end) = (!self.started && !self.after_cr).then(|| find_whole(piece)).flatten() {
            return Ok(Scanned::End { start: 0, end });
        }
        let scanned = self.find_end(piece)?;
        let head = match scanned {
            Scanned::More { start } => &piece[start..],
            Scanned::End { start, end } => &piece[start..end],
        };
        if holds_control_byte(head) {
            return Err(Refusal::bad_request("control byte in the head"));
        }
        Ok(scanned)
    }

    fn find_end(&mut self, piece: &[u8]) -> Result<Scanned, Refusal> {
        let mut start = 0;
        let mut at = 0;
        while let Some(&byte) = piece.get(at) {
            if self.after_cr {
                if byte != b'\n' {
                    return Err(Refusal::bad_request("CR without LF in the head"));
                }
                at += 1;
                self.after_cr = false;
                if !self.started {
                    start = at;
                } else if !self.in_line {
                    return Ok(Scanned::End { start, end: at });
                }
                self.in_line = false;
                continue;
            }
            let line_end = memchr2(b'\r', b'\n', &piece[at..]).map_or(piece.len(), |offset| at + offset);
            if line_end > at {
                self.in_line = true;
                self.started = true;
            }
            match piece.get(line_end) {
                None => at = line_end,
                Some(b'\r') => {
                    self.after_cr = true;
                    at = line_end + 1;
                }
                Some(_) => return Err(Refusal::bad_request("LF without CR in the head")),
            }
        }
        Ok(Scanned::More { start: if self.started { start } else { piece.len() } })
    }
}

static EMPTY_LINE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\r\n\r\n"));

/// The end of a head that lies whole and faultless at the front of `piece`, as nearly all do, in two passes of vector code.
/// `None`: it takes a closer look.
fn find_whole(piece: &[u8]) -> Option<usize> {
    let end = EMPTY_LINE.find(piece)? + b"\r\n\r\n".len();
    let head = &piece[..end];
    let has_bare_line_end = head.iter().zip(&head[1..]).fold(false, |found, (&byte, &next)| found | ((byte == b'\r') != (next == b'\n')));
    let starts_with_line_end = matches!(head[0], b'\r' | b'\n');
    (!starts_with_line_end && !has_bare_line_end && !holds_control_byte(head)).then_some(end)
}

/// True for a NUL, any other control byte but tab, CR and LF, and DEL. Without an early end, so that it compiles to vector code.
fn holds_control_byte(head: &[u8]) -> bool {
    head.iter().fold(false, |found, &byte| found | ((byte < 0x20) & (byte != b'\t') & (byte != b'\r') & (byte != b'\n')) | (byte == 0x7F))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan_all(pieces: &[&[u8]]) -> Result<Scanned, Refusal> {
        let mut scan = HeadScan::new();
        let mut last = Scanned::More { start: 0 };
        for piece in pieces {
            last = scan.scan(piece)?;
        }
        Ok(last)
    }

    #[test]
    fn the_end_is_found_wherever_the_head_is_split() {
        assert_eq!(scan_all(&[b"GET\r\na\r\n\r\nrest"]), Ok(Scanned::End { start: 0, end: 10 }));
        assert_eq!(scan_all(&[b"GET\r", b"\na\r\n", b"\r", b"\nrest"]), Ok(Scanned::End { start: 0, end: 1 }));
        assert_eq!(scan_all(&[b"GET\r\n", b"\r\nrest"]), Ok(Scanned::End { start: 0, end: 2 }));
        assert_eq!(scan_all(&[b"GET\r\na"]), Ok(Scanned::More { start: 0 }));
    }

    #[test]
    fn empty_lines_before_the_request_line_are_no_part_of_the_head() {
        assert_eq!(scan_all(&[b"\r\n\r\nG\r\n\r\n"]), Ok(Scanned::End { start: 4, end: 9 }));
        assert_eq!(scan_all(&[b"\r", b"\nG\r\n\r\n"]), Ok(Scanned::End { start: 1, end: 6 }));
        assert_eq!(scan_all(&[b"\r\n\r"]), Ok(Scanned::More { start: 3 }));
        assert_eq!(scan_all(&[b"\r\nG"]), Ok(Scanned::More { start: 2 }));
    }

    #[test]
    fn bare_line_ends_and_control_bytes_are_refused_at_once() {
        for bad in [&b"\n"[..], b"GET\n", b"GET\r\r", b"G\rE", b"G\0", b"G\x01", b"G\x7f", b"G\r\n\n", b"\r\n\n", b"G\x0b", b"G\x1f"] {
            assert!(scan_all(&[bad]).is_err(), "{bad:?}");
            let bytes: Vec<&[u8]> = bad.chunks(1).collect();
            assert!(scan_all(&bytes).is_err(), "{bad:?} byte by byte");
        }
        assert!(scan_all(&[b"G\t\x80\xff"]).is_ok());
    }
}
