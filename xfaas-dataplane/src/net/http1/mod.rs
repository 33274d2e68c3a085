//! HTTP/1.1 requests out of a byte stream, CONTRACT.md section 1: one decoder a connection, fed whatever was received.
//! A whole head is parsed where it lies; a split one is gathered here and given back at its end. Driven by the shard; no I/O, no clock.

mod chunked;
mod head;
mod meter;
mod repeat;
mod scan;
mod target;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_body;
#[cfg(test)]
mod tests_stream;

use self::chunked::ChunkedBody;
use self::head::{Framing, Head, read_head};
use self::meter::HeadMeter;
use self::repeat::Remembered;
use self::scan::{HeadScan, Scanned};
use super::error::{ErrorCode, Refusal};
use super::request::Request;

/// What the configuration decides about requests.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Bytes of a body without its coding; one that is longer is refused with 413.
    pub body_bytes_max: usize,
    /// Name of the header that carries the session ID, lower case.
    pub session_header: Vec<u8>,
}

/// Where in a request the stream stands; each phase has a timeout of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not one byte of the next request was seen.
    BetweenRequests,
    /// At least one byte of a head was seen, an empty line before it included.
    Head,
    /// From the end of a good head to the end of the request. The same `Request` must be passed as long as this lasts.
    Body,
    /// A request was refused and the rest of the stream is unreadable.
    Refused,
}

/// What `decode` came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http1Event {
    /// All input is consumed and the request is not complete.
    NeedMore,
    /// The head is complete and good and names a function; the request holds all but the body. The caller may refuse now (and close, or
    /// call `discard_body` and answer at `Complete`) or go on decoding, at once and also without input, until `Complete`. Left out where no body
    /// is to come and the client waits for nothing.
    Head {
        /// The client may wait for `100 Continue` before it sends the body: send it if `has_body`, or refuse at once and close.
        expects_continue: bool,
        /// A body of at least one byte was promised, or one of unknown length.
        has_body: bool,
    },
    /// The request is complete. What was not consumed belongs to the next one.
    Complete,
    /// Answer with this, and close unless `is_reusable` and the request's `keep_alive`. A `NoRoute` comes after the body was read and dropped,
    /// except where the client waits for `100 Continue` before it sends one.
    Refused { code: ErrorCode, detail: &'static str },
}

#[derive(Debug)]
enum State {
    Head,
    /// Body bytes still to come.
    Length(u64),
    Chunked(ChunkedBody),
    Refused,
}

/// The decoder of one connection. Holds no heap memory but that of a head that is not complete, at most 16 KiB, and its last head, 1 KiB.
#[derive(Debug)]
pub struct Http1Decoder {
    state: State,
    meter: HeadMeter,
    scan: HeadScan,
    /// The bytes of a split head; empty otherwise.
    gathered: Vec<u8>,
    /// Body bytes without their coding, taken so far.
    body_bytes: u64,
    /// Bytes of the body as received, coding included.
    progress_bytes: u64,
    discards_body: bool,
    /// The path names no function: the request ends with a `NoRoute`.
    lacks_route: bool,
    /// The last request's head.
    remembered: Option<Box<Remembered>>,
}

impl Default for Http1Decoder {
    fn default() -> Http1Decoder {
        Http1Decoder::new()
    }
}

impl Http1Decoder {
    pub const fn new() -> Http1Decoder {
        Http1Decoder {
            state: State::Head,
            meter: HeadMeter::new(),
            scan: HeadScan::new(),
            gathered: Vec::new(),
            body_bytes: 0,
            progress_bytes: 0,
            discards_body: false,
            lacks_route: false,
            remembered: None,
        }
    }

    /// Takes bytes from the front of `input` until something happened or all are taken. Output: bytes taken, and what happened.
    /// Input: the bytes after those taken so far, in pieces of any size; `request` is filled at the head's end and must stay the same until
    /// the request's end. Cost: linear in the bytes taken, however they are split. After a refusal that is not reusable, all input is
    /// swallowed.
    pub fn decode(&mut self, limits: &HttpLimits, input: &[u8], request: &mut Request) -> (usize, Http1Event) {
        match self.advance(limits, input, request) {
            Ok(advanced) => advanced,
            Err(refusal) => {
                *self = Http1Decoder { state: State::Refused, ..Http1Decoder::new() };
                (input.len(), Http1Event::Refused { code: refusal.code, detail: refusal.detail })
            }
        }
    }

    /// Drops the rest of the body instead of keeping it: for a request that is refused on a connection that stays. To be called between
    /// `Head` and `Complete`; `Complete` still comes, and the limits still hold.
    pub fn discard_body(&mut self) {
        self.discards_body = true;
    }

    pub fn phase(&self) -> Phase {
        match self.state {
            State::Head if self.meter.bytes() == 0 => Phase::BetweenRequests,
            State::Head => Phase::Head,
            State::Length(_) | State::Chunked(_) => Phase::Body,
            State::Refused => Phase::Refused,
        }
    }

    /// Bytes of this request's body received so far, coding included: a body that stalls is one for which this stands still.
    pub fn progress(&self) -> u64 {
        self.progress_bytes
    }

    /// True when what follows in the stream is, or continues, a request's head. False after a refusal that closes and while a body is
    /// unread: then the connection cannot stay.
    pub fn is_reusable(&self) -> bool {
        matches!(self.state, State::Head)
    }

    fn advance(&mut self, limits: &HttpLimits, input: &[u8], request: &mut Request) -> Result<(usize, Http1Event), Refusal> {
        let mut taken = 0;
        match self.state {
            State::Refused => return Ok((input.len(), Http1Event::NeedMore)),
            State::Length(_) | State::Chunked(_) => {}
            State::Head => {
                let (head_bytes, head) = self.take_head(limits, input, request)?;
                let Some(head) = head else { return Ok((head_bytes, Http1Event::NeedMore)) };
                let has_body = head.framing != Framing::Length(0);
                if head.has_route && !has_body && !head.expects_continue {
                    self.end_request();
                    return Ok((head_bytes, Http1Event::Complete));
                }
                if head.has_route {
                    return Ok((head_bytes, Http1Event::Head { expects_continue: head.expects_continue, has_body }));
                }
                if head.expects_continue && has_body {
                    return Err(NO_ROUTE);
                }
                self.lacks_route = true;
                self.discards_body = true;
                taken = head_bytes;
            }
        }
        let (body_bytes, is_complete) = self.take_body(limits, &input[taken..], request)?;
        taken += body_bytes;
        if !is_complete {
            return Ok((taken, Http1Event::NeedMore));
        }
        let lacks_route = self.lacks_route;
        self.end_request();
        let Refusal { code, detail } = NO_ROUTE;
        Ok((taken, if lacks_route { Http1Event::Refused { code, detail } } else { Http1Event::Complete }))
    }

    fn end_request(&mut self) {
        *self = Http1Decoder { remembered: self.remembered.take(), ..Http1Decoder::new() };
    }

    /// Output: bytes taken, and the head if that was its end.
    fn take_head(&mut self, limits: &HttpLimits, input: &[u8], request: &mut Request) -> Result<(usize, Option<Head>), Refusal> {
        let piece = &input[..input.len().min(self.meter.room_bytes())];
        if self.meter.bytes() == 0
            && let Some(remembered) = &self.remembered
            && let Some((end, head)) = remembered.recognise(piece, request)
        {
            self.begin_body(end, &head)?;
            return Ok((end, Some(head)));
        }
        let scanned = self.scan.scan(piece).inspect_err(|_| self.note_method(piece, request))?;
        let (start, end) = match scanned {
            Scanned::End { start, end } => (start, end),
            Scanned::More { start } => {
                // It may be refused before it is whole.
                self.note_method(&piece[start..], request);
                self.meter.add_bytes(piece.len())?;
                if self.meter.room_bytes() == 0 {
                    return Err(Refusal::new(ErrorCode::HeadTooLarge, "the head is over 16 KiB"));
                }
                self.gathered.extend_from_slice(&piece[start..]);
                return Ok((piece.len(), None));
            }
        };
        let head = if self.gathered.is_empty() {
            let head = read_head(&piece[start..end], limits, request)?;
            Remembered::note(&mut self.remembered, &piece[start..end], head);
            head
        } else {
            let mut gathered = std::mem::take(&mut self.gathered);
            gathered.extend_from_slice(&piece[start..end]);
            read_head(&gathered, limits, request)?
        };
        self.begin_body(end, &head)?;
        Ok((end, Some(head)))
    }

    /// Whether the head that goes on with `piece` is of a HEAD request, whose refusal has no body either. Empty lines before it are skipped.
    #[cold]
    fn note_method(&self, piece: &[u8], request: &mut Request) {
        const METHOD: &[u8] = b"HEAD ";
        request.clear();
        let is_before_head = |byte: &&u8| self.gathered.is_empty() && matches!(**byte, b'\r' | b'\n');
        let rest = piece.iter().skip_while(is_before_head);
        request.set_is_head(self.gathered.iter().chain(rest).take(METHOD.len()).eq(METHOD));
    }

    /// The head has ended with that many bytes of the piece.
    fn begin_body(&mut self, end: usize, head: &Head) -> Result<(), Refusal> {
        self.meter.add_bytes(end)?;
        self.meter.set_fields(head.fields);
        self.state = match head.framing {
            Framing::Length(bytes) => State::Length(bytes),
            Framing::Chunked => State::Chunked(ChunkedBody::new()),
        };
        Ok(())
    }

    /// Output: bytes taken, and whether the body is complete.
    fn take_body(&mut self, limits: &HttpLimits, input: &[u8], request: &mut Request) -> Result<(usize, bool), Refusal> {
        let bytes_max = limits.body_bytes_max as u64;
        let mut sink = BodySink { request, taken_bytes: &mut self.body_bytes, bytes_max, discards: self.discards_body };
        let (taken, is_complete) = match &mut self.state {
            State::Chunked(body) => body.decode(input, &mut self.meter, &mut sink)?,
            State::Length(remaining) => {
                let piece = &input[..input.len().min(usize::try_from(*remaining).unwrap_or(usize::MAX))];
                *remaining -= piece.len() as u64;
                sink.push(piece, *remaining);
                (piece.len(), *remaining == 0)
            }
            State::Head | State::Refused => (0, false),
        };
        self.progress_bytes += taken as u64;
        Ok((taken, is_complete))
    }
}

const NO_ROUTE: Refusal = Refusal::new(ErrorCode::NoRoute, "the path is not /f/<function> or /f/<function>/<rest>");

/// Where body bytes go: into the request, or nowhere.
struct BodySink<'a> {
    request: &'a mut Request,
    taken_bytes: &'a mut u64,
    bytes_max: u64,
    discards: bool,
}

impl BodySink<'_> {
    /// Body bytes that may still come.
    fn room_bytes(&self) -> u64 {
        self.bytes_max.saturating_sub(*self.taken_bytes)
    }

    /// Takes bytes of which the room was checked; at most `more_bytes` follow.
    fn push(&mut self, piece: &[u8], more_bytes: u64) {
        *self.taken_bytes += piece.len() as u64;
        if !self.discards && !piece.is_empty() {
            self.request.push_body(piece, more_bytes.min(self.room_bytes()));
        }
    }
}
