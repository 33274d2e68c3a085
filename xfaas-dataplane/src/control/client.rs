//! The admin API as `xfaas deploy`, `functions`, `sessions` and `stats` use it. Called by `cli`; blocks.

use super::api::{
    AliasInfo, AliasName, AliasesReply, DeployFlags, FunctionInfo, FunctionsReply, Problem, SessionsReply, StatsReply, TokenReply,
    TokenRequest, UndeployReply,
};
use super::moving::{MoveReply, MoveRequest};
use super::shards::SessionsQuery;
use super::trace::TraceReply;
use crate::net::PROBLEM_TYPE;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::time::Duration;
use ureq::http::Response;
use ureq::{Agent, Body};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// A deployment sends the module and waits for the compiler.
const DEPLOY_TIMEOUT: Duration = Duration::from_secs(300);
/// A move waits for the session's calls to end.
const MOVE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of one answer: 10,000 sessions fit several times.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no xfaas answers on {address}: start one with `xfaas run`, or give its admin address with --admin HOST:PORT")]
    NoServer {
        address: String,
        #[source]
        source: Box<ureq::Error>,
    },
    #[error("{address} closed the connection before the request and its answer were through: see its log, or check --admin")]
    Cut {
        address: String,
        #[source]
        source: Box<ureq::Error>,
    },
    #[error("{address} did not answer within {}: try again, or see its log", humane(*waited))]
    Timeout { address: String, waited: Duration },
    /// The server's own words say what to do.
    #[error("{}", problem.detail)]
    Refused { problem: Problem },
    #[error("{address} answered with something that is not xfaas's admin API: check --admin")]
    BadReply { address: String },
}

fn humane(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

/// Talks to the admin API at one address.
pub struct AdminClient {
    agent: Agent,
    address: String,
}

impl AdminClient {
    /// `address`: host and port.
    pub fn new(address: &str) -> AdminClient {
        // No proxy from the environment: the admin API is a local one.
        let config = Agent::config_builder().http_status_as_error(false).proxy(None).max_redirects(0).timeout_global(Some(ANSWER_TIMEOUT));
        AdminClient { agent: config.build().new_agent(), address: address.to_owned() }
    }

    /// Where it asks: host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// True if an xfaas answers there.
    pub fn is_alive(&self) -> bool {
        self.agent.get(self.url("/healthz")).call().is_ok_and(|response| response.status() == 200)
    }

    /// Returns when every shard has the function and it is stored.
    pub fn deploy(&self, name: &str, flags: &DeployFlags, wasm: &[u8]) -> Result<FunctionInfo, ClientError> {
        let request = self.agent.put(self.function_url(name)).query_pairs(flags.to_query());
        let request = request.content_type("application/wasm").config().timeout_global(Some(DEPLOY_TIMEOUT)).build();
        self.answer(request.send(wasm), DEPLOY_TIMEOUT)
    }

    pub fn undeploy(&self, name: &str) -> Result<UndeployReply, ClientError> {
        self.answer(self.agent.delete(self.function_url(name)).call(), ANSWER_TIMEOUT)
    }

    pub fn functions(&self) -> Result<FunctionsReply, ClientError> {
        self.answer(self.agent.get(self.url("/v1/functions")).call(), ANSWER_TIMEOUT)
    }

    pub fn sessions(&self, query: &SessionsQuery) -> Result<SessionsReply, ClientError> {
        let mut pairs = vec![("limit", query.limit.to_string())];
        pairs.extend(query.app.clone().map(|app| ("app", app)));
        pairs.extend(query.prefix.clone().map(|prefix| ("prefix", prefix)));
        self.answer(self.agent.get(self.url("/v1/sessions")).query_pairs(pairs).call(), ANSWER_TIMEOUT)
    }

    /// Returns when every shard follows it.
    pub fn map(&self, alias: &AliasInfo) -> Result<AliasInfo, ClientError> {
        let body = serde_json::to_vec(alias).expect("strings become JSON");
        self.answer(self.agent.put(self.url("/v1/aliases")).content_type("application/json").send(&body[..]), ANSWER_TIMEOUT)
    }

    /// Returns when the session is on the other core.
    pub fn move_session(&self, request: &MoveRequest) -> Result<MoveReply, ClientError> {
        let body = serde_json::to_vec(request).expect("strings and a number become JSON");
        self.answer(self.agent.post(self.url("/v1/sessions/move")).content_type("application/json").send(&body[..]), MOVE_TIMEOUT)
    }

    pub fn unmap(&self, alias: &AliasName) -> Result<AliasName, ClientError> {
        let mut pairs = vec![("key", alias.key.clone())];
        pairs.extend(alias.app.clone().map(|app| ("app", app)));
        self.answer(self.agent.delete(self.url("/v1/aliases")).query_pairs(pairs).call(), ANSWER_TIMEOUT)
    }

    pub fn aliases(&self) -> Result<AliasesReply, ClientError> {
        self.answer(self.agent.get(self.url("/v1/aliases")).call(), ANSWER_TIMEOUT)
    }

    pub fn token(&self, request: &TokenRequest) -> Result<TokenReply, ClientError> {
        let body = serde_json::to_vec(request).expect("strings and a number become JSON");
        self.answer(self.agent.post(self.url("/v1/tokens")).content_type("application/json").send(&body[..]), ANSWER_TIMEOUT)
    }

    pub fn stats(&self) -> Result<StatsReply, ClientError> {
        self.answer(self.agent.get(self.url("/v1/stats")).call(), ANSWER_TIMEOUT)
    }

    /// Where the time of requests goes, for that long.
    pub fn trace(&self, seconds: u32) -> Result<TraceReply, ClientError> {
        let wait = ANSWER_TIMEOUT + Duration::from_secs(seconds.into());
        let request = self.agent.get(self.url("/v1/trace")).query("seconds", seconds.to_string());
        self.answer(request.config().timeout_global(Some(wait)).build().call(), wait)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The name as one path segment, whatever bytes it has: the server says what is wrong with it.
    fn function_url(&self, name: &str) -> String {
        let mut url = self.url("/v1/functions/");
        for byte in name.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => url.push(char::from(byte)),
                _ => url.push_str(&format!("%{byte:02X}")),
            }
        }
        url
    }

    /// What to say of an error: `other`, unless the server was late or the connection ended early.
    fn failed(&self, error: ureq::Error, waited: Duration, other: impl FnOnce(Box<ureq::Error>) -> ClientError) -> ClientError {
        let is_cut = |kind| matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof);
        let address = self.address.clone();
        match error {
            ureq::Error::Timeout(_) => ClientError::Timeout { address, waited },
            ureq::Error::Io(io) if is_cut(io.kind()) => ClientError::Cut { address, source: Box::new(ureq::Error::Io(io)) },
            error => other(Box::new(error)),
        }
    }

    fn answer<T: DeserializeOwned>(&self, result: Result<Response<Body>, ureq::Error>, waited: Duration) -> Result<T, ClientError> {
        let no_server = |source| ClientError::NoServer { address: self.address.clone(), source };
        let bad_reply = || ClientError::BadReply { address: self.address.clone() };
        let mut response = result.map_err(|error| self.failed(error, waited, no_server))?;
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| self.failed(error, waited, |_| bad_reply()))?;
        if response.status().is_success() {
            return serde_json::from_slice(&body).map_err(|_| bad_reply());
        }
        let problem: Problem = serde_json::from_slice(&body).map_err(|_| bad_reply())?;
        // Words about a call of a function: this is the port that serves those.
        if problem.kind.starts_with(PROBLEM_TYPE) { Err(bad_reply()) } else { Err(ClientError::Refused { problem }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{ConnectionHeader, ErrorCode, Problem as CallProblem, encode_problem};
    use std::io::{Read, Write};

    /// What `functions` says to a server that answers one request with `reply`.
    fn answered(reply: Vec<u8>) -> ClientError {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend_from_slice(&byte);
            }
            stream.write_all(&reply).unwrap();
        });
        let error = AdminClient::new(&address).functions().unwrap_err();
        server.join().unwrap();
        error
    }

    #[test]
    fn the_port_that_serves_functions_is_not_taken_for_the_admin_api() {
        let problem = CallProblem {
            code: ErrorCode::NoRoute,
            detail: "the path is not /f/<function>",
            guest_code: None,
            session_header: b"x-session-id",
            session: None,
            invocation_id: None,
            date: b"Thu, 01 Jan 1970 00:00:00 GMT",
            connection: ConnectionHeader::Close,
        };
        let mut reply = Vec::new();
        encode_problem(&mut reply, &problem, false);
        let error = answered(reply);
        assert!(matches!(error, ClientError::BadReply { .. }), "{error}");
        // The admin API's own refusals are shown as they are.
        let body = r#"{"type":"about:blank","title":"Busy","status":503,"code":"busy","detail":"try again soon"}"#;
        let error = answered(format!("HTTP/1.1 503 Busy\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes());
        assert_eq!(error.to_string(), "try again soon");
    }

    #[test]
    fn an_answer_that_ends_early_is_not_taken_for_somebody_elses() {
        let error = answered(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"functions\":[".to_vec());
        assert!(matches!(error, ClientError::Cut { .. }), "{error:?}");
        let error = answered(b"HTTP/1.1 200 OK\r\ncontent-type: appl".to_vec());
        assert!(matches!(error, ClientError::Cut { .. }), "{error:?}");
    }

    #[test]
    fn a_server_that_closes_while_a_module_is_sent_is_not_said_to_be_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let mut head = [0; 16];
            listener.accept().unwrap().0.read_exact(&mut head).unwrap(); // closed with bytes unread: the client is reset
        });
        let error = AdminClient::new(&address).deploy("f", &DeployFlags::default(), &vec![0; 32 << 20]).unwrap_err();
        server.join().unwrap();
        assert!(matches!(error, ClientError::Cut { .. }), "{error}");
        let error = AdminClient::new(&address).stats().unwrap_err();
        assert!(matches!(error, ClientError::NoServer { .. }), "{error}");
    }
}
