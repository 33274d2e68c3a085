//! A warm request allocates nothing on the heap and makes no system call but the loop's own `io_uring_enter`. DESIGN.md section 6.
//! Runs shards in this process, under an allocator that counts what the shard's thread asks for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use xfaas_common::hash::SessionHash;
use xfaas_common::ids::{CoreIndex, FunctionHash, SessionId, SlotIndex};
use xfaas_dataplane::net::{DatagramHead, encode_datagram_request};
use xfaas_dataplane::session::{LocalPlacement, Placement, ProxyOptions};
use xfaas_dataplane::shard::{self, RunningShards, ShardCommand, ShardOptions, ShardPlan, Timeouts};
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

const SECOND_NS: u64 = 1_000_000_000;

struct Node {
    address: SocketAddr,
    running: RunningShards,
    _folder: tempfile::TempDir,
}

impl Node {
    fn start() -> Node {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let address = free_address();
        let plan = ShardPlan {
            cpu: allowed_cpus()[0],
            tcp: tcp_listener(address).unwrap(),
            udp: udp_socket(address).unwrap(),
            flows: None,
            container: None,
        };
        let placement = WatchingPlacement { inner: LocalPlacement::new(1), marked: AtomicBool::new(false) };
        let running = shard::start(vec![plan], &options(folder.path()), &(Arc::new(placement) as Arc<dyn Placement>)).unwrap();
        let node = Node { address, running, _folder: folder };
        node.install();
        node
    }

    fn install(&self) {
        let options = EngineOptions { cache_directory: None, workers_live_max: 16, memory_mib_max: 128, tick_us: 1_000 };
        let manifest: FunctionManifest = serde_json::from_str(r#"{"name":"counter","app":"counter"}"#).unwrap();
        let program = Engine::new(&options).unwrap().load(&manifest, &wat::parse_str(COUNTER).unwrap()).unwrap();
        let hash = FunctionHash::of(b"counter");
        let function = Arc::new(Function { manifest, program, index: 0, app: 0, hash, generation: 1 });
        let (answer, answered) = sync_channel(1);
        self.running.doors[0].send(ShardCommand::Install(function, answer)).ok().unwrap();
        answered.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
        self.running.doors[0].send(ShardCommand::Serve).ok().unwrap();
    }

    fn stop(self) {
        self.running.doors[0].send(ShardCommand::Drain).ok().unwrap();
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
        replay_bytes_max: 1 << 20,
        timeouts: Timeouts { head_ns: SECOND_NS, body_stall_ns: SECOND_NS, body_ns: SECOND_NS, idle_ns: 60 * SECOND_NS },
        drain_ns_min: 0,
        drain_ns_max: SECOND_NS,
    }
}

/// Sends `requests` requests over one connection, one after another, and returns the last reply.
fn ask_http(stream: &mut TcpStream, requests: usize) -> Vec<u8> {
    let mut reply = Vec::new();
    for _ in 0..requests {
        stream.write_all(b"POST /f/counter HTTP/1.1\r\nhost: x\r\nx-session-id: alice\r\ncontent-length: 5\r\n\r\nhello").unwrap();
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

fn ask_datagrams(socket: &UdpSocket, requests: u64) {
    let session = SessionId::new(b"bob").unwrap();
    let mut request = Vec::new();
    for request_id in 0..requests {
        request.clear();
        let head = DatagramHead { session, request_id, function: FunctionHash::of(b"counter") };
        encode_datagram_request(&mut request, &head, b"hello").unwrap();
        socket.send(&request).unwrap();
        let mut answer = [0; 256];
        let bytes = socket.recv(&mut answer).unwrap();
        assert_eq!(bytes, 32 + 3 + 1, "a reply of one byte to bob");
    }
}

#[test]
fn a_warm_request_makes_no_heap_allocation() {
    let node = Node::start();
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(node.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();

    let before_first = ALLOCATIONS.load(Ordering::Relaxed);
    ask_http(&mut stream, 300);
    ask_datagrams(&socket, 300);
    let warm = ALLOCATIONS.load(Ordering::Relaxed);
    assert_ne!(warm, before_first, "the first requests fork a worker: an allocator that counts nothing would show this test useless");

    let reply = ask_http(&mut stream, 1_000);
    assert!(reply.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&reply));
    ask_datagrams(&socket, 1_000);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - warm, 0, "allocations in 2000 warm requests");
    only_enters_the_ring(&mut stream);
    node.stop();
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
        ask_http(stream, 1);
        text = std::fs::read_to_string(log.path()).unwrap();
    }
    ask_http(stream, 200);
    rustix::process::kill_process(rustix::process::Pid::from_child(&strace), rustix::process::Signal::TERM).unwrap();
    strace.wait().unwrap();
    let text = std::fs::read_to_string(log.path()).unwrap();
    let name = |line: &str| line.split('(').next().unwrap_or("").to_owned();
    let calls: Vec<String> = text.lines().map(name).collect();
    assert!(calls.len() >= 200, "200 requests one after another need as many turns: {} calls", calls.len());
    let others: Vec<&str> = text.lines().filter(|line| !line.starts_with("io_uring_enter(") && !line.starts_with("strace:")).collect();
    assert!(others.iter().all(|line| line.contains("resumed") || line.starts_with("---") || line.starts_with("+++")), "{others:?}");
}
