//! A container's functions: copies of what its primary has. Nothing is stored, and nobody can deploy here.
//! Called by `node/container`, which fetches the modules.

use super::super::api::FunctionSource;
use super::super::catalog::Entry;
use super::super::describe;
use super::super::shards::Shards;
use super::super::store::Store;
use super::{DeployError, Deployer};
use crate::worker::{Engine, FunctionManifest};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Deployer {
    /// A deployer without a place for deployments.
    pub fn for_container(engine: Engine, shards: Arc<dyn Shards>, memory_mib_max: u32) -> Deployer {
        Deployer { not_ready: "the primary is not connected", ..Deployer::new(engine, shards, Store::nowhere(), memory_mib_max) }
    }

    /// Takes a function of the primary into service, or its new version. Output: its app's index in this process.
    /// Errors: it cannot run here; the list of functions says why, and an earlier version is gone.
    pub fn install_copy(&self, manifest: &FunctionManifest, wasm: &[u8]) -> Result<u16, DeployError> {
        let mut deployments = self.lock();
        let generation = deployments.store.next_generation();
        match self.bring_up(&mut deployments, manifest, wasm, FunctionSource::Primary, generation) {
            Ok(()) => Ok(deployments.running[&manifest.name].function.app),
            Err(error) => {
                if let Some(former) = deployments.running.remove(&manifest.name) {
                    self.take_away(&manifest.name, former.function.index);
                }
                let (wasm_bytes, fault) = (wasm.len() as u64, Some(describe(&error)));
                let entry = Entry { manifest: manifest.clone(), source: FunctionSource::Primary, generation, wasm_bytes, fault };
                self.catalog_mut(|catalog| catalog.insert(entry));
                Err(error)
            }
        }
    }

    /// Takes a function away that the primary has no more.
    pub fn remove_copy(&self, name: &str) {
        let former = self.lock().running.remove(name);
        if let Some(former) = former {
            self.take_away(name, former.function.index);
        }
        self.catalog_mut(|catalog| catalog.remove(name));
    }

    /// All functions of the primary are here: what is kept of others may go.
    pub fn all_are_copied(&self) {
        self.forget_unused_code(&self.lock());
    }

    fn take_away(&self, name: &str, index: u16) {
        if let Err(error) = self.shards.remove(index) {
            tracing::error!(name, error = describe(&error), "a shard may still run this function, which the primary has no more");
        }
    }

    /// Says whether the container serves: its primary is there, and so are the functions.
    pub fn set_ready(&self, is_ready: bool) {
        self.started.store(is_ready, Ordering::Release);
    }
}
