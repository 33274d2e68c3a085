//! Entry points of the kernel programs. Each reads its packet once, asks `steer` and lets `redirect` act.
//! Whatever goes wrong, the packet passes to the stack: steering only chooses where, user space decides what. Two kinds of datagrams end here:
//! malformed ones, which nobody answers, and in XDP those whose core has no room, which `answer` sends back.
//! On the host this is only checked (`cargo clippy --features programs`): the programs are built for `bpfel-unknown-none`.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod answer;
mod local;
mod maps;
mod redirect;
mod steer;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{classifier, sk_reuseport, xdp};
use aya_ebpf::programs::{SkReuseportContext, TcContext, XdpContext};
use xfaas_common::drop_reason::DropReason;
use xfaas_common::limits::SESSION_ID_BYTES_MAX;
use xfaas_common::map_layout::{FlowKey, SteerConfig, Verdict};
use xfaas_common::wire::HEADER_BYTES;
use xfaas_ebpf::parse::{Handler, Place, Segment, datagram_session, parse};
use xfaas_ebpf::session::{Fault, SessionWords, request_session};

use crate::steer::Decision;

/// Bytes that hold every header and a session ID: Ethernet, two VLAN tags, IPv4 with all options, UDP, ours, the ID.
const HEADERS_BYTES_MAX: u32 = 14 + 8 + 60 + 8 + (HEADER_BYTES + SESSION_ID_BYTES_MAX) as u32;
/// Of a UDP header and two requests with the shortest IDs. Of several datagrams in one packet only the last may be shorter than the first: so where
/// fewer bytes follow the network header, and the first is malformed, all are.
const TWO_REQUESTS_BYTES: u32 = 8 + 2 * (HEADER_BYTES as u32 + 1);

#[xdp]
pub fn xfaas_xdp(ctx: XdpContext) -> u32 {
    let Some(config) = maps::config() else { return xdp_action::XDP_PASS };
    match parse(&maps::xdp_packet(&ctx), &config.listens, Xdp { config, ctx: &ctx }) {
        Ok(action) => action,
        Err(other) => redirect::xdp(config, steer::other(other)),
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
    fn datagram(self, place: &Place, session: &SessionWords) -> u32 {
        let decision = steer::datagram(self.config, session);
        if !steer::admit(&decision) && local::xdp(self.ctx.ctx, place) {
            let action = answer::overloaded(self.ctx.ctx, place, session);
            redirect::count_shed(self.config, action);
            return action;
        }
        steer::stamp_datagram(self.config, session);
        redirect::xdp(self.config, decision)
    }

    #[inline(always)]
    fn malformed(self, place: &Place, reason: DropReason) -> u32 {
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!(self.ctx, "malformed datagram: reason {}", reason as u32);
        let is_one = self.config.merges == 0 || maps::Frame::of(self.ctx.ctx).bytes() < place.transport + TWO_REQUESTS_BYTES;
        redirect::xdp(self.config, steer::malformed(reason, is_one, || local::xdp(self.ctx.ctx, place)))
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
    let Some(config) = maps::config() else { return redirect::TC_NEXT };
    let bytes = ctx.len();
    // Socket buffers may hold their bytes in pieces, of which only the first can be read here. Where it cannot be made longer less is parsed.
    let wanted = if bytes < HEADERS_BYTES_MAX { bytes } else { HEADERS_BYTES_MAX };
    if ctx.data() + wanted as usize > ctx.data_end() {
        ctx.pull_data(wanted).unwrap_or_default();
    }
    match parse(&maps::tc_packet(&ctx), &config.listens, Tc { config, ctx: &ctx }) {
        Ok(action) => action,
        Err(other) => redirect::tc(config, steer::other(other)),
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
    fn datagram(self, _place: &Place, session: &SessionWords) -> i32 {
        if maps::is_merged(self.ctx) {
            return redirect::tc(self.config, Decision::Pass(Verdict::Merged));
        }
        steer::stamp_datagram(self.config, session);
        redirect::tc(self.config, steer::datagram(self.config, session))
    }

    #[inline(always)]
    fn malformed(self, place: &Place, reason: DropReason) -> i32 {
        let is_one = !maps::is_merged(self.ctx);
        redirect::tc(self.config, steer::malformed(reason, is_one, || local::tc(self.ctx.skb.skb, place)))
    }

    #[inline(always)]
    fn segment(self, flow: &FlowKey, segment: Segment) -> i32 {
        steer::stamp_segment(self.config, flow, segment);
        let find = |session: &mut SessionWords| maps::scan_head(self.ctx, self.config, segment, session);
        redirect::tc(self.config, steer::segment(self.config, flow, segment, find))
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
