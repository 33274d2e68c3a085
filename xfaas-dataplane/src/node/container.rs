//! A container process: shards, workers and control as a node has them, and a primary elsewhere that has the state. It prints nothing and keeps nothing
//! but compiled code. Called by `main.rs`; everything it starts ends with it.

mod join;
mod line;
mod linker;
mod regions;
mod welcome;

use self::join::{Joiner, JoinerParts};
use self::linker::{LinkBoard, Linker, LinkerNews};
use super::door::ShardsDoor;
use super::pins::KernelPins;
use super::{NodeError, TICK_US, shard_options};
use crate::config::ContainerConfig;
use crate::control::{Control, ControlOptions, Deployer, SteeringReport};
use crate::session::{LocalPlacement, PinBoard, Placement};
use crate::shard::{self, OnLost, RunningShards, ShardCommand, ShardPlan};
use crate::sys::socket::{ensure_free, tcp_listener, udp_socket};
use crate::worker::{Engine, EngineOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use xfaas_common::map_layout::SESSION_HEADER_DEFAULT;

/// A running container.
pub struct Container {
    shards: RunningShards,
    door: Arc<ShardsDoor>,
    control: Control,
    joiner: Joiner,
    linkers: Vec<Linker>,
}

impl Container {
    /// Starts everything; returns when requests are answered: with 503 `no_primary` until the primary is joined.
    pub fn start(config: &ContainerConfig) -> Result<Container, NodeError> {
        ensure_free(config.listen, true)?;
        ensure_free(config.listen, false)?;
        crate::control::private_directory(&config.state_dir)?;
        let engine = Engine::new(&EngineOptions {
            cache_directory: Some(config.state_dir.join("compiled")),
            workers_live_max: config.limits.workers_live_max,
            memory_mib_max: config.limits.memory_mib_max,
            guest_memory_mib: config.limits.guest_memory_mib(),
            tick_us: TICK_US,
            perf_map: false,
            realtime: false,
        })?;
        let tcp: Vec<OwnedFd> = config.cpus.iter().map(|_| tcp_listener(config.listen)).collect::<Result<_, _>>()?;
        let udp: Vec<OwnedFd> = config.cpus.iter().map(|_| udp_socket(config.listen)).collect::<Result<_, _>>()?;
        let channels: Vec<_> = config.cpus.iter().map(|_| linker::channel()).collect();
        let plans = config.cpus.iter().zip(tcp.into_iter().zip(udp)).zip(&channels).map(|((&cpu, (tcp, udp)), (news, _))| {
            let news = news.clone();
            // Full only if the linker is gone: then the process is ending.
            let on_lost: OnLost = Arc::new(move |shard, number| drop(news.try_send(LinkerNews::Lost { shard, number })));
            ShardPlan { cpu, tcp, udp, rpc: None, flows: None, gate: None, container: Some(on_lost) }
        });
        // No region is ever opened: the state is the primary's.
        let mut options = shard_options(&config.limits, config.cpus.len(), SESSION_HEADER_DEFAULT, config.state_dir.clone(), 0);
        options.proxy.is_secondary = true;
        let placement = Arc::new(LocalPlacement::new(config.cpus.len()));
        let shards = shard::start(plans.collect(), &options, &(Arc::clone(&placement) as Arc<dyn Placement>))?;
        let door = Arc::new(ShardsDoor::new(&shards, None, KernelPins::new(None, placement, Arc::new(PinBoard::none())), None, None));
        let deployer = Arc::new(Deployer::for_container(engine, Arc::clone(&door) as _, config.limits.memory_mib_max));
        let steering = Arc::new(|| Ok(SteeringReport { mode: "off, as always in a container".to_owned(), ..SteeringReport::default() }));
        let (listen, deployer_here) = (config.admin, Arc::clone(&deployer));
        let shards_here = Arc::clone(&door) as _;
        let control = ControlOptions { listen, deployer: deployer_here, shards: shards_here, steering, addresses: None, regions: None };
        let control = crate::control::spawn(control)?;
        for (shard, door) in shards.doors.iter().enumerate() {
            door.send(ShardCommand::Serve).map_err(|_| NodeError::Stuck { shard })?;
        }
        let (joiner, linkers) = join(config, deployer, &shards, channels).map_err(|source| NodeError::Thread { source })?;
        Ok(Container { shards, door, control, joiner, linkers })
    }

    /// Where the admin API listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.control.address()
    }

    /// Why the container cannot go on: what it was to join is no primary. `None`: it goes on.
    pub fn failure(&self) -> Option<String> {
        self.joiner.failure()
    }

    /// True when a shard ended that should run.
    pub fn has_failed(&self) -> bool {
        self.shards.threads.iter().any(std::thread::JoinHandle::is_finished)
    }

    /// Answers 503 `draining`, finishes what runs, and ends. Errors: a shard had failed.
    pub fn stop(self) -> Result<(), NodeError> {
        self.door.begin_drain();
        self.joiner.stop();
        // The shards' connections last until they have finished.
        let ended = super::drain(self.shards);
        for Linker { news, thread } in self.linkers {
            // A linker that does not listen has ended.
            news.send(LinkerNews::Stop).ok();
            if thread.join().is_err() {
                tracing::error!("a thread that makes connections panicked");
            }
        }
        self.control.stop();
        ended
    }
}

type News = (SyncSender<LinkerNews>, Receiver<LinkerNews>);

/// Starts the threads that join the primary and make the shards' connections to it.
fn join(
    config: &ContainerConfig,
    deployer: Arc<Deployer>,
    shards: &RunningShards,
    channels: Vec<News>,
) -> std::io::Result<(Joiner, Vec<Linker>)> {
    let board = Arc::new(LinkBoard::default());
    let container = StdRng::from_os_rng().random();
    let mut linkers = Vec::new();
    for (shard, (news, heard)) in channels.into_iter().enumerate() {
        let (door, board) = (Arc::clone(&shards.doors[shard]), Arc::clone(&board));
        let thread = linker::start(shard, config.join.clone(), container, door, board, heard)?;
        linkers.push(Linker { news, thread });
    }
    let parts = JoinerParts {
        config: config.clone(),
        container,
        deployer,
        doors: shards.doors.clone(),
        linkers: linkers.iter().map(|linker| linker.news.clone()).collect(),
        board,
    };
    Ok((Joiner::start(parts)?, linkers))
}
