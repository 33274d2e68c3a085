//! Before the shards start: session state that was left under another number of shards comes to the shards that own it now. Says in the log
//! what happened. Called by `Node::start`.

use crate::config::Config;
use crate::session::{LocalPlacement, PIN_BOOK, PinBook, Placement};
use crate::state::{ReshardError, ReshardOptions, reshard, retag};
use std::time::{Duration, Instant};

/// How often a long move is mentioned.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Regions of earlier builds carry a number that depends on some of the hash keys only: from now on they carry one of all keys.
pub(super) fn renew_fingerprints(config: &Config, placement: &LocalPlacement) -> Result<(), ReshardError> {
    let renewed = retag(&config.shared_memory_dir, placement.former_fingerprint(), placement.fingerprint())?;
    if renewed > 0 {
        tracing::info!(regions = renewed, "regions carry the fingerprint of all hash keys now");
    }
    Ok(())
}

/// Errors: it cannot be done, and nothing was changed.
pub(super) fn bring_home(config: &Config, placement: &LocalPlacement, pins: &PinBook) -> Result<(), ReshardError> {
    let (started, mut said) = (Instant::now(), Instant::now());
    let options = ReshardOptions {
        directory: &config.shared_memory_dir,
        shards: config.cpus.len() as u16,
        region_bytes_max: u64::from(config.limits.region_mib) << 20,
        hash_tag: placement.fingerprint(),
        owner: &|app, session| {
            let hash = placement.hash(session);
            (pins.core_of(app, session).unwrap_or_else(|| placement.owner(hash.slot())).0, hash.table_hash())
        },
        placement_file: PIN_BOOK,
    };
    let report = reshard(&options, &mut |sessions| {
        if said.elapsed() >= PROGRESS_EVERY {
            said = Instant::now();
            tracing::info!(sessions, "still moving sessions to the shards that own them now");
        }
    })?;
    for (path, error) in &report.refused {
        tracing::error!("{error}: set aside as {}; its sessions are not there", path.display());
    }
    for (path, sessions) in &report.superseded {
        tracing::warn!(sessions, "sessions were in two places; those left out are kept in {}", path.display());
    }
    if !report.from.is_empty() {
        let (sessions, shards, from, time_ms) = (report.sessions, options.shards, &report.from, started.elapsed().as_millis() as u64);
        tracing::info!(sessions, shards, ?from, time_ms, "moved sessions to the shards that own them now");
    }
    Ok(())
}
