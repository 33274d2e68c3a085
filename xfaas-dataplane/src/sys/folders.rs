//! Folders whose names outlive a power cut: a file that is synced is lost all the same while a folder above it is not. Blocking; at start, and
//! where control changes what is kept.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
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
            // One that is not ours may be used and not read: then this is left to the file system.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
