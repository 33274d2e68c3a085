//! What an operator sees of `xfaas container`: exit codes, messages, numbers.

use super::harness::{Container, Node, UdpClient, eventually, xfaas};
use super::node;
use std::net::TcpListener;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn wrong_usage_ends_with_2_and_help_explains_the_flags() {
    for arguments in [
        &["container"][..],
        &["container", "--join", "nonsense"],
        &["container", "--join", "127.0.0.1:99999"],
        &["container", "--join", "127.0.0.1:9071", "--listen", "127.0.0.1:0"],
        &["container", "--join", "127.0.0.1:9071", "--listen", "here"],
        &["container", "--join", "127.0.0.1:9071", "--admin", "here"],
        &["container", "--join", "127.0.0.1:9071", "--no-map", "--region-socket", "/x"],
    ] {
        let output = xfaas(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    let help = text(&xfaas(&["container", "--help"]).stdout);
    for flag in ["--join", "--listen", "--cpus", "--no-map", "--region-socket", "--state-dir", "127.0.0.1:8081"] {
        assert!(help.contains(flag), "{flag} in {help}");
    }
}

#[test]
fn a_taken_port_and_a_stranger_at_the_primarys_end_the_process_with_1() {
    let node = node();
    let folder = tempfile::tempdir().unwrap();
    let run = |join: &str, listen: &str| {
        xfaas(&["container", "--join", join, "--listen", listen, "--state-dir", folder.path().to_str().unwrap()])
    };
    let taken = run(&node.rpc.to_string(), &node.http.to_string());
    assert_eq!(taken.status.code(), Some(1), "{taken:?}");
    assert!(text(&taken.stderr).contains("another process listens there"), "{taken:?}");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    // The HTTP port is an easy mistake.
    let stranger = run(&node.http.to_string(), &free);
    assert_eq!(stranger.status.code(), Some(1), "{stranger:?}");
    assert!(text(&stranger.stderr).contains("is not an xfaas primary"), "{stranger:?}");
}

#[test]
fn without_a_primary_it_says_so_once_answers_503_and_joins_when_there_is_one() {
    let mut node = node();
    node.stop();
    let container = Container::spawn(node.rpc, &[]);
    eventually("it is said", || container.log().contains("cannot be reached"));
    container.post("echo", "s", b"x").assert_error(503, "no_primary");
    UdpClient::connect(container.http).call("echo", "s", 1, b"x").assert_error(10, "no_primary");
    let mut expecting = container.connect();
    let reply = expecting.call("POST", "/f/echo", &[("expect", "100-continue"), ("content-length", "0")], b"");
    reply.assert_error(503, "no_primary");
    assert!(!container.is_ready());
    node.start();
    container.wait_until_ready();
    container.post("echo", "s", b"x").assert_ok(b"x");
    assert_eq!(container.log().matches("cannot be reached").count(), 1, "{}", container.log());
    assert!(container.log().contains("weak reads go through its mapped regions"), "{}", container.log());
}

#[test]
fn its_admin_api_shows_functions_and_numbers_and_takes_no_deployment() {
    let node = node();
    let mut container = Container::join(&node, &["--no-map"]);
    assert!(container.log().contains("all reads go by RPC"), "{}", container.log());
    let admin = container.admin.to_string();
    let listed = xfaas(&["functions", "--json", "--admin", &admin]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let functions = listed["functions"].as_array().unwrap();
    assert_eq!(functions.len(), 9);
    assert!(functions.iter().all(|function| function["source"] == "primary"), "{listed}");
    let wasm = super::harness::guest("echo");
    let deployed = xfaas(&["deploy", "other", wasm.to_str().unwrap(), "--admin", &admin]);
    assert_eq!(deployed.status.code(), Some(1), "{deployed:?}");
    assert!(text(&deployed.stderr).contains("deploy to its primary"), "{deployed:?}");
    container.post("counter-rmw-linear", "s", b"");
    eventually("requests are counted", || container.metrics().sum("xfaas_container_rpc_requests_total", &[]) >= 2.0);
    assert_eq!(container.metrics().sum("xfaas_container_links", &[]), 4.0, "two shards here, two there");
    assert!(xfaas(&["stats", "--admin", &admin]).status.success());
    container.stop();
}

#[test]
fn a_function_that_cannot_run_here_is_listed_with_its_fault_and_the_others_run() {
    // A container has the default ceiling of 1024 MiB, this primary a higher one.
    let node = Node::builder()
        .limit("memory_mib_max = 2048")
        .guests(&["echo"])
        .function(super::harness::Function::guest("echo").named("large").with("memory_mib = 2048"))
        .start();
    let container = Container::join(&node, &[]);
    container.post("echo", "s", b"x").assert_ok(b"x");
    container.post("large", "s", b"x").assert_error(404, "no_function");
    let listed = xfaas(&["functions", "--admin", &container.admin.to_string()]);
    assert!(text(&listed.stdout).contains("memory_mib"), "{listed:?}");
}
