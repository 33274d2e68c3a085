//! One thread of the load: sends what is due, takes what comes, once a turn. All that a turn sends and receives is one system call or few.

use super::datagram::Datagrams;
use super::ledger::Ledger;
use super::live::LiveThread;
use super::off_cpu::{Done, OffCpu};
use super::spec::{GeneratorError, LoadSpec, Transport, Wait};
use super::stream::Streams;
use super::tally::Tally;
use super::truth::Truth;
use crate::load::{Interrupt, LoadError, SILENCE_NS_MAX};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::sys::affinity::pin_to;
use xfaas_dataplane::sys::clock::{monotonic_ns, thread_cpu_ns};
use xfaas_dataplane::sys::{Completion, Ring};

/// A thread that sleeps looks at the interrupt this often.
const SLEEP_MAX: Duration = Duration::from_millis(20);

/// A turn that takes so long was not ours: the machine or the process was stopped, and the server perhaps as well.
const STOPPED_NS_MIN: u64 = 1_000_000_000;
/// A turn sends no more: a generator that is late must take answers meanwhile, or they stand in its sockets, where they cost the server, which
/// makes them, more than answers that are taken at once.
const SEND_MAX: usize = 128;
/// Looks for what came while the thread was off its CPU: more than enough for all that a server under way can have answered. A server that
/// answers ever on would keep it from sending.
const LOOKS_AGAIN_MAX: usize = 16;
/// A turn in vain takes less; if not, others had the core, and that is no CPU time of ours.
const IDLE_TURN_NS_MAX: u64 = 2_000;

/// A way to ask.
pub(super) trait Wire {
    /// Requests handed to the kernel at once: the server begins with the first ones while the next are made.
    const SEND_BATCH: usize;
    /// Sends the request that `place` was filled with.
    fn send(&mut self, ring: &mut Ring, ledger: &Ledger<'_>, place: usize);
    /// Hands over what `send` gathered.
    fn flush(&mut self, _ring: &mut Ring) {}
    /// Takes what completed. Errors: no more can come.
    fn on_completion(
        &mut self,
        ring: &mut Ring,
        completion: Completion,
        ledger: &mut Ledger<'_>,
        now_ns: u64,
    ) -> Result<(), GeneratorError>;
    /// Once a turn.
    fn sweep(&mut self, _ledger: &mut Ledger<'_>, _now_ns: u64) {}
}

/// What all threads of a run share.
pub(super) struct Shared<'a> {
    pub(super) spec: &'a LoadSpec,
    pub(super) sessions: &'a [SessionId],
    pub(super) truth: &'a Truth,
    /// Set by signals.
    pub(super) interrupt: &'a Interrupt,
    /// Set when a thread cannot go on.
    pub(super) stop: &'a Interrupt,
}

impl Shared<'_> {
    fn must_stop(&self) -> bool {
        self.interrupt.is_set() || self.stop.is_set()
    }
}

/// Connects, tells `ready`, waits for the time to start, and runs to the end.
/// Output: what it saw, and why it ended early if it did. Errors: it never started.
pub(super) fn run_thread(
    shared: &Shared<'_>,
    thread: usize,
    live: &LiveThread,
    ready: Sender<()>,
    start: &Receiver<u64>,
) -> Result<(Tally, Option<GeneratorError>), GeneratorError> {
    let spec = shared.spec;
    if let Some(cpu) = spec.cpus.get(thread % spec.cpus.len().max(1)) {
        pin_to(*cpu)?;
    }
    let (connections, in_flight) = (spec.share(spec.connections, thread), spec.share(spec.in_flight, thread));
    let is_ready = move || {
        ready.send(()).ok(); // who waits has gone only if another thread failed
        drop(ready);
        start.recv().ok()
    };
    match spec.transport {
        Transport::Http | Transport::Redis => {
            let (mut streams, mut ring) = Streams::connect(spec, shared.sessions, connections)?;
            let Some(start_ns) = is_ready() else { return Ok((Tally::new(spec.functions.len()), None)) };
            let ledger = Ledger::new(spec, thread, in_flight, (shared.truth, live), start_ns);
            Ok(drive(shared, &mut streams, &mut ring, ledger))
        }
        Transport::Datagram => {
            let (mut datagrams, mut ring) = Datagrams::connect(spec, shared.sessions, connections, in_flight)?;
            let Some(start_ns) = is_ready() else { return Ok((Tally::new(spec.functions.len()), None)) };
            let ledger = Ledger::new(spec, thread, in_flight, (shared.truth, live), start_ns);
            Ok(drive(shared, &mut datagrams, &mut ring, ledger))
        }
    }
}

fn drive(shared: &Shared<'_>, wire: &mut impl Wire, ring: &mut Ring, mut ledger: Ledger<'_>) -> (Tally, Option<GeneratorError>) {
    let began_cpu_ns = thread_cpu_ns();
    let mut idle_ns = 0;
    let ended = run_turns(shared, wire, ring, &mut ledger, &mut idle_ns).err();
    if ended.is_some() {
        shared.stop.set();
        ledger.abandon(monotonic_ns());
    }
    let mut tally = ledger.finish();
    tally.cpu_ns = thread_cpu_ns() - began_cpu_ns;
    tally.busy_ns = tally.cpu_ns.saturating_sub(idle_ns);
    (tally, ended)
}

fn run_turns(
    shared: &Shared<'_>,
    wire: &mut impl Wire,
    ring: &mut Ring,
    ledger: &mut Ledger<'_>,
    idle_ns: &mut u64,
) -> Result<(), GeneratorError> {
    let mut turned_ns = monotonic_ns();
    let mut off_cpu = OffCpu::of_this_thread(turned_ns, shared.spec.wait == Wait::Spin);
    loop {
        match shared.spec.wait {
            Wait::Spin => ring.poll(),
            Wait::Sleep => {
                let due_in = ledger.due_in_ns(monotonic_ns()).map_or(SLEEP_MAX, Duration::from_nanos);
                if due_in.is_zero() { ring.poll() } else { ring.wait_past_sends(due_in.min(SLEEP_MAX)) }
            }
        }
        .map_err(LoadError::from)?;
        // What the kernel has brought was there by now; the time that judging it takes is not the server's.
        let mut now_ns = monotonic_ns();
        if now_ns - turned_ns > STOPPED_NS_MIN {
            ledger.was_stopped(now_ns - turned_ns);
        }
        look(&mut off_cpu, ledger, now_ns);
        let mut was_busy = take(wire, ring, ledger, now_ns)?;
        if ledger.away_ns() > 0 {
            now_ns = take_what_came_meanwhile(wire, ring, ledger, &mut off_cpu)?;
            was_busy = true;
        }
        ledger.has_looked();
        wire.sweep(ledger, now_ns);
        if shared.must_stop() {
            ledger.stop(now_ns);
        }
        was_busy |= send_due(wire, ring, ledger, &mut off_cpu)?;
        ledger.publish();
        let end_ns = monotonic_ns();
        if !was_busy && shared.spec.wait == Wait::Spin {
            *idle_ns += (end_ns - turned_ns).min(IDLE_TURN_NS_MAX);
        }
        turned_ns = end_ns;
        if ledger.is_over(now_ns) {
            return Ok(());
        }
        if ledger.silence_ns(now_ns) > SILENCE_NS_MAX {
            return Err(LoadError::Silence { target: shared.spec.target, outstanding: ledger.under_way() }.into());
        }
    }
}

/// Takes what the ring has brought. Output: whether there was something.
fn take(wire: &mut impl Wire, ring: &mut Ring, ledger: &mut Ledger<'_>, now_ns: u64) -> Result<bool, GeneratorError> {
    let mut was_busy = false;
    while let Some(completion) = ring.next_completion() {
        was_busy = true;
        wire.on_completion(ring, completion, ledger, now_ns)?;
    }
    Ok(was_busy)
}

/// Takes the answers that came while this thread was off its CPU, so that the ledger knows them as such. A thread that loses its CPU on its way
/// out of the ring, as any that is stopped by a signal does, has not found them: they appear only when the ring is entered, and of datagrams
/// only some each time. Output: when it was done.
fn take_what_came_meanwhile(
    wire: &mut impl Wire,
    ring: &mut Ring,
    ledger: &mut Ledger<'_>,
    off_cpu: &mut OffCpu,
) -> Result<u64, GeneratorError> {
    let mut now_ns = 0;
    for _ in 0..LOOKS_AGAIN_MAX {
        ring.poll().map_err(LoadError::from)?;
        now_ns = monotonic_ns();
        let away_ns = ledger.away_ns();
        look(off_cpu, ledger, now_ns);
        if !take(wire, ring, ledger, now_ns)? && ledger.away_ns() == away_ns {
            break;
        }
    }
    Ok(now_ns)
}

/// Tells the ledger if this thread stood still since it was last seen to run.
fn look(off_cpu: &mut OffCpu, ledger: &mut Ledger<'_>, now_ns: u64) {
    let done = Done { handled: ledger.handled(), reconnects: ledger.tally.reconnects };
    if let Some((from_ns, waited_ns)) = off_cpu.seen(now_ns, done) {
        ledger.was_off_cpu(from_ns, waited_ns);
    }
    ledger.was_seen();
}

/// Sends what is due now. Output: whether there was something.
fn send_due<W: Wire>(wire: &mut W, ring: &mut Ring, ledger: &mut Ledger<'_>, off_cpu: &mut OffCpu) -> Result<bool, GeneratorError> {
    let mut now_ns = monotonic_ns();
    look(off_cpu, ledger, now_ns);
    let mut sent = 0;
    while sent < SEND_MAX
        && let Some(place) = ledger.next(now_ns)
    {
        wire.send(ring, ledger, place);
        sent += 1;
        if sent % W::SEND_BATCH == 0 {
            wire.flush(ring);
            ring.poll().map_err(LoadError::from)?;
            now_ns = monotonic_ns();
            look(off_cpu, ledger, now_ns);
        }
    }
    wire.flush(ring);
    Ok(sent > 0)
}
