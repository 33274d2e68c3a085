//! What kills leave of checkpoints that were being written to a folder. Called by `store` when it opens one; waits for the disk.

use super::store::{PROBE, listed, unescape};
use std::fs::{self, DirEntry, FileType};
use std::io;
use std::path::Path;
use xfaas_common::ids::is_name;

/// Removes what kills left half written. Nobody else's files: an operator may have named any folder.
pub(super) fn remove_drafts(root: &Path) -> io::Result<()> {
    let mut apps = Vec::new();
    for_each_named(root, |name, entry, kind| {
        if kind.is_dir() && unescape(name).is_some_and(|app| is_name(&app)) {
            apps.push(name.to_owned());
        } else if kind.is_file() && object_of_draft(name) == Some(PROBE) {
            fs::remove_file(entry.path())?;
        }
        Ok(())
    })?;
    for app in apps {
        let mut buckets = Vec::new();
        for_each_named(&root.join(&app), |name, _, kind| {
            if kind.is_dir() && is_bucket(name) {
                buckets.push(name.to_owned());
            }
            Ok(())
        })?;
        for bucket in buckets {
            for_each_named(&root.join(&app).join(&bucket), |name, entry, kind| {
                let object = object_of_draft(name).map(|object| format!("{app}/{bucket}/{object}"));
                if kind.is_file() && object.is_some_and(|object| listed(&object).is_some()) {
                    fs::remove_file(entry.path())?;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Looks at what is in a folder, names that are no text left out.
fn for_each_named(folder: &Path, mut look: impl FnMut(&str, &DirEntry, FileType) -> io::Result<()>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str() {
            look(name, &entry, entry.file_type()?)?;
        }
    }
    Ok(())
}

/// What `ring_files` was about to write under that name.
fn object_of_draft(name: &str) -> Option<&str> {
    let (object, number) = name.rsplit_once('#')?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(object)
}

fn is_bucket(name: &str) -> bool {
    name.len() == 3 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::CheckpointName;
    use super::super::store::{CheckpointStore, StorePlace, object_of};
    use xfaas_common::ids::SessionId;

    #[test]
    fn a_start_removes_drafts_of_its_own_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let session = SessionId::new(b"a#b").unwrap();
        let object = object_of(&CheckpointName { app: ".x", session: &session, number: 3 });
        let (app, rest) = object.split_once('/').unwrap();
        let ours = [format!("{object}#0"), format!("{object}#17"), "probe#1".to_owned()];
        let theirs = [
            object.clone(),
            format!("{object}#"),
            format!("{object}#1x"),
            format!("{object}#1#2"),
            format!("{object}x#1"),
            format!("below/{object}#1"),
            format!("{app}/000/other.0000000000000003#1"),
            format!("{app}/probe#1"),
            format!("{app}/notes#1"),
            "x#1".to_owned(),
            "#1".to_owned(),
            "probe#".to_owned(),
            "probe#x".to_owned(),
            "notes/project #2.txt".to_owned(),
            format!(".git/{rest}#1"),
        ];
        for name in ours.iter().chain(&theirs) {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"half").unwrap();
        }
        let linked = folder.path().join(format!("{object}#5"));
        std::os::unix::fs::symlink("nowhere", &linked).unwrap();
        CheckpointStore::open(&StorePlace::Folder(folder.path().to_owned())).unwrap();
        let left = |names: &[String]| names.iter().filter(|name| folder.path().join(name).exists()).cloned().collect::<Vec<_>>();
        assert_eq!(left(&theirs), theirs);
        assert_eq!(left(&ours), Vec::<String>::new());
        assert!(linked.is_symlink(), "no draft is a link");
    }
}
