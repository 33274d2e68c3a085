//! Limits that a guest's call can hit: the guest gets -3, the operator a count. CONTRACT.md section 3.
//! Counted where the limit is found, by the shard's own thread; the shard shows the counts in its own time.

use super::error::StateError;

/// What was too long, too many or too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A key over 255 bytes.
    Key,
    /// The name of another session over 64 bytes.
    SessionId,
    /// A value over 1 MiB.
    Value,
    /// Bytes of keys and values of the session.
    SessionBytes,
    /// Keys of the session, or keys and timers that one invocation changes.
    Keys,
    /// The app's region on this core has no room.
    Region,
    /// What the guests' memories may take together has none for a buffered write.
    GuestMemory,
    /// Locks of the invocation, or of the core.
    Locks,
    /// A timer's name or payload, or timers of the session or of the core.
    Timers,
    /// An output over 8 MiB.
    Output,
    /// Keys of a snapshot, or its answer in a frame.
    Snapshot,
    /// The writes of an atomic invocation do not fit into a frame.
    Commit,
}

impl Limit {
    /// Each one; the position is the counter's index.
    pub const ALL: [Limit; 12] = [
        Limit::Key,
        Limit::SessionId,
        Limit::Value,
        Limit::SessionBytes,
        Limit::Keys,
        Limit::Region,
        Limit::GuestMemory,
        Limit::Locks,
        Limit::Timers,
        Limit::Output,
        Limit::Snapshot,
        Limit::Commit,
    ];

    /// The `reason` label in `/metrics`.
    pub const fn name(self) -> &'static str {
        match self {
            Limit::Key => "key",
            Limit::SessionId => "session_id",
            Limit::Value => "value",
            Limit::SessionBytes => "session_bytes",
            Limit::Keys => "keys",
            Limit::Region => "region",
            Limit::GuestMemory => "guest_memory",
            Limit::Locks => "locks",
            Limit::Timers => "timers",
            Limit::Output => "output",
            Limit::Snapshot => "snapshot",
            Limit::Commit => "commit",
        }
    }
}

impl StateError {
    /// The limit that a refused write hit.
    pub const fn limit(&self) -> Limit {
        match self {
            StateError::BadKey { .. } => Limit::Key,
            StateError::ValueTooLarge { .. } => Limit::Value,
            StateError::SessionFull { .. } => Limit::SessionBytes,
            StateError::TooManyKeys => Limit::Keys,
            StateError::TooManyTimers => Limit::Timers,
            StateError::NoGuestMemory => Limit::GuestMemory,
            StateError::RegionFull | StateError::NoNamespace => Limit::Region,
        }
    }
}

/// How often each limit was hit on one shard since its start.
#[derive(Debug, Default)]
pub struct LimitCounts([u64; Limit::ALL.len()]);

impl LimitCounts {
    #[cold]
    pub fn note(&mut self, limit: Limit) {
        self.0[limit as usize] += 1;
    }

    pub fn of(&self, limit: Limit) -> u64 {
        self.0[limit as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_a_place_and_a_name_of_its_own() {
        for (index, limit) in Limit::ALL.iter().enumerate() {
            assert_eq!(*limit as usize, index);
            assert!(Limit::ALL[..index].iter().all(|other| other.name() != limit.name()));
        }
    }
}
