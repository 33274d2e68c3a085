//! Loading a program: checks that say exactly why a deploy is refused, `init`, rewriting, compiling. Runs on the control thread.

use super::abi::HOST_FUNCTIONS;
use super::app_rules::Hint;
use super::engine::Engine;
use super::fiber::{ForkError, Worker, WorkerData};
use super::hook_module::detach_hook;
use super::init;
use super::kept::KeptParts;
use super::manifest::FunctionManifest;
use super::rewrite::{self, EXPORT_RUN};
use super::shape::{self, Entry, Shape};
use super::trap::TrapKind;
use wasmtime::{InstancePre, Module, ModuleExport};
use xfaas_common::guest_abi::{EXPORT_HANDLE, EXPORT_HOOK, EXPORT_MEMORY};
use xfaas_common::ids::FunctionHash;
use xfaas_common::limits::{HOOK_MEMORY_MIB, MODULE_BYTES_MAX};

/// What every module and component begins with.
const WASM_MAGIC: &[u8] = b"\0asm";

/// Why a deploy is refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the module has {bytes} bytes: at most {bytes_max} are possible{}", if *after_init { " after init()" } else { "" })]
    ModuleTooLarge { bytes: usize, bytes_max: usize, after_init: bool },
    #[error("memory_mib is {memory_mib}: it must be in 1..={memory_mib_max}, the engine's limit")]
    MemoryLimit { memory_mib: u32, memory_mib_max: u32 },
    #[error("not a wasm module that can run here: {reason}")]
    NotWasm { reason: String },
    #[error("this is a component: deploy a core module")]
    Component,
    #[error("the module has more than {most} {what}")]
    TooMany { what: &'static str, most: usize },
    #[error("function {function} of those that the module defines has {bytes} bytes: at most {bytes_max} are possible, so split it")]
    FunctionTooLong { function: u32, bytes: usize, bytes_max: usize },
    #[error(
        "compiling the module would take too long, over {steps_max} steps ({steps} up to function {function} of those that it defines, which has {blocks} blocks, {loops} loops and {carried} locals that live across blocks): split its largest functions"
    )]
    TooSlowToCompile { steps: u64, steps_max: u64, function: u32, blocks: u64, loops: u64, carried: u64 },
    #[error("the module does not export `{EXPORT_HANDLE}`, a function () -> (i32)")]
    NoHandle,
    #[error("the app's hint is `hook` and the module does not export `{EXPORT_HOOK}`, a function () -> (i32)")]
    NoHook,
    #[error("the function's hook, a module of its own")]
    Hook {
        #[source]
        source: Box<LoadError>,
    },
    #[error("the module brings a hook, and the app's hint is another one: leave the hook out, or set the hint to `hook`")]
    HookUnused,
    #[error("the export `{name}` is {found}: it must be a function {expected}")]
    ExportType { name: &'static str, expected: String, found: String },
    #[error("the module does not export a memory of its own as `{EXPORT_MEMORY}`")]
    NoMemory,
    #[error("the module has several memories: one is possible")]
    SeveralMemories,
    #[error("the module's memory is shared between threads: guests have one thread")]
    SharedMemory,
    #[error("the module's memory is 64-bit: build it for wasm32")]
    Memory64,
    #[error("the module's memory starts with {declared_bytes} bytes: memory_mib allows {limit_bytes}")]
    MemoryTooLarge { declared_bytes: u64, limit_bytes: u64 },
    #[error("the import {name} is unknown: xfaas offers {}", HOST_FUNCTIONS.map(|function| function.name).join(", "))]
    UnknownImport { name: String },
    #[error("the import {name} is {found}: it must be a function {expected}")]
    ImportType { name: String, expected: String, found: String },
    #[error("the export `{name}` has a reserved name")]
    ReservedExport { name: String },
    #[error("init() called xfaas.{name}: there is no session yet")]
    InitCalledImport { name: &'static str },
    #[error("init() trapped: {}", kind.detail())]
    InitTrapped { kind: TrapKind },
    #[error("init() ran longer than {deadline_s} s")]
    InitTookTooLong { deadline_s: u64 },
    #[error("the module has init() and uses what an image taken after it cannot hold")]
    InitUnsupported {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the module could not be prepared: {reason}")]
    Rewrite { reason: String },
    #[error("the module does not compile")]
    Compile {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("no instance can be made of the module")]
    Instantiate {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A loaded function: the image that its workers are forked from. Cheap to clone, shared by all shards.
#[derive(Clone)]
pub struct Program {
    pub(super) engine: Engine,
    pub(super) image: InstancePre<WorkerData>,
    pub(super) run: ModuleExport,
    pub(super) memory: ModuleExport,
    pub(super) memory_bytes_max: usize,
    pub(super) kept: KeptParts,
}

impl Program {
    /// The engine it was made by.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// True when a worker of it could grow as far as it may, if nobody else did.
    pub fn has_room_to_grow(&self) -> bool {
        self.engine.guest_memory_has_room(self.memory_bytes_max)
    }
}

/// A deployed function, shared by all shards.
pub struct Function {
    pub manifest: FunctionManifest,
    pub program: Program,
    /// Chooses the session of its HTTP requests, where the app's hint is a hook.
    pub hook: Option<Program>,
    /// The function's index on this node.
    pub index: u16,
    /// Its app's index on this node.
    pub app: u16,
    pub hash: FunctionHash,
    /// Counts the deploys of this name: a worker of an older one is not used again.
    pub generation: u64,
}

impl Engine {
    /// Makes a program of a module. Input: hostile bytes. Cost: a compilation, the first time this node sees the module; `init` may take 10 s.
    /// Errors: the reason to refuse the deploy.
    pub fn load(&self, manifest: &FunctionManifest, wasm: &[u8]) -> Result<Program, LoadError> {
        let Some((alone, _)) = detach_hook(wasm) else { return self.load_entry(wasm, manifest.memory_mib, Entry::Handle) };
        if manifest.rules.hint != Hint::Hook {
            return Err(LoadError::HookUnused);
        }
        self.load_entry(&alone, manifest.memory_mib, Entry::Handle)
    }

    /// Makes a program of the `hook` that the module brings or exports, with a memory of its own.
    pub fn load_hook(&self, wasm: &[u8]) -> Result<Program, LoadError> {
        let memory_mib = HOOK_MEMORY_MIB.min(self.options().memory_mib_max);
        match detach_hook(wasm) {
            Some((_, hook)) => {
                self.load_entry(hook, memory_mib, Entry::Hook).map_err(|source| LoadError::Hook { source: Box::new(source) })
            }
            None => self.load_entry(wasm, memory_mib, Entry::Hook),
        }
    }

    fn load_entry(&self, wasm: &[u8], memory_mib: u32, entry: Entry) -> Result<Program, LoadError> {
        check_size(wasm, false)?;
        if !wasm.starts_with(WASM_MAGIC) {
            // Said here, because the parser's own words are a dump of the first bytes over many lines.
            return Err(LoadError::NotWasm { reason: "it does not begin as a wasm module does".to_owned() });
        }
        let memory_mib_max = self.options().memory_mib_max;
        if !(1..=memory_mib_max).contains(&memory_mib) {
            return Err(LoadError::MemoryLimit { memory_mib, memory_mib_max });
        }
        let memory_bytes_max = (memory_mib as usize) << 20;
        let shape = shape::read(wasm, memory_bytes_max as u64, entry)?;
        Module::validate(self.wasmtime(), wasm).map_err(|error| LoadError::NotWasm { reason: format!("{error:#}") })?;
        let mut kept = KeptParts::default();
        let program = if shape.has_init || shape.has_initialize {
            let prepared = self.prepared(wasm, memory_bytes_max, &mut kept, || {
                let prepared = init::run(self, wasm, &shape, memory_bytes_max)?;
                check_size(&prepared, true).map(|()| prepared)
            })?;
            let shape = shape::read(&prepared, memory_bytes_max as u64, entry)?;
            self.compile(&prepared, &shape, memory_bytes_max, kept)?
        } else {
            self.compile(wasm, &shape, memory_bytes_max, kept)?
        };
        self.try_fork(&program)?;
        Ok(program)
    }

    fn compile(&self, wasm: &[u8], shape: &Shape, memory_bytes_max: usize, mut kept: KeptParts) -> Result<Program, LoadError> {
        let wasm = rewrite::rewrite(wasm, shape).map_err(|error| LoadError::Rewrite { reason: error.to_string() })?;
        let compile_error = |error: wasmtime::Error| LoadError::Compile { source: error.into() };
        let module = self.compiled(&wasm, &mut kept).map_err(compile_error)?;
        let export = |name| module.get_export_index(name).expect("checked or added above");
        let (run, memory) = (export(EXPORT_RUN), export(EXPORT_MEMORY));
        let image = self.linker().instantiate_pre(&module).map_err(compile_error)?;
        Ok(Program { engine: self.clone(), image, run, memory, memory_bytes_max, kept })
    }

    /// What only an instance shows, a data segment outside memory for one, is found here rather than at the first request.
    fn try_fork(&self, program: &Program) -> Result<(), LoadError> {
        let load = self.begin_load();
        match Worker::fork_into(program, load.worker_slot(), load.guest_memory(program.memory_bytes_max)) {
            Ok(worker) => {
                drop(worker);
                Ok(())
            }
            Err(ForkError::Instantiate(source)) => Err(LoadError::Instantiate { source }),
            Err(error @ ForkError::PoolFull) => Err(LoadError::Instantiate { source: error.into() }),
        }
    }
}

fn check_size(wasm: &[u8], after_init: bool) -> Result<(), LoadError> {
    if wasm.len() > MODULE_BYTES_MAX {
        return Err(LoadError::ModuleTooLarge { bytes: wasm.len(), bytes_max: MODULE_BYTES_MAX, after_init });
    }
    Ok(())
}
