//! The order in which workers that could run get the core: their namespaces take turns, not they, so a session with ten calls that spin has no more
//! turns than one with a single call. Called by `proxy`, for guests that were not done within their first slice. Allocates nothing after `new` but
//! for namespaces with large numbers, which only many that rest for their limits bring about.

use crate::session::namespace::NamespaceId;
use std::collections::VecDeque;

/// No worker.
const NONE: u32 = u32::MAX;

/// When a namespace that has nothing else in the queue has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Before all others, but for one that had a turn already.
    Next,
    /// After those that have waited longer for their first turn, before those that had one but for as many of them.
    First,
    /// After all that had a turn and have waited longer.
    Another,
}

pub(super) struct RunQueue {
    /// By worker: whose turn of its namespace is after its own; behind the last one comes the first again.
    after: Vec<u32>,
    /// By namespace: the worker whose turn is last; `NONE`: it has none here, and is in neither of the lists.
    last: Vec<u32>,
    /// Namespaces that had no turn since they have something to run, the longest waiting first.
    newcomers: VecDeque<NamespaceId>,
    /// The others, the longest waiting first.
    others: VecDeque<NamespaceId>,
    /// Whose the last turn was: while both have something to run, none of them has two in a row.
    was_newcomer: bool,
    workers: usize,
}

impl RunQueue {
    /// An empty queue with room for `workers_live_max` workers of as many namespaces.
    pub(super) fn new(workers_live_max: usize) -> RunQueue {
        RunQueue {
            after: Vec::with_capacity(workers_live_max),
            last: Vec::with_capacity(workers_live_max),
            newcomers: VecDeque::with_capacity(workers_live_max),
            others: VecDeque::with_capacity(workers_live_max),
            was_newcomer: false,
            workers: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workers == 0
    }

    /// A worker that is not in the queue, behind the others of its namespace; where there are any, the namespace waits for its turn already.
    pub(super) fn push(&mut self, worker: u32, namespace: NamespaceId, turn: Turn) {
        let last = replace_at(&mut self.last, namespace, worker);
        let first = if last == NONE { worker } else { replace_at(&mut self.after, last, worker) };
        replace_at(&mut self.after, worker, first);
        self.workers += 1;
        if last != NONE {
            return;
        }
        match turn {
            Turn::Next => self.newcomers.push_front(namespace),
            Turn::First => self.newcomers.push_back(namespace),
            Turn::Another => self.others.push_back(namespace),
        }
    }

    /// The worker whose turn it is.
    pub(super) fn pop(&mut self) -> Option<u32> {
        let is_newcomer = !self.newcomers.is_empty() && (self.others.is_empty() || !self.was_newcomer);
        let namespace = if is_newcomer { self.newcomers.pop_front() } else { self.others.pop_front() }?;
        self.was_newcomer = is_newcomer;
        let last = self.last[namespace as usize];
        let worker = self.after[last as usize];
        self.unlink_after(last, namespace);
        if self.last[namespace as usize] != NONE {
            self.others.push_back(namespace);
        }
        Some(worker)
    }

    /// Takes out a worker of the namespace, if it is here.
    pub(super) fn remove(&mut self, worker: u32, namespace: NamespaceId) {
        let last = self.last.get(namespace as usize).copied().unwrap_or(NONE);
        if last == NONE {
            return;
        }
        let mut before = last;
        while self.after[before as usize] != worker {
            before = self.after[before as usize];
            if before == last {
                return;
            }
        }
        self.unlink_after(before, namespace);
        if self.last[namespace as usize] == NONE {
            self.newcomers.retain(|other| *other != namespace);
            self.others.retain(|other| *other != namespace);
        }
    }

    fn unlink_after(&mut self, before: u32, namespace: NamespaceId) {
        let worker = self.after[before as usize];
        let last = &mut self.last[namespace as usize];
        if worker == before {
            *last = NONE;
        } else if worker == *last {
            *last = before;
        }
        self.after[before as usize] = self.after[worker as usize];
        self.workers -= 1;
    }
}

/// Puts `number` in place `at`, which is made if it is missing. Output: what was there.
fn replace_at(numbers: &mut Vec<u32>, at: u32, number: u32) -> u32 {
    let at = at as usize;
    if numbers.len() <= at {
        numbers.resize(at + 1, NONE);
    }
    std::mem::replace(&mut numbers[at], number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `count` turns of guests that do not end: the namespaces that had them. The namespace of a worker is its number divided by 10.
    fn turns(queue: &mut RunQueue, count: usize) -> Vec<u32> {
        let turn = |queue: &mut RunQueue| {
            let worker = queue.pop().unwrap();
            queue.push(worker, worker / 10, Turn::Another);
            worker / 10
        };
        (0..count).map(|_| turn(queue)).collect()
    }

    #[test]
    fn a_session_with_many_calls_has_no_more_turns_than_one_with_a_single_call() {
        let mut queue = RunQueue::new(16);
        (10..20).for_each(|worker| queue.push(worker, 1, Turn::First));
        assert_eq!(turns(&mut queue, 3), [1, 1, 1]);
        queue.push(20, 2, Turn::Another);
        queue.push(30, 3, Turn::Another);
        assert_eq!(turns(&mut queue, 7), [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn calls_of_a_session_take_turns_in_the_order_in_which_they_came() {
        let mut queue = RunQueue::new(16);
        let next = |queue: &mut RunQueue| queue.pop().inspect(|worker| queue.push(*worker, 1, Turn::Another)).unwrap();
        (10..14).for_each(|worker| queue.push(worker, 1, Turn::First));
        queue.remove(12, 1);
        assert_eq!([next(&mut queue), next(&mut queue), next(&mut queue), next(&mut queue)], [10, 11, 13, 10]);
        [10, 11, 13].iter().for_each(|worker| queue.remove(*worker, 1));
        assert!(queue.is_empty() && queue.pop().is_none());
    }

    #[test]
    fn a_session_that_had_no_turn_comes_before_all_that_had_one() {
        let mut queue = RunQueue::new(16);
        (0..300).for_each(|session| (0..10).for_each(|call| queue.push(10 * session + call, session, Turn::First)));
        turns(&mut queue, 900);
        queue.push(5_000, 500, Turn::First);
        assert_eq!(queue.pop(), Some(5_000));
    }

    #[test]
    fn a_session_whose_turn_is_next_waits_for_one_other_at_most() {
        let mut queue = RunQueue::new(16);
        (0..300).for_each(|session| queue.push(10 * session, session, Turn::First));
        turns(&mut queue, 1);
        queue.push(5_000, 500, Turn::Next);
        assert_eq!(turns(&mut queue, 2), [0, 500]);
    }

    #[test]
    fn a_session_that_spins_has_every_second_turn_however_many_new_ones_come() {
        let mut queue = RunQueue::new(16);
        queue.push(10, 1, Turn::Another);
        let mut spins = 0;
        for session in 2..202 {
            queue.push(10 * session, session, Turn::First);
            if queue.pop() == Some(10) {
                spins += 1;
                queue.push(10, 1, Turn::Another);
            }
        }
        assert_eq!(spins, 100);
    }

    /// The same, said simply: a queue for each namespace.
    #[derive(Default)]
    struct Model {
        workers: [VecDeque<u32>; 4],
        lists: [VecDeque<u32>; 2],
        was_newcomer: bool,
    }

    impl Model {
        fn push(&mut self, worker: u32, namespace: u32, turn: Turn) {
            let workers = &mut self.workers[namespace as usize];
            match (workers.is_empty(), turn) {
                (false, _) => {}
                (true, Turn::Next) => self.lists[0].push_front(namespace),
                (true, Turn::First) => self.lists[0].push_back(namespace),
                (true, Turn::Another) => self.lists[1].push_back(namespace),
            }
            workers.push_back(worker);
        }

        fn pop(&mut self) -> Option<u32> {
            let list = match self.lists.each_ref().map(VecDeque::is_empty) {
                [true, true] => return None,
                [false, false] => usize::from(self.was_newcomer),
                [no_newcomer, _] => usize::from(no_newcomer),
            };
            self.was_newcomer = list == 0;
            let namespace = self.lists[list].pop_front()?;
            let workers = &mut self.workers[namespace as usize];
            let worker = workers.pop_front();
            if !workers.is_empty() {
                self.lists[1].push_back(namespace);
            }
            worker
        }

        fn remove(&mut self, worker: u32, namespace: u32) {
            let workers = &mut self.workers[namespace as usize];
            workers.retain(|other| *other != worker);
            if workers.is_empty() {
                self.lists.iter_mut().for_each(|list| list.retain(|other| *other != namespace));
            }
        }
    }

    proptest! {
        #[test]
        fn run_queue_matches_a_queue_for_each_namespace(ops in prop::collection::vec((0u32..16, 0usize..5), 0..256)) {
            let (mut queue, mut model, mut is_in) = (RunQueue::new(4), Model::default(), [false; 16]);
            for (worker, op) in ops {
                let namespace = worker % 4;
                match op {
                    0..3 if !is_in[worker as usize] => {
                        let turn = [Turn::Next, Turn::First, Turn::Another][op];
                        queue.push(worker, namespace, turn);
                        model.push(worker, namespace, turn);
                        is_in[worker as usize] = true;
                    }
                    3 => {
                        queue.remove(worker, namespace);
                        model.remove(worker, namespace);
                        is_in[worker as usize] = false;
                    }
                    _ => {
                        let popped = queue.pop();
                        prop_assert_eq!(popped, model.pop());
                        popped.into_iter().for_each(|worker| is_in[worker as usize] = false);
                    }
                }
                prop_assert_eq!(queue.is_empty(), !is_in.contains(&true));
            }
        }
    }
}
