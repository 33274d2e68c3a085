//! Deployments: check, compile, store and swap functions. They compile side by side and take effect one at a time. Called by the admin API and, at start, by `main.rs`.
//! Blocks on the compiler, the disk and the shards: never call it on the control thread itself.

mod copies;
mod home;
mod retry;
mod under_way;

use self::retry::Waiting;
use self::under_way::{Ticket, UnderWay};
use super::api::{FunctionInfo, FunctionSource, UndeployReply};
use super::catalog::{CONFIGURATION_WINS, Catalog, CatalogError, Entry, ManifestError, check_manifest};
use super::describe;
use super::moving::MoveError;
use super::shards::{Running, Shards, ShardsError};
use super::store::{Lasting, Store, StoreError, Stored};
use crate::worker::{Durability, Engine, Function, FunctionManifest, Hint, LoadError, Program, attach_hook};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use xfaas_common::ids::FunctionHash;

/// One function of the configuration: what it may do, where its module lies, and where its hook, if that is a module of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredFunction {
    pub manifest: FunctionManifest,
    pub wasm: PathBuf,
    pub hook: Option<PathBuf>,
}

impl ConfiguredFunction {
    fn read(&self) -> Result<Vec<u8>, DeployError> {
        let read = |key: &'static str, path: &PathBuf| {
            std::fs::read(path).map_err(|source| DeployError::Read { name: self.manifest.name.clone(), key, path: path.clone(), source })
        };
        let wasm = read("wasm", &self.wasm)?;
        Ok(match &self.hook {
            Some(hook) => attach_hook(&wasm, &read("hook", hook)?),
            None => wasm,
        })
    }
}

/// Why a deployment or its removal is refused or failed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("the module of {name:?} is refused")]
    Module {
        name: String,
        #[source]
        source: LoadError,
    },
    #[error("cannot read the module {} of function {name:?}: correct `{key}` of its [[function]] entry", path.display())]
    Read {
        name: String,
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the shards did not change {name:?}")]
    Shards {
        name: String,
        #[source]
        source: ShardsError,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "session {session:?} of app {app:?} was moved to another core and does not come home now, which durability sync needs: try again"
    )]
    StaysAway {
        app: String,
        session: String,
        #[source]
        source: MoveError,
    },
    #[error(
        "{name:?} was deployed anew or undeployed while this deployment was being compiled, and that stays: deploy it again if you want this one"
    )]
    Overtaken { name: String },
    #[error("this is a container: deploy to its primary, whose functions it copies")]
    IsContainer,
    #[error("there is no function {name:?}: see `xfaas functions`")]
    Unknown { name: String },
}

/// What `start` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartReport {
    /// Functions that run now.
    pub loaded: Vec<String>,
    /// Stored functions that do not load any more, which are kept on disk, and those that have to wait for the log; and why.
    pub broken: Vec<(String, String)>,
}

/// What one deployment at a time may touch.
struct Deployments {
    store: Store,
    /// Every function that runs, to be given to the shards again when a swap fails half way.
    running: HashMap<String, Running>,
    under_way: UnderWay,
    /// Functions that are to be tried again.
    waiting: Vec<Waiting>,
}

/// A function's compiled code.
struct Compiled {
    program: Program,
    hook: Option<Program>,
}

impl Deployments {
    fn check_has_store(&self) -> Result<(), DeployError> {
        if self.store.is_nowhere() { Err(DeployError::IsContainer) } else { Ok(()) }
    }
}

/// The functions of this node. Shared by the admin API's helpers, which bound how many deployments there are at once. They queue on one lock, but not
/// while they compile; reading does not wait for them.
pub struct Deployer {
    engine: Engine,
    shards: Arc<dyn Shards>,
    /// Ceiling of `memory_mib`, as the engine was built.
    memory_mib_max: u32,
    deployments: Mutex<Deployments>,
    catalog: RwLock<Catalog>,
    started: AtomicBool,
    /// How many functions are to be tried again.
    waiting: AtomicUsize,
    /// What is missing while it has not.
    not_ready: &'static str,
}

impl Deployer {
    pub fn new(engine: Engine, shards: Arc<dyn Shards>, store: Store, memory_mib_max: u32) -> Deployer {
        let deployments = Mutex::new(Deployments { store, running: HashMap::new(), under_way: UnderWay::default(), waiting: Vec::new() });
        Deployer {
            engine,
            shards,
            memory_mib_max,
            deployments,
            catalog: RwLock::default(),
            started: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            not_ready: "functions are still being loaded",
        }
    }

    /// Sizes of all live workers' memories, and their limit.
    pub fn guest_memory_bytes(&self) -> (u64, u64) {
        self.engine.guest_memory_bytes()
    }

    /// Loads the functions of the configuration, then the stored ones of other names.
    /// Errors: a configured function does not load, unless it only has to wait for the log, or the store cannot be listed. A stored one that does not load is logged, reported and kept.
    pub fn start(&self, configured: &[ConfiguredFunction]) -> Result<StartReport, DeployError> {
        let mut deployments = self.lock();
        let mut report = StartReport::default();
        self.catalog_mut(|catalog| catalog.set_configured(configured.iter().map(|function| function.manifest.name.clone()).collect()));
        for function in configured {
            let name = function.manifest.name.clone();
            match self.bring_up_configured(&mut deployments, function)? {
                None => report.loaded.push(name),
                Some(fault) => {
                    tracing::error!(name, fault, "a function of the configuration does not run yet");
                    report.broken.push((name, fault));
                }
            }
        }
        let names: HashSet<&str> = configured.iter().map(|function| function.manifest.name.as_str()).collect();
        for (name, listed) in deployments.store.list()? {
            if names.contains(name.as_str()) {
                tracing::info!(name, "xfaas.toml wins over the stored deployment");
                continue;
            }
            match listed.and_then(|stored| self.bring_up_stored(&mut deployments, &stored)) {
                Ok(()) => report.loaded.push(name),
                Err(fault) => {
                    match deployments.waiting.last().is_some_and(|waiting| waiting.name() == name) {
                        true => tracing::error!(name, fault, "a stored function does not run yet"),
                        false => {
                            tracing::error!(name, fault, "a stored function does not load and does not run: deploy it again or undeploy it")
                        }
                    }
                    report.broken.push((name, fault));
                }
            }
        }
        self.offer(&deployments);
        self.forget_unused_code(&deployments);
        self.note_waiting(&deployments);
        self.started.store(true, Ordering::Release);
        Ok(report)
    }

    /// Deploys `wasm` as `manifest` says, or swaps the function of that name: requests that run keep the old one, later ones get the new one.
    /// Returns once every shard has it and a restart would find it. Cost: a compilation, some milliseconds to seconds, during which others may deploy.
    /// Errors: as `DeployError` says; `Overtaken` if a deployment that began later, or an undeployment, was done first.
    pub fn deploy(&self, manifest: &FunctionManifest, wasm: &[u8]) -> Result<FunctionInfo, DeployError> {
        let ticket = self.begin(manifest)?;
        let compiled = self.compile(manifest, wasm)?;
        self.put_in_force(&ticket, manifest, wasm, compiled)
    }

    fn begin(&self, manifest: &FunctionManifest) -> Result<Arc<Ticket>, DeployError> {
        let mut deployments = self.lock();
        deployments.check_has_store()?;
        self.check(manifest)?;
        Ok(deployments.begin(&manifest.name))
    }

    fn put_in_force(
        &self,
        ticket: &Ticket,
        manifest: &FunctionManifest,
        wasm: &[u8],
        compiled: Compiled,
    ) -> Result<FunctionInfo, DeployError> {
        let name = &manifest.name;
        let deployments = &mut *self.lock();
        ticket.check()?;
        self.check(manifest)?; // what it was held against may have changed
        self.bring_home_for(manifest)?;
        let function = self.place(manifest, compiled, ticket.generation);
        let prepared = deployments.store.prepare(manifest, wasm, function.generation)?;
        let generation = function.generation;
        self.install(deployments, &function)?;
        let lasting = match prepared.commit() {
            Ok(lasting) => lasting,
            Err(error) => {
                self.roll_back(deployments, &function);
                return Err(error.into());
            }
        };
        deployments.overtake(name, generation);
        deployments.running.insert(name.clone(), Running::new(function, wasm));
        self.offer(deployments);
        self.forget_unused_code(deployments);
        let wasm_bytes = wasm.len() as u64;
        let entry = Entry { manifest: manifest.clone(), source: FunctionSource::Deployment, generation, wasm_bytes, fault: None };
        tracing::info!(name, generation, wasm_bytes, "deployed");
        let mut info = self.catalog_mut(|catalog| {
            catalog.insert(entry.clone());
            catalog.info(&entry)
        });
        info.note = with_warning(info.note, name, &lasting);
        Ok(info)
    }

    /// Takes a function away from every shard and from the disk. Its app's session state stays.
    pub fn undeploy(&self, name: &str) -> Result<UndeployReply, DeployError> {
        let mut deployments = self.lock();
        deployments.check_has_store()?;
        self.check_goes_on(name)?;
        let function = deployments.running.get(name).map(|running| Arc::clone(&running.function));
        if function.is_none() && !deployments.store.contains(name) {
            return Err(DeployError::Unknown { name: name.to_owned() });
        }
        if let Some(function) = &function {
            self.bring_home_before_the_end(&function.manifest.app, name);
            let removed = self.shards.remove(function.index);
            if let Err(source) = removed {
                self.roll_back(&deployments, function);
                return Err(DeployError::Shards { name: name.to_owned(), source });
            }
        }
        let lasting = match deployments.store.remove(name) {
            Ok(lasting) => lasting,
            Err(error) => {
                if let Some(function) = &function {
                    self.roll_back(&deployments, function);
                }
                return Err(error.into());
            }
        };
        let generation = deployments.store.next_generation();
        deployments.overtake(name, generation);
        deployments.running.remove(name);
        self.offer(&deployments);
        self.forget_unused_code(&deployments);
        tracing::info!(name, "undeployed");
        let note = self.catalog_mut(|catalog| {
            catalog.remove(name);
            catalog.is_configured(name).then(|| CONFIGURATION_WINS.to_owned())
        });
        Ok(UndeployReply { name: name.to_owned(), note: with_warning(note, name, &lasting) })
    }

    /// Functions that run or should, by name.
    pub fn functions(&self) -> Vec<FunctionInfo> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).list()
    }

    /// True when an app's values may be shown as soon as they are written: where they wait for the log, only the owner knows which are safe,
    /// and where sessions sleep, which are there.
    pub fn shows_at_once(&self, app: &str) -> bool {
        {
            let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
            catalog.durability_of(app) != Some(Durability::Sync) && !catalog.may_sleep(app) && !self.shards.has_checkpoints(app)
        }
    }

    /// How many functions run.
    pub fn count_running(&self) -> usize {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).count_running()
    }

    /// Errors: what is missing, in words.
    pub fn ready(&self) -> Result<(), String> {
        match (self.started.load(Ordering::Acquire), self.waiting.load(Ordering::Acquire)) {
            (false, _) => Err(self.not_ready.to_owned()),
            (true, 0) => Ok(()),
            (true, waiting) => Err(format!("functions that could not be brought up yet, see the server's log: {waiting}")),
        }
    }

    /// Errors: the manifest is none, there is no place for such a function, or there is none for any since the shards stop.
    fn check(&self, manifest: &FunctionManifest) -> Result<(), DeployError> {
        self.check_goes_on(&manifest.name)?;
        check_manifest(manifest, self.memory_mib_max)?;
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        catalog.admit(&manifest.name, &manifest.app)?;
        Ok(catalog.agree(manifest)?)
    }

    fn check_goes_on(&self, name: &str) -> Result<(), DeployError> {
        match self.shards.is_stopping() {
            true => Err(DeployError::Shards { name: name.to_owned(), source: ShardsError::Stopping }),
            false => Ok(()),
        }
    }

    /// Needs no lock: nothing outside sees the result yet.
    fn compile(&self, manifest: &FunctionManifest, wasm: &[u8]) -> Result<Compiled, DeployError> {
        let refused = |source| DeployError::Module { name: manifest.name.clone(), source };
        let program = self.engine.load(manifest, wasm).map_err(refused)?;
        let hook = (manifest.rules.hint == Hint::Hook).then(|| self.engine.load_hook(wasm)).transpose().map_err(refused)?;
        Ok(Compiled { program, hook })
    }

    /// Of a function that was checked, with the deployments locked since.
    fn place(&self, manifest: &FunctionManifest, compiled: Compiled, generation: u64) -> Arc<Function> {
        let Compiled { program, hook } = compiled;
        let place = self.catalog_mut(|catalog| catalog.place(&manifest.name, &manifest.app));
        let hash = FunctionHash::of(manifest.name.as_bytes());
        Arc::new(Function { manifest: manifest.clone(), program, hook, index: place.index, app: place.app, hash, generation })
    }

    /// Loads and installs a function that needs no storing.
    fn bring_up(
        &self,
        deployments: &mut Deployments,
        manifest: &FunctionManifest,
        wasm: &[u8],
        source: FunctionSource,
        generation: u64,
    ) -> Result<(), DeployError> {
        self.check(manifest)?;
        let function = self.place(manifest, self.compile(manifest, wasm)?, generation);
        self.install(deployments, &function)?;
        deployments.running.insert(manifest.name.clone(), Running::new(function, wasm));
        let entry = Entry { manifest: manifest.clone(), source, generation, wasm_bytes: wasm.len() as u64, fault: None };
        self.catalog_mut(|catalog| catalog.insert(entry));
        Ok(())
    }

    /// Errors: why the stored function does not run, in words; it is in the catalog all the same, unless its name cannot be there.
    fn bring_up_stored(&self, deployments: &mut Deployments, stored: &Stored) -> Result<(), String> {
        let Stored { manifest, generation, wasm_bytes, .. } = stored;
        let admitted = self.catalog.read().unwrap_or_else(PoisonError::into_inner).admit(&manifest.name, &manifest.app);
        admitted.map_err(|error| error.to_string())?;
        let mut may_pass = false;
        let result = stored.read_wasm().and_then(|wasm| {
            let up = self.bring_up(deployments, manifest, &wasm, FunctionSource::Deployment, *generation);
            up.map_err(|error| {
                may_pass = matches!(error, DeployError::Shards { .. });
                describe(&error)
            })
        });
        if may_pass {
            deployments.waiting.push(Waiting::Stored(stored.clone()));
        }
        if let Err(fault) = &result {
            let fault = Some(fault.clone());
            let (generation, wasm_bytes) = (*generation, *wasm_bytes);
            let entry = Entry { manifest: manifest.clone(), source: FunctionSource::Deployment, generation, wasm_bytes, fault };
            self.catalog_mut(|catalog| catalog.insert(entry));
        }
        result
    }

    fn install(&self, deployments: &Deployments, function: &Arc<Function>) -> Result<(), DeployError> {
        self.shards.install(Arc::clone(function)).map_err(|source| {
            self.roll_back(deployments, function);
            DeployError::Shards { name: function.manifest.name.clone(), source }
        })
    }

    /// Gives the shards what they had under this function's index before. Best effort: a shard that does not answer keeps what it has, and is named in the log.
    fn roll_back(&self, deployments: &Deployments, function: &Function) {
        let name = &function.manifest.name;
        let result = match deployments.running.get(name) {
            Some(former) => self.shards.install(Arc::clone(&former.function)),
            None => self.shards.remove(function.index),
        };
        if let Err(error) = result {
            tracing::error!(name, error = describe(&error), "the shards may disagree about this function: deploy it again");
        }
    }

    /// Tells containers which functions there are now. One that is not told goes on with what it has: no reason to undo a deployment.
    fn offer(&self, deployments: &Deployments) {
        let mut running: Vec<Running> = deployments.running.values().cloned().collect();
        running.sort_by(|a, b| a.function.manifest.name.cmp(&b.function.manifest.name));
        if let Err(error) = self.shards.offer(&running) {
            tracing::error!(error = describe(&error), "containers of other processes may not hear of this change: deploy again");
        }
    }

    /// Of the code on the disk only what the functions need that run now.
    fn forget_unused_code(&self, deployments: &Deployments) {
        self.engine.keep_only(deployments.running.values().map(|running| &*running.function));
    }

    fn lock(&self) -> MutexGuard<'_, Deployments> {
        // A panic leaves nothing half done in here: a field changes after all that might panic.
        self.deployments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn catalog_mut<T>(&self, change: impl FnOnce(&mut Catalog) -> T) -> T {
        change(&mut self.catalog.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the operator is told beside `note`: the change is in force, here and after a restart, so it is no error that it may not last.
fn with_warning(note: Option<String>, name: &str, lasting: &Lasting) -> Option<String> {
    let Lasting::Unknown(error) = lasting else { return note };
    let error = describe(error);
    tracing::error!(name, error, "a change of the functions is in force, and a power cut may undo it");
    let warning = format!("this is in force, but a power cut may undo it: {error}; do it again when the disk is well");
    Some(note.map_or(warning.clone(), |note| format!("{warning}. {note}")))
}

#[cfg(test)]
mod tests;
