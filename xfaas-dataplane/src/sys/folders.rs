//! Folders whose names outlive a power cut: a file that is synced is lost all the same while a folder above it is not. Blocking; at start, and
//! where control changes what is kept.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Names in the folder are on the disk after this. An empty path is the working directory: the parent of a mere name.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

/// Makes a folder, and those above it that are not there, with mode 700. Their names are on the disk after this.
pub fn make_folder(path: &Path) -> io::Result<()> {
    let missing = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).count();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // Also where nothing was missing: who made it may have been killed right after.
    for folder in path.ancestors().take(missing.max(1)) {
        let Some(above) = folder.parent() else { break };
        match sync_folder(above) {
            Err(error) if is_left_to_the_file_system(&error) => {}
            synced => synced?,
        }
    }
    Ok(())
}

/// Takes from all but its owner the right to write to it. Errors: it is not ours.
pub fn keep_others_out(path: &Path) -> io::Result<()> {
    let mut permissions = std::fs::metadata(path)?.permissions();
    let mode = permissions.mode();
    if mode & 0o022 == 0 {
        return Ok(());
    }
    permissions.set_mode(mode & !0o022);
    std::fs::set_permissions(path, permissions)
}

/// A folder that is not ours may be used and not read; one whose file system keeps nothing, or cannot be written, has nothing to sync.
fn is_left_to_the_file_system(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), PermissionDenied | InvalidInput | ReadOnlyFilesystem | Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_a_file_system_that_syncs_nothing_is_fine() {
        for errno in [22, 13, 30, 95] {
            assert!(is_left_to_the_file_system(&io::Error::from_raw_os_error(errno)), "errno {errno}");
        }
        for errno in [5, 28, 2] {
            assert!(!is_left_to_the_file_system(&io::Error::from_raw_os_error(errno)), "errno {errno}");
        }
    }

    #[test]
    fn folders_are_made_private_and_as_deep_as_asked() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        for _ in 0..2 {
            make_folder(&deep).unwrap();
        }
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert!(deep.ancestors().take(3).all(|path| mode(path) == 0o700));
        make_folder(Path::new(".")).unwrap();
        make_folder(Path::new("/")).unwrap();
        std::fs::write(deep.join("file"), b"in the way").unwrap();
        assert!(make_folder(&deep.join("file")).is_err() && make_folder(&deep.join("file/below")).is_err());
        sync_folder(Path::new("")).unwrap();
        assert_eq!(sync_folder(&deep.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
