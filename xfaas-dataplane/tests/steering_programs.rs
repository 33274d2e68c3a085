//! The kernel programs, run by the kernel on frames of ours without being attached: what they decide and what they count.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod steering_lab;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::{CoreIndex, SessionId};
use xfaas_common::map_layout::{FlowKey, INFLOW_KNOCK_NS, Verdict};
use xfaas_dataplane::steering::{Gate, SteerBench, SteerBenchOptions, SteerProgram};
use xfaas_ebpf::frames::{Envelope, TAG_8021AD, TAG_8021Q, TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN, http_head, request, turned_back};
use xfaas_ebpf::parse::Place;

use crate::steering_lab::{PORT, any_address, hash_keys, object, owner, slot, slot_to_core, wait_until_local};

/// include/uapi/linux/bpf.h, `enum xdp_action`.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
/// include/uapi/linux/pkt_cls.h.
const TC_ACT_UNSPEC: u32 = -1_i32 as u32;
const TC_ACT_SHOT: u32 = 2;
/// The CPU on which the tests run, and the core it stands for.
const HERE: u16 = 0;
const ELSEWHERE: u16 = 1;

/// Two cores, on CPUs 0 and 1; this thread runs on CPU 0 from now on.
struct Lab {
    bench: SteerBench,
}

impl Lab {
    fn new() -> Lab {
        Lab::with_header(b"x-session-id")
    }

    fn with_header(session_header: &[u8]) -> Lab {
        Lab::on(any_address(), session_header)
    }

    fn on(address: SocketAddr, session_header: &[u8]) -> Lab {
        assert!(core_affinity::set_for_current(core_affinity::CoreId { id: usize::from(HERE) }), "pin to CPU {HERE}");
        let options = SteerBenchOptions {
            udp: address,
            tcp: address,
            cpus: &[HERE, ELSEWHERE],
            slot_to_core: &slot_to_core(),
            keys: &hash_keys(),
            session_header,
        };
        Lab { bench: SteerBench::load(&object(), &options).unwrap() }
    }

    fn xdp(&mut self, frame: &[u8]) -> u32 {
        self.bench.run(SteerProgram::Xdp, frame, 1).unwrap().action
    }

    fn tc(&mut self, frame: &[u8]) -> u32 {
        self.bench.run(SteerProgram::Tc, frame, 1).unwrap().action
    }

    fn verdict(&self, verdict: Verdict) -> u64 {
        self.bench.counters().unwrap().verdict(verdict)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.bench.counters().unwrap().dropped(reason)
    }

    /// Runs XDP on a frame and asserts that it passes, counted as `verdict` and as nothing else.
    fn passes_as(&mut self, verdict: Verdict, frame: &[u8]) {
        let before = self.bench.counters().unwrap();
        assert_eq!(self.xdp(frame), XDP_PASS, "{verdict:?}");
        let after = self.bench.counters().unwrap();
        for other in Verdict::ALL {
            let counted = u64::from(other == verdict);
            assert_eq!(after.verdict(other) - before.verdict(other), counted, "{other:?} for {verdict:?}");
        }
        assert_eq!(before.drops(), after.drops());
    }
}

/// A session whose owner is `core`, its ID `length` bytes long.
fn session_of(core: u16, length: usize) -> SessionId {
    let mut ids = (0..).map(|i| SessionId::new(format!("{i:x>length$}").as_bytes()).unwrap());
    ids.find(|id| owner(id) == core).unwrap()
}

fn envelopes() -> Vec<Envelope> {
    let plain = Envelope::to_port(PORT);
    let options = Envelope { option_words: 10, tcp_option_words: 3, ..plain.clone() };
    vec![
        plain.clone(),
        plain.clone().tagged(TAG_8021Q),
        plain.clone().tagged(TAG_8021AD).tagged(TAG_8021Q),
        options.clone(),
        options.tagged(TAG_8021Q),
        plain.clone().v6(),
        plain.clone().v6().tagged(TAG_8021Q),
        plain.v6().tagged(TAG_8021AD).tagged(TAG_8021Q),
    ]
}

fn flow(envelope: &Envelope) -> FlowKey {
    let mut source = [0; 16];
    let mut destination = [0; 16];
    if envelope.is_v6 {
        (source[0], source[15], destination[0], destination[15]) = (0xFD, 2, 0xFD, 1);
    } else {
        source[10..].copy_from_slice(&[0xFF, 0xFF, 10, 0, 0, 2]);
        destination[10..].copy_from_slice(&[0xFF, 0xFF, 10, 0, 0, 1]);
    }
    let ports = (envelope.source_port.to_be_bytes(), envelope.destination_port.to_be_bytes());
    FlowKey { source, destination, source_port: ports.0, destination_port: ports.1 }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn kernel_verifier_accepts_the_object() {
    Lab::new();
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn datagrams_go_to_the_core_that_owns_their_slot() {
    let mut lab = Lab::new();
    let (mut here, mut elsewhere) = (0, 0);
    for envelope in envelopes() {
        for length in 1..=64 {
            let session = SessionId::new(format!("{:.>length$}", length % 7).as_bytes()).unwrap();
            let frame = envelope.udp(&request(&session, &vec![b'p'; length % 5]));
            let is_here = owner(&session) == HERE;
            assert_eq!(lab.xdp(&frame), if is_here { XDP_PASS } else { XDP_REDIRECT }, "{session} in {envelope:?}");
            if is_here { here += 1 } else { elsewhere += 1 }
        }
    }
    assert!(here > 100 && elsewhere > 100, "{here} and {elsewhere}");
    assert_eq!((lab.verdict(Verdict::UdpLocal), lab.verdict(Verdict::UdpRedirected)), (here, elsewhere));
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn malformed_datagrams_are_dropped_with_their_reason() {
    in_a_network_of_its_own(malformed_are_dropped);
}

fn malformed_are_dropped() {
    let mut lab = Lab::new();
    let session = SessionId::new(b"session-of-16-by").unwrap();
    let good = request(&session, b"payload");
    let broken = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let cases = [
        (DropReason::Truncated, good[..31].to_vec()),
        (DropReason::Truncated, Vec::new()),
        (DropReason::BadMagic, broken(0, b'Y')),
        (DropReason::BadMagic, broken(1, b'f')),
        (DropReason::BadVersion, broken(2, 2)),
        (DropReason::BadKind, broken(3, 2)),
        (DropReason::BadKind, broken(3, 16)),
        (DropReason::BadReserved, broken(4, 1)),
        (DropReason::BadReserved, broken(5, 1)),
        (DropReason::BadReserved, broken(7, 1)),
        (DropReason::BadReserved, broken(24, 1)),
        (DropReason::BadReserved, broken(31, 1)),
        (DropReason::BadSessionLength, broken(6, 0)),
        (DropReason::BadSessionLength, broken(6, 65)),
        (DropReason::BadSessionLength, broken(6, 255)),
        (DropReason::BadLength, broken(23, 8)),
        (DropReason::BadLength, broken(20, 255)),
        (DropReason::BadLength, good[..good.len() - 1].to_vec()),
        (DropReason::BadLength, [&good[..], b"x"].concat()),
        (DropReason::BadSessionByte, broken(32, b' ')),
        (DropReason::BadSessionByte, broken(40, 0x7F)),
        (DropReason::BadSessionByte, broken(47, 0x80)),
        (DropReason::BadSessionByte, broken(47, 0)),
    ];
    for envelope in envelopes() {
        for (reason, payload) in &cases {
            let frame = envelope.udp(payload);
            let before = lab.dropped(*reason);
            assert_eq!(lab.xdp(&frame), XDP_DROP, "{reason:?}");
            assert_eq!(lab.tc(&frame), TC_ACT_SHOT, "{reason:?}");
            assert_eq!(lab.dropped(*reason), before + 2, "{reason:?}");
        }
    }
    assert!(lab.bench.counters().unwrap().verdicts().iter().all(|(_, count)| *count == 0), "no verdict beside the drops");
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn malformed_datagrams_for_other_hosts_pass() {
    in_a_network_of_its_own(|| {
        let mut lab = Lab::new();
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        run("ip link set lo up");
        run("ip route add 10.0.0.0/24 dev lo");
        run("ip route add fd00::/64 dev lo");
        for envelope in envelopes() {
            let frame = envelope.udp(b"not ours");
            lab.passes_as(Verdict::Foreign, &frame);
            assert_eq!(lab.tc(&frame), TC_ACT_UNSPEC, "{envelope:?}");
        }
        run("ip addr add 10.0.0.1/32 dev lo");
        run("ip addr add fd00::1/128 dev lo nodad");
        wait_until_local(&[], "fd00::1");
        for envelope in envelopes() {
            let frame = envelope.udp(b"not ours");
            assert_eq!((lab.xdp(&frame), lab.tc(&frame)), (XDP_DROP, TC_ACT_SHOT), "{envelope:?}");
        }
    });
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn what_may_be_several_datagrams_passes_where_xdp_runs_in_the_stack() {
    in_a_network_of_its_own(|| {
        let mut lab = Lab::new();
        let one = request(&session_of(ELSEWHERE, 1), b"");
        let envelope = Envelope::to_port(PORT);
        let (short, two) = (envelope.udp(&[0; 65]), envelope.udp(&one.repeat(2)));
        assert_eq!((lab.xdp(&short), lab.xdp(&two)), (XDP_DROP, XDP_DROP), "a driver gives them one by one");
        lab.bench.set_merges(true).unwrap();
        assert_eq!(lab.xdp(&short), XDP_DROP, "no request fits beside another");
        for frame in [two, envelope.udp(&[vec![0; 33], one.clone()].concat())] {
            lab.passes_as(Verdict::Merged, &frame);
        }
        assert_eq!(lab.xdp(&envelope.udp(&one)), XDP_REDIRECT);
    });
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn foreign_traffic_passes_untouched() {
    let mut lab = Lab::new();
    let session = session_of(ELSEWHERE, 16);
    for envelope in envelopes() {
        let other = Envelope { destination_port: PORT + 1, ..envelope.clone() };
        lab.passes_as(Verdict::Foreign, &other.udp(&request(&session, b"")));
        lab.passes_as(Verdict::Foreign, &other.tcp(TCP_PSH | TCP_ACK, &http_head(0, b"x-session-id: a")));
        let mut icmp = envelope.udp(b"0123456789");
        icmp[envelope.network_offset() + if envelope.is_v6 { 6 } else { 9 }] = 1;
        lab.passes_as(Verdict::Foreign, &icmp);
    }
    let mut arp = Envelope::to_port(PORT).udp(&request(&session, b""));
    arp[12..14].copy_from_slice(&0x0806_u16.to_be_bytes());
    lab.passes_as(Verdict::Foreign, &arp);
    let three_tags = Envelope::to_port(PORT).tagged(TAG_8021AD).tagged(TAG_8021Q).tagged(TAG_8021Q);
    lab.passes_as(Verdict::Foreign, &three_tags.udp(&request(&session, b"")));
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn what_is_sent_to_another_address_of_this_host_is_foreign() {
    let session = session_of(ELSEWHERE, 16);
    for (own, is_v6) in [("10.0.0.1", false), ("fd00::1", true)] {
        for (address, is_own) in [(own, true), ("10.0.0.9", false), ("fd00::9", false)] {
            let mut lab = Lab::on((address.parse::<IpAddr>().unwrap(), PORT).into(), b"x-session-id");
            for envelope in envelopes().into_iter().filter(|envelope| envelope.is_v6 == is_v6) {
                let head = http_head(0, format!("x-session-id: {session}").as_bytes());
                for frame in [envelope.udp(&request(&session, b"")), envelope.tcp(TCP_PSH | TCP_ACK, &head)] {
                    if is_own {
                        assert_eq!(lab.xdp(&frame), XDP_REDIRECT, "{own} on {address}");
                    } else {
                        lab.passes_as(Verdict::Foreign, &frame);
                    }
                }
                if !is_own {
                    lab.passes_as(Verdict::Foreign, &envelope.udp(b"not ours"));
                }
            }
        }
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn fragments_pass_to_the_stack() {
    let mut lab = Lab::new();
    let session = session_of(ELSEWHERE, 16);
    let envelope = Envelope::to_port(PORT);
    for bits in [0x20_u8, 0x01] {
        let mut fragment = envelope.udp(&request(&session, b""));
        fragment[envelope.network_offset() + 6] = bits;
        lab.passes_as(Verdict::Fragment, &fragment);
    }
    let envelope = envelope.v6();
    let mut fragment = envelope.udp(&request(&session, b""));
    fragment[envelope.network_offset() + 6] = 44;
    fragment.splice(envelope.transport_offset()..envelope.transport_offset(), [17, 0, 0, 1, 0, 0, 0, 9]);
    lab.passes_as(Verdict::Fragment, &fragment);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn contradicting_lengths_pass_to_the_stack() {
    let mut lab = Lab::new();
    let session = session_of(ELSEWHERE, 16);
    for envelope in envelopes() {
        let good = envelope.udp(&request(&session, b"payload"));
        lab.passes_as(Verdict::Inconsistent, &good[..good.len() - 1]);
        for length in [0_u8, 7, 8, 200] {
            let mut frame = good.clone();
            frame[envelope.transport_offset() + 5] = length;
            lab.passes_as(Verdict::Inconsistent, &frame);
        }
        let mut segment = envelope.tcp(TCP_ACK, b"");
        segment[envelope.transport_offset() + 12] = 0x40;
        lab.passes_as(Verdict::Inconsistent, &segment);
        segment[envelope.transport_offset() + 12] = 0xF0;
        lab.passes_as(Verdict::Inconsistent, &segment);
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn flow_is_learned_from_its_first_segment_wherever_the_header_is() {
    let mut lab = Lab::new();
    let flows = lab.bench.flow_table().unwrap();
    let mut port = 20_000;
    for envelope in envelopes() {
        for (offset, name) in
            [(0, "x-session-id"), (70, "X-Session-Id"), (350, "X-SESSION-ID"), (508, "x-sEsSiOn-Id"), (511, "x-session-id")]
        {
            for (core, action) in [(HERE, XDP_PASS), (ELSEWHERE, XDP_REDIRECT)] {
                let session = session_of(core, 1 + offset % 64);
                port += 1;
                let envelope = envelope.clone().from_port(port);
                let head = http_head(offset, format!("{name}:{session} \t ").as_bytes());
                let learned = lab.verdict(Verdict::TcpFlowLearned);
                assert_eq!(lab.xdp(&envelope.tcp(TCP_PSH | TCP_ACK, &head)), action, "{name} at {offset} in {envelope:?}");
                assert_eq!(lab.verdict(Verdict::TcpFlowLearned), learned + 1);
                assert_eq!(flows.core(&flow(&envelope)).unwrap(), Some(CoreIndex(core)));
                let known = if core == HERE { Verdict::TcpFlowLocal } else { Verdict::TcpFlowRedirected };
                let before = lab.verdict(known);
                assert_eq!(lab.xdp(&envelope.tcp(TCP_ACK, b"")), action);
                assert_eq!(lab.verdict(known), before + 1);
            }
        }
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn segment_without_a_usable_session_header_passes() {
    let mut lab = Lab::new();
    let envelope = Envelope::to_port(PORT);
    let long = [&b"x-session-id: "[..], &[b'a'; 65]].concat();
    let lines: [&[u8]; 8] = [
        b"x-session: a",
        b"x-session-id:",
        b"x-session-id: \t ",
        b"x-session-id: a b",
        b"x-session-id: a\x80",
        b"y: x-session-id: a",
        b"host: a\r\n\r\nx-session-id: a",
        &long,
    ];
    for line in lines {
        lab.passes_as(Verdict::TcpUnknown, &envelope.tcp(TCP_PSH | TCP_ACK, &http_head(0, line)));
    }
    lab.passes_as(Verdict::TcpUnknown, &envelope.tcp(TCP_PSH | TCP_ACK, &http_head(512, b"x-session-id: a")));
    lab.passes_as(Verdict::TcpUnknown, &envelope.tcp(TCP_PSH | TCP_ACK, b"body\r\nx-session-id: a\r\n\r\n"));
    let cut = http_head(0, b"x-session-id: abc");
    lab.passes_as(Verdict::TcpUnknown, &envelope.tcp(TCP_PSH | TCP_ACK, &cut[..38]));
    lab.passes_as(Verdict::TcpUnknown, &envelope.tcp(TCP_SYN, b""));
    lab.passes_as(Verdict::TcpUnknown, &envelope.tcp(TCP_ACK, b""));
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn flow_ends_with_fin_rst_and_a_new_syn() {
    let mut lab = Lab::new();
    let flows = lab.bench.flow_table().unwrap();
    let envelope = Envelope::to_port(PORT);
    let session = session_of(ELSEWHERE, 16);
    let first = envelope.tcp(TCP_PSH | TCP_ACK, &http_head(70, format!("x-session-id: {session}").as_bytes()));
    for (flags, action) in [(TCP_FIN | TCP_ACK, XDP_REDIRECT), (TCP_RST, XDP_REDIRECT), (TCP_SYN, XDP_PASS)] {
        assert_eq!(lab.xdp(&first), XDP_REDIRECT);
        assert_eq!(flows.core(&flow(&envelope)).unwrap(), Some(CoreIndex(ELSEWHERE)));
        // The last segment still goes where the others went; a SYN begins anew.
        assert_eq!(lab.xdp(&envelope.tcp(flags, b"")), action);
        assert_eq!(flows.core(&flow(&envelope)).unwrap(), None);
    }
    let with_fin = envelope.tcp(TCP_FIN | TCP_PSH | TCP_ACK, &http_head(0, format!("x-session-id: {session}").as_bytes()));
    assert_eq!(lab.xdp(&with_fin), XDP_REDIRECT);
    assert_eq!(flows.core(&flow(&envelope)).unwrap(), None);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn user_space_moves_flows_sessions_and_slots() {
    let mut lab = Lab::new();
    let envelope = Envelope::to_port(PORT);
    let mut flows = lab.bench.flow_table().unwrap();
    flows.remember(flow(&envelope), CoreIndex(ELSEWHERE)).unwrap();
    assert_eq!(lab.xdp(&envelope.tcp(TCP_ACK, b"body")), XDP_REDIRECT);
    flows.forget(flow(&envelope)).unwrap();
    flows.forget(flow(&envelope)).unwrap();
    assert_eq!(lab.xdp(&envelope.tcp(TCP_ACK, b"body")), XDP_PASS);

    let session = session_of(HERE, 16);
    let frame = envelope.udp(&request(&session, b""));
    let mut pins = lab.bench.pins().unwrap();
    pins.pin(&session, CoreIndex(ELSEWHERE)).unwrap();
    assert_eq!(lab.xdp(&frame), XDP_REDIRECT);
    pins.unpin(&session).unwrap();
    pins.unpin(&session).unwrap();
    assert_eq!(lab.xdp(&frame), XDP_PASS);

    pins.set_slot_owner(slot(&session), CoreIndex(ELSEWHERE)).unwrap();
    assert_eq!(lab.xdp(&frame), XDP_REDIRECT);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn a_core_that_does_not_exist_is_not_steered_to() {
    let mut lab = Lab::new();
    let session = session_of(HERE, 16);
    lab.bench.pins().unwrap().set_slot_owner(slot(&session), CoreIndex(2)).unwrap();
    lab.passes_as(Verdict::RedirectFailed, &Envelope::to_port(PORT).udp(&request(&session, b"")));
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn session_header_can_have_another_name() {
    let mut lab = Lab::with_header(b"Cart");
    let session = session_of(ELSEWHERE, 5);
    let envelope = Envelope::to_port(PORT);
    lab.passes_as(Verdict::TcpUnknown, &envelope.tcp(TCP_ACK, &http_head(0, format!("x-session-id: {session}").as_bytes())));
    assert_eq!(lab.xdp(&envelope.tcp(TCP_ACK, &http_head(0, format!("cArT: {session}").as_bytes()))), XDP_REDIRECT);

    let mut lab = Lab::with_header(&[b'h'; 40]);
    lab.passes_as(Verdict::TcpUnknown, &envelope.tcp(TCP_ACK, &http_head(0, b"host: a")));
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn every_1024th_verdict_leaves_an_event_when_asked() {
    let mut lab = Lab::new();
    let session = session_of(HERE, 16);
    let frame = Envelope::to_port(PORT).udp(&request(&session, b""));
    let mut events = lab.bench.events().unwrap();
    lab.bench.run(SteerProgram::Xdp, &frame, 3_000).unwrap();
    assert_eq!(events.next_event(), None);
    lab.bench.pins().unwrap().set_sampling(true).unwrap();
    lab.bench.run(SteerProgram::Xdp, &frame, 2_120).unwrap();
    for count in [3_072, 4_096, 5_120] {
        let event = events.next_event().unwrap();
        assert_eq!((event.count, event.counter, event.cpu), (count, Verdict::UdpLocal as u32, u32::from(HERE)));
    }
    assert_eq!(events.next_event(), None);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn tc_passes_what_it_cannot_move_and_counts_it() {
    let mut lab = Lab::new();
    let envelope = Envelope::to_port(PORT);
    let session = session_of(ELSEWHERE, 16);
    let head = http_head(0, format!("x-session-id: {session}").as_bytes());
    assert_eq!(lab.tc(&envelope.tcp(TCP_ACK, &head)), TC_ACT_UNSPEC);
    assert_eq!(lab.tc(&envelope.tcp(TCP_ACK, b"")), TC_ACT_UNSPEC);
    assert_eq!((lab.verdict(Verdict::TcpFlowLearned), lab.verdict(Verdict::Unmoved)), (1, 1));
    assert_eq!(lab.tc(&envelope.udp(&request(&session, b""))), TC_ACT_UNSPEC);
    assert_eq!(lab.tc(&envelope.udp(&request(&session_of(HERE, 16), b""))), TC_ACT_UNSPEC);
    assert_eq!((lab.verdict(Verdict::Unmoved), lab.verdict(Verdict::UdpLocal)), (2, 1));
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn an_object_of_another_build_is_refused_before_it_is_loaded() {
    let keys = hash_keys();
    let owners = slot_to_core();
    let options = SteerBenchOptions {
        udp: any_address(),
        tcp: any_address(),
        cpus: &[HERE],
        slot_to_core: &owners,
        keys: &keys,
        session_header: b"x-session-id",
    };
    let refusal = |object: &[u8]| SteerBench::load(object, &options).err().map(|error| error.to_string()).unwrap();
    let mut other = object();
    let tag = xfaas_common::layout_tag::LAYOUT_TAG.to_le_bytes();
    let at = other.windows(tag.len()).position(|bytes| bytes == tag).expect("the object holds the tag");
    other[at] ^= 1;
    assert!(refusal(&other).contains("another build"), "{}", refusal(&other));
    assert!(refusal(b"not an object file").contains("no object file"));
}

fn run(command: &str) {
    let mut words = command.split(' ');
    assert!(std::process::Command::new(words.next().unwrap()).args(words).status().unwrap().success(), "{command}");
}

/// In a network of its own nothing is forwarded, whatever this host does: XDP answers for none but its own host.
fn in_a_network_of_its_own(work: impl FnOnce() + Send) {
    static NETWORKS: AtomicU32 = AtomicU32::new(0);
    let name = format!("xfsp-{}-{}", std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed));
    let ip = |verb| std::process::Command::new("ip").args(["netns", verb, &name]).status().unwrap();
    assert!(ip("add").success());
    let done = std::thread::scope(|scope| {
        let enter_and_work = || {
            let namespace = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work();
        };
        scope.spawn(enter_and_work).join()
    });
    assert!(ip("del").success());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A shard that sleeps is woken by what arrives only, and what was let in may never do.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn a_core_that_takes_nothing_for_long_gets_one_datagram_beyond_its_limit() {
    in_a_network_of_its_own(|| {
        let mut lab = Lab::new();
        let gate = lab.bench.gate(CoreIndex(0)).unwrap();
        gate.set_limit(1);
        let frame = Envelope::to_port(PORT).udp(&request(&session_of(0, 5), b""));
        assert_eq!(lab.xdp(&frame), XDP_PASS, "there is room for one");
        for _ in 0..2 {
            assert_eq!(lab.xdp(&frame), XDP_REDIRECT, "from here on it is known that nothing is taken");
            let admitted = gate.admitted();
            std::thread::sleep(Duration::from_nanos(20 * INFLOW_KNOCK_NS));
            assert_eq!(lab.xdp(&frame), XDP_PASS);
            assert_eq!(gate.admitted(), admitted + 1, "it counts as the others do");
            assert_eq!(lab.xdp(&frame), XDP_REDIRECT, "the next one only after as long again");
            gate.set_taken(gate.admitted() - 1);
        }
        gate.set_limit(Gate::CLOSED);
        assert_eq!(lab.xdp(&frame), XDP_REDIRECT);
        std::thread::sleep(Duration::from_nanos(20 * INFLOW_KNOCK_NS));
        assert_eq!(lab.xdp(&frame), XDP_REDIRECT, "a shard that lets nothing in is awake");
    });
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn a_datagram_for_a_full_queue_is_answered_from_its_own_frame() {
    in_a_network_of_its_own(|| {
        let mut lab = Lab::new();
        let gate = lab.bench.gate(CoreIndex(0)).unwrap();
        gate.set_limit(1);
        for (turn, envelope) in envelopes().iter().enumerate() {
            for (length, payload) in [(1, vec![]), (33, vec![7; 9]), (64, vec![7; 1_200])] {
                let frame = envelope.udp(&request(&session_of(0, length), &payload));
                let place = Place {
                    network: envelope.network_offset() as u32,
                    transport: envelope.transport_offset() as u32,
                    is_v6: envelope.is_v6,
                };
                assert_eq!(lab.bench.run_through(&frame).unwrap(), (XDP_PASS, frame.clone()), "{turn}: there is room for one");
                let shed = lab.verdict(Verdict::Shed);
                assert_eq!(
                    lab.bench.run_through(&frame).unwrap(),
                    (XDP_REDIRECT, turned_back(&frame, &place)),
                    "{turn}: for two there is none"
                );
                assert_eq!(lab.verdict(Verdict::Shed), shed + 1);
                assert_eq!(lab.xdp(&envelope.udp(&request(&session_of(1, length), b""))), XDP_REDIRECT, "the other core has no limit");
                gate.set_taken(gate.admitted());
            }
        }
        gate.set_limit(Gate::CLOSED);
        let mut frame = Envelope::to_port(PORT).udp(&request(&session_of(0, 5), b""));
        assert_eq!(lab.xdp(&frame), XDP_REDIRECT, "nothing is let in though nothing waits");
        gate.set_taken(gate.admitted() + 100);
        assert_eq!(lab.xdp(&frame), XDP_REDIRECT, "nor when what was given up as lost has come");
        frame[0] |= 1;
        assert_eq!(lab.xdp(&frame), XDP_DROP, "sent to many, answered to nobody");
        assert_eq!(lab.verdict(Verdict::ShedSilently), 1);
        frame[0] ^= 1;
        let passed = lab.verdict(Verdict::UdpLocal);
        run("sysctl -qw net.ipv4.ip_forward=1");
        run("ip link set lo up");
        run("ip route add 10.0.0.0/24 dev lo");
        assert_eq!(lab.xdp(&frame), XDP_PASS, "what is passed on to another host is not ours to answer");
        assert_eq!(lab.verdict(Verdict::UdpLocal), passed + 1);
        run("sysctl -qw net.ipv4.ip_forward=0");
        assert_eq!(lab.xdp(&frame), XDP_REDIRECT);
        gate.set_limit(1);
        assert_eq!(lab.xdp(&frame), XDP_PASS, "fewer than none are on their way");
        assert_eq!(lab.tc(&frame), TC_ACT_UNSPEC);
    });
}
