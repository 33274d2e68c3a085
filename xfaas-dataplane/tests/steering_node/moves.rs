//! A session that was moved to another core: the kernel brings its packets there at once.

use xfaas_common::ids::SessionId;

use crate::lab::{Client, Datagram, Http, Lab, PLAIN, PORT, post, random_sessions};

const DATAGRAMS: usize = 200;

fn move_to(lab: &Lab, session: &SessionId, core: usize) {
    // Every byte of a session may be in it: what JSON would read differently is escaped.
    let text: String = session.as_str().chars().map(|letter| format!("\\u{:04x}", u32::from(letter))).collect();
    let body = format!("{{\"app\":\"echo\",\"session\":\"{text}\",\"core\":{core}}}");
    let reply = lab.on_server(|| post("127.0.0.1:9070", "/v1/sessions/move", &body)).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn packets_of_a_moved_session_come_to_its_new_core_at_once() {
    let lab = Lab::new();
    let node = lab.start("xdp");
    let owners = node.owners();
    for (number, route) in PLAIN.iter().enumerate() {
        let session = random_sessions(70 + number as u64, 1)[0];
        let home = owners(&session);
        let connect = || lab.on_client(|| Http::connect(route.address(PORT)));
        let mut connection = connect();
        assert_eq!(connection.echo(session.as_str(), b"before"), home);
        let client = Client::connect(&lab, route);
        for core in [1 - home, home, 1 - home] {
            move_to(&lab, &session, core);
            let before = node.metrics();
            let request = |id: usize| Datagram::new("echo", session, id as u64, format!("{id} on core {core}"));
            let requests: Vec<Datagram> = (0..DATAGRAMS).map(request).collect();
            for (request, answer) in requests.iter().zip(client.exchange(&requests)) {
                request.assert_echoed(&answer);
            }
            let counted = node.metrics().since(&before);
            assert_eq!((counted.ran("echo", core), counted.ran("echo", 1 - core)), (DATAGRAMS as u64, 0), "over {}", route.name);
            assert_eq!((counted.steered(), counted.misrouted()), (DATAGRAMS as u64, 0), "over {}: {:?}", route.name, counted.verdicts());
            // A new connection is brought there by its first request; one that was here before goes after the session with its next one.
            let before = node.metrics();
            assert_eq!(connect().echo(session.as_str(), b"new"), core);
            assert_eq!(connection.echo(session.as_str(), b"old"), core);
            // A connection moves once its reply is out: that may be after the client has it.
            node.metrics_until("the connections have followed", |now| {
                let counted = now.since(&before);
                counted.misrouted() > 0 && counted.moved() == counted.misrouted()
            });
            let before = node.metrics();
            assert_eq!(connection.echo(session.as_str(), b"old"), core);
            let counted = node.metrics().since(&before);
            assert_eq!((counted.steered(), counted.misrouted()), (1, 0), "over {}: the connection has followed", route.name);
        }
    }
}
