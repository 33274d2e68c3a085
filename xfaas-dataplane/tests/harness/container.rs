//! A container under test: the real binary, joined to a node under test, on a loopback address of its own.

use super::http::{Client, Reply, request};
use super::metrics::Metrics;
use super::node::{BINARY, Node, cpus};
use super::{PATIENCE, eventually};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub struct Container {
    directory: TempDir,
    /// HTTP and datagrams.
    pub http: SocketAddr,
    pub admin: SocketAddr,
    process: Option<Child>,
}

impl Container {
    /// A container joined to `node`, with these flags more. Ready to serve.
    pub fn join(node: &Node, flags: &[&str]) -> Container {
        let container = Container::spawn(node.rpc, flags);
        container.wait_until_ready();
        container
    }

    /// A container that is to join whatever is at `primary`. Returns when it serves, joined or not.
    pub fn spawn(primary: SocketAddr, flags: &[&str]) -> Container {
        let directory = tempfile::tempdir().unwrap();
        let (http, admin) = free_ports();
        let mut command = Command::new(BINARY);
        let cpus: Vec<String> = cpus(2).iter().map(u16::to_string).collect();
        command.args(["container", "--join", &primary.to_string(), "--listen", &http.to_string(), "--admin", &admin.to_string()]);
        command.args(["--cpus", &cpus.join(","), "--state-dir"]).arg(directory.path().join("state")).args(flags);
        let log = File::create(directory.path().join("stderr")).unwrap();
        let process = command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut container = Container { directory, http, admin, process: Some(process) };
        eventually("the container listens", || {
            if let Some(status) = container.process.as_mut().and_then(|process| process.try_wait().unwrap()) {
                panic!("the container ended with {status}:\n{}", container.log());
            }
            container.log().contains("serving")
        });
        container
    }

    /// Waits until the primary is joined and every connection to it is up.
    pub fn wait_until_ready(&self) {
        eventually("the container is ready", || is_ready(self.admin).unwrap_or(false));
    }

    pub fn is_ready(&self) -> bool {
        is_ready(self.admin).unwrap_or(false)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default()
    }

    pub fn metrics(&self) -> Metrics {
        Metrics::read(self.admin)
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.http)
    }

    /// `POST /f/<function>` for `session`, on a connection of its own.
    pub fn post(&self, function: &str, session: &str, body: &[u8]) -> Reply {
        self.connect().call("POST", &format!("/f/{function}"), &[("x-session-id", session)], body)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.process.as_ref().expect("running")), signal).unwrap();
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Ends the process with SIGTERM. Panics unless it exits with 0.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    fn wait(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("running");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the container did not end within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn is_ready(admin: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&request("GET", "/readyz", &[("connection", "close")], b""))?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    Ok(reply.starts_with(b"HTTP/1.1 200 "))
}

/// Ports of an address that nothing else of this machine's tests uses: nodes under test have 127.100 to 127.199.
fn free_ports() -> (SocketAddr, SocketAddr) {
    static CONTAINERS: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    let container = CONTAINERS.fetch_add(1, Ordering::Relaxed);
    assert!(container < 250, "a test process has addresses for 250 containers");
    let ip = Ipv4Addr::new(127, 200 + high % 50, low, container + 1);
    let (http, admin) = (TcpListener::bind((ip, 0)).unwrap(), TcpListener::bind((ip, 0)).unwrap());
    let address = http.local_addr().unwrap();
    UdpSocket::bind(address).unwrap();
    (address, admin.local_addr().unwrap())
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Already gone is fine: the test may have made it end.
            process.kill().ok();
            process.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("--- stderr of the container ---\n{}---", self.log());
        }
    }
}
