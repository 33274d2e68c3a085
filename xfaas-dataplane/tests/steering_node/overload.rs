//! More datagrams than a shard can take: the kernel's program answers for it, and what it let in is answered by the function.

use std::collections::HashSet;
use std::time::Duration;
use xfaas_common::ids::SessionId;
use xfaas_common::map_layout::Verdict;
use xfaas_common::wire::Status;
use xfaas_dataplane::net::{AnswerBody, decode_datagram_answer};

use crate::lab::{Client, Datagram, Lab, PLAIN, Route, random_sessions};

/// More than any shard lets in.
const FLOOD: u64 = 10_000;
/// Sent before answers are taken: as many as a socket with the kernel's own buffer holds.
const WINDOW: u64 = 64;

const OVERLOADED: AnswerBody<'static> = AnswerBody::Error { status: Status::Overloaded as u8, text: b"overloaded" };

/// Sends to a session whose shard stands still. Output: who was refused, by request ID.
fn flood(client: &Client, request: impl Fn(u64) -> Datagram) -> HashSet<u64> {
    let mut refused = HashSet::new();
    for first in (0..FLOOD).step_by(WINDOW as usize) {
        (first..first + WINDOW).for_each(|id| client.send(&request(id).bytes()));
        for answer in client.drain() {
            let answer = decode_datagram_answer(&answer).unwrap();
            assert_eq!(answer.body, OVERLOADED);
            assert!(refused.insert(answer.head.request_id), "a second answer");
        }
    }
    refused
}

fn overload(lab: &Lab, route: &Route) {
    let node = lab.start("xdp");
    // All of one shard, so that its queue is the one that fills.
    let owners = node.owners();
    let sessions: Vec<SessionId> = random_sessions(83, 128).into_iter().filter(|session| owners(session) == 0).collect();
    let request = |id: u64| Datagram::new("counter-rmw-linear", sessions[id as usize % sessions.len()], id, "");
    let client = Client::connect(lab, route);
    let before = node.metrics();
    client.ask(&request(u64::MAX));
    node.stand_still();
    let mut refused = flood(&client, request);
    node.go_on();
    let mut counts = HashSet::new();
    while let Some(answer) = client.receive_within(Duration::from_secs(1)) {
        let answer = decode_datagram_answer(&answer).unwrap();
        let AnswerBody::Reply(count) = answer.body else {
            assert_eq!(answer.body, OVERLOADED);
            assert!(refused.insert(answer.head.request_id), "a second answer");
            continue;
        };
        assert!(!refused.contains(&answer.head.request_id), "refused, and then run");
        let count: u64 = std::str::from_utf8(count).unwrap().parse().unwrap();
        assert!(counts.insert((answer.head.session, count)), "a session counted {count} twice");
    }
    let sent = FLOOD.next_multiple_of(WINDOW) + 1;
    let counted = node.metrics_until("each was run or refused", |metrics| {
        let since = metrics.since(&before);
        since.ran("counter-rmw-linear", 0) + since.verdict(Verdict::Shed) == sent
    });
    let counted = counted.since(&before);
    let (ran, shed) = (counted.ran("counter-rmw-linear", 0), refused.len() as u64);
    assert_eq!((counted.verdict(Verdict::Shed), counted.verdict(Verdict::ShedSilently)), (shed, 0), "over {}", route.name);
    assert!(ran > 64 && shed > FLOOD / 4, "{ran} ran and {shed} were refused over {}", route.name);
    // Answers that the client's own buffer had no room for are lost; those of a full buffer are there.
    assert!(counts.len() >= 64 && (counts.len() as u64) < ran);
    client.ask(&request(u64::MAX - 1));
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn a_flood_is_answered_by_the_kernel_and_what_was_let_in_by_the_function() {
    let lab = Lab::new();
    lab.let_xdp_send();
    for route in PLAIN {
        overload(&lab, &route);
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn where_the_device_cannot_send_a_flood_is_refused_without_a_word_and_does_no_harm() {
    let lab = Lab::new();
    let node = lab.start("xdp");
    let session = random_sessions(89, 1)[0];
    let request = |id| Datagram::new("counter-rmw-linear", session, id, "");
    let client = Client::connect(&lab, &PLAIN[0]);
    client.ask(&request(u64::MAX));
    node.stand_still();
    assert!(flood(&client, request).is_empty());
    node.go_on();
    while client.receive_within(Duration::from_secs(1)).is_some() {}
    client.ask(&request(u64::MAX - 1));
    assert!(node.metrics().verdict(Verdict::Shed) > FLOOD / 4);
}
