//! Runs a guest's `init` once, when it is deployed, and writes the module that starts with the memory and globals it left behind.
//! `init` may take 10 s and the worker's memory; it may not call an import of `xfaas`, for there is no session yet.

use super::abi::{HOST_FUNCTIONS, HostFunction};
use super::engine::Engine;
use super::program::LoadError;
use super::shape::{EXPORT_INITIALIZE, Shape};
use super::trap::TrapKind;
use crate::sys::clock::monotonic_ns;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use wasmtime::{FuncType, Instance, Linker, Module, Store, StoreLimits, StoreLimitsBuilder, UpdateDeadline, Val, ValType};
use wasmtime_wizer::{InstanceState, SnapshotVal, Wizer};
use xfaas_common::guest_abi::{EXPORT_INIT, IMPORT_MODULE};

/// How long `init` may run, all in all.
const INIT_DEADLINE_NS: u64 = if cfg!(test) { 1_000_000_000 } else { 10_000_000_000 };

#[derive(Debug, thiserror::Error)]
#[error("called xfaas.{name}")]
struct CalledImport {
    name: &'static str,
}

#[derive(Debug, thiserror::Error)]
#[error("ran longer than 10 s")]
struct TookTooLong;

/// Input: a checked, valid module with `init` or `_initialize`. Output: the module after them, without these exports and start section.
/// Errors: they trapped, took too long, called an import, or the module uses what a snapshot cannot hold.
pub(super) fn run(engine: &Engine, wasm: &[u8], shape: &Shape, memory_bytes_max: usize) -> Result<Vec<u8>, LoadError> {
    let mut wizer = Wizer::new();
    wizer.init_func(EXPORT_INIT);
    let (context, instrumented) = wizer.instrument(wasm).map_err(|error| LoadError::InitUnsupported { source: error.into() })?;
    let module = Module::new(engine.wasmtime(), &instrumented).map_err(|error| LoadError::Compile { source: error.into() })?;
    // Only now: nobody waits for the compiler. Before the store, so that they are given back after it.
    let load = engine.begin_load();
    let _slot = load.worker_slot();
    let limits = StoreLimitsBuilder::new().memory_size(memory_bytes_max).instances(1).build();
    let mut store = Store::new(engine.wasmtime(), limits);
    store.limiter(|limits| limits);
    let started_ns = monotonic_ns();
    store.epoch_deadline_callback(move |_| match monotonic_ns() - started_ns > INIT_DEADLINE_NS {
        true => Err(TookTooLong.into()),
        false => Ok(UpdateDeadline::Continue(1)),
    });
    store.set_epoch_deadline(1);
    let instance = initialize(&mut store, &module, shape).map_err(init_error)?;
    let mut state = State { store: &mut store, instance };
    let snapshot = now(wizer.snapshot(&context, &mut state));
    snapshot.map_err(|error| LoadError::InitUnsupported { source: error.into() })
}

/// Instantiates, which runs the start function, then runs what is to be run once.
fn initialize(store: &mut Store<StoreLimits>, module: &Module, shape: &Shape) -> wasmtime::Result<Instance> {
    let mut linker = Linker::new(store.engine());
    for function in HOST_FUNCTIONS {
        let HostFunction { name, .. } = function;
        let parameters = function.are_wide().map(|is_wide| if is_wide { ValType::I64 } else { ValType::I32 });
        let ty = FuncType::new(store.engine(), parameters, [ValType::I32]);
        linker.func_new(IMPORT_MODULE, name, ty, move |_, _, _| Err(CalledImport { name }.into()))?;
    }
    let instance = linker.instantiate(&mut *store, module)?;
    for (name, is_there) in [(EXPORT_INITIALIZE, shape.has_initialize), (EXPORT_INIT, shape.has_init)] {
        if is_there {
            instance.get_typed_func::<(), ()>(&mut *store, name)?.call(&mut *store, ())?;
        }
    }
    Ok(instance)
}

fn init_error(error: wasmtime::Error) -> LoadError {
    if let Some(CalledImport { name }) = error.downcast_ref() {
        return LoadError::InitCalledImport { name };
    }
    if error.is::<TookTooLong>() {
        return LoadError::InitTookTooLong { deadline_s: INIT_DEADLINE_NS / 1_000_000_000 };
    }
    match TrapKind::of(&error) {
        TrapKind::Host => LoadError::Instantiate { source: error.into() },
        kind => LoadError::InitTrapped { kind },
    }
}

/// The finished instance, as the snapshot reads it.
struct State<'a> {
    store: &'a mut Store<StoreLimits>,
    instance: Instance,
}

impl InstanceState for State<'_> {
    async fn global_get(&mut self, name: &str, _type_hint: wasmtime_wizer::ValType) -> SnapshotVal {
        let global = self.instance.get_global(&mut *self.store, name).expect("exported by the instrumentation");
        match global.get(&mut *self.store) {
            Val::I32(value) => SnapshotVal::I32(value),
            Val::I64(value) => SnapshotVal::I64(value),
            Val::F32(bits) => SnapshotVal::F32(bits),
            Val::F64(bits) => SnapshotVal::F64(bits),
            Val::V128(value) => SnapshotVal::V128(value.as_u128()),
            _ => unreachable!("the instrumentation refuses mutable globals that hold references"),
        }
    }

    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        let memory = self.instance.get_memory(&mut *self.store, name).expect("exported by the instrumentation");
        contents(memory.data(&*self.store));
    }
}

/// Runs a future that waits for nothing but `State`, which is always ready.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("nothing in it waits"),
    }
}
