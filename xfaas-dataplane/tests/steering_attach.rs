//! Steering on real interfaces and sockets: two network namespaces with a veth pair, made and removed by each test.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod steering_lab;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};
use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::SessionId;
use xfaas_common::map_layout::Verdict;
use xfaas_dataplane::steering::{
    ActiveMode, SteerBench, SteerBenchOptions, Steering, SteeringError, SteeringMode, SteeringOptions, is_xdp_taken,
};
use xfaas_ebpf::frames::{Envelope, TAG_8021AD, TAG_8021Q, request};

use crate::steering_lab::{PORT, any_address, hash_keys, object, owner, slot_to_core, wait_until_local};
use xfaas_dataplane::sys::socket::uninterrupted;

/// How long a test waits for what must happen before it fails.
const PATIENCE: Duration = Duration::from_secs(10);
const DATAGRAMS: usize = 400;
/// The server's end, as `xfaas_ebpf::frames` has it.
const SERVER: [&str; 2] = ["10.0.0.1", "fd00::1"];
const DEVICE: &str = "xs";
/// In the environment of a child of this test binary: the namespace in which it is to hold steering.
const HOLD: &str = "XFAAS_TEST_HOLD_NAMESPACE";

/// A server's and a client's namespace with a veth pair, offloads off: a redirected packet keeps no promise of a checksum.
struct Net {
    server: String,
    client: String,
}

impl Net {
    fn new() -> Net {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |end: &str| format!("xfst-{}-{number}{end}", std::process::id());
        let net = Net { server: name("s"), client: name("c") };
        run(&format!("ip netns add {}", net.server));
        run(&format!("ip netns add {}", net.client));
        run(&format!("ip link add {DEVICE} netns {} type veth peer name xc netns {}", net.server, net.client));
        for (namespace, device, end) in [(&net.server, DEVICE, 1), (&net.client, "xc", 2)] {
            run(&format!("ip -n {namespace} link set lo up"));
            run(&format!("ip netns exec {namespace} ethtool -K {device} tx off txvlan off"));
            run(&format!("ip -n {namespace} link set {device} address 02:00:00:00:00:0{end} up"));
            run(&format!("ip -n {namespace} addr add 10.0.0.{end}/24 dev {device}"));
            run(&format!("ip -n {namespace} addr add fd00::{end}/64 dev {device} nodad"));
            wait_until_local(&["-n", namespace], &format!("fd00::{end}"));
        }
        net
    }

    /// Runs `work` on a thread in the server's namespace.
    fn on_server<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.server, work)
    }

    fn on_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.client, work)
    }

    /// The index of the server's device.
    fn index(&self) -> u32 {
        self.device().split(':').next().unwrap().parse().unwrap()
    }

    /// What `ip` says of the server's device.
    fn device(&self) -> String {
        let output = Command::new("ip").args(["-n", &self.server, "-d", "link", "show", DEVICE]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.client] {
            // A namespace that was never made is none to remove.
            drop(Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status());
        }
    }
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Two shards' sockets and the steering that serves them.
struct Server {
    udp: Vec<UdpSocket>,
    tcp: Vec<Socket>,
    steering: Steering,
}

impl Server {
    /// Call it in the server's namespace.
    fn start(mode: SteeringMode, iface: Option<&str>) -> Result<Server, SteeringError> {
        Server::start_at(any_address(), mode, iface)
    }

    fn start_at(address: SocketAddr, mode: SteeringMode, iface: Option<&str>) -> Result<Server, SteeringError> {
        let udp: Vec<UdpSocket> = (0..2).map(|_| socket(Type::DGRAM, address).into()).collect();
        let tcp: Vec<Socket> = (0..2).map(|_| socket(Type::STREAM, address)).collect();
        for socket in &tcp {
            socket.listen(128).unwrap();
        }
        for socket in &udp {
            socket.set_nonblocking(true).unwrap();
        }
        let steering = Steering::start(SteeringOptions {
            mode,
            iface,
            udp: address,
            tcp: address,
            cpus: &[0, 1],
            slot_to_core: &slot_to_core(),
            keys: &hash_keys(),
            session_header: b"x-session-id",
            udp_sockets: udp.iter().map(AsFd::as_fd).collect(),
            tcp_sockets: tcp.iter().map(AsFd::as_fd).collect(),
            ebpf_object: &object(),
        })?;
        Ok(Server { udp, tcp, steering })
    }

    fn verdict(&self, verdict: Verdict) -> u64 {
        self.steering.counters().unwrap().verdict(verdict)
    }

    /// Takes datagrams until `count` were there. Output: how many came to another socket than their session's owner's.
    fn take(&self, count: usize) -> usize {
        let deadline = Instant::now() + PATIENCE;
        let (mut taken, mut misplaced) = (0, 0);
        let mut bytes = [0; 65_536];
        while taken < count {
            assert!(Instant::now() < deadline, "{taken} of {count} datagrams came; {:?}", self.steering.counters().unwrap().verdicts());
            for (core, socket) in self.udp.iter().enumerate() {
                while let Ok((length, _)) = socket.recv_from(&mut bytes) {
                    let session = SessionId::new(&bytes[32..32 + usize::from(bytes[6])]).unwrap();
                    assert!(length >= 33);
                    misplaced += usize::from(usize::from(owner(&session)) != core);
                    taken += 1;
                }
            }
        }
        misplaced
    }

    /// Answers one request on whichever listener it comes to, byte for byte until `count` came.
    fn echo(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        for socket in &self.tcp {
            socket.set_nonblocking(true).unwrap();
        }
        let mut connection: TcpStream = loop {
            assert!(Instant::now() < deadline, "no connection came");
            if let Some((socket, _)) = self.tcp.iter().find_map(|socket| socket.accept().ok()) {
                break socket.into();
            }
        };
        connection.set_nonblocking(false).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = vec![0; 4_096];
        let mut echoed = 0;
        while echoed < count {
            let length = uninterrupted(|| connection.read(&mut bytes)).unwrap();
            assert!(length > 0);
            connection.write_all(&bytes[..length]).unwrap();
            echoed += length;
        }
    }
}

fn socket(kind: Type, address: SocketAddr) -> Socket {
    let protocol = if kind == Type::DGRAM { Protocol::UDP } else { Protocol::TCP };
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol)).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

fn sessions() -> impl Iterator<Item = SessionId> {
    (0..DATAGRAMS).map(|i| SessionId::new(format!("session-{}-{i}", "x".repeat(i % 40)).as_bytes()).unwrap())
}

/// Sends well-formed datagrams, a few at a time, so that no queue overflows; `taken` takes each batch.
fn send_all(net: &Net, address: &str, mut taken: impl FnMut(usize)) {
    let local = if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    let client = net.on_client(|| UdpSocket::bind(local).unwrap());
    let sessions: Vec<SessionId> = sessions().collect();
    for batch in sessions.chunks(50) {
        for session in batch {
            client.send_to(&request(session, b"payload"), (address, PORT)).unwrap();
        }
        taken(batch.len());
    }
}

/// All datagrams reach the socket of their session's owner, over every address.
fn datagrams_reach_their_owner(net: &Net, server: &Server) {
    for address in SERVER {
        send_all(net, address, |count| assert_eq!(server.take(count), 0, "misplaced over {address}"));
    }
}

/// One connection of one session: its first segment teaches the programs, the rest follows.
fn connection_is_echoed(net: &Net, server: &Server) {
    let head = b"GET /f/echo HTTP/1.1\r\nhost: a\r\nX-Session-ID: one\r\n\r\n";
    let rounds = 20;
    std::thread::scope(|scope| {
        scope.spawn(|| server.echo(rounds * head.len()));
        net.on_client(|| {
            let mut stream = TcpStream::connect((SERVER[0], PORT)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            for _ in 0..rounds {
                stream.write_all(head).unwrap();
                let mut answer = [0; 52];
                assert_eq!(head.len(), answer.len());
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, head);
            }
        });
    });
}

/// Malformed datagrams come to no socket; they are counted.
fn malformed_is_dropped(net: &Net, server: &Server) {
    let session = SessionId::new(b"good").unwrap();
    let before = server.steering.counters().unwrap();
    let client = net.on_client(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    for _ in 0..10 {
        client.send_to(b"short", (SERVER[0], PORT)).unwrap();
        client.send_to(&[0; 40], (SERVER[0], PORT)).unwrap();
    }
    // The good one comes behind them: then the others have been judged.
    client.send_to(&request(&session, b""), (SERVER[0], PORT)).unwrap();
    assert_eq!(server.take(1), 0);
    let after = server.steering.counters().unwrap();
    let dropped = |reason| after.dropped(reason) - before.dropped(reason);
    assert_eq!((dropped(DropReason::Truncated), dropped(DropReason::BadMagic)), (10, 10));
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn native_xdp_moves_packets_to_their_core() {
    let net = Net::new();
    let server = net.on_server(|| Server::start(SteeringMode::Auto, Some(DEVICE)).unwrap());
    assert_eq!(server.steering.explain(), format!("xdp (native) on {DEVICE}"));
    datagrams_reach_their_owner(&net, &server);
    let all = (SERVER.len() * DATAGRAMS) as u64;
    assert_eq!(server.verdict(Verdict::UdpLocal) + server.verdict(Verdict::UdpRedirected), all);
    assert_eq!(server.verdict(Verdict::ReuseportUdp), all);
    assert!(server.verdict(Verdict::UdpRedirected) > 0);
    malformed_is_dropped(&net, &server);
    connection_is_echoed(&net, &server);
    assert_eq!(server.verdict(Verdict::TcpFlowLearned), 1);
    assert!(server.verdict(Verdict::TcpFlowLocal) + server.verdict(Verdict::TcpFlowRedirected) >= 20);
    drop(server);
    assert!(!net.device().contains("xdp"), "{}", net.device());
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn generic_xdp_serves_a_device_without_a_native_one() {
    let net = Net::new();
    let server = net.on_server(|| Server::start(SteeringMode::Auto, Some("lo")).unwrap());
    assert!(matches!(server.steering.mode(), ActiveMode::Xdp { is_native: false, .. }), "{}", server.steering.explain());
    assert!(server.steering.explain().starts_with("xdp (generic) on lo; native mode: "), "{}", server.steering.explain());
    let local = Net { server: net.server.clone(), client: net.server.clone() };
    for address in ["127.0.0.1", "::1"] {
        send_all(&local, address, |count| assert_eq!(server.take(count), 0));
    }
    assert_eq!(server.verdict(Verdict::ReuseportUdp), 2 * DATAGRAMS as u64);
    std::mem::forget(local);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn tc_passes_datagrams_to_the_owners_socket() {
    let net = Net::new();
    let server = net.on_server(|| Server::start(SteeringMode::Tc, Some(DEVICE)).unwrap());
    assert_eq!(server.steering.mode(), ActiveMode::Tc { iface: DEVICE.to_owned() });
    datagrams_reach_their_owner(&net, &server);
    let all = (SERVER.len() * DATAGRAMS) as u64;
    let seen = server.verdict(Verdict::UdpLocal) + server.verdict(Verdict::Unmoved);
    assert_eq!((seen, server.verdict(Verdict::ReuseportUdp)), (all, all), "{:?}", server.steering.counters().unwrap().verdicts());
    malformed_is_dropped(&net, &server);
    connection_is_echoed(&net, &server);
    assert_eq!(server.verdict(Verdict::TcpFlowLearned), 1);
}

/// Whoever stands behind ours at the hook sees all that ours does not drop.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn tc_programs_of_others_go_on_working() {
    let net = Net::new();
    let other_port = PORT + 1;
    let other = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, other_port));
    let [first, second] =
        net.on_server(|| [any_address(), other].map(|address| Server::start_at(address, SteeringMode::Tc, Some(DEVICE)).unwrap()));
    assert_eq!(tc_programs(&net), ["xfaas_tc", "xfaas_tc"]);
    let client = net.on_client(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    for _ in 0..10 {
        client.send_to(b"short", (SERVER[0], other_port)).unwrap();
    }
    client.send_to(&request(&sessions().next().unwrap(), b""), (SERVER[0], other_port)).unwrap();
    second.take(1);
    assert_eq!(second.steering.counters().unwrap().dropped(DropReason::Truncated), 10);
    // What the first one takes for its own comes to the second, too.
    datagrams_reach_their_owner(&net, &first);
    assert!(second.verdict(Verdict::Foreign) >= (SERVER.len() * DATAGRAMS) as u64);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn reuseport_chooses_the_owners_socket() {
    let net = Net::new();
    let server = net.on_server(|| Server::start(SteeringMode::Auto, None).unwrap());
    assert_eq!(server.steering.mode(), ActiveMode::Reuseport);
    datagrams_reach_their_owner(&net, &server);
    assert_eq!(server.verdict(Verdict::ReuseportUdp), (SERVER.len() * DATAGRAMS) as u64);
    connection_is_echoed(&net, &server);
    assert_eq!(server.verdict(Verdict::ReuseportTcp), 1);
    // User space judges what the kernel passed: a datagram without a session goes where the kernel's own choice is.
    let client = net.on_client(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    client.send_to(&[7; 40], (SERVER[0], PORT)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = [0; 64];
    while !server.udp.iter().any(|socket| socket.recv(&mut bytes).is_ok_and(|length| length == 40)) {
        assert!(Instant::now() < deadline, "the datagram is lost");
    }
    assert_eq!(server.verdict(Verdict::ReuseportFallback), 1);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn fragments_and_long_datagrams_reach_their_owner_all_the_same() {
    let net = Net::new();
    let server = net.on_server(|| Server::start(SteeringMode::Xdp, Some(DEVICE)).unwrap());
    let client = net.on_client(|| UdpSocket::bind("[::]:0").unwrap());
    for (address, session) in SERVER.iter().flat_map(|address| sessions().take(20).map(move |session| (address, session))) {
        let address: SocketAddr = match *address {
            v4 if !v4.contains(':') => format!("[::ffff:{v4}]:{PORT}").parse().unwrap(),
            v6 => format!("[{v6}]:{PORT}").parse().unwrap(),
        };
        client.send_to(&request(&session, &[b'p'; 9_000]), address).unwrap();
        assert_eq!(server.take(1), 0);
    }
    assert!(server.verdict(Verdict::Fragment) >= 40 * 6);
    assert_eq!(server.verdict(Verdict::ReuseportUdp), 40, "{:?}", server.steering.counters().unwrap().verdicts());
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn tagged_frames_reach_the_stack_from_either_cpu() {
    let net = Net::new();
    net.on_server(|| {
        let server = Server::start(SteeringMode::Reuseport, None).unwrap();
        let interface = net.index();
        let mut bench = SteerBench::load(
            &object(),
            &SteerBenchOptions {
                udp: any_address(),
                tcp: any_address(),
                cpus: &[0, 1],
                slot_to_core: &slot_to_core(),
                keys: &hash_keys(),
                session_header: b"x-session-id",
            },
        )
        .unwrap();
        let plain = Envelope::to_port(PORT);
        for envelope in [plain.clone(), plain.clone().v6()] {
            for envelope in [envelope.clone(), envelope.clone().tagged(TAG_8021Q), envelope.tagged(TAG_8021AD).tagged(TAG_8021Q)] {
                for session in sessions().take(40) {
                    bench.deliver(&envelope.udp(&request(&session, b"payload")), interface).unwrap();
                    assert_eq!(server.take(1), 0, "{envelope:?}");
                }
            }
        }
        let counters = bench.counters().unwrap();
        let (here, moved) = (counters.verdict(Verdict::UdpLocal), counters.verdict(Verdict::UdpRedirected));
        assert!(here + moved == 240 && here > 0 && moved > 0, "{here} and {moved}");
    });
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn interface_with_a_program_or_without_existence_is_an_error() {
    let net = Net::new();
    net.on_server(|| {
        let first = Server::start(SteeringMode::Auto, Some(DEVICE)).unwrap();
        for mode in [SteeringMode::Auto, SteeringMode::Xdp] {
            let second = Server::start(mode, Some(DEVICE));
            assert!(matches!(&second, Err(SteeringError::InterfaceTaken { iface }) if iface == DEVICE), "{:?}", second.err());
        }
        assert!(is_xdp_taken(DEVICE).unwrap() && !is_xdp_taken("lo").unwrap());
        // The first is untouched.
        assert_eq!(first.steering.mode().to_string(), format!("xdp (native) on {DEVICE}"));
        drop(first);
        for mode in [SteeringMode::Auto, SteeringMode::Xdp, SteeringMode::Tc] {
            let error = Server::start(mode, Some("nowhere0")).err();
            assert!(matches!(&error, Some(SteeringError::UnknownInterface { iface }) if iface == "nowhere0"), "{error:?}");
        }
        assert!(matches!(Server::start(SteeringMode::Xdp, None).err(), Some(SteeringError::NoInterface { mode: "xdp" })));
        // And what was dropped left nothing in the way.
        assert!(Server::start(SteeringMode::Xdp, Some(DEVICE)).is_ok());
    });
    assert!(!net.device().contains("xdp"), "{}", net.device());
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn programs_vanish_with_a_killed_process() {
    let net = Net::new();
    for mode in ["xdp", "tc"] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child_that_holds_steering", "--nocapture"])
            .env(HOLD, format!("{mode} {}", net.server))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("holding") {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut output, &mut line).unwrap() > 0, "the child ended early");
        }
        let is_attached = || match mode {
            "xdp" => net.device().contains("xdp"),
            _ => tc_programs(&net).contains(&"xfaas_tc".to_owned()),
        };
        assert!(is_attached(), "{mode}");
        child.kill().unwrap();
        child.wait().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while is_attached() {
            assert!(Instant::now() < deadline, "{mode} outlived its process");
        }
    }
}

/// The names of the TC programs on the server's device.
fn tc_programs(net: &Net) -> Vec<String> {
    net.on_server(|| {
        let (_, programs) = SchedClassifier::query_tcx(DEVICE, TcAttachType::Ingress).unwrap();
        programs.iter().map(|program| program.name_as_str().unwrap().to_owned()).collect()
    })
}

/// The other half of the test above, in a process of its own; by itself it has nothing to do.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn child_that_holds_steering() {
    let Ok(order) = std::env::var(HOLD) else { return };
    let (mode, namespace) = order.split_once(' ').unwrap();
    let mode = if mode == "xdp" { SteeringMode::Xdp } else { SteeringMode::Tc };
    within(namespace, || {
        let server = Server::start(mode, Some(DEVICE)).unwrap();
        println!("\nholding {}", server.steering.mode());
        // Killed by now, unless the parent died: then not for ever.
        std::thread::sleep(6 * PATIENCE);
    });
}
