//! What one shard owns of session state: a region for each app, and the locks. Regions are files of one directory, named by app and shard.
//! Called by the shard's thread; opening is set-up work, everything else is on the hot path.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use xfaas_common::ids::SessionId;

use super::error::RegionError;
use super::journal::Journal;
use super::layout::RegionOptions;
use super::limit::LimitCounts;
use super::lock::LockTable;
use super::places::SessionPlaces;
use super::readers::Readers;
use super::region::{Region, RegionStats};
use super::session_timers::TimerScan;
use super::timers::TimerQueue;

/// Regions asked at once whether they need compaction.
const COMPACT_REGIONS_MAX: usize = 16;

/// Regions and locks of one shard.
pub struct ShardState {
    pub locks: LockTable,
    /// Of the other shards' regions.
    pub readers: Readers,
    /// Where other sessions than a call's own are; `None` until the shard knows.
    pub places: Option<Box<dyn SessionPlaces>>,
    /// Writes of the apps whose durability is `sync`.
    pub journal: Journal,
    pub timers: TimerQueue,
    /// Limits that calls have hit here.
    pub refused: LimitCounts,
    pub(super) timer_scan: TimerScan,
    directory: PathBuf,
    shard: u16,
    region_bytes_max: u64,
    hash_tag: u64,
    /// By the app's index.
    pub(super) regions: Vec<Option<OpenApp>>,
    /// Index of the region that compaction looks at next.
    compact_next: usize,
}

pub(super) struct OpenApp {
    name: String,
    pub(super) region: Region,
}

/// Sums over the regions of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStateStats {
    pub regions: usize,
    pub total: RegionStats,
    /// Locks held.
    pub locks: usize,
}

impl ShardState {
    /// No region is open yet. `directory` is made at the first `open_app`; `region_bytes_max` is each region's, 1 MiB..=64 GiB.
    pub fn new(directory: PathBuf, shard: u16, region_bytes_max: u64) -> ShardState {
        let (locks, readers) = (LockTable::new(), Readers::default());
        ShardState {
            locks,
            readers,
            places: None,
            journal: Journal::default(),
            timers: TimerQueue::of_shard(shard),
            refused: LimitCounts::default(),
            timer_scan: TimerScan::default(),
            directory,
            shard,
            region_bytes_max,
            hash_tag: 0,
            regions: Vec::new(),
            compact_next: 0,
        }
    }

    /// Ties regions to the node's hash keys (`RegionOptions::hash_tag`): one made under other keys is refused at opening.
    pub fn set_hash_tag(&mut self, hash_tag: u64) {
        self.hash_tag = hash_tag;
    }

    /// The file of an app's region on this shard.
    pub fn region_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.{}.region", self.shard))
    }

    /// Opens or makes the region of app `app`, an index. Done already for the same name: nothing happens; for another one, it takes the
    /// old one's place. Errors: `RegionError`; when `is_about_content`, `set_aside` and a second try give the app an empty region.
    pub fn open_app(&mut self, app: u16, name: &str) -> Result<(), RegionError> {
        let index = usize::from(app);
        if self.regions.get(index).and_then(Option::as_ref).is_some_and(|open| open.name == name) {
            return Ok(());
        }
        let options = RegionOptions { app: name, shard: self.shard, bytes_max: self.region_bytes_max, hash_tag: self.hash_tag };
        options.pages()?; // the name is checked before it becomes part of a path
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|source| RegionError::Io { operation: "create state directory", path: self.directory.clone(), source })?;
        let region = Region::open_or_create(&self.region_path(name), &options)?;
        if self.regions.len() <= index {
            self.regions.resize_with(index + 1, || None);
        }
        self.regions[index] = Some(OpenApp { name: name.to_owned(), region });
        self.begin_timer_scan(app);
        Ok(())
    }

    /// Lets go of an app's region; the file stays.
    pub fn close_app(&mut self, app: u16) {
        if let Some(open) = self.regions.get_mut(usize::from(app)) {
            *open = None;
        }
    }

    /// The name of an app whose region is open, else an empty one.
    pub fn app_name(&self, app: u16) -> &str {
        self.regions.get(usize::from(app)).and_then(Option::as_ref).map_or("", |open| &open.name)
    }

    #[inline(always)]
    pub fn region(&self, app: u16) -> Option<&Region> {
        Some(&self.regions.get(usize::from(app))?.as_ref()?.region)
    }

    #[inline(always)]
    pub fn region_mut(&mut self, app: u16) -> Option<&mut Region> {
        Some(&mut self.regions.get_mut(usize::from(app))?.as_mut()?.region)
    }

    /// The open regions with their apps' indexes.
    pub fn regions(&self) -> impl Iterator<Item = (u16, &Region)> {
        self.regions.iter().enumerate().filter_map(|(app, open)| open.as_ref().map(|open| (app as u16, &open.region)))
    }

    /// Some compaction, of one region that needs it; another one's turn is the next time. `is_held` (app, session, table hash) tells which
    /// references are kept, see `Region::compact_some`. To be called some ten times a second.
    pub fn compact_some(&mut self, bytes_max: usize, is_held: &mut dyn FnMut(u16, &SessionId, u32) -> bool) {
        for _ in 0..self.regions.len().min(COMPACT_REGIONS_MAX) {
            self.compact_next = (self.compact_next + 1) % self.regions.len();
            let app = self.compact_next as u16;
            let Some(open) = &mut self.regions[self.compact_next] else { continue };
            if open.region.compact_some(bytes_max, &mut |session, table_hash| is_held(app, session, table_hash)) {
                return;
            }
        }
    }

    pub fn stats(&self) -> ShardStateStats {
        let mut sums = ShardStateStats { locks: self.locks.locks_held(), ..ShardStateStats::default() };
        for open in self.regions.iter().flatten() {
            let stats = open.region.stats();
            let total = &mut sums.total;
            sums.regions += 1;
            total.bytes_max += stats.bytes_max;
            total.bytes_used += stats.bytes_used;
            total.bytes_blocks += stats.bytes_blocks;
            total.bytes_held += stats.bytes_held;
            total.bytes_live += stats.bytes_live;
            total.sessions += stats.sessions;
            total.keys += stats.keys;
        }
        sums
    }
}

/// Sets of files set aside at one path before the oldest name is not found free any more.
const ASIDE_MAX: u32 = 1_000;

/// Renames a refused region so that it is kept for inspection and a new one can be made. Output: its new path.
/// Errors: as the system gives them; `AlreadyExists` when a thousand are kept already.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    for number in 0..ASIDE_MAX {
        let aside = path.with_added_extension(format!("refused-{number}"));
        if !aside.try_exists()? {
            std::fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::super::region_tests::Scratch;
    use super::*;

    #[test]
    fn apps_have_regions_of_their_own_that_outlive_the_state() {
        let scratch = Scratch::new();
        let session = SessionId::new(b"s").unwrap();
        let mut state = ShardState::new(scratch.path().join("state"), 3, 4 << 20);
        assert!(matches!(state.open_app(0, "../a"), Err(RegionError::BadAppName { .. })));
        for (app, name) in [(0, "a"), (2, "b")] {
            state.open_app(app, name).unwrap();
            let region = state.region_mut(app).unwrap();
            let ns = region.find_or_create(&session, 1).unwrap();
            region.write(ns, b"name", name.as_bytes(), 100).unwrap();
        }
        assert!(state.region(1).is_none() && state.region(9).is_none());
        assert_eq!(state.stats().total.sessions, 2);
        let mut second = ShardState::new(scratch.path().join("state"), 3, 4 << 20);
        assert!(matches!(second.open_app(0, "a"), Err(RegionError::InUse { .. })));
        drop(state);
        second.open_app(0, "b").unwrap();
        let region = second.region(0).unwrap();
        let mut buf = [0; 4];
        assert_eq!(region.read(region.find(&session, 1).unwrap(), b"name", &mut buf), Some(1));
        assert_eq!(buf[0], b'b');
    }

    #[test]
    fn a_refused_region_is_set_aside_and_kept() {
        let scratch = Scratch::new();
        let mut state = ShardState::new(scratch.path().to_owned(), 0, 4 << 20);
        let path = state.region_path("a");
        std::fs::write(&path, b"not a region").unwrap();
        let refused = state.open_app(0, "a").unwrap_err();
        assert!(refused.is_about_content(), "{refused}");
        let aside = set_aside(&path).unwrap();
        state.open_app(0, "a").unwrap();
        assert_eq!(std::fs::read(aside).unwrap(), b"not a region");
    }
}
