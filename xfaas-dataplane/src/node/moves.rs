//! Before the shards start: the record of moved sessions is read, and of each session that a kill left in two places the copy that does not
//! count is removed. Called by `Node::start`.

use crate::config::Config;
use crate::session::{LocalPlacement, PIN_BOOK, PinBook, PinError, Placement};
use crate::state::{REGION_BYTES_MIN, Region, RegionError, RegionOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xfaas_common::hash::HashKeys;
use xfaas_common::ids::{CoreIndex, SessionId};
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
}

/// Makes sure that every session is in one place, for each number of shards that left sessions. Output: the record for today's number.
pub(super) fn settle(config: &Config, keys: &HashKeys) -> Result<PinBook, MovesError> {
    let folder = |shards: usize| config.shared_memory_dir.join(format!("shards-{shards}"));
    for shards in (1..=CORES_MAX).filter(|shards| *shards != config.cpus.len()) {
        let record = folder(shards).join(PIN_BOOK);
        if !record.exists() {
            continue;
        }
        if has_regions(&folder(shards)) {
            settle_folder(&folder(shards), &LocalPlacement::with_keys(shards, *keys))?;
        } else if std::fs::remove_file(record).is_ok() {
            // Left by a start that was killed before it had any. Not empty: somebody else's files.
            std::fs::remove_dir(folder(shards)).ok();
        }
    }
    settle_folder(&folder(config.cpus.len()), &LocalPlacement::with_keys(config.cpus.len(), *keys))
}

fn has_regions(folder: &Path) -> bool {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_string_lossy().ends_with(".region"))
}

fn settle_folder(folder: &Path, placement: &LocalPlacement) -> Result<PinBook, MovesError> {
    let mut book = PinBook::open(folder)?;
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

    fn write(folder: &Path, placement: &LocalPlacement, shard: u16, value: &[u8]) {
        let options = RegionOptions { app: "shop", shard, bytes_max: 4 << 20, hash_tag: placement.fingerprint() };
        let mut region = Region::open_or_create(&folder.join(format!("shop.{shard}.region")), &options).unwrap();
        let session = SessionId::new(SESSION).unwrap();
        let namespace = region.find_or_create(&session, placement.hash(&session).table_hash()).unwrap();
        region.write(namespace, b"n", value, 100).unwrap();
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
            copies.iter().for_each(|core| write(folder.path(), &placement, core.0, b"1"));
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
}
