//! When sessions at rest leave memory and come back by themselves: keep-alive policies, want of memory, and timers of sessions that sleep. The node is the
//! real binary; the store is a folder. CONTRACT.md section 4, "Sessions that sleep".
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Node, NodeBuilder, Reply, RpcClient, Script, State, eventually, guest, request, xfaas};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const FIRED: &str = "xfaas_timers_fired_total";
const OVER_LIMIT: i32 = -3;

fn node(keys: &[&str]) -> NodeBuilder {
    let script = Script::function("script").with("deadline_ms = 20000");
    Node::builder().function(keys.iter().fold(script, |function, key| function.with(key))).shards(1)
}

fn metric(node: &Node, name: &str) -> f64 {
    node.metrics().sum(name, &[])
}

fn dropped(node: &Node, reason: &str) -> f64 {
    node.metrics().sum("xfaas_sessions_dropped_total", &[("reason", reason)])
}

#[track_caller]
fn results(reply: &Reply) -> Vec<i32> {
    assert_eq!(reply.status, 200, "{reply:?}");
    Script::results(&reply.body)
}

/// What a reboot does.
fn lose_memory(node: &Node) {
    for entry in std::fs::read_dir(node.shared_memory()).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
}

/// All checkpoints in the store.
fn objects(node: &Node) -> Vec<PathBuf> {
    let buckets = std::fs::read_dir(node.directory.path().join("state/checkpoints/script")).into_iter().flatten();
    let files = buckets.flat_map(|bucket| std::fs::read_dir(bucket.unwrap().path()).into_iter().flatten());
    // A write that is under way has a `#` in its name.
    files.map(|file| file.unwrap().path()).filter(|path| !path.to_string_lossy().contains('#')).collect()
}

fn in_memory(node: &Node) -> BTreeSet<String> {
    let listed = node.cli_json(&["sessions", "--limit", "10000"]);
    listed["sessions"].as_array().unwrap().iter().map(|session| session["session"].as_str().unwrap().to_owned()).collect()
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

#[test]
fn hybrid_learns_when_sessions_are_asked_for_and_has_them_ready() {
    let node = node(&["keep_alive = \"hybrid\"", "keep_alive_s = 1"]).start();
    let sessions: Vec<String> = (0..12).map(|session| format!("h{session}")).collect();
    // A connection that stays open: the shard looks more often at what is due then.
    let mut client = node.connect();
    let mut rounds = 0_u8;
    let begun = Instant::now();
    while rounds < 3 || metric(&node, "xfaas_pre_warm_hits_total") == 0.0 {
        assert!(rounds < 20, "nothing was ready in time: {}", node.log());
        std::thread::sleep((Duration::from_millis(1_600) * u32::from(rounds)).saturating_sub(begun.elapsed()));
        for session in &sessions {
            let script = Script::new().read("round", 0).write("round", &vec![1; usize::from(rounds) + 1], 0).end();
            client.send(&request("POST", "/f/script", &[("x-session-id", session)], &script));
            assert_eq!(results(&client.reply()), [if rounds == 0 { -1 } else { i32::from(rounds) }, 0], "{session}");
        }
        rounds += 1;
    }
    let metrics = node.metrics();
    let sum = |name: &str| metrics.sum(name, &[]);
    assert!(sum("xfaas_pre_warm_loads_total") >= sum("xfaas_pre_warm_hits_total"));
    assert!(sum("xfaas_sessions_reclaimed_total") >= sum("xfaas_pre_warm_loads_total"));
    // Whoever is not asked for is put away, loaded once more, and put away for good.
    eventually("all sleep", || metric(&node, "xfaas_sessions_asleep") == 12.0);
    assert_eq!(dropped(&node, "pressure"), 0.0);
}

#[test]
fn unbounded_sessions_stay_while_others_come_and_go() {
    let nap = Script::function("nap").with("keep_alive = \"fixed\"").with("keep_alive_s = 1");
    let node = node(&["keep_alive = \"unbounded\"", "keep_alive_s = 1"]).function(nap).start();
    let write = Script::new().write("k", b"v", 0).end();
    assert_eq!(results(&node.post("script", "stays", &write)), [0]);
    for _ in 0..2 {
        assert_eq!(results(&node.post("nap", "goes", &write)), [0]);
        eventually("the other one sleeps", || metric(&node, "xfaas_sessions_asleep") == 1.0);
    }
    assert_eq!(in_memory(&node), BTreeSet::from(["stays".to_owned()]));
    assert_eq!((dropped(&node, "idle"), dropped(&node, "pressure")), (2.0, 0.0));
}

#[test]
fn a_section_that_a_container_has_open_keeps_its_session_in_memory() {
    let node = node(&["keep_alive_s = 1"]).start();
    let write = Script::new().write("k", b"v", 0).end();
    assert_eq!(results(&node.post("script", "held", &write)), [0]);
    let mut container = RpcClient::to_owner(node.rpc, "held");
    let section = State::strong("script", "held", 1);
    assert_eq!(container.call(|id| section.read(id, b"k")).value(), b"v");
    // Used later, so it sleeps later.
    assert_eq!(results(&node.post("script", "other", &write)), [0]);
    eventually("the other one sleeps", || metric(&node, "xfaas_sessions_asleep") == 1.0);
    assert_eq!(in_memory(&node), BTreeSet::from(["held".to_owned()]));
    assert_eq!(container.call(|id| section.write(id, b"k", b"w")).result(), 0);
    eventually("both sleep", || metric(&node, "xfaas_sessions_asleep") == 2.0);
}

/// Writes a MiB into a session, as often as it is refused for want of memory. Output: how often that was.
fn fill(client: &mut Client, session: &str) -> usize {
    let mut refusals = 0;
    let script = Script::new().write_bytes("big", 1 << 20).write("name", session.as_bytes(), 0).end();
    eventually("there is room", || {
        client.send(&request("POST", "/f/script", &[("x-session-id", session)], &script));
        let reply = client.reply();
        // A session that sleeps and finds no room is not run at all.
        let result = if reply.status == 503 { OVER_LIMIT } else { results(&reply)[0] };
        assert!(result == 0 || result == OVER_LIMIT, "{session}: {result}");
        refusals += usize::from(result != 0);
        result == 0
    });
    refusals
}

#[track_caller]
fn assert_has_its_name(client: &mut Client, session: &str) {
    let read = Script::new().read("name", 0).output(session.len() as i32).end_with(0);
    eventually("it is loaded", || {
        client.send(&request("POST", "/f/script", &[("x-session-id", session)], &read));
        let reply = client.reply();
        assert!(reply.status == 503 || reply.body == session.as_bytes(), "{session}: {reply:?}");
        reply.status == 200
    });
}

#[test]
fn when_memory_is_short_those_that_are_asked_for_least_leave_and_nothing_is_lost() {
    let rules = ["keep_alive = \"unbounded\"", "durability = \"checkpoint\"", "checkpoint_every_s = 1"];
    let mut node = node(&rules).limit("region_mib = 64").start();
    let mut client = node.connect();
    let name = |kind: &str, count: usize| (0..count).map(|number| format!("{kind}-{number}")).collect::<Vec<String>>();
    let (popular, rare) = (name("popular", 20), name("rare", 26));
    for session in popular.iter().chain(&rare) {
        assert_eq!(fill(&mut client, session), 0);
    }
    // Then the shard has seen all of them: requests are counted from here on.
    eventually("all have checkpoints", || objects(&node).len() >= 46);
    for session in popular.iter().cycle().take(5 * popular.len()) {
        assert_has_its_name(&mut client, session);
    }
    // Asked for last, and seldom all the same.
    for session in &rare {
        assert_has_its_name(&mut client, session);
    }
    assert_eq!((in_memory(&node).len(), dropped(&node, "pressure")), (46, 0.0));
    for session in name("new", 14) {
        fill(&mut client, &session);
    }
    eventually("there is room again", || dropped(&node, "pressure") >= 8.0);
    let left = in_memory(&node);
    assert!(popular.iter().all(|session| left.contains(session)), "{left:?}");
    assert!(left.len() <= 52 && dropped(&node, "idle") == 0.0, "{left:?}");
    // Nearly twice what the region holds, and never a session that lost anything.
    for session in name("more", 40) {
        fill(&mut client, &session);
    }
    // Those that were leaving are in memory or in the store.
    node.kill();
    node.start();
    client = node.connect();
    for session in popular.iter().chain(&rare).chain(&name("new", 14)).chain(&name("more", 40)) {
        assert_has_its_name(&mut client, session);
    }
    assert!(metric(&node, "xfaas_sessions_asleep") >= 36.0, "100 sessions of a MiB do not fit");
}

/// A body that sets a timer which marks its session.
fn alarm(at_ms: i64) -> Vec<u8> {
    let mark = Script::new().read("fired", 0).write("fired", b"yes", 0).end();
    Script::new().timer("alarm", at_ms, &mark).write("k", b"v", 0).end()
}

fn has_fired(node: &Node, session: &str) -> bool {
    results(&node.post("script", session, &Script::new().read("fired", 0).end())) == [3]
}

#[test]
fn timers_fire_by_themselves_after_the_machine_lost_its_memory() {
    let mut node = node(&["durability = \"checkpoint\"", "checkpoint_every_s = 1"]).start();
    let sessions: Vec<String> = (0..8).map(|session| format!("t{session}")).collect();
    let due_ms = now_ms() + 2_500;
    for session in &sessions {
        assert_eq!(results(&node.post("script", session, &alarm(due_ms))), [0, 0]);
    }
    assert_eq!(results(&node.post("script", "far", &alarm(due_ms + 3_600_000))), [0, 0]);
    eventually("all have checkpoints", || objects(&node).len() >= 9);
    node.kill();
    lose_memory(&node);
    node.start();
    // Nobody asks for any of them.
    eventually("all timers have fired", || metric(&node, FIRED) == 8.0);
    assert!(now_ms() >= due_ms, "early");
    eventually("one sleeps on", || metric(&node, "xfaas_sessions_asleep_with_timers") == 1.0);
    eventually("none is overdue", || metric(&node, "xfaas_timers_overdue") == 0.0);
    assert!(sessions.iter().all(|session| has_fired(&node, session)));
    // One that a request wakes is a timer like any other.
    assert_eq!(results(&node.post("script", "far", &Script::new().cancel_timer("alarm").end())), [0]);
    eventually("none is left", || metric(&node, "xfaas_sessions_asleep_with_timers") == 0.0 && metric(&node, "xfaas_timers") == 0.0);
}

#[test]
fn sessions_sleep_until_shortly_before_their_timers_are_due() {
    let mut node = node(&["keep_alive_s = 1"]).start();
    // The shard looks more often at what rests while a connection is open.
    let _open = node.connect();
    assert_eq!(results(&node.post("script", "far", &alarm(now_ms() + 3_600_000))), [0, 0]);
    let (mut due_ms, mut fired) = (0, 0.0);
    eventually("both sleep", || {
        // On a busy machine it may be due before it could sleep: then it is set anew.
        if due_ms == 0 || metric(&node, FIRED) > fired {
            (due_ms, fired) = (now_ms() + 8_000, metric(&node, FIRED));
            assert_eq!(results(&node.post("script", "soon", &alarm(due_ms))), [0, 0]);
        }
        metric(&node, "xfaas_sessions_asleep_with_timers") == 2.0
    });
    node.kill();
    lose_memory(&node);
    node.start();
    eventually("the one has fired", || metric(&node, FIRED) == 1.0);
    assert!(now_ms() >= due_ms, "early");
    eventually("both sleep again", || metric(&node, "xfaas_sessions_asleep") == 2.0);
    eventually("the other one has a timer", || metric(&node, "xfaas_sessions_asleep_with_timers") == 1.0);
    assert!(has_fired(&node, "soon") && !has_fired(&node, "far"));
}

#[test]
fn a_timer_whose_session_cannot_be_loaded_is_overdue_until_it_can() {
    let mut node = node(&["durability = \"checkpoint\"", "checkpoint_every_s = 1"]).start();
    assert_eq!(results(&node.post("script", "s", &alarm(now_ms() + 3_000))), [0, 0]);
    // Later than the next checkpoint. It may have fired before one all the same: then it is set anew until one has it.
    eventually("its time is in the name of a checkpoint", || {
        let is_timed = |path: &PathBuf| path.extension().is_some_and(|number| !number.to_string_lossy().starts_with("00000000"));
        let found = objects(&node).iter().any(is_timed);
        if !found && metric(&node, "xfaas_timers") == 0.0 {
            assert_eq!(results(&node.post("script", "s", &alarm(now_ms() + 3_000))), [0, 0]);
        }
        found
    });
    node.kill();
    lose_memory(&node);
    let whole: Vec<(PathBuf, Vec<u8>)> = objects(&node).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    whole.iter().for_each(|(path, bytes)| std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap());
    node.start();
    eventually("it is overdue", || metric(&node, "xfaas_timers_overdue") == 1.0);
    assert_eq!(metric(&node, FIRED), 0.0);
    whole.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    eventually("it has fired", || metric(&node, FIRED) >= 1.0);
    eventually("it is overdue no more", || metric(&node, "xfaas_timers_overdue") == 0.0);
    assert!(has_fired(&node, "s"));
}

#[test]
fn a_policy_that_there_is_not_is_refused_with_its_place() {
    let node = node(&["keep_alive = \"hybrid\""]).start();
    let module = guest("counter-rmw");
    let module = module.to_str().unwrap();
    let refused = node.cli(&["deploy", "c", module, "--keep-alive", "sometimes"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && text.contains("fixed, hybrid or unbounded"), "{text}");
    let refused = node.cli(&["deploy", "c", module, "--app", "script", "--keep-alive", "unbounded"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && text.contains("`keep_alive`"), "{text}");
    assert!(node.cli(&["deploy", "c", module, "--keep-alive", "unbounded"]).status.success());
    let listed = node.cli_json(&["functions"]);
    let listed = listed["functions"].as_array().unwrap();
    let rules: Vec<_> = listed.iter().map(|function| function["manifest"]["keep_alive"].as_str().unwrap()).collect();
    assert_eq!(rules, ["unbounded", "hybrid"]);
    let config = node.directory.path().join("bad.toml");
    std::fs::write(&config, format!("[[function]]\nname = \"c\"\nwasm = \"{module}\"\nkeep_alive = \"lru\"\n")).unwrap();
    let refused = xfaas(&["run", "--config", config.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("unbounded") && text.contains("line 4"), "{text}");
}
