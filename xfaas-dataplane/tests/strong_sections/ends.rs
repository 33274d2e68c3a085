//! How sections begin and end: re-entry, single writes, weak access beside them, and every way in which a holder's call can end.

use crate::gate::{Gate, begin, cancelled, node, parked, queued, results, run, value};
use crate::harness::{Node, Reply, Script, UdpClient, eventually, request_datagram};
use std::time::{Duration, Instant};

/// Reads `n` strongly and writes it.
fn take_turn(value: &[u8]) -> Vec<u8> {
    Script::new().read("n", 1).write("n", value, 1).end()
}

#[test]
fn a_missing_key_is_locked_like_any_other() {
    let node = node(2);
    let gate = Gate::close(&node, "s", "gate");
    let mut first = begin(&node, "script", "s", &Script::new().read("n", 1).read("gate", 1).write("n", b"one", 1).end());
    parked(&node, 1);
    let mut second = begin(&node, "script", "s", &take_turn(b"second"));
    parked(&node, 2);
    gate.open();
    assert_eq!(results(&first.reply()), [-1, -1, 0]);
    assert_eq!(results(&second.reply()), [3, 0], "two first increments do not race");
}

#[test]
fn a_section_entered_twice_ends_with_one_write() {
    let node = node(2);
    let gate = Gate::close(&node, "s", "gate");
    let body = Script::new().read("n", 1).read("n", 1).write("n", b"one", 1).read("gate", 1).read("n", 0).end();
    let mut first = begin(&node, "script", "s", &body);
    parked(&node, 1);
    assert_eq!(run(&node, "s", Script::new().read("n", 1).write("n", b"second", 1)), [3, 0], "the first write released it");
    gate.open();
    assert_eq!(results(&first.reply()), [-1, -1, 0, -1, 6]);
}

#[test]
fn a_strong_write_alone_waits_for_an_open_section() {
    let node = node(2);
    let gate = Gate::close(&node, "s", "gate");
    let mut holder = begin(&node, "script", "s", &Script::new().read("n", 1).read("gate", 1).write("n", b"holder", 1).end());
    parked(&node, 1);
    let mut writer = begin(&node, "script", "s", &Script::new().write("n", b"w", 1).read("n", 1).end());
    parked(&node, 2);
    assert_eq!(value(&node, "s", "n"), None);
    gate.open();
    assert_eq!(results(&holder.reply()), [-1, -1, 0]);
    assert_eq!(results(&writer.reply()), [0, 1], "it wrote after the holder, released, and may lock again");
    assert_eq!(value(&node, "s", "n").unwrap(), b"w");
}

#[test]
fn weak_access_to_a_held_key_neither_waits_nor_releases() {
    let node = node(2);
    let gate = Gate::close(&node, "s", "gate");
    let body = Script::new().read("n", 1).read("gate", 1).read("n", 0).write("n", b"strong", 1).end();
    let mut holder = begin(&node, "script", "s", &body);
    parked(&node, 1);
    assert_eq!(run(&node, "s", Script::new().read("n", 0).write("n", b"weak", 0).read("n", 0)), [-1, 0, 4]);
    let mut waiter = begin(&node, "script", "s", &take_turn(b"waiter"));
    parked(&node, 2);
    gate.open();
    assert_eq!(results(&holder.reply()), [-1, -1, 4, 0], "the holder's own weak write did not end its section either");
    assert_eq!(results(&waiter.reply()), [6, 0]);
}

#[test]
fn a_wait_longer_than_the_deadline_is_no_fault() {
    let node = node(2);
    let gate = Gate::close(&node, "s", "n");
    let began = Instant::now();
    let mut waiter = begin(&node, "brief", "s", &take_turn(b"x"));
    parked(&node, 1);
    // The deadline of `brief` is 200 ms.
    eventually("three deadlines are over", || began.elapsed() > Duration::from_millis(600));
    gate.open();
    assert_eq!(results(&waiter.reply()), [-1, 0]);
}

#[test]
fn a_wait_in_vain_ends_with_lock_wait_and_leaves_the_queue() {
    let script = |name: &str| Script::function(name).app("state").with("deadline_ms = 60000");
    let node = Node::builder().limit("lock_wait_ms = 300").function(script("script")).function(script("counter-rmw-linear")).start();
    let gate = Gate::close(&node, "s", "n");
    let began = Instant::now();
    let body = Script::new().write("before", b"stays", 1).read("held", 1).read("n", 1).write("n", b"never", 1).end();
    let mut in_vain = begin(&node, "script", "s", &body);
    eventually("it waits", || value(&node, "s", "before").is_some());
    // This one wants what the first holds while it waits: it gets it when the first gives up.
    let mut behind = begin(&node, "script", "s", &Script::new().read("held", 1).end());
    in_vain.reply().assert_error(503, "lock_wait");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(results(&behind.reply()), [-1]);
    gate.open();
    assert_eq!(run(&node, "s", Script::new().read("n", 1).read("before", 0)), [-1, 5]);
    parked(&node, 0);
}

type Check = fn(&Reply);

#[test]
fn however_a_holder_ends_the_next_one_gets_the_lock_and_the_old_value() {
    let node = node(2);
    // Each holds `n`, with a weak write to `w` behind it, when it comes through the gate.
    let opened = || Script::new().write("w", b"w", 0).read("n", 1).read("gate", 1);
    let ends: [(&str, Vec<u8>, Check); 4] = [
        ("return", opened().end(), |reply| assert_eq!(reply.status, 200)),
        ("trap", opened().trap(), |reply| reply.assert_error(500, "guest_trapped")),
        ("code", opened().end_with(7), |reply| reply.assert_error(500, "guest_error")),
        ("deadline", opened().spin_forever(), |reply| reply.assert_error(504, "deadline")),
    ];
    let mut rounds = 0;
    for (function, is_atomic) in [("brief", false), ("atomic-brief", true)] {
        for (end, body, check) in &ends {
            rounds += 1;
            let session = format!("{function}-{end}");
            run(&node, &session, Script::new().write("n", b"old", 1));
            let gate = Gate::close(&node, &session, "gate");
            let mut holder = begin(&node, function, &session, body);
            parked(&node, 1);
            let mut next = begin(&node, "script", &session, &take_turn(b"newer"));
            parked(&node, 2);
            gate.open();
            check(&holder.reply());
            assert_eq!(results(&next.reply()), [3, 0], "{session}");
            assert_eq!(value(&node, &session, "n").unwrap(), b"newer", "{session}");
            let stays = !is_atomic || *end == "return";
            assert_eq!(value(&node, &session, "w").is_some(), stays, "{session}: what was written before");
            cancelled(&node, rounds);
        }
    }
}

#[test]
fn fresh_workers_and_repeated_datagrams_keep_to_the_lock() {
    let node = node(2);
    let gate = Gate::close(&node, "s", "n");
    let mut fresh = begin(&node, "fresh", "s", &take_turn(b"fresh"));
    parked(&node, 1);
    let udp = UdpClient::connect(node.http);
    let datagram = request_datagram("idempotent", "s", 7, &take_turn(b"idempotent"));
    udp.send(&datagram);
    parked(&node, 2);
    udp.send(&datagram);
    udp.send(&datagram);
    eventually("the duplicates wait for the first", || node.metrics().sum("xfaas_replays_total", &[]) == 2.0);
    gate.open();
    assert_eq!(results(&fresh.reply()), [-1, 0]);
    for _ in 0..3 {
        udp.answer().assert_reply(&[5_i32.to_le_bytes(), 0_i32.to_le_bytes()].concat());
    }
    assert_eq!(value(&node, "s", "n").unwrap(), b"idempotent");
    assert_eq!(node.metrics().runs("idempotent"), 1.0, "the duplicates took no turn of their own");
}

#[test]
fn a_swap_or_removal_disturbs_no_section() {
    let node = node(2);
    let module = node.directory.path().join("single.wasm");
    let deploy = ["deploy", "single", module.to_str().unwrap(), "--app", "other"];
    assert!(!node.cli(&deploy).status.success(), "a name stays with its app");
    for is_removed in [false, true] {
        let name = format!("swapped-{is_removed}");
        let arguments = ["deploy", &name, module.to_str().unwrap(), "--app", "state", "--deadline-ms", "60000", "--workers-max", "2"];
        assert!(node.cli(&arguments).status.success());
        let session = format!("s-{is_removed}");
        let gate = Gate::close_by(&node, &name, &session, "n");
        let mut waiter = begin(&node, &name, &session, &take_turn(b"waiter"));
        parked(&node, 1);
        let mut late = begin(&node, &name, &session, &take_turn(b"late"));
        queued(&node, 1);
        let change = if is_removed { node.cli(&["undeploy", &name]) } else { node.cli(&arguments) };
        assert!(change.status.success(), "{change:?}");
        if is_removed {
            late.reply().assert_error(404, "no_function");
        }
        parked(&node, 1);
        gate.open();
        assert_eq!(results(&waiter.reply()), [-1, 0], "a call ends on the version it began on");
        if !is_removed {
            assert_eq!(results(&late.reply()), [6, 0]);
        }
        queued(&node, 0);
    }
}

#[test]
fn calls_of_one_session_with_different_worker_limits_all_get_their_turn() {
    let function =
        |name: &str, workers: u32| Script::function(name).app("a").with(&format!("workers_max = {workers}")).with("deadline_ms = 60000");
    let node = Node::builder().function(function("script", 8)).function(function("one", 1)).start();
    let gate = Gate::close(&node, "s", "n");
    let first: Vec<_> = (0..4).map(|_| begin(&node, "script", "s", &take_turn(b"x"))).collect();
    parked(&node, 4);
    let mut narrow = begin(&node, "one", "s", &take_turn(b"y"));
    queued(&node, 1);
    let behind: Vec<_> = (0..8).map(|_| begin(&node, "script", "s", &take_turn(b"z"))).collect();
    queued(&node, 9);
    gate.open();
    for mut client in first.into_iter().chain(behind) {
        assert_eq!(results(&client.reply())[1], 0);
    }
    assert_eq!(results(&narrow.reply()), [1, 0]);
}
