//! What a history is made of: operations on one key, as their clients saw them.

use std::fmt;

/// What a client asked for. Values are numbers here; `Value` tells how they lie in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// One read in mode 0.
    ReadWeak,
    /// A strong read and the end of its invocation.
    ReadStrong,
    WriteWeak(u64),
    /// A strong write without a strong read.
    WriteStrong(u64),
    /// A strong section: the value read, then this one written. Weak writes may fall in between.
    Swap(u64),
    /// A strong section that reads a number and writes its successor; answers with what it wrote. Never together with weak writes.
    Increment,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer, with the value read (`Increment`: written). Nothing for writes.
    Answered { at_ns: u64, value: u64 },
    /// The connection died or no answer came: it took effect at some time after its call, or never.
    Unknown,
}

/// One operation of a history. Times are of one clock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    pub action: Action,
    pub called_ns: u64,
    pub outcome: Outcome,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome {
            Outcome::Answered { at_ns, value } => write!(f, "[{}..{at_ns} {:?} -> {value}]", self.called_ns, self.action),
            Outcome::Unknown => write!(f, "[{}.. {:?} -> unknown]", self.called_ns, self.action),
        }
    }
}
