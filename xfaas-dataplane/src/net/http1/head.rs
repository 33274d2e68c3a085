//! A whole head, parsed by httparse and then held against the rules of CONTRACT.md section 1 that httparse is laxer on.
//! Called by the decoder once a head; fills the `Request`. Order of refusals: syntax and framing (400), session (400), expectation (417),
//! body length (413), and only then the route, so that a 404 is given to well-formed requests alone.

use std::mem::MaybeUninit;
use std::ops::Range;

use xfaas_common::ids::SessionId;
use xfaas_common::limits::HEADERS_MAX;

use super::HttpLimits;
use super::target::{is_host, read_target};
use crate::net::error::{ErrorCode, Refusal};
use crate::net::request::{HeadParts, Request, Span};

/// How the body is delimited. RFC 9112 section 6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// In bytes; 0 where there is no body.
    Length(u64),
    Chunked,
}

/// What the decoder and the request take from a good head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) framing: Framing,
    /// An HTTP/1.1 client said `Expect: 100-continue`.
    pub(super) expects_continue: bool,
    /// The path names a function.
    pub(super) has_route: bool,
    /// Header fields, at most `HEADERS_MAX`: trailers add to them.
    pub(super) fields: usize,
    parts: HeadParts,
    /// The session header's value; empty where there is none.
    session: Span,
    is_head: bool,
    is_http10: bool,
    keeps_alive: bool,
}

impl Head {
    /// Where the session header's value lies, which is as long as a session ID.
    pub(super) fn session_at(&self) -> Option<Range<usize>> {
        Some(self.session.range()).filter(|range| !range.is_empty())
    }

    /// Fills a cleared request from `bytes`: this head, or one that differs in its session ID only, which is named apart.
    #[inline]
    pub(super) fn fill(&self, bytes: &[u8], request: &mut Request) {
        request.set_is_head(self.is_head);
        request.set_connection(self.is_http10, self.keeps_alive);
        let fields = Span::new(self.parts.fields.range().start, bytes.len() - b"\r\n".len());
        request.set_head(bytes, HeadParts { fields, ..self.parts });
    }
}

/// Reads `head`, which the scan found to end with its only empty line and to hold CR and LF in pairs only, and no other control byte
/// but tab. Fills `request` with all but the body.
pub(super) fn read_head(head: &[u8], limits: &HttpLimits, request: &mut Request) -> Result<Head, Refusal> {
    request.clear();
    let is_head = head.starts_with(b"HEAD ");
    request.set_is_head(is_head);
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(bytes)) if bytes == head.len() => {}
        Ok(_) => return Err(Refusal::bad_request("the head is cut short")),
        Err(error) => return Err(refusal_of(error)),
    }
    let (Some(method), Some(target), Some(minor_version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refusal::bad_request("the request line is not complete"));
    };
    let is_http10 = minor_version == 0;
    let collected = Collected::of(parsed.headers, &limits.session_header)?;
    collected.check_host(is_http10)?;
    let framing = collected.framing(is_http10)?;
    let target_start = method.len() + 1;
    let fields_start = target_start + target.len() + " HTTP/1.x\r\n".len();
    let target = read_target(target.as_bytes())?;
    let keeps_alive = collected.keeps_alive(is_http10);
    request.set_connection(is_http10, keeps_alive);

    let session = collected.session.map_err(|detail| Refusal::new(ErrorCode::BadSession, detail))?;
    if collected.expect == Expect::Other {
        return Err(Refusal::new(ErrorCode::BadExpectation, "the only expectation known is 100-continue"));
    }
    if matches!(framing, Framing::Length(bytes) if bytes > limits.body_bytes_max as u64) {
        return Err(Refusal::new(ErrorCode::BodyTooLarge, "content-length is over the limit"));
    }

    let span = |range: std::ops::Range<usize>| Span::new(target_start + range.start, target_start + range.end);
    let route = target.route.as_ref();
    let parts = HeadParts {
        method: Span::new(0, method.len()),
        function_name: route.map_or(Span::default(), |route| span(route.function_name.clone())),
        path_rest: route.map_or(Span::default(), |route| span(route.path_rest.clone())),
        query: span(target.query),
        fields: Span::new(fields_start, head.len() - b"\r\n".len()),
    };
    request.set_head(head, parts);
    if let Some(session) = session {
        request.set_session(session);
    }
    Ok(Head {
        framing,
        expects_continue: collected.expect == Expect::Continue && !is_http10,
        has_route: route.is_some(),
        fields: parsed.headers.len(),
        parts,
        session: span_of(collected.session_value, head),
        is_head,
        is_http10,
        keeps_alive,
    })
}

/// Where in `head` a part of it lies; the empty span for an empty part.
fn span_of(part: &[u8], head: &[u8]) -> Span {
    if part.is_empty() {
        return Span::default();
    }
    let start = part.as_ptr().addr() - head.as_ptr().addr();
    Span::new(start, start + part.len())
}

fn refusal_of(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::new(ErrorCode::HeadTooLarge, "more than 100 header fields"),
        httparse::Error::HeaderName => Refusal::bad_request("byte in a header name, or white space around it, that is not allowed there"),
        httparse::Error::HeaderValue => Refusal::bad_request("byte in a header value that is not allowed there"),
        httparse::Error::Version => Refusal::bad_request("the version is not HTTP/1.0 or HTTP/1.1"),
        httparse::Error::Token | httparse::Error::NewLine | httparse::Error::Status => {
            Refusal::bad_request("the request line is not `method target version`")
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Nothing,
    Continue,
    Other,
}

/// The fields that steer the decoder, from one pass over the head. What is wrong beyond doubt is refused in that pass; what only matters
/// when nothing worse is found is kept.
struct Collected<'h> {
    host: Option<&'h [u8]>,
    content_length: Option<u64>,
    is_chunked: bool,
    expect: Expect,
    says_close: bool,
    says_keep_alive: bool,
    /// `Err`: what is wrong with the session header.
    session: Result<Option<SessionId>, &'static str>,
    /// The value of the last session header.
    session_value: &'h [u8],
}

impl<'h> Collected<'h> {
    fn of(fields: &[httparse::Header<'h>], session_header: &[u8]) -> Result<Collected<'h>, Refusal> {
        let mut collected = Collected {
            host: None,
            content_length: None,
            is_chunked: false,
            expect: Expect::Nothing,
            says_close: false,
            says_keep_alive: false,
            session: Ok(None),
            session_value: &[],
        };
        for field in fields {
            let name = field.name.as_bytes();
            if name.len() == session_header.len() && name.eq_ignore_ascii_case(session_header) {
                collected.take_session(field.value);
            }
            // By length first: most fields are none of these, and are told apart without reading their name.
            match name.len() {
                4 if name.eq_ignore_ascii_case(b"host") => collected.take_host(field.value)?,
                6 if name.eq_ignore_ascii_case(b"expect") => collected.take_expect(field.value),
                10 if name.eq_ignore_ascii_case(b"connection") => collected.take_connection(field.value),
                14 if name.eq_ignore_ascii_case(b"content-length") => collected.take_content_length(field.value)?,
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => collected.take_transfer_encoding(field.value)?,
                _ => {}
            }
        }
        Ok(collected)
    }

    fn take_session(&mut self, value: &'h [u8]) {
        self.session_value = value;
        self.session = match self.session {
            Ok(None) => SessionId::new(value).map(Some).ok_or("the session ID is not 1 to 64 bytes of 0x21-0x7E"),
            _ => Err("more than one session header"),
        };
    }

    fn take_host(&mut self, value: &'h [u8]) -> Result<(), Refusal> {
        match self.host.replace(value) {
            None => Ok(()),
            Some(_) => Err(Refusal::bad_request("more than one Host")),
        }
    }

    fn take_expect(&mut self, value: &[u8]) {
        self.expect = match self.expect {
            Expect::Nothing if value.eq_ignore_ascii_case(b"100-continue") => Expect::Continue,
            _ => Expect::Other,
        };
    }

    fn take_connection(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.says_close |= option.eq_ignore_ascii_case(b"close");
            self.says_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn take_content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(Refusal::bad_request("content-length is not a number"));
        }
        // A number too large to hold is over every limit; the largest one that can be held stands for it.
        let bytes = value.iter().fold(0_u64, |sum, byte| sum.saturating_mul(10).saturating_add(u64::from(byte - b'0')));
        match self.content_length.replace(bytes) {
            None => Ok(()),
            Some(_) => Err(Refusal::bad_request("more than one content-length")),
        }
    }

    fn take_transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::bad_request("transfer-encoding is not `chunked`"));
        }
        self.is_chunked = true;
        Ok(())
    }

    /// RFC 9112 section 3.2. HTTP/1.0 knew no Host, so there it may be missing or empty.
    fn check_host(&self, is_http10: bool) -> Result<(), Refusal> {
        match self.host {
            None if is_http10 => Ok(()),
            None => Err(Refusal::bad_request("Host is missing")),
            Some(host) if is_host(host) || (is_http10 && host.is_empty()) => Ok(()),
            Some(_) => Err(Refusal::bad_request("Host is empty or not valid")),
        }
    }

    fn framing(&self, is_http10: bool) -> Result<Framing, Refusal> {
        match (self.is_chunked, self.content_length) {
            (true, _) if is_http10 => Err(Refusal::bad_request("transfer-encoding in HTTP/1.0")),
            (true, Some(_)) => Err(Refusal::bad_request("both transfer-encoding and content-length")),
            (true, None) => Ok(Framing::Chunked),
            (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }

    /// RFC 9112 section 9.3.
    fn keeps_alive(&self, is_http10: bool) -> bool {
        !self.says_close && (!is_http10 || self.says_keep_alive)
    }
}
