//! A whole shard in this process, and requests to it one after another: what its thread does for one, from the receive to the send.
//! `counts` counts the shard's thread.

use super::guest::{engine, function_of, proxy_options};
use super::session::placement;
use super::wire::{datagram, http_request, session};
use crate::load::parse_reply;
use crate::servers::{XfaasFiles, scratch_directory};
use crate::state::{Case, CaseError};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use tempfile::TempDir;
use xfaas_dataplane::durable::Recovered;
use xfaas_dataplane::net::{AnswerBody, decode_datagram_answer};
use xfaas_dataplane::session::{PinBoard, Placement};
use xfaas_dataplane::shard::{self, RunningShards, ShardCommand, ShardOptions, ShardPlan, Timeouts};
use xfaas_dataplane::sys::affinity::allowed_cpus;
use xfaas_dataplane::sys::socket::{tcp_listener, udp_socket};

const FUNCTION: &str = "counter-rmw";
/// Requests of one client.
const REQUESTS: u32 = 500;
const HOUR_NS: u64 = 3_600 * 1_000_000_000;
/// Under valgrind all is slow.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A counter's requests to a shard, over HTTP and by datagram. The shard ends with the process.
pub(super) fn shard_cases(files: &XfaasFiles) -> Result<Vec<Box<dyn Case>>, CaseError> {
    let running = Arc::new(Running::start(&files.guest(FUNCTION)?)?);
    let names = ["shard/http/counter-rmw", "shard/datagram/counter-rmw"];
    let case = |(name, transport)| Box::new(Requests { name, transport, running: Arc::clone(&running) }) as Box<dyn Case>;
    Ok(names.into_iter().zip(TRANSPORTS).map(case).collect())
}

fn io(operation: &'static str) -> impl Fn(std::io::Error) -> CaseError {
    move |source| CaseError::Io { operation, source }
}

struct Running {
    address: SocketAddr,
    shards: RunningShards,
    _directory: TempDir,
}

impl Running {
    fn start(module: &Path) -> Result<Running, CaseError> {
        let directory = scratch_directory("counts").map_err(CaseError::Directory)?;
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.map_err(io("find a free port"))?;
        let plan = ShardPlan {
            cpu: *allowed_cpus().first().ok_or_else(|| CaseError::Answer("no CPU to run on".to_owned()))?,
            tcp: tcp_listener(address).map_err(|error| CaseError::Answer(error.to_string()))?,
            udp: udp_socket(address).map_err(|error| CaseError::Answer(error.to_string()))?,
            rpc: None,
            flows: None,
            container: None,
        };
        let placement: Arc<dyn Placement> = Arc::new(placement());
        let shards =
            shard::start(vec![plan], &options(directory.path()), &placement).map_err(|error| CaseError::Answer(error.to_string()))?;
        let running = Running { address, shards, _directory: directory };
        let function = function_of(&engine()?, FUNCTION, module)?;
        let (answer, answered) = sync_channel(1);
        running.tell(ShardCommand::Install(function, answer))?;
        let installed = answered.recv_timeout(ANSWER_TIMEOUT).map_err(|error| CaseError::Answer(error.to_string()))?;
        let reader = installed.map_err(CaseError::Answer)?;
        let (answer, answered) = sync_channel(1);
        running.tell(ShardCommand::Readers(0, [reader].into(), answer))?;
        answered.recv_timeout(ANSWER_TIMEOUT).map_err(|error| CaseError::Answer(error.to_string()))?.map_err(CaseError::Answer)?;
        running.tell(ShardCommand::Serve)?;
        Ok(running)
    }

    fn tell(&self, command: ShardCommand) -> Result<(), CaseError> {
        self.shards.doors[0].send(command).map_err(|_| CaseError::Answer("the shard takes no command".to_owned()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its thread ends when it is drained; a process that goes away does not wait for it.
        if self.tell(ShardCommand::Drain).is_err() {
            eprintln!("the counted shard takes no command");
        }
    }
}

fn options(directory: &Path) -> ShardOptions {
    ShardOptions {
        connections_max: 64,
        body_bytes_max: 1 << 20,
        session_header: b"x-session-id".to_vec(),
        proxy: proxy_options(),
        region_directory: directory.to_owned(),
        region_bytes_max: 64 << 20,
        hash_tag: 1,
        log_directory: directory.join("log"),
        recovered: Arc::new(Recovered { epoch: 1, next_number: 1, ..Recovered::default() }),
        log_bytes_max: 256 << 20,
        pins: Arc::new(PinBoard::none()),
        replay_bytes_max: 1 << 20,
        token_key: None,
        timeouts: Timeouts { head_ns: HOUR_NS, body_stall_ns: HOUR_NS, body_ns: HOUR_NS, idle_ns: HOUR_NS },
        drain_ns_min: 0,
        drain_ns_max: 1_000_000_000,
    }
}

/// Requests over one connection or from one socket, one after another.
struct Requests {
    name: &'static str,
    transport: &'static str,
    running: Arc<Running>,
}

impl Case for Requests {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operations(&self) -> u32 {
        REQUESTS
    }

    /// The client is another process: valgrind lets one thread of a process run at a time, and takes a shard that waits in its ring for one that runs.
    fn batch(&mut self) -> Result<(), CaseError> {
        let program = std::env::current_exe().map_err(io("find this program"))?;
        let mut client = Command::new(program);
        client.args([CLIENT, self.transport, &self.running.address.to_string()]);
        match client.status().map_err(io("start the client"))? {
            status if status.success() => Ok(()),
            status => Err(CaseError::Answer(format!("the client of {} ended with {status}", self.name))),
        }
    }
}

/// First argument of the program when it is the client; the second is the transport, the third the shard's address.
pub const CLIENT: &str = "client";
const TRANSPORTS: [&str; 2] = ["http", "datagram"];

/// The client of a batch. Errors: a request that is not answered well.
pub fn run_client(transport: &str, address: SocketAddr) -> Result<(), CaseError> {
    if transport == TRANSPORTS[0] { ask_http(address) } else { ask_datagrams(address) }
}

fn ask_http(address: SocketAddr) -> Result<(), CaseError> {
    let mut stream = TcpStream::connect(address).map_err(io("connect to the counted shard"))?;
    stream.set_nodelay(true).map_err(io("set TCP_NODELAY"))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(io("set a timeout"))?;
    let request = http_request("127.0.0.1:8080", FUNCTION, &session(0));
    let mut bytes = [0; 4_096];
    for _ in 0..REQUESTS {
        stream.write_all(&request).map_err(io("send a request"))?;
        let length = stream.read(&mut bytes).map_err(io("receive a reply"))?;
        match parse_reply(&bytes[..length]) {
            Ok(Some(reply)) if reply.status == 200 && reply.bytes == length => {}
            other => return Err(CaseError::Answer(format!("{other:?}"))),
        }
    }
    Ok(())
}

fn ask_datagrams(address: SocketAddr) -> Result<(), CaseError> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io("bind a socket"))?;
    socket.connect(address).map_err(io("connect to the counted shard"))?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(io("set a timeout"))?;
    let request = datagram(FUNCTION, &session(1));
    let mut bytes = [0; 2_048];
    for _ in 0..REQUESTS {
        socket.send(&request).map_err(io("send a datagram"))?;
        let length = socket.recv(&mut bytes).map_err(io("receive an answer"))?;
        match decode_datagram_answer(&bytes[..length]).map_err(|error| CaseError::Answer(error.to_string()))?.body {
            AnswerBody::Reply(_) => {}
            AnswerBody::Error { text, .. } => return Err(CaseError::Answer(String::from_utf8_lossy(text).into_owned())),
        }
    }
    Ok(())
}
