//! Whether a packet is for this host: an interface also sees what a router only passes on, which is not ours to drop or to answer.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};
use xfaas_ebpf::parse::Place;

use crate::maps::{Arrival, Ends};

/// A function of its own, as is `tc`: their words beside those of the caller are more than the stack of a kernel program holds.
#[inline(never)]
pub fn xdp(ctx: *mut xdp_md, place: &Place) -> bool {
    is_for_this_host(&XdpContext::new(ctx), place)
}

#[inline(never)]
pub fn tc(ctx: *mut __sk_buff, place: &Place) -> bool {
    is_for_this_host(&TcContext::new(ctx), place)
}

#[inline(always)]
fn is_for_this_host<C: Arrival>(ctx: &C, place: &Place) -> bool {
    let mut ends: Ends = [[0; 4]; 2];
    let read = if place.is_v6 {
        ctx.read(place.network + 8, &mut ends)
    } else {
        let mut short = [0; 2];
        let read = ctx.read(place.network + 12, &mut short);
        (ends[0][0], ends[1][0]) = (short[0], short[1]);
        read
    };
    read.is_some() && ctx.is_for_this_host(place.is_v6, &ends)
}
