//! One node: sockets, steering, engine, shards and control, put together in the order in which they need each other.
//! Called by `main.rs`; everything it starts ends with it.

mod checkpoints;
pub mod container;
mod door;
mod keys;
mod labels;
mod log_start;
mod mover;
mod moves;
mod offer;
mod pins;
mod reshard;

use self::door::ShardsDoor;
use self::log_start::LogStart;
use self::offer::NodeFacts;
use self::pins::KernelPins;
use crate::config::{Config, Limits};
use crate::control::{
    Addresses, Control, ControlError, ControlOptions, DeployError, Deployer, Rebalancer, RegionDoor, StartReport, SteeringReport,
    SteeringStats, Store,
};
use crate::durable::{self, RecoverError, RecoverOptions, SessionPlace, replay};
use crate::session::{LocalPlacement, PinBoard, PinBook, Placement, ProxyOptions};
use crate::shard::{self, FILES_SPARE, RunningShards, ShardCommand, ShardError, ShardOptions, ShardPlan, Timeouts};
use crate::steering::{Steering, SteeringError, SteeringOptions};
use crate::sys::clock::MS_NS;
use crate::sys::socket::{ListenError, ensure_free, tcp_listener, udp_socket};
use crate::sys::{RingError, open_files};
use crate::worker::{Engine, EngineError, EngineOptions};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use xfaas_common::ids::CoreIndex;
use xfaas_common::limits::OUTPUT_BYTES_MAX;

/// A worker idle for so long is dropped.
const KEEP_WARM_S: u64 = 60;
/// Remembered answers of idempotent datagrams, a shard.
const REPLAY_BYTES_MAX: usize = 64 << 20;
/// Of the largest bodies or outputs, so many find room on a shard however little memory HTTP may take.
const LARGEST_MESSAGES_MIN: u64 = 4;
/// Draining answers 503 for at least so long before the sockets close.
const DRAIN_MS_MIN: u64 = 200;
/// How often the epoch ticks while guests run for long: their slice, and the grain of their deadlines.
const TICK_US: u64 = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Keys(#[from] keys::KeysError),
    #[error("cannot start the wasm engine")]
    Engine(#[from] EngineError),
    #[error("cannot start steering")]
    Steering(#[from] SteeringError),
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error("cannot make the folder {} for session state", path.display())]
    Directory {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the log of acknowledged writes cannot be used")]
    Recover(#[from] RecoverError),
    #[error(transparent)]
    Moves(#[from] moves::MovesError),
    #[error("cannot bring the sessions of another number of shards to those of today")]
    Reshard(#[from] crate::state::ReshardError),
    #[error(transparent)]
    Store(#[from] crate::control::StoreError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Checkpoints(#[from] crate::control::CheckpointsError),
    #[error(transparent)]
    Deploy(#[from] DeployError),
    #[error("the shards did not take the aliases")]
    Aliases(#[from] crate::control::ShardsError),
    #[error("shard {shard} failed")]
    Ring {
        shard: usize,
        #[source]
        source: RingError,
    },
    #[error("cannot start a thread")]
    Thread {
        #[source]
        source: std::io::Error,
    },
    #[error("shard {shard} does not take commands")]
    Stuck { shard: usize },
    #[error("shard {shard} panicked: see the message above")]
    Panicked { shard: usize },
}

/// A running node.
pub struct Node {
    shards: RunningShards,
    door: Arc<ShardsDoor>,
    /// Ends before the shards do: what it asks of them is answered.
    rebalancer: Rebalancer,
    control: Control,
    steering: Arc<Steering>,
    report: StartReport,
}

impl Node {
    /// Starts everything; returns when requests are answered.
    pub fn start(config: &Config, ebpf_object: &[u8]) -> Result<Node, NodeError> {
        ensure_free(config.http, true)?;
        ensure_free(config.udp, false)?;
        ensure_free(config.rpc, true)?;
        let store = Store::open(&config.state_dir)?;
        let region_directory = config.shared_memory_dir.join(format!("shards-{}", config.cpus.len()));
        // The parent of this folder may be writable by everyone, as /dev/shm is.
        crate::control::private_directory(&config.shared_memory_dir)?;
        let keys = keys::load_or_create(&config.state_dir)?;
        let placement = Arc::new(LocalPlacement::with_keys(config.cpus.len(), keys));
        let (log, board) = bring_up_regions(config, &region_directory, &placement)?;
        let engine = engine(config)?;
        let tcp: Vec<OwnedFd> = config.cpus.iter().map(|_| tcp_listener(config.http)).collect::<Result<_, _>>()?;
        let udp: Vec<OwnedFd> = config.cpus.iter().map(|_| udp_socket(config.udp)).collect::<Result<_, _>>()?;
        let rpc: Vec<OwnedFd> = config.cpus.iter().map(|_| tcp_listener(config.rpc)).collect::<Result<_, _>>()?;
        let steering = Arc::new(Steering::start(SteeringOptions {
            mode: config.steering_mode,
            iface: config.steering_iface.as_deref(),
            udp: config.udp,
            tcp: config.http,
            cpus: &config.cpus,
            slot_to_core: placement.slot_to_core(),
            keys: placement.keys(),
            session_header: config.session_header.as_bytes(),
            udp_sockets: udp.iter().map(AsFd::as_fd).collect(),
            tcp_sockets: tcp.iter().map(AsFd::as_fd).collect(),
            ebpf_object,
        })?);
        tracing::info!("steering: {}", steering.explain());
        let sockets = tcp.into_iter().zip(udp).zip(rpc);
        let plan = |(core, (&cpu, ((tcp, udp), rpc)))| {
            let (flows, gate) = (steering.flow_table(), steering.gate(CoreIndex(core as u16)));
            ShardPlan { cpu, tcp, udp, rpc: Some(rpc), flows, gate, container: None }
        };
        let plans = config.cpus.iter().zip(sockets).enumerate().map(plan);
        let regions = region_door(config, &region_directory);
        let token_key = keys::load_or_create_token_key(&config.state_dir)?;
        let mut options =
            shard_options(&config.limits, config.cpus.len(), &config.session_header, region_directory, placement.fingerprint());
        options.log_directory = config.log_dir();
        options.recovered = log.recovered();
        options.pins = Arc::clone(&board);
        options.token_key = Some(token_key.clone());
        options.realtime = config.realtime;
        let shards = shard::start(plans.collect(), &options, &(Arc::clone(&placement) as Arc<dyn Placement>))?;
        let facts = facts(config, &placement, regions.is_some());
        let addresses = Arc::new(Addresses::open(token_key, &config.state_dir)?);
        let checkpoints = checkpoints::start(config, &shards, &placement, &board)?;
        let pins = KernelPins::new(steering.pins()?, Arc::clone(&placement), board);
        let door = Arc::new(ShardsDoor::new(&shards, Some(facts), pins, Some(Arc::clone(&checkpoints)), Some(log)));
        let deployer = Arc::new(Deployer::new(engine, Arc::clone(&door) as _, store, config.limits.memory_mib_max));
        let control = crate::control::spawn(ControlOptions {
            listen: config.admin,
            deployer: Arc::clone(&deployer),
            shards: Arc::clone(&door) as _,
            steering: steering_stats(&steering),
            addresses: Some(Arc::clone(&addresses)),
            regions,
        })?;
        let report = deployer.start(&config.functions)?;
        deployer.keep_trying().map_err(|source| NodeError::Thread { source })?;
        addresses.start(&*door)?;
        checkpoints::wait(&checkpoints, &deployer);
        // Only now: a client that comes right after a restart must not be told that its function does not exist.
        for (shard, door) in shards.doors.iter().enumerate() {
            door.send(ShardCommand::Serve).map_err(|_| NodeError::Stuck { shard })?;
        }
        let rebalancer = Rebalancer::start(Arc::clone(&door) as _, config.rebalance).map_err(|source| NodeError::Thread { source })?;
        Ok(Node { shards, door, rebalancer, control, steering, report })
    }

    /// Where the admin API listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.control.address()
    }

    /// How packets are steered, in words.
    pub fn steering(&self) -> String {
        self.steering.mode().to_string()
    }

    /// Shows what the kernel programs logged, in builds of them that log.
    pub fn flush_kernel_logs(&self) {
        self.steering.flush_logs();
    }

    /// What was loaded at start.
    pub fn start_report(&self) -> &StartReport {
        &self.report
    }

    /// True when a shard ended that should run.
    pub fn has_failed(&self) -> bool {
        self.shards.threads.iter().any(std::thread::JoinHandle::is_finished)
    }

    /// Answers 503 `draining`, finishes what runs, and ends. Errors: a shard had failed.
    pub fn stop(self) -> Result<(), NodeError> {
        self.door.begin_drain();
        drop(self.rebalancer);
        drain(self.shards)?;
        self.control.stop();
        Ok(())
    }
}

/// Makes shards finish what runs and end.
fn drain(shards: RunningShards) -> Result<(), NodeError> {
    for door in &shards.doors {
        // A full door belongs to a shard that is stuck: its thread is waited for below all the same.
        drop(door.send(ShardCommand::Drain));
    }
    for (shard, thread) in shards.threads.into_iter().enumerate() {
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(NodeError::Ring { shard, source }),
            Err(_) => return Err(NodeError::Panicked { shard }),
        }
    }
    Ok(())
}

fn shard_options(
    limits: &Limits,
    shards: usize,
    session_header: &str,
    region_directory: std::path::PathBuf,
    hash_tag: u64,
) -> ShardOptions {
    let ms_ns = |ms: u32| u64::from(ms) * MS_NS;
    ShardOptions {
        connections_max: connections_max(limits.connections_max),
        body_bytes_max: limits.body_bytes_max as usize,
        buffer_bytes_max: buffer_bytes_max(limits, shards),
        session_header: session_header.as_bytes().to_vec(),
        proxy: ProxyOptions {
            workers_live_max: (limits.workers_live_max as usize / shards).max(1),
            keep_warm_ns: KEEP_WARM_S * 1_000 * MS_NS,
            lock_wait_ns: ms_ns(limits.lock_wait_ms),
            is_secondary: false,
            namespace_queue_calls_max: limits.namespace_queue_calls_max as usize,
            queued_calls_max: limits.shard_calls_max as usize,
        },
        region_directory,
        region_bytes_max: u64::from(limits.region_mib) << 20,
        hash_tag,
        log_directory: std::path::PathBuf::new(),
        recovered: Arc::default(),
        pins: Arc::new(PinBoard::none()),
        log_bytes_max: u64::from(limits.log_mib) << 20,
        replay_bytes_max: REPLAY_BYTES_MAX,
        timeouts: Timeouts {
            head_ns: ms_ns(limits.head_timeout_ms),
            body_stall_ns: ms_ns(limits.body_stall_ms),
            body_ns: ms_ns(limits.body_timeout_ms),
            idle_ns: ms_ns(limits.idle_timeout_ms),
        },
        drain_ns_min: DRAIN_MS_MIN * MS_NS,
        token_key: None,
        drain_ns_max: ms_ns(limits.drain_ms).max(DRAIN_MS_MIN * MS_NS),
        realtime: false,
    }
}

fn facts(config: &Config, placement: &LocalPlacement, gives_regions: bool) -> NodeFacts {
    NodeFacts {
        shards: config.cpus.len(),
        keys: *placement.keys(),
        session_header: config.session_header.clone(),
        lock_wait_ms: config.limits.lock_wait_ms,
        region_socket: gives_regions.then(|| config.region_socket()),
    }
}

fn engine(config: &Config) -> Result<Engine, EngineError> {
    Engine::new(&EngineOptions {
        cache_directory: Some(config.compiled_dir()),
        workers_live_max: config.limits.workers_live_max,
        memory_mib_max: config.limits.memory_mib_max,
        guest_memory_mib: config.limits.guest_memory_mib(),
        tick_us: TICK_US,
        perf_map: config.perf_map,
        realtime: config.realtime,
    })
}

/// Before any shard runs: all sessions are with the shards that own them now, and what was acknowledged is there.
fn bring_up_regions(
    config: &Config,
    region_directory: &std::path::Path,
    placement: &LocalPlacement,
) -> Result<(LogStart, Arc<PinBoard>), NodeError> {
    make_directory(region_directory)?;
    reshard::renew_fingerprints(config, placement)?;
    let pins = moves::settle(config, placement.keys())?;
    let whole = whole_apps(config, placement)?;
    reshard::bring_home(config, placement, &pins)?;
    let log = recover_logs(config, region_directory, placement, &pins, &whole)?;
    Ok((log, Arc::new(PinBoard::new(pins))))
}

/// Apps whose regions, of another number of shards, have all that their log has.
fn whole_apps(config: &Config, placement: &LocalPlacement) -> Result<BTreeSet<String>, NodeError> {
    let folder = |shards: u16| config.shared_memory_dir.join(format!("shards-{shards}"));
    Ok(durable::whole_apps(&config.log_dir(), &folder, config.cpus.len() as u16, placement.fingerprint())?)
}

/// What was acknowledged and is not in the regions goes there.
fn recover_logs(
    config: &Config,
    region_directory: &std::path::Path,
    placement: &LocalPlacement,
    pins: &PinBook,
    whole: &BTreeSet<String>,
) -> Result<LogStart, NodeError> {
    let place = |app: &str, session: &xfaas_common::ids::SessionId| {
        let hash = placement.hash(session);
        SessionPlace { shard: pins.core_of(app, session).unwrap_or_else(|| placement.owner(hash.slot())).0, table_hash: hash.table_hash() }
    };
    let replayed = replay(&RecoverOptions {
        directory: &config.log_dir(),
        region_directory,
        region_bytes_max: u64::from(config.limits.region_mib) << 20,
        hash_tag: placement.fingerprint(),
        shards: config.cpus.len() as u16,
        place: &place,
        whole,
    })?;
    Ok(LogStart::new(replayed))
}

/// A shard's part of what HTTP connections may hold, but room for some of the largest requests and replies.
fn buffer_bytes_max(limits: &Limits, shards: usize) -> u64 {
    let part = (u64::from(limits.http_memory_mib()) << 20) / shards as u64;
    part.max(LARGEST_MESSAGES_MIN * u64::from(limits.body_bytes_max).max(OUTPUT_BYTES_MAX as u64))
}

/// Connections of a shard: as configured, or fewer where the system allows this process fewer descriptors.
fn connections_max(configured: u32) -> usize {
    let files = open_files::raise_limit();
    let allowed = files.saturating_sub(FILES_SPARE.into()).max(1);
    if allowed < u64::from(configured) {
        tracing::warn!(
            "this process may open {files} files, so a shard takes {allowed} connections and not {configured}: raise the hard limit (`ulimit -Hn`, LimitNOFILE= of systemd)"
        );
    }
    allowed.min(configured.into()) as usize
}

/// Containers of this machine do without when it cannot be had: they read by RPC.
fn region_door(config: &Config, directory: &std::path::Path) -> Option<RegionDoor> {
    let path = config.region_socket();
    match RegionDoor::bind(&path, directory.to_owned()) {
        Ok(door) => Some(door),
        Err(error) => {
            tracing::warn!(%error, "containers cannot map regions: {} cannot be bound", path.display());
            None
        }
    }
}

fn make_directory(path: &std::path::Path) -> Result<(), NodeError> {
    std::fs::create_dir_all(path).map_err(|source| NodeError::Directory { path: path.to_owned(), source })
}

fn steering_stats(steering: &Arc<Steering>) -> SteeringStats {
    let steering = Arc::clone(steering);
    Arc::new(move || {
        let counters = steering.counters().map_err(|error| crate::control::describe(&error))?;
        Ok(SteeringReport { mode: steering.mode().to_string(), verdicts: counters.verdicts(), drops: counters.drops() })
    })
}
