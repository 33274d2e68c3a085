//! A program and what a shard would lend to it, without a shard: for timing forks and warm calls.

use std::path::{Path, PathBuf};
use tempfile::TempDir;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::state::{CallToken, RegionError, ShardState};
use xfaas_dataplane::sys::clock::monotonic_ns;
use xfaas_dataplane::worker::{
    Call, Engine, EngineError, EngineOptions, ForkError, FunctionManifest, Lent, LoadError, Program, Progress, Worker,
};

/// Bytes of the region that the guest's session lives in.
const REGION_BYTES: u64 = 64 << 20;
const APP: u16 = 0;

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("the engine cannot be made")]
    Engine(#[from] EngineError),
    #[error("cannot read the guest {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the guest {} is refused", path.display())]
    Load {
        path: PathBuf,
        #[source]
        source: LoadError,
    },
    #[error("no directory for the guest's state")]
    Directory(#[source] std::io::Error),
    #[error("no region for the guest's state")]
    Region(#[from] RegionError),
    #[error("no worker can be forked")]
    Fork(#[from] ForkError),
    #[error("the guest ended with {progress:?} and {output_bytes} bytes of output")]
    Call { progress: Progress, output_bytes: usize },
}

/// Compiles the guest in the file `module`.
pub fn load_program(engine: &Engine, manifest: &FunctionManifest, module: &Path) -> Result<Program, GuestError> {
    let path = || module.to_owned();
    let wasm = std::fs::read(module).map_err(|source| GuestError::Read { path: path(), source })?;
    engine.load(manifest, &wasm).map_err(|source| GuestError::Load { path: path(), source })
}

/// A program, its session's state, and the one call that runs again and again.
pub struct Guest {
    program: Program,
    lent: Option<Lent>,
    _directory: TempDir,
}

impl Guest {
    /// Compiles `module` with the engine's defaults, which are those of `xfaas run`, and opens a region for it.
    pub fn load(module: &Path) -> Result<Guest, GuestError> {
        Guest::load_with(&Engine::new(&EngineOptions::default())?, module)
    }

    /// The same with an engine that is there.
    pub fn load_with(engine: &Engine, module: &Path) -> Result<Guest, GuestError> {
        let manifest = FunctionManifest::named("bench");
        let program = load_program(engine, &manifest, module)?;
        let directory = crate::servers::scratch_directory("guest").map_err(GuestError::Directory)?;
        let mut state = Box::new(ShardState::new(directory.path().to_owned(), 0, REGION_BYTES));
        state.open_app(APP, &manifest.app)?;
        let mut call = Box::<Call>::default();
        call.set_function(&manifest);
        call.app = APP;
        call.token = CallToken(1);
        call.table_hash = 0x5EED_1234;
        call.request.set_datagram(session(), b"");
        call.session = session();
        Ok(Guest { program, lent: Some(Lent { call, state }), _directory: directory })
    }

    /// What the next invocations get as their body.
    pub fn set_body(&mut self, body: &[u8]) {
        let lent = self.lent.as_mut().expect("given back by every poll");
        lent.call.request.set_datagram(session(), body);
    }

    pub fn fork(&self) -> Result<Worker, GuestError> {
        Ok(Worker::fork(&self.program)?)
    }

    /// One whole invocation on `worker`. Output: the length of what the guest answered, in bytes.
    /// Errors: the guest did anything but return 0; the worker must be dropped then.
    pub fn call(&mut self, worker: &mut Worker) -> Result<usize, GuestError> {
        let mut lent = self.lent.take().expect("given back by every poll");
        lent.call.output.clear();
        lent.call.started_ns = monotonic_ns();
        worker.start();
        loop {
            let (back, progress) = worker.poll(lent);
            lent = back;
            if progress != Progress::SliceOver {
                let output_bytes = lent.call.output.len();
                self.lent = Some(lent);
                return if progress == Progress::Finished(0) { Ok(output_bytes) } else { Err(GuestError::Call { progress, output_bytes }) };
            }
        }
    }
}

fn session() -> SessionId {
    SessionId::new(b"session-of-16-by").expect("visible ASCII, 16 bytes")
}
