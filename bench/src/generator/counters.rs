//! Reads the sessions' counters before and after a run, with plain blocking sockets.

use super::judge::{is_refusal, number, status_of_error};
use super::resp::read_numbers;
use super::spec::{GeneratorError, LoadSpec, Transport};
use super::template::Template;
use crate::load::{Client, FetchError};
use std::net::UdpSocket;
use std::time::Duration;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::wire::{HEADER_BYTES, Header, KIND_ERROR, KIND_INVOKE, KIND_REPLY};

/// Requests in one write; their replies fit the sockets' buffers.
const PIPELINED: usize = 32;
const ANSWER_WAIT: Duration = Duration::from_millis(500);
const TRIES: usize = 10;
/// A server that is overloaded or moves a session refuses for a moment; its `Retry-After` is a second.
const REFUSED_TRIES: usize = 5;
const REFUSED_WAIT: Duration = Duration::from_secs(1);

/// The counters of `wanted`, indices into `sessions`, as the function `reader` answers them; in that order.
/// Errors: it does not answer, or not with a number.
pub(super) fn read_counters(spec: &LoadSpec, reader: &str, sessions: &[SessionId], wanted: &[usize]) -> Result<Vec<u64>, GeneratorError> {
    // The whole of it where clients are: sockets stay in the namespace that they were made in.
    spec.network.at_client(|| match spec.transport {
        Transport::Http => over_http(spec, reader, sessions, wanted),
        Transport::Redis => read_numbers(spec, reader, sessions, wanted),
        Transport::Datagram => by_datagrams(spec, reader, sessions, wanted),
    })?
}

fn over_http(spec: &LoadSpec, reader: &str, sessions: &[SessionId], wanted: &[usize]) -> Result<Vec<u64>, GeneratorError> {
    let bare = LoadSpec { payload: Vec::new(), ..spec.clone() };
    let template = Template::http(&bare, reader);
    let mut client = Client::connect(spec.target)?;
    let mut numbers = vec![0; wanted.len()];
    let (mut request, mut requests) = (Vec::new(), Vec::new());
    for (chunk, numbers) in wanted.chunks(PIPELINED).zip(numbers.chunks_mut(PIPELINED)) {
        let mut left: Vec<usize> = (0..chunk.len()).collect();
        for tried in 1..=REFUSED_TRIES {
            requests.clear();
            for i in &left {
                template.fill(&sessions[chunk[*i]], &mut request);
                requests.extend_from_slice(&request);
            }
            client.send(&requests)?;
            let mut refused = Vec::new();
            for i in left {
                let reply = client.receive()?;
                if is_refusal(reply.status) && tried < REFUSED_TRIES {
                    refused.push(i);
                } else {
                    numbers[i] = number_of(reader, reply.status, &reply.body)?;
                }
            }
            left = refused;
            if left.is_empty() {
                break;
            }
            std::thread::sleep(REFUSED_WAIT);
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
        let mut refused = 0;
        let number = (0..TRIES).find_map(|_| {
            let received = socket.send(&request).and_then(|_| socket.recv(&mut answer));
            let bytes = &answer[..*received.as_ref().ok()?];
            let header = Header::read(bytes).filter(|header| header.request_id() == request_id)?;
            let output = bytes.get(HEADER_BYTES + usize::from(header.session_len)..).unwrap_or_default();
            let status = match header.kind {
                KIND_REPLY => 200,
                KIND_ERROR => status_of_error(header.status).unwrap_or(500),
                _ => 500,
            };
            refused += usize::from(is_refusal(status));
            if is_refusal(status) && refused < REFUSED_TRIES {
                std::thread::sleep(REFUSED_WAIT);
                return None;
            }
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
