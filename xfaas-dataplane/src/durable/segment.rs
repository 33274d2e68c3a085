//! Reads one segment: batch after batch, and what stands behind one that does not hold. At start only; every byte is checked.

use super::files::{LogError, SegmentFile};
use super::format::{Batch, BatchKind, Head, PAGE_BYTES, open};
use crate::state::BATCH_HEAD_BYTES;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A batch may end a segment of its own, and so be larger than others; over this it is none of ours.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;

const SCAN_BYTES: usize = 1 << 20;

pub(super) struct SegmentReader<'a> {
    segment: &'a SegmentFile,
    epoch: u64,
    file: File,
    bytes: u64,
    pub offset: u64,
    buffer: Vec<u8>,
}

impl<'a> SegmentReader<'a> {
    pub fn open(segment: &'a SegmentFile, epoch: u64) -> Result<SegmentReader<'a>, LogError> {
        let failed = |source| LogError { operation: "read", path: segment.path.clone(), source };
        let file = File::open(&segment.path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(SegmentReader { segment, epoch, file, bytes, offset: 0, buffer: Vec::new() })
    }

    fn read_at(&mut self, at: u64, bytes: usize) -> Result<usize, LogError> {
        let there = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let from = self.buffer.len();
        self.buffer.resize(from.max(bytes.min(there)), 0);
        let read = self.file.read_exact_at(&mut self.buffer[from..], at + from as u64);
        read.map_err(|source| LogError { operation: "read", path: self.segment.path.clone(), source })?;
        Ok(self.buffer.len())
    }

    /// Loads the batch at `at` into the buffer. False: there is none that holds.
    fn load(&mut self, at: u64) -> Result<bool, LogError> {
        self.buffer.clear();
        if self.read_at(at, PAGE_BYTES)? < BATCH_HEAD_BYTES {
            return Ok(false);
        }
        let payload_bytes = self.buffer[8..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
        if self.buffer[..4] == [0; 4] || payload_bytes > PAYLOAD_BYTES_MAX {
            return Ok(false);
        }
        self.read_at(at, BATCH_HEAD_BYTES + payload_bytes)?;
        let (shard, segment) = (self.segment.shard, self.segment.number);
        Ok(open(&self.buffer).is_some_and(|batch| (batch.place.shard, batch.place.segment) == (shard, segment)))
    }

    /// The head, and the epoch it belongs to. `None`: the first batch does not hold.
    pub fn head(&mut self) -> Result<Option<(Head, u64)>, LogError> {
        if !self.load(0)? {
            return Ok(None);
        }
        let batch = open(&self.buffer).filter(|batch| batch.kind == BatchKind::Head);
        let head = batch.and_then(|batch| Some((Head::decode(batch.payload)?, batch.place.epoch, batch.bytes)));
        Ok(head.map(|(head, epoch, bytes)| {
            (self.offset, self.epoch) = (bytes as u64, epoch);
            (head, epoch)
        }))
    }

    /// The next batch. `None`: there is none, or it does not hold; `offset` says where.
    pub fn next(&mut self) -> Result<Option<Batch<'_>>, LogError> {
        if !self.load(self.offset)? {
            return Ok(None);
        }
        let batch = open(&self.buffer).filter(|batch| batch.place.epoch == self.epoch);
        self.offset += batch.map_or(0, |batch| batch.bytes as u64);
        Ok(batch)
    }

    pub fn number(&self) -> u64 {
        self.segment.number
    }

    /// True when nothing was written at `offset` or behind it.
    pub fn is_zero_from_here(&mut self) -> Result<bool, LogError> {
        let mut at = self.offset;
        while at < self.bytes {
            self.buffer.clear();
            let read = self.read_at(at, SCAN_BYTES)?;
            if self.buffer.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += read as u64;
        }
        Ok(true)
    }

    /// True when a batch stands somewhere behind `offset`.
    pub fn has_later(&mut self) -> Result<bool, LogError> {
        let mut at = self.offset + PAGE_BYTES as u64;
        while at < self.bytes {
            if self.load(at)? && open(&self.buffer).is_some_and(|batch| batch.place.epoch == self.epoch) {
                return Ok(true);
            }
            at += PAGE_BYTES as u64;
        }
        Ok(false)
    }
}
