//! Before sessions move to another number of shards: the regions that have all that the log has. They move with what they hold, and count more than
//! the log then: it has neither what an app wrote after it went back to `memory`, nor what is damaged in it. Called by `node`.

use super::files::LogDirectory;
use super::recover::RecoverError;
use super::segment::SegmentReader;
use crate::state::{REGION_BYTES_MIN, Region, RegionOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Apps of a log of another number of shards than `shards`, each of whose regions is the one that the log was written beside. `folder`: where
/// a number of shards has its regions. Cost: the heads of the log are read, and the regions are checked. Errors: the log cannot be read.
pub fn whole_apps(directory: &Path, folder: &dyn Fn(u16) -> PathBuf, shards: u16, hash_tag: u64) -> Result<BTreeSet<String>, RecoverError> {
    let directory = LogDirectory::open(directory)?;
    let Some(current) = directory.current()?.filter(|current| current.shards != shards) else { return Ok(BTreeSet::new()) };
    let mut identities: BTreeMap<(String, u16), u64> = BTreeMap::new();
    for segment in directory.segments()? {
        if let Some((head, epoch)) = SegmentReader::open(&segment, current.epoch)?.head()?
            && epoch == current.epoch
        {
            identities.extend(head.apps.into_iter().map(|app| ((app.name, segment.shard), app.identity)));
        }
    }
    let folder = folder(current.shards);
    let mut apps: BTreeSet<String> = identities.keys().map(|(app, _)| app.clone()).collect();
    for ((app, shard), identity) in &identities {
        if identity_at(&folder, app, *shard, hash_tag) != Some(*identity) {
            apps.remove(app);
        }
    }
    Ok(apps)
}

/// `None`: there is no region, or none that can be used.
fn identity_at(folder: &Path, app: &str, shard: u16, hash_tag: u64) -> Option<u64> {
    let path = folder.join(format!("{app}.{shard}.region"));
    // No larger than it is: it is not for this process to write to.
    let options = RegionOptions { app, shard, bytes_max: REGION_BYTES_MIN, hash_tag };
    path.exists().then(|| Region::open_or_create(&path, &options).ok())?.map(|region| region.identity())
}
