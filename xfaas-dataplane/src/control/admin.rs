//! The admin API, `/metrics`, `/healthz` and `/readyz`, on a thread of their own: never on a request's path.
//!
//! Nobody has to log in: the address is a loopback one unless the operator says otherwise. A web page that the operator looks at must not deploy
//! all the same, so requests that change something are refused when a browser sends them (they carry `Origin`).

mod connections;
mod permits;
mod problem;
mod routes;

use self::connections::Bounded;
use self::permits::{Helpers, ModuleMemory};
use super::addresses::Addresses;
use super::deploy::Deployer;
use super::regions::RegionDoor;
use super::shards::{Shards, SteeringStats};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// Threads that write to the disk or wait for shards on behalf of requests.
const HELPERS_MAX: usize = 4;
/// Threads that compile beside them: the compiler may take long, and much memory.
const DEPLOYMENTS_MAX: usize = 2;
/// How long connections may take to finish once told to stop.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// What the control thread serves.
pub struct ControlOptions {
    /// Port 0 lets the kernel choose; see `Control::address`.
    pub listen: SocketAddr,
    pub deployer: Arc<Deployer>,
    pub shards: Arc<dyn Shards>,
    pub steering: SteeringStats,
    /// `None` in a container, which knows neither tokens nor aliases.
    pub addresses: Option<Arc<Addresses>>,
    /// Where containers of this machine get descriptors of regions; `None`: nowhere.
    pub regions: Option<RegionDoor>,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot listen on {address} for the admin API: stop the process that has the port, or choose another with --admin")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start the control thread")]
    Start(#[source] std::io::Error),
}

/// The control thread. Dropping it stops the thread.
#[derive(Debug)]
pub struct Control {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Where the admin API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Finishes what is being answered, for at most two seconds, and ends the thread.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Refused when the thread has ended by itself: then there is nothing to stop.
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.halt();
    }
}

/// What every handler sees.
#[derive(Clone)]
struct Shared {
    deployer: Arc<Deployer>,
    shards: Arc<dyn Shards>,
    steering: SteeringStats,
    addresses: Option<Arc<Addresses>>,
    helpers: Helpers,
    /// The helpers that deploy. All others have theirs to themselves, however long a deployment takes.
    deployments: Helpers,
    module_memory: ModuleMemory,
    /// One trace at a time.
    tracer: Arc<Semaphore>,
    started_at: Instant,
}

/// Binds the address and starts the thread. Errors: the address cannot be had, or the thread cannot start.
pub fn spawn(options: ControlOptions) -> Result<Control, ControlError> {
    let listen = options.listen;
    let listen_error = |source| ControlError::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).map_err(listen_error)?;
    listener.set_nonblocking(true).map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "the admin API has no login and is reachable from other machines: anyone there can deploy");
    }
    let threads = HELPERS_MAX + DEPLOYMENTS_MAX;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().max_blocking_threads(threads).build();
    let runtime = runtime.map_err(ControlError::Start)?;
    let shared = Shared {
        deployer: options.deployer,
        shards: options.shards,
        steering: options.steering,
        addresses: options.addresses,
        helpers: Helpers::new(HELPERS_MAX),
        deployments: Helpers::new(DEPLOYMENTS_MAX),
        module_memory: ModuleMemory::new(),
        tracer: Arc::new(Semaphore::new(1)),
        started_at: Instant::now(),
    };
    let (stop, stopped) = oneshot::channel();
    let regions = options.regions;
    let deployer = Arc::clone(&shared.deployer);
    let serve = move || {
        if let Some(regions) = regions {
            // Ends with the runtime, below.
            runtime.spawn(async move {
                if let Err(error) = regions.serve(Arc::new(move |app| deployer.shows_at_once(app))).await {
                    tracing::error!(%error, "containers of this machine cannot map regions");
                }
            });
        }
        if let Err(error) = runtime.block_on(serve(listener, shared, stopped)) {
            tracing::error!(%error, "the admin API has stopped");
        }
        // A deployment that is being compiled is not waited for longer: it was not promised yet.
        runtime.shutdown_timeout(STOP_GRACE);
    };
    let thread = std::thread::Builder::new().name("xfaas-control".to_owned()).spawn(serve).map_err(ControlError::Start)?;
    Ok(Control { address, stop: Some(stop), thread: Some(thread) })
}

async fn serve(listener: TcpListener, shared: Shared, stopped: oneshot::Receiver<()>) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (told, telling) = oneshot::channel::<()>();
    let serving = axum::serve(Bounded::new(listener), routes::router(shared)).with_graceful_shutdown(async {
        // An error means that `Control` is gone without a word: stop as well.
        stopped.await.ok();
        drop(told);
    });
    let grace = async {
        telling.await.ok();
        tokio::time::sleep(STOP_GRACE).await;
    };
    let mut serving = std::pin::pin!(serving.into_future());
    let mut grace = std::pin::pin!(grace);
    // Whichever is first: all connections finished, or the grace is over.
    std::future::poll_fn(|context| {
        if let std::task::Poll::Ready(result) = serving.as_mut().poll(context) {
            return std::task::Poll::Ready(result);
        }
        grace.as_mut().poll(context).map(Ok)
    })
    .await
}

#[cfg(test)]
mod tests;
