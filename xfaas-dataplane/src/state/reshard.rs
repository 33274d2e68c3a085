//! Moves sessions to the shards that own them now, when a node starts with another number of shards than before. Called by the node before
//! its shards start; nobody else has the regions open then.
//!
//! ```text
//! shards-2/a.0.region  shards-2/a.1.region          what the last node left
//! shards-3.new/                                     being built; void after a kill
//! shards-3.ready/  a.0.region .. a.2.region, moved  complete, and the list of files it replaces: the rename to this name is the one
//!                                                   step that counts
//! shards-3/a.0.region .. a.2.region                 after the replaced files are gone; the next start goes on with this if there was a kill
//! ```
//! So at any time each session is whole in one place that counts, and a start that is refused has changed nothing. Both copies need memory
//! until the rename.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use xfaas_common::ids::SessionId;
use xfaas_common::limits::VALUE_BYTES_MAX;

use super::error::{RegionError, StateError};
use super::layout::{REGION_BYTES_MIN, RegionOptions};
use super::namespace::{self, NamespaceRef};
use super::region::{Region, SESSIONS, StateKey};
use super::reshard_files::{self as files, FileError, Replaced, ShardFolder};
use super::shard_state::set_aside;

/// Sessions copied between two reports of progress.
const PROGRESS_SESSIONS: u64 = 4_096;
/// No session is refused for its size: it was within its limit when it was written.
const SESSION_BYTES_MAX: usize = usize::MAX;

/// Where regions are, and who owns what.
pub struct ReshardOptions<'a> {
    /// The directory that holds a folder `shards-<n>` for each number of shards the node was started with.
    pub directory: &'a Path,
    /// Shards from now on.
    pub shards: u16,
    /// As `RegionOptions` of the regions that are made.
    pub region_bytes_max: u64,
    pub hash_tag: u64,
    /// The shard that owns a session, below `shards`, and its `SessionHash::table_hash`.
    /// An app's session may be elsewhere than others of its slot.
    pub owner: &'a dyn Fn(&str, &SessionId) -> (u16, u32),
    /// A file in folders for another number of shards that says so for the sessions there; it goes when they have left.
    pub placement_file: &'a str,
}

/// What was done.
#[derive(Debug, Default)]
pub struct ReshardReport {
    /// Numbers of shards whose folders were emptied.
    pub from: Vec<u16>,
    pub sessions: u64,
    /// Files that were refused, where they are now, and why.
    pub refused: Vec<(PathBuf, RegionError)>,
    /// Files that held sessions which the folder for `shards` held too, and how many: those stay as they were there, and the files are kept.
    pub superseded: Vec<(PathBuf, u64)>,
}

/// Why nothing was moved. The regions are where they were.
#[derive(Debug, thiserror::Error)]
pub enum ReshardError {
    #[error(
        "the state of app {app:?} does not fit shard {shard} of {shards}: raise limits.region_mib (now {region_mib}), or start with as many \
         CPUs as before; nothing was changed"
    )]
    TooLarge { app: String, shard: u16, shards: u16, region_mib: u64 },
    #[error(
        "{} has no memory left for a second copy of the sessions while they are moved: free some, or start with as many CPUs as before; \
         nothing was changed", directory.display()
    )]
    NoMemory { directory: PathBuf },
    #[error("cannot open the region {} to move its sessions: nothing was changed", path.display())]
    Source {
        path: PathBuf,
        #[source]
        source: RegionError,
    },
    #[error("cannot make the region {} for sessions to move to: nothing was changed", path.display())]
    Target {
        path: PathBuf,
        #[source]
        source: RegionError,
    },
    #[error("cannot move a session of app {app:?}: nothing was changed")]
    Session {
        app: String,
        #[source]
        source: StateError,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

/// Brings all sessions into the folder for `options.shards`. `progress` hears from time to time how many sessions have been copied.
///
/// Cost: nothing when no other folder has regions; else about 2 us a session and the copying of the values.
/// Errors: nothing was changed, but that files that cannot be trusted may have been set aside.
pub fn reshard(options: &ReshardOptions<'_>, progress: &mut dyn FnMut(u64)) -> Result<ReshardReport, ReshardError> {
    files::finish_committed(options.directory)?;
    files::discard_drafts(options.directory)?;
    files::remove_empty_folders(options.directory, options.shards)?;
    let mut report = ReshardReport::default();
    let folders = files::shard_folders(options.directory)?;
    let own = folders.iter().find(|folder| folder.shards == options.shards);
    let has_strangers = |folder: &&ShardFolder| folder.shards != options.shards && !folder.regions.is_empty();
    let others: Vec<&ShardFolder> = folders.iter().filter(has_strangers).collect();
    let apps: BTreeSet<&str> = others.iter().flat_map(|folder| folder.regions.iter().map(|region| region.app.as_str())).collect();
    if apps.is_empty() {
        return Ok(report);
    }
    let draft = files::make_draft(options.directory, options.shards)?;
    let mut work = Work { options, draft: &draft, replaced: Vec::new(), report: &mut report, progress };
    for app in apps {
        // What this number of shards left itself comes first: it is the newer, should a session be in both.
        let sources = own.into_iter().chain(others.iter().copied());
        let sources =
            sources.flat_map(|folder| folder.regions.iter().filter(|region| region.app == app).map(move |region| (folder, region.shard)));
        work.move_app(app, sources)?;
    }
    let mut replaced = work.replaced;
    replaced.extend(others.iter().map(|folder| Replaced::Removed(folder.path_of(options.placement_file))));
    report.from = others.iter().map(|folder| folder.shards).collect();
    files::commit(options.directory, options.shards, &replaced)?;
    files::finish_committed(options.directory)?;
    files::remove_empty_folders(options.directory, options.shards)?;
    Ok(report)
}

struct Work<'w> {
    options: &'w ReshardOptions<'w>,
    draft: &'w Path,
    replaced: Vec<Replaced>,
    report: &'w mut ReshardReport,
    progress: &'w mut dyn FnMut(u64),
}

/// The regions that are being made for one app, by shard.
type Targets = BTreeMap<u16, Region>;

impl Work<'_> {
    fn move_app<'f>(&mut self, app: &str, sources: impl Iterator<Item = (&'f ShardFolder, u16)>) -> Result<(), ReshardError> {
        let mut targets = Targets::new();
        for (folder, shard) in sources {
            let path = folder.region_path(app, shard);
            // No larger than it is: it must stay as it was if this comes to nothing.
            let options = RegionOptions { app, shard, bytes_max: REGION_BYTES_MIN, hash_tag: self.options.hash_tag };
            match Region::open_or_create(&path, &options) {
                Ok(source) => {
                    let superseded = self.copy_sessions(app, &source, &mut targets)?;
                    self.replaced.push(if superseded > 0 {
                        let name = files::free_name(&path)?;
                        self.report.superseded.push((path.with_file_name(&name), superseded));
                        Replaced::Kept { path, name }
                    } else {
                        Replaced::Removed(path)
                    });
                }
                Err(error) if error.is_about_content() => {
                    let aside = set_aside(&path).map_err(|source| FileError::new("set aside", &path, source))?;
                    self.report.refused.push((aside, error));
                }
                Err(source) => return Err(ReshardError::Source { path, source }),
            }
        }
        Ok(())
    }

    /// Output: sessions that were there already.
    fn copy_sessions(&mut self, app: &str, source: &Region, targets: &mut Targets) -> Result<u64, ReshardError> {
        let mut superseded = 0;
        let mut value = vec![0; VALUE_BYTES_MAX];
        for (session, from) in namespaces(source) {
            let (shard, table_hash) = (self.options.owner)(app, &session);
            let target = self.target(app, shard, targets)?;
            if target.find(&session, table_hash).is_some() {
                superseded += 1;
                continue;
            }
            let copied = target
                .find_or_create(&session, table_hash)
                .and_then(|to| source.keys(from).try_for_each(|key| copy_key(source, from, target, to, &key, &mut value)));
            if let Err(error) = copied {
                return Err(self.refusal(app, shard, target, error));
            }
            self.report.sessions += 1;
            if self.report.sessions.is_multiple_of(PROGRESS_SESSIONS) {
                (self.progress)(self.report.sessions);
            }
        }
        Ok(superseded)
    }

    fn target<'t>(&self, app: &str, shard: u16, targets: &'t mut Targets) -> Result<&'t mut Region, ReshardError> {
        assert!(shard < self.options.shards, "a session's owner is one of the shards");
        match targets.entry(shard) {
            std::collections::btree_map::Entry::Occupied(there) => Ok(there.into_mut()),
            std::collections::btree_map::Entry::Vacant(place) => {
                let path = self.draft.join(files::region_name(app, shard));
                let ReshardOptions { region_bytes_max: bytes_max, hash_tag, .. } = *self.options;
                match Region::open_or_create(&path, &RegionOptions { app, shard, bytes_max, hash_tag }) {
                    Ok(region) => Ok(place.insert(region)),
                    Err(RegionError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => Err(self.no_memory()),
                    Err(source) => Err(ReshardError::Target { path, source }),
                }
            }
        }
    }

    fn refusal(&self, app: &str, shard: u16, target: &Region, error: StateError) -> ReshardError {
        let ReshardOptions { shards, region_bytes_max, .. } = *self.options;
        match error {
            StateError::RegionFull if target.alloc.was_refused_memory() => self.no_memory(),
            StateError::RegionFull => ReshardError::TooLarge { app: app.to_owned(), shard, shards, region_mib: region_bytes_max >> 20 },
            source => ReshardError::Session { app: app.to_owned(), source },
        }
    }

    fn no_memory(&self) -> ReshardError {
        ReshardError::NoMemory { directory: self.options.directory.to_owned() }
    }
}

/// All sessions of a region.
fn namespaces(region: &Region) -> impl Iterator<Item = (SessionId, NamespaceRef)> {
    let words = region.space.words();
    SESSIONS.leaves(words).map(move |record| {
        let (session, _) = namespace::session(words, record).expect("the record was checked when the region was opened");
        let incarnation = namespace::incarnation(words, record).expect("a record lies inside the region");
        (session, NamespaceRef { record, incarnation })
    })
}

fn copy_key(
    source: &Region,
    from: NamespaceRef,
    target: &mut Region,
    to: NamespaceRef,
    key: &StateKey,
    value: &mut [u8],
) -> Result<(), StateError> {
    let bytes = source.read(from, key.as_bytes(), value).expect("the key was listed a moment ago");
    target.write(to, key.as_bytes(), &value[..bytes], SESSION_BYTES_MAX)
}
