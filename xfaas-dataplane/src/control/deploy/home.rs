//! Sessions that were moved come home before a change of functions after which they could not. Until they are home, no container is let in.

use super::super::moving::MoveError;
use super::{DeployError, Deployer};
use crate::worker::{Durability, FunctionManifest};
use std::sync::PoisonError;

impl Deployer {
    /// Before an app becomes `sync`: its sessions are with the logs of their slots' owners from then on.
    /// Errors: one of them does not come home. Those before it are there.
    pub(super) fn bring_home_for(&self, manifest: &FunctionManifest) -> Result<(), DeployError> {
        let former = self.catalog.read().unwrap_or_else(PoisonError::into_inner).durability_of(&manifest.app);
        if manifest.durability != Durability::Sync || former == Some(Durability::Sync) {
            return Ok(());
        }
        self.bring_home(&manifest.app)
    }

    /// Before the last function of its app goes: after a restart nobody knows the app. Should it fail, those that are left go home when a container
    /// wants to join, as long as this process runs.
    pub(super) fn bring_home_before_the_end(&self, app: &str, name: &str) {
        let is_last = self.functions().iter().all(|function| function.manifest.app != app || function.manifest.name == name);
        if is_last && let Err(error) = self.bring_home(app) {
            tracing::warn!(app, error = super::describe(&error), "a moved session of an app without functions stays away from home");
        }
    }

    fn bring_home(&self, app: &str) -> Result<(), DeployError> {
        for request in self.shards.away_from_home().into_iter().filter(|request| request.app == app) {
            match self.shards.move_session(&request) {
                Ok(_) => tracing::info!(app, session = request.session, "moved a session home for a change of its app's functions"),
                // Of an earlier run of this server, and nothing of it was loaded since.
                Err(MoveError::UnknownApp { .. }) => return Ok(()),
                Err(source) => return Err(DeployError::StaysAway { app: app.to_owned(), session: request.session, source }),
            }
        }
        Ok(())
    }
}
