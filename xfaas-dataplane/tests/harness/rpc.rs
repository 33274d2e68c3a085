//! A raw RPC client. The layout is written out here once more, from docs/PROTOCOL.md and not from the code under test.

use super::PATIENCE;
use super::datagram::function_hash;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xfaas_common::hash::{HashKeys, session_hash};
use xfaas_common::ids::SessionId;

const HEADER_BYTES: usize = 32;
const PING_INTERVAL: Duration = Duration::from_millis(300);
/// Request ID of the pings that keep a client alive; their pongs are not shown.
const KEEP_ALIVE_ID: u64 = u64::MAX;

/// One frame, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcFrame {
    pub kind: u8,
    pub status: u8,
    pub request_id: u64,
    pub function: u32,
    pub payload: Vec<u8>,
}

impl RpcFrame {
    /// The result of a state reply.
    #[track_caller]
    pub fn result(&self) -> i32 {
        assert_eq!((self.kind, self.status), (18, 0), "{self:?}");
        i32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }

    /// The value of a state reply.
    #[track_caller]
    pub fn value(&self) -> &[u8] {
        self.result();
        &self.payload[4..]
    }

    #[track_caller]
    pub fn assert_error(&self, status: u8, text: &str) {
        assert_eq!((self.kind, self.status, String::from_utf8_lossy(&self.payload).as_ref()), (3, status, text), "{self:?}");
    }
}

/// A frame's bytes.
pub fn rpc_frame(kind: u8, session: &str, request_id: u64, function: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'X', b'F', 1, kind, 0, 0, session.len() as u8, 0];
    bytes.extend_from_slice(&request_id.to_be_bytes());
    bytes.extend_from_slice(&function.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(session.as_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A state request: what is left out is what most tests want.
#[derive(Clone, Copy)]
pub struct State<'a> {
    pub function: &'a str,
    pub app: &'a str,
    pub session: &'a str,
    pub invocation: u64,
    pub deadline_ms: u32,
    pub mode: u8,
    pub op: u8,
    pub bytes_max: u32,
}

impl<'a> State<'a> {
    /// Of a function in the app of its own name.
    pub fn weak(function: &'a str, session: &'a str) -> State<'a> {
        State { function, app: function, session, invocation: 1, deadline_ms: 0, mode: 0, op: 0, bytes_max: 4 << 20 }
    }

    pub fn strong(function: &'a str, session: &'a str, invocation: u64) -> State<'a> {
        State { invocation, mode: 1, ..State::weak(function, session) }
    }

    pub fn read(&self, request_id: u64, key: &[u8]) -> Vec<u8> {
        let mut payload = self.head(key);
        payload.extend_from_slice(&self.bytes_max.to_be_bytes());
        payload.extend_from_slice(key);
        rpc_frame(16, self.session, request_id, function_hash(self.function), &payload)
    }

    pub fn write(&self, request_id: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut payload = self.head(key);
        payload.extend_from_slice(&(value.len() as u32).to_be_bytes());
        payload.extend_from_slice(key);
        payload.extend_from_slice(value);
        rpc_frame(17, self.session, request_id, function_hash(self.function), &payload)
    }

    pub fn end(&self) -> Vec<u8> {
        State { op: 1, mode: 0, ..*self }.write(0, b"", b"")
    }

    pub fn commit(&self, request_id: u64, writes: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut list = (writes.len() as u32).to_be_bytes().to_vec();
        for (key, value) in writes {
            list.extend_from_slice(&(key.len() as u16).to_be_bytes());
            list.extend_from_slice(&(value.len() as u32).to_be_bytes());
            list.extend_from_slice(key);
            list.extend_from_slice(value);
        }
        State { op: 2, mode: 0, ..*self }.write(request_id, b"", &list)
    }

    fn head(&self, key: &[u8]) -> Vec<u8> {
        let mut payload = self.invocation.to_be_bytes().to_vec();
        payload.extend_from_slice(&app_hash(self.app).to_be_bytes());
        payload.extend_from_slice(&self.deadline_ms.to_be_bytes());
        payload.extend_from_slice(&[self.mode, self.op]);
        payload.extend_from_slice(&(key.len() as u16).to_be_bytes());
        payload
    }
}

/// FNV-1a, 64 bits.
pub fn app_hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// What a welcome says.
pub struct Welcome {
    pub shard: u16,
    pub text: serde_json::Value,
}

impl Welcome {
    /// The shard that owns a session, by what the welcome says.
    pub fn owner(&self, session: &str) -> u16 {
        let keys = self.text["hash_keys"].as_array().unwrap();
        let keys: Vec<u64> = keys.iter().map(|key| u64::from_str_radix(key.as_str().unwrap(), 16).unwrap()).collect();
        let session = SessionId::new(session.as_bytes()).unwrap();
        let hash = session_hash(&HashKeys { keys: keys.try_into().unwrap() }, session.padded(), session.length());
        assert_eq!(self.text["slot_to_core"], "dealt in turn");
        (hash.slot().index() as u64 % self.text["shards"].as_u64().unwrap()) as u16
    }

    /// The first of `<prefix>0`, `<prefix>1`, .. that the shard owns.
    pub fn session_of(&self, shard: u16, prefix: &str) -> String {
        (0..).map(|i| format!("{prefix}{i}")).find(|session| self.owner(session) == shard).unwrap()
    }
}

/// One connection of a container that is not there.
pub struct RpcClient {
    stream: TcpStream,
    /// Pings from another thread must not get into the middle of a frame.
    writer: Arc<Mutex<TcpStream>>,
    received: Vec<u8>,
    next_id: u64,
    pings: Arc<AtomicBool>,
}

impl RpcClient {
    /// A connection that says nothing by itself.
    pub fn silent(address: SocketAddr) -> RpcClient {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let writer = Arc::new(Mutex::new(stream.try_clone().unwrap()));
        RpcClient { stream, writer, received: Vec::new(), next_id: 1, pings: Arc::default() }
    }

    /// A connection that pings until it is dropped or told to `fall_silent`.
    pub fn connect(address: SocketAddr) -> RpcClient {
        let client = RpcClient::silent(address);
        client.pings.store(true, Ordering::Relaxed);
        let (pings, writer) = (Arc::clone(&client.pings), Arc::clone(&client.writer));
        std::thread::spawn(move || {
            let ping = rpc_frame(23, "", KEEP_ALIVE_ID, 0, b"");
            while pings.load(Ordering::Relaxed) && writer.lock().unwrap().write_all(&ping).is_ok() {
                std::thread::sleep(PING_INTERVAL);
            }
        });
        client
    }

    /// A connection to one shard.
    pub fn to_shard(address: SocketAddr, shard: u16) -> (RpcClient, Welcome) {
        let mut client = RpcClient::connect(address);
        let welcome = client.hello(shard);
        (client, welcome)
    }

    /// A connection to the owner of a session.
    pub fn to_owner(address: SocketAddr, session: &str) -> RpcClient {
        let (client, welcome) = RpcClient::to_shard(address, 0);
        match welcome.owner(session) {
            0 => client,
            owner => RpcClient::to_shard(address, owner).0,
        }
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn fall_silent(&self) {
        self.pings.store(false, Ordering::Relaxed);
    }

    pub fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.writer.lock().unwrap().write_all(bytes).unwrap();
    }

    /// Sends what the server may refuse to take. Output: false when it did.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.writer.lock().unwrap().write_all(bytes).is_ok()
    }

    pub fn hello_frame(shard: u16, request_id: u64) -> Vec<u8> {
        let payload = [&2u32.to_be_bytes()[..], &shard.to_be_bytes(), &7u64.to_be_bytes()].concat();
        rpc_frame(19, "", request_id, 0, &payload)
    }

    #[track_caller]
    pub fn hello(&mut self, shard: u16) -> Welcome {
        let id = self.fresh_id();
        self.send(&RpcClient::hello_frame(shard, id));
        let frame = self.next();
        assert_eq!((frame.kind, frame.request_id), (20, id), "{frame:?}");
        let reached = u16::from_be_bytes(frame.payload[..2].try_into().unwrap());
        Welcome { shard: reached, text: serde_json::from_slice(&frame.payload[2..]).unwrap() }
    }

    /// Sends a request and takes its answer.
    #[track_caller]
    pub fn call(&mut self, make: impl FnOnce(u64) -> Vec<u8>) -> RpcFrame {
        let id = self.fresh_id();
        self.send(&make(id));
        self.answer_to(id)
    }

    /// The next frame, which must answer that request.
    #[track_caller]
    pub fn answer_to(&mut self, id: u64) -> RpcFrame {
        let frame = self.next();
        assert_eq!(frame.request_id, id, "{frame:?}");
        frame
    }

    /// The next frame.
    #[track_caller]
    pub fn next(&mut self) -> RpcFrame {
        self.next_within(PATIENCE).expect("a frame")
    }

    /// The next frame, or `None` when none comes in this time.
    #[track_caller]
    pub fn next_within(&mut self, time: Duration) -> Option<RpcFrame> {
        let deadline = Instant::now() + time;
        loop {
            while let Some(frame) = self.take_frame() {
                if (frame.kind, frame.request_id) != (24, KEEP_ALIVE_ID) {
                    return Some(frame);
                }
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            self.stream.set_read_timeout(Some(left)).unwrap();
            match self.receive() {
                Ok(0) => panic!("the connection was closed"),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The server has closed, in order or by a reset, and says no more but pongs.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        while let Ok(1..) = self.receive() {}
        while let Some(frame) = self.take_frame() {
            assert_eq!((frame.kind, frame.request_id), (24, KEEP_ALIVE_ID), "{frame:?}");
        }
        let error = self.stream.read(&mut [0]).err().map(|error| error.kind());
        assert!(!matches!(error, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "still open after {PATIENCE:?}");
    }

    fn receive(&mut self) -> std::io::Result<usize> {
        let mut buffer = [0; 64 << 10];
        let bytes = self.stream.read(&mut buffer)?;
        self.received.extend_from_slice(&buffer[..bytes]);
        Ok(bytes)
    }

    fn take_frame(&mut self) -> Option<RpcFrame> {
        let head = self.received.get(..HEADER_BYTES)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        assert_eq!((&head[..3], &head[4..6], &head[24..32]), (&b"XF\x01"[..], &[0; 2][..], &[0; 8][..]), "{head:?}");
        assert_eq!(head[6], 0, "what the primary sends names no session");
        let (kind, status, function, payload_bytes) = (head[3], head[7], word(16), word(20) as usize);
        assert!(payload_bytes <= (2 << 20) + (4 << 10), "{payload_bytes}");
        let request_id = u64::from_be_bytes(head[8..16].try_into().unwrap());
        let payload = self.received.get(HEADER_BYTES..HEADER_BYTES + payload_bytes)?.to_vec();
        self.received.drain(..HEADER_BYTES + payload_bytes);
        Some(RpcFrame { kind, status, request_id, function, payload })
    }
}

impl Drop for RpcClient {
    fn drop(&mut self) {
        self.pings.store(false, Ordering::Relaxed);
        // The pinging thread holds a descriptor of its own: the connection ends now all the same.
        self.stream.shutdown(std::net::Shutdown::Both).ok();
    }
}
