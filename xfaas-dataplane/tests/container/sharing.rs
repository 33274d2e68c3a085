//! Sessions that both the primary and a container serve, and functions that come and go.

use super::harness::{Client, Container, Node, Reply, Script, UdpClient, eventually, guest, request};
use super::{WAYS, node, number, reads, results};

#[test]
fn primary_and_container_see_each_others_writes_with_and_without_a_mapping() {
    let node = node();
    for flags in WAYS {
        let container = Container::join(&node, flags);
        let session = format!("s{}", flags.len());
        for round in 0..5 {
            assert_eq!(number(&container.post("counter-rmw-linear", &session, b"")), 2 * round + 1);
            assert_eq!(number(&node.post("counter-read", &session, b"")), 2 * round + 1);
            assert_eq!(number(&node.post("counter-rmw-linear", &session, b"")), 2 * round + 2);
            let before = reads(&container);
            assert_eq!(number(&container.post("counter-read", &session, b"")), 2 * round + 2);
            eventually("the read is counted", || reads(&container) != before);
            let (mapped, asked) = reads(&container);
            let expected = if flags.is_empty() { (before.0 + 1.0, before.1) } else { (before.0, before.1 + 1.0) };
            assert_eq!((mapped, asked), expected, "{flags:?}");
        }
    }
}

#[test]
fn a_container_keeps_to_the_contract_of_http_and_datagrams() {
    let node = node();
    let container = Container::join(&node, &[]);
    let mut client = container.connect();
    let reply = client.call("PUT", "/f/echo/rest?query", &[], b"hello");
    reply.assert_ok(b"hello");
    assert_eq!(reply.session().len(), 22, "a fresh session");
    client.call("POST", "/f/missing", &[], b"").assert_error(404, "no_function");
    client.call("GET", "/metrics", &[], b"").assert_error(404, "no_route");
    assert_eq!(client.call("HEAD", "/f/echo", &[], b"").status, 200);
    let udp = UdpClient::connect(container.http);
    udp.call("echo", "s", 7, b"by datagram").assert_reply(b"by datagram");
    udp.call("missing", "s", 8, b"").assert_error(1, "no_function");
}

/// Every case of a guest's calls gives the same results in the container as at the primary, each on a session of its own.
#[test]
fn a_guest_cannot_tell_where_it_runs() {
    let node = node();
    let scripts: Vec<(&str, Vec<u8>)> = vec![
        (
            "script",
            Script::new().read("n", 0).write("n", b"one", 0).read("n", 0).read("n", 1).write("n", b"", 1).read("n", 0).output(8).end(),
        ),
        ("script", Script::new().read("n", 1).read("n", 1).write("m", b"1", 1).read("m", 1).write("n", b"23", 1).read("n", 0).end()),
        ("script", Script::new().read("", 0).write("", b"x", 0).read("n", 2).write("n", b"x", -1).read(&"k".repeat(256), 0).end()),
        ("script", Script::new().write_bytes("big", 1 << 20).read("big", 0).write_bytes("big", (1 << 20) + 1).read("big", 1).end()),
        ("script", Script::new().write(&"k".repeat(255), b"long key", 1).read(&"k".repeat(255), 0).end()),
        ("reader", Script::new().read("n", 0).write("n", b"x", 0).read("n", 1).write("n", b"x", 1).end()),
        ("atomic", Script::new().write("a", b"12", 0).read("a", 0).read("b", 1).write("b", b"345", 1).read("b", 1).read("a", 1).end()),
        (
            "script",
            Script::new()
                .write("a", b"1", 0)
                .write("b", b"", 1)
                .write_bytes("c", 70_000)
                .snapshot(&["b", "a", "missing"])
                .output(16)
                .end_with(0),
        ),
        ("script", Script::new().write("a", b"1", 0).snapshot(&["a", "a"]).snapshot(&["c"]).snapshot(&[]).snapshot(&["a", ""]).end()),
        ("script", Script::new().write_bytes("c", 70_000).snapshot(&["c", "a"]).end()),
        ("atomic", Script::new().write("a", b"12", 0).snapshot(&["a", "n", "c", "a"]).output(30).write("c", b"345", 0).end_with(0)),
        ("atomic", Script::new().write("a", b"12", 0).write("c", b"3", 0).snapshot(&["c", "a"]).snapshot(&["x", "a"]).end()),
        ("reader", Script::new().snapshot(&["a", "b"]).end()),
        ("atomic", Script::new().write_bytes("a", (1 << 20) + 1).write_bytes("a", 1 << 20).read("a", 0).end()),
    ];
    for flags in WAYS {
        let container = Container::join(&node, flags);
        for (i, (function, script)) in scripts.iter().enumerate() {
            // Twice: the second finds what the first has left.
            for round in 0..2 {
                let here = node.post(function, &format!("here-{i}-{}", flags.len()), script);
                let there = container.post(function, &format!("there-{i}-{}", flags.len()), script);
                assert_eq!((there.status, &there.body), (200, &here.body), "script {i} of {function}, round {round}, {flags:?}");
            }
        }
    }
}

#[test]
fn an_atomic_functions_writes_take_effect_together_or_not_at_all() {
    let node = node();
    let container = Container::join(&node, &["--no-map"]);
    let write_both = || Script::new().write("a", b"1", 0).read("b", 1).write("b", b"22", 1);
    let lengths = || results(&node.post("script", "s", &Script::new().read("a", 0).read("b", 0).end()));
    let refused = container.post("atomic", "s", &write_both().end_with(5));
    refused.assert_error(500, "guest_error");
    assert_eq!(lengths(), [-1, -1]);
    container.post("atomic", "s", &write_both().trap()).assert_error(500, "guest_trapped");
    assert_eq!(lengths(), [-1, -1]);
    // The locks of both are free again, or this would wait.
    assert_eq!(results(&container.post("atomic", "s", &write_both().end())), [0, -1, 0]);
    assert_eq!(lengths(), [1, 2]);
    // What does not fit into one commit is refused when it is written, and the rest takes effect.
    let three = Script::new().write_bytes("x", 1 << 20).write_bytes("y", 1 << 20).write_bytes("z", 1 << 20).end();
    assert_eq!(results(&container.post("atomic", "s", &three)), [0, 0, -3]);
    assert_eq!(results(&node.post("script", "s", &Script::new().read("y", 0).read("z", 0).end())), [1 << 20, -1]);
}

#[test]
fn a_commit_over_the_sessions_limit_changes_nothing() {
    let node = Node::builder()
        .function(Script::function("atomic").with("atomic = true").with("state_mib = 1"))
        .function(Script::function("script").app("atomic").with("state_mib = 1"))
        .start();
    let container = Container::join(&node, &[]);
    assert_eq!(results(&node.post("script", "s", &Script::new().write_bytes("n", 900_000).end())), [0]);
    // Alone each write would fit; the primary knows what is there already.
    let refused = container.post("atomic", "s", &Script::new().write("a", b"1", 0).write_bytes("b", 500_000).end());
    refused.assert_error(500, "guest_error");
    assert_eq!(refused.problem()["guest_code"], -3);
    assert_eq!(results(&container.post("script", "s", &Script::new().read("a", 0).read("b", 0).end())), [-1, -1]);
}

#[test]
fn what_is_deployed_at_the_primary_appears_changes_and_goes_in_the_container() {
    let node = node();
    let container = Container::join(&node, &[]);
    container.post("late", "s", b"").assert_error(404, "no_function");
    let deploy = |file: &str| {
        let path = guest(file);
        let output = node.cli(&["deploy", "late", path.to_str().unwrap(), "--app", "counter"]);
        assert!(output.status.success(), "{output:?}");
    };
    assert_eq!(number(&node.post("counter-rmw-linear", "s", b"")), 1);
    // One shard may have a change a moment before the other, and each connection finds one of them.
    let everywhere = |what: &str, holds: &dyn Fn(&Reply) -> bool| {
        eventually(what, || (0..8).all(|_| holds(&container.post("late", "s", b"x"))));
    };
    deploy("counter-rmw-linear");
    everywhere("the function is there, and works on its app's sessions", &|reply| reply.status == 200 && number(reply) > 1);
    deploy("echo");
    everywhere("its new version is there", &|reply| reply.body == b"x");
    assert!(node.cli(&["undeploy", "late"]).status.success());
    everywhere("it is gone", &|reply| reply.status == 404);
    let count = number(&node.post("counter-read", "s", b""));
    assert_eq!(number(&container.post("counter-read", "s", b"")), count, "nothing else has changed");
}

#[test]
fn a_new_apps_region_is_mapped_too() {
    let node = node();
    let container = Container::join(&node, &[]);
    let path = guest("counter-read");
    assert!(node.cli(&["deploy", "fresh", path.to_str().unwrap()]).status.success());
    eventually("its reads are mapped", || {
        let before = reads(&container);
        let is_there = container.post("fresh", "s", b"").status == 200;
        // Counts are published at the end of a turn.
        is_there && {
            eventually("counted", || reads(&container) != before);
            reads(&container).0 > before.0
        }
    });
}

#[test]
fn many_keys_of_many_sizes_come_back_as_they_went() {
    let node = node();
    let container = Container::join(&node, &["--no-map"]);
    let mut clients: Vec<Client> = (0..8).map(|_| container.connect()).collect();
    for size in [0, 1, 16, 1_000, 16_384, 65_536, 300_000, 1 << 20] {
        for (i, client) in clients.iter_mut().enumerate() {
            let write = Script::new().write_bytes(&format!("k{i}"), size).end();
            client.send(&request("POST", "/f/script", &[("x-session-id", "s")], &write));
        }
        clients.iter_mut().for_each(|client| assert_eq!(results(&client.reply()), [0]));
        for i in 0..8 {
            let read = Script::new().read(&format!("k{i}"), 0).read(&format!("k{i}"), 1).end();
            assert_eq!(results(&container.post("script", "s", &read)), [size, size]);
            assert_eq!(results(&node.post("script", "s", &read)), [size, size]);
        }
    }
}
