//! Datagrams come to the shard that owns their session, over every route.

use xfaas_common::ids::SessionId;
use xfaas_common::map_layout::Verdict;

use crate::lab::{Client, Datagram, Lab, Metrics, Node, PLAIN, Route, TAGGED, random_sessions};

const DATAGRAMS: usize = 10_000;

/// Sends echo requests with these sessions, and holds each answer against its request.
fn echo_all(lab: &Lab, route: &Route, sessions: &[SessionId]) {
    let request = |(id, session): (usize, &SessionId)| Datagram::new("echo", *session, id as u64, format!("{id} over {}", route.name));
    let requests: Vec<Datagram> = sessions.iter().enumerate().map(request).collect();
    let answers = Client::connect(lab, route).exchange(&requests);
    for (request, answer) in requests.iter().zip(answers) {
        request.assert_echoed(&answer);
    }
}

/// Output: what was counted while `echo_all` ran.
fn counted_while_echoing(lab: &Lab, node: &Node<'_>, route: &Route, sessions: &[SessionId]) -> Metrics {
    let before = node.metrics();
    echo_all(lab, route, sessions);
    let owners = node.owners();
    let owned = |shard| sessions.iter().filter(|session| owners(session) == shard).count() as u64;
    let counted = node.metrics().since(&before);
    for shard in [0, 1] {
        assert_eq!(counted.ran("echo", shard), owned(shard), "shard {shard} ran what it owns, over {}", route.name);
    }
    assert_eq!(counted.dropped_in_all(), 0);
    counted
}

fn assert_all_steered(counted: &Metrics, datagrams: u64, route: &Route) {
    assert_eq!((counted.steered(), counted.misrouted()), (datagrams, 0), "over {}: {:?}", route.name, counted.verdicts());
    assert_eq!(counted.sum("xfaas_forwarded_total", &[]), 0);
    assert_eq!(counted.verdict(Verdict::ReuseportUdp), datagrams, "over {}: {:?}", route.name, counted.verdicts());
    assert_eq!((counted.verdict(Verdict::RedirectFailed), counted.verdict(Verdict::ReuseportFallback)), (0, 0));
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn ten_thousand_datagrams_are_answered_by_the_owners_of_their_sessions() {
    let lab = Lab::new();
    let node = lab.start("xdp");
    assert!(node.log().contains("xdp (native) on xs"), "{}", node.log());
    for (number, route) in PLAIN.iter().chain(&TAGGED).enumerate() {
        // Ten thousand of each family as they are, and as many behind tags of all kinds.
        let count = if route.tags.is_empty() { DATAGRAMS } else { DATAGRAMS / TAGGED.len() };
        let counted = counted_while_echoing(&lab, &node, route, &random_sessions(number as u64, count));
        assert_all_steered(&counted, count as u64, route);
        let (moved, stayed) = (counted.verdict(Verdict::UdpRedirected), counted.verdict(Verdict::UdpLocal));
        assert_eq!(moved + stayed, count as u64, "over {}: {:?}", route.name, counted.verdicts());
        // Whichever CPU the client ran on, about half of the sessions belong to the other one.
        assert!(moved > count as u64 / 10, "over {}: {:?}", route.name, counted.verdicts());
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn tc_and_reuseport_bring_datagrams_to_their_owners_too() {
    let lab = Lab::new();
    for mode in ["tc", "reuseport"] {
        let node = lab.start(mode);
        for (number, route) in PLAIN.iter().chain(&TAGGED).enumerate() {
            let counted = counted_while_echoing(&lab, &node, route, &random_sessions(number as u64, 500));
            assert_all_steered(&counted, 500, route);
            let seen = counted.verdict(Verdict::UdpLocal) + counted.verdict(Verdict::Unmoved);
            assert_eq!(seen, if mode == "tc" { 500 } else { 0 }, "{mode} over {}: {:?}", route.name, counted.verdicts());
        }
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn without_steering_the_mailboxes_bring_datagrams_to_their_owners() {
    let lab = Lab::new();
    let node = lab.start("off");
    for route in &PLAIN {
        let counted = counted_while_echoing(&lab, &node, route, &random_sessions(7, 500));
        assert_eq!(counted.steered() + counted.misrouted(), 500);
        assert_eq!(counted.sum("xfaas_forwarded_total", &[]), counted.misrouted());
        // One socket of the group gets all that one client sends.
        assert!(counted.misrouted() > 50, "{}", counted.misrouted());
        assert_eq!(counted.verdicts(), []);
    }
}
