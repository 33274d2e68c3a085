//! Reads, writes, snapshots and commits: the results are those of CONTRACT.md section 3, and local guests see the same state.

use super::harness::{RpcClient, Script, State, rpc_frame};
use super::{BAD_ARGUMENT, NOT_FOUND, OVER_LIMIT, node};

#[test]
fn both_sides_see_one_state() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "alice");
    let at = State::weak("script", "alice");
    assert_eq!(client.call(|id| at.read(id, b"k")).result(), NOT_FOUND);
    assert_eq!(client.call(|id| at.write(id, b"k", b"hello")).result(), 0);
    let read = client.call(|id| at.read(id, b"k"));
    assert_eq!((read.result(), read.value()), (5, &b"hello"[..]));
    // A guest of the same session reads it, and writes what RPC reads.
    let reply = node.post("script", "alice", &Script::new().read("k", 0).output(5).end_with(0));
    reply.assert_ok(b"hello");
    let written = node.post("script", "alice", &Script::new().write("k", b"from a guest", 0).end());
    assert_eq!(Script::results(&written.body), [0]);
    assert_eq!(client.call(|id| at.read(id, b"k")).value(), b"from a guest");
    // Another app's function has another state.
    let other = State::weak("counter-rmw-linear", "alice");
    assert_eq!(client.call(|id| other.read(id, b"k")).result(), NOT_FOUND);
}

#[test]
fn reads_tell_the_full_length_and_bring_what_fits() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State::weak("script", "s");
    let large = vec![7; 1 << 20];
    for value in [&b""[..], b"x", &large] {
        assert_eq!(client.call(|id| at.write(id, b"k", value)).result(), 0);
        for bytes_max in [0, 1, 100, u32::MAX] {
            let read = client.call(|id| State { bytes_max, ..at }.read(id, b"k"));
            assert_eq!(read.result() as usize, value.len());
            assert!(read.value() == &value[..value.len().min(bytes_max as usize)]);
        }
    }
}

#[test]
fn keys_values_and_modes_are_held_to_the_rules_of_local_guests() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State::weak("script", "s");
    let longest = [b'k'; 255];
    for mode in [0, 1] {
        let at = State { mode, ..at };
        assert_eq!(client.call(|id| at.write(id, &longest, b"v")).result(), 0);
        assert_eq!(client.call(|id| at.read(id, &longest)).result(), 1);
        assert_eq!(client.call(|id| at.read(id, &[b'k'; 256])).result(), OVER_LIMIT);
        assert_eq!(client.call(|id| at.write(id, &[b'k'; 256], b"v")).result(), OVER_LIMIT);
        assert_eq!(client.call(|id| at.read(id, b"")).result(), BAD_ARGUMENT);
        assert_eq!(client.call(|id| at.write(id, b"", b"v")).result(), BAD_ARGUMENT);
        assert_eq!(client.call(|id| at.write(id, b"a\0b", b"v")).result(), BAD_ARGUMENT, "no guest can give such a key");
        assert_eq!(client.call(|id| at.write(id, b"k", &vec![0; (1 << 20) + 1])).result(), OVER_LIMIT);
        assert_eq!(client.call(|id| at.write(id, b"", &vec![0; (1 << 20) + 1])).result(), BAD_ARGUMENT, "arguments before limits");
    }
    for mode in [2, 255] {
        let at = State { mode, ..at };
        assert_eq!(client.call(|id| at.read(id, b"k")).result(), BAD_ARGUMENT);
        assert_eq!(client.call(|id| at.write(id, b"k", b"v")).result(), BAD_ARGUMENT);
        assert_eq!(client.call(|id| at.read(id, &[b'k'; 256])).result(), BAD_ARGUMENT);
    }
    client.send(&at.end());
    assert_eq!(client.call(|id| at.read(id, b"k")).result(), NOT_FOUND, "nothing that was refused was written");
}

/// Of session `s`, for a function of the app that several share.
fn shared(function: &str) -> State<'_> {
    State { app: "script", ..State::weak(function, "s") }
}

#[test]
fn a_function_has_its_own_limits() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let (read_only, small) = (shared("read-only"), shared("small"));
    assert_eq!(client.call(|id| read_only.write(id, b"k", b"v")).result(), BAD_ARGUMENT);
    assert_eq!(client.call(|id| State { mode: 1, ..read_only }.write(id, b"k", b"v")).result(), BAD_ARGUMENT);
    assert_eq!(client.call(|id| read_only.commit(id, &[(b"k", b"v")])).result(), BAD_ARGUMENT);
    assert_eq!(client.call(|id| read_only.commit(id, &[])).result(), 0);
    assert_eq!(client.call(|id| read_only.read(id, b"k")).result(), NOT_FOUND);
    let large = vec![1; (1 << 20) - 1];
    assert_eq!(client.call(|id| small.write(id, b"k", &large)).result(), 0);
    assert_eq!(client.call(|id| small.write(id, b"l", b"v")).result(), OVER_LIMIT);
    assert_eq!(client.call(|id| small.write(id, b"k", b"v")).result(), 0);
    assert_eq!(client.call(|id| read_only.read(id, b"k")).value(), b"v", "one app, one state");
}

#[test]
fn a_snapshot_brings_all_keys_at_once() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = State::weak("script", "s");
    for (key, value) in [(&b"a"[..], &b"one"[..]), (b"b", b""), (b"c", b"three")] {
        assert_eq!(client.call(|id| at.write(id, key, value)).result(), 0);
    }
    let snapshot = State { op: 1, ..at };
    let all = client.call(|id| snapshot.read(id, b"c\0missing\0b\0a\0"));
    let expected = [&5i32.to_be_bytes()[..], b"three", &(-1i32).to_be_bytes(), &0i32.to_be_bytes(), &3i32.to_be_bytes(), b"one"].concat();
    assert_eq!((all.result() as usize, all.value()), (expected.len(), &expected[..]));
    let cut = client.call(|id| State { bytes_max: 23, ..snapshot }.read(id, b"c\0missing\0b\0a\0"));
    assert_eq!((cut.result() as usize, cut.value()), (expected.len(), &expected[..23]));
    for bytes_max in 0..expected.len() as u32 {
        let cut = client.call(|id| State { bytes_max, ..snapshot }.read(id, b"c\0missing\0b\0a\0"));
        assert_eq!(cut.value(), &expected[..bytes_max as usize]);
    }
    for bad in [&b""[..], b"a", b"a\0b", b"\0", b"a\0\0b\0"] {
        assert_eq!(client.call(|id| snapshot.read(id, bad)).result(), BAD_ARGUMENT, "{bad:?}");
    }
    assert_eq!(client.call(|id| State { mode: 1, ..snapshot }.read(id, b"a\0")).result(), BAD_ARGUMENT);
    assert_eq!(client.call(|id| snapshot.read(id, &[&[b'k'; 256][..], b"\0"].concat())).result(), OVER_LIMIT);
    assert_eq!(client.call(|id| snapshot.read(id, &[&[b'k'; 256][..], b"\0\0"].concat())).result(), BAD_ARGUMENT);
    assert_eq!(client.call(|id| snapshot.read(id, &b"k\0".repeat(64))).result(), 4 * 64);
    assert_eq!(client.call(|id| snapshot.read(id, &b"k\0".repeat(65))).result(), OVER_LIMIT);
    for key in [b"x", b"y", b"z"] {
        assert_eq!(client.call(|id| at.write(id, key, &vec![0; 1 << 20])).result(), 0);
    }
    assert_eq!(client.call(|id| snapshot.read(id, b"x\0y\0")).value().len(), (2 << 20) + 8);
    let cut = client.call(|id| snapshot.read(id, b"x\0y\0z\0"));
    assert_eq!((cut.result(), cut.value().len()), (3 * (4 + (1 << 20)), (2 << 20) + (4 << 10) - 4), "no frame holds it all");
}

#[test]
fn a_commit_takes_effect_as_a_whole_or_not_at_all() {
    let node = node();
    let mut client = RpcClient::to_owner(node.rpc, "s");
    let at = shared("small");
    let read = |client: &mut RpcClient, key: &[u8]| {
        let read = client.call(|id| at.read(id, key));
        (read.result() >= 0).then(|| read.value().to_vec())
    };
    assert_eq!(client.call(|id| at.commit(id, &[(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])).result(), 0);
    assert_eq!(
        (read(&mut client, b"a"), read(&mut client, b"b")),
        (Some(b"3".to_vec()), Some(b"2".to_vec())),
        "the last one of a key wins"
    );
    let large = vec![0; 600 << 10];
    assert_eq!(client.call(|id| at.commit(id, &[(b"a", b"9"), (b"c", &large), (b"d", &large), (b"b", b"9")])).result(), OVER_LIMIT);
    assert_eq!(client.call(|id| at.commit(id, &[(b"a", b"9"), (b"", b"")])).result(), BAD_ARGUMENT);
    assert_eq!(client.call(|id| at.commit(id, &[(b"a", b"9"), (&[b'k'; 256], b"")])).result(), OVER_LIMIT);
    assert_eq!(client.call(|id| at.commit(id, &[(b"a", b"9"), (b"b", &vec![0; (1 << 20) + 1])])).result(), OVER_LIMIT);
    assert_eq!((read(&mut client, b"a"), read(&mut client, b"b")), (Some(b"3".to_vec()), Some(b"2".to_vec())));
    assert_eq!((read(&mut client, b"c"), read(&mut client, b"d")), (None, None));
    // One that makes a session and fails leaves none behind.
    let fresh = State { session: "t", ..at };
    let (mut other, sessions) = (RpcClient::to_owner(node.rpc, "t"), || node.cli_json(&["sessions", "--prefix", "t"])["sessions"].clone());
    assert_eq!(other.call(|id| fresh.commit(id, &[(b"a", b"1"), (b"c", &large), (b"d", &large)])).result(), OVER_LIMIT);
    assert_eq!(sessions().as_array().unwrap().len(), 0);
    assert_eq!(other.call(|id| fresh.commit(id, &[(b"a", b"1")])).result(), 0);
    assert_eq!(sessions().as_array().unwrap().len(), 1);
    // It ends the invocation: its locks go.
    let strong = State { mode: 1, invocation: 5, ..at };
    assert_eq!(client.call(|id| strong.read(id, b"a")).value(), b"3");
    assert_eq!(client.call(|id| strong.commit(id, &[(b"a", b"4")])).result(), 0);
    assert_eq!(client.call(|id| State { mode: 1, invocation: 6, ..at }.read(id, b"a")).value(), b"4");
}

#[test]
fn what_is_no_ones_to_answer_gets_an_error_and_the_connection_goes_on() {
    let node = node();
    let mut client = RpcClient::connect(node.rpc);
    client.call(|id| State::weak("script", "s").read(id, b"k")).assert_error(0, "no_hello");
    client.call(|id| RpcClient::hello_frame(2, id)).assert_error(0, "wrong_shard");
    let other_protocol = |id| {
        let mut hello = RpcClient::hello_frame(0, id);
        hello[35] = 1;
        hello
    };
    client.call(other_protocol).assert_error(0, "wrong_protocol");
    let welcome = client.hello(1);
    let (ours, theirs) = (welcome.session_of(1, "s"), welcome.session_of(0, "s"));
    client.call(|id| State::weak("script", &theirs).read(id, b"k")).assert_error(0, "wrong_shard");
    client.call(|id| State::weak("script", &theirs).commit(id, &[])).assert_error(0, "wrong_shard");
    client.call(|id| RpcClient::hello_frame(0, id)).assert_error(0, "wrong_shard");
    let at = State::weak("script", &ours);
    client.call(|id| State::weak("nobody", &ours).read(id, b"k")).assert_error(1, "no_function");
    client.call(|id| State { op: 2, ..at }.read(id, b"k")).assert_error(0, "unknown_op");
    client.call(|id| State { op: 3, ..at }.write(id, b"k", b"v")).assert_error(0, "unknown_op");
    for kind in [1, 4, 26, 255] {
        client.call(|id| rpc_frame(kind, "", id, 0, b"?")).assert_error(0, "unknown_kind");
    }
    // Answers to nothing are dropped: an error for an error would go round for ever.
    for kind in [2, 3, 18, 20, 22, 24, 25] {
        let payload = if matches!(kind, 24 | 25) { &b""[..] } else { b"?" };
        client.send(&rpc_frame(kind, "", 1, 0, payload));
    }
    assert_eq!(client.call(|id| at.read(id, b"k")).result(), NOT_FOUND);
    let pong = client.call(|id| rpc_frame(23, "", id, 0, b""));
    assert_eq!((pong.kind, pong.payload.len()), (24, 0));
}
