//! Strong sections of containers and of local guests on the same keys.

use super::harness::{Node, RpcClient, Script, State, eventually};
use super::{DEADLOCK, NOT_FOUND, node};
use std::time::{Duration, Instant};

fn parked(node: &Node) -> bool {
    node.metrics().sum("xfaas_workers_parked", &[]) > 0.0
}

#[test]
fn twenty_clients_of_both_sides_lose_no_increment() {
    const CLIENTS: u64 = 10;
    const TURNS: u64 = 100;
    let node = node();
    let at = |invocation| State::strong("counter-rmw-linear", "one", invocation);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = node.connect();
                for _ in 0..TURNS {
                    let reply = client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "one")], b"");
                    assert_eq!(reply.status, 200, "{reply:?}");
                }
            });
            scope.spawn(|| {
                let mut client = RpcClient::to_owner(node.rpc, "one");
                for turn in 0..TURNS {
                    let read = client.call(|id| at(turn).read(id, b"n"));
                    let count = if read.result() < 0 { 0 } else { std::str::from_utf8(read.value()).unwrap().parse::<u64>().unwrap() };
                    assert_eq!(client.call(|id| at(turn).write(id, b"n", (count + 1).to_string().as_bytes())).result(), 0);
                    client.send(&at(turn).end());
                }
            });
        }
    });
    let mut client = RpcClient::to_owner(node.rpc, "one");
    let total = client.call(|id| State { mode: 0, ..at(1) }.read(id, b"n"));
    assert_eq!(String::from_utf8_lossy(total.value()), (2 * CLIENTS * TURNS).to_string());
    let metrics = node.metrics();
    assert!(metrics.sum("xfaas_rpc_lock_waits_total", &[]) + metrics.sum("xfaas_lock_waits_total", &[]) > 0.0, "they met");
    eventually("the last ends are there", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 0.0);
}

/// One container that increments until its turns are over, and dies in the middle of some of them. Output: increments acknowledged, and
/// those of which it never heard.
fn increment_and_die(node: &Node, turns: u64, seed: u64) -> (u64, u64) {
    let at = |invocation| State::strong("counter-rmw-linear", "one", invocation);
    let (mut known, mut unknown) = (0, 0);
    let mut client = RpcClient::to_owner(node.rpc, "one");
    for turn in 0..turns {
        let way = turn.wrapping_mul(seed) % 7;
        let id = client.fresh_id();
        client.send(&at(turn).read(id, b"n"));
        if way == 0 {
            client = RpcClient::to_owner(node.rpc, "one"); // died waiting, or holding
            continue;
        }
        let read = client.answer_to(id);
        let count = if read.result() < 0 { 0 } else { std::str::from_utf8(read.value()).unwrap().parse::<u64>().unwrap() };
        if way == 1 {
            client.send(&at(turn).end()); // thought better of it, and asks for more with the same number
            continue;
        }
        let id = client.fresh_id();
        client.send(&at(turn).write(id, b"n", (count + 1).to_string().as_bytes()));
        if way == 2 {
            client = RpcClient::to_owner(node.rpc, "one"); // died before it heard
            unknown += 1;
            continue;
        }
        assert_eq!(client.answer_to(id).result(), 0);
        known += 1;
    }
    (known, unknown)
}

#[test]
fn containers_that_die_at_any_point_lose_no_acknowledged_increment() {
    const LOCAL: u64 = 100;
    let node = node();
    let (mut known, mut unknown) = (LOCAL, 0);
    std::thread::scope(|scope| {
        let node = &node;
        let containers: Vec<_> = [3, 5, 11, 13].map(|seed| scope.spawn(move || increment_and_die(node, 60, seed))).into();
        let mut local = node.connect();
        for _ in 0..LOCAL {
            assert_eq!(local.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "one")], b"").status, 200);
        }
        for container in containers {
            let (heard, unheard) = container.join().unwrap();
            known += heard;
            unknown += unheard;
        }
    });
    let count = node.post("counter-rmw-linear", "one", b"").text().parse::<u64>().unwrap() - 1;
    assert!((known..=known + unknown).contains(&count), "{count}: {known} acknowledged, {unknown} more sent");
    eventually("nothing is left", || {
        let metrics = node.metrics();
        metrics.sum("xfaas_rpc_invocations", &[]) + metrics.sum("xfaas_rpc_connections", &[]) == 0.0
    });
    assert_eq!(node.metrics().sum("xfaas_rpc_connections_silent_total", &[]), 0.0);
}

#[test]
fn a_local_call_waits_for_a_container_and_the_other_way_round() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State::strong("script", "s", 1);
    assert_eq!(client.call(|id| at.read(id, b"k")).result(), NOT_FOUND);
    std::thread::scope(|scope| {
        let local = scope.spawn(|| node.post("script", "s", &Script::new().read("k", 1).write("k", b"local", 1).end()));
        eventually("the local call waits", || parked(&node));
        assert_eq!(client.call(|id| at.write(id, b"k", b"remote")).result(), 0);
        assert_eq!(Script::results(&local.join().unwrap().body), [6, 0], "it saw what the container wrote");
        let holder = scope.spawn(|| node.post("script", "s", &Script::new().read("k", 1).spin(800_000_000).write("k", b"spun", 1).end()));
        eventually("the local call has the lock", || {
            let waits = |at: &Node| at.metrics().sum("xfaas_rpc_lock_waits_total", &[]);
            let (before, id) = (waits(&node), client.fresh_id());
            client.send(&State { deadline_ms: 1, ..at }.read(id, b"k"));
            let answer = client.answer_to(id);
            client.send(&at.end());
            if answer.kind == 3 {
                answer.assert_error(5, "deadline");
            }
            waits(&node) > before || holder.is_finished()
        });
        let read = client.call(|id| at.read(id, b"k"));
        assert_eq!(Script::results(&holder.join().unwrap().body), [5, 0]);
        assert_eq!(read.value(), b"spun", "granted at the local call's write");
    });
}

#[test]
fn a_circle_across_both_sides_is_refused() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State::strong("script", "s", 1);
    assert_eq!(client.call(|id| at.read(id, b"b")).result(), NOT_FOUND);
    std::thread::scope(|scope| {
        let local = scope.spawn(|| node.post("script", "s", &Script::new().read("a", 1).read("b", 1).write("b", b"x", 1).end()));
        eventually("the local call holds a and waits for b", || parked(&node));
        assert_eq!(client.call(|id| at.read(id, b"a")).result(), DEADLOCK, "the container is the newcomer");
        assert_eq!(client.call(|id| at.write(id, b"b", b"remote")).result(), 0);
        assert_eq!(Script::results(&local.join().unwrap().body), [NOT_FOUND, 6, 0]);
    });
    // The other way round: the container waits, the local call closes the circle.
    assert_eq!(client.call(|id| at.read(id, b"b")).value(), b"x");
    let script = Script::new().read("a", 1).spin(800_000_000).read("b", 1).write("a", b"y", 1).end();
    std::thread::scope(|scope| {
        let local = scope.spawn(|| node.post("script", "s", &script));
        let id = client.fresh_id();
        // Asked again until the local call has it: then this waits, and the local call's wish for b closes the circle.
        let waits = || node.metrics().sum("xfaas_rpc_lock_waits_total", &[]);
        let before = waits();
        eventually("the container waits for a", || {
            client.send(&at.read(id, b"a"));
            let answer = client.next_within(Duration::from_millis(100));
            if answer.is_some() {
                client.send(&at.write(0, b"a", b"early"));
                client.answer_to(0);
            }
            waits() > before || local.is_finished()
        });
        let results = Script::results(&local.join().unwrap().body);
        assert_eq!((results[1], results[2]), (DEADLOCK, 0), "{results:?}");
        assert_eq!(client.answer_to(id).value(), b"y");
    });
}

#[test]
fn a_killed_container_lets_local_calls_go_on_promptly() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    assert_eq!(client.call(|id| State::strong("counter-rmw-linear", "s", 1).read(id, b"n")).result(), NOT_FOUND);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| node.post("counter-rmw-linear", "s", b""));
        eventually("the local call waits", || parked(&node));
        drop(client);
        waiter.join().unwrap().assert_ok(b"1");
    });
    let metrics = node.metrics();
    assert_eq!(metrics.sum("xfaas_rpc_locks_lost_total", &[]), 1.0);
    assert_eq!(metrics.sum("xfaas_rpc_connections_silent_total", &[]), 0.0, "at the connection's end, not after a silence");
}

#[test]
fn a_silent_container_loses_its_locks_before_local_calls_give_up() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    assert_eq!(client.call(|id| State::strong("counter-rmw-linear", "s", 1).read(id, b"n")).result(), NOT_FOUND);
    client.fall_silent();
    let silent_at = Instant::now();
    // It would answer 503 after lock_wait_ms, 5 s.
    node.post("counter-rmw-linear", "s", b"").assert_ok(b"1");
    assert!(silent_at.elapsed() > Duration::from_millis(1_500), "a connection may be silent for a while: {:?}", silent_at.elapsed());
    client.assert_closed();
    let metrics = node.metrics();
    assert_eq!(metrics.sum("xfaas_rpc_connections_silent_total", &[]), 1.0);
    assert_eq!(metrics.sum("xfaas_rpc_locks_lost_total", &[]), 1.0);
}
