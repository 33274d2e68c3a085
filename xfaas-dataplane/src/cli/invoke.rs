//! `xfaas invoke`: calls a function one or more times, over HTTP or with datagrams, and prints the replies.

use super::args::InvokeArguments;
use super::datagram::DatagramClient;
use super::{CliError, EXIT_DONE, EXIT_FAILED, Terminal};
use serde::Serialize;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};
use ureq::Agent;
use ureq::http::{Method, Request, Uri};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{BODY_BYTES_MAX_DEFAULT, OUTPUT_BYTES_MAX};

/// Bytes that are read from stdin or a file as a body: more than any node takes, so that the node itself may refuse.
const DATA_BYTES_MAX: u64 = 8 * BODY_BYTES_MAX_DEFAULT as u64;

/// One answered call.
#[derive(Debug, Serialize)]
pub(super) struct Reply {
    /// HTTP status; none for a datagram.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<String>,
    /// From sending to the whole answer.
    pub elapsed_us: u64,
    /// What went wrong, in words, with the code of the contract.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(flatten)]
    pub body: ReplyBody,
}

/// The reply's bytes, as text where they are text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ReplyBody {
    #[serde(rename = "body")]
    Text(String),
    #[serde(rename = "body_hex", serialize_with = "as_hex")]
    Bytes(Vec<u8>),
}

impl ReplyBody {
    pub fn new(bytes: Vec<u8>) -> ReplyBody {
        String::from_utf8(bytes).map_or_else(|error| ReplyBody::Bytes(error.into_bytes()), ReplyBody::Text)
    }

    pub fn as_bytes(&self) -> &[u8] {
        match self {
            ReplyBody::Text(text) => text.as_bytes(),
            ReplyBody::Bytes(bytes) => bytes,
        }
    }
}

fn as_hex<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Calls, prints, and tells by the exit code whether all replies were good.
pub(super) fn run(arguments: &InvokeArguments, terminal: &mut Terminal<'_>) -> Result<u8, CliError> {
    let data = read_data(arguments.data.as_deref())?;
    let mut client =
        if arguments.udp { Client::Datagram(DatagramClient::new(arguments)?) } else { Client::Http(HttpClient::new(arguments)?) };
    let mut replies = Vec::new();
    let mut code = EXIT_DONE;
    for _ in 0..arguments.count {
        let reply = match &mut client {
            Client::Datagram(client) => client.call(&data)?,
            Client::Http(client) => client.call(&data)?,
        };
        if let Some(error) = &reply.error {
            code = EXIT_FAILED;
            terminal.complain(error);
        } else if !terminal.is_json {
            print_body(&reply.body, arguments.count > 1, terminal)?;
        }
        if terminal.is_json {
            replies.push(reply);
        }
    }
    if terminal.is_json {
        terminal.show(&serde_json::json!({ "replies": replies }), String::new)?;
    }
    Ok(code)
}

/// The body as it is; of several, each on a line of its own.
fn print_body(body: &ReplyBody, is_one_of_many: bool, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let bytes = body.as_bytes();
    terminal.out.write_all(bytes)?;
    if is_one_of_many && !bytes.ends_with(b"\n") {
        terminal.out.write_all(b"\n")?;
    }
    Ok(())
}

fn read_data(data: Option<&str>) -> Result<Vec<u8>, CliError> {
    let read = |path: &Path, source: &mut dyn Read| {
        let mut bytes = Vec::new();
        let result = source.take(DATA_BYTES_MAX + 1).read_to_end(&mut bytes);
        result.map_err(|source| CliError::Read { path: path.to_owned(), source })?;
        if bytes.len() as u64 > DATA_BYTES_MAX {
            return Err(CliError::Usage(format!("the body has more than {DATA_BYTES_MAX} bytes: no node takes that")));
        }
        Ok(bytes)
    };
    match data {
        None => Ok(Vec::new()),
        Some("-") => read(Path::new("stdin"), &mut std::io::stdin().lock()),
        Some(text) => match text.strip_prefix('@') {
            None => Ok(text.as_bytes().to_vec()),
            Some(path) => {
                let path = Path::new(path);
                let mut file = std::fs::File::open(path).map_err(|source| CliError::Read { path: path.to_owned(), source })?;
                read(path, &mut file)
            }
        },
    }
}

enum Client {
    Http(HttpClient),
    Datagram(DatagramClient),
}

/// One connection to one function.
struct HttpClient {
    agent: Agent,
    method: Method,
    uri: Uri,
    session_header: String,
    session: Option<SessionId>,
    address: String,
    timeout_ms: u32,
}

impl HttpClient {
    fn new(arguments: &InvokeArguments) -> Result<HttpClient, CliError> {
        let usage = |flag: &str, value: &str| CliError::Usage(format!("{flag} is {value:?}: that cannot be sent in a request"));
        let method = Method::from_bytes(arguments.method.as_bytes()).map_err(|_| usage("--method", &arguments.method))?;
        if !arguments.path.is_empty() && !arguments.path.starts_with('/') {
            return Err(CliError::Usage(format!("--path is {:?}: begin it with /", arguments.path)));
        }
        if arguments.path.contains('#') {
            return Err(CliError::Usage(format!("--path is {:?}: write # as %23, no request carries it", arguments.path)));
        }
        let query = arguments.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        let uri = format!("http://{}/f/{}{}{query}", arguments.addr, arguments.name, arguments.path);
        let uri: Uri = uri.parse().map_err(|_| usage("--addr, --path or --query", &uri))?;
        // No proxy from the environment: the answer must come from the node that was named.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .allow_non_standard_methods(true)
            .timeout_global(Some(Duration::from_millis(arguments.timeout_ms.into())));
        Ok(HttpClient {
            agent: config.build().new_agent(),
            method,
            uri,
            session_header: arguments.session_header.clone(),
            session: arguments.session,
            address: arguments.addr.clone(),
            timeout_ms: arguments.timeout_ms,
        })
    }

    fn call(&mut self, data: &[u8]) -> Result<Reply, CliError> {
        let mut request = Request::builder().method(self.method.clone()).uri(self.uri.clone());
        if let Some(session) = &self.session {
            request = request.header(&self.session_header, session.as_str());
        }
        let begun = Instant::now();
        // A body of no bytes is still sent as one, with its length, unless the method has none by nature.
        let has_body =
            !data.is_empty() || !matches!(self.method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS | Method::TRACE);
        let result = if has_body {
            request.body(data).map_err(ureq::Error::from).and_then(|request| self.agent.run(request))
        } else {
            request.body(()).map_err(ureq::Error::from).and_then(|request| self.agent.run(request))
        };
        let mut response = result.map_err(|error| self.failed(&error))?;
        let body =
            response.body_mut().with_config().limit(OUTPUT_BYTES_MAX as u64 + 1).read_to_vec().map_err(|error| self.failed(&error))?;
        let elapsed_us = begun.elapsed().as_micros() as u64;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let status = response.status();
        let error = (!status.is_success()).then(|| describe_problem(status.as_u16(), &body));
        Ok(Reply {
            status: Some(status.as_u16()),
            session: header(&self.session_header),
            invocation_id: header("x-invocation-id"),
            elapsed_us,
            error,
            body: ReplyBody::new(body),
        })
    }

    fn failed(&self, error: &ureq::Error) -> CliError {
        let (address, timeout_ms) = (&self.address, self.timeout_ms);
        CliError::Invoke(match error {
            ureq::Error::Timeout(_) => format!("no answer from {address} within {timeout_ms} ms: give it longer with --timeout-ms"),
            error => format!("no answer from {address} ({error}): start a node with `xfaas run`, or give its address with --addr"),
        })
    }
}

/// Input: the answer of a request that failed. Output: its code and detail, or what there is.
fn describe_problem(status: u16, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Problem {
        code: String,
        #[serde(default)]
        detail: String,
        guest_code: Option<i32>,
    }
    match serde_json::from_slice(body) {
        Ok(Problem { code, detail, guest_code }) => {
            let guest_code = guest_code.map(|code| format!(" {code}")).unwrap_or_default();
            format!("{status} {code}{guest_code}: {detail}")
        }
        Err(_) => format!("{status}: {}", String::from_utf8_lossy(body)),
    }
}
