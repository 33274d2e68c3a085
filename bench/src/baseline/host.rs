//! Functions and their instances. An instance that has answered serves the next invocation of its function, whatever the session: it holds nothing
//! of one. Called by `http`, and directly by figures that time accesses without HTTP.

use super::guest::{Ended, Invocation, linker};
use super::outside::{OutsideState, StateFault};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wasmtime::{Config, Engine, InstancePre, Module, PoolingAllocationConfig, Store, TypedFunc};
use xfaas_common::guest_abi::{EXPORT_HANDLE, EXPORT_INIT, EXPORT_MEMORY};
use xfaas_common::ids::SessionId;
use xfaas_dataplane::net::Request;
use xfaas_dataplane::sys::clock::monotonic_ns;

/// What figures ask for, if there is such a module.
pub const BASELINE_FUNCTIONS: [&str; 5] = ["echo", "counter-read", "counter-rmw", "counter-rmw-linear", "state-size"];
/// Instances alive at once, of all functions.
const WORKERS_MAX: u32 = 1_024;
/// As xfaas has them.
const GUEST_STACK_BYTES: usize = 512 << 10;
const FIBER_STACK_BYTES: usize = 1 << 20;
const MEMORY_BYTES_MAX: usize = 128 << 20;
const MEMORY_BYTES_KEPT: usize = 256 << 10;
const TABLES_PER_MODULE_MAX: u32 = 4;

#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    #[error("{operation}")]
    Wasm {
        operation: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("load the guest {}", path.display())]
    Guest {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the store of the state cannot be used")]
    State(#[from] StateFault),
    #[error("{operation} {address}")]
    Listen {
        operation: &'static str,
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// A function that can be invoked.
pub(super) struct Function {
    prepared: InstancePre<Invocation>,
    idle: RefCell<Vec<Worker>>,
    /// From when a guest is entered to when it has left, of those that answered.
    guest_ns: RefCell<Histogram<u64>>,
}

struct Worker {
    store: Store<Invocation>,
    handle: TypedFunc<(), i32>,
}

/// What guests took, their accesses to state and little else.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestTimes {
    pub invocations: u64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds in order")
}

/// All functions, on one thread, with their state in one place.
pub struct BaselineHost {
    engine: Engine,
    outside: Arc<OutsideState>,
    functions: HashMap<Vec<u8>, Function>,
}

impl BaselineHost {
    /// Compiles `guests/NAME.wasm` for each name.
    pub fn load(outside: OutsideState, guests: &Path, names: &[&str]) -> Result<BaselineHost, BaselineError> {
        let engine = engine().map_err(wasm("make the engine"))?;
        let linker = linker(&engine).map_err(wasm("link the imports"))?;
        let mut functions = HashMap::new();
        for name in names {
            let path = guests.join(format!("{name}.wasm"));
            let failed = |source| BaselineError::Guest { path: path.clone(), source };
            let bytes = std::fs::read(&path).map_err(|source| failed(source.into()))?;
            let module = Module::new(&engine, bytes).map_err(|source| failed(source.into()))?;
            let prepared = linker.instantiate_pre(&module).map_err(|source| failed(source.into()))?;
            functions.insert(name.as_bytes().to_vec(), Function { prepared, idle: RefCell::default(), guest_ns: RefCell::new(times()) });
        }
        Ok(BaselineHost { engine, outside: Arc::new(outside), functions })
    }

    pub(super) fn function(&self, name: &[u8]) -> Option<&Function> {
        self.functions.get(name)
    }

    /// Times of a function's guests since the last look. `None`: there is no such function.
    pub(super) fn take_guest_times(&self, name: &[u8]) -> Option<GuestTimes> {
        let taken = self.function(name)?.guest_ns.replace(times());
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |quantile| us(taken.value_at_quantile(quantile));
        Some(GuestTimes { invocations: taken.len(), mean_us: taken.mean() / 1e3, p50_us: at(0.5), p99_us: at(0.99) })
    }

    /// One invocation of `name` with `body`, without HTTP. Output: also what the guest answered. `None`: there is no such function.
    pub async fn call(&self, name: &str, session: SessionId, body: &[u8]) -> Option<(Ended, Vec<u8>)> {
        let (mut request, mut output) = (Request::default(), Vec::new());
        request.set_datagram(session, body);
        let ended = self.invoke(self.function(name.as_bytes())?, session, &mut request, &mut output).await;
        Some((ended, output))
    }

    /// Runs one invocation. What it held is released when it is over, however it ended.
    pub(super) async fn invoke(&self, function: &Function, session: SessionId, request: &mut Request, output: &mut Vec<u8>) -> Ended {
        let idle = function.idle.borrow_mut().pop();
        let mut worker = match idle {
            Some(worker) => worker,
            None => match self.fork(function, session).await {
                Ok(worker) => worker,
                Err(_) => return Ended::Full,
            },
        };
        let invocation = worker.store.data_mut();
        invocation.session = session;
        invocation.output.clear();
        std::mem::swap(&mut invocation.request, request);
        let entered_ns = monotonic_ns();
        let returned = worker.handle.call_async(&mut worker.store, ()).await;
        let guest_ns = monotonic_ns() - entered_ns;
        let invocation = worker.store.data_mut();
        std::mem::swap(&mut invocation.request, request);
        std::mem::swap(&mut invocation.output, output);
        let mut fault = None;
        for (key, token) in std::mem::take(&mut invocation.held) {
            fault = fault.or(self.outside.release(&key, &token).await.err());
        }
        match (returned, fault) {
            (Err(error), _) => error.downcast::<StateFault>().map_or(Ended::Trapped, Ended::Fault),
            (Ok(code), fault) => {
                function.idle.borrow_mut().push(worker);
                match fault {
                    Some(fault) => Ended::Fault(fault),
                    None if code == 0 => {
                        function.guest_ns.borrow_mut().saturating_record(guest_ns);
                        Ended::Replied
                    }
                    None => Ended::Code(code),
                }
            }
        }
    }

    async fn fork(&self, function: &Function, session: SessionId) -> wasmtime::Result<Worker> {
        let (request, output) = (Request::default(), Vec::new());
        let invocation = Invocation { outside: Arc::clone(&self.outside), memory: None, session, request, output, held: Vec::new() };
        let mut store = Store::new(&self.engine, invocation);
        let instance = function.prepared.instantiate_async(&mut store).await?;
        store.data_mut().memory = instance.get_memory(&mut store, EXPORT_MEMORY);
        if let Ok(init) = instance.get_typed_func::<(), ()>(&mut store, EXPORT_INIT) {
            init.call_async(&mut store, ()).await?;
        }
        let handle = instance.get_typed_func(&mut store, EXPORT_HANDLE)?;
        Ok(Worker { store, handle })
    }
}

fn wasm(operation: &'static str) -> impl FnOnce(wasmtime::Error) -> BaselineError {
    move |source| BaselineError::Wasm { operation, source: source.into() }
}

/// As the engine of xfaas, without its epochs: these guests end by themselves.
fn engine() -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(WORKERS_MAX)
        .total_memories(WORKERS_MAX)
        .total_tables(WORKERS_MAX * TABLES_PER_MODULE_MAX)
        .total_stacks(WORKERS_MAX)
        .max_memories_per_module(1)
        .max_tables_per_module(TABLES_PER_MODULE_MAX)
        .max_memory_size(MEMORY_BYTES_MAX)
        .max_unused_warm_slots(WORKERS_MAX)
        .linear_memory_keep_resident(MEMORY_BYTES_KEPT);
    let mut config = Config::new();
    config
        .allocation_strategy(pool)
        .max_wasm_stack(GUEST_STACK_BYTES)
        .async_stack_size(FIBER_STACK_BYTES)
        .async_stack_zeroing(false)
        .memory_reservation(4 << 30)
        .memory_may_move(false)
        .wasm_backtrace_max_frames(None);
    Engine::new(&config)
}
