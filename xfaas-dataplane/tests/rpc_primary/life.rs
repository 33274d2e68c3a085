//! A node that ends: what runs in containers may finish.

use super::harness::{RpcClient, Script, State, eventually};
use super::{NOT_FOUND, node};
use rustix::process::Signal;

#[test]
fn a_draining_node_serves_open_sections_and_then_closes() {
    let mut node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State::strong("script", "s", 1);
    assert_eq!(client.call(|id| at.read(id, b"k")).result(), NOT_FOUND);
    let mut http = node.connect();
    http.send(&super::harness::request("POST", "/f/script", &[("x-session-id", "s")], &Script::new().read("k", 1).end()));
    eventually("the local call waits", || node.metrics().sum("xfaas_workers_parked", &[]) == 1.0);
    node.signal(Signal::TERM);
    // Refused as soon as the shard knows that it drains; until then a section is opened and ended again.
    let new = State::strong("script", "s", 2);
    eventually("new sections are refused", || {
        let answer = client.call(|id| new.read(id, b"l"));
        client.send(&new.end());
        if answer.kind == 3 {
            answer.assert_error(4, "draining");
        }
        answer.kind == 3
    });
    client.call(|id| RpcClient::hello_frame(0xFFFF, id)).assert_error(4, "draining");
    assert_eq!(client.call(|id| State::weak("script", "s").read(id, b"k")).result(), NOT_FOUND);
    assert_eq!(client.call(|id| at.write(id, b"k", b"last words")).result(), 0);
    assert_eq!(Script::results(&http.reply().body), [10], "the local call got the lock and went on");
    client.assert_closed();
    assert!(node.wait().success(), "{}", node.log());
}

#[test]
fn a_killed_node_comes_back_with_what_it_acknowledged() {
    let mut node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State::weak("script", "s");
    for i in 0..100u32 {
        assert_eq!(client.call(|id| at.write(id, format!("k{i}").as_bytes(), &i.to_be_bytes())).result(), 0);
    }
    node.kill();
    node.start();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    for i in 0..100u32 {
        assert_eq!(client.call(|id| at.read(id, format!("k{i}").as_bytes())).value(), i.to_be_bytes());
    }
}
