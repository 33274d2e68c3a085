//! The maps, and everything that needs a raw pointer of the kernel's. Called by `steer`, `redirect` and the entry points; reads no packet.

use core::ffi::c_void;
use core::ptr::from_ref;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_fib_lookup as bpf_fib_lookup_params, xdp_md};
use aya_ebpf::helpers::{
    bpf_fib_lookup, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_loop, bpf_redirect, bpf_skb_load_bytes, bpf_xdp_adjust_head,
    bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, CpuMap, LruHashMap, PerCpuArray, ReusePortSockArray, RingBuf};
use aya_ebpf::programs::{SkReuseportContext, TcContext, XdpContext};
use xfaas_common::drop_reason::DropReason;
use xfaas_common::hash::HashKeys;
use xfaas_common::ids::SlotIndex;
use xfaas_common::layout_tag::LAYOUT_TAG;
use xfaas_common::limits::SESSION_ID_BYTES_MAX;
use xfaas_common::map_layout::{
    COUNTERS_ENTRIES, CPUS_ENTRIES, EVENTS_BYTES, FLOWS_ENTRIES, FlowKey, INFLOW_ADMITTED, INFLOW_KNOCK_AT_NS, INFLOW_KNOCK_NS,
    INFLOW_LIMIT, INFLOW_STUCK_AT, INFLOW_STUCK_SINCE_NS, INFLOW_TAKEN, INFLOWS_ENTRIES, Inflow, PINS_ENTRIES, PinKey,
    SLOT_TO_CORE_ENTRIES, SOCKETS_ENTRIES, STAMPS_ENTRIES, SteerConfig, SteerEvent, Verdict, drop_counter,
};
use xfaas_common::wire::HEADER_BYTES;
use xfaas_ebpf::head::{HEAD_COPY_BYTES, SCAN_STEPS_MAX, Scan};
use xfaas_ebpf::parse::{HEAD_BUFFER_BYTES, HeadBytes, Packet, Segment, opaque_zero};
use xfaas_ebpf::session::SessionWords;

// The names are those of `xfaas_common::map_layout`; the loader refuses an object in which one is missing.
#[map]
static CONFIG: Array<SteerConfig> = Array::with_max_entries(1, 0);
#[map]
static KEYS: Array<HashKeys> = Array::with_max_entries(1, 0);
#[map]
static SLOT_TO_CORE: Array<u16> = Array::with_max_entries(SLOT_TO_CORE_ENTRIES, 0);
#[map]
static PINS: LruHashMap<PinKey, u32> = LruHashMap::with_max_entries(PINS_ENTRIES, 0);
#[map]
static FLOWS: LruHashMap<FlowKey, u32> = LruHashMap::with_max_entries(FLOWS_ENTRIES, 0);
#[map]
static CPUS: CpuMap = CpuMap::with_max_entries(CPUS_ENTRIES, 0);
#[map]
static UDP_SOCKETS: ReusePortSockArray = ReusePortSockArray::with_max_entries(SOCKETS_ENTRIES, 0);
#[map]
static TCP_SOCKETS: ReusePortSockArray = ReusePortSockArray::with_max_entries(SOCKETS_ENTRIES, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_ENTRIES, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);
#[map]
static HEADS: PerCpuArray<HeadBytes> = PerCpuArray::with_max_entries(1, 0);

/// `bpf_map_create`: user space may map the array (include/uapi/linux/bpf.h).
const BPF_F_MMAPABLE: u32 = 1 << 10;
#[map]
static STAMPS: Array<u64> = Array::with_max_entries(STAMPS_ENTRIES, BPF_F_MMAPABLE);
#[map]
static INFLOWS: Array<Inflow> = Array::with_max_entries(INFLOWS_ENTRIES, BPF_F_MMAPABLE);

// Several helpers are open to programs of this licence only; the project's own stays as its files say.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

// What this object was built to agree on; the loader compares it with its own (`layout_tag::LAYOUT_SECTION`).
#[unsafe(no_mangle)]
#[unsafe(link_section = "xfaas_layout")]
static XFAAS_LAYOUT: [u8; 8] = LAYOUT_TAG.to_le_bytes();

/// include/linux/socket.h.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// What `bpf_fib_lookup` answers (include/uapi/linux/bpf.h): the packet goes to this host, or this host passes nothing on.
const NOT_FORWARDED: i64 = 4;
const FORWARDING_DISABLED: i64 = 5;
/// Every 1024th count leaves an event.
const SAMPLE_MASK: u64 = 1_023;
/// Bytes of a UDP header, over which the copy of a datagram's payload steps.
const UDP_HEADER_BYTES: u32 = 8;
/// Bytes of a datagram's payload that hold header and session ID.
const REQUEST_BYTES_MAX: u32 = (HEADER_BYTES + SESSION_ID_BYTES_MAX) as u32;

/// `None` before the loader has filled it in: cannot happen once a program is attached.
#[inline(always)]
pub fn config() -> Option<&'static SteerConfig> {
    CONFIG.get(0)
}

#[inline(always)]
pub fn keys() -> Option<&'static HashKeys> {
    KEYS.get(0)
}

/// The core that owns a slot.
#[inline(always)]
pub fn slot_core(slot: SlotIndex) -> Option<u32> {
    SLOT_TO_CORE.get(u32::from(slot.0)).map(|core| u32::from(*core))
}

/// The core to which a session was moved by hand.
#[inline(always)]
pub fn pinned_core(session: &SessionWords) -> Option<u32> {
    let mut padded = [0; SESSION_ID_BYTES_MAX];
    let mut i = 0;
    while i < session.words.len() {
        let bytes = session.words[i].to_le_bytes();
        let mut j = 0;
        while j < bytes.len() {
            padded[8 * i + j] = bytes[j];
            j += 1;
        }
        i += 1;
    }
    // One word that the compiler stores whole, instead of a call that clears seven bytes.
    let [length, pad @ ..] = (u64::from(session.length) | opaque_zero()).to_le_bytes();
    let core = PINS.get_ptr(PinKey { padded, length, pad })?;
    // SAFETY: a pointer into an element of the map, null excluded by `?`; the kernel keeps the element's memory while the program runs,
    // and one aligned `u32` is read whole even while someone else replaces it.
    Some(unsafe { core.read_volatile() })
}

#[inline(always)]
pub fn flow_core(flow: &FlowKey) -> Option<u32> {
    let core = FLOWS.get_ptr(flow)?;
    // SAFETY: as in `pinned_core`: an element of the map, alive while the program runs, one aligned `u32`.
    Some(unsafe { core.read_volatile() })
}

/// A full map drops its oldest flow; if even that fails, the flow is looked for again in its next segment.
#[inline(always)]
pub fn learn_flow(flow: &FlowKey, core: u32) -> bool {
    FLOWS.insert(flow, core, 0).is_ok()
}

/// True when the flow was known.
#[inline(always)]
pub fn forget_flow(flow: &FlowKey) -> bool {
    FLOWS.remove(flow).is_ok()
}

/// Notes that a packet was seen now.
#[inline(always)]
pub fn stamp(entry: u32) {
    let Some(stamp) = STAMPS.get_ptr_mut(entry) else { return };
    // SAFETY: the helper takes no argument and reads the monotonic clock.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as in `pinned_core`: an element of the map, alive while the program runs, one aligned `u64`; whoever writes last is right.
    unsafe { stamp.write_volatile(now_ns) };
}

/// Counts a datagram into the queue of a core. Output: false when that is full: the datagram must not go there.
/// Several CPUs may let in one more each than there is room for.
#[inline(always)]
pub fn let_in(core: u32) -> bool {
    let Some(inflow) = INFLOWS.get_ptr_mut(core) else { return true };
    let words = inflow.cast::<u64>();
    // SAFETY: as in `pinned_core`: an element of the map, alive while the program runs, of which this is one aligned `u64`.
    let limit = unsafe { words.wrapping_add(INFLOW_LIMIT).read_volatile() };
    // SAFETY: as above.
    let taken = unsafe { words.wrapping_add(INFLOW_TAKEN).read_volatile() };
    // SAFETY: as above.
    let admitted = unsafe { words.wrapping_add(INFLOW_ADMITTED).read_volatile() };
    // What is lost on the way makes the queue look fuller than it is until the shard catches up. Signed, for the limit that is below any number.
    if limit != 0 && admitted.wrapping_sub(taken) as i64 >= limit as i64 && ((limit as i64) < 0 || !knocks(words, taken)) {
        return false;
    }
    count_one(words.wrapping_add(INFLOW_ADMITTED));
    true
}

/// True for the few that are let in although there is no room, because the shard has taken nothing for long: if all that was let in was lost, it sleeps
/// and does not know. CPUs that get here at once may let in one each.
#[inline(never)]
fn knocks(words: *mut u64, taken: u64) -> bool {
    // SAFETY: the helper takes no argument and reads the monotonic clock.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: `let_in` hands over the words of an element of the map, alive while the program runs; this is one aligned `u64` of it.
    let stuck_at = unsafe { words.wrapping_add(INFLOW_STUCK_AT).read_volatile() };
    // SAFETY: as above.
    let since_ns = unsafe { words.wrapping_add(INFLOW_STUCK_SINCE_NS).read_volatile() };
    // SAFETY: as above.
    let knock_at_ns = unsafe { words.wrapping_add(INFLOW_KNOCK_AT_NS).read_volatile() };
    let is_new = stuck_at != taken || since_ns == 0;
    if !is_new && now_ns < knock_at_ns {
        return false;
    }
    let next_ns = if is_new { INFLOW_KNOCK_NS } else { now_ns.wrapping_sub(since_ns) };
    // SAFETY: as above; of CPUs that write at once any may be the last.
    unsafe { words.wrapping_add(INFLOW_KNOCK_AT_NS).write_volatile(now_ns.wrapping_add(next_ns)) };
    if !is_new {
        return true;
    }
    // SAFETY: as above.
    unsafe { words.wrapping_add(INFLOW_STUCK_AT).write_volatile(taken) };
    // SAFETY: as above.
    unsafe { words.wrapping_add(INFLOW_STUCK_SINCE_NS).write_volatile(now_ns) };
    false
}

/// One more, whoever else counts. The compiler has no atomic additions for this target; the kernel has the instruction.
#[inline(always)]
fn count_one(word: *mut u64) {
    #[cfg(target_arch = "bpf")]
    {
        let one = 1_u64;
        // SAFETY: `let_in` hands over an aligned word of an element of the map, alive while the program runs; no flag, no stack.
        unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) one, options(nostack)) };
    }
    #[cfg(not(target_arch = "bpf"))]
    let _only_checked = word;
}

/// CPU number on which this program runs.
#[inline(always)]
pub fn this_cpu() -> u32 {
    // SAFETY: the helper takes no argument and reads a number of the running CPU.
    unsafe { bpf_get_smp_processor_id() }
}

/// Queues the frame for a CPU. Output: the action to return, or `None` when the CPU takes none.
#[inline(always)]
pub fn redirect_to_cpu(cpu: u32) -> Option<u32> {
    CPUS.redirect(cpu, 0).ok()
}

#[inline(always)]
pub fn select_udp_socket(ctx: &SkReuseportContext, core: u32) -> bool {
    UDP_SOCKETS.select_reuseport(ctx, core).is_ok()
}

#[inline(always)]
pub fn select_tcp_socket(ctx: &SkReuseportContext, core: u32) -> bool {
    TCP_SOCKETS.select_reuseport(ctx, core).is_ok()
}

#[inline(always)]
pub fn count(config: &SteerConfig, verdict: Verdict) {
    count_at(config, verdict as u32);
}

#[inline(always)]
pub fn count_drop(config: &SteerConfig, reason: DropReason) {
    count_at(config, drop_counter(reason));
}

#[inline(always)]
fn count_at(config: &SteerConfig, counter: u32) {
    let Some(count) = COUNTERS.get_ptr_mut(counter) else { return };
    // SAFETY: this CPU's element of the map, null excluded above; a program that interrupts this one may lose a count, never more.
    let now = unsafe { count.read() }.wrapping_add(1);
    // SAFETY: the same element, aligned for `u64` by the kernel.
    unsafe { count.write(now) };
    if config.sample_events != 0 && now & SAMPLE_MASK == 0 {
        sample(counter, now);
    }
}

#[inline(always)]
fn sample(counter: u32, count: u64) {
    // SAFETY: the helper takes no argument and reads the clock.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let event = SteerEvent { time_ns, count, counter, cpu: this_cpu() };
    // A full ring means that nobody reads: the sample is dropped, the counters still tell.
    EVENTS.output::<SteerEvent>(&event, 0).unwrap_or_default();
}

/// The frame, from its Ethernet header on.
#[inline(always)]
pub fn xdp_packet(ctx: &XdpContext) -> Packet<'_> {
    // SAFETY: the kernel's bounds of this frame, which `answer::overloaded` alone moves: nobody reads the `Packet` after that, and the verifier
    // refuses a program that does.
    unsafe { Packet::new(ctx.data(), ctx.data_end(), None) }
}

/// The frame, from its Ethernet header on, as far as it can be read in place: to be asked for after `pull_data`, which moves it.
#[inline(always)]
pub fn tc_packet(ctx: &TcContext) -> Packet<'_> {
    // SAFETY: the kernel's bounds of the readable part; `pull_data` alone moves it, and the caller has called that before.
    unsafe { Packet::new(ctx.data(), ctx.data_end(), Some(ctx.len())) }
}

/// What follows the network header, as far as it can be read in place.
#[inline(always)]
pub fn socket_packet(ctx: &SkReuseportContext) -> Packet<'_> {
    // SAFETY: the kernel's bounds of the readable part, which no helper of a socket program moves.
    unsafe { Packet::new(ctx.data(), ctx.data_end(), None) }
}

/// A context from which bytes can be copied.
pub trait LoadBytes {
    /// Copies `bytes` bytes, 1..=640, from `offset` to memory that has room for them: the verifier looks. Output: true when they were there.
    fn load(&self, offset: u32, to: *mut c_void, bytes: u32) -> bool;
}

/// A context of a packet as it came in at an interface.
pub trait Arrival: LoadBytes + EbpfContext {
    /// Index of that interface.
    fn interface(&self) -> u32;

    /// Fills `words` from `offset` on. `None` when the packet ends before.
    #[inline(always)]
    fn read<T: Words>(&self, offset: u32, words: &mut T) -> Option<()> {
        self.load(offset, (&raw mut *words).cast(), size_of::<T>() as u32).then_some(())
    }

    /// False when this host would pass a packet with these addresses on to another.
    #[inline(always)]
    fn is_for_this_host(&self, is_v6: bool, ends: &Ends) -> bool {
        // SAFETY: integers and unions of integers: all zeros are a value of each.
        let mut route: bpf_fib_lookup_params = unsafe { core::mem::zeroed() };
        route.family = if is_v6 { AF_INET6 } else { AF_INET };
        route.__bindgen_anon_3.ipv6_src = ends[0];
        route.__bindgen_anon_4.ipv6_dst = ends[1];
        route.ifindex = self.interface();
        // SAFETY: the context is the kernel's; the helper reads and writes the structure on this stack, whose size it is told.
        let found = unsafe { bpf_fib_lookup(self.as_ptr(), &raw mut route, size_of::<bpf_fib_lookup_params>() as i32, 0) };
        found == NOT_FORWARDED || found == FORWARDING_DISABLED
    }
}

impl Arrival for XdpContext {
    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the kernel's context, alive while the program runs; one aligned `u32` of it.
        unsafe { (*self.ctx).ingress_ifindex }
    }
}

impl Arrival for TcContext {
    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the kernel's context, alive while the program runs; one aligned `u32` of it.
        unsafe { (*self.skb.skb).ifindex }
    }
}

/// True when the packet is several datagrams or segments, which the stack takes apart.
#[inline(always)]
pub fn is_merged(ctx: &TcContext) -> bool {
    // SAFETY: the kernel's context, alive while the program runs; one aligned `u32` of it.
    unsafe { (*ctx.skb.skb).gso_size != 0 }
}

impl LoadBytes for XdpContext {
    #[inline(always)]
    fn load(&self, offset: u32, to: *mut c_void, bytes: u32) -> bool {
        // SAFETY: the context is the kernel's; `to` is an element of `HEADS` that is larger than `bytes`, or of a size of `bytes` (`read`).
        unsafe { bpf_xdp_load_bytes(self.ctx, offset, to, bytes) == 0 }
    }
}

impl LoadBytes for TcContext {
    #[inline(always)]
    fn load(&self, offset: u32, to: *mut c_void, bytes: u32) -> bool {
        // SAFETY: the context is the kernel's; `to` is an element of `HEADS` that is larger than `bytes`, or of a size of `bytes` (`read`).
        unsafe { bpf_skb_load_bytes(self.as_ptr(), offset, to, bytes) == 0 }
    }
}

impl LoadBytes for SkReuseportContext {
    #[inline(always)]
    fn load(&self, offset: u32, to: *mut c_void, bytes: u32) -> bool {
        // SAFETY: the context is the kernel's; `to` is an element of `HEADS` that is larger than `bytes`, or of a size of `bytes` (`read`).
        unsafe { bpf_skb_load_bytes(self.as_ptr(), offset, to, bytes) == 0 }
    }
}

/// This CPU's buffer with a copy of a packet's bytes from `offset` on; `bytes` is 1..=640.
#[inline(always)]
fn copy_head<C: LoadBytes>(ctx: &C, offset: u32, bytes: u32) -> Option<&'static HeadBytes> {
    let head = HEADS.get_ptr_mut(0)?;
    // Keeps the compiler from dropping, as known, the bound that the verifier has to see.
    let bytes = core::hint::black_box(bytes);
    if bytes == 0 || bytes > HEAD_COPY_BYTES || !ctx.load(offset, head.cast(), bytes) {
        return None;
    }
    // SAFETY: this CPU's element of the map, null excluded by `?`. Programs of one hook do not interrupt each other on a CPU; one of
    // another hook may overwrite the bytes, which then name another core or none: a worse choice, never a wrong answer.
    Some(unsafe { &*head })
}

/// The first bytes of a datagram's payload behind its UDP header, where the packet's bytes cannot be read in place.
#[inline(always)]
pub fn copy_request(ctx: &SkReuseportContext, payload_bytes: u32) -> Option<&'static HeadBytes> {
    let bytes = if payload_bytes > REQUEST_BYTES_MAX { REQUEST_BYTES_MAX } else { payload_bytes };
    copy_head(ctx, UDP_HEADER_BYTES, bytes)
}

/// Looks for the session header in a segment's payload. Output: true when `session` is filled.
#[inline(always)]
pub fn scan_head<C: LoadBytes>(ctx: &C, config: &'static SteerConfig, segment: Segment, session: &mut SessionWords) -> bool {
    if config.header.bytes == 0 {
        return false;
    }
    let bytes = if segment.payload_bytes > HEAD_COPY_BYTES { HEAD_COPY_BYTES } else { segment.payload_bytes };
    let Some(head) = copy_head(ctx, segment.payload_offset, bytes) else { return false };
    let mut scan = Scan::new(head, &config.header, bytes);
    let turn = turn_scan as unsafe extern "C" fn(u64, *mut Scan<'static>) -> i64;
    // SAFETY: `turn_scan` is the callback the helper asks for, `scan` lives on this stack until the call returns, no flag is set.
    unsafe { bpf_loop(SCAN_STEPS_MAX, turn as *mut _, (&raw mut scan).cast(), 0) };
    scan.read(session)
}

/// One turn of `bpf_loop`. Output: 0 to go on, 1 to stop.
unsafe extern "C" fn turn_scan(_index: u64, scan: *mut Scan<'static>) -> i64 {
    // SAFETY: `bpf_loop` hands over the pointer that `scan_head` gave it, to a `Scan` on that function's stack, used by nobody else.
    let scan = unsafe { &mut *scan };
    if scan.step() { 0 } else { 1 }
}

/// A frame that XDP changes, by the kernel's copying helpers.
pub struct Frame(*mut xdp_md);

/// Addresses of the sender and of the receiver, as they lie in the packet; of IPv4 the first word of each.
pub type Ends = [[u32; 4]; 2];

/// What can be copied into and out of a frame: integers without gaps, for which all bytes are good.
pub trait Words: Copy {}
impl Words for u64 {}
impl<const N: usize> Words for [u8; N] {}
impl<const N: usize> Words for [u16; N] {}
impl<const N: usize> Words for [u32; N] {}
impl<const N: usize> Words for [u64; N] {}
impl Words for Ends {}

impl Frame {
    /// Input: the context as the kernel gave it.
    #[inline(always)]
    pub fn of(ctx: *mut xdp_md) -> Frame {
        Frame(ctx)
    }

    /// `None` when the frame ends before.
    #[inline(always)]
    pub fn load<T: Words>(&self, offset: u32, words: &mut T) -> Option<()> {
        XdpContext::new(self.0).read(offset, words)
    }

    #[inline(always)]
    pub fn store<T: Words>(&self, offset: u32, words: &T) -> Option<()> {
        // SAFETY: the context is the kernel's; the helper only reads the size of `T` from `words`, which has no gaps (`Words`).
        let result = unsafe { bpf_xdp_store_bytes(self.0, offset, from_ref(words).cast_mut().cast(), size_of::<T>() as u32) };
        (result == 0).then_some(())
    }

    /// Copies the size of `words` from one place of the frame to another.
    #[inline(always)]
    pub fn copy<T: Words>(&self, from: u32, to: u32, mut words: T) -> Option<()> {
        self.load(from, &mut words)?;
        self.store(to, &words)
    }

    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        // SAFETY: the context is the kernel's; the helper reads a number of it.
        unsafe { bpf_xdp_get_buff_len(self.0) as u32 }
    }

    /// Cuts bytes off the end.
    #[inline(always)]
    pub fn cut(&self, bytes: u32) -> Option<()> {
        // SAFETY: the context is the kernel's. Pointers into the packet are void after it: who has a `Frame` uses none (the verifier looks).
        let result = unsafe { bpf_xdp_adjust_tail(self.0, (bytes as i32).wrapping_neg()) };
        (result == 0).then_some(())
    }

    /// Puts bytes before the beginning, where every driver leaves room; behind the end there may be none.
    #[inline(always)]
    pub fn prepend(&self, bytes: u32) -> Option<()> {
        // SAFETY: as in `cut`.
        let result = unsafe { bpf_xdp_adjust_head(self.0, (bytes as i32).wrapping_neg()) };
        (result == 0).then_some(())
    }

    /// Output: the action that sends it out where it came in. As a frame that is redirected: a veth takes such ones, and not those of
    /// `XDP_TX`, from a peer whose other end has no program.
    #[inline(always)]
    pub fn send(&self) -> u32 {
        // SAFETY: the helper takes two numbers and remembers them for the end of this program.
        unsafe { bpf_redirect(XdpContext::new(self.0).interface(), 0) as u32 }
    }
}

const _: () = assert!(HEAD_COPY_BYTES as usize <= HEAD_BUFFER_BYTES);
