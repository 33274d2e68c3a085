//! The log of a shard's apps whose durability is `sync`: what is written when, and which answers wait for it. docs/ARCHITECTURE.md, "The log".
//! A stage of the loop: it never waits for a disk, but where a deployment makes an app's log begin. Without such apps it costs a turn one branch.

use super::tag::Operation;
use super::turn::Shard;
use crate::durable::{FIRST_SEQUENCE, Keeper, KeeperAnswer, Log, LogDirectory, LogError, Recovered, SegmentWanted};
use crate::net::ErrorCode;
use crate::session::{Finished, KnownSessions, Outcome};
use crate::state::{BATCH_HEAD_BYTES, Journal, SESSION_BUCKETS, ShardState, record_session};
use crate::sys::{Completion, clock};
use crate::worker::{Durability, FunctionManifest};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{LOG_HELD_MS_MAX, LOG_WAITING_BYTES_MAX};

/// Bytes of records that a snapshot gathers before it hands them over, and how long it may take of a turn.
const CHUNK_BYTES: usize = 256 << 10;
const COPY_NS_MAX: u64 = 200_000;

/// What a shard holds for its log.
#[derive(Default)]
pub(super) struct Logging {
    /// `None` until the first app is logged.
    open: Option<Box<OpenLog>>,
    /// Calls that are over, whose answers wait for a position of the log.
    held: VecDeque<(u64, Finished)>,
    /// The position of the last record that ended a session.
    ended_at: u64,
}

struct OpenLog {
    log: Log<Arc<File>>,
    keeper: Keeper,
    /// Where the write under way goes: the file stays open until it is over.
    writing: Option<Arc<File>>,
    snapshot: Option<Snapshot>,
    /// The last failure was told; the next one is, when something worked in between.
    is_told: bool,
}

/// A snapshot of all apps in the log that is being made.
struct Snapshot {
    apps: Vec<u16>,
    /// The app and the part of its region that come next.
    app_at: usize,
    bucket: usize,
    chunk: Vec<u8>,
    /// The keeper had no room at the last try.
    is_blocked: bool,
    /// Everything is handed over; what it shows is safe when the log is so far.
    complete_at: Option<u64>,
    is_ended: bool,
}

impl Logging {
    fn synced(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.log.synced())
    }

    /// True while a snapshot is being made.
    pub(super) fn has_snapshot(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.snapshot.is_some())
    }

    /// True while this position is not safe.
    pub(super) fn is_behind(&self, position: u64) -> bool {
        position > self.synced()
    }

    pub(super) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// True while the loop must not rest for long: something waits that no completion may bring.
    pub(super) fn has_work(&self) -> bool {
        let is_busy = |open: &OpenLog| open.snapshot.is_some() || open.log.failing_since_ns().is_some();
        !self.held.is_empty() || self.open.as_deref().is_some_and(is_busy)
    }

    /// True while sessions are being ended, and it is not safe yet that their checkpoints count.
    pub(super) fn is_ending_sessions(&self) -> bool {
        self.is_behind(self.ended_at)
    }

    pub(super) fn is_failing(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.log.failing_since_ns().is_some())
    }

    /// True while a snapshot could go on at once.
    pub(super) fn is_copying(&self) -> bool {
        let snapshot = self.open.as_ref().and_then(|open| open.snapshot.as_ref());
        snapshot.is_some_and(|snapshot| !snapshot.is_blocked && snapshot.complete_at.is_none())
    }
}

impl Shard {
    /// Why a request of this app cannot be taken now.
    #[inline(always)]
    pub(super) fn log_refusal(&self, app: u16) -> Option<&'static str> {
        let open = self.logging.open.as_ref()?;
        let journal = &self.proxy.state().journal;
        if !journal.logs(app) {
            return None;
        }
        if open.log.failing_since_ns().is_some() {
            return Some("the log cannot be written: see the server's log, or free some disk");
        }
        let is_full = journal.waiting_bytes() > LOG_WAITING_BYTES_MAX || self.logging.held.len() >= self.options.proxy.queued_calls_max;
        is_full.then_some("the log is slower than its requests")
    }

    /// Keeps a call that is over until what it wrote or may have seen is on the disk. Output: the call, when its answer can leave.
    #[inline(always)]
    pub(super) fn hold(&mut self, finished: Finished) -> Option<Finished> {
        if self.is_stale_read(&finished) {
            return self.read_again(finished.call);
        }
        if self.logging.open.is_none() || !finished.outcome.ran() {
            return Some(finished);
        }
        match self.proxy.state().journal.position_of(finished.call.app) {
            Some(position) if self.logging.is_behind(position) => {
                self.logging.held.push_back((position, finished));
                self.now_ns = clock::monotonic_ns(); // as when its answer is written
                None
            }
            _ => Some(finished),
        }
    }

    /// Writes what has gathered, unless a write is under way; takes what the keeper has made.
    pub(super) fn step_log(&mut self) {
        if self.logging.open.is_none() {
            return;
        }
        let from_ns = clock::quick_ns();
        self.advance_log();
        self.tail.work.log_ns += clock::quick_ns().saturating_sub(from_ns);
    }

    fn advance_log(&mut self) {
        self.take_log_answers();
        self.step_snapshot();
        let Some(open) = &mut self.logging.open else { return };
        let now_ns = self.now_ns;
        let write = self.proxy.with_state(|state, _| open.log.begin_write(&mut state.journal, now_ns));
        if let Some(write) = write {
            let counters = &self.view.counters;
            counters.log_writes.add(1);
            counters.log_bytes.add(write.buffer.len() as u64);
            self.ring.write_synced(Operation::Logged.tag(), write.file.as_fd(), write.offset, write.buffer);
            open.writing = Some(write.file);
        }
        if let Some(SegmentWanted { number }) = open.log.next_segment(now_ns)
            && !open.keeper.make_segment(number, &self.proxy.state().journal)
        {
            open.log.on_no_segment(number, now_ns);
        }
        if let Some(retired) = open.log.take_retired()
            && let Err(retired) = open.keeper.cut_segment(retired)
        {
            open.log.give_back(retired);
        }
        let failing_since_ns = open.log.failing_since_ns();
        self.view.counters.log_failing.set(u64::from(failing_since_ns.is_some()));
        if failing_since_ns.is_some_and(|since_ns| now_ns.saturating_sub(since_ns) > LOG_HELD_MS_MAX * 1_000_000) {
            self.give_up_held();
        }
    }

    /// A write of the log is over.
    pub(super) fn on_logged(&mut self, completion: Completion) {
        let Some(open) = &mut self.logging.open else { return };
        let buffer = completion.sent.unwrap_or_default();
        let is_done = usize::try_from(completion.result) == Ok(buffer.len());
        open.writing = None;
        open.log.on_written(buffer, is_done, self.now_ns);
        if is_done {
            return self.release_held();
        }
        self.view.counters.log_failures.add(1);
        let error = match completion.result {
            ..0 => std::io::Error::from_raw_os_error(-completion.result),
            _ => std::io::ErrorKind::StorageFull.into(), // a part of it was written
        };
        tracing::error!(shard = self.core.0, %error, "the log cannot be written: requests of its apps get 503 until it can");
    }

    /// Answers leave whose position is on the disk by now.
    fn release_held(&mut self) {
        let synced = self.logging.synced();
        while let Some((position, _)) = self.logging.held.front()
            && *position <= synced
        {
            let Some((_, finished)) = self.logging.held.pop_front() else { return };
            self.deliver_now(finished);
        }
        self.release_held_rpc();
        self.release_session_answers();
    }

    /// The log could not be written for long, or not before the end: those who wait are told that their call ran, and no more.
    pub(super) fn give_up_held(&mut self) {
        while let Some((_, Finished { call, .. })) = self.logging.held.pop_front() {
            let outcome = Outcome::failed(ErrorCode::Deadline, "the function ran, but the log of its writes cannot be written");
            self.deliver_now(Finished { call, outcome });
        }
        self.shut_held_rpc();
        self.drop_session_answers();
    }

    fn take_log_answers(&mut self) {
        let now_ns = self.now_ns;
        while let Some(open) = &mut self.logging.open
            && let Some(answer) = open.keeper.answer()
        {
            let error = match answer {
                KeeperAnswer::Segment { number, file, head_bytes } => {
                    open.is_told = false;
                    open.log.on_segment(number, file, head_bytes);
                    continue;
                }
                KeeperAnswer::NoSegment { number, error } => {
                    open.log.on_no_segment(number, now_ns);
                    error
                }
                KeeperAnswer::Snapshot(made) => {
                    open.snapshot = None;
                    match made {
                        Ok(()) => continue,
                        Err(error) => error,
                    }
                }
            };
            self.view.counters.log_failures.add(1);
            if !std::mem::replace(&mut open.is_told, true) {
                tracing::error!(shard = self.core.0, error = ?error.source, "{error}");
            }
        }
    }

    /// Copies a part of the regions, so that the log before it can go.
    fn step_snapshot(&mut self) {
        let Shard { logging, proxy, options, lifecycle, placement, .. } = self;
        let Some(open) = &mut logging.open else { return };
        let OpenLog { log, keeper, snapshot, .. } = &mut **open;
        let state = proxy.state();
        let Some(copying) = snapshot else {
            let is_long = log.bytes_since_snapshot() > options.log_bytes_max && log.failing_since_ns().is_none();
            if is_long && log.bytes_since_snapshot() > state.stats().total.bytes_live {
                *snapshot = begin_snapshot(log, keeper, &state.journal, clock::monotonic_ns());
            }
            return;
        };
        if copying.complete_at.is_none() {
            let is_ended = |app, session: &SessionId| {
                let known = lifecycle.sessions_of(app)?.find_mut(session, placement.hash(session).table_hash())?;
                Some(known.is_out_of_log)
            };
            copying.step(keeper, state, is_ended);
        }
        // What it shows must be on the disk before it stands for the log: else it could hold a part of what nobody was told of.
        if copying.complete_at.is_some_and(|position| log.synced() >= position) && !copying.is_ended {
            copying.is_ended = keeper.end_snapshot();
        }
    }

    /// The durability of an app is as the manifest says from now on. May wait for the disk: a deployment does.
    /// Errors: the log cannot be begun; the app is not logged then.
    pub(super) fn set_durability(&mut self, app: u16, manifest: &FunctionManifest) -> Result<(), LogError> {
        // A container's writes are logged by its primary, which answers when they are safe.
        if self.container.is_some() {
            return Ok(());
        }
        let state = self.proxy.state();
        let Some(identity) = state.region(app).map(crate::state::Region::identity) else { return Ok(()) };
        let (is_logged, is_left) = (state.journal.logs(app), state.journal.leaving_of(app).is_some());
        let recovered = self.options.recovered.get();
        let is_covered = recovered.is_some_and(|recovered| recovered.covered.contains(&(self.core.0, manifest.app.clone(), identity)));
        if manifest.durability != Durability::Sync {
            let is_in_log = is_logged || is_left || is_covered;
            if is_in_log && manifest.may_sleep() {
                self.need_log()?; // its sessions' checkpoints are to count more than what the log has of them
            }
            if is_in_log && !is_left {
                self.proxy.with_state(|state, _| state.journal.leave_app(app, &manifest.app, identity));
                self.lifecycle.sessions_of(app).into_iter().for_each(KnownSessions::put_into_log);
            }
            return Ok(());
        }
        if is_logged {
            return Ok(());
        }
        self.need_log()?;
        let Shard { logging, proxy, .. } = self;
        let Some(open) = &mut logging.open else { return Ok(()) };
        // What an app wrote after it left the log is not in it, and not in the start's snapshot either.
        proxy.with_state(|state, _| {
            state.journal.log_app(app, &manifest.app, identity);
            let begun = begin_app(open, state, app, &manifest.app, is_covered && !is_left);
            match (&begun, is_left) {
                (Ok(()), _) => {}
                (Err(_), true) => state.journal.leave_app(app, &manifest.app, identity),
                (Err(_), false) => state.journal.forget_app(app),
            }
            begun
        })
    }

    fn need_log(&mut self) -> Result<(), LogError> {
        if self.logging.open.is_none() {
            self.logging.open = Some(Box::new(self.open_log()?));
        }
        Ok(())
    }

    /// The store has all that a session holds, or more than the log has of it: from here on its checkpoints count, and not what the log had of it
    /// when its app left the log. Before that is on the disk, the log counts. Output: false until then.
    pub(super) fn end_in_log(&mut self, app: u16, session: &SessionId, table_hash: u32) -> bool {
        let Shard { logging, proxy, lifecycle, .. } = self;
        if proxy.state().journal.leaving_of(app).is_none() {
            return true;
        }
        let Some(known) = lifecycle.sessions_of(app).and_then(|sessions| sessions.find_mut(session, table_hash)) else { return true };
        if !std::mem::replace(&mut known.is_out_of_log, true)
            && let Some(position) = proxy.with_state(|state, _| state.journal.end_session(app, session))
        {
            logging.ended_at = position;
        }
        !logging.is_ending_sessions()
    }

    fn open_log(&self) -> Result<OpenLog, LogError> {
        let (options, shards) = (&self.options, self.rings.len() as u16);
        let source = || std::io::Error::other("the node could not begin it when it started");
        let not_begun = || LogError { operation: "write", path: options.log_directory.clone(), source: source() };
        let Recovered { epoch, next_number, .. } = *options.recovered.get().ok_or_else(not_begun)?;
        let door = Arc::clone(&self.door);
        let wake = Box::new(move || door.waker.wake());
        let keeper = Keeper::start(LogDirectory::open(&options.log_directory)?, self.core.0, shards, epoch, wake)?;
        let log = Log::new(self.core.0, epoch, next_number, FIRST_SEQUENCE);
        Ok(OpenLog { log, keeper, writing: None, snapshot: None, is_told: false })
    }
}

/// Has an app's writes go to a segment behind a snapshot of it: the start's, or one made now.
fn begin_app(open: &mut OpenLog, state: &ShardState, app: u16, name: &str, is_covered: bool) -> Result<(), LogError> {
    let OpenLog { log, keeper, .. } = open;
    if is_covered && log.has_segment() {
        return Ok(());
    }
    let (snapshot, behind) = log.begin_snapshot();
    let made = match state.region(app) {
        Some(region) if !is_covered => keeper.log_app(snapshot, log.goes_on_at(), name, (region, &state.journal)),
        _ => keeper.segment_now(behind, &state.journal),
    };
    match made {
        Ok((file, head_bytes)) => {
            log.on_segment(behind, file, head_bytes);
            Ok(())
        }
        Err(error) => {
            log.on_no_segment(behind, clock::monotonic_ns());
            Err(error)
        }
    }
}

fn begin_snapshot(log: &mut Log<Arc<File>>, keeper: &Keeper, journal: &Journal, now_ns: u64) -> Option<Snapshot> {
    let (number, behind) = log.begin_snapshot_of_all();
    if !keeper.make_segment(behind, journal) {
        log.on_no_segment(behind, now_ns);
        return None;
    }
    let apps = journal.apps_in_log().map(|(app, ..)| app).collect();
    let chunk = vec![0; BATCH_HEAD_BYTES];
    let snapshot = Snapshot { apps, app_at: 0, bucket: 0, chunk, is_blocked: false, complete_at: None, is_ended: false };
    keeper.begin_snapshot(number, log.goes_on_at(), journal).then_some(snapshot)
}

impl Snapshot {
    /// `is_ended`: the log is not to have anything of the session any more.
    fn step(&mut self, keeper: &Keeper, state: &ShardState, mut is_ended: impl FnMut(u16, &SessionId) -> Option<bool>) {
        let started_ns = clock::monotonic_ns();
        self.is_blocked = false;
        let names: Vec<&str> = self.apps.iter().map(|app| name_of(&state.journal, *app)).collect();
        while self.app_at < self.apps.len() && clock::monotonic_ns() - started_ns < COPY_NS_MAX {
            if self.chunk.len() > CHUNK_BYTES && !self.hand_over(keeper) {
                return;
            }
            let app = self.apps[self.app_at];
            if let Some(region) = state.region(app) {
                let has_left = state.journal.leaving_of(app).is_some();
                for (session, namespace) in region.sessions_of(self.bucket) {
                    if !has_left || is_ended(app, &session) != Some(true) {
                        record_session(&mut self.chunk, names[self.app_at], region, &session, namespace);
                    }
                }
            }
            self.bucket += 1;
            if self.bucket == SESSION_BUCKETS {
                (self.app_at, self.bucket) = (self.app_at + 1, 0);
            }
        }
        if self.app_at == self.apps.len() && (self.chunk.len() == BATCH_HEAD_BYTES || self.hand_over(keeper)) {
            self.complete_at = Some(state.journal.position());
        }
    }

    fn hand_over(&mut self, keeper: &Keeper) -> bool {
        let chunk = std::mem::replace(&mut self.chunk, vec![0; BATCH_HEAD_BYTES]);
        if let Err(chunk) = keeper.add_records(chunk) {
            (self.chunk, self.is_blocked) = (chunk, true);
        }
        !self.is_blocked
    }
}

fn name_of(journal: &Journal, app: u16) -> &str {
    journal.apps_in_log().find(|(index, ..)| *index == app).map_or("", |(_, name, _)| name)
}
