//! The 32-byte header of datagrams and RPC, big-endian. CONTRACT.md section 2, docs/PROTOCOL.md.

use crate::ids::{FunctionHash, SessionId};
use crate::limits::{DATAGRAM_BYTES_MAX, SESSION_ID_BYTES_MAX};

/// What every header begins with.
pub const MAGIC: [u8; 2] = *b"XF";
/// The one version of the header.
pub const VERSION: u8 = 1;
/// Bytes of the header; the session ID follows, then the payload.
pub const HEADER_BYTES: usize = 32;

/// Offset of `session_len`, which the kernel programs read.
pub const SESSION_LEN_OFFSET: usize = 6;

/// A datagram that asks for a function to be run.
pub const KIND_INVOKE: u8 = 1;
/// The function's output.
pub const KIND_REPLY: u8 = 2;
/// In place of an answer, over both transports: `status` and a text say why.
pub const KIND_ERROR: u8 = 3;
/// From here on RPC only, from the container: `rpc::StateRead`.
pub const KIND_STATE_READ: u8 = 16;
/// From the container: `rpc::StateWrite`.
pub const KIND_STATE_WRITE: u8 = 17;
/// Answers both: `rpc::StateReply`.
pub const KIND_STATE_REPLY: u8 = 18;
/// The container names itself and the shard that it wants: `rpc::Hello`.
pub const KIND_HELLO: u8 = 19;
/// Answers a hello: `rpc::Welcome`.
pub const KIND_WELCOME: u8 = 20;
/// The container asks for a function's module, by name.
pub const KIND_MODULE: u8 = 21;
/// A part of the module: `rpc::ModuleChunk`.
pub const KIND_MODULE_REPLY: u8 = 22;
/// The container lives, and asks whether the primary does.
pub const KIND_PING: u8 = 23;
/// Answers a ping.
pub const KIND_PONG: u8 = 24;
/// From the primary, unasked: functions changed, so say hello again.
pub const KIND_CHANGED: u8 = 25;

/// Descriptors of regions over a Unix socket: a request is magic, version u8, app_len u8, shard u16, app; its answer one byte.
pub const REGION_MAGIC: [u8; 2] = *b"XR";
/// The one version of that request.
pub const REGION_VERSION: u8 = 1;
/// Bytes of it before the app's name.
pub const REGION_REQUEST_HEAD_BYTES: usize = 6;
/// The descriptor comes with this byte.
pub const REGION_GIVEN: u8 = 0;
/// There is no such region.
pub const REGION_REFUSED: u8 = 1;

/// `status` of a kind 3 datagram, and of a kind 3 frame that is about what one of these says. CONTRACT.md section 2 has what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    NoFunction = 1,
    RateLimited = 2,
    Overloaded = 3,
    Draining = 4,
    Deadline = 5,
    GuestTrapped = 6,
    GuestError = 7,
    ReplyTooLarge = 8,
    LockWait = 9,
    NoPrimary = 10,
    BadToken = 11,
}

/// The header as it lies on the wire: bytes only, so no padding and no unaligned read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `MAGIC`.
    pub magic: [u8; 2],
    /// `VERSION`.
    pub version: u8,
    /// One of `KIND_*`.
    pub kind: u8,
    /// 0.
    pub flags: [u8; 2],
    /// Bytes of the session ID, 1..=64; over RPC 0 in kinds without one.
    pub session_len: u8,
    /// 0 but in kind 3: see `Status`.
    pub status: u8,
    /// Chosen by the asker, repeated in the answer.
    pub request_id: [u8; 8],
    /// A `FunctionHash`.
    pub function: [u8; 4],
    /// Bytes after the session ID.
    pub payload_len: [u8; 4],
    /// 0.
    pub reserved: [u8; 8],
}
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const _: () = assert!(align_of::<Header>() == 1);
const _: () = assert!(core::mem::offset_of!(Header, session_len) == SESSION_LEN_OFFSET);

impl Header {
    /// A header of `kind` with `status`; `session_len` 1..=64, `payload_len` in bytes.
    pub fn new(kind: u8, status: u8, session: &SessionId, request_id: u64, function: FunctionHash, payload_len: u32) -> Header {
        Header {
            magic: MAGIC,
            version: VERSION,
            kind,
            flags: [0; 2],
            session_len: session.length(),
            status,
            request_id: request_id.to_be_bytes(),
            function: function.0.to_be_bytes(),
            payload_len: payload_len.to_be_bytes(),
            reserved: [0; 8],
        }
    }

    /// The first 32 bytes of `bytes` as a header, unchecked; `None` when there are fewer.
    pub fn read(bytes: &[u8]) -> Option<Header> {
        let b: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        Some(Header {
            magic: [b[0], b[1]],
            version: b[2],
            kind: b[3],
            flags: [b[4], b[5]],
            session_len: b[6],
            status: b[7],
            request_id: [b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]],
            function: [b[16], b[17], b[18], b[19]],
            payload_len: [b[20], b[21], b[22], b[23]],
            reserved: [b[24], b[25], b[26], b[27], b[28], b[29], b[30], b[31]],
        })
    }

    /// As it is sent; `read` gives it back.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut b = [0; HEADER_BYTES];
        b[0..2].copy_from_slice(&self.magic);
        b[2] = self.version;
        b[3] = self.kind;
        b[4..6].copy_from_slice(&self.flags);
        b[6] = self.session_len;
        b[7] = self.status;
        b[8..16].copy_from_slice(&self.request_id);
        b[16..20].copy_from_slice(&self.function);
        b[20..24].copy_from_slice(&self.payload_len);
        b[24..32].copy_from_slice(&self.reserved);
        b
    }

    /// `request_id` as a number.
    pub const fn request_id(&self) -> u64 {
        u64::from_be_bytes(self.request_id)
    }

    /// `function` as the hash that it is.
    pub const fn function(&self) -> FunctionHash {
        FunctionHash(u32::from_be_bytes(self.function))
    }

    /// `payload_len` as a number, unchecked: up to `u32::MAX`.
    pub const fn payload_len(&self) -> u32 {
        u32::from_be_bytes(self.payload_len)
    }

    /// Holds the request rules of CONTRACT.md section 2 that need no more than the header and the datagram's length in bytes:
    /// everything but the session ID's own bytes. `None` when all hold.
    #[inline(always)]
    pub const fn request_fault(&self, datagram_bytes: usize) -> Option<crate::drop_reason::DropReason> {
        use crate::drop_reason::DropReason;
        if self.magic[0] != MAGIC[0] || self.magic[1] != MAGIC[1] {
            return Some(DropReason::BadMagic);
        }
        if self.version != VERSION {
            return Some(DropReason::BadVersion);
        }
        if self.kind != KIND_INVOKE {
            return Some(DropReason::BadKind);
        }
        if self.flags[0] | self.flags[1] | self.status != 0 || u64::from_ne_bytes(self.reserved) != 0 {
            return Some(DropReason::BadReserved);
        }
        if self.session_len == 0 || self.session_len as usize > SESSION_ID_BYTES_MAX {
            return Some(DropReason::BadSessionLength);
        }
        if HEADER_BYTES + self.session_len as usize + self.payload_len() as usize != datagram_bytes {
            return Some(DropReason::BadLength);
        }
        None
    }
}

const _: () = assert!(DATAGRAM_BYTES_MAX > HEADER_BYTES + SESSION_ID_BYTES_MAX);
