//! Names of functions and apps by their index, for labels, and what the shards counted under them.

use crate::shard::{FunctionCounts, ShardView};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// An app's index is its own for the life of the process; a function's goes to another name once its function is gone and all indexes were given out.
#[derive(Default)]
pub(super) struct Labels {
    functions: BTreeMap<u16, FunctionLabel>,
    pub(super) apps: HashMap<u16, String>,
}

struct FunctionLabel {
    name: String,
    /// By shard: what its counters said of this index when it got the name. Only the shard writes them, so they are never set back: what they said
    /// of the name before is not shown of this one.
    before: Before,
}

pub(super) type Before = Box<[FunctionCounts]>;

impl Labels {
    /// To be asked before a function of that name and index is in service anywhere, so that none of its calls is left out. A call of the former name that
    /// ends after that is counted for the new one.
    pub(super) fn before(&self, index: u16, name: &str, views: &[Arc<ShardView>]) -> Option<Before> {
        match self.functions.get(&index) {
            Some(label) if label.name == name => None, // it goes on counting
            // Also where no name is known: one that a shard refused may have been called on others.
            _ => Some(views.iter().map(|view| view.functions[usize::from(index)].read()).collect()),
        }
    }

    /// The function is in service. `before`: as it was answered.
    pub(super) fn set_function(&mut self, index: u16, name: &str, before: Option<Before>) {
        if let Some(before) = before {
            self.functions.insert(index, FunctionLabel { name: name.to_owned(), before });
        }
    }

    pub(super) fn functions(&self) -> HashMap<u16, String> {
        self.functions.iter().map(|(index, label)| (*index, label.name.clone())).collect()
    }

    /// Visits the counts of every function that was ever in service and whose index is no other's now, on every shard.
    pub(super) fn each_function(&self, views: &[Arc<ShardView>], mut visit: impl FnMut(&str, usize, &FunctionCounts)) {
        for (index, FunctionLabel { name, before }) in &self.functions {
            for (shard, view) in views.iter().enumerate() {
                visit(name, shard, &view.functions[usize::from(*index)].read().since(&before[shard]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Outcome;

    #[test]
    fn a_name_that_gets_the_index_of_another_begins_to_count_anew_and_one_that_comes_back_goes_on() {
        let views: Vec<_> = (0..2).map(|_| Arc::new(ShardView::new())).collect();
        let mut labels = Labels::default();
        let install = |labels: &mut Labels, name: &str, calls: u64| {
            let before = labels.before(7, name, &views);
            // In service on the shards before control has the last one's answer.
            (0..calls).for_each(|_| views[1].functions[7].record(&Outcome::Replied, 1_000_000));
            labels.set_function(7, name, before);
        };
        let shown = |labels: &Labels| {
            let mut shown = Vec::new();
            labels.each_function(&views, |name, shard, counts| {
                let durations = counts.duration_buckets.iter().sum::<u64>();
                assert_eq!((counts.outcomes[0], counts.outcomes[0] * 1_000_000), (durations, counts.duration_ns));
                shown.push((name.to_owned(), shard, counts.outcomes[0]));
            });
            shown
        };
        let of_both = |name: &str, count| vec![(name.to_owned(), 0, 0), (name.to_owned(), 1, count)];
        install(&mut labels, "first", 5);
        assert_eq!(shown(&labels), of_both("first", 5));
        install(&mut labels, "first", 2);
        assert_eq!(shown(&labels), of_both("first", 7));
        install(&mut labels, "late", 0);
        assert_eq!(shown(&labels), of_both("late", 0));
        assert_eq!(labels.functions(), HashMap::from([(7, "late".to_owned())]));
        install(&mut labels, "late", 3);
        assert_eq!(shown(&labels), of_both("late", 3));
    }
}
