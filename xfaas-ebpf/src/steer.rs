//! From a parsed packet to a decision: which core owns it. Sees sessions and flows, never packet bytes; counts nothing.

use xfaas_common::drop_reason::DropReason;
use xfaas_common::map_layout::{FlowKey, SteerConfig, Verdict, port_stamp, slot_stamp};
use xfaas_ebpf::parse::{Other, Segment};
use xfaas_ebpf::session::SessionWords;

use crate::maps;

/// What is to be done with a packet.
pub enum Decision {
    Pass(Verdict),
    Drop(DropReason),
    /// A datagram whose owner is this core.
    Datagram {
        core: u32,
    },
    /// A segment whose flow belongs to this core; `learned` when that is new.
    Flow {
        core: u32,
        learned: bool,
    },
}

/// The core that owns a session: its pin, else its slot's owner. `None` when that core does not exist.
#[inline(always)]
pub fn owner(config: &SteerConfig, session: &SessionWords) -> Option<u32> {
    let pinned = if config.pins != 0 { maps::pinned_core(session) } else { None };
    let core = match pinned {
        Some(core) => core,
        None => maps::slot_core(session.hash(maps::keys()?).slot())?,
    };
    (core < u32::from(config.cores)).then_some(core)
}

/// Notes when a datagram of ours was seen, while somebody wants to know.
#[inline(always)]
pub fn stamp_datagram(config: &SteerConfig, session: &SessionWords) {
    if config.stamps != 0
        && let Some(keys) = maps::keys()
    {
        maps::stamp(slot_stamp(session.hash(keys).slot()));
    }
}

/// The same of a segment. One without a payload asks for nothing.
#[inline(always)]
pub fn stamp_segment(config: &SteerConfig, flow: &FlowKey, segment: Segment) {
    if config.stamps != 0 && segment.payload_bytes != 0 {
        maps::stamp(port_stamp(u16::from_be_bytes(flow.source_port)));
    }
}

/// What is neither a datagram nor a segment of ours.
#[inline(always)]
pub fn other(other: Other) -> Decision {
    match other {
        Other::Foreign => Decision::Pass(Verdict::Foreign),
        Other::Fragment => Decision::Pass(Verdict::Fragment),
        Other::Inconsistent => Decision::Pass(Verdict::Inconsistent),
    }
}

/// A datagram that breaks the rules. It is dropped where user space would do the same: not where it may be several, of which only some do, nor
/// where another host gets it. Input: whether those were taken apart; whether this host is its destination, asked only where it matters.
#[inline(always)]
pub fn malformed(reason: DropReason, is_one: bool, is_for_this_host: impl FnOnce() -> bool) -> Decision {
    if !is_one {
        return Decision::Pass(Verdict::Merged);
    }
    if is_for_this_host() { Decision::Drop(reason) } else { Decision::Pass(Verdict::Foreign) }
}

#[inline(always)]
pub fn datagram(config: &SteerConfig, session: &SessionWords) -> Decision {
    match owner(config, session) {
        Some(core) => Decision::Datagram { core },
        None => Decision::Pass(Verdict::RedirectFailed),
    }
}

/// Counts a datagram into its owner's queue, if it has one. Output: false when that is full.
#[inline(always)]
pub fn admit(decision: &Decision) -> bool {
    match decision {
        Decision::Datagram { core } => maps::let_in(*core),
        _ => true,
    }
}

/// `find_session` looks for the session header in the segment's payload and says whether it is there; it is asked once at most.
#[inline(always)]
pub fn segment(config: &SteerConfig, flow: &FlowKey, segment: Segment, find_session: impl FnOnce(&mut SessionWords) -> bool) -> Decision {
    let known = if segment.starts {
        // A new connection on an old 4-tuple: what was known is of another session.
        maps::forget_flow(flow);
        None
    } else {
        maps::flow_core(flow)
    };
    if let Some(core) = known {
        if segment.ends {
            maps::forget_flow(flow);
        }
        return if core < u32::from(config.cores) {
            Decision::Flow { core, learned: false }
        } else {
            Decision::Pass(Verdict::RedirectFailed)
        };
    }
    if segment.payload_bytes == 0 {
        return Decision::Pass(Verdict::TcpUnknown);
    }
    let mut session = SessionWords::none();
    if !find_session(&mut session) {
        return Decision::Pass(Verdict::TcpUnknown);
    }
    let Some(core) = owner(config, &session) else { return Decision::Pass(Verdict::RedirectFailed) };
    let learned = !segment.ends && maps::learn_flow(flow, core);
    Decision::Flow { core, learned }
}
