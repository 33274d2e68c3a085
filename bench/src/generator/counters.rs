//! Reads the sessions' counters before and after a run, with plain blocking sockets.

use super::asker::{Asker, Patience, no_answer};
use super::judge::{fault_of_bytes, is_refusal, number, status_of_error};
use super::resp::read_numbers;
use super::spec::{GeneratorError, LoadSpec, Transport};
use super::template::Template;
use crate::load::{FetchError, excerpt, parse_reply};
use std::net::UdpSocket;
use std::time::Duration;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::wire::{HEADER_BYTES, Header, KIND_ERROR, KIND_INVOKE, KIND_REPLY};

/// Requests in one write; their replies fit the sockets' buffers.
const PIPELINED: usize = 32;
const ANSWER_WAIT: Duration = Duration::from_millis(500);
const TRIES: u32 = 10;
/// A server that is overloaded or moves a session refuses for a moment; its `Retry-After` is a second.
const REFUSED_TRIES: usize = 5;
const REFUSED_WAIT: Duration = Duration::from_secs(1);
/// Connections made one after another on which nothing was answered.
const CUT_TRIES: usize = 3;

/// The counters of `wanted`, indices into `sessions`, as the function `reader` answers them; in that order.
/// Errors: it does not answer, or not with a number; `LoadError::Interrupted` when `patience` is over.
pub(super) fn read_counters(
    spec: &LoadSpec,
    reader: &str,
    sessions: &[SessionId],
    wanted: &[usize],
    patience: &Patience<'_>,
) -> Result<Vec<u64>, GeneratorError> {
    // The whole of it where clients are: sockets stay in the namespace that they were made in.
    spec.network.at_client(|| match spec.transport {
        Transport::Http => over_http(spec, reader, sessions, wanted, patience),
        Transport::Redis => read_numbers(spec, reader, sessions, wanted, patience),
        Transport::Datagram => by_datagrams(spec, reader, sessions, wanted, patience),
    })?
}

fn over_http(
    spec: &LoadSpec,
    reader: &str,
    sessions: &[SessionId],
    wanted: &[usize],
    patience: &Patience<'_>,
) -> Result<Vec<u64>, GeneratorError> {
    let bare = LoadSpec { payload: Vec::new(), ..spec.clone() };
    let template = Template::http(&bare, reader);
    let mut asker = Asker::connect(spec.target, patience)?;
    let mut numbers = vec![0; wanted.len()];
    let (mut request, mut requests) = (Vec::new(), Vec::new());
    for (chunk, numbers) in wanted.chunks(PIPELINED).zip(numbers.chunks_mut(PIPELINED)) {
        let mut left: Vec<usize> = (0..chunk.len()).collect();
        let (mut refused_tries, mut cut_tries) = (0, 0);
        while !left.is_empty() {
            requests.clear();
            for i in &left {
                template.fill(&sessions[chunk[*i]], &mut request);
                requests.extend_from_slice(&request);
            }
            asker.send(&requests)?;
            let (mut again, mut was_refused, mut answered) = (Vec::new(), false, 0);
            for i in &left {
                let Some((status, body, closes)) = asker.receive(|bytes| parse(spec, bytes))? else { break };
                answered += 1;
                if is_refusal(status) && refused_tries + 1 < REFUSED_TRIES {
                    again.push(*i);
                    was_refused = true;
                } else {
                    numbers[*i] = number_of(reader, status, &body)?;
                }
                if closes {
                    break;
                }
            }
            cut_tries = if answered > 0 { 0 } else { cut_tries + 1 };
            if cut_tries == CUT_TRIES {
                return Err(asker.cut());
            }
            if answered < left.len() {
                // Servers close connections after so many requests; a read that was cut can be asked again.
                again.extend_from_slice(&left[answered..]);
                asker = Asker::connect(spec.target, patience)?;
            }
            left = again;
            if was_refused {
                refused_tries += 1;
                patience.sleep(REFUSED_WAIT)?;
            }
        }
    }
    Ok(numbers)
}

/// Status and body of a reply, and whether it is the last one of its connection.
type HttpAnswer = (u16, Vec<u8>, bool);

fn parse(spec: &LoadSpec, bytes: &[u8]) -> Result<Option<(HttpAnswer, usize)>, GeneratorError> {
    match parse_reply(bytes) {
        Ok(reply) => Ok(reply.map(|reply| ((reply.status, reply.body.to_vec(), reply.closes), reply.bytes))),
        Err(_) => Err(GeneratorError::Answer { target: spec.target, fault: fault_of_bytes(bytes), excerpt: excerpt(bytes) }),
    }
}

fn number_of(reader: &str, status: u16, body: &[u8]) -> Result<u64, GeneratorError> {
    number(body).filter(|_| status == 200).ok_or_else(|| GeneratorError::Number {
        function: reader.to_owned(),
        status,
        body: String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
    })
}

/// Asks for the counter at `index`; an answer that does not come is asked for again. Errors: none came, or no number.
fn by_datagram(
    socket: &UdpSocket,
    (spec, reader): (&LoadSpec, &str),
    (session, index): (&SessionId, usize),
    patience: &Patience<'_>,
) -> Result<u64, GeneratorError> {
    let request_id = index as u64 + 1;
    let header = Header::new(KIND_INVOKE, 0, session, request_id, FunctionHash::of(reader.as_bytes()), 0);
    let request = [&header.to_bytes()[..], session.as_bytes()].concat();
    let (mut answer, mut refused) = ([0; 2_048], 0);
    for _ in 0..TRIES {
        patience.check()?;
        let Ok(length) = socket.send(&request).and_then(|_| socket.recv(&mut answer)) else { continue };
        let bytes = &answer[..length];
        let Some(header) = Header::read(bytes).filter(|header| header.request_id() == request_id) else { continue };
        let output = bytes.get(HEADER_BYTES + usize::from(header.session_len)..).unwrap_or_default();
        let status = match header.kind {
            KIND_REPLY => 200,
            KIND_ERROR => status_of_error(header.status).unwrap_or(500),
            _ => 500,
        };
        refused += usize::from(is_refusal(status));
        if is_refusal(status) && refused < REFUSED_TRIES {
            patience.sleep(REFUSED_WAIT)?;
            continue;
        }
        return number_of(reader, status, output);
    }
    Err(no_answer(spec.target, ANSWER_WAIT * TRIES))
}

fn by_datagrams(
    spec: &LoadSpec,
    reader: &str,
    sessions: &[SessionId],
    wanted: &[usize],
    patience: &Patience<'_>,
) -> Result<Vec<u64>, GeneratorError> {
    let target = spec.target;
    let io = |operation| move |source| FetchError::Io { operation, target, source };
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).map_err(io("make a socket for"))?;
    socket.connect(target).map_err(io("connect to"))?;
    socket.set_read_timeout(Some(ANSWER_WAIT)).map_err(io("set a timeout on a socket to"))?;
    wanted.iter().map(|&index| by_datagram(&socket, (spec, reader), (&sessions[index], index), patience)).collect()
}
