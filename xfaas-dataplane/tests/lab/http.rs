//! HTTP as plain bytes: the tests look at what is on the wire.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};

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

    /// Sends in one piece. Output: the reply's head, and its body of `content-length`.
    pub fn ask(&mut self, request: &[u8]) -> (String, Vec<u8>) {
        self.stream.get_mut().write_all(request).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.stream.read_line(&mut head).unwrap() > 0, "the connection ended in a head: {head:?}");
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0").parse().unwrap();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (head, body)
    }

    /// An echo of `body` for a session, which must be right. Output: the core that ran it.
    pub fn echo(&mut self, session: &str, body: &[u8]) -> usize {
        let mut request =
            format!("POST /f/echo HTTP/1.1\r\nhost: a\r\nX-Session-Id: {session}\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend(body);
        let (head, echoed) = self.ask(&request);
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains(&format!("x-session-id: {session}\r\n")), "{head}");
        assert_eq!(echoed, body);
        head.lines().find_map(|line| line.strip_prefix("x-xfaas-core: ")).unwrap().parse().unwrap()
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

/// A page of the admin API.
pub fn get(address: impl ToSocketAddrs, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}
