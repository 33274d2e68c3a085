//! The rule that nothing compiled is in git: by the file's name, and by its first bytes whatever its name.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;

const ENDINGS: [&str; 9] = [".o", ".a", ".so", ".rlib", ".rmeta", ".wasm", ".cwasm", ".elf", ".bc"];
/// First bytes of ELF objects, wasm modules, LLVM bitcode, archives.
const BEGINNINGS: [&[u8]; 4] = [b"\x7fELF", b"\0asm", b"BC\xC0\xDE", b"!<arch>\n"];
/// Bytes of the longest beginning.
const BEGINNING_BYTES_MAX: u64 = 8;

/// Errors: the file cannot be read.
pub fn compiled(root: &Path, path: &str) -> Result<Option<Finding>> {
    let mut beginning = Vec::new();
    let file = File::open(root.join(path)).with_context(|| format!("open {path}"))?;
    file.take(BEGINNING_BYTES_MAX).read_to_end(&mut beginning).with_context(|| format!("read {path}"))?;
    let is_compiled = ENDINGS.iter().any(|ending| path.ends_with(ending)) || BEGINNINGS.iter().any(|magic| beginning.starts_with(magic));
    Ok(is_compiled.then(|| Finding::new(path, 0, "a compiled file in git: build it where it is needed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_files_are_known_by_name_or_content() {
        let root = std::env::temp_dir().join(format!("xtask-artifacts-test-{}", std::process::id()));
        std::fs::create_dir_all(&root).expect("make a folder");
        let files: [(&str, &[u8], bool); 6] = [
            ("x.o", b"text", true),
            ("y.wasm", b"", true),
            ("object", b"\x7fELF\x02\x01", true),
            ("module.bin", b"\0asm\x01\0\0\0", true),
            ("readme.md", b"# text", false),
            ("short", b"\x7fEL", false),
        ];
        for (name, content, expected) in files {
            std::fs::write(root.join(name), content).expect("write");
            assert_eq!(compiled(&root, name).expect("readable").is_some(), expected, "{name}");
        }
        std::fs::remove_dir_all(&root).expect("remove the folder");
    }
}
