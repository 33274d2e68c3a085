//! Provided buffers: memory that the kernel picks receive buffers from (io_uring_register(2), IORING_REGISTER_PBUF_RING).
//! Owned by `Ring`. A buffer belongs to the kernel while it is in the group and to us from its completion until `recycle`.

use io_uring::types::BufRingEntry;
use memmap2::{MmapOptions, MmapRaw};
use std::sync::atomic::{AtomicU16, Ordering};

/// One received buffer: we own its bytes until it is recycled. Not `Clone`: that is what keeps the kernel out of it.
#[derive(Debug, PartialEq, Eq)]
pub struct ReceivedBuffer {
    pub(super) group: u16,
    pub(super) id: u16,
    pub(super) bytes: u32,
}

impl ReceivedBuffer {
    /// Bytes that arrived in it.
    pub fn len(&self) -> usize {
        self.bytes as usize
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// Shape of a group: `buffers` a power of two up to 32,768, each of `buffer_bytes`.
#[derive(Clone, Copy, Debug)]
pub struct GroupOptions {
    pub buffers: u16,
    pub buffer_bytes: u32,
}

pub(super) struct BufferGroup {
    id: u16,
    buffers: u16,
    buffer_bytes: usize,
    /// The ring of entries that the kernel consumes; page-aligned.
    entries: MmapRaw,
    memory: MmapRaw,
    tail: u16,
}

impl BufferGroup {
    pub(super) fn new(id: u16, options: GroupOptions) -> std::io::Result<BufferGroup> {
        assert!(options.buffers.is_power_of_two() && options.buffers <= 32_768, "the kernel takes powers of two up to 32768");
        let entries_bytes = usize::from(options.buffers) * size_of::<BufRingEntry>();
        let memory_bytes = usize::from(options.buffers) * options.buffer_bytes as usize;
        Ok(BufferGroup {
            id,
            buffers: options.buffers,
            buffer_bytes: options.buffer_bytes as usize,
            entries: MmapOptions::new().len(entries_bytes).map_anon()?.into(),
            memory: MmapOptions::new().len(memory_bytes).map_anon()?.into(),
            tail: 0,
        })
    }

    /// Makes the group known to the kernel and gives it every buffer.
    pub(super) fn register(&mut self, ring: &io_uring::IoUring) -> std::io::Result<()> {
        let address = self.entries.as_ptr() as u64;
        // SAFETY: `entries` is a page-aligned mapping of exactly `buffers` entries, and lives as long as the ring: `Ring` leaks its groups
        // rather than unmap what the kernel may still write to.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, self.buffers, self.id, 0)? };
        for id in 0..self.buffers {
            self.give(id);
        }
        Ok(())
    }

    /// Hands buffer `id` to the kernel.
    pub(super) fn give(&mut self, id: u16) {
        assert!(id < self.buffers, "a buffer of another group");
        let index = usize::from(self.tail & (self.buffers - 1));
        // SAFETY: `index < buffers`, and `entries` holds `buffers` entries.
        let entry = unsafe { self.entries.as_mut_ptr().cast::<BufRingEntry>().add(index) };
        // SAFETY: `id < buffers` (asserted), so the offset is inside `memory`.
        let address = unsafe { self.memory.as_ptr().add(usize::from(id) * self.buffer_bytes) } as u64;
        // SAFETY: `entry` is in bounds and aligned (page-aligned base, whole entries); the kernel reads entries only below the tail, and this
        // one is at the tail, so nothing else touches it. It is zeroed memory or an earlier entry: always initialised.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the base of the mapping is the first entry, initialised and page-aligned; its `resv` field is the ring's tail.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr().cast()) };
        // SAFETY: the tail is a 2-byte aligned field of the mapping that lives with `self`, and the kernel only reads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    pub(super) fn bytes(&self, buffer: &ReceivedBuffer) -> &[u8] {
        assert!(buffer.group == self.id && buffer.id < self.buffers && buffer.len() <= self.buffer_bytes, "a buffer of another group");
        // SAFETY: `id < buffers` (asserted), so the offset is inside `memory`.
        let start = unsafe { self.memory.as_ptr().add(usize::from(buffer.id) * self.buffer_bytes) };
        // SAFETY:
        // - in bounds: `len <= buffer_bytes` (asserted) and buffer `id` is whole inside `memory`;
        // - initialised: anonymous memory starts as zeroes;
        // - no writer: a `ReceivedBuffer` exists only between its completion and `recycle`, when the kernel does not own it.
        unsafe { std::slice::from_raw_parts(start, buffer.len()) }
    }
}
