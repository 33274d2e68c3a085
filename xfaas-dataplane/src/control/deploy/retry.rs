//! Functions that the shards did not take at a start, for want of room for their log or of time: nothing is wrong with them, so they are tried again
//! until they run. Of the configuration only those that wait for the log: anything else keeps the node from starting.

use super::super::api::FunctionSource;
use super::super::catalog::Entry;
use super::super::shards::ShardsError;
use super::super::store::Stored;
use super::{ConfiguredFunction, DeployError, Deployer, Deployments};
use crate::control::describe;
use crate::worker::Durability;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const TRY_EVERY: Duration = Duration::from_secs(1);

/// A function that is to be tried again.
pub(super) enum Waiting {
    Stored(Stored),
    Configured(ConfiguredFunction),
}

impl Waiting {
    pub(super) fn name(&self) -> &str {
        match self {
            Waiting::Stored(stored) => &stored.manifest.name,
            Waiting::Configured(function) => &function.manifest.name,
        }
    }
}

impl Deployer {
    /// Starts a thread that tries, if there is anything to try. It ends when there is not, or when nobody else has the deployer.
    /// Errors: no thread can be started.
    pub fn keep_trying(self: &Arc<Deployer>) -> std::io::Result<()> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let deployer = Arc::downgrade(self);
        let work = move || {
            loop {
                std::thread::sleep(TRY_EVERY);
                let Some(deployer) = deployer.upgrade() else { return };
                if deployer.try_again() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("xfaas-retry".to_owned()).spawn(work).map(drop)
    }

    /// True when nothing waits any more, or nothing is to come.
    fn try_again(&self) -> bool {
        let mut deployments = self.lock();
        let waiting = std::mem::take(&mut deployments.waiting);
        for waiting in waiting {
            let name = waiting.name().to_owned();
            if deployments.running.contains_key(&name) || self.check_goes_on(&name).is_err() {
                continue;
            }
            let is_up = match waiting {
                Waiting::Stored(stored) => deployments.store.contains(&name) && self.bring_up_stored(&mut deployments, &stored).is_ok(),
                Waiting::Configured(function) => match self.bring_up_configured(&mut deployments, &function) {
                    Ok(waits) => waits.is_none(),
                    Err(error) => {
                        tracing::error!(name, error = describe(&error), "a function of the configuration does not load");
                        false
                    }
                },
            };
            if is_up {
                tracing::info!(name, "a function that had to wait runs now");
                self.offer(&deployments);
                self.forget_unused_code(&deployments);
            }
        }
        self.note_waiting(&deployments);
        deployments.waiting.is_empty()
    }

    /// Output: why it does not run yet, in words, if it has to wait for the log. Errors: anything else.
    pub(super) fn bring_up_configured(
        &self,
        deployments: &mut Deployments,
        function: &ConfiguredFunction,
    ) -> Result<Option<String>, DeployError> {
        let (bytes, manifest) = (function.read()?, &function.manifest);
        let generation = deployments.store.next_generation();
        let up = self.bring_up(deployments, manifest, &bytes, FunctionSource::Configuration, generation);
        let waits = match &up {
            Err(DeployError::Shards { source: ShardsError::Log { .. }, .. }) => true,
            Err(DeployError::Shards { source, .. }) => manifest.durability == Durability::Sync && !matches!(source, ShardsError::Stopping),
            _ => false,
        };
        match up {
            Err(error) if waits => {
                let fault = Some(describe(&error));
                let (source, wasm_bytes) = (FunctionSource::Configuration, bytes.len() as u64);
                let entry = Entry { manifest: manifest.clone(), source, generation, wasm_bytes, fault: fault.clone() };
                self.catalog_mut(|catalog| catalog.insert(entry));
                deployments.waiting.push(Waiting::Configured(function.clone()));
                Ok(fault)
            }
            up => up.map(|()| None),
        }
    }

    pub(super) fn note_waiting(&self, deployments: &Deployments) {
        self.waiting.store(deployments.waiting.len(), Ordering::Release);
    }
}
