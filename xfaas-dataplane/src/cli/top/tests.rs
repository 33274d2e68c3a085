//! Tests of `xfaas top`: what two answers give as rates, and how those fit on terminals.

use super::layout::{Size, Style, lines};
use super::rates::{Frame, FunctionRates, Sample, ShardRates};
use crate::control::{Histogram, MetricSample, REQUEST_DURATION_SECONDS, REQUESTS_TOTAL, SHARD_BUSY_SECONDS_TOTAL, StatsReply};
use std::time::{Duration, Instant};

const HOST: &str = "127.0.0.1:9070";

/// A node's answers, one every second of its life from `started_at` on.
struct FakeNode {
    started_at: Instant,
    metrics: Vec<MetricSample>,
}

impl FakeNode {
    fn new(started_at: Instant) -> FakeNode {
        FakeNode { started_at, metrics: Vec::new() }
    }

    fn with(mut self, name: &str, labels: &[(&str, &str)], value: f64) -> FakeNode {
        self.metrics.push(metric(name, labels, Some(value), None));
        self
    }

    fn requests(self, function: &str, outcome: &str, shard: &str, count: f64) -> FakeNode {
        self.with(REQUESTS_TOTAL, &[("function", function), ("outcome", outcome), ("shard", shard)], count)
    }

    fn durations(mut self, function: &str, shard: &str, counts: [u64; 3], sum_seconds: f64) -> FakeNode {
        let buckets = vec![(0.000_05, counts[0]), (0.002_5, counts[1])];
        let histogram = Histogram { count: counts[2], sum_seconds, buckets };
        self.metrics.push(metric(REQUEST_DURATION_SECONDS, &[("function", function), ("shard", shard)], None, Some(histogram)));
        self
    }

    /// The answer of when it is `uptime_s` old.
    fn at(mut self, uptime_s: f64) -> Sample {
        self = self.with("xfaas_uptime_seconds", &[], uptime_s);
        let at = self.started_at + Duration::from_secs_f64(uptime_s);
        let reply = StatsReply {
            uptime_s: uptime_s as u64,
            shards: 2,
            functions: 1,
            not_ready: None,
            steering: "off".to_owned(),
            metrics: self.metrics,
        };
        Sample { reply, asked_at: at, answered_at: at + Duration::from_millis(2) }
    }
}

fn metric(name: &str, labels: &[(&str, &str)], value: Option<f64>, histogram: Option<Histogram>) -> MetricSample {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    MetricSample { name: name.to_owned(), labels, value, histogram }
}

#[test]
fn rates_are_what_came_in_the_interval_by_shard_and_function() {
    let started_at = Instant::now();
    let before = FakeNode::new(started_at)
        .requests("echo", "ok", "0", 100.0)
        .requests("echo", "deadline", "0", 1.0)
        .requests("echo", "ok", "1", 50.0)
        .requests("idle", "ok", "0", 7.0)
        .requests("never", "ok", "0", 0.0)
        .durations("echo", "0", [90, 100, 101], 1.0)
        .durations("echo", "1", [50, 50, 50], 0.1)
        .with(SHARD_BUSY_SECONDS_TOTAL, &[("shard", "0")], 1.0)
        .with("xfaas_shed_total", &[("shard", "0")], 5.0)
        .with("xfaas_drops_total", &[("place", "kernel"), ("reason", "bad_magic")], 2.0)
        .at(10.0);
    let now = FakeNode::new(started_at)
        .requests("echo", "ok", "0", 118.0)
        .requests("echo", "deadline", "0", 3.0)
        .requests("echo", "ok", "1", 54.0)
        .requests("idle", "ok", "0", 7.0)
        .requests("never", "ok", "0", 0.0)
        .durations("echo", "0", [108, 118, 121], 1.02)
        .durations("echo", "1", [54, 54, 54], 0.104)
        .with(SHARD_BUSY_SECONDS_TOTAL, &[("shard", "0")], 2.5)
        .with("xfaas_shed_total", &[("shard", "0")], 9.0)
        .with("xfaas_drops_total", &[("place", "kernel"), ("reason", "bad_magic")], 4.0)
        .with("xfaas_workers", &[("shard", "0")], 3.0)
        .with("xfaas_workers", &[("shard", "1")], 4.0)
        .at(12.0);
    let frame = Frame::new(HOST, Some(&before), &now);
    assert_eq!((frame.interval_s, frame.restarted, frame.workers), (Some(2.0), false, 7));
    assert_eq!((frame.requests_per_s, frame.errors_per_s), (Some(12.0), Some(1.0)));
    assert_eq!((frame.shed_per_s, frame.dropped_per_s, frame.refused_per_s), (Some(2.0), Some(1.0), Some(0.0)));
    let shards: Vec<_> = frame.shards.iter().map(|shard| (shard.core, shard.requests_per_s, shard.busy, shard.workers)).collect();
    assert_eq!(shards, [(0, Some(10.0), Some(0.75), 3), (1, Some(2.0), None, 4)]);
    let names: Vec<&str> = frame.functions.iter().map(|function| function.name.as_str()).collect();
    assert_eq!(names, ["echo", "idle"], "by rate, without those never asked for");
    let echo = &frame.functions[0];
    assert_eq!((echo.requests_total, echo.requests_per_s, echo.errors_per_s), (175, Some(12.0), Some(1.0)));
    assert_eq!(echo.errors.iter().map(|(kind, rate)| (kind.as_str(), *rate)).collect::<Vec<_>>(), [("deadline", 1.0)]);
    // Of 24: 22 took up to 50 us, none up to 2.5 ms, two longer than any bucket.
    assert!((echo.mean_us.unwrap() - 1_000.0).abs() < 0.01, "{echo:?}");
    assert_eq!((echo.p50_us_max, echo.p99_us_max, echo.over_us), (Some(50.0), None, Some(2_500.0)));
    let idle = &frame.functions[1];
    assert_eq!((idle.requests_per_s, idle.mean_us, idle.over_us), (Some(0.0), None, None));
}

#[test]
fn the_first_answer_has_no_rates_and_an_empty_node_is_no_error() {
    let frame = Frame::new(HOST, None, &FakeNode::new(Instant::now()).at(1.0));
    assert_eq!((frame.interval_s, frame.requests_per_s, frame.restarted), (None, None, false));
    let text: Vec<String> = lines(&frame, None, None).into_iter().map(|line| line.text).collect();
    assert!(text[0].contains("up 00:00:01") && text[1].starts_with("per s: requests -  errors -"), "{text:?}");
    assert!(text.contains(&"no function was asked for yet".to_owned()), "{text:?}");
    for (columns, rows) in [(1, 1), (0, 0), (7, 3), (80, 24)] {
        lines(&frame, Some("nobody there"), Some(Size { columns, rows }));
    }
}

#[test]
fn a_restart_is_told_and_gives_no_rates() {
    let first = Instant::now();
    let before = FakeNode::new(first).requests("echo", "ok", "0", 1_000_000.0).at(20.0);
    // Younger than before; and older, but not by as much as there was time.
    for (second, uptime_s) in [(Duration::from_millis(20_200), 0.8), (Duration::from_secs(21), 30.0)] {
        let now = FakeNode::new(first + second).requests("echo", "ok", "0", 2_000_000.0).at(uptime_s);
        let frame = Frame::new(HOST, Some(&before), &now);
        assert_eq!((frame.restarted, frame.interval_s, frame.requests_per_s), (true, None, None));
        assert!(frame.functions[0].requests_per_s.is_none() && frame.shards[0].requests_per_s.is_none());
        let text = lines(&frame, None, None);
        assert!(text.iter().any(|line| line.style == Style::Alarm && line.text.starts_with("RESTARTED")), "{text:?}");
    }
}

#[test]
fn an_answer_that_took_long_is_no_restart() {
    let started_at = Instant::now();
    let before = FakeNode::new(started_at).requests("echo", "ok", "0", 10.0).at(5.0);
    // Counted after 6 s, known after 9.
    let mut now = FakeNode::new(started_at).requests("echo", "ok", "0", 20.0).at(6.0);
    now.answered_at += Duration::from_secs(3);
    let frame = Frame::new(HOST, Some(&before), &now);
    assert_eq!((frame.interval_s, frame.requests_per_s), (Some(1.0), Some(10.0)));
}

#[test]
fn a_counter_that_fell_and_one_that_is_new_have_no_absurd_rates() {
    let started_at = Instant::now();
    let before = FakeNode::new(started_at).requests("echo", "ok", "0", 900.0).durations("echo", "0", [9, 9, 9], 1.0).at(5.0);
    let now = FakeNode::new(started_at)
        .requests("echo", "ok", "0", 5.0)
        .durations("echo", "0", [5, 5, 5], 0.5)
        // Its counts may be those of a function that is gone.
        .requests("new", "ok", "0", 1_000_000.0)
        .at(6.0);
    let frame = Frame::new(HOST, Some(&before), &now);
    let [echo, new] = &frame.functions[..] else { panic!("{frame:?}") };
    let (echo, new) = if echo.name == "echo" { (echo, new) } else { (new, echo) };
    assert_eq!((echo.requests_per_s, echo.mean_us, new.requests_per_s), (Some(0.0), None, None));
    assert_eq!(frame.requests_per_s, Some(0.0));
}

/// A node with so many shards and functions, each row of a load of its own.
fn full(shards: u16, functions: u32) -> Frame {
    let mut frame = Frame::new(HOST, None, &FakeNode::new(Instant::now()).at(100_000.0));
    frame.steering = "xdp (native) on a-rather-long-interface".to_owned();
    frame.not_ready = Some("the log of shard 3 cannot be written: functions with durability sync get 503".to_owned());
    frame.guest_memory_limit_bytes = 12 << 30;
    frame.shards = (0..shards)
        .map(|core| ShardRates {
            core,
            requests_per_s: Some(f64::from(core) * 12_345.6),
            busy: Some(f64::from(core) / 64.0),
            turns_per_s: Some(0.02),
            sessions: 1_000_000,
            workers: 3,
            connections: 100_000,
            queued: 0,
            shed_per_s: None,
            forwarded_per_s: Some(1.5),
        })
        .collect();
    frame.functions = (0..functions)
        .map(|number| FunctionRates {
            name: format!("{number:x<64}"),
            requests_total: 1,
            requests_per_s: Some(1e6),
            errors_per_s: Some(3.0),
            errors: [("guest_trapped".to_owned(), 1.0), ("deadline".to_owned(), 2.0)].into(),
            mean_us: Some(123_456.0),
            p50_us_max: Some(2_500.0),
            p99_us_max: None,
            over_us: Some(1e7),
        })
        .collect();
    frame
}

#[test]
fn whatever_the_size_nothing_leaves_the_screen() {
    for frame in [full(1, 1), full(64, 200), full(2, 0)] {
        for columns in 1..200 {
            for rows in [1, 2, 5, 10, 24, 60] {
                let lines = lines(&frame, Some("a long reason why nobody answers any more"), Some(Size { columns, rows }));
                assert!(lines.len() <= rows, "{columns}x{rows}: {lines:#?}");
                let too_wide = lines.iter().find(|line| line.text.chars().count() > columns);
                assert_eq!(too_wide, None, "{columns}x{rows}");
            }
        }
    }
}

#[test]
fn what_matters_most_stays_on_a_small_screen() {
    let text = |frame: &Frame, columns, rows| {
        let lines = lines(frame, None, Some(Size { columns, rows }));
        lines.into_iter().map(|line| line.text).collect::<Vec<_>>()
    };
    let small = text(&full(64, 200), 80, 24);
    // The busiest cores, when there is no room for all.
    assert!(small.iter().any(|line| line.starts_with("    63     98%")), "{small:#?}");
    assert!(small.iter().any(|line| line.starts_with("and ") && line.ends_with(" more cores")), "{small:#?}");
    assert!(small.iter().any(|line| line.starts_with("and ") && line.ends_with(" more functions")), "{small:#?}");
    assert!(small.iter().any(|line| line.starts_with("NOT READY: the log of shard 3")), "{small:#?}");
    assert!(!small[0].contains("ready"), "{small:#?}");
    // Room that one table does not need is the other's: two cores, and all the rest for functions.
    let wide = text(&full(2, 200), 200, 40);
    assert_eq!(wide.len(), 40);
    let row = wide.iter().find(|line| line.starts_with("0xxx")).unwrap();
    assert!(
        row.contains("x  ") && row.contains("<=2.5 ms") && row.contains(">10 s") && row.ends_with("deadline 2.0, guest_trapped 1.0"),
        "{row}"
    );
    assert!(row.contains(" 123 ms "), "{row}");
    let names = wide.iter().find(|line| line.contains("CORE")).unwrap();
    assert!(names.contains("TURNS/S") && names.contains("CONNECTIONS") && names.contains("FORWARDED/S"), "{names}");
    let narrow = text(&full(2, 2), 40, 24);
    let names = narrow.iter().find(|line| line.contains("FUNCTION")).unwrap();
    assert_eq!(names.split_whitespace().collect::<Vec<_>>(), ["FUNCTION", "REQUESTS/S", "ERRORS/S"]);
}

#[test]
fn a_pipe_gets_every_row_whole() {
    let lines = lines(&full(64, 200), None, None);
    assert_eq!(lines.iter().filter(|line| line.text.contains("guest_trapped 1.0")).count(), 200);
    assert!(lines.iter().any(|line| line.text.trim_start().starts_with("63 ")));
    assert!(lines.iter().all(|line| !line.text.contains('+') && !line.text.contains(" more ")));
}

#[test]
fn what_a_server_says_cannot_command_the_terminal() {
    let mut frame = full(1, 1);
    frame.steering = "\u{1b}[2Joff".to_owned();
    frame.not_ready = Some("\u{1b}]0;title\u{7}".to_owned());
    let all = lines(&frame, None, Some(Size { columns: 80, rows: 24 }));
    assert!(all.iter().all(|line| !line.text.contains(char::is_control)), "{all:?}");
}
