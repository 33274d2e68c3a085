//! Tests of the store: what a crash at any step leaves behind.

use super::*;
use crate::control::testing::manifest;
use std::os::unix::fs::PermissionsExt;

fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory.join("functions")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn deploy(store: &mut Store, name: &str, wasm: &[u8]) {
    let generation = store.next_generation();
    let lasting = store.prepare(&manifest(name, "app"), wasm, generation).unwrap().commit().unwrap();
    assert!(matches!(lasting, Lasting::Yes));
}

fn stored(store: &Store, name: &str) -> Stored {
    store.list().unwrap().into_iter().find(|(other, _)| other == name).unwrap().1.unwrap()
}

#[test]
fn a_deployment_is_found_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    deploy(&mut store, "echo", b"one");
    deploy(&mut store, "echo", b"second");
    deploy(&mut store, "a.toml", b"names may have dots");
    drop(store);
    let mut store = Store::open(directory.path()).unwrap();
    let echo = stored(&store, "echo");
    assert_eq!(echo.manifest, manifest("echo", "app"));
    assert_eq!(echo.read_wasm().unwrap(), b"second");
    assert_eq!(stored(&store, "a.toml").read_wasm().unwrap(), b"names may have dots");
    assert_eq!(files(directory.path()), ["a.toml.toml", "a.toml@3.wasm", "echo.toml", "echo@2.wasm"]);
    assert_eq!(store.next_generation(), 4);
}

#[test]
fn a_crash_before_the_commit_leaves_the_former_deployment() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    deploy(&mut store, "echo", b"one");
    let generation = store.next_generation();
    std::mem::forget(store.prepare(&manifest("echo", "app"), b"two", generation).unwrap());
    std::mem::forget(store.prepare(&manifest("fresh", "app"), b"new", generation + 1).unwrap());
    drop(store);
    let mut store = Store::open(directory.path()).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(stored(&store, "echo").read_wasm().unwrap(), b"one");
    assert_eq!(files(directory.path()), ["echo.toml", "echo@1.wasm"]);
    assert!(store.next_generation() > generation, "a generation is never used twice");
}

#[test]
fn a_crash_between_commit_and_clean_up_leaves_the_new_deployment() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    deploy(&mut store, "echo", b"one");
    let module = directory.path().join("functions/echo@1.wasm");
    deploy(&mut store, "echo", b"two");
    fs::write(&module, b"one").unwrap();
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(stored(&store, "echo").read_wasm().unwrap(), b"two");
    assert!(!module.exists());
}

#[test]
fn an_uncommitted_deployment_is_undone() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    deploy(&mut store, "echo", b"one");
    drop(store.prepare(&manifest("echo", "app"), b"two", 9).unwrap());
    assert_eq!(files(directory.path()), ["echo.toml", "echo@1.wasm"]);
    assert_eq!(stored(&store, "echo").read_wasm().unwrap(), b"one");
}

#[test]
fn a_removed_deployment_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    deploy(&mut store, "echo", b"one");
    for name in ["echo", "never-there"] {
        assert!(matches!(store.remove(name).unwrap(), Lasting::Yes));
    }
    assert_eq!(files(directory.path()), [""; 0]);
}

#[test]
fn a_change_that_may_not_last_is_made_all_the_same_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    deploy(&mut store, "echo", b"one");
    let mut prepared = store.prepare(&manifest("echo", "app"), b"second", 2).unwrap();
    prepared.functions = directory.path().join("not-there"); // only what is synced
    assert!(matches!(prepared.commit().unwrap(), Lasting::Unknown(StoreError::Io { operation: "sync", .. })));
    assert_eq!(stored(&store, "echo").read_wasm().unwrap(), b"second");
    assert_eq!(files(directory.path()), ["echo.toml", "echo@1.wasm", "echo@2.wasm"], "a power cut may bring the first one back");
}

#[test]
fn a_damaged_manifest_is_told_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    deploy(&mut store, "echo", b"one");
    deploy(&mut store, "short", b"whole");
    fs::write(directory.path().join("functions/echo.toml"), "generation = ").unwrap();
    fs::write(directory.path().join("functions/short@2.wasm"), "wh").unwrap();
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    let listed = store.list().unwrap();
    assert!(listed[0].1.as_ref().unwrap_err().contains("damaged"));
    assert!(stored(&store, "short").read_wasm().unwrap_err().contains("2 bytes instead of 5"));
    assert_eq!(files(directory.path()), ["echo.toml", "echo@1.wasm", "short.toml", "short@2.wasm"]);
}

#[test]
fn a_manifest_cut_or_changed_anywhere_is_damaged_and_one_of_an_earlier_build_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    deploy(&mut store, "echo", b"one");
    let path = directory.path().join("functions/echo.toml");
    let whole = fs::read_to_string(&path).unwrap();
    let listed = |text: &str| {
        fs::write(&path, text).unwrap();
        store.list().unwrap().remove(0).1
    };
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    for kept in 0..lines.len() {
        let error = listed(&lines[..kept].concat()).unwrap_err();
        assert!(error.contains("damaged"), "{kept} lines: {error}");
    }
    assert!(listed(&lines[..lines.len() - 1].concat()).unwrap_err().contains("deploy the function again"));
    assert!(listed(&whole.replace("read_only = false", "read_only = true")).unwrap_err().contains("checksum"));
    assert!(listed(&whole.replace("format = 2", "format = 3")).unwrap_err().contains("later version"));
    assert!(listed(&lines[1..].concat()).unwrap_err().contains("checksum"), "a format that was lost");
    assert_eq!(listed(&whole).unwrap().manifest, manifest("echo", "app"));
    let former: String = lines[1..lines.len() - 1].iter().filter(|line| !line.starts_with("wasm_sha256")).copied().collect();
    let stored = listed(&former).unwrap();
    assert_eq!(stored.manifest, manifest("echo", "app"), "{former}");
    assert_eq!(stored.read_wasm().unwrap(), b"one");
    // The first manifests with a checksum had none of the module.
    let sealed = seal_manifest(format!("{}{former}", lines[0]));
    assert_eq!(listed(&sealed).unwrap().read_wasm().unwrap(), b"one");
}

#[test]
fn a_module_with_any_bit_flipped_is_damaged_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    let module: Vec<u8> = (0..64).collect();
    deploy(&mut store, "echo", &module);
    let path = directory.path().join("functions/echo@1.wasm");
    for bit in 0..8 * module.len() {
        let mut flipped = module.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, flipped).unwrap();
        let error = stored(&store, "echo").read_wasm().unwrap_err();
        assert!(error.contains("damaged") && error.contains("deploy the function again"), "{error}");
    }
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    assert!(path.exists());
    fs::write(&path, &module).unwrap();
    assert_eq!(stored(&store, "echo").read_wasm().unwrap(), module);
}

#[test]
fn two_processes_cannot_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let Err(error) = Store::open(directory.path()) else { panic!("locked twice") };
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())) && text.contains("--state-dir"), "{text}");
    drop(store);
    Store::open(directory.path()).unwrap();
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Store::open(&shared), Err(StoreError::NotPrivate { mode: 0o777, .. })));
    let made = directory.path().join("a/b");
    private_directory(&made).unwrap();
    assert_eq!(fs::metadata(&made).unwrap().mode() & 0o777, 0o700);
}
