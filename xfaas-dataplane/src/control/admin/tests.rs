//! Tests of the admin API over a real socket, with shards that only remember what they were told.

use super::*;
use crate::control::api::DeployFlags;
use crate::control::client::{AdminClient, ClientError};
use crate::control::shards::{SessionsQuery, SteeringReport};
use crate::control::store::Store;
use crate::control::testing::{FakeShards, MODULE, MODULE_2, engine};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

struct Node {
    control: Control,
    deployer: Arc<Deployer>,
    shards: Arc<FakeShards>,
    _directory: tempfile::TempDir,
}

impl Node {
    fn client(&self) -> AdminClient {
        AdminClient::new(&self.control.address().to_string())
    }

    /// Status, head and body of one request, spoken by hand.
    fn raw(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.control.address()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String, String) {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    }
}

/// A control thread on a port of its own, functions not loaded yet.
fn node() -> Node {
    let directory = tempfile::tempdir().unwrap();
    let shards = Arc::new(FakeShards::default());
    let door = Arc::clone(&shards) as Arc<dyn Shards>;
    let deployer = Arc::new(Deployer::new(engine(), Arc::clone(&door), Store::open(directory.path()).unwrap(), 128));
    let steering: SteeringStats =
        Arc::new(|| Ok(SteeringReport { mode: "off".to_owned(), verdicts: vec![("foreign", 7)], drops: vec![("truncated", 1)] }));
    let listen = "127.0.0.1:0".parse().unwrap();
    let control = spawn(ControlOptions {
        listen,
        deployer: Arc::clone(&deployer),
        shards: door,
        steering,
        addresses: Some(crate::control::testing::addresses()),
        regions: None,
    })
    .unwrap();
    Node { control, deployer, shards, _directory: directory }
}

#[test]
fn ready_says_what_is_missing() {
    let node = node();
    assert_eq!(node.get("/healthz").0, 200);
    let (status, head, body) = node.get("/readyz");
    assert_eq!(status, 503);
    assert!(head.contains("application/problem+json") && body.contains("functions are still being loaded"), "{head}{body}");
    node.deployer.start(&[]).unwrap();
    assert_eq!(node.get("/readyz").0, 200);
    node.shards.draining.store(true, Ordering::SeqCst);
    assert!(node.get("/readyz").2.contains("draining"));
    assert_eq!(node.get("/healthz").0, 200);
}

#[test]
fn a_function_is_deployed_swapped_listed_and_undeployed() {
    let node = node();
    let client = node.client();
    let flags = DeployFlags { app: Some("shop".to_owned()), read_only: true, deadline_ms: Some(50), ..DeployFlags::default() };
    let first = client.deploy("echo", &flags, MODULE).unwrap();
    assert_eq!((first.manifest.app.as_str(), first.manifest.read_only, first.manifest.deadline_ms), ("shop", true, 50));
    let second = client.deploy("echo", &flags, MODULE_2).unwrap();
    assert_eq!(node.shards.generation_of("echo"), Some(second.generation));
    assert_eq!(client.functions().unwrap().functions, [second]);
    client.undeploy("echo").unwrap();
    assert!(client.functions().unwrap().functions.is_empty());
    assert!(node.shards.installed().is_empty());
}

#[test]
fn refused_deployments_say_why_with_a_code() {
    let node = node();
    let client = node.client();
    let refused = |result: Result<_, ClientError>| match result {
        Err(ClientError::Refused { problem }) => (problem.status, problem.code),
        other => panic!("not refused: {:?}", other.map(|info: crate::control::FunctionInfo| info.manifest)),
    };
    let plain = DeployFlags::default();
    client.deploy("echo", &plain, MODULE).unwrap();
    let other_app = DeployFlags { app: Some("other".to_owned()), ..DeployFlags::default() };
    assert_eq!(refused(client.deploy("echo", &other_app, MODULE)), (409, "wrong_app".to_owned()));
    assert_eq!(refused(client.deploy("a/../b", &plain, MODULE)), (400, "bad_manifest".to_owned()));
    assert_eq!(refused(client.deploy("text", &plain, b"no wasm")), (422, "bad_module".to_owned()));
    let no_time = DeployFlags { deadline_ms: Some(0), ..DeployFlags::default() };
    assert_eq!(refused(client.deploy("echo", &no_time, MODULE)), (400, "bad_manifest".to_owned()));
    node.shards.fail_next_install();
    assert_eq!(refused(client.deploy("echo", &plain, MODULE_2)), (503, "shards".to_owned()));
    assert!(matches!(client.undeploy("never"), Err(ClientError::Refused { problem }) if problem.code == "no_function"));
}

#[test]
fn unknown_parameters_paths_and_methods_are_problems() {
    let node = node();
    let put = |query: &str, extra: &str| {
        node.raw(&format!("PUT /v1/functions/echo?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}Content-Length: 0\r\n\r\n"))
    };
    let named = |method: &str| {
        node.raw(&format!("{method} /v1/functions/%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))
    };
    let refused = [put("deadline=5", ""), put("deadline_ms=many", ""), node.get("/v1/sessions?limit=0"), named("PUT"), named("DELETE")];
    for (status, head, body) in refused {
        assert_eq!(status, 400, "{body}");
        assert!(head.contains("application/problem+json") && body.contains("bad_request"), "{head}{body}");
    }
    assert!(node.get("/nothing").2.contains("no_route"));
    let (status, _, body) = node.raw("POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(status, 405);
    assert!(body.contains("bad_method"), "{body}");
    let (status, _, body) = put("", "Origin: http://evil.example\r\n");
    assert_eq!(status, 403);
    assert!(body.contains("browser"), "{body}");
}

#[test]
fn a_module_over_the_limit_is_refused_before_it_is_read() {
    let node = node();
    let bytes = xfaas_common::limits::MODULE_BYTES_MAX + 1;
    let request = format!("PUT /v1/functions/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n");
    let (status, _, body) = node.raw(&request);
    assert_eq!(status, 413);
    assert!(body.contains("body_too_large"), "{body}");
}

#[test]
fn documents_that_are_too_large_or_none_are_told_apart() {
    let node = node();
    let send = |method: &str, path: &str, body: &str| {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n");
        node.raw(&format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()))
    };
    let large = format!(r#"{{"key":"{}","session":"s"}}"#, "k".repeat(3 << 20));
    for (method, path) in [("POST", "/v1/sessions/move"), ("PUT", "/v1/aliases"), ("POST", "/v1/tokens")] {
        let (status, head, body) = send(method, path, &large);
        assert_eq!(status, 413, "{path}: {body}");
        assert!(head.contains("application/problem+json") && body.contains("body_too_large"), "{path}: {head}{body}");
        for other in ["", "{", "[]", r#"{"key":1}"#] {
            let (status, _, body) = send(method, path, other);
            assert!(status == 400 && body.contains("bad_request"), "{path} with {other:?}: {status} {body}");
        }
    }
}

#[test]
fn who_sends_on_after_a_refusal_gets_the_answer() {
    let node = node();
    let body = format!(r#"{{"key":"{}","session":"s"}}"#, "k".repeat(3 << 20));
    let head = "PUT /v1/aliases HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n";
    let mut stream = TcpStream::connect(node.control.address()).unwrap();
    let (first, rest) = body.split_at(5 << 19); // more than is read of a document
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{first}", body.len()).as_bytes()).unwrap();
    stream.peek(&mut [0]).unwrap(); // the answer is there when the rest is sent, bit by bit
    for part in rest.as_bytes().chunks(128 << 10) {
        std::thread::sleep(std::time::Duration::from_millis(20));
        stream.write_all(part).unwrap();
    }
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 413 ") && reply.contains("body_too_large"), "{reply}");
}

#[test]
fn sessions_are_filtered_sorted_and_bounded() {
    let node = node();
    let client = node.client();
    let all = client.sessions(&SessionsQuery { app: None, prefix: None, limit: 100 }).unwrap();
    assert_eq!((all.sessions.len(), all.truncated), (5, false));
    assert_eq!(all.sessions[0].app, "other");
    let some = client.sessions(&SessionsQuery { app: Some("shop".to_owned()), prefix: Some("user-".to_owned()), limit: 2 }).unwrap();
    assert_eq!((some.sessions.len(), some.truncated), (2, true));
    let just_all = client.sessions(&SessionsQuery { app: Some("shop".to_owned()), prefix: None, limit: 4 }).unwrap();
    assert_eq!((just_all.sessions.len(), just_all.truncated), (4, false));
}

#[test]
fn metrics_and_stats_carry_shards_and_steering() {
    let node = node();
    node.deployer.start(&[]).unwrap();
    let (status, head, text) = node.get("/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    for line in [
        "xfaas_requests_total{function=\"echo\",outcome=\"ok\",shard=\"1\"} 4",
        "xfaas_steering_verdicts_total{verdict=\"foreign\"} 7",
        "xfaas_drops_total{place=\"kernel\",reason=\"truncated\"} 1",
        "xfaas_functions 0",
        "xfaas_shards 2",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} not in {text}");
    }
    let stats = node.client().stats().unwrap();
    assert_eq!((stats.shards, stats.steering.as_str(), stats.not_ready.as_deref()), (2, "off", None));
    assert!(stats.metrics.iter().any(|sample| sample.histogram.is_some()));
    assert!(node.get("/v1/steering").2.contains("\"foreign\":7"));
}

#[test]
fn no_server_and_another_server_are_told_apart() {
    let node = node();
    let address = node.control.address();
    node.control.stop();
    let client = AdminClient::new(&address.to_string());
    assert!(!client.is_alive());
    let error = client.functions().unwrap_err();
    assert!(matches!(error, ClientError::NoServer { .. }), "{error}");
    assert!(error.to_string().contains("xfaas run") && error.to_string().contains(&address.to_string()), "{error}");
}

#[test]
fn a_taken_port_is_an_error_that_says_so() {
    let node = node();
    let steering: SteeringStats = Arc::new(|| Err("none".to_owned()));
    let door = Arc::clone(&node.shards) as Arc<dyn Shards>;
    let listen = node.control.address();
    let error = spawn(ControlOptions {
        listen,
        deployer: Arc::clone(&node.deployer),
        shards: door,
        steering,
        addresses: Some(crate::control::testing::addresses()),
        regions: None,
    })
    .unwrap_err();
    assert!(error.to_string().contains("--admin"), "{error}");
}

#[test]
fn an_idle_connection_does_not_keep_the_thread_from_stopping() {
    let node = node();
    let _idle = TcpStream::connect(node.control.address()).unwrap();
    assert_eq!(node.get("/healthz").0, 200);
    let begun = Instant::now();
    node.control.stop();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn deployments_wait_for_each_other_and_who_sends_no_body_is_in_nobodys_way() {
    let node = node();
    let address = node.control.address();
    let put = "PUT /v1/functions/silent HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n";
    let silent: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(put.as_bytes()).unwrap();
            stream
        })
        .collect();
    std::thread::scope(|scope| {
        let deploy = |i: usize| AdminClient::new(&address.to_string()).deploy(&format!("f{i}"), &DeployFlags::default(), MODULE);
        let deployments: Vec<_> = (0..16).map(|i| scope.spawn(move || deploy(i).map(|info| info.manifest.name))).collect();
        for (i, deployment) in deployments.into_iter().enumerate() {
            assert_eq!(deployment.join().unwrap().unwrap(), format!("f{i}"));
        }
    });
    assert_eq!(node.shards.installed().len(), 16);
    drop(silent);
}

#[test]
fn nothing_but_deployments_waits_for_deployments() {
    let node = node();
    let client = node.client();
    client.deploy("there", &DeployFlags::default(), MODULE).unwrap();
    let endless =
        r#"(module (memory (export "memory") 1) (func (export "handle") (result i32) (i32.const 0)) (func (export "init") loop br 0 end))"#;
    let endless = wat::parse_str(endless).unwrap();
    std::thread::scope(|scope| {
        // One `init` runs at a time, for a second.
        let deploy = |i: usize| node.client().deploy(&format!("f{i}"), &DeployFlags::default(), &endless).unwrap_err();
        let deployments: Vec<_> = (0..6).map(|i| scope.spawn(move || deploy(i))).collect();
        std::thread::sleep(Duration::from_millis(300));
        client.sessions(&SessionsQuery { app: None, prefix: None, limit: 100 }).unwrap();
        assert_eq!(node.get("/v1/aliases").0, 200);
        client.undeploy("there").unwrap();
        assert!(deployments.iter().any(|deployment| !deployment.is_finished()), "all were over already");
    });
}

#[test]
fn nothing_is_deployed_while_the_shards_stop() {
    let node = node();
    node.shards.draining.store(true, Ordering::SeqCst);
    let refused = node.client().deploy("echo", &DeployFlags::default(), MODULE).unwrap_err();
    assert!(
        matches!(&refused, ClientError::Refused { problem } if problem.code == "shards" && problem.detail.contains("stopping")),
        "{refused}"
    );
}
