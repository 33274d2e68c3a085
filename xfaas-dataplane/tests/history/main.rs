//! Concurrent histories of weak and strong operations over clients of both protocols, over all shards and a container, with waiting, traps
//! and kills, each key's checked for linearizability. `cargo test --test history -- --nocapture` prints how much was examined.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod checker;
mod checker_tests;
mod client;
mod examine;
#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
#[path = "../harness/mod.rs"]
mod harness;
mod operation;
mod value;
mod workload;

use client::Endpoint;
use examine::{Examined, Fault, Histories};
use harness::{Container, Node, eventually};
use std::sync::atomic::{AtomicUsize, Ordering};
use workload::{Plan, functions, functions_with};

/// More than a slice, so that other invocations run while the section is open.
const HOLD_ROUNDS_MAX: i32 = 3_000_000;

/// How often each scenario runs, with other choices each time: `XFAAS_HISTORY_ROUNDS` makes a soak of it.
fn rounds() -> std::ops::Range<u64> {
    0..std::env::var("XFAAS_HISTORY_ROUNDS").map_or(1, |rounds| rounds.parse().expect("XFAAS_HISTORY_ROUNDS is a number"))
}

/// Half of the clients over HTTP, half by datagrams, on two sessions; a section in thirty is held a while.
fn plan(node: &Node, requests_a_client: usize, seed: u64) -> Plan {
    let endpoints = vec![Endpoint::Http(node.http), Endpoint::Datagram(node.http)];
    Plan { endpoints, clients: 8, requests_a_client, sessions: 2, hold_rounds_max: HOLD_ROUNDS_MAX, held_one_in: 30, seed, killed: None }
}

#[track_caller]
fn assert_right(name: &str, histories: &Histories) -> Examined {
    let examined = histories.examine().unwrap_or_else(|fault| panic!("{name}: {fault:#?}"));
    let Examined { operations, unknown, histories, longest } = examined;
    println!("{name}: {operations} operations ({unknown} of unknown end) in {histories} histories, the longest of {longest}: all right");
    examined
}

/// Kills the node and starts it again that many times, evenly over the requests of the plan.
fn kill_meanwhile(node: &mut Node, plan: &Plan, kills: usize, done: &AtomicUsize) {
    for kill in 1..=kills {
        let requests = plan.requests() * kill / (kills + 1);
        eventually("the clients get to the next kill", || done.load(Ordering::Relaxed) >= requests);
        node.kill();
        node.start();
    }
}

#[test]
fn hot_keys_over_two_shards_and_both_protocols_are_linearizable() {
    let requests = 600;
    for seed in rounds() {
        let node = functions(Node::builder()).start();
        let examined = assert_right("hot keys", &plan(&node, requests, seed).run(|_| ()));
        // Traps leave nothing to note, and some requests are two operations.
        assert!(examined.operations > 4 * requests && examined.nearly_all_were_answered(), "{examined:?}");
        let beside = node.metrics().sum("xfaas_local_reads_total", &[]);
        assert!(beside > 0.0, "none of the reads ran beside the owner");
    }
}

#[test]
fn sections_that_wait_for_each_other_are_linearizable() {
    // Whether two sections meet is the scheduler's choice: goes on until some have.
    let mut waits = 0.0;
    for seed in 0..rounds().end.max(20) {
        let node = functions(Node::builder()).start();
        let plan = Plan { held_one_in: 1, sessions: 1, ..plan(&node, 60, seed) };
        assert_right("held sections", &plan.run(|_| ()));
        waits += node.metrics().sum("xfaas_lock_waits_total", &[]);
        if waits > 0.0 && seed + 1 >= rounds().end {
            return;
        }
    }
    assert!(waits > 0.0, "no section ever waited");
}

#[test]
fn what_is_acknowledged_is_linearizable_over_kills() {
    for seed in rounds() {
        let mut node = functions(Node::builder()).start();
        let plan = plan(&node, 250, seed);
        let histories = plan.run(|done| kill_meanwhile(&mut node, &plan, 3, done));
        assert_right("three kills", &histories);
    }
}

#[test]
fn what_a_primary_and_its_secondaries_on_other_cores_do_together_is_linearizable() {
    // How many calls find the primary's worker taken is the scheduler's choice: goes on until enough have.
    let mut away = 0.0;
    for seed in 0..rounds().end.max(20) {
        let start = || functions_with(Node::builder(), &["workers_max = 1", "containers_max = 2"]).start();
        let node = start();
        let plan_of = |node: &Node, requests| Plan { held_one_in: 3, sessions: 1, ..plan(node, requests, seed) };
        let examined = assert_right("secondaries", &plan_of(&node, 100).run(|_| ()));
        assert!(examined.nearly_all_were_answered(), "{examined:?}");
        away += node.metrics().sum("xfaas_secondary_calls_total", &[]);
        let mut node = start();
        let plan = plan_of(&node, 60);
        let histories = plan.run(|done| kill_meanwhile(&mut node, &plan, 2, done));
        assert_right("secondaries, two kills", &histories);
        if away > 10.0 && seed + 1 >= rounds().end {
            return;
        }
    }
    panic!("{away} calls ran in secondaries");
}

/// The clients of a primary and of a container that is joined to it.
fn plan_with_container(node: &Node, container: &Container, requests_a_client: usize, seed: u64) -> Plan {
    let endpoints = [node.http, container.http].into_iter().flat_map(|address| [Endpoint::Http(address), Endpoint::Datagram(address)]);
    Plan { endpoints: endpoints.collect(), held_one_in: 10, ..plan(node, requests_a_client, seed) }
}

#[test]
fn what_a_container_and_its_primary_do_together_is_linearizable() {
    for seed in rounds() {
        for (name, flags) in [("container", &[][..]), ("container without mapping", &["--no-map"])] {
            let node = functions(Node::builder()).start();
            let container = Container::join(&node, flags);
            let examined = assert_right(name, &plan_with_container(&node, &container, 150, seed).run(|_| ()));
            assert!(examined.nearly_all_were_answered(), "{examined:?}");
        }
    }
}

#[test]
fn what_a_container_acknowledges_is_linearizable_over_kills_of_its_primary() {
    for seed in rounds() {
        let mut node = functions(Node::builder()).start();
        let container = Container::join(&node, &[]);
        let plan = plan_with_container(&node, &container, 150, seed);
        let histories = plan.run(|done| kill_meanwhile(&mut node, &plan, 2, done));
        assert_right("container, two kills of its primary", &histories);
    }
}

#[test]
fn what_a_killed_container_leaves_behind_is_linearizable() {
    for seed in rounds() {
        let node = functions(Node::builder()).start();
        let mut container = Container::join(&node, &[]);
        let plan = Plan { killed: Some(container.http), ..plan_with_container(&node, &container, 150, seed) };
        let histories = plan.run(|done| {
            eventually("the clients get to the kill", || done.load(Ordering::Relaxed) >= plan.requests() / 3);
            container.kill();
        });
        assert_right("container, killed", &histories);
    }
}

#[test]
#[cfg(debug_assertions)] // as the flag
fn a_lock_that_does_not_lock_is_noticed() {
    // Whether two sections meet in one history is the scheduler's choice: the first one in which they do must be refused.
    for seed in 0..20 {
        let node = functions(Node::builder()).flag("--test-broken-lock").start();
        let plan = Plan { held_one_in: 1, sessions: 1, ..plan(&node, 60, seed) };
        match plan.run(|_| ()).examine() {
            Ok(_) => {}
            Err(Fault::Order { .. }) => return,
            Err(fault) => panic!("{fault:?}"),
        }
    }
    panic!("20 histories of sections that do not exclude each other were taken for right");
}
