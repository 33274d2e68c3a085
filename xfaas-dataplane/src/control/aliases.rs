//! The aliases of a node, in memory and on disk. CONTRACT.md section 4. Called by the admin API's helpers: blocks on the disk.
//!
//! `<state_dir>/aliases` has a line for each change, `map <app or *> <key> <session>` or `unmap <app or *> <key>`, synced before anyone
//! hears of it. It is written anew, under another name first, at start and when most of its lines are history. A last line without its
//! end is left from a crash: nobody was promised that change.

use super::store::StoreError;
use crate::session::AliasChange;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use xfaas_common::ids::{SessionId, is_name};
use xfaas_common::limits::ALIASES_MAX;

const FILE_NAME: &str = "aliases";
/// Stands for every app: no app has this name.
const EVERY_APP: &str = "*";
/// Lines of history that are not worth writing the file anew.
const HISTORY_LINES_MAX: usize = 256;

/// App, or none for every app, and key.
type Name = (Option<String>, String);

pub struct Aliases {
    path: PathBuf,
    file: File,
    lines: usize,
    sessions: BTreeMap<Name, SessionId>,
}

impl Aliases {
    /// Errors: the file cannot be read or written, or holds a line that is none of ours.
    pub fn open(state_dir: &Path) -> Result<Aliases, StoreError> {
        let path = state_dir.join(FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(StoreError::Io { operation: "read", path, source }),
        };
        let mut sessions = BTreeMap::new();
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        for line in whole.lines() {
            let (name, session) = parse(line).ok_or_else(|| StoreError::BadLine { path: path.clone(), line: line.to_owned() })?;
            match session {
                Some(session) => drop(sessions.insert(name, session)),
                None => drop(sessions.remove(&name)),
            }
        }
        let file = rewrite(&path, &sessions)?;
        Ok(Aliases { lines: sessions.len(), path, file, sessions })
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

    /// Makes the change, on disk first.
    pub fn apply(&mut self, change: &AliasChange) -> Result<(), StoreError> {
        if self.lines == usize::MAX {
            self.rewrite()?;
        }
        let name = name(change);
        let mut line = String::new();
        push_line(&mut line, &name, change.session.as_ref());
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half a line may be there: the file is written anew before anything is added to it.
            self.lines = usize::MAX;
            return Err(StoreError::Io { operation: "write", path: self.path.clone(), source });
        }
        self.lines = self.lines.saturating_add(1);
        match change.session {
            Some(session) => drop(self.sessions.insert(name, session)),
            None => drop(self.sessions.remove(&name)),
        }
        if self.lines > self.sessions.len() + self.sessions.len().max(HISTORY_LINES_MAX) {
            self.rewrite()?;
        }
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), StoreError> {
        self.file = rewrite(&self.path, &self.sessions)?;
        self.lines = self.sessions.len();
        Ok(())
    }

    /// What another alias of the same key means, if there is one: the kernel knows keys only, not apps.
    pub fn other_meaning(&self, key: &SessionId) -> Option<SessionId> {
        self.sessions.iter().find(|((_, other), _)| other == key.as_str()).map(|(_, session)| *session)
    }
}

fn name(change: &AliasChange) -> Name {
    (change.app.as_deref().map(str::to_owned), change.key.to_string())
}

fn push_line(text: &mut String, (app, key): &Name, session: Option<&SessionId>) {
    let app = app.as_deref().unwrap_or(EVERY_APP);
    match session {
        Some(session) => writeln!(text, "map {app} {key} {session}"),
        None => writeln!(text, "unmap {app} {key}"),
    }
    .expect("a string takes all that is written");
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

/// Writes the file as it would be without its history. Output: the file, open at its end.
fn rewrite(path: &Path, sessions: &BTreeMap<Name, SessionId>) -> Result<File, StoreError> {
    let mut text = String::new();
    for (name, session) in sessions {
        push_line(&mut text, name, Some(session));
    }
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(file)
    };
    write().map_err(|source| StoreError::Io { operation: "write", path: path.to_owned(), source })
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
        assert_eq!(text.lines().count(), 5);
        text.push_str("map * torn");
        std::fs::write(&path, text).unwrap();
        assert_eq!(listed(&Aliases::open(folder.path()).unwrap()), expected);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "map * k u\nmap shop k t\n");
        for bad in ["map * k\n", "map a/b k s\n", "what\n", "\n", "map * k s t\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(Aliases::open(folder.path()), Err(StoreError::BadLine { .. })), "{bad:?}");
        }
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let mut aliases = Aliases::open(folder.path()).unwrap();
        for i in 0..3 * HISTORY_LINES_MAX {
            aliases.apply(&change(None, "k", (i % 2 == 0).then_some("s"))).unwrap();
        }
        let text = std::fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
        assert!(text.lines().count() <= HISTORY_LINES_MAX + 1, "{}", text.lines().count());
    }
}
