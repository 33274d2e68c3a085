//! HTTP as plain bytes: the tests look at what is on the wire.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};

use xfaas_common::map_layout::FlowKey;

use super::PATIENCE;

/// One connection that asks and reads one reply after the other.
pub struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    pub fn over(stream: TcpStream) -> Http {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Http { stream: BufReader::new(stream) }
    }

    pub fn connect(address: SocketAddr) -> Http {
        Http::over(TcpStream::connect(address).unwrap())
    }

    /// The key under which the kernel programs know this connection's segments to the server.
    pub fn flow_key(&self) -> FlowKey {
        let octets = |address: SocketAddr| match address.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let (ours, theirs) = (self.stream.get_ref().local_addr().unwrap(), self.stream.get_ref().peer_addr().unwrap());
        FlowKey {
            source: octets(ours),
            destination: octets(theirs),
            source_port: ours.port().to_be_bytes(),
            destination_port: theirs.port().to_be_bytes(),
        }
    }

    pub fn send(&mut self, request: &[u8]) {
        self.stream.get_mut().write_all(request).unwrap();
    }

    /// Output: the next reply's head, and its body of `content-length`.
    pub fn receive(&mut self) -> (String, Vec<u8>) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.stream.read_line(&mut head).unwrap() > 0, "the connection ended in a head: {head:?}");
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0").parse().unwrap();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (head, body)
    }

    /// Asks for an echo of `body`, in one segment if it fits.
    pub fn send_echo(&mut self, session: &str, body: &[u8]) {
        let head = format!("POST /f/echo HTTP/1.1\r\nhost: a\r\nX-Session-Id: {session}\r\ncontent-length: {}\r\n\r\n", body.len());
        let mut request = head.into_bytes();
        request.extend(body);
        self.send(&request);
    }

    /// The reply to `send_echo`, which must be right. Output: the core that ran it.
    pub fn receive_echo(&mut self, session: &str, body: &[u8]) -> usize {
        let (head, echoed) = self.receive();
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains(&format!("x-session-id: {session}\r\n")), "{head}");
        assert_eq!(echoed, body);
        head.lines().find_map(|line| line.strip_prefix("x-xfaas-core: ")).unwrap().parse().unwrap()
    }

    pub fn echo(&mut self, session: &str, body: &[u8]) -> usize {
        self.send_echo(session, body);
        self.receive_echo(session, body)
    }
}

/// Sends the pieces each as a segment of its own, closes that half, and reads to the end. Errors: the connection was reset.
pub fn raw_exchange(address: SocketAddr, pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    for piece in pieces {
        stream.write_all(piece)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    Ok(reply)
}

/// Sends a JSON document to the admin API.
pub fn post(address: impl ToSocketAddrs, path: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// A page of the admin API.
pub fn get(address: impl ToSocketAddrs, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}
