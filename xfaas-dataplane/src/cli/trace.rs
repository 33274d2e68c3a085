//! `xfaas trace --tail`: says for the median, the slow and the slowest requests which stage their time went to, and what else the core did.

use super::show::table;
use crate::control::{ShardTrace, TraceReply, TracedRequest};
use std::fmt::Write;

/// A part of a request's time, or what happened beside it, and how to find it. Microseconds.
type Part = (&'static str, fn(&TracedRequest) -> f64);

/// The stages in their order.
const STAGES: [Part; 7] = [
    ("NETWORK", |request| request.network_us),
    ("TURN", |request| request.turn_us),
    ("DECODE", |request| request.decode_us),
    ("WORKER", |request| request.worker_us),
    ("GUEST", |request| request.guest_us),
    ("PARKED", |request| request.parked_us),
    ("SEND", |request| request.send_us),
];

/// What else a core did, and how many microseconds of it are worth a word.
const OTHERS: [Part; 6] = [
    ("forks", |request| request.forks_us),
    ("other sessions' slices", |request| request.other_slices_us),
    ("log, checkpoints, timed work", |request| request.chores_us),
    ("waited for a lock", |request| request.lock_us),
    ("another thread had the CPU", |request| request.kernel.off_cpu_us),
    ("stolen by the host", |request| request.kernel.steal_us),
];
const WORTH_A_WORD_US: f64 = 5.0;

/// How many of the slowest requests are listed for each core.
const LISTED: usize = 10;

/// Which requests stand for a quantile: those whose rank from the slowest is within this part of it.
const AROUND: f64 = 0.2;

pub(super) fn report(reply: &TraceReply) -> String {
    let mut text = String::new();
    for shard in &reply.shards {
        writeln!(
            text,
            "core {}: {} requests in {:.1} s, {:.0} a second; {} of the slowest, one in {} of all ({})",
            shard.core,
            shard.requests,
            reply.seconds,
            shard.requests as f64 / reply.seconds,
            shard.slow.len(),
            shard.sampled_one_in,
            shard.sample.len(),
        )
        .expect("a String takes all text");
        if shard.dropped > 0 {
            writeln!(text, "{} slow requests were not kept: a shorter trace holds them all", shard.dropped)
                .expect("a String takes all text");
        }
        text.push_str(&quantiles(shard));
        text.push_str(&slowest(shard));
        text.push('\n');
    }
    text.push_str(
        "Times in microseconds. NETWORK: from the XDP program to the shard (0: not stamped); TURN: behind what came with it; WORKER: queue, Fork, mailbox;\n\
         PARKED: locks, the primary, others' slices; SEND: until the kernel has the reply.\n",
    );
    text
}

/// The requests that stand for the quantile above which `part` of all requests are.
fn at_quantile(shard: &ShardTrace, part: f64) -> Vec<&TracedRequest> {
    let by_time = |requests: &'_ [TracedRequest]| -> Vec<usize> {
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by(|a, b| requests[*b].total_us.total_cmp(&requests[*a].total_us));
        order
    };
    // What the slow ones do not reach, the sample does.
    let rank = shard.requests as f64 * part;
    let is_slow = (rank * (1.0 + AROUND)) as usize <= shard.slow.len() && shard.dropped == 0;
    let (requests, rank) = match is_slow {
        true => (&shard.slow, rank),
        false => (&shard.sample, shard.sample.len() as f64 * part),
    };
    let order = by_time(requests);
    let first = ((rank * (1.0 - AROUND)) as usize).min(order.len().saturating_sub(1));
    let last = ((rank * (1.0 + AROUND)).ceil() as usize).clamp(first, order.len());
    order[first..last.max(first + 1).min(order.len())].iter().map(|at| &requests[*at]).collect()
}

fn mean(requests: &[&TracedRequest], of: impl Fn(&TracedRequest) -> f64) -> f64 {
    requests.iter().map(|request| of(request)).sum::<f64>() / requests.len().max(1) as f64
}

fn quantiles(shard: &ShardTrace) -> String {
    let mut names = vec!["", "TOTAL"];
    names.extend(STAGES.iter().map(|(name, _)| *name));
    names.push("MOST OF IT, AND WHAT ELSE THE CORE DID");
    let row = |(name, part): (&str, f64)| {
        let requests = at_quantile(shard, part);
        if requests.is_empty() {
            return None;
        }
        let times = STAGES.map(|(name, of)| (name, mean(&requests, of)));
        let most = times.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are stages").0;
        let others = OTHERS.map(|(name, of)| (name, mean(&requests, of)));
        let mut row = vec![name.to_owned(), format!("{:.1}", mean(&requests, |request| request.total_us))];
        row.extend(times.iter().map(|(_, time)| format!("{time:.1}")));
        row.push(words(most, &others, mean(&requests, |request| request.kernel.page_faults as f64)));
        Some(row)
    };
    let rows: Vec<Vec<String>> = [("p50", 0.5), ("p99", 0.01), ("p99.9", 0.001)].into_iter().filter_map(row).collect();
    if rows.is_empty() { "no request ended meanwhile\n".to_owned() } else { table(&names, &rows) }
}

fn words(most: &str, others: &[(&str, f64)], page_faults: f64) -> String {
    let mut text = most.to_lowercase();
    for (name, time) in others.iter().filter(|(_, time)| *time >= WORTH_A_WORD_US) {
        write!(text, "; {name} {time:.0}").expect("a String takes all text");
    }
    if page_faults >= 1.0 {
        write!(text, "; page faults within 20 ms: {page_faults:.0}").expect("a String takes all text");
    }
    text
}

fn slowest(shard: &ShardTrace) -> String {
    let mut requests: Vec<&TracedRequest> = shard.slow.iter().collect();
    requests.sort_by(|a, b| b.total_us.total_cmp(&a.total_us));
    requests.truncate(LISTED);
    if requests.is_empty() {
        return String::new();
    }
    let row = |request: &&TracedRequest| {
        let times = STAGES.map(|(name, of)| (name, of(request)));
        let most = times.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are stages");
        let others = OTHERS.map(|(name, of)| (name, of(request)));
        let way = match (request.is_datagram, request.is_forwarded) {
            (true, false) => "udp",
            (true, true) => "udp, forwarded",
            (false, false) => "http",
            (false, true) => "http, forwarded",
        };
        vec![
            format!("{:.1}", request.total_us),
            format!("{:.1}", request.at_ms),
            request.function.clone(),
            request.session.clone(),
            way.to_owned(),
            format!("{:.0} us", most.1),
            words(most.0, &others, request.kernel.page_faults as f64),
        ]
    };
    let rows: Vec<Vec<String>> = requests.iter().map(row).collect();
    table(&["SLOWEST", "AT_MS", "FUNCTION", "SESSION", "BY", "MOST", "OF IT, AND WHAT ELSE THE CORE DID"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ShardTrace { core: 0, requests, sampled_one_in: 128, dropped: 0, slow, sample }
    }

    #[test]
    fn quantiles_come_from_the_slow_ones_where_they_reach() {
        let slow = (0..120).map(|number| request(1_000.0 + f64::from(number))).collect();
        let sample = (0..100).map(|number| request(f64::from(number))).collect();
        let shard = shard(10_000, slow, sample);
        let of = |part| {
            let mut times: Vec<f64> = at_quantile(&shard, part).iter().map(|request| request.total_us).collect();
            times.sort_by(f64::total_cmp);
            (times[0], *times.last().unwrap())
        };
        assert_eq!(of(0.001), (1_108.0, 1_111.0));
        assert_eq!(of(0.01), (1_000.0, 1_039.0));
        assert_eq!(of(0.5), (40.0, 59.0));
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
        assert!(text.contains("turn; log, checkpoints, timed work 60"), "{text}");
    }
}
