//! The paper's baseline as figures use it: a real redis, the host as a program and in this process, and xfaas beside it. Needs redis-server, which
//! `cargo xtask setup` installs. Some seconds.

use redis::{Commands, Connection};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use xfaas_bench::baseline::{
    BaselineHost, GUEST_TIMES, GuestTimes, LockToken, ObjectPlace, ObjectState, OutsideState, RedisState, StateFault, StateKey, serve,
};
use xfaas_bench::generator::{LoadOutcome, LoadSpec, Progress, Transport, Wait, run_load, run_load_marked};
use xfaas_bench::load::{Client, Fetched, Interrupt, fetch};
use xfaas_bench::servers::{BUCKET, BaselineStore, Server, XfaasFiles, start_baseline, start_redis};
use xfaas_common::ids::SessionId;
use xfaas_dataplane::config::{Environment, Overrides, load};
use xfaas_dataplane::node::Node;
use xfaas_dataplane::sys::affinity::allowed_cpus;

const FUNCTIONS: [&str; 6] = ["echo", "counter-read", "counter-rmw", "counter-rmw-linear", "state-size", "trap"];

fn cpu() -> u16 {
    *allowed_cpus().first().expect("a CPU to run on")
}

fn guests() -> PathBuf {
    std::env::var_os("XFAAS_GUESTS").map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guests").into(), PathBuf::from)
}

fn redis() -> (Server, Connection) {
    let server = start_redis(cpu(), &Interrupt::default()).expect("redis-server is installed");
    let connection = redis::Client::open(format!("redis://{}", server.address())).and_then(|client| client.get_connection());
    (server, connection.expect("redis takes connections"))
}

fn host(redis: &Server) -> Server {
    let files = XfaasFiles { binary: PathBuf::new(), guests: guests() };
    start_baseline(&files, BaselineStore::Redis(redis.address()), cpu(), &Interrupt::default()).expect("the host starts")
}

/// A counter's function from so many clients of one session. Times do not matter here, so it sleeps where it has nothing to do.
fn count(target: SocketAddr, clients: usize, requests: u64) -> LoadOutcome {
    let mut spec = LoadSpec::new(target, Transport::Http, "hot-".to_owned());
    (spec.connections, spec.in_flight, spec.sessions, spec.requests_max) = (clients, clients, 1, requests);
    (spec.warm_up, spec.measured) = (Duration::ZERO, Duration::from_secs(60));
    (spec.wait, spec.answer_timeout) = (Wait::Sleep, Duration::from_secs(30));
    spec.functions = vec!["counter-rmw-linear".parse().expect("a sample function")];
    run_load(&spec, &Interrupt::default(), Progress::Off).expect("the host takes connections")
}

fn ask(client: &mut Client, function: &str, session: &str, body: &str) -> Fetched {
    let length = body.len();
    let request = format!("POST /f/{function} HTTP/1.1\r\nhost: x\r\nx-session-id: {session}\r\ncontent-length: {length}\r\n\r\n{body}");
    client.ask(request.as_bytes()).expect("an answer")
}

fn code_of(fetched: &Fetched) -> String {
    let problem: Value = serde_json::from_slice(&fetched.body).unwrap_or_default();
    problem["code"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn no_update_of_many_clients_is_lost_and_no_lock_is_left() {
    let (redis, mut keys) = redis();
    let host = host(&redis);
    let outcome = count(host.address(), 24, 1_000);
    assert_eq!(outcome.fault(), None);
    let counters = outcome.counters.clone().expect("counters are read in the end");
    assert!(counters.was_read && counters.acknowledged == outcome.good, "{counters:?}");
    // A machine that stands still for 5 s lets locks be waited for in vain.
    assert_eq!(outcome.good + outcome.refused, 1_000, "{outcome:?}");
    let left: Vec<String> = keys.keys("*").expect("redis answers");
    assert_eq!(left, ["state:hot-00000000 n"]);
}

#[test]
fn guest_times_of_the_warm_up_can_be_taken_away() {
    let redis = start_redis(cpu(), &Interrupt::default()).expect("redis-server is installed");
    let host = host(&redis);
    let request = format!("GET /f/{GUEST_TIMES}/counter-rmw HTTP/1.1\r\nhost: x\r\n\r\n");
    let take = || {
        let body = fetch(host.address(), request.as_bytes()).expect("an answer").body;
        serde_json::from_slice::<GuestTimes>(&body).expect("times").invocations
    };
    let mut spec = LoadSpec::new(host.address(), Transport::Http, "timed-".to_owned());
    (spec.connections, spec.in_flight, spec.wait) = (2, 2, Wait::Sleep);
    (spec.warm_up, spec.measured) = (Duration::from_millis(300), Duration::from_millis(300));
    spec.functions = vec!["counter-rmw:1:number".parse().expect("a sample function")];
    let mut warm_up = 0;
    let outcome = run_load_marked(&spec, &Interrupt::default(), Progress::Off, || warm_up = take()).expect("the host takes connections");
    let measured = take();
    assert_eq!((outcome.fault(), warm_up + measured), (None, outcome.good));
    assert!(warm_up > 0 && measured > 0, "{warm_up} and {measured}");
}

#[test]
fn a_guest_that_fails_in_its_section_leaves_no_lock() {
    let (redis, mut keys) = redis();
    let host = host(&redis);
    let mut client = Client::connect(host.address()).expect("the host listens");
    let () = keys.set("state:s n", "no number").expect("redis answers");
    let failed = ask(&mut client, "counter-rmw-linear", "s", "");
    assert_eq!((failed.status, code_of(&failed).as_str()), (500, "guest_error"));
    assert!(!keys.exists::<_, bool>("lock:s n").expect("redis answers"));
    let () = keys.set("state:s n", "41").expect("redis answers");
    assert_eq!(ask(&mut client, "counter-rmw-linear", "s", "").body, b"42");
}

#[test]
fn somebody_elses_lock_is_waited_for_until_it_ends() {
    let (redis, mut keys) = redis();
    let host = host(&redis);
    let mut client = Client::connect(host.address()).expect("the host listens");
    let locked_at = Instant::now();
    let () = redis::cmd("SET").arg(&["lock:s n", "somebody", "PX", "300"]).query(&mut keys).expect("redis answers");
    let () = keys.set("state:s n", "7").expect("redis answers");
    // What is weak waits for nobody.
    assert_eq!(ask(&mut client, "counter-read", "s", "").body, b"7");
    assert_eq!(ask(&mut client, "counter-rmw-linear", "s", "").body, b"8");
    assert!(locked_at.elapsed() >= Duration::from_millis(299), "{:?}", locked_at.elapsed());
}

#[test]
fn without_its_store_the_host_says_so_at_once_and_goes_on_when_it_is_back() {
    let (server, _) = redis();
    let (address, host) = (server.address(), host(&server));
    let mut client = Client::connect(host.address()).expect("the host listens");
    assert_eq!(ask(&mut client, "counter-rmw-linear", "s", "").body, b"1");
    server.kill().expect("redis can be killed");
    for function in ["counter-read", "counter-rmw", "counter-rmw-linear"] {
        let answer = ask(&mut client, function, "s", ""); // within the client's 10 s
        assert_eq!((answer.status, code_of(&answer).as_str()), (503, "no_primary"), "{function}");
        assert!(String::from_utf8_lossy(&answer.body).contains("the store of the session's state"), "{function}");
    }
    assert_eq!(ask(&mut client, "echo", "s", "still here").body, b"still here");
    // The same address: a redis that has forgotten everything, its scripts too.
    let arguments = ["--port", &address.port().to_string(), "--save", "", "--daemonize", "no"].map(str::to_owned);
    let mut again = std::process::Command::new("redis-server").args(arguments).stdout(std::process::Stdio::null()).spawn().expect("redis");
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask(&mut client, "counter-rmw-linear", "new", "").status != 200 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let after = ask(&mut client, "counter-rmw-linear", "new", "");
    again.kill().and_then(|()| again.wait()).expect("redis can be ended");
    assert_eq!((after.status, after.body.as_slice()), (200, &b"2"[..]));
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_io().enable_time().build().expect("a runtime")
}

#[test]
fn only_the_holder_of_a_lock_writes_and_releases() {
    let (redis, mut keys) = redis();
    let key = StateKey { session: SessionId::new(b"s").expect("a session"), key: b"n".to_vec() };
    let (mine, other) = (LockToken::fresh(), LockToken::fresh());
    runtime().block_on(async {
        let state = OutsideState::Redis(RedisState::connect(&format!("redis://{}", redis.address())).await.expect("redis is there"));
        assert_eq!(state.lock(&key, &mine, true).await.expect("free"), None);
        state.release(&key, &other).await.expect("a release that is nobody's does nothing");
        assert_eq!(keys.get::<_, String>("lock:s n").expect("redis answers"), mine.as_str());
        state.write_and_release(&key, b"1", &mine).await.expect("held");
        assert!(!keys.exists::<_, bool>("lock:s n").expect("redis answers"));

        // It expired, and somebody else has it.
        assert_eq!(state.lock(&key, &mine, true).await.expect("free"), Some(b"1".to_vec()));
        let () = keys.set("lock:s n", other.as_str()).expect("redis answers");
        let lost = state.write_and_release(&key, b"2", &mine).await;
        assert!(matches!(lost, Err(StateFault::LockLost)), "{lost:?}");
        assert_eq!(keys.get::<_, String>("state:s n").expect("redis answers"), "1");
        assert_eq!(keys.get::<_, String>("lock:s n").expect("redis answers"), other.as_str());
    });
}

#[test]
fn a_store_of_another_kind_is_an_error_and_not_an_answer() {
    let (redis, mut keys) = redis();
    let () = keys.lpush("state:s n", "a list").expect("redis answers");
    let key = StateKey { session: SessionId::new(b"s").expect("a session"), key: b"n".to_vec() };
    runtime().block_on(async {
        let state = OutsideState::Redis(RedisState::connect(&format!("redis://{}", redis.address())).await.expect("redis is there"));
        let read = state.read(&key).await;
        assert!(matches!(read, Err(StateFault::Store { operation: "read", .. })), "{read:?}");
        let missing = RedisState::connect("redis://127.0.0.1:1").await;
        assert!(matches!(missing, Err(StateFault::Store { operation: "connect", .. })));
        assert!(RedisState::connect("nonsense").await.is_err());
    });
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound socket has an address")
}

/// A node in this process with the same functions.
fn node() -> (Node, TempDir, SocketAddr) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let http = free_address();
    let path = directory.path().join("xfaas.toml");
    let mut text = format!(
        "state_dir = \"state\"\nshared_memory_dir = \"shared\"\n[listen]\nhttp = \"{http}\"\nadmin = \"127.0.0.1:0\"\nrpc = \"{}\"\n\
         [shards]\ncpus = [{}]\n[steering]\nmode = \"off\"\n",
        free_address(),
        cpu()
    );
    for name in FUNCTIONS {
        let wasm = guests().join(format!("{name}.wasm"));
        text += &format!("[[function]]\nname = \"{name}\"\napp = \"all\"\nwasm = \"{}\"\n", wasm.display());
    }
    std::fs::write(&path, text).expect("the directory is ours");
    let config = load(Some(&path), Overrides::default(), &Environment::read()).expect("a good configuration");
    (Node::start(&config, b"").expect("a node starts"), directory, http)
}

/// The host in this process, on a thread that ends with it.
fn host_in_process(state: impl AsyncFnOnce() -> Result<OutsideState, StateFault> + Send + 'static) -> SocketAddr {
    let address = free_address();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let state = state().await.expect("the store is there");
            let host = BaselineHost::load(state, &guests(), &FUNCTIONS).expect("the guests are there");
            serve(host, address, || ready.send(()).expect("the test waits")).await.expect("it serves to the end");
        });
    });
    is_ready.recv_timeout(Duration::from_secs(60)).expect("the host listens");
    address
}

/// Status, and the body; of an error what clients may rely on.
fn essence(fetched: &Fetched) -> (u16, String) {
    let text = String::from_utf8_lossy(&fetched.body).into_owned();
    let Ok(Value::Object(mut problem)) = serde_json::from_slice(&fetched.body) else { return (fetched.status, text) };
    problem.remove("detail");
    (fetched.status, Value::Object(problem).to_string())
}

#[test]
fn the_same_guests_answer_as_they_do_on_xfaas() {
    let (redis, _) = redis();
    let (node, _directory, xfaas) = node();
    let url = format!("redis://{}", redis.address());
    let baseline = host_in_process(async move || RedisState::connect(&url).await.map(OutsideState::Redis));
    let [mut theirs, mut ours] = [baseline, xfaas].map(|address| Client::connect(address).expect("it listens"));
    let asked = [
        ("echo", "s", "some bytes"),
        ("echo", "s", ""),
        ("counter-read", "s", ""),
        ("counter-rmw", "s", ""),
        ("counter-rmw-linear", "s", ""),
        ("counter-rmw", "s", "ignored"),
        ("counter-read", "s", ""),
        ("counter-read", "another", ""),
        ("counter-rmw-linear", "a:b", ""),
        ("counter-read", "a", ""),
        ("state-size", "s", "no numbers"),
        ("state-size", "s", "\0\0\0\0\u{1}\0\0\0\u{10}\0\0\0"), // a read of what is not there
        ("state-size", "s", "\u{1}\0\0\0\u{3}\0\0\0\u{10}\0\0\0"),
        ("state-size", "s", "\0\0\0\0\u{1}\0\0\0\u{10}\0\0\0"),
        ("trap", "s", ""),
        ("counter-read", "s", ""),
        ("no-such-function", "s", ""),
    ];
    for (function, session, body) in asked {
        let [their, our] = [&mut theirs, &mut ours].map(|client| essence(&ask(client, function, session, body)));
        assert_eq!(their, our, "{function} of {session} with {body:?}");
    }
    // These close the connection.
    for request in
        ["POST /f/echo HTTP/1.1\r\nhost: x\r\nx-session-id: a b\r\n\r\n", "GET /elsewhere HTTP/1.1\r\nhost: x\r\n\r\n", "nonsense\r\n\r\n"]
    {
        let [their, our] = [baseline, xfaas]
            .map(|address| essence(&Client::connect(address).and_then(|mut client| client.ask(request.as_bytes())).expect("an answer")));
        assert_eq!(their, our, "{request:?}");
    }
    node.stop().expect("an orderly stop");
}

#[test]
fn figures_have_a_row_for_each_place_that_is_there() {
    let beside = std::path::Path::new(env!("CARGO_BIN_EXE_paper")).with_file_name("xfaas");
    let xfaas = std::env::var_os("XFAAS_BIN").map_or(beside, PathBuf::from);
    let out = tempfile::tempdir().expect("a temporary directory");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_paper"));
    command.args(["--json", "--quick", "--seconds", "0.1", "--only", "fig1", "--only", "fig10", "--out"]).arg(out.path());
    command.env("XFAAS_BIN", &xfaas).env("XFAAS_GUESTS", guests()).env("XFAAS_PEERS", out.path());
    let output = command.output().expect("a built program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let rows = |figure: &Value| figure["table"]["rows"].as_array().map(Vec::len);
    // What is in the session needs no node in Fig. 1.
    assert_eq!((figures[0]["id"].as_str(), rows(&figures[0])), (Some("fig1"), Some(6)), "{stderr}");
    assert!(figures[0]["notes"][0].as_str().is_some_and(|note| note.contains("object store was left out")), "{}", figures[0]);
    if !xfaas.is_file() {
        // Only this package is tested: then the figure must be told to be missing.
        assert!(stderr.contains("not measured: fig10") && output.status.code() == Some(1), "{stderr}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!((figures[1]["id"].as_str(), rows(&figures[1])), (Some("fig10"), Some(6)), "{stderr}"); // three accesses, two places
    assert_eq!(figures[1]["comparisons"][2]["paper"].as_str(), Some("2.3x"));
}

/// An S3-compatible store in memory, which `cargo xtask setup` installs for tests; ends with its guard.
struct Moto {
    process: std::process::Child,
    address: SocketAddr,
}

impl Moto {
    fn start() -> Moto {
        let program = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/s3-server/bin/moto_server");
        assert!(program.exists(), "{} is not there: run `cargo xtask setup`", program.display());
        let address = free_address();
        let mut command = std::process::Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let process = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("moto starts");
        let moto = Moto { process, address };
        let request = format!("PUT /{BUCKET} HTTP/1.1\r\nhost: s3\r\ncontent-length: 0\r\n\r\n");
        let has_bucket = || fetch(address, request.as_bytes()).is_ok_and(|fetched| fetched.status == 200);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !has_bucket() {
            assert!(Instant::now() < deadline, "moto does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        moto
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.process.kill().and_then(|()| self.process.wait()).map(drop).unwrap_or_default();
    }
}

#[test]
#[ignore = "needs an S3-compatible server: run `cargo xtask setup`, then `cargo xtask test`"]
fn an_object_store_keeps_state_and_locks_too() {
    let moto = Moto::start();
    // moto takes any key, but none at all it takes for a stranger.
    let credentials = Some(("test".to_owned(), "test".to_owned()));
    let place = ObjectPlace { bucket: BUCKET.to_owned(), endpoint: format!("http://{}", moto.address), credentials };
    let of_host = place.clone();
    let host = host_in_process(async move || ObjectState::connect(&of_host).await.map(OutsideState::Objects));
    let mut client = Client::connect(host).expect("the host listens");
    for (function, count) in [("counter-read", "0"), ("counter-rmw", "1"), ("counter-rmw-linear", "2"), ("counter-read", "2")] {
        let answer = ask(&mut client, function, "a/b", "");
        assert_eq!((answer.status, answer.body.as_slice()), (200, count.as_bytes()), "{function}");
    }
    // One after another: moto looks whether an object is there and makes it in two steps, so two may both have made it.
    let outcome = count(host, 1, 20);
    assert_eq!((outcome.fault(), outcome.good), (None, 20));
    runtime().block_on(async {
        let state = Arc::new(OutsideState::Objects(ObjectState::connect(&place).await.expect("moto is there")));
        let key = StateKey { session: SessionId::new(b"s").expect("a session"), key: b"n".to_vec() };
        let mine = LockToken::fresh();
        assert_eq!(state.lock(&key, &mine, true).await.expect("free"), None);
        let other = (Arc::clone(&state), key.clone());
        let other = tokio::spawn(async move { other.0.lock(&other.1, &LockToken::fresh(), true).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!other.is_finished());
        state.write_and_release(&key, b"1", &mine).await.expect("held");
        assert_eq!(other.await.expect("no panic").expect("free again"), Some(b"1".to_vec()));
    });
    drop(moto);
    let answer = ask(&mut client, "counter-rmw-linear", "a/b", "");
    assert_eq!((answer.status, code_of(&answer).as_str()), (503, "no_primary"));
}

/// A way to a server on which a connection can end before a request has come through, or before its answer has.
#[derive(Default)]
struct Cuts {
    request: AtomicBool,
    answer: AtomicBool,
}

impl Cuts {
    /// Output: where to connect to instead of `target`.
    fn before(target: SocketAddr) -> (Arc<Cuts>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let cuts = Arc::new(Cuts::default());
        let of_thread = Arc::clone(&cuts);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(target)) else { return };
                let ends = || (client.try_clone().expect("a descriptor"), server.try_clone().expect("a descriptor"));
                for (is_answer, (from, to)) in [(false, ends()), (true, (ends().1, ends().0))] {
                    let cuts = Arc::clone(&of_thread);
                    std::thread::spawn(move || pass_on(from, to, if is_answer { &cuts.answer } else { &cuts.request }));
                }
            }
        });
        (cuts, address)
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut bytes = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if cut.swap(false, Ordering::Relaxed) || to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        end.shutdown(Shutdown::Both).ok(); // it may have ended by itself
    }
}

#[test]
#[ignore = "needs an S3-compatible server: run `cargo xtask setup`, then `cargo xtask test`"]
fn an_object_store_that_ends_connections_is_asked_again_where_that_does_no_harm() {
    let moto = Moto::start();
    let (cuts, way) = Cuts::before(moto.address);
    let credentials = Some(("test".to_owned(), "test".to_owned()));
    let place = ObjectPlace { bucket: BUCKET.to_owned(), endpoint: format!("http://{way}"), credentials };
    runtime().block_on(async {
        let state = OutsideState::Objects(ObjectState::connect(&place).await.expect("moto is there"));
        let key = StateKey { session: SessionId::new(b"cut").expect("a session"), key: b"n".to_vec() };
        let mut value = None;
        for count in 0..4_u8 {
            // Each operation of a turn loses its request or its answer.
            let cut = || [&cuts.request, &cuts.answer][usize::from(count % 2)].store(true, Ordering::Relaxed);
            let mine = LockToken::fresh();
            if count % 2 == 1 {
                cut(); // a request that never came has taken no lock, and that is said instead
            }
            assert_eq!(state.lock(&key, &mine, true).await.expect("free"), value);
            cut();
            assert_eq!(state.read(&key).await.expect("read again"), value);
            value = Some(vec![b'0' + count]);
            cut();
            match count {
                0 | 1 => state.write_and_release(&key, value.as_deref().expect("set just above"), &mine).await.expect("written again"),
                _ => {
                    state.write(&key, value.as_deref().expect("set just above")).await.expect("written again");
                    cut();
                    state.release(&key, &mine).await.expect("released, and only once");
                }
            }
        }
        let mine = LockToken::fresh();
        cuts.request.store(true, Ordering::Relaxed);
        let fault = state.lock(&key, &mine, false).await.expect_err("it never came");
        assert!(matches!(fault, StateFault::Store { operation: "lock", .. }), "{fault}");
        state.lock(&key, &mine, false).await.expect("nobody has it");
    });
}
