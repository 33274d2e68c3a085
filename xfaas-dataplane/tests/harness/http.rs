//! A raw HTTP/1.1 client: sends any bytes, and takes only answers that keep to RFC 9112 and CONTRACT.md section 1.

use super::PATIENCE;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use xfaas_dataplane::sys::socket::uninterrupted;

/// The bytes of a well-formed request; a body brings its `content-length` unless a framing header is given.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\nhost: test\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let is_framed = headers.iter().any(|(name, _)| matches!(*name, "content-length" | "transfer-encoding"));
    if !is_framed && (!body.is_empty() || method == "POST") {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// The one header of that name; two are a fault of the server.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The session of a reply that ran.
    pub fn session(&self) -> &str {
        self.header("x-session-id").unwrap_or_else(|| panic!("no x-session-id in {self:?}"))
    }

    /// The problem document of an error, held against CONTRACT.md section 1.
    pub fn problem(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        for member in ["type", "title", "code", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member} in {problem}");
        }
        assert_eq!(problem["status"], self.status);
        problem
    }

    /// The `code` of an error.
    pub fn code(&self) -> String {
        self.problem()["code"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn assert_error(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{self:?}");
    }

    #[track_caller]
    pub fn assert_ok(&self, body: &[u8]) {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(
            self.body == body,
            "{} bytes, not the {} expected: {:?}",
            self.body.len(),
            body.len(),
            &self.body[..self.body.len().min(200)]
        );
    }
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    pub fn try_connect(address: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { stream, received: Vec::new() })
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends what the server may refuse to take. Output: false when it did.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// No more requests from here; answers are still read.
    pub fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    pub fn call(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.send(&request(method, target, headers, body));
        if method == "HEAD" { self.reply_to_head() } else { self.reply() }
    }

    /// Asks a server that may be gone. Errors: the connection ended before the answer did; whether the request ran is not known.
    pub fn try_call(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Reply> {
        self.stream.write_all(&request(method, target, headers, body))?;
        self.try_reply()
    }

    /// The next final answer.
    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        self.try_reply().unwrap_or_else(|error| self.no_answer(&error))
    }

    fn try_reply(&mut self) -> std::io::Result<Reply> {
        let mut reply = self.try_head()?;
        assert!(reply.status >= 200, "an interim answer nobody asked for: {reply:?}");
        if !matches!(reply.status, 204 | 304) {
            let length = reply.header("content-length").unwrap_or_else(|| panic!("no content-length: {reply:?}"));
            let length: usize = length.parse().unwrap();
            self.receive_until(|received| (received.len() >= length).then_some(length))?;
            reply.body = self.received.drain(..length).collect();
        }
        Ok(reply)
    }

    /// The next final answer, to a HEAD request: it has no body, whatever its length says.
    #[track_caller]
    pub fn reply_to_head(&mut self) -> Reply {
        let reply = self.head();
        assert!(reply.header("content-length").is_some(), "{reply:?}");
        reply
    }

    /// Takes a `100 Continue`.
    #[track_caller]
    pub fn interim(&mut self) {
        let reply = self.head();
        assert_eq!(reply.status, 100, "{reply:?}");
        assert!(reply.headers.is_empty(), "{reply:?}");
    }

    /// The server has closed in order (no reset), and has said no more.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        assert!(self.received.is_empty(), "unexpected bytes: {:?}", String::from_utf8_lossy(&self.received));
        assert!(!self.receive(), "unexpected bytes: {:?}", String::from_utf8_lossy(&self.received));
    }

    /// The connection takes another request.
    #[track_caller]
    pub fn assert_open(&mut self) {
        let reply = self.call("GET", "/no-such-route", &[], b"");
        reply.assert_error(404, "no_route");
    }

    #[track_caller]
    fn head(&mut self) -> Reply {
        self.try_head().unwrap_or_else(|error| self.no_answer(&error))
    }

    fn try_head(&mut self) -> std::io::Result<Reply> {
        let end = self.receive_until(|received| received.windows(4).position(|window| window == b"\r\n\r\n"))?;
        let head: Vec<u8> = self.received.drain(..end + 4).collect();
        Ok(parse_head(std::str::from_utf8(&head[..end]).expect("our heads are ASCII")))
    }

    /// Receives until `found` finds in what is received. Errors: the stream ends or fails before.
    fn receive_until(&mut self, found: impl Fn(&[u8]) -> Option<usize>) -> std::io::Result<usize> {
        loop {
            if let Some(at) = found(&self.received) {
                return Ok(at);
            }
            if !self.try_receive()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// False at the end of the stream.
    #[track_caller]
    fn receive(&mut self) -> bool {
        self.try_receive().unwrap_or_else(|error| self.no_answer(&error))
    }

    fn try_receive(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0; 64 << 10];
        let bytes = uninterrupted(|| self.stream.read(&mut buffer))?;
        self.received.extend_from_slice(&buffer[..bytes]);
        Ok(bytes > 0)
    }

    #[track_caller]
    fn no_answer(&self, error: &std::io::Error) -> ! {
        panic!("no whole answer: {error}; received so far: {:?}", String::from_utf8_lossy(&self.received))
    }
}

/// Input: an answer's head without its final empty line. Panics on anything but well-formed lines of lower-case names, each once.
fn parse_head(head: &str) -> Reply {
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap();
    let rest = status_line.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("status line {status_line:?}"));
    let (digits, reason) = rest.split_once(' ').unwrap_or_else(|| panic!("status line {status_line:?}"));
    assert!(digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit()) && !reason.is_empty(), "status line {status_line:?}");
    let mut headers: Vec<(String, String)> = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("header line {line:?}"));
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "header line {line:?}");
        assert!(value.bytes().all(|byte| (0x20..0x7F).contains(&byte)) && value.trim() == value, "header line {line:?}");
        let name = name.to_ascii_lowercase();
        assert!(headers.iter().all(|(other, _)| *other != name), "two headers {name}");
        headers.push((name, value.to_owned()));
    }
    Reply { status: digits.parse().unwrap(), headers, body: Vec::new() }
}
