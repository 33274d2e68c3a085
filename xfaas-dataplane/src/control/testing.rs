//! What the tests of this folder and of `cli` share: small modules, an engine, and shards that only remember.

use super::addresses::Addresses;
use super::api::{FunctionSource, SessionInfo};
use super::catalog::Entry;
use super::moving::{HotSession, MoveError, MoveReply, MoveRequest};
use super::shards::{CounterSample, HistogramSample, MetricKind, Running, SessionsQuery, Shards, ShardsError};
use crate::session::{AliasChange, TOKEN_SECRET_BYTES, TokenKey};
use crate::shard::ShardView;
use crate::worker::{Engine, EngineOptions, Function, FunctionManifest};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use xfaas_common::ids::{FunctionHash, SessionId};

/// `(module (memory (export "memory") 1) (func (export "handle") (result i32) i32.const 0))`
pub(crate) const MODULE: &[u8] = b"\0asm\x01\0\0\0\x01\x05\x01\x60\0\x01\x7f\x03\x02\x01\0\x05\x03\x01\0\x01\x07\x13\x02\x06memory\x02\0\x06handle\0\0\x0a\x06\x01\x04\0\x41\0\x0b";
/// The same with `i32.const 2`.
pub(crate) const MODULE_2: &[u8] = b"\0asm\x01\0\0\0\x01\x05\x01\x60\0\x01\x7f\x03\x02\x01\0\x05\x03\x01\0\x01\x07\x13\x02\x06memory\x02\0\x06handle\0\0\x0a\x06\x01\x04\0\x41\x02\x0b";

/// One engine for all tests of the process.
pub(crate) fn engine() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let options = EngineOptions { workers_live_max: 4, ..EngineOptions::default() };
    ENGINE.get_or_init(|| Engine::new(&options).expect("an engine with small limits")).clone()
}

pub(crate) fn manifest(name: &str, app: &str) -> FunctionManifest {
    FunctionManifest { app: app.to_owned(), ..FunctionManifest::named(name) }
}

pub(super) fn entry(name: &str, app: &str) -> Entry {
    Entry { manifest: manifest(name, app), source: FunctionSource::Deployment, generation: 1, wasm_bytes: 8, fault: None }
}

/// Two names with one FNV-1a-32: by the birthday bound a few hundred thousand tries are enough.
pub(crate) fn clashing_names() -> (String, String) {
    let mut seen: HashMap<FunctionHash, String> = HashMap::new();
    for i in 0u32..1_000_000 {
        let name = format!("f{i}");
        if let Some(other) = seen.insert(FunctionHash::of(name.as_bytes()), name.clone()) {
            return (other, name);
        }
    }
    unreachable!("two of a million names share a 32-bit hash")
}

pub(crate) fn addresses() -> Arc<Addresses> {
    // The folder may go: the file stays open.
    let folder = tempfile::tempdir().unwrap();
    Arc::new(Addresses::open(TokenKey::new(&[1; TOKEN_SECRET_BYTES]), folder.path()).unwrap())
}

/// Shards without shards.
#[derive(Default)]
pub(crate) struct FakeShards {
    installed: Mutex<BTreeMap<u16, Arc<Function>>>,
    fail_install: AtomicBool,
    offered: Mutex<Vec<Running>>,
    pub aliases: Mutex<Vec<AliasChange>>,
    pub draining: AtomicBool,
}

impl FakeShards {
    pub fn installed(&self) -> BTreeMap<u16, Arc<Function>> {
        self.installed.lock().unwrap().clone()
    }

    pub fn generation_of(&self, name: &str) -> Option<u64> {
        self.installed().values().find(|function| function.manifest.name == name).map(|function| function.generation)
    }

    /// What containers were told last.
    pub fn offered(&self) -> Vec<Running> {
        self.offered.lock().unwrap().clone()
    }

    /// The next `install` reaches some shards and then fails.
    pub fn fail_next_install(&self) {
        self.fail_install.store(true, Ordering::SeqCst);
    }
}

impl Shards for FakeShards {
    fn views(&self) -> Vec<Arc<ShardView>> {
        vec![Arc::new(ShardView::new())]
    }

    fn set_traced(&self, _is_traced: bool) {}

    fn function_names(&self) -> HashMap<u16, String> {
        HashMap::new()
    }

    fn count(&self) -> usize {
        2
    }

    fn install(&self, function: Arc<Function>) -> Result<(), ShardsError> {
        self.installed.lock().unwrap().insert(function.index, function);
        if self.fail_install.swap(false, Ordering::SeqCst) {
            return Err(ShardsError::Busy { shard: 1, waited_ms: 5 });
        }
        Ok(())
    }

    fn remove(&self, index: u16) -> Result<(), ShardsError> {
        self.installed.lock().unwrap().remove(&index);
        Ok(())
    }

    fn offer(&self, functions: &[Running]) -> Result<(), ShardsError> {
        *self.offered.lock().unwrap() = functions.to_vec();
        Ok(())
    }

    fn alias(&self, changes: &[AliasChange], _pins: &[(SessionId, Option<SessionId>)]) -> Result<(), ShardsError> {
        self.aliases.lock().unwrap().extend_from_slice(changes);
        Ok(())
    }

    fn sessions(&self, query: &SessionsQuery) -> Result<Vec<SessionInfo>, ShardsError> {
        let sessions = (0u16..5).map(|i| SessionInfo {
            app: if i < 4 { "shop".to_owned() } else { "other".to_owned() },
            session: format!("user-{i}"),
            shard: i % 2,
            state_bytes: 100,
            keys: 1,
            workers: 1,
            containers: 1,
        });
        let wanted = |session: &SessionInfo| {
            query.app.as_ref().is_none_or(|app| *app == session.app)
                && query.prefix.as_ref().is_none_or(|prefix| session.session.starts_with(prefix))
        };
        Ok(sessions.filter(wanted).take(query.limit).collect())
    }

    fn move_session(&self, request: &MoveRequest) -> Result<MoveReply, MoveError> {
        let MoveRequest { app, session, core } = request.clone();
        match core {
            0 => Err(MoveError::SameCore { core }),
            1 => Ok(MoveReply { app, session, from: 0, to: core, keys: 1, state_bytes: 100 }),
            _ => Err(MoveError::UnknownCore { core, last: 1 }),
        }
    }

    fn away_from_home(&self) -> Vec<MoveRequest> {
        Vec::new()
    }

    fn take_wanted_home(&self) -> bool {
        false
    }

    fn hottest(&self, _shard: u16) -> Result<Vec<HotSession>, ShardsError> {
        Ok(Vec::new())
    }

    fn busy_ns(&self) -> Vec<u64> {
        Vec::new()
    }

    fn counters(&self) -> Vec<CounterSample> {
        let requests = |shard: &str, function: &str, outcome: &str, value| CounterSample {
            name: super::REQUESTS_TOTAL,
            help: "Requests answered",
            kind: MetricKind::Counter,
            labels: vec![("function", function.to_owned()), ("outcome", outcome.to_owned()), ("shard", shard.to_owned())],
            value,
        };
        let sessions = CounterSample {
            name: "xfaas_sessions",
            help: "Sessions with state",
            kind: MetricKind::Gauge,
            labels: vec![("shard", "0".to_owned())],
            value: 5.0,
        };
        vec![requests("0", "echo", "ok", 3.0), sessions, requests("1", "echo", "ok", 4.0)]
    }

    fn histograms(&self) -> Vec<HistogramSample> {
        vec![HistogramSample {
            name: super::REQUEST_DURATION_SECONDS,
            help: "From the request's last byte to its reply",
            labels: vec![("function", "echo".to_owned())],
            bounds_seconds: &[0.000_1, 0.001],
            counts: vec![5, 7],
            sum_seconds: 0.25,
            count: 7,
        }]
    }

    fn is_stopping(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::SeqCst) { Err("draining".to_owned()) } else { Ok(()) }
    }
}
