//! Starts the shards of a process: sockets, then threads, then rings, then the loops, which need each other's rings.

use super::counters::ShardView;
use super::mailbox::{CommandDoor, Mailboxes, Post};
use super::primary::{Container, OnLost};
use super::turn::{Shard, ShardParts};
use crate::durable::Recovered;
use crate::session::{ContainerPlacement, NodePlaces, PinBoard, PinView, Placement, Proxy, ProxyOptions, TokenKey};
use crate::state::ShardState;
use crate::steering::{FlowTable, Gate};
use crate::sys::affinity::{AffinityError, pin_to};
use crate::sys::realtime::{self, Children, PRIORITY_SHARD, RealtimeError};
use crate::sys::{DATAGRAM_PREFIX_BYTES, GroupOptions, Ring, RingError, RingOptions, core_cache_bytes};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread::JoinHandle;
use xfaas_common::ids::CoreIndex;
use xfaas_common::limits::{DATAGRAM_BYTES_MAX, RPC_CONNECTIONS_MAX};

/// Buffer groups of a shard's ring.
pub(super) const GROUP_STREAMS: u16 = 0;
pub(super) const GROUP_DATAGRAMS: u16 = 1;
pub(super) const GROUP_RPC: u16 = 2;
const STREAM_BUFFERS: u16 = 512;
const STREAM_BUFFER_BYTES: u32 = 16 << 10;
const DATAGRAM_BUFFERS: u16 = 256;
/// The longest datagram that can come: IPv6 carries 20 bytes more than IPv4, and than an answer may have (RFC 768, RFC 8200).
const RECEIVED_BYTES_MAX: usize = 65_527;
const _: () = assert!(RECEIVED_BYTES_MAX >= DATAGRAM_BYTES_MAX);
/// Few: they bound what containers can make one turn do, however much they send.
const RPC_BUFFERS: u16 = 32;
/// The ring goes round through all of them, so with many each lies in memory that no cache holds any more. A turn takes some twenty completions
/// (IO_LOCAL_TW_DEFAULT_MAX of io_uring); what does not fit is handed over early, or kept by the kernel until there is room.
const SUBMISSION_ENTRIES: u32 = 256;
const COMPLETION_ENTRIES: u32 = 1_024;
/// Direct descriptors besides those of clients' connections: containers have some, and one that closes and one that comes may overlap.
pub const FILES_SPARE: u32 = 256 + RPC_CONNECTIONS_MAX as u32;

#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error("shard {shard} cannot start")]
    Affinity {
        shard: usize,
        #[source]
        source: AffinityError,
    },
    #[error("shard {shard} cannot start")]
    Ring {
        shard: usize,
        #[source]
        source: RingError,
    },
    #[error("shard {shard} cannot start")]
    Realtime {
        shard: usize,
        #[source]
        source: RealtimeError,
    },
    #[error("make the command door of shard {shard}")]
    Door {
        shard: usize,
        #[source]
        source: std::io::Error,
    },
    #[error("start the thread of shard {shard}")]
    Thread {
        shard: usize,
        #[source]
        source: std::io::Error,
    },
    #[error("a shard ended before it was ready")]
    Ended,
}

/// Limits and sizes that all shards share.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    pub connections_max: usize,
    pub body_bytes_max: usize,
    /// What the connections of a shard may hold together.
    pub buffer_bytes_max: u64,
    /// Lower case.
    pub session_header: Vec<u8>,
    pub proxy: ProxyOptions,
    /// Where the regions' files lie: a folder on tmpfs.
    pub region_directory: PathBuf,
    pub region_bytes_max: u64,
    /// Names the session hash's keys: a region written under other keys is refused, because nothing in it would be found.
    pub hash_tag: u64,
    /// Where the log is, and what the start found in it.
    pub log_directory: PathBuf,
    pub recovered: Arc<OnceLock<Recovered>>,
    /// Bytes of a shard's log after which a snapshot takes the place of what is before it.
    pub log_bytes_max: u64,
    /// Sessions that are elsewhere than their slot says.
    pub pins: Arc<PinBoard>,
    /// Remembered answers of idempotent functions.
    pub replay_bytes_max: usize,
    pub timeouts: Timeouts,
    /// Tokens are checked with it; `None`: no token is good.
    pub token_key: Option<TokenKey>,
    /// Draining: how long 503 `draining` is answered at least, and how long running calls may take at most. Nanoseconds.
    pub drain_ns_min: u64,
    pub drain_ns_max: u64,
    /// The shards' threads enter the real-time class.
    pub realtime: bool,
}

/// How long a client may take. Nanoseconds. CONTRACT.md section 1, "Limits".
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// First byte of a head to its end.
    pub head_ns: u64,
    /// No body byte for so long.
    pub body_stall_ns: u64,
    /// A whole body.
    pub body_ns: u64,
    /// Between requests.
    pub idle_ns: u64,
}

/// What one shard starts with.
pub struct ShardPlan {
    pub cpu: u16,
    pub tcp: OwnedFd,
    pub udp: OwnedFd,
    /// Where containers connect; `None`: nowhere.
    pub rpc: Option<OwnedFd>,
    pub flows: Option<FlowTable>,
    pub gate: Option<Gate>,
    /// This shard is one of a container: it owns no state and asks a primary, whose lost connections it tells here.
    pub container: Option<OnLost>,
}

/// The shards of this process, running.
pub struct RunningShards {
    pub doors: Vec<Arc<CommandDoor>>,
    pub views: Vec<Arc<ShardView>>,
    pub threads: Vec<JoinHandle<Result<(), RingError>>>,
}

/// Starts one thread a plan and returns when every loop is about to run. Errors: the first shard's that could not start; the others end.
pub fn start(plans: Vec<ShardPlan>, options: &ShardOptions, placement: &Arc<dyn Placement>) -> Result<RunningShards, ShardError> {
    let shards = plans.len();
    let mailboxes = Arc::new(Mailboxes::new(shards));
    let started = Arc::new(Barrier::new(shards + 1));
    let (ring_made, rings_made) = channel();
    let mut running = RunningShards { doors: Vec::new(), views: Vec::new(), threads: Vec::new() };
    let mut ring_senders = Vec::new();
    for (shard, plan) in plans.into_iter().enumerate() {
        let door = Arc::new(CommandDoor::new().map_err(|source| ShardError::Door { shard, source })?);
        let view = Arc::new(ShardView::new());
        let (all_rings, all_rings_here) = channel();
        let placement: Arc<dyn Placement> = match plan.container {
            None => Arc::clone(placement),
            Some(_) => Arc::new(ContainerPlacement::new(None, CoreIndex(shard as u16))),
        };
        let seed = Seed {
            core: CoreIndex(shard as u16),
            plan,
            options: options.clone(),
            placement,
            post: Post::new(Arc::clone(&mailboxes), shard),
            door: Arc::clone(&door),
            view: Arc::clone(&view),
            ring_made: ring_made.clone(),
            all_rings: all_rings_here,
            started: Arc::clone(&started),
        };
        let thread = std::thread::Builder::new()
            .name(format!("xfaas-shard-{shard}"))
            .spawn(move || seed.grow())
            .map_err(|source| ShardError::Thread { shard, source })?;
        running.doors.push(door);
        running.views.push(view);
        running.threads.push(thread);
        ring_senders.push(all_rings);
    }
    drop(ring_made);
    let mut rings: Vec<RawFd> = vec![-1; shards];
    for _ in 0..shards {
        let (core, ring) = rings_made.recv().map_err(|_| ShardError::Ended)??;
        rings[core.index()] = ring;
    }
    let rings: Arc<[RawFd]> = rings.into();
    for sender in ring_senders {
        sender.send(Arc::clone(&rings)).map_err(|_| ShardError::Ended)?;
    }
    started.wait();
    Ok(running)
}

/// What a shard's thread needs to make its ring and become a `Shard`.
struct Seed {
    core: CoreIndex,
    plan: ShardPlan,
    options: ShardOptions,
    placement: Arc<dyn Placement>,
    post: Post,
    door: Arc<CommandDoor>,
    view: Arc<ShardView>,
    ring_made: Sender<Result<(CoreIndex, RawFd), ShardError>>,
    all_rings: Receiver<Arc<[RawFd]>>,
    started: Arc<Barrier>,
}

impl Seed {
    fn grow(self) -> Result<(), RingError> {
        let shard = self.core.index();
        let made = pin_to(self.plan.cpu)
            .map_err(|source| ShardError::Affinity { shard, source })
            .and_then(|()| enter_realtime(shard, self.options.realtime))
            .and_then(|()| make_ring(&self.options).map_err(|source| ShardError::Ring { shard, source }));
        let ring = match made {
            Ok(ring) => ring,
            Err(error) => {
                self.ring_made.send(Err(error)).ok();
                return Ok(());
            }
        };
        self.ring_made.send(Ok((self.core, ring.raw_fd()))).ok();
        // The starter is gone when another shard could not start.
        let Ok(rings) = self.all_rings.recv() else { return Ok(()) };
        let mut state = ShardState::new(self.options.region_directory.clone(), self.core.0, self.options.region_bytes_max);
        state.set_hash_tag(self.options.hash_tag);
        let mut proxy = Proxy::new(self.options.proxy.clone(), Box::new(state));
        proxy.set_cache_bytes(core_cache_bytes(self.plan.cpu));
        if self.plan.container.is_none() {
            proxy.set_places(Box::new(NodePlaces::new(
                Arc::clone(&self.placement),
                PinView::new(Arc::clone(&self.options.pins)),
                self.core,
            )));
            proxy.set_neighbours(self.core.0, Arc::clone(self.post.loads()));
        }
        let container = self.plan.container.map(Container::new);
        // Without it nobody knows how busy this shard is, and its sessions stay.
        if let Ok(thread) = std::fs::read_link("/proc/thread-self") {
            self.view.schedstat.get_or_init(|| Path::new("/proc").join(thread).join("schedstat"));
        }
        let pins = PinView::new(Arc::clone(&self.options.pins));
        let shard = Shard::new(ShardParts {
            core: self.core,
            pins,
            options: self.options,
            ring,
            rings,
            proxy,
            placement: self.placement,
            container,
            post: self.post,
            view: self.view,
            door: self.door,
            tcp: self.plan.tcp,
            udp: self.plan.udp,
            rpc: self.plan.rpc,
            flows: self.plan.flows,
            gate: self.plan.gate,
        });
        self.started.wait();
        shard.run()
    }
}

fn enter_realtime(shard: usize, realtime: bool) -> Result<(), ShardError> {
    if !realtime {
        return Ok(());
    }
    realtime::enter(PRIORITY_SHARD, Children::Ordinary).map_err(|source| ShardError::Realtime { shard, source })
}

fn make_ring(options: &ShardOptions) -> Result<Ring, RingError> {
    let streams = GroupOptions { buffers: STREAM_BUFFERS, buffer_bytes: STREAM_BUFFER_BYTES };
    let datagrams =
        GroupOptions { buffers: DATAGRAM_BUFFERS, buffer_bytes: (DATAGRAM_PREFIX_BYTES + RECEIVED_BYTES_MAX).next_multiple_of(64) as u32 };
    let rpc = GroupOptions { buffers: RPC_BUFFERS, buffer_bytes: STREAM_BUFFER_BYTES };
    Ring::new(&RingOptions {
        submission_entries: SUBMISSION_ENTRIES,
        completion_entries: COMPLETION_ENTRIES,
        files: options.connections_max as u32 + FILES_SPARE,
        groups: vec![streams, datagrams, rpc],
        polls: false,
    })
}
