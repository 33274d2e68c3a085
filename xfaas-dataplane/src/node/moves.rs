//! Before the shards start: the record of moved sessions is read, and of each session that a kill left in two places the copy that does not
//! count is removed. Where the record is lost or damaged, the regions themselves are asked where sessions are. Called by `Node::start`.

use crate::config::Config;
use crate::session::{Displaced, FoundBook, LocalPlacement, PIN_BOOK, PinBook, PinError, Placement};
use crate::state::{REGION_BYTES_MIN, Region, RegionError, RegionOptions, set_aside};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xfaas_common::hash::HashKeys;
use xfaas_common::ids::{CoreIndex, SessionId, is_name};
use xfaas_common::limits::CORES_MAX;

/// A killed process's lock goes when the kernel has taken all of it apart, which may be a moment after its end.
const IN_USE_MAX: Duration = Duration::from_secs(1);
const IN_USE_RETRY: Duration = Duration::from_millis(2);

#[derive(Debug, thiserror::Error)]
pub enum MovesError {
    #[error("the record of moved sessions cannot be used")]
    Record(#[from] PinError),
    #[error("cannot look for copies of a moved session in {}", path.display())]
    Region {
        path: PathBuf,
        #[source]
        source: RegionError,
    },
    #[error("cannot set aside the record of moved sessions {}, which is damaged: {what}", path.display())]
    SetAside {
        path: PathBuf,
        what: String,
        #[source]
        source: std::io::Error,
    },
}

/// Makes sure that every session is in one place, for each number of shards that left sessions. Output: the record for today's number.
pub(super) fn settle(config: &Config, keys: &HashKeys) -> Result<PinBook, MovesError> {
    let folder = |shards: usize| config.shared_memory_dir.join(format!("shards-{shards}"));
    for shards in (1..=CORES_MAX).filter(|shards| *shards != config.cpus.len()) {
        if !region_apps(&folder(shards)).is_empty() {
            settle_folder(&folder(shards), &LocalPlacement::with_keys(shards, *keys))?;
        } else if std::fs::remove_file(folder(shards).join(PIN_BOOK)).is_ok() {
            // Left by a start that was killed before it had any. Not empty: somebody else's files.
            std::fs::remove_dir(folder(shards)).ok();
        }
    }
    settle_folder(&folder(config.cpus.len()), &LocalPlacement::with_keys(config.cpus.len(), *keys))
}

/// The apps that have regions in a folder.
fn region_apps(folder: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let app_of = |name: std::ffi::OsString| {
        let (app, shard) = name.to_str()?.strip_suffix(".region")?.rsplit_once('.')?;
        (is_name(app.as_bytes()) && shard.parse::<u16>().is_ok()).then(|| app.to_owned())
    };
    names.filter_map(app_of).collect()
}

fn settle_folder(folder: &Path, placement: &LocalPlacement) -> Result<PinBook, MovesError> {
    let mut book = match PinBook::find(folder)? {
        FoundBook::Whole(book) => book,
        FoundBook::Nothing => {
            let displaced = look_for_displaced(folder, placement)?;
            let book = PinBook::begin_anew(folder, &displaced)?;
            if !displaced.is_empty() {
                let (folder, sessions) = (folder.display(), displaced.len());
                tracing::warn!(
                    sessions,
                    "the record of moved sessions in {folder} is lost: they were found in the regions and stay where they are"
                );
            }
            book
        }
        FoundBook::Damaged(path, what) => {
            let displaced = look_for_displaced(folder, placement)?;
            // First, so that it is kept: after a kill from here on there is no record, and the regions are asked again.
            let aside = set_aside(&path).map_err(|source| MovesError::SetAside { path, what: what.clone(), source })?;
            let book = PinBook::begin_anew(folder, &displaced)?;
            let (aside, sessions) = (aside.display(), displaced.len());
            tracing::error!(
                sessions,
                "the record of moved sessions is damaged, {what}: set aside as {aside}; those found in the regions stay where they are"
            );
            book
        }
    };
    for (app, session) in book.unfinished() {
        settle_session(folder, placement, &mut book, &app, &session)?;
        book.end(&app, &session)?;
    }
    Ok(book)
}

/// Leaves the owner's copy alone of those there are. Should the owner have none, the first one found counts from now on: whatever went
/// wrong, a session is not lost.
fn settle_session(folder: &Path, placement: &LocalPlacement, book: &mut PinBook, app: &str, session: &SessionId) -> Result<(), MovesError> {
    let hash = placement.hash(session);
    let (home, table_hash) = (placement.owner(hash.slot()), hash.table_hash());
    let mut counts = book.core_of(app, session).unwrap_or(home);
    let mut copies = Vec::new();
    for shard in 0..placement.shards() {
        if let Some(region) = open(folder, placement, app, shard)?
            && region.find(session, table_hash).is_some()
        {
            copies.push((CoreIndex(shard), region));
        }
    }
    if !copies.iter().any(|(core, _)| *core == counts)
        && let Some((core, _)) = copies.first()
    {
        counts = *core;
        book.set(app, session, (counts != home).then_some(counts))?;
    }
    for (_, mut region) in copies.into_iter().filter(|(core, _)| *core != counts) {
        if let Some(namespace) = region.find(session, table_hash) {
            region.remove(namespace);
        }
    }
    tracing::info!(%session, app, core = counts.0, "a session was being moved when this server was killed: it is on this core now");
    Ok(())
}

/// All sessions of a folder that are not, or not only, with their slot's owner, by what the regions hold. Of those that sleep none is among
/// them: when the store is listed they are given to their slots' owners, and wake there with their latest checkpoint.
///
/// Cost: about 0.3 us a session or key, as opening the regions.
fn look_for_displaced(folder: &Path, placement: &LocalPlacement) -> Result<Vec<Displaced>, MovesError> {
    let mut displaced = Vec::new();
    for app in region_apps(folder) {
        let mut regions = Vec::new();
        for shard in 0..placement.shards() {
            regions.extend(open(folder, placement, &app, shard)?.map(|region| (CoreIndex(shard), region)));
        }
        let away = |(core, region): &(CoreIndex, Region)| {
            let core = *core;
            let sessions = region.sessions().map(|(session, ..)| session);
            sessions.filter(|session| placement.owner(placement.hash(session).slot()) != core).collect::<Vec<_>>()
        };
        let sessions: BTreeSet<SessionId> = regions.iter().flat_map(away).collect();
        displaced.extend(sessions.iter().map(|session| judge(placement, &app, session, &regions)));
    }
    Ok(displaced)
}

/// Says which copy of a session counts when no record does: the one that holds most. Nothing is written to a session that moves, and its former
/// owner has all of it until the new one does, so the other is a part of it, or the same.
fn judge(placement: &LocalPlacement, app: &str, session: &SessionId, regions: &[(CoreIndex, Region)]) -> Displaced {
    let hash = placement.hash(session);
    let home = placement.owner(hash.slot());
    let held = |region: &Region| region.namespace_size(region.find(session, hash.table_hash())?);
    let copies = regions.iter().filter_map(|(core, region)| held(region).map(|(bytes, keys)| (keys, bytes, *core)));
    let copies: Vec<_> = copies.collect();
    let fullest = copies.iter().max_by_key(|(keys, bytes, core)| (keys, bytes, *core == home, Reverse(core.0)));
    let counts = fullest.map_or(home, |(.., core)| *core);
    if copies.len() > 1 {
        tracing::warn!(%session, app, core = counts.0, "a session was in more than one place: the copy that holds most is kept");
    }
    Displaced { app: app.to_owned(), session: *session, core: (counts != home).then_some(counts), has_copies: copies.len() > 1 }
}

/// `None`: there is no such file, or nothing in it can be trusted, which its shard will say.
fn open(folder: &Path, placement: &LocalPlacement, app: &str, shard: u16) -> Result<Option<Region>, MovesError> {
    let path = folder.join(format!("{app}.{shard}.region"));
    if !path.exists() {
        return Ok(None);
    }
    // No larger than it is.
    let options = RegionOptions { app, shard, bytes_max: REGION_BYTES_MIN, hash_tag: placement.fingerprint() };
    let deadline = Instant::now() + IN_USE_MAX;
    loop {
        match Region::open_or_create(&path, &options) {
            Ok(region) => return Ok(Some(region)),
            Err(error) if error.is_about_content() => return Ok(None),
            Err(RegionError::InUse { .. }) if Instant::now() < deadline => std::thread::sleep(IN_USE_RETRY),
            Err(source) => return Err(MovesError::Region { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &[u8] = b"hot";

    /// Puts a copy of the session with so many keys there.
    fn write(folder: &Path, placement: &LocalPlacement, shard: u16, keys: u8) {
        let options = RegionOptions { app: "shop", shard, bytes_max: 4 << 20, hash_tag: placement.fingerprint() };
        let mut region = Region::open_or_create(&folder.join(format!("shop.{shard}.region")), &options).unwrap();
        let session = SessionId::new(SESSION).unwrap();
        let namespace = region.find_or_create(&session, placement.hash(&session).table_hash()).unwrap();
        for key in 0..keys {
            region.write(namespace, &[b'a' + key], b"1", 100).unwrap();
        }
    }

    fn has(folder: &Path, placement: &LocalPlacement, shard: u16) -> bool {
        let session = SessionId::new(SESSION).unwrap();
        let region = open(folder, placement, "shop", shard).unwrap();
        region.is_some_and(|region| region.find(&session, placement.hash(&session).table_hash()).is_some())
    }

    #[test]
    fn one_copy_stays_and_it_is_the_one_that_counts() {
        let placement = LocalPlacement::new(2);
        let session = SessionId::new(SESSION).unwrap();
        let home = placement.owner(placement.hash(&session).slot());
        let away = CoreIndex(1 - home.0);
        // Copies that are there, whether the move was committed, and where the session is afterwards.
        let cases = [
            (vec![home, away], false, Some(home)),
            (vec![home, away], true, Some(away)),
            (vec![away], false, Some(away)),
            (vec![home], true, Some(home)),
            (vec![], true, None),
        ];
        for (copies, is_committed, expected) in cases {
            let folder = tempfile::tempdir().unwrap();
            copies.iter().for_each(|core| write(folder.path(), &placement, core.0, 1));
            let committed = if is_committed { format!("pin shop hot {}\n", away.0) } else { String::new() };
            std::fs::write(folder.path().join(PIN_BOOK), format!("begin shop hot\n{committed}")).unwrap();
            let book = settle_folder(folder.path(), &placement).unwrap();
            for core in [home, away] {
                assert_eq!(has(folder.path(), &placement, core.0), Some(core) == expected, "{copies:?} {is_committed}");
            }
            if let Some(expected) = expected {
                assert_eq!(book.core_of("shop", &session).unwrap_or(home), expected, "{copies:?} {is_committed}");
            }
            drop(book);
            assert!(PinBook::open(folder.path()).unwrap().unfinished().is_empty());
        }
    }

    /// How a record may be lost: what is in its place, and whether that is worth keeping.
    const LOSSES: [(Option<&str>, bool); 5] = [
        (None, false),
        (Some(""), false),
        (Some("\0\0\0\0"), true),
        (Some("pin shop hot\n"), true),
        (Some("moves 2 0000000000 00000000\n"), true),
    ];

    #[test]
    fn where_the_record_is_lost_or_damaged_sessions_stay_where_the_regions_have_them() {
        let placement = LocalPlacement::new(2);
        let session = SessionId::new(SESSION).unwrap();
        let home = placement.owner(placement.hash(&session).slot());
        let away = CoreIndex(1 - home.0);
        // Copies with their keys, and where the session is afterwards: a half-made copy is not what counts, whoever has it.
        let cases = [
            (vec![], None),
            (vec![(home, 2)], Some(home)),
            (vec![(away, 2)], Some(away)),
            (vec![(home, 2), (away, 1)], Some(home)),
            (vec![(home, 1), (away, 2)], Some(away)),
            (vec![(home, 2), (away, 2)], Some(home)),
            (vec![(away, 0)], Some(away)),
        ];
        for (content, is_kept) in LOSSES {
            for (copies, expected) in &cases {
                let folder = tempfile::tempdir().unwrap();
                copies.iter().for_each(|(core, keys)| write(folder.path(), &placement, core.0, *keys));
                let record = folder.path().join(PIN_BOOK);
                if let Some(content) = content {
                    std::fs::write(&record, content).unwrap();
                }
                let book = settle_folder(folder.path(), &placement).unwrap();
                for core in [home, away] {
                    assert_eq!(has(folder.path(), &placement, core.0), Some(core) == *expected, "{content:?} {copies:?}");
                }
                let pin = expected.filter(|core| *core != home);
                assert_eq!(book.core_of("shop", &session), pin, "{content:?} {copies:?}");
                assert!(book.unfinished().is_empty());
                drop(book);
                let aside = record.with_added_extension("refused-0");
                assert_eq!(std::fs::read_to_string(aside).ok().as_deref(), content.filter(|_| is_kept));
                assert_eq!(PinBook::open(folder.path()).unwrap().core_of("shop", &session), pin);
            }
        }
    }

    #[test]
    fn a_kill_before_the_copies_are_settled_does_not_forget_them() {
        let placement = LocalPlacement::new(2);
        let session = SessionId::new(SESSION).unwrap();
        let home = placement.owner(placement.hash(&session).slot());
        let away = CoreIndex(1 - home.0);
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &placement, home.0, 1);
        write(folder.path(), &placement, away.0, 2);
        let displaced = look_for_displaced(folder.path(), &placement).unwrap();
        drop(PinBook::begin_anew(folder.path(), &displaced).unwrap());
        let book = settle_folder(folder.path(), &placement).unwrap();
        assert_eq!(book.core_of("shop", &session), Some(away));
        assert!(has(folder.path(), &placement, away.0) && !has(folder.path(), &placement, home.0));
    }
}
