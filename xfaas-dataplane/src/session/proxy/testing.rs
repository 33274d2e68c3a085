//! A proxy with one function, for tests of its parts.

use super::{Proxy, ProxyOptions};
use crate::state::ShardState;
use crate::sys::clock::monotonic_ns;
use crate::worker::{Call, Engine, EngineOptions, Function, FunctionManifest, StateAt};
use std::sync::Arc;
use xfaas_common::ids::{FunctionHash, SessionId};

pub(super) const TABLE_HASH: u32 = 7;
/// Writes a key, or with a body runs for many slices, about a second.
const GUEST: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write_state (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "n\00")
  (func (export "handle") (result i32)
    (local $left i32)
    (if (i32.eqz (call $read_input (i32.const 0) (i32.const 8) (i32.const 1)))
      (then (return (call $write_state (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)))))
    (local.set $left (i32.const 2000000000))
    (loop $spin
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $spin (local.get $left)))
    (i32.const 0)))"#;

/// Four workers, function 0 of app 0.
pub(super) fn proxy(directory: &std::path::Path) -> Proxy {
    let engine = Engine::new(&EngineOptions { workers_live_max: 4, tick_us: 200, ..EngineOptions::default() });
    let engine = engine.expect("its options are in range, and four memories are little address space");
    let manifest = FunctionManifest { memory_mib: 1, deadline_ms: 60_000, ..FunctionManifest::named("f") };
    let program =
        engine.load(&manifest, &wat::parse_str(GUEST).expect("the text above is a module")).expect("it keeps the rules for guests");
    let options = ProxyOptions {
        workers_live_max: 4,
        keep_warm_ns: u64::MAX,
        lock_wait_ns: 1,
        is_secondary: false,
        namespace_queue_calls_max: 4,
        queued_calls_max: 4,
    };
    let mut proxy = Proxy::new(options, Box::new(ShardState::new(directory.to_owned(), 0, 16 << 20)));
    let function = Function { manifest, program, hook: None, index: 0, app: 0, hash: FunctionHash::of(b"f"), generation: 1 };
    proxy.install(Arc::new(function)).expect("a region can be made in a new folder");
    proxy
}

/// Puts another function in place 0: of that name, of app 0 or 1, of `workers_max` workers a session.
pub(super) fn install(proxy: &mut Proxy, name: &str, app: u16, workers_max: u16) {
    let former = Arc::clone(proxy.function(0).expect("installed by `proxy`"));
    let engine = former.program.engine();
    let manifest = FunctionManifest {
        app: ["f", "other"][usize::from(app)].to_owned(),
        workers_max,
        name: name.to_owned(),
        ..former.manifest.clone()
    };
    let program =
        engine.load(&manifest, &wat::parse_str(GUEST).expect("the text above is a module")).expect("it keeps the rules for guests");
    let (hash, generation) = (FunctionHash::of(name.as_bytes()), former.generation + 1);
    proxy.remove(0);
    let function = Function { manifest, program, hook: None, index: 0, app, hash, generation };
    proxy.install(Arc::new(function)).expect("a region can be made in the same folder");
}

pub(super) fn call(session: &SessionId, body: &[u8], state_at: StateAt) -> Box<Call> {
    let mut call = Box::<Call>::default();
    call.request.set_datagram(*session, body);
    call.function_hash = FunctionHash::of(b"f");
    (call.session, call.table_hash, call.state_at, call.received_ns) = (*session, TABLE_HASH, state_at, monotonic_ns());
    call
}
