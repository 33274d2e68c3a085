//! A connection to the primary that control uses: blocking, with a time limit on everything. It says hello, hears of changes, fetches modules and
//! shows that both sides live. Used by the thread that joins, and by those that make the shards' connections, which they hand over after the hello.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use xfaas_common::limits::{MODULE_BYTES_MAX, RPC_PING_MS, RPC_SILENCE_MS_MAX};
use xfaas_common::rpc::{FrameFault, Hello, ModuleChunk, Next, PROTOCOL, Welcome, encode_empty, encode_module_request, next_frame};
use xfaas_common::wire::{KIND_CHANGED, KIND_ERROR, KIND_MODULE_REPLY, KIND_PING, KIND_PONG, KIND_WELCOME};

const CONNECT_MAX: Duration = Duration::from_secs(1);
const PING: Duration = Duration::from_millis(RPC_PING_MS);
const SILENCE_MAX: Duration = Duration::from_millis(RPC_SILENCE_MS_MAX);
/// A frame that the other side does not take in this time: the connection is dead.
const SEND_MAX: Duration = Duration::from_secs(2);
/// The primary may be busy with its start.
const WELCOME_MAX: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("cannot find the host of {join:?}")]
    Resolve {
        join: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot connect to {join:?}")]
    Connect {
        join: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the connection broke")]
    Broken(#[source] std::io::Error),
    #[error("the primary closed the connection")]
    Closed,
    #[error("nothing was heard for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("what listens there is not an xfaas primary of RPC version {PROTOCOL} ({}): give --join the address of its `[listen] rpc`", fault.name())]
    NotAPrimary { fault: FrameFault },
    #[error("a malformed frame came ({})", fault.name())]
    Malformed { fault: FrameFault },
    #[error("the primary refused: {reason}")]
    Refused { reason: String },
    #[error("the primary's welcome cannot be understood: {reason}")]
    BadWelcome { reason: String },
    #[error("a module of {bytes} bytes was announced: {MODULE_BYTES_MAX} at most")]
    ModuleTooLarge { bytes: u64 },
    #[error("a module's parts do not come in order")]
    ModuleParts,
}

impl LineError {
    /// True when the primary answered, and it was no.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, LineError::Refused { .. })
    }

    /// True when trying again is of no use: something else listens there.
    pub(super) fn is_for_good(&self) -> bool {
        matches!(self, LineError::NotAPrimary { .. } | LineError::BadWelcome { .. })
            || matches!(self, LineError::Refused { reason } if reason == "wrong_protocol")
    }
}

/// A frame that is the caller's to look at.
struct Taken {
    kind: u8,
    request_id: u64,
    payload: Vec<u8>,
}

pub(super) struct Line {
    stream: TcpStream,
    input: Vec<u8>,
    has_spoken: bool,
    heard: Instant,
    pinged: Instant,
    requests: u64,
    has_changed: bool,
    /// The highest ping that was answered.
    ponged: u64,
}

impl Line {
    /// Input: `HOST:PORT`. Errors: no address of the host takes the connection within a second.
    pub(super) fn connect(join: &str) -> Result<Line, LineError> {
        let addresses = join.to_socket_addrs().map_err(|source| LineError::Resolve { join: join.to_owned(), source })?;
        let mut last = std::io::Error::from(ErrorKind::AddrNotAvailable);
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_MAX).and_then(Line::over) {
                Ok(line) => return Ok(line),
                Err(error) => last = error,
            }
        }
        Err(LineError::Connect { join: join.to_owned(), source: last })
    }

    fn over(stream: TcpStream) -> std::io::Result<Line> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(SEND_MAX))?;
        let now = Instant::now();
        let input = Vec::with_capacity(READ_BYTES);
        Ok(Line { stream, input, has_spoken: false, heard: now, pinged: now, requests: 0, has_changed: false, ponged: 0 })
    }

    /// The socket, for a ring, and what came on it that was not looked at yet.
    pub(super) fn into_socket(self) -> Result<(OwnedFd, Vec<u8>), LineError> {
        self.stream.set_read_timeout(None).and_then(|()| self.stream.set_write_timeout(None)).map_err(LineError::Broken)?;
        Ok((self.stream.into(), self.input))
    }

    /// Says hello. Output: the shard that was reached, and the welcome's text.
    pub(super) fn hello(&mut self, shard: u16, container: u64) -> Result<(u16, Vec<u8>), LineError> {
        let request_id = self.next_request();
        let mut out = Vec::new();
        Hello { protocol: PROTOCOL, shard, container }.encode(request_id, &mut out);
        self.send(&out)?;
        let welcome = self.answer(request_id, KIND_WELCOME, Instant::now() + WELCOME_MAX)?;
        let welcome = Welcome::decode(&welcome).map_err(|fault| LineError::Malformed { fault })?;
        Ok((welcome.shard, welcome.text.to_vec()))
    }

    /// Fetches a function's module. Errors: `Refused` where the primary has it no more.
    pub(super) fn module(&mut self, name: &str) -> Result<Vec<u8>, LineError> {
        let request_id = self.next_request();
        let mut out = Vec::new();
        encode_module_request(request_id, name.as_bytes(), &mut out);
        self.send(&out)?;
        let mut module = Vec::new();
        loop {
            let part = self.answer(request_id, KIND_MODULE_REPLY, Instant::now() + WELCOME_MAX)?;
            let part = ModuleChunk::decode(&part).map_err(|fault| LineError::Malformed { fault })?;
            if part.total > MODULE_BYTES_MAX as u64 {
                return Err(LineError::ModuleTooLarge { bytes: part.total });
            }
            if part.offset != module.len() as u64 {
                return Err(LineError::ModuleParts);
            }
            module.extend_from_slice(part.bytes);
            if module.len() as u64 == part.total {
                return Ok(module);
            }
        }
    }

    /// Keeps the connection alive for so long, or until something changes.
    pub(super) fn idle(&mut self, time: Duration) -> Result<(), LineError> {
        let until = Instant::now() + time;
        while !self.has_changed && Instant::now() < until {
            // An answer that nobody waits for any more.
            drop(self.take(until)?);
        }
        Ok(())
    }

    /// True when `take_change` would be.
    pub(super) fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// True once after the primary's functions have changed.
    pub(super) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// Asks for a sign of life. Output: its number; `has_answered` says when it has come.
    pub(super) fn ping(&mut self) -> Result<u64, LineError> {
        let request_id = self.next_request();
        let mut out = Vec::new();
        encode_empty(KIND_PING, request_id, &mut out);
        self.pinged = Instant::now();
        self.send(&out)?;
        Ok(request_id)
    }

    pub(super) fn has_answered(&self, ping: u64) -> bool {
        self.ponged >= ping
    }

    fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// The payload of the frame of `kind` that answers `request_id`.
    fn answer(&mut self, request_id: u64, kind: u8, until: Instant) -> Result<Vec<u8>, LineError> {
        loop {
            match self.take(until)? {
                Some(frame) if frame.request_id == request_id && frame.kind == kind => return Ok(frame.payload),
                Some(frame) if frame.request_id == request_id && frame.kind == KIND_ERROR => {
                    return Err(LineError::Refused { reason: String::from_utf8_lossy(&frame.payload).into_owned() });
                }
                None if Instant::now() >= until => return Err(LineError::Silent),
                _ => {}
            }
        }
    }

    /// The next frame that is not about life or change; `None` at `until` at the latest.
    fn take(&mut self, until: Instant) -> Result<Option<Taken>, LineError> {
        loop {
            while let Some(frame) = self.next_in_input()? {
                match frame.kind {
                    KIND_PING => self.pong(frame.request_id)?,
                    KIND_PONG => self.ponged = self.ponged.max(frame.request_id),
                    KIND_CHANGED => {
                        self.has_changed = true;
                        return Ok(None);
                    }
                    _ => return Ok(Some(frame)),
                }
            }
            let now = Instant::now();
            if now >= until {
                return Ok(None);
            }
            if now.duration_since(self.heard) >= SILENCE_MAX {
                return Err(LineError::Silent);
            }
            if now.duration_since(self.pinged) >= PING {
                self.ping()?;
            }
            self.receive(until.duration_since(now).min(PING / 2))?;
        }
    }

    fn next_in_input(&mut self) -> Result<Option<Taken>, LineError> {
        let frame = match next_frame(&self.input) {
            Next::Frame(frame) => frame,
            Next::NeedMore { .. } => return Ok(None),
            Next::Malformed(fault) if !self.has_spoken => return Err(LineError::NotAPrimary { fault }),
            Next::Malformed(fault) => return Err(LineError::Malformed { fault }),
        };
        let taken = Taken { kind: frame.head.kind, request_id: frame.head.request_id, payload: frame.payload.to_vec() };
        let used = frame.used;
        self.has_spoken = true;
        self.input.drain(..used);
        Ok(Some(taken))
    }

    fn pong(&mut self, request_id: u64) -> Result<(), LineError> {
        let mut out = Vec::new();
        encode_empty(KIND_PONG, request_id, &mut out);
        self.send(&out)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), LineError> {
        self.stream.write_all(bytes).map_err(LineError::Broken)
    }

    /// Waits for bytes; none within `time` is fine.
    fn receive(&mut self, time: Duration) -> Result<(), LineError> {
        // Zero would mean for ever.
        self.stream.set_read_timeout(Some(time.max(Duration::from_millis(1)))).map_err(LineError::Broken)?;
        let mut bytes = [0; READ_BYTES];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(LineError::Closed),
            Ok(count) => {
                self.heard = Instant::now();
                self.input.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(LineError::Broken(error)),
        }
    }
}
