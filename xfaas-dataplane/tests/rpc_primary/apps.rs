//! A function's name that moves to another app: what began under the old one neither reads nor writes the new one's sessions.

use super::harness::{Node, RpcClient, RpcFrame, Script, State, eventually};
use super::{NOT_FOUND, node};

/// Deploys the script guest as `roams`.
fn deploy(node: &Node, app: &str) {
    let module = node.directory.path().join("script.wasm");
    let deployed = node.cli(&["deploy", "roams", module.to_str().unwrap(), "--app", app]);
    assert!(deployed.status.success(), "{deployed:?}");
}

/// The answer to a request; what the container is told of functions comes between.
#[track_caller]
fn ask(client: &mut RpcClient, make: impl FnOnce(u64) -> Vec<u8>) -> RpcFrame {
    let id = client.fresh_id();
    client.send(&make(id));
    loop {
        let frame = client.next();
        if frame.kind != 25 {
            assert_eq!(frame.request_id, id, "{frame:?}");
            return frame;
        }
    }
}

/// Everything that can be asked, in the name of `roams` of an app.
fn everything(app: &str, invocation: u64) -> Vec<Box<dyn FnOnce(u64) -> Vec<u8> + '_>> {
    let weak = State { app, invocation, ..State::weak("roams", "s") };
    let strong = State { mode: 1, ..weak };
    // docs/PROTOCOL.md, "A key that is NUL, `t` and a name".
    let timer = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &0_i64.to_le_bytes()].concat();
    vec![
        Box::new(move |id| weak.read(id, b"k")),
        Box::new(move |id| strong.read(id, b"k")),
        Box::new(move |id| State { op: 1, ..weak }.read(id, b"k\0")),
        Box::new(move |id| weak.write(id, b"k", b"strays")),
        Box::new(move |id| weak.write(id, b"\0tname", &timer)),
        Box::new(move |id| strong.write(id, b"k", b"strays")),
        Box::new(move |id| weak.commit(id, &[(b"k", b"strays")])),
    ]
}

#[test]
fn what_an_invocation_of_another_app_asks_is_refused_and_its_end_is_heard() {
    let node = node();
    deploy(&node, "script");
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let section = State { app: "script", ..State::strong("roams", "s", 1) };
    assert_eq!(ask(&mut client, |id| section.read(id, b"k")).result(), NOT_FOUND);
    assert!(node.cli(&["undeploy", "roams"]).status.success());
    deploy(&node, "elsewhere");
    // Whatever the connection has been told meanwhile: the section's own requests, and those of an invocation that asks for the first time.
    for says_hello in [false, true] {
        if says_hello {
            ask(&mut client, |id| RpcClient::hello_frame(0xFFFF, id));
        }
        ask(&mut client, |id| section.write(id, b"k", b"strays")).assert_error(1, "no_function");
        for make in everything("script", 2) {
            ask(&mut client, make).assert_error(1, "no_function");
        }
    }
    assert_eq!(node.metrics().sum("xfaas_rpc_invocations", &[]), 1.0, "the section is as it was");
    client.send(&section.end());
    eventually("its lock is free", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 0.0);
    for (function, what) in [("script", "the old app's"), ("roams", "the new one's")] {
        let read = node.post(function, "s", &Script::new().read("k", 1).end());
        assert_eq!(Script::results(&read.body), [NOT_FOUND], "{what}");
    }
    assert_eq!(node.metrics().sum("xfaas_timers", &[]), 0.0);
}

#[test]
fn the_app_that_has_the_name_now_is_served() {
    let node = node();
    deploy(&node, "script");
    assert!(node.cli(&["undeploy", "roams"]).status.success());
    deploy(&node, "elsewhere");
    let mut client = RpcClient::to_owner(node.rpc, "s");
    for make in everything("elsewhere", 1) {
        assert_eq!(ask(&mut client, make).kind, 18);
    }
    let read = node.post("script", "s", &Script::new().read("k", 0).end());
    assert_eq!(Script::results(&read.body), [NOT_FOUND]);
}
