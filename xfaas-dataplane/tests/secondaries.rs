//! Secondary containers within a node: with all workers of a session's primary busy its calls run on another core, on the same state and under the
//! same locks. CONTRACT.md section 3, "Secondary containers".
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Container, Function, Node, NodeBuilder, Reply, Script, UdpClient, eventually, request};
use socket2::SockRef;
use std::time::Duration;

/// Functions of one app. While a call of `script` runs, those of `narrow` and its siblings find the primary full: one of them runs in a secondary
/// container, the others wait.
fn builder() -> NodeBuilder {
    let script = |name: &str| Script::function(name).app("state").with("read_sessions = true");
    let narrow = |name: &str| script(name).with("workers_max = 1").with("containers_max = 2");
    Node::builder()
        .shard_setting("rebalance = false")
        .limit("lock_wait_ms = 60000")
        .function(script("script").with("workers_max = 64").with("deadline_ms = 60000"))
        .function(narrow("narrow").with("deadline_ms = 60000"))
        .function(narrow("narrow-brief").with("deadline_ms = 200"))
        .function(narrow("narrow-atomic").with("atomic = true").with("deadline_ms = 60000"))
}

/// Sends a script and does not wait for its reply.
fn begin(node: &Node, function: &str, session: &str, body: &[u8]) -> Client {
    let mut client = node.connect();
    client.send(&request("POST", &format!("/f/{function}"), &[("x-session-id", session)], body));
    client
}

#[track_caller]
fn results(reply: &Reply) -> Vec<i32> {
    assert_eq!(reply.status, 200, "{reply:?}");
    Script::results(&reply.body)
}

#[track_caller]
fn run(node: &Node, session: &str, script: Script) -> Vec<i32> {
    results(&node.post("script", session, &script.end()))
}

#[track_caller]
fn wait_for(node: &Node, metric: &str, value: u32) {
    eventually(&format!("{metric} is {value}"), || node.metrics().sum(metric, &[]) == f64::from(value));
}

#[track_caller]
fn parked(node: &Node, calls: u32) {
    wait_for(node, "xfaas_workers_parked", calls);
}

fn copies(node: &Node) -> f64 {
    node.metrics().sum("xfaas_copy_sessions_total", &[])
}

fn calls_away(node: &Node) -> f64 {
    node.metrics().sum("xfaas_secondary_calls_total", &[])
}

/// So many calls were given to secondaries. A shard tells its numbers a moment after a reply has left.
#[track_caller]
fn were_away(node: &Node, calls: f64) {
    eventually(&format!("{calls} calls were given to secondaries"), || calls_away(node) == calls);
}

/// Ends a connection with a reset: the client is gone.
fn reset(client: Client) {
    SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
}

/// A call that holds `key` of a session, spinning, until it is opened. By `script` it keeps the primary full for `narrow`.
struct Gate(Client);

impl Gate {
    fn close(node: &Node, function: &str, session: &str, key: &str) -> Gate {
        let mark = format!("{key}-is-held");
        let holder = begin(node, function, session, &Script::new().read(key, 1).write(&mark, b"held", 0).spin_forever());
        eventually("the gate is closed", || run(node, session, Script::new().read(&mark, 0))[0] > 0);
        run(node, session, Script::new().write(&mark, b"", 0));
        Gate(holder)
    }

    fn open(self) {
        reset(self.0);
    }
}

fn core_of(reply: &Reply) -> &str {
    reply.header("x-xfaas-core").unwrap()
}

#[test]
fn a_call_that_finds_the_primary_full_runs_on_another_core() {
    let node = builder().start();
    let home = node.post("script", "s", &Script::new().write("k", b"value", 0).end());
    assert_eq!(core_of(&node.post("narrow", "s", &Script::new().end())), core_of(&home), "there is a worker free");
    assert_eq!((copies(&node), calls_away(&node)), (0.0, 0.0));
    let gate = Gate::close(&node, "script", "s", "gate");
    for round in 1..=3 {
        let reply = node.post("narrow", "s", &Script::new().read("k", 0).read("k", 1).write("k", b"value", 1).read("none", 0).end());
        assert_eq!(results(&reply), [5, 5, 0, -1]);
        assert_ne!(core_of(&reply), core_of(&home));
        were_away(&node, f64::from(round));
        assert_eq!(copies(&node), 1.0, "its worker stays warm");
    }
    wait_for(&node, "xfaas_secondaries", 1);
    let listed = &node.cli_json(&["sessions", "--prefix", "s"])["sessions"][0];
    assert_eq!((listed["session"].as_str(), listed["containers"].as_u64()), (Some("s"), Some(2)));
    // A secondary is there as long as its workers are.
    let module = node.directory.path().join("narrow.wasm");
    let limits = ["--workers-max", "1", "--containers-max", "2", "--read-sessions"];
    let deploy = ["deploy", "narrow", module.to_str().unwrap(), "--app", "state"];
    assert!(node.cli(&[&deploy[..], &limits].concat()).status.success());
    wait_for(&node, "xfaas_secondaries", 0);
    assert_eq!(results(&node.post("narrow", "s", &Script::new().read("k", 0).end())), [5]);
    wait_for(&node, "xfaas_copy_sessions_total", 2);
    gate.open();
    eventually("the primary has a worker free", || core_of(&node.post("narrow", "s", &Script::new().end())) == core_of(&home));
}

/// A call of `narrow` in the secondary container, spinning after what `script` does.
fn begin_away(node: &Node, function: &str, session: &str, body: &[u8]) -> Client {
    let before = calls_away(node);
    let client = begin(node, function, session, body);
    eventually("it runs on the other core", || calls_away(node) > before);
    client
}

#[test]
fn no_update_is_lost_between_the_primary_and_its_secondaries() {
    const CLIENTS: usize = 16;
    const ROUNDS: usize = 20;
    for workers in [1, 2] {
        let counter = Function::guest("counter-rmw-linear").with(&format!("workers_max = {workers}")).with("containers_max = 2");
        let spinner = Script::function("script").app("counter-rmw-linear").with("workers_max = 1").with("containers_max = 2");
        let node = Node::builder().function(counter).function(spinner.with("deadline_ms = 60000")).start();
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    let mut client = node.connect();
                    for round in 0..ROUNDS {
                        let reply = match round % 2 {
                            // Some of them hold the key for more than a slice.
                            0 => client.call("POST", "/f/script", &[("x-session-id", "s")], &add_slowly()),
                            _ => client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "s")], b""),
                        };
                        assert_eq!(reply.status, 200, "{reply:?}");
                    }
                });
            }
        });
        let counted = (CLIENTS * ROUNDS / 2) as u64;
        node.post("counter-rmw-linear", "s", b"").assert_ok((counted + 1).to_string().as_bytes());
        assert!(calls_away(&node) > 0.0, "some ran in secondaries");
        wait_for(&node, "xfaas_calls_queued", 0);
        parked(&node, 0);
    }
}

/// Holds the counter's key for some milliseconds and leaves it as it was, in as far as a script can: it opens a section and ends without a write.
fn add_slowly() -> Vec<u8> {
    Script::new().read("n", 1).spin(1_000_000).end()
}

#[test]
fn sections_hold_across_both_containers_in_the_order_of_asking() {
    let node = builder().start();
    let gate = Gate::close(&node, "script", "s", "n");
    let mut away = begin_away(&node, "narrow", "s", &Script::new().read("n", 1).write("n", b"first", 1).end());
    parked(&node, 1);
    let mut here = begin(&node, "script", "s", &Script::new().read("n", 1).write("n", b"second!", 1).end());
    parked(&node, 2);
    assert_eq!(run(&node, "s", Script::new().read("n", 0)), [-1], "neither has come so far");
    gate.open();
    assert_eq!(results(&away.reply()), [-1, 0]);
    assert_eq!(results(&here.reply()), [5, 0]);
    assert_eq!(run(&node, "s", Script::new().read("n", 1)), [7]);
}

#[test]
fn a_strong_write_alone_waits_for_a_section_in_the_other_container() {
    let node = builder().start();
    let gate = Gate::close(&node, "script", "s", "gate");
    let away = begin_away(&node, "narrow", "s", &Script::new().read("n", 1).write("held", b"y", 0).spin_forever());
    eventually("it holds the key", || run(&node, "s", Script::new().read("held", 0)) == [1]);
    let mut writer = begin(&node, "script", "s", &Script::new().write("n", b"w", 1).read("n", 1).end());
    parked(&node, 1);
    reset(away);
    assert_eq!(results(&writer.reply()), [0, 1]);
    let mut waits = begin_away(&node, "narrow", "s", &Script::new().write("gate", b"open", 1).read("gate", 1).end());
    parked(&node, 1);
    gate.open();
    assert_eq!(results(&waits.reply()), [0, 4], "the write waited, and its lock was free again");
}

#[test]
fn a_cycle_through_both_containers_is_refused_at_its_last_link() {
    let node = builder().start();
    let gate = Gate::close(&node, "script", "s", "gate");
    let body = Script::new().read("a", 1).read("gate", 1).read("b", 1).write("a", b"from away", 1).end();
    let mut away = begin_away(&node, "narrow", "s", &body);
    wait_for(&node, "xfaas_lock_waits_total", 1);
    let mut here = begin(&node, "script", "s", &Script::new().read("b", 1).read("a", 1).write("a", b"x", 1).end());
    parked(&node, 2);
    gate.open();
    assert_eq!(results(&away.reply()), [-1, -1, -4, 0], "refused, and still holds what it held");
    assert_eq!(results(&here.reply()), [-1, 9, 0]);
    assert_eq!(run(&node, "s", Script::new().read("a", 1).read("b", 1).read("gate", 1)), [1, -1, -1], "all are free");
}

#[test]
fn containers_of_other_processes_stand_in_the_same_queues() {
    let node = builder().start();
    let container = Container::join(&node, &[]);
    let gate = Gate::close(&node, "script", "s", "n");
    let turn = |value: &[u8]| Script::new().read("n", 1).write("n", value, 1).end();
    let mut away = begin_away(&node, "narrow", "s", &turn(b"first"));
    wait_for(&node, "xfaas_lock_waits_total", 1); // its worker is parked before the primary has heard of it
    let mut joined = Client::connect(container.http);
    joined.send(&request("POST", "/f/narrow", &[("x-session-id", "s")], &turn(b"second!")));
    wait_for(&node, "xfaas_rpc_lock_waits_total", 1);
    let mut here = begin(&node, "script", "s", &turn(b"last"));
    wait_for(&node, "xfaas_lock_waits_total", 2);
    gate.open();
    assert_eq!([results(&away.reply()), results(&joined.reply()), results(&here.reply())], [[-1, 0], [5, 0], [7, 0]]);
}

type Check = fn(&Reply);

#[test]
fn however_a_call_ends_there_the_next_one_gets_its_lock_and_the_old_value() {
    let node = builder().start();
    let opened = || Script::new().write("w", b"w", 0).read("n", 1);
    let ends: [(&str, &str, Vec<u8>, Check); 4] = [
        ("return", "narrow", opened().end(), |reply| assert_eq!(reply.status, 200)),
        ("trap", "narrow", opened().trap(), |reply| reply.assert_error(500, "guest_trapped")),
        ("code", "narrow", opened().end_with(7), |reply| reply.assert_error(500, "guest_error")),
        ("deadline", "narrow-brief", opened().spin_forever(), |reply| reply.assert_error(504, "deadline")),
    ];
    for (end, function, body, check) in &ends {
        run(&node, end, Script::new().write("n", b"old", 1));
        let gate = Gate::close(&node, "script", end, "gate");
        let away = calls_away(&node);
        check(&node.post(function, end, body));
        were_away(&node, away + 1.0);
        assert_eq!(run(&node, end, Script::new().read("n", 1).write("n", b"newer", 1).read("w", 0)), [3, 0, 1], "{end}");
        gate.open();
    }
}

#[test]
fn a_client_that_is_gone_frees_what_its_call_there_held_or_waited_for() {
    let node = builder().start();
    let gate = Gate::close(&node, "script", "s", "gate");
    let holder = begin_away(&node, "narrow", "s", &Script::new().read("n", 1).write("held", b"y", 0).spin_forever());
    eventually("it holds the key", || run(&node, "s", Script::new().read("held", 0)) == [1]);
    let mut next = begin(&node, "script", "s", &Script::new().read("n", 1).write("n", b"next", 1).end());
    parked(&node, 1);
    reset(holder);
    assert_eq!(results(&next.reply()), [-1, 0]);
    wait_for(&node, "xfaas_cancelled_total", 1);
    let waiter = begin_away(&node, "narrow", "s", &Script::new().read("a", 1).read("gate", 1).end());
    parked(&node, 1);
    reset(waiter);
    parked(&node, 0);
    wait_for(&node, "xfaas_cancelled_total", 2);
    assert_eq!(run(&node, "s", Script::new().read("a", 1)), [-1]);
    gate.open();
    wait_for(&node, "xfaas_cancelled_total", 3);
    assert_eq!(run(&node, "s", Script::new().read("gate", 1)), [-1]);
}

#[test]
fn what_finds_no_room_anywhere_waits_and_then_is_refused() {
    let node = builder().limit("namespace_queue_calls_max = 1").start();
    let gate = Gate::close(&node, "script", "s", "gate");
    let away = begin_away(&node, "narrow", "s", &Script::new().spin_forever());
    let mut queued = begin(&node, "narrow", "s", &Script::new().read("n", 0).end());
    wait_for(&node, "xfaas_calls_queued", 1);
    node.post("narrow", "s", &Script::new().end()).assert_error(503, "overloaded");
    were_away(&node, 1.0);
    reset(away);
    assert_eq!(results(&queued.reply()), [-1], "the place that is free again is its");
    were_away(&node, 2.0);
    gate.open();
}

#[test]
fn a_wait_in_vain_ends_with_lock_wait() {
    let script = |name: &str| Script::function(name).app("state").with("deadline_ms = 60000");
    let narrow = script("narrow").with("workers_max = 1").with("containers_max = 2");
    let node = Node::builder().limit("lock_wait_ms = 300").function(script("script")).function(narrow).start();
    let gate = Gate::close(&node, "script", "s", "gate");
    let mut in_vain = begin_away(&node, "narrow", "s", &Script::new().read("held", 1).read("gate", 1).end());
    in_vain.reply().assert_error(503, "lock_wait");
    assert_eq!(run(&node, "s", Script::new().read("held", 1)), [-1], "what it held is free");
    gate.open();
    assert_eq!(run(&node, "s", Script::new().read("gate", 1)), [-1]);
}

/// What a guest can ask, well or badly, of its session and of others.
fn questions(session: &str) -> Script {
    Script::new()
        .write("a", b"12345", 0)
        .read("a", 0)
        .write("b", &[7; 40_000], 1)
        .read("b", 1)
        .write("b", b"", 1)
        .snapshot(&["a", "b", "none"])
        .write("", b"", 0)
        .read(&"k".repeat(256), 0)
        .write("a", b"", 2)
        .timer("t", i64::MAX, b"never")
        .cancel_timer("t")
        .cancel_timer("t")
        .session("other", "k")
        .session(session, "a")
        .session("nobody", "a")
}

#[test]
fn guests_see_the_same_in_both_containers() {
    let node = builder().start();
    run(&node, "other", Script::new().write("k", b"xyz", 0));
    let here = run(&node, "here", questions("here"));
    for function in ["narrow", "narrow-atomic"] {
        let gate = Gate::close(&node, "script", function, "gate");
        let away = calls_away(&node);
        assert_eq!(results(&node.post(function, function, &questions(function).end())), here, "{function}");
        let body = Script::new().read("n", 1).write("n", b"n", 1).write("m", b"m", 0).end_with(7);
        node.post(function, function, &body).assert_error(500, "guest_error");
        let look = || run(&node, function, Script::new().read("n", 0).read("m", 0));
        assert_eq!(look(), if function == "narrow" { [1, 1] } else { [-1, -1] }, "{function}: of an atomic call nothing stays");
        node.post(function, function, &Script::new().read("n", 1).write("n", b"nn", 1).write("m", b"mm", 0).end_with(0)).assert_ok(b"");
        assert_eq!(look(), [2, 2], "{function}");
        assert_eq!(run(&node, function, Script::new().read("n", 1)), [2], "{function}: its lock is free");
        were_away(&node, away + 3.0);
        gate.open();
    }
}

#[test]
fn a_session_moves_when_its_calls_in_secondaries_are_over() {
    let node = builder().start();
    let home: u64 = core_of(&node.post("script", "s", &Script::new().write("k", b"value", 0).end())).parse().unwrap();
    let target = (1 - home).to_string();
    let gate = Gate::close(&node, "script", "s", "gate");
    let mut away = begin_away(&node, "narrow", "s", &Script::new().read("n", 1).read("gate", 1).write("n", b"moved", 1).end());
    parked(&node, 1);
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| node.cli(&["sessions", "move", "state", "s", "--core", &target]));
        let mut late = begin(&node, "narrow", "s", &Script::new().read("n", 1).read("k", 0).end());
        wait_for(&node, "xfaas_calls_held_for_move", 1);
        gate.open();
        assert_eq!(results(&away.reply()), [-1, -1, 0]);
        assert_eq!(results(&late.reply()), [5, 5]);
        let output = moving.join().unwrap();
        assert!(output.status.success(), "{output:?}");
    });
    let reply = node.post("narrow", "s", &Script::new().read("n", 1).read("k", 0).end());
    assert_eq!((results(&reply), core_of(&reply)), (vec![5, 5], &*target), "it lives there now");
    // And the other way round.
    let gate = Gate::close(&node, "script", "s", "gate");
    let reply = node.post("narrow", "s", &Script::new().read("n", 1).write("n", b"again!", 1).end());
    assert_eq!((results(&reply), core_of(&reply)), (vec![5, 0], &*home.to_string()));
    gate.open();
}

#[test]
fn one_core_has_no_room_for_a_secondary() {
    let node = builder().shards(1).start();
    let gate = Gate::close(&node, "script", "s", "gate");
    let mut waits = begin(&node, "narrow", "s", &Script::new().read("n", 0).end());
    wait_for(&node, "xfaas_calls_queued", 1);
    assert_eq!((copies(&node), calls_away(&node)), (0.0, 0.0));
    gate.open();
    assert_eq!(results(&waits.reply()), [-1]);
}

#[test]
fn replies_of_a_sync_app_wait_for_the_log_wherever_they_were_made() {
    let script = |name: &str| Script::function(name).app("state").with("durability = \"sync\"").with("deadline_ms = 60000");
    let mut node =
        Node::builder().function(script("script")).function(script("narrow").with("workers_max = 1").with("containers_max = 2")).start();
    let gate = Gate::close(&node, "script", "s", "gate");
    let body = Script::new().read("n", 1).write("n", b"acknowledged", 1).read("n", 0).write("w", b"weak", 0).end();
    assert_eq!(results(&node.post("narrow", "s", &body)), [-1, 0, 12, 0]);
    were_away(&node, 1.0);
    gate.open();
    node.kill();
    // The memory is lost with the machine.
    for entry in std::fs::read_dir(node.shared_memory()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    node.start();
    assert_eq!(run(&node, "s", Script::new().read("n", 0).read("w", 0)), [12, 4]);
}

#[test]
fn a_stop_waits_for_calls_in_secondaries() {
    let mut node = builder().start();
    let gate = Gate::close(&node, "script", "s", "gate");
    let mut away = begin_away(&node, "narrow", "s", &Script::new().read("n", 1).read("gate", 1).write("n", b"done", 1).end());
    parked(&node, 1);
    let mut other = node.connect();
    // One that the node has not accepted yet when it begins to stop is closed.
    assert_eq!(other.call("POST", "/f/script", &[("x-session-id", "t")], &Script::new().end()).status, 200);
    node.signal(rustix::process::Signal::TERM);
    eventually("it drains", || other.call("POST", "/f/script", &[("x-session-id", "t")], &Script::new().end()).status == 503);
    gate.open();
    assert_eq!(results(&away.reply()), [-1, -1, 0]);
    assert!(node.wait().success());
}

/// Names of sessions that live on `core`.
fn sessions_on<'a>(node: &'a Node, core: &'a str) -> impl Iterator<Item = String> + 'a {
    let names = (0..).map(|number| format!("session-{number}"));
    names.filter(move |name| core_of(&node.post("script", name, &Script::new().end())) == core)
}

#[test]
fn a_call_for_which_the_other_core_has_no_worker_waits_at_home() {
    let node = builder().limit("workers_live_max = 6").start();
    let home = core_of(&node.post("script", "s", &Script::new().end())).to_owned();
    let away = if home == "0" { "1" } else { "0" };
    let gate = Gate::close(&node, "script", "s", "gate");
    // As many as there may be workers; those that there are not are refused.
    let others: Vec<String> = sessions_on(&node, away).take(6).collect();
    let spinners: Vec<Client> = others.iter().map(|session| begin(&node, "script", session, &Script::new().spin_forever())).collect();
    eventually("all workers are busy but some at home", || {
        let metrics = node.metrics();
        metrics.sum("xfaas_workers", &[]) == 6.0 && metrics.sum("xfaas_workers_idle", &[("shard", away)]) == 0.0
    });
    let mut waits = begin(&node, "narrow", "s", &Script::new().read("n", 1).end());
    wait_for(&node, "xfaas_calls_queued", 1);
    were_away(&node, 1.0); // and was given back
    gate.open();
    let reply = waits.reply();
    assert_eq!((results(&reply), core_of(&reply)), (vec![-1], &*home));
    spinners.into_iter().for_each(reset);
}

#[test]
fn timers_and_datagrams_run_there_too_and_once() {
    let node = builder().function(idempotent()).start();
    let gate = Gate::close(&node, "script", "s", "gate");
    let payload = Script::new().read("n", 1).write("n", b"by timer", 1).end_with(0);
    assert_eq!(results(&node.post("narrow", "s", &Script::new().timer("t", 0, &payload).end())), [0]);
    eventually("the timer has run", || run(&node, "s", Script::new().read("n", 0)) == [8]);
    wait_for(&node, "xfaas_timers", 0);
    assert_eq!(node.metrics().sum("xfaas_timers_failed_total", &[]), 0.0);
    let udp = UdpClient::connect(node.http);
    let body = Script::new().read("d", 1).write("d", b"once", 1).end();
    let expected = [(-1_i32).to_le_bytes(), 0_i32.to_le_bytes()].concat();
    for _ in 0..3 {
        udp.call("idempotent", "s", 7, &body).assert_reply(&expected);
    }
    were_away(&node, 3.0); // the call that set the timer, the timer's, and one of the datagrams'
    gate.open();
}

fn idempotent() -> Function {
    let script = Script::function("idempotent").app("state").with("idempotent = true").with("read_sessions = true");
    script.with("workers_max = 1").with("containers_max = 2").with("deadline_ms = 60000")
}

#[test]
fn a_session_does_not_sleep_while_a_call_of_it_runs_elsewhere() {
    let script = |name: &str| Script::function(name).app("state").with("keep_alive_s = 1").with("deadline_ms = 60000");
    let narrow = script("narrow").with("workers_max = 1").with("containers_max = 2");
    let node = Node::builder().function(script("script")).function(narrow).start();
    run(&node, "s", Script::new().write("k", b"value", 0));
    let gate = Gate::close(&node, "script", "s", "gate");
    let away = begin_away(&node, "narrow", "s", &Script::new().read("n", 1).spin_forever());
    gate.open();
    wait_for(&node, "xfaas_cancelled_total", 1);
    run(&node, "later", Script::new().write("k", b"value", 0));
    // Used after the primary of `s`, and asleep before it.
    wait_for(&node, "xfaas_sessions_asleep", 1);
    assert_eq!(run(&node, "s", Script::new().read("k", 0)), [5]);
    assert_eq!(node.metrics().sum("xfaas_cold_sessions_total", &[]), 0.0, "it was in memory");
    reset(away);
    wait_for(&node, "xfaas_sessions_asleep", 2);
    assert_eq!(run(&node, "s", Script::new().read("k", 0).read("n", 1)), [5, -1]);
}
