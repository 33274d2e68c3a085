//! A warm request allocates nothing on the heap and makes no system call but the loop's own `io_uring_enter`.
//! Runs shards in this process, under an allocator that counts what the shard's thread asks for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use xfaas_common::hash::SessionHash;
use xfaas_common::ids::{CoreIndex, FunctionHash, SessionId, SlotIndex};
use xfaas_dataplane::durable::{CheckpointAnswer, CheckpointNumber, CheckpointWork, KnownCheckpoint, Recovered, checkpoint_mail};
use xfaas_dataplane::net::{DatagramHead, encode_datagram_request};
use xfaas_dataplane::session::{LocalPlacement, PinBoard, Placement, ProxyOptions};
use xfaas_dataplane::shard::{self, CommandDoor, RunningShards, ShardCommand, ShardOptions, ShardPlan, Timeouts};
use xfaas_dataplane::state::{Region, RegionOptions, record_session};
use xfaas_dataplane::sys::affinity::allowed_cpus;
use xfaas_dataplane::sys::socket::{tcp_listener, udp_socket};
use xfaas_dataplane::worker::{Engine, EngineOptions, Function, FunctionManifest};

struct Counting;

thread_local! {
    /// Set on a shard's thread by `WatchingPlacement`, the one piece of a shard that a test can bring.
    static IS_SHARD: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static SHARD_THREAD: AtomicI32 = AtomicI32::new(0);

fn count() {
    if IS_SHARD.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every method hands its arguments unchanged to the system allocator, which upholds the contract; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are those of `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are those of `System`.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Marks the thread that asks it as a shard's.
struct WatchingPlacement {
    inner: LocalPlacement,
    marked: AtomicBool,
}

impl Placement for WatchingPlacement {
    fn hash(&self, session: &SessionId) -> SessionHash {
        IS_SHARD.set(true);
        if !self.marked.swap(true, Ordering::Relaxed) {
            SHARD_THREAD.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        }
        self.inner.hash(session)
    }

    fn owner(&self, slot: SlotIndex) -> CoreIndex {
        self.inner.owner(slot)
    }
}

/// Adds 1 to the first byte of key `n`, strongly: a read and a write of the state in each call.
const COUNTER: &str = r#"(module
  (import "xfaas" "read_state" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "write_state" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $output (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 8) "n\00")
  (func (export "handle") (result i32)
    (drop (call $read (i32.const 8) (i32.const 16) (i32.const 1) (i32.const 1)))
    (i32.store8 (i32.const 16) (i32.add (i32.load8_u (i32.const 16)) (i32.const 1)))
    (drop (call $write (i32.const 8) (i32.const 16) (i32.const 1) (i32.const 1)))
    (drop (call $output (i32.const 16) (i32.const 1)))
    (i32.const 0)))"#;

/// The first byte of key `n`, read weakly: a read-only function, which runs on every shard.
const LOOK: &str = r#"(module
  (import "xfaas" "read_state" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "xfaas" "set_output" (func $output (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 8) "n\00")
  (func (export "handle") (result i32)
    (drop (call $read (i32.const 8) (i32.const 16) (i32.const 1) (i32.const 0)))
    (drop (call $output (i32.const 16) (i32.const 1)))
    (i32.const 0)))"#;

const SECOND_NS: u64 = 1_000_000_000;

struct Node {
    address: SocketAddr,
    placement: Arc<WatchingPlacement>,
    running: RunningShards,
    _folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Node {
    /// A node whose shards share one CPU. One at a time: what is counted is counted for all threads of the process.
    fn start(shards: usize) -> Node {
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let address = free_address();
        let plan = || ShardPlan {
            cpu: allowed_cpus()[0],
            tcp: tcp_listener(address).unwrap(),
            udp: udp_socket(address).unwrap(),
            rpc: None,
            flows: None,
            gate: None,
            container: None,
        };
        let placement = Arc::new(WatchingPlacement { inner: LocalPlacement::new(shards), marked: AtomicBool::new(false) });
        let plans = (0..shards).map(|_| plan()).collect();
        let running = shard::start(plans, &options(folder.path()), &(Arc::clone(&placement) as Arc<dyn Placement>)).unwrap();
        let node = Node { address, placement, running, _folder: folder, _alone: alone };
        node.install();
        node
    }

    fn install(&self) {
        let options = EngineOptions { workers_live_max: 16, ..EngineOptions::default() };
        let engine = Engine::new(&options).unwrap();
        let functions = [
            (r#"{"name":"counter","app":"app"}"#, COUNTER, 0),
            (r#"{"name":"look","app":"app","read_only":true}"#, LOOK, 0),
            (r#"{"name":"durable","durability":"sync"}"#, COUNTER, 1),
            (r#"{"name":"resting","keep_alive":"hybrid"}"#, COUNTER, 2),
        ];
        for (index, (manifest, wat, app)) in (0..).zip(functions) {
            let manifest: FunctionManifest = serde_json::from_str(manifest).unwrap();
            let program = engine.load(&manifest, &wat::parse_str(wat).unwrap()).unwrap();
            let hash = FunctionHash::of(manifest.name.as_bytes());
            let function = Arc::new(Function { manifest, program, hook: None, index, app, hash, generation: 1 });
            let readers = self.ask_all(|answer| ShardCommand::Install(Arc::clone(&function), answer));
            let readers: Arc<[_]> = readers.into();
            self.ask_all(|answer| ShardCommand::Readers(app, Arc::clone(&readers), answer));
        }
        for door in &self.running.doors {
            door.send(ShardCommand::Serve).ok().unwrap();
        }
    }

    /// Gives every shard a command; the answers by shard.
    fn ask_all<T>(&self, command: impl Fn(SyncSender<Result<T, String>>) -> ShardCommand) -> Vec<T> {
        let ask = |door: &Arc<CommandDoor>| {
            let (answer, answered) = sync_channel(1);
            door.send(command(answer)).ok().unwrap();
            answered.recv_timeout(Duration::from_secs(10)).unwrap().unwrap()
        };
        self.running.doors.iter().map(ask).collect()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    fn udp(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    /// A session of that shard's. Not through the placement that marks threads.
    fn session_of(&self, shard: u16) -> String {
        let placement = &self.placement.inner;
        let is_of = |name: &String| placement.owner(placement.hash(&SessionId::new(name.as_bytes()).unwrap()).slot()) == CoreIndex(shard);
        (0..).map(|i| format!("session-{i}")).find(is_of).unwrap()
    }

    fn local_reads(&self) -> u64 {
        self.running.views.iter().map(|view| view.counters.local_reads.get()).sum()
    }

    fn stop(self) {
        for door in &self.running.doors {
            door.send(ShardCommand::Drain).ok().unwrap();
        }
        for thread in self.running.threads {
            thread.join().unwrap().unwrap();
        }
    }
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn options(folder: &Path) -> ShardOptions {
    ShardOptions {
        connections_max: 64,
        body_bytes_max: 1 << 20,
        buffer_bytes_max: 1 << 30,
        session_header: b"x-session-id".to_vec(),
        proxy: ProxyOptions {
            is_secondary: false,
            workers_live_max: 16,
            keep_warm_ns: 60 * SECOND_NS,
            lock_wait_ns: SECOND_NS,
            namespace_queue_calls_max: 16,
            queued_calls_max: 64,
        },
        region_directory: PathBuf::from(folder),
        region_bytes_max: 64 << 20,
        hash_tag: 1,
        log_directory: folder.join("log"),
        recovered: Arc::new(Recovered { epoch: 1, next_number: 1, ..Recovered::default() }.into()),
        log_bytes_max: 256 << 20,
        pins: Arc::new(PinBoard::none()),
        replay_bytes_max: 1 << 20,
        token_key: None,
        timeouts: Timeouts { head_ns: SECOND_NS, body_stall_ns: SECOND_NS, body_ns: SECOND_NS, idle_ns: 60 * SECOND_NS },
        drain_ns_min: 0,
        drain_ns_max: SECOND_NS,
        realtime: false,
    }
}

/// Sends `requests` requests over one connection, one after another, and returns the last reply.
fn ask_http(stream: &mut TcpStream, function: &str, session: &str, requests: usize) -> Vec<u8> {
    let mut reply = Vec::new();
    let request = format!("POST /f/{function} HTTP/1.1\r\nhost: x\r\nx-session-id: {session}\r\ncontent-length: 5\r\n\r\nhello");
    for _ in 0..requests {
        stream.write_all(request.as_bytes()).unwrap();
        reply.clear();
        let mut buffer = [0; 1_024];
        while !reply.windows(4).any(|window| window == b"\r\n\r\n") || reply.ends_with(b"\r\n\r\n") {
            let bytes = stream.read(&mut buffer).unwrap();
            assert_ne!(bytes, 0, "the server closed the connection");
            reply.extend_from_slice(&buffer[..bytes]);
        }
    }
    reply
}

fn ask_datagrams(socket: &UdpSocket, function: &str, session: &str, requests: u64) {
    let session = SessionId::new(session.as_bytes()).unwrap();
    let mut request = Vec::new();
    for request_id in 0..requests {
        request.clear();
        let head = DatagramHead { session, request_id, function: FunctionHash::of(function.as_bytes()) };
        encode_datagram_request(&mut request, &head, b"hello").unwrap();
        socket.send(&request).unwrap();
        let mut answer = [0; 256];
        let bytes = socket.recv(&mut answer).unwrap();
        assert_eq!(bytes, 32 + session.as_bytes().len() + 1, "a reply of one byte");
    }
}

#[test]
fn a_warm_request_makes_no_heap_allocation() {
    let node = Node::start(1);
    let (mut stream, socket) = (node.connect(), node.udp());

    let before_first = ALLOCATIONS.load(Ordering::Relaxed);
    ask_http(&mut stream, "counter", "alice", 300);
    ask_datagrams(&socket, "counter", "bob", 300);
    let warm = ALLOCATIONS.load(Ordering::Relaxed);
    assert_ne!(warm, before_first, "the first requests fork a worker: an allocator that counts nothing would show this test useless");

    let reply = ask_http(&mut stream, "counter", "alice", 1_000);
    assert!(reply.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&reply));
    ask_datagrams(&socket, "counter", "bob", 1_000);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - warm, 0, "allocations in 2000 warm requests");
    only_enters_the_ring(&mut stream);
    node.stop();
}

#[test]
fn a_warm_read_of_another_shards_session_makes_no_heap_allocation() {
    let node = Node::start(2);
    let sessions = [node.session_of(0), node.session_of(1)];
    for session in &sessions {
        ask_http(&mut node.connect(), "counter", session, 7);
    }
    // On whichever shard the connection and the socket land, one of the two sessions is another's.
    let (mut stream, socket) = (node.connect(), node.udp());
    let mut round = |requests: usize| {
        for session in &sessions {
            assert_eq!(ask_http(&mut stream, "look", session, requests).last(), Some(&7));
            ask_datagrams(&socket, "look", session, requests as u64);
        }
    };
    round(300);
    let (warm, local_reads) = (ALLOCATIONS.load(Ordering::Relaxed), node.local_reads());
    round(500);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - warm, 0, "allocations in 2000 warm requests");
    assert_eq!(node.local_reads() - local_reads, 1_000, "half of them ran beside the session's owner");
    node.stop();
}

#[test]
fn a_warm_request_that_waits_for_the_log_makes_no_heap_allocation() {
    let node = Node::start(1);
    let (mut stream, socket) = (node.connect(), node.udp());
    ask_http(&mut stream, "durable", "alice", 300);
    ask_datagrams(&socket, "durable", "bob", 300);
    let warm = ALLOCATIONS.load(Ordering::Relaxed);
    let written = node.running.views[0].counters.log_writes.get();
    ask_http(&mut stream, "durable", "alice", 500);
    ask_datagrams(&socket, "durable", "bob", 500);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - warm, 0, "allocations in 1000 warm requests");
    assert_eq!(node.running.views[0].counters.log_writes.get() - written, 1_000, "one after another, each waits for a write of its own");
    node.stop();
}

/// A store of checkpoints with one session of the app `resting`, which it gives away once.
fn store_with(node: &Node, session: &str) -> std::thread::JoinHandle<()> {
    let (mut doors, (mut orders, answers)) = checkpoint_mail(1);
    let session = SessionId::new(session.as_bytes()).unwrap();
    let (app, latest): (Arc<str>, _) = ("resting".into(), CheckpointNumber::new(1, 0));
    let known = KnownCheckpoint { app: Arc::clone(&app), session, latest, previous: CheckpointNumber::default() };
    answers[0].send(CheckpointAnswer::Listed(vec![known])).unwrap();
    answers[0].send(CheckpointAnswer::ListedAll(vec![app])).unwrap();
    node.running.doors[0].send(ShardCommand::Checkpoints(Box::new(doors.remove(0)))).ok().unwrap();
    std::thread::spawn(move || {
        let (_, order) = orders.blocking_recv().unwrap();
        assert!(matches!(order.work, CheckpointWork::Read { latest: asked, .. } if asked == latest));
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = RegionOptions { app: "resting", shard: 0, bytes_max: 4 << 20, hash_tag: 1 };
        let mut region = Region::open_or_create(&scratch.path().join("region"), &options).unwrap();
        let namespace = region.find_or_create(&session, 1).unwrap();
        region.write(namespace, b"n", &[41], 1 << 20).unwrap();
        let mut record = Vec::new();
        record_session(&mut record, "resting", &region, &session, namespace);
        answers[0].send(CheckpointAnswer::Loaded { ticket: order.ticket, found: Some((1, record)) }).unwrap();
        assert!(orders.blocking_recv().is_none(), "no session is written while the node serves");
    })
}

#[test]
fn a_warm_request_of_a_session_that_may_sleep_makes_no_heap_allocation() {
    let node = Node::start(1);
    let store = store_with(&node, "alice");
    node.install(); // an app's rules count from the next function on that comes after the store
    let mut stream = node.connect();
    // It is known from the listing on, and all that is noted of its requests is.
    assert_eq!(ask_http(&mut stream, "resting", "alice", 1).last(), Some(&42));
    ask_http(&mut stream, "resting", "alice", 300);
    let warm = ALLOCATIONS.load(Ordering::Relaxed);
    ask_http(&mut stream, "resting", "alice", 1_000);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - warm, 0, "allocations in 1000 warm requests");
    assert_eq!(node.running.views[0].counters.cold_sessions.get(), 1);
    node.stop();
    store.join().unwrap();
}

/// Counts the shard thread's system calls while it serves, with `strace` from outside.
fn only_enters_the_ring(stream: &mut TcpStream) {
    let thread = SHARD_THREAD.load(Ordering::Relaxed).to_string();
    let log = tempfile::NamedTempFile::new().unwrap();
    let strace =
        std::process::Command::new("strace").args(["-p", &thread, "-o"]).arg(log.path()).stderr(std::process::Stdio::null()).spawn();
    let Ok(mut strace) = strace else {
        assert!(std::env::var_os("CI").is_none(), "strace is missing: `cargo xtask setup` installs it");
        eprintln!("system calls NOT counted: strace is not installed (`cargo xtask setup` installs it)");
        return;
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut text = String::new();
    while !text.contains("io_uring_enter") {
        assert!(Instant::now() < deadline, "strace saw nothing: {text}");
        ask_http(stream, "counter", "alice", 1);
        text = std::fs::read_to_string(log.path()).unwrap();
    }
    ask_http(stream, "counter", "alice", 200);
    rustix::process::kill_process(rustix::process::Pid::from_child(&strace), rustix::process::Signal::TERM).unwrap();
    strace.wait().unwrap();
    let text = std::fs::read_to_string(log.path()).unwrap();
    let name = |line: &str| line.split('(').next().unwrap_or("").to_owned();
    let calls: Vec<String> = text.lines().map(name).collect();
    assert!(calls.len() >= 200, "200 requests one after another need as many turns: {} calls", calls.len());
    let others: Vec<&str> = text.lines().filter(|line| !line.starts_with("io_uring_enter(") && !line.starts_with("strace:")).collect();
    assert!(others.iter().all(|line| line.contains("resumed") || line.starts_with("---") || line.starts_with("+++")), "{others:?}");
}
