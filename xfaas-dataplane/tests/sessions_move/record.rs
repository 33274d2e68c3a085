//! The record of moved sessions is lost or damaged while the node is down: moved sessions are where they were, with all they hold.

use super::harness::{Node, eventually};
use super::{builder, builder_with, core_of, move_to};
use std::path::{Path, PathBuf};

fn record(node: &Node) -> PathBuf {
    node.shared_memory().join("shards-2/moves")
}

/// What becomes of the record, and whether it can be told from one of a node where nothing was moved.
type Loss = (&'static str, fn(&Path), bool);

const LOSSES: [Loss; 6] = [
    ("emptied", |path| std::fs::write(path, "").unwrap(), false),
    ("removed", |path| std::fs::remove_file(path).unwrap(), false),
    ("cut at a line's end", |path| change(path, |text| text[..text[..text.len() - 1].rfind('\n').unwrap() + 1].to_owned()), true),
    ("cut to its first line", |path| change(path, |text| text[..text.find('\n').unwrap() + 1].to_owned()), true),
    ("a zeroed tail", |path| change(path, |text| text[..40].to_owned() + &"\0".repeat(text.len() - 40)), true),
    ("the other core", |path| change(path, other_cores), true),
];

fn change(path: &Path, change: impl Fn(&str) -> String) {
    std::fs::write(path, change(&std::fs::read_to_string(path).unwrap())).unwrap();
}

fn other_cores(text: &str) -> String {
    let changed = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        ["pin", app, session, core, checksum] => format!("pin {app} {session} {} {checksum}\n", if core == "0" { 1 } else { 0 }),
        _ => format!("{line}\n"),
    };
    text.lines().map(changed).collect()
}

#[test]
fn moved_sessions_are_found_without_the_record() {
    let mut node = builder().start();
    let sessions: Vec<String> = (0..6).map(|i| format!("s{i}")).collect();
    let away: Vec<u16> = sessions
        .iter()
        .map(|session| {
            let home = core_of(&node, "counter-rmw-linear", session);
            move_to(&node, "counter", session, 1 - home);
            1 - home
        })
        .collect();
    let mut expected = 1;
    for (number, (what, lose, is_told)) in LOSSES.iter().enumerate() {
        node.kill();
        lose(&record(&node));
        node.start();
        expected += 1;
        for (session, core) in sessions.iter().zip(&away) {
            let reply = node.post("counter-rmw-linear", session, b"");
            assert_eq!((reply.status, reply.text()), (200, expected.to_string().as_str()), "{what}: {session}");
            assert_eq!(reply.header("x-xfaas-core"), Some(core.to_string().as_str()), "{what}: {session}");
        }
        let log = node.log();
        let words = if *is_told { "the record of moved sessions is damaged" } else { "the record of moved sessions in" };
        let said = log.lines().rfind(|line| line.contains(words)).unwrap_or_else(|| panic!("{what}: {log}"));
        assert!(said.contains("sessions=6") && said.contains(if *is_told { "ERROR" } else { "WARN" }), "{what}: {said}");
        assert_eq!(node.metrics().sum("xfaas_pinned_sessions", &[]), 6.0, "{what}");
        let kept = LOSSES[..=number].iter().filter(|(.., is_told)| *is_told).count();
        let aside = |number: usize| record(&node).with_added_extension(format!("refused-{number}"));
        assert!((kept == 0 || aside(kept - 1).exists()) && !aside(kept).exists(), "{what}");
        // A move writes the new record on.
        move_to(&node, "counter", &sessions[0], 1 - away[0]);
        move_to(&node, "counter", &sessions[0], away[0]);
    }
}

#[test]
fn a_moved_session_that_sleeps_wakes_at_home_without_the_record() {
    let mut node = builder_with(&["keep_alive_s = 1"]).start();
    let home = core_of(&node, "counter-rmw-linear", "s");
    move_to(&node, "counter", "s", 1 - home);
    node.post("counter-rmw-linear", "s", b"").assert_ok(b"2");
    let asleep = |node: &Node| node.metrics().sum("xfaas_sessions_asleep", &[]) == 1.0;
    eventually("it sleeps", || asleep(&node));
    node.kill();
    std::fs::write(record(&node), "").unwrap();
    node.start();
    eventually("it is known", || asleep(&node));
    node.post("counter-rmw-linear", "s", b"").assert_ok(b"3");
    assert_eq!(core_of(&node, "counter-rmw-linear", "s"), home);
}
