//! Datagrams, CONTRACT.md section 2: exactly one answer to what is well-formed, silence and a counter for what is not.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, RpcClient, Script, State, UdpClient, eventually, function_hash, request, request_datagram};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

const DATAGRAM_BYTES_MAX: usize = 65_507;
const HEADER_BYTES: usize = 32;
const NOT_FOUND: i32 = -1;

fn node() -> Node {
    Node::builder()
        .guests(&["echo", "counter-rmw", "trap", "garbage-return", "big-output"])
        .function(Function::guest("counter-rmw").named("once").with("idempotent = true"))
        .function(Function::guest("spin").with("deadline_ms = 100"))
        .function(Function::guest("lock-forever").with("deadline_ms = 1000"))
        .function(Script::function("script"))
        .limit("lock_wait_ms = 100")
        .start()
}

#[test]
fn a_datagram_runs_its_function_and_gets_the_output() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    for (id, payload) in [(0, &b""[..]), (1, b"x"), (u64::MAX, b"bytes \0\xff")] {
        udp.call("echo", "alice", id, payload).assert_reply(payload);
    }
    let longest = "s".repeat(64);
    for session in ["a", "!~", &longest] {
        udp.call("counter-rmw", session, 7, b"").assert_reply(b"1");
    }
    for i in 2..30 {
        udp.call("counter-rmw", "a", 7, b"").assert_reply(i.to_string().as_bytes());
    }
    // One client, sessions of both shards: one answer each.
    for i in 0..50 {
        udp.call("echo", &format!("session-{i}"), i, b"hello").assert_reply(b"hello");
    }
    assert_eq!(udp.answer_within(Duration::from_millis(50)), None);
}

/// Well-formed but for one thing, and the reason under which that is counted.
fn malformed() -> Vec<(Vec<u8>, &'static str)> {
    let good = request_datagram("echo", "alice", 9, b"payload");
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let mut cases = vec![
        (Vec::new(), "truncated"),
        (b"X".to_vec(), "truncated"),
        (good[..31].to_vec(), "truncated"),
        (with(0, b'x'), "bad_magic"),
        (with(1, b'f'), "bad_magic"),
        (with(2, 0), "bad_version"),
        (with(2, 2), "bad_version"),
        (with(4, 1), "bad_reserved"),
        (with(5, 1), "bad_reserved"),
        (with(7, 1), "bad_reserved"),
        (with(24, 1), "bad_reserved"),
        (with(31, 1), "bad_reserved"),
        (with(6, 0), "bad_session_length"),
        (with(6, 65), "bad_session_length"),
        (with(6, 255), "bad_session_length"),
        (with(6, 4), "bad_length"),
        (with(6, 6), "bad_length"),
        (with(23, 6), "bad_length"),
        (with(23, 8), "bad_length"),
        (with(20, 0xFF), "bad_length"),
        (good[..good.len() - 1].to_vec(), "bad_length"),
        ([&good[..], b"x"].concat(), "bad_length"),
        (good[..32].to_vec(), "bad_length"),
        (with(32, b' '), "bad_session_byte"),
        (with(36, 0x7F), "bad_session_byte"),
        (with(33, 0), "bad_session_byte"),
        (with(34, 0x80), "bad_session_byte"),
    ];
    cases.extend([0, 2, 3, 4, 15, 16, 17, 18, 19, 255].map(|kind| (with(3, kind), "bad_kind")));
    cases
}

#[test]
fn malformed_datagrams_get_silence_and_a_counter() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    let cases = malformed();
    for (bytes, _) in &cases {
        udp.send(bytes);
    }
    eventually("all are received", || node.metrics().sum("xfaas_datagrams_total", &[]) == cases.len() as f64);
    let metrics = node.metrics();
    for (_, reason) in &cases {
        let expected = cases.iter().filter(|(_, other)| other == reason).count();
        assert_eq!(metrics.sum("xfaas_datagrams_dropped_total", &[("reason", reason)]), expected as f64, "{reason}");
    }
    assert_eq!(metrics.runs("echo"), 0.0);
    // Answers to all of them would have come before this one.
    udp.call("echo", "alice", 10, b"still here").assert_reply(b"still here");
    assert_eq!(udp.answer_within(Duration::from_millis(50)), None);
}

#[test]
fn state_access_over_this_port_touches_no_state() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    udp.call("counter-rmw", "alice", 1, b"").assert_reply(b"1");
    for kind in [16, 17, 18] {
        let mut bytes = request_datagram("counter-rmw", "alice", 2, b"n\0999");
        bytes[3] = kind;
        udp.send(&bytes);
    }
    udp.call("counter-rmw", "alice", 3, b"").assert_reply(b"2");
    assert_eq!(udp.answer_within(Duration::from_millis(50)), None);
}

#[test]
fn errors_have_the_status_and_the_code_of_the_contract() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    for session in ["a", "b", "c", "d"] {
        udp.call("no-such-function", session, 1, b"").assert_error(1, "no_function");
        udp.call("spin", session, 2, b"").assert_error(5, "deadline");
        udp.call("trap", session, 3, b"").assert_error(6, "guest_trapped");
        udp.call("garbage-return", session, 4, &42_i32.to_le_bytes()).assert_error(7, "guest_error 42");
        udp.call("garbage-return", session, 4, &i32::MIN.to_le_bytes()).assert_error(7, "guest_error -2147483648");
    }
}

#[test]
fn a_lock_waited_for_in_vain_is_lock_wait() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    udp.send(&request_datagram("lock-forever", "s", 1, b""));
    udp.send(&request_datagram("lock-forever", "s", 2, b""));
    let first = udp.answer();
    first.assert_error(9, "lock_wait");
    let second = udp.answer();
    second.assert_error(5, "deadline");
    assert_eq!(first.request_id + second.request_id, 3);
}

#[test]
fn a_full_queue_is_overloaded() {
    let node = Node::builder().function(Script::function("script").with("workers_max = 1")).limit("namespace_queue_calls_max = 1").start();
    let udp = UdpClient::connect(node.http);
    let spin = Script::new().spin(300_000_000).end();
    for id in 0..6 {
        udp.send(&request_datagram("script", "busy", id, &spin));
    }
    let answers: Vec<_> = (0..6).map(|_| udp.answer()).collect();
    let shed = answers.iter().filter(|answer| answer.kind == 3).count();
    assert!((1..=4).contains(&shed), "{shed}");
    answers.iter().filter(|answer| answer.kind == 3).for_each(|answer| answer.assert_error(3, "overloaded"));
    let ids: std::collections::BTreeSet<u64> = answers.iter().map(|answer| answer.request_id).collect();
    assert_eq!(ids.len(), 6, "exactly one answer each");
}

#[test]
fn the_largest_datagram_goes_in_and_comes_back() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    for session in ["big", "bigger", "biggest"] {
        let payload: Vec<u8> = (0..DATAGRAM_BYTES_MAX - HEADER_BYTES - session.len()).map(|i| (i * 7) as u8).collect();
        udp.call("echo", session, 1, &payload).assert_reply(&payload);
    }
}

#[test]
fn an_output_that_does_not_fit_is_reply_too_large() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    let room = DATAGRAM_BYTES_MAX - HEADER_BYTES - "s".len();
    let answer = udp.call("big-output", "s", 1, &(room as u32).to_le_bytes());
    assert_eq!((answer.kind, answer.payload.len()), (2, room));
    udp.call("big-output", "s", 2, &(room as u32 + 1).to_le_bytes()).assert_error(8, "reply_too_large");
    udp.call("big-output", "s", 3, &(8_u32 << 20).to_le_bytes()).assert_error(8, "reply_too_large");
}

#[test]
fn the_guest_sees_method_path_and_query_as_empty() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    let script = Script::new().input(2).input(3).input(4).input(1).end();
    let answer = udp.call("script", "alice", 1, &script);
    assert_eq!(Script::results(&answer.payload), [0, 0, 0, 5]);
    let script = Script::new().input(1).output(5).end_with(0);
    udp.call("script", "alice", 2, &script).assert_reply(b"alice");
}

#[test]
fn a_duplicate_runs_again() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    for i in 1..=3 {
        udp.call("counter-rmw", "twice", 5, b"").assert_reply(i.to_string().as_bytes());
    }
}

#[test]
fn a_duplicate_of_an_idempotent_function_gets_the_first_answer_again() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    let other = UdpClient::connect(node.http);
    for session in ["a", "b", "c", "d"] {
        udp.call("once", session, 1, b"").assert_reply(b"1");
        udp.call("once", session, 2, b"").assert_reply(b"2");
        for _ in 0..3 {
            udp.call("once", session, 1, b"").assert_reply(b"1");
            other.call("once", session, 2, b"other bytes").assert_reply(b"2");
        }
        udp.call("once", session, 3, b"").assert_reply(b"3");
    }
    let metrics = node.metrics();
    assert_eq!(metrics.sum("xfaas_replays_total", &[]), 24.0);
    assert_eq!(metrics.sum("xfaas_replay_evictions_total", &[]), 0.0);
    assert_eq!(metrics.requests("once", "ok"), 12.0);
    // Over HTTP there is no request ID: every request runs.
    node.post("once", "a", b"").assert_ok(b"4");
}

#[test]
fn thousands_of_answers_are_remembered() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    for id in 0..2_000 {
        udp.call("once", "many", id, b"").assert_reply((id + 1).to_string().as_bytes());
    }
    for id in (0..2_000).step_by(50) {
        udp.call("once", "many", id, b"").assert_reply((id + 1).to_string().as_bytes());
    }
}

#[test]
fn a_duplicate_that_comes_while_the_first_runs_gets_its_answer() {
    let node = Node::builder().function(Script::function("slow").with("idempotent = true")).start();
    let udp = UdpClient::connect(node.http);
    let other = UdpClient::connect(node.http);
    let body = Script::new().write("k", b"v", 0).spin(100_000_000).end();
    udp.send(&request_datagram("slow", "s", 1, &body));
    other.send(&request_datagram("slow", "s", 1, &body));
    udp.send(&request_datagram("slow", "s", 1, &body));
    for client in [&udp, &other, &udp] {
        assert_eq!(Script::results(&client.answer().payload), [0]);
    }
    assert_eq!(node.metrics().requests("slow", "ok"), 1.0);
}

/// A section of key `k`: strong reads of it wait until its invocation, 1, ends.
fn hold(node: &Node, function: &str, session: &str) -> RpcClient {
    let mut client = RpcClient::to_owner(node.rpc, session);
    assert_eq!(client.call(|id| State::strong(function, session, 1).read(id, b"k")).result(), NOT_FOUND);
    client
}

#[test]
fn every_duplicate_of_a_call_that_runs_gets_one_answer_however_many_there_are() {
    let node = Node::builder().function(Script::function("slow").with("idempotent = true")).start();
    let udp = UdpClient::connect(node.http);
    let mut gate = hold(&node, "slow", "s");
    (0..80).for_each(|_| udp.send(&request_datagram("slow", "s", 1, &Script::new().read("k", 1).end())));
    (0..15).for_each(|_| udp.answer().assert_error(3, "overloaded"));
    gate.send(&State::strong("slow", "s", 1).end());
    (0..65).for_each(|_| assert_eq!(Script::results(&udp.answer().payload), [NOT_FOUND]));
    let metrics = node.metrics();
    assert_eq!(metrics.sum("xfaas_replays_total", &[]), 64.0, "those that were refused are none");
    assert_eq!(metrics.sum("xfaas_shed_total", &[]), 15.0);
    assert_eq!(metrics.requests("slow", "ok"), 1.0);
    assert_eq!(udp.answer_within(Duration::from_millis(20)), None);
}

#[test]
fn an_answer_given_again_names_the_session_as_its_asker_does() {
    let node = Node::builder()
        .function(Function::guest("counter-rmw").named("once").with("idempotent = true"))
        .function(Script::function("slow").with("idempotent = true"))
        .function(Function::guest("big-output").named("big").with("idempotent = true"))
        .start();
    for alias in ["a-much-longer-alias", "b"] {
        assert!(node.cli(&["sessions", "map", alias, "session"]).status.success());
    }
    let udp = UdpClient::connect(node.http);
    let names = ["a-much-longer-alias", "session", "b"];
    for name in names {
        assert_eq!(udp.call("once", name, 1, b"").session, name);
    }
    assert_eq!(node.metrics().requests("once", "ok"), 1.0);
    // While the first one runs.
    let mut gate = hold(&node, "slow", "session");
    names.iter().for_each(|name| udp.send(&request_datagram("slow", name, 1, &Script::new().read("k", 1).end())));
    eventually("two wait for the first", || node.metrics().sum("xfaas_replays_total", &[]) == 4.0);
    gate.send(&State::strong("slow", "session", 1).end());
    let mut answered: Vec<String> = names.iter().map(|_| udp.answer().session).collect();
    answered.sort();
    assert_eq!(answered, ["a-much-longer-alias", "b", "session"]);
    assert_eq!(node.metrics().requests("slow", "ok"), 1.0);
    // An output that fits beside a short name only.
    let output_bytes = (DATAGRAM_BYTES_MAX - HEADER_BYTES - "session".len()) as u32;
    for _ in 0..2 {
        udp.call("big", "a-much-longer-alias", 1, &output_bytes.to_le_bytes()).assert_error(8, "reply_too_large");
        for name in ["session", "b"] {
            let answer = udp.call("big", name, 1, &output_bytes.to_le_bytes());
            assert_eq!((answer.kind, answer.payload.len()), (2, output_bytes as usize));
        }
    }
    assert_eq!(node.metrics().requests("big", "ok"), 1.0);
}

#[test]
fn a_failed_run_of_an_idempotent_function_is_remembered_too() {
    let node = Node::builder().function(Script::function("script").with("idempotent = true")).start();
    let udp = UdpClient::connect(node.http);
    let count_then_trap = Script::new().write("k", b"v", 0).trap();
    udp.call("script", "s", 1, &count_then_trap).assert_error(6, "guest_trapped");
    udp.call("script", "s", 1, &count_then_trap).assert_error(6, "guest_trapped");
    assert_eq!(node.metrics().requests("script", "guest_trapped"), 1.0);
}

#[test]
fn a_burst_is_answered_one_by_one() {
    let node = node();
    let udp = UdpClient::connect(node.http);
    for round in 0..5_u64 {
        for i in 0..200 {
            udp.send(&request_datagram("echo", &format!("burst-{}", i % 16), round * 200 + i, &i.to_be_bytes()));
        }
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let answer = udp.answer();
            answer.assert_reply(&(answer.request_id % 200).to_be_bytes());
            assert_eq!(answer.function, function_hash("echo"));
            assert!(ids.insert(answer.request_id), "two answers to {}", answer.request_id);
        }
    }
    assert_eq!(udp.answer_within(Duration::from_millis(50)), None);
}

/// Lengths that leave together, that end a batch, and that leave alone; from a socket on one address and from one on all.
#[test]
fn answers_that_leave_together_are_each_a_datagram_of_their_own() {
    for any in ["127.0.0.1", "0.0.0.0", "[::]"] {
        let port = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        let builder = Node::builder().guests(&["echo"]).function(Script::function("spin-a-while"));
        let node = builder.listen(&format!("udp = \"{any}:{port}\"")).start();
        let payload = |id: u64| vec![id as u8; [8, 8, 8, 8, 8, 8, 7, 8, 8, 20, 8, 1_190, 1_190, 1_300, 9_000][id as usize % 15]];
        // Whether a burst comes within the spin is the scheduler's, whether its peers are told apart their ports': some round has both.
        let (mut sends, mut all) = (Vec::new(), Vec::new());
        while sends.len() < 5 || sends.iter().all(|&sends| sends > 75.0) {
            assert!(sends.len() < 50, "on {any}: sends for 91 answers a round: {sends:?}");
            let clients = [(); 3].map(|()| UdpClient::connect((Ipv4Addr::LOCALHOST, port).into()));
            let before = node.metrics().sum("xfaas_ring_submissions_total", &[]);
            let round = sends.len() as u64;
            let ids = round * 30..(round + 1) * 30;
            // The owner is busy when the rest comes: it finds many at once between this one's slices.
            clients[0].send(&request_datagram("spin-a-while", "one", u64::MAX, &Script::new().spin(20_000_000).end()));
            for id in ids.clone() {
                for client in &clients {
                    client.send(&request_datagram("echo", "one", id, &payload(id)));
                }
            }
            for (number, client) in clients.iter().enumerate() {
                let mut answered = Vec::new();
                for _ in 0..30 + u64::from(number == 0) {
                    let answer = client.answer();
                    if answer.request_id != u64::MAX {
                        answer.assert_reply(&payload(answer.request_id));
                        answered.push(answer.request_id);
                    }
                }
                answered.sort_unstable();
                assert_eq!(answered, ids.clone().collect::<Vec<u64>>(), "on {any}");
            }
            sends.push(node.metrics().sum("xfaas_ring_submissions_total", &[]) - before);
            all.extend(clients);
        }
        std::thread::sleep(Duration::from_millis(20));
        all.iter().for_each(|client| assert_eq!(client.answer_within(Duration::from_millis(1)), None));
    }
}

#[test]
fn datagrams_and_http_may_have_ports_of_their_own() {
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = Node::builder().guests(&["echo"]).listen(&format!("udp = \"{free}\"")).start();
    UdpClient::connect(free).call("echo", "s", 1, b"x").assert_reply(b"x");
    node.call("POST", "/f/echo", &[], b"x").assert_ok(b"x");
}

#[test]
fn ipv6_serves_both_protocols() {
    let free = std::net::TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let node = Node::builder().guests(&["counter-rmw"]).listen(&format!("udp = \"{free}\"")).start();
    let udp = UdpClient::connect(free);
    for i in 1..20 {
        udp.call("counter-rmw", "six", i, b"").assert_reply(i.to_string().as_bytes());
    }
    let bytes = request("POST", "/f/counter-rmw", &[("x-session-id", "six")], b"");
    let mut client = node.connect();
    client.send(&bytes);
    client.reply().assert_ok(b"20");
}

/// Every shard's socket gets a copy of such a datagram.
#[test]
fn what_is_sent_to_all_is_dropped_by_each_shard_and_counted() {
    for any in ["0.0.0.0", "[::]"] {
        let port = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        let node = Node::builder().guests(&["echo"]).listen(&format!("udp = \"{any}:{port}\"")).start();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket2::SockRef::from(&socket).set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
        let bytes = request_datagram("echo", "s", 1, b"x");
        let broadcast: SocketAddr = (Ipv4Addr::new(127, 255, 255, 255), port).into();
        // IPv4's multicast comes to IPv4's sockets only.
        let multicast = (any == "0.0.0.0").then(|| (Ipv4Addr::new(224, 0, 0, 1), port).into());
        let addresses = [Some(broadcast), multicast];
        for address in addresses.iter().flatten() {
            assert_eq!(socket.send_to(&bytes, address).unwrap(), bytes.len());
        }
        let dropped = || node.metrics().sum("xfaas_datagrams_dropped_total", &[("reason", "not_unicast")]);
        eventually("both shards have dropped all", || dropped() == 2.0 * addresses.iter().flatten().count() as f64);
        UdpClient::connect((Ipv4Addr::LOCALHOST, port).into()).call("echo", "s", 2, b"y").assert_reply(b"y");
        assert_eq!(node.metrics().requests("echo", "ok"), 1.0, "on {any}");
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 64]).is_err(), "no answer on {any}");
    }
}

/// The client's socket is connected, so it takes answers from the address it wrote to and from no other.
#[test]
fn answers_leave_from_the_address_that_was_asked() {
    for any in ["0.0.0.0", "[::]"] {
        let port = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        let node = Node::builder().guests(&["echo"]).listen(&format!("udp = \"{any}:{port}\"")).start();
        let mut addresses: Vec<SocketAddr> = [1, 2, 77].iter().map(|last| (Ipv4Addr::new(127, 0, 0, *last), port).into()).collect();
        if any == "[::]" {
            addresses.push((Ipv6Addr::LOCALHOST, port).into());
        }
        for address in addresses {
            let udp = UdpClient::connect(address);
            // Sessions of both shards: one answers for the other.
            for i in 0..20 {
                udp.call("echo", &format!("session-{i}"), i, b"hello").assert_reply(b"hello");
            }
        }
        drop(node);
    }
}

#[test]
fn what_an_app_was_answered_is_nothing_to_another_app_that_takes_the_name() {
    let node = Node::builder().start();
    let deploy = |guest: &str, app: &str| {
        let path = harness::guest(guest);
        let output = node.cli(&["deploy", "shared", path.to_str().unwrap(), "--app", app, "--idempotent", "--deadline-ms", "4000"]);
        assert!(output.status.success(), "{output:?}");
    };
    let udp = UdpClient::connect(node.http);
    deploy("echo", "one");
    udp.call("shared", "alice", 1, b"of app one").assert_reply(b"of app one");
    assert!(node.cli(&["undeploy", "shared"]).status.success());
    deploy("echo", "two");
    udp.call("shared", "alice", 1, b"of app two").assert_reply(b"of app two");
    // Deployed again in its app, a function still knows what it answered.
    deploy("counter-rmw", "two");
    udp.call("shared", "alice", 1, b"").assert_reply(b"of app two");
    udp.call("shared", "alice", 2, b"").assert_reply(b"1");
}
