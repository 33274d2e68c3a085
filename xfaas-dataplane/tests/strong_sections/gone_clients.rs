//! A client that is gone holds nobody up: its call is ended wherever it is, its locks go on, its open section never was.

use crate::gate::{Gate, begin, cancelled, node, parked, queued, reset, results, run, value};
use crate::harness::{Script, eventually, request};
use std::time::Duration;

/// Adds nothing: reads `n` strongly and writes it.
fn take_turn(value: &[u8]) -> Vec<u8> {
    Script::new().read("n", 1).write("n", value, 1).end()
}

#[test]
fn a_holder_whose_client_is_gone_is_ended_and_the_next_one_goes_on() {
    let node = node(2);
    // New connections land on a shard of the kernel's choice: about half of these calls are forwarded.
    for round in 1..=12 {
        let session = format!("s{round}");
        run(&node, &session, Script::new().write("n", b"old", 1));
        let holder = Gate::close(&node, &session, "n");
        let mut next = begin(&node, "script", &session, &take_turn(b"newer"));
        parked(&node, 1);
        holder.open();
        assert_eq!(results(&next.reply()), [3, 0], "the next one sees the old value");
        assert_eq!(value(&node, &session, "n").unwrap(), b"newer");
        cancelled(&node, round);
    }
    let metrics = node.metrics();
    assert_eq!(metrics.requests("script", "cancelled"), 12.0);
    assert!(metrics.sum("xfaas_forwarded_total", &[]) > 0.0);
    eventually("no connection is left", || node.metrics().sum("xfaas_connections", &[]) == 0.0);
}

#[test]
fn a_waiter_whose_client_is_gone_leaves_the_queue_and_the_one_behind_it_gets_its_turn() {
    let node = node(2);
    for round in 0..6 {
        let session = format!("s{round}");
        let gate = Gate::close(&node, &session, "n");
        let gone = begin(&node, "script", &session, &take_turn(b"gone"));
        parked(&node, 1);
        let mut behind = begin(&node, "script", &session, &take_turn(b"behind"));
        parked(&node, 2);
        reset(gone);
        parked(&node, 1);
        cancelled(&node, 2 * round + 1);
        gate.open();
        assert_eq!(results(&behind.reply()), [-1, 0], "nobody wrote before");
        assert_eq!(value(&node, &session, "n").unwrap(), b"behind");
        cancelled(&node, 2 * round + 2);
    }
}

#[test]
fn a_queued_call_whose_client_is_gone_never_runs() {
    let node = node(2);
    let gate = Gate::close_by(&node, "single", "s", "n");
    let gone = begin(&node, "single", "s", &take_turn(b"gone"));
    queued(&node, 1);
    let mut behind = begin(&node, "single", "s", &take_turn(b"behind"));
    queued(&node, 2);
    reset(gone);
    queued(&node, 1);
    gate.open();
    assert_eq!(results(&behind.reply()), [-1, 0]);
    assert_eq!(value(&node, "s", "n").unwrap(), b"behind");
    cancelled(&node, 2);
}

#[test]
fn a_client_that_is_gone_is_noticed_although_it_asked_for_more_than_is_read_ahead() {
    let node = node(2);
    for round in 1..=4 {
        let session = format!("s{round}");
        let mut holder = begin(&node, "script", &session, &Script::new().read("n", 1).write("begun", b"", 0).spin_forever());
        eventually("it spins", || value(&node, &session, "begun").is_some());
        // The shard stops reading at 128 KiB; the sockets hold the rest.
        holder.send(&request("POST", "/f/script", &[("x-session-id", &session)], &[b'x'; 1_000]).repeat(300));
        std::thread::sleep(Duration::from_millis(100)); // until the shard has stopped
        reset(holder);
        cancelled(&node, round);
        assert_eq!(run(&node, &session, Script::new().read("n", 1)), [-1], "nobody holds it");
    }
}

#[test]
fn finished_writes_of_a_cancelled_call_stay() {
    let node = node(2);
    let body = Script::new().write("weak", b"w", 0).read("strong", 1).write("strong", b"s", 1).read("open", 1).write("open", b"x", 0);
    let holder = begin(&node, "script", "s", &body.write("all-done", b"", 0).spin_forever());
    eventually("it spins", || value(&node, "s", "all-done").is_some());
    reset(holder);
    cancelled(&node, 1);
    assert_eq!(run(&node, "s", Script::new().read("weak", 0).read("strong", 1).read("open", 1)), [1, 1, 1]);
}

#[test]
fn a_call_that_spins_beside_its_sessions_owner_is_ended_too() {
    let node = node(2);
    // Until some have landed on either shard: sixty-four that all land on one happen once in 2^63 runs.
    for round in 1..=64 {
        let spinner = begin(&node, "read-only", &format!("s{round}"), &Script::new().read("n", 0).spin_forever());
        let running = || {
            let metrics = node.metrics();
            metrics.sum("xfaas_workers", &[]) - metrics.sum("xfaas_workers_idle", &[])
        };
        eventually("it spins", || running() == 1.0);
        reset(spinner);
        cancelled(&node, round);
        assert_eq!(running(), 0.0);
        let metrics = node.metrics();
        if metrics.sum("xfaas_local_reads_total", &[]) >= 2.0 && metrics.sum("xfaas_steered_total", &[]) >= 2.0 {
            return;
        }
    }
    panic!("no call landed beside its session's owner");
}

#[test]
fn a_cancelled_atomic_call_leaves_nothing() {
    let node = node(2);
    let gate = Gate::close(&node, "s", "gate");
    let body = Script::new().write("a", b"1", 0).read("n", 1).write("n", b"2", 1).read("gate", 1).write("b", b"3", 0).end();
    let atomic = begin(&node, "atomic", "s", &body);
    parked(&node, 1);
    let mut next = begin(&node, "script", "s", &take_turn(b"next"));
    parked(&node, 2);
    reset(atomic);
    assert_eq!(results(&next.reply()), [-1, 0], "its lock went on, its write did not happen");
    gate.open();
    cancelled(&node, 2);
    assert_eq!(run(&node, "s", Script::new().read("a", 0).read("b", 0).read("n", 0)), [-1, -1, 4]);
}

#[test]
fn a_client_that_only_stops_sending_gets_its_reply() {
    let node = node(2);
    for round in 0..6 {
        let session = format!("s{round}");
        let gate = Gate::close(&node, &session, "n");
        let mut waiter = begin(&node, "script", &session, &take_turn(b"mine"));
        waiter.finish();
        parked(&node, 1);
        gate.open();
        assert_eq!(results(&waiter.reply()), [-1, 0]);
        waiter.assert_closed();
        assert_eq!(value(&node, &session, "n").unwrap(), b"mine");
        cancelled(&node, round + 1);
    }
}

#[test]
fn a_call_that_is_over_is_not_undone_by_a_client_that_goes() {
    let node = node(2);
    for round in 0..20 {
        let session = format!("s{round}");
        let mut client = begin(&node, "script", &session, &take_turn(b"done"));
        assert_eq!(results(&client.reply()), [-1, 0]);
        reset(client);
        assert_eq!(value(&node, &session, "n").unwrap(), b"done");
    }
    cancelled(&node, 0);
}

#[test]
fn a_hundred_clients_that_go_at_once_leave_a_free_lock_and_an_empty_node() {
    let node = node(2);
    let gates = [Gate::close(&node, "s", "n"), Gate::close(&node, "t", "n")];
    let clients: Vec<_> = (0..100).map(|i| begin(&node, "script", ["s", "t"][i % 2], &take_turn(b"gone"))).collect();
    parked(&node, 18); // ten workers a session, of which one holds
    queued(&node, 82);
    // Shards hear of it in an order of their own: some of the hundred may get the lock and finish before they are ended.
    gates.into_iter().for_each(Gate::open);
    clients.into_iter().rev().for_each(reset);
    parked(&node, 0);
    queued(&node, 0);
    eventually("no connection is left", || node.metrics().sum("xfaas_connections", &[]) == 0.0);
    for session in ["s", "t"] {
        assert_eq!(run(&node, session, Script::new().read("n", 1).write("n", b"free", 1))[1], 0);
        assert_eq!(value(&node, session, "n").unwrap(), b"free");
    }
    assert!(node.metrics().sum("xfaas_cancelled_total", &[]) >= 2.0);
}
