//! The thread that joins a primary: it keeps one connection to it, copies its functions, tells the shards who it is, and maps its regions. When the
//! primary is lost it tries again until it is back. The shards' own connections are the linkers' part.

use super::line::{Line, LineError};
use super::linker::{LinkBoard, LinkerNews, send};
use super::regions;
use super::welcome::{Offer, Welcome};
use crate::config::ContainerConfig;
use crate::control::{Deployer, describe};
use crate::rpc::Backoff;
use crate::session::Primary;
use crate::shard::{CommandDoor, PrimaryCommand, ShardCommand};
use crate::state::RegionReader;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use xfaas_common::rpc::ANY_SHARD;

/// How often the thread looks at what others did while nothing comes from the primary.
const LOOK: Duration = Duration::from_millis(50);

pub(super) struct JoinerParts {
    pub(super) config: ContainerConfig,
    /// Names this process to the primary.
    pub(super) container: u64,
    pub(super) deployer: Arc<Deployer>,
    pub(super) doors: Vec<Arc<CommandDoor>>,
    pub(super) linkers: Vec<SyncSender<LinkerNews>>,
    pub(super) board: Arc<LinkBoard>,
}

/// What the thread shares with whoever started it.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    failure: Mutex<Option<String>>,
}

pub(super) struct Joiner {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Joiner {
    pub(super) fn start(parts: JoinerParts) -> std::io::Result<Joiner> {
        let shared = Arc::new(Shared::default());
        let (installed, readers) = (HashMap::new(), Vec::new());
        let work = Work {
            parts,
            shared: Arc::clone(&shared),
            primary: None,
            installed,
            readers,
            region_socket: None,
            is_ready: false,
            has_been_told: false,
        };
        let thread = std::thread::Builder::new().name("xfaas-join".to_owned()).spawn(move || work.run())?;
        Ok(Joiner { shared, thread })
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn stop(self) {
        self.shared.stop.store(true, Ordering::Release);
        if self.thread.join().is_err() {
            tracing::error!("the thread that joins the primary panicked");
        }
    }
}

/// A function of the primary that was copied, or could not be.
struct Installed {
    offer: Offer,
    /// Its app's index here; `None`: it does not run here.
    app: Option<u16>,
}

struct Work {
    parts: JoinerParts,
    shared: Arc<Shared>,
    primary: Option<Arc<Primary>>,
    installed: HashMap<String, Installed>,
    readers: Vec<(u16, u16, RegionReader)>,
    region_socket: Option<PathBuf>,
    is_ready: bool,
    /// The operator knows that the primary is not there.
    has_been_told: bool,
}

impl Work {
    fn run(mut self) {
        let mut backoff = Backoff::default();
        while !self.is_stopped() {
            let Err(error) = self.stay_joined(&mut backoff) else { return };
            self.parts.board.is_joined.store(false, Ordering::Release);
            self.set_ready(false);
            if self.primary.is_none() && error.is_for_good() {
                let failure = format!("cannot join {:?}: {}", self.parts.config.join, describe(&error));
                *self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                return;
            }
            if !self.has_been_told {
                let state = match (error.is_refusal(), self.primary.is_some()) {
                    (true, _) => "does not let this container in yet",
                    (false, true) => "is lost",
                    (false, false) => "cannot be reached",
                };
                tracing::warn!("the primary at {} {state}: {}; trying again until it is there", self.parts.config.join, describe(&error));
                self.has_been_told = true;
            }
            self.pause(backoff.next_pause());
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_stopped() && Instant::now() < until {
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// Joins and stays until the connection is lost. `Ok`: told to stop.
    fn stay_joined(&mut self, backoff: &mut Backoff) -> Result<(), LineError> {
        let mut line = Line::connect(&self.parts.config.join)?;
        self.take_over(&mut line)?;
        backoff.reset();
        self.parts.board.is_joined.store(true, Ordering::Release);
        self.tell_linkers(|| LinkerNews::Retry);
        let mut links_seen = None;
        let mut ping = None;
        while !self.is_stopped() {
            if line.take_change() {
                self.take_over(&mut line)?;
            }
            let links_made = self.parts.board.made.load(Ordering::Acquire);
            if links_seen != Some(links_made) {
                // A connection is new. The regions that were mapped are those of its process only if this one's process, which they were mapped from, is
                // still alive now: two primaries never are at the same time.
                links_seen = Some(links_made);
                ping = Some(line.ping()?);
            }
            if ping.is_some_and(|ping| line.has_answered(ping)) {
                ping = None;
                self.send_readers();
            }
            if ping.is_none() {
                self.look_at_links();
            }
            line.idle(LOOK)?;
        }
        Ok(())
    }

    /// Does what the primary's present welcome asks for.
    fn take_over(&mut self, line: &mut Line) -> Result<(), LineError> {
        let (_, text) = line.hello(ANY_SHARD, self.parts.container)?;
        let Welcome { primary, functions, region_socket } = Welcome::read(&text)?;
        self.copy_functions(line, functions)?;
        let is_known = self.primary.as_ref().is_some_and(|known| {
            known.places_as(&primary) && known.session_header == primary.session_header && known.lock_wait_ns == primary.lock_wait_ns
        });
        if !is_known {
            let primary = Arc::new(primary);
            self.primary = Some(Arc::clone(&primary));
            self.tell_shards(|| PrimaryCommand::Join(Arc::clone(&primary)));
            self.tell_linkers(|| LinkerNews::Join(Arc::clone(&primary)));
        }
        self.region_socket = self.parts.config.region_socket.clone().or(region_socket);
        self.map_regions();
        self.send_readers();
        Ok(())
    }

    fn copy_functions(&mut self, line: &mut Line, offers: Vec<Offer>) -> Result<(), LineError> {
        let offered: BTreeMap<String, Offer> = offers.into_iter().map(|offer| (offer.manifest.name.clone(), offer)).collect();
        let gone: Vec<String> = self.installed.keys().filter(|name| !offered.contains_key(*name)).cloned().collect();
        for name in gone {
            self.remove(&name);
        }
        for (name, offer) in offered {
            match self.installed.get(&name) {
                Some(installed) if installed.offer == offer => continue,
                // Names belong to one app: it was removed and deployed again.
                Some(installed) if installed.offer.manifest.app != offer.manifest.app => self.remove(&name),
                _ => {}
            }
            match line.module(&name) {
                Ok(wasm) if sha256_of(&wasm) == offer.sha256 => self.install(line, offer, &wasm)?,
                // It has changed again meanwhile: the primary says so too.
                Ok(_) | Err(LineError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.parts.deployer.all_are_copied();
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        self.parts.deployer.remove_copy(name);
        self.installed.remove(name);
    }

    /// Compiles on another thread, because the primary must go on hearing of us.
    fn install(&mut self, line: &mut Line, offer: Offer, wasm: &[u8]) -> Result<(), LineError> {
        let deployer = &self.parts.deployer;
        let (installed, lived) = std::thread::scope(|scope| {
            let compiling = scope.spawn(|| deployer.install_copy(&offer.manifest, wasm));
            let mut lived = Ok(());
            while !compiling.is_finished() {
                match lived {
                    Ok(()) if !line.has_changed() => lived = line.idle(Duration::from_millis(1)),
                    _ => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            (compiling.join(), lived)
        });
        let app = match installed {
            Ok(Ok(app)) => Some(app),
            Ok(Err(error)) => {
                tracing::error!("function {:?} of the primary does not run here: {}", offer.manifest.name, describe(&error));
                None
            }
            Err(_) => None, // the compiler panicked, and said so
        };
        self.installed.insert(offer.manifest.name.clone(), Installed { offer, app });
        lived
    }

    /// Maps the regions of all apps that have a function here, or none: then all reads go by RPC.
    fn map_regions(&mut self) {
        self.readers.clear();
        let (Some(socket), Some(primary), false) = (&self.region_socket, &self.primary, self.parts.config.no_map) else { return };
        let running = self.installed.values().filter_map(|installed| Some((installed.offer.manifest.app.clone(), installed.app?)));
        let apps: BTreeMap<String, u16> = running.collect();
        match regions::map(socket, primary, &apps.into_iter().collect::<Vec<_>>()) {
            Ok(readers) => self.readers = readers,
            Err(error) => tracing::info!("reads go by RPC, because the primary's regions are not mapped: {}", describe(&error)),
        }
    }

    fn send_readers(&self) {
        self.tell_shards(|| PrimaryCommand::Readers(self.readers.clone()));
    }

    fn look_at_links(&mut self) {
        let Some(primary) = &self.primary else { return };
        let all = usize::from(primary.shards()) * self.parts.doors.len();
        let are_up = self.parts.board.up.load(Ordering::Acquire) == all;
        if are_up && !self.is_ready {
            let reads = if self.readers.is_empty() { "all reads go by RPC" } else { "weak reads go through its mapped regions" };
            let running = self.installed.values().filter(|installed| installed.app.is_some()).count();
            tracing::info!("joined the primary at {}: {} shards, {running} functions; {reads}", self.parts.config.join, primary.shards());
            self.has_been_told = false;
        }
        self.set_ready(are_up);
    }

    fn set_ready(&mut self, is_ready: bool) {
        if self.is_ready != is_ready {
            self.is_ready = is_ready;
            self.parts.deployer.set_ready(is_ready);
        }
    }

    fn tell_shards(&self, command: impl Fn() -> PrimaryCommand) {
        for (shard, door) in self.parts.doors.iter().enumerate() {
            if !send(door, ShardCommand::Primary(command())) {
                tracing::error!("shard {shard} takes no commands");
            }
        }
    }

    fn tell_linkers(&self, news: impl Fn() -> LinkerNews) {
        for linker in &self.parts.linkers {
            // Only a linker that has ended does not listen, and then this process is ending.
            linker.send(news()).ok();
        }
    }
}

fn sha256_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}
