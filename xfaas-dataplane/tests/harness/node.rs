//! A node under test: the real binary on loopback addresses of its own, with its own state and shared memory, gone when the test ends.

use super::http::{Client, Reply, request};
use super::metrics::Metrics;
use super::{PATIENCE, eventually};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(super) const BINARY: &str = env!("CARGO_BIN_EXE_xfaas");

/// The path of a compiled sample or hostile guest.
pub fn guest(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/guests/{name}.wasm"));
    assert!(path.exists(), "{} is not there: run `cargo xtask build`", path.display());
    path
}

/// Runs the binary to its end, which must come within `PATIENCE`.
pub fn xfaas(arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = command.spawn().unwrap();
    let pid = Pid::from_child(&process);
    let (ended, end) = channel();
    let waiting = std::thread::spawn(move || ended.send(process.wait_with_output()));
    let output = end.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        kill_process(pid, Signal::KILL).unwrap();
        panic!("xfaas {arguments:?} did not end within {PATIENCE:?}");
    });
    waiting.join().unwrap().unwrap();
    output.unwrap()
}

/// One `[[function]]` of a node's configuration.
pub struct Function {
    name: String,
    module: Module,
    keys: String,
}

enum Module {
    File(PathBuf),
    Text(String),
}

impl Function {
    /// A compiled guest under its own name.
    pub fn guest(name: &str) -> Function {
        Function { name: name.to_owned(), module: Module::File(guest(name)), keys: String::new() }
    }

    /// A module written in the text format.
    pub fn text(name: &str, text: &str) -> Function {
        Function { name: name.to_owned(), module: Module::Text(text.to_owned()), keys: String::new() }
    }

    pub fn named(mut self, name: &str) -> Function {
        self.name = name.to_owned();
        self
    }

    /// Adds a line such as `deadline_ms = 100`.
    pub fn with(mut self, line: &str) -> Function {
        writeln!(self.keys, "{line}").unwrap();
        self
    }

    pub fn app(self, app: &str) -> Function {
        self.with(&format!("app = \"{app}\""))
    }
}

/// What a node starts with.
pub struct NodeBuilder {
    functions: Vec<Function>,
    limits: String,
    listen: String,
    shards: String,
    cpus: usize,
    flags: Vec<String>,
    ignores_hangup: bool,
}

impl NodeBuilder {
    pub fn function(mut self, function: Function) -> NodeBuilder {
        self.functions.push(function);
        self
    }

    pub fn guests(self, names: &[&str]) -> NodeBuilder {
        names.iter().fold(self, |builder, name| builder.function(Function::guest(name)))
    }

    /// Adds a line to `[limits]`.
    pub fn limit(mut self, line: &str) -> NodeBuilder {
        writeln!(self.limits, "{line}").unwrap();
        self
    }

    /// Adds a section of its own.
    pub fn section(self, text: &str) -> NodeBuilder {
        self.limit(text) // the last section before the functions
    }

    /// Adds a line to `[listen]`.
    pub fn listen(mut self, line: &str) -> NodeBuilder {
        writeln!(self.listen, "{line}").unwrap();
        self
    }

    /// Adds a line to `[shards]`.
    pub fn shard_setting(mut self, line: &str) -> NodeBuilder {
        writeln!(self.shards, "{line}").unwrap();
        self
    }

    /// Shards; 2 unless said otherwise.
    pub fn shards(mut self, shards: usize) -> NodeBuilder {
        self.cpus = shards;
        self
    }

    /// Adds a flag to `xfaas run`.
    pub fn flag(mut self, flag: &str) -> NodeBuilder {
        self.flags.push(flag.to_owned());
        self
    }

    /// Starts it as `nohup` does.
    pub fn ignoring_hangup(mut self) -> NodeBuilder {
        self.ignores_hangup = true;
        self
    }

    pub fn start(self) -> Node {
        let directory = tempfile::tempdir().unwrap();
        let shared_memory = TempDir::with_prefix_in("xfaas-test-", "/dev/shm").unwrap();
        let ip = own_address();
        let (http, admin, rpc) = free_ports(ip);
        let mut text = format!(
            "state_dir = \"state\"\nshared_memory_dir = \"{}\"\n[listen]\nhttp = \"{http}\"\nadmin = \"{admin}\"\nrpc = \"{rpc}\"\n{}\
             [shards]\ncpus = {:?}\n{}[limits]\n{}",
            shared_memory.path().display(),
            self.listen,
            cpus(self.cpus),
            self.shards,
            self.limits
        );
        for function in &self.functions {
            let path = match &function.module {
                Module::File(path) => path.clone(),
                Module::Text(wat) => {
                    let path = directory.path().join(format!("{}.wasm", function.name));
                    std::fs::write(&path, wat::parse_str(wat).unwrap()).unwrap();
                    path
                }
            };
            write!(text, "[[function]]\nname = \"{}\"\nwasm = \"{}\"\n{}", function.name, path.display(), function.keys).unwrap();
        }
        std::fs::write(directory.path().join("xfaas.toml"), text).unwrap();
        let mut node =
            Node { directory, shared_memory, http, admin, rpc, flags: self.flags, ignores_hangup: self.ignores_hangup, process: None };
        node.start();
        node
    }
}

/// The first CPUs that this process may use.
pub(super) fn cpus(count: usize) -> Vec<u16> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("see proc_pid_status(5)");
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse::<u16>().unwrap()..=last.parse::<u16>().unwrap()
    };
    let allowed: Vec<u16> = list.trim().split(',').flat_map(range).take(count).collect();
    assert_eq!(allowed.len(), count, "this test needs {count} CPUs, this process may use {list}");
    allowed
}

/// A loopback address that no other test uses, so that a free port stays free: 127.0.0.0/8 is all ours.
fn own_address() -> Ipv4Addr {
    static NODES: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    let node = NODES.fetch_add(1, Ordering::Relaxed);
    assert!(node < 250, "a test process has addresses for 250 nodes");
    Ipv4Addr::new(127, 100 + high % 100, low, node + 1)
}

fn free_ports(ip: Ipv4Addr) -> (SocketAddr, SocketAddr, SocketAddr) {
    let http = TcpListener::bind((ip, 0)).unwrap();
    let (admin, rpc) = (TcpListener::bind((ip, 0)).unwrap(), TcpListener::bind((ip, 0)).unwrap());
    let address = http.local_addr().unwrap();
    UdpSocket::bind(address).unwrap();
    (address, admin.local_addr().unwrap(), rpc.local_addr().unwrap())
}

pub struct Node {
    pub directory: TempDir,
    shared_memory: TempDir,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub rpc: SocketAddr,
    flags: Vec<String>,
    ignores_hangup: bool,
    process: Option<Child>,
}

impl Node {
    pub fn builder() -> NodeBuilder {
        NodeBuilder {
            functions: Vec::new(),
            limits: String::new(),
            listen: String::new(),
            shards: String::new(),
            cpus: 2,
            flags: Vec::new(),
            ignores_hangup: false,
        }
    }

    pub fn config(&self) -> PathBuf {
        self.directory.path().join("xfaas.toml")
    }

    pub fn shared_memory(&self) -> &Path {
        self.shared_memory.path()
    }

    /// Starts the process and returns when it is ready.
    pub fn start(&mut self) {
        self.spawn();
        eventually("the node is ready", || {
            if let Some(status) = self.process.as_mut().and_then(|process| process.try_wait().unwrap()) {
                panic!("the node ended with {status}:\n{}", self.log());
            }
            says_it_is_ready(self.admin).unwrap_or(false)
        });
    }

    /// Starts the process and does not wait for anything.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "one process a node");
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = Command::new(if self.ignores_hangup { "nohup" } else { BINARY });
        command.args(self.ignores_hangup.then_some(BINARY));
        command.args(["run", "--steering", "off", "--config"]).arg(self.config()).args(&self.flags);
        self.process = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("stderr")
    }

    /// What the node wrote to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("running");
        kill_process(Pid::from_child(process), signal).unwrap();
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("running");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                process.kill().unwrap();
                process.wait().unwrap();
                panic!("the node did not end within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the process with SIGTERM. Panics unless it exits with 0.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }

    pub fn folder_in_proc(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.process.as_ref().expect("running").id()))
    }

    /// The folder in /proc of the node's thread of that name.
    pub fn thread(&self, name: &str) -> PathBuf {
        let threads = std::fs::read_dir(self.folder_in_proc().join("task")).unwrap().map(|entry| entry.unwrap().path());
        let mut named = threads.filter(|path| std::fs::read_to_string(path.join("comm")).unwrap().trim() == name);
        named.next().unwrap_or_else(|| panic!("no thread {name}"))
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.http)
    }

    /// One request on a connection of its own.
    pub fn call(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.connect().call(method, target, headers, body)
    }

    /// `POST /f/<function>` for `session`.
    pub fn post(&self, function: &str, session: &str, body: &[u8]) -> Reply {
        self.call("POST", &format!("/f/{function}"), &[("x-session-id", session)], body)
    }

    pub fn metrics(&self) -> Metrics {
        Metrics::read(self.admin)
    }

    /// Runs a command of the command line against this node.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let admin = self.admin.to_string();
        xfaas(&[arguments, &["--admin", &admin]].concat())
    }

    /// Runs a command with `--json`. Panics unless it succeeds with one document.
    pub fn cli_json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.cli(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
    }

    /// Two sessions of `counter-rmw`'s app for each of two shards: `result[shard]`.
    pub fn sessions_of_both_shards(&self) -> [Vec<String>; 2] {
        for i in 0..24 {
            assert_eq!(self.post("counter-rmw", &format!("owner-{i}"), b"").status, 200);
        }
        let listed = self.cli_json(&["sessions", "--prefix", "owner-"]);
        let of = |shard: u64| {
            let sessions = listed["sessions"].as_array().unwrap().iter().filter(|session| session["shard"] == shard);
            sessions.map(|session| session["session"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let both = [of(0), of(1)];
        assert!(both.iter().all(|sessions| sessions.len() >= 2), "24 sessions miss a shard once in a million runs: {both:?}");
        both
    }
}

/// Asks `/readyz`. Errors: nobody listens yet, or no more, as when the start failed: the caller looks at the process then.
fn says_it_is_ready(admin: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&request("GET", "/readyz", &[("connection", "close")], b""))?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    Ok(reply.starts_with(b"HTTP/1.1 200 "))
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Already gone is fine: the test may have made it end.
            process.kill().ok();
            process.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("--- stderr of the node ---\n{}---", self.log());
        }
    }
}
