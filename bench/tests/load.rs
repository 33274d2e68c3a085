//! The load generator against real sockets on loopback: what it counts, and how it fails.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;
use xfaas_bench::limit::{counter_reply, serve};
use xfaas_bench::load::{
    BodyRule, DatagramLoad, Expect, HttpLoad, Interrupt, LoadError, LoadPlan, LoadReport, fetch, run_datagrams, run_http,
};
use xfaas_common::ids::SessionId;
use xfaas_common::wire::{Header, KIND_REPLY};

fn plan(interrupt: &Interrupt, requests_max: u64) -> LoadPlan<'_> {
    LoadPlan { warm_up: Duration::ZERO, measured: Duration::from_secs(10), requests_max, interrupt }
}

/// The bare echo on a thread that ends with the process.
fn start_echo() -> SocketAddr {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = probe.local_addr().expect("a bound socket has an address");
    drop(probe);
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let session = SessionId::new(b"session-000000-a").expect("16 visible bytes");
        serve(address, counter_reply(&session, 41), || ready.send(()).expect("the test waits"))
    });
    is_ready.recv_timeout(Duration::from_secs(10)).expect("the echo listens");
    address
}

fn load_http(target: SocketAddr, body: BodyRule, connections: usize, requests_max: u64) -> Result<LoadReport, LoadError> {
    let sessions: Vec<(Vec<u8>, Vec<u8>)> =
        (0..5).map(|i| (format!("s{i}").into_bytes(), format!("GET /{i} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes())).collect();
    let interrupt = Interrupt::default();
    let expect = Expect { body, names_session: false };
    run_http(&HttpLoad { target, sessions: &sessions, connections, expect }, &plan(&interrupt, requests_max))
}

#[test]
fn every_request_to_the_echo_is_answered_and_counted() {
    let report = load_http(start_echo(), BodyRule::Number, 8, 5_000).unwrap();
    assert_eq!((report.acknowledged_sum(), report.wrong, report.lost), (5_000, 0, 0));
    assert_eq!(report.latency_ns.len(), 5_000);
    assert!(report.acknowledged.iter().all(|count| *count > 800), "{:?}", report.acknowledged);
    assert!(report.summary().requests_per_second > 0.0);
}

#[test]
fn replies_that_break_the_rule_are_counted_as_wrong() {
    let report = load_http(start_echo(), BodyRule::Equals(b"42".to_vec()), 2, 100).unwrap();
    assert_eq!((report.acknowledged_sum(), report.wrong), (0, 100));
    assert!(report.first_wrong.unwrap().contains("HTTP/1.1 200 OK"));
}

#[test]
fn the_echo_answers_pipelined_and_split_heads_and_takes_new_connections_after_old_ones() {
    let address = start_echo();
    for _ in 0..3 {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let one = fetch(address, b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!((one.status, one.body.as_slice()), (200, b"41".as_slice()));
        for piece in [&b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r"[..], b"\nGET /c HTTP/1.1\r", b"\n\r\n"] {
            stream.write_all(piece).unwrap();
            std::thread::yield_now();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert_eq!(received.windows(15).filter(|window| window == b"HTTP/1.1 200 OK").count(), 3);
    }
}

#[test]
fn a_server_that_closes_ends_the_run_with_an_error() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut request = [0; 256];
            stream.and_then(|mut stream| stream.read(&mut request)).ok();
        }
    });
    assert!(matches!(load_http(target, BodyRule::Anything, 1, 10), Err(LoadError::Closed { replies: 0, .. })));
}

#[test]
fn an_address_where_nobody_listens_is_an_error() {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = probe.local_addr().unwrap();
    drop(probe);
    assert!(matches!(load_http(target, BodyRule::Anything, 1, 10), Err(LoadError::Connect { .. })));
}

/// Answers invocations with `7`, but for those whose number of arrival `is_dropped` names.
fn start_datagrams(is_dropped: fn(usize) -> bool) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = socket.local_addr().expect("a bound socket has an address");
    std::thread::spawn(move || {
        let mut buffer = [0; 2_048];
        for arrival in 0.. {
            let (bytes, peer) = socket.recv_from(&mut buffer).expect("a datagram");
            let mut header = Header::read(&buffer[..bytes]).expect("a whole header");
            header.kind = KIND_REPLY;
            header.payload_len = 1_u32.to_be_bytes();
            let mut answer = header.to_bytes().to_vec();
            answer.extend_from_slice(&buffer[32..32 + usize::from(header.session_len)]);
            answer.push(b'7');
            if !is_dropped(arrival) {
                socket.send_to(&answer, peer).expect("room for an answer");
            }
        }
    });
    address
}

fn load_datagrams(target: SocketAddr, requests_max: u64) -> LoadReport {
    let sessions: Vec<SessionId> = (0..3).map(|i| SessionId::new(format!("s-{i}").as_bytes()).expect("visible ASCII")).collect();
    let interrupt = Interrupt::default();
    let load = DatagramLoad { target, function: "counter", sessions: &sessions, payload: b"", in_flight: 8, body: BodyRule::Number };
    run_datagrams(&load, &plan(&interrupt, requests_max)).expect("the server answers")
}

#[test]
fn datagrams_are_answered_and_counted() {
    let report = load_datagrams(start_datagrams(|_| false), 1_000);
    assert_eq!((report.acknowledged_sum(), report.wrong, report.lost), (1_000, 0, 0));
}

#[test]
fn lost_datagrams_are_given_up_and_counted() {
    let report = load_datagrams(start_datagrams(|arrival| arrival == 3 || arrival == 20), 100);
    assert_eq!((report.acknowledged_sum(), report.wrong, report.lost), (98, 0, 2));
}

#[test]
fn an_interrupted_run_ends() {
    let interrupt = Interrupt::default();
    interrupt.set();
    let sessions = [(b"s".to_vec(), b"GET / HTTP/1.1\r\n\r\n".to_vec())];
    let expect = Expect { body: BodyRule::Anything, names_session: false };
    let load = HttpLoad { target: start_echo(), sessions: &sessions, connections: 1, expect };
    assert!(matches!(run_http(&load, &plan(&interrupt, u64::MAX)), Err(LoadError::Interrupted)));
}
