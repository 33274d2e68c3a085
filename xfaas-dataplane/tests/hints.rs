//! How requests name their session, CONTRACT.md section 1, "Hints": header, cookie, path, query and hook, with their refusals.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Container, Function, Node, Reply, UdpClient, guest, request, xfaas};

fn hinted(name: &str, hint: &str) -> Function {
    Function::guest("counter-rmw").named(name).with(&format!("hint = \"{hint}\""))
}

fn node() -> Node {
    Node::builder()
        .function(Function::guest("counter-rmw"))
        .function(hinted("by-header", "header:X-Cart"))
        .function(hinted("by-cookie", "cookie:sid"))
        .function(hinted("by-path", "path:0"))
        .function(hinted("by-query", "query:sid"))
        .start()
}

#[track_caller]
fn assert_ran(reply: &Reply, session: &str, count: &str) {
    reply.assert_ok(count.as_bytes());
    assert_eq!(reply.session(), session);
}

/// Refused with 400 and closed, for a reason that holds `word`.
#[track_caller]
fn assert_bad(node: &Node, target: &str, headers: &[(&str, &str)], word: &str) {
    let mut client = node.connect();
    let reply = client.call("POST", target, headers, b"");
    reply.assert_error(400, "bad_session");
    let problem = reply.problem();
    assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
    client.assert_closed();
}

#[test]
fn each_hint_names_its_session_over_every_connection() {
    let node = node();
    // A connection each: about half of them land on the other shard.
    for i in 1..=6 {
        let count = i.to_string();
        assert_ran(&node.call("POST", "/f/by-header", &[("x-CART", "abc")], b""), "abc", &count);
        assert_ran(&node.call("POST", "/f/by-cookie", &[("cookie", "a=1; sid=abc; b=2")], b""), "abc", &count);
        assert_ran(&node.call("POST", "/f/by-path/abc/items?x=1", &[], b""), "abc", &count);
        assert_ran(&node.call("POST", "/f/by-query?a=b&sid=a%62c", &[], b""), "abc", &count);
    }
    let listed = node.cli_json(&["sessions"]);
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 4, "{listed}");
}

#[test]
fn a_connection_of_a_hinted_session_moves_to_its_shard() {
    let node = node();
    let mut clients: Vec<_> = (0..16).map(|_| node.connect()).collect();
    for round in 0..5 {
        for (i, client) in clients.iter_mut().enumerate() {
            let count = (round * 16 + i + 1).to_string();
            assert_ran(&client.call("POST", "/f/by-path/abc", &[], b""), "abc", &count);
        }
    }
    let metrics = node.metrics();
    let (moved, forwarded) = (metrics.sum("xfaas_moved_total", &[]), metrics.sum("xfaas_forwarded_total", &[]));
    assert!(moved >= 1.0 && forwarded == moved, "{moved} moved, {forwarded} forwarded");
}

#[test]
fn a_request_without_its_hint_gets_a_fresh_session() {
    let node = node();
    for target in ["/f/by-header", "/f/by-cookie", "/f/by-path", "/f/by-query"] {
        // The node's header is not this app's hint.
        let headers = [("x-session-id", "ignored"), ("cookie", "other=1")];
        let sessions: Vec<String> = (0..2)
            .map(|_| {
                let reply = node.call("POST", target, &headers, b"");
                reply.assert_ok(b"1");
                reply.session().to_owned()
            })
            .collect();
        assert!(sessions[0] != sessions[1] && sessions.iter().all(|session| session.len() >= 16), "{target}: {sessions:?}");
    }
}

#[test]
fn bad_hints_are_refused_with_the_reason() {
    let node = node();
    let long = "x".repeat(65);
    assert_bad(&node, "/f/by-header", &[("x-cart", "a"), ("x-cart", "a")], "twice");
    assert_bad(&node, "/f/by-header", &[("x-cart", "")], "header");
    assert_bad(&node, "/f/by-header", &[("x-cart", &long)], "64");
    assert_bad(&node, "/f/by-cookie", &[("cookie", "sid=a; sid=b")], "twice");
    assert_bad(&node, "/f/by-cookie", &[("cookie", "sid=a b")], "cookie");
    assert_bad(&node, "/f/by-path//x", &[], "segment");
    assert_bad(&node, "/f/by-path/a%4", &[], "escape");
    assert_bad(&node, "/f/by-query?sid=%20", &[], "parameter");
    assert_bad(&node, "/f/by-query?sid=a&sid=a", &[], "twice");
    // The session header is read in every request.
    assert_bad(&node, "/f/by-path/abc", &[("x-session-id", "a b")], "0x21-0x7E");
    assert_eq!(node.metrics().runs("by-path"), 0.0);
    node.call("POST", "/f/counter-rmw/%zz?sid=%", &[("cookie", "sid=a b")], b"").assert_ok(b"1");
}

#[test]
fn a_bad_hint_is_refused_before_the_body_is_sent() {
    let node = node();
    let headers = [("expect", "100-continue"), ("content-length", "5")];
    let mut client = node.connect();
    client.send(&request("POST", "/f/by-path/%", &headers, b""));
    client.reply().assert_error(400, "bad_session");
    client.assert_closed();
}

#[test]
fn datagrams_carry_their_session_themselves() {
    let node = node();
    UdpClient::connect(node.http).call("by-path", "abc", 1, b"").assert_reply(b"1");
    assert_ran(&node.call("POST", "/f/by-path/abc", &[], b""), "abc", "2");
}

#[test]
fn functions_of_one_app_have_one_hint() {
    let mut node = Node::builder().start();
    let echo = guest("echo").to_str().unwrap().to_owned();
    let deploy = |name: &str, hint: &[&str]| node.cli(&[&["deploy", name, &echo, "--app", "shop"], hint].concat());
    assert!(deploy("one", &["--hint", "query:sid"]).status.success());
    for hint in [&[][..], &["--hint", "query:id"]] {
        let refused = deploy("two", hint);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(text.contains("hint") && text.contains("one") && text.contains("shop"), "{text}");
    }
    assert!(deploy("two", &["--hint", "query:sid"]).status.success());
    let wrong = deploy("three", &["--hint", "body:x"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("cookie:NAME"), "{wrong:?}");
    let listed = node.cli_json(&["functions"]);
    let hints: Vec<_> = listed["functions"].as_array().unwrap().iter().map(|function| function["manifest"]["hint"].clone()).collect();
    assert_eq!(hints, ["query:sid", "query:sid"]);
    node.stop();
    node.start();
    assert_eq!(node.call("POST", "/f/two?sid=kept", &[], b"x").session(), "kept");
}

#[test]
fn a_bad_hint_in_the_configuration_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("xfaas.toml");
    let check = |line: &str| {
        let text = format!("state_dir = \"s\"\n[[function]]\nname = \"f\"\nwasm = \"{}\"\n{line}\n", guest("echo").display());
        std::fs::write(&config, text).unwrap();
        xfaas(&["run", "--check", "--config", config.to_str().unwrap()])
    };
    assert!(check("hint = \"cookie:sid\"").status.success());
    for line in ["hint = \"path:x\"", "hints = \"path:0\""] {
        let refused = check(line);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(text.contains("line 5"), "{text}");
    }
}

#[test]
fn an_alias_holds_from_the_next_request_on_for_every_shard_and_protocol() {
    let node = node();
    let map = |arguments: &[&str]| {
        let output = node.cli(&[&["sessions"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    let udp = UdpClient::connect(node.http);
    // Pairs of keys and sessions, so that keys and what they mean lie on either shard.
    for i in 0..6 {
        let (key, one, two) = (format!("key-{i}"), format!("one-{i}"), format!("two-{i}"));
        let target = format!("/f/by-path/{key}");
        assert_ran(&node.call("POST", &target, &[], b""), &key, "1");
        map(&["map", &key, &one]);
        for count in 1..=4 {
            assert_ran(&node.call("POST", &target, &[], b""), &one, &count.to_string());
        }
        assert_ran(&node.post("counter-rmw", &key, b""), &one, "1");
        udp.call("by-path", &key, i, b"").assert_reply(b"5");
        map(&["map", &key, &two]);
        assert_ran(&node.call("POST", &target, &[], b""), &two, "1");
        map(&["map", &key, &one, "--app", "by-path"]);
        assert_ran(&node.call("POST", &target, &[], b""), &one, "6");
        assert_ran(&node.post("counter-rmw", &key, b""), &two, "1");
        map(&["unmap", &key, "--app", "by-path"]);
        assert_ran(&node.call("POST", &target, &[], b""), &two, "2");
        map(&["unmap", &key]);
        assert_ran(&node.call("POST", &target, &[], b""), &key, "2");
        udp.call("by-path", &key, i, b"").assert_reply(b"3");
    }
    assert_eq!(node.cli_json(&["sessions", "aliases"]), serde_json::json!({ "aliases": [] }));
}

#[test]
fn aliases_survive_a_restart_and_a_crash() {
    let mut node = node();
    for (key, session) in [("k", "s"), ("gone", "t")] {
        node.cli_json(&["sessions", "map", key, session]);
    }
    node.cli_json(&["sessions", "unmap", "gone"]);
    node.kill();
    node.start();
    let listed = node.cli_json(&["sessions", "aliases"]);
    assert_eq!(listed, serde_json::json!({ "aliases": [{ "key": "k", "session": "s" }] }));
    for count in 1..=4 {
        assert_ran(&node.post("counter-rmw", "k", b""), "s", &count.to_string());
    }
    node.stop();
    // Of a file that was cut short the rest is taken, and the log says so.
    let path = node.directory.path().join("state/aliases");
    let whole = std::fs::read(&path).unwrap();
    for (cut, said) in [(0, "is empty"), (whole.len() - 5, "was cut short")] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        node.start();
        assert!(node.log().lines().any(|line| line.contains("/aliases") && line.contains(said)), "{}", node.log());
        assert_eq!(node.cli_json(&["sessions", "aliases"]), serde_json::json!({ "aliases": [] }));
        node.stop();
    }
    std::fs::write(node.directory.path().join("state/aliases"), "nonsense\n").unwrap();
    node.spawn();
    assert!(!node.wait().success());
    assert!(node.log().contains("nonsense"), "{}", node.log());
}

#[test]
fn aliases_that_cannot_be_are_refused() {
    let node = node();
    for (arguments, code, word) in [
        (&["sessions", "map", "a", "a"][..], 1, "itself"),
        (&["sessions", "unmap", "a"], 1, "aliases"),
        (&["sessions", "map", "a b", "c"], 2, "visible ASCII"),
        (&["sessions", "map", "a"], 2, "SESSION"),
        (&["sessions", "map", "a", "b", "--app", "x/y"], 2, "name"),
        (&["sessions", "--limit", "5", "aliases"], 2, "aliases"),
    ] {
        let output = node.cli(arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(word) && output.stdout.is_empty(), "{text}");
    }
}

/// `hook`: the query is the session, but for some that make it misbehave. `handle`: the session's ID is the reply.
const HOOK: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (import "xfaas" "read_state" (func $read_state (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write_state (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "n\00")
  (func (export "hook") (result i32)
    (local $length i32) (local $first i32)
    (local.set $length (call $read_input (i32.const 4) (i32.const 1024) (i32.const 1024)))
    (if (i32.eqz (local.get $length)) (then (return (i32.const 0))))
    (local.set $first (i32.load8_u (i32.const 1024)))
    (if (i32.eq (local.get $first) (i32.const 33)) (then unreachable))
    (if (i32.eq (local.get $first) (i32.const 126)) (then (loop $forever (br $forever))))
    (if (i32.eq (local.get $first) (i32.const 45)) (then (return (i32.const 7))))
    (if (i32.eq (local.get $first) (i32.const 36)) (then
      (if (i32.ne (call $read_state (i32.const 0) (i32.const 2048) (i32.const 9) (i32.const 0)) (i32.const -2)) (then (return (i32.const 1))))
      (if (i32.ne (call $read_state (i32.const 0) (i32.const 2048) (i32.const 9) (i32.const 1)) (i32.const -2)) (then (return (i32.const 2))))
      (if (i32.ne (call $write_state (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)) (i32.const -2)) (then (return (i32.const 3))))
      (if (i32.ne (call $read_input (i32.const 1) (i32.const 2048) (i32.const 9)) (i32.const -1)) (then (return (i32.const 4))))))
    (if (i32.eq (local.get $first) (i32.const 64)) (then
      (drop (call $read_input (i32.const 5) (i32.const 1024) (i32.const 1024)))
      (local.set $length (i32.const 5))))
    (call $set_output (i32.const 1024) (local.get $length)))
  (func (export "handle") (result i32)
    (if (i32.ne (call $read_input (i32.const 5) (i32.const 0) (i32.const 0)) (i32.const -2)) (then (return (i32.const 9))))
    (call $set_output (i32.const 1024) (call $read_input (i32.const 1) (i32.const 1024) (i32.const 64)))))"#;

#[test]
fn a_hook_says_which_session_a_request_is_of() {
    let node = Node::builder()
        .function(Function::text("hooked", HOOK).with("hint = \"hook\"\nhook_deadline_ms = 500"))
        .function(Function::text("guarded", HOOK).with("hint = \"hook\"\nhook_deadline_ms = 1000\ntokens = true"))
        .guests(&["counter-rmw"])
        .start();
    for i in 0..6 {
        // Over a connection each, and pipelined on one: sessions of both shards.
        let session = format!("s{i}");
        assert_ran(&node.call("POST", &format!("/f/hooked?{session}"), &[], b"x"), &session, &session);
    }
    let mut client = node.connect();
    let piped: Vec<u8> = (0..6).flat_map(|i| request("POST", &format!("/f/hooked?s{i}"), &[], b"x")).collect();
    client.send(&piped);
    for i in 0..6 {
        assert_ran(&client.reply(), &format!("s{i}"), &format!("s{i}"));
    }
    assert_ran(&client.call("POST", "/f/hooked?$state", &[], b""), "$state", "$state");
    assert_ran(&client.call("POST", "/f/hooked?@headers", &[], b""), "host:", "host:");
    for (query, status, code) in [("!", 500, "guest_trapped"), ("~", 504, "deadline")] {
        let reply = client.call("POST", &format!("/f/hooked?{query}"), &[], b"");
        reply.assert_error(status, code);
        assert_eq!(reply.header("x-session-id"), None);
        assert_eq!(String::from_utf8_lossy(&reply.body).contains("hook_deadline_ms"), status == 504, "{reply:?}");
    }
    client.call("POST", "/f/hooked?after", &[], b"").assert_ok(b"after");
    assert_bad(&node, "/f/hooked?-", &[], "non-zero");
    assert_bad(&node, "/f/hooked", &[], "output");
    assert_bad(&node, &format!("/f/hooked?{}", "x".repeat(65)), &[], "output");
    node.call("POST", "/f/guarded?s", &[], b"").assert_error(401, "bad_token");
    let token = node.cli_json(&["token", "--app", "guarded", "--session", "s"]);
    node.call("POST", "/f/guarded?s", &[("x-session-token", token["token"].as_str().unwrap())], b"").assert_ok(b"s");
    node.cli_json(&["sessions", "map", "s", "t", "--app", "hooked"]);
    assert_ran(&node.call("POST", "/f/hooked?s", &[], b""), "t", "t");
    UdpClient::connect(node.http).call("hooked", "direct", 1, b"").assert_reply(b"direct");
}

/// `hook` counts its calls in memory: the count is the session. `handle` replies with the session's ID.
const COUNTING_HOOK: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "0")
  (func (export "hook") (result i32)
    (i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 1)))
    (call $set_output (i32.const 0) (i32.const 1)))
  (func (export "handle") (result i32)
    (call $set_output (i32.const 1024) (call $read_input (i32.const 1) (i32.const 1024) (i32.const 64)))))"#;

#[test]
fn no_hook_sees_what_another_requests_hook_left_in_memory() {
    let node = Node::builder().function(Function::text("counted", COUNTING_HOOK).with("hint = \"hook\"\nhook_deadline_ms = 1000")).start();
    let mut client = node.connect();
    for _ in 0..5 {
        client.call("POST", "/f/counted", &[], b"").assert_ok(b"1");
    }
}

#[test]
fn a_module_without_a_hook_cannot_have_one_as_its_hint() {
    let node = node();
    let echo = guest("echo").to_str().unwrap().to_owned();
    let refused = node.cli(&["deploy", "x", &echo, "--hint", "hook"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("`hook`"), "{refused:?}");
}

/// Nothing but a hook: the query is the session, as the function's own module would not have it.
const ONLY_A_HOOK: &str = r#"(module
  (import "xfaas" "read_input" (func $read_input (param i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $set_output (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "hook") (result i32)
    (call $set_output (i32.const 0) (call $read_input (i32.const 4) (i32.const 0) (i32.const 64)))))"#;

#[test]
fn a_hook_may_be_a_module_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let hook = file("hook.wasm", ONLY_A_HOOK);
    let configured = Function::guest("counter-rmw").named("configured").with(&format!("hook = \"{hook}\"\nhook_deadline_ms = 1000"));
    let mut node = Node::builder().function(configured).start();
    let counter = guest("counter-rmw").to_str().unwrap().to_owned();
    let deployed = node.cli_json(&["deploy", "deployed", &counter, "--hook", &hook, "--hook-deadline-ms", "1000"]);
    assert_eq!(deployed["manifest"]["hint"], "hook", "{deployed}");
    let check = |node: &Node, count: &[u8]| {
        for function in ["configured", "deployed"] {
            for session in ["a", "b"] {
                let reply = node.call("POST", &format!("/f/{function}?{session}"), &[("x-session-id", "not-asked")], b"");
                assert_ran(&reply, session, std::str::from_utf8(count).unwrap());
            }
            assert_bad(node, &format!("/f/{function}"), &[], "output");
        }
    };
    check(&node, b"1");
    let container = Container::join(&node, &[]);
    container.connect().call("POST", "/f/deployed?c", &[], b"").assert_ok(b"1");
    drop(container);
    node.stop();
    node.start();
    check(&node, b"2");
    // A new version brings its own hook, or none.
    node.cli_json(&["deploy", "deployed", &counter]);
    node.post("deployed", "a", b"").assert_ok(b"3");
    let unknown = file(
        "unknown.wasm",
        r#"(module (import "env" "x" (func)) (memory (export "memory") 1) (func (export "hook") (result i32) (i32.const 0)))"#,
    );
    let none = file("none.wasm", r#"(module (memory (export "memory") 1))"#);
    let text = directory.path().join("text.wasm");
    std::fs::write(&text, b"no module").unwrap();
    let text = text.to_str().unwrap().to_owned();
    for (flags, code, words) in [
        (&["--hook", &unknown][..], 1, &["a module of its own", "env.x"][..]),
        (&["--hook", &none], 1, &["a module of its own", "`hook`"]),
        (&["--hook", &text], 1, &["a module of its own", "not a wasm module"]),
        (&["--hook", "/nonexistent/hook.wasm"], 1, &["/nonexistent/hook.wasm"]),
        (&["--hook", &hook, "--hint", "path:0"], 2, &["--hint path:0"]),
    ] {
        let refused = node.cli(&[&["deploy", "deployed", &counter], flags].concat());
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(code) && words.iter().all(|word| text.contains(word)), "{flags:?}: {text}");
    }
    node.post("deployed", "a", b"").assert_ok(b"4");
}
