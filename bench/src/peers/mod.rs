//! xfaas and what else could keep a user's state, or could answer at all, side by side: each server alone on one CPU, asked from another by
//! the load generator of `xfaas-load`, at the same load points. Used by the program `peers`.
//!
//! case      who is asked, what, and what the answers and the counters in the end must be
//! measure   saturation of each, then its tail below it and at a rate that is the same for all
//! usage     CPU time and memory of a server's processes
//! window    what they used from the measurement's beginning to its end
//! report    rows as JSON and as a table

mod case;
mod measure;
mod report;
mod usage;
mod window;

pub use self::case::{CASES, Package, PeerCase, case_named};
pub use self::measure::{CaseResult, PeerError, PeersBench};
pub use self::report::{PeerRow, Point, peers_table};
pub use self::usage::{Usage, UsageError, family_of};
