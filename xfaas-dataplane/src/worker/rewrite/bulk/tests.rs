//! Modules as they are and as they are rewritten, side by side: the same bytes, the same traps, and epoch checks on the way.

use super::PIECE_BYTES;
use crate::worker::rewrite::rewrite;
use crate::worker::shape::{self, Entry};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::{Cell, RefCell};
use wasmtime::{Config, Engine, Instance, Linker, Memory, Module, Store, Trap, UpdateDeadline};

const PIECE: u32 = PIECE_BYTES;
const MEMORY: u32 = 26 * 65_536;
const SEGMENT: u32 = 3 * PIECE + 1_000;

/// One of each operation; what is done to segments is done for the rest of the instance's life.
fn module() -> Vec<u8> {
    // Repeats after a prime number of bytes, so that a piece taken from a wrong place shows.
    let segment: String = (0..SEGMENT).map(|i| format!("\\{:02x}", (i % 251) as u8)).collect();
    wat::parse_str(format!(
        r#"(module
          (rec (type $handle (func (result i32))) (type $operation (func (param i32 i32 i32))))
          (memory (export "memory") 26)
          (data $long "{segment}") (data $short "short") (data (i32.const 0) "active")
          (func (export "handle") (type $handle) (i32.const 0))
          (func (export "fill") (type $operation) (memory.fill (local.get 0) (local.get 1) (local.get 2)))
          (func (export "copy") (type $operation) (memory.copy (local.get 0) (local.get 1) (local.get 2)))
          (func (export "read") (type $operation) (local f64) (memory.init $long (local.get 0) (local.get 1) (local.get 2)))
          (func (export "short") (type $operation) (memory.init $short (local.get 0) (local.get 1) (local.get 2)))
          (func (export "active") (type $operation) (memory.init 2 (local.get 0) (local.get 1) (local.get 2)))
          (func (export "drop") (type $operation) (data.drop $long)))"#
    ))
    .unwrap()
}

fn rewritten(wasm: &[u8]) -> Vec<u8> {
    rewrite(wasm, &shape::read(wasm, 1 << 30, Entry::Handle).unwrap()).unwrap()
}

/// An instance that counts the epoch checks of what it runs.
struct Guest {
    store: Store<u64>,
    instance: Instance,
    memory: Memory,
}

impl Guest {
    fn new(engine: &Engine, wasm: &[u8]) -> Guest {
        let mut store = Store::new(engine, 0);
        // Always over, so each check is seen.
        store.set_epoch_deadline(0);
        store.epoch_deadline_callback(|mut context| {
            *context.data_mut() += 1;
            Ok(UpdateDeadline::Continue(0))
        });
        let mut linker = Linker::new(engine);
        linker.func_wrap("xfaas:host", "done", |_: i32| ()).unwrap();
        let instance = linker.instantiate(&mut store, &Module::new(engine, wasm).unwrap()).unwrap();
        let memory = instance.get_memory(&mut store, "memory").unwrap();
        Guest { store, instance, memory }
    }

    fn bytes(&self) -> &[u8] {
        self.memory.data(&self.store)
    }

    fn run(&mut self, operation: &str, a: u32, b: u32, c: u32) -> Option<Trap> {
        let function = self.instance.get_typed_func::<(u32, u32, u32), ()>(&mut self.store, operation).unwrap();
        *self.store.data_mut() = 0;
        let result = function.call(&mut self.store, (a, b, c));
        result.err().map(|error| *error.downcast_ref::<Trap>().unwrap())
    }

    fn checks(&self) -> u64 {
        *self.store.data()
    }
}

struct Pair {
    plain: Guest,
    rewritten: Guest,
    /// What memory holds before each operation. No two pieces of it are alike.
    before: Vec<u8>,
}

impl Pair {
    fn of(wasm: &[u8]) -> Pair {
        let engine = Engine::new(Config::new().epoch_interruption(true)).unwrap();
        let before = (0..MEMORY).map(|at| (at % 241) as u8).collect();
        Pair { plain: Guest::new(&engine, wasm), rewritten: Guest::new(&engine, &rewritten(wasm)), before }
    }

    /// Output: the trap of both.
    fn run(&mut self, operation: &str, a: u32, b: u32, c: u32) -> Option<Trap> {
        let Pair { plain, rewritten, before } = self;
        let [expected, found] = [plain, rewritten].map(|guest| {
            guest.memory.data_mut(&mut guest.store).copy_from_slice(before);
            guest.run(operation, a, b, c)
        });
        assert_eq!(found, expected, "{operation} {a} {b} {c}");
        assert!(self.plain.bytes() == self.rewritten.bytes(), "{operation} {a} {b} {c}");
        expected
    }

    fn fails(&mut self, operation: &str, a: u32, b: u32, c: u32) {
        assert_eq!(self.run(operation, a, b, c), Some(Trap::MemoryOutOfBounds), "{operation} {a} {b} {c}");
        assert!(self.rewritten.bytes() == self.before, "{operation} {a} {b} {c}");
    }
}

#[test]
fn whatever_is_filled_copied_or_initialised_is_the_same_bytes() {
    let mut pair = Pair::of(&module());
    for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE - 1, 2 * PIECE, 3 * PIECE + 7] {
        for (destination, source) in [(0, 0), (0, 1), (1, 0), (9, PIECE), (PIECE, 9), (PIECE + 1, 1), (7, 3 * PIECE), (3 * PIECE, 7)] {
            assert_eq!(pair.run("copy", destination, source, length), None);
        }
        assert_eq!(pair.run("copy", MEMORY - length, MEMORY - length, length), None);
        assert_eq!(pair.run("copy", 0, MEMORY - length, length), None);
        assert_eq!(pair.run("read", MEMORY - length, 13.min(SEGMENT - length), length), None);
        assert_eq!(pair.run("read", 5, SEGMENT - length, length), None);
        assert_eq!(pair.run("fill", MEMORY - length, 0x1_5a, length), None);
        assert_eq!(pair.run("fill", 3, u32::MAX, length), None);
    }
    assert_eq!(pair.run("short", 2, 1, 4), None);
    assert_eq!(pair.run("fill", 0, 7, MEMORY), None);
}

#[test]
fn what_is_out_of_bounds_traps_as_ever_and_changes_nothing() {
    let mut pair = Pair::of(&module());
    for length in [0, 1, PIECE, PIECE + 1, 3 * PIECE, MEMORY, 1 << 31, u32::MAX - PIECE, u32::MAX] {
        // The first that is too far for the length.
        let past = |end: u32| (end + 1).saturating_sub(length);
        for start in [past(MEMORY), MEMORY + 1, 1 << 31, u32::MAX - PIECE, u32::MAX] {
            pair.fails("fill", start, 1, length);
            pair.fails("copy", start, 0, length);
            pair.fails("copy", 0, start, length);
            pair.fails("read", start, 0, length);
        }
        for start in [past(SEGMENT), SEGMENT + 1, u32::MAX - PIECE, u32::MAX] {
            pair.fails("read", 0, start, length);
        }
    }
    pair.fails("short", 0, 0, 6);
    pair.fails("short", 0, 0, u32::MAX);
    pair.fails("active", 0, 0, PIECE + 1);
    assert_eq!(pair.run("active", 0, 0, 0), None);
    assert_eq!(pair.run("drop", 0, 0, 0), None);
    for length in [1, PIECE, PIECE + 1, SEGMENT] {
        pair.fails("read", 0, 0, length);
    }
    pair.fails("read", 0, 1, 0);
    assert_eq!(pair.run("read", MEMORY, 0, 0), None);
}

#[test]
fn any_operation_leaves_the_same_memory() {
    let pair = RefCell::new(Pair::of(&module()));
    let near_pieces = (0..7_u32, 0..3_u32).prop_map(|(pieces, more)| (pieces * PIECE + more).saturating_sub(1));
    let number = || prop_oneof![0..MEMORY + 2, near_pieces.clone()];
    let operation = (prop_oneof![Just("fill"), Just("copy"), Just("read")], number(), number(), number());
    let mut runner = TestRunner::new(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() });
    let in_bounds = Cell::new(0);
    let run = |(operation, a, b, c)| {
        let trap = pair.borrow_mut().run(operation, a, b, c);
        in_bounds.set(in_bounds.get() + u32::from(trap.is_none()));
        Ok(())
    };
    runner.run(&operation, run).unwrap();
    assert!(in_bounds.get() > 20, "{}", in_bounds.get());
}

#[test]
fn the_epoch_is_checked_at_each_piece() {
    let mut pair = Pair::of(&module());
    for (operation, destination, source) in [("fill", 0, 0), ("copy", 0, 1), ("copy", 1, 0), ("read", 0, 0)] {
        assert_eq!(pair.run(operation, destination, source, 3 * PIECE), None);
        assert!(pair.plain.checks() <= 2, "{operation}: {}", pair.plain.checks());
        assert!(pair.rewritten.checks() >= 6, "{operation}: {}", pair.rewritten.checks());
        assert_eq!(pair.run(operation, destination, source, PIECE), None);
        assert_eq!(pair.rewritten.checks(), pair.plain.checks(), "{operation} of one piece");
    }
}

#[test]
fn what_cannot_be_long_stays_as_it_is() {
    let with = |body: &str| {
        let text = format!(
            r#"(module (memory (export "memory") 8) (data $d "short") (func (export "handle") (result i32) (i32.const 0))
              (func (export "f") (param i32 i32 i32) {body}))"#
        );
        wat::parse_str(text).unwrap()
    };
    let functions = |wasm: &[u8]| {
        wasmparser::Parser::new(0).parse_all(wasm).filter(|payload| matches!(payload, Ok(wasmparser::Payload::CodeSectionEntry(_)))).count()
    };
    let without_any = functions(&rewritten(&with("")));
    for body in [
        "(memory.fill (local.get 0) (local.get 1) (i32.const 262144))",
        "(memory.copy (local.get 0) (local.get 1) (i32.const 24))",
        "(memory.init $d (local.get 0) (local.get 1) (local.get 2))",
    ] {
        assert_eq!(functions(&rewritten(&with(body))), without_any, "{body}");
    }
    assert_eq!(functions(&rewritten(&with("(memory.fill (local.get 0) (local.get 1) (i32.const 262145))"))), without_any + 1);
    // A constant before a jump's end is not what the operation takes.
    let jumped =
        "(local.get 0) (local.get 1) (block (result i32) (br_if 0 (local.get 2) (local.get 1)) (drop) (i32.const 1)) (memory.fill)";
    assert_eq!(functions(&rewritten(&with(jumped))), without_any + 1);
}

#[test]
fn a_function_with_all_the_locals_that_it_can_have_calls_the_shim() {
    let locals = "f32 ".repeat(super::LOCALS_MAX as usize - 3);
    let text = format!(
        r#"(module (memory (export "memory") 26) (func (export "handle") (result i32) (i32.const 0))
          (func (export "fill") (param i32 i32 i32) (local {locals}) (memory.fill (local.get 0) (local.get 1) (local.get 2))))"#
    );
    let mut pair = Pair::of(&wat::parse_str(text).unwrap());
    for length in [0, 1, PIECE, 2 * PIECE + 1] {
        assert_eq!(pair.run("fill", 1, 9, length), None);
    }
    pair.fails("fill", MEMORY, 9, 1);
}
