//! `xfaas-load`'s engine: open and closed loops over HTTP/1.1, datagrams and redis' protocol, from any number of threads, with every answer and the counters
//! in the end held against what they must be.
//!
//! An open loop's latency is counted from when a request was due, not from when it left: a server that hangs makes the requests behind
//! it late, and those are counted as late (no coordinated omission), also where they never left or were given up. A thread spins by default,
//! hands its requests to the kernel in batches, and copies a prepared request for each: one core of it must out-run one core of the server.

mod arrivals;
mod asker;
mod counters;
mod datagram;
mod guard;
mod judge;
mod ledger;
mod live;
mod mix;
mod off_cpu;
mod popularity;
mod ranges;
mod report;
mod resp;
mod run;
mod spec;
mod stream;
mod tally;
mod template;
mod thread;
mod truth;

pub use self::arrivals::Arrivals;
pub use self::guard::{ForeignTarget, check_target};
pub use self::live::Progress;
pub use self::mix::{Check, FUNCTIONS_MAX, MixFunction, fault_of_mix};
pub use self::popularity::Popularity;
pub(crate) use self::report::us_or_dash;
pub use self::report::{FunctionOutcome, Latency, LoadOutcome};
pub(crate) use self::run::repeat_while_short;
pub use self::run::{run_load, run_load_marked};
pub use self::spec::{
    GeneratorError, HttpShape, IN_FLIGHT_MAX, LoadSpec, SESSION_PREFIX_BYTES_MAX, SESSIONS_MAX, SOCKETS_MAX, SpecError, THREADS_MAX,
    Transport, Wait,
};
pub use self::truth::CounterVerdict;
