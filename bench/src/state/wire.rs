//! Round trips over TCP, one at a time on one connection, with plain blocking sockets on the client's side for all alike: a bare echo, redis,
//! and the primary's RPC port as a container asks it.

use super::case::{Case, CaseError};
use crate::network::Network;
use crate::servers::{RPC_APP, RPC_FUNCTION, Server};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::time::Duration;
use xfaas_common::guest_abi::{MODE_STRONG, MODE_WEAK};
use xfaas_common::ids::{AppHash, FunctionHash, SessionId};
use xfaas_common::rpc::{
    ANY_SHARD, Asker, Frame, Hello, Next, PROTOCOL, READ_KEY, StateRead, StateReply, StateWrite, WRITE_KEY, next_frame,
};
use xfaas_common::wire::{KIND_STATE_REPLY, KIND_WELCOME};
use xfaas_dataplane::sys::affinity::pin_to;
use xfaas_dataplane::sys::socket::uninterrupted;

/// What every case reads or writes.
const VALUE: &[u8; 16] = b"value-of-16-byte";
const KEY: &[u8] = b"n";
/// An answer that takes longer is none.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
const DEADLINE_MS: u32 = 5_000;

fn session() -> SessionId {
    SessionId::new(b"session-of-16-by").expect("16 visible bytes")
}

fn io(operation: &'static str) -> impl FnOnce(std::io::Error) -> CaseError {
    move |source| CaseError::Io { operation, source }
}

fn connect(network: &Network, address: SocketAddr) -> Result<TcpStream, CaseError> {
    let connected = network.at_client(|| TcpStream::connect_timeout(&address, ANSWER_WAIT))?;
    let stream = connected.map_err(io("connect to the server"))?;
    stream.set_nodelay(true).map_err(io("set TCP_NODELAY"))?;
    stream.set_read_timeout(Some(ANSWER_WAIT)).map_err(io("set the time to wait"))?;
    Ok(stream)
}

/// Sends the same bytes each time and expects the same answer.
struct Fixed {
    name: &'static str,
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    received: Vec<u8>,
    _server: Option<Rc<Server>>,
}

impl Fixed {
    fn new(name: &'static str, stream: TcpStream, request: Vec<u8>, answer: Vec<u8>, server: Option<Rc<Server>>) -> Fixed {
        let received = vec![0; answer.len()];
        Fixed { name, stream, request, answer, received, _server: server }
    }
}

impl Case for Fixed {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operations(&self) -> u32 {
        1
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        self.stream.write_all(&self.request).map_err(io("send a request"))?;
        self.stream.read_exact(&mut self.received).map_err(io("receive an answer"))?;
        if self.received == self.answer { Ok(()) } else { Err(CaseError::Answer(self.received.escape_ascii().to_string())) }
    }
}

/// A bare echo on a thread of this process, pinned to `server_cpu`: it answers as many bytes as an RPC read sends with as many as it is
/// answered with.
pub fn echo_case(network: &Network, server_cpu: u16) -> Result<Box<dyn Case>, CaseError> {
    let (mut request, mut answer) = (Vec::new(), Vec::new());
    read_request(1, MODE_WEAK, 0).encode(&asker(1), &mut request);
    StateReply { result: VALUE.len() as i32, value: VALUE }.encode(1, RPC_FUNCTION_HASH, &mut answer);
    let listener = network.at_server(|| TcpListener::bind(network.server_address(0)))?.map_err(io("listen for the echo"))?;
    let address = listener.local_addr().map_err(io("ask for the echo's address"))?;
    let (pinned, is_pinned) = channel();
    let (request_bytes, echoed) = (request.len(), answer.clone());
    std::thread::spawn(move || {
        // Whoever asked has gone if it cannot be sent; an error later ends the connection, and the client tells of it.
        let ready = pinned.send(pin_to(server_cpu)).is_ok();
        if let (true, Ok((mut stream, _))) = (ready, listener.accept())
            && stream.set_nodelay(true).is_ok()
        {
            let mut received = vec![0; request_bytes];
            while stream.read_exact(&mut received).and_then(|()| stream.write_all(&echoed)).is_ok() {}
        }
    });
    is_pinned.recv().map_err(|_| CaseError::Answer("the echo's thread panicked".to_owned()))??;
    Ok(Box::new(Fixed::new("tcp_ping_pong", connect(network, address)?, request, answer, None)))
}

/// GET and SET of redis, on loopback.
pub fn redis_cases(server: Server) -> Result<Vec<Box<dyn Case>>, CaseError> {
    let (address, server) = (server.address(), Rc::new(server));
    let command = |words: &[&[u8]]| {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes
    };
    let found = [b"$16\r\n", &VALUE[..], b"\r\n"].concat();
    let case = |name, request, answer| -> Result<Fixed, CaseError> {
        Ok(Fixed::new(name, connect(&Network::loopback(), address)?, request, answer, Some(server.clone())))
    };
    let mut set = case("redis_set", command(&[b"SET", KEY, VALUE]), b"+OK\r\n".to_vec())?;
    set.batch()?;
    let mut get = case("redis_get", command(&[b"GET", KEY]), found)?;
    get.batch()?;
    Ok(vec![Box::new(get), Box::new(set)])
}

/// `FunctionHash::of` as the primary knows it.
const RPC_FUNCTION_HASH: FunctionHash = FunctionHash::of(RPC_FUNCTION.as_bytes());
const RPC_APP_HASH: AppHash = AppHash::of(RPC_APP.as_bytes());

fn asker(request_id: u64) -> Asker {
    Asker { request_id, function: RPC_FUNCTION_HASH, session: session() }
}

fn read_request(invocation: u64, mode: i32, deadline_ms: u32) -> StateRead<'static> {
    StateRead { invocation, app: RPC_APP_HASH, deadline_ms, mode: mode as u8, op: READ_KEY, bytes_max: VALUE.len() as u32, key: KEY }
}

/// A weak read, and a strong read with the strong write after it: two round trips.
/// Input: xfaas in `network`, and the address of its RPC port.
pub fn rpc_cases(network: &Network, (server, address): (Server, SocketAddr)) -> Result<Vec<Box<dyn Case>>, CaseError> {
    let server = Rc::new(server);
    let case = |name, is_strong| -> Box<dyn Case> {
        Box::new(RpcAsker { name, is_strong, network: network.clone(), address, connection: None, _server: server.clone() })
    };
    Ok(vec![case("rpc/read", false), case("rpc/rmw_strong", true)])
}

struct RpcAsker {
    name: &'static str,
    is_strong: bool,
    network: Network,
    address: SocketAddr,
    /// Made anew each round: the primary closes one that is silent while other cases run.
    connection: Option<RpcConnection>,
    _server: Rc<Server>,
}

struct RpcConnection {
    stream: TcpStream,
    last_id: u64,
    out: Vec<u8>,
    received: Vec<u8>,
}

impl RpcConnection {
    /// Says hello and is welcome.
    fn open(network: &Network, address: SocketAddr) -> Result<RpcConnection, CaseError> {
        let stream = connect(network, address)?;
        let mut connection = RpcConnection { stream, last_id: 1, out: Vec::new(), received: Vec::with_capacity(64 << 10) };
        Hello { protocol: PROTOCOL, shard: ANY_SHARD, container: u64::from(std::process::id()) }.encode(1, &mut connection.out);
        connection.exchange(|frame| frame.head.kind == KIND_WELCOME)?;
        Ok(connection)
    }

    /// Sends what is in `out` and waits for the one answer, which must be `good`.
    fn exchange(&mut self, good: impl Fn(&Frame<'_>) -> bool) -> Result<(), CaseError> {
        self.stream.write_all(&self.out).map_err(io("send a frame"))?;
        self.out.clear();
        loop {
            match next_frame(&self.received) {
                Next::Frame(frame) if frame.head.request_id == self.last_id => {
                    let wrong = (!good(&frame)).then(|| CaseError::Answer(format!("{frame:?}")));
                    let used = frame.used;
                    self.received.drain(..used);
                    return wrong.map_or(Ok(()), Err);
                }
                // News of the primary's functions comes unasked.
                Next::Frame(frame) => {
                    let used = frame.used;
                    self.received.drain(..used);
                }
                Next::NeedMore { .. } => self.receive()?,
                Next::Malformed(fault) => return Err(CaseError::Answer(format!("a malformed frame: {fault:?}"))),
            }
        }
    }

    fn receive(&mut self) -> Result<(), CaseError> {
        let mut buffer = [0; 4_096];
        match uninterrupted(|| self.stream.read(&mut buffer)).map_err(io("receive a frame"))? {
            0 => Err(CaseError::Answer("the primary closed the connection".to_owned())),
            bytes => {
                self.received.extend_from_slice(&buffer[..bytes]);
                Ok(())
            }
        }
    }

    fn read(&mut self, invocation: u64, mode: i32) -> Result<(), CaseError> {
        self.last_id += 1;
        read_request(invocation, mode, DEADLINE_MS).encode(&asker(self.last_id), &mut self.out);
        self.exchange(|frame| is_reply(frame, StateReply { result: VALUE.len() as i32, value: VALUE }))
    }

    fn write(&mut self, invocation: u64, mode: i32) -> Result<(), CaseError> {
        self.last_id += 1;
        let write =
            StateWrite { invocation, app: RPC_APP_HASH, deadline_ms: DEADLINE_MS, mode: mode as u8, op: WRITE_KEY, key: KEY, value: VALUE };
        write.encode(&asker(self.last_id), &mut self.out);
        self.exchange(|frame| is_reply(frame, StateReply { result: 0, value: b"" }))
    }
}

fn is_reply(frame: &Frame<'_>, expected: StateReply<'_>) -> bool {
    frame.head.kind == KIND_STATE_REPLY && StateReply::decode(frame.payload) == Ok(expected)
}

impl Case for RpcAsker {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operations(&self) -> u32 {
        1
    }

    fn begin(&mut self) -> Result<(), CaseError> {
        let mut connection = RpcConnection::open(&self.network, self.address)?;
        connection.write(1, MODE_WEAK)?;
        self.connection = Some(connection);
        Ok(())
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        let connection = self.connection.as_mut().expect("`begin` made it");
        let invocation = connection.last_id + 1;
        if !self.is_strong {
            return connection.read(invocation, MODE_WEAK);
        }
        connection.read(invocation, MODE_STRONG)?;
        connection.write(invocation, MODE_STRONG)
    }

    fn end(&mut self) {
        self.connection = None;
    }
}
