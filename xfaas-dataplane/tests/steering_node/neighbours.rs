//! The host, its interface and our port number are used by others as well: what is theirs comes to them as it was sent. And clients may hand
//! over many datagrams at once.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;

use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::SessionId;
use xfaas_common::map_layout::Verdict;
use xfaas_dataplane::net::decode_datagram_answer;
use xfaas_dataplane::sys::{Peer, Ring, RingOptions, Tag};

use crate::lab::{Client, Datagram, Frame, Lab, Node, PATIENCE, PLAIN, PLAIN_V4, PORT, Route, SERVER_DEVICE, Wire, run};

/// Further addresses of the server's device.
const SECOND: [&str; 2] = ["10.77.0.9", "fd77::9"];

fn echo(session: &str, request_id: u64) -> Datagram {
    Datagram::new("echo", SessionId::new(session.as_bytes()).unwrap(), request_id, "hello")
}

/// Sends all requests as one packet, which whoever takes it has to cut.
fn send_as_one(client: &UdpSocket, address: SocketAddr, requests: &[Vec<u8>]) {
    let mut ring =
        Ring::new(&RingOptions { submission_entries: 8, completion_entries: 16, files: 1, groups: Vec::new(), polls: false }).unwrap();
    let (each, peer) = (requests[0].len(), Peer { address, local: None });
    ring.send_datagrams(Tag(0), client.as_fd(), requests.concat(), each, peer);
    ring.wait(1, Some(PATIENCE)).unwrap();
    assert_eq!(ring.next_completion().unwrap().result, (each * requests.len()) as i32);
}

/// Sixteen requests of as many sessions come in one packet, and then with a malformed one at their head and one between them.
fn segments_are_answered_one_by_one(lab: &Lab, node: &Node<'_>, route: &Route) {
    let before = node.metrics();
    let client = lab.on_client(|| UdpSocket::bind(route.local()).unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let requests: Vec<Vec<u8>> = (0..16).map(|id| echo(&format!("segment-{id:02}"), id).bytes()).collect();
    let mut some = requests.clone();
    (some[0][0], some[7][0]) = (b'Y', b'Y');
    for (sent, answered) in [(requests, 16), (some, 14)] {
        lab.on_client(|| send_as_one(&client, route.address(PORT), &sent));
        let mut answers = BTreeSet::new();
        let mut bytes = [0; 2_048];
        while answers.len() < answered {
            let length = client.recv(&mut bytes).unwrap_or_else(|error| panic!("{} of {answered} answers: {error}", answers.len()));
            answers.insert(decode_datagram_answer(&bytes[..length]).unwrap().head.request_id);
        }
    }
    let counted = node.metrics_until("all are counted", |now| now.since(&before).dropped_in_all() == 2).since(&before);
    assert_eq!(counted.dropped_in_user_space(DropReason::BadMagic), 2);
    assert_eq!(counted.verdict(Verdict::Merged), 2, "over {}: {:?}", route.name, counted.verdicts());
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn requests_that_come_as_one_packet_are_answered_each() {
    let lab = Lab::new();
    // Whose device cuts, the kernel leaves them as one; and with such an MTU XDP runs in the stack only.
    run(lab.client_command("ethtool").args(["-K", "xc", "tx", "on"]));
    run(lab.client_command("ip").args(["link", "set", "xc", "mtu", "9000"]));
    run(lab.server_command("ip").args(["link", "set", SERVER_DEVICE, "mtu", "9000"]));
    for (mode, active) in [("tc", "tc on xs"), ("xdp", "xdp (generic) on xs")] {
        let node = lab.start(mode);
        assert!(node.log().contains(active), "{}", node.log());
        for route in &PLAIN {
            segments_are_answered_one_by_one(&lab, &node, route);
        }
    }
}

/// A server of somebody else, and what a client sends it: bytes that break our rules, and a request that would be for us elsewhere.
fn others_get_all(lab: &Lab, client: &UdpSocket, server: &UdpSocket, address: SocketAddr) {
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    for payload in [b"no request of ours".to_vec(), echo("looks-like-ours", 1).bytes()] {
        lab.on_client(|| client.send_to(&payload, address).unwrap());
        let mut bytes = [0; 2_048];
        let length = server.recv(&mut bytes).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert_eq!(bytes[..length], payload, "{address}");
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn our_port_at_another_address_is_somebody_elses() {
    let lab = Lab::new();
    for address in SECOND {
        lab.add_server_address(address);
    }
    // Where we listen, our route, and where somebody else does.
    let [v4, v6] = PLAIN;
    let cases = [
        ("10.77.0.1:8080", v4, SECOND[0]),
        ("[fd77::1]:8080", v6, SECOND[1]),
        ("10.77.0.1:8080", v4, v6.server),
        ("0.0.0.0:8080", v4, v6.server),
    ];
    for mode in ["tc", "xdp"] {
        for (listen, route, other) in cases {
            let node = lab.start_flagged(mode, &["--http", listen]);
            let before = node.metrics();
            let address = SocketAddr::new(other.parse().unwrap(), PORT);
            let server = lab.on_server(|| UdpSocket::bind(address).unwrap());
            let local = if other.contains(':') { v6.local() } else { v4.local() };
            let client = lab.on_client(|| UdpSocket::bind(local).unwrap());
            others_get_all(&lab, &client, &server, address);
            let counted = node.metrics().since(&before);
            assert_eq!(
                (counted.dropped_in_all(), counted.packets() - counted.verdict(Verdict::Foreign)),
                (0, 0),
                "{:?}",
                counted.verdicts()
            );
            let request = echo("ours", 2);
            request.assert_echoed(&Client::connect(&lab, &route).ask(&request));
        }
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn what_is_passed_on_to_another_host_arrives() {
    let lab = Lab::new();
    // The client's end stands for two hosts: one that sends by way of the server, and one to which that passes it on.
    run(lab.server_command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    run(lab.server_command("ip").args(["route", "add", "10.78.0.0/24", "via", PLAIN_V4.client]));
    run(lab.client_command("ip").args(["addr", "add", "10.78.0.5/32", "dev", "lo"]));
    let receiver = lab.on_client(|| UdpSocket::bind(("10.78.0.5", PORT)).unwrap());
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let wire = Wire::of_client(&lab);
    for mode in ["tc", "xdp"] {
        let node = lab.start(mode);
        let before = node.metrics();
        for payload in [b"no request of ours".to_vec(), echo("looks-like-ours", 1).bytes()] {
            let frame = Frame::udp(&PLAIN_V4, 40_000, &payload).with_network(12, &[10, 77, 0, 3, 10, 78, 0, 5]);
            wire.send(&frame.with_transport(6, &[0, 0]).bytes); // without a checksum, which would be of other addresses
            let mut bytes = [0; 2_048];
            let length = receiver.recv(&mut bytes).unwrap_or_else(|error| panic!("{mode}: {error}"));
            assert_eq!(bytes[..length], payload, "{mode}");
        }
        let counted = node.metrics().since(&before);
        assert_eq!(counted.dropped_in_all(), 0, "{mode}: {:?}", counted.verdicts());
    }
}

/// What `xfaas doctor` says of the interface, and its exit code.
fn doctor(lab: &Lab, state: &Path, mode: &str, iface: &str) -> (Option<i32>, String) {
    let mut command = lab.server_command(env!("CARGO_BIN_EXE_xfaas"));
    command.args(["doctor", "--http", "127.0.0.1:8090", "--admin", "127.0.0.1:9170", "--state-dir"]).arg(state);
    let output = command.args(["--steering", mode, "--iface", iface]).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn doctor_fails_where_the_interface_stands_in_the_way() {
    let lab = Lab::new();
    let state = tempfile::tempdir().unwrap();
    let asked = |mode, iface| doctor(&lab, &state.path().join("state"), mode, iface);
    for (mode, code) in [("auto", 1), ("xdp", 1), ("tc", 1), ("reuseport", 0), ("off", 0)] {
        let (found, text) = asked(mode, "nowhere0");
        assert_eq!(found, Some(code), "{mode}: {text}");
    }
    assert_eq!(asked("xdp", SERVER_DEVICE).0, Some(0));
    let node = lab.start("xdp");
    for (mode, code) in [("auto", 1), ("xdp", 1), ("tc", 0), ("reuseport", 0)] {
        let (found, text) = asked(mode, SERVER_DEVICE);
        assert_eq!(found, Some(code), "{mode}: {text}");
        assert_eq!(text.contains("bpftool net"), code == 1, "{mode}: {text}");
    }
    drop(node);
    assert_eq!(asked("auto", SERVER_DEVICE).0, Some(0));
}
