//! The record of moved sessions, kept beside the regions on tmpfs because it must live exactly as long as they do. After a kill it alone says
//! which of two copies of a session counts. A kill loses no finished write, and what loses the file loses the regions too, so nothing is synced.
//!
//! ```text
//! moves 2 LINES CRC           LINES follow, or one more that is whole; CRC is of this line alone
//! begin APP SESSION CRC       copies may be on other shards than the owner's
//! pin APP SESSION CORE CRC    the copy on CORE counts from now on
//! home APP SESSION CRC        the copy with the owner of the session's slot counts from now on
//! done APP SESSION CRC        there are no other copies
//! ```
//!
//! CRC is the crc32c of all lines from the second to this one, their checksums and ends left out: so none can be changed, lost or doubled
//! unseen. A line is appended by one write, then LINES is raised by another, within one page, which a kill leaves whole or undone. So a kill
//! leaves LINES lines, one more, or a part of one more; fewer are damage. A part of a line means what no line means, because nothing is done
//! before its write has ended: of `begin` no copy was made, of `pin` and `home` nobody was told and the former copy is whole, and after `done`
//! a start looks once more for copies that are gone. A line that is whole and not counted yet counts: both copies are whole then.
//!
//! Earlier builds wrote lines without CRC and no first line: they are read as they were then, and written anew.

use super::pins::PinTable;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xfaas_common::ids::{CoreIndex, SessionId, is_name};
use xfaas_common::limits::CORES_MAX;

/// The file's name, in the folder of the regions.
pub const PIN_BOOK: &str = "moves";
/// Lines of history that are not worth writing the file anew.
const HISTORY_LINES_MAX: usize = 4_096;
/// Of a line that is none of ours, for the log.
const LINE_CHARS_SHOWN: usize = 120;
/// Of records with checksums.
const FORMAT: u32 = 2;

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
    #[error("{} is of format {format}, this version of xfaas knows {FORMAT}: start a later one", path.display())]
    LaterFormat { path: PathBuf, format: u32 },
    #[error("there are as many pinned sessions as may be: move others home first")]
    TooMany,
    #[error("nothing is moved in a container")]
    NoBook,
}

/// What a start finds of the record.
pub enum FoundBook {
    Whole(PinBook),
    /// No file, or an empty one, as earlier builds left it where nothing had been moved. Sessions may have been moved all the same.
    Nothing,
    /// Nothing in it can be believed. Where it is, and what is wrong with it.
    Damaged(PathBuf, String),
}

/// A session that is not, or not only, with its slot's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Displaced {
    pub app: String,
    pub session: SessionId,
    /// The copy that counts; `None`: the one with the slot's owner.
    pub core: Option<CoreIndex>,
    pub has_copies: bool,
}

pub struct PinBook {
    path: PathBuf,
    end: End,
    table: PinTable,
    /// Few: one for each kill, or failure to write, since the last start.
    unfinished: Vec<(String, SessionId)>,
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

impl PinBook {
    /// Reads the record in `folder`. One that is whole is written anew without its history; else nothing is changed.
    pub fn find(folder: &Path) -> Result<FoundBook, PinError> {
        let path = folder.join(PIN_BOOK);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FoundBook::Nothing),
            Err(source) => return Err(PinError::Io { operation: "read", path, source }),
        };
        if bytes.is_empty() {
            return Ok(FoundBook::Nothing);
        }
        match read(&bytes) {
            Ok((table, unfinished)) => Ok(FoundBook::Whole(PinBook::write_anew(path, table, unfinished)?)),
            Err(Fault::LaterFormat(format)) => Err(PinError::LaterFormat { path, format }),
            Err(Fault::Damage(what)) => Ok(FoundBook::Damaged(path, what)),
        }
    }

    /// Begins a record in `folder` that says where these sessions are, in place of the one that is there: by one step, which a kill leaves
    /// done or undone.
    pub fn begin_anew(folder: &Path, displaced: &[Displaced]) -> Result<PinBook, PinError> {
        let (mut table, mut unfinished) = (PinTable::default(), Vec::new());
        for Displaced { app, session, core, has_copies } in displaced {
            table.set(app, session, *core);
            if *has_copies {
                add(&mut unfinished, app, session);
            }
        }
        PinBook::write_anew(folder.join(PIN_BOOK), table, unfinished)
    }

    /// Reads the record in `folder`, or begins one.
    #[cfg(test)]
    pub fn open(folder: &Path) -> Result<PinBook, PinError> {
        match PinBook::find(folder)? {
            FoundBook::Whole(book) => Ok(book),
            FoundBook::Nothing => PinBook::begin_anew(folder, &[]),
            FoundBook::Damaged(path, what) => panic!("{}: {what}", path.display()),
        }
    }

    fn write_anew(path: PathBuf, table: PinTable, unfinished: Vec<(String, SessionId)>) -> Result<PinBook, PinError> {
        let end = rewrite(&path, &table, &unfinished)?;
        Ok(PinBook { path, end, table, unfinished })
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
        if self.end.lines > HISTORY_LINES_MAX + 2 * self.table.len() {
            self.end = rewrite(&self.path, &self.table, &self.unfinished)?;
        }
        self.append(&begin_line(app, session))?;
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
        self.append(&format!("done {app} {session}"))?;
        self.unfinished.retain(|(other, of)| (other.as_str(), of) != (app, session));
        Ok(())
    }

    fn append(&mut self, line: &str) -> Result<(), PinError> {
        let End { file, bytes, lines, checksum } = &mut self.end;
        let failed = |source| PinError::Io { operation: "write", path: self.path.clone(), source };
        let (sealed, checksum_after) = seal(line, *checksum);
        let written = file.write_all_at(sealed.as_bytes(), *bytes);
        if let Err(source) = written.and_then(|()| file.write_all_at(first_line(*lines + 1).as_bytes(), 0)) {
            // It must not count; and the next one is written over it.
            file.set_len(*bytes).map_err(failed)?;
            return Err(failed(source));
        }
        *bytes += sealed.len() as u64;
        *lines += 1;
        *checksum = checksum_after;
        Ok(())
    }
}

fn add(unfinished: &mut Vec<(String, SessionId)>, app: &str, session: &SessionId) {
    if !unfinished.iter().any(|(other, of)| (other.as_str(), of) == (app, session)) {
        unfinished.push((app.to_owned(), *session));
    }
}

/// As long for any number of lines, so that it can be written over.
fn first_line(lines: usize) -> String {
    let line = format!("moves {FORMAT} {lines:010}");
    seal(&line, 0).0
}

fn begin_line(app: &str, session: &SessionId) -> String {
    format!("begin {app} {session}")
}

fn set_line(app: &str, session: &SessionId, core: Option<CoreIndex>) -> String {
    match core {
        Some(core) => format!("pin {app} {session} {}", core.0),
        None => format!("home {app} {session}"),
    }
}

/// The line as it is in the file, with its end, and the checksum of all lines up to it. `before`: that of the line before, 0 if it is the first.
fn seal(line: &str, before: u32) -> (String, u32) {
    let checksum = crc32c::crc32c_append(before, line.as_bytes());
    (format!("{line} {checksum:08x}\n"), checksum)
}

/// The line that was sealed, and the checksum of all lines up to it. `None`: it is not as it was written.
fn unseal(sealed: &str, before: u32) -> Option<(&str, u32)> {
    let (line, _) = sealed.trim_end_matches('\n').rsplit_once(' ')?;
    let (as_written, checksum) = seal(line, before);
    (as_written == sealed).then_some((line, checksum))
}

enum Fault {
    Damage(String),
    LaterFormat(u32),
}

/// Input: a file that is not empty.
fn read(bytes: &[u8]) -> Result<(PinTable, Vec<(String, SessionId)>), Fault> {
    let damage = |what: String| Err(Fault::Damage(what));
    let whole = &bytes[..bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)];
    let Ok(text) = std::str::from_utf8(whole) else { return damage("it is not text".to_owned()) };
    let mut lines = text.split_inclusive('\n').zip(1..).peekable();
    let Some((first, _)) = lines.peek() else { return damage("it has no line that is whole".to_owned()) };
    let mut checksum = 0;
    let counted = read_first_line(first)?;
    if let Some(counted) = counted {
        lines.next();
        let found = text.split_inclusive('\n').count() - 1;
        if found != counted && found != counted + 1 {
            return damage(format!("{counted} lines were written behind the first one, and {found} are there"));
        }
    }
    let (mut table, mut unfinished) = (PinTable::default(), Vec::new());
    for (sealed, number) in lines {
        let line = match counted {
            Some(_) => unseal(sealed, checksum).map(|(line, so_far)| {
                checksum = so_far;
                line
            }),
            None => Some(sealed.trim_end_matches('\n')),
        };
        let Some((step, app, session)) = line.and_then(parse) else {
            let shown: String = sealed.trim_end_matches('\n').chars().take(LINE_CHARS_SHOWN).collect();
            return damage(format!("line {number} is not as it was written: {shown:?}"));
        };
        match step {
            Step::Begin => add(&mut unfinished, app, &session),
            Step::Set(core) => table.set(app, &session, core),
            Step::Done => unfinished.retain(|other| *other != (app.to_owned(), session)),
        }
    }
    Ok((table, unfinished))
}

/// The number of lines in the first one. `None`: there is no such line, so the file is of an earlier build, or its other lines show that it is not.
fn read_first_line(first: &str) -> Result<Option<usize>, Fault> {
    let Some((line, _)) = unseal(first, 0) else { return Ok(None) };
    let words: Vec<&str> = line.split(' ').collect();
    let ["moves", format, lines] = words[..] else { return Ok(None) };
    let Ok(format) = format.parse() else { return Ok(None) };
    if format != FORMAT {
        return Err(Fault::LaterFormat(format));
    }
    Ok(lines.parse().ok())
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

/// Writes the file as it would be without its history.
fn rewrite(path: &Path, table: &PinTable, unfinished: &[(String, SessionId)]) -> Result<End, PinError> {
    let pins = table.iter().map(|(app, session, core)| set_line(app, session, Some(core)));
    let begun = unfinished.iter().map(|(app, session)| begin_line(app, session));
    let lines = table.len() + unfinished.len();
    let (mut text, mut checksum) = (first_line(lines), 0);
    for line in pins.chain(begun) {
        let (sealed, so_far) = seal(&line, checksum);
        text += &sealed;
        checksum = so_far;
    }
    let fresh = path.with_added_extension("new");
    let write = || {
        let file = File::create(&fresh)?;
        file.write_all_at(text.as_bytes(), 0)?;
        fs::rename(&fresh, path)?;
        Ok(file)
    };
    let file = write().map_err(|source| PinError::Io { operation: "write", path: path.to_owned(), source })?;
    Ok(End { file, bytes: text.len() as u64, lines, checksum })
}

#[cfg(test)]
mod tests;
