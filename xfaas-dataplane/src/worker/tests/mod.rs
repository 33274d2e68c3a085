//! Workers against the contract, on real state, with guests written as text. CONTRACT.md section 3.

mod beside;
mod contract;
mod hostile;
mod kept;
mod load;
mod parking;
mod script;
mod snapshot;
mod warm;

use super::{Call, Engine, EngineOptions, FunctionManifest, Lent, LoadError, Program, Progress, Worker};
use crate::state::{Acquire, CallToken, LockKey, ShardState};
use crate::sys::clock::monotonic_ns;
use std::sync::OnceLock;
use xfaas_common::ids::SessionId;

const APP: u16 = 3;
const GATEKEEPER: CallToken = CallToken(9_999);

fn alice() -> SessionId {
    SessionId::new(b"alice").unwrap()
}

fn gate(key: &str) -> LockKey<'_> {
    static ALICE: OnceLock<SessionId> = OnceLock::new();
    LockKey { app: APP, session: ALICE.get_or_init(alice), key: key.as_bytes() }
}

/// One engine for all tests: each reserves terabytes of address space.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(&EngineOptions { workers_live_max: 300, tick_us: 200, ..EngineOptions::default() }).unwrap())
}

fn manifest() -> FunctionManifest {
    FunctionManifest { memory_mib: 8, ..FunctionManifest::named("test") }
}

fn load(wat: &str) -> Program {
    load_with(&manifest(), wat).unwrap()
}

fn load_with(manifest: &FunctionManifest, wat: &str) -> Result<Program, LoadError> {
    engine().load(manifest, &wat::parse_str(wat).unwrap())
}

/// What a shard owns, with its own directory.
struct Shard {
    state: Option<Box<ShardState>>,
    _directory: tempfile::TempDir,
}

impl Shard {
    fn new() -> Shard {
        let directory = tempfile::tempdir().unwrap();
        let mut state = Box::new(ShardState::new(directory.path().to_owned(), 0, 16 << 20));
        state.open_app(APP, "test").unwrap();
        Shard { state: Some(state), _directory: directory }
    }

    fn state(&mut self) -> &mut ShardState {
        self.state.as_mut().unwrap()
    }

    /// Takes a lock of session "alice" as nobody's call, so that a guest that wants it parks: a test decides when guests go on.
    fn close_gate(&mut self, key: &str) {
        let acquired = self.state().locks.acquire(&gate(key), GATEKEEPER);
        assert_eq!(acquired, Acquire::Granted);
    }

    /// Output: the call that got the lock.
    fn open_gate(&mut self, key: &str) -> Option<u32> {
        let mut granted = Vec::new();
        self.state().locks.release(&gate(key), GATEKEEPER, &mut granted);
        granted.first().map(|token| token.0)
    }

    fn value(&mut self, session: &str, key: &str) -> Option<Vec<u8>> {
        let session = SessionId::new(session.as_bytes()).unwrap();
        let region = self.state().region(APP).unwrap();
        let namespace = region.find(&session, 7)?;
        let mut value = vec![0; region.value_bytes(namespace, key.as_bytes())?];
        region.read(namespace, key.as_bytes(), &mut value);
        Some(value)
    }

    fn poll(&mut self, guest: &mut Guest) -> Progress {
        let lent = Lent { call: guest.call.take().unwrap(), state: self.state.take().unwrap() };
        let (lent, progress) = guest.worker.as_mut().unwrap().poll(lent);
        guest.call = Some(lent.call);
        self.state = Some(lent.state);
        progress
    }

    /// Polls until the guest is over or parked.
    fn run(&mut self, guest: &mut Guest) -> Progress {
        loop {
            let progress = self.poll(guest);
            if progress != Progress::SliceOver {
                return progress;
            }
        }
    }

    /// A whole invocation with `body`. Output: the progress that ended it.
    fn invoke(&mut self, guest: &mut Guest, body: &[u8]) -> Progress {
        guest.begin(body);
        self.run(guest)
    }
}

/// A worker and its call, as the session proxy holds them.
struct Guest {
    worker: Option<Worker>,
    call: Option<Box<Call>>,
    manifest: FunctionManifest,
    token: u32,
    session: SessionId,
}

impl Guest {
    fn fork(program: &Program, token: u32) -> Guest {
        Guest { worker: Some(Worker::fork(program).unwrap()), call: Some(Box::default()), manifest: manifest(), token, session: alice() }
    }

    fn begin(&mut self, body: &[u8]) {
        let call = self.call();
        call.reset();
        self.prepare(body);
        self.worker.as_mut().unwrap().start();
    }

    fn prepare(&mut self, body: &[u8]) {
        let Guest { call, manifest, token, session, .. } = self;
        let call = call.as_mut().unwrap();
        call.request.set_datagram(*session, body);
        call.set_function(manifest);
        (call.app, call.session, call.table_hash, call.token) = (APP, *session, 7, CallToken(*token));
        call.started_ns = monotonic_ns();
    }

    fn call(&mut self) -> &mut Call {
        self.call.as_mut().unwrap()
    }

    fn output(&mut self) -> &[u8] {
        &self.call().output
    }

    /// Tokens of the calls that got a lock from this one.
    fn granted(&mut self) -> Vec<u32> {
        self.call().granted.drain(..).map(|token| token.0).collect()
    }
}
