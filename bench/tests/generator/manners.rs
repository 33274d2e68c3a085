//! How a run meets what is not the server's work: pauses of its own, an interrupt while it reads counters, servers that close connections or reply in
//! chunks, and readers of its results that have gone.

use super::{ONE_COUNTER, broken_server, closing_server, command, count, document, load};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn signal(run: &Child, signal: Signal) {
    kill_process(Pid::from_child(run), signal).expect("it runs");
}

/// A run of 3 s that is stopped twice, for half a second each.
fn stopped_run(target: &str) -> serde_json::Value {
    let arguments = [target, "--json", "--seconds", "3", "--warm-up-s", "0", "--progress"];
    let mut run =
        command(&[&arguments, &ONE_COUNTER[..]].concat()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(run.stderr.take().expect("it is piped")).lines();
    lines.next().expect("a line while it runs").expect("text");
    std::thread::spawn(move || lines.for_each(drop));
    for _ in 0..2 {
        signal(&run, Signal::STOP);
        std::thread::sleep(Duration::from_millis(500));
        signal(&run, Signal::CONT);
        std::thread::sleep(Duration::from_millis(200));
    }
    document(&run.wait_with_output().expect("it ends"), 0)
}

#[test]
fn a_generator_that_was_stopped_times_no_answers_of_meanwhile() {
    let target = format!("http://{}", broken_server(|number| number.to_string()));
    // Where others have the CPU so often that most answers are disturbed, those are timed too: it is tried until they are not.
    let mut runs = (0..10).map(|_| stopped_run(&target));
    let run = runs.find(|run| run["times_have_disturbed"] == false).expect("half of the time to itself in one of the runs");
    assert!(run["off_cpu_max_ms"].as_f64().unwrap() > 400.0 && count(&run, "disturbed") > 0, "{run}");
    // A server that shares its CPU with other tests is late as well, and not for so long.
    assert!(run["max_us"].as_f64().unwrap() < 400_000.0, "{run}");
}

#[test]
fn an_interrupt_before_the_first_request_ends_the_run_without_one() {
    // Takes connections and says nothing.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = format!("http://{}", silent.local_addr().unwrap());
    let run = command(&[&target, "--json", "--session-prefix", "used-"]).stdout(Stdio::piped()).spawn().unwrap();
    let (mut connection, _) = silent.accept().unwrap();
    connection.read_exact(&mut [0; 16]).unwrap(); // it asks for the counters
    signal(&run, Signal::INT);
    let asked = Instant::now();
    let run = document(&run.wait_with_output().unwrap(), 0);
    assert!(asked.elapsed() < Duration::from_secs(8), "it waited for an answer");
    assert_eq!((run["interrupted"].as_bool(), count(&run, "sent")), (Some(true), 0), "{run}");
}

#[test]
fn an_interrupt_while_counters_are_read_in_the_end_leaves_them_to_their_answers() {
    let asked = Arc::new(AtomicU64::new(0));
    let seen = asked.clone();
    let hangs = broken_server(move |number| {
        seen.store(number, Ordering::Relaxed);
        if number > 100 {
            std::thread::sleep(Duration::from_secs(60));
        }
        number.to_string()
    });
    let target = format!("http://{hangs}");
    let arguments = [&*target, "--json", "--requests", "100", "--sessions", "1", "--connections", "1", "--wait", "sleep"];
    let run = command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    while asked.load(Ordering::Relaxed) <= 100 {
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(&run, Signal::INT);
    let interrupted = Instant::now();
    let run = document(&run.wait_with_output().unwrap(), 0);
    assert!(interrupted.elapsed() < Duration::from_secs(8), "it waited for an answer");
    let counters = &run["counters"];
    assert_eq!((run["interrupted"].as_bool(), counters["was_read"].as_bool()), (Some(true), Some(false)), "{run}");
    assert_eq!((count(counters, "acknowledged"), count(counters, "lost_updates"), &run["error"]), (100, 0, &serde_json::Value::Null));
}

#[test]
fn a_server_that_closes_connections_and_answers_may_do_so_for_ever() {
    let closing = closing_server(Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"));
    // More than may end in vain.
    let arguments = ["--json", "--connections", "8", "--requests", "10100", "--seconds", "60", "--function", "x", "--no-session-echo"];
    let output = command(&[&[&*format!("http://{closing}"), "--wait", "sleep"], &arguments[..]].concat()).output().unwrap();
    let run = document(&output, 0);
    assert_eq!((count(&run, "good"), count(&run, "cut")), (10_100, 0), "{run}");
    assert!(count(&run, "reconnects") > 10_000, "{run}");
}

#[test]
fn counters_are_read_from_a_server_that_closes_connections() {
    // The session's counter is what the last answer said; each connection has one answer.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let session = BufReader::new(&stream)
                .lines()
                .map_while(Result::ok)
                .find_map(|line| Some(line.strip_prefix("x-session-id: ")?.to_owned()));
            let session = session.unwrap_or_default();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\nx-session-id: {session}\r\n\r\n0").ok();
        }
    });
    let arguments = ["--session-prefix", "used-", "--sessions", "5", "--connections", "1", "--requests", "1", "--function", "x:1:counter"];
    let output = load(&target, &arguments);
    // All five were read, on a connection each, and then the one answer was a number from before.
    let run = document(&output, 1);
    assert!(run["first_fault"].as_str().unwrap().contains("from before the run"), "{run}");
    assert_eq!((count(&run, "sent"), run["counters"]["was_read"].as_bool()), (1, Some(true)), "{run}");
}

#[test]
fn a_chunked_reply_is_called_one() {
    let chunked = closing_server(Some("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"));
    let target = format!("http://{chunked}");
    let output = load(&target, &["--connections", "1", "--requests", "3", "--function", "x"]);
    assert!(document(&output, 1)["first_fault"].as_str().unwrap().contains("chunked, which is not understood"), "{output:?}");
    // The counters' reader says so too.
    let output = load(&target, &["--session-prefix", "used-", "--sessions", "1"]);
    assert!(output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains("chunked, which is not"), "{output:?}");
}

#[test]
fn a_run_by_count_measures_from_the_first_request_on() {
    let target = format!("http://{}/", broken_server(|number| number.to_string()));
    let output = command(&[&[&*target, "--json", "--requests", "20", "--wait", "sleep"], &ONE_COUNTER[..]].concat()).output().unwrap();
    let run = document(&output, 0);
    assert!(count(&run, "good") == 20 && run["p99_us"].as_f64().unwrap() > 0.0, "{run}");
}

#[test]
fn a_reader_that_has_gone_ends_the_program_quietly() {
    let target = format!("http://{}", broken_server(|number| number.to_string()));
    let arguments = [&[&*target, "--json", "--requests", "20", "--wait", "sleep"], &ONE_COUNTER[..]].concat();
    let mut run = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(run.stdout.take());
    let output = run.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(1), ""), "{output:?}");
}
