//! Bytes of a connection: pipelined, in pieces, malformed, too many, never read. What one connection does harms no other.

use super::harness::{Node, RpcClient, State, eventually, function_hash, rpc_frame};
use super::{NOT_FOUND, node};
use std::io::Write;
use std::time::Duration;

#[test]
fn a_thousand_mixed_requests_in_one_send_are_all_answered() {
    let node = node();
    let (mut client, welcome) = RpcClient::to_shard(node.rpc, 0);
    let (s, other) = (welcome.session_of(0, "s"), welcome.session_of(1, "s"));
    let mut all = Vec::new();
    for i in 0..1_000u64 {
        let key = format!("k{}", i / 10);
        let (weak, strong) = (State::weak("script", &s), State::strong("script", &s, i));
        all.extend(match i % 10 {
            0 => weak.write(i, key.as_bytes(), i.to_string().as_bytes()),
            1 => weak.read(i, key.as_bytes()),
            2 => strong.read(i, key.as_bytes()),
            3 => State { invocation: i - 1, ..strong }.write(i, key.as_bytes(), b"strong"),
            4 => State { op: 1, ..weak }.read(i, &[key.as_bytes(), b"\0"].concat()),
            5 => weak.commit(i, &[(b"c", b"1"), (b"d", b"2")]),
            6 => State::weak("script", &other).read(i, b"k"),
            7 => rpc_frame(23, "", i, 0, b""),
            8 => State::weak("nobody", &s).read(i, b"k"),
            _ => RpcClient::hello_frame(0, i),
        });
    }
    client.send(&all);
    for i in 0..1_000u64 {
        let answer = client.answer_to(i);
        match i % 10 {
            0 | 3 | 5 => assert_eq!(answer.result(), 0),
            1 | 2 => assert_eq!(answer.value(), (i / 10 * 10).to_string().as_bytes()),
            4 => assert_eq!(&answer.value()[4..], b"strong"),
            6 => answer.assert_error(0, "wrong_shard"),
            7 => assert_eq!(answer.kind, 24),
            8 => answer.assert_error(1, "no_function"),
            _ => assert_eq!(answer.kind, 20),
        }
        if matches!(i % 10, 0..=5) {
            assert_eq!(answer.function, function_hash("script"), "repeated in the answer");
        }
    }
    let metrics = node.metrics();
    for (kind, count) in [("read", 400.0), ("write", 200.0), ("snapshot", 100.0), ("commit", 100.0)] {
        assert_eq!(metrics.sum("xfaas_rpc_requests_total", &[("kind", kind)]), count, "{kind}");
    }
    assert!(metrics.sum("xfaas_rpc_received_bytes_total", &[]) >= all.len() as f64);
    assert!(metrics.sum("xfaas_rpc_sent_bytes_total", &[]) > 32_000.0);
}

#[test]
fn frames_may_come_in_pieces() {
    let node = node();
    let mut client = RpcClient::silent(node.rpc); // a ping must not get into the middle of a frame
    let welcome = client.hello(1);
    let s = welcome.session_of(1, "s");
    let at = State::weak("script", &s);
    let all = [at.write(1, b"k", &[7; 40]), at.read(2, b"k"), State::strong("script", &s, 1).read(3, b"k")].concat();
    for byte in &all {
        client.send(std::slice::from_ref(byte));
    }
    assert_eq!(client.answer_to(1).result(), 0);
    assert_eq!(client.answer_to(2).value(), [7; 40]);
    assert_eq!(client.answer_to(3).value(), [7; 40]);
    let large = at.write(4, b"k", &vec![8; 1 << 20]);
    for piece in large.chunks(100_000) {
        client.send(piece);
    }
    assert_eq!(client.answer_to(4).result(), 0);
}

/// Sends what must close the connection, and looks at the counter of that reason and at other connections.
#[track_caller]
fn assert_refused(node: &Node, reason: &str, bytes: &[u8]) {
    let count = || node.metrics().sum("xfaas_rpc_malformed_total", &[("reason", reason)]);
    let (mut witness, before) = (RpcClient::to_owner(node.rpc, "s"), count());
    let mut client = RpcClient::silent(node.rpc);
    client.hello(0);
    client.send(bytes);
    client.assert_closed();
    eventually(reason, || count() == before + 1.0);
    assert_eq!(witness.call(|id| State::weak("script", "s").read(id, b"k")).result(), NOT_FOUND);
}

#[test]
fn malformed_frames_close_their_connection_and_are_counted() {
    let node = node();
    let good = State::weak("script", "s").write(1, b"k", b"value");
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    assert_refused(&node, "bad_magic", b"GET / HTTP/1.1\r\n\r\n");
    assert_refused(&node, "bad_magic", &with(&|b| b[1] = b'f'));
    assert_refused(&node, "bad_version", &with(&|b| b[2] = 2));
    assert_refused(&node, "bad_reserved", &with(&|b| b[5] = 1));
    assert_refused(&node, "bad_reserved", &with(&|b| b[7] = 1));
    assert_refused(&node, "bad_reserved", &with(&|b| b[24] = 1));
    assert_refused(&node, "bad_session", &with(&|b| b[6] = 0));
    assert_refused(&node, "bad_session", &with(&|b| b[6] = 65));
    assert_refused(&node, "bad_session", &with(&|b| b[32] = b' '));
    assert_refused(&node, "bad_session", &rpc_frame(23, "s", 1, 0, b""));
    assert_refused(&node, "too_long", &with(&|b| b[20] = 0x7F));
    assert_refused(&node, "too_long", &with(&|b| b[20..24].copy_from_slice(&((2u32 << 20) + (4 << 10) + 1).to_be_bytes())));
    assert_refused(&node, "bad_payload", &with(&|b| b[56] += 1));
    assert_refused(&node, "bad_payload", &rpc_frame(16, "s", 1, 0, &[0; 27]));
    assert_refused(&node, "bad_payload", &rpc_frame(19, "", 1, 0, &[0; 13]));
    assert_refused(&node, "bad_reserved", &rpc_frame(23, "", 1, 7, b""));
    assert_refused(&node, "bad_reserved", &rpc_frame(19, "", 1, 7, &RpcClient::hello_frame(0, 1)[32..]));
    assert_refused(&node, "bad_payload", &rpc_frame(23, "", 1, 0, b"x"));
    assert_refused(&node, "bad_payload", &State { op: 1, ..State::weak("script", "s") }.write(1, b"k", b""));
    assert_refused(&node, "bad_payload", &State { op: 1, ..State::weak("script", "s") }.write(1, b"", b"v"));
    assert_refused(&node, "bad_payload", &State { op: 2, ..State::weak("script", "s") }.write(1, b"k", &[0; 4]));
    let list = [&3u32.to_be_bytes()[..], &[0; 6]].concat();
    assert_refused(&node, "bad_payload", &State { op: 2, ..State::weak("script", &owned(&node)) }.write(1, b"", &list));
    // A frame that is cut short is none: the connection ends, and nothing was written.
    let owner = RpcClient::to_shard(node.rpc, 0).1.owner("s");
    let mut client = RpcClient::silent(node.rpc); // a ping's first byte would complete it
    client.hello(owner);
    client.send(&good[..good.len() - 1]);
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    client.assert_closed();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    assert_eq!(client.call(|id| State::weak("script", "s").read(id, b"k")).result(), NOT_FOUND);
}

/// A session of shard 0, to which `assert_refused` speaks.
fn owned(node: &Node) -> String {
    RpcClient::to_shard(node.rpc, 0).1.session_of(0, "s")
}

#[test]
fn garbage_hurts_nobody() {
    let node = node();
    let mut seed = 1u64;
    for length in [1usize, 7, 31, 32, 33, 100, 5_000, 200_000] {
        let garbage: Vec<u8> = (0..length)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 56) as u8
            })
            .collect();
        let mut client = RpcClient::silent(node.rpc);
        client.try_send(&garbage);
        client.stream().shutdown(std::net::Shutdown::Write).ok();
        client.assert_closed();
    }
    node.post("counter-rmw-linear", "s", b"").assert_ok(b"1");
    eventually("all are gone", || node.metrics().sum("xfaas_rpc_connections", &[]) == 0.0);
}

#[test]
fn a_peer_that_never_reads_is_bounded_and_does_not_hurt_http() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State::weak("script", "s");
    assert_eq!(client.call(|id| at.write(id, b"k", &vec![1; 1 << 20])).result(), 0);
    // A GiB of answers, if anybody were to make them. It is cut off as one that is not heard any more, since it is not read any more.
    let reads: Vec<u8> = (0..1_024u64).flat_map(|id| at.read(id, b"k")).collect();
    client.send(&reads);
    let sent = || node.metrics().sum("xfaas_rpc_sent_bytes_total", &[]);
    std::thread::scope(|scope| {
        let http = scope.spawn(|| {
            let mut http = node.connect();
            for i in 1..=200 {
                let reply = http.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "t")], b"");
                reply.assert_ok(i.to_string().as_bytes());
            }
        });
        eventually("it is given up", || node.metrics().sum("xfaas_rpc_connections_silent_total", &[]) == 1.0);
        http.join().unwrap();
    });
    assert!(sent() < 64e6, "{} bytes were made of 1 GiB asked for", sent());
    eventually("it is gone", || node.metrics().sum("xfaas_rpc_connections", &[]) == 0.0);
    drop(client);
}

#[test]
fn a_slow_peer_gets_everything() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State::weak("script", "s");
    assert_eq!(client.call(|id| at.write(id, b"k", &vec![1; 1 << 20])).result(), 0);
    let reads: Vec<u8> = (100..140u64).flat_map(|id| at.read(id, b"k")).collect();
    client.send(&reads);
    std::thread::sleep(Duration::from_millis(500)); // it does not read for a while: not to be right, only to be slow
    for id in 100..140 {
        assert_eq!(client.answer_to(id).value().len(), 1 << 20);
    }
}

#[test]
fn connections_are_bounded() {
    let node = Node::builder().guests(&["echo"]).shards(1).start();
    let clients: Vec<RpcClient> = (0..256).map(|_| RpcClient::connect(node.rpc)).collect();
    eventually("all are there", || node.metrics().sum("xfaas_rpc_connections", &[]) == 256.0);
    let mut refused = RpcClient::silent(node.rpc);
    refused.assert_closed();
    assert_eq!(node.metrics().sum("xfaas_rpc_connections_refused_total", &[]), 1.0);
    drop(clients);
    eventually("there is room again", || node.metrics().sum("xfaas_rpc_connections", &[]) == 0.0);
    RpcClient::to_shard(node.rpc, 0);
}

#[test]
fn a_hello_brings_the_connection_and_what_is_behind_it_to_the_wanted_shard() {
    let node = node();
    // Each shard takes some of the connections, so many of these move.
    for i in 0..20 {
        let wanted = i % 2;
        let mut client = RpcClient::silent(node.rpc);
        let session = RpcClient::to_shard(node.rpc, 0).1.session_of(wanted, "s");
        let at = State::weak("script", &session);
        let behind = [RpcClient::hello_frame(wanted, 1), at.write(2, b"k", b"v"), at.read(3, b"k")].concat();
        // The last byte later: a part of a frame moves too.
        client.send(&behind[..behind.len() - 1]);
        let welcome = client.answer_to(1);
        assert_eq!((welcome.kind, &welcome.payload[..2]), (20, &wanted.to_be_bytes()[..]));
        assert_eq!(client.answer_to(2).result(), 0);
        client.stream().write_all(&behind[behind.len() - 1..]).unwrap();
        assert_eq!(client.answer_to(3).value(), b"v");
    }
    assert!(node.metrics().sum("xfaas_rpc_connections_moved_total", &[]) > 0.0);
    let any = RpcClient::to_shard(node.rpc, 0xFFFF).1;
    assert!(any.shard < 2);
}
