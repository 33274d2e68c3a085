//! The histories of a run, key by key, and the verdict on them.

use super::checker::{Refused, check};
use super::operation::{Action, Operation, Outcome};
use super::workload::INITIAL;
use std::collections::{BTreeMap, HashMap};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub session: usize,
    pub key: &'static str,
}

/// What all clients saw, by key.
#[derive(Default)]
pub struct Histories {
    of_keys: BTreeMap<Key, Vec<Operation>>,
    torn: Vec<(Key, usize)>,
}

/// What is wrong with a run.
#[derive(Debug)]
#[allow(dead_code, reason = "the fields are for whoever reads the failure")]
pub enum Fault {
    /// Bytes, or a length, that no write made.
    Torn {
        values: Vec<(Key, usize)>,
    },
    /// A whole value that nobody wrote, or nobody had begun to write yet.
    Foreign {
        key: Key,
        read: Operation,
    },
    Order {
        key: Key,
        refused: Refused,
    },
}

/// How much was looked at.
#[derive(Debug, Default)]
pub struct Examined {
    pub operations: usize,
    pub unknown: usize,
    pub histories: usize,
    pub longest: usize,
}

impl Examined {
    /// A machine that is busy with other things may be late with one answer.
    pub fn nearly_all_were_answered(&self) -> bool {
        self.unknown * 100 <= self.operations
    }
}

impl Histories {
    pub fn note(&mut self, key: Key, operation: Operation) {
        self.of_keys.entry(key).or_default().push(operation);
    }

    pub fn note_torn(&mut self, key: Key, length_bytes: usize) {
        self.torn.push((key, length_bytes));
    }

    pub fn add(&mut self, other: Histories) {
        for (key, operations) in other.of_keys {
            self.of_keys.entry(key).or_default().extend(operations);
        }
        self.torn.extend(other.torn);
    }

    /// Looks at every key. First that each value read was written whole, and not later, which is all that mode 0 promises in general; then
    /// that the history is linearizable, weak operations too, because each is on one key.
    pub fn examine(&self) -> Result<Examined, Fault> {
        if !self.torn.is_empty() {
            return Err(Fault::Torn { values: self.torn.clone() });
        }
        let mut examined = Examined::default();
        for (key, history) in &self.of_keys {
            if let Some(read) = foreign_read(history) {
                return Err(Fault::Foreign { key: *key, read });
            }
            check(INITIAL, history).map_err(|refused| Fault::Order { key: *key, refused })?;
            examined.operations += history.len();
            examined.unknown += history.iter().filter(|operation| operation.outcome == Outcome::Unknown).count();
            examined.histories += 1;
            examined.longest = examined.longest.max(history.len());
        }
        Ok(examined)
    }
}

/// A read that returned what nobody had begun to write. Counters have values that follow from each other and are left to the checker.
fn foreign_read(history: &[Operation]) -> Option<Operation> {
    if history.iter().any(|operation| operation.action == Action::Increment) {
        return None;
    }
    let written_from_ns: HashMap<u64, u64> = history
        .iter()
        .filter_map(|operation| match operation.action {
            Action::WriteWeak(value) | Action::WriteStrong(value) | Action::Swap(value) => Some((value, operation.called_ns)),
            Action::ReadWeak | Action::ReadStrong | Action::Increment => None,
        })
        .collect();
    let is_foreign = |operation: &&Operation| match (operation.action, operation.outcome) {
        (Action::ReadWeak | Action::ReadStrong | Action::Swap(_), Outcome::Answered { at_ns, value }) => {
            value != INITIAL && written_from_ns.get(&value).is_none_or(|from_ns| *from_ns > at_ns)
        }
        _ => false,
    };
    history.iter().find(is_foreign).copied()
}

#[test]
fn a_value_that_was_read_before_anybody_wrote_it_is_foreign() {
    let write = Operation { action: Action::WriteWeak(5), called_ns: 20, outcome: Outcome::Unknown };
    let read = |at_ns, value| Operation { action: Action::ReadWeak, called_ns: 0, outcome: Outcome::Answered { at_ns, value } };
    assert_eq!(foreign_read(&[write, read(21, 5), read(5, INITIAL)]), None);
    assert_eq!(foreign_read(&[write, read(19, 5)]), Some(read(19, 5)));
    assert_eq!(foreign_read(&[write, read(21, 6)]), Some(read(21, 6)));
}
