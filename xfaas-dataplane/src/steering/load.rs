//! Loads the kernel programs and fills their maps. Called by `Steering::start` and by `SteerBench`; attaches nothing.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::maps::xdp::{CpuMap, XdpMapError};
use aya::maps::{Array, Map, MapData, PerCpuArray, ReusePortSockArray, RingBuf};
use aya::programs::{SchedClassifier, SkReuseport, Xdp};
use aya::{Ebpf, EbpfLoader};
use object::{Object, ObjectSection};
use xfaas_common::hash::HashKeys;
use xfaas_common::ids::CoreIndex;
use xfaas_common::layout_tag::{LAYOUT_SECTION, LAYOUT_TAG};
use xfaas_common::limits::{CORES_MAX, SLOTS};
use xfaas_common::map_layout::{
    CORE_NONE, CPUMAP_QUEUE_FRAMES, CPUS_ENTRIES, HeaderPattern, Listen, Listens, MAP_CONFIG, MAP_COUNTERS, MAP_CPUS, MAP_EVENTS,
    MAP_FLOWS, MAP_INFLOWS, MAP_KEYS, MAP_PINS, MAP_SLOT_TO_CORE, MAP_STAMPS, MAP_TCP_SOCKETS, MAP_UDP_SOCKETS, PROGRAM_REUSEPORT_TCP,
    PROGRAM_REUSEPORT_UDP, PROGRAM_TC, PROGRAM_XDP, SteerConfig,
};

use super::delivery;
use super::error::SteeringError;
use super::maps::{Events, FlowTable, Gate, Pins, Stamps, SteeringCounters, duplicate};

/// What the programs are to know.
#[derive(Clone, Copy)]
pub(super) struct Plan<'a> {
    pub udp: SocketAddr,
    pub tcp: SocketAddr,
    /// CPU numbers, one a shard, 1..=CORES_MAX of them.
    pub cpus: &'a [u16],
    /// Core index of each slot.
    pub slot_to_core: &'a [u16],
    pub keys: &'a HashKeys,
    /// In any case. One that the programs cannot look for leaves TCP steering to `FlowTable`.
    pub session_header: &'a [u8],
}

/// The loaded object: programs in `ebpf`, the maps beside it.
pub(super) struct Loaded {
    pub ebpf: Ebpf,
    pub maps: Maps,
}

/// The maps, held by descriptor: they go when the last program and this go.
pub(super) struct Maps {
    pub counters: PerCpuArray<MapData, u64>,
    pub udp_sockets: ReusePortSockArray<MapData>,
    pub tcp_sockets: ReusePortSockArray<MapData>,
    flows: MapData,
    pins: MapData,
    slots: MapData,
    config: MapData,
    events: MapData,
    stamps: MapData,
    inflows: MapData,
    // Never touched again, but the descriptors must stay open until the programs are loaded: their instructions name them.
    _keys: Array<MapData, HashKeys>,
    _cpus: CpuMap<MapData>,
}

impl Maps {
    pub fn flow_table(&self) -> Result<FlowTable, SteeringError> {
        FlowTable::new(duplicate(&self.flows, MAP_FLOWS)?, Stamps::map(&self.stamps)?)
    }

    pub fn gate(&self, core: CoreIndex) -> Result<Gate, SteeringError> {
        Gate::map(&self.inflows, core)
    }

    pub fn pins(&self) -> Result<Pins, SteeringError> {
        Pins::new(duplicate(&self.pins, MAP_PINS)?, duplicate(&self.slots, MAP_SLOT_TO_CORE)?, duplicate(&self.config, MAP_CONFIG)?)
    }

    pub fn events(&self) -> Result<Events, SteeringError> {
        let ring = RingBuf::try_from(Map::RingBuf(duplicate(&self.events, MAP_EVENTS)?)).map_err(SteeringError::map(MAP_EVENTS))?;
        Ok(Events::new(ring))
    }

    pub fn counters(&self) -> Result<SteeringCounters, SteeringError> {
        SteeringCounters::read(&self.counters)
    }

    /// Entry `i` becomes the socket of core `i`.
    pub fn set_sockets(&mut self, udp: &[BorrowedFd<'_>], tcp: &[BorrowedFd<'_>]) -> Result<(), SteeringError> {
        for (core, socket) in udp.iter().enumerate() {
            self.udp_sockets.set(core as u32, &socket.as_raw_fd(), 0).map_err(SteeringError::map(MAP_UDP_SOCKETS))?;
        }
        for (core, socket) in tcp.iter().enumerate() {
            self.tcp_sockets.set(core as u32, &socket.as_raw_fd(), 0).map_err(SteeringError::map(MAP_TCP_SOCKETS))?;
        }
        Ok(())
    }

    /// Says to the XDP program whether it runs in the stack. Call it before that is attached.
    pub fn set_merges(&self, merges: bool) -> Result<(), SteeringError> {
        self.pins()?.set_merges(merges)
    }

    /// After this the socket programs choose nothing, and the kernel's own choice stands.
    pub fn clear_sockets(&mut self) {
        for core in 0..CORES_MAX as u32 {
            // An empty entry is an error to the kernel and none to us.
            drop(self.udp_sockets.clear_index(&core));
            drop(self.tcp_sockets.clear_index(&core));
        }
    }
}

/// Input: the compiled object and what the programs are to know. Output: the object with its maps created and filled, no program loaded
/// yet. Cost: some milliseconds, most of them for the 16,384 slots.
pub(super) fn load(object: &[u8], plan: &Plan<'_>) -> Result<Loaded, SteeringError> {
    assert!((1..=CORES_MAX).contains(&plan.cpus.len()), "the configuration allows 1..=CORES_MAX shards");
    assert!(plan.slot_to_core.len() == SLOTS, "every slot has an owner");
    if object.is_empty() {
        return Err(SteeringError::NoObject);
    }
    check_tag(object)?;
    let cpu_max = plan.cpus.iter().copied().max().unwrap_or(0);
    if u32::from(cpu_max) >= CPUS_ENTRIES {
        return Err(SteeringError::CpuTooLarge { cpu: cpu_max, limit: CPUS_ENTRIES });
    }
    // The kernel refuses a CPUMAP with more entries than it was built for CPUs.
    let mut ebpf = EbpfLoader::new().map_max_entries(MAP_CPUS, u32::from(cpu_max) + 1).load(object).map_err(SteeringError::Load)?;
    let maps = fill(&mut ebpf, plan)?;
    Ok(Loaded { ebpf, maps })
}

/// Refuses an object that was built with other layouts, or another session hash, than this binary: it would steer to wrong cores without a word.
fn check_tag(object: &[u8]) -> Result<(), SteeringError> {
    let section =
        object::File::parse(object).ok().and_then(|file| Some(file.section_by_name(LAYOUT_SECTION)?.data().ok()?.first_chunk().copied()));
    let found = u64::from_le_bytes(section.flatten().ok_or(SteeringError::NoTag { section: LAYOUT_SECTION })?);
    if found == LAYOUT_TAG { Ok(()) } else { Err(SteeringError::OtherBuild { found, wanted: LAYOUT_TAG }) }
}

fn fill(ebpf: &mut Ebpf, plan: &Plan<'_>) -> Result<Maps, SteeringError> {
    let config = take(ebpf, MAP_CONFIG)?;
    let mut entry: Array<_, SteerConfig> =
        Array::try_from(Map::Array(duplicate(&config, MAP_CONFIG)?)).map_err(SteeringError::map(MAP_CONFIG))?;
    entry.set(0, steer_config(plan), 0).map_err(SteeringError::map(MAP_CONFIG))?;

    let mut keys: Array<_, HashKeys> = Array::try_from(Map::Array(take(ebpf, MAP_KEYS)?)).map_err(SteeringError::map(MAP_KEYS))?;
    keys.set(0, plan.keys, 0).map_err(SteeringError::map(MAP_KEYS))?;

    let slots = take(ebpf, MAP_SLOT_TO_CORE)?;
    let mut owners: Array<_, u16> =
        Array::try_from(Map::Array(duplicate(&slots, MAP_SLOT_TO_CORE)?)).map_err(SteeringError::map(MAP_SLOT_TO_CORE))?;
    for (slot, core) in plan.slot_to_core.iter().enumerate() {
        owners.set(slot as u32, core, 0).map_err(SteeringError::map(MAP_SLOT_TO_CORE))?;
    }

    let cpus = take(ebpf, MAP_CPUS)?;
    let cpus_id = cpus.info().map_err(SteeringError::map(MAP_CPUS))?.id();
    let mut cpus = CpuMap::try_from(Map::CpuMap(cpus)).map_err(SteeringError::map(MAP_CPUS))?;
    for cpu in plan.cpus {
        cpus.set(u32::from(*cpu), CPUMAP_QUEUE_FRAMES, None, 0).map_err(|error| match error {
            XdpMapError::MapError(source) => SteeringError::Map { map: MAP_CPUS, source },
            XdpMapError::ChainedProgramNotSupported => unreachable!("no program is chained"),
        })?;
    }
    if let Err(error) = delivery::let_shards_finish(cpus_id, plan.cpus) {
        tracing::info!("the kernel's threads that bring steered packets may interrupt the shards: {error}");
    }

    Ok(Maps {
        counters: PerCpuArray::try_from(Map::PerCpuArray(take(ebpf, MAP_COUNTERS)?)).map_err(SteeringError::map(MAP_COUNTERS))?,
        udp_sockets: socket_array(ebpf, MAP_UDP_SOCKETS)?,
        tcp_sockets: socket_array(ebpf, MAP_TCP_SOCKETS)?,
        flows: take(ebpf, MAP_FLOWS)?,
        pins: take(ebpf, MAP_PINS)?,
        slots,
        config,
        events: take(ebpf, MAP_EVENTS)?,
        stamps: take(ebpf, MAP_STAMPS)?,
        inflows: take(ebpf, MAP_INFLOWS)?,
        _keys: keys,
        _cpus: cpus,
    })
}

fn steer_config(plan: &Plan<'_>) -> SteerConfig {
    let mut config = SteerConfig {
        listens: Listens { udp: Listen::on(plan.udp), tcp: Listen::on(plan.tcp) },
        cores: plan.cpus.len() as u16,
        merges: 0,
        pad: 0,
        sample_events: 0,
        pins: 0,
        stamps: 0,
        header: HeaderPattern::new(plan.session_header).unwrap_or(HeaderPattern::NONE),
        cpu_of_core: [0; CORES_MAX],
        core_of_cpu: [CORE_NONE; CPUS_ENTRIES as usize],
    };
    for (core, cpu) in plan.cpus.iter().enumerate() {
        config.cpu_of_core[core] = *cpu;
        config.core_of_cpu[usize::from(*cpu)] = core as u16;
    }
    config
}

fn socket_array(ebpf: &mut Ebpf, name: &'static str) -> Result<ReusePortSockArray<MapData>, SteeringError> {
    ReusePortSockArray::try_from(Map::ReusePortSockArray(take(ebpf, name)?)).map_err(SteeringError::map(name))
}

/// A map as its data, whatever its type: the typed handle checks that.
fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, SteeringError> {
    match ebpf.take_map(name) {
        Some(
            Map::Array(data)
            | Map::LruHashMap(data)
            | Map::CpuMap(data)
            | Map::PerCpuArray(data)
            | Map::ReusePortSockArray(data)
            | Map::RingBuf(data),
        ) => Ok(data),
        Some(_) => Err(SteeringError::Missing { kind: "map of a type of ours", name }),
        None => Err(SteeringError::Missing { kind: "map", name }),
    }
}

pub(super) fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, SteeringError> {
    let program = ebpf.program_mut(PROGRAM_XDP).ok_or(SteeringError::Missing { kind: "program", name: PROGRAM_XDP })?;
    let program: &mut Xdp = program.try_into().map_err(SteeringError::program(PROGRAM_XDP))?;
    if program.fd().is_err() {
        program.load().map_err(SteeringError::program(PROGRAM_XDP))?;
    }
    Ok(program)
}

pub(super) fn tc(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, SteeringError> {
    let program = ebpf.program_mut(PROGRAM_TC).ok_or(SteeringError::Missing { kind: "program", name: PROGRAM_TC })?;
    let program: &mut SchedClassifier = program.try_into().map_err(SteeringError::program(PROGRAM_TC))?;
    if program.fd().is_err() {
        program.load().map_err(SteeringError::program(PROGRAM_TC))?;
    }
    Ok(program)
}

pub(super) fn reuseport_udp(ebpf: &mut Ebpf) -> Result<&mut SkReuseport, SteeringError> {
    reuseport(ebpf, PROGRAM_REUSEPORT_UDP)
}

pub(super) fn reuseport_tcp(ebpf: &mut Ebpf) -> Result<&mut SkReuseport, SteeringError> {
    reuseport(ebpf, PROGRAM_REUSEPORT_TCP)
}

fn reuseport<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SkReuseport, SteeringError> {
    let program = ebpf.program_mut(name).ok_or(SteeringError::Missing { kind: "program", name })?;
    let program: &mut SkReuseport = program.try_into().map_err(SteeringError::program(name))?;
    if program.fd().is_err() {
        program.load().map_err(SteeringError::program(name))?;
    }
    Ok(program)
}
