//! Kills while a session moves: it is on one of the two cores then, with all acknowledged writes.

use super::harness::{Client, Node, Script, Stop, eventually};
use super::{builder, builder_with};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Lets a session go back and forth, and kills the node after that time.
fn kill_while_moving(node: &mut Node, time: Duration) {
    let (admin, over) = (node.admin, Stop::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Until the node is gone.
            for core in (0..2).cycle() {
                let body = format!("{{\"app\":\"counter\",\"session\":\"hot\",\"core\":{core}}}");
                let headers = [("content-type", "application/json")];
                let asked = Client::try_connect(admin)
                    .and_then(|mut client| client.try_call("POST", "/v1/sessions/move", &headers, body.as_bytes()));
                if asked.is_err() || over.is_set() {
                    return;
                }
            }
        });
        std::thread::sleep(time);
        node.kill();
        drop(over.at_end());
    });
}

#[test]
fn kills_during_moves_lose_no_acknowledged_increment() {
    kill_often(20, builder().start());
}

/// Checkpoints of the session are written meanwhile, and it is asked for too often to sleep.
#[test]
fn kills_during_moves_of_sessions_with_checkpoints_lose_no_acknowledged_increment() {
    kill_often(12, builder_with(&["durability = \"checkpoint\"", "checkpoint_every_s = 1", "keep_alive_s = 1"]).start());
}

/// The move finds the session asleep, so the kill may come while it is loaded, moved, or counted where it came from.
#[test]
fn kills_while_a_sleeping_session_is_woken_to_move_lose_nothing() {
    let mut node = builder_with(&["keep_alive_s = 1"]).start();
    let asleep = |node: &Node| node.metrics().sum("xfaas_sessions_asleep", &[]) == 1.0;
    let count_up = |node: &Node, expected: u64| node.post("counter-rmw-linear", "hot", b"").assert_ok(expected.to_string().as_bytes());
    for kill in 0..5 {
        count_up(&node, kill + 1);
        eventually("it sleeps", || asleep(&node));
        kill_while_moving(&mut node, Duration::from_micros(1_000 + 1_500 * kill));
        node.start();
    }
    count_up(&node, 6);
    eventually("it sleeps", || asleep(&node));
    eventually("no copy is left", || node.metrics().sum("xfaas_sessions", &[]) == 0.0);
    node.kill();
    for entry in std::fs::read_dir(node.shared_memory()).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    node.start();
    count_up(&node, 7);
}

fn kill_often(kills: u64, mut node: Node) {
    let address = node.http;
    let (attempted, acknowledged, seen) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let stop = Stop::default();
    let count = || {
        let mut connection: Option<Client> = None;
        while !stop.is_set() {
            let Some(client) = &mut connection else {
                connection = Client::try_connect(address).ok();
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            attempted.fetch_add(1, Ordering::SeqCst);
            match client.try_call("POST", "/f/counter-rmw-linear", &[("x-session-id", "hot")], b"") {
                Ok(reply) => {
                    assert_eq!(reply.status, 200, "{reply:?}");
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                    seen.fetch_max(reply.text().parse().unwrap(), Ordering::SeqCst);
                }
                Err(_) => connection = None,
            }
        }
    };
    // What was acknowledged before the counter is read is in it, and nothing that nobody asked for.
    let check = || {
        let least = acknowledged.load(Ordering::SeqCst).max(seen.load(Ordering::SeqCst));
        let reply = Client::connect(address).call("POST", "/f/counter-read", &[("x-session-id", "hot")], b"");
        let (value, most): (u64, u64) = (reply.text().parse().unwrap(), attempted.load(Ordering::SeqCst));
        assert!((least..=most).contains(&value), "{value}, but {least} were acknowledged and {most} attempted");
    };
    // Enough state that a move takes a while.
    for first in (0..600).step_by(60) {
        let fill = (first..first + 60).fold(Script::new(), |script, key| script.write(&format!("key-{key}"), b"value", 0));
        assert_eq!(node.post("fill", "hot", &fill.end()).status, 200);
    }
    std::thread::scope(|scope| {
        let end = stop.at_end();
        scope.spawn(count);
        scope.spawn(count);
        for kill in 0..kills {
            let before = acknowledged.load(Ordering::SeqCst);
            eventually("clients count", || acknowledged.load(Ordering::SeqCst) > before + 20);
            kill_while_moving(&mut node, Duration::from_micros(3_000 + 1_700 * kill));
            node.start();
            check();
        }
        drop(end);
    });
    check();
    println!("{kills} kills, {} increments acknowledged, none lost", acknowledged.load(Ordering::SeqCst));
    eventually("one copy is left", || node.metrics().sum("xfaas_sessions", &[]) == 1.0);
}
