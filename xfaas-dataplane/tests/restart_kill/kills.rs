//! `kill -9` under load, again and again.

use crate::harness::{Client, Function, Node};
use crate::load::{Counter, PAIR_BYTES, count_over_http, count_over_udp, pair};
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Kills in the test command; a soak gives more in this variable.
const KILLS: usize = 50;
const KILLS_VARIABLE: &str = "XFAAS_KILLS";
const COUNTERS: usize = 24;
const PAIRS: usize = 8;
/// CONTRACT.md section 4; a machine that does much else may now and then take longer.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(2);
const FIRST_ANSWER_BUSY_MAX: Duration = Duration::from_secs(10);

fn node() -> Node {
    Node::builder()
        .function(Function::guest("counter-rmw-linear").app("counters"))
        .function(Function::guest("counter-read").app("counters").with("read_only = true"))
        .function(pair())
        .start()
}

/// Starts the node. Output: how long it took from before the exec to the first answer of a function.
fn start(node: &mut Node) -> Duration {
    let begun = Instant::now();
    node.spawn();
    loop {
        let answered = Client::try_connect(node.http).and_then(|mut client| {
            let reply = client.try_call("POST", "/f/counter-read", &[("x-session-id", "counter-0")], b"")?;
            assert_eq!(reply.status, 200, "{reply:?}");
            Ok(())
        });
        if answered.is_ok() {
            return begun.elapsed();
        }
        assert!(node.is_running(), "the node ended by itself");
        assert!(begun.elapsed() < FIRST_ANSWER_BUSY_MAX, "no answer within {FIRST_ANSWER_BUSY_MAX:?}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The value of a counter now, held against the books. Other clients may go on counting meanwhile.
#[track_caller]
fn check(client: &mut Client, counter: &Counter) {
    let at_least = counter.at_least();
    let value = match counter.function {
        "pair" => {
            let reply = client.call("POST", "/f/pair", &[("x-session-id", &counter.session)], b"look");
            assert_eq!((reply.status, reply.body.len()), (200, PAIR_BYTES.iter().sum()), "{reply:?}");
            let numbers: Vec<u64> = reply.body.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
            assert!(numbers.iter().all(|number| *number == numbers[0]), "half of an atomic call: {numbers:?}");
            numbers[0]
        }
        _ => client.call("POST", "/f/counter-read", &[("x-session-id", &counter.session)], b"").text().parse().unwrap(),
    };
    let at_most = counter.attempted();
    assert!(
        (at_least..=at_most).contains(&value),
        "{} of {}: {value}, but {at_least} were acknowledged and {at_most} attempted",
        counter.session,
        counter.function,
    );
}

fn check_all<'a>(node: &Node, counters: impl Iterator<Item = &'a Counter>) {
    let mut client = node.connect();
    counters.for_each(|counter| check(&mut client, counter));
    assert_eq!(node.metrics().sum("xfaas_regions_refused_total", &[]), 0.0);
}

/// Waits until so many more calls were acknowledged.
fn wait_for(node: &mut Node, done: &AtomicU64, more: u64) {
    let (wanted, begun) = (done.load(Ordering::Relaxed) + more, Instant::now());
    while done.load(Ordering::Relaxed) < wanted {
        assert!(node.is_running(), "the node ended by itself");
        assert!(begun.elapsed() < Duration::from_secs(30), "the clients are stuck");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn what_was_acknowledged_is_there_after_each_of_fifty_kills() {
    let kills = std::env::var(KILLS_VARIABLE).map_or(KILLS, |text| text.parse().expect("a number of kills"));
    let mut random = rand::rngs::StdRng::seed_from_u64(9);
    let mut node = node();
    let address = node.http;
    let counters: Vec<Counter> = (0..COUNTERS).map(|i| Counter::new("counter-rmw-linear", format!("counter-{i}"))).collect();
    let pairs: Vec<Counter> = (0..PAIRS).map(|i| Counter::new("pair", format!("pair-{i}"))).collect();
    let (is_over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut times = Vec::with_capacity(kills);
    std::thread::scope(|scope| {
        let over = StopAtEnd(&is_over);
        for _ in 0..2 {
            scope.spawn(|| count_over_http(address, &counters, &is_over, &done));
            scope.spawn(|| count_over_http(address, &pairs, &is_over, &done));
        }
        scope.spawn(|| count_over_udp(address, &counters, &is_over, &done));
        scope.spawn(|| count_over_udp(address, &pairs, &is_over, &done));
        for _ in 0..kills {
            wait_for(&mut node, &done, random.random_range(20..400));
            let moment = Instant::now() + Duration::from_micros(random.random_range(0..2_000));
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            node.kill();
            times.push(start(&mut node));
            check_all(&node, counters.iter().chain(&pairs));
        }
        drop(over);
    });
    check_all(&node, counters.iter().chain(&pairs));
    assert!(no_file_was_set_aside(&node));
    report(&mut times, &counters, &pairs);
}

/// Lets the clients end, also when the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn no_file_was_set_aside(node: &Node) -> bool {
    let folders = std::fs::read_dir(node.shared_memory()).unwrap().map(|entry| entry.unwrap().path());
    let mut files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().file_name());
    files.all(|name| !name.to_string_lossy().contains("refused"))
}

fn report(times: &mut [Duration], counters: &[Counter], pairs: &[Counter]) {
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    let sum = |counters: &[Counter]| counters.iter().map(Counter::acknowledged).sum::<u64>();
    println!(
        "{} kills, {} acknowledged increments and {} acknowledged pairs checked; first answer after {median:?} (median), {longest:?} (longest)",
        times.len(),
        sum(counters),
        sum(pairs),
    );
    assert!(median <= FIRST_ANSWER_MAX, "{median:?} to the first answer");
}
