//! Provided buffers: memory that the kernel picks receive buffers from (io_uring_register(2), IORING_REGISTER_PBUF_RING).
//! Owned by `Ring`. A buffer belongs to the kernel while it is in the group and to us from its completion until `recycle`.
//!
//! The kernel takes buffers in the order in which it got them. With all of them in the group each receive would go to the one untouched for
//! longest, which no cache holds any more. So the group holds a small stock, and what comes back is given out first (last in, first out).

use io_uring::types::BufRingEntry;
use memmap2::{MmapOptions, MmapRaw};
use std::sync::atomic::{AtomicU16, Ordering};

/// Buffers that a group holds at least, where it has so many.
const STOCK_MIN: u16 = 32;
/// So many turns in a row must take less than an eighth of the stock before it is halved: one pause is no reason.
const QUIET_TURNS: u16 = 1_024;
/// Added to the distance of two buffers, which is a power of two: their first bytes would otherwise share a few sets of the caches. An odd
/// number of cache lines leads through all sets.
const STAGGER_BYTES: usize = 5 * 64;

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
    /// Neither with the kernel nor with us; the last one is the warmest.
    spare: Vec<u16>,
    /// Buffers the kernel is to have, and those it has, as far as its completions have been looked at.
    stock: u16,
    with_kernel: u16,
    taken_this_turn: u16,
    quiet_turns: u16,
}

impl BufferGroup {
    pub(super) fn new(id: u16, options: GroupOptions) -> std::io::Result<BufferGroup> {
        assert!(options.buffers.is_power_of_two() && options.buffers <= 32_768, "the kernel takes powers of two up to 32768");
        let entries_bytes = usize::from(options.buffers) * size_of::<BufRingEntry>();
        let memory_bytes = usize::from(options.buffers) * (options.buffer_bytes as usize + STAGGER_BYTES);
        Ok(BufferGroup {
            id,
            buffers: options.buffers,
            buffer_bytes: options.buffer_bytes as usize,
            entries: MmapOptions::new().len(entries_bytes).map_anon()?.into(),
            memory: MmapOptions::new().len(memory_bytes).map_anon()?.into(),
            tail: 0,
            spare: (0..options.buffers).rev().collect(),
            stock: STOCK_MIN.min(options.buffers),
            with_kernel: 0,
            taken_this_turn: 0,
            quiet_turns: 0,
        })
    }

    /// Makes the group known to the kernel and gives it its first buffers.
    pub(super) fn register(&mut self, ring: &io_uring::IoUring) -> std::io::Result<()> {
        let address = self.entries.as_ptr() as u64;
        // SAFETY: `entries` is a page-aligned mapping of exactly `buffers` entries, and lives as long as the ring: `Ring` leaks its groups
        // rather than unmap what the kernel may still write to.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, self.buffers, self.id, 0)? };
        self.fill_up();
        Ok(())
    }

    /// The kernel took a buffer: it gets another one in its place.
    pub(super) fn on_taken(&mut self) {
        self.with_kernel -= 1;
        self.taken_this_turn = self.taken_this_turn.saturating_add(1);
        self.fill_up();
    }

    /// Buffer `id` is no longer looked at.
    pub(super) fn recycle(&mut self, id: u16) {
        self.spare.push(id);
        self.fill_up();
    }

    /// A receive found no buffer.
    pub(super) fn on_exhausted(&mut self) {
        self.set_stock(self.stock.saturating_mul(2));
    }

    /// The kernel is about to be entered: the stock follows what turns take.
    pub(super) fn end_turn(&mut self) {
        let taken = std::mem::take(&mut self.taken_this_turn);
        if taken == 0 {
            return;
        }
        if taken >= self.stock / 2 {
            self.set_stock(self.stock.saturating_mul(2));
        } else if taken >= self.stock / 8 {
            self.quiet_turns = 0;
        } else {
            self.quiet_turns += 1;
            if self.quiet_turns == QUIET_TURNS {
                self.set_stock(self.stock / 2);
            }
        }
    }

    fn set_stock(&mut self, stock: u16) {
        self.quiet_turns = 0;
        self.stock = stock.max(STOCK_MIN).min(self.buffers);
        self.fill_up();
    }

    fn fill_up(&mut self) {
        while self.with_kernel < self.stock
            && let Some(id) = self.spare.pop()
        {
            self.give(id);
            self.with_kernel += 1;
        }
    }

    /// The first byte of buffer `id`.
    fn start(&self, id: u16) -> *mut u8 {
        assert!(id < self.buffers, "a buffer of another group");
        // SAFETY: `id < buffers` (asserted), and `memory` holds as many of this distance: the offset is inside it.
        unsafe { self.memory.as_mut_ptr().add(usize::from(id) * (self.buffer_bytes + STAGGER_BYTES)) }
    }

    /// Hands buffer `id` to the kernel.
    fn give(&mut self, id: u16) {
        let address = self.start(id) as u64;
        let index = usize::from(self.tail & (self.buffers - 1));
        // SAFETY: `index < buffers`, and `entries` holds `buffers` entries.
        let entry = unsafe { self.entries.as_mut_ptr().cast::<BufRingEntry>().add(index) };
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
        assert!(buffer.group == self.id && buffer.len() <= self.buffer_bytes, "a buffer of another group");
        let start = self.start(buffer.id);
        // SAFETY:
        // - in bounds: `len <= buffer_bytes` (asserted) and buffer `id` is whole inside `memory` (`start` asserts that it is one of ours);
        // - initialised: anonymous memory starts as zeroes;
        // - no writer: a `ReceivedBuffer` exists only between its completion and `recycle`, when the kernel does not own it.
        unsafe { std::slice::from_raw_parts(start, buffer.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(buffers: u16) -> BufferGroup {
        let mut group = BufferGroup::new(0, GroupOptions { buffers, buffer_bytes: 64 }).expect("a few pages");
        group.fill_up();
        group
    }

    /// What the kernel would take next: the oldest entry that it has.
    fn take(group: &mut BufferGroup) -> u16 {
        let index = usize::from(group.tail.wrapping_sub(group.with_kernel) & (group.buffers - 1));
        // SAFETY: `index < buffers`, and `entries` holds `buffers` entries.
        let entry = unsafe { group.entries.as_ptr().cast::<BufRingEntry>().add(index) };
        // SAFETY: as above: in bounds, aligned and initialised; nobody writes to it meanwhile.
        let id = unsafe { &*entry }.bid();
        group.on_taken();
        id
    }

    /// One turn in which the kernel takes `count` buffers, each of which is ours alone until it is recycled.
    fn turn(group: &mut BufferGroup, count: usize) {
        let mut held: Vec<u16> = (0..count).map(|_| take(group)).collect();
        held.iter().for_each(|id| assert!(!group.spare.contains(id)));
        held.sort_unstable();
        held.windows(2).for_each(|pair| assert_ne!(pair[0], pair[1], "taken twice"));
        held.into_iter().for_each(|id| group.recycle(id));
        group.end_turn();
    }

    #[test]
    fn a_group_holds_few_buffers_and_all_others_are_spare() {
        let group = group(256);
        assert_eq!((group.with_kernel, group.spare.len()), (STOCK_MIN, 256 - usize::from(STOCK_MIN)));
        let small = self::group(8);
        assert_eq!((small.with_kernel, small.spare.len()), (8, 0));
    }

    #[test]
    fn what_comes_back_is_given_out_before_what_was_never_used() {
        let mut group = group(256);
        for _ in 0..1_000 {
            turn(&mut group, 12);
        }
        assert_eq!(group.stock, STOCK_MIN);
        assert!((64..256).all(|id| group.spare.contains(&id)), "only the first few were ever used");
    }

    #[test]
    fn the_stock_grows_with_what_turns_take_and_shrinks_when_many_take_little() {
        let mut group = group(256);
        for (count, stock) in [(16, 64), (31, 64), (32, 128), (200, 256), (256, 256)] {
            turn(&mut group, count);
            assert_eq!((group.stock, group.with_kernel), (stock, stock), "after a turn of {count}");
        }
        for _ in 1..QUIET_TURNS {
            turn(&mut group, 1);
            turn(&mut group, 0); // does not count
        }
        assert_eq!(group.stock, 256);
        turn(&mut group, 1);
        assert_eq!(group.stock, 128);
        for _ in 0..3 * QUIET_TURNS {
            turn(&mut group, 1);
        }
        assert_eq!(group.stock, STOCK_MIN);
        turn(&mut group, 5);
        assert_eq!(group.with_kernel, STOCK_MIN, "those above the stock were not given out again");
    }

    #[test]
    fn a_receive_that_found_none_doubles_the_stock_up_to_all() {
        let mut group = group(100_usize.next_power_of_two() as u16);
        for stock in [64, 128, 128] {
            group.on_exhausted();
            assert_eq!((group.stock, group.with_kernel), (stock, stock));
        }
    }
}
