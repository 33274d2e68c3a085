//! The rules of a head, one table a rule, each case whole and byte by byte.

use super::*;

/// A complete request, or a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Complete(Seen),
    /// The code, and whether the stream can go on.
    Refused(ErrorCode, bool),
}

/// What the caller sees of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) function_name: String,
    pub(super) path_rest: String,
    pub(super) query: String,
    pub(super) body: Vec<u8>,
    pub(super) session: Option<String>,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
    pub(super) has_body: bool,
}

pub(super) fn limits() -> HttpLimits {
    HttpLimits { body_bytes_max: 1000, session_header: b"x-session-id".to_vec() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Feeds the pieces one after another, each until it is consumed. Stops at a refusal that closes. Output: what happened, and the decoder.
pub(super) fn decode_pieces<'a>(limits: &HttpLimits, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Outcome>, Http1Decoder) {
    let (mut decoder, mut request, mut outcomes) = (Http1Decoder::new(), Request::default(), Vec::new());
    let mut head_flags = (false, false);
    for mut input in pieces {
        loop {
            let (taken, event) = decoder.decode(limits, input, &mut request);
            input = &input[taken..];
            match event {
                Http1Event::NeedMore => {
                    assert!(input.is_empty(), "NeedMore with input left");
                    break;
                }
                Http1Event::Head { expects_continue, has_body } => head_flags = (expects_continue, has_body),
                Http1Event::Complete => {
                    assert!(decoder.is_reusable() && decoder.phase() == Phase::BetweenRequests);
                    outcomes.push(Outcome::Complete(Seen {
                        method: text(request.method()),
                        function_name: text(request.function_name()),
                        path_rest: text(request.path_rest()),
                        query: text(request.query()),
                        body: request.body().to_vec(),
                        session: request.session().map(ToString::to_string),
                        keep_alive: request.keep_alive(),
                        expects_continue: head_flags.0,
                        has_body: head_flags.1,
                    }));
                    head_flags = (false, false);
                }
                Http1Event::Refused { code, detail } => {
                    assert!(!detail.is_empty());
                    outcomes.push(Outcome::Refused(code, decoder.is_reusable()));
                    if !decoder.is_reusable() {
                        return (outcomes, decoder);
                    }
                }
            }
        }
    }
    (outcomes, decoder)
}

/// The outcomes of a stream, which must be the same whole and byte by byte.
pub(super) fn decode(stream: &[u8]) -> Vec<Outcome> {
    let (whole, _) = decode_pieces(&limits(), [stream]);
    let (bytewise, _) = decode_pieces(&limits(), stream.chunks(1));
    assert_eq!(whole, bytewise, "{}", stream.escape_ascii());
    whole
}

pub(super) fn decode_one(stream: impl AsRef<[u8]>) -> Seen {
    let stream = stream.as_ref();
    match decode(stream).as_slice() {
        [Outcome::Complete(seen)] => seen.clone(),
        other => panic!("{} gave {other:?}", stream.escape_ascii()),
    }
}

pub(super) fn assert_refused(stream: impl AsRef<[u8]>, code: ErrorCode) {
    let stream = stream.as_ref();
    assert_eq!(decode(stream), [Outcome::Refused(code, false)], "{}", stream.escape_ascii());
}

/// A GET of `/f/echo` with a Host and the given header lines, each with its CRLF.
pub(super) fn get_with(lines: &str) -> String {
    format!("GET /f/echo HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

#[test]
fn a_plain_request_gives_its_parts() {
    let seen =
        decode_one("PURGE /f/counter-rmw/a//b?x=1&y HTTP/1.1\r\nhost: a:8080\r\nX-Session-ID: \t alice \t\r\nA:\r\nB: \tc\td \x20\r\n\r\n");
    let expected = Seen {
        method: "PURGE".into(),
        function_name: "counter-rmw".into(),
        path_rest: "/a//b".into(),
        query: "x=1&y".into(),
        session: Some("alice".into()),
        keep_alive: true,
        ..Seen::default()
    };
    assert_eq!(seen, expected);
}

#[test]
fn headers_can_be_asked_for_by_name() {
    let stream = b"\r\nGET /f/echo HTTP/1.1\r\nHost: a\r\nA-b: \t c d \r\nA-B: second\r\nEmpty:\r\n\r\n";
    let (mut decoder, mut request) = (Http1Decoder::new(), Request::default());
    decoder.decode(&limits(), stream, &mut request);
    assert_eq!(request.header(b"a-b"), Some(&b"c d"[..]));
    assert_eq!(request.header(b"empty"), Some(&b""[..]));
    assert_eq!(request.header(b"host"), Some(&b"a"[..]));
    assert_eq!((request.header(b"a"), request.header(b""), request.header(b"get /f/echo http/1.1")), (None, None, None));
}

#[test]
fn any_token_is_a_method_and_only_head_is_head() {
    for method in
        ["GET", "HEAD", "get", "head", "TRACE", "OPTIONS", "X", "M-SEARCH", "!#$%&'*+-.^_`|~09", "GETGETGETGETGETGETGETGETGETGETGETGET"]
    {
        assert_eq!(decode_one(format!("{method} /f/echo HTTP/1.1\r\nHost: a\r\n\r\n")).method, method);
        let (mut decoder, mut request) = (Http1Decoder::new(), Request::default());
        decoder.decode(&limits(), format!("{method} /f/echo HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), &mut request);
        assert_eq!(request.is_head(), method == "HEAD");
    }
    for method in ["", "G(T", "G\"", "GE,T", "G:T", "é", "G/", "G@"] {
        assert_refused(format!("{method} /f/echo HTTP/1.1\r\nHost: a\r\n\r\n"), ErrorCode::BadRequest);
    }
}

#[test]
fn a_refused_head_request_is_known_to_be_one() {
    let (mut decoder, mut request) = (Http1Decoder::new(), Request::default());
    let (_, event) = decoder.decode(&limits(), b"HEAD /f/echo HTTP/1.1\r\n\r\n", &mut request);
    assert!(matches!(event, Http1Event::Refused { code: ErrorCode::BadRequest, .. }) && request.is_head());
}

#[test]
fn a_request_line_has_exactly_two_spaces_and_a_known_version() {
    for line in [
        "GET  /f/echo HTTP/1.1",
        "GET /f/echo  HTTP/1.1",
        "GET /f/echo HTTP/1.1 ",
        " GET /f/echo HTTP/1.1",
        "GET\t/f/echo HTTP/1.1",
        "GET /f/echo\tHTTP/1.1",
        "GET /f/echo HTTP/1.1\t",
        "GET /f/echo",
        "GET",
        "GET ",
        "GET HTTP/1.1",
        "GET /f/echo ",
        "GET /f/echo x HTTP/1.1",
        "GET /f/echo HTTP/1.2",
        "GET /f/echo HTTP/1.10",
        "GET /f/echo HTTP/2.0",
        "GET /f/echo HTTP/0.9",
        "GET /f/echo http/1.1",
        "GET /f/echo HTTP/1.",
        "GET /f/echo HTTP/1",
        "GET /f/echo HTTPS/1.1",
        "GET /f/echo HTTP/11",
        "GET /f/echo HTTP /1.1",
        "GET /f/echo HTTP/1,1",
        "PRI * HTTP/2.0",
    ] {
        assert_refused(format!("{line}\r\nHost: a\r\n\r\n"), ErrorCode::BadRequest);
    }
}

#[test]
fn lines_end_in_crlf_only() {
    let good = "GET /f/echo HTTP/1.1\r\nHost: a\r\nB: c\r\n\r\n";
    for (at, _) in good.match_indices("\r\n") {
        for wrong in ["\n", "\r", "\r\r\n", "\n\r", "\r\n\n", "\n\r\n"] {
            let bad = format!("{}{wrong}{}", &good[..at], &good[at + 2..]);
            // Where the bad line end is the last thing, what stands here is only refused once it cannot be the start of a good one.
            let bad = if wrong == "\r" { format!("{bad}x") } else { bad };
            match decode(bad.as_bytes()).as_slice() {
                [Outcome::Refused(ErrorCode::BadRequest, false)] => {}
                // A complete head, after which the stray LF is the start of the next.
                [Outcome::Complete(_), Outcome::Refused(ErrorCode::BadRequest, false)] if at + 2 == good.len() => {}
                other => panic!("{} gave {other:?}", bad.escape_default()),
            }
        }
    }
    assert_refused("GET /f/echo HTTP/1.1\nHost: a\n\n", ErrorCode::BadRequest);
    assert_refused("\nGET /f/echo HTTP/1.1\r\nHost: a\r\n\r\n", ErrorCode::BadRequest);
}

#[test]
fn a_bad_line_end_or_control_byte_is_refused_without_waiting_for_the_heads_end() {
    for bad in [&b"GET / HTTP/1.1\n"[..], b"GET / HTTP/1.1\rH", b"G\0", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nA: \x7f"] {
        assert_refused(bad, ErrorCode::BadRequest);
    }
}

#[test]
fn header_lines_have_a_token_a_colon_and_a_value_without_control_bytes() {
    for line in [
        "A : b",
        "A\t: b",
        " A: b",
        "\tA: b",
        "A",
        "A b: c",
        ": b",
        "A(: b",
        "A\u{e9}: b",
        "A\": b",
        "A: b\r\n c",
        "A: b\r\n\tc",
        "A:\r\n b",
        "A: b\r\n ",
        "A: \0",
        "A: \x01",
        "A: b\x7fc",
        "A: b\x0bc",
        "A: \x1b",
        "{}: a",
    ] {
        assert_refused(get_with(&format!("{line}\r\n")), ErrorCode::BadRequest);
        assert_refused(format!("GET /f/echo HTTP/1.1\r\n{line}\r\nHost: a\r\n\r\n"), ErrorCode::BadRequest);
    }
    for line in ["A:b", "A: b\tc", "A: \u{e9}", "A: \"(),/:;<=>?@[\\]{}", "!#$%&'*+-.^_`|~: x", "A:    ", "A: : :"] {
        decode_one(get_with(&format!("{line}\r\n")));
    }
    decode_one(b"GET /f/echo HTTP/1.1\r\nHost: a\r\nA: \x80\xff\xfe\r\n\r\n");
}

#[test]
fn targets_of_other_forms_are_malformed_and_other_paths_have_no_route() {
    for target in
        ["f/echo", "?", "https://a/f/echo", "http://a", "http:///f/echo", "a:80", "/f/echo#x", "/f/\u{e9}", "*x", "http://a b/f/echo"]
    {
        assert_refused(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), ErrorCode::BadRequest);
    }
    assert_refused("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", ErrorCode::BadRequest);
    assert_refused(b"GET /f/\xff HTTP/1.1\r\nHost: a\r\n\r\n", ErrorCode::BadRequest);
    for target in ["*", "/", "/metrics", "/f", "/f/", "/f/a%20", "http://a/", "/F/echo", "/f//echo", "/?/f/echo"] {
        let stream = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(decode(stream.as_bytes()), [Outcome::Refused(ErrorCode::NoRoute, true)], "{target}");
    }
    assert_eq!(decode_one("GET http://b:1/f/echo/r?q HTTP/1.1\r\nHost: a\r\n\r\n").path_rest, "/r");
    assert_refused("GET http://b/f/echo HTTP/1.1\r\n\r\n", ErrorCode::BadRequest);
    decode_one("GET /f/echo?\"<>\\^`{|}[] HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn http11_has_exactly_one_good_host_and_http10_at_most_one() {
    let head = |version: &str, hosts: &str| format!("GET /f/echo HTTP/{version}\r\n{hosts}\r\n");
    for hosts in
        ["", "Host:\r\n", "Host: a\r\nhost: a\r\n", "Host: a b\r\n", "Host: :80\r\n", "Host: a/b\r\n", "Host: [::1\r\n", "Host: a, b\r\n"]
    {
        assert_refused(head("1.1", hosts), ErrorCode::BadRequest);
    }
    for hosts in ["Host: a\r\nhost: a\r\n", "Host: a b\r\n"] {
        assert_refused(head("1.0", hosts), ErrorCode::BadRequest);
    }
    for hosts in ["", "Host: \r\n", "Host: a\r\n"] {
        decode_one(head("1.0", hosts));
    }
    for host in ["a", "A.b:80", "[::1]:8080", "127.0.0.1", "a:"] {
        decode_one(head("1.1", &format!("HOST:{host}\r\n")));
    }
}

#[test]
fn the_session_header_is_given_once_and_is_visible_ascii_of_at_most_64_bytes() {
    let longest = "~".repeat(64);
    for (value, session) in
        [("a", "a"), ("  !\t", "!"), (longest.as_str(), longest.as_str()), ("Alice", "Alice"), ("a,b;c=\"d\"", "a,b;c=\"d\"")]
    {
        assert_eq!(decode_one(get_with(&format!("X-SESSION-id:{value}\r\n"))).session.as_deref(), Some(session));
    }
    assert_eq!(decode_one(get_with("")).session, None);
    for lines in [
        "x-session-id:\r\n".to_owned(),
        "x-session-id: \t \r\n".to_owned(),
        "x-session-id: a b\r\n".to_owned(),
        "x-session-id: a\tb\r\n".to_owned(),
        "x-session-id: \u{e9}\r\n".to_owned(),
        format!("x-session-id: {longest}~\r\n"),
        "x-session-id: a\r\nX-Session-Id: a\r\n".to_owned(),
        "x-session-id: a\r\nx-session-id:\r\n".to_owned(),
        "x-session-id:\r\nx-session-id: a\r\n".to_owned(),
        "x-session-id: a\r\nx-session-id: a\r\nx-session-id: a\r\n".to_owned(),
    ] {
        assert_refused(get_with(&lines), ErrorCode::BadSession);
    }
    let limits = HttpLimits { session_header: b"host".to_vec(), ..limits() };
    let (outcomes, _) = decode_pieces(&limits, [get_with("x-session-id: b\r\n").as_bytes()]);
    assert!(matches!(&outcomes[..], [Outcome::Complete(seen)] if seen.session.as_deref() == Some("a")), "another header can be configured");
}

#[test]
fn connection_options_decide_what_stays() {
    let table = [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "connection: CLOSE\r\n", false),
        ("1.1", "Connection: upgrade, Close\r\nUpgrade: h2c\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: x ,close\r\n", false),
        ("1.1", "Connection: keep-alive, close\r\n", false),
        ("1.1", "Connection: closed, xclose\r\n", true),
        ("1.1", "Connection:\r\n", true),
        ("1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
        ("1.0", "Connection: ,x,,\tKeep-Alive \r\n", true),
        ("1.0", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.0", "Connection: keepalive\r\n", false),
    ];
    for (version, lines, keep_alive) in table {
        let stream = format!("GET /f/echo HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
        assert_eq!(decode_one(&stream).keep_alive, keep_alive, "{version} {lines}");
    }
}

#[test]
fn the_head_is_at_most_16_kib_with_the_empty_lines_before_it() {
    for (bytes, is_good) in [(16_384, true), (16_385, false)] {
        for empty_lines in ["", "\r\n\r\n\r\n"] {
            let frame = format!("{empty_lines}{}", get_with("A: \r\n"));
            let stream = frame.replace("A: ", &format!("A: {}", "x".repeat(bytes - frame.len())));
            assert_eq!(stream.len(), bytes);
            if is_good {
                decode_one(stream);
            } else {
                assert_refused(stream, ErrorCode::HeadTooLarge);
            }
        }
    }
    assert_refused(format!("GET /f/{}", "x".repeat(20_000)), ErrorCode::HeadTooLarge);
    assert_refused("\r\n".repeat(10_000), ErrorCode::HeadTooLarge);
    assert_eq!(decode("\r\n".repeat(8_191).as_bytes()), []);
    // The count starts again with every request.
    assert_eq!(decode(format!("{0}{0}{0}", get_with(&format!("A: {}\r\n", "x".repeat(9_000)))).as_bytes()).len(), 3);
}

#[test]
fn a_head_has_at_most_100_fields() {
    decode_one(get_with(&"A: b\r\n".repeat(99)));
    assert_refused(get_with(&"A: b\r\n".repeat(100)), ErrorCode::HeadTooLarge);
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    assert_eq!(decode(format!("\r\n\r\n{0}\r\n{0}", get_with("")).as_bytes()).len(), 2);
    let (_, decoder) = decode_pieces(&limits(), [&b"\r\n"[..]]);
    assert_eq!(decoder.phase(), Phase::Head, "they count as head");
}
