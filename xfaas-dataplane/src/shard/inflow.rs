//! How many datagrams may be on their way from XDP to this shard: the loop's last word to the kernel each turn. What is too much is turned away
//! by XDP, where it costs least; carried up the stack to a full socket it would take the core's time from those that are answered.
//!
//! A burst may fill the socket. A queue that stands is no burst but more load than can be served (RFC 8289 section 3): it is kept short, which
//! loses nothing and saves waiting.

use crate::steering::Gate;
use crate::sys::socket;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// What a datagram takes of a socket's buffer, about: a frame that was steered is accounted with the page half it lies in.
const DATAGRAM_BYTES: u64 = 2_304;
const BURST_MIN: u64 = 64;
const BURST_MAX: u64 = 8_192;
/// Room for what the kernel's program lets in beyond the limit to wake a shard that takes nothing: after 10 ms, 20, 40, ..., for over a second.
const KNOCKS: u64 = 8;
/// Of a queue that stands: some turns' worth, so that the next ones are on their way while one is served.
const STANDING_MAX: u64 = 2_048;
/// A queue stands when so long every turn found three quarters of `STANDING_MAX`, until so long none does.
const STANDS_NS: u64 = 100_000_000;
/// How often a standing queue is let run dry, to learn what was lost on the way: frames with wrong checksums, or that a filter dropped.
const COUNT_NS: u64 = 500_000_000;
/// The way is empty when so long nothing came: the kernel's thread that brings packets has had the CPU.
const QUIET_NS: u64 = 10_000_000;
const QUIET_CLOSED_NS: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Bursts may come; since then every turn found many.
    Open { full_since_ns: Option<u64> },
    /// The queue stands: when it was counted, and when a turn last found many.
    Standing { counted_ns: u64, full_ns: u64 },
    /// Nothing is let in until all that was has come.
    Counting,
}

/// One shard's side of its gate.
pub(super) struct Inflow {
    gate: Gate,
    /// As the shard's own counter.
    received: u64,
    taken: u64,
    burst_max: u64,
    limit: u64,
    stage: Stage,
    /// When datagrams last came.
    last_ns: u64,
    /// Nothing is on its way.
    is_even: bool,
}

impl Inflow {
    /// Input: the gate, and the socket to which it leads.
    pub(super) fn new(gate: Gate, udp: BorrowedFd<'_>) -> Inflow {
        let burst_max = (socket::receive_bytes(udp) / DATAGRAM_BYTES).saturating_sub(KNOCKS).clamp(BURST_MIN, BURST_MAX);
        gate.set_limit(burst_max);
        let stage = Stage::Open { full_since_ns: None };
        Inflow { gate, received: 0, taken: 0, burst_max, limit: burst_max, stage, last_ns: 0, is_even: true }
    }

    /// After a turn's datagrams were taken. Input: how many ever were.
    pub(super) fn end_turn(&mut self, received: u64, now_ns: u64) {
        let came = received - self.received;
        let admitted = self.gate.admitted();
        if came > 0 {
            let found = admitted - self.taken;
            self.received = received;
            // More come than were let in where some take other ways than past XDP, or were given up as lost: the socket alone bounds those.
            self.taken = admitted.min(self.taken + came);
            self.last_ns = now_ns;
            self.gate.set_taken(self.taken);
            self.judge(found, now_ns);
        }
        self.is_even = self.taken == admitted;
        let is_quiet = now_ns.saturating_sub(self.last_ns) >= self.quiet_ns();
        let is_settled = self.is_even && self.stage != Stage::Counting;
        if !is_settled && (is_quiet || self.is_even) {
            self.catch_up(admitted, now_ns);
        }
    }

    fn judge(&mut self, found: u64, now_ns: u64) {
        let standing_max = STANDING_MAX.min(self.burst_max);
        let is_full = found >= standing_max / 4 * 3;
        let stage = match self.stage {
            Stage::Open { full_since_ns: Some(since_ns) } if is_full && now_ns.saturating_sub(since_ns) >= STANDS_NS => Stage::Counting,
            Stage::Open { full_since_ns: Some(since_ns) } if is_full => Stage::Open { full_since_ns: Some(since_ns) },
            Stage::Open { .. } => Stage::Open { full_since_ns: is_full.then_some(now_ns) },
            Stage::Standing { full_ns, .. } if !is_full && now_ns.saturating_sub(full_ns) >= STANDS_NS => {
                Stage::Open { full_since_ns: None }
            }
            Stage::Standing { counted_ns, .. } if now_ns.saturating_sub(counted_ns) >= COUNT_NS => Stage::Counting,
            Stage::Standing { counted_ns, .. } if is_full => Stage::Standing { counted_ns, full_ns: now_ns },
            stage => stage,
        };
        self.enter(stage);
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        let limit = match stage {
            Stage::Open { .. } => self.burst_max,
            Stage::Standing { .. } => STANDING_MAX.min(self.burst_max),
            Stage::Counting => Gate::CLOSED,
        };
        if limit != self.limit {
            self.limit = limit;
            self.gate.set_limit(limit);
        }
    }

    /// All that was let in has come, or nothing came for so long that the rest is lost.
    fn catch_up(&mut self, admitted: u64, now_ns: u64) {
        (self.taken, self.is_even) = (admitted, true);
        self.gate.set_taken(admitted);
        self.enter(match self.stage {
            Stage::Counting => Stage::Standing { counted_ns: now_ns, full_ns: now_ns },
            _ => Stage::Open { full_since_ns: None },
        });
    }

    fn quiet_ns(&self) -> u64 {
        if self.stage == Stage::Counting { QUIET_CLOSED_NS } else { QUIET_NS }
    }

    /// How soon the shard must look again, if nothing comes. One that sleeps while all that is let in gets lost is woken by the kernel's program.
    pub(super) fn wait(&self) -> Option<Duration> {
        (!self.is_even).then(|| Duration::from_nanos(self.quiet_ns()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::shm::SharedFile;
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering::Relaxed;
    use xfaas_common::ids::CoreIndex;
    use xfaas_common::map_layout::{INFLOW_ADMITTED, INFLOW_LIMIT, INFLOW_TAKEN, INFLOW_WORDS, INFLOWS_ENTRIES};

    const MS: u64 = 1_000_000;
    const CORE: usize = 3;

    /// A shard's side of a gate, and the test as the kernel's.
    struct Lab {
        inflow: Inflow,
        kernel: crate::sys::shm::SharedMemory,
        received: u64,
        now_ns: u64,
    }

    impl Lab {
        fn new() -> Lab {
            let folder = tempfile::tempdir().unwrap();
            let file = SharedFile::create(&folder.path().join("inflows"), u64::from(INFLOWS_ENTRIES) * 8 * INFLOW_WORDS as u64).unwrap();
            let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let gate = Gate::over(file.map().unwrap(), CoreIndex(CORE as u16));
            Lab { inflow: Inflow::new(gate, udp.as_fd()), kernel: file.map().unwrap(), received: 0, now_ns: 1_000 * MS }
        }

        fn word(&self, word: usize) -> u64 {
            self.kernel.words()[CORE * INFLOW_WORDS + word].load(Relaxed)
        }

        /// XDP lets in so many, the shard takes so many, and a turn ends.
        fn turn(&mut self, admitted: u64, came: u64, after_ns: u64) {
            self.kernel.words()[CORE * INFLOW_WORDS + INFLOW_ADMITTED].fetch_add(admitted, Relaxed);
            self.received += came;
            self.now_ns += after_ns;
            self.inflow.end_turn(self.received, self.now_ns);
        }

        fn on_their_way(&self) -> i64 {
            self.word(INFLOW_ADMITTED).wrapping_sub(self.word(INFLOW_TAKEN)) as i64
        }

        /// Many wait for so long, each turn, of which a part is taken.
        fn stand(&mut self, ns: u64) {
            self.turn(STANDING_MAX, 0, 0);
            let until_ns = self.now_ns + ns;
            while self.now_ns < until_ns {
                self.turn(100, 100, MS);
            }
        }
    }

    #[test]
    fn what_came_is_taken_off_at_once() {
        let mut lab = Lab::new();
        let burst = lab.word(INFLOW_LIMIT);
        assert!((BURST_MIN..=BURST_MAX).contains(&burst), "{burst}");
        lab.turn(10, 7, MS);
        assert_eq!((lab.on_their_way(), lab.inflow.wait()), (3, Some(Duration::from_millis(10))));
        lab.turn(0, 3, MS);
        assert_eq!((lab.on_their_way(), lab.inflow.wait(), lab.word(INFLOW_LIMIT)), (0, None, burst));
    }

    #[test]
    fn what_is_lost_is_given_up_after_a_while_and_may_come_after_all() {
        let mut lab = Lab::new();
        lab.turn(10, 7, MS);
        lab.turn(0, 0, 9 * MS);
        assert_eq!(lab.on_their_way(), 3);
        lab.turn(0, 0, MS);
        assert_eq!((lab.on_their_way(), lab.inflow.wait()), (0, None));
        lab.turn(0, 3, MS);
        assert_eq!((lab.on_their_way(), lab.inflow.wait()), (0, None), "they came after all");
        lab.turn(5, 100, MS);
        assert_eq!((lab.on_their_way(), lab.inflow.wait()), (0, None), "some took other ways");
        lab.turn(5, 0, MS);
        assert_eq!(lab.on_their_way(), 5);
    }

    #[test]
    fn a_queue_that_stands_is_counted_and_then_kept_short_until_it_is_gone() {
        let mut lab = Lab::new();
        lab.stand(STANDS_NS - MS);
        assert!(lab.word(INFLOW_LIMIT) <= BURST_MAX, "a burst may stand so long");
        lab.stand(2 * MS);
        assert_eq!(lab.word(INFLOW_LIMIT), Gate::CLOSED);
        let waiting = lab.on_their_way() as u64;
        lab.turn(0, waiting - 5, MS);
        assert_eq!((lab.word(INFLOW_LIMIT), lab.inflow.wait()), (Gate::CLOSED, Some(Duration::from_millis(1))));
        lab.turn(0, 0, MS);
        let standing = STANDING_MAX.min(lab.inflow.burst_max);
        assert_eq!((lab.on_their_way(), lab.word(INFLOW_LIMIT)), (0, standing), "five were lost");
        lab.turn(10, 10, STANDS_NS - MS);
        assert_eq!(lab.word(INFLOW_LIMIT), standing);
        lab.turn(10, 10, MS);
        assert_eq!(lab.word(INFLOW_LIMIT), lab.inflow.burst_max);
    }

    #[test]
    fn a_queue_that_goes_on_standing_is_counted_again_and_one_that_is_dry_at_once() {
        let mut lab = Lab::new();
        lab.stand(STANDS_NS + MS);
        let waiting = lab.on_their_way() as u64;
        lab.turn(0, waiting, MS);
        assert_ne!(lab.word(INFLOW_LIMIT), Gate::CLOSED, "nothing was on its way any more");
        lab.stand(COUNT_NS - 10 * MS);
        assert_ne!(lab.word(INFLOW_LIMIT), Gate::CLOSED);
        lab.stand(10 * MS);
        assert_eq!(lab.word(INFLOW_LIMIT), Gate::CLOSED);
    }
}
