//! The limit of open files, which also bounds a ring's table of direct descriptors. Called once when a node starts.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises this process's limit to what it may raise it to: shells hand out 1,024, the hard limit is usually far higher.
/// Output: the limit now in force; `u64::MAX` for none.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    now.unwrap_or(u64::MAX)
}
