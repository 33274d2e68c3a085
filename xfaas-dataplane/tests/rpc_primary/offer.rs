//! What a container is told: the welcome, modules, and that something changed.

use super::harness::{Node, RpcClient, guest, rpc_frame};
use super::node;

fn fetch(client: &mut RpcClient, name: &str) -> Vec<u8> {
    let id = client.fresh_id();
    client.send(&rpc_frame(21, "", id, 0, name.as_bytes()));
    let mut module = Vec::new();
    loop {
        let part = client.answer_to(id);
        assert_eq!(part.kind, 22, "{part:?}");
        let number = |at: usize| u64::from_be_bytes(part.payload[at..at + 8].try_into().unwrap());
        assert_eq!(number(0), module.len() as u64, "parts come in order");
        assert!(part.payload.len() <= 16 + (256 << 10));
        module.extend_from_slice(&part.payload[16..]);
        if module.len() as u64 == number(8) {
            return module;
        }
    }
}

#[test]
fn a_welcome_says_what_a_container_needs() {
    let node = node();
    for shard in 0..2 {
        let (_client, welcome) = RpcClient::to_shard(node.rpc, shard);
        assert_eq!(welcome.shard, shard);
        let text = &welcome.text;
        assert_eq!((text["protocol"].as_u64(), text["shards"].as_u64(), text["lock_wait_ms"].as_u64()), (Some(2), Some(2), Some(5_000)));
        assert_eq!(text["session_header"], "x-session-id");
        assert_eq!(text["hash_keys"].as_array().unwrap().len(), 18);
        let functions = text["functions"].as_array().unwrap();
        let named = |name: &str| functions.iter().find(|function| function["name"] == name).unwrap();
        let counter = named("counter-rmw-linear");
        let wasm = std::fs::read(guest("counter-rmw-linear")).unwrap();
        assert_eq!(counter["wasm_bytes"].as_u64(), Some(wasm.len() as u64));
        assert_eq!(counter["sha256"].as_str().unwrap().len(), 64);
        assert_eq!((counter["app"].as_str(), counter["read_only"].as_bool()), (Some("counter-rmw-linear"), Some(false)));
        assert!(counter["generation"].is_u64() && counter["app_index"].is_u64());
        assert_eq!((named("read-only")["read_only"].as_bool(), named("small")["state_mib"].as_u64()), (Some(true), Some(1)));
        assert_eq!(named("read-only")["app_index"], named("small")["app_index"]);
        assert_eq!(functions.len(), 5);
    }
}

#[test]
fn the_welcomes_keys_find_the_owners_that_the_node_names() {
    let node = Node::builder().guests(&["counter-rmw"]).start();
    let (_client, welcome) = RpcClient::to_shard(node.rpc, 0);
    for (shard, sessions) in node.sessions_of_both_shards().iter().enumerate() {
        assert!(sessions.iter().all(|session| usize::from(welcome.owner(session)) == shard));
    }
}

#[test]
fn modules_are_given_as_they_were_deployed() {
    let node = node();
    let (mut client, _) = RpcClient::to_shard(node.rpc, 1);
    assert!(fetch(&mut client, "echo") == std::fs::read(guest("echo")).unwrap());
    client.call(|id| rpc_frame(21, "", id, 0, b"nobody")).assert_error(1, "no_function");
    // A large one comes in parts, and other answers between them.
    let large = node.directory.path().join("large.wasm");
    let data = "x".repeat(1_500_000);
    let text = format!(
        r#"(module (memory (export "memory") 32) (data (i32.const 0) "{data}") (func (export "handle") (result i32) i32.const 0))"#
    );
    std::fs::write(&large, wat::parse_str(text).unwrap()).unwrap();
    let deployed = node.cli(&["deploy", "large", large.to_str().unwrap()]);
    assert!(deployed.status.success(), "{deployed:?}");
    assert_eq!(client.next().kind, 25);
    assert!(fetch(&mut client, "large") == std::fs::read(&large).unwrap());
    // More than may be under way at once.
    let frames: Vec<u8> = (0..80).flat_map(|id| rpc_frame(21, "", id, 0, b"large")).collect();
    client.send(&frames);
    let (mut whole, mut refused) = (0, 0);
    while whole + refused < 80 {
        let answer = client.next();
        let number = |at: usize| u64::from_be_bytes(answer.payload[at..at + 8].try_into().unwrap());
        match answer.kind {
            22 => whole += i32::from(number(0) + (answer.payload.len() as u64 - 16) == number(8)),
            _ => {
                answer.assert_error(3, "overloaded");
                refused += 1;
            }
        }
    }
    assert!(whole >= 64, "{whole} whole, {refused} refused");
}

#[test]
fn containers_hear_of_deployments_and_removals() {
    let node = node();
    let mut clients: Vec<RpcClient> = (0..2).map(|shard| RpcClient::to_shard(node.rpc, shard).0).collect();
    let mut stranger = RpcClient::connect(node.rpc);
    let wasm = guest("cart");
    assert!(node.cli(&["deploy", "cart", wasm.to_str().unwrap()]).status.success());
    for client in &mut clients {
        assert_eq!((client.next().kind, client.hello(0xFFFF).text["functions"].as_array().unwrap().len()), (25, 6));
        assert!(fetch(client, "cart") == std::fs::read(&wasm).unwrap());
    }
    assert!(node.cli(&["undeploy", "cart"]).status.success());
    for client in &mut clients {
        assert_eq!((client.next().kind, client.hello(0xFFFF).text["functions"].as_array().unwrap().len()), (25, 5));
        client.call(|id| rpc_frame(21, "", id, 0, b"cart")).assert_error(1, "no_function");
    }
    assert_eq!(stranger.hello(0xFFFF).text["functions"].as_array().unwrap().len(), 5, "who said no hello was told nothing");
}
