//! A container on the other side of a wire that delays, loses, and is cut: no increment is lost, no request hangs, no lock stays.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::lab::{Container, Http, Lab, PLAIN_V4, PORT, until};

/// The functions' deadline is 1 s; the rest is what a busy machine adds.
const ANSWERED_WITHIN: Duration = Duration::from_secs(4);
/// The same of a request that may wait for a lock as long as it is allowed to: 5 s, which do not count.
const LOCKED_WITHIN: Duration = Duration::from_secs(10);

/// What clients that add 1 again and again have seen.
#[derive(Default)]
struct Tally {
    attempted: AtomicU64,
    acknowledged: AtomicU64,
}

impl Tally {
    /// Adds 1 to the session's counter. Panics when the answer takes too long, or is neither the count nor that the primary could not be reached.
    fn increment(&self, http: &mut Http, session: &str, within: Duration) {
        let begun = Instant::now();
        self.attempted.fetch_add(1, Ordering::Relaxed);
        let head = post(http, "counter-rmw-linear", session);
        assert!(begun.elapsed() < within, "{:?}: {head}", begun.elapsed());
        if head.starts_with("HTTP/1.1 200 ") {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Every acknowledged increment is there, and none was made twice; those without a good answer may be there or not.
    fn check(&self, count: u64) {
        let (attempted, acknowledged) = (self.attempted.load(Ordering::Relaxed), self.acknowledged());
        assert!((acknowledged..=attempted).contains(&count), "{acknowledged} acknowledged, {count} counted, {attempted} attempted");
    }
}

/// Ends the loops of clients, also when the test fails: a scope waits for its threads before it tells.
#[derive(Default)]
struct Stop(AtomicBool);

struct StopAtEnd<'a>(&'a Stop);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Output: the reply's head.
fn post(http: &mut Http, function: &str, session: &str) -> String {
    send(http, function, session);
    http.receive().0
}

fn send(http: &mut Http, function: &str, session: &str) {
    http.send(format!("POST /f/{function} HTTP/1.1\r\nhost: a\r\nx-session-id: {session}\r\ncontent-length: 0\r\n\r\n").as_bytes());
}

/// The counter as the primary has it: one more than the sum of all increments so far.
fn count_at_primary(lab: &Lab, session: &str) -> u64 {
    lab.on_server(|| {
        let mut http = Http::connect(PLAIN_V4.address(PORT));
        send(&mut http, "counter-rmw-linear", session);
        let (head, body) = http.receive();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        String::from_utf8(body).unwrap().parse().unwrap()
    })
}

fn connect_to_container(lab: &Lab) -> Http {
    lab.on_client(|| Http::connect(Container::ADDRESS.parse().unwrap()))
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run `cargo xtask test`"]
fn counts_stay_exact_over_a_wire_that_delays_and_loses() {
    let lab = Lab::with_bad_wire();
    let node = lab.start("off");
    let container = lab.start_container();
    lab.disturb(Duration::from_millis(20), 50);
    let (far, near) = (Tally::default(), Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut http = connect_to_container(&lab);
            let far = &far;
            scope.spawn(move || (0..8).for_each(|_| far.increment(&mut http, "shared", LOCKED_WITHIN)));
            let mut http = lab.on_server(|| Http::connect(PLAIN_V4.address(PORT)));
            let near = &near;
            // Neighbours wait for sections that are open over the wire for a while.
            scope.spawn(move || (0..8).for_each(|_| near.increment(&mut http, "shared", LOCKED_WITHIN)));
        }
    });
    // What the primary does not acknowledge to its neighbour, a wait that was too long, it has not done.
    let count = count_at_primary(&lab, "shared") - 1;
    far.check(count - near.acknowledged());
    let (far, near) = (far.acknowledged(), near.acknowledged());
    assert!(far >= 16 && near >= 16, "most of 32 get through: {far} and {near}");
    until("no lock is left", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 0);
    assert_eq!(container.metrics().sum("xfaas_container_mapped_reads_total", &[]), 0);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run `cargo xtask test`"]
fn when_the_wire_is_cut_requests_are_answered_locks_go_back_and_later_it_goes_on() {
    let lab = Lab::new();
    let node = lab.start("off");
    let container = lab.start_container();
    // A section that is open for certain when the wire is cut.
    let mut holder = connect_to_container(&lab);
    send(&mut holder, "lock-forever", "held");
    until("the section is open", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 1);
    let (tally, stop) = (Tally::default(), Stop::default());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut http = connect_to_container(&lab);
            let (tally, stop) = (&tally, &stop);
            scope.spawn(move || {
                while !stop.0.load(Ordering::Relaxed) {
                    tally.increment(&mut http, "shared", ANSWERED_WITHIN);
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        let goes_on = |what: &str| {
            let seen = tally.acknowledged();
            until(what, || tally.acknowledged() >= seen + 20);
        };
        goes_on("increments are acknowledged");
        lab.cut_wire();
        let begun = Instant::now();
        assert_eq!(count_at_primary(&lab, "held"), 1, "its neighbours have waited, and the section changed nothing");
        assert!(begun.elapsed() < ANSWERED_WITHIN, "released after 2 s of silence: {:?}", begun.elapsed());
        until("the loss is noticed", || !container.is_ready());
        let seen = tally.attempted.load(Ordering::Relaxed);
        until("requests are answered all the same", || tally.attempted.load(Ordering::Relaxed) >= seen + 20);
        lab.mend_wire();
        until("the container is back", || container.is_ready());
        goes_on("increments are acknowledged again");
    });
    tally.check(count_at_primary(&lab, "shared") - 1);
    until("no lock is left", || node.metrics().sum("xfaas_rpc_invocations", &[]) == 0);
}
