//! Tests of the command line: parsing, exit codes, and what is printed where.

use super::*;
use crate::control::testing::{FakeShards, MODULE, engine};
use crate::control::{Control, ControlOptions, Deployer, Shards, SteeringReport, Store, Verdict};
use crate::net::{ErrorCode, decode_datagram, encode_datagram_error, encode_datagram_reply};
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;

/// Exit code, stdout and stderr of one command line; `serve` and `probe` of a node that starts and stops at once.
fn xfaas(line: &[&str]) -> (u8, String, String) {
    xfaas_with(line, |_| Ok(()), vec![])
}

fn xfaas_with(line: &[&str], serve: impl FnOnce(Config) -> Result<(), String>, probes: Vec<Check>) -> (u8, String, String) {
    let environment = Environment {
        user_id: 1000,
        xdg_state_home: None,
        home: Some(PathBuf::from("/nonexistent")),
        aws: crate::config::AwsEnvironment::default(),
    };
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let arguments = ["xfaas"].iter().chain(line).map(OsString::from);
    let serve = |role| match role {
        Role::Node(config) => serve(*config),
        Role::Container(_) => Ok(()),
    };
    let hooks = Hooks { serve, probe: |_: &Config| probes };
    let mut terminal = Terminal { out: &mut out, errors: &mut errors, is_terminal: false, is_json: false };
    let code = run_with(arguments, hooks, &environment, &mut terminal);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(errors).unwrap())
}

/// A control thread with shards that only remember.
fn control(directory: &std::path::Path) -> Control {
    let shards: Arc<dyn Shards> = Arc::new(FakeShards::default());
    let deployer = Arc::new(Deployer::new(engine(), Arc::clone(&shards), Store::open(directory).unwrap(), 128));
    deployer.start(&[]).unwrap();
    let steering = Arc::new(|| Ok(SteeringReport { mode: "off".to_owned(), ..SteeringReport::default() }));
    control::spawn(ControlOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        deployer,
        shards,
        steering,
        addresses: Some(crate::control::testing::addresses()),
        regions: None,
    })
    .unwrap()
}

/// Answers every request on one connection with `reply`; gives the heads and bodies it saw when the connection ends.
fn http_server(reply: &'static str) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let mut seen = Vec::new();
        loop {
            let mut text = String::new();
            while !text.ends_with("\r\n\r\n") {
                if stream.read_line(&mut text).unwrap() == 0 {
                    return seen;
                }
            }
            let length =
                text.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(|n| n.parse().unwrap()));
            let mut body = vec![0; length.unwrap_or(0)];
            stream.read_exact(&mut body).unwrap();
            text.push_str(std::str::from_utf8(&body).unwrap());
            seen.push(text);
            stream.get_mut().write_all(reply.as_bytes()).unwrap();
        }
    };
    (address, std::thread::spawn(serve))
}

#[test]
fn the_switch_that_breaks_locks_is_hidden_and_only_in_debug_builds() {
    for line in [&["run", "--help"][..], &["--help"]] {
        let (code, out, _) = xfaas(line);
        assert_eq!(code, 0);
        assert!(out.contains("run") && !out.contains("broken"), "{out}");
    }
    // `--version` ends parsing before anything runs, if the flag before it is known at all.
    let code = xfaas(&["run", "--test-broken-lock", "--version"]).0;
    assert_eq!(code, if cfg!(debug_assertions) { 0 } else { 2 });
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    for line in [
        &["fly"][..],
        &["deploy"],
        &["deploy", "a/b", "m.wasm"],
        &["deploy", "a", "m.wasm", "--deadline-ms", "soon"],
        &["invoke", "echo", "--session", "a b"],
        &["invoke", "echo", "--udp", "--path", "/x"],
        &["invoke", "echo", "--path", "x"],
        &["invoke", "echo", "--path", "/x#y"],
        &["invoke", "echo", "--query", "a#b"],
        &["invoke", "echo", "--query", "a b"],
        &["invoke", "echo", "--query", "\u{e4}"],
        &["invoke", "echo", "--session-header", "a b"],
        &["invoke", "echo", "--addr", "nonsense"],
        &["invoke", "echo", "--udp", "--addr", "nonsense"],
        &["functions", "--admin", "nonsense"],
        &["stats", "--admin", "127.0.0.1:99999"],
        &["token", "--app", "a", "--session", "s", "--admin", ":1"],
        &["run", "--steering", "fast"],
        &["run", "--cpus", "2-1"],
        &["run", "--http", "127.0.0.1:0"],
        &["run", "--udp", "127.0.0.1:0"],
        &["container", "--join", "127.0.0.1:1", "--listen", "127.0.0.1:0"],
        &["run", "--admin", "localhost", "--check"],
        &["sessions", "--limit", "0"],
        &["top", "--interval-ms", "99"],
        &["top", "--interval-ms", "60001"],
        &["top", "--count", "0"],
        &["top", "--admin", "nonsense"],
    ] {
        let (code, out, errors) = xfaas(line);
        assert_eq!((code, out.as_str()), (2, ""), "{line:?}: {errors}");
        assert!(!errors.is_empty());
    }
    assert_eq!(xfaas(&["--help"]).0, 0);
    assert!(xfaas(&["--version"]).1.starts_with("xfaas "));
}

#[test]
fn run_hands_over_the_checked_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.toml");
    std::fs::write(&path, "[listen]\nhttp = \"127.0.0.1:18080\"\n").unwrap();
    let line = ["run", "--config", path.to_str().unwrap(), "--admin", "127.0.0.1:19070", "--steering", "off"];
    let serve = |config: Config| {
        assert_eq!((config.http.port(), config.admin.port()), (18080, 19070));
        Err("no luck".to_owned())
    };
    let (code, _, errors) = xfaas_with(&line, serve, vec![]);
    assert_eq!((code, errors.as_str()), (1, "xfaas: no luck\n"));
}

#[test]
fn check_validates_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.toml");
    let check = |text: &str, json: bool| {
        std::fs::write(&path, text).unwrap();
        let mut line = vec!["run", "--check", "--config", path.to_str().unwrap()];
        line.extend(json.then_some("--json"));
        xfaas_with(&line, |_| unreachable!("only checked"), vec![])
    };
    assert_eq!(check("", false).0, 0);
    assert!(check("", true).1.contains("\"ok\": true"));
    let (code, _, errors) = check("[limits]\nbody = 1\n", false);
    assert_eq!(code, 1);
    assert!(errors.contains("line 2, column 1") && errors.contains("`body`"), "{errors}");
    let (code, _, errors) = xfaas(&["run", "--check", "--config", "/nonexistent/x.toml"]);
    assert_eq!(code, 1);
    assert!(errors.contains("--config"), "{errors}");
}

#[test]
fn no_server_is_said_clearly() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    for line in [
        &["functions", "--admin", &address][..],
        &["top", "--admin", &address],
        &["invoke", "echo", "--addr", &address],
        &["invoke", "echo", "--udp", "--addr", &address],
    ] {
        let (code, out, errors) = xfaas(line);
        assert_eq!((code, out.as_str()), (1, ""), "{line:?}");
        assert!(errors.contains("xfaas run") && errors.contains(&address), "{errors}");
    }
}

#[test]
fn functions_come_and_go_by_the_admin_api() {
    let directory = tempfile::tempdir().unwrap();
    let control = control(&directory.path().join("state"));
    let admin = control.address().to_string();
    let module = directory.path().join("m.wasm");
    std::fs::write(&module, MODULE).unwrap();
    let module = module.to_str().unwrap();
    let (code, out, errors) = xfaas(&["deploy", "echo", module, "--app", "shop", "--admin", &admin]);
    assert_eq!((code, out.as_str()), (0, "deployed echo (app shop, generation 1)\n"), "{errors}");
    let (code, _, errors) = xfaas(&["deploy", "echo", module, "--app", "other", "--admin", &admin]);
    assert_eq!(code, 1);
    assert!(errors.contains("belongs to app \"shop\""), "{errors}");
    assert!(xfaas(&["deploy", "echo", "/nonexistent.wasm", "--admin", &admin]).2.contains("check the path"));
    let large = directory.path().join("large.wasm");
    std::fs::File::create(&large).unwrap().set_len((64 << 20) + 1).unwrap();
    let large = large.to_str().unwrap();
    for line in [&["deploy", "echo", large, "--admin", &admin][..], &["deploy", "echo", module, "--hook", large, "--admin", &admin]] {
        let (code, _, errors) = xfaas(line);
        assert!(code == 1 && errors.contains("64 MiB") && errors.contains(large), "{errors}");
    }
    let (_, out, _) = xfaas(&["functions", "--admin", &admin]);
    assert!(out.starts_with("NAME") && out.contains("echo") && out.contains("runs"), "{out}");
    let (_, out, _) = xfaas(&["functions", "--json", "--admin", &admin]);
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["functions"][0]["manifest"]["app"], "shop");
    assert_eq!(xfaas(&["undeploy", "echo", "--admin", &admin]).1, "undeployed echo\n");
    assert_eq!(xfaas(&["undeploy", "echo", "--admin", &admin]).0, 1);
    assert!(xfaas(&["sessions", "--limit", "2", "--admin", &admin]).1.contains("raise --limit"));
    assert!(xfaas(&["stats", "--admin", &admin]).1.contains("steering off"));
    let (_, out, _) = xfaas(&["stats", "--json", "--admin", &admin]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["shards"], 2);
    let (code, out, errors) = xfaas(&["top", "--interval-ms", "100", "--admin", &admin]);
    assert!(code == 0 && out.starts_with(&format!("xfaas {admin}  up 00:00:0")) && out.contains("\necho "), "{out}{errors}");
    let (code, out, errors) = xfaas(&["top", "--json", "--count", "2", "--interval-ms", "100", "--admin", &admin]);
    let documents: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, documents.len()), (0, 2), "{errors}");
    assert!(documents.iter().all(|document| document["functions"][0]["requests_per_s"] == 0.0), "{out}");
}

#[test]
fn invoke_prints_the_body_and_reuses_the_connection() {
    let reply = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-session-id: s1\r\nx-invocation-id: 7\r\n\r\nhi";
    let (address, server) = http_server(reply);
    let line =
        ["invoke", "echo", "--addr", &address, "--session", "s1", "--data", "body", "--path", "/a/b", "--query", "q=1", "--count", "2"];
    let (code, out, errors) = xfaas(&line);
    assert_eq!((code, out.as_str()), (0, "hi\nhi\n"), "{errors}");
    let seen = server.join().unwrap();
    assert_eq!(seen.len(), 2);
    assert!(seen[0].starts_with("POST /f/echo/a/b?q=1 HTTP/1.1\r\n") && seen[0].ends_with("\r\n\r\nbody"), "{}", seen[0]);
    assert!(seen[0].contains("x-session-id: s1\r\n"), "{}", seen[0]);
    let (address, server) = http_server(reply);
    let (_, out, _) = xfaas(&["invoke", "echo", "--addr", &address, "--json", "--method", "GET"]);
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&document["replies"][0]["body"], &document["replies"][0]["session"]), (&"hi".into(), &"s1".into()));
    assert!(server.join().unwrap()[0].starts_with("GET /f/echo HTTP/1.1\r\n"));
}

#[test]
fn invoke_fails_on_an_error_reply() {
    let reply = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 59\r\n\r\n{\"code\":\"guest_error\",\"detail\":\"it said so\",\"guest_code\":9}";
    let (address, _server) = http_server(reply);
    let (code, out, errors) = xfaas(&["invoke", "echo", "--addr", &address]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(errors.contains("500 guest_error 9: it said so"), "{errors}");
}

#[test]
fn datagrams_are_answered_once_or_time_out() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let mut buffer = [0; 2_048];
        for round in 0..3 {
            let (bytes, peer) = socket.recv_from(&mut buffer).unwrap();
            let (mut head, payload) = decode_datagram(&buffer[..bytes]).unwrap();
            let (mut stale, mut answer) = (Vec::new(), Vec::new());
            if round == 1 {
                encode_datagram_error(&mut answer, &head, ErrorCode::GuestError, Some(9));
            } else {
                encode_datagram_reply(&mut answer, &head, payload);
            }
            head.request_id ^= 1;
            encode_datagram_reply(&mut stale, &head, b"someone else's");
            socket.send_to(&stale, peer).unwrap();
            socket.send_to(b"noise", peer).unwrap();
            if round < 2 {
                socket.send_to(&answer, peer).unwrap();
            }
        }
    });
    let (code, out, errors) = xfaas(&["invoke", "echo", "--udp", "--addr", &address, "--session", "s", "--data", "ping"]);
    assert_eq!((code, out.as_str()), (0, "ping"), "{errors}");
    let (code, out, errors) = xfaas(&["invoke", "echo", "--udp", "--addr", &address]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(errors.contains("guest_error 9 (status 7)"), "{errors}");
    let (code, _, errors) = xfaas(&["invoke", "echo", "--udp", "--addr", &address, "--timeout-ms", "200"]);
    assert_eq!(code, 1);
    assert!(errors.contains("within 200 ms"), "{errors}");
    server.join().unwrap();
}

#[test]
fn doctor_fails_when_something_needed_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().to_str().unwrap();
    let path = directory.path().join("x.toml");
    std::fs::write(&path, "[listen]\nhttp = \"127.0.0.1:18081\"\nadmin = \"127.0.0.1:0\"\n").unwrap();
    let line = ["doctor", "--config", path.to_str().unwrap(), "--state-dir", state, "--steering", "off"];
    let missing = Check::bad("a probe", Verdict::Missing, "nothing", "do something");
    let (code, out, _) = xfaas_with(&line, |_| Ok(()), vec![missing]);
    assert_eq!(code, 1);
    assert!(out.contains("MISSING  a probe") && out.contains("a probe: do something"), "{out}");
    let json = [&line[..], &["--json"]].concat();
    let (_, out, _) = xfaas(&json);
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(document["ok"].is_boolean() && document["checks"].as_array().unwrap().len() > 5);
}
