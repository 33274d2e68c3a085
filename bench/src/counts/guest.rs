//! Guests: one call by itself, and the way of a request around it as a shard goes it, without sockets. `counts` counts them.

use super::session::placement;
use super::wire::{HttpReader, ReplyWriter, datagram, http_request, session};
use crate::guest::{Guest, GuestError};
use crate::servers::{XfaasFiles, scratch_directory};
use crate::state::{Case, CaseError};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_dataplane::net::{DatagramHead, decode_datagram, encode_datagram_reply};
use xfaas_dataplane::session::{Ahead, Finished, LocalPlacement, Outcome, Placement, Proxy, ProxyOptions, named_session};
use xfaas_dataplane::state::ShardState;
use xfaas_dataplane::worker::{Call, Engine, EngineOptions, Function, FunctionManifest, Worker};

/// Workers of a pool: few, because each reserves 4 GiB of address space, of which valgrind has not much.
const WORKERS: u32 = 8;
/// A guest's slice, microseconds: as long as may be, since time passes fifty times as fast for what runs under valgrind.
const TICK_US: u64 = 100_000;
const REGION_BYTES: u64 = 64 << 20;
const SECOND_NS: u64 = 1_000_000_000;

const BEGUN: &str = "cases are begun before their batches";

/// The functions, with the names of their three cases.
const FUNCTIONS: [(&str, [&str; 4]); 4] = [
    ("echo", ["guest/echo", "proxy/echo", "path/http/echo", "path/datagram/echo"]),
    ("counter-read", ["guest/counter-read", "proxy/counter-read", "path/http/counter-read", "path/datagram/counter-read"]),
    ("counter-rmw", ["guest/counter-rmw", "proxy/counter-rmw", "path/http/counter-rmw", "path/datagram/counter-rmw"]),
    (
        "counter-rmw-linear",
        ["guest/counter-rmw-linear", "proxy/counter-rmw-linear", "path/http/counter-rmw-linear", "path/datagram/counter-rmw-linear"],
    ),
];

/// An engine that runs under valgrind too.
pub(super) fn engine() -> Result<Engine, CaseError> {
    let options = EngineOptions { workers_live_max: WORKERS, tick_us: TICK_US, ..EngineOptions::default() };
    Ok(Engine::new(&options).map_err(GuestError::from)?)
}

/// Warm calls of each function, the way around them, and a Fork.
pub(super) fn guest_cases(files: &XfaasFiles) -> Result<Vec<Box<dyn Case>>, CaseError> {
    let engine = engine()?;
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for (function, [name, ..]) in FUNCTIONS {
        let guest = Guest::load_with(&engine, &files.guest(function)?)?;
        cases.push(Box::new(WarmCall { name, guest, worker: None }));
    }
    cases.push(Box::new(Fork { guest: Guest::load_with(&engine, &files.guest("echo")?)? }));
    for (way, at) in [(Way::Proxy, 1), (Way::Http, 2), (Way::Datagram, 3)] {
        for (function, names) in FUNCTIONS {
            cases.push(Box::new(Request::new(names[at], way, &engine, function, &files.guest(function)?)?));
        }
    }
    Ok(cases)
}

struct WarmCall {
    name: &'static str,
    guest: Guest,
    /// While it is counted: there are not many.
    worker: Option<Worker>,
}

impl Case for WarmCall {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operations(&self) -> u32 {
        1
    }

    fn begin(&mut self) -> Result<(), CaseError> {
        self.worker = Some(self.guest.fork()?);
        Ok(())
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        black_box(self.guest.call(self.worker.as_mut().expect(BEGUN))?);
        Ok(())
    }

    fn end(&mut self) {
        self.worker = None;
    }
}

/// A worker is made and dropped; it runs nothing.
struct Fork {
    guest: Guest,
}

impl Case for Fork {
    fn name(&self) -> &'static str {
        "guest/fork"
    }

    fn operations(&self) -> u32 {
        1
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        drop(black_box(self.guest.fork()?));
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The proxy's part: a worker is found, the guest runs, the worker rests.
    Proxy,
    /// From a request's bytes to its reply's.
    Http,
    Datagram,
}

/// A request to one session, again and again.
struct Request {
    name: &'static str,
    way: Way,
    function: Arc<Function>,
    /// With its worker, while it is counted.
    proxy: Option<Proxy>,
    placement: LocalPlacement,
    call: Option<Box<Call>>,
    session: SessionId,
    input: Vec<u8>,
    reader: HttpReader,
    writer: ReplyWriter,
    out: Vec<u8>,
    now_ns: u64,
    directory: TempDir,
}

impl Request {
    fn new(name: &'static str, way: Way, engine: &Engine, function: &str, module: &Path) -> Result<Request, CaseError> {
        let directory = scratch_directory("counts").map_err(CaseError::Directory)?;
        let session = session(0);
        let input = if way == Way::Datagram { datagram(function, &session) } else { http_request("127.0.0.1:8080", function, &session) };
        let mut case = Request {
            name,
            way,
            function: function_of(engine, function, module)?,
            proxy: None,
            placement: placement(),
            call: Some(Box::default()),
            session,
            input,
            reader: HttpReader::new(),
            writer: ReplyWriter::new(),
            out: Vec::with_capacity(4_096),
            now_ns: u64::MAX / 2,
            directory,
        };
        let call = case.call.as_mut().expect("just made");
        case.reader.read(&http_request("127.0.0.1:8080", function, &session), &mut call.request)?;
        Ok(case)
    }

    /// Runs the call, whose request is there. Errors: it does not end well at once.
    fn submit(&mut self, mut call: Box<Call>, session: SessionId) -> Result<Box<Call>, CaseError> {
        let hash = self.placement.hash(&session);
        black_box(self.placement.owner(hash.slot()));
        call.session = session;
        call.table_hash = hash.table_hash();
        call.function_hash = self.function.hash;
        self.now_ns += 1_000;
        let proxy = self.proxy.as_mut().expect(BEGUN);
        // As the shard's line does, which takes these steps while other calls run.
        let mut ahead = Ahead::Nothing;
        while !matches!(ahead, Ahead::All | Ahead::Cold) {
            ahead = proxy.look_ahead(&call, ahead);
        }
        call.is_near = ahead == Ahead::All;
        match proxy.submit(call, self.now_ns) {
            Some(Finished { call, outcome: Outcome::Replied }) => Ok(call),
            Some(Finished { outcome, .. }) => Err(CaseError::Answer(format!("{}: {outcome:?}", self.name))),
            None => self.run_on(),
        }
    }

    /// A tick fell into the call: it has more slices.
    #[cold]
    fn run_on(&mut self) -> Result<Box<Call>, CaseError> {
        let proxy = self.proxy.as_mut().expect(BEGUN);
        while proxy.has_runnable() {
            if let Some(Finished { call, outcome: Outcome::Replied }) = proxy.run_next(self.now_ns) {
                return Ok(call);
            }
        }
        Err(CaseError::Answer(format!("{}: the call is gone", self.name)))
    }

    fn http(&mut self, mut call: Box<Call>) -> Result<Box<Call>, CaseError> {
        self.reader.read(black_box(&self.input), &mut call.request)?;
        let function = self.proxy.as_ref().expect(BEGUN).function(0).ok_or_else(|| CaseError::Answer("the function is gone".to_owned()))?;
        let named = named_session(&call.request, &function.manifest.rules.hint).map_err(|detail| CaseError::Answer(detail.to_owned()))?;
        let session = named.ok_or_else(|| CaseError::Answer("no session is named".to_owned()))?;
        let call = self.submit(call, session)?;
        self.writer.write(&call.session, &call.output);
        Ok(call)
    }

    fn datagram(&mut self, mut call: Box<Call>) -> Result<Box<Call>, CaseError> {
        let (head, payload) =
            decode_datagram(black_box(&self.input)).map_err(|reason| CaseError::Answer(format!("dropped: {reason:?}")))?;
        call.request.set_datagram(head.session, payload);
        let call = self.submit(call, head.session)?;
        let head = DatagramHead { session: call.session, ..head };
        self.out.clear();
        encode_datagram_reply(&mut self.out, &head, &call.output);
        black_box(self.out.len());
        Ok(call)
    }
}

impl Case for Request {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operations(&self) -> u32 {
        1
    }

    fn begin(&mut self) -> Result<(), CaseError> {
        let mut proxy = Proxy::new(proxy_options(), Box::new(ShardState::new(self.directory.path().to_owned(), 0, REGION_BYTES)));
        proxy.install(Arc::clone(&self.function))?;
        self.proxy = Some(proxy);
        Ok(())
    }

    fn end(&mut self) {
        self.proxy = None;
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        let call = self.call.take().ok_or_else(|| CaseError::Answer("an earlier call failed".to_owned()))?;
        let mut call = match self.way {
            Way::Proxy => self.submit(call, self.session)?,
            Way::Http => self.http(call)?,
            Way::Datagram => self.datagram(call)?,
        };
        if self.way == Way::Proxy {
            call.output.clear(); // its request stays
        } else {
            call.reset();
        }
        self.call = Some(call);
        Ok(())
    }
}

pub(super) fn proxy_options() -> ProxyOptions {
    ProxyOptions {
        is_secondary: false,
        workers_live_max: WORKERS as usize,
        keep_warm_ns: 3_600 * SECOND_NS,
        lock_wait_ns: SECOND_NS,
        namespace_queue_calls_max: 16,
        queued_calls_max: 64,
    }
}

/// Function 0 of app 0.
pub(super) fn function_of(engine: &Engine, name: &str, module: &Path) -> Result<Arc<Function>, CaseError> {
    let wasm = std::fs::read(module).map_err(|source| CaseError::Io { operation: "read a guest's module", source })?;
    let manifest = FunctionManifest::named(name);
    let load = |source| GuestError::Load { path: module.to_owned(), source };
    let program = engine.load(&manifest, &wasm).map_err(load)?;
    let hash = FunctionHash::of(name.as_bytes());
    Ok(Arc::new(Function { manifest, program, hook: None, index: 0, app: 0, hash, generation: 1 }))
}
