//! State access, each way by itself: `bench state` and the criterion benches of the same names.
//!
//! ```text
//! memory    region and locks, called as a shard does; and a reader on another core
//! guest     the same through a guest's host calls
//! wire      round trips over TCP: a bare echo, redis, the primary's RPC port
//! case      what they have in common; timing in rounds
//! table     the figures beside what was promised
//! ```

mod case;
mod guest;
mod memory;
mod table;
mod wire;

pub use self::case::{Case, CaseError, Plan, measure};
pub use self::guest::guest_cases;
pub use self::memory::{local_cases, memory_cases};
pub use self::table::state_table;
pub use self::wire::{echo_case, redis_cases, rpc_cases};
