//! Sessions that may sleep move with what is known of their checkpoints: they are found where they are, asleep or awake, and their checkpoints are numbered on.

use super::harness::{Node, Script, Stop, eventually};
use super::{assert_refused, builder_with, core_of, count_over_http, move_to};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const NAP: &[&str] = &["keep_alive_s = 1"];

fn asleep(node: &Node) -> f64 {
    node.metrics().sum("xfaas_sessions_asleep", &[])
}

fn store(node: &Node) -> PathBuf {
    node.directory.path().join("state/checkpoints")
}

/// The numbers of all checkpoints in the store.
fn numbers(node: &Node) -> Vec<u64> {
    fn below(path: &Path, found: &mut Vec<u64>) {
        for entry in std::fs::read_dir(path).into_iter().flatten() {
            let path = entry.unwrap().path();
            let number = path.extension().and_then(|extension| u64::from_str_radix(&extension.to_string_lossy(), 16).ok());
            match path.is_dir() {
                true => below(&path, found),
                false => found.extend(number),
            }
        }
    }
    let mut found = Vec::new();
    below(&store(node), &mut found);
    found.sort_unstable();
    found
}

fn lose_memory(node: &Node) {
    for entry in std::fs::read_dir(node.shared_memory()).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
}

fn count_up(node: &Node, expected: u64) {
    node.post("counter-rmw-linear", "s", b"").assert_ok(expected.to_string().as_bytes());
}

#[test]
fn a_session_moves_awake_and_asleep_and_its_checkpoints_are_numbered_on() {
    let mut node = builder_with(NAP).start();
    count_up(&node, 1);
    let home = core_of(&node, "counter-rmw-linear", "s");
    eventually("it sleeps", || asleep(&node) == 1.0);
    // Asleep: it is woken for the move.
    assert_eq!(move_to(&node, "counter", "s", 1 - home)["keys"], 1);
    assert_eq!(asleep(&node), 0.0);
    count_up(&node, 3);
    eventually("it sleeps where it is", || asleep(&node) == 1.0);
    // Awake, back and forth.
    count_up(&node, 4);
    move_to(&node, "counter", "s", home);
    move_to(&node, "counter", "s", 1 - home);
    count_up(&node, 5);
    eventually("it sleeps there", || asleep(&node) == 1.0);
    eventually("two checkpoints are kept, the newest ones", || {
        let numbers = numbers(&node);
        numbers.len() == 2 && numbers[1] >= 3
    });
    let before = numbers(&node);
    // A restart of either kind finds it where it sleeps.
    node.kill();
    node.start();
    eventually("it is known", || asleep(&node) == 1.0);
    assert_eq!(core_of(&node, "counter-rmw-linear", "s"), 1 - home);
    count_up(&node, 7);
    eventually("it sleeps again", || asleep(&node) == 1.0);
    eventually("the numbers go on", || numbers(&node).last() > before.last());
    node.stop();
    lose_memory(&node);
    node.start();
    count_up(&node, 8);
    assert_eq!(core_of(&node, "counter-rmw-linear", "s"), home, "where it was is lost with the memory");
}

#[test]
fn what_was_deleted_since_the_last_checkpoint_does_not_come_back_with_a_move() {
    let node = builder_with(NAP).start();
    let run = |script: Script| {
        let reply = node.post("script", "d", &script.end());
        assert_eq!(reply.status, 200, "{reply:?}");
        Script::results(&reply.body)
    };
    // A timer is a key of its session, the only kind that can be deleted.
    let due_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64 + 3_600_000;
    assert_eq!(run(Script::new().timer("t", due_ms, b"")), [0]);
    eventually("it sleeps", || asleep(&node) == 1.0);
    assert_eq!(run(Script::new().cancel_timer("t")), [0]);
    let core = core_of(&node, "script", "d");
    assert_eq!(move_to(&node, "state", "d", 1 - core)["keys"], 0);
    assert_eq!(run(Script::new().cancel_timer("t")), [-1]);
    eventually("it sleeps without a key", || asleep(&node) == 1.0);
    assert_eq!(run(Script::new().cancel_timer("t")), [-1]);
    assert_eq!(core_of(&node, "script", "d"), 1 - core);
    // Its alarm goes along too.
    assert_eq!(run(Script::new().timer("t", due_ms, b"")), [0]);
    eventually("it sleeps with its timer", || node.metrics().sum("xfaas_sessions_asleep_with_timers", &[]) == 1.0);
    move_to(&node, "state", "d", core);
    eventually("nobody sleeps", || node.metrics().sum("xfaas_sessions_asleep_with_timers", &[]) == 0.0);
    eventually("it sleeps with its timer", || node.metrics().sum("xfaas_sessions_asleep_with_timers", &[]) == 1.0);
    assert_eq!(run(Script::new().cancel_timer("t")), [0]);
}

#[test]
fn a_session_whose_checkpoint_cannot_be_read_stays_where_it_sleeps() {
    let node = builder_with(NAP).start();
    count_up(&node, 1);
    let home = core_of(&node, "counter-rmw-linear", "s");
    eventually("it sleeps", || asleep(&node) == 1.0);
    let away = node.directory.path().join("away");
    std::fs::rename(store(&node), &away).unwrap();
    assert_refused(&node, "counter", "s", 1 - home, 503, "busy");
    assert_eq!(asleep(&node), 1.0);
    // The store makes its folder anew when it is tried.
    eventually("the store is back", || {
        std::fs::remove_dir_all(store(&node)).ok();
        std::fs::rename(&away, store(&node)).is_ok() || !away.exists()
    });
    eventually("it moves", || super::try_move(&node, "counter", "s", 1 - home).0 == 200);
    count_up(&node, 3);
    assert_eq!(core_of(&node, "counter-rmw-linear", "s"), 1 - home);
}

#[test]
fn other_sessions_read_one_that_sleeps_elsewhere() {
    let script = Script::function("script").app("state").with("read_sessions = true").with("keep_alive_s = 1");
    let node = Node::builder().shard_setting("rebalance = false").function(script).start();
    let run = |session: &str, script: Script| Script::results(&node.post("script", session, &script.end()).body);
    assert_eq!(run("read", Script::new().write("k", b"value", 0)), [0]);
    move_to(&node, "state", "read", 1 - core_of(&node, "script", "read"));
    for core in 0..2 {
        let reader = (0..).map(|i| format!("reader-{i}")).find(|reader| core_of(&node, "script", reader) == core).unwrap();
        eventually("it sleeps", || asleep(&node) == 1.0);
        assert_eq!(run(&reader, Script::new().session("read", "k")), [5], "on core {core}");
    }
}

/// Moves while it is counted and written; then an orderly stop has all of it in the store.
#[test]
fn a_checkpointed_session_under_load_moves_and_the_last_checkpoint_has_all_of_it() {
    let mut node = builder_with(&["durability = \"checkpoint\"", "checkpoint_every_s = 1"]).start();
    let (address, stop, done) = (node.http, Stop::default(), AtomicU64::new(0));
    let mut core = core_of(&node, "counter-rmw-linear", "hot");
    let counted: u64 = std::thread::scope(|scope| {
        let end = stop.at_end();
        let counting: Vec<_> = (0..3).map(|_| scope.spawn(|| count_over_http(address, &stop, &done))).collect();
        let written = |node: &Node| node.metrics().sum("xfaas_checkpoints_written_total", &[]);
        for _ in 0..4 {
            let (seen, checkpoints) = (done.load(Ordering::Relaxed), written(&node));
            for _ in 0..5 {
                core = 1 - core;
                move_to(&node, "counter", "hot", core);
            }
            eventually("clients go on, and checkpoints are written", || {
                done.load(Ordering::Relaxed) > seen + 50 && written(&node) > checkpoints
            });
        }
        drop(end);
        counting.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    node.stop();
    lose_memory(&node);
    node.start();
    node.post("counter-read", "hot", b"").assert_ok((counted + 1).to_string().as_bytes());
}
