//! Sessions that sleep and come back, checkpoints of apps with durability `checkpoint`, and stores that fail. The node is the real binary; the store is a
//! folder.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Container, Function, Node, NodeBuilder, Script, eventually, guest};
use std::path::{Path, PathBuf};

const NAP: &str = "keep_alive_s = 1";

fn counters(keys: &[&str]) -> NodeBuilder {
    let counter = |name: &str| keys.iter().fold(Function::guest(name).app("counted"), |function, key| function.with(key));
    Node::builder().function(counter("counter-rmw-linear")).function(counter("counter-read").with("read_only = true"))
}

/// What a reboot does.
fn lose_memory(node: &Node) {
    for entry in std::fs::read_dir(node.shared_memory()).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
}

fn count_up(node: &Node, session: &str) -> u64 {
    let reply = node.post("counter-rmw-linear", session, b"");
    assert_eq!(reply.status, 200, "{reply:?}");
    String::from_utf8_lossy(&reply.body).trim().parse().unwrap()
}

fn asleep(node: &Node) -> f64 {
    node.metrics().sum("xfaas_sessions_asleep", &[])
}

fn folder(node: &Node) -> PathBuf {
    node.directory.path().join("state/checkpoints")
}

/// All checkpoints in the store, the oldest first.
fn objects(node: &Node) -> Vec<PathBuf> {
    fn below(path: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(path).into_iter().flatten() {
            let path = entry.unwrap().path();
            // A write that is under way has a `#` in its name.
            match path.is_dir() {
                true => below(&path, found),
                false if path.extension().is_some() && !path.to_string_lossy().contains('#') => found.push(path),
                false => {}
            }
        }
    }
    let mut found = Vec::new();
    below(&folder(node), &mut found);
    found.sort();
    found
}

#[test]
fn an_idle_session_leaves_memory_and_comes_back_with_all_its_keys() {
    let mut node = Node::builder().function(Script::function("script").with(NAP)).start();
    let values: Vec<(String, Vec<u8>)> = (0..10_u8).map(|i| (format!("key-{i}"), vec![i; usize::from(i) * 1_000])).collect();
    let fill = values.iter().fold(Script::new(), |script, (key, value)| script.write(key, value, 0));
    assert_eq!(node.post("script", "sleeper/1", &fill.end()).status, 200);
    eventually("it sleeps", || asleep(&node) == 1.0);
    eventually("its memory is free", || node.metrics().sum("xfaas_sessions", &[]) == 0.0);
    assert_eq!(objects(&node).len(), 1);
    for round in 0..2 {
        for (key, value) in &values {
            let read = Script::new().read(key, 0).output(value.len() as i32).end_with(0);
            let reply = node.post("script", "sleeper/1", &read);
            assert!(reply.status == 200 && reply.body == *value, "{key} in round {round}");
        }
        assert!(node.metrics().sum("xfaas_cold_sessions_total", &[]) >= 1.0);
        if round == 0 {
            // It sleeps again, by a checkpoint that was good already, through a restart.
            eventually("it sleeps again", || asleep(&node) == 1.0);
            node.stop();
            node.start();
            eventually("it sleeps still", || asleep(&node) == 1.0);
        }
    }
    assert_eq!(objects(&node).len(), 1, "a session that was only read is not written again");
}

#[test]
fn a_session_without_a_key_sleeps_too() {
    let node = Node::builder().function(Script::function("script").with(NAP).with("state_mib = 1")).shards(1).start();
    let refused = Script::new().write_bytes("big", 1 << 20).end(); // with its key it does not fit
    assert_eq!(Script::results(&node.post("script", "never", &refused).body), [-3]);
    let timer = Script::new().timer("t", 9_000_000_000_000, b"").cancel_timer("t").end();
    assert_eq!(Script::results(&node.post("script", "empty", &timer).body), [0, 0]);
    eventually("it sleeps", || asleep(&node) == 1.0);
    let listed = node.cli_json(&["sessions"]);
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 0, "a refused write makes no session: {listed}");
    let write = Script::new().read("big", 0).write("small", b"1", 0).end();
    assert_eq!(Script::results(&node.post("script", "empty", &write).body), [-1, 0]);
}

#[test]
fn requests_that_come_while_a_session_is_loaded_wait_for_the_one_load() {
    let node = counters(&[NAP]).start();
    assert_eq!(count_up(&node, "many"), 1);
    eventually("it sleeps", || asleep(&node) == 1.0);
    let loaded = node.metrics().sum("xfaas_cold_sessions_total", &[]);
    let mut values: Vec<u64> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(|| count_up(&node, "many"))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    values.sort_unstable();
    assert_eq!(values, (2..=17).collect::<Vec<u64>>());
    assert_eq!(node.metrics().sum("xfaas_cold_sessions_total", &[]), loaded + 1.0);
    eventually("it sleeps", || asleep(&node) == 1.0);
    // On connections of their own, and so on either shard: a reader beside the owner would find nothing.
    for _ in 0..8 {
        assert_eq!(node.post("counter-read", "many", b"").body, b"17");
    }
}

#[test]
fn containers_wake_sessions_and_never_find_them_empty() {
    let node = counters(&[NAP]).start();
    let container = Container::join(&node, &[]);
    eventually("it counts", || container.post("counter-rmw-linear", "far", b"").body == b"1");
    for round in 1..=2 {
        eventually("it sleeps", || asleep(&node) == 1.0);
        let (function, expected) = if round == 1 { ("counter-read", "1") } else { ("counter-rmw-linear", "2") };
        eventually("it is woken", || {
            let reply = container.post(function, "far", b"");
            assert!(reply.status == 503 || reply.body == expected.as_bytes(), "{reply:?}");
            reply.status == 200
        });
    }
}

#[test]
fn old_checkpoints_are_collected_and_a_damaged_one_gives_way_to_the_one_before() {
    let node = counters(&[NAP]).shards(1).start();
    for round in 1..=4 {
        assert_eq!(count_up(&node, "d"), round);
        eventually("it sleeps", || asleep(&node) == 1.0);
    }
    eventually("two are kept", || objects(&node).len() == 2);
    let newest = objects(&node).pop().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    assert_eq!(count_up(&node, "d"), 4, "as it was when the one before was written");
    assert!(node.log().contains("its checksum is wrong") && node.log().contains("the one before is taken"), "{}", node.log());
    assert_eq!(node.metrics().sum("xfaas_checkpoints_damaged_total", &[]), 1.0);
    // It is written again under a number of its own, and the damaged one goes.
    eventually("it sleeps again", || asleep(&node) == 1.0);
    eventually("the damaged one is gone", || !newest.exists());
    assert_eq!(count_up(&node, "d"), 5);
}

#[test]
fn a_session_whose_checkpoints_are_gone_is_refused_and_not_begun_anew() {
    let node = counters(&[NAP]).shards(1).start();
    assert_eq!(count_up(&node, "lost"), 1);
    eventually("it sleeps", || asleep(&node) == 1.0);
    let (away, home) = (node.directory.path().join("away"), folder(&node));
    std::fs::rename(&home, &away).unwrap();
    for _ in 0..3 {
        let reply = node.post("counter-rmw-linear", "lost", b"");
        let text = String::from_utf8_lossy(&reply.body);
        assert!(reply.status == 503 && text.contains("overloaded") && text.contains("checkpoint"), "{reply:?}");
    }
    assert!(node.metrics().sum("xfaas_cold_sessions_refused_total", &[]) >= 3.0);
    assert_eq!(count_up(&node, "other"), 1, "sessions in memory and new ones go on");
    // The store makes its folder anew as soon as it writes.
    eventually("the store is back", || {
        std::fs::remove_dir_all(&home).ok();
        std::fs::rename(&away, &home).is_ok() || !away.exists()
    });
    eventually("it is tried anew", || node.post("counter-rmw-linear", "lost", b"").status == 200);
    assert_eq!(count_up(&node, "lost"), 3);
}

#[test]
fn a_store_that_cannot_be_written_keeps_sessions_in_memory() {
    let node = counters(&[NAP]).shards(1).start();
    // Root may write anywhere, so the folder becomes a file.
    let home = folder(&node);
    eventually("the folder is free", || std::fs::remove_dir_all(&home).is_ok() || !home.exists());
    std::fs::write(&home, b"in the way").unwrap();
    assert_eq!(count_up(&node, "kept"), 1);
    eventually("it is told", || node.metrics().sum("xfaas_checkpoints_failing", &[]) == 1.0);
    let stats = node.cli_json(&["stats"]);
    assert!(stats["not_ready"].as_str().is_some_and(|text| text.contains("sessions stay in memory")), "{stats}");
    assert_eq!((asleep(&node), count_up(&node, "kept")), (0.0, 2));
    std::fs::remove_file(&home).unwrap();
    eventually("it sleeps", || asleep(&node) == 1.0);
    eventually("it is ready again", || node.metrics().sum("xfaas_checkpoints_failing", &[]) == 0.0);
    assert_eq!(count_up(&node, "kept"), 3);
}

#[test]
fn a_node_whose_store_is_gone_at_its_start_serves_what_cannot_be_in_it() {
    let mut node = counters(&[NAP]).shards(2).start();
    assert_eq!(count_up(&node, "in-memory"), 1);
    node.kill();
    let home = folder(&node);
    std::fs::remove_dir_all(&home).ok();
    std::fs::write(&home, b"in the way").unwrap();
    node.spawn(); // it does not say that it is ready
    eventually("it serves", || node.log().matches("serving http").count() == 2);
    assert_eq!(count_up(&node, "in-memory"), 2);
    node.post("counter-rmw-linear", "perhaps-asleep", b"").assert_error(503, "overloaded");
    for _ in 0..8 {
        node.connect().call("POST", "/f/counter-rmw-linear", &[], b"").assert_ok(b"1"); // of a session made for it
    }
    std::fs::remove_file(&home).unwrap();
    eventually("the store is listed", || node.post("counter-rmw-linear", "perhaps-asleep", b"").status == 200);
}

#[test]
#[ignore = "needs CAP_SYS_ADMIN to mount a small tmpfs: run `cargo xtask test`"]
fn a_full_store_keeps_sessions_in_memory_until_there_is_room() {
    let mut node = counters(&[NAP]).shards(1).start();
    node.stop();
    let home = folder(&node);
    std::fs::create_dir_all(&home).unwrap();
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "xfaas-test"]).arg(&home).status().unwrap();
    assert!(mounted.success(), "mounting needs CAP_SYS_ADMIN");
    let _mount = Mount(home.clone());
    node.start();
    std::fs::write(home.join("filler"), vec![1; 2 << 20]).unwrap_err();
    assert_eq!(count_up(&node, "kept"), 1);
    eventually("it is told", || node.metrics().sum("xfaas_checkpoints_failing", &[]) == 1.0);
    assert_eq!((asleep(&node), count_up(&node, "kept")), (0.0, 2));
    std::fs::remove_file(home.join("filler")).unwrap();
    eventually("it sleeps", || asleep(&node) == 1.0);
    assert_eq!(count_up(&node, "kept"), 3);
    node.stop();
}

/// A file system that goes with its guard.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

#[test]
fn a_machine_that_loses_its_memory_loses_no_more_than_the_last_seconds() {
    let mut node = counters(&["durability = \"checkpoint\"", "checkpoint_every_s = 1"]).shards(1).start();
    for session in 0..20 {
        for _ in 0..=session {
            count_up(&node, &format!("s{session}"));
        }
    }
    // The mark is written in each pass: the fourth time, passes that began after all of the above are over.
    let number = |path: &PathBuf| path.to_str()?.split_once("/mark.").and_then(|(_, number)| u32::from_str_radix(number, 16).ok());
    eventually("some passes are over", || {
        count_up(&node, "mark");
        objects(&node).iter().filter_map(number).max() >= Some(4)
    });
    node.kill();
    lose_memory(&node);
    node.start();
    for session in 0..20 {
        assert_eq!(count_up(&node, &format!("s{session}")), session + 2, "{}", node.log());
    }
    // An orderly stop writes what the last second brought.
    node.stop();
    lose_memory(&node);
    node.start();
    for session in 0..20 {
        assert_eq!(count_up(&node, &format!("s{session}")), session + 3, "{}", node.log());
    }
}

#[test]
fn a_kill_between_checkpoint_and_drop_leaves_the_session_as_memory_has_it() {
    let mut node = counters(&["durability = \"checkpoint\"", "checkpoint_every_s = 1", NAP]).shards(1).start();
    for round in 1..=3 {
        assert_eq!(count_up(&node, "k"), round);
        eventually("there is a checkpoint", || !objects(&node).is_empty());
        node.kill();
        node.start();
    }
    assert_eq!(count_up(&node, "k"), 4);
    eventually("it sleeps", || asleep(&node) == 1.0);
    node.kill();
    node.start();
    assert_eq!(count_up(&node, "k"), 5);
}

#[test]
fn kills_while_many_sessions_fall_asleep_lose_none_of_them() {
    let mut node = counters(&[NAP]).start();
    let mut client = node.connect();
    for round in 1..=4_u64 {
        for session in 0..100 {
            let name = format!("n{session}");
            let reply = client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", &name)], b"");
            assert_eq!((reply.status, String::from_utf8_lossy(&reply.body).trim()), (200, round.to_string().as_str()), "{name}");
        }
        eventually("some sleep", || asleep(&node) >= 20.0 * round as f64);
        node.kill();
        node.start();
        client = node.connect();
    }
}

#[test]
fn sync_apps_sleep_and_lose_nothing_with_their_memory() {
    let mut node = counters(&["durability = \"sync\"", NAP]).shards(1).start();
    for round in 0..3 {
        assert_eq!(count_up(&node, "s"), 2 * round + 1);
        eventually("it sleeps", || asleep(&node) == 1.0);
        assert_eq!(count_up(&node, "s"), 2 * round + 2);
        node.kill();
        lose_memory(&node);
        node.start();
    }
    assert_eq!(count_up(&node, "s"), 7);
}

#[test]
fn rules_of_an_app_must_fit_together() {
    let node = Node::builder().shards(1).start();
    let module = guest("counter-rmw");
    let module = module.to_str().unwrap();
    let refused = node.cli(&["deploy", "c", module, "--checkpoint-every-s", "5"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && text.contains("durability checkpoint"), "{text}");
    for flags in [["--keep-alive-s", "0"], ["--keep-alive-s", "86401"]] {
        assert!(!node.cli(&[&["deploy", "c", module][..], &flags].concat()).status.success());
    }
    let taken = node.cli(&["deploy", "c", module, "--durability", "checkpoint", "--checkpoint-every-s", "5", "--keep-alive-s", "60"]);
    assert!(taken.status.success(), "{taken:?}");
}
