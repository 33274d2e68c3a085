//! The record of moved sessions, kept beside the regions on tmpfs because it must live exactly as long as they do. After a kill it alone says
//! which of two copies of a session counts. Lines are appended, each by one write; a last line without its end does not count. A kill loses no
//! finished write, and what loses the file loses the regions too, so nothing is synced.
//!
//! ```text
//! begin APP SESSION       copies may be on other shards than the owner's
//! pin APP SESSION CORE    the copy on CORE counts from now on
//! home APP SESSION        the copy with the owner of the session's slot counts from now on
//! done APP SESSION        there are no other copies
//! ```

use super::pins::PinTable;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use xfaas_common::ids::{CoreIndex, SessionId, is_name};
use xfaas_common::limits::CORES_MAX;

/// The file's name, in the folder of the regions.
pub const PIN_BOOK: &str = "moves";
/// Lines of history that are not worth writing the file anew.
const HISTORY_LINES_MAX: usize = 4_096;

/// Why a move is not written down, or the record of them cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has the line {line:?}, which is none of ours: it says where moved sessions are, so restore or remove it by hand", path.display())]
    BadLine { path: PathBuf, line: String },
    #[error("there are as many pinned sessions as may be: move others home first")]
    TooMany,
    #[error("nothing is moved in a container")]
    NoBook,
}

pub struct PinBook {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    bytes: u64,
    lines: usize,
    table: PinTable,
    /// Few: one for each kill, or failure to write, since the last start.
    unfinished: Vec<(String, SessionId)>,
}

impl PinBook {
    /// Reads the record in `folder`, or begins one.
    pub fn open(folder: &Path) -> Result<PinBook, PinError> {
        let path = folder.join(PIN_BOOK);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(PinError::Io { operation: "read", path, source }),
        };
        let (mut table, mut unfinished) = (PinTable::default(), Vec::new());
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        for line in whole.lines() {
            let bad = || PinError::BadLine { path: path.clone(), line: line.to_owned() };
            let (step, app, session) = parse(line).ok_or_else(bad)?;
            match step {
                Step::Begin => add(&mut unfinished, app, &session),
                Step::Set(core) => table.set(app, &session, core),
                Step::Done => unfinished.retain(|other| *other != (app.to_owned(), session)),
            }
        }
        let (file, bytes) = rewrite(&path, &table, &unfinished)?;
        Ok(PinBook { path, file, bytes, lines: table.len() + unfinished.len(), table, unfinished })
    }

    pub(super) fn table(&self) -> &PinTable {
        &self.table
    }

    /// The core of a session that is not with its slot's owner.
    pub fn core_of(&self, app: &str, session: &SessionId) -> Option<CoreIndex> {
        self.table.core_of(app, session)
    }

    /// Sessions that may have a second copy.
    pub fn unfinished(&self) -> Vec<(String, SessionId)> {
        self.unfinished.clone()
    }

    pub(super) fn begin(&mut self, app: &str, session: &SessionId) -> Result<(), PinError> {
        if self.lines > HISTORY_LINES_MAX + 2 * self.table.len() {
            (self.file, self.bytes) = rewrite(&self.path, &self.table, &self.unfinished)?;
            self.lines = self.table.len() + self.unfinished.len();
        }
        self.append(&format!("begin {app} {session}\n"))?;
        add(&mut self.unfinished, app, session);
        Ok(())
    }

    /// Says which copy counts; `None`: the one with the owner of the session's slot.
    pub fn set(&mut self, app: &str, session: &SessionId, core: Option<CoreIndex>) -> Result<(), PinError> {
        self.append(&set_line(app, session, core))?;
        self.table.set(app, session, core);
        Ok(())
    }

    pub fn end(&mut self, app: &str, session: &SessionId) -> Result<(), PinError> {
        self.append(&format!("done {app} {session}\n"))?;
        self.unfinished.retain(|(other, of)| (other.as_str(), of) != (app, session));
        Ok(())
    }

    fn append(&mut self, line: &str) -> Result<(), PinError> {
        let failed = |source| PinError::Io { operation: "write", path: self.path.clone(), source };
        if let Err(source) = self.file.write_all(line.as_bytes()) {
            // Half a line must not stay: the next one would be part of it.
            self.file.set_len(self.bytes).map_err(failed)?;
            return Err(failed(source));
        }
        self.bytes += line.len() as u64;
        self.lines += 1;
        Ok(())
    }
}

fn add(unfinished: &mut Vec<(String, SessionId)>, app: &str, session: &SessionId) {
    if !unfinished.iter().any(|(other, of)| (other.as_str(), of) == (app, session)) {
        unfinished.push((app.to_owned(), *session));
    }
}

fn set_line(app: &str, session: &SessionId, core: Option<CoreIndex>) -> String {
    match core {
        Some(core) => format!("pin {app} {session} {}\n", core.0),
        None => format!("home {app} {session}\n"),
    }
}

enum Step {
    Begin,
    Set(Option<CoreIndex>),
    Done,
}

fn parse(line: &str) -> Option<(Step, &str, SessionId)> {
    let words: Vec<&str> = line.split(' ').collect();
    let (step, app, session) = match words[..] {
        ["begin", app, session] => (Step::Begin, app, session),
        ["home", app, session] => (Step::Set(None), app, session),
        ["done", app, session] => (Step::Done, app, session),
        ["pin", app, session, core] => {
            let core: u16 = core.parse().ok().filter(|core| usize::from(*core) < CORES_MAX)?;
            (Step::Set(Some(CoreIndex(core))), app, session)
        }
        _ => return None,
    };
    is_name(app.as_bytes()).then_some((step, app, SessionId::new(session.as_bytes())?))
}

/// Writes the file as it would be without its history. Output: the file, to be appended to, and its bytes.
fn rewrite(path: &Path, table: &PinTable, unfinished: &[(String, SessionId)]) -> Result<(File, u64), PinError> {
    let mut text = String::new();
    for (app, session, core) in table.iter() {
        text += &set_line(app, session, Some(core));
    }
    for (app, session) in unfinished {
        writeln!(text, "begin {app} {session}").expect("a string takes all that is written");
    }
    let fresh = path.with_added_extension("new");
    let write = || {
        fs::write(&fresh, &text)?;
        fs::rename(&fresh, path)?;
        File::options().append(true).open(path)
    };
    let file = write().map_err(|source| PinError::Io { operation: "write", path: path.to_owned(), source })?;
    Ok((file, text.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SessionId {
        SessionId::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_was_written_is_there_after_a_kill_and_half_a_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = PinBook::open(folder.path()).unwrap();
        book.begin("shop", &id("a")).unwrap();
        book.set("shop", &id("a"), Some(CoreIndex(3))).unwrap();
        book.end("shop", &id("a")).unwrap();
        book.begin("shop", &id("b")).unwrap();
        book.set("shop", &id("b"), Some(CoreIndex(1))).unwrap();
        book.begin("shop", &id("c")).unwrap();
        drop(book);
        let path = folder.path().join(PIN_BOOK);
        let whole = fs::read_to_string(&path).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let lines = whole[..cut].matches('\n').count();
            let book = PinBook::open(folder.path()).unwrap();
            assert_eq!(book.core_of("shop", &id("a")), (lines >= 2).then_some(CoreIndex(3)));
            assert_eq!(book.core_of("shop", &id("b")), (lines >= 5).then_some(CoreIndex(1)));
            let unfinished: Vec<String> = book.unfinished().into_iter().map(|(_, session)| session.to_string()).collect();
            let expected: &[&str] = [&[][..], &["a"], &["a"], &[], &["b"], &["b"], &["b", "c"]][lines];
            assert_eq!(unfinished, expected, "after {lines} lines");
            // What is read is written anew without its history, and means the same.
            let again = PinBook::open(folder.path()).unwrap();
            assert_eq!((again.unfinished(), again.table.len()), (book.unfinished(), book.table.len()));
        }
    }

    #[test]
    fn a_line_of_somebody_else_is_an_error_and_the_file_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PIN_BOOK);
        for bad in ["pin shop a\n", "pin shop a 64\n", "pin a/b a 1\n", "begin shop a b\n", "\n"] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(PinBook::open(folder.path()), Err(PinError::BadLine { .. })), "{bad:?}");
        }
        fs::remove_file(&path).unwrap();
        let mut book = PinBook::open(folder.path()).unwrap();
        for i in 0..2 * HISTORY_LINES_MAX {
            book.begin("shop", &id("a")).unwrap();
            book.set("shop", &id("a"), (i % 2 == 0).then_some(CoreIndex(1))).unwrap();
            book.end("shop", &id("a")).unwrap();
        }
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= HISTORY_LINES_MAX + 3, "{lines}");
        assert!(PinBook::open(folder.path()).unwrap().unfinished().is_empty());
    }
}
