//! What is refused at deploy and why, and what `init` and start functions do.

use super::{Engine, EngineOptions, Guest, LoadError, Progress, Shard, engine, load, load_with, manifest};
use crate::worker::abi::HOST_FUNCTIONS;
use crate::worker::{Hint, TrapKind, attach_hook};

const HANDLE: &str = r#"(func (export "handle") (result i32) (i32.const 0))"#;
const MEMORY: &str = r#"(memory (export "memory") 1)"#;

/// The error's text, of a module with these fields, a good memory and a good handle.
fn refusal(fields: &str) -> String {
    refusal_of(&format!("(module {fields} {MEMORY} {HANDLE})"))
}

fn refusal_of(wat: &str) -> String {
    load_with(&manifest(), wat).err().expect("refused").to_string()
}

#[test]
fn bytes_that_are_no_core_module_are_refused() {
    for bytes in [&b""[..], b"\0asm", b"hello, this is text", b"\0asm\x01\0\0\0\xff\xff", b"\0asm\x01\0\0\0\x01\x05\x01"] {
        let error = engine().load(&manifest(), bytes).err().unwrap();
        assert!(matches!(error, LoadError::NotWasm { .. }), "{error}");
    }
    let text = engine().load(&manifest(), b"hello, this is text").err().unwrap().to_string();
    assert!(text.contains("does not begin as a wasm module does") && text.lines().count() == 1, "{text}");
    assert!(refusal_of("(component)").contains("component"));
    let mut good = wat::parse_str(format!("(module {MEMORY} {HANDLE})")).unwrap();
    for at in 8..good.len() {
        // Cut and changed anywhere: refused or loaded, never a panic.
        drop(engine().load(&manifest(), &good[..at]));
        good[at] ^= 0x2a;
        drop(engine().load(&manifest(), &good));
        good[at] ^= 0x2a;
    }
    let invalid = refusal("(func (result i32) (i64.const 1))");
    assert!(invalid.contains("type mismatch"), "{invalid}");
}

#[test]
fn a_module_brings_a_hook_only_where_it_is_asked() {
    let wasm = |fields: &str| wat::parse_str(format!("(module {MEMORY} {fields})")).unwrap();
    let both = attach_hook(&wasm(HANDLE), &wasm(r#"(func (export "hook") (result i32) (i32.const 0))"#));
    assert!(matches!(engine().load(&manifest(), &both).err(), Some(LoadError::HookUnused)));
    let mut hooked = manifest();
    hooked.rules.hint = Hint::Hook;
    engine().load(&hooked, &both).unwrap();
    engine().load_hook(&both).unwrap();
    let wrong = engine().load_hook(&attach_hook(&both, &wasm(HANDLE))).err().unwrap();
    assert!(matches!(&wrong, LoadError::Hook { source } if matches!(**source, LoadError::NoHook)), "{wrong}");
}

#[test]
fn handle_must_be_there_with_its_type() {
    assert!(refusal_of(&format!("(module {MEMORY})")).contains("does not export `handle`"));
    let wrong = |handle: &str| refusal_of(&format!("(module {handle} {MEMORY})"));
    assert_eq!(
        wrong(r#"(func (export "handle") (param i32 f64))"#),
        "the export `handle` is (i32, f64) -> (): it must be a function () -> (i32)"
    );
    assert!(wrong(r#"(global (export "handle") i32 (i32.const 0))"#).contains("not a function"));
    assert!(
        wrong(r#"(import "xfaas" "set_output" (func $f (param i32 i32) (result i32))) (export "handle" (func $f))"#).contains("(i32, i32)")
    );
}

#[test]
fn the_memory_must_be_the_modules_own_single_plain_and_small() {
    let with = |memory: &str| refusal_of(&format!("(module {memory} {HANDLE})"));
    assert!(with("").contains("does not export a memory"));
    assert!(with("(memory 1)").contains("does not export a memory"));
    assert!(with(r#"(memory 1) (func (export "memory"))"#).contains("does not export a memory"));
    assert!(with(r#"(memory (export "memory") 1) (memory 1)"#).contains("several"));
    assert!(with(r#"(memory (export "memory") 1 2 shared)"#).contains("shared"));
    assert!(with(r#"(memory (export "memory") i64 1)"#).contains("64-bit"));
    assert!(with(r#"(import "xfaas" "memory" (memory 1)) (export "memory" (memory 0))"#).contains("xfaas.memory is unknown"));
    assert!(with(r#"(memory (export "memory") 129)"#).contains("8454144 bytes: memory_mib allows 8388608"));
    load(&format!(r#"(module (memory (export "memory") 128 65536) {HANDLE})"#));
    for memory_mib in [0, 129] {
        let manifest = super::FunctionManifest { memory_mib, ..manifest() };
        assert!(matches!(load_with(&manifest, "(module)"), Err(LoadError::MemoryLimit { .. })));
    }
}

#[test]
fn an_unknown_or_wrong_import_is_named() {
    let text = refusal(r#"(import "xfaas" "teleport" (func))"#);
    assert!(text.contains("xfaas.teleport is unknown") && HOST_FUNCTIONS.iter().all(|function| text.contains(function.name)), "{text}");
    assert!(refusal(r#"(import "env" "read_state" (func (param i32 i32 i32 i32) (result i32)))"#).contains("env.read_state is unknown"));
    assert!(refusal(r#"(import "xfaas:host" "done" (func (param i32)))"#).contains("xfaas:host.done is unknown"));
    assert!(refusal(r#"(import "wasi_snapshot_preview1" "fd_write" (func))"#).contains("wasi_snapshot_preview1.fd_write"));
    assert_eq!(
        refusal(r#"(import "xfaas" "set_output" (func (param i32 i64)))"#),
        "the import xfaas.set_output is (i32, i64) -> (): it must be a function (i32, i32) -> (i32)"
    );
    assert!(refusal(r#"(import "xfaas" "set_output" (global i32))"#).contains("not a function"));
}

#[test]
fn what_would_take_the_compiler_much_memory_is_refused_with_its_limit() {
    let many = |what: &str, count: usize| refusal(&what.repeat(count));
    assert_eq!(many("(func)", 50_001), "the module has more than 50000 functions");
    let import = r#"(import "xfaas" "set_output" (func (param i32 i32) (result i32)))"#;
    assert_eq!(many(import, 1_025), "the module has more than 1024 imports");
    assert_eq!(many("(type (func))", 10_001), "the module has more than 10000 types");
    let wide = format!("(type (func (param {})))", "i32 ".repeat(700));
    assert!(many(&wide, 94).contains("65536 parameters"), "{}", many(&wide, 94));
    let elements = format!("(table 1 funcref) (func $f) (elem func {})", "$f ".repeat(100_000));
    assert!(refusal(&elements).contains("100000 element"), "{}", refusal(&elements));
    load(&format!("(module (table 1 funcref) (func $f) (elem func {}) {MEMORY} {HANDLE})", "$f ".repeat(1_000)));
    let nested = format!("(func {} {})", "block ".repeat(40_000), "end ".repeat(40_000));
    assert!(refusal(&nested).contains("too long"), "{}", refusal(&nested));
}

#[test]
fn reserved_exports_are_refused() {
    for name in ["xfaas:run", "xfaas:x", "__wizer_memory_0"] {
        let text = refusal(&format!(r#"(func (export "{name}"))"#));
        assert!(text.contains(name) && text.contains("reserved"), "{text}");
    }
}

#[test]
fn what_only_an_instance_shows_is_found_at_deploy() {
    let error = load_with(&manifest(), &format!(r#"(module {MEMORY} {HANDLE} (data (i32.const 65535) "ab"))"#)).err().unwrap();
    assert!(matches!(error, LoadError::Instantiate { .. }), "{error}");
    let error = load_with(&manifest(), &format!("(module {MEMORY} {HANDLE} (table 30000 funcref))")).err().unwrap();
    assert!(matches!(error, LoadError::Compile { .. }), "{error}");
}

#[test]
fn modules_without_imports_and_with_every_section_run() {
    let program = load(&format!("(module {MEMORY} {HANDLE})"));
    assert_eq!(Shard::new().invoke(&mut Guest::fork(&program, 1), b""), Progress::Finished(0));
    let program = load(
        r#"(module
          (type $t (func (result i32)))
          (import "xfaas" "set_output" (func $out (param i32 i32) (result i32)))
          (import "xfaas" "set_output" (func $again (param i32 i32) (result i32)))
          (import "xfaas" "write_state" (func $write (param i32 i32 i32 i32) (result i32)))
          (table 4 funcref) (memory (export "memory") 1) (global $g (mut i32) (i32.const 3))
          (elem (i32.const 0) func $f $write) (elem $passive func $f) (elem declare func $out)
          (data $d "xyz") (data (i32.const 4) "k\00")
          (func $f (type $t) (memory.init $d (i32.const 16) (i32.const 0) (i32.const 3)) (i32.const 30))
          (func (export "handle") (result i32)
            (drop (ref.func $out)) (drop (v128.const i32x4 1 2 3 4))
            (drop (call $write (i32.const 4) (i32.const 16) (i32.const 3) (i32.const 1)))
            (table.init $passive (i32.const 3) (i32.const 0) (i32.const 1))
            (drop (call $out (i32.const 16) (i32.const 3)))
            (i32.add (global.get $g) (call_indirect (type $t) (i32.const 3)))
            (drop (call $again (i32.const 16) (i32.const 3)))))"#,
    );
    let (mut shard, mut guest) = (Shard::new(), Guest::fork(&program, 1));
    assert_eq!(shard.invoke(&mut guest, b""), Progress::Finished(33));
    assert_eq!(guest.output(), b"xyz");
    assert_eq!(shard.value("alice", "k").unwrap(), [0; 3]);
}

#[test]
fn a_start_function_runs_once_in_each_worker() {
    let program = load(&format!(
        r#"(module {MEMORY} (global $g (mut i32) (i32.const 40))
          (func $start (global.set $g (i32.add (global.get $g) (i32.const 1)))) (start $start)
          (func (export "handle") (result i32) (global.set $g (i32.add (global.get $g) (i32.const 1))) (global.get $g)))"#
    ));
    for _ in 0..2 {
        let (mut shard, mut guest) = (Shard::new(), Guest::fork(&program, 1));
        assert_eq!(shard.invoke(&mut guest, b""), Progress::Finished(42));
        assert_eq!(shard.invoke(&mut guest, b""), Progress::Finished(43));
    }
    let program = load(&format!("(module {MEMORY} {HANDLE} (func $start unreachable) (start $start))"));
    assert_eq!(Shard::new().invoke(&mut Guest::fork(&program, 1), b""), Progress::Trapped(TrapKind::Unreachable));
}

/// `init` counts what ran before it and leaves traces in memory, in grown memory and in a global.
pub(super) const INIT: &str = r#"(module (memory (export "memory") 1 9) (global $g (mut i64) (i64.const 1)) (data (i32.const 0) "\01\02")
  (data $late "\09")
  (func $start (global.set $g (i64.mul (global.get $g) (i64.const 3)))) (start $start)
  (func (export "_initialize") (global.set $g (i64.mul (global.get $g) (i64.const 5))))
  (func (export "init")
    (global.set $g (i64.mul (global.get $g) (i64.const 7)))
    (drop (memory.grow (i32.const 1)))
    (i32.store8 (i32.const 1) (i32.const 10))
    (i32.store8 (i32.const 70000) (i32.const 20)))
  (func (export "handle") (result i32)
    (memory.init $late (i32.const 2) (i32.const 0) (i32.const 1))
    (i32.add (i32.wrap_i64 (global.get $g))
      (i32.add (i32.add (i32.load8_u (i32.const 0)) (i32.load8_u (i32.const 1)))
        (i32.add (i32.load8_u (i32.const 2)) (i32.load8_u (i32.const 70000)))))))"#;

#[test]
fn init_runs_once_and_every_worker_begins_with_what_it_left() {
    let program = load(INIT);
    for _ in 0..2 {
        let (mut shard, mut guest) = (Shard::new(), Guest::fork(&program, 1));
        for _ in 0..2 {
            assert_eq!(shard.invoke(&mut guest, b""), Progress::Finished(105 + 1 + 10 + 9 + 20));
        }
    }
}

#[test]
fn an_init_that_fails_refuses_the_deploy() {
    let init = |body: &str| format!(r#"(func (export "init") {body})"#);
    let import = r#"(import "xfaas" "set_output" (func $out (param i32 i32) (result i32)))"#;
    let text = refusal(&format!("{import} {}", init("(drop (call $out (i32.const 0) (i32.const 0)))")));
    assert_eq!(text, "init() called xfaas.set_output: there is no session yet");
    assert!(refusal(&init("unreachable")).contains("init() trapped: the function executed `unreachable`"));
    assert_eq!(
        refusal(r#"(func (export "init") (result i32) (i32.const 0))"#),
        "the export `init` is () -> (i32): it must be a function () -> ()"
    );
    let error = load_with(
        &manifest(),
        &format!("(module (table 1 funcref) {MEMORY} {HANDLE} {})", init("(table.set (i32.const 0) (ref.null func))")),
    );
    assert!(matches!(error, Err(LoadError::InitUnsupported { .. })));
    // It may not have more memory than a worker.
    load(&format!("(module {MEMORY} {HANDLE} {})", init("(if (i32.ne (memory.grow (i32.const 128)) (i32.const -1)) (then unreachable))")));
    assert!(refusal(&init("loop br 0 end")).contains("longer than"));
}

#[test]
fn engine_options_out_of_range_are_refused() {
    for options in [
        EngineOptions { workers_live_max: 0, ..EngineOptions::default() },
        EngineOptions { memory_mib_max: 4_097, ..EngineOptions::default() },
        EngineOptions { tick_us: 1, ..EngineOptions::default() },
    ] {
        assert!(Engine::new(&options).is_err());
    }
}
