//! What is kept on disk of the functions that are loaded: it may save time, and nothing else may come of it.

use super::load::INIT;
use super::{Engine, EngineOptions, Guest, Progress, Shard, manifest};
use crate::worker::Function;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xfaas_common::ids::FunctionHash;
use xfaas_common::limits::KEPT_UNUSED_FILES_MAX;

fn keeping(directory: &Path) -> EngineOptions {
    EngineOptions { cache_directory: Some(directory.to_owned()), workers_live_max: 2, ..EngineOptions::default() }
}

/// All files of a folder and those below it.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn compiled_and_prepared_modules_are_kept_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    for former in ["code/modules", "prepared"] {
        fs::create_dir_all(directory.path().join(former)).unwrap(); // of an earlier build
    }
    let wasm = wat::parse_str(INIT).unwrap();
    let files_after_a_start = || {
        let program = Engine::new(&keeping(directory.path())).unwrap().load(&manifest(), &wasm).unwrap();
        assert_eq!(Shard::new().invoke(&mut Guest::fork(&program, 1), b""), Progress::Finished(145));
        let mut inodes: Vec<u64> = files_below(directory.path()).iter().map(|path| path.metadata().unwrap().ino()).collect();
        inodes.sort();
        inodes
    };
    let written = files_after_a_start();
    assert_eq!(written.len(), 2, "one of native code, one of the module after init()");
    assert_eq!(files_after_a_start(), written, "nothing was written anew");
}

#[test]
fn code_on_disk_that_is_damaged_is_made_anew_and_never_run() {
    let directory = tempfile::tempdir().unwrap();
    let wasm = wat::parse_str(INIT).unwrap();
    let runs = || {
        let program = Engine::new(&keeping(directory.path())).unwrap().load(&manifest(), &wasm).unwrap();
        assert_eq!(Shard::new().invoke(&mut Guest::fork(&program, 1), b""), Progress::Finished(145));
    };
    runs();
    for path in files_below(directory.path()) {
        let whole = fs::read(&path).unwrap();
        let bits = whole.len() * 8;
        for bit in (0..bits).step_by(bits / 23) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).unwrap();
            runs();
            assert_ne!(fs::read(&path).unwrap(), damaged, "bit {bit} of {}", path.display());
        }
        for length in [0, 1, 31, 32, 40, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            runs();
        }
    }
    // Nor is one that cannot be read or written at all in the way of a function.
    for path in files_below(directory.path()) {
        fs::remove_file(&path).unwrap();
        fs::create_dir_all(path.join("in the way")).unwrap();
    }
    runs();
}

#[test]
fn the_code_of_functions_that_are_gone_leaves_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::new(&keeping(directory.path())).unwrap();
    let load = |number: usize| {
        let text = format!(r#"(module (memory (export "memory") 1) (func (export "handle") (result i32) (i32.const {number})))"#);
        let program = engine.load(&manifest(), &wat::parse_str(text).unwrap()).unwrap();
        let hash = FunctionHash::of(b"f");
        Function { manifest: manifest(), program, hook: None, index: 0, app: 0, hash, generation: 1 }
    };
    let stored = load(0);
    for number in 1..=KEPT_UNUSED_FILES_MAX + 3 {
        load(number);
    }
    assert_eq!(files_below(directory.path()).len(), KEPT_UNUSED_FILES_MAX + 4, "it is not known yet what is stored");
    engine.keep_only([&stored].into_iter());
    assert_eq!(files_below(directory.path()).len(), KEPT_UNUSED_FILES_MAX + 1);
    load(KEPT_UNUSED_FILES_MAX + 4); // refused later on, perhaps
    assert_eq!(files_below(directory.path()).len(), KEPT_UNUSED_FILES_MAX + 1);
    let code = || files_below(directory.path()).iter().map(|path| path.metadata().unwrap().modified().unwrap()).max();
    let before = code();
    load(0);
    assert!(code() > before, "what is stored is there still, and marked as used");
}
