//! The end of what a start does for the log: the regions that were replayed are written as the snapshots of a new log, which is put in force, and get
//! their names. Called by `node`, again and again where the disk has no room at first; nothing of them is shown to anybody before.

use super::files::{Current, LogDirectory, LogError};
use super::format::{Head, HeadApp, Place, SegmentKind};
use super::recover::{FIRST_SEQUENCE, RecoverError, RecoverOptions, Recovered};
use crate::state::Region;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// An app's region on a shard of this node.
pub(super) struct OpenRegion {
    pub region: Region,
    /// It has all that the log has, and more: writes that nobody was told of.
    pub is_believed: bool,
    /// It gets this name when the log has all of it.
    pub name: Option<PathBuf>,
}

/// Where regions are made that are not in the log as they are: a start that is cut short leaves nothing that the next one could take for a region.
pub(super) struct Drafts {
    folder: PathBuf,
}

impl Drafts {
    /// `region_directory`: where they belong; the folders of other numbers of shards lie beside it. Removes what a kill left behind.
    pub fn open(region_directory: &Path) -> io::Result<Drafts> {
        let drafts = Drafts { folder: region_directory.with_file_name("replay") };
        drafts.remove()?;
        Ok(drafts)
    }

    pub fn path(&self, file_name: &str) -> io::Result<PathBuf> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        Ok(self.folder.join(file_name))
    }

    fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Drafts {
    fn drop(&mut self) {
        // Memory that nobody would use. What cannot be removed now is removed at the next start.
        self.remove().ok();
    }
}

/// How far the new log is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    NotBegun,
    /// All snapshots are on the disk; whether `current` says so is not known.
    Written,
    InForce,
}

/// What the log held is in the regions, which nobody else has; the former log is in force still.
pub struct Replayed {
    folder: PathBuf,
    shards: u16,
    directory: LogDirectory,
    current: Option<Current>,
    regions: BTreeMap<(u16, String), OpenRegion>,
    report: Recovered,
    stage: Stage,
    _drafts: Drafts,
}

impl Replayed {
    pub(super) fn new(
        options: &RecoverOptions<'_>,
        directory: LogDirectory,
        current: Option<Current>,
        regions: BTreeMap<(u16, String), OpenRegion>,
        report: Recovered,
        drafts: Drafts,
    ) -> Replayed {
        let folder = options.directory.to_owned();
        Replayed { folder, shards: options.shards, directory, current, regions, report, stage: Stage::NotBegun, _drafts: drafts }
    }

    /// Apps of which the log has something.
    pub fn apps(&self) -> BTreeSet<String> {
        self.regions.keys().map(|(_, app)| app.clone()).collect()
    }

    /// The log's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes what the regions hold as snapshots of a new log, puts it in force, and removes the old one; where there is nothing to write, nothing is
    /// written. Output: what the shards go on with; this is of no use any more then. Errors: the disk has no room, or fails; to be called again later.
    pub fn begin(&mut self) -> Result<Recovered, RecoverError> {
        let in_force = Current { epoch: self.report.epoch, shards: self.shards };
        let old = self.directory.segments()?;
        if self.stage == Stage::NotBegun && self.regions.is_empty() && old.is_empty() {
            // A log without segments serves as a new one, on a full disk too.
            if let Some(current) = self.current.filter(|current| current.shards == in_force.shards) {
                return Ok(Recovered { epoch: current.epoch, ..self.report.clone() });
            }
        }
        if self.stage == Stage::NotBegun {
            self.write_snapshots()?;
            self.stage = Stage::Written;
        }
        if self.stage == Stage::Written {
            // The snapshots stay when this fails: the disk may know the new log already.
            self.directory.set_current(in_force)?;
            self.stage = Stage::InForce;
        }
        self.name_regions()?;
        for segment in old.into_iter().filter(|segment| segment.number < self.report.first_number) {
            self.directory.remove(&segment.path)?;
        }
        self.regions.clear();
        Ok(self.report.clone())
    }

    fn write_snapshots(&mut self) -> Result<(), LogError> {
        let Replayed { directory, regions, report, shards, .. } = self;
        let (mut made, mut number) = (Vec::new(), report.first_number);
        for ((shard, app), open) in regions.iter() {
            let place = Place { shard: *shard, epoch: report.epoch, segment: number, sequence: 0 };
            let apps = vec![HeadApp { name: app.clone(), identity: open.region.identity() }];
            let head = Head { shards: *shards, kind: SegmentKind::Snapshot, goes_on_at: FIRST_SEQUENCE, apps };
            let written = directory.begin_snapshot(place, &head).and_then(|mut snapshot| {
                snapshot.append_region(app, &open.region)?;
                snapshot.finish(directory)
            });
            made.push(place);
            if let Err(error) = written {
                // A full disk is the fuller for them. What cannot be removed now is overwritten by the next try, or removed at the next start.
                for place in made {
                    directory.remove(&directory.segment_path(place.shard, place.segment)).ok();
                }
                return Err(error);
            }
            number += 1;
        }
        report.next_number = number;
        report.covered = regions.iter().map(|((shard, app), open)| (*shard, app.clone(), open.region.identity())).collect();
        Ok(())
    }

    /// From here on a region that is there is one that the log knows; a kill in between leaves some to be replayed again.
    fn name_regions(&mut self) -> Result<(), RecoverError> {
        for open in self.regions.values_mut() {
            if let Some(name) = &open.name {
                let named = std::fs::rename(open.region.path(), name);
                named.map_err(|source| RecoverError::Name { path: name.clone(), source })?;
                open.name = None;
            }
        }
        Ok(())
    }
}
