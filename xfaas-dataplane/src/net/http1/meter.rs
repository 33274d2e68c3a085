//! Counts what one request may hold of head: bytes and header fields, those of chunk extensions and trailers included.

use xfaas_common::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

use crate::net::error::{ErrorCode, Refusal};

/// Head bytes and header fields of one request so far.
#[derive(Debug)]
pub(super) struct HeadMeter {
    bytes: usize,
    fields: usize,
}

impl HeadMeter {
    pub(super) const fn new() -> HeadMeter {
        HeadMeter { bytes: 0, fields: 0 }
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that may still come, the last of them being the head's end.
    pub(super) const fn room_bytes(&self) -> usize {
        HEAD_BYTES_MAX - self.bytes
    }

    pub(super) fn add_bytes(&mut self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.room_bytes() {
            return Err(Refusal::new(ErrorCode::HeadTooLarge, "head, chunk extensions and trailers are over 16 KiB"));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// The head's own fields, which its parser has already limited.
    pub(super) fn set_fields(&mut self, fields: usize) {
        debug_assert!(fields <= HEADERS_MAX);
        self.fields = fields;
    }

    pub(super) fn add_field(&mut self) -> Result<(), Refusal> {
        if self.fields >= HEADERS_MAX {
            return Err(Refusal::new(ErrorCode::HeadTooLarge, "more than 100 header fields and trailers"));
        }
        self.fields += 1;
        Ok(())
    }
}
