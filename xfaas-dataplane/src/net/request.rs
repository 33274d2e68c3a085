//! One request as the rest of the dataplane sees it: owned, its two buffers reused from call to call.
//! Filled by the HTTP decoder or from a datagram, read by the session stage and the guest.

use xfaas_common::ids::SessionId;

/// A buffer that grew beyond this many bytes gives the rest back when the request is cleared.
const BUFFER_BYTES_KEPT: usize = 64 << 10;

/// One request. The default is an empty one; `clear` makes it that again.
pub struct Request {
    /// The head as it came, from the method to the final empty line; at most `HEAD_BYTES_MAX`.
    head: Vec<u8>,
    body: Vec<u8>,
    parts: HeadParts,
    /// Means something only where `names_session`: an ID is put together in its place, not copied there.
    session: SessionId,
    names_session: bool,
    is_head: bool,
    keep_alive: bool,
    is_http10: bool,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            head: Vec::new(),
            body: Vec::new(),
            parts: HeadParts::default(),
            session: SessionId::PLACEHOLDER,
            names_session: false,
            is_head: false,
            keep_alive: false,
            is_http10: false,
        }
    }
}

/// Where the parts lie in the head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeadParts {
    pub(super) method: Span,
    pub(super) function_name: Span,
    pub(super) path_rest: Span,
    pub(super) query: Span,
    /// The header lines with their line ends, without the final empty line.
    pub(super) fields: Span,
}

/// A range of head bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    start: u16,
    end: u16,
}

const _: () = assert!(xfaas_common::limits::HEAD_BYTES_MAX <= u16::MAX as usize, "a span's ends are u16");

impl Span {
    /// Both ends within a head, so at most `HEAD_BYTES_MAX`.
    pub(super) fn new(start: usize, end: usize) -> Span {
        debug_assert!(start <= end && end <= xfaas_common::limits::HEAD_BYTES_MAX);
        Span { start: start as u16, end: end as u16 }
    }

    pub(super) fn range(self) -> std::ops::Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }

    fn of(self, head: &[u8]) -> &[u8] {
        &head[self.range()]
    }
}

impl Request {
    /// Empties the request for the next one. Keeps buffers of up to 64 KiB, so that the warm path allocates nothing.
    pub fn clear(&mut self) {
        self.head.clear();
        self.body.clear();
        if self.body.capacity() > BUFFER_BYTES_KEPT {
            self.body = Vec::new(); // a part of a large block would keep its mapping, and cost page faults each time it grows
        }
        self.parts = HeadParts::default();
        self.names_session = false;
        self.is_head = false;
        self.keep_alive = false;
        self.is_http10 = false;
    }

    /// Memory that its buffers take.
    pub fn held_bytes(&self) -> usize {
        self.head.capacity() + self.body.capacity()
    }

    /// The `<name>` of `/f/<name>`: 1-64 bytes of `[A-Za-z0-9_.-]`; empty in a datagram, which names its function by hash.
    pub fn function_name(&self) -> &[u8] {
        self.parts.function_name.of(&self.head)
    }

    /// The method as sent, any token; empty in a datagram.
    pub fn method(&self) -> &[u8] {
        self.parts.method.of(&self.head)
    }

    /// The path after the function's name, raw: empty, or with its leading `/`.
    pub fn path_rest(&self) -> &[u8] {
        self.parts.path_rest.of(&self.head)
    }

    /// The query without its `?`, raw; empty when there is none.
    pub fn query(&self) -> &[u8] {
        self.parts.query.of(&self.head)
    }

    /// The header lines as they came, each with its line end.
    pub fn fields(&self) -> &[u8] {
        self.parts.fields.of(&self.head)
    }

    /// The body, transfer coding and trailers removed, or a datagram's payload.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The session the client named; `None` when it named none.
    pub fn session(&self) -> Option<&SessionId> {
        self.names_session.then_some(&self.session)
    }

    /// The value of the first header of that name, without the white space around it. Cost: one pass over the head; nothing is indexed
    /// in advance, as most requests are never asked.
    pub fn header(&self, lower_case_name: &[u8]) -> Option<&[u8]> {
        self.headers(lower_case_name).next()
    }

    /// The values of all headers of that name, in their order.
    pub fn headers(&self, lower_case_name: &[u8]) -> impl Iterator<Item = &[u8]> {
        let fields = self.parts.fields.of(&self.head);
        fields.split(|byte| *byte == b'\n').filter_map(move |line| {
            let (name, value) = line.split_at_checked(lower_case_name.len())?;
            let value = value.strip_prefix(b":")?;
            name.eq_ignore_ascii_case(lower_case_name).then(|| value.trim_ascii())
        })
    }

    /// True for HEAD: the answer has no body.
    pub fn is_head(&self) -> bool {
        self.is_head
    }

    /// True when the client lets the connection stay after this request.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// True for HTTP/1.0, where a connection that stays must say so in the answer.
    pub fn is_http10(&self) -> bool {
        self.is_http10
    }

    /// Makes this the request of a datagram: method, path and query empty, the payload (at most 64 KiB) as body.
    pub fn set_datagram(&mut self, session: SessionId, payload: &[u8]) {
        self.clear();
        self.set_session(session);
        self.body.extend_from_slice(payload);
    }

    /// Takes that many bytes off the body's front: a datagram's token, which the guest does not see. At most as many as there are.
    pub fn drop_body_front(&mut self, bytes: usize) {
        self.body.drain(..bytes);
    }

    /// Names the session where the client did not: the fresh one of this request.
    pub fn set_session(&mut self, session: SessionId) {
        (self.session, self.names_session) = (session, true);
    }

    /// The session that the client names. Output: false where the text is no session ID, which is then named no more than before.
    #[inline]
    pub(super) fn name_session(&mut self, text: &[u8]) -> bool {
        let is_session = self.session.set(text);
        self.names_session |= is_session;
        is_session
    }

    /// Known before anything else of a head is, so that a refused HEAD request gets no body either.
    pub(super) fn set_is_head(&mut self, is_head: bool) {
        self.is_head = is_head;
    }

    pub(super) fn set_connection(&mut self, is_http10: bool, keep_alive: bool) {
        self.is_http10 = is_http10;
        self.keep_alive = keep_alive;
    }

    /// Takes a copy of a checked head. The spans of `parts` lie within `head`.
    pub(super) fn set_head(&mut self, head: &[u8], parts: HeadParts) {
        self.head.clear();
        self.head.extend_from_slice(head);
        self.parts = parts;
    }

    /// Adds body bytes; `more_bytes` is what can still follow them. Grows by doubling, but never beyond what can come and never ahead of
    /// what did come: a promised length alone costs a client nothing, so it must cost us nothing.
    pub(super) fn push_body(&mut self, piece: &[u8], more_bytes: u64) {
        if self.body.capacity() - self.body.len() < piece.len() {
            let doubling = self.body.len().saturating_sub(piece.len());
            let growth = doubling.min(usize::try_from(more_bytes).unwrap_or(usize::MAX));
            self.body.reserve_exact(piece.len() + growth);
        }
        self.body.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_body_is_given_back_and_a_small_one_is_kept() {
        let mut request = Request::default();
        request.push_body(&[7; 1000], 0);
        request.clear();
        assert!(request.body.capacity() >= 1000);
        request.push_body(&vec![7; 1 << 20], 0);
        request.clear();
        assert!(request.body().is_empty() && request.body.capacity() <= BUFFER_BYTES_KEPT);
    }

    #[test]
    fn a_body_in_small_pieces_never_reserves_beyond_its_length() {
        let mut request = Request::default();
        let length = 100_000_u64;
        for at in 0..length {
            request.push_body(b"x", length - at - 1);
        }
        assert_eq!(request.body().len() as u64, length);
        assert_eq!(request.body.capacity() as u64, length);
    }

    #[test]
    fn a_datagram_has_session_and_body_and_nothing_else() {
        let mut request = Request::default();
        let session = SessionId::new(b"s").unwrap();
        request.set_datagram(session, b"payload");
        assert_eq!(request.session(), Some(&session));
        assert_eq!(request.body(), b"payload");
        assert!(request.method().is_empty() && request.path_rest().is_empty() && request.query().is_empty());
        assert!(request.function_name().is_empty() && request.header(b"host").is_none() && !request.is_head());
    }
}
