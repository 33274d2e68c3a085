//! Steering is a hint: the same requests get the same replies in every mode.

use xfaas_common::drop_reason::DropReason;
use xfaas_common::ids::SessionId;

use crate::lab::{Client, Datagram, Lab, Node, PLAIN_V4, PLAIN_V6, PORT, Route, raw_exchange};

/// Name and what was answered.
type Reply = (String, String);
/// All replies, and what was dropped by reason.
type Behaviour = (Vec<Reply>, Vec<(&'static str, u64)>);

/// Connections, by name: the pieces in which the client sends.
fn http_cases() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let get = |path: &str, session: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nx-session-id: {session}\r\n\r\n");
    let echo = |headers: &str, body: &str| format!("POST /f/echo HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}");
    let whole: Vec<(&'static str, String)> = vec![
        ("body", echo("x-session-id: s1\r\ncontent-length: 5\r\n", "hello")),
        ("chunks", echo("X-SESSION-ID: s2\r\ntransfer-encoding: chunked\r\n", "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nt: v\r\n\r\n")),
        ("fresh session", echo("content-length: 2\r\n", "hi")),
        ("session far behind", echo(&format!("a: {}\r\nx-session-id: s3\r\ncontent-length: 1\r\n", "v".repeat(900)), "x")),
        ("rest and query", get("/f/echo/a/b?c=d", "s4")),
        ("HEAD", get("/f/echo", "s5").replace("GET", "HEAD")),
        ("HTTP/1.0", "GET /f/echo HTTP/1.0\r\nx-session-id: s6\r\n\r\n".to_owned()),
        ("pipelined, one session", get("/f/counter-rmw", "s7").repeat(5)),
        ("pipelined, many sessions", (0..20).map(|i| get("/f/counter-rmw", &format!("many-{i}"))).collect()),
        ("read what was counted", get("/f/counter-read", "s7") + &get("/f/counter-read", "many-3")),
        ("strong counter", get("/f/counter-rmw-linear", "s8").repeat(3)),
        ("expect", echo("x-session-id: s9\r\nexpect: 100-continue\r\ncontent-length: 4\r\n", "body")),
        ("bad expectation", echo("x-session-id: s9\r\nexpect: magic\r\ncontent-length: 4\r\n", "body")),
        ("no route", get("/metrics", "s10")),
        ("no function, then good", get("/f/nobody", "s10") + &get("/f/echo", "s10")),
        ("trap, then good", get("/f/trap", "s11") + &get("/f/echo", "s11")),
        ("guest error", get("/f/garbage-return", "s12")),
        ("deadline", get("/f/spin", "s13")),
        ("empty session", get("/f/echo", "")),
        ("two sessions", echo("x-session-id: a\r\nx-session-id: a\r\n", "")),
        ("long session", get("/f/echo", &"x".repeat(65))),
        ("no host", "GET /f/echo HTTP/1.1\r\nx-session-id: s14\r\n\r\n".to_owned()),
        ("bare LF", "GET /f/echo HTTP/1.1\nHost: a\n\n".to_owned()),
        ("not HTTP", "XF\x01\x01\0\0\x05\0\r\n\r\n".to_owned()),
        ("body over the limit", echo("x-session-id: s15\r\ncontent-length: 65537\r\n", "")),
        ("head over the limit", get("/f/echo", "s16").replace("Host: a", &format!("Host: a\r\nb: {}", "v".repeat(17_000)))),
        ("body cut short", echo("x-session-id: s17\r\ncontent-length: 9\r\n", "short")),
    ];
    let mut cases: Vec<_> = whole.into_iter().map(|(name, text)| (name, vec![text.into_bytes()])).collect();
    let bytewise = get("/f/echo", "split-everywhere").into_bytes();
    cases.push(("split at every byte", bytewise.iter().map(|byte| vec![*byte]).collect()));
    let cut = get("/f/echo", "split-in-the-session").into_bytes();
    let (head, tail) = cut.split_at(cut.len() - 12);
    cases.push(("split in the session", vec![head.to_vec(), tail.to_vec()]));
    cases
}

fn datagram_cases() -> Vec<(&'static str, Datagram)> {
    let session = |text: &str| SessionId::new(text.as_bytes()).unwrap();
    let mut cases = vec![
        ("echo", Datagram::new("echo", session("d1"), 0, "hello")),
        ("empty echo", Datagram::new("echo", session("~"), 0, "")),
        ("longest session", Datagram::new("echo", session(&"!".repeat(64)), 0, "x")),
        ("as large as it gets", Datagram::new("echo", session("d2"), 0, vec![b'p'; 65_507 - 34])),
        ("count", Datagram::new("counter-rmw", session("d3"), 0, "")),
        ("count on", Datagram::new("counter-rmw", session("d3"), 0, "")),
        ("read what HTTP counted", Datagram::new("counter-read", session("s7"), 0, "")),
        ("no function", Datagram::new("nobody", session("d4"), 0, "x")),
        ("trap", Datagram::new("trap", session("d5"), 0, "")),
        ("guest error", Datagram::new("garbage-return", session("d6"), 0, 77_i32.to_le_bytes())),
        ("deadline", Datagram::new("spin", session("d7"), 0, "")),
        ("reply too large", Datagram::new("big-output", session("d8"), 0, 65_507_u32.to_le_bytes())),
    ];
    for (number, (_, request)) in cases.iter_mut().enumerate() {
        request.head.request_id = number as u64;
    }
    cases
}

/// Takes away what differs from one reply to the next by its nature. Each says that the owner of its session ran it.
fn normalised(reply: &[u8], session_is_fresh: bool, owners: impl Fn(&SessionId) -> usize) -> String {
    let text = String::from_utf8_lossy(reply);
    let mut owner = None;
    let mut line = |line: &str| {
        let Some((name, value)) = line.split_once(": ") else { return line.to_owned() };
        match name {
            "date" | "x-invocation-id" => format!("{name}: *"),
            "x-session-id" => {
                owner = SessionId::new(value.as_bytes()).map(|session| owners(&session).to_string());
                if session_is_fresh { format!("{name}: *") } else { line.to_owned() }
            }
            "x-xfaas-core" => {
                assert_eq!(Some(value), owner.as_deref(), "{text}");
                format!("{name}: *")
            }
            _ => line.to_owned(),
        }
    };
    text.split("\r\n").map(&mut line).collect::<Vec<_>>().join("\r\n")
}

/// Everything, in the same order: later requests read what earlier ones wrote.
fn replies(lab: &Lab, node: &Node<'_>, route: &Route) -> Vec<Reply> {
    let mut replies = Vec::new();
    lab.on_client(|| {
        for (name, pieces) in http_cases() {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let reply = raw_exchange(route.address(PORT), &pieces).unwrap_or_else(|error| panic!("{name}: {error}"));
            replies.push((format!("{name}, {}", route.name), normalised(&reply, name == "fresh session", node.owners())));
        }
    });
    let client = Client::connect(lab, route);
    for (name, request) in datagram_cases() {
        let answer = client.ask(&request);
        replies.push((format!("datagram: {name}, {}", route.name), format!("{:?}", String::from_utf8_lossy(&answer))));
    }
    assert_eq!(client.drain(), Vec::<Vec<u8>>::new(), "one answer each");
    replies
}

/// Sends malformed datagrams. Output: what was counted, by reason.
fn dropped(lab: &Lab, node: &Node<'_>) -> Vec<(&'static str, u64)> {
    let before = node.metrics();
    let client = Client::connect(lab, &PLAIN_V4);
    let good = Datagram::new("echo", SessionId::new(b"m").unwrap(), 1, "x").bytes();
    for (offset, value) in [(0, b'Y'), (2, 2), (3, 2), (4, 1), (6, 0), (32, b' '), (23, 7)] {
        let mut bad = good.clone();
        bad[offset] = value;
        client.send(&bad);
    }
    client.send(b"XF");
    let after = node.metrics_until("all malformed datagrams are counted", |now| now.since(&before).dropped_in_all() == 8);
    assert_eq!(client.drain(), Vec::<Vec<u8>>::new());
    let counted = after.since(&before);
    DropReason::ALL.iter().map(|reason| (reason.name(), counted.dropped(*reason))).collect()
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn the_same_requests_get_the_same_replies_in_every_mode() {
    let lab = Lab::new();
    let mut expected: Option<Behaviour> = None;
    for mode in ["off", "reuseport", "tc", "xdp"] {
        let node = lab.start(mode);
        let got = ([PLAIN_V4, PLAIN_V6].iter().flat_map(|route| replies(&lab, &node, route)).collect::<Vec<_>>(), dropped(&lab, &node));
        match &expected {
            None => expected = Some(assert_sensible(got)),
            Some(expected) => {
                for (theirs, ours) in expected.0.iter().zip(&got.0) {
                    assert_eq!(ours, theirs, "mode {mode} answers otherwise than mode off");
                }
                assert_eq!(got.1, expected.1, "mode {mode} drops otherwise than mode off");
            }
        }
        assert_eq!(node.stop(), Some(0), "{mode}");
    }
}

/// That all modes agree says little if all are wrong: some replies, as the contract has them.
fn assert_sensible(got: Behaviour) -> Behaviour {
    let reply = |name: &str| &got.0.iter().find(|(known, _)| known == &format!("{name}, IPv4")).unwrap().1;
    let begins = [
        ("body", "200"),
        ("fresh session", "200"),
        ("bad expectation", "417"),
        ("no route", "404"),
        ("guest error", "500"),
        ("deadline", "504"),
        ("empty session", "400"),
        ("not HTTP", "400"),
        ("body over the limit", "413"),
        ("head over the limit", "431"),
        ("split at every byte", "200"),
    ];
    for (name, status) in begins {
        assert!(reply(name).starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {}", reply(name));
    }
    assert!(reply("pipelined, one session").ends_with("\r\n\r\n5"), "{}", reply("pipelined, one session"));
    assert_eq!(reply("pipelined, many sessions").matches("HTTP/1.1 200 ").count(), 20);
    assert!(reply("datagram: count on").ends_with("d32\""), "{}", reply("datagram: count on"));
    assert!(reply("datagram: guest error").contains("guest_error 77"), "{}", reply("datagram: guest error"));
    assert_eq!(got.1.iter().map(|(_, count)| count).sum::<u64>(), 8);
    got
}
