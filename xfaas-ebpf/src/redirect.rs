//! Carries out a decision, and counts it: the only file that knows how a packet gets to its core.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::programs::SkReuseportContext;
use xfaas_common::limits::CORES_MAX;
use xfaas_common::map_layout::{CORE_NONE, SteerConfig, Verdict};

use crate::maps;
use crate::steer::Decision;

/// TC: whoever comes next at this hook decides, and the stack where nobody does. `TC_ACT_OK` would keep the packet from all who come next: it is
/// `TCX_PASS`, and this `TCX_NEXT` (include/uapi/linux/bpf.h). The filter that holds the program before Linux 6.6 has the same meanings, and goes on
/// to the next filter (net/sched/cls_bpf.c, `cls_bpf_classify`).
pub const TC_NEXT: i32 = TC_ACT_UNSPEC;

/// `sk_reuseport`: the socket that was selected, or the kernel's own choice when none was.
pub const SK_PASS: u32 = 1;

/// XDP: to the CPU of the core, through its CPUMAP queue, unless this is that CPU.
#[inline(always)]
pub fn xdp(config: &SteerConfig, decision: Decision) -> u32 {
    let (core, here, moved) = match decision {
        Decision::Pass(verdict) => {
            maps::count(config, verdict);
            return xdp_action::XDP_PASS;
        }
        Decision::Drop(reason) => {
            maps::count_drop(config, reason);
            return xdp_action::XDP_DROP;
        }
        Decision::Datagram { core } => (core, Verdict::UdpLocal, Verdict::UdpRedirected),
        Decision::Flow { core, learned: true } => (core, Verdict::TcpFlowLearned, Verdict::TcpFlowLearned),
        Decision::Flow { core, learned: false } => (core, Verdict::TcpFlowLocal, Verdict::TcpFlowRedirected),
    };
    let Some(cpu) = cpu_of(config, core) else {
        maps::count(config, Verdict::RedirectFailed);
        return xdp_action::XDP_PASS;
    };
    if cpu == maps::this_cpu() {
        maps::count(config, here);
        return xdp_action::XDP_PASS;
    }
    let Some(action) = maps::redirect_to_cpu(cpu) else {
        maps::count(config, Verdict::RedirectFailed);
        return xdp_action::XDP_PASS;
    };
    maps::count(config, moved);
    action
}

/// A datagram for which there was no room. Input: what became of it.
#[inline(always)]
pub fn count_shed(config: &SteerConfig, action: u32) {
    maps::count(config, if action == xdp_action::XDP_REDIRECT { Verdict::Shed } else { Verdict::ShedSilently });
}

/// TC: packets stay on their CPU, and `sk_reuseport` chooses the datagram's socket: here is only counted where they belong.
#[inline(always)]
pub fn tc(config: &SteerConfig, decision: Decision) -> i32 {
    let verdict = match decision {
        Decision::Pass(verdict) => verdict,
        Decision::Drop(reason) => {
            maps::count_drop(config, reason);
            return TC_ACT_SHOT;
        }
        Decision::Datagram { core } if cpu_of(config, core) == Some(maps::this_cpu()) => Verdict::UdpLocal,
        Decision::Flow { learned: true, .. } => Verdict::TcpFlowLearned,
        Decision::Flow { core, .. } if cpu_of(config, core) == Some(maps::this_cpu()) => Verdict::TcpFlowLocal,
        Decision::Datagram { .. } | Decision::Flow { .. } => Verdict::Unmoved,
    };
    maps::count(config, verdict);
    TC_NEXT
}

/// `sk_reuseport`: the socket of the core, of the group's sockets.
#[inline(always)]
pub fn udp_socket(config: &SteerConfig, ctx: &SkReuseportContext, core: Option<u32>) -> u32 {
    let verdict = match core {
        Some(core) if maps::select_udp_socket(ctx, core) => Verdict::ReuseportUdp,
        _ => Verdict::ReuseportFallback,
    };
    maps::count(config, verdict);
    SK_PASS
}

/// `sk_reuseport`: the listening socket of the core on this CPU.
#[inline(always)]
pub fn tcp_socket(config: &SteerConfig, ctx: &SkReuseportContext) -> u32 {
    let verdict = match config.core_of_cpu.get(maps::this_cpu() as usize) {
        Some(core) if *core != CORE_NONE && maps::select_tcp_socket(ctx, u32::from(*core)) => Verdict::ReuseportTcp,
        _ => Verdict::ReuseportFallback,
    };
    maps::count(config, verdict);
    SK_PASS
}

#[inline(always)]
fn cpu_of(config: &SteerConfig, core: u32) -> Option<u32> {
    // The mask, not the comparison in `steer`, is what the verifier sees here.
    config.cpu_of_core.get(core as usize % CORES_MAX).map(|cpu| u32::from(*cpu))
}
