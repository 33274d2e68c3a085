//! Connections of the baseline's host: the bytes are read and written by the code that xfaas uses, so a request costs the same here and there, and
//! is answered with the same status and document. Requests of a connection run one after another.

use super::guest::Ended;
use super::host::{BaselineError, BaselineHost};
use super::outside::StateFault;
use crate::settings::chain;
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::BODY_BYTES_MAX_DEFAULT;
use xfaas_dataplane::net::{
    CONTINUE, ConnectionHeader, ErrorCode, Http1Decoder, Http1Event, HttpLimits, Problem, ReplyHead, Request, encode_problem, encode_reply,
    http_date,
};

const CONNECTIONS_MAX: usize = 4_096;
const READ_BYTES: usize = 16 << 10;
const SESSION_HEADER: &[u8] = b"x-session-id";
/// In a function's place: `/f/baseline.guest-times/FUNCTION` answers what its guests took since the last look.
pub const GUEST_TIMES: &str = "baseline.guest-times";
/// After an accept that failed: there may be no descriptor left for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// What all connections share.
struct Server {
    host: BaselineHost,
    limits: HttpLimits,
    next_invocation: Cell<u128>,
    /// The second it is for, and its text.
    date: Cell<(u64, [u8; 29])>,
}

/// Serves `address` on the calling thread until its process ends. `ready` is called when it listens.
/// Errors: the address cannot be had, or a connection cannot be taken.
pub async fn serve(host: BaselineHost, address: SocketAddr, ready: impl FnOnce()) -> Result<(), BaselineError> {
    let failed = |operation| move |source| BaselineError::Listen { operation, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed("listen on"))?;
    ready();
    let limits = HttpLimits { body_bytes_max: BODY_BYTES_MAX_DEFAULT, session_header: SESSION_HEADER.to_vec() };
    let first = u128::from(RandomState::new().hash_one(0)) << 64;
    let server = Rc::new(Server { host, limits, next_invocation: Cell::new(first), date: Cell::new((0, http_date(0))) });
    let places = std::sync::Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = Rc::clone(&server);
                    spawn_local(async move {
                        // A client that is gone is nobody's fault.
                        server.talk(stream).await.ok();
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    };
    LocalSet::new().run_until(accept).await
}

impl Server {
    async fn talk(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut decoder, mut request) = (Http1Decoder::new(), Request::default());
        let (mut input, mut output, mut answer) = (vec![0; READ_BYTES], Vec::new(), Vec::new());
        loop {
            let bytes = stream.read(&mut input).await?;
            if bytes == 0 {
                return Ok(());
            }
            let mut rest = &input[..bytes];
            let mut after_head = false;
            while !rest.is_empty() || after_head {
                let (used, event) = decoder.decode(&self.limits, rest, &mut request);
                rest = &rest[used..];
                after_head = matches!(event, Http1Event::Head { .. });
                let stays = match event {
                    Http1Event::NeedMore => break,
                    Http1Event::Head { expects_continue, has_body } => {
                        if expects_continue && has_body {
                            stream.write_all(CONTINUE).await?;
                        }
                        continue;
                    }
                    Http1Event::Complete => self.answer(&mut request, &mut output, &mut answer).await,
                    Http1Event::Refused { code, detail } => {
                        let stays = decoder.is_reusable() && !code.closes() && request.keep_alive();
                        self.refuse(&request, code, detail, stays, &mut answer);
                        stays
                    }
                };
                stream.write_all(&answer).await?;
                answer.clear();
                request.clear();
                if !stays {
                    return stream.shutdown().await;
                }
            }
        }
    }

    /// Runs what was asked for and encodes the answer. Output: the connection stays.
    async fn answer(&self, request: &mut Request, output: &mut Vec<u8>, answer: &mut Vec<u8>) -> bool {
        let stays = request.keep_alive();
        if request.function_name() == GUEST_TIMES.as_bytes() {
            self.answer_times(request, stays, answer);
            return stays;
        }
        let Some(function) = self.host.function(request.function_name()) else {
            self.refuse(request, ErrorCode::NoFunction, "no function of this name is deployed", stays, answer);
            return stays;
        };
        let invocation_id = self.next_invocation.get();
        self.next_invocation.set(invocation_id.wrapping_add(1));
        let session = match request.session() {
            Some(session) => *session,
            None => fresh_session(),
        };
        let ended = self.host.invoke(function, session, request, output).await;
        let (code, detail, guest_code): (ErrorCode, Cow<'_, str>, _) = match &ended {
            Ended::Replied => {
                self.reply(request, &session, invocation_id, output, answer);
                return stays;
            }
            Ended::Code(code) => (ErrorCode::GuestError, "handle returned a non-zero code".into(), Some(*code)),
            Ended::Trapped => (ErrorCode::GuestTrapped, "the guest trapped".into(), None),
            Ended::Fault(fault @ (StateFault::LockWait | StateFault::LockLost)) => (ErrorCode::LockWait, fault.to_string().into(), None),
            // 503 would say that nothing was done, and whoever counts updates would count wrong.
            Ended::Fault(fault) if fault.may_have_written() => (ErrorCode::GuestTrapped, chain(fault).into(), None),
            // Whoever runs this host wants to know what its store said.
            Ended::Fault(fault @ StateFault::Store { .. }) => (ErrorCode::NoPrimary, chain(fault).into(), None),
            Ended::Full => (ErrorCode::Overloaded, "all workers are busy".into(), None),
        };
        let ran = code != ErrorCode::Overloaded;
        let problem = Problem {
            code,
            detail: &detail,
            guest_code,
            session_header: SESSION_HEADER,
            session: ran.then_some(&session),
            invocation_id: ran.then_some(invocation_id),
            date: &self.date(),
            connection: ConnectionHeader::of(request, stays),
        };
        encode_problem(answer, &problem, request.is_head());
        stays && !code.closes()
    }

    fn answer_times(&self, request: &Request, stays: bool, answer: &mut Vec<u8>) {
        let function = request.path_rest().strip_prefix(b"/").unwrap_or_default();
        let Some(times) = self.host.take_guest_times(function) else {
            return self.refuse(request, ErrorCode::NoFunction, "no function of this name is deployed", stays, answer);
        };
        let text = serde_json::to_vec(&times).expect("numbers are always JSON");
        self.reply(request, &fresh_session(), 0, &text, answer);
    }

    fn reply(&self, request: &Request, session: &SessionId, invocation_id: u128, output: &[u8], answer: &mut Vec<u8>) {
        let head = ReplyHead {
            status: 200,
            content_type: b"",
            session_header: SESSION_HEADER,
            session,
            invocation_id,
            date: &self.date(),
            connection: ConnectionHeader::of(request, request.keep_alive()),
            extra: b"",
        };
        encode_reply(answer, &head, output, request.is_head());
    }

    fn refuse(&self, request: &Request, code: ErrorCode, detail: &str, stays: bool, answer: &mut Vec<u8>) {
        let problem = Problem {
            code,
            detail,
            guest_code: None,
            session_header: SESSION_HEADER,
            session: None,
            invocation_id: None,
            date: &self.date(),
            connection: ConnectionHeader::of(request, stays),
        };
        encode_problem(answer, &problem, request.is_head());
    }

    /// Made once a second.
    fn date(&self) -> [u8; 29] {
        let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (made_s, date) = self.date.get();
        if made_s == now_s {
            return date;
        }
        let date = http_date(now_s);
        self.date.set((now_s, date));
        date
    }
}

fn fresh_session() -> SessionId {
    let text = format!("{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1));
    SessionId::new(text.as_bytes()).expect("32 hex digits")
}
