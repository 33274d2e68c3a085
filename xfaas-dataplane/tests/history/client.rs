//! Clients that go on when the node dies: one asks over HTTP, one by datagrams, and both tell whether a request may have run.

use crate::harness::{Client, UdpClient, request_datagram};
use std::net::SocketAddr;
use std::time::Duration;

/// An answer that takes longer is taken for lost. A late one is known by its request ID and dropped.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Between two requests to a container without a primary, so that not all of a client's requests end so.
const NO_PRIMARY_PAUSE: Duration = Duration::from_millis(20);

/// Where requests go.
#[derive(Clone, Copy, Debug)]
pub enum Endpoint {
    Http(SocketAddr),
    Datagram(SocketAddr),
}

impl Endpoint {
    pub fn address(self) -> SocketAddr {
        match self {
            Endpoint::Http(address) | Endpoint::Datagram(address) => address,
        }
    }

    pub fn listens(self) -> bool {
        Client::try_connect(self.address()).is_ok()
    }
}

/// How a request ended.
#[derive(Debug)]
pub enum Answer {
    Output(Vec<u8>),
    /// Refused before it ran, or nobody there to take it.
    NotRun,
    Trapped,
    /// The node died, or answered that something went wrong on the way: all or part of it may have happened, or will yet.
    Unknown,
}

pub enum Caller {
    Http { address: SocketAddr, connection: Option<Client> },
    Datagram { socket: UdpClient, request_id: u64 },
}

impl Caller {
    pub fn new(endpoint: Endpoint) -> Caller {
        match endpoint {
            Endpoint::Http(address) => Caller::Http { address, connection: None },
            Endpoint::Datagram(address) => Caller::Datagram { socket: UdpClient::connect(address), request_id: 0 },
        }
    }

    /// The next request comes over a new connection, which may land on another shard.
    pub fn hang_up(&mut self) {
        if let Caller::Http { connection, .. } = self {
            *connection = None;
        }
    }

    /// Asks a node that may be gone.
    pub fn call(&mut self, function: &str, session: &str, body: &[u8]) -> Answer {
        match self {
            Caller::Http { address, connection } => {
                if connection.is_none() {
                    *connection = Client::try_connect(*address).ok();
                }
                let Some(client) = connection else { return Answer::NotRun };
                let target = format!("/f/{function}");
                let Ok(reply) = client.try_call("POST", &target, &[("x-session-id", session)], body) else {
                    *connection = None;
                    return Answer::Unknown;
                };
                if reply.status == 200 { Answer::Output(reply.body) } else { failure(&reply.code()) }
            }
            Caller::Datagram { socket, request_id } => {
                *request_id += 1;
                let sent = socket.try_send(&request_datagram(function, session, *request_id, body));
                let mut answers = std::iter::repeat_with(|| socket.try_answer(ANSWER_WAIT)).take_while(Option::is_some).flatten();
                match answers.find(|answer| answer.request_id == *request_id).filter(|_| sent) {
                    Some(answer) if answer.status == 0 => Answer::Output(answer.payload),
                    Some(answer) => failure(answer.text()),
                    None => Answer::Unknown,
                }
            }
        }
    }
}

fn failure(code: &str) -> Answer {
    match code {
        "overloaded" | "draining" => Answer::NotRun,
        "guest_trapped" => Answer::Trapped,
        "deadline" | "lock_wait" => Answer::Unknown,
        // A container whose primary was killed: it is joined again soon, and until then says so at once, again and again.
        "no_primary" => {
            std::thread::sleep(NO_PRIMARY_PAUSE);
            Answer::Unknown
        }
        other => panic!("an answer that none of these requests may get: {other}"),
    }
}
