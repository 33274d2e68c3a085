//! Datagrams to requests and replies to datagrams, CONTRACT.md section 2; and the client's side of both, for the command line and the load
//! generator. Pure functions of the bytes, which are hostile in both directions.

use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::limits::DATAGRAM_BYTES_MAX;
use xfaas_common::wire::{HEADER_BYTES, Header, KIND_ERROR, KIND_INVOKE, KIND_REPLY, MAGIC, Status, VERSION};

use super::error::ErrorCode;

/// What names a request, and is repeated in its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramHead {
    pub session: SessionId,
    pub request_id: u64,
    pub function: FunctionHash,
}

/// Reads a request. Input: one whole datagram. Output: its head and its payload. Errors: why it gets no answer; the caller counts it.
pub fn decode_datagram(bytes: &[u8]) -> Result<(DatagramHead, &[u8]), DropReason> {
    let header = Header::read(bytes).ok_or(DropReason::Truncated)?;
    if let Some(reason) = header.request_fault(bytes.len()) {
        return Err(reason);
    }
    // `request_fault` found header, session ID and payload to be the datagram's length exactly.
    let (session, payload) = bytes[HEADER_BYTES..].split_at_checked(usize::from(header.session_len)).ok_or(DropReason::BadLength)?;
    let session = SessionId::new(session).ok_or(DropReason::BadSessionByte)?;
    Ok((DatagramHead { session, request_id: header.request_id(), function: header.function() }, payload))
}

/// Appends the answer with a function's output; one over `DATAGRAM_BYTES_MAX` in all becomes the error `reply_too_large`.
pub fn encode_datagram_reply(out: &mut Vec<u8>, head: &DatagramHead, output: &[u8]) {
    if push_datagram(out, KIND_REPLY, 0, head, output).is_err() {
        encode_datagram_error(out, head, ErrorCode::ReplyTooLarge, None);
    }
}

/// Appends the answer of a request that failed: the code's text, for `GuestError` followed by a space and the guest's code.
/// `code` is one that has a datagram status.
pub fn encode_datagram_error(out: &mut Vec<u8>, head: &DatagramHead, code: ErrorCode, guest_code: Option<i32>) {
    debug_assert!(code.datagram_status().is_some(), "an error of HTTP only");
    // Every datagram must get an answer, so our own mistake above still gets one: "try again".
    let (code, status) = code.datagram_status().map_or((ErrorCode::Overloaded, Status::Overloaded), |status| (code, status));
    let mut number = itoa::Buffer::new();
    let (separator, number) = match guest_code {
        Some(guest_code) if code == ErrorCode::GuestError => (" ", number.format(guest_code)),
        _ => ("", ""),
    };
    let mut text = [0; ERROR_TEXT_BYTES_MAX];
    let mut text_bytes = 0;
    for part in [code.code(), separator, number] {
        text[text_bytes..text_bytes + part.len()].copy_from_slice(part.as_bytes());
        text_bytes += part.len();
    }
    push_datagram(out, KIND_ERROR, status as u8, head, &text[..text_bytes]).expect("an error's text fits in any datagram");
}

/// `guest_error -2147483648` is the longest with 23 bytes.
const ERROR_TEXT_BYTES_MAX: usize = 32;

/// A request that does not fit in a datagram.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a datagram of {datagram_bytes} bytes is over the limit of {DATAGRAM_BYTES_MAX}")]
pub struct RequestTooLarge {
    pub datagram_bytes: usize,
}

/// Appends a request. Errors: over `DATAGRAM_BYTES_MAX` in all; then nothing is appended.
pub fn encode_datagram_request(out: &mut Vec<u8>, head: &DatagramHead, payload: &[u8]) -> Result<(), RequestTooLarge> {
    push_datagram(out, KIND_INVOKE, 0, head, payload)
}

fn push_datagram(out: &mut Vec<u8>, kind: u8, status: u8, head: &DatagramHead, payload: &[u8]) -> Result<(), RequestTooLarge> {
    let datagram_bytes = HEADER_BYTES + usize::from(head.session.length()) + payload.len();
    if datagram_bytes > DATAGRAM_BYTES_MAX {
        return Err(RequestTooLarge { datagram_bytes });
    }
    let header = Header::new(kind, status, &head.session, head.request_id, head.function, payload.len() as u32);
    out.reserve(datagram_bytes);
    out.extend_from_slice(&header.to_bytes());
    out.extend_from_slice(head.session.as_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// What a client got back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    pub head: DatagramHead,
    pub body: AnswerBody<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerBody<'a> {
    /// The function's output.
    Reply(&'a [u8]),
    /// `status` as in `wire::Status`, or one that a later server knows; `text` is the code.
    Error { status: u8, text: &'a [u8] },
}

/// Bytes that are no answer of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("{datagram_bytes} bytes are fewer than the header's {HEADER_BYTES}")]
    Truncated { datagram_bytes: usize },
    #[error("not a datagram of protocol version {VERSION}")]
    ForeignProtocol,
    #[error("kind {kind} is not an answer")]
    NotAnAnswer { kind: u8 },
    #[error("kind {kind} with status {status} or a reserved field that is not zero")]
    BadField { kind: u8, status: u8 },
    #[error("header, session ID of {session_bytes} bytes and payload of {payload_bytes} do not add up to {datagram_bytes} bytes")]
    BadLength { session_bytes: u8, payload_bytes: u32, datagram_bytes: usize },
    #[error("the session ID is not 1 to 64 bytes of 0x21-0x7E")]
    BadSession,
}

/// Reads an answer, on the client's side. Input: one whole datagram.
pub fn decode_datagram_answer(bytes: &[u8]) -> Result<Answer<'_>, AnswerError> {
    let header = Header::read(bytes).ok_or(AnswerError::Truncated { datagram_bytes: bytes.len() })?;
    if header.magic != MAGIC || header.version != VERSION {
        return Err(AnswerError::ForeignProtocol);
    }
    let (kind, status) = (header.kind, header.status);
    if kind != KIND_REPLY && kind != KIND_ERROR {
        return Err(AnswerError::NotAnAnswer { kind });
    }
    if header.flags != [0; 2] || header.reserved != [0; 8] || (kind == KIND_REPLY) != (status == 0) {
        return Err(AnswerError::BadField { kind, status });
    }
    let (session_bytes, payload_bytes) = (header.session_len, header.payload_len());
    let rest = &bytes[HEADER_BYTES..];
    if rest.len() as u64 != u64::from(session_bytes) + u64::from(payload_bytes) {
        return Err(AnswerError::BadLength { session_bytes, payload_bytes, datagram_bytes: bytes.len() });
    }
    let (session, payload) = rest.split_at(usize::from(session_bytes));
    let session = SessionId::new(session).ok_or(AnswerError::BadSession)?;
    let head = DatagramHead { session, request_id: header.request_id(), function: header.function() };
    let body = if kind == KIND_REPLY { AnswerBody::Reply(payload) } else { AnswerBody::Error { status, text: payload } };
    Ok(Answer { head, body })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> DatagramHead {
        DatagramHead { session: SessionId::new(b"alice").unwrap(), request_id: 7, function: FunctionHash::of(b"echo") }
    }

    fn request(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_datagram_request(&mut out, &head(), payload).unwrap();
        out
    }

    #[test]
    fn a_request_that_breaks_one_rule_is_dropped_for_that_reason() {
        let good = request(b"hello");
        assert_eq!(decode_datagram(&good), Ok((head(), &b"hello"[..])));
        // Offset of the byte, its new value, the reason.
        let table = [
            (0, b'Y', DropReason::BadMagic),
            (1, b'f', DropReason::BadMagic),
            (2, 2, DropReason::BadVersion),
            (2, 0, DropReason::BadVersion),
            (3, 0, DropReason::BadKind),
            (3, 2, DropReason::BadKind),
            (3, 3, DropReason::BadKind),
            (3, 16, DropReason::BadKind),
            (3, 17, DropReason::BadKind),
            (3, 18, DropReason::BadKind),
            (4, 1, DropReason::BadReserved),
            (5, 1, DropReason::BadReserved),
            (6, 0, DropReason::BadSessionLength),
            (6, 65, DropReason::BadSessionLength),
            (6, 4, DropReason::BadLength),
            (7, 1, DropReason::BadReserved),
            (20, 1, DropReason::BadLength),
            (23, 4, DropReason::BadLength),
            (23, 6, DropReason::BadLength),
            (24, 1, DropReason::BadReserved),
            (31, 1, DropReason::BadReserved),
            (32, b' ', DropReason::BadSessionByte),
            (36, 0x7F, DropReason::BadSessionByte),
            (34, 0x80, DropReason::BadSessionByte),
            (33, 0, DropReason::BadSessionByte),
        ];
        for (offset, value, reason) in table {
            let mut bad = good.clone();
            bad[offset] = value;
            assert_eq!(decode_datagram(&bad), Err(reason), "byte {offset} = {value}");
        }
        for bytes in 0..good.len() {
            let reason = if bytes < HEADER_BYTES { DropReason::Truncated } else { DropReason::BadLength };
            assert_eq!(decode_datagram(&good[..bytes]), Err(reason), "cut to {bytes}");
        }
        assert_eq!(decode_datagram(&[&good[..], b"x"].concat()), Err(DropReason::BadLength));
    }

    #[test]
    fn every_error_has_its_code_as_text_and_its_number_as_status() {
        for code in ErrorCode::ALL {
            let Some(status) = code.datagram_status() else { continue };
            let mut out = Vec::new();
            encode_datagram_error(&mut out, &head(), code, None);
            let expected = AnswerBody::Error { status: status as u8, text: code.code().as_bytes() };
            assert_eq!(decode_datagram_answer(&out), Ok(Answer { head: head(), body: expected }));
        }
        let mut out = Vec::new();
        encode_datagram_error(&mut out, &head(), ErrorCode::GuestError, Some(i32::MIN));
        let expected = AnswerBody::Error { status: 7, text: b"guest_error -2147483648" };
        assert_eq!(decode_datagram_answer(&out).unwrap().body, expected);
    }

    #[test]
    fn a_reply_fills_a_datagram_and_not_a_byte_more() {
        let room = DATAGRAM_BYTES_MAX - HEADER_BYTES - 5;
        let output = vec![b'o'; room + 1];
        let mut out = Vec::new();
        encode_datagram_reply(&mut out, &head(), &output[..room]);
        assert_eq!(out.len(), DATAGRAM_BYTES_MAX);
        assert_eq!(decode_datagram_answer(&out).unwrap().body, AnswerBody::Reply(&output[..room]));
        out.clear();
        encode_datagram_reply(&mut out, &head(), &output);
        assert_eq!(decode_datagram_answer(&out).unwrap().body, AnswerBody::Error { status: 8, text: b"reply_too_large" });
        out.clear();
        let refused = encode_datagram_request(&mut out, &head(), &output);
        assert_eq!((refused, out.len()), (Err(RequestTooLarge { datagram_bytes: DATAGRAM_BYTES_MAX + 1 }), 0));
    }

    proptest! {
        #[test]
        fn requests_and_replies_come_back_as_they_went(
            session in "[!-~]{1,64}", request_id: u64, function: u32, payload in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let head = DatagramHead { session: SessionId::new(session.as_bytes()).unwrap(), request_id, function: FunctionHash(function) };
            let mut out = Vec::new();
            encode_datagram_request(&mut out, &head, &payload).unwrap();
            prop_assert_eq!(decode_datagram(&out), Ok((head, &payload[..])));
            prop_assert_eq!(decode_datagram_answer(&out), Err(AnswerError::NotAnAnswer { kind: 1 }));
            out.clear();
            encode_datagram_reply(&mut out, &head, &payload);
            prop_assert_eq!(decode_datagram_answer(&out), Ok(Answer { head, body: AnswerBody::Reply(&payload) }));
            prop_assert_eq!(decode_datagram(&out), Err(DropReason::BadKind));
        }

        #[test]
        fn no_bytes_make_it_panic(
            good_header: bool, kind in 0_u8..20, bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..60, value: u8,
        ) {
            let mut datagram = if good_header { request(&bytes) } else { bytes };
            if good_header {
                datagram[3] = kind;
            }
            if let Some(byte) = datagram.get_mut(at) {
                *byte = value;
            }
            if let Ok((head, payload)) = decode_datagram(&datagram) {
                prop_assert_eq!(HEADER_BYTES + head.session.as_bytes().len() + payload.len(), datagram.len());
            }
            if let Ok(answer) = decode_datagram_answer(&datagram) {
                let payload = match answer.body { AnswerBody::Reply(payload) | AnswerBody::Error { text: payload, .. } => payload };
                prop_assert!(datagram.ends_with(payload));
            }
        }
    }
}
