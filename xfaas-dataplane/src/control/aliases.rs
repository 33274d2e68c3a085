//! The aliases of a node, in memory and on disk. CONTRACT.md section 4. Called by the admin API's helpers: blocks on the disk.
//!
//! `<state_dir>/aliases`:
//!
//! ```text
//! aliases 2 LINES CRC                 so many lines were there when the file was begun; CRC is of this line alone
//! map <app or *> KEY SESSION CRC      a change, synced before anyone hears of it
//! unmap <app or *> KEY CRC
//! ```
//!
//! CRC is the crc32c of all lines from the second to this one, their checksums and ends left out: so none can be changed, lost in the middle or
//! doubled unseen. The file is written anew, under another name first, at start and when most of its lines are history. A last line without its
//! end is left from a crash: nobody was promised that change. Fewer lines than LINES: it was cut short, which a start tells and lives with.
//!
//! Earlier builds wrote lines without CRC and no first line: they are read as they were then, and written anew.

use super::store::StoreError;
use crate::session::AliasChange;
use crate::sys::folders::sync_folder;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use xfaas_common::ids::{SessionId, is_name};
use xfaas_common::limits::ALIASES_MAX;

const FILE_NAME: &str = "aliases";
/// Begins a file whose lines have checksums.
const FIRST_WORDS: &str = "aliases 2";
/// Stands for every app: no app has this name.
const EVERY_APP: &str = "*";
/// Lines of history that are not worth writing the file anew.
const HISTORY_LINES_MAX: usize = 256;
/// Of a line that is none of ours, for the log.
const LINE_CHARS_SHOWN: usize = 120;

/// App, or none for every app, and key.
type Name = (Option<String>, String);

pub struct Aliases {
    path: PathBuf,
    /// `None`: half a line may be there, or the file's name may not last. It is written anew before anything is added.
    end: Option<End>,
    /// The history is dropped when there are more lines.
    lines_max: usize,
    sessions: BTreeMap<Name, SessionId>,
}

/// Where the file goes on.
struct End {
    file: File,
    /// Bytes of whole lines, the first one included.
    bytes: u64,
    /// Without the first one.
    lines: usize,
    checksum: u32,
}

impl End {
    /// Adds a change. When it returns, the change is on the disk.
    fn append(&mut self, name: &Name, session: Option<&SessionId>) -> io::Result<()> {
        let mut line = String::new();
        let checksum = push_line(&mut line, self.checksum, name, session);
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Whoever asked hears that nothing was changed: the next start must not find it. The room may have been the trouble, so this can be done.
            if let Err(error) = self.file.set_len(self.bytes) {
                tracing::error!(%error, "an alias that could not be changed may be changed after the next start");
            }
            return Err(error);
        }
        (self.bytes, self.lines, self.checksum) = (self.bytes + line.len() as u64, self.lines + 1, checksum);
        Ok(())
    }
}

impl Aliases {
    /// Errors: the file cannot be read or written, or holds a line that is none of ours. One that was cut short counts as far as it goes, and on a full disk
    /// the file stays as it is.
    pub fn open(state_dir: &Path) -> Result<Aliases, StoreError> {
        let path = state_dir.join(FILE_NAME);
        let text = match std::fs::read(&path).map(String::from_utf8) {
            Ok(Ok(text)) => Some(text),
            Ok(Err(error)) => return Err(StoreError::NotText { at: error.utf8_error().valid_up_to(), path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(StoreError::Io { operation: "read", path, source }),
        };
        let (sessions, loss) = match &text {
            None => (BTreeMap::new(), None),
            Some(text) => read(text).map_err(|line| {
                let line = line.chars().take(LINE_CHARS_SHOWN).collect();
                StoreError::BadLine { path: path.clone(), line }
            })?,
        };
        if let Some(loss) = loss {
            tracing::warn!("{} {loss}", path.display());
        }
        let mut aliases = Aliases { path, end: None, lines_max: 0, sessions };
        aliases.end = match aliases.rewrite() {
            Ok(end) => Some(end),
            // What is there counts all the same.
            Err(StoreError::Io { source, .. }) if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                let path = aliases.path.display();
                tracing::warn!(
                    "no room to write {path} anew: aliases are followed as they are, and no change is taken until the disk has room"
                );
                None
            }
            Err(error) => return Err(error),
        };
        Ok(aliases)
    }

    /// All aliases, in order: app, key, session.
    pub fn list(&self) -> impl Iterator<Item = (Option<&str>, &str, &SessionId)> {
        self.sessions.iter().map(|((app, key), session)| (app.as_deref(), key.as_str(), session))
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// True if the change would be one more than there may be.
    pub fn is_full_for(&self, change: &AliasChange) -> bool {
        change.session.is_some() && self.sessions.len() >= ALIASES_MAX && !self.contains(change)
    }

    pub fn contains(&self, change: &AliasChange) -> bool {
        self.sessions.contains_key(&name(change))
    }

    /// Makes the change, on disk first. Errors: it is not made.
    pub fn apply(&mut self, change: &AliasChange) -> Result<(), StoreError> {
        let mut end = match self.end.take() {
            Some(end) => end,
            None => self.rewrite()?,
        };
        let name = name(change);
        let appended = end.append(&name, change.session.as_ref());
        appended.map_err(|source| StoreError::Io { operation: "write", path: self.path.clone(), source })?;
        match change.session {
            Some(session) => drop(self.sessions.insert(name, session)),
            None => drop(self.sessions.remove(&name)),
        }
        self.end = if end.lines > self.lines_max { self.drop_history(end) } else { Some(end) };
        Ok(())
    }

    /// The change that made the file long is made, whatever becomes of this.
    fn drop_history(&mut self, end: End) -> Option<End> {
        let failed = |error: &io::Error| {
            let path = self.path.display();
            tracing::warn!(%error, "the history of changes in {path} cannot be dropped yet: check that the disk has room");
        };
        match replace(&self.path, &self.sessions) {
            Ok(fresh) => {
                self.lines_max = history_max(&self.sessions);
                keep_name(&self.path).inspect_err(failed).ok().map(|()| fresh)
            }
            Err(error) => {
                failed(&error);
                self.lines_max = end.lines + HISTORY_LINES_MAX;
                Some(end)
            }
        }
    }

    /// Writes the file anew, before anything is added to it.
    fn rewrite(&mut self) -> Result<End, StoreError> {
        let failed = |source| StoreError::Io { operation: "write", path: self.path.clone(), source };
        let end = replace(&self.path, &self.sessions).map_err(failed)?;
        keep_name(&self.path).map_err(failed)?;
        self.lines_max = history_max(&self.sessions);
        Ok(end)
    }

    /// What another alias of the same key means, if there is one: the kernel knows keys only, not apps.
    pub fn other_meaning(&self, key: &SessionId) -> Option<SessionId> {
        self.sessions.iter().find(|((_, other), _)| other == key.as_str()).map(|(_, session)| *session)
    }
}

fn name(change: &AliasChange) -> Name {
    (change.app.as_deref().map(str::to_owned), change.key.to_string())
}

fn history_max(sessions: &BTreeMap<Name, SessionId>) -> usize {
    sessions.len() + sessions.len().max(HISTORY_LINES_MAX)
}

fn first_line(lines: usize) -> String {
    let words = format!("{FIRST_WORDS} {lines}");
    format!("{words} {:08x}\n", crc32c::crc32c(words.as_bytes()))
}

/// `checksum`: of the lines before. Output: of this one too.
fn push_line(text: &mut String, checksum: u32, (app, key): &Name, session: Option<&SessionId>) -> u32 {
    let app = app.as_deref().unwrap_or(EVERY_APP);
    let words = match session {
        Some(session) => format!("map {app} {key} {session}"),
        None => format!("unmap {app} {key}"),
    };
    let checksum = crc32c::crc32c_append(checksum, words.as_bytes());
    writeln!(text, "{words} {checksum:08x}").expect("a string takes all that is written");
    checksum
}

/// What the lines say, and in words what must have been lost. Errors: a line that is none of ours.
fn read(text: &str) -> Result<(BTreeMap<Name, SessionId>, Option<String>), &str> {
    let (whole, rest) = text.split_at(text.rfind('\n').map_or(0, |end| end + 1));
    let mut lines = whole.lines().peekable();
    let first = lines.next_if(|line| line.starts_with(FIRST_WORDS));
    let expected = match first {
        Some(line) => Some(lines_expected(line).ok_or(line)?),
        None => None,
    };
    let (mut sessions, mut checksum, mut count) = (BTreeMap::new(), 0, 0);
    for line in lines {
        let words = match expected {
            Some(_) => {
                let (words, stored) = line.rsplit_once(' ').ok_or(line)?;
                checksum = crc32c::crc32c_append(checksum, words.as_bytes());
                Some(words).filter(|_| stored == format!("{checksum:08x}")).ok_or(line)?
            }
            None => line,
        };
        let (name, session) = parse(words).ok_or(line)?;
        match session {
            Some(session) => drop(sessions.insert(name, session)),
            None => drop(sessions.remove(&name)),
        }
        count += 1;
    }
    let missing = expected.map_or(0, |expected| expected.saturating_sub(count));
    let loss = match (missing, first.is_some() || count > 0, rest.is_empty()) {
        (0, true, true) => None,
        // Builds without checksums left an empty file where there were no aliases.
        (0, false, true) => Some("is empty: if there were aliases, they are lost, so map them anew".to_owned()),
        (0, true, false) => Some(
            "ends within a line: a change that a crash cut off before anybody was told; if aliases are missing, the file was cut short, so map them anew"
                .to_owned(),
        ),
        (0, false, false) => Some("ends within its first line: if there were aliases, they are lost, so map them anew".to_owned()),
        (missing, ..) => Some(format!("was cut short: of {} lines {missing} are missing, with their aliases; map them anew", count + missing)),
    };
    Ok((sessions, loss))
}

/// How many lines were there when the file was begun. `None`: the line is none of ours.
fn lines_expected(line: &str) -> Option<usize> {
    let lines = line.strip_prefix(FIRST_WORDS)?.strip_prefix(' ')?.split(' ').next()?.parse().ok()?;
    (first_line(lines).strip_suffix('\n') == Some(line)).then_some(lines)
}

fn parse(line: &str) -> Option<(Name, Option<SessionId>)> {
    let words: Vec<&str> = line.split(' ').collect();
    let (app, key, session) = match words[..] {
        ["map", app, key, session] => (app, key, Some(SessionId::new(session.as_bytes())?)),
        ["unmap", app, key] => (app, key, None),
        _ => return None,
    };
    SessionId::new(key.as_bytes())?;
    let app = (app != EVERY_APP).then(|| app.to_owned());
    let is_good = app.as_ref().is_none_or(|app| is_name(app.as_bytes()));
    is_good.then(|| ((app, key.to_owned()), session))
}

/// Puts a file without history in the place of the one that is there. Errors: that one is in its place still.
fn replace(path: &Path, sessions: &BTreeMap<Name, SessionId>) -> io::Result<End> {
    let (mut text, mut checksum) = (first_line(sessions.len()), 0);
    for (name, session) in sessions {
        checksum = push_line(&mut text, checksum, name, Some(session));
    }
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        Ok(file)
    };
    let file = write().inspect_err(|_: &io::Error| {
        // A full disk is the fuller for it. It may be there no more, or never have been: what was wrong is told already.
        std::fs::remove_file(&fresh).ok();
    })?;
    Ok(End { file, bytes: text.len() as u64, lines: sessions.len(), checksum })
}

/// After this a crash leaves the fresh file under its name.
fn keep_name(path: &Path) -> io::Result<()> {
    sync_folder(path.parent().unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(app: Option<&str>, key: &str, session: Option<&str>) -> AliasChange {
        let id = |text: &str| SessionId::new(text.as_bytes()).unwrap();
        AliasChange { app: app.map(Box::from), key: id(key), session: session.map(id) }
    }

    fn listed(aliases: &Aliases) -> Vec<String> {
        aliases.list().map(|(app, key, session)| format!("{}/{key}={session}", app.unwrap_or("*"))).collect()
    }

    fn lines(folder: &Path) -> usize {
        std::fs::read_to_string(folder.join(FILE_NAME)).unwrap().lines().count()
    }

    fn draft_of(folder: &Path) -> PathBuf {
        folder.join(FILE_NAME).with_extension("new")
    }

    /// A disk that has no room for the file anew.
    fn fill_up(folder: &Path) -> PathBuf {
        let draft = draft_of(folder);
        std::fs::remove_file(&draft).ok();
        std::os::unix::fs::symlink("/dev/full", &draft).unwrap();
        draft
    }

    #[test]
    fn aliases_survive_and_a_torn_last_line_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let mut aliases = Aliases::open(folder.path()).unwrap();
        for change in [
            change(None, "k", Some("s")),
            change(Some("shop"), "k", Some("t")),
            change(None, "gone", Some("x")),
            change(None, "gone", None),
            change(None, "k", Some("u")),
        ] {
            aliases.apply(&change).unwrap();
        }
        let expected = ["*/k=u", "shop/k=t"];
        assert_eq!(listed(&aliases), expected);
        let path = folder.path().join(FILE_NAME);
        let mut text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 6);
        text.push_str("map * torn");
        std::fs::write(&path, text).unwrap();
        assert_eq!(listed(&Aliases::open(folder.path()).unwrap()), expected);
        assert_eq!(lines(folder.path()), 3, "it is written anew without its history");
        assert_eq!(listed(&Aliases::open(folder.path()).unwrap()), expected);
    }

    #[test]
    fn files_of_builds_without_checksums_are_taken_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        std::fs::write(&path, "map * k s\nmap shop k t\nunmap * k\nmap * k u\nmap * torn").unwrap();
        assert_eq!(listed(&Aliases::open(folder.path()).unwrap()), ["*/k=u", "shop/k=t"]);
        for bad in ["map * k\n", "map a/b k s\n", "what\n", "\n", "map * k s t\n", "unmap * k s\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(Aliases::open(folder.path()), Err(StoreError::BadLine { .. })), "{bad:?}");
        }
    }

    #[test]
    fn no_byte_can_change_unseen() {
        let folder = tempfile::tempdir().unwrap();
        let mut aliases = Aliases::open(folder.path()).unwrap();
        for (key, session) in [("k", Some("s")), ("l", Some("t")), ("k", None)] {
            aliases.apply(&change(None, key, session)).unwrap();
        }
        let path = folder.path().join(FILE_NAME);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() - 1 {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, changed).unwrap();
            assert!(matches!(Aliases::open(folder.path()), Err(StoreError::BadLine { .. })), "byte {at}");
        }
        // Without one of its lines, and with one of them twice.
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        for changed in [[&lines[..1], &lines[2..]].concat(), [&lines[..3], &lines[2..]].concat()] {
            std::fs::write(&path, changed.concat()).unwrap();
            assert!(matches!(Aliases::open(folder.path()), Err(StoreError::BadLine { .. })));
        }
        std::fs::write(&path, [&whole[..], b"\xFF\n"].concat()).unwrap();
        let refused = Aliases::open(folder.path()).err().unwrap();
        assert!(refused.to_string().contains("no text") && !refused.to_string().contains("room"), "{refused}");
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let mut aliases = Aliases::open(folder.path()).unwrap();
        for i in 0..3 * HISTORY_LINES_MAX {
            aliases.apply(&change(None, "k", (i % 2 == 0).then_some("s"))).unwrap();
        }
        let lines = lines(folder.path());
        assert!(lines <= HISTORY_LINES_MAX + 2, "{lines}");
    }

    #[test]
    fn a_change_is_made_also_where_the_history_cannot_be_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut aliases = Aliases::open(folder.path()).unwrap();
        for i in 0..2 * HISTORY_LINES_MAX {
            if i % 100 == 0 {
                fill_up(folder.path()); // a draft that cannot be written is removed
            }
            let session = format!("s{i}");
            aliases.apply(&change(None, "k", Some(&session))).unwrap();
            assert_eq!(listed(&aliases), [format!("*/k={session}")]);
        }
        let before = lines(folder.path());
        assert!(before > 2 * HISTORY_LINES_MAX, "{before}");
        std::fs::remove_file(draft_of(folder.path())).ok();
        for _ in 0..=HISTORY_LINES_MAX {
            aliases.apply(&change(None, "k", Some("last"))).unwrap();
        }
        assert!(lines(folder.path()) <= HISTORY_LINES_MAX + 2, "it is tried again");
        assert_eq!(listed(&Aliases::open(folder.path()).unwrap()), ["*/k=last"]);
    }

    #[test]
    fn on_a_full_disk_aliases_are_what_they_were_until_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        Aliases::open(folder.path()).unwrap().apply(&change(None, "k", Some("s"))).unwrap();
        let draft = fill_up(folder.path());
        let mut aliases = Aliases::open(folder.path()).unwrap();
        assert!(!draft.is_symlink(), "a draft that cannot be written is removed");
        assert_eq!(listed(&aliases), ["*/k=s"]);
        fill_up(folder.path());
        assert!(matches!(aliases.apply(&change(None, "k", None)), Err(StoreError::Io { operation: "write", .. })));
        assert_eq!(listed(&aliases), ["*/k=s"]);
        aliases.apply(&change(None, "k", Some("t"))).unwrap(); // the disk has room again
        assert_eq!(listed(&Aliases::open(folder.path()).unwrap()), ["*/k=t"]);
    }

    #[test]
    fn a_file_that_may_not_be_written_is_told_at_start() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(draft_of(folder.path())).unwrap();
        assert!(matches!(Aliases::open(folder.path()), Err(StoreError::Io { operation: "write", .. })));
    }
}
