//! Handles on the maps that are used while the programs run: flows, pins, slot owners, counters, events.
//! Every call is one system call; none belongs on a warm request's path.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::{CoreIndex, SessionId, SlotIndex};
use xfaas_common::map_layout::{
    COUNTERS_ENTRIES, FlowKey, INFLOW_ADMITTED, INFLOW_LIMIT, INFLOW_TAKEN, INFLOW_WORDS, INFLOWS_ENTRIES, Inflow, MAP_CONFIG,
    MAP_COUNTERS, MAP_FLOWS, MAP_INFLOWS, MAP_PINS, MAP_SLOT_TO_CORE, MAP_STAMPS, PinKey, STAMPS_ENTRIES, SteerConfig, SteerEvent, Verdict,
    drop_counter, port_stamp, slot_stamp,
};

use super::error::SteeringError;
use crate::sys::shm::SharedMemory;

/// Which core a TCP connection belongs to, as the programs know it, and when they saw packets. One handle a shard.
pub struct FlowTable {
    flows: HashMap<MapData, FlowKey, u32>,
    stamps: Stamps,
}

impl FlowTable {
    pub(super) fn new(flows: MapData, stamps: Stamps) -> Result<FlowTable, SteeringError> {
        let flows = HashMap::try_from(Map::LruHashMap(flows)).map_err(SteeringError::map(MAP_FLOWS))?;
        Ok(FlowTable { flows, stamps })
    }

    pub fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// From now on the connection's segments go to `core`. The table forgets its oldest entry when it is full.
    pub fn remember(&mut self, flow: FlowKey, core: CoreIndex) -> Result<(), SteeringError> {
        self.flows.insert(flow, u32::from(core.0), 0).map_err(SteeringError::map(MAP_FLOWS))
    }

    /// Segments of the connection are steered no more. Forgetting an unknown one is fine.
    pub fn forget(&mut self, flow: FlowKey) -> Result<(), SteeringError> {
        ignore_absent(self.flows.remove(&flow)).map_err(SteeringError::map(MAP_FLOWS))
    }

    /// The core of a connection, if the programs know one.
    pub fn core(&self, flow: &FlowKey) -> Result<Option<CoreIndex>, SteeringError> {
        match self.flows.get(flow, 0) {
            Ok(core) => Ok(Some(CoreIndex(core as u16))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(SteeringError::Map { map: MAP_FLOWS, source }),
        }
    }
}

fn ignore_absent(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// When packets were last seen by the programs, in memory that they write: reading is no system call.
#[derive(Debug)]
pub struct Stamps {
    memory: SharedMemory,
}

impl Stamps {
    pub(super) fn map(stamps: &MapData) -> Result<Stamps, SteeringError> {
        let bytes = STAMPS_ENTRIES as usize * size_of::<u64>();
        Ok(Stamps { memory: memory_of(stamps, MAP_STAMPS, |file| SharedMemory::read_only_bytes(file, bytes))? })
    }

    /// The last datagram for a session of this slot; nanoseconds of the monotonic clock, 0: none since stamps are written.
    pub fn datagram_ns(&self, slot: SlotIndex) -> u64 {
        self.entry(slot_stamp(slot))
    }

    /// The last segment with a payload that came from this port.
    pub fn segment_ns(&self, source_port: u16) -> u64 {
        self.entry(port_stamp(source_port))
    }

    fn entry(&self, entry: u32) -> u64 {
        self.memory.words()[entry as usize].load(Ordering::Relaxed)
    }
}

/// The queue of datagrams from XDP to one shard, as both sides count it, in memory that they share. One handle a shard: it alone writes.
#[derive(Debug)]
pub struct Gate {
    memory: SharedMemory,
    first_word: usize,
}

impl Gate {
    /// A limit: nothing is let in. The least of signed numbers, as which the programs read it.
    pub const CLOSED: u64 = 1 << 63;

    pub(super) fn map(inflows: &MapData, core: CoreIndex) -> Result<Gate, SteeringError> {
        let bytes = INFLOWS_ENTRIES as usize * size_of::<Inflow>();
        Ok(Gate::over(memory_of(inflows, MAP_INFLOWS, |file| SharedMemory::of_bytes(file, bytes))?, core))
    }

    /// Input: memory laid out as the map, zero at first.
    pub(crate) fn over(memory: SharedMemory, core: CoreIndex) -> Gate {
        Gate { memory, first_word: core.index() * INFLOW_WORDS }
    }

    /// Datagrams that were let in since the programs were loaded.
    pub fn admitted(&self) -> u64 {
        self.word(INFLOW_ADMITTED).load(Ordering::Relaxed)
    }

    /// So many of them are no more on their way.
    pub fn set_taken(&self, datagrams: u64) {
        self.word(INFLOW_TAKEN).store(datagrams, Ordering::Relaxed);
    }

    /// So many may be on their way; 0: any number, as at the start.
    pub fn set_limit(&self, datagrams: u64) {
        self.word(INFLOW_LIMIT).store(datagrams, Ordering::Relaxed);
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        &self.memory.words()[self.first_word + word]
    }
}

/// Sessions moved by hand, and the owners of slots. One handle a process: it alone writes the configuration.
pub struct Pins {
    pins: HashMap<MapData, PinKey, u32>,
    slots: Array<MapData, u16>,
    config: Array<MapData, SteerConfig>,
}

impl Pins {
    pub(super) fn new(pins: MapData, slots: MapData, config: MapData) -> Result<Pins, SteeringError> {
        Ok(Pins {
            pins: HashMap::try_from(Map::LruHashMap(pins)).map_err(SteeringError::map(MAP_PINS))?,
            slots: Array::try_from(Map::Array(slots)).map_err(SteeringError::map(MAP_SLOT_TO_CORE))?,
            config: Array::try_from(Map::Array(config)).map_err(SteeringError::map(MAP_CONFIG))?,
        })
    }

    /// From now on the session's packets go to `core`, whoever owns its slot. A full table drops the pin that was used least lately.
    pub fn pin(&mut self, session: &SessionId, core: CoreIndex) -> Result<(), SteeringError> {
        self.pins.insert(PinKey::new(session), u32::from(core.0), 0).map_err(SteeringError::map(MAP_PINS))?;
        self.update_config(|config| config.pins = 1)
    }

    /// The session goes back to the owner of its slot. Unpinning an unpinned one is fine.
    pub fn unpin(&mut self, session: &SessionId) -> Result<(), SteeringError> {
        ignore_absent(self.pins.remove(&PinKey::new(session))).map_err(SteeringError::map(MAP_PINS))?;
        if self.pins.keys().next().is_none() {
            // Nobody looks for pins any more: a look-up less for every packet.
            self.update_config(|config| config.pins = 0)?;
        }
        Ok(())
    }

    /// From now on the slot's packets go to `core`.
    pub fn set_slot_owner(&mut self, slot: SlotIndex, core: CoreIndex) -> Result<(), SteeringError> {
        self.slots.set(slot.index() as u32, core.0, 0).map_err(SteeringError::map(MAP_SLOT_TO_CORE))
    }

    /// On: every 1024th packet of each verdict leaves an event, for `Events`.
    pub fn set_sampling(&mut self, is_on: bool) -> Result<(), SteeringError> {
        self.update_config(|config| config.sample_events = u16::from(is_on))
    }

    /// On: the programs write `Stamps`.
    pub fn set_stamps(&mut self, is_on: bool) -> Result<(), SteeringError> {
        self.update_config(|config| config.stamps = u64::from(is_on))
    }

    /// On: several datagrams may come to the XDP program as one packet.
    pub(super) fn set_merges(&mut self, merges: bool) -> Result<(), SteeringError> {
        self.update_config(|config| config.merges = u16::from(merges))
    }

    /// The programs may read while this writes. Fields that do not change are written as they were, so only the changed one can be seen
    /// as old or new, and either is right for a moment.
    fn update_config(&mut self, change: impl FnOnce(&mut SteerConfig)) -> Result<(), SteeringError> {
        let mut config = self.config.get(&0, 0).map_err(SteeringError::map(MAP_CONFIG))?;
        change(&mut config);
        self.config.set(0, config, 0).map_err(SteeringError::map(MAP_CONFIG))
    }
}

/// What the programs counted since they were loaded, summed over all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteeringCounters {
    counts: [u64; COUNTERS_ENTRIES as usize],
}

impl SteeringCounters {
    /// Steering is off: nothing was counted.
    pub(super) const NONE: SteeringCounters = SteeringCounters { counts: [0; COUNTERS_ENTRIES as usize] };

    pub(super) fn read(counters: &PerCpuArray<MapData, u64>) -> Result<SteeringCounters, SteeringError> {
        let mut sums = SteeringCounters::NONE;
        for (index, sum) in sums.counts.iter_mut().enumerate() {
            let values = counters.get(&(index as u32), 0).map_err(SteeringError::map(MAP_COUNTERS))?;
            *sum = values.iter().sum();
        }
        Ok(sums)
    }

    /// Packets with this verdict.
    pub fn verdict(&self, verdict: Verdict) -> u64 {
        self.counts[verdict as usize]
    }

    /// Datagrams dropped in the kernel for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.counts[drop_counter(reason) as usize]
    }

    /// All verdicts by name.
    pub fn verdicts(&self) -> Vec<(&'static str, u64)> {
        Verdict::ALL.iter().map(|verdict| (verdict.name(), self.verdict(*verdict))).collect()
    }

    /// All drop reasons by name.
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        DropReason::ALL.iter().map(|reason| (reason.name(), self.dropped(*reason))).collect()
    }
}

/// Sampled verdicts, oldest first; see `Pins::set_sampling`.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Events {
        Events { ring }
    }

    /// The next event, or `None` when there is none yet. Never waits.
    pub fn next_event(&mut self) -> Option<SteerEvent> {
        let item = self.ring.next()?;
        let bytes: &[u8; size_of::<SteerEvent>()] = item.first_chunk()?;
        let (time_ns, rest) = bytes.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk::<8>()?;
        let (counter, cpu) = rest.split_first_chunk::<4>()?;
        Some(SteerEvent {
            time_ns: u64::from_ne_bytes(*time_ns),
            count: u64::from_ne_bytes(*count),
            counter: u32::from_ne_bytes(*counter),
            cpu: u32::from_ne_bytes(*cpu.first_chunk()?),
        })
    }
}

/// The memory of a map that user space may map.
fn memory_of(
    map: &MapData,
    name: &'static str,
    open: impl FnOnce(&File) -> io::Result<SharedMemory>,
) -> Result<SharedMemory, SteeringError> {
    let opened = map.fd().as_fd().try_clone_to_owned().and_then(|descriptor| open(&File::from(descriptor)));
    opened.map_err(|source| SteeringError::Duplicate { map: name, source })
}

/// A second handle on the same map.
pub(super) fn duplicate(map: &MapData, name: &'static str) -> Result<MapData, SteeringError> {
    let descriptor = map.fd().as_fd().try_clone_to_owned().map_err(|source| SteeringError::Duplicate { map: name, source })?;
    MapData::from_fd(descriptor).map_err(SteeringError::map(name))
}
