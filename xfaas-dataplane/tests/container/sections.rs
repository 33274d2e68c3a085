//! Strong sections that span a container and its primary.

use super::harness::{Client, Container, Function, Node, Script, eventually, request, run_until_a_deadlock};
use super::{WAYS, node, number, results};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const CLIENTS: u64 = 10;
const INCREMENTS: u64 = 100;
/// Longer than a command of the operator takes, nanoseconds or so.
const LONG_SPIN: i32 = 2_000_000_000;

/// Some clients that each add 1 to one counter many times; every call must succeed.
fn increment_at(address: SocketAddr) {
    let mut client = Client::connect(address);
    for _ in 0..INCREMENTS {
        number(&client.call("POST", "/f/counter-rmw-linear", &[("x-session-id", "shared")], b""));
    }
}

#[test]
fn no_increment_is_lost_between_a_container_and_its_primary() {
    let node = node();
    let containers = WAYS.map(|flags| Container::join(&node, flags));
    let places: Vec<SocketAddr> = containers.iter().map(|container| container.http).chain([node.http]).collect();
    std::thread::scope(|scope| {
        for client in 0..2 * CLIENTS {
            // Half of them at the primary, a quarter at each container.
            let place = if client % 2 == 0 { node.http } else { places[client as usize / 2 % 2] };
            scope.spawn(move || increment_at(place));
        }
    });
    let sum = 2 * CLIENTS * INCREMENTS;
    assert_eq!(number(&node.post("counter-read", "shared", b"")), sum);
    containers.iter().for_each(|container| assert_eq!(number(&container.post("counter-read", "shared", b"")), sum));
    eventually("no lock is left", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 0.0);
}

#[test]
fn two_keys_in_both_orders_deadlock_across_processes_and_one_gets_through() {
    let node = node();
    let container = Container::join(&node, &[]);
    let replied = run_until_a_deadlock([container.http, node.http]);
    container.post("lock-ab", "s", b"").assert_ok(&(replied + 1).to_le_bytes());
}

#[test]
fn a_lock_that_is_not_free_in_time_is_answered_with_lock_wait() {
    let node = Node::builder()
        .function(Script::function("script").with("deadline_ms = 60000"))
        .function(Script::function("short").app("script").with("deadline_ms = 100"))
        .limit("lock_wait_ms = 400")
        .start();
    let container = Container::join(&node, &[]);
    let mut holder = container.connect();
    holder.send(&request("POST", "/f/script", &[("x-session-id", "s")], &Script::new().read("n", 1).spin_forever()));
    eventually("the section is open", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 1.0);
    // Waiting does not count towards a deadline that is shorter than it.
    for place in [container.http, node.http] {
        let begun = Instant::now();
        let mut client = Client::connect(place);
        let reply = client.call("POST", "/f/short", &[("x-session-id", "s")], &Script::new().read("n", 1).end());
        reply.assert_error(503, "lock_wait");
        assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    }
    // A weak access neither waits nor releases.
    let weak = Script::new().write("n", b"weak", 0).read("n", 0).end();
    assert_eq!(results(&container.post("script", "s", &weak)), [0, 4]);
}

#[test]
fn a_section_of_a_guest_that_fails_is_free_again() {
    let node = node();
    let container = Container::join(&node, &[]);
    let open = || Script::new().read("n", 1).read("m", 1);
    container.post("script", "s", &open().trap()).assert_error(500, "guest_trapped");
    container.post("script", "s", &open().end_with(3)).assert_error(500, "guest_error");
    container.post("hasty", "s", &open().spin_forever()).assert_error(504, "deadline");
    assert_eq!(results(&container.post("script", "s", &open().end())), [-1, -1]);
    // None of these waits.
    let begun = Instant::now();
    assert_eq!(results(&node.post("script", "s", &open().write("n", b"1", 1).end())), [-1, -1, 0]);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn a_section_whose_commit_is_refused_is_free_again() {
    let node = node();
    let module = node.directory.path().join("script.wasm");
    let flags = ["--app", "scripts", "--atomic", "--deadline-ms", "60000"];
    assert!(node.cli(&[&["deploy", "brief", module.to_str().unwrap()][..], &flags].concat()).status.success());
    let container = Container::join(&node, &[]);
    let mut client = container.connect();
    let script = Script::new().read("n", 1).spin(LONG_SPIN).write("n", b"never", 1).end();
    client.send(&request("POST", "/f/brief", &[("x-session-id", "s")], &script));
    eventually("the section is open", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 1.0);
    assert!(node.cli(&["undeploy", "brief"]).status.success());
    client.reply().assert_error(503, "no_primary");
    let begun = Instant::now();
    assert_eq!(results(&node.post("script", "s", &Script::new().read("n", 1).write("n", b"1", 1).end())), [-1, 0]);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    eventually("no lock is left", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 0.0);
}

#[test]
fn a_call_whose_function_moves_to_another_app_writes_nothing_there() {
    let node = node();
    let module = node.directory.path().join("script.wasm");
    let deploy = |app: &str| {
        let flags = ["--app", app, "--deadline-ms", "60000"];
        let deployed = node.cli(&[&["deploy", "roams", module.to_str().unwrap()][..], &flags].concat());
        assert!(deployed.status.success(), "{deployed:?}");
    };
    deploy("scripts");
    let container = Container::join(&node, &[]);
    let mut client = container.connect();
    let script = Script::new().read("n", 1).spin(LONG_SPIN).spin(LONG_SPIN).write("n", b"strays", 1).write("m", b"strays", 0).end();
    client.send(&request("POST", "/f/roams", &[("x-session-id", "s")], &script));
    eventually("the section is open", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 1.0);
    assert!(node.cli(&["undeploy", "roams"]).status.success());
    deploy("elsewhere");
    assert_eq!(node.metrics().sum("xfaas_rpc_invocations", &[]), 1.0, "it still runs");
    assert_eq!(results(&client.reply()), [-1, -5, -5]);
    let begun = Instant::now();
    let look = Script::new().read("n", 1).read("m", 1).end();
    assert_eq!(results(&node.post("roams", "s", &look)), [-1, -1], "the new app's session");
    assert_eq!(results(&node.post("script", "s", &look)), [-1, -1], "its own: the section changed nothing");
    assert!(begun.elapsed() < Duration::from_secs(4), "no lock is left: {:?}", begun.elapsed());
    let write = Script::new().write("n", b"new", 1).end();
    eventually("the container serves the new app", || container.post("roams", "s", &write).status == 200);
    assert_eq!(results(&node.post("roams", "s", &look)), [3, -1]);
}

#[test]
fn a_killed_containers_locks_are_released() {
    let node = node();
    let mut container = Container::join(&node, &[]);
    let mut holder = container.connect();
    holder.send(&request("POST", "/f/script", &[("x-session-id", "s")], &Script::new().read("n", 1).spin_forever()));
    eventually("the section is open", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 1.0);
    let mut waiting = node.connect();
    waiting.send(&request("POST", "/f/script", &[("x-session-id", "s")], &Script::new().read("n", 1).write("n", b"1", 1).end()));
    eventually("the other one waits", || node.metrics().sum("xfaas_workers_parked", &[]) == 1.0);
    let begun = Instant::now();
    container.kill();
    assert_eq!(results(&waiting.reply()), [-1, 0]);
    assert!(begun.elapsed() < Duration::from_secs(4), "released with the connection, not by lock_wait_ms: {:?}", begun.elapsed());
}

#[test]
fn a_function_that_opens_two_sections_keeps_both_until_it_writes() {
    let node = node();
    let container = Container::join(&node, &[]);
    let both = Script::new().read("a", 1).read("b", 1).spin(20_000_000).write("a", b"1", 1).write("b", b"1", 1).end();
    let mut clients: Vec<_> = (0..4).map(|i| if i % 2 == 0 { container.connect() } else { node.connect() }).collect();
    for client in &mut clients {
        client.send(&request("POST", "/f/script", &[("x-session-id", "s")], &both));
    }
    let mut firsts = 0;
    for client in &mut clients {
        let results = results(&client.reply());
        assert!(results == [-1, -1, 0, 0] || results == [1, 1, 0, 0], "a section was entered half-way: {results:?}");
        firsts += i32::from(results[0] == -1);
    }
    assert_eq!(firsts, 1);
}

#[test]
fn functions_of_several_apps_share_a_container() {
    let node = Node::builder()
        .function(Function::guest("counter-rmw-linear").named("one"))
        .function(Function::guest("counter-rmw-linear").named("two"))
        .start();
    let container = Container::join(&node, &[]);
    for count in 1..4 {
        assert_eq!(number(&container.post("one", "s", b"")), count);
    }
    assert_eq!(number(&container.post("two", "s", b"")), 1, "sessions of two apps have nothing in common");
}

#[test]
fn a_client_of_a_container_that_is_gone_holds_no_lock_at_the_primary() {
    let node = node();
    let container = Container::join(&node, &[]);
    let invocations = |count: f64| node.metrics().sum("xfaas_rpc_invocations", &[]) == count;
    let ask = |script: Vec<u8>| {
        let mut client = container.connect();
        client.send(&request("POST", "/f/script", &[("x-session-id", "s")], &script));
        client
    };
    let reset = |client: Client| socket2::SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).unwrap();
    let holder = ask(Script::new().read("n", 1).spin_forever());
    eventually("one holds the lock", || invocations(1.0));
    let waiter = ask(Script::new().read("n", 1).write("n", b"1", 1).end());
    eventually("one waits for it", || invocations(2.0));
    reset(waiter);
    eventually("it waits no longer", || invocations(1.0));
    reset(holder);
    eventually("the lock is free", || invocations(0.0));
    assert_eq!(results(&node.post("script", "s", &Script::new().read("n", 1).end())), [-1]);
}
