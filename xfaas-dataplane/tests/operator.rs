//! What an operator relies on, CONTRACT.md section 4: commands with their exit codes, deployments that survive, swaps that lose nothing.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Client, Function, Node, Script, UdpClient, guest, request, xfaas};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A module whose reply is this text.
fn says(directory: &Path, text: &str) -> PathBuf {
    let wat = format!(
        r#"(module (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
        (memory (export "memory") 1) (data (i32.const 0) "{text}")
        (func (export "handle") (result i32) (call $set_output (i32.const 0) (i32.const {}))))"#,
        text.len()
    );
    let path = directory.join(format!("says-{text}.wasm"));
    std::fs::write(&path, wat::parse_str(wat).unwrap()).unwrap();
    path
}

fn path(name: &str) -> String {
    guest(name).to_str().unwrap().to_owned()
}

#[track_caller]
fn assert_done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The command failed with `code`, said nothing on stdout, and its error holds each of `words`.
#[track_caller]
fn assert_failed(output: &Output, code: i32, words: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(code), &b""[..]), "{errors}");
    for word in words {
        assert!(errors.contains(word), "{word:?} in {errors}");
    }
}

#[test]
fn a_function_is_deployed_called_swapped_and_taken_away() {
    let node = Node::builder().start();
    let (one, two) = (says(node.directory.path(), "one"), says(node.directory.path(), "two"));
    node.call("GET", "/f/says", &[], b"").assert_error(404, "no_function");
    let text = assert_done(&node.cli(&["deploy", "says", one.to_str().unwrap()]));
    assert!(text.contains("says"), "{text}");
    node.call("GET", "/f/says", &[], b"").assert_ok(b"one");
    UdpClient::connect(node.http).call("says", "s", 1, b"").assert_reply(b"one");
    let mut client = node.connect();
    client.call("GET", "/f/says", &[("x-session-id", "warm")], b"").assert_ok(b"one");
    assert_done(&node.cli(&["deploy", "says", two.to_str().unwrap()]));
    client.call("GET", "/f/says", &[("x-session-id", "warm")], b"").assert_ok(b"two");
    assert_done(&node.cli(&["undeploy", "says"]));
    client.call("GET", "/f/says", &[("x-session-id", "warm")], b"").assert_error(404, "no_function");
    UdpClient::connect(node.http).call("says", "s", 2, b"").assert_error(1, "no_function");
    assert_failed(&node.cli(&["undeploy", "says"]), 1, &["says"]);
}

#[test]
fn deploy_flags_reach_the_function() {
    let node = Node::builder().start();
    let flags = [
        "--app",
        "shop",
        "--read-only",
        "--atomic",
        "--idempotent",
        "--fresh",
        "--deadline-ms",
        "77",
        "--memory-mib",
        "9",
        "--workers-max",
        "3",
        "--state-mib",
        "5",
    ];
    let echo = path("echo");
    node.cli_json(&[&["deploy", "all", echo.as_str()], &flags[..]].concat());
    node.cli_json(&["deploy", "none", &echo]);
    let listed = node.cli_json(&["functions"]);
    let manifest = |name: &str| {
        let functions = listed["functions"].as_array().unwrap().iter();
        functions.map(|function| &function["manifest"]).find(|manifest| manifest["name"] == name).unwrap().clone()
    };
    let expected = serde_json::json!({ "name": "all", "app": "shop", "read_only": true, "atomic": true, "idempotent": true, "fresh": true,
        "deadline_ms": 77, "memory_mib": 9, "workers_max": 3, "state_mib": 5 });
    assert_eq!(manifest("all"), expected);
    let defaults = serde_json::json!({ "name": "none", "app": "none", "read_only": false, "atomic": false, "idempotent": false, "fresh": false,
        "deadline_ms": 1000, "memory_mib": 128, "workers_max": 10, "state_mib": 64 });
    assert_eq!(manifest("none"), defaults);
    assert!(assert_done(&node.cli(&["functions"])).contains("shop"));
}

#[test]
fn a_deployment_that_cannot_be_is_refused_and_changes_nothing() {
    let node = Node::builder().start();
    let echo = path("echo");
    node.cli_json(&["deploy", "echo", &echo, "--app", "one"]);
    assert_failed(&node.cli(&["deploy", "echo", &echo, "--app", "two"]), 1, &["echo", "one", "two"]);
    assert_failed(&node.cli(&["deploy", "echo", &echo]), 1, &["one"]);
    assert_failed(&node.cli(&["deploy", "x", &echo, "--deadline-ms", "0"]), 1, &["deadline_ms"]);
    assert_failed(&node.cli(&["deploy", "x", &echo, "--state-mib", "65"]), 1, &["state_mib"]);
    assert_failed(&node.cli(&["deploy", "x", &echo, "--memory-mib", "99999"]), 1, &["memory_mib"]);
    assert_failed(&node.cli(&["deploy", "x", "/no/such/file.wasm"]), 1, &["/no/such/file.wasm"]);
    assert_failed(&node.cli(&["deploy", "x", &path("no-handle"), "--app", "one"]), 1, &["handle"]);
    // Of one hash: FNV-1a-32 gives both names 0x5E4DAA9D, so a datagram could not tell them apart.
    node.cli_json(&["deploy", "costarring", &echo]);
    assert_failed(&node.cli(&["deploy", "liquid", &echo]), 1, &["costarring", "liquid"]);
    let nested = format!(
        r#"(module (memory (export "memory") 1) (func (export "handle") (result i32) {} {} (i32.const 0)))"#,
        "block ".repeat(80_000),
        "end ".repeat(80_000)
    );
    let slow = node.config().with_file_name("slow.wasm");
    std::fs::write(&slow, wat::parse_str(nested).unwrap()).unwrap();
    let begun = std::time::Instant::now();
    assert_failed(&node.cli(&["deploy", "slow", slow.to_str().unwrap()]), 1, &["too long", "160002 blocks"]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    let listed = node.cli_json(&["functions"]);
    assert_eq!(listed["functions"].as_array().unwrap().len(), 2, "{listed}");
    node.call("POST", "/f/echo", &[], b"x").assert_ok(b"x");
}

#[test]
fn wrong_usage_exits_with_2_and_failure_with_1() {
    for line in [
        &["frobnicate"][..],
        &[],
        &["deploy", "only-a-name"],
        &["deploy", "bad/name", "x.wasm"],
        &["functions", "--frob"],
        &["invoke", "echo", "--count", "0"],
        &["invoke", "echo", "--session", "a b"],
        &["sessions", "--limit", "many"],
        &["run", "--steering", "fast"],
    ] {
        let output = xfaas(line);
        assert_eq!(output.status.code(), Some(2), "{line:?}: {output:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{line:?}");
    }
    for line in [&["--help"][..], &["--version"], &["deploy", "--help"]] {
        let output = xfaas(line);
        assert!(output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty(), "{line:?}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for line in [&["functions"][..], &["sessions"], &["stats"], &["undeploy", "x"], &["deploy", "x", &path("echo")]] {
        let output = xfaas(&[line, &["--json", "--admin", &nobody]].concat());
        assert_failed(&output, 1, &[&nobody, "xfaas run"]);
    }
    assert_failed(&xfaas(&["invoke", "x", "--addr", &nobody]), 1, &[&nobody]);
}

#[test]
fn sessions_are_listed_with_their_shard_and_size() {
    let node = Node::builder().guests(&["counter-rmw", "echo"]).function(Function::guest("counter-rmw").named("other")).start();
    for session in ["alice", "alan", "bob"] {
        node.post("counter-rmw", session, b"").assert_ok(b"1");
    }
    node.post("other", "alice", b"").assert_ok(b"1");
    node.post("echo", "nobody", b"").assert_ok(b"");
    let names = |line: &[&str]| {
        let reply = node.cli_json(&[&["sessions"], line].concat());
        let sessions = reply["sessions"].as_array().unwrap().iter();
        sessions.map(|session| format!("{}/{}", session["app"], session["session"]).replace('"', "")).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["counter-rmw/alan", "counter-rmw/alice", "counter-rmw/bob", "other/alice"]);
    assert_eq!(names(&["--app", "other"]), ["other/alice"]);
    assert_eq!(names(&["--app", "unknown"]), Vec::<String>::new());
    assert_eq!(names(&["--app", "counter-rmw", "--prefix", "al"]), ["counter-rmw/alan", "counter-rmw/alice"]);
    assert_eq!(names(&["--limit", "2"]).len(), 2);
    let reply = node.cli_json(&["sessions", "--prefix", "bob"]);
    let session = &reply["sessions"][0];
    assert_eq!(
        (session["keys"].as_u64(), session["state_bytes"].as_u64()),
        (Some(1), Some(2)),
        "one key `n` with the value `1`: {session}"
    );
    assert_eq!(session["workers"], 1);
    assert!(assert_done(&node.cli(&["sessions"])).contains("alice"));
}

#[test]
fn stats_and_metrics_count_what_happened() {
    let node = Node::builder().guests(&["echo", "trap"]).start();
    for _ in 0..3 {
        node.call("POST", "/f/echo", &[], b"").assert_ok(b"");
    }
    node.call("POST", "/f/trap", &[], b"").assert_error(500, "guest_trapped");
    let metrics = node.metrics();
    assert_eq!((metrics.requests("echo", "ok"), metrics.requests("trap", "guest_trapped")), (3.0, 1.0));
    assert_eq!(metrics.sum("xfaas_request_duration_seconds_count", &[("function", "echo")]), 3.0);
    let stats = node.cli_json(&["stats"]);
    assert_eq!((stats["shards"].as_u64(), stats["functions"].as_u64(), stats["steering"].as_str()), (Some(2), Some(2), Some("off")));
    let text = assert_done(&node.cli(&["stats"]));
    assert!(text.contains("echo") && text.contains("guest_trapped"), "{text}");
    let mut admin = Client::connect(node.admin);
    for (target, status) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/nowhere", 404)] {
        assert_eq!(admin.call("GET", target, &[], b"").status, status, "{target}");
    }
}

#[test]
fn invoke_calls_over_both_protocols() {
    let node = Node::builder().guests(&["echo", "counter-rmw", "garbage-return"]).start();
    let address = node.http.to_string();
    let invoke = |line: &[&str]| xfaas(&[&["invoke"], line, &["--addr", &address]].concat());
    for protocol in [&[][..], &["--udp"]] {
        let run = |line: &[&str]| invoke(&[line, protocol].concat());
        assert_eq!(assert_done(&run(&["echo", "--data", "hello"])), "hello");
        assert_failed(&run(&["missing"]), 1, &["no_function"]);
        assert_failed(&run(&["garbage-return"]), 1, &["guest_error", "-559038737"]);
        let output = run(&["echo", "--data", "hi", "--session", "me", "--json"]);
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["replies"][0]["body"], "hi");
        let output = run(&["missing", "--json"]);
        assert_eq!(output.status.code(), Some(1));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    }
    assert_eq!(assert_done(&invoke(&["counter-rmw", "--session", "c", "--count", "3"])), "1\n2\n3\n");
    assert_eq!(assert_done(&invoke(&["counter-rmw", "--session", "c", "--udp"])), "4");
    assert_eq!(node.metrics().sum("xfaas_datagrams_dropped_total", &[]), 0.0);
}

#[test]
fn deployments_and_state_survive_a_stop_and_a_crash() {
    let mut node = Node::builder().guests(&["echo"]).start();
    let counter = path("counter-rmw-linear");
    node.cli_json(&["deploy", "counter", &counter, "--app", "shop", "--deadline-ms", "777"]);
    node.cli_json(&["deploy", "gone", &counter]);
    node.cli_json(&["undeploy", "gone"]);
    let functions = node.cli_json(&["functions"]);
    for i in 0..20 {
        node.post("counter", &format!("s{i}"), b"").assert_ok(b"1");
    }
    let sessions = |node: &Node| {
        let mut listed = node.cli_json(&["sessions"])["sessions"].clone();
        listed.as_array_mut().unwrap().iter_mut().for_each(|session| session["workers"] = 0.into());
        listed
    };
    let before = sessions(&node);
    for round in 2..=3 {
        if round == 2 {
            node.stop()
        } else {
            node.kill()
        }
        node.start();
        assert_eq!(sessions(&node), if round == 2 { before.clone() } else { sessions(&node) });
        let again = node.cli_json(&["functions"]);
        assert_eq!(again["functions"].as_array().unwrap().len(), 2);
        let stored = |document: &serde_json::Value| {
            let mut functions = document["functions"].as_array().unwrap().iter();
            functions.find(|function| function["manifest"]["name"] == "counter").unwrap().clone()
        };
        assert_eq!(stored(&again), stored(&functions));
        for i in 0..20 {
            node.post("counter", &format!("s{i}"), b"").assert_ok(round.to_string().as_bytes());
        }
        node.call("GET", "/f/gone", &[], b"").assert_error(404, "no_function");
    }
}

#[test]
fn the_configuration_wins_over_a_deployment_of_its_name() {
    let mut node = Node::builder().guests(&["echo"]).start();
    let one = says(node.directory.path(), "one");
    let output = node.cli(&["deploy", "echo", one.to_str().unwrap()]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("xfaas.toml"), "{output:?}");
    node.call("POST", "/f/echo", &[], b"x").assert_ok(b"one");
    node.stop();
    node.start();
    node.call("POST", "/f/echo", &[], b"x").assert_ok(b"x");
}

#[test]
fn a_swap_under_load_loses_no_request() {
    let node = Node::builder().start();
    let modules = [says(node.directory.path(), "one"), says(node.directory.path(), "two")];
    node.cli_json(&["deploy", "says", modules[0].to_str().unwrap()]);
    let (is_over, served) = (AtomicBool::new(false), AtomicU32::new(0));
    let is_known = |body: &[u8]| body == b"one" || body == b"two";
    std::thread::scope(|scope| {
        for i in 0..3 {
            let (node, is_over, served) = (&node, &is_over, &served);
            scope.spawn(move || {
                let udp = UdpClient::connect(node.http);
                let mut client = node.connect();
                let mut id = 0;
                while !is_over.load(Ordering::Relaxed) {
                    id += 1;
                    let session = format!("s{i}-{}", id % 5);
                    let reply = client.call("POST", "/f/says", &[("x-session-id", &session)], b"");
                    assert!(reply.status == 200 && is_known(&reply.body), "{reply:?}");
                    let answer = udp.call("says", &session, id, b"");
                    assert!(answer.kind == 2 && is_known(&answer.payload), "{answer:?}");
                    let reply = node.call("POST", "/f/says", &[], b"");
                    assert!(reply.status == 200 && is_known(&reply.body), "{reply:?}");
                    served.fetch_add(3, Ordering::Relaxed);
                }
            });
        }
        for round in 0..8 {
            let text = [&b"one"[..], b"two"][round % 2];
            node.cli_json(&["deploy", "says", modules[round % 2].to_str().unwrap()]);
            node.post("says", "judge", b"").assert_ok(text);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(served.load(Ordering::Relaxed) > 20);
}

#[test]
fn a_running_request_ends_on_the_version_it_began_on() {
    let node = Node::builder().function(Script::function("script").with("deadline_ms = 10000")).start();
    let mut client = node.connect();
    client.send(&request("POST", "/f/script", &[("x-session-id", "s")], &Script::new().spin(300_000_000).end()));
    harness::eventually("it runs", || node.metrics().sum("xfaas_workers", &[]) == 1.0);
    let one = says(node.directory.path(), "one");
    node.cli_json(&["deploy", "script", one.to_str().unwrap()]);
    client.reply().assert_ok(b"");
    client.call("POST", "/f/script", &[("x-session-id", "s")], b"").assert_ok(b"one");
}

#[test]
fn a_function_taken_away_under_load_is_answered_404_and_nothing_hangs() {
    let node = Node::builder().function(Script::function("script").with("workers_max = 1").with("deadline_ms = 10000")).start();
    let body = Script::new().spin(200_000_000).end();
    let mut clients: Vec<_> = (0..5).map(|_| node.connect()).collect();
    for client in &mut clients {
        client.send(&request("POST", "/f/script", &[("x-session-id", "s")], &body));
    }
    harness::eventually("one runs, the others wait", || node.metrics().sum("xfaas_calls_queued", &[]) == 4.0);
    node.cli_json(&["undeploy", "script"]);
    let mut statuses: Vec<u16> = clients.iter_mut().map(|client| client.reply().status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses[0], 200, "what runs is finished: {statuses:?}");
    assert!(statuses[1..].iter().all(|status| matches!(status, 200 | 404)), "{statuses:?}");
}

#[test]
fn a_node_started_twice_says_what_is_taken() {
    let node = Node::builder().guests(&["echo"]).start();
    let configuration = |line: &str, state: &str| {
        let path = node.directory.path().join("second.toml");
        let shared = node.shared_memory().join("second");
        let text = format!("state_dir = \"{state}\"\nshared_memory_dir = \"{}\"\n[listen]\n{line}\n", shared.display());
        std::fs::write(&path, text).unwrap();
        xfaas(&["run", "--steering", "off", "--config", path.to_str().unwrap()])
    };
    // Both are held at once, or they could be the same.
    let free = || [(); 2].map(|()| TcpListener::bind((node.http.ip(), 0)).unwrap()).map(|socket| socket.local_addr().unwrap());
    let (http, admin) = (node.http, node.admin);
    let [first, second] = free();
    let output = configuration(&format!("http = \"{http}\"\nudp = \"{first}\"\nadmin = \"{second}\""), "second");
    assert_failed(&output, 1, &[&http.to_string(), "TCP"]);
    let [first, second] = free();
    let output = configuration(&format!("http = \"{first}\"\nudp = \"{http}\"\nadmin = \"{second}\""), "second");
    assert_failed(&output, 1, &[&http.to_string(), "UDP"]);
    let output = configuration(&format!("http = \"{}\"\nadmin = \"{admin}\"", free()[0]), "second");
    assert_failed(&output, 1, &[&admin.to_string()]);
    let [first, second] = free();
    let output = configuration(&format!("http = \"{first}\"\nadmin = \"{second}\""), "state");
    assert_failed(&output, 1, &["state", "another xfaas process"]);
    let stranger = UdpSocket::bind((node.http.ip(), 0)).unwrap();
    let taken = stranger.local_addr().unwrap();
    let [first, second] = free();
    let output = configuration(&format!("http = \"{first}\"\nudp = \"{taken}\"\nadmin = \"{second}\""), "second");
    assert_failed(&output, 1, &[&taken.to_string()]);
    node.call("POST", "/f/echo", &[], b"x").assert_ok(b"x");
}

#[test]
fn a_bad_configuration_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("xfaas.toml");
    let cases = [
        ("[listen]\nhttp = \"127.0.0.1:1\"\nhtp = 1\n", "line 3"),
        ("state_dir = \"s\"\ncolour = 1\n", "line 2"),
        ("[limits]\nbody_bytes_max = 5\n", "limits.body_bytes_max"),
        ("[listen\n", "line 1"),
        ("[[function]]\nname = \"a\"\nwasm = \"none.wasm\"\n", "none.wasm"),
        ("[[function]]\nname = \"a\"\nwasm = \"none.wasm\"\ndeadline = 3\n", "line 4"),
        ("[shards]\ncpus = [4095]\n", "4095"),
        ("[steering]\nmode = \"warp\"\n", "warp"),
    ];
    for (text, place) in cases {
        std::fs::write(&file, text).unwrap();
        for line in [&["run"][..], &["run", "--check"]] {
            assert_failed(&xfaas(&[line, &["--config", file.to_str().unwrap()]].concat()), 1, &[place]);
        }
    }
    assert_failed(&xfaas(&["run", "--config", "/no/such/xfaas.toml"]), 1, &["/no/such/xfaas.toml"]);
    std::fs::write(&file, "state_dir = \"s\"\n").unwrap();
    let output = xfaas(&["run", "--check", "--json", "--config", file.to_str().unwrap()]);
    let document: serde_json::Value = serde_json::from_str(&assert_done(&output)).unwrap();
    assert_eq!(document["ok"], true);
}
