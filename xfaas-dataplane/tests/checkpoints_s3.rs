//! Checkpoints in an S3-compatible bucket, of a server that the test starts: moto, which `cargo xtask setup` installs. It keeps objects in memory.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Function, Node, eventually};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server of buckets that ends with its guard.
struct Bucket {
    server: Child,
    address: SocketAddr,
}

impl Bucket {
    fn start() -> Bucket {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Bucket { server: serve(address), address }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.server), signal).unwrap();
    }

    fn end(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

fn program() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/s3-server/bin/moto_server");
    assert!(path.exists(), "{} is not there: run `cargo xtask setup`", path.display());
    path
}

/// Returns when the server has its bucket.
fn serve(address: SocketAddr) -> Child {
    let mut command = Command::new(program());
    command.args(["-H", &address.ip().to_string(), "-p", &address.port().to_string()]);
    let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the server has a bucket", || make_bucket(address).unwrap_or(false));
    server
}

fn make_bucket(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"PUT /kept HTTP/1.1\r\nhost: s3\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    Ok(reply.starts_with(b"HTTP/1.1 200"))
}

fn node(bucket: &Bucket) -> Node {
    let counter = Function::guest("counter-rmw-linear").with("keep_alive_s = 1").with("durability = \"checkpoint\"");
    let section = format!(
        "[checkpoints]\nurl = \"s3://kept/some/where\"\nendpoint = \"http://{}\"\nregion = \"us-east-1\"\n\
         access_key_id = \"test\"\nsecret_access_key = \"test\"\n",
        bucket.address
    );
    Node::builder().function(counter).shards(1).section(&section).start()
}

fn count_up(node: &Node, session: &str) -> u64 {
    let reply = node.post("counter-rmw-linear", session, b"");
    assert_eq!(reply.status, 200, "{reply:?}");
    String::from_utf8_lossy(&reply.body).trim().parse().unwrap()
}

fn asleep(node: &Node) -> f64 {
    node.metrics().sum("xfaas_sessions_asleep", &[])
}

#[test]
#[ignore = "needs an S3-compatible server: run `cargo xtask setup`, then `cargo xtask test`"]
fn sessions_sleep_in_a_bucket_and_come_back_to_a_node_without_memory() {
    let bucket = Bucket::start();
    let mut node = node(&bucket);
    for round in 1..=3 {
        assert_eq!(count_up(&node, "a/b?c"), round);
        eventually("it sleeps", || asleep(&node) == 1.0);
        node.kill();
        for entry in std::fs::read_dir(node.shared_memory()).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        node.start();
    }
    assert_eq!(count_up(&node, "a/b?c"), 4);
    assert!(!node.directory.path().join("state/checkpoints").exists());
}

#[test]
#[ignore = "needs an S3-compatible server: run `cargo xtask setup`, then `cargo xtask test`"]
fn a_bucket_that_is_slow_or_gone_stops_no_session_in_memory_and_loses_none() {
    let mut bucket = Bucket::start();
    let node = node(&bucket);
    assert_eq!(count_up(&node, "sleeper"), 1);
    eventually("it sleeps", || asleep(&node) == 1.0);
    bucket.signal(Signal::STOP);
    assert_eq!(count_up(&node, "awake"), 1);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| node.post("counter-rmw-linear", "sleeper", b""));
        while !waits.is_finished() {
            count_up(&node, "awake");
        }
        let reply = waits.join().unwrap();
        assert!(reply.status == 503 && String::from_utf8_lossy(&reply.body).contains("checkpoint"), "{reply:?}");
    });
    bucket.signal(Signal::CONT);
    eventually("it comes back", || node.post("counter-rmw-linear", "sleeper", b"").status == 200);
    let value = count_up(&node, "sleeper");
    // It comes back empty: as a store that is wrong. What is awake stays.
    bucket.end();
    eventually("it is told", || {
        count_up(&node, "awake");
        node.metrics().sum("xfaas_checkpoints_failing", &[]) == 1.0
    });
    assert_eq!(count_up(&node, "sleeper"), value + 1);
    bucket.server = serve(bucket.address);
    eventually("both sleep", || asleep(&node) == 2.0);
    assert_eq!(count_up(&node, "sleeper"), value + 2);
}
