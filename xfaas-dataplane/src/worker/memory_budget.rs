//! What the memories of all guests of a process, and what is kept for them outside, may take together. A guest's own limit says nothing about how many sessions it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wasmtime::ResourceLimiter;

/// Instances of one store: a worker's one.
const INSTANCES_MAX: usize = 1;

/// Bytes of guests' memories, by their size whether touched or not, and of the writes that their invocations keep until they end.
pub(super) struct MemoryBudget {
    bytes_max: u64,
    taken: AtomicU64,
}

impl MemoryBudget {
    pub(super) fn new(bytes_max: u64) -> MemoryBudget {
        MemoryBudget { bytes_max, taken: AtomicU64::new(0) }
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// True while more than three quarters are taken: workers that nobody needs at the moment should go.
    pub(super) fn is_short(&self) -> bool {
        self.taken() > self.bytes_max / 4 * 3
    }

    /// True when a guest may grow to `bytes`, or to a quarter of all there is: a few that ask for more do not empty the node.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.taken().saturating_add(bytes.min(self.bytes_max / 4)) <= self.bytes_max
    }

    fn take(&self, bytes: u64) -> bool {
        let more = |taken: u64| taken.checked_add(bytes).filter(|taken| *taken <= self.bytes_max);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes of an invocation's writes that are not charged: such calls touch nothing that all shards share. Each has a guest's memory that is larger.
pub(super) const CHARGE_FREE_BYTES: usize = 16 << 10;
/// What is charged at once beyond them.
const CHARGE_STEP_BYTES: u64 = 64 << 10;

/// What one invocation has of the budget for the writes that it keeps until its end. Goes back when this is dropped.
#[derive(Default)]
pub(super) struct Charge {
    /// `None` in tests of what needs none: then nothing is charged.
    budget: Option<Arc<MemoryBudget>>,
    bytes: u64,
}

impl Charge {
    /// Done once for each place of writes: they belong to one process, which has one budget.
    #[inline(always)]
    pub(super) fn set_budget(&mut self, budget: &Arc<MemoryBudget>) {
        if self.budget.is_none() {
            self.budget = Some(Arc::clone(budget));
        }
    }

    /// Charges what `bytes` in all take. False: the budget is spent, and nothing has changed.
    pub(super) fn cover(&mut self, bytes: usize) -> bool {
        let wanted = (bytes.saturating_sub(CHARGE_FREE_BYTES) as u64).next_multiple_of(CHARGE_STEP_BYTES);
        let (Some(budget), Some(more)) = (&self.budget, wanted.checked_sub(self.bytes).filter(|more| *more > 0)) else { return true };
        let is_taken = budget.take(more);
        self.bytes += if is_taken { more } else { 0 };
        is_taken
    }

    pub(super) fn give_back(&mut self) {
        if let Some(budget) = &self.budget
            && self.bytes > 0
        {
            budget.give_back(std::mem::take(&mut self.bytes));
        }
    }

    /// What is charged, for somebody else to give back.
    pub(super) fn take(&mut self) -> Charge {
        Charge { budget: self.budget.clone(), bytes: std::mem::take(&mut self.bytes) }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A new worker's memory does not fit into the budget.
#[derive(Debug, thiserror::Error)]
#[error("the memories of all guests together are at their limit, guest_memory_mib")]
pub(super) struct BudgetSpent;

/// One worker's memory: held against its function's limit and the budget of all, to which it goes back when this is dropped.
pub(super) struct GuestMemory {
    budget: Arc<MemoryBudget>,
    bytes_max: usize,
    /// What it has of the budget: its size, or more after a growth that was permitted and failed.
    bytes: usize,
    is_running: bool,
}

impl GuestMemory {
    pub(super) fn new(budget: Arc<MemoryBudget>, bytes_max: usize) -> GuestMemory {
        GuestMemory { budget, bytes_max, bytes: 0, is_running: false }
    }

    pub(super) fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    /// It is instantiated: from now on the guest itself asks for more, and is told that there is none as by any `memory.grow`.
    pub(super) fn set_running(&mut self) {
        self.is_running = true;
    }
}

impl ResourceLimiter for GuestMemory {
    /// Errors: `BudgetSpent`, at the worker's start.
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.bytes_max || maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        // A growth that failed goes back here. Not when it fails: that is also told of growths that were never asked for here.
        self.budget.give_back(self.bytes.saturating_sub(current) as u64);
        self.bytes = self.bytes.min(current);
        let more = desired.saturating_sub(self.bytes);
        if !self.budget.take(more as u64) {
            return if self.is_running { Ok(false) } else { Err(BudgetSpent.into()) };
        }
        self.bytes += more;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(budget: &Arc<MemoryBudget>) -> GuestMemory {
        GuestMemory::new(Arc::clone(budget), 60)
    }

    #[test]
    fn all_guests_together_stay_within_the_budget_and_give_back_what_they_had() {
        let budget = Arc::new(MemoryBudget::new(100));
        let (mut one, mut other) = (guest(&budget), guest(&budget));
        assert!(one.memory_growing(0, 40, None).unwrap() && other.memory_growing(0, 30, None).unwrap());
        assert!(!budget.is_short() && budget.has_room(1_000), "25 are enough");
        one.set_running();
        other.set_running();
        assert!(one.memory_growing(40, 60, None).unwrap() && budget.is_short());
        assert!(!one.memory_growing(60, 61, None).unwrap(), "its own limit");
        assert!(!other.memory_growing(30, 41, None).unwrap(), "what is left of the budget is 10");
        assert!(!other.memory_growing(30, 40, Some(39)).unwrap(), "its module's own maximum");
        assert!(other.memory_growing(30, 40, Some(40)).unwrap());
        assert!(guest(&budget).memory_growing(0, 1, None).is_err_and(|error| error.is::<BudgetSpent>()));
        assert_eq!(budget.taken(), 100);
        other.memory_grow_failed(wasmtime::Error::msg("more than any memory")).unwrap();
        assert_eq!(budget.taken(), 100, "that was another growth than the one that was permitted");
        assert!(other.memory_growing(30, 35, None).unwrap());
        assert_eq!(budget.taken(), 95, "the permitted one failed too: it has 30 still, and now 35");
        assert!(other.memory_growing(35, 30, None).unwrap());
        assert_eq!((budget.taken(), budget.has_room(5), budget.has_room(6)), (95, true, false));
        drop((one, other));
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn what_is_charged_goes_back_once_wherever_it_went() {
        let budget = Arc::new(MemoryBudget::new(200 << 10));
        let mut charge = Charge::default();
        assert!(charge.cover(1 << 30), "nothing is charged without a budget");
        charge.set_budget(&budget);
        assert!(charge.cover(CHARGE_FREE_BYTES));
        assert_eq!(budget.taken(), 0);
        assert!(charge.cover(CHARGE_FREE_BYTES + 1) && charge.cover(CHARGE_FREE_BYTES + (64 << 10)) && charge.cover(1));
        assert_eq!(budget.taken(), 64 << 10);
        assert!(charge.cover(150 << 10) && !charge.cover(250 << 10));
        assert_eq!(budget.taken(), 192 << 10);
        let moved = charge.take();
        charge.give_back();
        assert_eq!(budget.taken(), 192 << 10);
        drop((moved, charge));
        assert_eq!(budget.taken(), 0);
    }
}
