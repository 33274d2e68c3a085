//! Keep-alive policies on a trace: what each costs in memory-time and saves in cold starts. The policies are the dataplane's own code.

mod compare;
mod csv;
mod generate;
mod pool;
mod simulate;
mod trace;

pub use self::compare::{CompareOptions, Outcome, PolicyRow, compare, fixed_at_memory_time, policy_table};
pub use self::csv::{CsvError, read_csv, write_csv};
pub use self::generate::{GeneratorOptions, generate};
pub use self::simulate::{Figures, SimulatedPolicy, simulate};
pub use self::trace::{Invocation, Trace, TracedFunction};
