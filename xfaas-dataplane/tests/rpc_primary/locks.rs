//! Strong sections of invocations in containers: the same rules as for local guests, and what happens when a container is lost.

use super::harness::{Node, RpcClient, RpcFrame, State, eventually};
use super::{DEADLOCK, NOT_FOUND, OVER_LIMIT, node};
use std::time::Duration;

/// Long enough to see that something does not come.
const A_WHILE: Duration = Duration::from_millis(150);

#[track_caller]
fn strong_read(client: &mut RpcClient, session: &str, invocation: u64, key: &[u8]) -> RpcFrame {
    client.call(|id| State::strong("script", session, invocation).read(id, key))
}

#[track_caller]
fn strong_write(client: &mut RpcClient, session: &str, invocation: u64, key: &[u8], value: &[u8]) -> RpcFrame {
    client.call(|id| State::strong("script", session, invocation).write(id, key, value))
}

/// Sends a strong read that must wait. Output: its request ID.
#[track_caller]
fn waiting_read(node: &Node, client: &mut RpcClient, session: &str, invocation: u64, key: &[u8]) -> u64 {
    let waits = || node.metrics().sum("xfaas_rpc_lock_waits_total", &[]);
    let (before, id) = (waits(), client.fresh_id());
    client.send(&State::strong("script", session, invocation).read(id, key));
    eventually("the read waits", || waits() > before);
    id
}

#[test]
fn a_section_lasts_from_strong_read_to_strong_write() {
    let node = node();
    let (mut one, mut other) = (RpcClient::to_owner(node.rpc, "s"), RpcClient::to_owner(node.rpc, "s"));
    assert_eq!(strong_read(&mut one, "s", 1, b"k").result(), NOT_FOUND, "the section of a missing key is open");
    assert_eq!(strong_read(&mut one, "s", 1, b"k").result(), NOT_FOUND, "re-entered");
    let waiting = waiting_read(&node, &mut other, "s", 1, b"k");
    // Weak access neither waits nor releases, whoever holds the key.
    let weak = State::weak("script", "s");
    assert_eq!(other.call(|id| State { invocation: 2, ..weak }.write(id, b"k", b"weak")).result(), 0);
    assert_eq!(one.call(|id| weak.read(id, b"k")).value(), b"weak");
    assert_eq!(other.next_within(A_WHILE), None);
    assert_eq!(strong_write(&mut one, "s", 1, b"k", b"strong").result(), 0);
    assert_eq!(other.answer_to(waiting).value(), b"strong", "the value of the moment of the grant");
    other.send(&State::strong("script", "s", 1).end());
    assert_eq!(strong_read(&mut one, "s", 2, b"k").value(), b"strong");
}

#[test]
fn other_keys_sessions_and_invocations_of_a_connection_are_apart() {
    let node = node();
    let (mut client, welcome) = RpcClient::to_shard(node.rpc, 0);
    let (s, t) = (welcome.session_of(0, "s"), welcome.session_of(0, "t"));
    assert_eq!(strong_read(&mut client, &s, 1, b"k").result(), NOT_FOUND);
    assert_eq!(strong_read(&mut client, &s, 2, b"l").result(), NOT_FOUND);
    assert_eq!(strong_read(&mut client, &t, 3, b"k").result(), NOT_FOUND);
    let waiting = waiting_read(&node, &mut client, &s, 4, b"k");
    client.send(&State::strong("script", &s, 2).end());
    assert_eq!(client.next_within(A_WHILE), None, "another invocation's end changes nothing");
    client.send(&State::strong("script", &s, 1).end());
    assert_eq!(client.answer_to(waiting).result(), NOT_FOUND);
}

#[test]
fn a_strong_write_without_a_section_locks_writes_and_releases() {
    let node = node();
    let (mut one, mut other) = (RpcClient::to_owner(node.rpc, "s"), RpcClient::to_owner(node.rpc, "s"));
    assert_eq!(strong_write(&mut one, "s", 1, b"k", b"1").result(), 0);
    assert_eq!(strong_read(&mut other, "s", 1, b"k").value(), b"1");
    // Two more wait behind the section, in order: a write, then a read that sees it.
    let write_id = one.fresh_id();
    let before = node.metrics().sum("xfaas_rpc_lock_waits_total", &[]);
    one.send(&State::strong("script", "s", 2).write(write_id, b"k", b"2"));
    eventually("the write waits", || node.metrics().sum("xfaas_rpc_lock_waits_total", &[]) > before);
    let read_id = waiting_read(&node, &mut one, "s", 3, b"k");
    other.send(&State::strong("script", "s", 1).end());
    assert_eq!(one.answer_to(write_id).result(), 0);
    assert_eq!(one.answer_to(read_id).value(), b"2");
    assert_eq!(node.metrics().sum("xfaas_rpc_invocations", &[]), 1.0, "only the reader holds a lock");
}

#[test]
fn a_refused_strong_write_leaves_an_open_section_open() {
    let node = node();
    let (mut one, mut other) = (RpcClient::to_owner(node.rpc, "s"), RpcClient::to_owner(node.rpc, "s"));
    let small = |invocation| State { app: "script", ..State::strong("small", "s", invocation) };
    let half = vec![0; 600 << 10];
    assert_eq!(one.call(|id| State { mode: 0, ..small(1) }.write(id, b"full", &half)).result(), 0);
    assert_eq!(one.call(|id| small(1).read(id, b"k")).result(), NOT_FOUND);
    assert_eq!(one.call(|id| small(1).write(id, b"k", &half)).result(), OVER_LIMIT);
    let waiting = waiting_read(&node, &mut other, "s", 1, b"k");
    assert_eq!(one.call(|id| small(1).write(id, b"k", b"v")).result(), 0);
    assert_eq!(other.answer_to(waiting).value(), b"v");
    // Without a section the lock goes back, whatever became of the write.
    assert_eq!(one.call(|id| small(2).write(id, b"l", &half)).result(), OVER_LIMIT);
    assert_eq!(other.call(|id| small(2).read(id, b"l")).result(), NOT_FOUND);
}

#[test]
fn a_circle_is_refused_at_once_and_locks_stay_held() {
    let node = node();
    let (mut one, mut other) = (RpcClient::to_owner(node.rpc, "s"), RpcClient::to_owner(node.rpc, "s"));
    assert_eq!(strong_read(&mut one, "s", 1, b"a").result(), NOT_FOUND);
    assert_eq!(strong_read(&mut other, "s", 1, b"b").result(), NOT_FOUND);
    let waiting = waiting_read(&node, &mut one, "s", 1, b"b");
    assert_eq!(strong_read(&mut other, "s", 1, b"a").result(), DEADLOCK);
    assert_eq!(strong_write(&mut other, "s", 1, b"a", b"").result(), DEADLOCK);
    assert_eq!(one.next_within(A_WHILE), None, "the other's lock is still held");
    assert_eq!(strong_write(&mut other, "s", 1, b"b", b"v").result(), 0);
    assert_eq!(one.answer_to(waiting).value(), b"v");
}

#[test]
fn a_wait_ends_with_lock_wait_or_with_the_askers_deadline() {
    let node = Node::builder().function(super::harness::Script::function("script")).limit("lock_wait_ms = 400").start();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    assert_eq!(strong_read(&mut client, "s", 1, b"k").result(), NOT_FOUND);
    let asker = |deadline_ms, invocation| State { deadline_ms, ..State::strong("script", "s", invocation) };
    client.call(|id| asker(0, 2).read(id, b"k")).assert_error(9, "lock_wait");
    client.call(|id| asker(10_000, 2).write(id, b"k", b"never")).assert_error(9, "lock_wait");
    client.call(|id| asker(30, 2).read(id, b"k")).assert_error(5, "deadline");
    client.send(&asker(0, 1).end());
    assert_eq!(strong_read(&mut client, "s", 2, b"k").result(), NOT_FOUND, "what waited in vain wrote nothing");
}

#[test]
fn a_waiting_invocation_can_ask_weakly_or_end() {
    let node = node();
    let (mut one, mut other) = (RpcClient::to_owner(node.rpc, "s"), RpcClient::to_owner(node.rpc, "s"));
    assert_eq!(strong_read(&mut one, "s", 1, b"k").result(), NOT_FOUND);
    waiting_read(&node, &mut other, "s", 1, b"k");
    other.call(|id| State::strong("script", "s", 1).read(id, b"l")).assert_error(0, "busy_invocation");
    other.call(|id| State::strong("script", "s", 1).write(id, b"k", b"")).assert_error(0, "busy_invocation");
    other.call(|id| State::strong("script", "s", 1).commit(id, &[])).assert_error(0, "busy_invocation");
    let weak = State::weak("script", "s");
    other.call(|id| weak.commit(id, &[])).assert_error(0, "busy_invocation");
    assert_eq!(other.call(|id| weak.read(id, b"l")).result(), NOT_FOUND);
    assert_eq!(other.call(|id| weak.write(id, b"m", b"")).result(), 0);
    assert_eq!(other.call(|id| State { invocation: 2, ..weak }.read(id, b"l")).result(), NOT_FOUND, "another one goes on");
    assert_eq!(strong_read(&mut other, "s", 2, b"l").result(), NOT_FOUND, "its connection is free to go on");
    other.send(&State::strong("script", "s", 1).end());
    assert_eq!(strong_write(&mut one, "s", 1, b"k", b"v").result(), 0);
    assert_eq!(other.next_within(A_WHILE), None, "an ended wait is not answered");
    assert_eq!(strong_read(&mut one, "s", 3, b"k").value(), b"v", "and takes no lock");
}

#[test]
fn a_commit_that_is_refused_ends_its_invocation_all_the_same() {
    let node = node();
    let module = node.directory.path().join("script.wasm");
    assert!(node.cli(&["deploy", "brief", module.to_str().unwrap(), "--app", "script", "--atomic"]).status.success());
    let (mut one, mut other) = (RpcClient::to_owner(node.rpc, "s"), RpcClient::to_owner(node.rpc, "s"));
    let at = State { app: "script", ..State::strong("brief", "s", 1) };
    assert_eq!(one.call(|id| at.read(id, b"k")).result(), NOT_FOUND);
    let waiting = waiting_read(&node, &mut other, "s", 1, b"k");
    assert!(node.cli(&["undeploy", "brief"]).status.success());
    while one.next_within(A_WHILE).is_some() {} // it is told of that
    while other.next_within(A_WHILE).is_some() {}
    one.call(|id| at.commit(id, &[(b"k", b"never")])).assert_error(1, "no_function");
    assert_eq!(other.answer_to(waiting).result(), NOT_FOUND, "the lock is the next one's, and nothing was written");
    eventually("it is forgotten", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 1.0);
}

#[test]
fn an_invocation_holds_a_thousand_locks_and_no_more() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State::strong("script", "s", 1);
    let mut all = Vec::new();
    for i in 0..1_025u64 {
        all.extend(at.read(i, i.to_string().as_bytes()));
    }
    client.send(&all);
    for i in 0..1_025u64 {
        assert_eq!(client.answer_to(i).result(), if i < 1_024 { NOT_FOUND } else { OVER_LIMIT });
    }
    client.send(&at.end());
    assert_eq!(strong_read(&mut client, "s", 2, b"0").result(), NOT_FOUND);
}

#[test]
fn a_connection_has_locks_for_some_thousand_invocations_and_no_more() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let all: Vec<u8> = (0..4_097u64).flat_map(|i| State::strong("script", "s", i).read(i, i.to_string().as_bytes())).collect();
    client.send(&all);
    for i in 0..4_096u64 {
        assert_eq!(client.answer_to(i).result(), NOT_FOUND);
    }
    client.answer_to(4_096).assert_error(3, "overloaded");
    client.send(&State::strong("script", "s", 7).end());
    assert_eq!(strong_read(&mut client, "s", 4_097, b"x").result(), NOT_FOUND, "there is room again");
    let mut other = RpcClient::to_owner(node.rpc, "s");
    assert_eq!(strong_read(&mut other, "s", 1, b"y").result(), NOT_FOUND, "another connection has its own");
    drop(client);
    eventually("all are released", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 1.0);
    assert_eq!(node.metrics().sum("xfaas_rpc_locks_lost_total", &[]), 4_096.0);
}

#[test]
fn a_lost_container_loses_its_locks_and_changes_no_value() {
    let node = node();
    let mut one = RpcClient::to_owner(node.rpc, "s");
    assert_eq!(strong_write(&mut one, "s", 1, b"k", b"old").result(), 0);
    assert_eq!(strong_read(&mut one, "s", 1, b"k").value(), b"old");
    assert_eq!(strong_read(&mut one, "s", 1, b"l").result(), NOT_FOUND);
    let mut other = RpcClient::to_owner(node.rpc, "s");
    let waiting = waiting_read(&node, &mut other, "s", 1, b"k");
    // One more of the lost side waits, and must not get the lock.
    waiting_read(&node, &mut one, "s", 2, b"k");
    drop(one);
    assert_eq!(other.answer_to(waiting).value(), b"old");
    assert_eq!(strong_write(&mut other, "s", 1, b"k", b"new").result(), 0);
    assert_eq!(strong_read(&mut other, "s", 2, b"k").value(), b"new");
    let metrics = node.metrics();
    assert_eq!(metrics.sum("xfaas_rpc_locks_lost_total", &[]), 2.0);
    eventually("the lost connection is gone", || node.metrics().sum("xfaas_rpc_connections", &[]) == 1.0);
    assert_eq!(metrics.sum("xfaas_rpc_connections_silent_total", &[]), 0.0);
}
