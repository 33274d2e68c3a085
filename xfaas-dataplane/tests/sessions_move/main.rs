//! Sessions move to another core while they are in use: no request is lost, refused or run twice, sections hold, and kills lose nothing.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
#[path = "../harness/mod.rs"]
mod harness;

mod kills;
mod record;
mod sleepers;

use harness::{Client, Container, Function, KIND_REPLY, Node, NodeBuilder, Script, Stop, UdpClient, eventually, request, request_datagram};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn builder() -> NodeBuilder {
    builder_with(&[])
}

/// The same, each function with these keys more.
fn builder_with(keys: &[&str]) -> NodeBuilder {
    let functions = [
        Function::guest("counter-rmw-linear").app("counter"),
        Function::guest("counter-rmw-linear").named("idempotent").app("counter").with("idempotent = true"),
        Function::guest("counter-read").app("counter").with("read_only = true"),
        Script::function("fill").app("counter"),
        Script::function("script").app("state").with("deadline_ms = 10000"),
        Script::function("look").app("state").with("read_only = true"),
    ];
    let add = |builder: NodeBuilder, function| builder.function(keys.iter().fold(function, |function: Function, key| function.with(key)));
    functions.into_iter().fold(Node::builder().shard_setting("rebalance = false"), add)
}

/// The core that runs the session's requests.
fn core_of(node: &Node, function: &str, session: &str) -> u16 {
    let reply = node.post(function, session, &Script::new().end());
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.header("x-xfaas-core").unwrap().parse().unwrap()
}

/// Asks for a move. Output: status and document of the admin API.
fn try_move(node: &Node, app: &str, session: &str, core: u16) -> (u16, serde_json::Value) {
    let body = format!("{{\"app\":\"{app}\",\"session\":\"{session}\",\"core\":{core}}}");
    let headers = [("content-type", "application/json")];
    let reply = Client::connect(node.admin).call("POST", "/v1/sessions/move", &headers, body.as_bytes());
    (reply.status, serde_json::from_slice(&reply.body).unwrap())
}

#[track_caller]
fn move_to(node: &Node, app: &str, session: &str, core: u16) -> serde_json::Value {
    let (status, document) = try_move(node, app, session, core);
    assert_eq!(status, 200, "{document}");
    document
}

#[track_caller]
fn assert_refused(node: &Node, app: &str, session: &str, core: u16, status: u16, code: &str) {
    let (got, document) = try_move(node, app, session, core);
    assert_eq!((got, document["code"].as_str()), (status, Some(code)), "{document}");
}

#[test]
fn an_idle_session_moves_there_and_back_with_all_it_holds() {
    let mut node = builder().start();
    for expected in ["1", "2"] {
        node.post("counter-rmw-linear", "s", b"").assert_ok(expected.as_bytes());
    }
    let home = core_of(&node, "counter-rmw-linear", "s");
    let away = 1 - home;
    let moved = node.cli_json(&["sessions", "move", "counter", "s", "--core", &away.to_string()]);
    assert_eq!((&moved["from"], &moved["to"], &moved["keys"]), (&home.into(), &away.into(), &1.into()), "{moved}");
    assert_eq!(core_of(&node, "counter-rmw-linear", "s"), away);
    node.post("counter-rmw-linear", "s", b"").assert_ok(b"5");
    let listed = node.cli_json(&["sessions", "--prefix", "s"]);
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["sessions"][0]["shard"], away);
    assert_eq!(node.metrics().sum("xfaas_pinned_sessions", &[]), 1.0);
    // A restart of either kind leaves it there.
    node.stop();
    node.start();
    assert_eq!(core_of(&node, "counter-rmw-linear", "s"), away);
    node.kill();
    node.start();
    node.post("counter-rmw-linear", "s", b"").assert_ok(b"7");
    move_to(&node, "counter", "s", home);
    node.post("counter-rmw-linear", "s", b"").assert_ok(b"8");
    assert_eq!(core_of(&node, "counter-rmw-linear", "s"), home);
    let metrics = node.metrics();
    assert_eq!(metrics.sum("xfaas_pinned_sessions", &[]), 0.0);
    assert_eq!(metrics.sum("xfaas_session_moves_total", &[("outcome", "moved")]), 1.0);
}

/// Counts up on one connection until told to stop: each reply is 200 and larger than the one before. Output: how often.
fn count_over_http(address: SocketAddr, stop: &Stop, done: &AtomicU64) -> u64 {
    let mut client = Client::connect(address);
    let (mut last, mut count) = (0, 0);
    while !stop.is_set() {
        let reply = client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "hot")], b"");
        assert_eq!(reply.status, 200, "{reply:?}");
        let value: u64 = reply.text().parse().unwrap();
        assert!(value > last, "{value} after {last}");
        (last, count) = (value, count + 1);
        done.fetch_add(1, Ordering::Relaxed);
    }
    count
}

/// The same with datagrams, one after another; the idempotent ones are each sent twice.
fn count_over_udp(address: SocketAddr, function: &str, stop: &Stop, done: &AtomicU64) -> u64 {
    let client = UdpClient::connect(address);
    let (mut last, mut count) = (0, 0);
    let copies = if function == "idempotent" { 2 } else { 1 };
    while !stop.is_set() {
        (0..copies).for_each(|_| client.send(&request_datagram(function, "hot", count, b"")));
        let values: Vec<u64> = (0..copies)
            .map(|_| {
                let answer = client.answer();
                assert_eq!((answer.kind, answer.request_id), (KIND_REPLY, count), "{answer:?}");
                answer.text().parse().unwrap()
            })
            .collect();
        assert!(values.iter().all(|value| *value == values[0] && *value > last), "{values:?} after {last}");
        (last, count) = (values[0], count + 1);
        done.fetch_add(1, Ordering::Relaxed);
    }
    count
}

/// Reads on a connection that may be anywhere: what was seen once is never unseen.
fn watch(address: SocketAddr, stop: &Stop) {
    let mut client = Client::connect(address);
    let mut last = 0;
    while !stop.is_set() {
        let reply = client.call("POST", "/f/counter-read", &[("x-session-id", "hot")], b"");
        assert_eq!(reply.status, 200, "{reply:?}");
        let value: u64 = reply.text().parse().unwrap();
        assert!(value >= last, "{value} after {last}");
        last = value;
    }
}

#[test]
fn a_session_under_load_moves_back_and_forth_and_nothing_is_lost_refused_or_doubled() {
    let node = builder().start();
    let (address, stop, done) = (node.http, Stop::default(), AtomicU64::new(0));
    node.post("counter-rmw-linear", "hot", b"").assert_ok(b"1");
    let mut core = core_of(&node, "counter-rmw-linear", "hot");
    let counted: u64 = std::thread::scope(|scope| {
        let end = stop.at_end();
        let mut counting: Vec<_> = (0..3).map(|_| scope.spawn(|| count_over_http(address, &stop, &done))).collect();
        counting.extend(["counter-rmw-linear", "idempotent"].map(|function| {
            scope.spawn({
                let (stop, done) = (&stop, &done);
                move || count_over_udp(address, function, stop, done)
            })
        }));
        let watching = [scope.spawn(|| watch(address, &stop)), scope.spawn(|| watch(address, &stop))];
        for _ in 0..20 {
            let seen = done.load(Ordering::Relaxed);
            core = 1 - core;
            move_to(&node, "counter", "hot", core);
            eventually("clients go on after a move", || done.load(Ordering::Relaxed) > seen + 50);
        }
        drop(end);
        watching.into_iter().for_each(|thread| thread.join().unwrap());
        counting.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    // 2 were counted to find the core.
    node.post("counter-read", "hot", b"").assert_ok((counted + 2).to_string().as_bytes());
    assert_eq!(core_of(&node, "counter-rmw-linear", "hot"), core);
    let metrics = node.metrics();
    assert_eq!(metrics.sum("xfaas_session_moves_total", &[("outcome", "moved")]), 20.0);
    assert_eq!(metrics.sum("xfaas_shed_total", &[]), 0.0);
    eventually("one copy is left", || node.metrics().sum("xfaas_sessions", &[]) == 1.0);
}

#[test]
fn an_open_section_is_waited_for_and_one_that_stays_open_keeps_the_session_where_it_is() {
    let node = builder().limit("lock_wait_ms = 1000").start();
    let core = core_of(&node, "script", "s");
    let run = |body: Vec<u8>| {
        let mut client = node.connect();
        client.send(&request("POST", "/f/script", &[("x-session-id", "s")], &body));
        client
    };
    let is_open =
        || eventually("the section is open", || node.post("look", "s", &Script::new().read("mark", 0).end()).body != (-1i32).to_le_bytes());
    // A section of a call that ends: the move waits for it, and what came meanwhile runs there, in its order.
    let mut holder = run(Script::new().read("k", 1).write("mark", b"m", 0).spin(100_000_000).write("k", b"first", 1).end());
    is_open();
    let moving = std::thread::scope(|scope| {
        let moving = scope.spawn(|| try_move(&node, "state", "s", 1 - core));
        let mut later = run(Script::new().read("k", 1).write("k", b"second!", 1).end());
        assert_eq!(holder.reply().status, 200);
        assert_eq!(Script::results(&later.reply().body), [5, 0], "the second section sees the first one's value");
        moving.join().unwrap()
    });
    if moving.0 == 200 {
        assert_eq!(core_of(&node, "script", "s"), 1 - core);
    } else {
        // On a slow machine the section was open for longer than the move waits.
        assert_eq!(moving.1["code"], "busy", "{}", moving.1);
    }
    let core = core_of(&node, "script", "s");
    // One that does not end in time: the session stays, and goes on.
    node.post("script", "s", &Script::new().write("mark", b"", 0).end());
    let holder = run(Script::new().read("k", 1).write("other", b"m", 0).spin_forever());
    eventually("the section is open", || node.post("look", "s", &Script::new().read("other", 0).end()).body == 1i32.to_le_bytes());
    assert_refused(&node, "state", "s", 1 - core, 503, "busy");
    drop(holder);
    assert_eq!(core_of(&node, "script", "s"), core);
    assert!(node.metrics().sum("xfaas_session_moves_total", &[("outcome", "busy")]) >= 1.0);
}

#[test]
fn many_keys_and_large_values_come_along() {
    const LARGE: i32 = 1 << 20;
    let node = builder().start();
    let core = core_of(&node, "script", "big");
    let mut client = node.connect();
    let mut call = |script: Script| {
        let reply = client.call("POST", "/f/script", &[("x-session-id", "big")], &script.end());
        assert_eq!(reply.status, 200, "{reply:?}");
        Script::results(&reply.body)
    };
    for first in (0..6_000).step_by(60) {
        let script =
            (first..first + 60).fold(Script::new(), |script, key| script.write(&format!("key-{key}"), key.to_string().as_bytes(), 0));
        assert!(call(script).iter().all(|result| *result == 0));
    }
    for key in 0..20 {
        assert_eq!(call(Script::new().write_bytes(&format!("large-{key}"), LARGE)), [0]);
    }
    let moved = move_to(&node, "state", "big", 1 - core);
    assert_eq!(moved["keys"], 6_020, "{moved}");
    assert!(moved["state_bytes"].as_u64().unwrap() > 20 << 20, "{moved}");
    for first in (0..6_000).step_by(60) {
        let script = (first..first + 60).fold(Script::new(), |script, key| script.read(&format!("key-{key}"), 0));
        let lengths: Vec<i32> = (first..first + 60).map(|key: i32| key.to_string().len() as i32).collect();
        assert_eq!(call(script), lengths);
    }
    for key in 0..20 {
        assert_eq!(call(Script::new().read(&format!("large-{key}"), 0)), [LARGE]);
    }
    assert_eq!(core_of(&node, "script", "big"), 1 - core);
    eventually("one copy is left", || node.metrics().sum("xfaas_sessions", &[]) == 1.0);
}

#[test]
fn what_cannot_be_moved_is_refused_and_stays_as_it_was() {
    let node = builder()
        .limit("region_mib = 64")
        .function(Function::guest("counter-rmw-linear").named("durable").with("durability = \"sync\""))
        .start();
    node.post("counter-rmw-linear", "s", b"").assert_ok(b"1");
    let core = core_of(&node, "counter-rmw-linear", "s");
    assert_refused(&node, "counter", "s", 2, 400, "no_core");
    assert_refused(&node, "counter", "s", core, 409, "same_core");
    assert_refused(&node, "nobody", "s", 1 - core, 404, "no_app");
    assert_refused(&node, "counter", "", 1 - core, 400, "bad_request");
    let nobody = (0..2).map(|core| try_move(&node, "counter", "nobody", core)).find(|(status, _)| *status != 409).unwrap();
    assert_eq!((nobody.0, nobody.1["code"].as_str()), (404, Some("no_session")), "{}", nobody.1);
    let durable = core_of(&node, "durable", "s");
    assert_refused(&node, "durable", "s", 1 - durable, 409, "durable");
    // Two sessions of 40 MiB do not fit one region of 64 MiB beside each other.
    let mut of_core: [Vec<String>; 2] = Default::default();
    for i in 0.. {
        let session = format!("big-{i}");
        of_core[usize::from(core_of(&node, "script", &session))].push(session);
        if of_core.iter().all(|sessions| !sessions.is_empty()) {
            break;
        }
    }
    let (here, there) = (&of_core[0][0], &of_core[1][0]);
    for session in [here, there] {
        for key in (0..40).map(|key| format!("large-{key}")) {
            let reply = node.post("script", session, &Script::new().write_bytes(&key, 1 << 20).end());
            assert_eq!(Script::results(&reply.body), [0], "{key} of {session}");
        }
    }
    assert_refused(&node, "state", here, 1, 507, "no_room");
    let reply = node.post("script", here, &Script::new().read("large-0", 0).read("large-39", 0).end());
    assert_eq!((Script::results(&reply.body), reply.header("x-xfaas-core")), (vec![1 << 20, 1 << 20], Some("0")));
    assert_eq!(node.metrics().sum("xfaas_pinned_sessions", &[]), 0.0);
    let output = node.cli(&["sessions", "move", "counter", "s", "--core", "7"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no core 7"), "{output:?}");
}

#[test]
fn a_container_and_a_moved_session_keep_each_other_out_until_the_session_is_home() {
    let node = builder().start();
    node.post("counter-rmw-linear", "s", b"").assert_ok(b"1");
    let core = core_of(&node, "counter-rmw-linear", "s");
    move_to(&node, "counter", "s", 1 - core);
    // It is turned away, the session goes home for it, and then it joins.
    let container = Container::join(&node, &[]);
    let reply = Client::connect(container.http).call("POST", "/f/counter-rmw-linear", &[("x-session-id", "s")], b"");
    reply.assert_ok(b"3");
    assert_eq!(node.metrics().sum("xfaas_pinned_sessions", &[]), 0.0);
    assert_refused(&node, "counter", "s", 1 - core, 409, "containers");
}

/// Moves a session, runs `change`, and lets a container join, which needs the session at home.
fn a_container_joins_after(node: &mut Node, function: &str, app: &str, change: impl FnOnce(&mut Node)) {
    let core = core_of(node, function, "s");
    move_to(node, app, "s", 1 - core);
    change(node);
    let mut container = Container::join(node, &[]);
    assert_eq!(node.metrics().sum("xfaas_pinned_sessions", &[]), 0.0);
    container.stop();
    eventually("the container is gone", || node.metrics().sum("xfaas_rpc_connections", &[]) == 0.0);
}

#[test]
fn a_moved_session_that_has_nothing_any_more_still_goes_home() {
    let mut node = builder().start();
    // Nobody knows of it after a restart, but the record of moves.
    a_container_joins_after(&mut node, "script", "state", |node| {
        node.stop();
        node.start();
    });
}

#[test]
fn moved_sessions_go_home_before_their_app_goes_or_becomes_sync() {
    let mut node = builder().start();
    let deploy = |node: &Node, flags: &[&str]| {
        let path = harness::guest("counter-rmw-linear");
        let output = node.cli(&[&["deploy", "later", path.to_str().unwrap(), "--app", "later"], flags].concat());
        assert!(output.status.success(), "{output:?}");
    };
    deploy(&node, &[]);
    a_container_joins_after(&mut node, "later", "later", |node| {
        deploy(node, &["--durability", "sync"]);
        assert_eq!(node.metrics().sum("xfaas_pinned_sessions", &[]), 0.0);
    });
    node.post("later", "s", b"").assert_ok(b"2");
    deploy(&node, &[]);
    a_container_joins_after(&mut node, "later", "later", |node| {
        assert!(node.cli(&["undeploy", "later"]).status.success());
        assert_eq!(node.metrics().sum("xfaas_pinned_sessions", &[]), 0.0);
    });
    deploy(&node, &[]);
    node.post("later", "s", b"").assert_ok(b"4");
}

#[test]
fn a_duplicate_that_finds_the_queue_of_a_moving_session_full_ends_nothing_of_the_first() {
    let node = builder()
        .limit("namespace_queue_calls_max = 1")
        .function(Script::function("slow").app("slow").with("idempotent = true").with("deadline_ms = 10000"))
        .start();
    let (udp, other) = (UdpClient::connect(node.http), UdpClient::connect(node.http));
    let slow = Script::new().write("k", b"v", 0).spin(1_000_000_000).end();
    let core = core_of(&node, "slow", "s");
    udp.send(&request_datagram("slow", "s", 7, &slow));
    std::thread::scope(|scope| {
        std::thread::sleep(Duration::from_millis(100));
        let moving = scope.spawn(|| try_move(&node, "slow", "s", 1 - core));
        std::thread::sleep(Duration::from_millis(100));
        other.send(&request_datagram("slow", "s", 8, &Script::new().end()));
        eventually("one is held back", || node.metrics().sum("xfaas_calls_held_for_move", &[]) >= 1.0);
        other.call("slow", "s", 7, &slow).assert_error(3, "overloaded");
        assert_eq!(Script::results(&udp.answer().payload), [0]);
        moving.join().unwrap();
    });
    assert_eq!(Script::results(&other.answer().payload), [0; 0]);
    assert_eq!(Script::results(&udp.call("slow", "s", 7, &slow).payload), [0]);
    assert_eq!(node.metrics().requests("slow", "ok"), 3.0, "core_of, 7 and 8, each once");
}

/// A node is busy with two sessions of one core; the other core has nothing to do.
#[test]
fn a_hot_session_moves_by_itself_to_a_core_with_room() {
    let node = Node::builder().function(Script::function("script").app("state").with("deadline_ms = 10000")).start();
    let mut of_core: [Vec<String>; 2] = Default::default();
    for i in 0.. {
        let session = format!("hot-{i}");
        of_core[usize::from(core_of(&node, "script", &session))].push(session);
        if of_core[0].len() == 4 {
            break;
        }
    }
    let (address, stop) = (node.http, Stop::default());
    std::thread::scope(|scope| {
        let end = stop.at_end();
        for session in &of_core[0] {
            let stop = &stop;
            scope.spawn(move || {
                let mut client = Client::connect(address);
                while !stop.is_set() {
                    let body = Script::new().spin(200_000).end();
                    assert_eq!(client.call("POST", "/f/script", &[("x-session-id", session)], &body).status, 200);
                }
            });
        }
        eventually("a session has moved", || node.metrics().sum("xfaas_pinned_sessions", &[]) > 0.0);
        drop(end);
    });
    let cores = of_core[0].iter().map(|session| core_of(&node, "script", session)).filter(|core| *core == 1).count();
    assert!((1..4).contains(&cores), "{cores} of 4 moved:\n{}", node.log());
    assert!(node.log().contains("moved a hot session to a core with room"), "{}", node.log());
}

#[test]
fn a_client_that_goes_while_its_call_waits_for_the_move_is_forgotten() {
    let node = builder().limit("lock_wait_ms = 60000").start();
    let core = core_of(&node, "script", "s");
    let send = |body: &[u8]| {
        let mut client = node.connect();
        client.send(&request("POST", "/f/script", &[("x-session-id", "s")], body));
        client
    };
    let cancelled = || node.metrics().sum("xfaas_cancelled_total", &[]);
    let runs_forever = send(&Script::new().write("running", b"r", 0).spin_forever());
    eventually("the call runs", || node.post("look", "s", &Script::new().read("running", 0).end()).body == 1i32.to_le_bytes());
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| move_to(&node, "state", "s", 1 - core));
        // Until the move has begun, these run.
        eventually("calls wait for the move", || {
            send(&Script::new().end());
            node.metrics().sum("xfaas_calls_held_for_move", &[]) > 0.0
        });
        let stays = send(&Script::new().write("stays", b"s", 0).end());
        eventually("a call that waits is cancelled", || {
            let goes = send(&Script::new().write("goes", b"g", 0).end());
            // A reset that overtakes its request cancels nothing, and nothing has run.
            socket2::SockRef::from(goes.stream()).set_linger(Some(Duration::ZERO)).unwrap();
            drop(goes);
            cancelled() >= 1.0
        });
        socket2::SockRef::from(runs_forever.stream()).set_linger(Some(Duration::ZERO)).unwrap();
        drop(runs_forever);
        assert_eq!(moving.join().unwrap()["to"], 1 - core);
        let mut stays = stays;
        assert_eq!(stays.reply().header("x-xfaas-core"), Some((1 - core).to_string().as_str()), "it ran where the session is now");
    });
    let reply = node.post("script", "s", &Script::new().read("stays", 0).read("goes", 0).end());
    assert_eq!(Script::results(&reply.body), [1, -1]);
}

#[test]
fn another_number_of_shards_brings_moved_sessions_home() {
    let mut node = builder().start();
    let sessions: Vec<String> = (0..6).map(|i| format!("s{i}")).collect();
    for session in &sessions {
        node.post("counter-rmw-linear", session, b"").assert_ok(b"1");
        let core = core_of(&node, "counter-rmw-linear", session);
        move_to(&node, "counter", session, 1 - core);
    }
    let text = std::fs::read_to_string(node.config()).unwrap();
    let line = text.lines().find(|line| line.starts_with("cpus = ")).unwrap();
    let one = format!("{}]", &line[..line.find(',').unwrap()]);
    for (restart, line) in [one.as_str(), line, line].iter().enumerate() {
        node.kill();
        let now = text.lines().map(|own| if own.starts_with("cpus = ") { line } else { own }).collect::<Vec<_>>().join("\n");
        std::fs::write(node.config(), now).unwrap();
        node.start();
        for session in &sessions {
            node.post("counter-rmw-linear", session, b"").assert_ok((restart + 3).to_string().as_bytes());
        }
        assert_eq!(node.metrics().sum("xfaas_pinned_sessions", &[]), 0.0);
        assert_eq!(std::fs::read_dir(node.shared_memory()).unwrap().count(), 1, "one folder");
    }
}
