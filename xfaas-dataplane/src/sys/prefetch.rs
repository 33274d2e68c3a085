//! Tells the processor which memory is needed soon, so that it comes while something else is done. Called by the session proxy for a worker that is about to run.

/// Bytes that the caches move at once.
pub const LINE_BYTES: usize = 64;

/// Begins to bring the cache line of `address` into the nearest cache. Any number will do: where nothing is mapped nothing happens.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "only here is it known how"))]
fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 is a hint. It neither faults nor changes anything but caches, whatever the address is (Intel SDM volume 2, "PREFETCHh").
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(std::ptr::without_provenance(address));
    };
}

/// The same of `bytes` bytes from `address` on.
#[inline(always)]
pub fn prefetch_span(address: usize, bytes: usize) {
    for at in (0..bytes).step_by(LINE_BYTES) {
        prefetch(address.wrapping_add(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_is_fine() {
        let here = 7_u8;
        for address in [0, 1, usize::MAX, (&raw const here).addr()] {
            prefetch_span(address, 3 * LINE_BYTES);
        }
        assert_eq!(here, 7);
    }
}
