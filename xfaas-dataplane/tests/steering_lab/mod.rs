//! What every steering test starts from: the compiled programs, fixed hash keys, and slots that go to two cores in turn.

#[path = "../lab/address.rs"]
mod address;

pub use self::address::wait_until_local;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use xfaas_common::hash::{HASH_KEYS, HashKeys, session_hash};
use xfaas_common::ids::{SessionId, SlotIndex};
use xfaas_common::limits::SLOTS;

/// UDP and TCP alike.
pub const PORT: u16 = 8_080;

/// Where the server listens: everywhere.
pub fn any_address() -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, PORT).into()
}

/// The compiled kernel programs.
pub fn object() -> Vec<u8> {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/xfaas-ebpf.o");
    let path = std::env::var_os("XFAAS_EBPF_OBJECT").map_or(default, PathBuf::from);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask build`", path.display()))
}

/// Odd multiples of the golden ratio: well mixed, and the same in every run.
pub fn hash_keys() -> HashKeys {
    HashKeys { keys: std::array::from_fn::<_, HASH_KEYS, _>(|i| 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(2 * i as u64 + 1)) }
}

pub fn slot_to_core() -> Vec<u16> {
    (0..SLOTS).map(|slot| (slot % 2) as u16).collect()
}

pub fn slot(session: &SessionId) -> SlotIndex {
    session_hash(&hash_keys(), session.padded(), session.length()).slot()
}

/// The core that owns a session's slot: 0 or 1.
pub fn owner(session: &SessionId) -> u16 {
    slot(session).0 % 2
}
