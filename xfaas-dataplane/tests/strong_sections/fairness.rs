//! Who comes first is served first, all the way: connection, mailbox, queue of the namespace, run queue, lock. The guest hands out tickets in
//! the order in which calls hold the key; one client thread knows in which order it asked. Nothing here depends on how fast the machine is.

use crate::harness::{Client, Function, Node, Reply, request};
use rustix::event::{PollFd, PollFlags, poll};

const CLIENTS: usize = 32;
const ROUNDS: usize = 12;

/// Adds 1 to `n` (four bytes) in a strong section of so many rounds of nothing, and replies with it.
fn tickets(rounds: u32) -> String {
    format!(
        r#"(module
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (import "xfaas" "read_state" (func $read_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write_state (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "n\00")
  (func (export "handle") (result i32)
    (local $rounds i32)
    (i32.store (i32.const 8) (i32.const 0))
    (drop (call $read_state (i32.const 0) (i32.const 8) (i32.const 4) (i32.const 1)))
    (local.set $rounds (i32.const {rounds}))
    loop $round
      (local.set $rounds (i32.sub (local.get $rounds) (i32.const 1)))
      (br_if $round (i32.gt_s (local.get $rounds) (i32.const 0)))
    end
    (i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.const 1)))
    (drop (call $write_state (i32.const 0) (i32.const 8) (i32.const 4) (i32.const 1)))
    (call $set_output (i32.const 8) (i32.const 4))))"#
    )
}

/// One request: which one it was of all, the last ticket known when it was sent, and its own.
#[derive(Clone, Copy)]
struct Asked {
    order: usize,
    seen: usize,
    ticket: usize,
}

/// Each of the clients asks again as soon as it has its answer.
fn hammer(clients: &mut [Client], session: &str) -> Vec<Asked> {
    let bytes = request("POST", "/f/tickets", &[("x-session-id", session)], b"");
    let (mut order, mut last) = (0, 0);
    let mut open: Vec<Option<Asked>> = vec![None; clients.len()];
    for (client, open) in clients.iter_mut().zip(&mut open) {
        *open = Some(Asked { order, seen: last, ticket: 0 });
        client.send(&bytes);
        order += 1;
    }
    let mut done = Vec::new();
    while open.iter().any(Option::is_some) {
        for index in answered(clients, &open) {
            let ticket = ticket(&clients[index].reply());
            let asked = open[index].take().expect("only clients that wait are looked at");
            done.push(Asked { ticket, ..asked });
            last = last.max(ticket);
            if order < CLIENTS * ROUNDS {
                open[index] = Some(Asked { order, seen: last, ticket: 0 });
                clients[index].send(&bytes);
                order += 1;
            }
        }
    }
    done
}

/// The clients that have an answer to read; waits for the first.
fn answered(clients: &[Client], open: &[Option<Asked>]) -> Vec<usize> {
    let waiting: Vec<usize> = (0..clients.len()).filter(|index| open[*index].is_some()).collect();
    let mut polled: Vec<PollFd<'_>> = waiting.iter().map(|index| PollFd::new(clients[*index].stream(), PollFlags::IN)).collect();
    poll(&mut polled, None).unwrap();
    waiting.into_iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty()).map(|(index, _)| index).collect()
}

fn ticket(reply: &Reply) -> usize {
    assert_eq!(reply.status, 200, "{reply:?}");
    u32::from_le_bytes(reply.body[..].try_into().unwrap()) as usize
}

/// How many requests that were sent after this one were served before it.
fn overtakings(asked: &Asked, all: &[Asked]) -> usize {
    all.iter().filter(|other| other.order > asked.order && other.ticket < asked.ticket).count()
}

/// Lets the clients fight for one key. Panics unless everybody was served once, in about the order of asking.
fn fight(shards: usize, workers: u32, rounds: u32, forwarded: bool) {
    let function = Function::text("tickets", &tickets(rounds)).with(&format!("workers_max = {workers}")).with("deadline_ms = 60000");
    let node = Node::builder().shards(shards).limit("lock_wait_ms = 60000").function(function).guests(&["counter-rmw"]).start();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| node.connect()).collect();
    if forwarded {
        // A connection of many sessions stays where it landed: from there half of the requests go through a mailbox.
        for session in node.sessions_of_both_shards().map(|sessions| sessions[0].clone()) {
            for client in &mut clients {
                assert_eq!(client.call("POST", "/f/counter-rmw", &[("x-session-id", &session)], b"").status, 200);
            }
        }
    }
    let all = hammer(&mut clients, "one");
    let mut tickets: Vec<usize> = all.iter().map(|asked| asked.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (1..=CLIENTS * ROUNDS).collect::<Vec<_>>(), "each ticket once");
    let waits = all.iter().map(|asked| asked.ticket - asked.seen);
    let (longest, overtaken) = (waits.max().unwrap(), all.iter().map(|asked| overtakings(asked, &all)).max().unwrap());
    let waited = node.metrics().sum("xfaas_lock_waits_total", &[]);
    println!(
        "{shards} shards, {workers} workers, {rounds} rounds: longest wait {longest} tickets, {overtaken} overtakings, {waited} lock waits"
    );
    // With 32 clients that always ask, first come first served makes each wait for 32 tickets.
    assert!(longest <= 2 * CLIENTS, "one waited for {longest} tickets");
    assert!(overtaken <= CLIENTS, "{overtaken} later ones went ahead of one");
    assert!(rounds == 0 || waited > 0.0, "sections of several slices make calls wait");
}

/// Some milliseconds: more than a slice.
const LONG: u32 = 3_000_000;

#[test]
fn thirty_two_waiters_for_a_lock_are_served_as_they_came() {
    fight(1, 32, LONG, false);
}

#[test]
fn what_waits_for_a_worker_and_then_for_a_lock_keeps_its_place() {
    fight(1, 10, LONG, false);
}

#[test]
fn a_forwarded_request_waits_no_longer_than_one_that_landed_right() {
    fight(2, 32, LONG, true);
    fight(2, 10, LONG, true);
}

#[test]
fn calls_that_never_park_are_served_as_they_came() {
    fight(1, 32, 0, false);
    fight(2, 10, 0, true);
}
