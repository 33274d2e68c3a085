//! The compiled kernel programs, embedded by `build.rs`. Handed to steering by `main.rs`.

/// The eBPF object, aligned for an ELF reader; empty in a binary that was built without `cargo xtask build`.
pub fn ebpf_object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xfaas-ebpf.o"))
}
