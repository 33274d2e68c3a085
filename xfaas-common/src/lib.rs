//! What the kernel programs, the dataplane, the guests and the tools agree on: nothing here is typed a second time elsewhere.
//! `no_std`, no allocation. Used by every crate; imports none of them.
#![cfg_attr(not(test), no_std)]

pub mod drop_reason;
pub mod guest_abi;
pub mod hash;
pub mod ids;
pub mod layout_tag;
pub mod limits;
pub mod map_layout;
pub mod rpc;
pub mod wire;
