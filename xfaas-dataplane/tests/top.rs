//! `xfaas top` shows what a node does now, on a terminal and in a pipe: CONTRACT.md section 4.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
mod harness;

use harness::{Node, Stop, eventually, xfaas};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Requests of the load: three to `echo`, then one to `trap`, with a rest after each.
const REST: Duration = Duration::from_millis(2);

fn load(node: &Node, stop: &Stop, sent: &AtomicU64) {
    while !stop.is_set() {
        for _ in 0..3 {
            node.post("echo", "s", b"hello").assert_ok(b"hello");
            std::thread::sleep(REST);
        }
        node.post("trap", "s", b"").assert_error(500, "guest_trapped");
        sent.fetch_add(4, Ordering::Relaxed);
    }
}

fn function<'a>(frame: &'a Value, name: &str) -> &'a Value {
    frame["functions"].as_array().unwrap().iter().find(|function| function["name"] == name).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn the_rates_are_those_of_the_load() {
    let (node, stop, sent) = (Node::builder().guests(&["echo", "trap"]).start(), Stop::default(), AtomicU64::new(0));
    let (frames, sent_per_s): (Vec<Value>, f64) = std::thread::scope(|scope| {
        let _guard = stop.at_end();
        scope.spawn(|| load(&node, &stop, &sent));
        eventually("there is a load", || sent.load(Ordering::Relaxed) > 0);
        let (before, began) = (sent.load(Ordering::Relaxed), Instant::now());
        let output = node.cli(&["top", "--json", "--count", "4", "--interval-ms", "500"]);
        let sent_per_s = (sent.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), sent_per_s)
    });
    assert_eq!(frames.len(), 4);
    // What each interval says to have come is by how much the sum grew since the one before.
    for pair in frames.windows(2) {
        for name in ["echo", "trap"] {
            let (then, now) = (function(&pair[0], name), function(&pair[1], name));
            let came = number(&now["requests_per_s"]) * number(&pair[1]["interval_s"]);
            let grew = number(&now["requests_total"]) - number(&then["requests_total"]);
            assert!((came - grew).abs() < 0.01 && grew >= 0.0, "{name}: {came} came, {grew} more: {frames:#?}");
        }
    }
    let mean = |of: &dyn Fn(&Value) -> f64| frames.iter().map(of).sum::<f64>() / frames.len() as f64;
    let all = mean(&|frame| number(&frame["requests_per_s"]));
    assert!((sent_per_s / 2.0..sent_per_s * 2.0).contains(&all), "{all} instead of {sent_per_s}");
    let errors = mean(&|frame| function(frame, "trap")["errors"]["guest_trapped"].as_f64().unwrap_or(0.0));
    assert!((all / 8.0..all / 2.0).contains(&errors), "a quarter of {all} is {errors}");
    for frame in &frames {
        let shards = frame["shards"].as_array().unwrap();
        let by_shard: f64 = shards.iter().map(|shard| number(&shard["requests_per_s"])).sum();
        assert!((by_shard - number(&frame["requests_per_s"])).abs() < 0.01 && shards.len() == 2, "{frame}");
        assert!(shards.iter().all(|shard| shard["busy"].as_f64().is_none_or(|busy| (0.0..=1.0).contains(&busy))), "{frame}");
        let echo = function(frame, "echo");
        // A busy machine may let nothing run for a whole interval.
        if number(&echo["requests_per_s"]) > 0.0 {
            assert!(number(&echo["mean_us"]) > 0.0 && number(&echo["p50_us_max"]) <= number(&echo["p99_us_max"]), "{frame}");
        }
        assert_eq!((number(&echo["errors_per_s"]), frame["restarted"].as_bool()), (0.0, Some(false)));
    }
}

#[test]
fn a_pipe_gets_one_table_and_wrong_usage_and_nobody_are_said() {
    let node = Node::builder().guests(&["echo"]).start();
    node.post("echo", "s", b"x").assert_ok(b"x");
    let output = node.cli(&["top", "--interval-ms", "100"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with(&format!("xfaas {}", node.admin)), "{text}");
    let named = |name: &str| text.lines().filter(|line| line.split_whitespace().next() == Some(name)).count();
    assert_eq!((named("CORE"), named("FUNCTION"), named("echo")), (1, 1, 1), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
    for line in [&["--interval-ms", "99"][..], &["--interval-ms", "60001"], &["--count", "0"], &["--count", "x"], &["more"]] {
        let output = xfaas(&[&["top"], line].concat());
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true), "{line:?}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for line in [&["top"][..], &["top", "--json", "--count", "3"]] {
        let output = xfaas(&[line, &["--admin", &nobody]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true), "{errors}");
        assert!(errors.contains(&nobody) && errors.contains("xfaas run"), "{errors}");
    }
}

/// `xfaas top` without an end, its output read by the line.
fn piped(node: &Node) -> (Child, impl Iterator<Item = String> + use<>, ChildStderr) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xfaas"));
    command.args(["top", "--json", "--interval-ms", "100", "--count", "100000", "--admin", &node.admin.to_string()]);
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
    let errors = process.stderr.take().unwrap();
    (process, lines, errors)
}

fn end(mut process: Child, mut errors: ChildStderr) -> (Option<i32>, String) {
    let mut status = None;
    eventually("top ends", || {
        status = process.try_wait().unwrap();
        status.is_some()
    });
    let mut text = String::new();
    errors.read_to_string(&mut text).unwrap();
    (status.unwrap().code(), text)
}

#[test]
fn in_a_pipe_it_ends_with_its_reader_and_with_the_node() {
    let mut node = Node::builder().guests(&["echo"]).start();
    let (process, mut lines, errors) = piped(&node);
    lines.next().unwrap();
    drop(lines);
    assert_eq!(end(process, errors), (Some(1), String::new()));
    let (process, mut lines, errors) = piped(&node);
    lines.next().unwrap();
    node.kill();
    assert!(lines.all(|line| serde_json::from_str::<Value>(&line).is_ok()));
    let (code, text) = end(process, errors);
    // It may have been asking at that moment.
    assert!(code == Some(1) && (text.contains("xfaas run") || text.contains("closed the connection")), "{code:?} {text}");
}

/// `xfaas top` on a terminal of 90 columns and 20 rows, made by script(1).
struct OnTerminal {
    process: Child,
    keys: ChildStdin,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(node: &Node) -> OnTerminal {
        let command = format!("stty cols 90 rows 20; exec {} top --interval-ms 100 --admin {}", env!("CARGO_BIN_EXE_xfaas"), node.admin);
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-f", "-c", &command, "/dev/null"]).env("SHELL", "/bin/sh");
        let spawned = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut process = spawned.expect("this test needs script(1): install bsdutils or util-linux-script");
        let (keys, mut out) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seeing = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(bytes @ 1..) = out.read(&mut buffer) {
                seeing.lock().unwrap().extend_from_slice(&buffer[..bytes]);
            }
        });
        OnTerminal { process, keys, seen }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    fn wait_for(&self, words: &str) {
        eventually(&format!("{words:?} is on the terminal"), || self.text().contains(words));
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // Already gone is fine.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn on_a_terminal_it_draws_in_place_outlives_the_node_and_leaves_no_trace() {
    let mut node = Node::builder().guests(&["echo"]).start();
    for _ in 0..1_000 {
        node.post("echo", "s", b"x").assert_ok(b"x");
    }
    let mut terminal = OnTerminal::start(&node);
    terminal.wait_for("\u{1b}[?1049h");
    terminal.wait_for("  interval 0.1 s");
    node.kill();
    terminal.wait_for("NO ANSWER for ");
    node.start();
    node.post("echo", "s", b"x").assert_ok(b"x");
    terminal.wait_for("RESTARTED");
    let since = |words: &str| terminal.text().rsplit("RESTARTED").next().unwrap().contains(words);
    eventually("rates again", || since("interval 0.1 s") && since("FUNCTION"));
    terminal.keys.write_all(b"q\x03").unwrap();
    let mut status = None;
    eventually("Ctrl-C ends it", || {
        status = terminal.process.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0));
    terminal.wait_for("\u{1b}[?7h\u{1b}[?25h\u{1b}[?1049l");
    let text = terminal.text();
    assert!(!text.as_bytes().windows(2).any(|pair| pair[0] == b'-' && pair[1].is_ascii_digit()), "a rate below zero: {text}");
    let (drawn, left) = text.split_once("\u{1b}[?1049l").unwrap();
    assert!(left.contains("FUNCTION") && !left.contains('\u{1b}'), "the last figures stay: {left:?}");
    // Each drawing is within the terminal, once what only sets colours and erases is gone.
    let codes = ["\r", "\u{1b}[2K", "\u{1b}[7m", "\u{1b}[1m", "\u{1b}[m", "\u{1b}[J"];
    for drawing in drawn.split("\u{1b}[H").skip(1) {
        let text = codes.iter().fold(drawing.to_owned(), |text, code| text.replace(code, ""));
        let rows: Vec<&str> = text.split('\n').take_while(|row| !row.contains('\u{1b}')).collect();
        assert!(rows.len() <= 20 && rows.iter().all(|row| row.chars().count() <= 90), "{text}");
    }
}
