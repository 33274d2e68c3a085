//! Reads of one hot session whose owner keeps writing: how many one core makes, and how many two make together. No network: guests on
//! workers, as a shard runs them.

use crate::guest::{GuestError, load_program};
use crate::servers::scratch_directory;
use hdrhistogram::Histogram;
use std::path::Path;
use std::sync::{Barrier, OnceLock};
use std::time::Duration;
use xfaas_common::ids::SessionId;
use xfaas_dataplane::state::{CallToken, RegionError, RegionReader, ShardState};
use xfaas_dataplane::sys::affinity::{AffinityError, pin_to};
use xfaas_dataplane::sys::clock::monotonic_ns;
use xfaas_dataplane::worker::{Call, Engine, EngineOptions, ForkError, FunctionManifest, Lent, Program, Progress, StateAt, Worker};

const APP: u16 = 0;
const OWNER: u16 = 0;
const TABLE_HASH: u32 = 0x5EED_1234;
const REGION_BYTES: u64 = 64 << 20;
const NAMES: [&str; 4] = ["state/read_scaling/1core", "state/read_scaling/2core", "state/read_scaling/3core", "state/read_scaling/4core"];

#[derive(Debug, thiserror::Error)]
pub enum ScalingError {
    #[error("{cpus} CPUs: these figures take 1 to {}", NAMES.len())]
    Cpus { cpus: usize },
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("no directory for the session's state")]
    Directory(#[source] std::io::Error),
    #[error("no region for the session's state")]
    Region(#[from] RegionError),
    #[error("no worker can be forked")]
    Fork(#[from] ForkError),
    #[error("the guest ended with {0:?}")]
    Call(Progress),
    #[error("another core's thread failed")]
    Neighbour,
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct ScalingOptions<'a> {
    /// The directory of the compiled guests.
    pub guests: &'a Path,
    /// One thread on each; the first owns the session. 1 to 4.
    pub cpus: &'a [u16],
    /// Strong read-modify-writes of the hot session by its owner, beside its reads.
    pub writes_per_s: u64,
    /// The cases take turns, so many times each, for so long.
    pub rounds: u32,
    pub round: Duration,
}

/// One case: the first `cores` CPUs read.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadScaling {
    /// `state/read_scaling/<cores>core`.
    pub name: &'static str,
    pub cores: usize,
    /// Guest calls of one weak read each, of all cores together.
    pub reads_per_s: f64,
    /// Of the owner.
    pub writes_per_s: f64,
    /// Calls that could not go on beside the owner.
    pub given_up: u64,
    /// One call, the clock's cost included.
    pub p50_ns: f64,
    pub p99_ns: f64,
}

/// Measures 1, 2, .. `cpus.len()` cores in one run. Takes `rounds * cpus.len()` rounds and a compilation.
pub fn measure_read_scaling(options: &ScalingOptions<'_>) -> Result<Vec<ReadScaling>, ScalingError> {
    let cores = options.cpus.len();
    if !(1..=NAMES.len()).contains(&cores) {
        return Err(ScalingError::Cpus { cpus: cores });
    }
    let engine = Engine::new(&EngineOptions::default()).map_err(GuestError::from)?;
    let programs = Programs {
        read: load(&engine, options.guests, "counter-read", true)?,
        write: load(&engine, options.guests, "counter-rmw-linear", false)?,
    };
    let directory = scratch_directory("scaling").map_err(ScalingError::Directory)?;
    let (together, reader) = (Barrier::new(cores), OnceLock::new());
    let run = |index: usize| -> Result<Vec<Tally>, ScalingError> {
        let mut core = Core::start(index, options, &programs, directory.path());
        if let Ok(core) = &core
            && index == usize::from(OWNER)
        {
            reader.get_or_init(|| core.reader());
        }
        together.wait(); // the owner's region is there now, or never will be
        let mut tallies = vec![Tally::default(); cores];
        for case in (0..options.rounds).flat_map(|_| 0..cores) {
            together.wait(); // also after an error: the others would wait for ever
            if index <= case {
                core = core.and_then(|core| core.run(reader.get(), options, &mut tallies[case]));
            }
        }
        core.map(|_| tallies)
    };
    let tallies = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..cores).map(|index| scope.spawn(move || run(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(ScalingError::Neighbour))).collect::<Result<Vec<_>, _>>()
    })?;
    Ok((0..cores).map(|case| ReadScaling::of(case, tallies.iter().map(|core| &core[case]))).collect())
}

/// What one core did in all rounds of one case.
#[derive(Clone)]
struct Tally {
    reads: u64,
    writes: u64,
    given_up: u64,
    elapsed_ns: u64,
    times_ns: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { reads: 0, writes: 0, given_up: 0, elapsed_ns: 0, times_ns: times() }
    }
}

fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("constant bounds in order")
}

impl ReadScaling {
    fn of<'a>(case: usize, cores: impl Iterator<Item = &'a Tally>) -> ReadScaling {
        let mut times_ns = times();
        let (mut reads_per_s, mut writes_per_s, mut given_up) = (0.0, 0.0, 0);
        for core in cores.filter(|core| core.elapsed_ns > 0) {
            let elapsed_s = core.elapsed_ns as f64 / 1e9;
            reads_per_s += core.reads as f64 / elapsed_s;
            writes_per_s += core.writes as f64 / elapsed_s;
            given_up += core.given_up;
            times_ns.add(&core.times_ns).expect("both have the same bounds");
        }
        let quantile_ns = |quantile| times_ns.value_at_quantile(quantile) as f64;
        let (p50_ns, p99_ns) = (quantile_ns(0.50), quantile_ns(0.99));
        ReadScaling { name: NAMES[case], cores: case + 1, reads_per_s, writes_per_s, given_up, p50_ns, p99_ns }
    }
}

struct Programs {
    read: (FunctionManifest, Program),
    write: (FunctionManifest, Program),
}

fn load(engine: &Engine, guests: &Path, name: &str, read_only: bool) -> Result<(FunctionManifest, Program), ScalingError> {
    let manifest = FunctionManifest { read_only, ..FunctionManifest::named(name) };
    let program = load_program(engine, &manifest, &guests.join(format!("{name}.wasm")))?;
    Ok((manifest, program))
}

/// A worker, and the call it runs again and again.
struct Caller<'a> {
    program: &'a Program,
    worker: Worker,
    call: Option<Box<Call>>,
}

impl<'a> Caller<'a> {
    fn fork((manifest, program): &'a (FunctionManifest, Program), token: u32, state_at: StateAt) -> Result<Caller<'a>, ScalingError> {
        let mut call = Box::<Call>::default();
        call.set_function(manifest);
        call.request.set_datagram(session(), b"");
        (call.app, call.session, call.table_hash) = (APP, session(), TABLE_HASH);
        (call.token, call.state_at) = (CallToken(token), state_at);
        Ok(Caller { program, worker: Worker::fork(program)?, call: Some(call) })
    }

    /// One whole invocation. True: the call cannot go on beside the owner.
    fn call(&mut self, state: &mut Option<Box<ShardState>>, now_ns: u64) -> Result<bool, ScalingError> {
        let mut call = self.call.take().expect("given back by every poll");
        call.output.clear();
        call.started_ns = now_ns;
        let mut lent = Lent { call, state: state.take().expect("given back by every poll") };
        self.worker.start();
        let progress = loop {
            let progress;
            (lent, progress) = self.worker.poll(lent);
            if progress != Progress::SliceOver {
                break progress;
            }
        };
        self.call = Some(lent.call);
        *state = Some(lent.state);
        match progress {
            Progress::Finished(0) => Ok(false),
            Progress::NeedsOwner { .. } => {
                self.worker = Worker::fork(self.program)?;
                Ok(true)
            }
            other => Err(ScalingError::Call(other)),
        }
    }
}

/// One core as a shard has it: the owner's reads and writes its own region, the others read that of the owner.
struct Core<'a> {
    state: Option<Box<ShardState>>,
    reading: Caller<'a>,
    writing: Option<Caller<'a>>,
}

impl<'a> Core<'a> {
    fn start(index: usize, options: &ScalingOptions<'_>, programs: &'a Programs, directory: &Path) -> Result<Core<'a>, ScalingError> {
        pin_to(options.cpus[index])?;
        let mut state = Some(Box::new(ShardState::new(directory.to_owned(), index as u16, REGION_BYTES)));
        if index != usize::from(OWNER) {
            return Ok(Core { state, reading: Caller::fork(&programs.read, 1, StateAt::Shard(OWNER))?, writing: None });
        }
        state.as_mut().expect("made above").open_app(APP, "scaling")?;
        let mut writing = Caller::fork(&programs.write, 2, StateAt::Here)?;
        writing.call(&mut state, monotonic_ns())?;
        Ok(Core { state, reading: Caller::fork(&programs.read, 1, StateAt::Here)?, writing: Some(writing) })
    }

    fn reader(&self) -> RegionReader {
        let state = self.state.as_ref().expect("no call runs");
        state.region(APP).expect("opened at start").reader()
    }

    /// One round.
    fn run(mut self, owner: Option<&RegionReader>, options: &ScalingOptions<'_>, tally: &mut Tally) -> Result<Core<'a>, ScalingError> {
        if self.writing.is_none() {
            let owner = owner.ok_or(ScalingError::Neighbour)?;
            self.state.as_mut().expect("no call runs").readers.set(APP, OWNER, owner.clone());
        }
        let write_every_ns = 1_000_000_000 / options.writes_per_s.max(1);
        let started_ns = monotonic_ns();
        let end_ns = started_ns + options.round.as_nanos() as u64;
        let (mut now_ns, mut write_at_ns) = (started_ns, started_ns);
        while now_ns < end_ns {
            if let Some(writing) = &mut self.writing
                && now_ns >= write_at_ns
                && options.writes_per_s > 0
            {
                writing.call(&mut self.state, now_ns)?;
                write_at_ns += write_every_ns;
                tally.writes += 1;
                now_ns = monotonic_ns();
            }
            let given_up = self.reading.call(&mut self.state, now_ns)?;
            let done_ns = monotonic_ns();
            if given_up {
                tally.given_up += 1;
            } else {
                tally.reads += 1;
                tally.times_ns.saturating_record(done_ns - now_ns);
            }
            now_ns = done_ns;
        }
        tally.elapsed_ns += now_ns - started_ns;
        Ok(self)
    }
}

fn session() -> SessionId {
    SessionId::new(b"session-of-16-by").expect("visible ASCII, 16 bytes")
}
