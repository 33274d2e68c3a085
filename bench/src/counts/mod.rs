//! Counts that do not shake: instructions and cache misses under callgrind, system calls, allocations. docs/PERFORMANCE.md.
//!
//! ```text
//! wire, session, guest   the steps of a request, each a case; `cases` lists and runs them
//! callgrind              runs a program under valgrind and reads what it wrote
//! instructions, stamps, ring, allocations   the parts of the command
//! table                  the committed counts, and the comparison
//! ```

mod allocations;
mod callgrind;
mod cases;
mod guest;
mod instructions;
mod ring;
mod session;
mod stamps;
mod table;
mod wire;

pub use self::allocations::{Measure, count_allocations};
pub use self::callgrind::CallgrindError;
pub use self::cases::{case_beginnings, run_counted};
pub use self::instructions::{PROGRAM, count_instructions};
pub use self::ring::{RingCountError, count_ring};
pub use self::stamps::{UNSTAMPED_PROGRAM, count_stamps};
pub use self::table::{Compared, Row, TableError, Unit, compare, from_text, shown, to_text, updated};
