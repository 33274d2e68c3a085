//! `xfaas trace --tail`: says for the median, the slow and the slowest requests which stage their time went to, and what else the core did.

use super::show::table;
use crate::control::{ShardTrace, TraceReply, TracedRequest};
use std::collections::HashSet;
use std::fmt::Write;

/// A part of a request's time, or what happened beside it, and how to find it. Microseconds.
type Part = (&'static str, fn(&TracedRequest) -> f64);

const NETWORK: &str = "NETWORK";
/// The stages in their order.
const STAGES: [Part; 7] = [
    (NETWORK, |request| request.network_us),
    ("TURN", |request| request.turn_us),
    ("DECODE", |request| request.decode_us),
    ("WORKER", |request| request.worker_us),
    ("GUEST", |request| request.guest_us),
    ("PARKED", |request| request.parked_us),
    ("SEND", |request| request.send_us),
];

/// What else a core did from the turn before the request's on.
const OTHERS: [Part; 7] = [
    ("forks", |request| request.forks_us),
    ("other sessions' slices", |request| request.other_slices_us),
    ("log", |request| request.log_us),
    ("checkpoints", |request| request.checkpoints_us),
    ("timed work", |request| request.chores_us),
    ("rests", |request| request.rests_us),
    ("waited for a lock", |request| request.lock_us),
];

/// What the kernel counted in the time around the request.
const KERNEL: [Part; 4] = [
    (OFF_CPU, |request| request.kernel.off_cpu_us),
    ("softirqs", |request| request.kernel.softirq_us),
    ("stolen by the host", |request| request.kernel.steal_us),
    ("page faults", |request| request.kernel.page_faults as f64),
];
const OFF_CPU: &str = "another thread had the CPU";
/// How many microseconds of it are worth a word.
const WORTH_A_WORD_US: f64 = 5.0;
/// What part of the time around a request is worth a word.
const WORTH_A_WORD_OF_WINDOW: f64 = 0.001;
/// What part of the time around it a request must be, or what happened there happened most likely outside it.
const REQUEST_OF_WINDOW: f64 = 0.01;

/// How many moments are listed for each core, by their slowest request.
const LISTED: usize = 10;

/// Which requests stand for a quantile: those whose rank from the slowest is within this part of it, on either side.
const AROUND: f64 = 0.2;

pub(super) fn report(reply: &TraceReply) -> String {
    let mut text = String::new();
    let known = || reply.shards.iter().flat_map(|shard| shard.slow.iter().chain(&shard.sample));
    let is_stamped = known().any(|request| request.network_us > 0.0);
    if !is_stamped && known().next().is_some() {
        text.push_str("no packet was stamped by a kernel program: what a request waited in the kernel before its core found it is not in these times\n");
    }
    for shard in &reply.shards {
        text.push_str(&head(shard, reply.seconds));
        text.push_str(&quantiles(shard, is_stamped));
        text.push_str(&slowest(shard));
        text.push('\n');
    }
    text.push_str("Times in microseconds. NETWORK: from the XDP program to the shard ");
    text.push_str(if is_stamped { "(0: not stamped)" } else { "(-: not known)" });
    text.push_str(
        "; TURN: behind what came with it; WORKER: queue, Fork, mailbox;\n\
         PARKED: locks, the primary, others' slices; SEND: until the kernel has the reply. BESIDE: so many more slow ones were under way meanwhile, and are\n\
         not listed. What the kernel counted, it counted in a longer time around the request, in softirqs and stolen time by hundredths of a second.\n",
    );
    text
}

/// How many requests a core had, and which of them are known.
fn head(shard: &ShardTrace, seconds: f64) -> String {
    let mut text = format!(
        "core {}: {} requests in {seconds:.1} s, {:.0} a second; {} of the slowest, one in {} of all ({})\n",
        shard.core,
        shard.requests,
        shard.requests as f64 / seconds,
        shard.slow.len(),
        shard.sampled_one_in,
        shard.sample.len(),
    );
    let dropped = shard.dropped;
    match shard.slow_above_us {
        _ if dropped == 0 => Ok(()),
        None => writeln!(text, "{dropped} slow requests were lost before they were read: the quantiles are the sample's"),
        Some(above_us) if above_us > 0.0 => {
            writeln!(text, "{dropped} more were slow, of which the sample tells: those kept took longer, over {above_us:.1} us")
        }
        Some(_) => writeln!(text, "{dropped} more were slow, of which the sample tells: too many came at once"),
    }
    .expect("a String takes all text");
    text
}

/// The requests that are known, from the slowest, each with how many it stands for: those that are known with all of their kind for themselves, the rest of
/// the sample for `sampled_one_in`. Which requests are of that kind has nothing to do with what is in the sample, so whatever they are, every request is
/// stood for once in the mean. They alone would say too little: which ones count as slow changes in the course of a stall.
fn weighted(shard: &ShardTrace) -> Vec<(&TracedRequest, f64)> {
    let slow = shard.slow.iter().filter(|request| shard.has_all_like(request)).map(|request| (request, 1.0));
    let rest = shard.sample.iter().filter(|request| !shard.has_all_like(request));
    let mut requests: Vec<_> = slow.chain(rest.map(|request| (request, shard.sampled_one_in as f64))).collect();
    requests.sort_by(|a, b| b.0.total_us.total_cmp(&a.0.total_us));
    requests
}

/// Of requests from the slowest on, those that stand for the quantile above which `part` of all are, each with its share in that.
fn at_quantile<'a>(requests: &[(&'a TracedRequest, f64)], part: f64) -> Vec<(&'a TracedRequest, f64)> {
    let rank = requests.iter().map(|(_, weight)| weight).sum::<f64>() * part;
    let (first, last) = (rank * (1.0 - AROUND), rank * (1.0 + AROUND));
    let mut slower = 0.0;
    let shares = requests.iter().map(|(request, weight)| {
        let share = (slower + weight).min(last) - slower.max(first);
        slower += weight;
        (*request, share)
    });
    shares.filter(|(_, share)| *share > 0.0).collect()
}

fn mean(requests: &[(&TracedRequest, f64)], of: impl Fn(&TracedRequest) -> f64) -> f64 {
    let all: f64 = requests.iter().map(|(_, share)| share).sum();
    requests.iter().map(|(request, share)| of(request) * share).sum::<f64>() / all.max(f64::MIN_POSITIVE)
}

/// `is_stamped`: the time in the kernel before the shard is known of some.
fn quantiles(shard: &ShardTrace, is_stamped: bool) -> String {
    let mut names = vec!["", "TOTAL"];
    names.extend(STAGES.iter().map(|(name, _)| *name));
    names.push("MOST OF IT, AND WHAT ELSE THE CORE DID");
    let known = weighted(shard);
    let row = |(name, part): (&str, f64)| {
        let requests = at_quantile(&known, part);
        if requests.is_empty() {
            return None;
        }
        let times = STAGES.map(|(name, of)| (name, mean(&requests, of)));
        let most = times.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are stages").0;
        let mut row = vec![name.to_owned(), format!("{:.1}", mean(&requests, |request| request.total_us))];
        row.extend(times.iter().map(|(name, time)| match *name {
            NETWORK if !is_stamped => "-".to_owned(),
            _ => format!("{time:.1}"),
        }));
        row.push(words(most, |of| mean(&requests, of)));
        Some(row)
    };
    let rows: Vec<Vec<String>> = [("p50", 0.5), ("p99", 0.01), ("p99.9", 0.001)].into_iter().filter_map(row).collect();
    match rows.is_empty() {
        true if shard.requests == 0 => "no request ended meanwhile\n".to_owned(),
        true => "too few requests for the sample to hold one\n".to_owned(),
        false => table(&names, &rows),
    }
}

/// The stage that took most, and what else there was. `of` gives a figure of the request, or its mean over several.
fn words(most: &str, of: impl Fn(fn(&TracedRequest) -> f64) -> f64) -> String {
    let mut text = most.to_lowercase();
    for (name, time) in OTHERS.map(|(name, part)| (name, of(part))).iter().filter(|(_, time)| *time >= WORTH_A_WORD_US) {
        write!(text, "; {name} {time:.0}").expect("a String takes all text");
    }
    let (window_us, total_us) = (of(|request| request.kernel.window_us), of(|request| request.total_us));
    let began_before = of(|request| f64::from(u8::from(request.kernel.off_cpu_us > request.kernel.window_us))) > 0.0;
    let around: Vec<String> = KERNEL
        .map(|(name, part)| (name, of(part)))
        .iter()
        .filter(|(name, amount)| match *name {
            "page faults" => *amount >= 1.0,
            _ => *amount > 0.0 && *amount >= window_us * WORTH_A_WORD_OF_WINDOW,
        })
        .map(|(name, amount)| match *name {
            OFF_CPU if began_before => format!("{name} {amount:.0} (a wait that began before and ended then)"),
            _ => format!("{name} {amount:.0}"),
        })
        .collect();
    if !around.is_empty() && total_us >= window_us * REQUEST_OF_WINDOW {
        write!(text, "; in the {:.0} ms around: {}", window_us / 1e3, around.join(", ")).expect("a String takes all text");
    }
    text
}

/// A slow request, and how many other slow ones that are known were under way meanwhile.
struct Moment<'a> {
    slowest: &'a TracedRequest,
    beside: usize,
}

impl Moment<'_> {
    fn holds(&self, request: &TracedRequest) -> bool {
        let ((from_ms, to_ms), (began_ms, ended_ms)) = (self.slowest.under_way_ms(), request.under_way_ms());
        began_ms <= to_ms && from_ms <= ended_ms
    }
}

/// The slowest of all that are known, each of another moment: what stops a core makes all slow that wait for it, and they would fill the list with one cause.
fn moments(shard: &ShardTrace) -> Vec<Moment<'_>> {
    fn key(request: &TracedRequest) -> (u64, u64, &str) {
        (request.at_ms.to_bits(), request.total_us.to_bits(), &request.session)
    }
    let slow: HashSet<_> = shard.slow.iter().map(key).collect();
    let only_sampled = shard.sample.iter().filter(|request| !slow.contains(&key(request)));
    let mut known: Vec<&TracedRequest> = shard.slow.iter().chain(only_sampled).collect();
    known.sort_by(|a, b| b.total_us.total_cmp(&a.total_us));
    let mut moments: Vec<Moment> = Vec::new();
    for request in known {
        let is_full = moments.len() == LISTED;
        match moments.iter_mut().find(|moment| moment.holds(request)) {
            Some(moment) => moment.beside += usize::from(request.is_slow),
            None if is_full => {}
            None => moments.push(Moment { slowest: request, beside: 0 }),
        }
    }
    moments
}

fn slowest(shard: &ShardTrace) -> String {
    let moments = moments(shard);
    if moments.is_empty() {
        return String::new();
    }
    let row = |Moment { slowest: request, beside }: &Moment| {
        let times = STAGES.map(|(name, of)| (name, of(request)));
        let most = times.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are stages");
        let way = match (request.is_datagram, request.is_forwarded) {
            (true, false) => "udp",
            (true, true) => "udp, forwarded",
            (false, false) => "http",
            (false, true) => "http, forwarded",
        };
        vec![
            format!("{:.1}", request.total_us),
            format!("{:.1}", request.at_ms),
            beside.to_string(),
            request.function.clone(),
            request.session.clone(),
            way.to_owned(),
            format!("{:.0} us", most.1),
            words(most.0, |of| of(request)),
        ]
    };
    let rows: Vec<Vec<String>> = moments.iter().map(row).collect();
    table(&["SLOWEST", "AT_MS", "BESIDE", "FUNCTION", "SESSION", "BY", "MOST", "OF IT, AND WHAT ELSE THE CORE DID"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::KernelWork;

    fn request(total_us: f64) -> TracedRequest {
        TracedRequest {
            function: "f".to_owned(),
            session: "s".to_owned(),
            total_us,
            guest_us: total_us,
            is_ok: true,
            ..TracedRequest::default()
        }
    }

    fn shard(requests: u64, slow: Vec<TracedRequest>, sample: Vec<TracedRequest>) -> ShardTrace {
        ShardTrace { core: 0, requests, sampled_one_in: 128, dropped: 0, slow_above_us: Some(0.0), slow, sample }
    }

    /// The times of the requests at a quantile, the least and the most.
    fn times_at(shard: &ShardTrace, part: f64) -> (f64, f64) {
        let known = weighted(shard);
        let times: Vec<f64> = at_quantile(&known, part).iter().map(|(request, _)| request.total_us).collect();
        (*times.last().unwrap(), times[0])
    }

    #[test]
    fn a_request_of_the_sample_stands_for_many_and_a_slow_one_for_itself() {
        let slow = |number: u32| TracedRequest { is_slow: true, ..request(1_000.0 + f64::from(number)) };
        let mut sample: Vec<TracedRequest> = (0..100).map(|number| request(f64::from(number))).collect();
        sample.push(slow(50)); // is in `slow` too
        let shard = shard(12_800, (0..128).map(slow).collect(), sample);
        assert_eq!(times_at(&shard, 0.001), (1_112.0, 1_117.0));
        assert_eq!(times_at(&shard, 0.005), (1_050.0, 1_076.0));
        assert_eq!(times_at(&shard, 0.5), (40.0, 60.0));
    }

    #[test]
    fn a_slower_quantile_is_never_faster() {
        // A stall raised what counts as slow: most of it is in the sample only.
        let slow = (0..50).map(|number| TracedRequest { is_slow: true, ..request(100.0 + f64::from(number)) }).collect();
        let sample = (0..1_000).map(|number| request(if number < 15 { 5_000.0 } else { 20.0 })).collect();
        let shard = shard(128_050, slow, sample);
        assert_eq!(times_at(&shard, 0.001), (5_000.0, 5_000.0));
        assert_eq!(times_at(&shard, 0.01), (5_000.0, 5_000.0));
        // What was slow is not known whole.
        let mut lost = ShardTrace { dropped: 7, slow_above_us: None, ..shard };
        lost.sample.push(TracedRequest { is_slow: true, ..request(9_000.0) });
        let known = weighted(&lost);
        assert!(known.len() == 1_001 && known.iter().all(|(_, weight)| *weight == 128.0));
        assert_eq!(known[0].0.total_us, 9_000.0);
    }

    #[test]
    fn slow_requests_that_had_to_go_are_stood_for_by_the_sample() {
        // A thousandth each of all took 1 us, 2 us ... 1000 us. The slowest twentieth was slow, but there was room for the slowest hundredth only.
        let timed = |time: u32| TracedRequest { is_slow: time > 950, ..request(f64::from(time)) };
        let slow = (991..=1_000).flat_map(|time| (0..128).map(move |_| timed(time))).collect();
        let sample: Vec<TracedRequest> = (1..=1_000).map(timed).collect();
        let shard = ShardTrace { dropped: 5_120, slow_above_us: Some(990.0), ..shard(128_000, slow, sample) };
        assert_eq!(weighted(&shard).iter().map(|(_, weight)| weight).sum::<f64>(), 128_000.0);
        assert_eq!(times_at(&shard, 0.001), (999.0, 1_000.0));
        assert_eq!(times_at(&shard, 0.02), (977.0, 984.0));
        assert_eq!(times_at(&shard, 0.5), (401.0, 600.0));
        let text = report(&TraceReply { seconds: 1.0, began_ns: 0, shards: vec![shard] });
        assert!(text.contains("5120 more were slow, of which the sample tells: those kept took longer, over 990.0 us"), "{text}");
    }

    /// A slow request that the shard found at `at_ms`.
    fn found(at_ms: f64, total_us: f64) -> TracedRequest {
        TracedRequest { is_slow: true, at_ms, ..request(total_us) }
    }

    #[test]
    fn the_slowest_are_listed_from_all_that_is_known_and_each_once() {
        let slow: Vec<TracedRequest> = (0..8).map(|number| found(f64::from(number), 100.0 + f64::from(number))).collect();
        let mut sample = vec![found(50.0, 5_000.0), found(31.0, 20.0), found(32.0, 103.5)];
        sample.extend([slow[7].clone(), slow[0].clone()]);
        let times = |shard: &ShardTrace| moments(shard).iter().map(|moment| moment.slowest.total_us).collect::<Vec<_>>();
        let expected = [5_000.0, 107.0, 106.0, 105.0, 104.0, 103.5, 103.0, 102.0, 101.0, 100.0];
        let shard = shard(1_000, slow, sample);
        assert_eq!(times(&shard), expected);
        assert!(moments(&shard).iter().all(|moment| moment.beside == 0));
        let text = report(&TraceReply { seconds: 1.0, began_ns: 0, shards: vec![shard.clone()] });
        let first = text.lines().skip_while(|line| !line.starts_with("SLOWEST")).nth(1).unwrap();
        assert!(first.trim_start().starts_with("5000.0"), "{text}");
        // One that was read from the sample alone.
        let alone = ShardTrace { slow_above_us: None, dropped: 1, slow: shard.slow[..7].to_vec(), ..shard };
        assert_eq!(times(&alone), expected);
    }

    #[test]
    fn what_was_slow_at_the_same_time_is_counted_with_the_slowest_of_it() {
        // 3 ms in which the core was stopped, from 7 to 10, with one that came in the middle of it; one that was over just before, and two from 11 on.
        let mut slow: Vec<TracedRequest> = (0..40).map(|number| found(7.0, 3_000.0 - f64::from(number))).collect();
        slow.push(TracedRequest { network_us: 1_400.0, ..found(9.9, 1_500.0) });
        slow.extend([found(6.9, 50.0), found(11.3, 700.0), found(11.0, 1_000.0)]);
        let quick = TracedRequest { at_ms: 8.0, ..request(9.0) };
        let shard = shard(1_000, slow, vec![quick]);
        let found: Vec<_> = moments(&shard).iter().map(|moment| (moment.slowest.total_us, moment.beside)).collect();
        assert_eq!(found, [(3_000.0, 40), (1_000.0, 1), (50.0, 0)]);
        let text = report(&TraceReply { seconds: 1.0, began_ns: 0, shards: vec![shard] });
        let first = text.lines().skip_while(|line| !line.starts_with("SLOWEST")).nth(1).unwrap();
        assert_eq!(first.split_whitespace().take(3).collect::<Vec<_>>(), ["3000.0", "7.0", "40"], "{text}");
    }

    #[test]
    fn the_network_is_not_said_to_take_no_time_where_nobody_knows() {
        let reply = |network_us| {
            let stamped = TracedRequest { network_us, ..request(50.0) };
            report(&TraceReply { seconds: 1.0, began_ns: 0, shards: vec![shard(100, Vec::new(), vec![stamped, request(5.0)])] })
        };
        let median = |text: &str| text.lines().find(|line| line.starts_with("p50")).unwrap().split_whitespace().nth(2).unwrap().to_owned();
        let (with, without) = (reply(9.0), reply(0.0));
        assert!(without.starts_with("no packet was stamped by a kernel program") && without.contains("(-: not known)"), "{without}");
        assert_eq!(median(&without), "-");
        assert!(with.starts_with("core 0") && with.contains("(0: not stamped)"), "{with}");
        assert!(median(&with).parse::<f64>().is_ok(), "{with}");
    }

    #[test]
    fn a_trace_without_requests_says_so() {
        let reply = TraceReply { seconds: 1.0, began_ns: 0, shards: vec![shard(0, Vec::new(), Vec::new())] };
        assert!(report(&reply).contains("no request ended meanwhile"));
    }

    #[test]
    fn the_report_names_the_stage_and_what_else_there_was() {
        let mut slow = request(90.0);
        (slow.guest_us, slow.turn_us, slow.chores_us) = (10.0, 80.0, 60.0);
        let text = report(&TraceReply { seconds: 1.0, began_ns: 0, shards: vec![shard(100, vec![slow], vec![request(5.0)])] });
        assert!(text.contains("turn; timed work 60"), "{text}");
    }

    #[test]
    fn what_the_kernel_counted_is_said_of_its_own_time_and_only_of_requests_that_it_may_explain() {
        let kernel = KernelWork { window_us: 20_000.0, page_faults: 3, off_cpu_us: 3_000.0, softirq_us: 10_000.0, steal_us: 0.0 };
        let slow = TracedRequest { kernel, ..request(900.0) };
        let quick = TracedRequest { kernel, ..request(18.0) };
        assert_eq!(
            words("GUEST", |of| of(&slow)),
            "guest; in the 20 ms around: another thread had the CPU 3000, softirqs 10000, page faults 3"
        );
        assert_eq!(words("GUEST", |of| of(&quick)), "guest");
        // The kernel counts the whole wait when it ends.
        let waited = TracedRequest { kernel: KernelWork { window_us: 25_000.0, off_cpu_us: 243_000.0, ..KernelWork::default() }, ..slow };
        assert_eq!(
            words("TURN", |of| of(&waited)),
            "turn; in the 25 ms around: another thread had the CPU 243000 (a wait that began before and ended then)"
        );
    }

    #[test]
    fn a_trace_that_sampled_nothing_says_so() {
        let reply = TraceReply { seconds: 1.0, began_ns: 0, shards: vec![shard(9, Vec::new(), Vec::new())] };
        assert!(report(&reply).contains("too few requests"));
    }
}
