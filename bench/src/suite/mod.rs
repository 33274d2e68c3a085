//! The quick suite: every case in turn, for some rounds, each server on one CPU and the load on the other; medians of the rounds.
//! Rounds, and a run of the limit at both ends of each, because a shared machine is slower at one time than at another.

mod case;
mod rounds;

pub use self::case::{Case, CaseError};
pub use self::rounds::{Suite, SuiteError};
