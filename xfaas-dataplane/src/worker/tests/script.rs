//! A guest that does what its body says, one host call after another, so that a test is a list of calls and the results it expects.

use super::{Guest, Program, Progress, Shard, load};
use std::sync::OnceLock;

/// Where the body lies in the guest's memory: a script's data has addresses from here on.
const BODY: i32 = 65_536;
/// Where results lie, one `i32` a call, and buffers behind them.
const RESULTS: i32 = 131_072;
const RESULTS_BYTES: usize = 1_024;
pub(super) const BUFFERS: i32 = RESULTS + RESULTS_BYTES as i32;
const OUTPUT_BYTES: usize = 8_192;
/// Bytes of the guest's memory.
pub(super) const MEMORY: i32 = 4 * 65_536;

pub(super) const WAT: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (import "xfaas" "read_state" (func $read_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "snapshot_read" (func $snapshot_read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func (export "handle") (result i32)
    (local $at i32) (local $out i32) (local $op i32) (local $a i32) (local $b i32) (local $c i32) (local $d i32)
    (drop (call $read_input (i32.const 0) (i32.const 65536) (i32.const 65536)))
    (local.set $at (i32.const 65536))
    (local.set $out (i32.const 131072))
    loop $next
      (local.set $op (i32.load (local.get $at)))
      (local.set $a (i32.load offset=4 (local.get $at)))
      (local.set $b (i32.load offset=8 (local.get $at)))
      (local.set $c (i32.load offset=12 (local.get $at)))
      (local.set $d (i32.load offset=16 (local.get $at)))
      (local.set $at (i32.add (local.get $at) (i32.const 20)))
      block $end block $output_end block $trap block $spin block $fill block $grow block $ri block $so block $rs block $ws block $sr
        (br_table $end $output_end $trap $spin $fill $grow $ri $so $rs $ws $sr (local.get $op))
      end ;; $sr
        (i32.store (local.get $out) (call $snapshot_read (local.get $a) (local.get $b) (local.get $c) (local.get $d)))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        br $next
      end ;; $ws
        (i32.store (local.get $out) (call $write_state (local.get $a) (local.get $b) (local.get $c) (local.get $d)))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        br $next
      end ;; $rs
        (i32.store (local.get $out) (call $read_state (local.get $a) (local.get $b) (local.get $c) (local.get $d)))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        br $next
      end ;; $so
        (i32.store (local.get $out) (call $set_output (local.get $a) (local.get $b)))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        br $next
      end ;; $ri
        (i32.store (local.get $out) (call $read_input (local.get $a) (local.get $b) (local.get $c)))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        br $next
      end ;; $grow
        (i32.store (local.get $out) (memory.grow (local.get $a)))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        br $next
      end ;; $fill
        (memory.fill (local.get $a) (local.get $b) (local.get $c))
        br $next
      end ;; $spin: $a rounds
        loop $round
          (local.set $a (i32.sub (local.get $a) (i32.const 1)))
          (br_if $round (local.get $a))
        end
        br $next
      end ;; $trap
        unreachable
      end ;; $output_end: results as output, so a test sees them
        (drop (call $set_output (i32.const 131072) (i32.const 8192)))
      end ;; $end
    end
    (local.get $a)))"#;

pub(super) fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| load(WAT))
}

/// A list of host calls. The methods take the arguments of the guest's call as they are, good or bad.
#[derive(Default)]
pub(super) struct Script {
    steps: Vec<[i32; 5]>,
    data: Vec<u8>,
}

/// What a script is worth: data first, so that addresses are known before the number of steps is.
const DATA: usize = 20 * 64;

impl Script {
    pub(super) fn new() -> Script {
        Script::default()
    }

    /// Puts bytes into the guest's memory. Output: their address.
    pub(super) fn data(&mut self, bytes: &[u8]) -> i32 {
        let at = BODY + (DATA + self.data.len()) as i32;
        self.data.extend_from_slice(bytes);
        at
    }

    /// A key with its NUL.
    pub(super) fn key(&mut self, key: &str) -> i32 {
        self.data(&[key.as_bytes(), b"\0"].concat())
    }

    fn step(mut self, step: [i32; 5]) -> Script {
        assert!(self.steps.len() < 63);
        self.steps.push(step);
        self
    }

    pub(super) fn trap(self) -> Script {
        self.step([2, 0, 0, 0, 0])
    }

    pub(super) fn spin(self, rounds: i32) -> Script {
        self.step([3, rounds, 0, 0, 0])
    }

    /// Waits until the gate is open; the lock is then this call's until it ends.
    pub(super) fn pass(mut self, gate: &str) -> Script {
        let key = self.key(gate);
        self.step([8, key, 0, 0, 1])
    }

    pub(super) fn fill(self, at: i32, byte: u8, length: i32) -> Script {
        self.step([4, at, i32::from(byte), length, 0])
    }

    pub(super) fn grow(self, pages: i32) -> Script {
        self.step([5, pages, 0, 0, 0])
    }

    pub(super) fn read_input(self, argument: i32, buf: i32, length: i32) -> Script {
        self.step([6, argument, buf, length, 0])
    }

    pub(super) fn set_output(self, buf: i32, length: i32) -> Script {
        self.step([7, buf, length, 0, 0])
    }

    pub(super) fn read(self, key: i32, buf: i32, length: i32, mode: i32) -> Script {
        self.step([8, key, buf, length, mode])
    }

    pub(super) fn write(self, key: i32, buf: i32, length: i32, mode: i32) -> Script {
        self.step([9, key, buf, length, mode])
    }

    pub(super) fn snapshot(self, keys: i32, keys_length: i32, buf: i32, length: i32) -> Script {
        self.step([10, keys, keys_length, buf, length])
    }

    /// Returns `code` with the results as output.
    pub(super) fn end(self, code: i32) -> Vec<u8> {
        self.step([1, code, 0, 0, 0]).body()
    }

    /// Returns `code` with whatever output the script set.
    pub(super) fn end_as_is(self, code: i32) -> Vec<u8> {
        self.step([0, code, 0, 0, 0]).body()
    }

    fn body(self) -> Vec<u8> {
        let mut body: Vec<u8> = self.steps.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        body.resize(DATA, 0);
        body.extend_from_slice(&self.data);
        body
    }
}

/// What a script left: its results, and its buffers from `BUFFERS` on.
pub(super) struct Results {
    output: Vec<u8>,
}

impl Results {
    pub(super) fn of(guest: &mut Guest) -> Results {
        assert_eq!(guest.output().len(), OUTPUT_BYTES);
        Results { output: guest.output().to_vec() }
    }

    pub(super) fn first<const N: usize>(&self) -> [i32; N] {
        let word = |at: usize| i32::from_le_bytes(self.output[4 * at..4 * at + 4].try_into().unwrap());
        std::array::from_fn(word)
    }

    pub(super) fn buffer(&self, at: i32, length: usize) -> &[u8] {
        let start = (at - RESULTS) as usize;
        &self.output[start..start + length]
    }
}

/// Runs a script in a fresh worker. Output: its results.
pub(super) fn run(shard: &mut Shard, script: Script) -> Results {
    let mut guest = Guest::fork(program(), 1);
    assert_eq!(shard.invoke(&mut guest, &script.end(0)), Progress::Finished(0));
    Results::of(&mut guest)
}

/// Runs a script of one call. Output: its result.
pub(super) fn result(shard: &mut Shard, script: Script) -> i32 {
    let [result] = run(shard, script).first();
    result
}
