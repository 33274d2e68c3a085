//! One number that names everything the kernel programs and user space must agree on, so that an object of another build is refused
//! instead of steering wrongly. Computed at compile time on both sides.

use core::mem::offset_of;

use crate::drop_reason::DropReason;
use crate::hash::{HASH_KEYS, HashKeys, session_hash};
use crate::limits::{CORES_MAX, SLOT_BITS};
use crate::map_layout::{
    CPUS_ENTRIES, FlowKey, HeaderPattern, INFLOW_ADMITTED, INFLOW_KNOCK_AT_NS, INFLOW_LIMIT, INFLOW_TAKEN, INFLOW_WORDS, Listen,
    PINS_ENTRIES, PinKey, SESSION_HEADER_BYTES_MAX, STAMPS_ENTRIES, SteerConfig, SteerEvent, Verdict,
};
use crate::wire::{HEADER_BYTES, KIND_INVOKE, SESSION_LEN_OFFSET, VERSION};

/// The section of the object in which the tag lies, little-endian.
pub const LAYOUT_SECTION: &str = "xfaas_layout";

/// Differs when a shared structure, a table's size, a counter, the wire header or the session hash does.
pub const LAYOUT_TAG: u64 = {
    let keys = HashKeys { keys: sample_keys() };
    let facts = [
        session_hash(&keys, &[0x61; 64], 64).0,
        session_hash(&keys, &[0; 64], 1).0,
        SLOT_BITS as u64,
        CORES_MAX as u64,
        CPUS_ENTRIES as u64,
        PINS_ENTRIES as u64,
        SESSION_HEADER_BYTES_MAX as u64,
        size_of::<SteerConfig>() as u64,
        offset_of!(Listen, care) as u64,
        offset_of!(Listen, port) as u64,
        offset_of!(SteerConfig, cores) as u64,
        offset_of!(SteerConfig, merges) as u64,
        offset_of!(SteerConfig, pins) as u64,
        offset_of!(SteerConfig, stamps) as u64,
        STAMPS_ENTRIES as u64,
        INFLOW_WORDS as u64,
        INFLOW_ADMITTED as u64,
        INFLOW_KNOCK_AT_NS as u64,
        INFLOW_TAKEN as u64,
        INFLOW_LIMIT as u64,
        offset_of!(SteerConfig, header) as u64,
        offset_of!(SteerConfig, cpu_of_core) as u64,
        offset_of!(SteerConfig, core_of_cpu) as u64,
        size_of::<HeaderPattern>() as u64,
        size_of::<HashKeys>() as u64,
        size_of::<FlowKey>() as u64,
        offset_of!(FlowKey, source_port) as u64,
        size_of::<PinKey>() as u64,
        size_of::<SteerEvent>() as u64,
        Verdict::ALL.len() as u64,
        DropReason::ALL.len() as u64,
        HEADER_BYTES as u64,
        SESSION_LEN_OFFSET as u64,
        VERSION as u64,
        KIND_INVOKE as u64,
    ];
    // FNV-1a over whole words: a tag against mistakes, not against attackers.
    let (mut tag, mut i) = (0xCBF2_9CE4_8422_2325u64, 0);
    while i < facts.len() {
        tag = (tag ^ facts[i]).wrapping_mul(0x0000_0100_0000_01B3);
        i += 1;
    }
    tag
};

const fn sample_keys() -> [u64; HASH_KEYS] {
    let (mut keys, mut i) = ([0; HASH_KEYS], 0);
    while i < HASH_KEYS {
        keys[i] = 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(i as u64 + 1); // the golden ratio: any odd constant does
        i += 1;
    }
    keys
}
