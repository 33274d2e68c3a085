//! Answers a datagram in XDP, where it is known that nobody has time for it: the frame goes back with `refusal`'s words. The only file that
//! changes packets; all through `Frame`, behind whose copying helpers the verifier knows no bytes, so that nothing must be compared again.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use xfaas_common::limits::SESSION_ID_BYTES_MAX;
use xfaas_ebpf::parse::Place;
use xfaas_ebpf::refusal::{self, Addresses, CODE, Headers, Ipv4, Ipv6};
use xfaas_ebpf::session::SessionWords;

use crate::maps::Frame;

/// Output: the action: back, or dropped when it cannot be answered from here.
/// A function of its own: its words beside those of the caller are more than the stack of a kernel program holds.
#[inline(never)]
pub fn overloaded(ctx: *mut xdp_md, place: &Place, session: &SessionWords) -> u32 {
    answer(&Frame::of(ctx), place, session).unwrap_or(xdp_action::XDP_DROP)
}

#[inline(always)]
fn answer(frame: &Frame, place: &Place, session: &SessionWords) -> Option<u32> {
    let mut addresses: Addresses = [0; 3];
    frame.load(0, &mut addresses)?;
    if !refusal::is_unicast(&addresses) {
        return None;
    }
    refusal::turn_addresses(&mut addresses);
    let (mut network, mut headers): (Ipv6, Headers) = ([0; 5], [0; 5]);
    let mut short: Ipv4 = [0; 5];
    frame.load(place.transport, &mut headers)?;
    let bytes = refusal::answer_bytes(session.length);
    refusal::turn_headers(&mut headers, bytes as u16);
    if place.is_v6 {
        frame.load(place.network, &mut network)?;
        refusal::turn_ipv6(&mut network, bytes as u16);
        refusal::sum_headers(&mut headers, &network, session);
    } else {
        frame.load(place.network, &mut short)?;
        refusal::turn_ipv4(&mut short, (place.transport - place.network + bytes) as u16);
    }
    make_room(frame, place)?;
    frame.store(0, &addresses)?;
    if place.is_v6 {
        frame.store(place.network, &network)?;
    } else {
        frame.store(place.network, &short)?;
    }
    frame.store(place.transport, &headers)?;
    let id = id_offset(place);
    frame.store(id, &session.words)?;
    frame.store(id + session.length, &CODE)?;
    frame.cut(frame.bytes() - (place.transport + bytes))?;
    Some(frame.send())
}

#[inline(always)]
fn id_offset(place: &Place) -> u32 {
    place.transport + size_of::<Headers>() as u32
}

/// Makes the frame hold the longest answer, by bytes at its beginning, and moves there what stays as it is: the types and tags behind the
/// addresses, IPv4's options. What is copied beyond those is overwritten by the headers.
#[inline(always)]
fn make_room(frame: &Frame, place: &Place) -> Option<()> {
    let (bytes, wanted_bytes) = (frame.bytes(), id_offset(place) + (SESSION_ID_BYTES_MAX + CODE.len()) as u32);
    if wanted_bytes <= bytes {
        return Some(());
    }
    let by = wanted_bytes - bytes;
    frame.prepend(by)?;
    frame.copy(12 + by, 12, [0_u16; 5])?;
    let options = place.network + size_of::<Ipv4>() as u32;
    frame.copy(options + by, options, [0_u64; 5])
}
