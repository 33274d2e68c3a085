//! Ties the checkpoints' thread to the shards, before any function is installed. Called by `node`.

use super::NodeError;
use crate::config::Config;
use crate::control::{CheckpointStatus, Deployer, start_checkpoints};
use crate::session::{LocalPlacement, PinBoard, Placement};
use crate::shard::{RunningShards, ShardCommand};
use std::sync::Arc;
use std::time::Duration;
use xfaas_common::ids::SessionId;

/// How long a start waits for the store to be listed; requests of sessions that may sleep are refused until it is. Those of sessions that are in
/// memory should not wait much longer for a store that is gone.
const LIST_WAIT: Duration = Duration::from_secs(1);

pub(super) fn start(
    config: &Config,
    shards: &RunningShards,
    placement: &Arc<LocalPlacement>,
    board: &Arc<PinBoard>,
) -> Result<Arc<CheckpointStatus>, NodeError> {
    let (placement, doors, board) = (Arc::clone(placement), shards.doors.clone(), Arc::clone(board));
    let owner = Box::new(move |app: &str, session: &SessionId| {
        board.core_of(app, session).unwrap_or_else(|| placement.owner(placement.hash(session).slot())).0
    });
    let wake = Arc::new(move |shard: u16| doors[usize::from(shard)].wake());
    let started = start_checkpoints(config.checkpoints.clone(), shards.doors.len(), owner, wake);
    let (checkpoint_doors, status) = started?;
    for (shard, (door, checkpoints)) in shards.doors.iter().zip(checkpoint_doors).enumerate() {
        door.send(ShardCommand::Checkpoints(Box::new(checkpoints))).map_err(|_| NodeError::Stuck { shard })?;
    }
    Ok(status)
}

/// Waits for the list. Also where no function may sleep now: sessions may sleep since it could, and who they are only the list says.
pub(super) fn wait(status: &CheckpointStatus, deployer: &Deployer) {
    let may_sleep = || deployer.functions().iter().any(|function| !deployer.shows_at_once(&function.manifest.app));
    if !status.wait_listed(LIST_WAIT) && may_sleep() {
        tracing::error!("the store of checkpoints is not listed yet: sessions that are not in memory get 503 until it is");
    }
}
