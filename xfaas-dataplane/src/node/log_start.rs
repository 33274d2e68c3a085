//! The log's beginning at a start. A disk that is full keeps from running only what needs the log; it is tried again with each function that does.

use crate::durable::{RecoverError, Recovered, Replayed};
use crate::worker::{Durability, FunctionManifest};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub(super) struct LogStart {
    /// What the shards go on with, once there is a log.
    recovered: Arc<OnceLock<Recovered>>,
    /// `None`: the log has begun.
    waiting: Mutex<Option<Replayed>>,
    /// The log has something of them, and has their regions open until it has begun.
    apps: BTreeSet<String>,
    folder: PathBuf,
}

impl LogStart {
    /// Begins the log, or says why not, and how to help.
    pub fn new(mut replayed: Replayed) -> LogStart {
        let (apps, folder) = (replayed.apps(), replayed.folder().to_owned());
        let recovered = Arc::new(OnceLock::new());
        let waiting = match replayed.begin() {
            Ok(begun) => {
                if begun.replayed > 0 {
                    tracing::info!(records = begun.replayed, "writes of the log were loaded");
                }
                drop(recovered.set(begun)); // it was made just now
                None
            }
            Err(error) => {
                let (error, folder) = (&error as &dyn std::error::Error, folder.display());
                tracing::error!(error, "the log cannot be begun, so what needs it does not run yet: free some disk in {folder}");
                Some(replayed)
            }
        };
        LogStart { recovered, waiting: Mutex::new(waiting), apps, folder }
    }

    pub fn recovered(&self) -> Arc<OnceLock<Recovered>> {
        Arc::clone(&self.recovered)
    }

    /// Called before a function is installed. Errors: it needs the log, which cannot be begun now.
    pub fn begin_for(&self, manifest: &FunctionManifest) -> Result<(), LogNotBegun> {
        let needs_log = manifest.durability == Durability::Sync || self.apps.contains(&manifest.app);
        if !needs_log || self.recovered.get().is_some() {
            return Ok(());
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(replayed) = &mut *waiting else { return Ok(()) };
        let begun = replayed.begin().map_err(|source| LogNotBegun { folder: self.folder.clone(), source })?;
        tracing::info!(records = begun.replayed, "the log has begun");
        drop(self.recovered.set(begun)); // only with the lock, and once
        *waiting = None;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the log cannot be begun: free some disk in {}", folder.display())]
pub(super) struct LogNotBegun {
    folder: PathBuf,
    #[source]
    source: RecoverError,
}
