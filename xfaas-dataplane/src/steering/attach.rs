//! Attaches the loaded programs to an interface or to sockets. Called by `Steering::start`. What is attached is held by descriptor, so
//! that it goes with the process however that ends.

use std::os::fd::BorrowedFd;

use aya::programs::links::FdLink;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, TcAttachType, XdpMode};
use aya::util::KernelVersion;
use xfaas_common::map_layout::{PROGRAM_REUSEPORT_TCP, PROGRAM_REUSEPORT_UDP, PROGRAM_TC, PROGRAM_XDP};

use super::error::SteeringError;
use super::load::{self, Loaded};

/// An attached program; dropping it detaches.
pub(super) enum Attachment {
    Link(#[expect(dead_code, reason = "held for its drop")] FdLink),
    /// Before Linux 6.6 there is no link for TC: this one is detached when dropped, and after a crash by the next start.
    Filter(#[expect(dead_code, reason = "held for its drop")] SchedClassifierLink),
}

/// How a TC program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TcHook {
    /// A link, Linux 6.6 and later.
    Tcx,
    /// A filter of the `clsact` queueing discipline.
    Clsact,
}

impl TcHook {
    pub fn of_this_kernel() -> TcHook {
        match KernelVersion::current() {
            Ok(version) if version >= KernelVersion::new(6, 6, 0) => TcHook::Tcx,
            _ => TcHook::Clsact,
        }
    }
}

/// Errors: the interface is unknown or taken, or its driver has no such mode.
pub(super) fn xdp(loaded: &mut Loaded, iface: &str, is_native: bool) -> Result<Attachment, SteeringError> {
    let mode = if is_native { XdpMode::Driver } else { XdpMode::Skb };
    // In the stack a packet is what its socket buffer holds, and `UDP_SEGMENT` and GRO leave several datagrams in one.
    loaded.maps.set_merges(!is_native)?;
    let program = load::xdp(&mut loaded.ebpf)?;
    let id = program.attach(iface, mode).map_err(|error| interface_error(PROGRAM_XDP, iface, error))?;
    let link = program.take_link(id).map_err(SteeringError::attach(PROGRAM_XDP, iface))?;
    // Anything but a link would stay after a kill; the kernel gives links since 5.9.
    let link = FdLink::try_from(link).map_err(|_| SteeringError::NotHeld { program: PROGRAM_XDP, place: iface.to_owned() })?;
    Ok(Attachment::Link(link))
}

pub(super) fn tc(loaded: &mut Loaded, iface: &str, hook: TcHook) -> Result<Attachment, SteeringError> {
    let program = load::tc(&mut loaded.ebpf)?;
    let failed = |error| interface_error(PROGRAM_TC, iface, error);
    let options = match hook {
        TcHook::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
        TcHook::Clsact => {
            prepare_clsact(iface)?;
            TcAttachOptions::Netlink(NlOptions::default())
        }
    };
    let id = program.attach_with_options(iface, TcAttachType::Ingress, options).map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    match hook {
        TcHook::Tcx => {
            let link = FdLink::try_from(link).map_err(|_| SteeringError::NotHeld { program: PROGRAM_TC, place: iface.to_owned() })?;
            Ok(Attachment::Link(link))
        }
        TcHook::Clsact => Ok(Attachment::Filter(link)),
    }
}

/// The queueing discipline stays: others may use it, and it does nothing by itself.
fn prepare_clsact(iface: &str) -> Result<(), SteeringError> {
    let failed = |error: tc::TcError| interface_error(PROGRAM_TC, iface, ProgramError::TcError(error));
    match tc::qdisc_add_clsact(iface) {
        Ok(()) | Err(tc::TcError::AlreadyAttached) => {}
        Err(tc::TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(failed(error)),
    }
    // What a killed process left behind.
    match tc::qdisc_detach_program(iface, TcAttachType::Ingress, PROGRAM_TC) {
        Err(tc::TcError::IoError(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(()) => Ok(()),
    }
}

/// The socket programs: they choose within the group of sockets that share a port, for as long as one of the group lives.
pub(super) fn sockets(loaded: &mut Loaded, udp: &[BorrowedFd<'_>], tcp: &[BorrowedFd<'_>]) -> Result<(), SteeringError> {
    loaded.maps.set_sockets(udp, tcp)?;
    if let Some(socket) = udp.first() {
        let failed = SteeringError::attach(PROGRAM_REUSEPORT_UDP, "the datagram sockets");
        load::reuseport_udp(&mut loaded.ebpf)?.attach(socket).map_err(failed)?;
    }
    if let Some(socket) = tcp.first() {
        let failed = SteeringError::attach(PROGRAM_REUSEPORT_TCP, "the listening sockets");
        load::reuseport_tcp(&mut loaded.ebpf)?.attach(socket).map_err(failed)?;
    }
    Ok(())
}

fn interface_error(program: &'static str, iface: &str, error: ProgramError) -> SteeringError {
    match &error {
        ProgramError::UnknownInterface { .. } => SteeringError::UnknownInterface { iface: iface.to_owned() },
        ProgramError::TcError(tc::TcError::IoError(cause)) if is_no_device(cause) => {
            SteeringError::UnknownInterface { iface: iface.to_owned() }
        }
        // EBUSY: a program is there in the same mode; EEXIST: in the other one. net/core/dev.c, dev_xdp_attach.
        ProgramError::SyscallError(cause)
            if program == PROGRAM_XDP && matches!(cause.io_error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) =>
        {
            SteeringError::InterfaceTaken { iface: iface.to_owned() }
        }
        _ => SteeringError::attach(program, iface)(error),
    }
}

fn is_no_device(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}
