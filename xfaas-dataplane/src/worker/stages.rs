//! When a call passed each stage of its way. Stamped by the shard and the proxy, read by the shard's trace (`shard/tail.rs`).

/// False only in the build that the cost of the stamps is measured against.
pub const STAMPED: bool = !cfg!(feature = "unstamped");

/// What a core did so far besides running the call in question; a difference of two says what happened between. Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreWork {
    /// Making workers.
    pub fork_ns: u64,
    /// Slices of guests that had used up one before.
    pub slices_ns: u64,
    /// The log of apps whose replies wait for the disk.
    pub log_ns: u64,
    /// Sessions copied for checkpoints, and what came of it.
    pub checkpoints_ns: u64,
    /// Rests in the real-time class.
    pub rests_ns: u64,
    /// All other timed work: stalled connections, idle workers, moves, what goes to other shards.
    pub chores_ns: u64,
}

impl CoreWork {
    pub fn since(&self, earlier: &CoreWork) -> CoreWork {
        CoreWork {
            fork_ns: self.fork_ns.saturating_sub(earlier.fork_ns),
            slices_ns: self.slices_ns.saturating_sub(earlier.slices_ns),
            log_ns: self.log_ns.saturating_sub(earlier.log_ns),
            checkpoints_ns: self.checkpoints_ns.saturating_sub(earlier.checkpoints_ns),
            rests_ns: self.rests_ns.saturating_sub(earlier.rests_ns),
            chores_ns: self.chores_ns.saturating_sub(earlier.chores_ns),
        }
    }
}

/// Monotonic clock, nanoseconds; 0: not passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// The turn began in which the shard found its last bytes.
    pub handed_ns: u64,
    /// The shard turned to them.
    pub begun_ns: u64,
    /// The request was understood.
    pub decoded_ns: u64,
    /// A worker was there and the guest was entered, for the first time.
    pub entered_ns: u64,
    /// The guest was left, for the last time so far.
    pub left_ns: u64,
    /// In the guest, all slices together.
    pub guest_ns: u64,
    /// Times it was entered.
    pub slices: u32,
    /// The core whose shard found it.
    pub core: u16,
    /// What that core had done when the turn before that of `handed_ns` began.
    pub work_before: CoreWork,
}

impl Stages {
    /// It waited until `now_ns` for others that came with it: as if the shard turned to it that much later.
    pub fn wait_until(&mut self, now_ns: u64) {
        let waited_ns = now_ns.saturating_sub(self.decoded_ns);
        self.begun_ns += waited_ns;
        self.decoded_ns += waited_ns;
    }

    /// The guest ran from one time to the other.
    pub fn note_slice(&mut self, entered_ns: u64, left_ns: u64) {
        if self.slices == 0 {
            self.entered_ns = entered_ns;
        }
        self.slices += 1;
        self.left_ns = left_ns;
        self.guest_ns += left_ns.saturating_sub(entered_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_others_is_no_part_of_decoding_or_of_finding_a_worker() {
        let decoded = Stages { handed_ns: 100, begun_ns: 130, decoded_ns: 150, ..Stages::default() };
        let mut stages = decoded;
        stages.wait_until(400);
        stages.note_slice(410, 500);
        assert_eq!(
            (stages.begun_ns - stages.handed_ns, stages.decoded_ns - stages.begun_ns, stages.entered_ns - stages.decoded_ns),
            (280, 20, 10)
        );
        let mut stages = decoded;
        stages.wait_until(140); // the turn's clock has not moved since
        assert_eq!(stages, decoded);
    }
}
