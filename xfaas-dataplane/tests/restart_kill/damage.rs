//! A file of session state that was damaged while the node was down: refused with its reason, kept beside the new one, counted; or, where
//! only free memory or bytes inside values were hit, taken as it is. The node starts in any case, and other files are none the worse.

use crate::harness::{Client, Node, Script};
use crate::load::pair;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::SeekFrom;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use xfaas_common::hash::{HASH_KEYS, HashKeys};
use xfaas_dataplane::session::LocalPlacement;
use xfaas_dataplane::state::retag;

const SESSIONS: usize = 24;

fn node() -> Node {
    Node::builder().function(Script::function("script").app("state")).function(pair()).guests(&["counter-rmw"]).start()
}

fn session(number: usize) -> String {
    format!("s{number}")
}

fn region(node: &Node, app: &str, shard: usize) -> PathBuf {
    node.shared_memory().join(format!("shards-2/{app}.{shard}.region"))
}

fn aside(path: &Path, number: usize) -> PathBuf {
    path.with_added_extension(format!("refused-{number}"))
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// What an operator finds out about refused files.
fn refused(node: &Node) -> f64 {
    node.metrics().sum("xfaas_regions_refused_total", &[])
}

/// What counters should say next, by session, and where they live.
struct Book {
    shards: Vec<usize>,
    values: Vec<u32>,
}

impl Book {
    fn open(node: &Node) -> Book {
        let mut book = Book { shards: Vec::new(), values: vec![0; SESSIONS] };
        book.count(node);
        let listed = node.cli_json(&["sessions", "--app", "counter-rmw"]);
        let shard_of =
            |name: String| listed["sessions"].as_array().unwrap().iter().find(|row| row["session"] == name).unwrap()["shard"].as_u64();
        book.shards = (0..SESSIONS).map(|number| shard_of(session(number)).unwrap() as usize).collect();
        assert!([0, 1].iter().all(|shard| book.shards.contains(shard)), "24 sessions miss a shard once in a million runs");
        book
    }

    /// Adds 1 everywhere, and compares.
    #[track_caller]
    fn count(&mut self, node: &Node) {
        let mut client = node.connect();
        for (number, value) in self.values.iter_mut().enumerate() {
            *value += 1;
            let reply = client.call("POST", "/f/counter-rmw", &[("x-session-id", &session(number))], b"");
            assert_eq!((reply.status, reply.text()), (200, value.to_string().as_str()), "session {number}");
        }
    }

    fn forget(&mut self, shard: usize) {
        for (value, own) in self.values.iter_mut().zip(&self.shards) {
            *value *= u32::from(*own != shard);
        }
    }
}

type Damage = (&'static str, fn(&Path), &'static str);

const DAMAGES: [Damage; 9] = [
    ("empty", |path| drop(File::create(path).unwrap()), "is not a region"),
    ("cut in the header", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap(), "is not a region"),
    ("cut short", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(9 << 20).unwrap(), "was cut short"),
    ("another file", |path| std::fs::write(path, vec![b'x'; 20 << 20]).unwrap(), "is not a region"),
    ("half of a header", |path| patch(path, 24, &[0; 400]), "header checksum"),
    ("of another version", |path| patch(path, 8, &[99]), "layout version"),
    ("a bad page", |path| patch(path, 16 << 10, &[0xFF; 8]), "corrupt at offset 0x4000"),
    ("a table of nonsense", |path| patch(path, 4096, &[0xA5; 8192]), "corrupt at offset"),
    ("no table at all", |path| patch(path, 520, &[0xFF; 16]), "corrupt at offset 0x208"),
];

#[test]
fn a_damaged_file_is_refused_with_the_reason_and_kept_and_only_its_sessions_begin_anew() {
    let mut node = node();
    let mut book = Book::open(&node);
    let path = region(&node, "counter-rmw", 0);
    for (number, (what, damage, reason)) in DAMAGES.iter().enumerate() {
        node.stop();
        damage(&path);
        let damaged = identity(&path);
        node.start();
        assert_eq!(refused(&node), 1.0, "{what}");
        assert_eq!(identity(&aside(&path, number)), damaged, "{what}: the very file is kept");
        let log = node.log();
        let told = log.lines().any(|line| line.contains(reason) && line.contains(&format!("refused-{number}")) && line.contains("ERROR"));
        assert!(told && !log.contains("panicked"), "{what}: {log}");
        book.forget(0);
        book.count(&node);
    }
}

#[test]
fn files_that_changed_places_or_lost_their_keys_are_refused() {
    let mut node = node();
    let mut book = Book::open(&node);
    let [zero, one] = [0, 1].map(|shard| region(&node, "counter-rmw", shard));
    node.stop();
    let between = zero.with_extension("between");
    for (from, to) in [(&zero, &between), (&one, &zero), (&between, &one)] {
        std::fs::rename(from, to).unwrap();
    }
    node.start();
    assert_eq!(refused(&node), 2.0, "the shards' files were swapped");
    assert!(node.log().contains("region belongs to app \"counter-rmw\", shard 1; expected app \"counter-rmw\", shard 0"));
    (0..2).for_each(|shard| book.forget(shard));
    book.count(&node);
    node.stop();
    std::fs::rename(region(&node, "state", 0), &zero).unwrap();
    node.start();
    assert_eq!(refused(&node), 1.0, "another app's file");
    assert!(node.log().contains("region belongs to app \"state\", shard 0; expected app \"counter-rmw\", shard 0"));
    book.forget(0);
    book.count(&node);
    node.stop();
    // Without its keys the node hashes sessions anew: nothing would be found where it is.
    std::fs::remove_file(node.directory.path().join("state/hash-keys")).unwrap();
    node.start();
    assert_eq!(refused(&node), 6.0, "two files of each of three apps");
    assert!(node.log().contains("made under other hash keys"));
    (0..2).for_each(|shard| book.forget(shard));
    book.count(&node);
}

fn identity(path: &Path) -> (u64, u64) {
    let found = std::fs::metadata(path).unwrap();
    (found.ino(), found.len())
}

/// Places of a sparse file that hold data, as ranges.
fn extents(file: &File) -> Vec<std::ops::Range<u64>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        extents.push(start..at);
    }
    extents
}

/// Flips bits anywhere in what a file holds; more in its head, where it hurts.
fn flip_bits(path: &Path, bits: usize, random: &mut StdRng) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let extents = extents(&file);
    for _ in 0..bits {
        let extent = &extents[random.random_range(0..extents.len())];
        let at = match random.random_range(0..3) {
            0 => random.random_range(extent.start..extent.end.min(extent.start + 1_024)),
            _ => random.random_range(extent.clone()),
        };
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0] ^= 1 << random.random_range(0..8);
        file.write_all_at(&byte, at).unwrap();
    }
}

/// Calls everything in every session: whatever a value became, each call gets a proper answer.
fn use_everything(node: &Node, what: &str) {
    let mut client: Client = node.connect();
    for number in 0..SESSIONS {
        let session = session(number);
        let mut call = |function: &str, body: &[u8]| client.call("POST", &format!("/f/{function}"), &[("x-session-id", &session)], body);
        let read = (0..6).fold(Script::new(), |script, key| script.read(&format!("key-{key}"), 0));
        let write = (0..6).fold(read, |script, key| script.write(&format!("key-{key}"), &vec![b'v'; key * 700], 1));
        let reply = call("script", &write.end());
        assert_eq!(reply.status, 200, "{what}: {reply:?}");
        let results = Script::results(&reply.body);
        assert!(results.iter().all(|result| (-3..=1 << 20).contains(result)), "{what}: {results:?}");
        for body in [&b"look"[..], b""] {
            let reply = call("pair", body);
            assert_eq!(reply.status, 200, "{what}, {session}: {}", reply.text());
        }
        let reply = call("counter-rmw", b"");
        assert!(reply.status == 200 || reply.code() == "guest_error", "{what}: {reply:?}");
    }
}

#[test]
fn flipped_bits_anywhere_never_keep_the_node_from_starting_and_serving() {
    let mut node = node();
    use_everything(&node, "undamaged");
    let mut refusals = 0.0;
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let bits = 1 << random.random_range(0..8);
        let what = format!("seed {seed}, {bits} bits a file");
        node.kill();
        for app in ["state", "pair", "counter-rmw"] {
            (0..2).for_each(|shard| flip_bits(&region(&node, app, shard), bits, &mut random));
        }
        node.start();
        refusals += refused(&node);
        use_everything(&node, &what);
        assert!(!node.log().contains("panicked"), "{what}: {}", node.log());
    }
    let kept = std::fs::read_dir(node.shared_memory().join("shards-2")).unwrap();
    let kept = kept.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("refused")).count();
    println!("{refusals} of {} damaged files were refused", 20 * 6);
    assert_eq!(kept as f64, refusals, "each refused file is kept");
    assert!(refusals > 0.0, "some damage is bound to be noticed");
}

/// The hash keys in the state directory.
fn hash_keys(node: &Node) -> PathBuf {
    node.directory.path().join("state/hash-keys")
}

#[test]
fn one_bit_of_one_hash_key_is_another_set_of_keys() {
    let mut node = node();
    let mut book = Book::open(&node);
    node.stop();
    let path = hash_keys(&node);
    let kept = std::fs::read(&path).unwrap();
    patch(&path, 140, &[kept[140] ^ 1]);
    node.start();
    assert!(refused(&node) >= 2.0 && node.log().contains("hash keys"), "{}", node.log());
    (0..2).for_each(|shard| book.forget(shard));
    book.count(&node);
}

#[test]
fn regions_with_the_fingerprint_of_earlier_builds_are_found() {
    let mut node = node();
    let mut book = Book::open(&node);
    node.stop();
    let bytes = std::fs::read(hash_keys(&node)).unwrap();
    let keys = std::array::from_fn::<u64, HASH_KEYS, _>(|key| u64::from_le_bytes(bytes.as_chunks().0[key]));
    let placement = LocalPlacement::with_keys(2, HashKeys { keys });
    let former = retag(node.shared_memory(), placement.fingerprint(), placement.former_fingerprint()).unwrap();
    assert!(former >= 2, "{former}");
    node.start();
    book.count(&node);
    assert!(refused(&node) == 0.0 && node.log().contains("fingerprint of all hash keys"), "{}", node.log());
}
