//! CopySession: a request of a session whose primary container is full makes a secondary one on another core, as a client sees it. The primary's one worker
//! is not busy but parked, for a lock that is held over the RPC port: so the time is the start's own, and not that of whoever runs on the owner's core.

use super::probe::{Metrics, Resident};
use super::starts::Times;
use super::{SessionsBench, SessionsError, StartFigures, request};
use crate::load::{Client, Fetched};
use crate::servers::{NodeFunction, NodePlace, Server};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use xfaas_common::guest_abi::MODE_STRONG;
use xfaas_common::ids::{AppHash, FunctionHash, SessionId};
use xfaas_common::rpc::{Asker, Frame, Hello, Next, PROTOCOL, READ_KEY, StateRead, StateWrite, next_frame};
use xfaas_common::wire::{KIND_ERROR, KIND_STATE_REPLY, KIND_WELCOME};
use xfaas_dataplane::sys::clock::monotonic_ns;
use xfaas_dataplane::sys::socket::uninterrupted;

const SHARDS: u16 = 2;
const WARM_UP_COPIES: u32 = 20;
/// It needs the lock of key `n`, and is the one worker of its session's primary.
const HELD: &str = "held";
/// It takes no lock.
const COPIED: &str = "copied";
const APP: AppHash = AppHash::of(b"copies");
const FUNCTIONS: [NodeFunction<'static>; 2] = [
    NodeFunction { name: HELD, guest: "counter-rmw-linear", keys: "app = \"copies\"\nworkers_max = 1\ndeadline_ms = 60000\n" },
    NodeFunction { name: COPIED, guest: "counter-rmw", keys: "app = \"copies\"\nworkers_max = 1\ncontainers_max = 2\n" },
];
const RPC_TIMEOUT: Duration = Duration::from_secs(5);

/// The node that `measure_copies` asks, running. Not from a thread on the load's CPU: it could not leave it.
pub fn start_for_copies(bench: &SessionsBench<'_>) -> Result<(NodePlace, Server), SessionsError> {
    let place = NodePlace::on_cpus(bench.xfaas, &[bench.server_cpu, bench.second_cpu], "", &FUNCTIONS)?;
    let server = place.start(bench.interrupt)?;
    Ok((place, server))
}

/// Measures on the calling thread, which is on the load's CPU already. `copies`: that many sessions get a secondary container.
pub fn measure_copies(bench: &SessionsBench<'_>, place: &NodePlace, server: &Server, copies: u32) -> Result<StartFigures, SessionsError> {
    let mut copier = Copier::connect(place, server)?;
    let mut times = Times::default();
    for number in 0..WARM_UP_COPIES + copies {
        bench.check_interrupt()?;
        let copied = copier.copy(place, number, 0)?;
        if number >= WARM_UP_COPIES {
            times.record(copied.time_ns);
            times.add_server(&copied.before, &copied.after)?;
        }
    }
    Ok(times.figures("copy_session"))
}

/// What each secondary container adds to the node's resident memory, its worker included, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct CopyGrowth {
    pub copies: u32,
    /// Pages that are mapped many times count once.
    pub proportional_bytes: f64,
    /// The part of it that is the process' own.
    pub anonymous_bytes: f64,
}

/// The same for memory: `copies` sessions that have their primary container and its worker get a secondary one each.
pub fn measure_copy_growth(
    bench: &SessionsBench<'_>,
    place: &NodePlace,
    server: &Server,
    copies: u32,
) -> Result<CopyGrowth, SessionsError> {
    let mut copier = Copier::connect(place, server)?;
    for number in 0..WARM_UP_COPIES {
        copier.copy(place, number, 0)?;
    }
    let numbers = WARM_UP_COPIES..WARM_UP_COPIES + copies;
    for number in numbers.clone() {
        let reply = copier.first.ask(&request(HELD, &name_of(number), b""))?;
        check(HELD, &reply, 1)?;
    }
    let before = Resident::of(server.pid())?;
    for number in numbers {
        bench.check_interrupt()?;
        copier.copy(place, number, 1)?;
    }
    let after = Resident::of(server.pid())?;
    let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / f64::from(copies.max(1));
    Ok(CopyGrowth {
        copies,
        proportional_bytes: each(before.proportional, after.proportional),
        anonymous_bytes: each(before.anonymous, after.anonymous),
    })
}

/// The request that made a secondary container.
struct Copied {
    time_ns: u64,
    before: Metrics,
    after: Metrics,
}

/// Makes secondary containers, one at a time.
struct Copier {
    first: Client,
    second: Client,
    /// One for each shard.
    locks: Vec<LockHolder>,
}

fn name_of(number: u32) -> String {
    format!("copy-{number:010}")
}

fn check(request: &'static str, reply: &Fetched, count: u64) -> Result<(), SessionsError> {
    if reply.status == 200 && reply.body == count.to_string().as_bytes() {
        return Ok(());
    }
    Err(SessionsError::Answer { request, status: reply.status, body: String::from_utf8_lossy(&reply.body).into_owned() })
}

impl Copier {
    fn connect(place: &NodePlace, server: &Server) -> Result<Copier, SessionsError> {
        let (first, second) = (Client::connect(server.address())?, Client::connect(server.address())?);
        let locks = (0..SHARDS).map(|shard| LockHolder::connect(place.rpc(), shard)).collect::<Result<Vec<_>, _>>()?;
        Ok(Copier { first, second, locks })
    }

    /// Of the session `number`, whose counter stands at `counted`. It stands at 2 more afterwards.
    fn copy(&mut self, place: &NodePlace, number: u32, counted: u64) -> Result<Copied, SessionsError> {
        let name = name_of(number);
        let session = SessionId::new(name.as_bytes()).expect("visible ASCII");
        let mut owner = None;
        for (shard, holder) in self.locks.iter_mut().enumerate() {
            if holder.take(session, u64::from(number))? {
                owner = Some(shard);
            }
        }
        let owner = owner.ok_or(SessionsError::Frame)?;
        self.first.send(&request(HELD, &name, b""))?;
        let before = Metrics::with_parked(place.admin())?;
        let started_ns = monotonic_ns();
        let reply = self.second.ask(&request(COPIED, &name, b""))?;
        let time_ns = monotonic_ns() - started_ns;
        let after = Metrics::read(place.admin())?;
        check(COPIED, &reply, counted + 1)?;
        if after.sum("xfaas_copy_sessions_total")? != before.sum("xfaas_copy_sessions_total")? + 1.0 {
            return Err(SessionsError::Metric { name: "xfaas_copy_sessions_total of one more" });
        }
        self.locks[owner].give_back(session, u64::from(number))?;
        let reply = self.first.receive()?;
        check(HELD, &reply, counted + 2)?;
        Ok(Copied { time_ns, before, after })
    }
}

/// Takes locks as a container of another process does.
struct LockHolder {
    stream: TcpStream,
    received: Vec<u8>,
    requests: u64,
}

fn io(operation: &'static str) -> impl FnOnce(std::io::Error) -> SessionsError {
    move |source| SessionsError::Rpc { operation, source }
}

impl LockHolder {
    fn connect(rpc: SocketAddr, shard: u16) -> Result<LockHolder, SessionsError> {
        let stream = TcpStream::connect_timeout(&rpc, RPC_TIMEOUT).map_err(io("connect"))?;
        stream.set_nodelay(true).map_err(io("set TCP_NODELAY"))?;
        stream.set_read_timeout(Some(RPC_TIMEOUT)).map_err(io("set the time to wait"))?;
        let mut holder = LockHolder { stream, received: Vec::new(), requests: 1 };
        let mut hello = Vec::new();
        Hello { protocol: PROTOCOL, shard, container: u64::from(std::process::id()) }.encode(1, &mut hello);
        match holder.exchange(&hello)? {
            KIND_WELCOME => Ok(holder),
            _ => Err(SessionsError::Frame),
        }
    }

    /// Sends a frame. Output: the kind of its answer.
    fn exchange(&mut self, frame: &[u8]) -> Result<u8, SessionsError> {
        self.stream.write_all(frame).map_err(io("send a frame"))?;
        loop {
            match next_frame(&self.received) {
                Next::Frame(Frame { head, used, .. }) => {
                    self.received.drain(..used);
                    // News of the node's functions comes unasked.
                    if head.request_id == self.requests {
                        return Ok(head.kind);
                    }
                }
                Next::NeedMore { .. } => {
                    let mut chunk = [0; 4_096];
                    match uninterrupted(|| self.stream.read(&mut chunk)).map_err(io("receive a frame"))? {
                        0 => return Err(SessionsError::Frame),
                        bytes => self.received.extend_from_slice(&chunk[..bytes]),
                    }
                }
                Next::Malformed(_) => return Err(SessionsError::Frame),
            }
        }
    }

    fn asker(&mut self, session: SessionId) -> Asker {
        self.requests += 1;
        Asker { request_id: self.requests, function: FunctionHash::of(COPIED.as_bytes()), session }
    }

    /// Takes the lock of key `n`. False: the session is another shard's.
    fn take(&mut self, session: SessionId, invocation: u64) -> Result<bool, SessionsError> {
        let mut frame = Vec::new();
        let read = StateRead { invocation, app: APP, deadline_ms: 0, mode: MODE_STRONG as u8, op: READ_KEY, bytes_max: 0, key: b"n" };
        read.encode(&self.asker(session), &mut frame);
        match self.exchange(&frame)? {
            KIND_STATE_REPLY => Ok(true),
            KIND_ERROR => Ok(false),
            _ => Err(SessionsError::Frame),
        }
    }

    fn give_back(&mut self, session: SessionId, invocation: u64) -> Result<(), SessionsError> {
        let mut frame = Vec::new();
        StateWrite::end(invocation).encode(&self.asker(session), &mut frame);
        self.stream.write_all(&frame).map_err(io("send a frame"))
    }
}
