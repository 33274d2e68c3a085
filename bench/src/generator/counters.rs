//! Reads the sessions' counters before and after a run, with plain blocking sockets.

use super::judge::number;
use super::spec::{GeneratorError, LoadSpec, Transport};
use super::template::Template;
use crate::load::{Client, FetchError};
use std::net::UdpSocket;
use std::time::Duration;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::wire::{HEADER_BYTES, Header, KIND_INVOKE, KIND_REPLY};

/// Requests in one write; their replies fit the sockets' buffers.
const PIPELINED: usize = 32;
const ANSWER_WAIT: Duration = Duration::from_millis(500);
const TRIES: usize = 10;

/// The counters of `wanted`, indices into `sessions`, as the function `reader` answers them; in that order.
/// Errors: it does not answer, or not with a number.
pub(super) fn read_counters(spec: &LoadSpec, reader: &str, sessions: &[SessionId], wanted: &[usize]) -> Result<Vec<u64>, GeneratorError> {
    // The whole of it where clients are: sockets stay in the namespace that they were made in.
    spec.network.at_client(|| match spec.transport {
        Transport::Http | Transport::Redis => over_http(spec, reader, sessions, wanted),
        Transport::Datagram => by_datagrams(spec, reader, sessions, wanted),
    })?
}

fn over_http(spec: &LoadSpec, reader: &str, sessions: &[SessionId], wanted: &[usize]) -> Result<Vec<u64>, GeneratorError> {
    let bare = LoadSpec { payload: Vec::new(), ..spec.clone() };
    let template = Template::http(&bare, reader);
    let mut client = Client::connect(spec.target)?;
    let mut numbers = Vec::with_capacity(wanted.len());
    let (mut request, mut requests) = (Vec::new(), Vec::new());
    for chunk in wanted.chunks(PIPELINED) {
        requests.clear();
        for session in chunk {
            template.fill(&sessions[*session], &mut request);
            requests.extend_from_slice(&request);
        }
        client.send(&requests)?;
        for _ in chunk {
            let reply = client.receive()?;
            numbers.push(number_of(reader, reply.status, &reply.body)?);
        }
    }
    Ok(numbers)
}

fn number_of(reader: &str, status: u16, body: &[u8]) -> Result<u64, GeneratorError> {
    number(body).filter(|_| status == 200).ok_or_else(|| GeneratorError::Number {
        function: reader.to_owned(),
        status,
        body: String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
    })
}

fn by_datagrams(spec: &LoadSpec, reader: &str, sessions: &[SessionId], wanted: &[usize]) -> Result<Vec<u64>, GeneratorError> {
    let target = spec.target;
    let io = |operation| move |source| FetchError::Io { operation, target, source };
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).map_err(io("make a socket for"))?;
    socket.connect(target).map_err(io("connect to"))?;
    socket.set_read_timeout(Some(ANSWER_WAIT)).map_err(io("set a timeout on a socket to"))?;
    let function = FunctionHash::of(reader.as_bytes());
    let mut answer = [0; 2_048];
    let mut numbers = Vec::with_capacity(wanted.len());
    for &index in wanted {
        let (session, request_id) = (&sessions[index], index as u64 + 1);
        let header = Header::new(KIND_INVOKE, 0, session, request_id, function, 0);
        let request = [&header.to_bytes()[..], session.as_bytes()].concat();
        let number = (0..TRIES).find_map(|_| {
            let received = socket.send(&request).and_then(|_| socket.recv(&mut answer));
            let bytes = &answer[..*received.as_ref().ok()?];
            let header = Header::read(bytes).filter(|header| header.request_id() == request_id)?;
            let output = bytes.get(HEADER_BYTES + usize::from(header.session_len)..).unwrap_or_default();
            let status = if header.kind == KIND_REPLY { 200 } else { 500 };
            Some(number_of(reader, status, output))
        });
        numbers.push(number.ok_or_else(|| FetchError::Io {
            operation: "get an answer from",
            target,
            source: std::io::ErrorKind::TimedOut.into(),
        })??);
    }
    Ok(numbers)
}
