//! Requests as bytes with a gap where the session goes: one for each function, filled in for each request.

use super::spec::{HttpShape, LoadSpec};
use xfaas_common::ids::SessionId;

pub(super) const SESSION: &str = "{session}";
const FUNCTION: &str = "{function}";

/// What is the same in all requests of a function.
#[derive(Debug)]
pub(super) struct Template {
    first: Vec<u8>,
    /// What follows each session.
    rest: Vec<Vec<u8>>,
}

impl Template {
    pub(super) fn http(spec: &LoadSpec, function: &str) -> Template {
        let HttpShape { method, path, headers, .. } = &spec.shape;
        let has_body = !spec.payload.is_empty();
        let method = method.as_deref().unwrap_or(if has_body { "POST" } else { "GET" });
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", spec.target);
        headers.iter().for_each(|line| head.extend([line.as_str(), "\r\n"]));
        if has_body || !matches!(method, "GET" | "HEAD" | "DELETE") {
            head += &format!("content-length: {}\r\n", spec.payload.len());
        }
        head += "\r\n";
        let mut template = Template::of(&head.replace(FUNCTION, function));
        template.rest.last_mut().unwrap_or(&mut template.first).extend_from_slice(&spec.payload);
        template
    }

    /// The command of redis for `function`.
    pub(super) fn redis(spec: &LoadSpec, function: &str) -> Template {
        let (before, after) = super::resp::command(function, spec.session_bytes(), &spec.payload);
        Template { first: before, rest: vec![after] }
    }

    fn of(text: &str) -> Template {
        let mut parts = text.split(SESSION).map(|part| part.as_bytes().to_vec());
        Template { first: parts.next().unwrap_or_default(), rest: parts.collect() }
    }

    /// The whole request, in place of what `buffer` held.
    pub(super) fn fill(&self, session: &SessionId, buffer: &mut Vec<u8>) {
        buffer.clear();
        buffer.extend_from_slice(&self.first);
        for part in &self.rest {
            buffer.extend_from_slice(session.as_bytes());
            buffer.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::Transport;
    use super::*;

    fn filled(change: impl FnOnce(&mut LoadSpec)) -> String {
        let mut spec = LoadSpec::new(([127, 0, 0, 1], 81).into(), Transport::Http, String::new());
        change(&mut spec);
        let mut buffer = b"what was there".to_vec();
        Template::http(&spec, "cart").fill(&SessionId::new(b"alice").unwrap(), &mut buffer);
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn a_request_is_as_xfaas_wants_it() {
        assert_eq!(filled(|_| ()), "GET /f/cart HTTP/1.1\r\nhost: 127.0.0.1:81\r\nx-session-id: alice\r\n\r\n");
        assert_eq!(
            filled(|spec| spec.payload = b"abc".to_vec()),
            "POST /f/cart HTTP/1.1\r\nhost: 127.0.0.1:81\r\nx-session-id: alice\r\ncontent-length: 3\r\n\r\nabc"
        );
    }

    #[test]
    fn another_servers_shape_takes_the_session_anywhere() {
        let text = filled(|spec| {
            spec.shape = HttpShape {
                method: Some("POST".to_owned()),
                path: "/{function}/{session}/add?s={session}".to_owned(),
                headers: Vec::new(),
                names_session: false,
            }
        });
        assert_eq!(text, "POST /cart/alice/add?s=alice HTTP/1.1\r\nhost: 127.0.0.1:81\r\ncontent-length: 0\r\n\r\n");
    }
}
