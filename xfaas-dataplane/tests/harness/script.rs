//! A guest that does what its body says, one host call after another: a test is a list of calls, and gets their results as text.

use super::node::Function;

/// Where the body lies in the guest's memory: a script's data has addresses from here on.
const BODY: i32 = 65_536;
/// Steps come first, then data.
const DATA: usize = 20 * 64;
/// A buffer for what is read, of 64 KiB; the last thing read into it can be the output.
pub const BUFFER: i32 = 3 * 65_536;
/// Where the results of the calls lie, one `i32` each.
pub const RESULTS: i32 = 2 * 65_536;

const TEXT: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (import "xfaas" "read_state" (func $read_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "snapshot_read" (func $snapshot_read (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "read_session" (func $read_session (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "set_timer" (func $set_timer (param i32 i64 i32 i32) (result i32)))
  (import "xfaas" "cancel_timer" (func $cancel_timer (param i32) (result i32)))
  (memory (export "memory") 20)
  (func (export "handle") (result i32)
    (local $at i32) (local $out i32) (local $result i32) (local $op i32) (local $a i32) (local $b i32) (local $c i32) (local $d i32)
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
      block $done block $end block $results block $trap block $spin block $forever block $input block $output block $read block $write block $snapshot block $session block $timer block $cancel
        (br_table $end $results $trap $spin $forever $input $output $read $write $snapshot $session $timer $cancel (local.get $op))
      end
        (local.set $result (call $cancel_timer (local.get $a)))
        br $done
      end
        (local.set $result (call $set_timer (local.get $a) (i64.load (local.get $d)) (local.get $b) (local.get $c)))
        br $done
      end
        (local.set $result (call $read_session (local.get $a) (local.get $b) (local.get $c) (local.get $d)))
        br $done
      end
        (local.set $result (call $snapshot_read (local.get $a) (local.get $b) (local.get $c) (local.get $d)))
        br $done
      end
        (local.set $result (call $write_state (local.get $a) (local.get $b) (local.get $c) (local.get $d)))
        br $done
      end
        (local.set $result (call $read_state (local.get $a) (local.get $b) (local.get $c) (local.get $d)))
        br $done
      end
        (local.set $result (call $set_output (local.get $a) (local.get $b)))
        br $done
      end
        (local.set $result (call $read_input (local.get $a) (local.get $b) (local.get $c)))
        br $done
      end
        loop $again br $again end
      end
        loop $round
          (local.set $a (i32.sub (local.get $a) (i32.const 1)))
          (br_if $round (local.get $a))
        end
        br $next
      end
        unreachable
      end
        (drop (call $set_output (i32.const 131072) (i32.sub (local.get $out) (i32.const 131072))))
      end
        (return (local.get $a))
      end
      (i32.store (local.get $out) (local.get $result))
      (local.set $out (i32.add (local.get $out) (i32.const 4)))
      br $next
    end
    unreachable))"#;

/// A list of host calls with the guest's arguments as they are, good or bad.
#[derive(Default)]
pub struct Script {
    steps: Vec<[i32; 5]>,
    data: Vec<u8>,
}

impl Script {
    /// The function that runs scripts.
    pub fn function(name: &str) -> Function {
        Function::text(name, TEXT)
    }

    pub fn new() -> Script {
        Script::default()
    }

    /// Puts bytes into the guest's memory. Output: their address.
    fn data(&mut self, bytes: &[u8]) -> i32 {
        let at = BODY + (DATA + self.data.len()) as i32;
        self.data.extend_from_slice(bytes);
        at
    }

    fn key(&mut self, key: &str) -> i32 {
        self.data(&[key.as_bytes(), b"\0"].concat())
    }

    fn step(mut self, step: [i32; 5]) -> Script {
        assert!(self.steps.len() < 63, "a script has room for 63 steps");
        self.steps.push(step);
        self
    }

    /// Reads a value into the buffer; strongly in mode 1.
    pub fn read(mut self, key: &str, mode: i32) -> Script {
        let key = self.key(key);
        self.step([7, key, BUFFER, 65_536, mode])
    }

    /// Reads a value of at most `bytes_max` bytes to `address` of the guest's memory.
    pub fn read_to(mut self, address: i32, bytes_max: usize, key: &str, mode: i32) -> Script {
        let key = self.key(key);
        self.step([7, key, address, bytes_max as i32, mode])
    }

    /// Reads several keys of one moment into the buffer.
    pub fn snapshot(mut self, keys: &[&str]) -> Script {
        let list: Vec<u8> = keys.iter().flat_map(|key| [key.as_bytes(), b"\0"].concat()).collect();
        let at = self.data(&list);
        self.step([9, at, list.len() as i32, BUFFER, 65_536])
    }

    /// Reads a key of another session into the buffer.
    pub fn session(mut self, session: &str, key: &str) -> Script {
        let (session, key) = (self.key(session), self.key(key));
        self.step([10, session, key, BUFFER, 65_536])
    }

    /// The same of at most `bytes_max` bytes, to `address` of the guest's memory.
    pub fn session_to(mut self, address: i32, bytes_max: i32, session: &str, key: &str) -> Script {
        let (session, key) = (self.key(session), self.key(key));
        self.step([10, session, key, address, bytes_max])
    }

    /// The same with the guest's arguments as they are.
    pub fn session_at(self, session: i32, key: i32, buffer: i32, bytes_max: i32) -> Script {
        self.step([10, session, key, buffer, bytes_max])
    }

    /// Sets a timer with that payload.
    pub fn timer(mut self, name: &str, at_ms: i64, payload: &[u8]) -> Script {
        let (name, payload_at) = (self.key(name), self.data(payload));
        self.timer_at(name, at_ms, payload_at, payload.len() as i32)
    }

    /// The same with the guest's pointers as they are.
    pub fn timer_at(mut self, name: i32, at_ms: i64, payload: i32, payload_bytes: i32) -> Script {
        let at = self.data(&at_ms.to_le_bytes());
        self.step([11, name, payload, payload_bytes, at])
    }

    pub fn cancel_timer(mut self, name: &str) -> Script {
        let name = self.key(name);
        self.step([12, name, 0, 0, 0])
    }

    /// The same with the guest's pointer as it is.
    pub fn cancel_timer_at(self, name: i32) -> Script {
        self.step([12, name, 0, 0, 0])
    }

    pub fn write(mut self, key: &str, value: &[u8], mode: i32) -> Script {
        let (key, at) = (self.key(key), self.data(value));
        self.step([8, key, at, value.len() as i32, mode])
    }

    /// Writes that many bytes of the guest's memory, whatever they are.
    pub fn write_bytes(mut self, key: &str, bytes: i32) -> Script {
        let key = self.key(key);
        self.step([8, key, 0, bytes, 0])
    }

    /// Reads an argument of the request into the buffer.
    pub fn input(self, argument: i32) -> Script {
        self.step([5, argument, BUFFER, 65_536, 0])
    }

    /// Makes the first bytes of the buffer the output.
    pub fn output(self, bytes: i32) -> Script {
        self.step([6, BUFFER, bytes, 0, 0])
    }

    /// Makes these bytes of the guest's memory the output.
    pub fn output_from(self, address: i32, bytes: usize) -> Script {
        self.step([6, address, bytes as i32, 0, 0])
    }

    /// Keeps the core busy for so many rounds, roughly nanoseconds.
    pub fn spin(self, rounds: i32) -> Script {
        self.step([3, rounds, 0, 0, 0])
    }

    pub fn spin_forever(self) -> Vec<u8> {
        self.step([4, 0, 0, 0, 0]).body()
    }

    pub fn trap(self) -> Vec<u8> {
        self.step([2, 0, 0, 0, 0]).body()
    }

    /// Returns 0, with the results of the calls as output, `i32` each: read them with `Script::results`.
    pub fn end(self) -> Vec<u8> {
        self.step([1, 0, 0, 0, 0]).body()
    }

    /// Returns `code` with whatever output was set.
    pub fn end_with(self, code: i32) -> Vec<u8> {
        self.step([0, code, 0, 0, 0]).body()
    }

    fn body(self) -> Vec<u8> {
        let mut body: Vec<u8> = self.steps.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        body.resize(DATA, 0);
        body.extend_from_slice(&self.data);
        assert!(body.len() <= (RESULTS - BODY) as usize, "a script has room for 64 KiB");
        body
    }

    /// Takes the output of `end` apart.
    pub fn results(output: &[u8]) -> Vec<i32> {
        output.chunks_exact(4).map(|word| i32::from_le_bytes(word.try_into().unwrap())).collect()
    }
}
