//! Entry points of the kernel programs. Each reads its packet once, asks `steer` and lets `redirect` act.
//! Whatever goes wrong, the packet passes to the stack: steering only chooses where, user space decides what. Two kinds of datagrams end here:
//! malformed ones, which nobody answers, and in XDP those whose core has no room, which `answer` sends back.
//! On the host this is only checked (`cargo clippy --features programs`): the programs are built for `bpfel-unknown-none`.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod answer;
mod maps;
mod redirect;
mod steer;

use aya_ebpf::bindings::{TC_ACT_OK, xdp_action};
use aya_ebpf::macros::{classifier, sk_reuseport, xdp};
use aya_ebpf::programs::{SkReuseportContext, TcContext, XdpContext};
use xfaas_common::map_layout::{FlowKey, SteerConfig};
#[cfg(feature = "log")]
use xfaas_ebpf::parse::Other;
use xfaas_ebpf::parse::{Handler, Place, Ports, Segment, datagram_session, parse};
use xfaas_ebpf::session::{Fault, SessionWords, request_session};

/// Bytes that hold every header and a session ID: Ethernet, two VLAN tags, IPv4 with all options, UDP, ours, 64 bytes of ID.
const HEADERS_BYTES_MAX: u32 = 14 + 8 + 60 + 8 + 32 + 64;

#[xdp]
pub fn xfaas_xdp(ctx: XdpContext) -> u32 {
    let Some(config) = maps::config() else { return xdp_action::XDP_PASS };
    match parse(&maps::xdp_packet(&ctx), ports(config), Xdp { config, ctx: &ctx }) {
        Ok(action) => action,
        Err(other) => {
            #[cfg(feature = "log")]
            if let Other::Malformed(reason) = other {
                aya_log_ebpf::debug!(&ctx, "datagram dropped: reason {}", reason as u32);
            }
            redirect::xdp(config, steer::other(other))
        }
    }
}

/// What XDP does with our packets.
struct Xdp<'a> {
    config: &'static SteerConfig,
    ctx: &'a XdpContext,
}

impl Handler for Xdp<'_> {
    type Output = u32;

    #[inline(always)]
    fn datagram(self, _flow: &FlowKey, place: Place, session: &SessionWords) -> u32 {
        let decision = steer::datagram(self.config, session);
        if !steer::admit(&decision) && answer::is_for_this_host(self.ctx.ctx, &place) {
            let action = answer::overloaded(self.ctx.ctx, &place, session);
            redirect::count_shed(self.config, action);
            return action;
        }
        steer::stamp_datagram(self.config, session);
        redirect::xdp(self.config, decision)
    }

    #[inline(always)]
    fn segment(self, flow: &FlowKey, segment: Segment) -> u32 {
        steer::stamp_segment(self.config, flow, segment);
        let find = |session: &mut SessionWords| maps::scan_head(self.ctx, self.config, segment, session);
        redirect::xdp(self.config, steer::segment(self.config, flow, segment, find))
    }
}

#[classifier]
pub fn xfaas_tc(ctx: TcContext) -> i32 {
    let Some(config) = maps::config() else { return TC_ACT_OK };
    let bytes = ctx.len();
    // Socket buffers may hold their bytes in pieces, of which only the first can be read here. A failure is no fault: less is parsed.
    let wanted = if bytes < HEADERS_BYTES_MAX { bytes } else { HEADERS_BYTES_MAX };
    if ctx.data() + wanted as usize > ctx.data_end() && ctx.pull_data(wanted).is_err() {
        return TC_ACT_OK;
    }
    match parse(&maps::tc_packet(&ctx), ports(config), Tc { config, ctx: &ctx }) {
        Ok(action) => action,
        Err(other) => redirect::tc(config, steer::other(other), &ctx, None),
    }
}

/// What TC does with our packets.
struct Tc<'a> {
    config: &'static SteerConfig,
    ctx: &'a TcContext,
}

impl Handler for Tc<'_> {
    type Output = i32;

    #[inline(always)]
    fn datagram(self, flow: &FlowKey, _place: Place, session: &SessionWords) -> i32 {
        steer::stamp_datagram(self.config, session);
        redirect::tc(self.config, steer::datagram(self.config, session), self.ctx, Some(flow))
    }

    #[inline(always)]
    fn segment(self, flow: &FlowKey, segment: Segment) -> i32 {
        steer::stamp_segment(self.config, flow, segment);
        let find = |session: &mut SessionWords| maps::scan_head(self.ctx, self.config, segment, session);
        redirect::tc(self.config, steer::segment(self.config, flow, segment, find), self.ctx, None)
    }
}

#[sk_reuseport]
pub fn xfaas_reuseport_udp(ctx: SkReuseportContext) -> u32 {
    let Some(config) = maps::config() else { return redirect::SK_PASS };
    let mut session = SessionWords::none();
    let read = match datagram_session(&maps::socket_packet(&ctx), &mut session) {
        Err(Fault::Unreadable) => copied_session(&ctx, &mut session),
        read => read,
    };
    let core = if read.is_ok() { steer::owner(config, &session) } else { None };
    redirect::udp_socket(config, &ctx, core)
}

#[sk_reuseport]
pub fn xfaas_reuseport_tcp(ctx: SkReuseportContext) -> u32 {
    let Some(config) = maps::config() else { return redirect::SK_PASS };
    redirect::tcp_socket(config, &ctx)
}

#[inline(always)]
fn ports(config: &SteerConfig) -> Ports {
    Ports { udp: config.udp_port, tcp: config.tcp_port }
}

/// A datagram whose bytes lie in pieces, as drivers that split headers and the reassembly of fragments leave them: they are copied.
#[inline(always)]
fn copied_session(ctx: &SkReuseportContext, session: &mut SessionWords) -> Result<(), Fault> {
    let Some(payload_bytes) = (ctx.len() as u32).checked_sub(8) else { return Err(Fault::Unreadable) };
    let Some(head) = maps::copy_request(ctx, payload_bytes) else { return Err(Fault::Unreadable) };
    request_session(&head, payload_bytes, session)
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier would refuse a program that can get here.
    loop {}
}
