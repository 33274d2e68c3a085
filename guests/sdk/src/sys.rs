//! The only file of the SDK with `unsafe`: the host's imports, the exports behind `handler!` and `init!`, and scratch memory.
//! Called by the safe functions of `input.rs` and `state.rs`; knows no errors, only the host's numbers.

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use crate::fake::{
    cancel_timer, read_input, read_session, read_state, set_output, set_timer, snapshot_read, with_scratch_memory, write_state,
};
#[cfg(target_arch = "wasm32")]
pub(crate) use wasm::{
    cancel_timer, read_input, read_session, read_state, set_output, set_timer, snapshot_read, with_scratch_memory, write_state,
};

use crate::error::Error;

/// Lends `use_bytes` a buffer of `length_bytes`, from memory that no other part of the guest uses; it holds what the last use left.
/// Grows the linear memory when it must. Errors: `OverLimit` when the memory cannot grow, or inside another `with_scratch`.
pub fn with_scratch<R>(length_bytes: usize, use_bytes: impl FnOnce(&mut [u8]) -> R) -> Result<R, Error> {
    with_scratch_memory(length_bytes, use_bytes)
}

/// Exports a function as the guest's `handle`: `handler!(path)`, where the function takes nothing and returns an [`Outcome`](crate::Outcome).
#[macro_export]
macro_rules! handler {
    ($function:path) => {
        // SAFETY: the name is this module's alone: a guest has one handler, and the host looks it up by this name and type.
        #[unsafe(no_mangle)]
        pub extern "C" fn handle() -> i32 {
            $crate::Outcome::code($function())
        }
    };
}

/// Exports a function as the guest's `init`, run once before the image that workers are forked from is taken. It may call no import.
#[macro_export]
macro_rules! init {
    ($function:path) => {
        // SAFETY: the name is this module's alone: a guest has one `init`, and the host looks it up by this name and type.
        #[unsafe(no_mangle)]
        pub extern "C" fn init() {
            $function()
        }
    };
}

#[cfg(target_arch = "wasm32")]
mod wasm {
    use core::ffi::CStr;
    use core::sync::atomic::{AtomicBool, Ordering};

    use crate::error::Error;

    const WASM_PAGE_BYTES: usize = 65_536;

    mod host {
        // The names and types of `xfaas_common::guest_abi`; an attribute cannot name a constant.
        #[link(wasm_import_module = "xfaas")]
        unsafe extern "C" {
            pub fn read_input(arg_index: i32, buffer: *mut u8, buffer_bytes: i32) -> i32;
            pub fn set_output(buffer: *const u8, buffer_bytes: i32) -> i32;
            pub fn read_state(key: *const core::ffi::c_char, buffer: *mut u8, buffer_bytes: i32, mode: i32) -> i32;
            pub fn write_state(key: *const core::ffi::c_char, value: *const u8, value_bytes: i32, mode: i32) -> i32;
            pub fn snapshot_read(keys: *const u8, keys_bytes: i32, buffer: *mut u8, buffer_bytes: i32) -> i32;
            pub fn set_timer(name: *const core::ffi::c_char, at_ms: i64, payload: *const u8, payload_bytes: i32) -> i32;
            pub fn cancel_timer(name: *const core::ffi::c_char) -> i32;
            pub fn read_session(
                session: *const core::ffi::c_char,
                key: *const core::ffi::c_char,
                buffer: *mut u8,
                buffer_bytes: i32,
            ) -> i32;
        }
    }

    #[inline(always)] // a guest's call is a call of the host, not of a function that calls it
    pub(crate) fn read_input(arg_index: i32, buffer: &mut [u8]) -> i32 {
        // SAFETY:
        // - the host writes at most `buffer.len()` bytes at the pointer, all of them inside the exclusively borrowed slice;
        // - the host keeps no pointer after the call.
        unsafe { host::read_input(arg_index, buffer.as_mut_ptr(), buffer.len() as i32) }
    }

    #[inline(always)] // a guest's call is a call of the host, not of a function that calls it
    pub(crate) fn set_output(bytes: &[u8]) -> i32 {
        // SAFETY: the host only reads `bytes.len()` bytes at the pointer, all inside the slice, and copies them before it returns.
        unsafe { host::set_output(bytes.as_ptr(), bytes.len() as i32) }
    }

    #[inline(always)] // a guest's call is a call of the host, not of a function that calls it
    pub(crate) fn read_state(key: &CStr, buffer: &mut [u8], mode: i32) -> i32 {
        // SAFETY:
        // - the key is read up to its NUL, which `CStr` promises is there;
        // - the host writes at most `buffer.len()` bytes at the pointer, all of them inside the exclusively borrowed slice.
        unsafe { host::read_state(key.as_ptr(), buffer.as_mut_ptr(), buffer.len() as i32, mode) }
    }

    #[inline(always)] // a guest's call is a call of the host, not of a function that calls it
    pub(crate) fn write_state(key: &CStr, value: &[u8], mode: i32) -> i32 {
        // SAFETY: the host only reads, the key up to the NUL that `CStr` promises and `value.len()` bytes of the value, and copies both.
        unsafe { host::write_state(key.as_ptr(), value.as_ptr(), value.len() as i32, mode) }
    }

    pub(crate) fn snapshot_read(keys: &[u8], buffer: &mut [u8]) -> i32 {
        // SAFETY:
        // - the host only reads `keys.len()` bytes of the keys, all inside the slice;
        // - it writes at most `buffer.len()` bytes at the pointer, all of them inside the exclusively borrowed slice.
        unsafe { host::snapshot_read(keys.as_ptr(), keys.len() as i32, buffer.as_mut_ptr(), buffer.len() as i32) }
    }

    pub(crate) fn read_session(session: &CStr, key: &CStr, buffer: &mut [u8]) -> i32 {
        // SAFETY:
        // - session and key are read up to their NULs, which `CStr` promises are there;
        // - the host writes at most `buffer.len()` bytes at the pointer, all of them inside the exclusively borrowed slice.
        unsafe { host::read_session(session.as_ptr(), key.as_ptr(), buffer.as_mut_ptr(), buffer.len() as i32) }
    }

    pub(crate) fn set_timer(name: &CStr, at_ms: i64, payload: &[u8]) -> i32 {
        // SAFETY: the host only reads, the name up to the NUL that `CStr` promises and `payload.len()` bytes of the payload, and copies both.
        unsafe { host::set_timer(name.as_ptr(), at_ms, payload.as_ptr(), payload.len() as i32) }
    }

    pub(crate) fn cancel_timer(name: &CStr) -> i32 {
        // SAFETY: the host only reads the name, up to the NUL that `CStr` promises is there.
        unsafe { host::cancel_timer(name.as_ptr()) }
    }

    /// Set while the scratch memory is lent, so that it is never lent twice.
    static SCRATCH_LENT: AtomicBool = AtomicBool::new(false);

    pub(crate) fn with_scratch_memory<R>(length_bytes: usize, use_bytes: impl FnOnce(&mut [u8]) -> R) -> Result<R, Error> {
        unsafe extern "C" {
            // Set by the linker: the first address after stack and data.
            static __heap_base: u8;
        }
        let start = (&raw const __heap_base).addr();
        let end = start.checked_add(length_bytes).ok_or(Error::OverLimit)?;
        let missing_pages = end.div_ceil(WASM_PAGE_BYTES).saturating_sub(core::arch::wasm32::memory_size(0));
        if missing_pages > 0 && core::arch::wasm32::memory_grow(0, missing_pages) == usize::MAX {
            return Err(Error::OverLimit);
        }
        if SCRATCH_LENT.swap(true, Ordering::Relaxed) {
            return Err(Error::OverLimit);
        }
        // SAFETY:
        // - in bounds: the memory was grown to hold `end`, and linear memory never shrinks;
        // - initialised: linear memory is zero until written;
        // - exclusive: nothing else uses memory past `__heap_base` (the SDK has no heap), and `SCRATCH_LENT` stops a second loan.
        let bytes = unsafe { core::slice::from_raw_parts_mut((&raw const __heap_base).cast_mut(), length_bytes) };
        let result = use_bytes(bytes);
        SCRATCH_LENT.store(false, Ordering::Relaxed);
        Ok(result)
    }

    /// A panic traps: the host answers 500 `guest_trapped` and drops the instance.
    #[cfg(feature = "panic-handler")]
    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        core::arch::wasm32::unreachable()
    }
}
