//! A connection of one session: its first request may land anywhere, after that every segment comes to the owner's CPU.

use std::net::TcpStream;
use std::time::Duration;

use core_affinity::CoreId;
use socket2::{Domain, Socket, Type};
use xfaas_common::ids::SessionId;
use xfaas_common::map_layout::Verdict;

use crate::lab::{Http, Lab, Metrics, PLAIN, PLAIN_V4, PORT, random_sessions, raw_exchange};

const CONNECTIONS: usize = 200;
const ROUNDS: usize = 20;

/// Connections that are asked from a CPU of the machine, so that packets come in on that one.
struct Half {
    cpu: u16,
    connections: Vec<(Http, SessionId)>,
}

impl Half {
    fn connect(cpu: u16, sessions: &[SessionId]) -> Half {
        assert!(core_affinity::set_for_current(CoreId { id: usize::from(cpu) }));
        let connect = |(i, session): (usize, &SessionId)| (Http::connect(PLAIN[i % 2].address(PORT)), *session);
        Half { cpu, connections: sessions.iter().enumerate().map(connect).collect() }
    }

    /// One request each, all under way at once. Every reply comes from the owner's core, also the first one.
    fn ask_all(&mut self, round: usize, owners: &impl Fn(&SessionId) -> usize) {
        assert!(core_affinity::set_for_current(CoreId { id: usize::from(self.cpu) }));
        let body = |i: usize| format!("round {round} of connection {i}").into_bytes();
        for (i, (http, session)) in self.connections.iter_mut().enumerate() {
            http.send_echo(session.as_str(), &body(i));
        }
        for (i, (http, session)) in self.connections.iter_mut().enumerate() {
            assert_eq!(http.receive_echo(session.as_str(), &body(i)), owners(session), "connection {i} in round {round}");
        }
    }
}

fn tcp_of_known_flows(counted: &Metrics) -> u64 {
    counted.verdict(Verdict::TcpFlowRedirected) + counted.verdict(Verdict::TcpFlowLocal)
}

/// Segments that were not brought to an owner, whatever the reason.
fn tcp_elsewhere(counted: &Metrics) -> u64 {
    let verdicts = [Verdict::TcpUnknown, Verdict::TcpFlowLearned, Verdict::Unmoved, Verdict::Inconsistent, Verdict::RedirectFailed];
    verdicts.iter().map(|verdict| counted.verdict(*verdict)).sum()
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn after_its_first_request_every_segment_of_a_connection_comes_to_the_owner() {
    let lab = Lab::new();
    let node = lab.start("xdp");
    let owners = node.owners();
    let sessions = random_sessions(1, CONNECTIONS);
    let started = node.metrics();
    let (ours, theirs) = sessions.split_at(CONNECTIONS / 2);
    let connect_and_ask = |cpu, sessions| {
        lab.on_client(|| {
            let mut half = Half::connect(cpu, sessions);
            half.ask_all(0, &owners);
            half
        })
    };
    let mut halves = [connect_and_ask(lab.cpus[0], ours), connect_and_ask(lab.cpus[1], theirs)];
    // A connection moves once its first reply is out: that may be after the client has it.
    let after_first = node.metrics_until("misrouted connections have moved", |now| {
        let counted = now.since(&started);
        counted.moved() == counted.misrouted()
    });
    let first = after_first.since(&started);
    assert_eq!(first.verdict(Verdict::TcpFlowLearned), CONNECTIONS as u64, "{:?}", first.verdicts());
    assert_eq!(first.verdict(Verdict::ReuseportTcp), CONNECTIONS as u64);
    assert_eq!(first.steered() + first.misrouted(), CONNECTIONS as u64);
    assert!(first.misrouted() > 0, "half of the sessions belong to the CPU on which no SYN came");
    let flows = node.flows();
    for (http, session) in halves.iter().flat_map(|half| &half.connections) {
        assert_eq!(flows.get(&http.flow_key(), 0).ok(), Some(owners(session) as u32), "where segments of {session} go");
    }

    for round in 1..=ROUNDS {
        for half in &mut halves {
            lab.on_client(|| half.ask_all(round, &owners));
        }
    }
    let later = node.metrics().since(&after_first);
    assert_eq!((later.steered(), later.misrouted(), later.moved()), ((ROUNDS * CONNECTIONS) as u64, 0, 0));
    assert_eq!(tcp_elsewhere(&later), 0, "{:?}", later.verdicts());
    assert!(tcp_of_known_flows(&later) >= (ROUNDS * CONNECTIONS) as u64, "{:?}", later.verdicts());
    // Asked from both CPUs for sessions of both: some packets were at home, some not.
    assert!(later.verdict(Verdict::TcpFlowLocal) > 0 && later.verdict(Verdict::TcpFlowRedirected) > 0, "{:?}", later.verdicts());
    // The shard of a connection counts its requests: each has come to its owner.
    for shard in [0, 1] {
        let owned = sessions.iter().filter(|session| owners(session) == shard).count();
        assert_eq!(later.ran("echo", shard), (owned * ROUNDS) as u64, "shard {shard}");
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn in_every_mode_only_the_first_request_of_a_connection_lands_elsewhere() {
    let lab = Lab::new();
    for mode in ["tc", "reuseport", "off"] {
        let node = lab.start(mode);
        let owners = node.owners();
        let started = node.metrics();
        let mut half = lab.on_client(|| {
            let mut half = Half::connect(lab.cpus[0], &random_sessions(3, 40));
            half.ask_all(0, &owners);
            half
        });
        let is_settled = |now: &Metrics| now.since(&started).moved() == now.since(&started).misrouted();
        let after_first = node.metrics_until("misrouted connections have moved", is_settled);
        for round in 1..=5 {
            lab.on_client(|| half.ask_all(round, &owners));
        }
        let later = node.metrics().since(&after_first);
        assert_eq!((later.steered(), later.misrouted()), (5 * 40, 0), "{mode}");
        if mode == "tc" {
            // This hook cannot move a segment, but it knows the flow.
            let known = later.verdict(Verdict::Unmoved) + later.verdict(Verdict::TcpFlowLocal);
            assert!(known >= 5 * 40 && later.verdict(Verdict::TcpUnknown) == 0, "{:?}", later.verdicts());
        }
    }
}

/// A connection from this port, whose end will be a reset: the port is free at once.
fn connect_from(port: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    let mut local = PLAIN_V4.local();
    local.set_port(port);
    socket.bind(&local.into()).unwrap();
    socket.connect(&PLAIN_V4.address(PORT).into()).unwrap();
    socket.into()
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn a_new_connection_on_an_old_port_is_steered_by_its_own_session() {
    let lab = Lab::new();
    let node = lab.start("xdp");
    let owners = node.owners();
    let before = node.metrics();
    for session in random_sessions(2, 8) {
        let stream = lab.on_client(|| connect_from(40_001));
        let mut http = Http::over(stream);
        for round in 0..5_u8 {
            assert_eq!(http.echo(session.as_str(), &[round; 100]), owners(&session));
        }
    }
    let counted = node.metrics().since(&before);
    assert_eq!(counted.verdict(Verdict::TcpFlowLearned), 8, "{:?}", counted.verdicts());
    assert_eq!(counted.steered() + counted.misrouted(), 40);
    assert!(counted.misrouted() <= 8, "at most the first request of a connection: {}", counted.misrouted());
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn connections_that_end_do_not_take_new_ones_with_them() {
    let lab = Lab::new();
    let _node = lab.start("xdp");
    let ask = |session: &SessionId| {
        let request = format!("GET /f/echo HTTP/1.0\r\nx-session-id: {session}\r\n\r\n");
        let reply = raw_exchange(PLAIN_V4.address(PORT), &[request.as_bytes()]).unwrap();
        assert!(reply.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&reply));
    };
    std::thread::scope(|scope| {
        // Several at once: the server closes one connection while it accepts the next.
        for client in 0..4 {
            let lab = &lab;
            scope.spawn(move || lab.on_client(|| random_sessions(client, 8).iter().cycle().take(1_000).for_each(ask)));
        }
    });
}
