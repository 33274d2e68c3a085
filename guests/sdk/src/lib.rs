//! The Rust SDK of a guest function: the four host calls of the paper's Table 1 and those beyond it behind safe functions, without heap or `std`.
//! A guest names its entry with [`handler!`] and perhaps [`init!`]. A module for an app whose hint is `hook` exports `extern "C" fn hook() -> i32`, which
//! reads the request, [`Input::Headers`] included, and sets the session's ID as its output. Built for another target than wasm32, the calls go to
//! [`fake`], a model of the host, so that a guest's logic can be tested with `cargo test`. `unsafe` is in `sys.rs` only.
#![cfg_attr(target_arch = "wasm32", no_std)]

mod error;
#[cfg(not(target_arch = "wasm32"))]
pub mod fake;
mod input;
mod snapshot;
mod state;
mod sys;
mod text;
mod timer;

pub use error::{Error, Outcome};
pub use input::{Input, input, query_value, read_input, set_output};
pub use snapshot::{Snapshot, snapshot, snapshot_read};
pub use state::{KeyBuffer, Mode, read_session, read_state, state, write_state};
pub use sys::with_scratch;
pub use text::{Decimal, TextBuffer, parse_u64};
pub use timer::{cancel_timer, set_timer};
