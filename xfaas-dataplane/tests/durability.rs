//! Apps with `durability = "sync"`: what was acknowledged is there after the machine has lost its memory. The regions on tmpfs are deleted while the
//! node is down, which is what a reboot does to them.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, RpcClient, State, eventually, guest};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const SESSIONS: usize = 8;

fn sync_counters() -> harness::NodeBuilder {
    let counter = |name: &str| Function::guest(name).app("counted").with("durability = \"sync\"");
    Node::builder().function(counter("counter-rmw-linear")).function(counter("counter-read"))
}

/// What a reboot does.
fn lose_memory(node: &Node) {
    for entry in std::fs::read_dir(node.shared_memory()).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
}

fn session(number: usize) -> String {
    format!("durable-{number}")
}

fn value(node: &Node, session: &str) -> u64 {
    let reply = node.post("counter-read", session, b"");
    assert_eq!(reply.status, 200, "{reply:?}");
    String::from_utf8_lossy(&reply.body).trim().parse().unwrap_or(0)
}

/// One counter's book.
#[derive(Default)]
struct Book {
    attempted: AtomicU64,
    acknowledged: AtomicU64,
    seen: AtomicU64,
}

/// Counts up until told to end; whatever happens to the node is no error.
fn count(address: std::net::SocketAddr, number: usize, book: &Book, is_over: &AtomicBool) {
    use std::io::{Read, Write};
    while !is_over.load(Ordering::Relaxed) {
        let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        loop {
            let session = session(number % SESSIONS);
            let request = format!("POST /f/counter-rmw-linear HTTP/1.1\r\nhost: x\r\nx-session-id: {session}\r\ncontent-length: 0\r\n\r\n");
            book.attempted.fetch_add(1, Ordering::SeqCst);
            if is_over.load(Ordering::Relaxed) || stream.write_all(request.as_bytes()).is_err() {
                break;
            }
            let mut reply = Vec::new();
            let mut part = [0; 2_048];
            let body = loop {
                match stream.read(&mut part) {
                    Ok(read) if read > 0 => reply.extend_from_slice(&part[..read]),
                    _ => break None,
                }
                let text = String::from_utf8_lossy(&reply);
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                    if body.len() == length.parse::<usize>().unwrap() {
                        break head.starts_with("HTTP/1.1 200").then(|| body.trim().parse::<u64>().unwrap());
                    }
                }
            };
            let Some(value) = body else { break };
            book.acknowledged.fetch_add(1, Ordering::SeqCst);
            book.seen.fetch_max(value, Ordering::SeqCst);
        }
    }
}

/// Kills a loaded node again and again, and deletes its memory each time. Output: acknowledged increments, and those that were missing.
fn kill_rounds(node: &mut Node, rounds: usize) -> (u64, u64) {
    let books: Vec<Book> = (0..SESSIONS).map(|_| Book::default()).collect();
    let mut lost = 0;
    for round in 0..rounds {
        let is_over = AtomicBool::new(false);
        let before: u64 = books.iter().map(|book| book.acknowledged.load(Ordering::SeqCst)).sum();
        std::thread::scope(|scope| {
            for client in 0..2 * SESSIONS {
                let (book, is_over, address) = (&books[client % SESSIONS], &is_over, node.http);
                scope.spawn(move || count(address, client, book, is_over));
            }
            eventually("the clients make progress", || {
                books.iter().map(|book| book.acknowledged.load(Ordering::SeqCst)).sum::<u64>() >= before + 30 + (round as u64 * 37) % 170
            });
            node.kill();
            is_over.store(true, Ordering::SeqCst);
        });
        lose_memory(node);
        node.start();
        for (number, book) in books.iter().enumerate() {
            let acknowledged = book.acknowledged.load(Ordering::SeqCst).max(book.seen.load(Ordering::SeqCst));
            let found = value(node, &session(number));
            lost += acknowledged.saturating_sub(found);
            assert!(found <= book.attempted.load(Ordering::SeqCst), "an increment happened twice");
        }
    }
    (books.iter().map(|book| book.acknowledged.load(Ordering::SeqCst)).sum(), lost)
}

#[test]
fn no_kill_with_loss_of_memory_loses_an_acknowledged_write() {
    let rounds = std::env::var("XFAAS_DURABILITY_KILLS").map_or(50, |rounds| rounds.parse().unwrap());
    let mut node = sync_counters().start();
    let (acknowledged, lost) = kill_rounds(&mut node, rounds);
    println!("{{\"name\":\"kills\",\"runs\":{rounds},\"acknowledged\":{acknowledged},\"lost\":{lost}}}");
    assert_eq!(lost, 0);
    assert!(!node.log().contains("damaged"), "{}", node.log());
}

#[test]
fn without_what_says_which_segments_count_the_node_does_not_start_and_takes_none_away() {
    let mut node = sync_counters().start();
    (0..3).for_each(|_| assert_eq!(node.post("counter-rmw-linear", "s", b"").status, 200));
    node.kill();
    lose_memory(&node);
    let log = node.directory.path().join("state/log");
    let (current, kept) = (log.join("current"), node.directory.path().join("current"));
    std::fs::rename(&current, &kept).unwrap();
    let segments = || {
        let mut names: Vec<_> = std::fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != "current");
        names.sort();
        names
    };
    let before = segments();
    assert!(!before.is_empty());
    let config = node.config();
    let refused = || {
        let ended = harness::xfaas(&["run", "--steering", "off", "--config", config.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{text}");
        assert!(text.contains(current.to_str().unwrap()) && text.contains("restore it") && text.contains("move "), "{text}");
        assert_eq!(segments(), before);
    };
    refused();
    for damaged in ["", "xfaas-log 1 x 2\n"] {
        std::fs::write(&current, damaged).unwrap();
        refused();
    }
    std::fs::rename(&kept, &current).unwrap();
    let older = std::fs::read(&current).unwrap();
    node.start();
    assert_eq!(value(&node, "s"), 3);
    // One from before the last start, as a backup has it: what was written since must not count as left over.
    assert_eq!(node.post("counter-rmw-linear", "s", b"").status, 200);
    node.kill();
    lose_memory(&node);
    let newest = std::fs::read(&current).unwrap();
    assert_ne!(newest, older);
    std::fs::write(&current, older).unwrap();
    let before = segments();
    let ended = harness::xfaas(&["run", "--steering", "off", "--config", config.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.code() == Some(1) && text.contains("older than the log"), "{text}");
    assert_eq!(segments(), before);
    std::fs::write(&current, newest).unwrap();
    node.start();
    assert_eq!(value(&node, "s"), 4);
}

#[test]
fn the_log_gives_way_to_snapshots_while_the_node_runs() {
    let mut node = sync_counters().limit("log_mib = 1").shards(1).start();
    let mut client = node.connect();
    // Each write alone takes a page of the log: 600 are more than twice the limit.
    for _ in 0..600 {
        let reply = client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "durable-0")], b"");
        assert_eq!(reply.status, 200);
    }
    let log = node.directory.path().join("state/log");
    // The hash keys are random: the session is on either shard.
    let firsts = [log.join("0-1.log"), log.join("1-1.log")];
    eventually("old segments go", || firsts.iter().any(|first| !first.exists()));
    node.kill();
    lose_memory(&node);
    node.start();
    assert_eq!(value(&node, "durable-0"), 600);
}

#[test]
fn another_number_of_shards_finds_every_session() {
    let mut node = sync_counters().start();
    for number in 0..SESSIONS {
        for _ in 0..=number {
            assert_eq!(node.post("counter-rmw-linear", &session(number), b"").status, 200);
        }
    }
    node.stop();
    let text = std::fs::read_to_string(node.config()).unwrap();
    let one_shard = with_cpus(&text, 1);
    for text in [&one_shard, &text, &one_shard] {
        std::fs::write(node.config(), text).unwrap();
        node.start();
        for number in 0..SESSIONS {
            assert_eq!(value(&node, &session(number)), number as u64 + 1);
        }
        node.stop();
    }
}

/// The configuration with the first so many of its CPUs.
fn with_cpus(text: &str, count: usize) -> String {
    let (before, rest) = text.split_once("cpus = [").unwrap();
    let (list, after) = rest.split_once(']').unwrap();
    let kept: Vec<&str> = list.split(',').take(count).collect();
    format!("{before}cpus = [{}]{after}", kept.join(","))
}

/// The segments of shard 0 in their order.
fn segments(node: &Node) -> Vec<PathBuf> {
    let names = std::fs::read_dir(node.directory.path().join("state/log")).unwrap().map(|entry| entry.unwrap().path());
    let number = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("0-")?.strip_suffix(".log")?.parse::<u64>().ok();
    let mut segments: Vec<PathBuf> = names.filter(|path| number(path).is_some()).collect();
    segments.sort_by_key(number);
    segments
}

/// Ten writes, each in a batch of its own, then a kill. Output: the segment, and where its batches are.
fn ten_writes(node: &mut Node) -> (PathBuf, Vec<u64>) {
    let mut client = node.connect();
    for _ in 0..10 {
        let reply = client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "durable-0")], b"");
        assert_eq!(reply.status, 200);
    }
    drop(client);
    node.kill();
    let path = segments(node).pop().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let batches: Vec<u64> = (0..bytes.len()).step_by(4_096).filter(|at| bytes[*at..].starts_with(b"XFLB")).map(|at| at as u64).collect();
    assert_eq!(batches.len(), 11, "a head and ten batches");
    (path, batches)
}

fn flip(path: &PathBuf, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn a_torn_end_is_cut_with_a_word() {
    let mut node = sync_counters().shards(1).start();
    let (path, batches) = ten_writes(&mut node);
    flip(&path, batches[10] + 60);
    lose_memory(&node);
    node.start();
    assert_eq!(value(&node, "durable-0"), 9);
    assert!(node.log().contains("was cut off") && node.log().contains(&format!("at byte {}", batches[10])), "{}", node.log());
}

#[test]
fn damage_in_the_middle_is_told_with_its_place_and_kept() {
    let mut node = sync_counters().shards(1).start();
    let (path, batches) = ten_writes(&mut node);
    flip(&path, batches[5] + 60);
    lose_memory(&node);
    node.start();
    assert_eq!(value(&node, "durable-0"), 4, "what came before is loaded");
    let log = node.log();
    assert!(log.contains("damaged in the middle") && log.contains(&format!("{} at byte {}", path.display(), batches[5])), "{log}");
    assert!(path.with_added_extension("refused-0").exists());
    // It goes on as a node does.
    assert_eq!(node.post("counter-rmw-linear", "durable-0", b"").body, b"5");
}

#[test]
fn memory_is_believed_when_only_the_process_ended() {
    let mut node = sync_counters().shards(1).start();
    let (path, batches) = ten_writes(&mut node);
    flip(&path, batches[5] + 60);
    node.start();
    assert_eq!(value(&node, "durable-0"), 10, "the log is not needed");
}

#[test]
fn the_functions_of_an_app_must_agree() {
    let node = sync_counters().shards(1).start();
    let module = guest("counter-rmw");
    let module = module.to_str().unwrap();
    let refused = node.cli(&["deploy", "counter-rmw", module, "--app", "counted"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && text.contains("must agree"), "{text}");
    assert_eq!(node.cli(&["deploy", "other", module, "--durability", "never"]).status.code(), Some(2));
    let taken = node.cli(&["deploy", "counter-rmw", module, "--app", "counted", "--durability", "sync"]);
    assert!(taken.status.success(), "{taken:?}");
}

#[test]
fn an_app_that_becomes_sync_brings_its_state_along() {
    let mut node = Node::builder().start();
    let module = guest("counter-rmw");
    let deploy = |node: &Node, durability: &str| {
        let done = node.cli(&["deploy", "counter-rmw", module.to_str().unwrap(), "--durability", durability]);
        assert!(done.status.success(), "{done:?}");
    };
    deploy(&node, "memory");
    for number in 0..20 {
        assert_eq!(node.post("counter-rmw", &session(number), b"").body, b"1");
    }
    deploy(&node, "sync");
    assert_eq!(node.post("counter-rmw", &session(0), b"").body, b"2");
    node.kill();
    lose_memory(&node);
    node.start();
    assert_eq!(node.post("counter-rmw", &session(0), b"").body, b"3");
    assert!((1..20).all(|number| node.post("counter-rmw", &session(number), b"").body == b"2"));
}

#[test]
fn a_function_serves_on_while_its_deployment_as_sync_fails() {
    let node = Node::builder().shards(1).start();
    let module = guest("counter-rmw");
    let deploy = |durability: &str| node.cli(&["deploy", "counter-rmw", module.to_str().unwrap(), "--durability", durability]);
    assert!(deploy("memory").status.success());
    let log = node.directory.path().join("state/log");
    std::fs::remove_dir_all(&log).ok();
    std::fs::write(&log, b"in the way").unwrap();
    let (is_over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = node.connect();
                while !is_over.load(Ordering::Relaxed) {
                    let reply = client.call("POST", "/f/counter-rmw", &[("x-session-id", "s")], b"");
                    assert_eq!(reply.status, 200, "{reply:?}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let refused: Vec<_> = (0..20).map(|_| deploy("sync")).collect();
        is_over.store(true, Ordering::Relaxed);
        for refused in refused {
            let text = String::from_utf8_lossy(&refused.stderr);
            assert!(refused.status.code() == Some(1) && text.contains("state/log"), "{text}");
        }
    });
    let next = answered.into_inner() + 1;
    assert_eq!(node.post("counter-rmw", "s", b"").body, next.to_string().as_bytes());
    std::fs::remove_file(&log).unwrap();
    assert!(deploy("sync").status.success());
    assert_eq!(node.post("counter-rmw", "s", b"").body, (next + 1).to_string().as_bytes());
}

#[test]
fn what_an_app_wrote_after_it_became_memory_moves_with_it_to_another_number_of_shards() {
    let mut node = Node::builder().start();
    let module = guest("counter-rmw");
    for (durability, value) in [("sync", b"1"), ("memory", b"2")] {
        let done = node.cli(&["deploy", "counter-rmw", module.to_str().unwrap(), "--durability", durability]);
        assert!(done.status.success(), "{done:?}");
        assert!((0..20).all(|number| node.post("counter-rmw", &session(number), b"").body == value));
    }
    node.kill();
    let text = with_cpus(&std::fs::read_to_string(node.config()).unwrap(), 1);
    std::fs::write(node.config(), text).unwrap();
    node.start();
    assert!((0..20).all(|number| node.post("counter-rmw", &session(number), b"").body == b"3"), "{}", node.log());
}

#[test]
#[ignore = "needs CAP_SYS_ADMIN to mount a small tmpfs: run `cargo xtask test`"]
fn a_full_disk_refuses_and_acknowledges_nothing_and_goes_on_when_there_is_room() {
    let (mut node, disk) = on_a_small_disk();
    disk.fill();
    let mut client = node.connect();
    let (mut acknowledged, mut refused) = (0_u64, None);
    // A write alone takes a page: 64 MiB are 16,384 of them, fewer with eight at once.
    for _ in 0..17_000 {
        let reply = client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "durable-0")], b"");
        match reply.status {
            200 => acknowledged += 1,
            _ => {
                refused = Some(reply);
                break;
            }
        }
    }
    let refused = refused.expect("the disk is full");
    assert!(matches!(refused.status, 503 | 504), "{refused:?}");
    let reply = node.post("counter-rmw-linear", "durable-0", b"");
    assert!(reply.status == 503 && String::from_utf8_lossy(&reply.body).contains("overloaded"), "{reply:?}");
    let stats = node.cli_json(&["stats"]);
    assert!(stats["not_ready"].as_str().is_some_and(|text| text.contains("cannot be written")), "{stats}");
    assert!(node.metrics().sum("xfaas_log_failing", &[]) >= 1.0);
    disk.make_room();
    eventually("it goes on", || node.post("counter-rmw-linear", "durable-0", b"").status == 200);
    node.kill();
    lose_memory(&node);
    node.start();
    assert!(value(&node, "durable-0") > acknowledged);
    node.stop();
}

#[test]
#[ignore = "needs CAP_SYS_ADMIN to mount a small tmpfs: run `cargo xtask test`"]
fn a_containers_commit_that_a_full_disk_refuses_leaves_no_lock_behind() {
    let ((mut node, disk), session) = (on_a_small_disk(), "durable-0");
    let mut container = RpcClient::to_owner(node.rpc, session);
    let strong = |invocation| State { app: "counted", ..State::strong("counter-rmw-linear", session, invocation) };
    assert_eq!(container.call(|id| strong(1).read(id, b"key")).result(), -1);
    disk.fill();
    let mut client = node.connect();
    let is_refused = |_| client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "durable-1")], b"").status != 200;
    assert!((0..17_000).any(is_refused), "the disk is full");
    eventually("the log fails", || node.metrics().sum("xfaas_log_failing", &[]) >= 1.0);
    container.call(|id| strong(1).commit(id, &[(b"key", b"never")])).assert_error(3, "overloaded");
    disk.make_room();
    eventually("it goes on", || node.post("counter-rmw-linear", "durable-1", b"").status == 200);
    assert_eq!(container.call(|id| strong(2).read(id, b"key")).result(), -1, "nobody holds it, and nothing was written");
    node.stop();
}

/// Starts a node of one shard whose log lies on a disk of its own, of `mib`.
fn start_on_small_disk(builder: harness::NodeBuilder, mib: u32) -> (Node, PathBuf, Mount) {
    let mut node = builder.shards(1).start();
    node.stop();
    let log = node.directory.path().join("state/log");
    let size = format!("size={mib}m");
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "xfaas-test"]).arg(&log).status().unwrap();
    assert!(mounted.success(), "mounting needs CAP_SYS_ADMIN");
    let mount = Mount(log.clone());
    node.start();
    (node, log, mount)
}

/// Takes all that is left of a disk.
fn fill(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    loop {
        files.push(folder.join(format!("filler-{}", files.len())));
        if std::fs::write(files.last().unwrap(), vec![1; 64 << 10]).is_err() {
            return files;
        }
    }
}

/// Starts a node that serves and is not ready, and checks what it says of that.
fn start_unready(node: &mut Node) {
    let starts = |node: &Node| node.log().matches("serving http").count();
    let before = starts(node);
    node.spawn();
    eventually("it serves", || starts(node) > before);
    let stats = node.cli_json(&["stats"]);
    assert!(stats["not_ready"].as_str().is_some_and(|text| text.contains("could not be brought up yet")), "{stats}");
    assert!(node.log().contains("free some disk in"), "{}", node.log());
}

#[test]
#[ignore = "needs CAP_SYS_ADMIN to mount a small tmpfs: run `cargo xtask test`"]
fn a_start_without_room_for_the_log_serves_what_needs_none_and_the_rest_when_there_is_room() {
    for is_memory_lost in [false, true] {
        let plain = Function::guest("counter-rmw-linear").named("plain");
        let (mut node, log, _mount) = start_on_small_disk(Node::builder().function(plain), 80);
        let files = fill(&log);
        node.kill();
        node.start();
        assert_eq!(node.post("plain", "s", b"").body, b"1", "without sync functions a full disk changes nothing");
        files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
        let module = guest("counter-rmw-linear");
        let deployed = node.cli(&["deploy", "logged", module.to_str().unwrap(), "--durability", "sync"]);
        assert!(deployed.status.success(), "{deployed:?}");
        assert_eq!(node.post("logged", "s", b"").body, b"1");
        let files = fill(&log);
        node.kill();
        if is_memory_lost {
            lose_memory(&node);
        }
        start_unready(&mut node);
        assert_eq!(node.post("plain", "t", b"").body, b"1");
        assert_eq!(node.post("logged", "s", b"").status, 404);
        files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
        eventually("it is brought up", || node.post("logged", "s", b"").status == 200);
        assert_eq!(node.post("logged", "s", b"").body, b"3", "what was acknowledged is there");
        node.kill();
        lose_memory(&node);
        node.start();
        assert_eq!(node.post("logged", "s", b"").body, b"4");
        node.stop();
    }
}

#[test]
#[ignore = "needs CAP_SYS_ADMIN to mount a small tmpfs: run `cargo xtask test`"]
fn functions_of_the_configuration_wait_for_room_for_the_log_too() {
    let plain = Function::guest("counter-rmw-linear").named("plain");
    let (mut node, log, _mount) = start_on_small_disk(sync_counters().function(plain), 80);
    assert_eq!(node.post("counter-rmw-linear", "s", b"").body, b"1");
    let files = fill(&log);
    node.kill();
    lose_memory(&node);
    start_unready(&mut node);
    assert_eq!(node.post("plain", "t", b"").body, b"1");
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    eventually("all is brought up", || node.post("counter-read", "s", b"").body == b"1");
    assert_eq!(node.post("counter-rmw-linear", "s", b"").body, b"2");
    node.stop();
}

/// A file system that goes with its guard.
struct Mount(PathBuf);

/// A node whose log has room for the segment that is set aside.
fn on_a_small_disk() -> (Node, Mount) {
    let (node, _, mount) = start_on_small_disk(sync_counters(), 140);
    (node, mount)
}

impl Mount {
    /// One segment is set aside; no other one has room, and the disk cannot give it.
    fn fill(&self) {
        std::fs::write(self.0.join("filler"), vec![1; 100 << 20]).unwrap_err();
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}
