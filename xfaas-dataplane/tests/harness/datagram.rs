//! A UDP client. The layout is written out here once more, from docs/PROTOCOL.md and not from the code under test.

use super::PATIENCE;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use xfaas_dataplane::sys::socket::uninterrupted;

pub const KIND_INVOKE: u8 = 1;
pub const KIND_REPLY: u8 = 2;
pub const KIND_ERROR: u8 = 3;
const HEADER_BYTES: usize = 32;

/// FNV-1a-32 of the function's name.
pub fn function_hash(name: &str) -> u32 {
    name.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The bytes of a well-formed request.
pub fn request_datagram(function: &str, session: &str, request_id: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'X', b'F', 1, KIND_INVOKE, 0, 0, session.len() as u8, 0];
    bytes.extend_from_slice(&request_id.to_be_bytes());
    bytes.extend_from_slice(&function_hash(function).to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(session.as_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// One answer, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub kind: u8,
    pub status: u8,
    pub session: String,
    pub request_id: u64,
    pub function: u32,
    pub payload: Vec<u8>,
}

impl Answer {
    /// Panics unless every byte is where it belongs.
    fn parse(bytes: &[u8]) -> Answer {
        assert!(bytes.len() > HEADER_BYTES, "{bytes:?}");
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(&bytes[..3], b"XF\x01", "magic and version");
        assert_eq!(&bytes[4..6], [0, 0], "flags");
        assert_eq!(&bytes[24..32], [0; 8], "reserved");
        let session_bytes = usize::from(bytes[6]);
        assert_eq!(HEADER_BYTES + session_bytes + word(20) as usize, bytes.len(), "lengths add up");
        let (session, payload) = bytes[HEADER_BYTES..].split_at(session_bytes);
        Answer {
            kind: bytes[3],
            status: bytes[7],
            session: String::from_utf8(session.to_vec()).unwrap(),
            request_id: u64::from_be_bytes(bytes[8..16].try_into().unwrap()),
            function: word(16),
            payload: payload.to_vec(),
        }
    }

    #[track_caller]
    pub fn assert_reply(&self, payload: &[u8]) {
        assert_eq!((self.kind, self.status), (KIND_REPLY, 0), "{self:?}");
        assert!(self.payload == payload, "{} bytes, not the {} expected", self.payload.len(), payload.len());
    }

    #[track_caller]
    pub fn assert_error(&self, status: u8, text: &str) {
        assert_eq!((self.kind, self.status), (KIND_ERROR, status), "{self:?}");
        assert_eq!(String::from_utf8_lossy(&self.payload), text);
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
}

pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    pub fn connect(address: SocketAddr) -> UdpClient {
        let any = if address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(address).unwrap();
        UdpClient { socket }
    }

    pub fn send(&self, bytes: &[u8]) {
        assert_eq!(self.socket.send(bytes).unwrap(), bytes.len());
    }

    /// Sends to a port that may be closed. Output: false when the kernel says it is.
    pub fn try_send(&self, bytes: &[u8]) -> bool {
        self.socket.send(bytes).is_ok()
    }

    /// The next answer of a port that may be closed, or `None`.
    pub fn try_answer(&self, time: Duration) -> Option<Answer> {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut buffer = vec![0; 65_536];
        uninterrupted(|| self.socket.recv(&mut buffer)).ok().map(|bytes| Answer::parse(&buffer[..bytes]))
    }

    /// The next answer.
    #[track_caller]
    pub fn answer(&self) -> Answer {
        self.answer_within(PATIENCE).expect("an answer")
    }

    /// The next answer, or `None` when none comes in this time.
    pub fn answer_within(&self, time: Duration) -> Option<Answer> {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut buffer = vec![0; 65_536];
        match uninterrupted(|| self.socket.recv(&mut buffer)) {
            Ok(bytes) => Some(Answer::parse(&buffer[..bytes])),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends a well-formed request and takes its answer, which must be the only one and repeat what names the request.
    #[track_caller]
    pub fn call(&self, function: &str, session: &str, request_id: u64, payload: &[u8]) -> Answer {
        self.send(&request_datagram(function, session, request_id, payload));
        let answer = self.answer();
        let named = (answer.session.as_str(), answer.request_id, answer.function);
        assert_eq!(named, (session, request_id, function_hash(function)), "an answer repeats session, request ID and function");
        answer
    }
}
