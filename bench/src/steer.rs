//! What steering costs a packet: the XDP program run by the kernel on frames of ours (BPF_PROG_TEST_RUN), attached to nothing.

use crate::report::median;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use xfaas_common::hash::{HASH_KEYS, HashKeys, session_hash};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::SLOTS;
use xfaas_common::map_layout::SESSION_HEADER_DEFAULT;
use xfaas_dataplane::steering::{SteerBench, SteerBenchOptions, SteerProgram, SteeringError};
use xfaas_ebpf::frames::{Envelope, TCP_ACK, TCP_PSH, TCP_SYN, http_head, request};

const PORT: u16 = 8_080;
/// include/uapi/linux/bpf.h, `enum xdp_action`.
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const REPEATS: u32 = 200_000;
const RUNS: usize = 5;

/// The cases: name, and what arrives.
const CASES: [(&str, Frame); 4] = [
    ("steer_udp", Frame::Datagram),
    ("steer_tcp_known_flow", Frame::KnownFlow),
    ("steer_tcp_first_near", Frame::FirstSegment { header_offset: 70 }),
    ("steer_tcp_first_far", Frame::FirstSegment { header_offset: 350 }),
];

#[derive(Clone, Copy)]
enum Frame {
    Datagram,
    KnownFlow,
    /// `header_offset`: where in the payload the session header begins, bytes.
    FirstSegment {
        header_offset: usize,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    #[error("cannot read the kernel programs {}: build them with `cargo xtask build`, or say where they are with XFAAS_EBPF_OBJECT", path.display())]
    Object {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the kernel programs cannot be run")]
    Program(#[from] SteeringError),
    #[error("{case}: the program answered {action}, which is neither pass nor redirect as expected ({expected})")]
    Verdict { case: &'static str, action: u32, expected: u32 },
}

/// Runs every case, or only the first (`steer_udp`), on the calling CPU. `cpus`: the shards' CPUs, one or more; with two or more the
/// packets belong to another CPU than the first, so that the redirect is in the figure.
/// Output: name and nanoseconds a packet, the median of 5 runs.
/// Errors: no object, no rights (CAP_BPF, CAP_NET_ADMIN), or a program that decides otherwise than it should.
pub fn measure_steering(object: &Path, cpus: &[u16], only_udp: bool) -> Result<Vec<(&'static str, f64)>, SteerError> {
    let object = std::fs::read(object).map_err(|source| SteerError::Object { path: object.to_owned(), source })?;
    let keys = HashKeys { keys: std::array::from_fn::<_, HASH_KEYS, _>(|i| 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(2 * i as u64 + 1)) };
    let owner = |slot: usize| (slot % cpus.len().max(1)) as u16;
    let slot_to_core: Vec<u16> = (0..SLOTS).map(owner).collect();
    let mut bench = SteerBench::load(
        &object,
        &SteerBenchOptions {
            udp: (Ipv6Addr::UNSPECIFIED, PORT).into(),
            tcp: (Ipv6Addr::UNSPECIFIED, PORT).into(),
            cpus,
            slot_to_core: &slot_to_core,
            keys: &keys,
            session_header: SESSION_HEADER_DEFAULT.as_bytes(),
        },
    )?;
    let core = u16::from(cpus.len() > 1);
    let session = session_owned_by(|id| owner(session_hash(&keys, id.padded(), id.length()).slot().index()) == core);
    let expected = if core == 0 { XDP_PASS } else { XDP_REDIRECT };
    let mut figures = Vec::new();
    for (name, frame) in CASES.iter().take(if only_udp { 1 } else { CASES.len() }) {
        let bytes = frame_bytes(*frame, &session);
        if let Frame::KnownFlow = frame {
            // The connection's first segment, once: after it the flow is known.
            bench.run(SteerProgram::Xdp, &frame_bytes(Frame::FirstSegment { header_offset: 70 }, &session), 1)?;
        }
        let mut runs_ns = Vec::with_capacity(RUNS);
        for _ in 0..RUNS {
            let run = bench.run(SteerProgram::Xdp, &bytes, REPEATS)?;
            if run.action != expected {
                return Err(SteerError::Verdict { case: name, action: run.action, expected });
            }
            runs_ns.push(run.ns_per_packet as f64);
        }
        figures.push((*name, median(&runs_ns).expect("there is at least one run")));
    }
    Ok(figures)
}

fn session_owned_by(is_owned: impl Fn(&SessionId) -> bool) -> SessionId {
    let ids = (0..1_000_000_u32).map(|i| SessionId::new(format!("session-{i:08}").as_bytes()).expect("16 visible bytes"));
    ids.into_iter().find(|id| is_owned(id)).expect("half of all sessions are its")
}

fn frame_bytes(frame: Frame, session: &SessionId) -> Vec<u8> {
    let envelope = Envelope::to_port(PORT);
    match frame {
        Frame::Datagram => envelope.udp(&request(session, b"payload-of-16-by")),
        Frame::KnownFlow => envelope.tcp(TCP_PSH | TCP_ACK, &http_head(70, session_line(session).as_bytes())),
        // With SYN (as TCP Fast Open sends it) each repeat forgets the flow and learns it again, so that none after the first finds it
        // known. That is a little dearer than a real first segment, which only learns.
        Frame::FirstSegment { header_offset } => {
            envelope.tcp(TCP_SYN | TCP_PSH, &http_head(header_offset, session_line(session).as_bytes()))
        }
    }
}

fn session_line(session: &SessionId) -> String {
    format!("{SESSION_HEADER_DEFAULT}: {session}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_header_lies_where_the_case_says() {
        let session = SessionId::new(b"session-00000001").unwrap();
        for offset in [70, 350] {
            let frame = frame_bytes(Frame::FirstSegment { header_offset: offset }, &session);
            let payload = &frame[14 + 20 + 20..];
            assert!(payload[offset..].starts_with(b"x-session-id: session-00000001\r\n"));
        }
    }
}
