//! Threads that block on behalf of requests, and the memory of modules that wait for one: both are bounded, and whoever finds none waits for a while.

use super::problem::ApiError;
use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use xfaas_common::limits::MODULE_BYTES_MAX;

/// How long a request waits for a helper thread.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests of one kind that wait for one.
const WAITING_MAX: usize = 64;
/// A whole module must arrive in this time.
const MODULE_TIMEOUT: Duration = Duration::from_secs(60);
/// Modules that arrive, wait or are compiled: four of the largest.
const MODULES_BYTES_MAX: usize = 4 * MODULE_BYTES_MAX;

/// Helper threads of one kind.
#[derive(Clone)]
pub(super) struct Helpers {
    free: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Helpers {
    pub fn new(threads: usize) -> Helpers {
        Helpers { free: Arc::new(Semaphore::new(threads)), places: Arc::new(Semaphore::new(WAITING_MAX)) }
    }

    /// Errors: too many wait already, or none became free in time.
    pub async fn one(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Ok(permit);
        }
        let busy = || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "many others of its kind are under way: try again soon");
        let _place = self.places.try_acquire().map_err(|_| busy())?;
        let free = tokio::time::timeout(HELPER_TIMEOUT, Arc::clone(&self.free).acquire_owned()).await;
        free.ok().and_then(Result::ok).ok_or_else(busy)
    }
}

/// Runs what blocks on a helper thread; the permit says that one is free.
pub(super) async fn blocking<T: Send + 'static>(
    permit: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let run = move || {
        let result = work();
        drop(permit); // kept until here even if the client has gone
        result
    };
    let failed = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the helper thread panicked: see the log");
    tokio::task::spawn_blocking(run).await.map_err(failed)
}

/// Memory for modules.
#[derive(Clone)]
pub(super) struct ModuleMemory(Arc<Semaphore>);

/// A module, and the right to its memory.
pub(super) struct Module {
    pub wasm: Vec<u8>,
    pub memory: Option<OwnedSemaphorePermit>,
}

impl ModuleMemory {
    pub fn new() -> ModuleMemory {
        ModuleMemory(Arc::new(Semaphore::new(MODULES_BYTES_MAX)))
    }

    /// Reads a body. It takes memory as it comes, so that who only promises one is in nobody's way.
    /// Errors: too large, too slow, cut off, or there is no memory for it now.
    pub async fn read(&self, body: Body) -> Result<Module, ApiError> {
        let slow = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the module did not arrive within 60 s");
        tokio::time::timeout(MODULE_TIMEOUT, self.gather(body)).await.map_err(slow)?
    }

    async fn gather(&self, mut body: Body) -> Result<Module, ApiError> {
        let mut module = Module { wasm: Vec::new(), memory: None };
        while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let frame = frame.map_err(|error| ApiError::bad_request(format!("the module did not arrive: {error}")))?;
            let Ok(bytes) = frame.into_data() else { continue };
            if bytes.len() > MODULE_BYTES_MAX - module.wasm.len() {
                return Err(too_large());
            }
            let busy = |_| {
                let detail = "other modules that are sent or compiled take all memory there is for them: try again soon";
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
            };
            let more = Arc::clone(&self.0).try_acquire_many_owned(bytes.len() as u32).map_err(busy)?;
            match &mut module.memory {
                Some(memory) => memory.merge(more),
                none => *none = Some(more),
            }
            module.wasm.extend_from_slice(&bytes);
        }
        Ok(module)
    }
}

pub(super) fn too_large() -> ApiError {
    let detail = format!("the module has more than {MODULE_BYTES_MAX} bytes: strip its debug information");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}
