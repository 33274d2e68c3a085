//! The control thread's door to the running shards: bounded commands with a time limit, and counters read from outside.

use super::labels::Labels;
use super::log_start::LogStart;
use super::mover::MoveCounts;
use super::offer::NodeFacts;
use super::pins::KernelPins;
use crate::control::{
    CheckpointStatus, CounterSample, HistogramSample, HotSession, MetricKind, MoveError, MoveReply, MoveRequest, REQUEST_DURATION_SECONDS,
    REQUESTS_TOTAL, Running, SessionInfo, SessionsQuery, Shards, ShardsError,
};
use crate::session::AliasChange;
use crate::shard::{
    self, CommandDoor, DURATION_BOUNDS_S, EXPORTED, EXPORTED_RPC, FunctionCounts, OUTCOMES, REQUEST_KINDS, RunningShards, ShardCommand,
    ShardView,
};
use crate::state::Limit;
use crate::worker::Function;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::SessionId;
use xfaas_common::rpc::FrameFault;

/// How long a shard may take to answer a command.
pub(super) const COMMAND_MS_MAX: u64 = 5_000;

pub(super) struct ShardsDoor {
    pub(super) doors: Vec<Arc<CommandDoor>>,
    pub(super) views: Vec<Arc<ShardView>>,
    /// What containers are told; none join a container.
    pub(super) facts: Option<NodeFacts>,
    pub(super) pins: KernelPins,
    pub(super) move_counts: MoveCounts,
    /// `None` in a container.
    checkpoints: Option<Arc<CheckpointStatus>>,
    /// `None` in a container.
    log: Option<LogStart>,
    is_draining: AtomicBool,
    labels: Mutex<Labels>,
}

impl ShardsDoor {
    pub(super) fn new(
        shards: &RunningShards,
        facts: Option<NodeFacts>,
        pins: KernelPins,
        checkpoints: Option<Arc<CheckpointStatus>>,
        log: Option<LogStart>,
    ) -> ShardsDoor {
        ShardsDoor {
            doors: shards.doors.clone(),
            views: shards.views.clone(),
            facts,
            pins,
            move_counts: MoveCounts::default(),
            checkpoints,
            log,
            is_draining: AtomicBool::new(false),
            labels: Mutex::default(),
        }
    }

    /// Before the shards are told to drain.
    pub(super) fn begin_drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    /// Sends one command to every shard and gathers the answers, in the shards' order.
    pub(super) fn ask_all<T>(&self, command: impl Fn(SyncSender<T>) -> ShardCommand) -> Result<Vec<T>, ShardsError> {
        let mut answers: Vec<Receiver<T>> = Vec::with_capacity(self.doors.len());
        for (shard, door) in self.doors.iter().enumerate() {
            let (answer, receiver) = sync_channel(1);
            door.send(command(answer)).map_err(|_| ShardsError::Busy { shard: shard as u16, waited_ms: 0 })?;
            answers.push(receiver);
        }
        let wait = Duration::from_millis(COMMAND_MS_MAX);
        let answer = |(shard, receiver): (usize, Receiver<T>)| {
            receiver.recv_timeout(wait).map_err(|_| ShardsError::Busy { shard: shard as u16, waited_ms: COMMAND_MS_MAX })
        };
        answers.into_iter().enumerate().map(answer).collect()
    }

    fn ask_all_ok<T>(&self, command: impl Fn(SyncSender<Result<T, String>>) -> ShardCommand) -> Result<Vec<T>, ShardsError> {
        let refused = |shard: usize, reason| ShardsError::Refused { shard: shard as u16, reason };
        let answers = self.ask_all(command)?.into_iter().enumerate();
        answers.map(|(shard, answer)| answer.map_err(|reason| refused(shard, reason))).collect()
    }

    pub(super) fn labels(&self) -> std::sync::MutexGuard<'_, Labels> {
        self.labels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn each_function(&self, visit: impl FnMut(&str, usize, &FunctionCounts)) {
        self.labels().each_function(&self.views, visit);
    }
}

impl Shards for ShardsDoor {
    fn views(&self) -> Vec<Arc<ShardView>> {
        self.views.clone()
    }

    fn set_traced(&self, is_traced: bool) {
        self.pins.set_stamps(is_traced);
        for door in &self.doors {
            // Without it some requests of the trace have no time of their network.
            door.send(ShardCommand::Trace(is_traced)).ok();
        }
    }

    fn function_names(&self) -> HashMap<u16, String> {
        self.labels().functions()
    }

    fn count(&self) -> usize {
        self.doors.len()
    }

    fn install(&self, function: Arc<Function>) -> Result<(), ShardsError> {
        if let Some(log) = &self.log {
            // Before a shard opens the app's region, which this may have open.
            log.begin_for(&function.manifest).map_err(|error| ShardsError::Log { reason: crate::control::describe(&error) })?;
        }
        let (index, name) = (function.index, &function.manifest.name);
        let before = self.labels().before(index, name, &self.views);
        let readers = self.ask_all_ok(|answer| ShardCommand::Install(Arc::clone(&function), answer))?;
        // Each time, not only for read-only functions: the readers always are those of the regions that are open now.
        let readers: Arc<[_]> = readers.into();
        self.ask_all_ok(|answer| ShardCommand::Readers(function.app, Arc::clone(&readers), answer))?;
        let mut labels = self.labels();
        labels.set_function(index, name, before);
        labels.apps.insert(function.app, function.manifest.app.clone());
        Ok(())
    }

    fn remove(&self, index: u16) -> Result<(), ShardsError> {
        self.ask_all_ok(|answer| ShardCommand::Remove(index, answer))?;
        Ok(())
    }

    fn offer(&self, functions: &[Running]) -> Result<(), ShardsError> {
        let Some(facts) = &self.facts else { return Ok(()) };
        let offer = Arc::new(facts.offer(functions));
        self.ask_all(|answer| ShardCommand::Offer(Arc::clone(&offer), answer)).map(drop)
    }

    fn alias(&self, changes: &[AliasChange], pins: &[(SessionId, Option<SessionId>)]) -> Result<(), ShardsError> {
        let changes: Arc<[AliasChange]> = changes.into();
        self.ask_all(|answer| ShardCommand::Alias(Arc::clone(&changes), answer))?;
        // After the shards: a packet that the kernel brings to the new core must find the alias there.
        pins.iter().for_each(|(key, session)| self.pins.set(key, *session));
        Ok(())
    }

    fn sessions(&self, query: &SessionsQuery) -> Result<Vec<SessionInfo>, ShardsError> {
        let apps = self.labels().apps.clone();
        let app = match &query.app {
            None => None,
            Some(name) => match apps.iter().find(|(_, known)| *known == name) {
                Some((index, _)) => Some(*index),
                None => return Ok(Vec::new()),
            },
        };
        let prefix = query.prefix.clone().unwrap_or_default().into_bytes();
        let query = shard::SessionsQuery { app, prefix, limit: query.limit };
        let rows = self.ask_all(|answer| ShardCommand::Sessions(query.clone(), answer))?;
        let listed = rows.into_iter().enumerate().flat_map(|(shard, rows)| rows.into_iter().map(move |row| (shard, row)));
        let info = |(shard, row): (usize, shard::SessionRow)| SessionInfo {
            app: apps.get(&row.app).cloned().unwrap_or_default(),
            session: row.session.as_str().to_owned(),
            shard: shard as u16,
            state_bytes: row.state_bytes,
            keys: u32::try_from(row.keys).unwrap_or(u32::MAX),
            workers: row.workers as u32,
            containers: row.containers as u32,
        };
        Ok(listed.take(query.limit).map(info).collect())
    }

    fn has_checkpoints(&self, app: &str) -> bool {
        self.checkpoints.as_ref().is_some_and(|checkpoints| checkpoints.has(app))
    }

    fn move_session(&self, request: &MoveRequest) -> Result<MoveReply, MoveError> {
        self.move_to(request)
    }

    fn away_from_home(&self) -> Vec<MoveRequest> {
        self.moves_home()
    }

    fn take_wanted_home(&self) -> bool {
        self.pins.board().take_wanted_home()
    }

    fn hottest(&self, shard: u16) -> Result<Vec<HotSession>, ShardsError> {
        self.hottest_of(shard)
    }

    fn busy_ns(&self) -> Vec<u64> {
        self.busy_of_all()
    }

    fn counters(&self) -> Vec<CounterSample> {
        let mut samples: Vec<CounterSample> = self.move_samples().collect();
        for (shard, view) in self.views.iter().enumerate() {
            let labels = || vec![("shard", shard.to_string())];
            for exported in EXPORTED.iter().chain(EXPORTED_RPC) {
                let kind = if exported.is_counter { MetricKind::Counter } else { MetricKind::Gauge };
                let value = (exported.value)(&view.counters);
                samples.push(CounterSample { name: exported.name, help: exported.help, kind, labels: labels(), value });
            }
            for reason in DropReason::ALL {
                let mut labels = labels();
                labels.push(("reason", reason.name().to_owned()));
                samples.push(CounterSample {
                    name: "xfaas_datagrams_dropped_total",
                    help: "Datagrams dropped in user space without an answer: malformed, or not for this machine alone.",
                    kind: MetricKind::Counter,
                    labels,
                    value: view.counters.drops[reason as usize].get() as f64,
                });
            }
            samples.extend(refusal_samples(shard, view));
            samples.extend(rpc_samples(shard, view));
            samples.extend(drop_samples(shard, view));
        }
        samples.extend(self.checkpoints.iter().flat_map(|status| checkpoint_samples(status)));
        self.each_function(|name, shard, counts| {
            for (outcome, count) in OUTCOMES.iter().zip(&counts.outcomes) {
                samples.push(CounterSample {
                    name: REQUESTS_TOTAL,
                    help: "Requests by function and outcome.",
                    kind: MetricKind::Counter,
                    labels: vec![("shard", shard.to_string()), ("function", name.to_owned()), ("outcome", (*outcome).to_owned())],
                    value: *count as f64,
                });
            }
        });
        samples
    }

    fn histograms(&self) -> Vec<HistogramSample> {
        let mut samples = Vec::new();
        self.each_function(|name, shard, function| {
            let mut sum = 0;
            let mut cumulative = |count: &u64| {
                sum += count;
                sum
            };
            let mut counts: Vec<u64> = function.duration_buckets.iter().map(&mut cumulative).collect();
            let count = counts.pop().unwrap_or(0);
            samples.push(HistogramSample {
                name: REQUEST_DURATION_SECONDS,
                help: "From the request's last byte read to its reply handed to the kernel.",
                labels: vec![("shard", shard.to_string()), ("function", name.to_owned())],
                bounds_seconds: &DURATION_BOUNDS_S,
                counts,
                sum_seconds: function.duration_ns as f64 / 1e9,
                count,
            });
        });
        samples
    }

    fn is_stopping(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    fn ready(&self) -> Result<(), String> {
        if self.is_stopping() {
            return Err("draining: calls that run are finished, new ones are refused".to_owned());
        }
        // `shard::start` returns only when every loop runs, and a shard that ends stops the process.
        let failing = self.views.iter().position(|view| view.counters.log_failing.get() != 0);
        let log = |shard| Err(format!("the log of shard {shard} cannot be written: functions with durability sync get 503"));
        failing.map_or(Ok(()), log)?;
        self.checkpoints.as_ref().map_or(Ok(()), |checkpoints| checkpoints.ready())
    }
}

/// How the store of checkpoints does.
/// Sessions that left memory, by why.
fn drop_samples(shard: usize, view: &ShardView) -> [CounterSample; 2] {
    let for_room = view.counters.dropped_for_room.get();
    let all = view.counters.sessions_reclaimed.get();
    [("idle", all.saturating_sub(for_room)), ("pressure", for_room)].map(|(reason, count)| CounterSample {
        name: "xfaas_sessions_dropped_total",
        help: "Sessions dropped from memory once the store had their checkpoint, by reason.",
        kind: MetricKind::Counter,
        labels: vec![("shard", shard.to_string()), ("reason", reason.to_owned())],
        value: count as f64,
    })
}

fn checkpoint_samples(status: &CheckpointStatus) -> [CounterSample; 6] {
    let sample = |name, help, kind, value| CounterSample { name, help, kind, labels: Vec::new(), value };
    let counter = |name, help, count: &AtomicU64| sample(name, help, MetricKind::Counter, count.load(Ordering::Relaxed) as f64);
    let failing = if status.ready().is_ok() { 0.0 } else { 1.0 };
    [
        counter("xfaas_checkpoints_written_total", "Checkpoints that the store took.", &status.written),
        counter("xfaas_checkpoints_written_bytes_total", "What they hold, before compression.", &status.written_bytes),
        counter("xfaas_checkpoints_read_total", "Checkpoints read.", &status.read),
        counter("xfaas_checkpoint_failures_total", "Operations that the store failed to do.", &status.failures),
        counter("xfaas_checkpoints_damaged_total", "Checkpoints that were found damaged.", &status.damaged),
        sample("xfaas_checkpoints_failing", "1 while the store does not work.", MetricKind::Gauge, failing),
    ]
}

/// Requests of containers by kind, and what was wrong with their frames.
fn refusal_samples(shard: usize, view: &ShardView) -> impl Iterator<Item = CounterSample> {
    Limit::ALL.into_iter().zip(&view.counters.state_refused).map(move |(limit, count)| CounterSample {
        name: "xfaas_state_refused_total",
        help: "Calls of guests that got -3, by the limit they hit.",
        kind: MetricKind::Counter,
        labels: vec![("shard", shard.to_string()), ("reason", limit.name().to_owned())],
        value: count.get() as f64,
    })
}

fn rpc_samples(shard: usize, view: &ShardView) -> Vec<CounterSample> {
    let rpc = &view.counters.rpc;
    let sample = |name, help, label, value: &str, count: &shard::Count| CounterSample {
        name,
        help,
        kind: MetricKind::Counter,
        labels: vec![("shard", shard.to_string()), (label, value.to_owned())],
        value: count.get() as f64,
    };
    let requests = REQUEST_KINDS
        .iter()
        .zip(&rpc.requests)
        .map(|(kind, count)| sample("xfaas_rpc_requests_total", "Requests of containers.", "kind", kind, count));
    let malformed = FrameFault::ALL.iter().map(|fault| {
        let (help, count) = ("Malformed frames of containers; each closed its connection.", &rpc.malformed[*fault as usize]);
        sample("xfaas_rpc_malformed_total", help, "reason", fault.name(), count)
    });
    requests.chain(malformed).collect()
}
