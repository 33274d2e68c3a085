//! `xfaas-load` as it is run: against the real `xfaas`, and against peers that are broken on purpose. Each run takes a second or two.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use xfaas_bench::generator::{LoadSpec, Progress, Transport, Wait, run_load_marked};
use xfaas_bench::load::Interrupt;
use xfaas_bench::servers::{Server, XfaasFiles, start_xfaas};
use xfaas_bench::settings::built_beside;
use xfaas_common::wire::{Header, KIND_REPLY};
use xfaas_dataplane::sys::affinity::allowed_cpus;

#[path = "generator/manners.rs"]
mod manners;

const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guests");

/// The program and the guests.
fn files() -> XfaasFiles {
    let mut files = built_beside();
    if std::env::var_os("XFAAS_BIN").is_none() {
        // Tests lie one folder deeper than programs.
        let own = std::env::current_exe().expect("a running test has a path");
        files.binary = own.ancestors().nth(2).expect("target/debug/deps").join("xfaas");
    }
    assert!(files.binary.is_file(), "{} is missing: `cargo build -p xfaas-dataplane --bin xfaas`", files.binary.display());
    files.guests = std::env::var_os("XFAAS_GUESTS").map_or_else(|| GUESTS.into(), Into::into);
    files
}

/// A node with the sample functions.
fn node() -> Server {
    start_xfaas(&files(), allowed_cpus()[0], &Interrupt::default()).expect("xfaas starts")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xfaas-load"));
    // It shares its core with the server and other tests here.
    command.args(arguments).stdin(Stdio::null());
    command
}

fn load(target: &str, arguments: &[&str]) -> Output {
    // A run that ends by its count may be over before any warm-up is.
    let warm_up_s = if arguments.contains(&"--requests") { "0" } else { "0.2" };
    let common = [target, "--json", "--seconds", "1", "--warm-up-s", warm_up_s, "--wait", "sleep"];
    command(&[&common, arguments].concat()).output().expect("a built program starts")
}

/// The document of a run that ended with `code`.
fn document(output: &Output, code: i32) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(code), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn count(document: &Value, field: &str) -> u64 {
    document[field].as_u64().unwrap_or_else(|| panic!("{field} of {document}"))
}

fn check_counters(document: &Value) {
    let counters = &document["counters"];
    assert_eq!((count(counters, "lost_updates"), count(counters, "doubled_updates")), (0, 0), "{document}");
    assert_eq!(counters["was_read"], true);
    let functions = document["functions"].as_array().expect("a list");
    let linear = functions.iter().find(|function| function["name"] == "counter-rmw-linear").expect("it was asked");
    assert_eq!(count(counters, "acknowledged"), count(linear, "good"), "{document}");
}

#[test]
fn a_closed_loop_over_http_counts_what_the_counters_count() {
    let node = node();
    let target = format!("http://{}", node.address());
    let run = document(&load(&target, &["--connections", "8", "--sessions", "20"]), 0);
    check_counters(&run);
    assert!(count(&run, "good") > 100 && run["requests_per_second"].as_f64().unwrap() > 100.0, "{run}");
    assert_eq!(count(&run["counters"], "sessions"), 20);
    assert_eq!((count(&run, "wrong"), count(&run, "failed"), count(&run, "unsure")), (0, 0, 0));
    let [p50, p99, max] = ["p50_us", "p99_us", "max_us"].map(|field| run[field].as_f64().unwrap());
    assert!(p50 > 0.0 && p50 <= p99 && p99 <= max, "{run}");

    // The same sessions again: what they had counted is read first. More requests under way than connections: pipelined.
    let again = ["--session-prefix", "again-", "--sessions", "5", "--connections", "2", "--in-flight", "16", "--threads", "2"];
    check_counters(&document(&load(&target, &again), 0));
    check_counters(&document(&load(&target, &again), 0));
}

#[test]
fn an_open_loop_over_http_keeps_its_rate_and_its_mix() {
    let node = node();
    let mix = ["--function", "counter-read:3", "--function", "counter-rmw-linear:1", "--rate", "500", "--popularity", "zipf"];
    let run = document(&load(&format!("http://{}", node.address()), &mix), 0);
    check_counters(&run);
    // Poisson, 600 in 1.2 s: 5 standard deviations, and fewer as the generator had no CPU.
    let (sent, off_cpu_ms) = (count(&run, "sent") + count(&run, "unsent"), run["off_cpu_ms"].as_f64().unwrap());
    assert!(sent <= 722 && sent + (off_cpu_ms * 0.5).ceil() as u64 >= 478, "{run}");
    let [reads, writes] = [0, 1].map(|i| count(&run["functions"][i], "good"));
    assert!(reads > writes && writes > 0, "{run}");
    assert_eq!((run["offered_per_second"].as_f64(), run["arrivals"].as_str()), (Some(500.0), Some("poisson")));
    assert!(run["send_delay_p99_us"].as_f64().is_some());
}

#[test]
fn datagrams_in_bursts_and_in_a_closed_loop_count_what_the_counters_count() {
    let node = node();
    let target = format!("udp://{}", node.address());
    let bursts = ["--rate", "500", "--arrivals", "bursts", "--burst-requests", "50", "--popularity", "one-hot", "--sessions", "7"];
    let run = document(&load(&target, &bursts), 0);
    check_counters(&run);
    // One each 100 ms for 1.2 s, and so much later as the generator had no CPU: then some fall behind the end.
    let (offered, off_cpu_ms) = (count(&run, "sent") + count(&run, "unsent"), run["off_cpu_ms"].as_f64().unwrap());
    let too_late = 50 * (off_cpu_ms / 100.0).ceil() as u64;
    assert!(offered % 50 == 0 && offered <= 600 && offered + too_late >= 600, "{run}");
    let closed = document(&load(&target, &["--in-flight", "8", "--connections", "2", "--requests", "1000"]), 0);
    check_counters(&closed);
    assert_eq!(count(&closed, "sent"), 1_000);
    assert_eq!(count(&closed, "good") + count(&closed, "unsure"), 1_000, "{closed}");
}

#[test]
fn a_load_past_what_the_server_takes_is_shed_and_stays_right() {
    let node = node();
    // More connections than can be served at once by far, due all at the same moments.
    let past = ["--rate", "1000000", "--connections", "64", "--sessions", "3", "--seconds", "0.5"];
    let output =
        command(&[&[&*format!("http://{}", node.address()), "--json", "--warm-up-s", "0.1", "--wait", "sleep"], &past[..]].concat())
            .output();
    let run = document(&output.expect("a built program starts"), 0);
    check_counters(&run);
    assert!(count(&run, "unsent") > 1_000, "{run}");
    // Nobody answered the requests that never left: they are in the times all the same.
    assert!(run["p99_us"].as_f64().unwrap() > 100_000.0, "{run}");
}

/// A server that answers each request on a connection with what `reply` makes of its number, and with a 503 where that is `busy`.
fn broken_server(reply: impl Fn(u64) -> String + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let reply = std::sync::Arc::new((reply, AtomicU64::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let reply = reply.clone();
            std::thread::spawn(move || answer_all(&stream, &reply.0, &reply.1));
        }
    });
    address
}

fn answer_all(stream: &TcpStream, reply: &impl Fn(u64) -> String, requests: &AtomicU64) {
    let (mut lines, mut out) = (BufReader::new(stream).lines(), stream);
    let mut session = String::new();
    while let Some(Ok(line)) = lines.next() {
        if let Some(name) = line.strip_prefix("x-session-id: ") {
            session = name.to_owned();
        }
        if line.is_empty() {
            let body = reply(requests.fetch_add(1, Ordering::Relaxed) + 1);
            let status = if body == "busy" { "503 Service Unavailable\r\nretry-after: 1" } else { "200 OK" };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nx-session-id: {session}\r\n\r\n", body.len());
            if out.write_all((head + &body).as_bytes()).is_err() {
                return;
            }
        }
    }
}

const ONE_COUNTER: [&str; 6] = ["--sessions", "1", "--connections", "2", "--reader", "none"];

#[test]
fn a_server_that_loses_updates_is_found_out() {
    let right = document(&load(&format!("http://{}", broken_server(|number| number.to_string())), &ONE_COUNTER), 0);
    assert_eq!(right["counters"]["was_read"], false);
    // Every hundredth answer repeats the one before: one update of two was lost. Where the last one does, the counter has fewer in the end too, and that
    // is what is told.
    for (requests, lost, told) in [("1050", 0, "same number twice"), ("1100", 1, "1 updates were lost")] {
        let lossy = broken_server(|number| (number - u64::from(number % 100 == 0)).to_string());
        let output = load(&format!("http://{lossy}"), &[&ONE_COUNTER[..], &["--requests", requests]].concat());
        let run = document(&output, 1);
        assert!(count(&run, "wrong") > 0 && run["first_fault"].as_str().unwrap().contains("twice"), "{run}");
        assert_eq!(count(&run["counters"], "lost_updates"), lost, "{run}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(told), "{output:?}");
    }
}

#[test]
fn a_server_that_doubles_updates_is_found_out() {
    let doubling = broken_server(|number| (number * 2).to_string());
    let run = document(&load(&format!("http://{doubling}"), &ONE_COUNTER), 1);
    assert!(count(&run["counters"], "doubled_updates") > 0, "{run}");
}

#[test]
fn a_server_whose_counter_is_behind_in_the_end_is_found_out() {
    // Answers are right, and what is read afterwards is not: acknowledged, and then lost.
    let forgetful = broken_server(|number| if number > 1_000 { "990".to_owned() } else { number.to_string() });
    let arguments = ["--sessions", "1", "--connections", "1", "--requests", "1000"];
    let run = document(&load(&format!("http://{forgetful}"), &arguments), 1);
    assert_eq!(count(&run["counters"], "lost_updates"), 10, "{run}");
    assert!(run["counters"]["first_fault"].as_str().unwrap().contains("grew by 990"), "{run}");
}

#[test]
fn a_server_whose_answers_run_ahead_of_its_counter_is_found_out() {
    let ahead = broken_server(|number| if number > 100 { "100".to_owned() } else { (1_000 * number).to_string() });
    let run = document(&load(&format!("http://{ahead}"), &["--sessions", "1", "--connections", "1", "--requests", "100"]), 1);
    let counters = &run["counters"];
    assert_eq!((count(counters, "lost_updates"), count(counters, "doubled_updates")), (99_900, 99_900), "{run}");
}

#[test]
fn a_counter_that_cannot_be_read_in_the_end_takes_no_results_away() {
    let arguments = ["--sessions", "1", "--connections", "1", "--requests", "1000"];
    let garbled = broken_server(|number| if number > 1_000 { "nonsense".to_owned() } else { number.to_string() });
    let output = load(&format!("http://{garbled}"), &arguments);
    let run = document(&output, 1);
    assert_eq!((count(&run, "good"), run["counters"]["was_read"].as_bool()), (1_000, Some(false)), "{run}");
    assert_eq!((count(&run["counters"], "acknowledged"), count(&run["counters"], "lost_updates")), (1_000, 0), "{run}");
    assert!(run["error"].as_str().unwrap().contains("nonsense") && run["p99_us"].is_number(), "{run}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("nonsense"), "{output:?}");

    // A server that is busy for a moment is asked again, and one that stays so is told.
    let busy = |until: u64| {
        broken_server(move |number| if (1_001..until).contains(&number) { "busy".to_owned() } else { number.min(1_000).to_string() })
    };
    let run = document(&load(&format!("http://{}", busy(1_003)), &arguments), 0);
    assert_eq!(run["counters"]["was_read"], true, "{run}");
    let run = document(&load(&format!("http://{}", busy(u64::MAX)), &arguments), 1);
    assert!(run["error"].as_str().unwrap().contains("503"), "{run}");
}

#[test]
fn a_run_that_ends_within_its_warm_up_says_that_nothing_was_measured() {
    let run_as = |form: &[&str]| {
        let target = format!("http://{}", broken_server(|number| number.to_string()));
        let arguments = [&[&*target, "--requests", "20", "--warm-up-s", "60"], &ONE_COUNTER[..], form].concat();
        command(&arguments).output().unwrap()
    };
    let output = run_as(&["--json"]);
    let run = document(&output, 1);
    assert!(count(&run, "good") == 20 && run["p99_us"].is_null() && run["functions"][0]["p50_us"].is_null(), "{run}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was measured"), "{output:?}");
    let text = run_as(&[]);
    let told = String::from_utf8_lossy(&text.stdout);
    assert!(text.status.code() == Some(1) && told.contains("          -          -\n") && !told.contains("good/s"), "{text:?}");
}

#[test]
fn the_end_of_the_warm_up_is_told_while_the_load_goes_on() {
    let asked = std::sync::Arc::new(AtomicU64::new(0));
    let seen = asked.clone();
    let server = broken_server(move |number| {
        seen.store(number, Ordering::Relaxed);
        number.to_string()
    });
    let mut spec = LoadSpec::new(server, Transport::Http, "marked-".to_owned());
    (spec.connections, spec.in_flight, spec.wait) = (1, 1, Wait::Sleep);
    (spec.warm_up, spec.measured) = (Duration::from_millis(300), Duration::from_millis(300));
    spec.functions = vec!["x:1:number".parse().unwrap()];
    let mut at_mark = 0;
    let outcome = run_load_marked(&spec, &Interrupt::default(), Progress::Off, || at_mark = asked.load(Ordering::Relaxed)).unwrap();
    assert!(at_mark > 0 && at_mark < outcome.good, "{at_mark} of {}", outcome.good);
    // One that ends before is told nothing.
    (spec.requests_max, spec.warm_up) = (10, Duration::from_secs(60));
    run_load_marked(&spec, &Interrupt::default(), Progress::Off, || unreachable!("the run ends in its warm-up")).unwrap();
}

#[test]
fn replies_of_other_sessions_and_other_statuses_fail_the_run() {
    let anonymous = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = format!("http://{}", anonymous.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in anonymous.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut stream, mut request) = (stream, [0; 1_024]);
                while stream.read(&mut request).is_ok_and(|bytes| bytes > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nx-session-id: somebody\r\n\r\n1").ok();
                }
            });
        }
    });
    let run = document(&load(&target, &["--connections", "1", "--requests", "10", "--reader", "none"]), 1);
    assert!(run["first_fault"].as_str().unwrap().contains("another session"), "{run}");
    let node = node();
    let missing = ["--function", "no-such-function", "--requests", "10"];
    let run = document(&load(&format!("http://{}", node.address()), &missing), 1);
    assert_eq!((count(&run, "failed"), count(&run["statuses"], "404")), (10, 10), "{run}");
}

/// A server that ends each connection after one request; it answers with `reply` first, if there is one.
fn closing_server(reply: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut request = [0; 1_024];
                if stream.read(&mut request).is_ok_and(|bytes| bytes > 0) {
                    stream.write_all(reply.unwrap_or_default().as_bytes()).ok();
                }
            });
        }
    });
    address
}

#[test]
fn connections_that_the_server_closes_are_made_anew_and_cut_requests_fail_the_run() {
    let arguments = ["--connections", "2", "--requests", "20", "--function", "x", "--no-session-echo"];
    let closing = closing_server(Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"));
    let run = document(&load(&format!("http://{closing}"), &arguments), 0);
    assert_eq!((count(&run, "good"), count(&run, "cut")), (20, 0), "{run}");
    assert!(count(&run, "reconnects") >= 18, "{run}");
    let run = document(&load(&format!("http://{}", closing_server(None)), &arguments), 1);
    assert_eq!((count(&run, "good"), count(&run, "cut"), count(&run, "unsure")), (0, 20, 20), "{run}");
}

/// Answers datagrams with counts, but for every tenth.
fn lossy_datagrams() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = socket.local_addr().expect("a bound socket has an address");
    std::thread::spawn(move || {
        let mut buffer = [0; 2_048];
        for number in 1_u64.. {
            let (bytes, peer) = socket.recv_from(&mut buffer).expect("a datagram");
            let mut header = Header::read(&buffer[..bytes]).expect("a whole header");
            let text = number.to_string();
            header.kind = KIND_REPLY;
            header.payload_len = (text.len() as u32).to_be_bytes();
            let answer = [&header.to_bytes()[..], &buffer[32..32 + usize::from(header.session_len)], text.as_bytes()].concat();
            if number % 10 != 0 {
                socket.send_to(&answer, peer).expect("room for an answer");
            }
        }
    });
    address
}

#[test]
fn datagrams_without_an_answer_are_unsure_and_fail_no_run() {
    let arguments = ["--sessions", "1", "--in-flight", "4", "--requests", "100", "--reader", "none", "--answer-timeout-ms", "100"];
    let run = document(&load(&format!("udp://{}", lossy_datagrams()), &arguments), 0);
    // At least each tenth; a stalled machine may give up more.
    let (good, unsure) = (count(&run, "good"), count(&run, "unsure"));
    assert!(unsure >= 10 && good > 0 && good + unsure == 100, "{run}");
    assert_eq!(count(&run["counters"], "unsure"), unsure);
}

#[test]
fn a_target_where_nobody_listens_ends_with_one_and_says_so() {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = probe.local_addr().unwrap();
    drop(probe);
    for scheme in ["http", "udp"] {
        let output = load(&format!("{scheme}://{address}"), &[]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&address.to_string()) && stderr.contains("refused"), "{stderr}");
    }
}

#[test]
fn more_connections_than_a_shell_allows_files_are_made() {
    let node = node();
    let target = format!("http://{}", node.address());
    let many = ["--connections", "1500", "--rate", "2000", "--requests", "2000", "--threads", "2", "--warm-up-s", "0"];
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -Sn 1024; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_xfaas-load"), &target, "--json", "--wait", "sleep"]);
    let run = document(&shell.args(many).output().expect("a shell"), 0);
    check_counters(&run);
    assert_eq!((count(&run, "connections"), count(&run, "good")), (1_500, 2_000), "{run}");
    shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_xfaas-load"), &target]);
    let refused = shell.args(many).output().expect("a shell");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the limit is 256"), "{refused:?}");
}

#[test]
fn wrong_usage_ends_with_two_and_says_what_is_wrong() {
    for (arguments, reason) in [
        (&["127.0.0.1:80"][..], "http://HOST:PORT"),
        (&[], "TARGET"),
        (&["http://127.0.0.1:1", "--rate", "0"], "requests a second"),
        (&["http://127.0.0.1:1/path"], "--path"),
        (&["http://127.0.0.1:1", "--arrivals", "bursts"], "--rate"),
        (&["http://127.0.0.1:1", "--function", "a:b"], "weight"),
        (&["http://127.0.0.1:1", "--function", "counter-rmw", "--function", "counter-rmw-linear"], "take its updates back"),
        (&["http://127.0.0.1:1", "--threads", "4", "--connections", "2"], "4 threads"),
        (&["http://127.0.0.1:1", "--cpus", "9999"], "CPU 9999"),
        (&["http://127.0.0.1:1", "--session-prefix", "a b"], "visible ASCII"),
        (&["udp://127.0.0.1:1", "--connections", "2000"], "sockets"),
        (&["http://127.0.0.1:1", "--connections", "8", "--in-flight", "4"], "unused for ever"),
        (&["http://127.0.0.1:1", "--no-such-option"], "--no-such-option"),
    ] {
        let output = command(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(reason), "{arguments:?}: {stderr}");
    }
    let help = command(&["--help"]).output().unwrap();
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("coordinated omission"));
}

#[test]
fn a_target_that_may_be_anybodys_is_refused() {
    // TEST-NET-1: nobody is there, and nothing is sent.
    let output = command(&["http://192.0.2.1:80"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--i-own-this-target"), "{output:?}");
}

#[test]
fn an_interrupted_run_ends_cleanly_with_its_results_so_far() {
    // By Ctrl-C, and by a terminal that closes; under `nohup` nobody is to hear of that.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    let is_nohup = u64::from_str_radix(ignored, 16).unwrap() & 1 == 1;
    let hang_up = (!is_nohup).then_some(rustix::process::Signal::HUP);
    for signal in [rustix::process::Signal::INT].into_iter().chain(hang_up) {
        let server = broken_server(|number| number.to_string());
        let arguments = [&*format!("http://{server}"), "--json", "--seconds", "600", "--warm-up-s", "0", "--wait", "sleep", "--progress"];
        let mut run = command(&[&arguments, &ONE_COUNTER[..]].concat()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The first line of progress: it runs.
        let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        assert!(line.contains("good/s") && line.contains("under way"), "{line}");
        rustix::process::kill_process(rustix::process::Pid::from_child(&run), signal).unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        let asked = Instant::now();
        let output = run.wait_with_output().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(60));
        let document = document(&output, 0);
        assert_eq!(document["interrupted"], true);
        assert!(count(&document, "good") > 0 && document["measured_s"].as_f64().unwrap() < 300.0, "{document}");
    }
}

#[test]
fn curves_of_one_core_are_points_up_to_twice_the_top_and_a_verdict() {
    let (files, directory) = (files(), tempfile::tempdir().unwrap());
    let svg = directory.path().join("curves.svg");
    let mut curves = Command::new(env!("CARGO_BIN_EXE_curves"));
    curves.args(["--json", "--seconds", "0.1", "--cores", "1", "--skip", "udp_rmw", "--connections", "64", "--svg"]).arg(&svg);
    let output = curves.env("XFAAS_BIN", files.binary).env("XFAAS_GUESTS", files.guests).output().expect("a built program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    // Whether it bends is the machine's at that moment, and a machine that slept may not have been loaded past its top.
    assert!(rows.len() >= 11, "{output:?}");
    let parts: Vec<f64> = rows[1..11].iter().map(|row| row["part_of_top"].as_f64().unwrap()).collect();
    assert!(parts.is_sorted() && (parts[9] / parts[6] - 2.0).abs() < 0.02, "{parts:?}");
    assert!(rows[0]["part_of_top"].is_null() && rows[0]["requests_per_second"].as_f64().unwrap() > 100.0, "{text}");
    assert!(rows[..11].iter().all(|row| row["name"] == "http_rmw" && row["steering"] == "off" && row["cores"] == 1), "{text}");
    assert!(rows.get(11).is_none_or(|row| row["name"] == "http_rmw_verdict" && row["kept_share"].is_number()), "{text}");
    assert!(svg.is_file() && svg.with_extension("png").is_file());
}

#[test]
fn peers_that_need_no_packages_are_rows_with_the_promised_keys() {
    let files = files();
    let mut peers = Command::new(env!("CARGO_BIN_EXE_peers"));
    peers.args(["--json", "--seconds", "0.3", "--rounds", "1", "--connections", "8", "--saturation-only"]);
    peers.args(["--only", "xfaas", "--only", "limit"]);
    let output = peers.env("XFAAS_BIN", files.binary).env("XFAAS_GUESTS", files.guests).output().expect("a built program starts");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["xfaas_rmw", "xfaas_read", "xfaas_rmw_linear", "limit_http"]);
    for row in &rows {
        assert!(["requests_per_second", "p50_us", "rss_bytes"].iter().all(|field| row[*field].as_f64().unwrap() > 0.0), "{row}");
        assert!(row["p999_us"].as_f64() >= row["p99_us"].as_f64() && row["cpu_us_per_request"].as_f64().unwrap() >= 0.0, "{row}");
        assert_eq!(row.as_object().unwrap().len(), 7);
    }
}
