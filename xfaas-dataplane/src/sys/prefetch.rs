//! Tells the processor which memory is needed soon, so that it comes while something else is done, and how much a core's cache holds. Called by the session
//! proxy for a worker that is about to run.

use std::path::Path;

/// Bytes that the caches move at once.
pub const LINE_BYTES: usize = 64;

/// What a core's cache is taken for where the machine does not tell.
const CORE_CACHE_BYTES: usize = 1 << 20;

/// Bytes of the second-level cache of `cpu`: the last one that is a core's own on today's processors. A mebibyte where the machine does not
/// tell (Documentation/ABI/testing/sysfs-devices-system-cpu).
pub fn core_cache_bytes(cpu: u16) -> usize {
    cache_bytes(Path::new(&format!("/sys/devices/system/cpu/cpu{cpu}/cache"))).unwrap_or(CORE_CACHE_BYTES)
}

fn cache_bytes(caches: &Path) -> Option<usize> {
    let told = |cache: &Path, name| std::fs::read_to_string(cache.join(name)).ok();
    let caches = std::fs::read_dir(caches).ok()?.flatten().map(|entry| entry.path());
    let second = caches.into_iter().find(|cache| told(cache, "level").is_some_and(|level| level.trim() == "2"))?;
    let size = told(&second, "size")?;
    let kibibytes: usize = size.trim().strip_suffix('K')?.parse().ok()?;
    kibibytes.checked_mul(1 << 10).filter(|bytes| *bytes > 0)
}

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
    fn the_second_cache_is_found_among_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let tell = |cache: &str, level: &str, size: &str| {
            let cache = directory.path().join(cache);
            std::fs::create_dir_all(&cache).unwrap();
            std::fs::write(cache.join("level"), level).unwrap();
            std::fs::write(cache.join("size"), size).unwrap();
        };
        assert_eq!(cache_bytes(&directory.path().join("none")), None);
        tell("index0", "1\n", "48K\n");
        assert_eq!(cache_bytes(directory.path()), None);
        tell("index3", "3\n", "16384K\n");
        for (size, bytes) in [("2048K\n", Some(2 << 20)), ("2M", None), ("", None), ("0K", None), ("99999999999999999999K", None)] {
            tell("index2", "2\n", size);
            assert_eq!(cache_bytes(directory.path()), bytes, "{size:?}");
        }
        assert!(core_cache_bytes(0) >= 64 << 10);
    }

    #[test]
    fn any_address_is_fine() {
        let here = 7_u8;
        for address in [0, 1, usize::MAX, (&raw const here).addr()] {
            prefetch_span(address, 3 * LINE_BYTES);
        }
        assert_eq!(here, 7);
    }
}
