//! Clients that count up over both protocols, whatever happens to the node, and keep book of what they asked and what was acknowledged.

use crate::harness::{Client, Function, KIND_REPLY, UdpClient, request_datagram};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A datagram whose answer takes longer was most likely lost with the node that had it. One that comes later counts all the same.
const ANSWER_WAIT: Duration = Duration::from_millis(50);
const RETRY_WAIT: Duration = Duration::from_millis(2);

/// One counter: a session of a function.
pub struct Counter {
    pub function: &'static str,
    pub session: String,
    attempted: AtomicU64,
    acknowledged: AtomicU64,
    /// The largest value in an acknowledgement.
    seen: AtomicU64,
}

impl Counter {
    pub fn new(function: &'static str, session: String) -> Counter {
        Counter { function, session, attempted: AtomicU64::new(0), acknowledged: AtomicU64::new(0), seen: AtomicU64::new(0) }
    }

    /// Increments acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// What the counter has at least: all that was acknowledged, and all that an acknowledged one was counted upon.
    pub fn at_least(&self) -> u64 {
        self.acknowledged().max(self.seen.load(Ordering::SeqCst))
    }

    /// What it has at most: every increment that may have happened.
    pub fn attempted(&self) -> u64 {
        self.attempted.load(Ordering::SeqCst)
    }

    fn attempt(&self) {
        self.attempted.fetch_add(1, Ordering::SeqCst);
    }

    /// An acknowledged increment, with the value that it made.
    fn acknowledge(&self, output: &[u8]) {
        let value: u64 = std::str::from_utf8(output).unwrap().parse().unwrap();
        assert!(value >= 1 && value <= self.attempted(), "{value} after {} attempts", self.attempted());
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        self.seen.fetch_max(value, Ordering::SeqCst);
    }
}

/// Counts up over HTTP, one connection after another, until told to stop.
pub fn count_over_http(address: SocketAddr, counters: &[Counter], is_over: &AtomicBool, done: &AtomicU64) {
    let mut connection = None;
    for number in 0.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let counter = &counters[number % counters.len()];
        let client = match &mut connection {
            Some(client) => client,
            none => match Client::try_connect(address) {
                Ok(client) => none.insert(client),
                Err(_) => {
                    std::thread::sleep(RETRY_WAIT);
                    continue;
                }
            },
        };
        counter.attempt();
        let target = format!("/f/{}", counter.function);
        match client.try_call("POST", &target, &[("x-session-id", &counter.session)], b"") {
            Ok(reply) => {
                assert_eq!(reply.status, 200, "{reply:?}");
                counter.acknowledge(&reply.body);
                done.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => connection = None,
        }
    }
}

/// Counts up with datagrams, a few at a time, until told to stop.
pub fn count_over_udp(address: SocketAddr, counters: &[Counter], is_over: &AtomicBool, done: &AtomicU64) {
    let socket = UdpClient::connect(address);
    for first in (0..).step_by(4) {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let counter_of = |id: u64| &counters[id as usize % counters.len()];
        let mut open: Vec<u64> = (first..first + 4).collect();
        open.retain(|id| {
            let counter = counter_of(*id);
            counter.attempt();
            socket.try_send(&request_datagram(counter.function, &counter.session, *id, b""))
        });
        if open.is_empty() {
            std::thread::sleep(RETRY_WAIT);
        }
        while !open.is_empty() {
            // Nothing comes, or the port is closed: the node is gone, and with it the answers.
            let Some(answer) = socket.try_answer(ANSWER_WAIT) else { break };
            assert_eq!(answer.kind, KIND_REPLY, "{answer:?}");
            open.retain(|id| *id != answer.request_id);
            counter_of(answer.request_id).acknowledge(&answer.payload);
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The `--atomic` function: adds 1 to `a` in a strong section, writes the same number into `b`, eight times over, so that it lies elsewhere,
/// and replies with it in decimal. With a body it replies with what is in `a` and in `b`.
pub fn pair() -> Function {
    Function::text("pair", PAIR).with("atomic = true")
}

/// Bytes of `a` and of `b`.
pub const PAIR_BYTES: [usize; 2] = [8, 64];

const PAIR: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (import "xfaas" "read_state" (func $read_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write_state (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "a\00b\00")
  (func $fill (param $value i64)
    (local $at i32)
    loop $next
      (i64.store offset=16 (local.get $at) (local.get $value))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 72)))
    end)
  (func $reply_decimal (param $value i64) (result i32)
    (local $at i32)
    (local.set $at (i32.const 256))
    loop $digit
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (i64.store8 (local.get $at) (i64.add (i64.const 48) (i64.rem_u (local.get $value) (i64.const 10))))
      (local.set $value (i64.div_u (local.get $value) (i64.const 10)))
      (br_if $digit (i64.ne (local.get $value) (i64.const 0)))
    end
    (call $set_output (local.get $at) (i32.sub (i32.const 256) (local.get $at))))
  (func (export "handle") (result i32)
    (call $fill (i64.const 0))
    (if (i32.gt_s (call $read_input (i32.const 0) (i32.const 0) (i32.const 0)) (i32.const 0)) (then
      (drop (call $read_state (i32.const 0) (i32.const 16) (i32.const 8) (i32.const 0)))
      (drop (call $read_state (i32.const 2) (i32.const 24) (i32.const 64) (i32.const 0)))
      (return (call $set_output (i32.const 16) (i32.const 72)))))
    (drop (call $read_state (i32.const 0) (i32.const 16) (i32.const 8) (i32.const 1)))
    (call $fill (i64.add (i64.load (i32.const 16)) (i64.const 1)))
    (if (call $write_state (i32.const 0) (i32.const 16) (i32.const 8) (i32.const 1)) (then (return (i32.const 1))))
    (if (call $write_state (i32.const 2) (i32.const 24) (i32.const 64) (i32.const 0)) (then (return (i32.const 2))))
    (call $reply_decimal (i64.load (i32.const 16)))))"#;
