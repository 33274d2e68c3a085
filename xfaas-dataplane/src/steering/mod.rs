//! Steering: the kernel programs that bring a packet to its session's core. Loaded, attached and told who owns which slot here; used by
//! the node at start, by shards through `FlowTable`, by control for counters. Nothing here is on a request's path.
//! Steering is only a hint: with it off, or wrong, everything still works through the mailboxes, only slower.

mod attach;
mod bench;
mod delivery;
mod error;
mod load;
mod maps;
mod probe;
mod rights;

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use aya_log::EbpfLogger;
use xfaas_common::hash::HashKeys;
use xfaas_common::ids::CoreIndex;

pub use self::bench::{SteerBench, SteerBenchOptions, SteerProgram, SteerRun};
pub use self::error::SteeringError;
pub use self::maps::{Events, FlowTable, Gate, Pins, Stamps, SteeringCounters};
pub use self::probe::{Probe, interface_exists, is_xdp_taken, probe};

use self::attach::{Attachment, TcHook};
use self::load::{Loaded, Maps, Plan};

/// How packets are to find their core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SteeringMode {
    /// The first that works of: XDP in the driver, XDP in the stack, TC, socket choice, off.
    #[default]
    Auto,
    /// XDP in the driver, or in the stack where the driver has none: packets move to their core's CPU.
    Xdp,
    /// Socket choice only: packets stay on the CPU on which they came in.
    Reuseport,
    /// A TC program before the stack drops what is malformed; packets stay on the CPU on which they came in.
    Tc,
    /// No kernel program.
    Off,
}

/// What steering is made of.
pub struct SteeringOptions<'a> {
    pub mode: SteeringMode,
    /// The interface whose packets are steered.
    pub iface: Option<&'a str>,
    /// Where `udp_sockets` are bound.
    pub udp: SocketAddr,
    /// Where `tcp_sockets` are.
    pub tcp: SocketAddr,
    /// CPU numbers, one a shard; the position is the `CoreIndex`.
    pub cpus: &'a [u16],
    /// Core index of each slot, `SLOTS` of them.
    pub slot_to_core: &'a [u16],
    pub keys: &'a HashKeys,
    /// The header that names the session, in any case, up to 39 bytes; a longer one is found by user space only.
    pub session_header: &'a [u8],
    /// One a shard, in the order of `cpus`, bound to one port with `SO_REUSEPORT`.
    pub udp_sockets: Vec<BorrowedFd<'a>>,
    /// As `udp_sockets`, and listening already.
    pub tcp_sockets: Vec<BorrowedFd<'a>>,
    /// The compiled kernel programs; empty when the binary was built without.
    pub ebpf_object: &'a [u8],
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActiveMode {
    Xdp { iface: String, is_native: bool },
    Tc { iface: String },
    Reuseport,
    Off,
}

impl fmt::Display for ActiveMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ActiveMode::Xdp { iface, is_native: true } => write!(f, "xdp (native) on {iface}"),
            ActiveMode::Xdp { iface, is_native: false } => write!(f, "xdp (generic) on {iface}"),
            ActiveMode::Tc { iface } => write!(f, "tc on {iface}"),
            ActiveMode::Reuseport => f.write_str("reuseport"),
            ActiveMode::Off => f.write_str("off"),
        }
    }
}

/// Prints what the programs logged, in builds of them that log.
type FlushLogs = Box<dyn FnMut() + Send>;

/// Running kernel programs, or none. Dropping it detaches from the interface and empties the socket choice.
pub struct Steering {
    mode: ActiveMode,
    /// What was tried before, and why it failed.
    notes: Vec<String>,
    attachment: Option<Attachment>,
    maps: Option<Maps>,
    flush_logs: Mutex<Option<FlushLogs>>,
}

impl Steering {
    /// Loads, fills and attaches. With `Auto`, what fails is noted and the next mode is tried; but an interface that does not exist or
    /// already has an XDP program is an error, since someone named it.
    pub fn start(options: SteeringOptions<'_>) -> Result<Steering, SteeringError> {
        if let (SteeringMode::Auto | SteeringMode::Xdp | SteeringMode::Tc, Some(iface)) = (options.mode, options.iface)
            && !interface_exists(iface)
        {
            return Err(SteeringError::UnknownInterface { iface: iface.to_owned() });
        }
        match options.mode {
            SteeringMode::Off => Ok(Steering::off(Vec::new())),
            SteeringMode::Auto => start_any(&options),
            mode => {
                let mut loaded = load_programs(&options)?;
                let mut notes = Vec::new();
                let (mode, attachment) = attach_explicit(mode, &options, &mut loaded, &mut notes)?;
                Ok(Steering::running(mode, attachment, loaded, notes))
            }
        }
    }

    /// What was chosen.
    pub fn mode(&self) -> ActiveMode {
        self.mode.clone()
    }

    /// What was chosen and why not something better, in one line for the log.
    pub fn explain(&self) -> String {
        let mut line = self.mode.to_string();
        for note in &self.notes {
            line.push_str("; ");
            line.push_str(note);
        }
        line
    }

    /// Zeros when steering is off.
    pub fn counters(&self) -> Result<SteeringCounters, SteeringError> {
        self.maps.as_ref().map_or(Ok(SteeringCounters::NONE), Maps::counters)
    }

    /// A handle for one shard; `None` when nothing reads the table: without XDP and TC no segment is looked at.
    pub fn flow_table(&self) -> Option<FlowTable> {
        if !matches!(self.mode, ActiveMode::Xdp { .. } | ActiveMode::Tc { .. }) {
            return None;
        }
        // A descriptor too many is the only way to fail; the shard then works as with steering off.
        self.maps.as_ref().and_then(|maps| maps.flow_table().ok())
    }

    /// The queue of datagrams from XDP to a shard; `None` in other modes, where they are not counted before the socket.
    pub fn gate(&self, core: CoreIndex) -> Option<Gate> {
        if !matches!(self.mode, ActiveMode::Xdp { .. }) {
            return None;
        }
        // As for the table of flows: without it the queue is bounded by the socket alone.
        self.maps.as_ref().and_then(|maps| maps.gate(core).ok())
    }

    /// The handle for moving sessions and slots; `None` when steering is off.
    pub fn pins(&self) -> Result<Option<Pins>, SteeringError> {
        self.maps.as_ref().map(Maps::pins).transpose()
    }

    /// The sampled verdicts; `None` when steering is off.
    pub fn events(&self) -> Result<Option<Events>, SteeringError> {
        self.maps.as_ref().map(Maps::events).transpose()
    }

    /// Hands what the programs logged to the `log` crate. Does nothing with programs built without the feature `log`.
    pub fn flush_logs(&self) {
        if let Ok(mut flush) = self.flush_logs.lock()
            && let Some(flush) = flush.as_mut()
        {
            flush();
        }
    }

    fn off(notes: Vec<String>) -> Steering {
        Steering { mode: ActiveMode::Off, notes, attachment: None, maps: None, flush_logs: Mutex::new(None) }
    }

    fn running(mode: ActiveMode, attachment: Option<Attachment>, mut loaded: Loaded, notes: Vec<String>) -> Steering {
        // A release has no log map: then this fails, and that is all.
        let flush_logs = EbpfLogger::init(&mut loaded.ebpf).ok().map(|mut logger| Box::new(move || logger.flush()) as FlushLogs);
        Steering { mode, notes, attachment, maps: Some(loaded.maps), flush_logs: Mutex::new(flush_logs) }
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        // First no packet is moved any more, then no socket chosen.
        self.attachment = None;
        if let Some(maps) = &mut self.maps {
            maps.clear_sockets();
        }
    }
}

fn load_programs(options: &SteeringOptions<'_>) -> Result<Loaded, SteeringError> {
    assert!(options.udp_sockets.is_empty() || options.udp_sockets.len() == options.cpus.len(), "one datagram socket a shard");
    assert!(options.tcp_sockets.is_empty() || options.tcp_sockets.len() == options.cpus.len(), "one listening socket a shard");
    if let Some(missing) = rights::missing() {
        return Err(SteeringError::MissingRights { missing });
    }
    let plan = Plan {
        udp: options.udp,
        tcp: options.tcp,
        cpus: options.cpus,
        slot_to_core: options.slot_to_core,
        keys: options.keys,
        session_header: options.session_header,
    };
    load::load(options.ebpf_object, &plan)
}

/// The mode that was asked for, or the error.
fn attach_explicit(
    mode: SteeringMode,
    options: &SteeringOptions<'_>,
    loaded: &mut Loaded,
    notes: &mut Vec<String>,
) -> Result<(ActiveMode, Option<Attachment>), SteeringError> {
    let iface = |mode| options.iface.ok_or(SteeringError::NoInterface { mode });
    match mode {
        SteeringMode::Xdp => {
            let iface = iface("xdp")?;
            attach::sockets(loaded, &options.udp_sockets, &options.tcp_sockets)?;
            attach_xdp(loaded, iface, notes)
        }
        SteeringMode::Tc => {
            let iface = iface("tc")?;
            attach::sockets(loaded, &options.udp_sockets, &options.tcp_sockets)?;
            attach_tc(loaded, iface)
        }
        SteeringMode::Reuseport => {
            attach::sockets(loaded, &options.udp_sockets, &options.tcp_sockets)?;
            Ok((ActiveMode::Reuseport, None))
        }
        SteeringMode::Auto | SteeringMode::Off => unreachable!("handled by `Steering::start`"),
    }
}

/// The best mode that works.
fn start_any(options: &SteeringOptions<'_>) -> Result<Steering, SteeringError> {
    let mut notes = Vec::new();
    let mut loaded = match load_programs(options) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(Steering::off(vec![error.in_one_line()])),
    };
    if let Err(error) = attach::sockets(&mut loaded, &options.udp_sockets, &options.tcp_sockets) {
        loaded.maps.clear_sockets();
        return Ok(Steering::off(vec![error.in_one_line()]));
    }
    let Some(iface) = options.iface else {
        notes.push("no interface was named for xdp or tc".to_owned());
        return Ok(Steering::running(ActiveMode::Reuseport, None, loaded, notes));
    };
    match attach_xdp(&mut loaded, iface, &mut notes) {
        Ok((mode, attachment)) => return Ok(Steering::running(mode, attachment, loaded, notes)),
        Err(error @ (SteeringError::InterfaceTaken { .. } | SteeringError::UnknownInterface { .. })) => return Err(error),
        Err(error) => notes.push(error.in_one_line()),
    }
    match attach_tc(&mut loaded, iface) {
        Ok((mode, attachment)) => return Ok(Steering::running(mode, attachment, loaded, notes)),
        Err(error) => notes.push(error.in_one_line()),
    }
    Ok(Steering::running(ActiveMode::Reuseport, None, loaded, notes))
}

/// In the driver, or else in the stack.
fn attach_xdp(loaded: &mut Loaded, iface: &str, notes: &mut Vec<String>) -> Result<(ActiveMode, Option<Attachment>), SteeringError> {
    for is_native in [true, false] {
        match attach::xdp(loaded, iface, is_native) {
            Ok(attachment) => return Ok((ActiveMode::Xdp { iface: iface.to_owned(), is_native }, Some(attachment))),
            Err(error @ SteeringError::Attach { .. }) if is_native => notes.push(format!("native mode: {}", error.in_one_line())),
            Err(error) => return Err(error),
        }
    }
    unreachable!("the second turn returns")
}

fn attach_tc(loaded: &mut Loaded, iface: &str) -> Result<(ActiveMode, Option<Attachment>), SteeringError> {
    let attachment = attach::tc(loaded, iface, TcHook::of_this_kernel())?;
    Ok((ActiveMode::Tc { iface: iface.to_owned() }, Some(attachment)))
}

#[cfg(test)]
mod tests;
