//! The paper's baseline: the same guests with the same imports on a host that keeps no state. Each `read_state` and `write_state` goes to redis or to
//! an object store, and strong access takes a lock there. Used by the program `baseline` and the paper's figures.
//!
//! It is built as one would build it to be fast: one thread that never waits, warm instances, one multiplexed connection to redis, kept ones to the
//! object store, and xfaas' own HTTP code, so that what differs is where the state is.
//!
//! ```text
//! http           connections: bytes to requests, answers to bytes
//! host           functions, idle workers, one invocation
//! guest          the imports, on a guest's memory
//! outside        where state is: what both stores can do, waiting for locks
//! redis_state    GET, SET, SET NX PX, compare-and-delete
//! object_state   GET, PUT, conditional PUT
//! ```

mod guest;
mod host;
mod http;
mod object_state;
mod outside;
mod redis_state;

pub use self::guest::Ended;
pub use self::host::{BASELINE_FUNCTIONS, BaselineError, BaselineHost, GuestTimes};
pub use self::http::{GUEST_TIMES, serve};
pub use self::object_state::{ObjectPlace, ObjectState};
pub use self::outside::{LOCK_WAIT_MAX, LockToken, OutsideState, StateFault, StateKey};
pub use self::redis_state::RedisState;
