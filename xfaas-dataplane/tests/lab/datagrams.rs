//! The client of the datagram port.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::wire::{Header, KIND_INVOKE};
use xfaas_dataplane::net::{Answer, AnswerBody, DatagramHead, decode_datagram_answer};

use super::{Frame, Lab, PATIENCE, PORT, Route, Wire};
use xfaas_dataplane::sys::socket::uninterrupted;

/// Datagrams under way at once: fewer than any queue holds.
const WINDOW: usize = 64;

/// Session IDs of 1 to 64 random bytes.
pub fn random_sessions(seed: u64, count: usize) -> Vec<SessionId> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut session = || {
        let text: Vec<u8> = (0..random.random_range(1..=64)).map(|_| random.random_range(0x21..=0x7E)).collect();
        SessionId::new(&text).unwrap()
    };
    (0..count).map(|_| session()).collect()
}

/// A well-formed request.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub head: DatagramHead,
    pub payload: Vec<u8>,
}

impl Datagram {
    pub fn new(function: &str, session: SessionId, request_id: u64, payload: impl Into<Vec<u8>>) -> Datagram {
        let head = DatagramHead { session, request_id, function: FunctionHash::of(function.as_bytes()) };
        Datagram { head, payload: payload.into() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let DatagramHead { session, request_id, function } = self.head;
        let mut bytes = Header::new(KIND_INVOKE, 0, &session, request_id, function, self.payload.len() as u32).to_bytes().to_vec();
        bytes.extend(session.as_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// Holds an answer against this request of `echo`.
    pub fn assert_echoed(&self, answer: &[u8]) {
        assert_eq!(decode_datagram_answer(answer), Ok(Answer { head: self.head, body: AnswerBody::Reply(&self.payload) }));
    }
}

/// A socket that takes answers of the server only. What it sends is wrapped as its route says.
pub struct Client {
    route: Route,
    socket: UdpSocket,
    /// For frames with tags.
    wire: Option<Wire>,
}

impl Client {
    pub fn connect(lab: &Lab, route: &Route) -> Client {
        Client::connect_from(lab, route, 0)
    }

    /// From this port of the client's address.
    pub fn connect_from(lab: &Lab, route: &Route, port: u16) -> Client {
        let mut local = route.local();
        local.set_port(port);
        let socket = lab.on_client(|| UdpSocket::bind(local)).unwrap();
        socket.connect(route.address(PORT)).unwrap();
        Client { route: *route, socket, wire: (!route.tags.is_empty()).then(|| Wire::of_client(lab)) }
    }

    /// Sends a datagram. A tagged one fits in one packet.
    pub fn send(&self, bytes: &[u8]) {
        match &self.wire {
            None => assert_eq!(self.socket.send(bytes).unwrap(), bytes.len()),
            Some(wire) => {
                let port = self.socket.local_addr().unwrap().port();
                wire.send(&Frame::udp(&self.route, port, bytes).tagged(self.route.tags).bytes);
            }
        }
    }

    /// The next answer; the test fails when none comes.
    pub fn receive(&self) -> Vec<u8> {
        self.receive_within(PATIENCE).expect("no answer came")
    }

    /// The next answer, if one comes.
    pub fn receive_within(&self, patience: Duration) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 65_536];
        self.socket.set_read_timeout(Some(patience)).unwrap();
        match uninterrupted(|| self.socket.recv(&mut bytes)) {
            Ok(length) => bytes.truncate(length),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
            Err(error) => panic!("receive an answer: {error}"),
        }
        Some(bytes)
    }

    pub fn ask(&self, request: &Datagram) -> Vec<u8> {
        self.send(&request.bytes());
        self.receive()
    }

    /// Answers that have come by now.
    pub fn drain(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.receive_within(Duration::from_millis(1))).collect()
    }

    /// Sends all requests, a window at a time, and takes exactly one answer for each. Their request IDs differ.
    /// Output: the answers in the order of the requests.
    pub fn exchange(&self, requests: &[Datagram]) -> Vec<Vec<u8>> {
        let positions: HashMap<u64, usize> = requests.iter().enumerate().map(|(at, request)| (request.head.request_id, at)).collect();
        assert_eq!(positions.len(), requests.len());
        let mut answers = vec![Vec::new(); requests.len()];
        let (mut sent, mut answered) = (0, 0);
        while answered < requests.len() {
            // A half at a time: on a busy machine every change between client and server costs milliseconds.
            if sent - answered <= WINDOW / 2 {
                let upper = requests.len().min(answered + WINDOW);
                requests[sent..upper].iter().for_each(|request| self.send(&request.bytes()));
                sent = upper;
            }
            let Some(answer) = self.receive_within(PATIENCE) else { panic!("{answered} of {sent} datagrams were answered") };
            let head = decode_datagram_answer(&answer).unwrap().head;
            let at = positions[&head.request_id];
            assert!(answers[at].is_empty(), "a second answer: {head:?}");
            answers[at] = answer;
            answered += 1;
        }
        assert_eq!(self.drain(), Vec::<Vec<u8>>::new(), "more answers than requests");
        answers
    }
}
