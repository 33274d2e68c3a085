//! The chunked coding, RFC 9112 section 7.1, one byte of framing at a time, so that a split anywhere makes no difference.
//! Called by the decoder; hands on the data, checks and drops extensions and trailers. httparse's chunk-size parser is not used: it takes an
//! empty size for 0 and does not check extensions.

use super::BodySink;
use super::meter::HeadMeter;
use crate::net::error::{ErrorCode, Refusal};

/// Hex digits of one chunk size that are free; more can only be leading zeros or too large a number, and count as head.
const SIZE_DIGITS_FREE: u8 = 16;

/// What the next byte must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The first digit of a chunk size.
    SizeStart,
    Size,
    /// The LF after a chunk size and its extensions.
    SizeLf,
    ExtensionNameStart,
    ExtensionName,
    ExtensionValueStart,
    ExtensionToken,
    ExtensionQuoted,
    /// After a backslash within a quoted value.
    ExtensionEscaped,
    /// After the closing quote.
    ExtensionEnd,
    Data,
    DataCr,
    DataLf,
    /// The first byte of a trailer line, or the CR of the final empty line.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    FinalLf,
    Done,
}

/// The state of one chunked body between two pieces of input.
#[derive(Debug)]
pub(super) struct ChunkedBody {
    step: Step,
    /// The size being read, then the data bytes still to come.
    size: u64,
    /// Digits of the size being read, saturating.
    digits: u8,
    /// The size does not fit in 64 bits.
    is_huge: bool,
}

impl ChunkedBody {
    pub(super) const fn new() -> ChunkedBody {
        ChunkedBody { step: Step::SizeStart, size: 0, digits: 0, is_huge: false }
    }

    /// Takes bytes up to the end of the body. Output: bytes taken and whether the body is complete.
    pub(super) fn decode(&mut self, input: &[u8], meter: &mut HeadMeter, sink: &mut BodySink<'_>) -> Result<(usize, bool), Refusal> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            if self.step == Step::Data {
                let rest = &input[at..];
                let data = &rest[..rest.len().min(usize::try_from(self.size).unwrap_or(usize::MAX))];
                self.size -= data.len() as u64;
                // How much follows this chunk is not known: as much as the limit leaves.
                sink.push(data, u64::MAX);
                at += data.len();
                if self.size == 0 {
                    self.step = Step::DataCr;
                }
                continue;
            }
            at += 1;
            self.step = self.next_step(byte, meter, sink)?;
            if self.step == Step::Done {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    fn next_step(&mut self, byte: u8, meter: &mut HeadMeter, sink: &BodySink<'_>) -> Result<Step, Refusal> {
        match self.step {
            Step::SizeStart | Step::Size => self.size_byte(byte, meter),
            Step::SizeLf => {
                expect(byte, b'\n', "LF missing after a chunk size")?;
                self.end_of_size(sink)
            }
            Step::DataCr => expect(byte, b'\r', "CRLF missing after a chunk's data").map(|()| Step::DataLf),
            Step::DataLf => expect(byte, b'\n', "CRLF missing after a chunk's data").map(|()| {
                *self = ChunkedBody::new();
                Step::SizeStart
            }),
            Step::TrailerStart | Step::TrailerName | Step::TrailerValue | Step::TrailerLf => self.trailer_byte(byte, meter),
            Step::FinalLf => expect(byte, b'\n', "LF missing after the final chunk").map(|()| Step::Done),
            // The steps within an extension; `Data` and `Done` never come here.
            _ => self.extension_byte(byte, meter),
        }
    }

    fn size_byte(&mut self, byte: u8, meter: &mut HeadMeter) -> Result<Step, Refusal> {
        if let Some(digit) = char::from(byte).to_digit(16) {
            self.digits = self.digits.saturating_add(1);
            if self.digits > SIZE_DIGITS_FREE {
                meter.add_bytes(1).map_err(|refusal| if self.is_huge { too_large() } else { refusal })?;
            }
            self.is_huge |= self.size >> 60 != 0;
            self.size = (self.size << 4) | u64::from(digit);
            return Ok(Step::Size);
        }
        match byte {
            _ if self.step == Step::SizeStart => Err(Refusal::bad_request("a chunk size is not a hexadecimal number")),
            b'\r' => Ok(Step::SizeLf),
            b';' => meter.add_bytes(1).map(|()| Step::ExtensionNameStart),
            _ => Err(Refusal::bad_request("a chunk size is not a hexadecimal number")),
        }
    }

    /// The line of a chunk size is complete: only now is it known to be a number, and so one that can be too large.
    fn end_of_size(&mut self, sink: &BodySink<'_>) -> Result<Step, Refusal> {
        if self.is_huge || self.size > sink.room_bytes() {
            return Err(too_large());
        }
        Ok(if self.size == 0 { Step::TrailerStart } else { Step::Data })
    }

    /// `;name[=value]`, repeated; a value is a token or a quoted string. RFC 9112 section 7.1.1 without its white space.
    fn extension_byte(&self, byte: u8, meter: &mut HeadMeter) -> Result<Step, Refusal> {
        let may_end = matches!(self.step, Step::ExtensionName | Step::ExtensionToken | Step::ExtensionEnd);
        let next = match (self.step, byte) {
            (_, b'\r') if may_end => return Ok(Step::SizeLf),
            (_, b';') if may_end => Step::ExtensionNameStart,
            (Step::ExtensionName, b'=') => Step::ExtensionValueStart,
            (Step::ExtensionNameStart | Step::ExtensionName, _) if is_token_byte(byte) => Step::ExtensionName,
            (Step::ExtensionValueStart, b'"') => Step::ExtensionQuoted,
            (Step::ExtensionValueStart | Step::ExtensionToken, _) if is_token_byte(byte) => Step::ExtensionToken,
            (Step::ExtensionQuoted, b'"') => Step::ExtensionEnd,
            (Step::ExtensionQuoted, b'\\') => Step::ExtensionEscaped,
            (Step::ExtensionQuoted | Step::ExtensionEscaped, _) if is_text_byte(byte) => Step::ExtensionQuoted,
            _ => return Err(Refusal::bad_request("a chunk extension is not `;name` or `;name=value`")),
        };
        meter.add_bytes(1).map(|()| next)
    }

    /// A trailer line has the form of a header line. The final empty line is the body's end and counts as nothing.
    fn trailer_byte(&self, byte: u8, meter: &mut HeadMeter) -> Result<Step, Refusal> {
        let next = match (self.step, byte) {
            (Step::TrailerStart, b'\r') => return Ok(Step::FinalLf),
            (Step::TrailerStart, _) if is_token_byte(byte) => {
                meter.add_field()?;
                Step::TrailerName
            }
            (Step::TrailerName, b':') => Step::TrailerValue,
            (Step::TrailerName, _) if is_token_byte(byte) => Step::TrailerName,
            (Step::TrailerValue, b'\r') => Step::TrailerLf,
            (Step::TrailerValue, _) if is_text_byte(byte) => Step::TrailerValue,
            (Step::TrailerLf, b'\n') => Step::TrailerStart,
            _ => return Err(Refusal::bad_request("a trailer is not a header line")),
        };
        meter.add_bytes(1).map(|()| next)
    }
}

fn expect(byte: u8, expected: u8, detail: &'static str) -> Result<(), Refusal> {
    if byte == expected { Ok(()) } else { Err(Refusal::bad_request(detail)) }
}

const fn too_large() -> Refusal {
    Refusal::new(ErrorCode::BodyTooLarge, "the chunked body is over the limit")
}

/// RFC 9110 section 5.6.2: tchar.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// RFC 9110 sections 5.5 and 5.6.4: tab, space, visible ASCII and obs-text.
fn is_text_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=0x7E | 0x80..)
}
