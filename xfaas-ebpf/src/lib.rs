//! The pure part of the kernel programs: packet bytes in, session out. `no_std`, no maps, no helpers, so that property tests and fuzz
//! targets run the very code that the verifier sees.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(feature = "frames")]
extern crate alloc;

#[cfg(feature = "frames")]
pub mod frames;
pub mod head;
pub mod parse;
pub mod refusal;
pub mod session;
