//! Frames between a container and the primary over TCP: the header of `wire`, perhaps a session ID, and a payload of the frame's kind.
//! Used by both sides, so that neither can write what the other does not read. docs/PROTOCOL.md, "RPC".
//!
//! Bytes are hostile here: no function panics on any input, and none looks at more than one frame. Nothing allocates: encoders extend
//! what the caller gives them, decoders borrow.

use crate::ids::{AppHash, FunctionHash, SessionId};
use crate::limits::{RPC_FRAME_BYTES_MAX, RPC_MODULE_CHUNK_BYTES, RPC_PAYLOAD_BYTES_MAX, SESSION_ID_BYTES_MAX, SESSION_KEYS_MAX};
use crate::wire::{
    HEADER_BYTES, Header, KIND_CHANGED, KIND_ERROR, KIND_HELLO, KIND_MODULE, KIND_MODULE_REPLY, KIND_PING, KIND_PONG, KIND_STATE_READ,
    KIND_STATE_REPLY, KIND_STATE_WRITE, KIND_WELCOME, MAGIC, VERSION,
};

/// The one version of what is said in frames.
pub const PROTOCOL: u32 = 2;
/// In a hello: whichever shard took the connection.
pub const ANY_SHARD: u16 = 0xFFFF;

/// Operation of kind 16: one key.
pub const READ_KEY: u8 = 0;
/// Operation of kind 16: several keys as they are at one moment.
pub const READ_SNAPSHOT: u8 = 1;
/// Operation of kind 17: one key.
pub const WRITE_KEY: u8 = 0;
/// Operation of kind 17: the invocation is over.
pub const WRITE_END: u8 = 1;
/// Operation of kind 17: all writes of an atomic invocation, which is over with them.
pub const WRITE_COMMIT: u8 = 2;

/// `status` of a kind 3 frame that refuses one request for a reason outside `wire::Status`; the payload says which.
pub const STATUS_REFUSED: u8 = 0;

/// Bytes before the key of a kind 16 payload, and before the key of a kind 17 payload.
pub const READ_HEAD_BYTES: usize = 28;
pub const WRITE_HEAD_BYTES: usize = 28;
/// Bytes before the value of a kind 18 payload.
pub const REPLY_HEAD_BYTES: usize = 4;
/// Bytes of a kind 19 payload.
pub const HELLO_BYTES: usize = 14;
/// Bytes before the JSON of a kind 20 payload.
pub const WELCOME_HEAD_BYTES: usize = 2;
/// Bytes before the module's in a kind 22 payload.
pub const CHUNK_HEAD_BYTES: usize = 16;
/// Bytes before the first write of a commit, and of each write before its key.
pub const COMMIT_HEAD_BYTES: usize = 4;
pub const COMMIT_WRITE_HEAD_BYTES: usize = 6;

/// Most bytes that a kind 18 frame carries after its result.
pub const REPLY_VALUE_BYTES_MAX: usize = RPC_PAYLOAD_BYTES_MAX - REPLY_HEAD_BYTES;
/// Most bytes of a commit's list of writes.
pub const COMMIT_BYTES_MAX: usize = RPC_PAYLOAD_BYTES_MAX - WRITE_HEAD_BYTES;

/// What is wrong with a stream of frames: its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFault {
    BadMagic,
    BadVersion,
    /// Flags or the reserved field are not 0, or status or function are not, in a kind that has none.
    BadReserved,
    /// Over 64 bytes, with bytes outside 0x21-0x7E, missing in kinds 16 and 17, or given in another kind.
    BadSession,
    /// The payload is longer than a frame may carry.
    TooLong,
    /// The payload's own lengths do not add up, or something is there where nothing may be.
    BadPayload,
}

impl FrameFault {
    /// Each one; the position is the counter's index.
    pub const ALL: [FrameFault; 6] = [
        FrameFault::BadMagic,
        FrameFault::BadVersion,
        FrameFault::BadReserved,
        FrameFault::BadSession,
        FrameFault::TooLong,
        FrameFault::BadPayload,
    ];

    /// The `reason` label in `/metrics`.
    pub const fn name(self) -> &'static str {
        match self {
            FrameFault::BadMagic => "bad_magic",
            FrameFault::BadVersion => "bad_version",
            FrameFault::BadReserved => "bad_reserved",
            FrameFault::BadSession => "bad_session",
            FrameFault::TooLong => "too_long",
            FrameFault::BadPayload => "bad_payload",
        }
    }
}

/// What a frame says beside its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    pub kind: u8,
    /// 0 but in kind 3.
    pub status: u8,
    /// Chosen by the asker, unique on its connection while the request is under way; repeated in the answer.
    pub request_id: u64,
    /// 0 but in kinds 16 and 17, and in answers to them.
    pub function: FunctionHash,
    /// In kinds 16 and 17 only.
    pub session: Option<SessionId>,
}

impl FrameHead {
    /// A head without session and function.
    pub const fn plain(kind: u8, request_id: u64) -> FrameHead {
        FrameHead { kind, status: 0, request_id, function: FunctionHash(0), session: None }
    }

    /// Appends header and session ID of a frame with `payload_bytes` to come. Input: at most `RPC_PAYLOAD_BYTES_MAX`.
    pub fn encode(&self, payload_bytes: usize, out: &mut impl for<'a> Extend<&'a u8>) {
        debug_assert!(payload_bytes <= RPC_PAYLOAD_BYTES_MAX, "the caller keeps payloads within a frame");
        let session = self.session.as_ref().map_or(&[][..], SessionId::as_bytes);
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            kind: self.kind,
            flags: [0; 2],
            session_len: session.len() as u8,
            status: self.status,
            request_id: self.request_id.to_be_bytes(),
            function: self.function.0.to_be_bytes(),
            payload_len: (payload_bytes as u32).to_be_bytes(),
            reserved: [0; 8],
        };
        out.extend(&header.to_bytes());
        out.extend(session);
    }
}

/// A whole frame at the start of a stream's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub head: FrameHead,
    pub payload: &'a [u8],
    /// Bytes of the frame.
    pub used: usize,
}

/// What the bytes of a stream begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Not a whole frame yet: no answer changes before `bytes` of them are there. At most `RPC_FRAME_BYTES_MAX`.
    NeedMore {
        bytes: usize,
    },
    Frame(Frame<'a>),
    Malformed(FrameFault),
}

/// Looks at the frame that `bytes` begin with; refuses it as soon as that can be known. Cost: a look at the header and the session ID.
pub fn next_frame(bytes: &[u8]) -> Next<'_> {
    let Some(header) = Header::read(bytes) else {
        let seen = bytes.len().min(MAGIC.len());
        return match bytes[..seen] == MAGIC[..seen] {
            true => Next::NeedMore { bytes: HEADER_BYTES },
            false => Next::Malformed(FrameFault::BadMagic),
        };
    };
    if let Some(fault) = header_fault(&header) {
        return Next::Malformed(fault);
    }
    let payload_at = HEADER_BYTES + usize::from(header.session_len);
    let used = payload_at + header.payload_len() as usize;
    let session = match bytes.get(HEADER_BYTES..payload_at) {
        Some([]) => None,
        Some(text) => match SessionId::new(text) {
            None => return Next::Malformed(FrameFault::BadSession),
            session => session,
        },
        None => return Next::NeedMore { bytes: used },
    };
    let Some(payload) = bytes.get(payload_at..used) else { return Next::NeedMore { bytes: used } };
    let Header { kind, status, .. } = header;
    let head = FrameHead { kind, status, request_id: header.request_id(), function: header.function(), session };
    Next::Frame(Frame { head, payload, used })
}

fn header_fault(header: &Header) -> Option<FrameFault> {
    if header.magic != MAGIC {
        return Some(FrameFault::BadMagic);
    }
    if header.version != VERSION {
        return Some(FrameFault::BadVersion);
    }
    if header.flags != [0; 2] || header.reserved != [0; 8] || (header.status != 0 && header.kind != KIND_ERROR) {
        return Some(FrameFault::BadReserved);
    }
    let has_function = matches!(header.kind, KIND_STATE_READ | KIND_STATE_WRITE | KIND_STATE_REPLY | KIND_ERROR);
    if header.function != [0; 4] && !has_function {
        return Some(FrameFault::BadReserved);
    }
    let session_bytes = usize::from(header.session_len);
    let has_session = matches!(header.kind, KIND_STATE_READ | KIND_STATE_WRITE);
    if session_bytes > SESSION_ID_BYTES_MAX || (session_bytes > 0) != has_session {
        return Some(FrameFault::BadSession);
    }
    match header.payload_len() as usize {
        0 => None,
        1..=RPC_PAYLOAD_BYTES_MAX if matches!(header.kind, KIND_PING | KIND_PONG | KIND_CHANGED) => Some(FrameFault::BadPayload),
        1..=RPC_PAYLOAD_BYTES_MAX => None,
        _ => Some(FrameFault::TooLong),
    }
}

/// Reads big-endian numbers off the front of a payload.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], FrameFault> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(FrameFault::BadPayload)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameFault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(FrameFault::BadPayload)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, FrameFault> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, FrameFault> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, FrameFault> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, FrameFault> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn i32(&mut self) -> Result<i32, FrameFault> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    fn end(&self) -> Result<(), FrameFault> {
        if self.0.is_empty() { Ok(()) } else { Err(FrameFault::BadPayload) }
    }
}

/// Who asks for state: the same in kinds 16 and 17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    pub request_id: u64,
    pub function: FunctionHash,
    pub session: SessionId,
}

impl Asker {
    const fn head(&self, kind: u8) -> FrameHead {
        FrameHead { kind, status: 0, request_id: self.request_id, function: self.function, session: Some(self.session) }
    }
}

/// Payload of kind 16. `mode`, `op` and the key's own rules are checked by who answers: they have results of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRead<'a> {
    /// Unique on its connection among the invocations under way.
    pub invocation: u64,
    /// The app that the function belonged to when the invocation began. Its name may be another app's by now: then nothing is answered but an error.
    pub app: AppHash,
    /// The asker waits no longer; 0: no such limit.
    pub deadline_ms: u32,
    /// `guest_abi::MODE_WEAK` or `MODE_STRONG`.
    pub mode: u8,
    /// `READ_KEY` or `READ_SNAPSHOT`.
    pub op: u8,
    /// Bytes of the value that the asker has room for.
    pub bytes_max: u32,
    /// One key without NUL; in a snapshot keys that each end with a NUL.
    pub key: &'a [u8],
}

impl<'a> StateRead<'a> {
    /// Errors: too short or too long, as for all payloads below.
    pub fn decode(payload: &'a [u8]) -> Result<StateRead<'a>, FrameFault> {
        let mut rest = Cursor(payload);
        let (invocation, app, deadline_ms) = (rest.u64()?, AppHash(rest.u64()?), rest.u32()?);
        let (mode, op, key_bytes) = (rest.u8()?, rest.u8()?, rest.u16()?);
        let bytes_max = rest.u32()?;
        let key = rest.bytes(usize::from(key_bytes))?;
        rest.end()?;
        Ok(StateRead { invocation, app, deadline_ms, mode, op, bytes_max, key })
    }

    /// Appends the whole frame. Input: a key of at most 65,535 bytes.
    pub fn encode(&self, asker: &Asker, out: &mut impl for<'b> Extend<&'b u8>) {
        debug_assert!(self.key.len() <= usize::from(u16::MAX), "the caller keeps key lists within a frame");
        asker.head(KIND_STATE_READ).encode(READ_HEAD_BYTES + self.key.len(), out);
        out.extend(&self.invocation.to_be_bytes());
        out.extend(&self.app.0.to_be_bytes());
        out.extend(&self.deadline_ms.to_be_bytes());
        out.extend(&[self.mode, self.op]);
        out.extend(&(self.key.len() as u16).to_be_bytes());
        out.extend(&self.bytes_max.to_be_bytes());
        out.extend(self.key);
    }
}

/// Payload of kind 17. `mode`, `op`, the key's own rules and the value's are checked by who answers; what must be empty, here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateWrite<'a> {
    /// As in `StateRead`, and so the next three.
    pub invocation: u64,
    /// Says nothing in an end.
    pub app: AppHash,
    pub deadline_ms: u32,
    pub mode: u8,
    /// `WRITE_KEY`, `WRITE_END` or `WRITE_COMMIT`.
    pub op: u8,
    /// Empty in an end and in a commit.
    pub key: &'a [u8],
    /// In a commit the list of writes: `CommitWrites`.
    pub value: &'a [u8],
}

impl<'a> StateWrite<'a> {
    /// Errors: as above, or an end or a commit that carries what it may not.
    pub fn decode(payload: &'a [u8]) -> Result<StateWrite<'a>, FrameFault> {
        let mut rest = Cursor(payload);
        let (invocation, app, deadline_ms) = (rest.u64()?, AppHash(rest.u64()?), rest.u32()?);
        let (mode, op, key_bytes, value_bytes) = (rest.u8()?, rest.u8()?, rest.u16()?, rest.u32()?);
        let key = rest.bytes(usize::from(key_bytes))?;
        let value = rest.bytes(value_bytes as usize)?;
        rest.end()?;
        match op {
            WRITE_END if !key.is_empty() || !value.is_empty() => return Err(FrameFault::BadPayload),
            WRITE_COMMIT if !key.is_empty() => return Err(FrameFault::BadPayload),
            _ => {}
        }
        Ok(StateWrite { invocation, app, deadline_ms, mode, op, key, value })
    }

    /// The end of an invocation: all its locks are released, and no answer comes.
    pub const fn end(invocation: u64) -> StateWrite<'static> {
        StateWrite { invocation, app: AppHash::NONE, deadline_ms: 0, mode: 0, op: WRITE_END, key: &[], value: &[] }
    }

    /// Appends the whole frame. Input: `key` and `value` of at most `COMMIT_BYTES_MAX` together.
    pub fn encode(&self, asker: &Asker, out: &mut impl for<'b> Extend<&'b u8>) {
        asker.head(KIND_STATE_WRITE).encode(WRITE_HEAD_BYTES + self.key.len() + self.value.len(), out);
        out.extend(&self.invocation.to_be_bytes());
        out.extend(&self.app.0.to_be_bytes());
        out.extend(&self.deadline_ms.to_be_bytes());
        out.extend(&[self.mode, self.op]);
        out.extend(&(self.key.len() as u16).to_be_bytes());
        out.extend(&(self.value.len() as u32).to_be_bytes());
        out.extend(self.key);
        out.extend(self.value);
    }
}

/// The writes of a commit, in the order in which they were made.
#[derive(Clone, Copy, Debug)]
pub struct CommitWrites<'a> {
    rest: &'a [u8],
    count: u32,
}

impl<'a> CommitWrites<'a> {
    /// Checks the whole list, so that reading it cannot fail half-way. Errors: lengths that do not add up, or over 65,536 writes.
    pub fn decode(value: &'a [u8]) -> Result<CommitWrites<'a>, FrameFault> {
        let mut rest = Cursor(value);
        let count = rest.u32()?;
        if count as usize > SESSION_KEYS_MAX {
            return Err(FrameFault::BadPayload);
        }
        let list = rest.0;
        for _ in 0..count {
            take_write(&mut rest)?;
        }
        rest.end()?;
        Ok(CommitWrites { rest: list, count })
    }

    /// Writes that are left.
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Appends a list's head; `count` writes must follow.
    pub fn encode_head(count: u32, out: &mut impl for<'b> Extend<&'b u8>) {
        out.extend(&count.to_be_bytes());
    }

    /// Appends one write. Input: a key of at most 65,535 bytes.
    pub fn encode_write(key: &[u8], value: &[u8], out: &mut impl for<'b> Extend<&'b u8>) {
        out.extend(&(key.len() as u16).to_be_bytes());
        out.extend(&(value.len() as u32).to_be_bytes());
        out.extend(key);
        out.extend(value);
    }
}

fn take_write<'a>(rest: &mut Cursor<'a>) -> Result<(&'a [u8], &'a [u8]), FrameFault> {
    let (key_bytes, value_bytes) = (rest.u16()?, rest.u32()?);
    Ok((rest.bytes(usize::from(key_bytes))?, rest.bytes(value_bytes as usize)?))
}

impl<'a> Iterator for CommitWrites<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        self.count = self.count.checked_sub(1)?;
        let mut rest = Cursor(self.rest);
        let write = take_write(&mut rest).ok()?;
        self.rest = rest.0;
        Some(write)
    }
}

/// The keys of a snapshot read. Input: the `key` of a `READ_SNAPSHOT`. A list that does not end with a NUL gives its last key all the same:
/// who answers checks the list's end first.
pub fn snapshot_keys(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let list = list.strip_suffix(&[0]).unwrap_or(list);
    list.split(|byte| *byte == 0)
}

/// One value of a snapshot's answer: its length, -1 where the session has no such key, and its bytes.
pub fn encode_snapshot_value(value: Option<&[u8]>, out: &mut impl for<'a> Extend<&'a u8>) {
    out.extend(&value.map_or(-1, |value| value.len() as i32).to_be_bytes());
    out.extend(value.unwrap_or_default());
}

/// Takes the next value off a snapshot's answer. Errors: the answer is cut short.
pub fn take_snapshot_value<'a>(list: &mut &'a [u8]) -> Result<Option<&'a [u8]>, FrameFault> {
    let mut rest = Cursor(list);
    let value = match rest.i32()? {
        -1 => None,
        bytes => Some(rest.bytes(usize::try_from(bytes).map_err(|_| FrameFault::BadPayload)?)?),
    };
    *list = rest.0;
    Ok(value)
}

/// Payload of kind 18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateReply<'a> {
    /// As the guest's call returns it: CONTRACT.md section 3.
    pub result: i32,
    /// Of a read: as much of the value or the snapshot as the asker has room for and a frame holds.
    pub value: &'a [u8],
}

impl<'a> StateReply<'a> {
    pub fn decode(payload: &'a [u8]) -> Result<StateReply<'a>, FrameFault> {
        let mut rest = Cursor(payload);
        Ok(StateReply { result: rest.i32()?, value: rest.0 })
    }

    /// Appends the whole frame. Input: a value of at most `REPLY_VALUE_BYTES_MAX`.
    pub fn encode(&self, request_id: u64, function: FunctionHash, out: &mut impl for<'b> Extend<&'b u8>) {
        StateReply::encode_head(self.result, self.value.len(), request_id, function, out);
        out.extend(self.value);
    }

    /// Appends the frame without its value, of which `value_bytes` must follow.
    pub fn encode_head(result: i32, value_bytes: usize, request_id: u64, function: FunctionHash, out: &mut impl for<'b> Extend<&'b u8>) {
        let head = FrameHead { function, ..FrameHead::plain(KIND_STATE_REPLY, request_id) };
        head.encode(REPLY_HEAD_BYTES + value_bytes, out);
        out.extend(&result.to_be_bytes());
    }
}

/// Appends a whole frame of kind 3: `status` is a `wire::Status` or `STATUS_REFUSED`.
pub fn encode_error(request_id: u64, status: u8, text: &[u8], out: &mut impl for<'a> Extend<&'a u8>) {
    FrameHead { status, ..FrameHead::plain(KIND_ERROR, request_id) }.encode(text.len(), out);
    out.extend(text);
}

/// Payload of kind 19.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// `PROTOCOL`; another one is refused.
    pub protocol: u32,
    /// The shard that this connection is to reach, or `ANY_SHARD`.
    pub shard: u16,
    /// Names the container process; random.
    pub container: u64,
}

impl Hello {
    pub fn decode(payload: &[u8]) -> Result<Hello, FrameFault> {
        let mut rest = Cursor(payload);
        let hello = Hello { protocol: rest.u32()?, shard: rest.u16()?, container: rest.u64()? };
        rest.end()?;
        Ok(hello)
    }

    /// Appends the whole frame.
    pub fn encode(&self, request_id: u64, out: &mut impl for<'a> Extend<&'a u8>) {
        FrameHead::plain(KIND_HELLO, request_id).encode(HELLO_BYTES, out);
        out.extend(&self.protocol.to_be_bytes());
        out.extend(&self.shard.to_be_bytes());
        out.extend(&self.container.to_be_bytes());
    }
}

/// Payload of kind 20.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// The shard that was reached.
    pub shard: u16,
    /// JSON: what the container must know, docs/PROTOCOL.md.
    pub text: &'a [u8],
}

impl<'a> Welcome<'a> {
    pub fn decode(payload: &'a [u8]) -> Result<Welcome<'a>, FrameFault> {
        let mut rest = Cursor(payload);
        Ok(Welcome { shard: rest.u16()?, text: rest.0 })
    }

    /// Appends the whole frame. Input: a text that fits a frame.
    pub fn encode(&self, request_id: u64, out: &mut impl for<'b> Extend<&'b u8>) {
        FrameHead::plain(KIND_WELCOME, request_id).encode(WELCOME_HEAD_BYTES + self.text.len(), out);
        out.extend(&self.shard.to_be_bytes());
        out.extend(self.text);
    }
}

/// Appends a whole frame of kind 21: asks for a function's module.
pub fn encode_module_request(request_id: u64, name: &[u8], out: &mut impl for<'a> Extend<&'a u8>) {
    FrameHead::plain(KIND_MODULE, request_id).encode(name.len(), out);
    out.extend(name);
}

/// Payload of kind 22: a part of a module. Parts come in order; the last one ends at `total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleChunk<'a> {
    /// Of the module, bytes.
    pub offset: u64,
    /// The module's length, bytes.
    pub total: u64,
    pub bytes: &'a [u8],
}

impl<'a> ModuleChunk<'a> {
    /// Errors: too short, or the part does not lie within the module.
    pub fn decode(payload: &'a [u8]) -> Result<ModuleChunk<'a>, FrameFault> {
        let mut rest = Cursor(payload);
        let chunk = ModuleChunk { offset: rest.u64()?, total: rest.u64()?, bytes: rest.0 };
        match chunk.offset.checked_add(chunk.bytes.len() as u64) {
            Some(end) if end <= chunk.total => Ok(chunk),
            _ => Err(FrameFault::BadPayload),
        }
    }

    /// Appends the frame with the part of `module` that begins at `offset`. Output: where the next part begins; the module's length at its end.
    pub fn encode_next(request_id: u64, module: &[u8], offset: usize, out: &mut impl for<'b> Extend<&'b u8>) -> usize {
        let start = offset.min(module.len());
        let end = (start + RPC_MODULE_CHUNK_BYTES).min(module.len());
        FrameHead::plain(KIND_MODULE_REPLY, request_id).encode(CHUNK_HEAD_BYTES + end - start, out);
        out.extend(&(start as u64).to_be_bytes());
        out.extend(&(module.len() as u64).to_be_bytes());
        out.extend(&module[start..end]);
        end
    }
}

/// Appends a whole frame without payload: ping, pong, changed.
pub fn encode_empty(kind: u8, request_id: u64, out: &mut impl for<'a> Extend<&'a u8>) {
    FrameHead::plain(kind, request_id).encode(0, out);
}

const _: () = assert!(RPC_FRAME_BYTES_MAX == HEADER_BYTES + SESSION_ID_BYTES_MAX + RPC_PAYLOAD_BYTES_MAX);
const _: () = assert!(WRITE_HEAD_BYTES + COMMIT_BYTES_MAX <= RPC_PAYLOAD_BYTES_MAX);

#[cfg(test)]
#[path = "rpc_tests.rs"]
mod tests;
