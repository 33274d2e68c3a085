//! The C library's heap: large blocks that are freed go back to the system. Called once by the binary, before any thread is started.
//!
//! Left alone, glibc maps a large block by itself only until the first one is freed: from then on blocks of that size, up to 32 MiB, lie in the heap of the
//! thread that asked for them, and what is free in the middle of a heap stays the process's for good (`mp_.mmap_threshold`, malloc/malloc.c). A burst of
//! long replies then costs the machine its memory long after they are gone. Setting the bound ends its growth.

use xfaas_common::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// A block of so many bytes or more has a mapping of its own, which ends with it. Over the largest value, with its key and a head, so that none of those
/// costs page faults and two system calls a request.
pub const MAPPED_BYTES_MIN: usize = (2 << 20) + (64 << 10);
const _: () =
    assert!(2 * (VALUE_BYTES_MAX + KEY_BYTES_MAX) < MAPPED_BYTES_MIN, "a buffer that grows by doubling may have twice what it holds");

/// Free bytes at the end of a heap that it keeps. With the bound above set this would stay at 128 KiB, and a heap would shrink and grow with each request of
/// more: a few of the largest blocks that are not mapped, for each thread that has a heap.
#[cfg(target_env = "gnu")]
const KEPT_BYTES_MAX: usize = 4 * MAPPED_BYTES_MIN;

/// Output: false where the library did not take it, which leaves its usual ways.
#[cfg(target_env = "gnu")]
pub fn give_back_large_blocks() -> bool {
    set(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN) && set(libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX)
}

/// Other C libraries have no such habit: musl maps every large block by itself.
#[cfg(not(target_env = "gnu"))]
pub fn give_back_large_blocks() -> bool {
    true
}

#[cfg(target_env = "gnu")]
fn set(parameter: libc::c_int, value: usize) -> bool {
    let Ok(value) = libc::c_int::try_from(value) else { return false };
    // SAFETY:
    // - no memory of ours is involved: two integers go in, and mallopt(3) refuses values that it does not like (0);
    // - no blocks are moved: what was allocated before stays as it is, and is freed as it was made, since each block's head says how;
    // - threads: mallopt takes the main heap's lock; others may read the old value for a moment, and either is fine.
    unsafe { libc::mallopt(parameter, value) == 1 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_library_takes_it() {
        assert!(super::give_back_large_blocks());
    }
}
