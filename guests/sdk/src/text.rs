//! Numbers and text without a heap: parsing and formatting of decimal counters, and a bounded buffer to build a reply in.

use crate::error::Error;

/// The number in `digits`: one to twenty ASCII digits, nothing else. `None` if it is empty, has another byte or overflows.
pub fn parse_u64(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut number = 0_u64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        // Not `checked_mul`: on wasm32 that is a call of a multiplication of 128 bits for every digit.
        if digit > 9 || number > u64::MAX / 10 || number == u64::MAX / 10 && u64::from(digit) > u64::MAX % 10 {
            return None;
        }
        number = number * 10 + u64::from(digit);
    }
    Some(number)
}

/// A number as decimal text, on the stack.
pub struct Decimal {
    bytes: [u8; Decimal::BYTES_MAX],
    start: usize,
}

impl Decimal {
    /// Bytes of the longest number, `u64::MAX`.
    pub const BYTES_MAX: usize = 20;

    #[inline]
    pub const fn new(mut number: u64) -> Self {
        // Filled where it stays: a copy would load in words what was stored in bytes a moment ago, and wait for it.
        let mut text = Decimal { bytes: [0; Decimal::BYTES_MAX], start: 0 };
        let mut start = Decimal::BYTES_MAX;
        // The bound lets the compiler see that every index is inside: no panic, and so no panic text, ends up in the guest.
        while start > 0 {
            start -= 1;
            text.bytes[start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        text.start = start;
        text
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

/// Text built up in a borrowed buffer; a push that does not fit is refused and changes nothing.
pub struct TextBuffer<'b> {
    bytes: &'b mut [u8],
    length_bytes: usize,
}

impl<'b> TextBuffer<'b> {
    /// An empty text that may grow to `bytes.len()`.
    pub fn new(bytes: &'b mut [u8]) -> Self {
        TextBuffer { bytes, length_bytes: 0 }
    }

    /// Appends `text`. Errors: `OverLimit` when the buffer is full.
    pub fn push(&mut self, text: &[u8]) -> Result<(), Error> {
        let free = self.bytes.get_mut(self.length_bytes..).ok_or(Error::OverLimit)?;
        free.get_mut(..text.len()).ok_or(Error::OverLimit)?.copy_from_slice(text);
        self.length_bytes += text.len();
        Ok(())
    }

    /// Appends `number` as decimal text.
    pub fn push_u64(&mut self, number: u64) -> Result<(), Error> {
        self.push(Decimal::new(number).as_bytes())
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length_bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_text_round_trips() {
        for number in [0, 1, 9, 10, 99, 100, 12_345, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let text = Decimal::new(number);
            assert_eq!(text.as_bytes(), number.to_string().as_bytes());
            assert_eq!(parse_u64(text.as_bytes()), Some(number));
        }
    }

    #[test]
    fn what_is_not_a_number_is_refused() {
        for text in ["", "-1", "+1", " 1", "1 ", "1x", "18446744073709551616", "18446744073709551620", "99999999999999999999999"] {
            assert_eq!(parse_u64(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_full_text_buffer_refuses_and_keeps_what_it_had() {
        let mut bytes = [0; 5];
        let mut text = TextBuffer::new(&mut bytes);
        text.push(b"abc").expect("fits");
        text.push_u64(42).expect("fits");
        assert_eq!(text.push(b"x"), Err(Error::OverLimit));
        assert_eq!(text.as_bytes(), b"abc42");
    }
}
