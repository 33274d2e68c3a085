//! Moves of sessions as the door to the shards carries them out: what is asked is checked, one shard does it, and the kernel is told.
//! Called by `door`; blocks.

use super::door::ShardsDoor;
use crate::control::{CounterSample, HotSession, MOVE_OUTCOMES, MetricKind, MoveError, MoveReply, MoveRequest, ShardsError};
use crate::session::Placement;
use crate::shard::{MoveOrder, MovedSession, ShardCommand};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use xfaas_common::ids::{CoreIndex, SessionId};

/// Beside the time that the session's calls may take: 64 MiB go in pieces, each a turn of both shards.
const COPY_MS_MAX: u64 = 30_000;

/// How moves went, by `MOVE_OUTCOMES`.
#[derive(Default)]
pub(super) struct MoveCounts([AtomicU64; MOVE_OUTCOMES.len()]);

impl ShardsDoor {
    pub(super) fn move_to(&self, request: &MoveRequest) -> Result<MoveReply, MoveError> {
        let moved = self.try_move(request);
        let outcome = moved.as_ref().map_or_else(MoveError::outcome, |_| MOVE_OUTCOMES[0]);
        for (count, _) in self.move_counts.0.iter().zip(MOVE_OUTCOMES).filter(|(_, name)| *name == outcome) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        moved
    }

    fn try_move(&self, request: &MoveRequest) -> Result<MoveReply, MoveError> {
        let MoveRequest { app, session: text, core } = request;
        let facts = self.facts.as_ref().ok_or(MoveError::IsContainer)?;
        let session = SessionId::new(text.as_bytes()).ok_or_else(|| MoveError::BadSession { text: text.clone() })?;
        let index = self.labels().apps.iter().find(|(_, name)| *name == app).map(|(index, _)| *index);
        let index = index.ok_or_else(|| MoveError::UnknownApp { app: app.clone() })?;
        if usize::from(*core) >= self.doors.len() {
            return Err(MoveError::UnknownCore { core: *core, last: self.doors.len() - 1 });
        }
        let (board, placement) = (self.pins.board(), self.pins.placement());
        let claim = board.claim().ok_or(MoveError::UnderWay)?;
        let from = board.core_of(app, &session).unwrap_or_else(|| placement.owner(placement.hash(&session).slot()));
        if from == CoreIndex(*core) {
            return Err(MoveError::SameCore { core: *core });
        }
        // From the claim on none is let in.
        let connections = self.ask_all(ShardCommand::Containers)?.into_iter().sum();
        if connections > 0 {
            return Err(MoveError::Containers { connections });
        }
        let order = MoveOrder { app: index, app_name: app.as_str().into(), session, to: *core };
        let (answer, answered) = sync_channel(1);
        let shard = from.0;
        let asked = self.doors[from.index()].send(ShardCommand::Move(order, claim, answer));
        asked.map_err(|_| ShardsError::Busy { shard, waited_ms: 0 })?;
        let waited_ms = u64::from(facts.lock_wait_ms) + COPY_MS_MAX;
        let moved = answered.recv_timeout(Duration::from_millis(waited_ms)).map_err(|_| ShardsError::Busy { shard, waited_ms })?;
        let MovedSession { from, keys, state_bytes } = moved.map_err(|refusal| MoveError::Refused { refusal })?;
        self.pins.moved(&session);
        Ok(MoveReply { app: app.clone(), session: text.clone(), from, to: *core, keys, state_bytes })
    }

    /// The moves that would bring every session to where its slot says.
    pub(super) fn moves_home(&self) -> Vec<MoveRequest> {
        let placement = self.pins.placement();
        let home = |session: &SessionId| placement.owner(placement.hash(session).slot()).0;
        let request =
            |(app, session, _): (String, SessionId, CoreIndex)| MoveRequest { app, core: home(&session), session: session.to_string() };
        self.pins.board().list().into_iter().map(request).collect()
    }

    pub(super) fn hottest_of(&self, shard: u16) -> Result<Vec<HotSession>, ShardsError> {
        let (answer, answered) = sync_channel(1);
        self.doors[usize::from(shard)].send(ShardCommand::Hottest(answer)).map_err(|_| ShardsError::Busy { shard, waited_ms: 0 })?;
        let waited_ms = super::door::COMMAND_MS_MAX;
        let answer = answered.recv_timeout(Duration::from_millis(waited_ms));
        let (hottest, all_ns) = answer.map_err(|_| ShardsError::Busy { shard, waited_ms })?;
        let labels = self.labels();
        let named = hottest.into_iter().filter_map(|hot| {
            // The namespace of an app's hooks has no name here, and cannot be moved.
            let app = labels.apps.get(&hot.app)?.clone();
            Some(HotSession { app, session: hot.session.to_string(), part: hot.ran_ns as f64 / all_ns.max(1) as f64 })
        });
        Ok(named.collect())
    }

    /// How long each shard's thread ran or waited for its CPU, which others may use too; empty where the kernel does not say.
    pub(super) fn busy_of_all(&self) -> Vec<u64> {
        // Documentation/scheduler/sched-stats.rst: time on the CPU, and on a run queue, nanoseconds.
        let read = |path: &std::path::PathBuf| {
            let text = std::fs::read_to_string(path).ok()?;
            let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse::<u64>().ok());
            Some(numbers.next()?.saturating_add(numbers.next()?))
        };
        self.views.iter().map(|view| view.schedstat.get().and_then(read)).collect::<Option<_>>().unwrap_or_default()
    }

    pub(super) fn move_samples(&self) -> impl Iterator<Item = CounterSample> {
        let pinned = CounterSample {
            name: "xfaas_pinned_sessions",
            help: "Sessions that are on another core than their slot's owner.",
            kind: MetricKind::Gauge,
            labels: vec![],
            value: self.pins.board().len() as f64,
        };
        let moves = self.move_counts.0.iter().zip(MOVE_OUTCOMES).map(|(count, outcome)| CounterSample {
            name: "xfaas_session_moves_total",
            help: "Moves of sessions to another core that were asked for, by how they went.",
            kind: MetricKind::Counter,
            labels: vec![("outcome", outcome.to_owned())],
            value: count.load(Ordering::Relaxed) as f64,
        });
        moves.chain([pinned])
    }
}
