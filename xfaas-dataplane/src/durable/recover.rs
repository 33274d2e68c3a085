//! At start, before any shard runs: what the log holds and the regions do not goes into the regions; `begin` makes a fresh log of them.
//! Called by `node`. docs/ARCHITECTURE.md, "The log", tells which region is believed.

use super::begin::{Drafts, OpenRegion, Replayed};
use super::files::{CURRENT, LogDirectory, LogError, SegmentFile};
use super::format::{BatchKind, Head, SegmentKind};
use super::segment::SegmentReader;
use crate::state::{BadRecord, Record, Region, RegionError, RegionOptions, StateError, set_aside};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use xfaas_common::ids::SessionId;

/// Of the first batch of a log.
pub const FIRST_SEQUENCE: u64 = 1;

/// Where a session's state lies on this node.
#[derive(Clone, Copy, Debug)]
pub struct SessionPlace {
    pub shard: u16,
    pub table_hash: u32,
}

pub struct RecoverOptions<'a> {
    /// The log's folder.
    pub directory: &'a Path,
    /// Where this number of shards has its regions.
    pub region_directory: &'a Path,
    pub region_bytes_max: u64,
    pub hash_tag: u64,
    pub shards: u16,
    /// By app and session.
    pub place: &'a dyn Fn(&str, &SessionId) -> SessionPlace,
    /// Apps whose regions have just come here from another number of shards with all that the log has: `whole_apps`.
    pub whole: &'a BTreeSet<String>,
}

/// What a start found, and what its shards go on with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub epoch: u64,
    /// Segments below it are those of the former log.
    pub first_number: u64,
    /// Segments from here on are the shards' to number.
    pub next_number: u64,
    /// Apps with the identities of their regions, by shard, whose snapshots the fresh log has.
    pub covered: BTreeSet<(u16, String, u64)>,
    /// Records that went into regions.
    pub replayed: u64,
    /// Ends of logs that were cut.
    pub torn: u64,
    /// Files set aside because they were damaged in the middle.
    pub damaged: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    Log(LogError),
    #[error(
        "{} tells which writes of the log count: restore it as it was last (it changes at each start), or move {} away to start without what only the log holds",
        path.display(),
        folder.display()
    )]
    Current {
        path: PathBuf,
        folder: PathBuf,
        #[source]
        source: Box<LogError>,
    },
    #[error("the log has writes of app {app:?}, whose region cannot be used")]
    Region {
        app: String,
        #[source]
        source: RegionError,
    },
    #[error("the log has writes of app {app:?} that do not fit into its region: raise `limits.region_mib`")]
    Replay {
        app: String,
        #[source]
        source: StateError,
    },
    #[error("cannot make a region of app {app:?} from the log")]
    Draft {
        app: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot give the region {} its name", path.display())]
    Name {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot set {} aside", path.display())]
    SetAside {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl From<LogError> for RecoverError {
    /// Without `current` nobody knows which segments count: whoever meets that must hear what to do.
    fn from(source: LogError) -> RecoverError {
        if source.operation != "read" || source.path.file_name().is_none_or(|name| name != CURRENT) {
            return RecoverError::Log(source);
        }
        let path = source.path.clone();
        let folder = path.parent().unwrap_or(&path).to_owned();
        RecoverError::Current { path, folder, source: Box::new(source) }
    }
}

/// A segment with its head, if that holds.
type Segment = (SegmentFile, Option<Head>);
/// The segments of each shard by number.
type Logs = BTreeMap<u16, Vec<Segment>>;

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SegmentEnd {
    Whole,
    /// Something stands there that does not hold.
    Torn,
    /// What stands there was not written by a log that went on from what came before, or it had to hold.
    Damaged,
}

/// How far the batches of one shard's log are known.
struct Chain {
    /// The next batch has this sequence; before the first one, this or a smaller one.
    bound: u64,
    has_begun: bool,
    /// The last snapshot of each app, by number: nothing before it counts.
    begins: BTreeMap<String, u64>,
}

impl Chain {
    fn note_snapshot(&mut self, head: &Head) {
        if !self.has_begun {
            self.bound = self.bound.max(head.goes_on_at);
        }
    }
}

fn begins(log: &[Segment]) -> BTreeMap<String, u64> {
    let snapshots = log.iter().filter_map(|(segment, head)| Some((segment.number, head.as_ref()?)));
    let snapshots = snapshots.filter(|(_, head)| head.kind == SegmentKind::Snapshot);
    snapshots.flat_map(|(number, head)| head.apps.iter().map(move |app| (app.name.clone(), number))).collect()
}

struct Recovery<'a> {
    options: &'a RecoverOptions<'a>,
    directory: LogDirectory,
    epoch: u64,
    /// The log is of as many shards as there are now, so that each one's log is about its own regions.
    same_shards: bool,
    regions: BTreeMap<(u16, String), OpenRegion>,
    drafts: Drafts,
    /// Sessions of which the store has something newer than the log, by app: their apps had left the log.
    ended: BTreeMap<String, BTreeSet<SessionId>>,
    report: Recovered,
}

/// Brings the regions up to what was acknowledged; with `Replayed::begin` a new log begins. Cost: the log is read unless every region is believed.
pub fn replay(options: &RecoverOptions<'_>) -> Result<Replayed, RecoverError> {
    let directory = LogDirectory::open(options.directory)?;
    directory.remove_drafts()?;
    let current = directory.current()?;
    let segments = directory.segments()?;
    if current.is_none() && !segments.is_empty() {
        // A new log has its first segment after `current`, so this is no start that was cut short: all of them would count as left-overs.
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "it is not there, but segments of a log are");
        return Err(LogError { operation: "read", path: options.directory.join(CURRENT), source }.into());
    }
    let next_number = segments.last().map_or(1, |last| last.number + 1);
    let epoch = current.map_or(0, |current| current.epoch);
    let report = Recovered { epoch: epoch + 1, first_number: next_number, next_number, ..Recovered::default() };
    let same_shards = current.is_some_and(|current| current.shards == options.shards);
    let drafts = Drafts::open(options.region_directory).map_err(|source| RecoverError::Draft { app: String::new(), source })?;
    let (regions, ended) = (BTreeMap::new(), BTreeMap::new());
    let mut recovery = Recovery { options, directory, epoch, same_shards, regions, drafts, ended, report };
    let logs = recovery.logs(segments)?;
    recovery.open_regions(&logs)?;
    for log in logs.values() {
        recovery.replay(log)?;
    }
    recovery.leave_out_ended();
    let Recovery { directory, regions, drafts, report, .. } = recovery;
    Ok(Replayed::new(options, directory, current, regions, report, drafts))
}

impl Recovery<'_> {
    /// The segments in force, by shard. Those of other epochs are removed: a start was cut short before or after they counted.
    /// Errors: also, `current` is an older one than its log.
    fn logs(&mut self, segments: Vec<SegmentFile>) -> Result<Logs, RecoverError> {
        let (mut logs, mut left_over) = (Logs::new(), Vec::new());
        for segment in segments {
            match SegmentReader::open(&segment, self.epoch)?.head()? {
                Some((head, epoch)) if self.is_newer(&head, epoch) => return Err(self.outdated()),
                Some((_, epoch)) if epoch != self.epoch => left_over.push(segment),
                head => logs.entry(segment.shard).or_default().push((segment, head.map(|(head, _)| head))),
            }
        }
        for segment in left_over {
            self.directory.remove(&segment.path)?;
        }
        Ok(logs)
    }

    /// True for a segment that no start can have left before `current` said so: of the next log only snapshots are made by then.
    fn is_newer(&self, head: &Head, epoch: u64) -> bool {
        epoch > self.epoch + 1 || epoch > self.epoch && head.kind == SegmentKind::Writes
    }

    fn outdated(&self) -> RecoverError {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, "it is older than the log beside it");
        LogError { operation: "read", path: self.options.directory.join(CURRENT), source }.into()
    }

    /// Opens the region of every app of the log, made anew where it is not the one that the log was written beside.
    fn open_regions(&mut self, logs: &Logs) -> Result<(), RecoverError> {
        let mut identities: BTreeMap<(u16, String), u64> = BTreeMap::new();
        for (shard, log) in logs {
            for app in log.iter().filter_map(|(_, head)| head.as_ref()).flat_map(|head| &head.apps) {
                identities.insert((*shard, app.name.clone()), app.identity);
            }
        }
        let apps: BTreeSet<&String> = identities.keys().map(|(_, app)| app).collect();
        for app in apps {
            for shard in 0..self.options.shards {
                let identity = identities.get(&(shard, app.clone())).filter(|_| self.same_shards);
                let open = self.open_region(shard, app, identity.copied())?;
                self.regions.insert((shard, app.clone()), open);
            }
        }
        Ok(())
    }

    fn open_region(&self, shard: u16, app: &str, identity: Option<u64>) -> Result<OpenRegion, RecoverError> {
        let file_name = format!("{app}.{shard}.region");
        let path = self.options.region_directory.join(&file_name);
        let failed = |source| RecoverError::Region { app: app.to_owned(), source };
        let RecoverOptions { region_bytes_max, hash_tag, .. } = *self.options;
        let options = RegionOptions { app, shard, bytes_max: region_bytes_max, hash_tag };
        let is_whole = self.options.whole.contains(app);
        if path.exists() {
            match Region::open_or_create(&path, &options) {
                Ok(region) if is_whole || self.is_of_the_log(&region, identity) => {
                    return Ok(OpenRegion { region, is_believed: true, name: None });
                }
                Ok(region) => {
                    drop(region);
                    self.set_aside(&path, "it is not the region that the log was written beside")?;
                }
                Err(error) if error.is_about_content() => self.set_aside(&path, &error.to_string())?,
                Err(source) => return Err(failed(source)),
            }
        }
        let draft = self.drafts.path(&file_name).map_err(|source| RecoverError::Draft { app: app.to_owned(), source })?;
        let region = Region::open_or_create(&draft, &options).map_err(failed)?;
        Ok(OpenRegion { region, is_believed: is_whole, name: Some(path) })
    }

    /// True when the log was written beside it. A log that knows nothing of an app here had not begun: a deployment was cut short.
    fn is_of_the_log(&self, region: &Region, identity: Option<u64>) -> bool {
        self.same_shards && identity.is_none_or(|identity| identity == region.identity())
    }

    fn set_aside(&self, path: &Path, why: &str) -> Result<(), RecoverError> {
        let aside = set_aside(path).map_err(|source| RecoverError::SetAside { path: path.to_owned(), source })?;
        tracing::error!("{}: {why}; set aside as {}", path.display(), aside.display());
        Ok(())
    }

    /// Applies one shard's log as far as it holds.
    fn replay(&mut self, log: &[Segment]) -> Result<(), RecoverError> {
        let shard = log.first().map_or(0, |(segment, _)| segment.shard);
        let may_be_for = |at: u16| !self.same_shards || at == shard;
        if !self.regions.iter().any(|((at, _), open)| !open.is_believed && may_be_for(*at)) {
            return Ok(());
        }
        let mut chain = Chain { bound: FIRST_SEQUENCE, has_begun: false, begins: begins(log) };
        for (index, (segment, head)) in log.iter().enumerate() {
            let mut reader = SegmentReader::open(segment, self.epoch)?;
            reader.head()?;
            let end = match head {
                None => SegmentEnd::Damaged,
                Some(head) if head.kind == SegmentKind::Snapshot => {
                    chain.note_snapshot(head);
                    self.replay_snapshot(&mut reader, &chain)?
                }
                Some(_) => self.replay_writes(&mut reader, &mut chain)?,
            };
            if end == SegmentEnd::Whole {
                continue;
            }
            // A segment is left alone when a write to it fails. So one that goes on behind what does not hold is damaged, and so is the log
            // if it goes on elsewhere with a later batch. Else the end of the machine cut off what was under way.
            let offset = reader.offset;
            if end == SegmentEnd::Damaged || reader.has_later()? || self.goes_on_beyond(&log[index + 1..], chain.bound)? {
                return self.give_up(&log[index..], offset);
            }
            tracing::warn!("a write of the log was cut off: {} at byte {offset}; it was never acknowledged", segment.path.display());
            self.report.torn += 1;
        }
        Ok(())
    }

    /// True when a later segment begins with a batch after `sequence`.
    fn goes_on_beyond(&self, later: &[Segment], sequence: u64) -> Result<bool, RecoverError> {
        for (segment, head) in later {
            if head.as_ref().is_some_and(|head| head.kind == SegmentKind::Writes) {
                let mut reader = SegmentReader::open(segment, self.epoch)?;
                reader.head()?;
                if let Some(batch) = reader.next()? {
                    return Ok(batch.place.sequence > sequence);
                }
            }
        }
        Ok(false)
    }

    /// The log is damaged in the middle: what came before counts, the rest is kept for inspection.
    fn give_up(&mut self, log: &[Segment], offset: u64) -> Result<(), RecoverError> {
        let [(first, _), ..] = log else { return Ok(()) };
        tracing::error!(
            "the log of shard {} is damaged in the middle: {} at byte {offset}; writes before it are loaded, acknowledged writes after it are LOST to this node",
            first.shard,
            first.path.display()
        );
        for (segment, _) in log {
            self.set_aside(&segment.path, "the log is damaged there or before")?;
            self.report.damaged += 1;
        }
        Ok(())
    }

    fn replay_snapshot(&mut self, reader: &mut SegmentReader<'_>, chain: &Chain) -> Result<SegmentEnd, RecoverError> {
        let number = reader.number();
        while let Some(batch) = reader.next()? {
            if batch.kind == BatchKind::End {
                return Ok(SegmentEnd::Whole);
            }
            if self.apply(batch.payload, number, chain)?.is_err() {
                return Ok(SegmentEnd::Damaged);
            }
        }
        Ok(SegmentEnd::Damaged) // it had to be whole before it got its name
    }

    fn replay_writes(&mut self, reader: &mut SegmentReader<'_>, chain: &mut Chain) -> Result<SegmentEnd, RecoverError> {
        let number = reader.number();
        loop {
            let before = reader.offset;
            let Some(batch) = reader.next()? else {
                return Ok(if reader.is_zero_from_here()? { SegmentEnd::Whole } else { SegmentEnd::Torn });
            };
            let sequence = batch.place.sequence;
            // One that is known already was written twice: the first time the disk had it and said it had not.
            let is_known = chain.has_begun && sequence < chain.bound;
            let is_good = batch.kind == BatchKind::Records
                && sequence <= chain.bound
                && (is_known || self.apply(batch.payload, number, chain)?.is_ok());
            if !is_good {
                reader.offset = before;
                return Ok(SegmentEnd::Damaged);
            }
            if !is_known {
                (chain.bound, chain.has_begun) = (sequence + 1, true);
            }
        }
    }

    /// At the end, because a session that was moved is ended in the log of another shard than the one that has its writes. One whose app was logged
    /// again has a later snapshot of that in each log.
    fn leave_out_ended(&mut self) {
        for (app, session) in self.ended.iter().flat_map(|(app, sessions)| sessions.iter().map(move |session| (app, session))) {
            let SessionPlace { shard, table_hash } = (self.options.place)(app, session);
            let open = self.regions.get_mut(&(shard, app.clone())).filter(|open| !open.is_believed);
            if let Some(OpenRegion { region, .. }) = open
                && let Some(namespace) = region.find(session, table_hash)
            {
                region.remove(namespace);
            }
        }
    }

    fn apply(&mut self, mut records: &[u8], number: u64, chain: &Chain) -> Result<Result<(), BadRecord>, RecoverError> {
        while !records.is_empty() {
            let (record, rest) = match Record::decode(records) {
                Ok(decoded) => decoded,
                Err(bad) => return Ok(Err(bad)),
            };
            records = rest;
            if chain.begins.get(record.app).is_some_and(|begin| number < *begin) {
                continue; // a later snapshot has it, or has it deleted
            }
            if record.is_end {
                match self.ended.get_mut(record.app) {
                    Some(ended) => drop(ended.insert(record.session)),
                    None => drop(self.ended.insert(record.app.to_owned(), [record.session].into())),
                }
                continue;
            }
            let SessionPlace { shard, table_hash } = (self.options.place)(record.app, &record.session);
            let Some(open) = self.regions.get_mut(&(shard, record.app.to_owned())).filter(|open| !open.is_believed) else { continue };
            let region = &mut open.region;
            let namespace = region.find_or_create(&record.session, table_hash);
            let written = namespace.and_then(|namespace| region.write_many(namespace, record.writes(), usize::MAX));
            written.map_err(|source| RecoverError::Replay { app: record.app.to_owned(), source })?;
            self.report.replayed += 1;
        }
        Ok(Ok(()))
    }
}
