//! The files and folders of `reshard`: which regions there are, and the steps from a draft to what counts, each of which may be the last
//! before a kill.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use xfaas_common::ids::is_name;

const DRAFT_SUFFIX: &str = ".new";
const READY_SUFFIX: &str = ".ready";
/// In a committed folder: the files that it replaces. Gone as soon as they are.
const REPLACED_LIST: &str = "replaced";
/// Files kept under one name before no free one is found any more.
const KEPT_MAX: u32 = 1_000;

#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl FileError {
    pub(super) fn new(operation: &'static str, path: &Path, source: io::Error) -> FileError {
        FileError { operation, path: path.to_owned(), source }
    }
}

/// A folder `shards-<n>`.
pub(super) struct ShardFolder {
    pub shards: u16,
    pub regions: Vec<RegionFile>,
    path: PathBuf,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RegionFile {
    pub app: String,
    pub shard: u16,
}

impl ShardFolder {
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn region_path(&self, app: &str, shard: u16) -> PathBuf {
        self.path.join(region_name(app, shard))
    }
}

/// What becomes of a file once what it held is elsewhere.
pub(super) enum Replaced {
    Removed(PathBuf),
    /// Kept for its owner under another name: not all of it was taken.
    Kept {
        path: PathBuf,
        name: String,
    },
}

/// The name of an app's region file on a shard.
pub(super) fn region_name(app: &str, shard: u16) -> String {
    format!("{app}.{shard}.region")
}

fn parse_region_name(name: &str) -> Option<RegionFile> {
    let (app, shard) = name.strip_suffix(".region")?.rsplit_once('.')?;
    let region = RegionFile { app: app.to_owned(), shard: shard.parse().ok()? };
    (is_name(app.as_bytes()) && region_name(app, region.shard) == name).then_some(region)
}

fn folder_name(shards: u16) -> String {
    format!("shards-{shards}")
}

/// The folders named `shards-<n><suffix>`, by number.
fn folders(directory: &Path, suffix: &str) -> Result<Vec<(u16, PathBuf)>, FileError> {
    let mut found = Vec::new();
    for name in names(directory)? {
        let shards = name.strip_suffix(suffix).and_then(|name| name.strip_prefix("shards-")).and_then(|number| number.parse().ok());
        if let Some(shards) = shards
            && folder_name(shards) + suffix == name
        {
            found.push((shards, directory.join(name)));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Names in a directory, those that are text; none when it is not there.
fn names(directory: &Path) -> Result<Vec<String>, FileError> {
    let failed = |source| FileError::new("list", directory, source);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

/// The folders for each number of shards, with the regions in them, in order.
pub(super) fn shard_folders(directory: &Path) -> Result<Vec<ShardFolder>, FileError> {
    let folder = |(shards, path): (u16, PathBuf)| {
        let mut regions: Vec<RegionFile> = names(&path)?.iter().filter_map(|name| parse_region_name(name)).collect();
        regions.sort_unstable();
        Ok(ShardFolder { shards, regions, path })
    };
    folders(directory, "")?.into_iter().map(folder).collect()
}

/// Takes away what was being built when a start was killed.
pub(super) fn discard_drafts(directory: &Path) -> Result<(), FileError> {
    for (_, draft) in folders(directory, DRAFT_SUFFIX)? {
        before_operation();
        fs::remove_dir_all(&draft).map_err(|source| FileError::new("remove", &draft, source))?;
    }
    Ok(())
}

/// An empty folder to build the regions for `shards` shards in.
pub(super) fn make_draft(directory: &Path, shards: u16) -> Result<PathBuf, FileError> {
    let draft = directory.join(folder_name(shards) + DRAFT_SUFFIX);
    make_folder(&draft)?;
    Ok(draft)
}

fn make_folder(path: &Path) -> Result<(), FileError> {
    before_operation();
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| FileError::new("make", path, source))
}

/// A name under which `path` can be kept that is not taken.
pub(super) fn free_name(path: &Path) -> Result<String, FileError> {
    for number in 0..KEPT_MAX {
        let kept = path.with_added_extension(format!("superseded-{number}"));
        if !kept.try_exists().map_err(|source| FileError::new("look for", &kept, source))? {
            return Ok(file_name(&kept));
        }
    }
    Err(FileError::new("find a free name for", path, io::ErrorKind::AlreadyExists.into()))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Makes the draft count in place of the replaced files, by one rename. `finish_committed` does the rest.
pub(super) fn commit(directory: &Path, shards: u16, replaced: &[Replaced]) -> Result<(), FileError> {
    let draft = directory.join(folder_name(shards) + DRAFT_SUFFIX);
    let mut list = String::new();
    for replaced in replaced {
        let (path, kept) = match replaced {
            Replaced::Removed(path) => (path, ""),
            Replaced::Kept { path, name } => (path, name.as_str()),
        };
        let folder = path.parent().map(file_name).unwrap_or_default();
        list += &format!("{folder} {} {kept}\n", file_name(path)); // names of apps have no spaces
    }
    let list_path = draft.join(REPLACED_LIST);
    before_operation();
    fs::write(&list_path, list).map_err(|source| FileError::new("write", &list_path, source))?;
    rename(&draft, &directory.join(folder_name(shards) + READY_SUFFIX))
}

/// Ends what was committed: the replaced files go, then the new ones take their places. A kill in between is made good by the next call.
pub(super) fn finish_committed(directory: &Path) -> Result<(), FileError> {
    for (shards, ready) in folders(directory, READY_SUFFIX)? {
        let list_path = ready.join(REPLACED_LIST);
        match fs::read_to_string(&list_path) {
            Ok(list) => {
                for line in list.lines() {
                    let mut words = line.split(' ');
                    let (Some(folder), Some(name)) = (words.next(), words.next()) else { continue };
                    let (folder, kept) = (directory.join(folder), words.next().unwrap_or_default());
                    let path = folder.join(name);
                    if kept.is_empty() { remove_file(&path)? } else { rename_if_there(&path, &folder.join(kept))? }
                }
                // From here on a file of a replaced one's name may be a new one.
                remove_file(&list_path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(FileError::new("read", &list_path, source)),
        }
        let home = directory.join(folder_name(shards));
        make_folder(&home)?;
        for name in names(&ready)?.iter().filter(|name| parse_region_name(name).is_some()) {
            rename(&ready.join(name), &home.join(name))?;
        }
        before_operation();
        fs::remove_dir(&ready).map_err(|source| FileError::new("remove", &ready, source))?;
    }
    Ok(())
}

/// Removes the folders for other numbers of shards in which nothing is left.
pub(super) fn remove_empty_folders(directory: &Path, shards: u16) -> Result<(), FileError> {
    for (_, folder) in folders(directory, "")?.into_iter().filter(|(number, _)| *number != shards) {
        before_operation();
        match fs::remove_dir(&folder) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
                return Err(FileError::new("remove", &folder, error));
            }
            _ => {} // what is left in it is somebody's: a refused or kept file
        }
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    before_operation();
    fs::rename(from, to).map_err(|source| FileError::new("rename", from, source))
}

fn rename_if_there(from: &Path, to: &Path) -> Result<(), FileError> {
    before_operation();
    match fs::rename(from, to) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FileError::new("rename", from, source)),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<(), FileError> {
    before_operation();
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", path, source)),
        _ => Ok(()),
    }
}

/// Where a test can stop the node as a kill would: between any two changes of files.
fn before_operation() {
    #[cfg(test)]
    super::test_points::pass_file_operation();
}
