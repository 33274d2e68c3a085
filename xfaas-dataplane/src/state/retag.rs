//! Gives the regions of a folder another hash tag: the keys are the same, only the number that tells them from others is made anew. At start,
//! before anybody maps a region for writing.

use super::layout::{CONSTANT_BYTES, retag_constants};
use super::reshard_files::FileError;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Every region in the folders `shards-<n>` of `directory`, those of a start that was cut short too, that carries the tag `from` carries `to`
/// after this. Others are left for whoever opens them to judge. Cost: a read of 128 bytes a region. Output: how many there were.
pub fn retag(directory: &Path, from: u64, to: u64) -> Result<u32, FileError> {
    let mut renewed = 0;
    for folder in entries(directory)? {
        let is_of_shards = folder.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"shards-"));
        if !is_of_shards || !folder.is_dir() {
            continue;
        }
        for path in entries(&folder)? {
            if path.extension().is_some_and(|extension| extension == "region") {
                let is_renewed = retag_file(&path, from, to).map_err(|source| FileError::new("renew the head of", &path, source))?;
                renewed += u32::from(is_renewed);
            }
        }
    }
    Ok(renewed)
}

fn entries(directory: &Path) -> Result<Vec<std::path::PathBuf>, FileError> {
    let failed = |source| FileError::new("list", directory, source);
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(failed)?.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect(),
    }
}

fn retag_file(path: &Path, from: u64, to: u64) -> io::Result<bool> {
    let mut constants = [0; CONSTANT_BYTES];
    match File::open(path)?.read_exact_at(&mut constants, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        read => read?,
    }
    if !retag_constants(&mut constants, from, to) {
        return Ok(false);
    }
    // One write within one page: a kill leaves tag and checksum of before, or those of after.
    File::options().write(true).open(path)?.write_all_at(&constants, 0)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Region, RegionError, RegionOptions};

    #[test]
    fn a_region_of_the_former_tag_is_found_under_the_new_one_and_no_other_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let shards = folder.path().join("shards-2");
        fs::create_dir(&shards).unwrap();
        let options = |shard, hash_tag| RegionOptions { app: "shop", shard, bytes_max: 1 << 20, hash_tag };
        let path = |shard: u16| shards.join(format!("shop.{shard}.region"));
        let identity = Region::open_or_create(&path(0), &options(0, 7)).unwrap().identity();
        drop(Region::open_or_create(&path(1), &options(1, 9)).unwrap());
        fs::write(path(2), b"short").unwrap();
        assert_eq!(retag(folder.path(), 7, 8).unwrap(), 1);
        assert_eq!(Region::open_or_create(&path(0), &options(0, 8)).unwrap().identity(), identity);
        assert!(matches!(Region::open_or_create(&path(1), &options(1, 8)), Err(RegionError::OtherHashKeys { found: 9, .. })));
        assert_eq!(fs::read(path(2)).unwrap(), b"short");
        assert_eq!(retag(folder.path(), 7, 8).unwrap(), 0);
        assert_eq!(retag(&folder.path().join("not-there"), 7, 8).unwrap(), 0);
    }
}
