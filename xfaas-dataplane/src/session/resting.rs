//! The idle workers of one namespace. Nearly all namespaces have one worker, so the warmest lies in the namespace itself: a warm request takes it and
//! puts it back without a look at memory of its own.

const NONE: u32 = u32::MAX;

/// Numbers of workers, in the order in which they became idle.
pub(super) struct RestingWorkers {
    /// The last one; `NONE` when there is none.
    warmest: u32,
    /// The others, the warmest last.
    others: Vec<u32>,
}

impl RestingWorkers {
    pub(super) const fn new() -> RestingWorkers {
        RestingWorkers { warmest: NONE, others: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.warmest == NONE
    }

    pub(super) fn len(&self) -> usize {
        self.others.len() + usize::from(!self.is_empty())
    }

    pub(super) fn warmest(&self) -> Option<u32> {
        (!self.is_empty()).then_some(self.warmest)
    }

    /// From the coldest to the warmest.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.others.iter().copied().chain(self.warmest())
    }

    pub(super) fn push(&mut self, worker: u32) {
        if !self.is_empty() {
            self.others.push(self.warmest);
        }
        self.warmest = worker;
    }

    /// Takes out the warmest for which `is_wanted` holds.
    pub(super) fn take(&mut self, is_wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let warmest = self.warmest()?;
        if is_wanted(warmest) {
            self.warmest = self.others.pop().unwrap_or(NONE);
            return Some(warmest);
        }
        let at = self.others.iter().rposition(|worker| is_wanted(*worker))?;
        Some(self.others.remove(at))
    }

    pub(super) fn remove(&mut self, worker: u32) {
        self.take(|other| other == worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn resting_workers_match_a_vector(ops in prop::collection::vec((0u32..12, any::<bool>()), 0..128)) {
            let (mut resting, mut model) = (RestingWorkers::new(), Vec::new());
            for (worker, by_kind) in ops {
                if by_kind {
                    let at = model.iter().rposition(|other| other % 3 == worker % 3);
                    prop_assert_eq!(resting.take(|other| other % 3 == worker % 3), at.map(|at| model.remove(at)));
                } else if model.contains(&worker) {
                    resting.remove(worker);
                    model.retain(|other| *other != worker);
                } else {
                    resting.push(worker);
                    model.push(worker);
                }
                prop_assert_eq!(resting.iter().collect::<Vec<_>>(), model.clone());
                prop_assert_eq!((resting.len(), resting.is_empty(), resting.warmest()), (model.len(), model.is_empty(), model.last().copied()));
            }
        }
    }
}
