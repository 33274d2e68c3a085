//! Size classes of blocks: which sizes exist, and which one a request gets. Pure arithmetic, done at compile time.
//!
//! Sizes grow by at most an eighth (by 16 bytes while small), and each is the largest size of which as many fit a page, so a page has no
//! tail worth speaking of. A value longer than the largest class is cut into pieces of it, so nothing ever needs
//! more contiguous memory than one class: there is no fragmentation from large values.

/// Unit in which memory is given to a class and taken back.
pub(super) const PAGE_BYTES: usize = 64 << 10;
pub(super) const BLOCK_BYTES_MIN: usize = 32;
pub(super) const BLOCK_BYTES_MAX: usize = 8 << 10;
/// Every block starts at a multiple of this, counted from its page.
pub(super) const BLOCK_ALIGN_BYTES: usize = 16;
/// Blocks of the smallest class in one page.
pub(super) const PAGE_BLOCKS_MAX: usize = PAGE_BYTES / BLOCK_BYTES_MIN;

const fn next_bytes(bytes: usize) -> usize {
    let eighth = bytes / 8;
    let grown = bytes + if eighth > BLOCK_ALIGN_BYTES { eighth } else { BLOCK_ALIGN_BYTES };
    let grown = aligned(grown);
    let grown = if grown > BLOCK_BYTES_MAX { BLOCK_BYTES_MAX } else { grown };
    // The largest size of which one more fits a page than of `grown`; where that is no step, the largest of which as many fit.
    let narrowed = aligned(PAGE_BYTES / PAGE_BYTES.div_ceil(grown));
    if narrowed > bytes { narrowed } else { aligned(PAGE_BYTES / (PAGE_BYTES / grown)) }
}

const fn aligned(bytes: usize) -> usize {
    bytes - bytes % BLOCK_ALIGN_BYTES
}

const fn count() -> usize {
    let (mut bytes, mut classes) = (BLOCK_BYTES_MIN, 1);
    while bytes < BLOCK_BYTES_MAX {
        bytes = next_bytes(bytes);
        classes += 1;
    }
    classes
}

pub(super) const CLASSES: usize = count();

const BYTES: [u32; CLASSES] = {
    let mut table = [0; CLASSES];
    let (mut bytes, mut class) = (BLOCK_BYTES_MIN, 0);
    while class < CLASSES {
        table[class] = bytes as u32;
        bytes = next_bytes(bytes);
        class += 1;
    }
    table
};

/// Blocks in a page: looked up, because each write asks for it and a division takes longer than the rest of the question.
const PAGE_BLOCKS: [u32; CLASSES] = {
    let (mut table, mut class) = ([0; CLASSES], 0);
    while class < CLASSES {
        table[class] = PAGE_BYTES as u32 / BYTES[class];
        class += 1;
    }
    table
};

const CLASS_OF: [u8; BLOCK_BYTES_MAX / BLOCK_ALIGN_BYTES + 1] = {
    let mut table = [0; BLOCK_BYTES_MAX / BLOCK_ALIGN_BYTES + 1];
    let (mut unit, mut class) = (0, 0);
    while unit < table.len() {
        if unit * BLOCK_ALIGN_BYTES > BYTES[class] as usize {
            class += 1;
        }
        table[unit] = class as u8;
        unit += 1;
    }
    table
};

/// Position of a size class, `0..CLASSES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    /// The smallest class whose blocks hold `bytes`, 0..=BLOCK_BYTES_MAX; more is a bug and stops.
    #[inline(always)]
    pub const fn of(bytes: usize) -> Class {
        Class(CLASS_OF[bytes.div_ceil(BLOCK_ALIGN_BYTES)])
    }

    pub const fn from_index(index: u8) -> Option<Class> {
        if (index as usize) < CLASSES { Some(Class(index)) } else { None }
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Bytes of one block.
    #[inline(always)]
    pub const fn block_bytes(self) -> usize {
        BYTES[self.0 as usize] as usize
    }

    /// Which block of its page the byte at `within` lies in, and how far behind its start. Halves of words divide twice as fast.
    #[inline(always)]
    pub const fn block_at(self, within: u32) -> (usize, usize) {
        let block_bytes = BYTES[self.0 as usize];
        ((within / block_bytes) as usize, (within % block_bytes) as usize)
    }

    /// Blocks in one page.
    #[inline(always)]
    pub const fn page_blocks(self) -> usize {
        PAGE_BLOCKS[self.0 as usize] as usize
    }
}

const _: () = assert!(CLASSES <= 64, "a class fits the page table's byte and the list table stays small");
const _: () = assert!(Class::of(BLOCK_BYTES_MAX).block_bytes() == BLOCK_BYTES_MAX);
const _: () = assert!(Class::of(128).block_bytes() == 128, "a table node fills its block");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gets_the_smallest_block_that_holds_it_and_pages_have_no_tail() {
        let mut waste = 0.0f64;
        for bytes in 1..=BLOCK_BYTES_MAX {
            let class = Class::of(bytes);
            assert!(class.block_bytes() >= bytes);
            assert!(class.index() == 0 || (BYTES[class.index() - 1] as usize) < bytes);
            if bytes > 128 {
                waste = waste.max((class.block_bytes() - bytes) as f64 / class.block_bytes() as f64);
            }
            let tail = PAGE_BYTES - class.page_blocks() * class.block_bytes();
            assert!(tail * 50 <= PAGE_BYTES, "{tail} bytes of tail for {}", class.block_bytes());
        }
        assert!(waste < 0.125, "{waste}");
    }
}
