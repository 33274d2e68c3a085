//! The first and the last steps of a request: bytes to a request, and a reply to bytes. `counts` counts them.

use crate::state::{Case, CaseError};
use std::hint::black_box;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::wire::{Header, KIND_INVOKE};
use xfaas_dataplane::net::{
    ConnectionHeader, DatagramHead, Http1Decoder, Http1Event, HttpLimits, ReplyHead, Request, decode_datagram, encode_datagram_reply,
    encode_reply, http_date,
};

/// A counter's answer.
const BODY: &[u8] = b"12345";
const SESSION_HEADER: &[u8] = b"x-session-id";
/// As the shard writes it.
const SERVED_BY: &[u8] = b"x-xfaas-core: 0\r\n";

/// Decoding and encoding, HTTP/1.1 and datagrams.
pub(super) fn wire_cases() -> Vec<Box<dyn Case>> {
    vec![
        Box::new(DecodeHttp::of_new_heads()),
        Box::new(DecodeHttp::of_one_head()),
        Box::new(DecodeDatagram { bytes: datagram("counter-rmw", &session(0)) }),
        Box::new(EncodeHttp { writer: ReplyWriter::new(), session: session(0) }),
        Box::new(EncodeDatagram {
            out: Vec::with_capacity(4_096),
            head: DatagramHead { session: session(0), request_id: 7, function: FunctionHash::of(b"counter-rmw") },
        }),
    ]
}

pub(super) fn session(number: u32) -> SessionId {
    SessionId::new(format!("session-{number:08}").as_bytes()).expect("16 visible bytes")
}

/// A request without a body, as curl and wrk write one.
pub(super) fn http_request(host: &str, function: &str, session: &SessionId) -> Vec<u8> {
    format!("GET /f/{function} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nx-session-id: {session}\r\n\r\n").into_bytes()
}

pub(super) fn datagram(function: &str, session: &SessionId) -> Vec<u8> {
    let mut bytes = Header::new(KIND_INVOKE, 0, session, 7, FunctionHash::of(function.as_bytes()), 0).to_bytes().to_vec();
    bytes.extend_from_slice(session.as_bytes());
    bytes
}

/// One connection's decoder and the request that it fills again and again.
pub(super) struct HttpReader {
    decoder: Http1Decoder,
    limits: HttpLimits,
}

impl HttpReader {
    pub(super) fn new() -> HttpReader {
        let limits = HttpLimits { body_bytes_max: 8 << 20, session_header: SESSION_HEADER.to_vec() };
        HttpReader { decoder: Http1Decoder::new(), limits }
    }

    /// Errors: the decoder refuses `input`, or wants more.
    pub(super) fn read(&mut self, input: &[u8], request: &mut Request) -> Result<(), CaseError> {
        let mut rest = input;
        loop {
            let (bytes, event) = self.decoder.decode(&self.limits, rest, request);
            rest = &rest[bytes..];
            match event {
                Http1Event::Complete => return Ok(()),
                Http1Event::Head { .. } => {}
                other => return Err(CaseError::Answer(format!("a good request is refused: {other:?}"))),
            }
        }
    }
}

struct DecodeHttp {
    name: &'static str,
    reader: HttpReader,
    request: Request,
    inputs: [Vec<u8>; 2],
}

impl DecodeHttp {
    /// No head is like the one before it.
    fn of_new_heads() -> DecodeHttp {
        let inputs = ["127.0.0.1:8080", "localhost:8080"].map(|host| http_request(host, "counter-rmw", &session(0)));
        DecodeHttp { name: "decode/http_new_head", reader: HttpReader::new(), request: Request::default(), inputs }
    }

    /// Each head is like the one before it, but for the session.
    fn of_one_head() -> DecodeHttp {
        let inputs = [0, 1].map(|number| http_request("127.0.0.1:8080", "counter-rmw", &session(number)));
        DecodeHttp { name: "decode/http_same_head", reader: HttpReader::new(), request: Request::default(), inputs }
    }
}

impl Case for DecodeHttp {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operations(&self) -> u32 {
        self.inputs.len() as u32
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        self.inputs.iter().try_for_each(|input| self.reader.read(black_box(input), &mut self.request))
    }
}

struct DecodeDatagram {
    bytes: Vec<u8>,
}

impl Case for DecodeDatagram {
    fn name(&self) -> &'static str {
        "decode/datagram"
    }

    fn operations(&self) -> u32 {
        1
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        match decode_datagram(black_box(&self.bytes)) {
            Ok(decoded) => {
                black_box(decoded);
                Ok(())
            }
            Err(reason) => Err(CaseError::Answer(format!("a good datagram is dropped: {reason:?}"))),
        }
    }
}

/// Writes replies as the shard does, into one buffer.
pub(super) struct ReplyWriter {
    date: [u8; 29],
    out: Vec<u8>,
}

impl ReplyWriter {
    pub(super) fn new() -> ReplyWriter {
        ReplyWriter { date: http_date(1_800_000_000), out: Vec::with_capacity(4_096) }
    }

    pub(super) fn write(&mut self, session: &SessionId, body: &[u8]) {
        let head = ReplyHead {
            status: 200,
            content_type: b"application/octet-stream",
            session_header: SESSION_HEADER,
            session,
            invocation_id: 0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF,
            date: &self.date,
            connection: ConnectionHeader::None,
            extra: SERVED_BY,
        };
        self.out.clear();
        encode_reply(&mut self.out, black_box(&head), body, false);
        black_box(self.out.len());
    }
}

struct EncodeHttp {
    writer: ReplyWriter,
    session: SessionId,
}

impl Case for EncodeHttp {
    fn name(&self) -> &'static str {
        "encode/http"
    }

    fn operations(&self) -> u32 {
        1
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        self.writer.write(&self.session, black_box(BODY));
        Ok(())
    }
}

struct EncodeDatagram {
    out: Vec<u8>,
    head: DatagramHead,
}

impl Case for EncodeDatagram {
    fn name(&self) -> &'static str {
        "encode/datagram"
    }

    fn operations(&self) -> u32 {
        1
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        self.out.clear();
        encode_datagram_reply(&mut self.out, black_box(&self.head), black_box(BODY));
        black_box(self.out.len());
        Ok(())
    }
}
