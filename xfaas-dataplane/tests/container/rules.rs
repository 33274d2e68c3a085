//! What an app asks for holds in containers too: durability, hints, tokens.

use super::harness::{Container, Function, Node};
use super::{number, reads};

fn node() -> Node {
    Node::builder()
        .function(Function::guest("counter-rmw-linear").named("kept-rmw").app("kept").with("durability = \"sync\""))
        .function(Function::guest("counter-read").named("kept-read").app("kept").with("durability = \"sync\""))
        .function(Function::guest("counter-rmw-linear").app("counter"))
        .function(Function::guest("counter-read").app("counter"))
        .function(Function::guest("echo").named("hinted").with("hint = \"query:sid\""))
        .function(Function::guest("echo").named("guarded").with("tokens = true"))
        .start()
}

#[test]
fn what_a_container_acknowledged_for_a_sync_app_outlives_the_machine() {
    let mut node = node();
    let container = Container::join(&node, &[]);
    let session = |number: usize| format!("kept-{number}");
    for round in 1..=3 {
        assert!((0..8).all(|at| number(&container.post("kept-rmw", &session(at), b"")) == round));
    }
    let before = reads(&container);
    assert_eq!(number(&container.post("kept-read", &session(0), b"")), 3);
    assert_eq!(number(&container.post("counter-rmw-linear", "s", b"")), 1);
    assert_eq!(number(&container.post("counter-read", "s", b"")), 1);
    // Only the region of the app that promises nothing is mapped; the strong sections read by RPC.
    super::harness::eventually("both reads are counted", || reads(&container).0 == before.0 + 1.0 && reads(&container).1 > before.1);
    node.kill();
    for entry in std::fs::read_dir(node.shared_memory()).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    node.start();
    container.wait_until_ready();
    super::harness::eventually("the container serves again", || container.post("kept-read", &session(0), b"").status == 200);
    assert!((0..8).all(|at| number(&container.post("kept-rmw", &session(at), b"")) == 4));
}

#[test]
fn a_container_follows_the_hint_of_an_app_and_runs_nothing_that_wants_a_token() {
    let node = node();
    let container = Container::join(&node, &[]);
    let mut client = container.connect();
    let reply = client.call("POST", "/f/hinted?sid=cart-7", &[], b"x");
    reply.assert_ok(b"x");
    assert_eq!(reply.session(), "cart-7");
    let token = node.cli_json(&["token", "--app", "guarded", "--session", "s"]);
    let headers = [("x-session-id", "s"), ("x-session-token", token["token"].as_str().unwrap())];
    node.call("POST", "/f/guarded", &headers, b"x").assert_ok(b"x");
    client.call("POST", "/f/guarded", &headers, b"x").assert_error(401, "bad_token");
}
