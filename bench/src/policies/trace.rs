//! What is replayed: functions, and when each was asked for.

/// What a cold start and a loaded container of a function cost.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedFunction {
    pub name: String,
    pub memory_mib: u32,
    /// What a cold start takes longer than a warm one.
    pub cold_ms: u32,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invocation {
    pub at_ms: u64,
    /// Index into `Trace::functions`.
    pub function: u32,
    /// How long it runs, without its cold start.
    pub duration_ms: u32,
}

/// Requests in the order of their times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    pub functions: Vec<TracedFunction>,
    pub invocations: Vec<Invocation>,
    /// Memory is counted up to here.
    pub end_ms: u64,
}
