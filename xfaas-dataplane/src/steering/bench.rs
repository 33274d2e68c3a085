//! Runs a program on one packet without attaching it, by the kernel's test-run: for the bench and for tests.

use std::net::SocketAddr;

use aya::{TestRun, TestRunAttrs, TestRunOptions};
use xfaas_common::hash::HashKeys;
use xfaas_common::ids::CoreIndex;
use xfaas_common::map_layout::{PROGRAM_TC, PROGRAM_XDP};

use super::error::SteeringError;
use super::load::{self, Loaded, Plan};
use super::maps::{Events, FlowTable, Gate, Pins, SteeringCounters};

/// `struct xdp_md` of include/uapi/linux/bpf.h: six 32-bit numbers, of which the second and the fourth count here.
const XDP_CONTEXT_BYTES: usize = 24;
const XDP_DATA_END: usize = 4;
const XDP_INTERFACE: usize = 12;

/// An answer may be so much longer than its request.
const FRAME_GROWS_MAX: usize = 64;

/// What the programs are to know; see `SteeringOptions`.
#[derive(Clone, Copy)]
pub struct SteerBenchOptions<'a> {
    pub udp: SocketAddr,
    pub tcp: SocketAddr,
    /// CPU numbers, one a shard.
    pub cpus: &'a [u16],
    /// Core index of each slot, `SLOTS` of them.
    pub slot_to_core: &'a [u16],
    pub keys: &'a HashKeys,
    pub session_header: &'a [u8],
}

/// A program that takes whole frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteerProgram {
    Xdp,
    Tc,
}

/// What a program did with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteerRun {
    /// `XDP_*` or `TC_ACT_*`.
    pub action: u32,
    /// Nanoseconds a packet, the mean of all repeats.
    pub ns_per_packet: u64,
}

/// The programs, loaded and configured, attached to nothing.
pub struct SteerBench {
    loaded: Loaded,
}

impl SteerBench {
    /// Loads the object and has the verifier look at all four programs.
    pub fn load(object: &[u8], options: &SteerBenchOptions<'_>) -> Result<SteerBench, SteeringError> {
        let SteerBenchOptions { udp, tcp, cpus, slot_to_core, keys, session_header } = *options;
        let mut loaded = load::load(object, &Plan { udp, tcp, cpus, slot_to_core, keys, session_header })?;
        load::xdp(&mut loaded.ebpf)?;
        load::tc(&mut loaded.ebpf)?;
        load::reuseport_udp(&mut loaded.ebpf)?;
        load::reuseport_tcp(&mut loaded.ebpf)?;
        Ok(SteerBench { loaded })
    }

    /// Runs a program on `frame`, which begins with its Ethernet header, `repeats` times on the calling CPU.
    /// The maps keep what a repeat left in them.
    pub fn run(&mut self, program: SteerProgram, frame: &[u8], repeats: u32) -> Result<SteerRun, SteeringError> {
        let options = TestRunOptions { data_in: Some(frame), repeat: repeats, ..TestRunOptions::new() };
        let result = match program {
            SteerProgram::Xdp => load::xdp(&mut self.loaded.ebpf)?.test_run(options).map_err(SteeringError::program(PROGRAM_XDP))?,
            SteerProgram::Tc => load::tc(&mut self.loaded.ebpf)?.test_run(options).map_err(SteeringError::program(PROGRAM_TC))?,
        };
        // The kernel has divided by the repeats already: net/bpf/test_run.c, bpf_test_timer_continue.
        Ok(SteerRun { action: result.return_value, ns_per_packet: result.duration.as_nanos() as u64 })
    }

    /// Runs XDP on `frame` once. Output: the action, and the frame as the program left it.
    pub fn run_through(&mut self, frame: &[u8]) -> Result<(u32, Vec<u8>), SteeringError> {
        let mut out = vec![0; frame.len() + FRAME_GROWS_MAX];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = load::xdp(&mut self.loaded.ebpf)?.test_run(options).map_err(SteeringError::program(PROGRAM_XDP))?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// Runs XDP on `frame` once as if it had come in on the interface with this index, and lets the kernel do what it decides: give it to
    /// the stack, drop it, or move it to another CPU. The frame fits in a page.
    pub fn deliver(&mut self, frame: &[u8], interface: u32) -> Result<(), SteeringError> {
        let mut context = [0; XDP_CONTEXT_BYTES];
        context[XDP_DATA_END..XDP_DATA_END + 4].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[XDP_INTERFACE..XDP_INTERFACE + 4].copy_from_slice(&interface.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            attrs: TestRunAttrs::new().xdp_live_frames(0),
            ..TestRunOptions::new()
        };
        load::xdp(&mut self.loaded.ebpf)?.test_run(options).map_err(SteeringError::program(PROGRAM_XDP))?;
        Ok(())
    }

    /// As if XDP were attached in the stack.
    pub fn set_merges(&mut self, merges: bool) -> Result<(), SteeringError> {
        self.loaded.maps.set_merges(merges)
    }

    pub fn counters(&self) -> Result<SteeringCounters, SteeringError> {
        self.loaded.maps.counters()
    }

    pub fn flow_table(&self) -> Result<FlowTable, SteeringError> {
        self.loaded.maps.flow_table()
    }

    pub fn gate(&self, core: CoreIndex) -> Result<Gate, SteeringError> {
        self.loaded.maps.gate(core)
    }

    pub fn pins(&self) -> Result<Pins, SteeringError> {
        self.loaded.maps.pins()
    }

    pub fn events(&self) -> Result<Events, SteeringError> {
        self.loaded.maps.events()
    }
}
